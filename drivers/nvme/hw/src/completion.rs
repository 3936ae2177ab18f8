//! Completion queue entries (section 4.6, figure 122).
//!
//! # Shape
//!
//! ```text
//!  00 result │ 04 - │ 08 head of the submission queue │ 0a its number
//!  0c identifier │ 0e status ── 1 │ phase 0
//! ```
//!
//! The phase inverts at each pass through the queue, and the dword with it is written last: an
//! entry is new when its phase is not that of the pass before (section 4.6).

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a completion queue entry.
pub const LEN: usize = 16;
/// The power of 2 that is [`LEN`].
pub const LEN_SHIFT: u8 = 4;
/// Offset of the dword that is written last, with identifier, phase and status.
pub const LAST_DWORD: usize = 12;

/// A completion.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(C)]
pub struct Completion {
    /// The command's own result.
    pub result: U32,
    reserved: U32,
    /// Head of the submission queue.
    pub submission_head: U16,
    /// The submission queue.
    pub submission_queue: U16,
    /// The command's identifier.
    pub id: U16,
    /// Phase and status; see [`PhaseStatus`].
    pub phase_status: U16,
}

const _: () = assert!(size_of::<Completion>() == LEN);

impl Completion {
    /// Returns phase and status.
    #[must_use]
    pub fn parts(&self) -> PhaseStatus {
        PhaseStatus::from(self.phase_status.get())
    }
}

/// The last word of a completion (section 4.6.1, figure 126).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PhaseStatus {
    /// Inverted each time that the queue is passed through.
    pub phase: bool,
    /// Status code.
    pub code: u8,
    /// Status code's type.
    #[bits(3)]
    pub kind: u8,
    /// Delay before a retry.
    #[bits(2)]
    pub retry_delay: u8,
    /// More is in the error log.
    pub more: bool,
    /// A retry would fail, too.
    pub do_not_retry: bool,
}

/// A command's status: its type and code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Status code's type.
    pub kind: u8,
    /// Status code.
    pub code: u8,
    /// A retry would fail, too.
    pub final_: bool,
}

impl Status {
    /// The command has succeeded (figure 128).
    pub const SUCCESS: Self = Self::generic(0);
    /// No such command.
    pub const INVALID_OPCODE: Self = Self::generic(1);
    /// A field of the command is wrong.
    pub const INVALID_FIELD: Self = Self::generic(2);
    /// An internal error.
    pub const INTERNAL: Self = Self::generic(6);
    /// An Abort command ended it.
    pub const ABORTED: Self = Self::generic(7);
    /// Blocks beyond the namespace's end.
    pub const OUT_OF_RANGE: Self = Self::generic(0x80);
    /// The namespace is not ready.
    pub const NOT_READY: Self = Self::generic(0x82);
    /// A medium error on writing (figure 131).
    pub const WRITE_FAULT: Self = Self::media(0x80);
    /// A medium error on reading.
    pub const UNRECOVERED_READ: Self = Self::media(0x81);

    const fn generic(code: u8) -> Self {
        Self {
            kind: 0,
            code,
            final_: false,
        }
    }

    const fn media(code: u8) -> Self {
        Self {
            kind: 2,
            code,
            final_: false,
        }
    }

    /// Returns whether the command has succeeded.
    #[must_use]
    pub fn is_success(self) -> bool {
        (self.kind, self.code) == (0, 0)
    }

    /// Returns whether the command may succeed on a retry: a generic failure whose completion does
    /// not forbid one. Media errors were retried by the device.
    #[must_use]
    pub fn may_be_retried(self) -> bool {
        !self.is_success() && self.kind == 0 && !self.final_
    }
}

impl From<PhaseStatus> for Status {
    fn from(parts: PhaseStatus) -> Self {
        Self {
            kind: parts.kind(),
            code: parts.code(),
            final_: parts.do_not_retry(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, code, .. } = *self;
        // Figures 127, 128 and 131.
        let name = match (kind, code) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "aborted by a loss of power",
            (0, 0x06) => "internal error",
            (0, 0x07) => "aborted by request",
            (0, 0x0b) => "invalid namespace",
            (0, 0x80) => "blocks out of range",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "namespace not ready",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x86) => "access denied",
            (0, _) => "generic status",
            (1, _) => "command specific status",
            (2, _) => "media error",
            (7, _) => "vendor's status",
            _ => "unknown status",
        };
        write!(f, "{name} (type {kind}, code {code:#04x})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After `struct nvme_completion` of Linux 6.12, and its `NVME_SC_…` in `status >> 1`.
    #[test]
    fn a_completion_has_its_fields_where_linux_has_them() {
        let bytes = [7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 0xcd, 0xab, 0x03, 0x85];
        let completion = Completion::read_from_bytes(&bytes).expect("16 bytes");
        assert_eq!(
            (completion.result.get(), completion.submission_head.get()),
            (7, 9)
        );
        assert_eq!(
            (completion.submission_queue.get(), completion.id.get()),
            (1, 0xabcd)
        );
        let parts = completion.parts();
        assert!(parts.phase() && parts.do_not_retry());
        let status = Status::from(parts);
        assert_eq!((status.kind, status.code), (2, 0x81));
        assert_eq!(
            status.to_string(),
            "unrecovered read error (type 2, code 0x81)"
        );
        assert!(!status.may_be_retried());
        assert!(Status::NOT_READY.may_be_retried() && !Status::SUCCESS.may_be_retried());
        assert_eq!(&completion.as_bytes()[LAST_DWORD..], &bytes[12..]);
    }
}

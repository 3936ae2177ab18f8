//! Submission queue entries (section 4.2, figure 105).
//!
//! # Shape
//!
//! ```text
//!  00 opcode, flags, identifier │ 04 namespace │ 08 - - │ 10 metadata
//!  18 PRP 1 │ 20 PRP 2: nothing, the second page, or a list of all but the first
//!  28 dwords 10 to 15: first block (64 bits), blocks less one, and so on
//! ```

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a submission queue entry.
pub const LEN: usize = 64;
/// The power of 2 that is [`LEN`].
pub const LEN_SHIFT: u8 = 6;

/// A command's number; those of admin commands (section 5, figure 139) and of the NVM command set
/// (section 6, figure 346) overlap.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(transparent)]
pub struct Opcode(pub u8);

impl Opcode {
    /// Admin: creates an I/O submission queue (section 5.4).
    pub const CREATE_SUBMISSION: Self = Self(0x01);
    /// Admin: creates an I/O completion queue (section 5.3).
    pub const CREATE_COMPLETION: Self = Self(0x05);
    /// Admin: returns identify data (section 5.15).
    pub const IDENTIFY: Self = Self(0x06);
    /// Admin: aborts a command (section 5.1).
    pub const ABORT: Self = Self(0x08);
    /// Admin: sets a feature (section 5.21).
    pub const SET_FEATURES: Self = Self(0x09);
    /// NVM: makes completed writes durable (section 6.8).
    pub const FLUSH: Self = Self(0x00);
    /// NVM: writes blocks (section 6.15).
    pub const WRITE: Self = Self(0x01);
    /// NVM: reads blocks (section 6.9).
    pub const READ: Self = Self(0x02);
}

/// Feature: number of I/O queues (section 5.21.1.7).
pub const FEATURE_QUEUES: u32 = 0x07;
/// Write: completes when the data is durable (section 6.15, figure 416, bit 30 of dword 12).
pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Queue creation: the memory is contiguous (figures 149 and 153, bit 0 of dword 11).
pub const CONTIGUOUS: u32 = 1 << 0;
/// Completion queue creation: interrupts are on (figure 149, bit 1 of dword 11).
pub const INTERRUPTS: u32 = 1 << 1;

/// A command.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(C)]
pub struct Command {
    /// The command's number.
    pub opcode: Opcode,
    /// Fused operations and SGLs: 0 for a command alone with PRPs.
    pub flags: u8,
    /// The identifier that the completion carries.
    pub id: U16,
    /// The namespace.
    pub namespace: U32,
    reserved: [U32; 2],
    /// Metadata pointer.
    pub metadata: U64,
    /// PRP entries 1 and 2 (section 4.3).
    pub prp: [U64; 2],
    /// Dwords 10 to 15, as the command has them.
    pub dwords: [U32; 6],
}

const _: () = assert!(size_of::<Command>() == LEN);

impl Command {
    fn new(opcode: Opcode, namespace: u32, prp: [u64; 2]) -> Self {
        Self {
            opcode,
            namespace: namespace.into(),
            prp: prp.map(Into::into),
            ..Self::default()
        }
    }

    fn with(mut self, dwords: &[u32]) -> Self {
        for (into, &dword) in self.dwords.iter_mut().zip(dwords) {
            *into = dword.into();
        }
        self
    }

    /// Returns the command that reads or writes `blocks` blocks, at most 65,536, from `first` on;
    /// `control` is [`FORCE_UNIT_ACCESS`] or 0.
    #[must_use]
    pub fn transfer(
        opcode: Opcode,
        namespace: u32,
        first: u64,
        blocks: u32,
        control: u32,
        prp: [u64; 2],
    ) -> Self {
        let [low, high] = halves(first);
        let length = blocks.saturating_sub(1) & 0xffff;
        Self::new(opcode, namespace, prp).with(&[low, high, control | length])
    }

    /// Returns the command that makes completed writes durable.
    #[must_use]
    pub fn flush(namespace: u32) -> Self {
        Self::new(Opcode::FLUSH, namespace, [0, 0])
    }

    /// Returns the command that writes identify data of kind `cns` (figure 244) to a page.
    #[must_use]
    pub fn identify(cns: u8, namespace: u32, page: u64) -> Self {
        Self::new(Opcode::IDENTIFY, namespace, [page, 0]).with(&[cns.into()])
    }

    /// Returns the command that asks for `queues` pairs of I/O queues.
    #[must_use]
    pub fn ask_for_queues(queues: u16) -> Self {
        let count = u32::from(queues.saturating_sub(1));
        Self::new(Opcode::SET_FEATURES, 0, [0, 0]).with(&[FEATURE_QUEUES, count << 16 | count])
    }

    /// Returns the command that creates a completion queue; `vector` is its interrupt's.
    #[must_use]
    pub fn create_completion(queue: u16, entries: u16, memory: u64, vector: Option<u16>) -> Self {
        let interrupt = vector.map_or(0, |vector| u32::from(vector) << 16 | INTERRUPTS);
        Self::new(Opcode::CREATE_COMPLETION, 0, [memory, 0]).with(&[
            u32::from(entries.saturating_sub(1)) << 16 | u32::from(queue),
            interrupt | CONTIGUOUS,
        ])
    }

    /// Returns the command that creates the submission queue of the completion queue with the same
    /// number.
    #[must_use]
    pub fn create_submission(queue: u16, entries: u16, memory: u64) -> Self {
        Self::new(Opcode::CREATE_SUBMISSION, 0, [memory, 0]).with(&[
            u32::from(entries.saturating_sub(1)) << 16 | u32::from(queue),
            u32::from(queue) << 16 | CONTIGUOUS,
        ])
    }

    /// Returns the command that aborts command `id` of a submission queue.
    #[must_use]
    pub fn abort(queue: u16, id: u16) -> Self {
        Self::new(Opcode::ABORT, 0, [0, 0]).with(&[u32::from(id) << 16 | u32::from(queue)])
    }

    /// Returns the same command with an identifier.
    #[must_use]
    pub fn with_id(mut self, id: u16) -> Self {
        self.id = id.into();
        self
    }

    /// Returns the first block of a transfer.
    #[must_use]
    pub fn first_block(&self) -> u64 {
        u64::from(self.dwords[1].get()) << 32 | u64::from(self.dwords[0].get())
    }

    /// Returns the number of blocks of a transfer.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        (self.dwords[2].get() & 0xffff) + 1
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(command: &Command) -> String {
        let words = command.as_bytes().chunks(4);
        let word = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        words.map(word).collect::<Vec<String>>().join(" ")
    }

    /// After `struct nvme_rw_command` and the like of Linux 6.12's `include/linux/nvme.h`.
    #[test]
    fn commands_have_their_fields_where_linux_has_them() {
        let command = Command::transfer(
            Opcode::WRITE,
            1,
            0x1_0203_0405,
            8,
            FORCE_UNIT_ACCESS,
            [0x1000, 0x2000],
        )
        .with_id(0xabcd);
        assert_eq!(
            hex(&command),
            "0100cdab 01000000 00000000 00000000 00000000 00000000 00100000 00000000 \
             00200000 00000000 05040302 01000000 07000040 00000000 00000000 00000000"
        );
        assert_eq!(
            (command.first_block(), command.blocks()),
            (0x1_0203_0405, 8)
        );
        assert_eq!(
            hex(&Command::create_completion(2, 64, 0x3000, Some(5))),
            "05000000 00000000 00000000 00000000 00000000 00000000 00300000 00000000 \
             00000000 00000000 02003f00 03000500 00000000 00000000 00000000 00000000"
        );
        assert_eq!(
            hex(&Command::create_submission(2, 64, 0x3000)),
            "01000000 00000000 00000000 00000000 00000000 00000000 00300000 00000000 \
             00000000 00000000 02003f00 01000200 00000000 00000000 00000000 00000000"
        );
        assert_eq!(Command::abort(2, 7).dwords[0].get(), 0x7_0002);
        assert_eq!(Command::ask_for_queues(4).dwords[1].get(), 0x3_0003);
        assert_eq!(Command::identify(2, 0, 0).dwords[0].get(), 2);
    }
}

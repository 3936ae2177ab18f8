//! Identify data (section 5.15.2): what a controller is, and how its namespace is cut into blocks.
//!
//! Every field comes from the device, so parsing checks what would break arithmetic later.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of any identify data.
pub const LEN: usize = 4096;
/// Kind: a namespace.
pub const NAMESPACE: u8 = 0;
/// Kind: the controller.
pub const CONTROLLER: u8 = 1;
/// Kind: the list of active namespaces.
pub const ACTIVE_NAMESPACES: u8 = 2;

/// The fields of the controller's data that are used (figure 247).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawController {
    /// PCI vendor and subsystem vendor.
    pub vendors: [U16; 2],
    /// Serial number, filled up with spaces.
    pub serial: [u8; 20],
    /// Model.
    pub model: [u8; 40],
    /// Firmware's revision.
    pub firmware: [u8; 8],
    unused: [u8; 5],
    /// The longest transfer, as a power of 2 of the smallest page; 0 for no limit.
    pub max_transfer: u8,
    unused_too: [u8; 33],
    /// Kind of controller: 0 not said, 1 for I/O.
    pub kind: u8,
    gap: [u8; 400],
    /// Sizes of a submission queue's entry: the least and, in the upper half, the largest.
    pub submission_entry: u8,
    /// Sizes of a completion queue's entry.
    pub completion_entry: u8,
    /// Commands that may be outstanding.
    pub max_commands: U16,
    /// The highest namespace.
    pub namespaces: U32,
    /// Optional commands.
    pub optional_commands: U16,
    /// Fused operations and attributes of formatting.
    pub fused_and_format: [u8; 3],
    /// Bit 0: there is a volatile write cache.
    pub write_cache: u8,
    rest: [u8; LEN - 526],
}

const _: () = assert!(size_of::<RawController>() == LEN);
const _: () = assert!(core::mem::offset_of!(RawController, max_transfer) == 77);
const _: () = assert!(core::mem::offset_of!(RawController, kind) == 111);
const _: () = assert!(core::mem::offset_of!(RawController, submission_entry) == 512);
const _: () = assert!(core::mem::offset_of!(RawController, write_cache) == 525);

/// The fields of a namespace's data that are used (figure 245).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawNamespace {
    /// Size in blocks.
    pub size: U64,
    /// Capacity and utilization in blocks.
    pub capacity: [U64; 2],
    /// Features.
    pub features: u8,
    /// Number of formats, less one.
    pub formats: u8,
    /// The format: bits 0 to 3 its number, bit 4 for metadata behind each block's data.
    pub format: u8,
    /// Metadata capabilities, protection capabilities.
    pub capabilities: [u8; 2],
    /// Kind of protection, in bits 0 to 2; 0 for none.
    pub protection: u8,
    gap: [u8; 69],
    /// Bit 0: write protected.
    pub attributes: u8,
    gap_too: [u8; 28],
    /// The formats: 16 bits of metadata's length, 8 bits of data's as a power of 2, and flags.
    pub block_formats: [U32; 16],
    rest: [u8; LEN - 192],
}

const _: () = assert!(size_of::<RawNamespace>() == LEN);
const _: () = assert!(core::mem::offset_of!(RawNamespace, protection) == 29);
const _: () = assert!(core::mem::offset_of!(RawNamespace, attributes) == 99);
const _: () = assert!(core::mem::offset_of!(RawNamespace, block_formats) == 128);

/// Reasons why a controller or namespace can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// The controller is not one for I/O.
    Kind(u8),
    /// The sizes of queue entries are not 64 and 16 bytes.
    EntrySizes(u8, u8),
    /// A block has `2^n` bytes, for this `n`; 512 to 4096 bytes can be used.
    BlockSize(u8),
    /// Each block has so many bytes of metadata.
    Metadata(u16),
    /// Each block carries protection information of this kind.
    Protection(u8),
    /// The namespace has no blocks.
    Empty,
    /// The namespace's bytes are too many to count.
    TooLarge(u64),
}

impl core::fmt::Display for Unusable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Kind(kind) => write!(f, "it is no I/O controller but of kind {kind}"),
            Self::EntrySizes(submission, completion) => write!(
                f,
                "its queue entries' sizes are {submission:#04x} and {completion:#04x}"
            ),
            Self::BlockSize(shift) => write!(f, "its blocks have 2^{shift} bytes"),
            Self::Metadata(bytes) => write!(f, "its blocks have {bytes} bytes of metadata"),
            Self::Protection(kind) => write!(f, "its blocks have protection of kind {kind}"),
            Self::Empty => f.write_str("its namespace has no blocks"),
            Self::TooLarge(blocks) => write!(f, "its namespace has {blocks} blocks"),
        }
    }
}

/// A controller's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controller {
    /// Serial number.
    pub serial: [u8; 20],
    /// Model.
    pub model: [u8; 40],
    /// Firmware's revision.
    pub firmware: [u8; 8],
    /// The longest transfer, as a power of 2 of the smallest page.
    pub max_transfer: Option<u8>,
    /// There is a volatile write cache.
    pub write_cache: bool,
    /// The highest namespace.
    pub namespaces: u32,
}

impl Controller {
    /// Takes identify data apart.
    ///
    /// # Errors
    ///
    /// If such a controller can't be driven.
    pub fn parse(bytes: &[u8; LEN]) -> Result<Self, Unusable> {
        let raw: RawController = zerocopy::transmute!(*bytes);
        if raw.kind > 1 {
            return Err(Unusable::Kind(raw.kind));
        }
        let takes = |sizes: u8, wanted: u8| (sizes & 0xf..=sizes >> 4).contains(&wanted);
        if !takes(raw.submission_entry, crate::command::LEN_SHIFT)
            || !takes(raw.completion_entry, crate::completion::LEN_SHIFT)
        {
            return Err(Unusable::EntrySizes(
                raw.submission_entry,
                raw.completion_entry,
            ));
        }
        Ok(Self {
            serial: raw.serial,
            model: raw.model,
            firmware: raw.firmware,
            max_transfer: (raw.max_transfer != 0).then_some(raw.max_transfer),
            write_cache: raw.write_cache & 1 != 0,
            namespaces: raw.namespaces.get(),
        })
    }
}

/// A namespace's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// Number of blocks; their bytes can be counted in 64 bits.
    pub blocks: u64,
    /// Bytes of a block, as a power of 2: 9 to 12.
    pub block_shift: u8,
    /// It can't be written.
    pub read_only: bool,
}

impl Namespace {
    /// Takes identify data apart.
    ///
    /// # Errors
    ///
    /// If such a namespace can't be used.
    pub fn parse(bytes: &[u8; LEN]) -> Result<Self, Unusable> {
        let raw: RawNamespace = zerocopy::transmute!(*bytes);
        let format = raw.block_formats[usize::from(raw.format & 0xf)].get();
        let [low, high, shift, _] = format.to_le_bytes();
        let metadata = u16::from_le_bytes([low, high]);
        let blocks = raw.size.get();
        if blocks == 0 {
            return Err(Unusable::Empty);
        }
        if !(9..=12).contains(&shift) {
            return Err(Unusable::BlockSize(shift));
        }
        if metadata != 0 {
            return Err(Unusable::Metadata(metadata));
        }
        if raw.protection & 7 != 0 {
            return Err(Unusable::Protection(raw.protection & 7));
        }
        if blocks > u64::MAX >> shift {
            return Err(Unusable::TooLarge(blocks));
        }
        Ok(Self {
            blocks,
            block_shift: shift,
            read_only: raw.attributes & 1 != 0,
        })
    }
}

/// Returns the first namespace of a list of active ones (section 5.15.2.3); `None` for an empty
/// list.
#[must_use]
pub fn first_namespace(list: &[u8; LEN]) -> Option<u32> {
    let first = u32::from_le_bytes(*list.first_chunk()?);
    (first != 0).then_some(first)
}

/// Returns a text field of identify data without its filling; what is not printable ASCII is a
/// question mark.
pub fn text(field: &[u8]) -> impl Iterator<Item = char> {
    let len = field
        .iter()
        .rposition(|&byte| byte != b' ' && byte != 0)
        .map_or(0, |last| last + 1);
    let printable = |&byte: &u8| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    };
    field[..len].iter().map(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[4..24].copy_from_slice(b"S64            12   ");
        bytes[24..64].fill(b' ');
        bytes[24..33].copy_from_slice(b"QEMU NVMe");
        (bytes[77], bytes[111]) = (7, 1);
        (bytes[512], bytes[513], bytes[516], bytes[525]) = (0x66, 0x44, 1, 7);
        bytes
    }

    /// Offsets of `struct nvme_id_ctrl` and `struct nvme_id_ns` of Linux 6.12.
    #[test]
    fn facts_are_found_where_linux_has_them() {
        let facts = Controller::parse(&controller()).expect("usable");
        assert_eq!(
            (facts.max_transfer, facts.write_cache, facts.namespaces),
            (Some(7), true, 1)
        );
        assert_eq!(text(&facts.model).collect::<String>(), "QEMU NVMe");
        assert_eq!(text(&facts.serial).collect::<String>(), "S64            12");
        let mut bytes = [0; LEN];
        bytes[1] = 0x10;
        bytes[26] = 2;
        bytes[128 + 2 * 4 + 2] = 12;
        bytes[99] = 1;
        let expected = Namespace {
            blocks: 0x1000,
            block_shift: 12,
            read_only: true,
        };
        assert_eq!(Namespace::parse(&bytes), Ok(expected));
        assert_eq!(first_namespace(&[0; LEN]), None);
    }

    #[test]
    fn what_could_not_be_driven_is_refused() {
        let controllers = [
            (111, 2, Unusable::Kind(2)),
            (512, 0x77, Unusable::EntrySizes(0x77, 0x44)),
            (513, 0x33, Unusable::EntrySizes(0x66, 0x33)),
        ];
        for (at, value, why) in controllers {
            let mut bytes = controller();
            bytes[at] = value;
            assert_eq!(Controller::parse(&bytes), Err(why));
        }
        let mut good = [0; LEN];
        (good[0], good[130]) = (1, 9);
        assert!(Namespace::parse(&good).is_ok());
        let namespaces = [
            (0, 0, Unusable::Empty),
            (130, 13, Unusable::BlockSize(13)),
            (128, 8, Unusable::Metadata(8)),
            (29, 3, Unusable::Protection(3)),
            (7, 0xff, Unusable::TooLarge(0xff00_0000_0000_0001)),
        ];
        for (at, value, why) in namespaces {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(Namespace::parse(&bytes), Err(why));
        }
    }
}

//! Small building blocks: numbers that share their bytes with reserved or other bits.
//!
//! Every multi-byte field of the device is big-endian and none is aligned here, so a layout is a
//! plain `#[repr(C)]` struct of these and zerocopy's big-endian integers, whatever its offsets are.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A number in the low `N` bits of a byte; the bits above are unused.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Low<const N: u32>(u8);

impl<const N: u32> Low<N> {
    const MASK: u8 = 0xff >> (8 - N);

    /// The number; bits beyond the field are cut off.
    #[must_use]
    pub const fn new(value: u8) -> Self {
        Self(value & Self::MASK)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0 & Self::MASK
    }
}

impl<const N: u32> core::fmt::Debug for Low<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

/// A number in the high `N` bits of a byte; the bits below are unused.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct High<const N: u32>(u8);

impl<const N: u32> High<N> {
    /// The number; bits beyond the field are cut off.
    #[must_use]
    pub const fn new(value: u8) -> Self {
        Self(value << (8 - N))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0 >> (8 - N)
    }
}

impl<const N: u32> core::fmt::Debug for High<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

/// A 24-bit number (QPN, CQN, PD, PSN, consumer index) in the low bits of a big-endian dword.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Low24(U32);

impl Low24 {
    /// The largest value.
    pub const MAX: u32 = 0xff_ffff;

    /// The number; bits beyond the field are cut off.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(U32::new(value & Self::MAX))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get() & Self::MAX
    }
}

impl core::fmt::Debug for Low24 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

/// The base address of an ICM table together with the logarithm of its entries, which lies in the
/// low bits that the table's alignment leaves free (Linux `fw.c`, `mlx4_INIT_HCA`: a be64 base
/// whose last byte is overwritten).
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct TableBase(U64);

impl TableBase {
    const LOG_MASK: u64 = 0x1f;

    /// A table at `base` (a multiple of 32) of 2^`log_entries` entries.
    #[must_use]
    pub const fn new(base: u64, log_entries: u8) -> Self {
        Self(U64::new(
            base & !Self::LOG_MASK | log_entries as u64 & Self::LOG_MASK,
        ))
    }

    /// Returns the table's base address in ICM.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0.get() & !Self::LOG_MASK
    }

    /// The logarithm of its entries.
    #[must_use]
    pub const fn log_entries(self) -> u8 {
        self.0.get().to_be_bytes()[7] & 0x1f
    }
}

impl core::fmt::Debug for TableBase {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x} (2^{})", self.base(), self.log_entries())
    }
}

/// Buffer of a queue: a run of MTT entries and the size of the pages they name.
///
/// The form that the EQ, CQ and QP contexts share: a byte with log2(page) − 12, two bytes of
/// nothing, 40 bits of the byte offset in the MTT table (Linux `mlx4.h`: `log_page_size`,
/// `mtt_base_addr_h`, `mtt_base_addr_l`).
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct QueueBuffer(U64);

impl QueueBuffer {
    const MTT_MASK: u64 = 0xff_ffff_fff8;

    /// A buffer of pages of 2^`log_page` bytes (at least 12) whose first MTT entry lies at byte
    /// `mtt_offset` (a multiple of 8) of the MTT table.
    #[must_use]
    pub const fn new(mtt_offset: u64, log_page: u8) -> Self {
        Self(U64::new(
            (log_page.saturating_sub(12) as u64 & 0x3f) << 56 | mtt_offset & Self::MTT_MASK,
        ))
    }

    /// Byte offset of the first entry in the MTT table.
    #[must_use]
    pub const fn mtt_offset(self) -> u64 {
        self.0.get() & Self::MTT_MASK
    }

    /// The logarithm of the page size in bytes.
    #[must_use]
    pub const fn log_page(self) -> u8 {
        (self.0.get().to_be_bytes()[0] & 0x3f) + 12
    }
}

impl core::fmt::Debug for QueueBuffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "MTT +{:#x}, pages of 2^{}",
            self.mtt_offset(),
            self.log_page()
        )
    }
}

/// Defines an open enum: a number that the device or a peer writes, with names for the values known
/// here.
macro_rules! open_enum {
    ($(#[$doc:meta])* $vis:vis struct $name:ident($inner:ty) {
        $($(#[$value_doc:meta])* $value:ident = $number:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, zerocopy::FromBytes, zerocopy::IntoBytes,
            zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        $vis struct $name(pub $inner);

        impl $name {
            $($(#[$value_doc])* pub const $value: Self = Self($number);)*

            /// The value's name, if it has one here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($value)),)*
                    _ => None,
                }
            }

            /// From the number, as a bitfield wants it.
            #[must_use]
            pub const fn from_bits(bits: $inner) -> Self {
                Self(bits)
            }
            /// The number, as a bitfield wants it.
            #[must_use]
            pub const fn into_bits(self) -> $inner {
                self.0
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Debug::fmt(self, f)
            }
        }
    };
}
pub(crate) use open_enum;

/// States a layout's size and the offsets of its fields, checked when it is compiled.
macro_rules! layout {
    ($type:ty: $size:literal $(, $field:ident @ $offset:literal)* $(,)?) => {
        const _: () = assert!(size_of::<$type>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
    };
}
pub(crate) use layout;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_buffer_splits_the_mtt_address() {
        // Linux mlx4/eq.c: log_page_size = shift - 12; mtt_base_addr_h = addr >> 32;
        // mtt_base_addr_l = addr & ~7.
        let buffer = QueueBuffer::new(0x12_3456_7898, 16);
        assert_eq!(buffer.as_bytes(), [4, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x98]);
        assert_eq!(buffer.mtt_offset(), 0x12_3456_7898);
        assert_eq!(buffer.log_page(), 16);
    }

    #[test]
    fn table_base_keeps_both_parts() {
        let table = TableBase::new(0x1_0800_0000, 18);
        assert_eq!(table.as_bytes(), [0, 0, 0, 1, 8, 0, 0, 18]);
        assert_eq!((table.base(), table.log_entries()), (0x1_0800_0000, 18));
    }

    #[test]
    fn partial_bytes_ignore_their_neighbours() {
        assert_eq!(Low::<4>::read_from_bytes(&[0xf6]).unwrap().get(), 6);
        assert_eq!(High::<4>::read_from_bytes(&[0x6f]).unwrap().get(), 6);
        assert_eq!(
            Low24::read_from_bytes(&[0xff, 0, 2, 8]).unwrap().get(),
            0x208
        );
    }
}

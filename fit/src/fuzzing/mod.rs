//! Fuzz targets on FIT, a function each, over parts that only this crate sees. Only the feature
//! `fuzz` has them.
//!
//! Each takes any bytes and panics when something does not hold; `testbed/fuzz` names them and
//! gives seeds.

mod formats;
mod link;
mod membership;

pub use formats::{announcement, handshake, header};
pub use link::link;
pub use membership::membership;

/// The bytes of an input that were not used yet; what is missing at its end reads as zero.
#[derive(Clone, Copy)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(len.min(self.0.len()));
        self.0 = left;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

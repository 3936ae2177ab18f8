//! Numbers in byte arrays: little-endian for ext4, big-endian for jbd2.
//!
//! Offsets are either constants within a structure of known size or were checked by the caller.

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn be16_at(bytes: &[u8], at: usize) -> u16 {
    u16_at(bytes, at).swap_bytes()
}

pub(crate) fn be32_at(bytes: &[u8], at: usize) -> u32 {
    u32_at(bytes, at).swap_bytes()
}

pub(crate) fn put_be16(bytes: &mut [u8], at: usize, value: u16) {
    put_u16(bytes, at, value.swap_bytes());
}

pub(crate) fn put_be32(bytes: &mut [u8], at: usize, value: u32) {
    put_u32(bytes, at, value.swap_bytes());
}

/// The low 16 bits.
pub(crate) fn low16(value: u32) -> u16 {
    (value & 0xffff) as u16
}

/// The low 32 bits.
pub(crate) fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The bits above the low 32.
pub(crate) fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}

/// An offset or length in memory. Values beyond the address space saturate and then fail a bounds
/// check.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

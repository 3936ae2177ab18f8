//! Physical region pages: how a command names its memory (section 4.3).

use hal::DmaBuffer;

/// Bytes of a page; the driver sets up no other size.
pub(crate) const PAGE: usize = 4096;

/// Bytes of the list for a contiguous buffer of `len` bytes.
pub(crate) const fn list_len(len: usize) -> usize {
    len.div_ceil(PAGE).saturating_sub(1) * 8
}

/// Writes the list for a contiguous, page-aligned buffer at `data`: the address of each page but
/// the first.
pub(crate) fn write_list(list: &impl DmaBuffer, at: usize, data: u64, len: usize) {
    for index in 0..list_len(len) / 8 {
        list.write_u64(at + 8 * index, data + ((index + 1) * PAGE) as u64);
    }
}

/// Returns the entries that a command carries for the first `len` bytes of the buffer at `data`,
/// whose list lies at `list`: the second names nothing, a page or a list.
pub(crate) fn entries(data: u64, list: u64, len: usize) -> [u64; 2] {
    match len.div_ceil(PAGE) {
        0 | 1 => [data, 0],
        2 => [data, data + PAGE as u64],
        _ => [data, list],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_entry_is_a_page_or_a_list() {
        assert_eq!(list_len(PAGE), 0);
        assert_eq!(list_len(32 * PAGE), 31 * 8);
        assert_eq!(entries(0x10_000, 0x800, 512), [0x10_000, 0]);
        assert_eq!(entries(0x10_000, 0x800, PAGE), [0x10_000, 0]);
        assert_eq!(entries(0x10_000, 0x800, PAGE + 512), [0x10_000, 0x11_000]);
        assert_eq!(entries(0x10_000, 0x800, 2 * PAGE + 512), [0x10_000, 0x800]);
    }
}

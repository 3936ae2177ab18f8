//! The VMAs of an address space: which addresses a program may touch, and how.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use messages::memory::Prot;

/// The mappings of a program by their first address; they do not overlap. Ranges are of whole pages.
#[derive(Default, Debug)]
pub struct Layout {
    vmas: BTreeMap<u64, (u64, Prot)>,
}

impl Layout {
    /// The rights at `addr`; none if nothing is mapped there.
    #[must_use]
    pub fn rights(&self, addr: u64) -> Option<Prot> {
        let (_, &(end, prot)) = self.vmas.range(..=addr).next_back()?;
        (addr < end).then_some(prot)
    }

    /// Maps `range`; what was there is replaced.
    pub fn insert(&mut self, range: Range<u64>, prot: Prot) {
        self.remove(range.clone());
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        if let Some((&start, &(end, before))) = self.vmas.range(..merged.start).next_back()
            && (end, before) == (merged.start, prot)
        {
            merged.start = start;
        }
        if let Some(&(end, after)) = self.vmas.get(&merged.end)
            && after == prot
        {
            self.vmas.remove(&merged.end);
            merged.end = end;
        }
        self.vmas.insert(merged.start, (merged.end, prot));
    }

    /// Unmaps `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        for (piece, prot) in self.pieces(range.clone()) {
            let Some((&start, &(end, _))) = self.vmas.range(..=piece.start).next_back() else {
                continue;
            };
            self.vmas.remove(&start);
            if start < piece.start {
                self.vmas.insert(start, (piece.start, prot));
            }
            if piece.end < end {
                self.vmas.insert(piece.end, (end, prot));
            }
        }
    }

    /// Changes the rights of what is mapped in `range`.
    pub fn protect(&mut self, range: Range<u64>, prot: Prot) {
        for (piece, _) in self.pieces(range) {
            self.insert(piece, prot);
        }
    }

    /// What of `range` is mapped, in order.
    #[must_use]
    pub fn pieces(&self, range: Range<u64>) -> Vec<(Range<u64>, Prot)> {
        let first = self
            .vmas
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        let cut = |(&start, &(end, prot)): (&u64, &(u64, Prot))| {
            let piece = start.max(range.start)..end.min(range.end);
            (!piece.is_empty()).then_some((piece, prot))
        };
        self.vmas
            .range(first..range.end.max(first))
            .filter_map(cut)
            .collect()
    }

    /// Whether all of `range` is mapped.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mapped: u64 = self
            .pieces(range.clone())
            .iter()
            .map(|(p, _)| p.end - p.start)
            .sum();
        mapped == range.end.saturating_sub(range.start)
    }

    /// Bytes mapped.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.vmas.iter().map(|(start, (end, _))| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn layout_agrees_with_a_table_of_pages(
            ops in prop::collection::vec((0u8..3, 0u64..30, 0u64..10, 0u8..8), 1..60),
        ) {
            let mut layout = Layout::default();
            let mut table = [None; 40];
            for (op, start, len, prot) in ops {
                let prot = Prot::from_bits_truncate(prot);
                let range = start * 4096..(start + len) * 4096;
                for page in start..start + len {
                    let slot: &mut Option<Prot> = &mut table[usize::try_from(page).unwrap()];
                    *slot = match op {
                        0 => Some(prot),
                        1 => None,
                        _ => slot.map(|_| prot),
                    };
                }
                match op {
                    0 => layout.insert(range, prot),
                    1 => layout.remove(range),
                    _ => layout.protect(range, prot),
                }
                for (page, rights) in table.iter().enumerate() {
                    prop_assert_eq!(layout.rights(page as u64 * 4096 + 5), *rights);
                }
                let mapped = table.iter().flatten().count() as u64;
                prop_assert_eq!(layout.size(), mapped * 4096);
            }
        }
    }
}

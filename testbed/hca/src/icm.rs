//! The device's virtual context memory (ICM), and the pages of host memory that back it.

use std::collections::BTreeMap;

use mlx4_hw::icm::PAGE_LEN;

/// Extents at most; each MAP_ICM entry makes one, and an unmap in its middle another.
const MOST_EXTENTS: usize = 1 << 20;

/// A map from ICM addresses to bus addresses, in extents of whole pages.
#[derive(Debug, Default)]
pub(crate) struct IcmMap {
    /// Length and bus address of each extent, by its first ICM address.
    extents: BTreeMap<u64, (u64, u64)>,
}

impl IcmMap {
    /// Maps `len` bytes; what was mapped there before is replaced. False when the range or the map
    /// is too large.
    pub(crate) fn map(&mut self, icm: u64, bus: u64, len: u64) -> bool {
        let fits = icm.checked_add(len).is_some() && bus.checked_add(len).is_some();
        let aligned = [icm, bus, len].iter().all(|number| number % PAGE_LEN == 0);
        if !fits || !aligned || self.extents.len() >= MOST_EXTENTS {
            return false;
        }
        self.unmap(icm, len);
        self.extents.insert(icm, (len, bus));
        true
    }

    /// Takes `len` bytes away; what is not mapped is passed over.
    pub(crate) fn unmap(&mut self, icm: u64, len: u64) {
        let end = icm.saturating_add(len);
        let touched: Vec<u64> = self
            .extents
            .range(..end)
            .rev()
            .take_while(|(start, (len, _))| *start + len > icm)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            let Some((len, bus)) = self.extents.remove(&start) else {
                continue;
            };
            if start < icm {
                self.extents.insert(start, (icm - start, bus));
            }
            if start + len > end {
                self.extents
                    .insert(end, (start + len - end, bus + (end - start)));
            }
        }
    }

    /// Returns the bus address of an ICM address, and the number of bytes that follow it
    /// contiguously.
    pub(crate) fn translate(&self, icm: u64) -> Option<(u64, u64)> {
        let (start, (len, bus)) = self.extents.range(..=icm).next_back()?;
        let within = icm - start;
        (within < *len).then(|| (bus + within, len - within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unmap_in_the_middle_leaves_both_ends() {
        let mut map = IcmMap::default();
        assert!(map.map(0x10_0000, 0x70_0000, 0x4000));
        map.unmap(0x10_1000, 0x1000);
        assert_eq!(map.translate(0x10_0fff), Some((0x70_0fff, 1)));
        assert_eq!(map.translate(0x10_1000), None);
        assert_eq!(map.translate(0x10_2008), Some((0x70_2008, 0x1ff8)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_table_of_pages(steps in proptest::collection::vec((any::<bool>(), 0_u64..16, 1_u64..8), 1..40)) {
            let mut map = IcmMap::default();
            let mut pages = [None; 32];
            for (number, (add, first, count)) in (0_u64..).zip(steps) {
                for page in first..first + count {
                    pages[usize::try_from(page).unwrap()] = add.then_some((number * 100 + page - first) * PAGE_LEN);
                }
                if add {
                    prop_assert!(map.map(first * PAGE_LEN, number * 100 * PAGE_LEN, count * PAGE_LEN));
                } else {
                    map.unmap(first * PAGE_LEN, count * PAGE_LEN);
                }
            }
            for (page, expected) in (0_u64..).zip(pages) {
                prop_assert_eq!(map.translate(page * PAGE_LEN).map(|(bus, _)| bus), expected);
            }
        }
    }
}

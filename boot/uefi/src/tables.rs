//! The page tables with which an image is entered (Intel SDM volume 3A, section 4.5).

use crate::Error;

/// One table.
pub type Table = [u64; 512];

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page tables in the making, in some pages of memory.
#[derive(Debug)]
pub struct Tables<'a> {
    pages: &'a mut [Table],
    base: u64,
    used: usize,
}

impl<'a> Tables<'a> {
    /// Begins with an empty root in the first of `pages`, whose physical address is `base`.
    #[must_use]
    pub fn new(pages: &'a mut [Table], base: u64) -> Self {
        pages.iter_mut().for_each(|page| page.fill(0));
        let used = 1;
        Self { pages, base, used }
    }

    /// The most pages that [`Tables::map`] needs for all of physical memory below 4 GiB, for a
    /// loader of at most 16 MiB, and for an image of `len` bytes.
    #[must_use]
    pub fn pages_for(len: u64) -> usize {
        let image = usize::try_from(len / LARGE_PAGE).unwrap_or(usize::MAX / 2);
        // Root; PDPT and 4 PDs; PDPT and 2 PDs; PDPT, 2 PDs and PTs.
        1 + 5 + 3 + 3 + image + 2
    }

    /// The root's physical address.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.base
    }

    /// Maps `len` bytes, writable and executable; all three numbers are multiples of a page. Large
    /// pages are used where they fit.
    ///
    /// # Errors
    ///
    /// If there are too few pages, or something else is mapped there.
    pub fn map(&mut self, address: u64, phys: u64, len: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < len {
            let (at, to) = (address + done, phys + done);
            let large = (at | to).is_multiple_of(LARGE_PAGE) && len - done >= LARGE_PAGE;
            let (level, size, bits) = if large {
                (2, LARGE_PAGE, PRESENT_WRITABLE | LARGE)
            } else {
                (1, PAGE, PRESENT_WRITABLE)
            };
            let (table, index) = self.slot(at, level)?;
            let slot = &mut self.pages[table][index];
            if *slot != 0 && *slot != to | bits {
                return Err(Error::Mapped { address: at });
            }
            *slot = to | bits;
            done += size;
        }
        Ok(())
    }

    /// Finds the entry of a level, making the tables above it.
    fn slot(&mut self, address: u64, level: u32) -> Result<(usize, usize), Error> {
        let index = |level: u32| {
            usize::try_from(address >> (12 + 9 * (level - 1)) & 511).unwrap_or_default()
        };
        let mut table = 0;
        for upper in (level + 1..=4).rev() {
            let word = self.pages[table][index(upper)];
            if word & LARGE != 0 {
                return Err(Error::Mapped { address });
            }
            let next = if word == 0 {
                let pages = self.pages.len();
                let next = self.used;
                if next >= pages {
                    return Err(Error::NoTable { pages });
                }
                self.used += 1;
                self.pages[table][index(upper)] =
                    (self.base + next as u64 * PAGE) | PRESENT_WRITABLE;
                next
            } else {
                usize::try_from(((word & ADDRESS) - self.base) / PAGE).unwrap_or_default()
            };
            table = next;
        }
        Ok((table, index(level)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use handover::{DIRECT_BASE, LINK_BASE, MAPPED};

    use super::*;

    const BASE: u64 = 0x7e00_0000;

    /// Walks the tables as a CPU does.
    fn translate(tables: &Tables<'_>, address: u64) -> Option<u64> {
        let mut table = 0;
        for level in (1..=4_u32).rev() {
            let shift = 12 + 9 * (level - 1);
            let word = tables.pages[table][usize::try_from(address >> shift & 511).ok()?];
            if word & 1 == 0 {
                return None;
            }
            if level == 1 || word & LARGE != 0 {
                let mask = (1 << shift) - 1;
                return Some((word & ADDRESS & !mask) | (address & mask));
            }
            table = usize::try_from(((word & ADDRESS) - BASE) / PAGE).ok()?;
        }
        None
    }

    #[test]
    fn what_an_image_expects_is_mapped_with_the_pages_foreseen() {
        let len = 0x61_3000;
        let mut pages = vec![[1; 512]; Tables::pages_for(len)];
        let mut tables = Tables::new(&mut pages, BASE);
        tables.map(DIRECT_BASE, 0, MAPPED).expect("direct");
        // The loader across a gigabyte's border, the image at an odd page.
        tables
            .map(0xbfff_f000, 0xbfff_f000, 16 << 20)
            .expect("loader");
        tables.map(LINK_BASE, 0x1_2345_6000, len).expect("image");
        assert_eq!(translate(&tables, DIRECT_BASE), Some(0));
        assert_eq!(
            translate(&tables, DIRECT_BASE + MAPPED - 1),
            Some(MAPPED - 1)
        );
        assert_eq!(translate(&tables, DIRECT_BASE + MAPPED), None);
        assert_eq!(translate(&tables, 0xc000_0123), Some(0xc000_0123));
        assert_eq!(translate(&tables, 0xbfff_e000), None);
        assert_eq!(translate(&tables, LINK_BASE + 0x5432), Some(0x1_2345_b432));
        assert_eq!(
            translate(&tables, LINK_BASE + len - 1),
            Some(0x1_2345_6000 + len - 1)
        );
        assert_eq!(translate(&tables, LINK_BASE + len), None);
    }

    #[test]
    fn too_few_pages_and_double_use_are_errors() {
        let mut pages = vec![[0; 512]; 3];
        let mut tables = Tables::new(&mut pages, BASE);
        assert_eq!(tables.map(0, 0, PAGE), Err(Error::NoTable { pages: 3 }));
        assert_eq!(tables.map(0, 0, LARGE_PAGE), Ok(()));
        assert_eq!(tables.map(0, 0, LARGE_PAGE), Ok(()));
        assert_eq!(
            tables.map(PAGE, 0, PAGE),
            Err(Error::Mapped { address: PAGE })
        );
        assert_eq!(
            tables.map(0, LARGE_PAGE, LARGE_PAGE),
            Err(Error::Mapped { address: 0 })
        );
    }
}

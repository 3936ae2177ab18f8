//! One process's address space: its VMAs, and the windows that back them.
//!
//! A VMA is committed once it has, or had, any right: from then on each of its pages counts for its window, and a window
//! with a committed page has a chunk. Every call first finds out whether it can be done and only then changes anything, so a
//! call that fails has done nothing.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use messages::memory::{MapFlags, Prot, Window, WindowList, WindowRun};
use messages::{Errno, PAGE_SIZE, USER_END, WINDOW_SIZE};

use crate::pool::{Backing, Chunk, Share};

/// The lowest address that can be mapped (Linux `mmap_min_addr`).
pub const MMAP_MIN: u64 = 0x1_0000;

/// Where the search for a place begins, downwards: below it, so that 4 GB above stay for the stack.
pub const MMAP_BASE: u64 = (1 << 47) - (4 << 30);

/// The most VMAs of a process (Linux `max_map_count`).
pub const MAX_VMAS: usize = 65530;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Vma {
    end: u64,
    prot: Prot,
    committed: bool,
}

#[derive(Debug)]
struct Backed {
    chunk: Chunk,
    /// Committed pages inside the window; never zero.
    pages: u64,
}

/// VMAs by their first byte, and backed windows by their index.
#[derive(Debug, Default)]
pub struct AddressSpace {
    vmas: BTreeMap<u64, Vma>,
    windows: BTreeMap<u32, Backed>,
}

fn window_of(address: u64) -> u32 {
    u32::try_from(address / WINDOW_SIZE).expect("a user address has a 32-bit window index")
}

/// The windows that a range touches.
fn windows_of(range: &Range<u64>) -> Range<u32> {
    window_of(range.start)..window_of(range.end - 1) + 1
}

/// Checks and rounds a range as `munmap` and `mprotect` take it.
fn checked(address: u64, len: u64) -> Result<Range<u64>, Errno> {
    let len = len
        .checked_next_multiple_of(PAGE_SIZE)
        .filter(|&len| len > 0)
        .ok_or(Errno::EINVAL)?;
    let end = address
        .checked_add(len)
        .filter(|&end| end <= USER_END)
        .ok_or(Errno::EINVAL)?;
    if address.is_multiple_of(PAGE_SIZE) {
        Ok(address..end)
    } else {
        Err(Errno::EINVAL)
    }
}

impl AddressSpace {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `len` bytes; returns the address and the newly backed windows.
    ///
    /// # Errors
    ///
    /// EINVAL for a length of zero or a misaligned fixed address, EPERM for one below [`MMAP_MIN`], EEXIST for one that is
    /// taken and must not be replaced, ENOMEM when the address space or the pool has no room.
    pub fn map(
        &mut self,
        pool: &mut Share<'_>,
        backing: &mut impl Backing,
        (hint, len): (u64, u64),
        prot: Prot,
        flags: MapFlags,
    ) -> Result<(u64, WindowList), Errno> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = len
            .checked_next_multiple_of(PAGE_SIZE)
            .filter(|&len| len <= USER_END)
            .ok_or(Errno::ENOMEM)?;
        let range = self.place(hint, len, flags)?;
        self.check_vmas()?;
        let committed = !prot.is_empty();
        if committed && !pool.covers(self.missing(&range)) {
            return Err(Errno::ENOMEM);
        }
        // The new pages count before the old ones go, so that a window in both keeps its chunk.
        let windows = if committed {
            self.commit(pool, &range)
        } else {
            WindowList::default()
        };
        self.remove(pool, backing, &range);
        self.vmas.insert(
            range.start,
            Vma {
                end: range.end,
                prot,
                committed,
            },
        );
        self.merge_around(&range);
        Ok((range.start, windows))
    }

    /// Unmaps a range; all windows of the returned run are without a chunk now.
    ///
    /// # Errors
    ///
    /// EINVAL for a range that is empty, misaligned or not the user's; ENOMEM when it would split one VMA too many.
    pub fn unmap(
        &mut self,
        pool: &mut Share<'_>,
        backing: &mut impl Backing,
        address: u64,
        len: u64,
    ) -> Result<WindowRun, Errno> {
        let range = checked(address, len)?;
        self.check_vmas()?;
        Ok(self.remove(pool, backing, &range))
    }

    /// Changes the rights of a range; returns the newly backed windows.
    ///
    /// # Errors
    ///
    /// EINVAL as for [`unmap`](Self::unmap); ENOMEM when a page of the range is not mapped or can't be backed.
    pub fn protect(
        &mut self,
        pool: &mut Share<'_>,
        address: u64,
        len: u64,
        prot: Prot,
    ) -> Result<WindowList, Errno> {
        let range = checked(address, len)?;
        self.check_vmas()?;
        if !self.is_mapped(&range) {
            return Err(Errno::ENOMEM);
        }
        let fresh: Vec<Range<u64>> = if prot.is_empty() {
            Vec::new()
        } else {
            self.uncommitted(&range)
        };
        // Ranges of one call may share a window, which then is counted twice: at worst a refusal a window too early.
        if !pool.covers(fresh.iter().map(|range| self.missing(range)).sum()) {
            return Err(Errno::ENOMEM);
        }
        let mut windows = WindowList::default();
        for range in &fresh {
            let more = self.commit(pool, range);
            more.as_slice().iter().for_each(|window| windows.push(*window));
            windows.more |= more.more;
        }
        self.split_at(range.start);
        self.split_at(range.end);
        for (_, vma) in self.vmas.range_mut(range.clone()) {
            vma.prot = prot;
            vma.committed |= !prot.is_empty();
        }
        self.merge_around(&range);
        Ok(windows)
    }

    /// The backed windows among `count` from `first` on, as many as a reply holds.
    #[must_use]
    pub fn windows(&self, first: u32, count: u32) -> WindowList {
        let mut list = WindowList::default();
        for (&index, backed) in self.windows.range(first..first.saturating_add(count)) {
            list.push(Window {
                index,
                chunk: backed.chunk.remote(),
            });
            if list.more {
                break;
            }
        }
        list
    }

    /// Gives every chunk back.
    pub fn clear(&mut self, pool: &mut Share<'_>, backing: &mut impl Backing) {
        self.vmas.clear();
        for (_, backed) in core::mem::take(&mut self.windows) {
            pool.give(backed.chunk, backing);
        }
    }

    /// The mappings, in order: range and rights.
    pub fn mappings(&self) -> impl Iterator<Item = (Range<u64>, Prot)> {
        self.vmas.iter().map(|(&start, vma)| (start..vma.end, vma.prot))
    }

    /// Each call splits at most two VMAs and adds one.
    fn check_vmas(&self) -> Result<(), Errno> {
        if self.vmas.len() + 2 > MAX_VMAS {
            Err(Errno::ENOMEM)
        } else {
            Ok(())
        }
    }

    fn place(&self, hint: u64, len: u64, flags: MapFlags) -> Result<Range<u64>, Errno> {
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        if fixed && !hint.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let start = hint - hint % PAGE_SIZE;
        let end = start.checked_add(len).filter(|&end| end <= USER_END);
        if !fixed {
            let wish = end.filter(|_| start >= MMAP_MIN).map(|end| start..end);
            return match wish.filter(|range| self.is_free(range)) {
                Some(range) => Ok(range),
                None => self.find(len).ok_or(Errno::ENOMEM),
            };
        }
        let range = start..end.ok_or(Errno::ENOMEM)?;
        if range.start < MMAP_MIN {
            return Err(Errno::EPERM);
        }
        if flags.contains(MapFlags::FIXED_NOREPLACE) && !self.is_free(&range) {
            return Err(Errno::EEXIST);
        }
        Ok(range)
    }

    /// The highest free place below [`MMAP_BASE`].
    fn find(&self, len: u64) -> Option<Range<u64>> {
        let mut top = MMAP_BASE;
        for (&start, vma) in self.vmas.range(..MMAP_BASE).rev() {
            if vma.end < top && top - vma.end >= len {
                break;
            }
            top = top.min(start);
        }
        let start = top.checked_sub(len).filter(|&start| start >= MMAP_MIN)?;
        Some(start..top)
    }

    fn is_free(&self, range: &Range<u64>) -> bool {
        self.vmas
            .range(..range.end)
            .next_back()
            .is_none_or(|(_, vma)| vma.end <= range.start)
    }

    /// The VMAs that a range touches, cut to it.
    fn overlapping<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, Vma)> + use<'a> {
        let (from, to) = (range.start, range.end);
        let before = self
            .vmas
            .range(..from)
            .next_back()
            .filter(|(_, vma)| vma.end > from);
        let vmas = before.into_iter().chain(self.vmas.range(from..to));
        vmas.map(move |(&start, vma)| (start.max(from)..vma.end.min(to), *vma))
    }

    fn is_mapped(&self, range: &Range<u64>) -> bool {
        let mut reached = range.start;
        for (piece, _) in self.overlapping(range) {
            if piece.start != reached {
                return false;
            }
            reached = piece.end;
        }
        reached == range.end
    }

    fn uncommitted(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.overlapping(range)
            .filter(|(_, vma)| !vma.committed)
            .map(|(piece, _)| piece)
            .collect()
    }

    /// Windows of a range without a chunk.
    fn missing(&self, range: &Range<u64>) -> usize {
        let windows = windows_of(range);
        windows.len() - self.windows.range(windows).count()
    }

    /// Counts the pages of a range for their windows, and backs those that had none. The pool has been asked before.
    fn commit(&mut self, pool: &mut Share<'_>, range: &Range<u64>) -> WindowList {
        let mut list = WindowList::default();
        for index in windows_of(range) {
            let pages = pages_in(range, index);
            if let Some(backed) = self.windows.get_mut(&index) {
                backed.pages += pages;
                continue;
            }
            let chunk = pool.take().expect("as many chunks as were counted");
            list.push(Window {
                index,
                chunk: chunk.remote(),
            });
            self.windows.insert(index, Backed { chunk, pages });
        }
        list
    }

    /// Takes a range out of the VMAs, and gives back the chunks of windows with no page left.
    fn remove(&mut self, pool: &mut Share<'_>, backing: &mut impl Backing, range: &Range<u64>) -> WindowRun {
        self.split_at(range.start);
        self.split_at(range.end);
        let mut freed: Option<Range<u32>> = None;
        while let Some((&start, &vma)) = self.vmas.range(range.clone()).next() {
            self.vmas.remove(&start);
            if !vma.committed {
                continue;
            }
            let piece = start..vma.end;
            for index in windows_of(&piece) {
                let backed = self
                    .windows
                    .get_mut(&index)
                    .expect("a committed page's window is backed");
                backed.pages -= pages_in(&piece, index);
                if backed.pages == 0 {
                    let backed = self.windows.remove(&index).expect("it was just there");
                    pool.give(backed.chunk, backing);
                    let first = freed.as_ref().map_or(index, |freed| freed.start);
                    freed = Some(first..index + 1);
                }
            }
        }
        let freed = freed.unwrap_or(0..0);
        WindowRun {
            first: freed.start,
            count: freed.end - freed.start,
        }
    }

    fn split_at(&mut self, address: u64) {
        if let Some((_, vma)) = self.vmas.range_mut(..address).next_back()
            && vma.end > address
        {
            let upper = *vma;
            vma.end = address;
            self.vmas.insert(address, upper);
        }
    }

    /// Joins the VMAs in and next to a range where they are alike.
    fn merge_around(&mut self, range: &Range<u64>) {
        let mut at = self
            .vmas
            .range(..range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        while let Some(&vma) = self.vmas.get(&at) {
            match self.vmas.get(&vma.end) {
                Some(next) if next.prot == vma.prot && next.committed == vma.committed => {
                    let end = next.end;
                    self.vmas.remove(&vma.end);
                    self.vmas.insert(at, Vma { end, ..vma });
                }
                Some(_) if vma.end <= range.end => at = vma.end,
                _ if at < range.start => at = range.start,
                _ => break,
            }
        }
    }
}

/// Pages of a range inside a window.
fn pages_in(range: &Range<u64>, index: u32) -> u64 {
    let base = u64::from(index) * WINDOW_SIZE;
    (range.end.min(base + WINDOW_SIZE) - range.start.max(base)) / PAGE_SIZE
}

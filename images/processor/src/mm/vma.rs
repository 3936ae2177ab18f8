//! The VMAs of an address space: which addresses a program may touch, how, and what is there first.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use bitflags::bitflags;
use messages::PAGE_SIZE;
use pcache::{Advice, Rights};

use super::file::FilePages;
use super::object::Object;

/// VMAs of an address space at most (Linux's `vm.max_map_count`).
pub const MAX_VMAS: usize = 65_530;

bitflags! {
    /// Properties of a VMA.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmaFlags: u8 {
        /// Its pages are not promised ahead (`MAP_NORESERVE`).
        const NORESERVE = 1;
        /// It grows downwards when touched below its start (`MAP_GROWSDOWN`, the stack).
        const GROWSDOWN = 2;
        /// Its pages were promised: they are counted as committed.
        const CHARGED = 4;
        /// A child does not get it (`MADV_DONTFORK`).
        const DONTFORK = 8;
        /// A child gets it empty (`MADV_WIPEONFORK`).
        const WIPEONFORK = 16;
        /// Stores go to the file that it maps (`MAP_SHARED`), not to a copy.
        const SHARED = 32;
        /// It may not become writable: what it maps was opened, or attached, to be read only.
        const READONLY = 64;
        /// Pages behind the object's end are a bus error: it is a file's.
        const BOUNDED = 128;
    }
}

/// The first contents of a VMA's pages.
#[derive(Clone, Debug, Default)]
pub enum Backing {
    /// Zeros, the process's own.
    #[default]
    Anonymous,
    /// Pages of a shared object, from this one on.
    Object(Arc<Object>, u64),
    /// Pages of a file of S, from this one on; a store copies them unless the VMA is
    /// [shared](VmaFlags::SHARED).
    File(Arc<FilePages>, u64),
    /// Nothing: beyond the end of a file. Touching it is a bus error.
    Beyond,
}

impl Backing {
    /// Returns the backing `pages` further on.
    fn skip(&self, pages: u64) -> Self {
        match self {
            Self::Object(object, first) => Self::Object(object.clone(), first + pages),
            Self::File(file, first) => Self::File(file.clone(), first + pages),
            other => other.clone(),
        }
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) | (Self::Beyond, Self::Beyond) => true,
            (Self::Object(a, first), Self::Object(b, second)) => {
                Arc::ptr_eq(a, b) && first == second
            }
            (Self::File(a, first), Self::File(b, second)) => Arc::ptr_eq(a, b) && first == second,
            _ => false,
        }
    }
}

/// One mapping. Two neighbours that continue each other are one.
#[derive(Clone, Debug, Default)]
pub struct Vma {
    /// The program's rights.
    pub rights: Rights,
    /// Its properties.
    pub flags: VmaFlags,
    /// Its first contents.
    pub backing: Backing,
    /// Its advised use.
    pub advice: Advice,
}

impl Vma {
    /// Returns anonymous memory.
    #[must_use]
    pub fn anonymous(rights: Rights) -> Self {
        Self {
            rights,
            ..Self::default()
        }
    }

    /// Returns whether its pages must be promised ahead. A stack's are not: it grows by itself.
    #[must_use]
    pub fn accountable(&self) -> bool {
        let unpromised = VmaFlags::NORESERVE.union(VmaFlags::GROWSDOWN);
        // Pages of a file that are only read, or that others see, are the file's.
        let file_s = matches!(self.backing, Backing::File(..))
            && (!self.rights.contains(Rights::WRITE) || self.flags.contains(VmaFlags::SHARED));
        !file_s && !self.rights.is_empty() && !self.flags.intersects(unpromised)
    }

    /// Returns the file and its page that a store at `page` goes to, of a VMA that begins at
    /// `start`; `None` if stores go to memory.
    pub(crate) fn stored_file(&self, start: u64, page: u64) -> Option<(&Arc<FilePages>, u64)> {
        match &self.backing {
            Backing::File(file, first) if self.flags.contains(VmaFlags::SHARED) => {
                Some((file, first + (page - start) / PAGE_SIZE))
            }
            _ => None,
        }
    }

    /// Returns whether a child sees stores of its parent, and the other way round.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match self.backing {
            Backing::Object(..) => true,
            Backing::File(..) => self.flags.contains(VmaFlags::SHARED),
            Backing::Anonymous | Backing::Beyond => false,
        }
    }

    /// Returns the VMA that begins `bytes` further on.
    fn skip(&self, bytes: u64) -> Self {
        Self {
            backing: self.backing.skip(bytes / PAGE_SIZE),
            ..self.clone()
        }
    }

    fn continues(&self, before: &Self, bytes: u64) -> bool {
        (self.rights, self.flags, self.advice) == (before.rights, before.flags, before.advice)
            && before.backing.skip(bytes / PAGE_SIZE).same(&self.backing)
    }
}

/// A piece of a VMA.
pub type Piece = (Range<u64>, Vma);

/// The VMAs by their first address; they do not overlap. Ranges are of whole pages.
#[derive(Default, Debug)]
pub struct Vmas {
    vmas: BTreeMap<u64, (u64, Vma)>,
    /// The address below which the search for a gap begins: no gap was found above.
    hint: u64,
    /// The [anonymous](Self::anonymous) mapping that was found last; empty after each change. A
    /// search of the tree takes 290 instructions, more than all else that a first touch asks of
    /// VMAs.
    recent: (Range<u64>, Rights),
    /// The start of a gap that was found and the end of the mapping below it, until the next
    /// change.
    found: Option<(u64, u64)>,
}

impl Vmas {
    /// Returns the VMA at `addr`, and its range.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<(Range<u64>, &Vma)> {
        let (&start, (end, vma)) = self.vmas.range(..=addr).next_back()?;
        (addr < *end).then_some((start..*end, vma))
    }

    /// Returns the rights at `addr` if anonymous memory is mapped there.
    pub fn anonymous(&mut self, addr: u64) -> Option<Rights> {
        if !self.recent.0.contains(&addr) {
            let (range, vma) = self.find(addr)?;
            if !matches!(vma.backing, Backing::Anonymous) {
                return None;
            }
            self.recent = (range, vma.rights);
        }
        Some(self.recent.1)
    }

    /// Returns the rights at `addr`; `None` if nothing is mapped there.
    #[must_use]
    pub fn rights(&self, addr: u64) -> Option<Rights> {
        self.find(addr).map(|(_, vma)| vma.rights)
    }

    /// Returns how many VMAs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vmas.len()
    }

    /// Returns whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vmas.is_empty()
    }

    /// Maps `range`, of which nothing is mapped.
    pub fn insert(&mut self, range: Range<u64>, vma: Vma) {
        debug_assert!(self.pieces(range.clone()).is_empty(), "{range:x?} is free");
        if range.is_empty() {
            return;
        }
        // Whoever has just found a gap knows that nothing ends where it begins.
        let alone = self
            .found
            .is_some_and(|(start, below)| start == range.start && below < start);
        self.changed();
        let (mut merged, mut vma) = (range, vma);
        if !alone
            && let Some((&start, (end, before))) = self.vmas.range(..merged.start).next_back()
            && *end == merged.start
            && vma.continues(before, end - start)
        {
            (merged.start, vma) = (start, before.clone());
        }
        if let Some((end, after)) = self.vmas.get(&merged.end)
            && after.continues(&vma, merged.end - merged.start)
        {
            let end = *end;
            self.vmas.remove(&merged.end);
            merged.end = end;
        }
        self.vmas.insert(merged.start, (merged.end, vma));
    }

    /// Forgets what was found before a change.
    fn changed(&mut self) {
        self.recent = Default::default();
        self.found = None;
    }

    /// Unmaps `range`; returns what was mapped of it, in order.
    pub fn remove(&mut self, range: Range<u64>) -> Vec<Piece> {
        self.changed();
        let mut removed = Vec::new();
        // From the end, so that one search finds the mapping of most calls: a search takes as long
        // as all else.
        let mut top = range.end;
        while range.start < top
            && let Some((&start, &(end, _))) = self.vmas.range(..top).next_back()
            && range.start < end
        {
            let Some((_, vma)) = self.vmas.remove(&start) else {
                break;
            };
            top = start;
            let piece = start.max(range.start)..end.min(range.end);
            if piece.end < end {
                let rest = vma.skip(piece.end - start);
                self.vmas.insert(piece.end, (end, rest));
            }
            let of_piece = vma.skip(piece.start - start);
            if start < piece.start {
                self.vmas.insert(start, (piece.start, vma));
            }
            removed.push((piece, of_piece));
        }
        removed.reverse();
        self.hint = self.hint.max(range.end);
        removed
    }

    /// Unmaps `range` if it begins an anonymous mapping and does not reach beyond it; returns the
    /// mapping's flags. One search in place of the three of [`remove`](Self::remove).
    pub fn cut(&mut self, range: &Range<u64>) -> Option<VmaFlags> {
        let Entry::Occupied(entry) = self.vmas.entry(range.start) else {
            return None;
        };
        let (end, vma) = entry.get();
        if *end < range.end || !matches!(vma.backing, Backing::Anonymous) {
            return None;
        }
        let (end, vma) = entry.remove();
        let flags = vma.flags;
        if range.end < end {
            self.vmas.insert(range.end, (end, vma));
        }
        self.changed();
        self.hint = self.hint.max(range.end);
        Some(flags)
    }

    /// Changes what is mapped in `range`.
    pub fn change(&mut self, range: Range<u64>, change: impl Fn(&mut Vma)) {
        let hint = self.hint;
        for (piece, mut vma) in self.remove(range) {
            change(&mut vma);
            self.insert(piece, vma);
        }
        self.hint = hint;
    }

    /// Moves the start of the VMA at `start` down to `to`, through addresses that are free.
    pub fn grow_down(&mut self, start: u64, to: u64) {
        self.changed();
        if let Some(entry) = self.vmas.remove(&start) {
            self.vmas.insert(to, entry);
        }
    }

    /// Returns the first VMA that begins above `addr`.
    #[must_use]
    pub fn above(&self, addr: u64) -> Option<(Range<u64>, &Vma)> {
        let (&start, (end, vma)) = self.vmas.range(addr + 1..).next()?;
        Some((start..*end, vma))
    }

    /// Returns one past the last mapped byte below `addr`; 0 if nothing is.
    #[must_use]
    pub fn end_below(&self, addr: u64) -> u64 {
        self.vmas
            .range(..addr)
            .next_back()
            .map_or(0, |(_, (end, _))| *end)
    }

    /// Returns what of `range` is mapped, in order.
    #[must_use]
    pub fn pieces(&self, range: Range<u64>) -> Vec<Piece> {
        let first = self
            .vmas
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        let cut = |(&start, (end, vma)): (&u64, &(u64, Vma))| {
            let piece = start.max(range.start)..(*end).min(range.end);
            (piece.start < piece.end).then(|| (piece.clone(), vma.skip(piece.start - start)))
        };
        self.vmas
            .range(first..range.end.max(first))
            .filter_map(cut)
            .collect()
    }

    /// Returns whether all of `range` is mapped.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mapped: u64 = self
            .pieces(range.clone())
            .iter()
            .map(|(piece, _)| piece.end - piece.start)
            .sum();
        mapped == range.end.saturating_sub(range.start)
    }

    /// Returns the start of the highest gap of `len` bytes within `limits`.
    ///
    /// The search begins below the last gap found, and again from the top if there is none.
    pub fn gap(&mut self, len: u64, limits: Range<u64>) -> Option<u64> {
        let from = self.hint.clamp(limits.start, limits.end);
        self.found = self
            .gap_below(len, limits.start..from)
            .or_else(|| self.gap_below(len, limits));
        let (start, _) = self.found?;
        self.hint = start;
        Some(start)
    }

    /// Returns the start of the highest gap, and the end of the mapping below it.
    fn gap_below(&self, len: u64, limits: Range<u64>) -> Option<(u64, u64)> {
        let mut top = limits.end;
        for (&start, (end, _)) in self.vmas.range(..limits.end).rev() {
            if *end <= top && top - end >= len && top - len >= limits.start {
                return Some((top - len, *end));
            }
            top = top.min(start);
            if top < limits.start {
                return None;
            }
        }
        let start = top.checked_sub(len)?;
        (start >= limits.start).then_some((start, 0))
    }

    /// Returns all VMAs in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, &Vma)> {
        self.vmas
            .iter()
            .map(|(&start, (end, vma))| (start..*end, vma))
    }

    /// Returns the bytes mapped.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.iter().map(|(range, _)| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vmas_agree_with_a_table_of_pages(
            ops in prop::collection::vec((0u8..4, 0u64..30, 0u64..10, 0u8..8), 1..60),
        ) {
            let object = Arc::new(Object::default());
            let mut vmas = Vmas::default();
            let mut table = vec![None; 40];
            for (op, start, len, bits) in ops {
                let rights = Rights::from_bits_truncate(bits);
                let range = start * 4096..(start + len) * 4096;
                let backing = if bits & 1 == 0 {
                    Backing::Anonymous
                } else {
                    Backing::Object(object.clone(), start)
                };
                if op == 3 && len > 0 {
                    let whole = vmas.find(range.start).map(|(whole, vma)| (whole.end, vma.backing.clone()));
                    let begins = vmas.find(range.start).is_some_and(|(whole, _)| whole.start == range.start);
                    let one = whole.is_some_and(|(end, backing)| {
                        begins && range.end <= end && matches!(backing, Backing::Anonymous)
                    });
                    prop_assert_eq!(vmas.cut(&range).is_some(), one);
                    if !one {
                        continue;
                    }
                }
                for page in start..start + len {
                    let slot: &mut Option<(Rights, Option<u64>)> = &mut table[usize::try_from(page).unwrap()];
                    *slot = match op {
                        0 => Some((rights, (bits & 1 != 0).then_some(page))),
                        1 | 3 => None,
                        _ => slot.map(|(_, of)| (rights, of)),
                    };
                }
                match op {
                    0 => {
                        vmas.remove(range.clone());
                        vmas.insert(range, Vma { rights, backing, ..Vma::default() });
                    }
                    1 => drop(vmas.remove(range)),
                    3 => {}
                    _ => vmas.change(range, |vma| vma.rights = rights),
                }
                for (page, expected) in (0..).zip(&table) {
                    let found = vmas.find(page * 4096 + 5).map(|(range, vma)| {
                        let of = match vma.backing {
                            Backing::Object(_, first) => Some(first + page - range.start / 4096),
                            _ => None,
                        };
                        (vma.rights, of)
                    });
                    prop_assert_eq!(&found, expected, "page {}", page);
                    let anonymous = expected.and_then(|(rights, of)| of.is_none().then_some(rights));
                    prop_assert_eq!(vmas.anonymous(page * 4096), anonymous, "page {}", page);
                }
                let mapped = table.iter().flatten().count() as u64;
                prop_assert_eq!(vmas.size(), mapped * 4096);
            }
        }

        #[test]
        fn gaps_are_free_and_as_high_as_can_be(
            taken in prop::collection::vec((0u64..60, 1u64..6), 0..20), len in 1u64..12, hint in 0u64..64,
        ) {
            let mut vmas = Vmas::default();
            for (start, pages) in taken {
                let range = start * 4096..(start + pages) * 4096;
                vmas.remove(range.clone());
                vmas.insert(range, Vma::anonymous(Rights::READ));
            }
            let limits = 4 * 4096..60 * 4096;
            let free = |start: u64| vmas.pieces(start * 4096..(start + len) * 4096).is_empty();
            let highest = (4..=60 - len).rev().find(|&start| free(start));
            vmas.hint = 64 * 4096;
            prop_assert_eq!(vmas.gap(len * 4096, limits.clone()), highest.map(|start| start * 4096));
            vmas.hint = hint * 4096;
            let any = vmas.gap(len * 4096, limits);
            prop_assert_eq!(any.is_some(), highest.is_some(), "a hint hides no gap");
            if let Some(start) = any {
                prop_assert!(vmas.pieces(start..start + len * 4096).is_empty());
            }
        }
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() {
        let mut vmas = Vmas::default();
        for page in [0, 2, 1] {
            vmas.insert(page * 4096..(page + 1) * 4096, Vma::anonymous(Rights::READ));
        }
        assert_eq!(vmas.len(), 1);
        vmas.insert(3 * 4096..4 * 4096, Vma::anonymous(Rights::WRITE));
        assert_eq!(vmas.len(), 2);
    }
}

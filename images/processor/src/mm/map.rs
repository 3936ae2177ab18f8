//! Changes of an address space: mmap, munmap, mprotect, mremap, madvise, brk's memory, fork, exit.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use messages::{CHUNK_SIZE, PAGE_SIZE};
use pcache::{Access, Advice, Machine, Rights};

use super::layout::Layout;
use super::object::let_go;
use super::vma::{Backing, MAX_VMAS, Piece, Vma, VmaFlags, Vmas};
use super::{MMAP_MIN, Space, Tables};
use crate::error::{Result, errno};
use crate::process::Node;

/// The place that a mapping asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Here if it is free, else anywhere.
    Wish(u64),
    /// Anywhere in the 31-bit range (`MAP_32BIT`).
    Low,
    /// Here; what is there is unmapped.
    Exactly(u64),
    /// Here, or EEXIST.
    Free(u64),
}

impl Place {
    /// Returns where a mapping of `len` bytes goes.
    ///
    /// # Errors
    ///
    /// ENOMEM if there is no room or there are too many VMAs; EEXIST for a place that is taken.
    pub(super) fn find(self, vmas: &mut Vmas, len: u64, layout: Layout) -> Result<u64> {
        if vmas.len() >= MAX_VMAS {
            return Err(errno::ENOMEM.into());
        }
        let free = |vmas: &Vmas, start: u64| vmas.pieces(start..start + len).is_empty();
        let limits = match self {
            Self::Exactly(start) => return Ok(start),
            Self::Free(start) if free(vmas, start) => return Ok(start),
            Self::Free(_) => return Err(errno::EEXIST.into()),
            Self::Wish(start) if start >= MMAP_MIN && fits(start, len) && free(vmas, start) => {
                return Ok(start);
            }
            Self::Wish(_) => MMAP_MIN..layout.mmap_top,
            Self::Low => LOW,
        };
        vmas.gap(len, limits).ok_or_else(|| errno::ENOMEM.into())
    }
}

/// Addresses of `MAP_32BIT` (Linux `arch/x86/kernel/sys_x86_64.c`, `find_start_end`).
const LOW: Range<u64> = 0x4000_0000..0x8000_0000;

fn pages_of(range: &Range<u64>) -> u64 {
    (range.end - range.start) / PAGE_SIZE
}

fn charged(pieces: &[Piece]) -> u64 {
    let of = |(range, vma): &Piece| {
        if vma.flags.contains(VmaFlags::CHARGED) {
            pages_of(range)
        } else {
            0
        }
    };
    pieces.iter().map(of).sum()
}

impl<N: Node> Space<'_, N> {
    /// Maps `len` bytes, a multiple of the page size; returns where.
    ///
    /// # Errors
    ///
    /// ENOMEM if there is no room, too many VMAs, or M can't promise the memory; EEXIST for a place
    /// that is taken.
    pub(crate) async fn map(&self, place: Place, len: u64, mut vma: Vma) -> Result<u64> {
        if let Place::Exactly(start) = place {
            self.unmap(start..start + len).await?;
        }
        let start = place.find(&mut self.vmas.lock(), len, self.layout)?;
        if vma.accountable() {
            self.node
                .supply()
                .commit(self.node, len / PAGE_SIZE)
                .await?;
            vma.flags |= VmaFlags::CHARGED;
        }
        self.vmas.lock().insert(start..start + len, vma);
        Ok(start)
    }

    /// Unmaps a range, and frees what only it used.
    ///
    /// # Errors
    ///
    /// ENOMEM if a VMA would have to be split and there are too many.
    pub(crate) async fn unmap(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let removed = self.remove_vmas(&range)?;
        if removed.is_empty() {
            return Ok(());
        }
        self.empty(range).await;
        self.forget(removed).await;
        Ok(())
    }

    fn remove_vmas(&self, range: &Range<u64>) -> Result<Vec<Piece>> {
        let mut vmas = self.vmas.lock();
        // A range inside one VMA leaves two.
        let splits = |vmas: &Vmas| {
            vmas.find(range.start)
                .is_some_and(|(whole, _)| whole.start < range.start && range.end < whole.end)
        };
        if vmas.len() >= MAX_VMAS && splits(&vmas) {
            return Err(errno::ENOMEM.into());
        }
        Ok(vmas.remove(range.clone()))
    }

    /// Takes back what VMAs that are gone were promised, writes back what programs stored to files
    /// through them, and frees objects that nothing maps any more.
    async fn forget(&self, removed: Vec<Piece>) {
        self.node.supply().uncommit(charged(&removed));
        for (range, vma) in removed {
            if let Some((file, first)) = vma.stored_file(range.start, range.start) {
                file.put_back(self.node, first..first + pages_of(&range))
                    .await;
            }
            if let Backing::Object(object, _) = vma.backing {
                let_go(self.node, object).await;
            }
        }
    }

    /// Changes the rights of a range; what no table exists for costs nothing.
    ///
    /// # Errors
    ///
    /// ENOMEM if some of it is not mapped (the part before the hole is done), or M can't promise
    /// what becomes usable; EACCES if some of it may not become writable (then nothing is done).
    pub(crate) async fn protect(&self, range: Range<u64>, rights: Rights) -> Result<()> {
        let newly = |vma: &Vma| {
            let mut changed = vma.clone();
            changed.rights = rights;
            changed.accountable() && !vma.flags.contains(VmaFlags::CHARGED)
        };
        let (mapped, pieces) = {
            let vmas = self.vmas.lock();
            if vmas.len() + 2 > MAX_VMAS {
                return Err(errno::ENOMEM.into());
            }
            let mapped = mapped_from(vmas.pieces(range.clone()), &range);
            let pieces = vmas.pieces(mapped.clone());
            (mapped, pieces)
        };
        let refused = |(_, vma): &Piece| vma.flags.contains(VmaFlags::READONLY);
        if rights.contains(Rights::WRITE) && pieces.iter().any(refused) {
            return Err(errno::EACCES.into());
        }
        let more = pieces.iter().filter(|(_, vma)| newly(vma));
        let more = more.map(|(piece, _)| pages_of(piece)).sum::<u64>();
        if more > 0 {
            self.node.supply().commit(self.node, more).await?;
        }
        self.vmas.lock().change(mapped.clone(), |vma| {
            if newly(vma) {
                vma.flags |= VmaFlags::CHARGED;
            }
            vma.rights = rights;
        });
        for (piece, vma) in pieces {
            // The first store to a page of a file has to be seen.
            let at_first = match vma.flags.contains(VmaFlags::SHARED) {
                true => rights - Rights::WRITE,
                false => rights,
            };
            self.walk(piece, |space, at, batch| {
                space.node.cache().protect_page(at, at_first, batch);
            })
            .await;
        }
        if mapped == range {
            Ok(())
        } else {
            Err(errno::ENOMEM.into())
        }
    }

    /// Grows, shrinks or moves a mapping; returns where it is. `to` asks for a place.
    ///
    /// # Errors
    ///
    /// EFAULT unless one VMA maps all of it, ENOMEM if it can't grow.
    pub(crate) async fn remap(
        &self,
        was: Range<u64>,
        new_len: u64,
        may_move: bool,
        to: Option<u64>,
    ) -> Result<u64> {
        let (old_len, start) = (was.end - was.start, was.start);
        let vma = match self.vmas.lock().find(start) {
            Some((range, vma)) if range.end >= was.end => vma_at(vma, start - range.start),
            _ => return Err(errno::EFAULT.into()),
        };
        if let Some(to) = to {
            self.unmap(to..to + new_len).await?;
        }
        if new_len <= old_len {
            self.unmap(start + new_len..was.end).await?;
            if let Some(to) = to {
                self.relocate(start..start + new_len, to, vma).await;
            }
            return Ok(to.unwrap_or(start));
        }
        let grown = was.end..start + new_len;
        let more = (new_len - old_len) / PAGE_SIZE;
        let in_place = to.is_none()
            && grown.end <= messages::USER_END
            && self.vmas.lock().pieces(grown.clone()).is_empty();
        let target = match to {
            Some(to) => to,
            None if in_place => start,
            None if may_move => Place::Wish(0).find(&mut self.vmas.lock(), new_len, self.layout)?,
            None => return Err(errno::ENOMEM.into()),
        };
        if vma.flags.contains(VmaFlags::CHARGED) {
            self.node.supply().commit(self.node, more).await?;
        }
        if target == start {
            let rest = vma_at(&vma, old_len);
            self.vmas.lock().insert(grown, rest);
            return Ok(start);
        }
        self.relocate(was, target, vma.clone()).await;
        let rest = vma_at(&vma, old_len);
        let end = target + old_len;
        self.vmas.lock().insert(end..target + new_len, rest);
        Ok(target)
    }

    /// Moves the pages of private memory to a mapping of its own, and leaves their addresses mapped
    /// and empty (`MREMAP_DONTUNMAP`); returns where they are.
    ///
    /// # Errors
    ///
    /// EFAULT unless one VMA maps all of it, EINVAL if that is not private memory, ENOMEM if there
    /// is no room or M can't promise as much again.
    pub(crate) async fn take_pages(&self, was: Range<u64>, to: Option<u64>) -> Result<u64> {
        let vma = match self.vmas.lock().find(was.start) {
            Some((range, vma)) if range.end >= was.end => vma.clone(),
            _ => return Err(errno::EFAULT.into()),
        };
        if !matches!(vma.backing, Backing::Anonymous) {
            return Err(errno::EINVAL.into());
        }
        let len = was.end - was.start;
        let target = match to {
            Some(to) => {
                self.unmap(to..to + len).await?;
                to
            }
            None => Place::Wish(0).find(&mut self.vmas.lock(), len, self.layout)?,
        };
        if vma.flags.contains(VmaFlags::CHARGED) {
            self.node.supply().commit(self.node, pages_of(&was)).await?;
        }
        self.relocate(was.clone(), target, vma.clone()).await;
        self.vmas.lock().insert(was, vma);
        Ok(target)
    }

    /// Moves a mapping and its pages to addresses that are free; no page is copied.
    async fn relocate(&self, from: Range<u64>, to: u64, vma: Vma) {
        if from.is_empty() {
            return;
        }
        {
            let mut vmas = self.vmas.lock();
            vmas.remove(from.clone());
            vmas.insert(to..to + (from.end - from.start), vma);
        }
        let mut lost = 0_u64;
        let moved = from.clone();
        self.walk(from.clone(), |space, at, batch| {
            let target = to + (at.page.vpn.addr() - moved.start);
            match space.tables.entry_or_create(target) {
                Some(entry) => {
                    let target = space.mapping(target, entry);
                    space.node.cache().move_page(at, target, batch);
                }
                None => lost += 1,
            }
        })
        .await;
        if lost > 0 {
            log::error!("{lost} pages are lost: no memory for page tables");
        }
        for table in
            (from.start / CHUNK_SIZE..from.end.div_ceil(CHUNK_SIZE)).map(|n| n * CHUNK_SIZE)
        {
            // Whole tables that do not exist are skipped by the next search.
            let Some(existing) = self.tables.next_table(table, from.end) else {
                break;
            };
            self.release(existing);
        }
    }

    /// Makes the pages of a range start as zeros (or as their object has them) again.
    pub(crate) async fn discard(&self, range: Range<u64>) {
        self.empty(range).await;
    }

    /// Changes the advice of the mappings of a range.
    pub(crate) fn advise(&self, range: Range<u64>, advice: Advice) {
        self.vmas.lock().change(range, |vma| vma.advice = advice);
        self.advised.store(true, Ordering::Relaxed);
    }

    /// Sets or clears properties of the mappings of a range.
    pub(crate) fn set_flags(&self, range: Range<u64>, flags: VmaFlags, on: bool) {
        self.vmas
            .lock()
            .change(range, |vma| vma.flags.set(flags, on));
    }

    /// Starts reading the remote pages of a range for which there is room.
    pub(crate) async fn will_need(&self, range: Range<u64>) {
        let mut budget = self.node.cache().geometry().lines() / 4;
        self.walk(range, |space, at, _| {
            if budget > 0 && space.node.cache().will_need(at) {
                budget -= 1;
            }
        })
        .await;
        self.node.cache().machine().ring();
    }

    /// Touches each page of a range as `access` would.
    ///
    /// # Errors
    ///
    /// EFAULT at the first page that does not allow it.
    pub(crate) async fn populate(&self, range: Range<u64>, access: Access) -> Result<()> {
        for page in range.step_by(4096) {
            self.fault(page, access, false)
                .await?
                .map_err(|_| errno::EFAULT)?;
            self.breathe().await;
        }
        Ok(())
    }

    /// Copies the address space into an empty one (fork): private pages are shared copy-on-write.
    ///
    /// # Errors
    ///
    /// ENOMEM if M can't promise the copies, or there is no memory for page tables.
    pub async fn fork_into(&self, child: &Self) -> Result<()> {
        let pieces: Vec<Piece> = self
            .vmas
            .lock()
            .iter()
            .filter(|(_, vma)| !vma.flags.contains(VmaFlags::DONTFORK))
            .map(|(range, vma)| (range, vma.clone()))
            .collect();
        self.node
            .supply()
            .commit(self.node, charged(&pieces))
            .await?;
        child
            .stack_limit
            .store(self.stack_limit.load(Ordering::Relaxed), Ordering::Relaxed);
        *child.heap.lock() = *self.heap.lock();
        let mut failed = false;
        for (range, vma) in pieces {
            child.vmas.lock().insert(range.clone(), vma.clone());
            if vma.flags.contains(VmaFlags::WIPEONFORK) {
                continue;
            }
            let private = !vma.is_shared();
            let tables = &child.tables;
            self.walk(range, |space, at, batch| {
                match tables.entry_or_create(at.page.vpn.addr()) {
                    Some(entry) => space.node.cache().share_page(at, entry, private, batch),
                    None => failed = true,
                }
            })
            .await;
        }
        if failed {
            Err(errno::ENOMEM.into())
        } else {
            Ok(())
        }
    }

    /// Frees everything.
    pub(crate) async fn end(&self) -> Result<()> {
        self.unmap(0..messages::USER_END).await
    }

    /// Makes mapped pages lie beyond the end of a file: touching one is a bus error.
    pub(crate) fn set_beyond(&self, range: Range<u64>) {
        let beyond = |vma: &mut Vma| vma.backing = Backing::Beyond;
        self.vmas.lock().change(range, beyond);
    }

    /// Extends a range to the start of the stack that it lies in; `None` if it lies in none.
    pub(crate) fn grown(&self, range: Range<u64>) -> Option<Range<u64>> {
        let vmas = self.vmas.lock();
        let (whole, vma) = vmas.find(range.start)?;
        vma.flags
            .contains(VmaFlags::GROWSDOWN)
            .then_some(whole.start..range.end)
    }
}

/// Returns whether `len` bytes from `start` on lie below the end of addresses.
pub(super) fn fits(start: u64, len: u64) -> bool {
    start
        .checked_add(len)
        .is_some_and(|end| end <= messages::USER_END)
}

/// The VMA that a piece `bytes` into `vma` is.
fn vma_at(vma: &Vma, bytes: u64) -> Vma {
    let backing = match &vma.backing {
        Backing::Object(object, first) => {
            Backing::Object(object.clone(), first + bytes / PAGE_SIZE)
        }
        Backing::File(file, first) => Backing::File(file.clone(), first + bytes / PAGE_SIZE),
        other => other.clone(),
    };
    Vma {
        backing,
        ..vma.clone()
    }
}

/// Returns the part of `range` that the pieces map without a hole from its start.
fn mapped_from(pieces: Vec<Piece>, range: &Range<u64>) -> Range<u64> {
    let mut end = range.start;
    for (piece, _) in pieces {
        if piece.start != end {
            break;
        }
        end = piece.end;
    }
    range.start..end
}

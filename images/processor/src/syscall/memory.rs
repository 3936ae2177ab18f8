//! Address space: mmap, munmap, mprotect, mremap, brk, madvise.

use alloc::vec;
use core::ops::Range;

use messages::memory::{
    MapFlags, MapRequest, Prot, ProtectRequest, RangeRequest, WindowList, WindowsRequest,
};
use messages::{Errno, PAGE_SIZE, USER_END, WINDOW_SIZE};
use pcache::{Page, Vpn};

use super::Args;
use crate::error::{Result, errno};
use crate::files::Kind;
use crate::load::PIECE;
use crate::platform::Memory;
use crate::process::{Node, Process};

const MAP_SHARED: u64 = 1;
const MAP_TYPE: u64 = 0xf;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE: u64 = 1;
const MADV_DONTNEED: u64 = 4;

/// The whole pages of `addr..addr + len`.
fn pages(addr: u64, len: u64) -> core::result::Result<Range<u64>, Errno> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(errno::EINVAL);
    }
    let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(errno::ENOMEM)?;
    let end = addr
        .checked_add(len)
        .filter(|&end| end <= USER_END)
        .ok_or(errno::ENOMEM)?;
    Ok(addr..end)
}

fn rights(raw: u64) -> Prot {
    Prot::from_bits_truncate(raw.to_le_bytes()[0])
}

impl<N: Node> Process<'_, N> {
    /// Maps memory at M and here; returns where.
    pub(crate) async fn map(&mut self, hint: u64, len: u64, prot: Prot, flags: MapFlags) -> Result<u64> {
        self.clear_spares(&(hint..hint.saturating_add(len))).await?;
        let range = self.reserve(hint, len, prot, flags).await?;
        let address = range.start;
        self.layout.insert(range, prot);
        Ok(address)
    }

    /// Maps memory at M only; returns its whole pages.
    pub(super) async fn reserve(
        &self,
        hint: u64,
        len: u64,
        prot: Prot,
        flags: MapFlags,
    ) -> Result<Range<u64>> {
        let request = MapRequest {
            process: self.id,
            hint,
            len,
            prot,
            flags,
        };
        let mapped = self.node.memory().map(request).await?;
        let range = pages(mapped.address, len)?;
        self.back(range.clone(), mapped.windows).await?;
        Ok(range)
    }

    /// Remembers the windows of a reply, and fetches those of `range` that it had no room for.
    async fn back(&self, range: Range<u64>, mut list: WindowList) -> Result<()> {
        let index = |addr: u64| u32::try_from(addr / WINDOW_SIZE).unwrap_or(u32::MAX);
        let spaces = &self.node.cache().machine().spaces;
        loop {
            list.as_slice()
                .iter()
                .for_each(|window| spaces.add(self.space, window));
            let Some(last) = list.as_slice().last().filter(|_| list.more) else {
                return Ok(());
            };
            let first = last.index.saturating_add(1);
            let count = index(range.end.next_multiple_of(WINDOW_SIZE)).saturating_sub(first);
            list = self
                .node
                .memory()
                .windows(WindowsRequest {
                    process: self.id,
                    first,
                    count,
                })
                .await?;
        }
    }

    /// Gives a range up: its pages here, then its memory at M.
    async fn unmap(&mut self, range: Range<u64>) -> Result<()> {
        if self.layout.pieces(range.clone()).is_empty() {
            return Ok(());
        }
        self.clear_spares(&range).await?;
        self.layout.remove(range.clone());
        self.drop_pages(range.clone()).await;
        self.give_back(range).await
    }

    /// Gives the memory of a range back to M. No page of it is in the cache.
    pub(super) async fn give_back(&self, range: Range<u64>) -> Result<()> {
        let request = RangeRequest {
            process: self.id,
            address: range.start,
            len: range.end - range.start,
        };
        let run = self.node.memory().unmap(request).await?;
        self.node.cache().machine().spaces.remove(self.space, run);
        Ok(())
    }

    /// Makes the pages of a range start as zeros again.
    pub(super) async fn drop_pages(&self, range: Range<u64>) {
        let cache = self.node.cache();
        let (first, count) = (Vpn::of(range.start), (range.end - range.start) / PAGE_SIZE);
        if cache.discard_range(self.space, first, count) {
            cache.quiesce(self.space).await;
        }
        cache.machine().spaces.forget(self.space, first, count);
    }

    pub(super) async fn sys_mmap(&mut self, [addr, len, prot, flags, fd, offset]: Args) -> Result<u64> {
        if len == 0 || !offset.is_multiple_of(PAGE_SIZE) || !(1..=3).contains(&(flags & MAP_TYPE)) {
            return Err(errno::EINVAL.into());
        }
        let file = match flags & MAP_ANONYMOUS {
            0 => Some(self.table.get(fd)?),
            _ => None,
        };
        let source = match file.as_ref().map(|f| f.kind) {
            None => None,
            Some(Kind::File(id)) => Some(id),
            Some(_) => return Err(errno::EACCES.into()),
        };
        let prot = rights(prot);
        if source.is_some() && flags & MAP_TYPE & MAP_SHARED != 0 && prot.contains(Prot::WRITE) {
            return Err(errno::EACCES.into());
        }
        let placement = if flags & MAP_FIXED_NOREPLACE != 0 {
            MapFlags::FIXED_NOREPLACE
        } else if flags & MAP_FIXED != 0 {
            MapFlags::FIXED
        } else {
            MapFlags::empty()
        };
        let hint = if placement.is_empty() {
            addr / PAGE_SIZE * PAGE_SIZE
        } else {
            addr
        };
        let range = if placement.is_empty() {
            pages(0, len)?
        } else {
            pages(hint, len)?
        };
        if placement == MapFlags::FIXED {
            self.unmap(range).await?;
        }
        let at = self.map(hint, len, prot, placement).await?;
        if let Some(id) = source {
            self.populate(id, offset, at, len).await?;
        }
        Ok(at)
    }

    pub(super) async fn sys_munmap(&mut self, [addr, len, ..]: Args) -> Result<u64> {
        let range = pages(addr, len).map_err(|_| errno::EINVAL)?;
        if range.is_empty() {
            return Err(errno::EINVAL.into());
        }
        self.unmap(range).await?;
        Ok(0)
    }

    pub(super) async fn sys_mprotect(&mut self, [addr, len, prot, ..]: Args) -> Result<u64> {
        let range = pages(addr, len)?;
        if range.is_empty() {
            return Ok(0);
        }
        if !self.layout.covers(range.clone()) {
            return Err(errno::ENOMEM.into());
        }
        let prot = rights(prot);
        let len = range.end - range.start;
        let request = ProtectRequest {
            process: self.id,
            address: range.start,
            len,
            prot,
        };
        let windows = self.node.memory().protect(request).await?;
        self.back(range.clone(), windows).await?;
        self.layout.protect(range.clone(), prot);
        for vpn in range.start / PAGE_SIZE..range.end / PAGE_SIZE {
            self.node
                .cache()
                .revoked(Page {
                    space: self.space,
                    vpn: Vpn(vpn),
                })
                .await;
        }
        Ok(0)
    }

    pub(super) async fn sys_mremap(&mut self, [addr, old, new, flags, ..]: Args) -> Result<u64> {
        let (was, wants) = (pages(addr, old)?, pages(addr, new)?);
        if was.is_empty() || wants.is_empty() || flags & !MREMAP_MAYMOVE != 0 {
            return Err(errno::EINVAL.into());
        }
        let Some(prot) = self
            .layout
            .rights(addr)
            .filter(|_| self.layout.covers(was.clone()))
        else {
            return Err(errno::EFAULT.into());
        };
        if wants.end <= was.end {
            self.unmap(wants.end..was.end).await?;
            return Ok(addr);
        }
        match self.grow(was.end..wants.end, prot).await {
            Ok(()) => return Ok(addr),
            Err(crate::Error::Errno(errno::EEXIST | errno::EINVAL)) if flags & MREMAP_MAYMOVE != 0 => {}
            Err(crate::Error::Errno(_)) => return Err(errno::ENOMEM.into()),
            Err(other) => return Err(other),
        }
        let to = self
            .map(0, wants.end - wants.start, prot, MapFlags::empty())
            .await?;
        let mut piece = vec![0; PIECE];
        for at in (was.start..was.end).step_by(PIECE) {
            let len = usize::try_from(was.end - at).map_or(PIECE, |left| left.min(PIECE));
            self.read_user(at, &mut piece[..len]).await?;
            self.poke(to + (at - was.start), &piece[..len]).await?;
        }
        self.unmap(was).await?;
        Ok(to)
    }

    pub(super) async fn sys_madvise(&mut self, [addr, len, advice, ..]: Args) -> Result<u64> {
        let range = pages(addr, len).map_err(|_| errno::EINVAL)?;
        if !self.layout.covers(range.clone()) {
            return Err(errno::ENOMEM.into());
        }
        // All other advice may be ignored.
        if advice == MADV_DONTNEED {
            self.drop_pages(range).await;
        }
        Ok(0)
    }
}

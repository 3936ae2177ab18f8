//! Memory: mmap, munmap, mprotect, mremap, madvise, brk.

use alloc::sync::Arc;
use core::ops::Range;

use messages::{Errno, PAGE_SIZE, USER_END};
use pcache::{Access, Advice, Rights};

use super::Args;
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::Kind;
use crate::leased;
use crate::mm::map::Place;
use crate::mm::vma::{Backing, Vma, VmaFlags};
use crate::mm::{Heap, MMAP_MIN, object::Object};
use crate::process::Node;
use crate::thread::Thread;
use crate::tmpfs::{SEAL_FUTURE_WRITE, SEAL_WRITE, TmpFile};

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_TYPE: u64 = 0xf;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_32BIT: u64 = 0x40;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_POPULATE: u64 = 0x8000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
/// Flags that Linux knows (`LEGACY_MAP_MASK` and `MAP_SYNC` apart), for `MAP_SHARED_VALIDATE`.
const MAP_KNOWN: u64 = 0x1f_ff7f;
/// `O_ACCMODE`, `O_WRONLY` and `O_RDWR`.
const ACCESS: u32 = 3;
const WRITE_ONLY: u32 = 1;
const READ_WRITE: u32 = 2;
const PROT_KNOWN: u64 = 7;
/// `PROT_GROWSDOWN` and `PROT_GROWSUP`.
const PROT_GROWS: u64 = 0x300_0000;
const PROT_SEM: u64 = 8;
const MREMAP_MAYMOVE: u64 = 1;
const MREMAP_FIXED: u64 = 2;
const MREMAP_DONTUNMAP: u64 = 4;

/// Returns the whole pages of `addr..addr + len`.
pub(super) fn pages(addr: u64, len: u64) -> core::result::Result<Range<u64>, Errno> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(errno::EINVAL);
    }
    let len = len
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or(errno::ENOMEM)?;
    let end = addr
        .checked_add(len)
        .filter(|&end| end <= USER_END)
        .ok_or(errno::ENOMEM)?;
    Ok(addr..end)
}

fn rights(raw: u64) -> Rights {
    Rights::from_bits_truncate(raw.to_le_bytes()[0])
}

/// The request of `madvise` (Linux `include/uapi/asm-generic/mman-common.h`).
enum Asked {
    Usage(Advice),
    WillNeed,
    Discard,
    Populate(Access),
    Flag(VmaFlags, bool),
    /// May be ignored.
    Hint,
}

impl Asked {
    fn decode(advice: u64) -> Option<Self> {
        Some(match advice {
            0 => Self::Usage(Advice::Normal),
            1 => Self::Usage(Advice::Random),
            2 => Self::Usage(Advice::Sequential),
            3 => Self::WillNeed,
            // MADV_FREE may free at once, as Linux does under pressure.
            4 | 8 | 24 => Self::Discard,
            10 => Self::Flag(VmaFlags::DONTFORK, true),
            11 => Self::Flag(VmaFlags::DONTFORK, false),
            18 => Self::Flag(VmaFlags::WIPEONFORK, true),
            19 => Self::Flag(VmaFlags::WIPEONFORK, false),
            22 => Self::Populate(Access::Read),
            23 => Self::Populate(Access::Write),
            // MERGEABLE to DODUMP, COLD, PAGEOUT.
            12..=17 | 20 | 21 => Self::Hint,
            _ => return None,
        })
    }
}

/// Returns the mapping that `mmap` is to make, before it has a backing.
fn vma(rights: Rights, flags: u64) -> Vma {
    let mut vma = Vma::anonymous(rights);
    vma.flags
        .set(VmaFlags::NORESERVE, flags & MAP_NORESERVE != 0);
    let grows = flags & MAP_GROWSDOWN != 0 && flags & MAP_TYPE == MAP_PRIVATE;
    vma.flags.set(VmaFlags::GROWSDOWN, grows);
    vma
}

impl<N: Node> Thread<N> {
    /// Maps anonymous memory of the process's own if that takes no waiting; what is wrong with a
    /// call is for [`sys_mmap`](Self::sys_mmap) to say.
    pub(super) fn mmap_now(&self, [addr, len, prot, flags, _, offset]: Args) -> Option<u64> {
        let private =
            flags & (MAP_TYPE | MAP_ANONYMOUS | MAP_POPULATE) == MAP_PRIVATE | MAP_ANONYMOUS;
        if !private || len == 0 || !offset.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        let (place, len) = placement(addr, len, flags).ok()?;
        self.may_map(len).ok()?;
        self.memory
            .map_now(place, len, vma(rights(prot & PROT_KNOWN), flags))
    }

    /// Unmaps memory if that takes no waiting.
    pub(super) fn munmap_now(&self, [addr, len, ..]: Args) -> Option<u64> {
        let range = pages(addr, len).ok().filter(|range| !range.is_empty())?;
        self.memory.unmap_now(range).then_some(0)
    }

    pub(super) async fn sys_mmap(&self, [addr, len, prot, flags, fd, offset]: Args) -> Result<u64> {
        let kind = flags & MAP_TYPE;
        let known = kind == MAP_SHARED || kind == MAP_PRIVATE || kind == MAP_SHARED_VALIDATE;
        if len == 0 || !offset.is_multiple_of(PAGE_SIZE) || !known {
            return Err(errno::EINVAL.into());
        }
        // With a file, this kind alone checks the other flags; without one there is no such kind.
        if kind == MAP_SHARED_VALIDATE {
            if flags & MAP_ANONYMOUS != 0 {
                return Err(errno::EINVAL.into());
            }
            if flags & !MAP_KNOWN != 0 {
                return Err(errno::EOPNOTSUPP.into());
            }
        }
        let shared = kind != MAP_PRIVATE;
        let file = match flags & MAP_ANONYMOUS {
            0 => Some(self.file(fd)?),
            _ => None,
        };
        if let Some(Kind::Tmp(tmp)) = file.as_ref().map(|file| &file.kind) {
            let access = file.as_ref().map_or(0, |file| file.flags() & ACCESS);
            if access == WRITE_ONLY {
                return Err(errno::EACCES.into());
            }
            let writes = access == READ_WRITE;
            return self
                .map_tmp(tmp, [addr, len, prot, flags, fd, offset], shared, writes)
                .await;
        }
        let source = match &file {
            Some(file) => match &file.kind {
                Kind::File(_) if file.flags() & ACCESS == WRITE_ONLY => {
                    return Err(errno::EACCES.into());
                }
                Kind::File(of) => Some((*of, file.flags() & ACCESS != 0)),
                Kind::Device(Device::Zero) => None,
                Kind::Device(_) => return Err(errno::ENODEV.into()),
                _ => return Err(errno::EACCES.into()),
            },
            None => None,
        };
        let rights = rights(prot & PROT_KNOWN);
        let to_file = shared && rights.contains(Rights::WRITE);
        if to_file && source.is_some_and(|(_, writes)| !writes) {
            return Err(errno::EACCES.into());
        }
        let (place, len) = placement(addr, len, flags)?;
        self.may_map(len)?;
        let mut vma = vma(rights, flags);
        if shared && source.is_none() {
            vma.backing = Backing::Object(Arc::new(Object::default()), 0);
        }
        if let Some(((of, writes), open)) = source.zip(file) {
            let pages = leased::pages_to_map(self.node, &open, of).await?;
            self.node.kernel().file_cache.lock().used(&pages);
            if shared {
                vma.flags |= VmaFlags::SHARED;
                vma.flags.set(VmaFlags::READONLY, !writes);
            }
            if shared && writes {
                pages.set_writer(&open, of.id);
            }
            vma.backing = Backing::File(pages, offset / PAGE_SIZE);
        }
        let _change = self.memory.change().await;
        let at = self.memory.map(place, len, vma).await?;
        if flags & MAP_POPULATE != 0 && !rights.is_empty() {
            let access = if rights.contains(Rights::WRITE) {
                Access::Write
            } else {
                Access::Read
            };
            // As on Linux, pages that can't be had now are had later.
            match self.memory.populate(at..at + len, access).await {
                Err(Error::Errno(_)) => {}
                done => done?,
            }
        }
        Ok(at)
    }

    /// Maps a file of this node's own: its pages if shared, else copies.
    async fn map_tmp(
        &self,
        file: &TmpFile,
        [addr, len, prot, flags, _, offset]: Args,
        shared: bool,
        writes: bool,
    ) -> Result<u64> {
        let rights = rights(prot & PROT_KNOWN);
        if shared && rights.contains(Rights::WRITE) && !writes {
            return Err(errno::EACCES.into());
        }
        if shared && rights.contains(Rights::WRITE) && file.sealed(SEAL_WRITE | SEAL_FUTURE_WRITE) {
            return Err(errno::EPERM.into());
        }
        // What nobody can write any more may as well be copied, and then no change of rights can
        // write it.
        let shared = shared && !file.sealed(SEAL_WRITE);
        let (place, len) = placement(addr, len, flags)?;
        let tmpfs = self.node.kernel().tmpfs();
        let size = file.size();
        let backed = size
            .saturating_sub(offset)
            .next_multiple_of(PAGE_SIZE)
            .min(len);
        let mut vma = Vma::anonymous(rights);
        if shared {
            let object = tmpfs.object(file, offset.saturating_add(len)).await?;
            vma.backing = Backing::Object(object, offset / PAGE_SIZE);
            vma.flags |= VmaFlags::NORESERVE | VmaFlags::BOUNDED;
            let sealed = file.sealed(SEAL_FUTURE_WRITE);
            vma.flags.set(VmaFlags::READONLY, !writes || sealed);
        }
        let _change = self.memory.change().await;
        let at = self.memory.map(place, len, vma).await?;
        if backed < len && !shared {
            self.memory.set_beyond(at + backed..at + len);
        }
        if !shared {
            let mut piece = alloc::vec![0; crate::load::PIECE];
            let mut done = 0;
            while done < backed {
                let want = usize::try_from(backed - done)
                    .map_or(piece.len(), |left| left.min(piece.len()));
                let got = tmpfs.read(file, offset + done, &mut piece[..want]).await?;
                self.memory.load(at + done, &piece[..got]).await?;
                done += got as u64;
                if got < want {
                    break;
                }
            }
        }
        Ok(at)
    }

    pub(super) async fn sys_munmap(&self, [addr, len, ..]: Args) -> Result<u64> {
        let range = pages(addr, len).map_err(|_| errno::EINVAL)?;
        if range.is_empty() {
            return Err(errno::EINVAL.into());
        }
        let _change = self.memory.change().await;
        self.memory.unmap(range).await?;
        Ok(0)
    }

    pub(super) async fn sys_mprotect(&self, [addr, len, prot, ..]: Args) -> Result<u64> {
        // Both growth flags at once, or unknown bits.
        let grows = prot & PROT_GROWS;
        if grows == PROT_GROWS || prot & !(PROT_KNOWN | PROT_SEM | PROT_GROWS) != 0 {
            return Err(errno::EINVAL.into());
        }
        let mut range = pages(addr, len)?;
        if range.is_empty() {
            return Ok(0);
        }
        let _change = self.memory.change().await;
        if grows != 0 {
            range = self.memory.grown(range).ok_or(errno::EINVAL)?;
        }
        self.memory
            .protect(range, rights(prot & PROT_KNOWN))
            .await?;
        Ok(0)
    }

    pub(super) async fn sys_mremap(&self, [addr, old, new, flags, to, ..]: Args) -> Result<u64> {
        let fixed = flags & MREMAP_FIXED != 0;
        let may_move = flags & MREMAP_MAYMOVE != 0;
        let keep = flags & MREMAP_DONTUNMAP != 0;
        let known = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
        if flags & !known != 0 || (fixed || keep) && !may_move {
            return Err(errno::EINVAL.into());
        }
        let was = pages(addr, old)?;
        let new_len = new
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(errno::ENOMEM)?;
        if was.is_empty() || new_len == 0 || new_len > USER_END {
            return Err(errno::EINVAL.into());
        }
        let to = if fixed {
            let target = pages(to, new).map_err(|_| errno::EINVAL)?;
            if target.start < was.end && was.start < target.end || target.start < MMAP_MIN {
                return Err(errno::EINVAL.into());
            }
            Some(target.start)
        } else {
            None
        };
        let _change = self.memory.change().await;
        if keep {
            if was.end - was.start != new_len {
                return Err(errno::EINVAL.into());
            }
            return self.memory.take_pages(was, to).await;
        }
        self.memory.remap(was, new_len, may_move, to).await
    }

    pub(super) async fn sys_madvise(&self, [addr, len, advice, ..]: Args) -> Result<u64> {
        let asked = Asked::decode(advice & 0xffff_ffff).ok_or(errno::EINVAL)?;
        let range = pages(addr, len).map_err(|_| errno::EINVAL)?;
        if range.is_empty() {
            return Ok(0);
        }
        let _change = self.memory.change().await;
        // Linux does what is mapped, and then tells of the holes.
        let pieces = self.memory.with_vmas(|vmas| vmas.pieces(range.clone()));
        let whole = pieces
            .iter()
            .map(|(piece, _)| piece.end - piece.start)
            .sum::<u64>();
        for (piece, _) in pieces {
            match asked {
                Asked::Usage(advice) => self.memory.advise(piece, advice),
                Asked::WillNeed => self.memory.will_need(piece).await,
                Asked::Discard => self.memory.discard(piece).await,
                Asked::Populate(access) => self.memory.populate(piece, access).await?,
                Asked::Flag(flag, on) => self.memory.set_flags(piece, flag, on),
                Asked::Hint => {}
            }
        }
        if whole == range.end - range.start {
            Ok(0)
        } else {
            Err(errno::ENOMEM.into())
        }
    }

    pub(super) async fn sys_brk(&self, [wish, ..]: Args) -> Result<u64> {
        let _change = self.memory.change().await;
        let Heap { start, end } = *self.memory.heap.lock();
        let had = end.next_multiple_of(PAGE_SIZE);
        let Some(wants) = wish
            .checked_next_multiple_of(PAGE_SIZE)
            .filter(|&wants| wish >= start && wants <= USER_END)
        else {
            return Ok(end);
        };
        if wants > had {
            if self.may_map(wants - had).is_err() {
                return Ok(end);
            }
            let vma = Vma::anonymous(Rights::READ | Rights::WRITE);
            match self.memory.map(Place::Free(had), wants - had, vma).await {
                Err(Error::Errno(_)) => return Ok(end),
                mapped => mapped?,
            };
        } else if wants < had {
            self.memory.unmap(wants..had).await?;
        }
        self.memory.heap.lock().end = wish;
        Ok(wish)
    }
}

/// Returns where a mapping goes, and its whole pages.
fn placement(addr: u64, len: u64, flags: u64) -> Result<(Place, u64)> {
    let fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
    let range = pages(if fixed { addr } else { 0 }, len)?;
    let len = range.end - range.start;
    if fixed && addr < MMAP_MIN {
        return Err(errno::EPERM.into());
    }
    let place = if flags & MAP_FIXED_NOREPLACE != 0 {
        Place::Free(addr)
    } else if flags & MAP_FIXED != 0 {
        Place::Exactly(addr)
    } else if flags & MAP_32BIT != 0 {
        Place::Low
    } else {
        Place::Wish(addr / PAGE_SIZE * PAGE_SIZE)
    };
    Ok((place, len))
}

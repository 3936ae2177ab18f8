//! Residency: mincore, and the calls that would keep pages in memory. A page may be at M at any
//! time and comes back by itself, so these calls only check their arguments.

use alloc::vec;

use linux_raw_sys::general as nr;
use messages::PAGE_SIZE;
use pcache::Entry as _;

use super::memory::pages;
use super::{Args, int};
use crate::error::{Result, errno};
use crate::mm::Tables as _;
use crate::process::Node;
use crate::thread::Thread;

/// Pages that mincore tells of at once.
const PIECE: usize = 4096;

impl<N: Node> Thread<N> {
    /// Answers the calls of this family; `None` for others.
    pub(super) async fn resident_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        Some(match number {
            nr::__NR_mincore => self.sys_mincore(a).await,
            nr::__NR_msync => self.sys_msync(a).await,
            nr::__NR_mlock | nr::__NR_munlock => self.sys_mlock(a[0], a[1]),
            nr::__NR_mlock2 if a[2] & !1 != 0 => Err(errno::EINVAL.into()),
            nr::__NR_mlock2 => self.sys_mlock(a[0], a[1]),
            nr::__NR_mlockall => match int(a[0]) {
                // MCL_ONFAULT alone locks nothing.
                0 | 4 => Err(errno::EINVAL.into()),
                flags if flags & !7 != 0 => Err(errno::EINVAL.into()),
                _ => Ok(0),
            },
            nr::__NR_munlockall => Ok(0),
            _ => return None,
        })
    }

    /// Returns ENOMEM unless all of a range is mapped.
    fn all_mapped(&self, addr: u64, len: u64) -> Result<u64> {
        let range = pages(addr, len).map_err(|_| errno::ENOMEM)?;
        if range.is_empty() || self.memory.with_vmas(|vmas| vmas.covers(range)) {
            Ok(0)
        } else {
            Err(errno::ENOMEM.into())
        }
    }

    fn sys_mlock(&self, addr: u64, len: u64) -> Result<u64> {
        // The range is widened to whole pages.
        let start = addr / PAGE_SIZE * PAGE_SIZE;
        self.all_mapped(start, len.saturating_add(addr - start))
    }

    async fn sys_msync(&self, [addr, len, flags, ..]: Args) -> Result<u64> {
        const ASYNC: u64 = 1;
        const INVALIDATE: u64 = 2;
        const SYNC: u64 = 4;
        let flags = u64::from(int(flags));
        if flags & !(ASYNC | INVALIDATE | SYNC) != 0
            || flags & (ASYNC | SYNC) == ASYNC | SYNC
            || !addr.is_multiple_of(PAGE_SIZE)
        {
            return Err(errno::EINVAL.into());
        }
        if flags & SYNC != 0 {
            let range = pages(addr, len).map_err(|_| errno::ENOMEM)?;
            for (piece, vma) in self.memory.with_vmas(|vmas| vmas.pieces(range)) {
                if let Some((file, first)) = vma.stored_file(piece.start, piece.start) {
                    let count = (piece.end - piece.start) / PAGE_SIZE;
                    file.sync(self.node, first..first + count).await?;
                }
            }
        }
        self.all_mapped(addr, len)
    }

    async fn sys_mincore(&self, [addr, len, into, ..]: Args) -> Result<u64> {
        if !addr.is_multiple_of(PAGE_SIZE) {
            return Err(errno::EINVAL.into());
        }
        self.all_mapped(addr, len)?;
        let count = len.div_ceil(PAGE_SIZE);
        let mut done = 0;
        while done < count {
            let some = usize::try_from(count - done).map_or(PIECE, |left| left.min(PIECE));
            let mut told = vec![0; some];
            for (page, told) in (done..).zip(&mut told) {
                let entry = self.memory.tables().entry(addr + page * PAGE_SIZE);
                *told = u8::from(entry.is_some_and(|entry| entry.load().0 != 0));
            }
            self.memory.write(into.saturating_add(done), &told).await?;
            done += some as u64;
        }
        Ok(0)
    }
}

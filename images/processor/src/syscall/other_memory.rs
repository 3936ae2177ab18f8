//! `process_vm_readv` and `process_vm_writev`: copies between two processes (Linux
//! `mm/process_vm_access.c`).

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use linux_raw_sys::general as nr;

use super::{Args, int};
use crate::creds::CAP_SYS_PTRACE;
use crate::error::{Error, Result, errno};
use crate::load::PIECE;
use crate::mm::Space;
use crate::process::Node;
use crate::thread::Thread;

/// The most bytes of one call (`MAX_RW_COUNT`).
const MAX_COUNT: u64 = 0x7fff_f000;

/// A list of pieces, and how far into it a copy is.
struct Place {
    pieces: Vec<(u64, u64)>,
    at: usize,
    done: u64,
}

impl Place {
    /// Returns the rest of the piece that is next, if there is one.
    fn next(&mut self) -> Option<(u64, u64)> {
        loop {
            let &(base, len) = self.pieces.get(self.at)?;
            if self.done < len {
                return Some((base.saturating_add(self.done), len - self.done));
            }
            (self.at, self.done) = (self.at + 1, 0);
        }
    }
}

impl<N: Node> Thread<N> {
    /// Answers the calls of this family; `None` for others.
    pub(super) async fn other_memory_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        match number {
            nr::__NR_process_vm_readv => Some(self.sys_process_vm(a, false).await),
            nr::__NR_process_vm_writev => Some(self.sys_process_vm(a, true).await),
            _ => None,
        }
    }

    async fn sys_process_vm(
        &self,
        [pid, own, own_count, other, other_count, flags]: Args,
        write: bool,
    ) -> Result<u64> {
        if flags != 0 {
            return Err(errno::EINVAL.into());
        }
        let place = async |list: u64, count: u64| {
            let pieces = self.pieces(list, count).await?;
            let (at, done) = (0, 0);
            Ok::<_, Error>(Place { pieces, at, done })
        };
        let mut own = place(own, own_count).await?;
        let mut other = place(other, other_count).await?;
        let space = self.memory_of(int(pid))?;
        let copied = self.copy_between(&space, &mut own, &mut other, write).await;
        // The process may have ended, or run another program, and left its memory to this call.
        if let Some(space) = Arc::into_inner(space) {
            self.node.kernel().add_faults(space.faults());
            space.end().await?;
        }
        copied
    }

    /// Returns the memory of a process that this one may look into.
    fn memory_of(&self, pid: u32) -> Result<Arc<Space<'static, N>>> {
        let process = self.node.kernel().process_of(pid).ok_or(errno::ESRCH)?;
        let target = process.threads.lock().values().next().cloned();
        let (theirs, own) = (target.ok_or(errno::ESRCH)?.creds(), self.creds());
        let same = |ours: u32, ids: &crate::creds::Ids| {
            ours == ids.real && ours == ids.effective && ours == ids.saved
        };
        let may = same(own.user.real, &theirs.user) && same(own.group.real, &theirs.group);
        if process.pid != self.pid && !may && !own.can(CAP_SYS_PTRACE) {
            return Err(errno::EPERM.into());
        }
        let memory = process.memory.lock().clone();
        memory.ok_or_else(|| errno::ESRCH.into())
    }

    async fn copy_between(
        &self,
        space: &Space<'static, N>,
        own: &mut Place,
        other: &mut Place,
        write: bool,
    ) -> Result<u64> {
        let mut piece = vec![0; PIECE];
        let mut copied = 0;
        while let (Some((here, room)), Some((there, len))) = (own.next(), other.next()) {
            let wanted = room.min(len).min(PIECE as u64).min(MAX_COUNT - copied);
            if wanted == 0 {
                break;
            }
            let done = async {
                let reachable = space.reachable(there, wanted, write)?;
                let part = usize::try_from(reachable).map_err(|_| errno::EFAULT)?;
                let part = &mut piece[..part];
                if write {
                    self.memory.read(here, part).await?;
                    space.write(there, part).await?;
                } else {
                    space.read(there, part).await?;
                    self.memory.write(here, part).await?;
                }
                Ok::<_, Error>(reachable)
            };
            let done = match done.await {
                Ok(done) => done,
                Err(Error::Errno(_)) if copied > 0 => break,
                Err(error) => return Err(error),
            };
            copied += done;
            own.done += done;
            other.done += done;
            if done < wanted {
                break;
            }
        }
        Ok(copied)
    }
}

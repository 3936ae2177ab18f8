//! Locks of files: `F_SETLK` and its relatives, `flock`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use linux_raw_sys::general::{
    F_GETLK, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_RDLCK, F_SETLK, F_UNLCK, F_WRLCK,
};

use super::{Args, int};
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::locks::{Lock, Locks, Mode, Owner, Range};
use crate::process::Node;
use crate::storage;
use crate::thread::Thread;

/// Bytes of `struct flock`.
const FLOCK: usize = 32;
const LOCK_SH: u32 = 1;
const LOCK_EX: u32 = 2;
const LOCK_NB: u32 = 4;
const LOCK_UN: u32 = 8;

/// A `struct flock`, with its range made absolute.
struct Asked {
    /// None to unlock.
    mode: Option<Mode>,
    range: Range,
    pid: u32,
}

/// Returns the range that a start, seen from `base`, and a length mean.
fn range(base: u64, start: i64, len: i64) -> Result<Range> {
    let start = base
        .checked_add_signed(start)
        .filter(|&start| start.cast_signed() >= 0)
        .ok_or(errno::EINVAL)?;
    let range = match len {
        0 => Range {
            start,
            end: u64::MAX,
        },
        1.. => Range {
            start,
            end: start
                .checked_add_signed(len)
                .filter(|&end| end <= 1 << 63)
                .ok_or(errno::EOVERFLOW)?,
        },
        _ => Range {
            start: start.checked_add_signed(len).ok_or(errno::EINVAL)?,
            end: start,
        },
    };
    Ok(range)
}

impl<N: Node> Thread<N> {
    fn locks(&self) -> &Arc<Locks> {
        &self.node.kernel().locks
    }

    /// Returns the number that a file is locked by; none for what has no inode.
    async fn lock_key(&self, file: &OpenFile) -> Result<Option<u64>> {
        Ok(match &file.kind {
            Kind::File(_) | Kind::Folder(_) => Some(self.status_of(file).await?.inode),
            Kind::Tmp(tmp) => Some(tmp.inode()),
            Kind::TmpFolder(inode) => Some(*inode),
            _ => None,
        })
    }

    async fn asked(&self, file: &OpenFile, at: u64) -> Result<Asked> {
        let mut bytes = [0; FLOCK];
        self.memory.read(at, &mut bytes).await?;
        let half = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let word =
            |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let mode = match half(0) {
            F_RDLCK => Some(Mode::Read),
            F_WRLCK => Some(Mode::Write),
            F_UNLCK => None,
            _ => return Err(errno::EINVAL.into()),
        };
        let base = match half(2) {
            0 => 0,
            1 => file.offset.load(Relaxed),
            2 => self.status_of(file).await?.size,
            _ => return Err(errno::EINVAL.into()),
        };
        Ok(Asked {
            mode,
            range: range(base, word(8), word(16))?,
            pid: u32::from_le_bytes(bytes[24..28].try_into().expect("four bytes")),
        })
    }

    /// Serves the lock commands of `fcntl`.
    pub(super) async fn sys_lock(
        &self,
        file: &Arc<OpenFile>,
        command: u32,
        at: u64,
    ) -> Result<u64> {
        let asked = self.asked(file, at).await?;
        let by_file = matches!(command, F_OFD_GETLK | F_OFD_SETLK | F_OFD_SETLKW);
        if by_file && asked.pid != 0 {
            return Err(errno::EINVAL.into());
        }
        let key = self.lock_key(file).await?.ok_or(errno::EINVAL)?;
        let owner = if by_file {
            Owner::File(file.identity())
        } else {
            Owner::Process(self.pid)
        };
        let wanted = |mode| Lock {
            owner,
            range: asked.range,
            mode,
        };
        if matches!(command, F_GETLK | F_OFD_GETLK) {
            let wanted = wanted(asked.mode.ok_or(errno::EINVAL)?);
            return self.tell_lock(key, &wanted, at).await;
        }
        let Some(mode) = asked.mode else {
            self.locks().unlock(key, owner, asked.range);
            return Ok(0);
        };
        // Reading is O_RDONLY or O_RDWR, writing O_WRONLY or O_RDWR.
        let forbidden = if mode == Mode::Read { 1 } else { 0 };
        if file.flags() & 3 == forbidden {
            return Err(errno::EBADF.into());
        }
        if by_file {
            file.locked_in(self.locks());
        }
        let wanted = wanted(mode);
        if matches!(command, F_SETLK | F_OFD_SETLK) {
            return self.locks().set(key, &wanted).map(|()| 0);
        }
        let tid = self.tid();
        let attempt = || match self.locks().set_or_wait(key, &wanted, tid) {
            Err(Error::Errno(errno::EAGAIN)) => None,
            done => Some(done),
        };
        let done = self.unless_called(self.locks().queue.until(attempt)).await;
        self.locks().stop_waiting(tid);
        done.flatten().map(|()| 0)
    }

    /// Tells which lock excludes `wanted`, in the structure that asked.
    async fn tell_lock(&self, key: u64, wanted: &Lock, at: u64) -> Result<u64> {
        let Some(lock) = self.locks().conflict(key, wanted) else {
            let free = u16::try_from(F_UNLCK).unwrap_or(0);
            self.memory.write(at, &free.to_le_bytes()).await?;
            return Ok(0);
        };
        let mode = if lock.mode == Mode::Read {
            F_RDLCK
        } else {
            F_WRLCK
        };
        let len = match lock.range.end {
            u64::MAX => 0,
            end => end - lock.range.start,
        };
        let pid = match lock.owner {
            Owner::Process(pid) => pid,
            Owner::File(_) => u32::MAX,
        };
        self.memory.write(at, &mode.to_le_bytes()).await?;
        self.memory
            .write_words(at + 8, &[lock.range.start, len])
            .await?;
        self.memory.write(at + 24, &pid.to_le_bytes()).await?;
        Ok(0)
    }

    pub(super) async fn sys_flock(&self, [fd, operation, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let mode = match int(operation) & !LOCK_NB {
            LOCK_SH => Some(Mode::Read),
            LOCK_EX => Some(Mode::Write),
            LOCK_UN => None,
            _ => return Err(errno::EINVAL.into()),
        };
        // What is no file of a file system is nobody else's.
        let Some(key) = self.lock_key(&file).await? else {
            return Ok(0);
        };
        file.locked_in(self.locks());
        let own = (file.identity(), self.pid);
        if int(operation) & LOCK_NB != 0 {
            return self.locks().set_whole(key, own, mode).map(|()| 0);
        }
        let attempt = || match self.locks().set_whole(key, own, mode) {
            Err(Error::Errno(errno::EAGAIN)) => None,
            done => Some(done),
        };
        let done = self.unless_called(self.locks().queue.until(attempt)).await;
        done.flatten().map(|()| 0)
    }

    /// Lets go of the process's locks of a file, and of its notice of a message queue, as one of
    /// its numbers was closed.
    pub(crate) async fn closed(&self, file: Arc<OpenFile>) -> Result<()> {
        if self.locks().any() && matches!(file.kind, Kind::File(_) | Kind::Tmp(_)) {
            // A file of S that can't be asked for any more has no locks that matter.
            if let Ok(Some(key)) = self.lock_key(&file).await {
                self.locks().release_file(key, Owner::Process(self.pid));
            }
        }
        if let Kind::Object(object) = &file.kind
            && let Some(queue) = object.as_message_queue()
        {
            queue.closed_by(self.pid);
        }
        storage::closed(self.node, &file).await?;
        self.node.kernel().net.closed(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_seen_from_where_they_are_asked() {
        let whole = |start, end| Ok(Range { start, end });
        assert_eq!(range(0, 0, 0), whole(0, u64::MAX));
        assert_eq!(range(100, -10, 5), whole(90, 95));
        assert_eq!(range(100, 0, -40), whole(60, 100));
        assert_eq!(range(10, -11, 1), Err(errno::EINVAL.into()));
        assert_eq!(range(10, 0, -11), Err(errno::EINVAL.into()));
        assert_eq!(range(10, i64::MAX, 1), Err(errno::EINVAL.into()));
        assert_eq!(range(1, 0, i64::MAX), whole(1, 1 << 63));
        assert_eq!(range(2, 0, i64::MAX), Err(errno::EOVERFLOW.into()));
    }
}

//! Open files: read, write, seek, duplicate, list, poll.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use linux_raw_sys::general as nr;
use linux_raw_sys::general::{F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL};
use messages::storage::Entries;

use super::Args;
use super::layout::dirent;
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, MAX_FILES, OpenFile};
use crate::load::PIECE;
use crate::platform::{Files, Peer, Platform};
use crate::process::{Node, Process};

/// The most pieces of one readv or writev (`UIO_MAXIOV`).
const MAX_PIECES: u64 = 1024;
/// The most bytes of one read or write (`MAX_RW_COUNT`).
const MAX_COUNT: u64 = 0x7fff_f000;
const O_CLOEXEC: u64 = 0o2_000_000;
const POLL_IN: u16 = 1;
const POLL_OUT: u16 = 4;
const POLL_NVAL: u16 = 0x20;
/// How often poll looks at standard input again.
const POLL_STEP: Duration = Duration::from_millis(2);

/// What was done before an error counts: the error comes with the next call.
fn so_far(done: u64, result: Result<u64>) -> Result<u64> {
    match result {
        Ok(more) => Ok(done + more),
        Err(Error::Errno(_)) if done > 0 => Ok(done),
        Err(error) => Err(error),
    }
}

fn piece_len(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}

impl<N: Node> Process<'_, N> {
    /// Closes a file once no number means it any more.
    pub(crate) async fn release(&self, file: Arc<OpenFile>) -> Result<()> {
        match Arc::into_inner(file).map(|file| file.kind) {
            Some(Kind::File(id) | Kind::Folder(id)) => {
                self.ahead.lock().forget(id);
                self.node.files().close(id).await
            }
            _ => Ok(()),
        }
    }

    /// Reads into the program, from `offset` of a file or from where it stands.
    async fn read_into(&self, file: &OpenFile, addr: u64, count: u64, offset: Option<u64>) -> Result<u64> {
        let count = count.min(MAX_COUNT);
        let id = match file.kind {
            Kind::File(id) => id,
            Kind::Folder(_) => return Err(errno::EISDIR.into()),
            Kind::Output(_) => return Err(errno::EBADF.into()),
            Kind::Device(device) => return self.read_device(device, addr, count).await,
            Kind::Stdin if offset.is_some() => return Err(errno::ESPIPE.into()),
            Kind::Stdin => return self.read_stdin(addr, count).await,
        };
        let count = self.memory.reachable(addr, count, true)?;
        let start = offset.unwrap_or_else(|| file.offset.load(Relaxed));
        let mut piece = vec![0; piece_len(count)];
        let mut done = 0;
        while done < count {
            let want = piece_len(count - done);
            let got = self
                .read_on(id, start.saturating_add(done), &mut piece[..want])
                .await?;
            self.memory.write(addr + done, &piece[..got]).await?;
            done += got as u64;
            if offset.is_none() {
                file.offset.store(start + done, Relaxed);
            }
            if got < want {
                break;
            }
        }
        Ok(done)
    }

    async fn read_device(&self, device: Device, addr: u64, count: u64) -> Result<u64> {
        if device == Device::Null || count == 0 {
            return Ok(0);
        }
        let count = self.memory.reachable(addr, count, true)?;
        let mut piece = vec![0; piece_len(count)];
        let mut done = 0;
        while done < count {
            let want = piece_len(count - done);
            if device == Device::Random {
                self.node.platform().random(&mut piece[..want]);
            }
            self.memory.write(addr + done, &piece[..want]).await?;
            done += want as u64;
        }
        Ok(done)
    }

    async fn read_stdin(&self, addr: u64, count: u64) -> Result<u64> {
        if count == 0 {
            return Ok(0);
        }
        let count = self.memory.reachable(addr, count, true)?;
        let mut piece = vec![0; piece_len(count)];
        let got = self.node.platform().read_stdin(&mut piece).await.min(piece.len());
        self.memory.write(addr, &piece[..got]).await?;
        Ok(got as u64)
    }

    /// Writes from the program to an open file.
    async fn write_from(&self, file: &OpenFile, addr: u64, count: u64) -> Result<u64> {
        let count = count.min(MAX_COUNT);
        let stream = match file.kind {
            Kind::Output(stream) => stream,
            Kind::Device(_) => return Ok(count),
            _ => return Err(errno::EBADF.into()),
        };
        let count = self.memory.reachable(addr, count, false)?;
        let mut piece = vec![0; piece_len(count)];
        let mut done = 0;
        while done < count {
            let want = piece_len(count - done);
            self.memory.read(addr + done, &mut piece[..want]).await?;
            self.node.platform().write(stream, &piece[..want]).await;
            done += want as u64;
        }
        Ok(done)
    }

    pub(super) async fn sys_read(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        self.read_into(&*self.table.get(fd)?, addr, count, None).await
    }

    pub(super) async fn sys_write(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        self.write_from(&*self.table.get(fd)?, addr, count).await
    }

    pub(super) async fn sys_pread(&self, [fd, addr, count, offset, ..]: Args) -> Result<u64> {
        let file = self.table.get(fd)?;
        if offset.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        self.read_into(&file, addr, count, Some(offset)).await
    }

    /// The pieces of a readv or writev: addresses and lengths.
    async fn pieces(&self, addr: u64, count: u64) -> Result<Vec<(u64, u64)>> {
        if count > MAX_PIECES {
            return Err(errno::EINVAL.into());
        }
        let mut pieces = Vec::new();
        for index in 0..count {
            let at = addr.checked_add(index * 16).ok_or(errno::EFAULT)?;
            let (base, len) = (
                self.memory.read_u64(at).await?,
                self.memory.read_u64(at.saturating_add(8)).await?,
            );
            if len.cast_signed() < 0 {
                return Err(errno::EINVAL.into());
            }
            pieces.push((base, len));
        }
        Ok(pieces)
    }

    pub(super) async fn sys_readv(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        let file = self.table.get(fd)?;
        let mut done = 0;
        for (base, len) in self.pieces(addr, count).await? {
            let before = done;
            done = so_far(done, self.read_into(&file, base, len, None).await)?;
            if done - before < len {
                break;
            }
        }
        Ok(done)
    }

    pub(super) async fn sys_writev(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        let file = self.table.get(fd)?;
        let mut done = 0;
        for (base, len) in self.pieces(addr, count).await? {
            let before = done;
            done = so_far(done, self.write_from(&file, base, len).await)?;
            if done - before < len {
                break;
            }
        }
        Ok(done)
    }

    pub(super) async fn sys_sendfile(&self, [to, from, offset_at, count, ..]: Args) -> Result<u64> {
        let (to, from) = (self.table.get(to)?, self.table.get(from)?);
        let (Kind::File(id), Kind::Output(stream)) = (from.kind, to.kind) else {
            return Err(errno::EINVAL.into());
        };
        let start = match offset_at {
            0 => from.offset.load(Relaxed),
            at => self.memory.read_u64(at).await?,
        };
        let count = count.min(MAX_COUNT);
        let mut piece = vec![0; piece_len(count)];
        let mut done = 0;
        while done < count {
            let want = piece_len(count - done);
            let got = self
                .read_file(id, start.saturating_add(done), &mut piece[..want])
                .await?;
            self.node.platform().write(stream, &piece[..got]).await;
            done += got as u64;
            if got < want {
                break;
            }
        }
        match offset_at {
            0 => from.offset.store(start + done, Relaxed),
            at => self.memory.write_words(at, &[start + done]).await?,
        }
        Ok(done)
    }

    pub(super) async fn sys_lseek(&self, [fd, offset, whence, ..]: Args) -> Result<u64> {
        let file = self.table.get(fd)?;
        let (Kind::File(id) | Kind::Folder(id)) = file.kind else {
            return Err(errno::ESPIPE.into());
        };
        let base = match whence {
            0 => 0,
            1 => file.offset.load(Relaxed),
            2 => self.node.files().stat_file(id).await?.size,
            _ => return Err(errno::EINVAL.into()),
        };
        let at = base
            .checked_add_signed(offset.cast_signed())
            .filter(|&at| at.cast_signed() >= 0);
        let at = at.ok_or(errno::EINVAL)?;
        file.offset.store(at, Relaxed);
        Ok(at)
    }

    pub(super) async fn sys_close(&mut self, [fd, ..]: Args) -> Result<u64> {
        let file = self.table.remove(fd)?;
        self.release(file).await?;
        Ok(0)
    }

    pub(super) async fn sys_dup(&mut self, number: u32, [old, new, flags, ..]: Args) -> Result<u64> {
        let file = self.table.get(old)?;
        if number == nr::__NR_dup {
            return self.table.add(file, 0, false);
        }
        let to = usize::try_from(new & 0xffff_ffff)
            .ok()
            .filter(|&fd| fd < MAX_FILES)
            .ok_or(errno::EBADF)?;
        let same = old & 0xffff_ffff == to as u64;
        if number == nr::__NR_dup3 && (same || flags & !O_CLOEXEC != 0) {
            return Err(errno::EINVAL.into());
        }
        if !same {
            let close = number == nr::__NR_dup3 && flags & O_CLOEXEC != 0;
            if let Some(replaced) = self.table.put(to, file, close) {
                self.release(replaced).await?;
            }
        }
        Ok(to as u64)
    }

    pub(super) fn sys_fcntl(&mut self, [fd, command, arg, ..]: Args) -> Result<u64> {
        let file = self.table.get(fd)?;
        match u32::try_from(command).map_err(|_| errno::EINVAL)? {
            command @ (F_DUPFD | F_DUPFD_CLOEXEC) => {
                let from = usize::try_from(arg)
                    .ok()
                    .filter(|&fd| fd < MAX_FILES)
                    .ok_or(errno::EINVAL)?;
                self.table.add(file, from, command == F_DUPFD_CLOEXEC)
            }
            F_GETFD => Ok(u64::from(self.table.close_on_exec(fd)?)),
            F_SETFD => self.table.set_close_on_exec(fd, arg & 1 != 0).map(|()| 0),
            F_GETFL => Ok(u64::from(file.flags)),
            F_SETFL => Ok(0),
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) fn sys_ioctl(&self, [fd, ..]: Args) -> Result<u64> {
        // The console's ends are streams, and nothing else is a terminal either.
        self.table.get(fd)?;
        Err(errno::ENOTTY.into())
    }

    pub(super) async fn sys_getdents(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        let file = self.table.get(fd)?;
        let Kind::Folder(id) = file.kind else {
            return Err(errno::ENOTDIR.into());
        };
        let room = usize::try_from(count).unwrap_or(usize::MAX);
        let mut encoded = vec![0; messages::MAX_MESSAGE];
        let got = self
            .node
            .files()
            .getdents(id, file.offset.load(Relaxed), &mut encoded)
            .await?;
        let mut records = Vec::new();
        let mut next = None;
        for entry in Entries(&encoded[..got.min(encoded.len())]).iter() {
            let nonsense = Error::Nonsense {
                peer: Peer::Storage,
                kind: 20,
            };
            let entry = entry.map_err(|_| nonsense)?;
            let record = dirent(&entry);
            if records.len() + record.len() > room {
                if records.is_empty() {
                    return Err(errno::EINVAL.into());
                }
                break;
            }
            records.extend(record);
            next = Some(entry.next);
        }
        self.memory.write(addr, &records).await?;
        if let Some(next) = next {
            file.offset.store(next, Relaxed);
        }
        Ok(records.len() as u64)
    }

    pub(super) async fn sys_poll(&self, [addr, count, timeout, ..]: Args) -> Result<u64> {
        let count = usize::try_from(count)
            .ok()
            .filter(|&n| n <= MAX_FILES)
            .ok_or(errno::EINVAL)?;
        let mut entries = vec![0; count * 8];
        self.memory.read(addr, &mut entries).await?;
        let wait = u64::try_from(
            timeout.to_le_bytes()[..4]
                .try_into()
                .map_or(-1, i32::from_le_bytes),
        )
        .ok();
        let end = wait.map(|ms| self.now() + Duration::from_millis(ms));
        loop {
            let mut ready = 0;
            for entry in entries.chunks_exact_mut(8) {
                let fd = i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
                let asked = u16::from_le_bytes([entry[4], entry[5]]);
                let found = u64::try_from(fd).map_or(0, |fd| self.poll_one(fd, asked));
                entry[6..].copy_from_slice(&found.to_le_bytes());
                ready += u64::from(found != 0);
            }
            if ready > 0 || end.is_some_and(|end| self.now() >= end) {
                self.memory.write(addr, &entries).await?;
                return Ok(ready);
            }
            self.node.platform().sleep_until(self.now() + POLL_STEP).await;
        }
    }

    fn poll_one(&self, fd: u64, asked: u16) -> u16 {
        let Ok(file) = self.table.get(fd) else {
            return POLL_NVAL;
        };
        match file.kind {
            Kind::Stdin if !self.node.platform().stdin_ready() => 0,
            Kind::Stdin => asked & POLL_IN,
            Kind::Output(_) => asked & POLL_OUT,
            _ => asked & (POLL_IN | POLL_OUT),
        }
    }
}

//! Open files: read, write, seek, duplicate, list, poll.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use linux_raw_sys::general as nr;
use linux_raw_sys::general::{
    F_ADD_SEALS, F_DUPFD, F_DUPFD_CLOEXEC, F_GET_SEALS, F_GETFD, F_GETFL, F_GETLK, F_GETPIPE_SZ,
    F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_SETFD, F_SETFL, F_SETLK, F_SETLKW, F_SETPIPE_SZ,
};
use messages::USER_END;
use messages::storage::Entries;

use super::layout::dirent;
use super::socket::interface;
use super::{Args, int};
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, MAX_FILES, O_NONBLOCK, OpenFile};
use crate::load::PIECE;
use crate::platform::{Files, Peer, Platform};
use crate::process::Node;
use crate::storage;
use crate::thread::Thread;

/// The most pieces of one readv or writev (`UIO_MAXIOV`).
const MAX_PIECES: u64 = 1024;
/// The most bytes of one read or write (`MAX_RW_COUNT`).
const MAX_COUNT: u64 = 0x7fff_f000;
const O_CLOEXEC: u64 = 0o2_000_000;

/// Turns an error after some bytes into the count of those bytes: the error comes with the next
/// call.
fn so_far(done: u64, result: Result<u64>) -> Result<u64> {
    match result {
        Ok(more) => Ok(done + more),
        Err(Error::Errno(_)) if done > 0 => Ok(done),
        Err(error) => Err(error),
    }
}

/// Returns EFAULT if a range is not in the half of the addresses that programs have, as Linux does
/// before it looks at what is mapped.
fn user_range(addr: u64, count: u64) -> Result<()> {
    match addr.checked_add(count) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(errno::EFAULT.into()),
    }
}

/// Make what is written durable.
const RWF_DSYNC: u64 = 2;
const RWF_SYNC: u64 = 4;

/// Checks `RWF_*`: hints and durability, but neither appending nor "do not wait".
fn check_flags(flags: u64) -> Result<()> {
    const HIPRI: u64 = 1;
    if flags & !(HIPRI | RWF_DSYNC | RWF_SYNC) == 0 {
        Ok(())
    } else {
        Err(errno::EOPNOTSUPP.into())
    }
}

fn check_offset(offset: u64, flags: u64) -> Result<()> {
    if offset.cast_signed() < 0 {
        return Err(errno::EINVAL.into());
    }
    check_flags(flags)
}

fn piece_len(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}

impl<N: Node> Thread<N> {
    /// Reads into the program, from `offset` of a file or from where it stands.
    async fn read_into(
        &self,
        file: &OpenFile,
        addr: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<u64> {
        let count = count.min(MAX_COUNT);
        let of = match &file.kind {
            Kind::File(_) if file.flags() & 3 == 1 => return Err(errno::EBADF.into()),
            Kind::File(of) => *of,
            Kind::Tmp(tmp) => return self.read_tmp(file, tmp, addr, count, offset).await,
            Kind::Folder(_) | Kind::TmpFolder(_) | Kind::Listing(_) => {
                return Err(errno::EISDIR.into());
            }
            Kind::Text(text) => return self.read_text(file, text, addr, count, offset).await,
            Kind::Link(_) => return Err(errno::EBADF.into()),
            Kind::Device(device) => return self.read_device(*device, addr, count).await,
            Kind::Object(_) if offset.is_some() => return Err(errno::ESPIPE.into()),
            Kind::Object(object) => return self.read_object(file, object, addr, count).await,
        };
        let count = self.memory.reachable(addr, count, true)?;
        let start = offset.unwrap_or_else(|| file.offset.load(Relaxed));
        let mut piece = vec![0; piece_len(count)];
        let mut done = 0;
        while done < count {
            let want = piece_len(count - done);
            let at = start.saturating_add(done);
            let got = self.read_on(file, of, at, &mut piece[..want]).await?;
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

    /// Writes from the program to an open file, at `offset` or where it stands.
    async fn write_from(
        &self,
        file: &OpenFile,
        addr: u64,
        count: u64,
        offset: Option<u64>,
    ) -> Result<u64> {
        let count = count.min(MAX_COUNT);
        if file.flags() & 3 == 0 {
            return Err(errno::EBADF.into());
        }
        match &file.kind {
            Kind::Device(Device::Full) if count > 0 => Err(errno::ENOSPC.into()),
            Kind::Device(_) => Ok(count),
            Kind::Text(text) => self.write_text(text, addr, count).await,
            Kind::Tmp(tmp) => self.write_tmp(file, tmp, addr, count, offset).await,
            Kind::File(of) => self.write_storage(file, *of, addr, count, offset).await,
            _ if offset.is_some() => Err(errno::ESPIPE.into()),
            Kind::Object(object) => self.write_object(file, object, addr, count).await,
            _ => Err(errno::EBADF.into()),
        }
    }

    pub(super) async fn sys_read(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        user_range(addr, count)?;
        self.read_into(&*self.file(fd)?, addr, count, None).await
    }

    pub(super) async fn sys_write(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        user_range(addr, count)?;
        self.write_from(&*self.file(fd)?, addr, count, None).await
    }

    pub(super) async fn sys_pread(&self, [fd, addr, count, offset, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        if offset.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        self.read_into(&file, addr, count, Some(offset)).await
    }

    pub(super) async fn sys_pwrite(&self, [fd, addr, count, offset, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        if offset.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        self.write_from(&file, addr, count, Some(offset)).await
    }

    /// The pieces of a readv or writev: addresses and lengths.
    pub(super) async fn pieces(&self, addr: u64, count: u64) -> Result<Vec<(u64, u64)>> {
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
        let file = self.file(fd)?;
        if let Ok(socket) = crate::socket::of(&file) {
            return self
                .receive_plain(&file, socket, &self.pieces(addr, count).await?)
                .await;
        }
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
        let file = self.file(fd)?;
        if let Ok(socket) = crate::socket::of(&file) {
            return self
                .send_plain(&file, socket, &self.pieces(addr, count).await?)
                .await;
        }
        let mut done = 0;
        for (base, len) in self.pieces(addr, count).await? {
            let before = done;
            done = so_far(done, self.write_from(&file, base, len, None).await)?;
            if done - before < len {
                break;
            }
        }
        Ok(done)
    }

    /// Reads pieces at an offset; -1 is where the file stands, in the newer call.
    pub(super) async fn sys_preadv(
        &self,
        number: u32,
        [fd, addr, count, offset, _, flags]: Args,
    ) -> Result<u64> {
        let newer = number == nr::__NR_preadv2;
        if newer && offset == u64::MAX {
            check_flags(flags)?;
            return self.sys_readv([fd, addr, count, 0, 0, 0]).await;
        }
        check_offset(offset, if newer { flags } else { 0 })?;
        let file = self.file(fd)?;
        let mut done = 0;
        for (base, len) in self.pieces(addr, count).await? {
            let before = done;
            done = so_far(
                done,
                self.read_into(&file, base, len, Some(offset + done)).await,
            )?;
            if done - before < len {
                break;
            }
        }
        Ok(done)
    }

    /// Writes pieces at an offset; -1 is where the file stands, in the newer call.
    pub(super) async fn sys_pwritev(
        &self,
        number: u32,
        [fd, addr, count, offset, _, flags]: Args,
    ) -> Result<u64> {
        let newer = number == nr::__NR_pwritev2;
        let flags = if newer { flags } else { 0 };
        let done = if newer && offset == u64::MAX {
            check_flags(flags)?;
            self.sys_writev([fd, addr, count, 0, 0, 0]).await?
        } else {
            check_offset(offset, flags)?;
            self.write_pieces(fd, addr, count, offset).await?
        };
        if flags & (RWF_DSYNC | RWF_SYNC) != 0 {
            self.sync_written(fd).await?;
        }
        Ok(done)
    }

    async fn write_pieces(&self, fd: u64, addr: u64, count: u64, offset: u64) -> Result<u64> {
        let file = self.file(fd)?;
        let mut done = 0;
        for (base, len) in self.pieces(addr, count).await? {
            let before = done;
            done = so_far(
                done,
                self.write_from(&file, base, len, Some(offset + done)).await,
            )?;
            if done - before < len {
                break;
            }
        }
        Ok(done)
    }

    /// Takes advice on the use of a file; S and pcache read ahead by themselves.
    pub(super) fn sys_fadvise(&self, [fd, _, _, advice, ..]: Args) -> Result<u64> {
        /// `POSIX_FADV_NOREUSE`, the last one.
        const LAST: u64 = 5;
        match &self.file(fd)?.kind {
            Kind::Object(_) => Err(errno::ESPIPE.into()),
            _ if advice > LAST => Err(errno::EINVAL.into()),
            _ => Ok(0),
        }
    }

    /// Accepts a wish to read a file ahead.
    pub(super) fn sys_readahead(&self, [fd, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        match &file.kind {
            _ if file.flags() & 3 == 1 => Err(errno::EBADF.into()),
            Kind::File(_) | Kind::Tmp(_) => Ok(0),
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) async fn sys_lseek(&self, [fd, offset, whence, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        if matches!(file.kind, Kind::Device(_)) {
            return Ok(0);
        }
        if !matches!(
            file.kind,
            Kind::File(_)
                | Kind::Folder(_)
                | Kind::Tmp(_)
                | Kind::TmpFolder(_)
                | Kind::Text(_)
                | Kind::Listing(_)
        ) {
            return Err(errno::ESPIPE.into());
        }
        if matches!(whence, 3 | 4) && !file.is_folder() {
            return self.seek_data(&file, offset, whence == 4).await;
        }
        let base = match whence {
            0 => 0,
            1 => file.offset.load(Relaxed),
            2 => self.status_of(&file).await?.size,
            _ => return Err(errno::EINVAL.into()),
        };
        let at = base
            .checked_add_signed(offset.cast_signed())
            .filter(|&at| at.cast_signed() >= 0);
        let at = at.ok_or(errno::EINVAL)?;
        file.offset.store(at, Relaxed);
        Ok(at)
    }

    /// Seeks data, or a hole: a file is taken for one piece of data, with a hole behind its end.
    async fn seek_data(&self, file: &OpenFile, offset: u64, hole: bool) -> Result<u64> {
        let size = self.status_of(file).await?.size;
        if offset >= size {
            return Err(errno::ENXIO.into());
        }
        let at = if hole { size } else { offset };
        file.offset.store(at, Relaxed);
        Ok(at)
    }

    pub(super) async fn sys_close(&self, [fd, ..]: Args) -> Result<u64> {
        let file = self.table().remove(fd)?;
        let written = matches!(file.kind, Kind::File(_)).then(|| file.clone());
        self.closed(file).await?;
        match written {
            Some(file) => storage::tell_failure(self.node, &file).map(|()| 0),
            None => Ok(0),
        }
    }

    pub(super) async fn sys_dup(&self, number: u32, [old, new, flags, ..]: Args) -> Result<u64> {
        let file = self.place(old)?;
        if number == nr::__NR_dup {
            return self.table().add(file, 0, false);
        }
        let to = usize::try_from(new & 0xffff_ffff)
            .ok()
            .filter(|&fd| fd < self.table().limit())
            .ok_or(errno::EBADF)?;
        let same = old & 0xffff_ffff == to as u64;
        if number == nr::__NR_dup3 && (same || flags & !O_CLOEXEC != 0) {
            return Err(errno::EINVAL.into());
        }
        if !same {
            let close = number == nr::__NR_dup3 && flags & O_CLOEXEC != 0;
            let replaced = self.table().put(to, file, close);
            if let Some(replaced) = replaced {
                self.closed(replaced).await?;
            }
        }
        Ok(to as u64)
    }

    pub(super) async fn sys_fcntl(&self, [fd, command, arg, ..]: Args) -> Result<u64> {
        let file = self.place(fd)?;
        match u32::try_from(command).map_err(|_| errno::EINVAL)? {
            command @ (F_DUPFD | F_DUPFD_CLOEXEC) => {
                let from = usize::try_from(arg)
                    .ok()
                    .filter(|&fd| fd < self.table().limit())
                    .ok_or(errno::EINVAL)?;
                self.table().add(file, from, command == F_DUPFD_CLOEXEC)
            }
            F_GETFD => Ok(u64::from(self.table().close_on_exec(fd)?)),
            F_SETFD => self.table().set_close_on_exec(fd, arg & 1 != 0).map(|()| 0),
            F_GETFL => Ok(u64::from(file.flags())),
            F_SETFL => {
                file.set_flags(int(arg));
                Ok(0)
            }
            F_GETPIPE_SZ => self.pipe_size(&file, None),
            F_SETPIPE_SZ => self.pipe_size(&file, Some(arg)),
            command @ (F_GETLK | F_SETLK | F_SETLKW | F_OFD_GETLK | F_OFD_SETLK | F_OFD_SETLKW) => {
                self.sys_lock(&file, command, arg).await
            }
            F_GET_SEALS => self.sys_get_seals(&file),
            F_ADD_SEALS => self.sys_add_seals(&file, arg).await,
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) async fn sys_close_range(&self, [first, last, flags, ..]: Args) -> Result<u64> {
        const UNSHARE: u64 = 2;
        const CLOEXEC: u64 = 4;
        if int(first) > int(last) || flags & !(UNSHARE | CLOEXEC) != 0 {
            return Err(errno::EINVAL.into());
        }
        let number = |fd: u64| usize::try_from(int(fd)).map_or(MAX_FILES, |fd| fd.min(MAX_FILES));
        let (first, last) = (number(first), number(last));
        if flags & CLOEXEC != 0 {
            self.table().close_range_on_exec(first, last);
        } else {
            let closed = self.table().remove_range(first, last);
            for file in closed {
                self.closed(file).await?;
            }
        }
        Ok(0)
    }

    pub(super) async fn sys_ioctl(&self, [fd, request, arg, ..]: Args) -> Result<u64> {
        const FIONREAD: u64 = 0x541b;
        const SIOCOUTQ: u64 = 0x5411;
        const FIONBIO: u64 = 0x5421;
        const FIOCLEX: u64 = 0x5451;
        const FIONCLEX: u64 = 0x5450;
        let file = self.file(fd)?;
        match (request & 0xffff_ffff, &file.kind) {
            (FIOCLEX, _) => self.table().set_close_on_exec(fd, true).map(|()| 0),
            (FIONCLEX, _) => self.table().set_close_on_exec(fd, false).map(|()| 0),
            (FIONBIO, _) => {
                let mut on = [0; 4];
                self.memory.read(arg, &mut on).await?;
                let flags = file.flags() & !O_NONBLOCK;
                file.set_flags(flags | if on == [0; 4] { 0 } else { O_NONBLOCK });
                Ok(0)
            }
            (_, Kind::Object(object)) if object.as_terminal().is_some() => {
                let (terminal, side) = object.as_terminal().ok_or(errno::ENOTTY)?;
                self.terminal_ioctl(terminal, side, [fd, request, arg, 0, 0, 0])
                    .await
            }
            (FIONREAD, Kind::Object(object)) => {
                let count = u32::try_from(object.readable()).unwrap_or(u32::MAX);
                self.memory.write(arg, &count.to_le_bytes()).await?;
                Ok(0)
            }
            (SIOCOUTQ, Kind::Object(object)) if object.as_socket().is_some() => {
                let waiting = object.as_socket().map_or(0, |socket| socket.unreceived());
                let count = u32::try_from(waiting).unwrap_or(u32::MAX);
                self.memory.write(arg, &count.to_le_bytes()).await?;
                Ok(0)
            }
            (request @ interface::FIRST..=interface::LAST, Kind::Object(object)) => {
                let socket = object.as_socket().ok_or(errno::ENOTTY)?;
                self.interface(socket, request, arg).await
            }
            _ => Err(errno::ENOTTY.into()),
        }
    }

    pub(super) async fn sys_getdents(&self, [fd, addr, count, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let id = match &file.kind {
            Kind::Folder(of) => of.id,
            Kind::TmpFolder(inode) => return self.list_tmp(&file, *inode, addr, count).await,
            Kind::Listing(listing) => {
                return self.list_pseudo(&file, &listing.names, addr, count).await;
            }
            _ => return Err(errno::ENOTDIR.into()),
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
}

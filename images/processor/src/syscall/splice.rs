//! From file to file without the program's memory: sendfile, splice, tee, vmsplice,
//! copy_file_range.

use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering::Relaxed;

use super::{Args, int};
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::inotify::{ACCESS, MODIFY};
use crate::object::{Object, until};
use crate::pipe::PipeEnd;
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;

/// Bytes that are moved at once.
const PIECE: usize = 32 << 10;
/// The most bytes of one call (`MAX_RW_COUNT`).
const MAX_COUNT: u64 = 0x7fff_f000;
const O_APPEND: u32 = 0o2_000;
const NONBLOCK: u32 = 2;
/// `SPLICE_F_MOVE` to `SPLICE_F_GIFT`.
const KNOWN: u32 = 0xf;

fn piece(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}

fn pipe_end(file: &OpenFile) -> Option<&PipeEnd> {
    match &file.kind {
        Kind::Object(object) => object.as_pipe(),
        _ => None,
    }
}

/// Returns whether a file has positions.
fn seeks(file: &OpenFile) -> bool {
    matches!(
        file.kind,
        Kind::File(_) | Kind::Tmp(_) | Kind::Device(_) | Kind::Text(_)
    )
}

/// A file and where in it: at its own position, or at one that the program keeps.
struct Place {
    file: Arc<OpenFile>,
    /// The address of the program's position; 0 for the file's own.
    kept_at: u64,
    at: u64,
}

impl<N: Node> Thread<N> {
    async fn position(&self, file: Arc<OpenFile>, kept_at: u64) -> Result<Place> {
        let at = match kept_at {
            0 => file.offset.load(Relaxed),
            _ if !seeks(&file) => return Err(errno::ESPIPE.into()),
            kept_at => self.memory.read_u64(kept_at).await?,
        };
        if at.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        Ok(Place { file, kept_at, at })
    }

    /// Keeps where a place has come to.
    async fn keep(&self, place: &Place) -> Result<()> {
        match place.kept_at {
            0 => place.file.offset.store(place.at, Relaxed),
            kept_at => self.memory.write_words(kept_at, &[place.at]).await?,
        }
        Ok(())
    }

    /// Tries an object until it has something, unless the call is not to wait.
    async fn with_object<T>(
        &self,
        object: &Arc<dyn Object>,
        waits: bool,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let tried = || match attempt() {
            Err(Error::Errno(errno::EAGAIN)) if waits => None,
            tried => Some(tried),
        };
        self.unless_called(until(&**object, tried)).await?
    }

    /// Reads from a place into the kernel.
    async fn read_place(&self, place: &mut Place, into: &mut [u8], waits: bool) -> Result<usize> {
        let file = &place.file;
        let got = match &file.kind {
            Kind::File(id) => self.read_on(file, *id, place.at, into).await?,
            Kind::Tmp(tmp) => self.node.kernel().tmpfs().read(tmp, place.at, into).await?,
            Kind::Text(text) => {
                let from = usize::try_from(place.at)
                    .map_or(text.bytes.len(), |at| at.min(text.bytes.len()));
                let rest = &text.bytes[from..];
                let len = rest.len().min(into.len());
                into[..len].copy_from_slice(&rest[..len]);
                len
            }
            Kind::Device(Device::Null) => 0,
            Kind::Device(device) => {
                into.fill(0);
                if *device == Device::Random {
                    self.node.platform().random(into);
                }
                into.len()
            }
            Kind::Object(object) => {
                let waits = waits && !file.nonblocking();
                match object.as_pipe() {
                    // What was sent is taken away then.
                    Some(end) => {
                        let peek = || end.peek(into.len());
                        let bytes = self.with_object(object, waits, peek).await?;
                        into[..bytes.len()].copy_from_slice(&bytes);
                        bytes.len()
                    }
                    None => {
                        self.with_object(object, waits, || object.read(into))
                            .await?
                    }
                }
            }
            _ => return Err(errno::EINVAL.into()),
        };
        if got > 0 {
            self.tell(file, ACCESS);
        }
        place.at += got as u64;
        Ok(got)
    }

    /// Writes from the kernel to a place, all of it if the call waits.
    async fn write_place(&self, place: &mut Place, from: &[u8], waits: bool) -> Result<usize> {
        let file = &place.file;
        match &file.kind {
            Kind::Tmp(tmp) => {
                let at = (file.flags() & O_APPEND == 0).then_some(place.at);
                let end = at.unwrap_or_else(|| tmp.size());
                self.check_size(end.saturating_add(from.len() as u64))?;
                place.at = self.node.kernel().tmpfs().write(tmp, at, from).await?;
                self.tell(file, MODIFY);
                return Ok(from.len());
            }
            Kind::Device(_) => {}
            Kind::Object(object) => {
                let waits = waits && !file.nonblocking();
                let mut done = 0;
                while done < from.len() {
                    let attempt = || object.write(&from[done..]);
                    match self.with_object(object, waits, attempt).await {
                        Ok(count) => done += count,
                        Err(Error::Errno(_)) if done > 0 => break,
                        Err(Error::Errno(errno::EPIPE)) => return Err(self.broken_pipe()),
                        Err(error) => return Err(error),
                    }
                }
                return Ok(done);
            }
            Kind::File(of) => {
                let at = (file.flags() & O_APPEND == 0).then_some(place.at);
                let (end, len) = self.write_storage_from(*of, at, from).await?;
                place.at = end;
                return Ok(len);
            }
            _ => return Err(errno::EINVAL.into()),
        }
        Ok(from.len())
    }

    /// Moves up to `count` bytes; `once` ends after the first that came.
    async fn move_bytes(
        &self,
        from: &mut Place,
        to: &mut Place,
        count: u64,
        waits: bool,
        once: bool,
    ) -> Result<u64> {
        let mut bytes = vec![0; piece(count)];
        let mut done = 0;
        while done < count {
            let mut want = piece(count - done);
            if let (Kind::Object(object), Some(end)) = (&to.file.kind, pipe_end(&to.file)) {
                // Nothing is taken that would find no room.
                let waits = waits && done == 0 && !to.file.nonblocking();
                let room = self.with_object(object, waits, || match end.room() {
                    0 if end.ready() & crate::object::POLL_ERR == 0 => Err(errno::EAGAIN.into()),
                    room => Ok(room),
                });
                match room.await {
                    Err(Error::Errno(_)) if done > 0 => break,
                    room => want = want.min(room?.max(1)),
                }
            }
            let got = match self
                .read_place(from, &mut bytes[..want], waits && done == 0)
                .await
            {
                Err(Error::Errno(_)) if done > 0 => break,
                got => got?,
            };
            if got == 0 {
                break;
            }
            let mut sent = match self.write_place(to, &bytes[..got], waits).await {
                Err(Error::Errno(_)) if done > 0 => 0,
                sent => sent?,
            };
            if let (Some(end), None, false) =
                (pipe_end(&to.file), pipe_end(&from.file), seeks(&from.file))
            {
                // Another writer took the room, and this can't be put back.
                end.force(&bytes[sent..got]);
                sent = got;
            }
            if let Some(end) = pipe_end(&from.file) {
                end.consume(sent);
            }
            done += sent as u64;
            from.at = from.at.saturating_sub((got - sent) as u64);
            if sent < got {
                break;
            }
            if once {
                break;
            }
        }
        Ok(done)
    }

    pub(super) async fn sys_sendfile(&self, [to, from, offset_at, count, ..]: Args) -> Result<u64> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        if from.flags() & 3 == 1 || to.flags() & 3 == 0 {
            return Err(errno::EBADF.into());
        }
        if !matches!(from.kind, Kind::File(_) | Kind::Tmp(_) | Kind::Text(_))
            || to.flags() & O_APPEND != 0
        {
            return Err(errno::EINVAL.into());
        }
        let mut from = self.position(from, offset_at).await?;
        let mut to = self.position(to, 0).await?;
        let count = count.min(MAX_COUNT);
        let done = self
            .move_bytes(&mut from, &mut to, count, true, false)
            .await?;
        self.keep(&from).await?;
        self.keep(&to).await?;
        Ok(done)
    }

    pub(super) async fn sys_splice(
        &self,
        [from, from_at, to, to_at, count, flags]: Args,
    ) -> Result<u64> {
        if int(flags) & !KNOWN != 0 {
            return Err(errno::EINVAL.into());
        }
        if count == 0 {
            return Ok(0);
        }
        let (from, to) = (self.file(from)?, self.file(to)?);
        if from.flags() & 3 == 1 || to.flags() & 3 == 0 {
            return Err(errno::EBADF.into());
        }
        let refused = match (pipe_end(&from), pipe_end(&to)) {
            (Some(one), Some(other)) => one.same_pipe(other),
            (None, None) => true,
            _ => to.flags() & O_APPEND != 0,
        };
        if refused {
            return Err(errno::EINVAL.into());
        }
        let mut from = self.position(from, from_at).await?;
        let mut to = self.position(to, to_at).await?;
        let waits = int(flags) & NONBLOCK == 0;
        let count = count.min(MAX_COUNT);
        let done = self
            .move_bytes(&mut from, &mut to, count, waits, true)
            .await?;
        self.keep(&from).await?;
        self.keep(&to).await?;
        Ok(done)
    }

    pub(super) async fn sys_tee(&self, [from, to, count, flags, ..]: Args) -> Result<u64> {
        if int(flags) & !KNOWN != 0 {
            return Err(errno::EINVAL.into());
        }
        let (from, to) = (self.file(from)?, self.file(to)?);
        let (Kind::Object(source), Kind::Object(sink)) = (&from.kind, &to.kind) else {
            return Err(errno::EINVAL.into());
        };
        let (Some(reader), Some(writer)) = (source.as_pipe(), sink.as_pipe()) else {
            return Err(errno::EINVAL.into());
        };
        if reader.same_pipe(writer) {
            return Err(errno::EINVAL.into());
        }
        let waits = int(flags) & NONBLOCK == 0;
        let peek = || reader.peek(piece(count));
        let bytes = self
            .with_object(source, waits && !from.nonblocking(), peek)
            .await?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let write = || writer.write(&bytes[..bytes.len().min(writer.room().max(1))]);
        match self
            .with_object(sink, waits && !to.nonblocking(), write)
            .await
        {
            Err(Error::Errno(errno::EPIPE)) => Err(self.broken_pipe()),
            written => written.map(|count| count as u64),
        }
    }

    pub(super) async fn sys_vmsplice(&self, [fd, addr, count, flags, ..]: Args) -> Result<u64> {
        if int(flags) & !KNOWN != 0 {
            return Err(errno::EINVAL.into());
        }
        let file = self.file(fd)?;
        if pipe_end(&file).is_none() {
            return Err(errno::EBADF.into());
        }
        if file.flags() & 3 == 0 {
            self.sys_readv([fd, addr, count, 0, 0, 0]).await
        } else {
            self.sys_writev([fd, addr, count, 0, 0, 0]).await
        }
    }

    pub(super) async fn sys_copy_file_range(
        &self,
        [from, from_at, to, to_at, count, flags]: Args,
    ) -> Result<u64> {
        if int(flags) != 0 {
            return Err(errno::EINVAL.into());
        }
        let (from, to) = (self.file(from)?, self.file(to)?);
        if [&from, &to]
            .iter()
            .any(|file| matches!(file.kind, Kind::Folder(_) | Kind::TmpFolder(_)))
        {
            return Err(errno::EISDIR.into());
        }
        let regular = |file: &OpenFile| matches!(file.kind, Kind::File(_) | Kind::Tmp(_));
        if !regular(&from) || !regular(&to) {
            return Err(errno::EINVAL.into());
        }
        if from.flags() & 3 == 1 || to.flags() & 3 == 0 || to.flags() & O_APPEND != 0 {
            return Err(errno::EBADF.into());
        }
        let mut from = self.position(from, from_at).await?;
        let mut to = self.position(to, to_at).await?;
        let count = count.min(MAX_COUNT);
        let one = match (&from.file.kind, &to.file.kind) {
            (Kind::Tmp(one), Kind::Tmp(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        if one && from.at < to.at.saturating_add(count) && to.at < from.at.saturating_add(count) {
            return Err(errno::EINVAL.into());
        }
        let done = self
            .move_bytes(&mut from, &mut to, count, true, false)
            .await?;
        self.keep(&from).await?;
        self.keep(&to).await?;
        Ok(done)
    }
}

//! The open files of each peer, and the answers to its requests.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use messages::storage::{
    Close, Entries, Entry, FileId, Getdents, GetdentsRequest, Open, OpenFlags, OpenRequest, Opened, Path,
    Read, ReadRequest, Readlink, Stat, StatFile, StatPath, StatRequest, StorageRequest,
};
use messages::{Call, Errno, Kind, Wire, Writer, encode_reply};
use spin::Mutex;

use crate::{BlockDevice, Error, Ext4, Inode};

/// The most files a peer may have open.
pub const MAX_OPEN: usize = 4096;

/// Bytes read from the disk in one go.
const PIECE: usize = 64 << 10;

/// The most encoded entries in one reply, in bytes: a message without its errno.
const MAX_ENTRIES: usize = messages::MAX_MESSAGE - 4;

/// Who asks: FIT's number of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u16);

/// The caller's buffer for what is read.
pub trait Bulk: Send {
    /// Bytes it takes.
    fn limit(&self) -> usize;
    /// Puts bytes into it at `offset`.
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

/// What S counts, by LegoOS's names where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Files opened.
    pub handle_open: u64,
    /// Reads.
    pub handle_read: u64,
    /// Bytes read.
    pub nr_bytes_read: u64,
    /// Status requests, by path or file.
    pub handle_stat: u64,
    /// Folder lists.
    pub handle_getdents: u64,
    /// Requests that were none.
    pub nr_bad_requests: u64,
    /// Requests that the disk or the file system could not meet.
    pub nr_io_errors: u64,
}

#[derive(Default)]
struct State {
    open: BTreeMap<(PeerKey, FileId), Inode>,
    next: u64,
    counters: Counters,
}

/// S's logic over a mounted file system.
pub struct Server<B> {
    files: Ext4<B>,
    state: Mutex<State>,
}

impl<B: BlockDevice> Server<B> {
    /// Serves `files`.
    pub fn new(files: Ext4<B>) -> Self {
        Self {
            files,
            state: Mutex::new(State::default()),
        }
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state.lock().counters
    }

    /// Closes everything that a lost peer had open.
    pub fn peer_lost(&self, peer: PeerKey) {
        self.state.lock().open.retain(|(owner, _), _| *owner != peer);
    }

    /// Open files of all peers.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.state.lock().open.len()
    }

    /// Answers one request; returns the length of the reply, which needs [`messages::MAX_MESSAGE`] bytes at most.
    pub async fn handle(
        &self,
        from: PeerKey,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
        bulk: &mut dyn Bulk,
    ) -> usize {
        let request = match StorageRequest::decode(Kind(kind), request) {
            Ok(request) => request,
            Err(error) => {
                log::warn!("peer {}: call {kind}: {error}", from.0);
                self.state.lock().counters.nr_bad_requests += 1;
                return put::<Close>(&Err(Errno::EPROTO), reply);
            }
        };
        match request {
            StorageRequest::Open(open) => put::<Open>(&self.told(self.open(from, &open).await), reply),
            StorageRequest::Read(read) => put::<Read>(&self.told(self.read(from, &read, bulk).await), reply),
            StorageRequest::StatPath(stat) => put::<StatPath>(&self.told(self.stat(&stat).await), reply),
            StorageRequest::StatFile(file) => {
                self.state.lock().counters.handle_stat += 1;
                put::<StatFile>(
                    &self.file(from, file.file).map(|inode| self.files.stat(&inode)),
                    reply,
                )
            }
            StorageRequest::Getdents(ask) => {
                let mut entries = vec![0; MAX_ENTRIES];
                let listed = self.told(self.getdents(from, &ask, &mut entries).await);
                put::<Getdents>(&listed.map(|len| Entries(&entries[..len])), reply)
            }
            StorageRequest::Readlink(path) => match self.told(self.readlink(path).await) {
                Ok(target) => put::<Readlink>(&Path::new(&target).map_err(|_| Errno::EIO), reply),
                Err(errno) => put::<Readlink>(&Err(errno), reply),
            },
            StorageRequest::Close(file) => {
                let closed = self.state.lock().open.remove(&(from, file.file));
                put::<Close>(&closed.map(|_| ()).ok_or(Errno::EBADF), reply)
            }
        }
    }

    /// What the peer is told; S's own troubles are logged.
    fn told<T>(&self, result: Result<T, Error>) -> Result<T, Errno> {
        result.map_err(|error| {
            if !matches!(error, Error::Errno(_)) {
                log::error!("{error}");
                self.state.lock().counters.nr_io_errors += 1;
            }
            error.errno()
        })
    }

    fn file(&self, from: PeerKey, file: FileId) -> Result<Inode, Errno> {
        self.state
            .lock()
            .open
            .get(&(from, file))
            .copied()
            .ok_or(Errno::EBADF)
    }

    async fn open(&self, from: PeerKey, request: &OpenRequest<'_>) -> Result<Opened, Error> {
        self.state.lock().counters.handle_open += 1;
        let follow = !request.flags.contains(OpenFlags::NOFOLLOW);
        let inode = self.files.resolve(request.path.as_bytes(), follow).await?;
        if request.flags.contains(OpenFlags::DIRECTORY) && !inode.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        if inode.is_symlink() {
            return Err(Errno::ELOOP.into());
        }
        if request.flags.contains(OpenFlags::WRITE) {
            return Err(if inode.is_dir() {
                Errno::EISDIR
            } else {
                Errno::EROFS
            }
            .into());
        }
        let stat = self.files.stat(&inode);
        let mut state = self.state.lock();
        let theirs = state
            .open
            .range((from, FileId(0))..=(from, FileId(u64::MAX)))
            .count();
        if theirs >= MAX_OPEN {
            return Err(Errno::EMFILE.into());
        }
        state.next += 1;
        let file = FileId(state.next);
        state.open.insert((from, file), inode);
        Ok(Opened { file, stat })
    }

    async fn read(&self, from: PeerKey, request: &ReadRequest, bulk: &mut dyn Bulk) -> Result<u32, Error> {
        let inode = self.file(from, request.file)?;
        if inode.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        if !inode.is_file() {
            return Err(Errno::EINVAL.into());
        }
        let len = bulk
            .limit()
            .min(usize::try_from(request.len).unwrap_or(usize::MAX));
        let mut piece = vec![0; len.min(PIECE)];
        let mut done = 0;
        while done < len {
            let Some(at) = request.offset.checked_add(done as u64) else {
                break;
            };
            let want = piece.len().min(len - done);
            let got = self.files.read(&inode, at, &mut piece[..want]).await?;
            bulk.write(done, &piece[..got]);
            done += got;
            if got < want {
                break;
            }
        }
        let counters = &mut self.state.lock().counters;
        counters.handle_read += 1;
        counters.nr_bytes_read += done as u64;
        Ok(u32::try_from(done).expect("at most what was asked for"))
    }

    async fn stat(&self, request: &StatRequest<'_>) -> Result<Stat, Error> {
        self.state.lock().counters.handle_stat += 1;
        let inode = self
            .files
            .resolve(request.path.as_bytes(), request.follow)
            .await?;
        Ok(self.files.stat(&inode))
    }

    async fn readlink(&self, path: Path<'_>) -> Result<Vec<u8>, Error> {
        let inode = self.files.resolve(path.as_bytes(), false).await?;
        self.files.link_target(&inode).await
    }

    /// Encodes as many entries as fit; none at the folder's end. EINVAL when not even one fits.
    async fn getdents(&self, from: PeerKey, ask: &GetdentsRequest, into: &mut [u8]) -> Result<usize, Error> {
        self.state.lock().counters.handle_getdents += 1;
        let folder = self.file(from, ask.file)?;
        if !folder.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        let max = into.len().min(usize::try_from(ask.max).unwrap_or(usize::MAX));
        let mut writer = Writer::new(&mut into[..max]);
        let mut position = ask.position;
        while let Some((entries, next)) = self.files.entries(&folder, position).await? {
            for entry in &entries {
                let wire = Entry {
                    inode: entry.inode.into(),
                    next: entry.next,
                    kind: entry.kind,
                    name: &entry.name,
                };
                if wire.put(&mut writer).is_err() {
                    return if writer.is_empty() {
                        Err(Errno::EINVAL.into())
                    } else {
                        Ok(writer.len())
                    };
                }
            }
            position = next;
        }
        Ok(writer.len())
    }
}

fn put<C: Call>(reply: &Result<C::Reply<'_>, Errno>, into: &mut [u8]) -> usize {
    encode_reply::<C>(reply, into).unwrap_or_else(|error| {
        log::error!("{}: {error}", C::NAME);
        0
    })
}

//! The open files of each peer, and the answers to its requests.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use ext4::{Disk, Ext4, Time};
use messages::storage::{
    Allocate, Caller, Close, Entries, Entry, FileId, Flush, Fsync, GetXattr, Getdents,
    GetdentsRequest, Lease, Link, LinkFile, ListXattr, Make, Open, OpenFlags, OpenRequest, Opened,
    Path, PathRequest, Privileges, Read, ReadRequest, Readlink, Remove, RemoveXattr, Rename, Rest,
    SetFile, SetPath, SetXattr, StatFile, StatFs, StatPath, StatRequest, StorageRequest, Symlink,
    Sync, Truncate, Write, WriteLease,
};
use messages::{Call, Errno, Kind, Wire, Writer, encode_reply};
use spin::Mutex;

use crate::Error;
use crate::convert::{self, DIRECTORY, REGULAR, is};
use crate::held::{Held, Holds};
use crate::lease::{Granted, Holders, Leases};
use crate::rights::{self, EXECUTE, READ, WRITE};
use crate::walk::{Node, Walker};

/// The most files a peer may have open.
pub const MAX_OPEN: usize = 4096;

/// Bytes of a file that are read or written in one go.
pub(crate) const PIECE: usize = 64 << 10;

/// The most encoded entries in one reply, in bytes: a message without its errno.
const MAX_ENTRIES: usize = messages::MAX_MESSAGE - 4;

/// Attempts to open a file that others make and remove meanwhile.
const ATTEMPTS: usize = 16;

/// The peer that asks, by FIT's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u16);

/// The bulk of a call: what came with the request, and the caller's buffer for what is read.
pub trait Bulk: Send {
    /// Returns the bytes that came with the request.
    fn len(&self) -> usize;
    /// Returns whether none came.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies what came from `offset` on; returns how many bytes there were. None once the peer is
    /// lost.
    fn read(&mut self, offset: usize, into: &mut [u8]) -> usize;
    /// Returns the bytes that the caller's buffer takes.
    fn limit(&self) -> usize;
    /// Puts bytes into the caller's buffer at `offset`.
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

/// Counters of S, by LegoOS's names where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Files opened.
    pub handle_open: u64,
    /// Reads.
    pub handle_read: u64,
    /// Bytes read.
    pub nr_bytes_read: u64,
    /// Writes.
    pub handle_write: u64,
    /// Bytes written.
    pub nr_bytes_written: u64,
    /// Runs of gathered writes.
    pub handle_flush: u64,
    /// Requests to make something durable.
    pub handle_fsync: u64,
    /// Status requests, by path or file.
    pub handle_stat: u64,
    /// Directory lists.
    pub handle_getdents: u64,
    /// Requests that were none.
    pub nr_bad_requests: u64,
    /// Requests that the disk or the file system could not meet.
    pub nr_io_errors: u64,
}

/// A file that a peer has open.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) held: Held,
    /// `OpenFlags::WRITE` was given.
    pub(crate) writable: bool,
    /// `OpenFlags::READ` or `OpenFlags::EXECUTE` was given.
    pub(crate) readable: bool,
    /// Set-user-id and set-group-id survive writes.
    pub(crate) keeps_set_ids: bool,
    /// Type of the file, as `st_mode`.
    pub(crate) kind: u16,
    /// A failure of writes that came by a recall, which the peer was not told of.
    pub(crate) failed: Mutex<Option<Errno>>,
    /// The last lease under which writes came by a recall and were carried out, or failed as
    /// `failed` tells.
    pub(crate) brought: Mutex<u64>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<(PeerKey, FileId), Arc<OpenFile>>,
    next: u64,
    counters: Counters,
}

/// S's logic over a mounted file system.
pub struct Server<D: Disk> {
    pub(crate) files: Ext4<D>,
    clock: Box<dyn Fn() -> Time + Send + core::marker::Sync>,
    holds: Holds,
    /// `None` if no peer gets a lease.
    pub(crate) leases: Option<Leases>,
    state: Mutex<State>,
}

impl<D: Disk> Server<D> {
    /// Serves `files` without granting leases; `clock` gives the time since 1970.
    pub fn new(
        files: Ext4<D>,
        clock: impl Fn() -> Time + Send + core::marker::Sync + 'static,
    ) -> Self {
        Self {
            files,
            clock: Box::new(clock),
            holds: Holds::default(),
            leases: None,
            state: Mutex::new(State::default()),
        }
    }

    /// Grants leases, which are recalled through `holders`. Their generations are greater than
    /// those of an earlier life of S, as they begin at the present time.
    #[must_use]
    pub fn with_leases(mut self, holders: Box<dyn Holders>) -> Self {
        let seconds = u64::try_from(self.now().seconds).unwrap_or(0);
        self.leases = Some(Leases::new(seconds << 24, holders));
        self
    }

    /// Returns what was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state.lock().counters
    }

    /// Closes everything that a lost peer had open. [`Self::commit`] does what that entails.
    pub fn peer_lost(&self, peer: PeerKey) {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        let theirs = state
            .open
            .range((peer, FileId(0))..=(peer, FileId(u64::MAX)));
        let theirs: Vec<_> = theirs.map(|(key, _)| *key).collect();
        gone.extend(theirs.iter().filter_map(|key| state.open.remove(key)));
        drop(state);
    }

    /// Ends the leases of a lost peer that has said so itself: those of another expire.
    pub fn peer_left(&self, peer: PeerKey) {
        if let Some(leases) = &self.leases {
            leases.left(peer);
        }
    }

    /// Returns the open files of all peers.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.state.lock().open.len()
    }

    /// Deletes files without names that nobody has open any more, and makes all changes until now
    /// durable. To be called now and then: a program need not ask for it.
    ///
    /// # Errors
    ///
    /// The file system's failure.
    pub async fn commit(&self) -> Result<(), Error> {
        self.end_dead_promises().await;
        self.holds.release(&self.files, self.now()).await?;
        Ok(self.files.sync(self.now()).await?)
    }

    /// Gives the file system back, for an unmount.
    pub fn into_files(self) -> Ext4<D> {
        self.files
    }

    pub(crate) fn now(&self) -> Time {
        (self.clock)()
    }

    pub(crate) fn walker<'a>(&'a self, by: &'a Caller<'a>) -> Walker<'a, D> {
        Walker {
            files: &self.files,
            holds: &self.holds,
            by,
        }
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.state.lock().counters);
    }

    /// Answers one request; returns the length of the reply, which needs [`messages::MAX_MESSAGE`]
    /// bytes at most.
    pub async fn handle(
        &self,
        from: PeerKey,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
        bulk: &mut dyn Bulk,
    ) -> usize {
        let refused = self.files.refused_for_promises();
        let mut len = self.handle_once(from, (kind, request), reply, bulk).await;
        let full = reply.first_chunk() == Some(&Errno::ENOSPC.0.to_le_bytes());
        if full && kind != Flush::KIND.0 && self.files.refused_for_promises() != refused {
            self.take_promises_back().await;
            len = self.handle_once(from, (kind, request), reply, bulk).await;
        }
        if let Err(error) = self.holds.release(&self.files, self.now()).await {
            // A deletion that failed is finished by the next mount.
            log::error!("a file that is not open any more is not deleted: {error}");
        }
        len
    }

    async fn handle_once(
        &self,
        from: PeerKey,
        (kind, request): (u16, &[u8]),
        reply: &mut [u8],
        bulk: &mut dyn Bulk,
    ) -> usize {
        let request = match StorageRequest::decode(Kind(kind), request) {
            Ok(request) => request,
            Err(error) => {
                log::warn!("peer {}: call {kind}: {error}", from.0);
                self.count(|counters| counters.nr_bad_requests += 1);
                return put::<Close>(&Err(Errno::EPROTO), reply);
            }
        };
        self.answer(from, request, reply, bulk).await
    }

    async fn answer(
        &self,
        from: PeerKey,
        request: StorageRequest<'_>,
        reply: &mut [u8],
        bulk: &mut dyn Bulk,
    ) -> usize {
        match request {
            StorageRequest::Open(open) => {
                put::<Open>(&self.told(self.open(from, &open).await), reply)
            }
            StorageRequest::Read(read) => {
                put::<Read>(&self.told(self.read(from, &read, bulk).await), reply)
            }
            StorageRequest::StatPath(stat) => {
                put::<StatPath>(&self.told(self.stat(from, &stat).await), reply)
            }
            StorageRequest::StatFile(ask) => {
                put::<StatFile>(&self.told(self.stat_file(from, ask.file).await), reply)
            }
            StorageRequest::Lease(ask) => {
                put::<Lease>(&self.told(self.lease(from, ask.file).await), reply)
            }
            StorageRequest::WriteLease(ask) => {
                put::<WriteLease>(&self.told(self.write_lease(from, ask.file).await), reply)
            }
            StorageRequest::Getdents(ask) => {
                let mut entries = vec![0; MAX_ENTRIES];
                let listed = self.told(self.getdents(from, &ask, &mut entries).await);
                put::<Getdents>(&listed.map(|len| Entries(&entries[..len])), reply)
            }
            StorageRequest::Readlink(ask) => match self.told(self.readlink(&ask).await) {
                Ok(target) => put::<Readlink>(&Path::new(&target).map_err(|_| Errno::EIO), reply),
                Err(errno) => put::<Readlink>(&Err(errno), reply),
            },
            StorageRequest::GetXattr(ask) => {
                let value = self.told(self.get_xattr(from, &ask).await);
                put::<GetXattr>(&value.as_ref().map(|v| Rest(v)).map_err(|e| *e), reply)
            }
            StorageRequest::ListXattr(ask) => {
                let names = self.told(self.list_xattrs(from, &ask).await);
                put::<ListXattr>(&names.as_ref().map(|n| Rest(n)).map_err(|e| *e), reply)
            }
            StorageRequest::Close(ask) => put::<Close>(&self.close(from, ask.file).await, reply),
            StorageRequest::StatFs(()) => put::<StatFs>(&self.told(self.statfs().await), reply),
            request => self.answer_change(from, request, reply, bulk).await,
        }
    }

    /// Answers a request that changes something.
    async fn answer_change(
        &self,
        from: PeerKey,
        request: StorageRequest<'_>,
        reply: &mut [u8],
        bulk: &mut dyn Bulk,
    ) -> usize {
        match request {
            StorageRequest::Write(ask) => {
                put::<Write>(&self.told(self.write(from, &ask, bulk).await), reply)
            }
            StorageRequest::Flush(ask) => {
                put::<Flush>(&self.told(self.flush(from, &ask, bulk).await), reply)
            }
            StorageRequest::Truncate(ask) => {
                put::<Truncate>(&self.told(self.truncate(from, &ask).await), reply)
            }
            StorageRequest::Allocate(ask) => {
                put::<Allocate>(&self.told(self.allocate(from, &ask).await), reply)
            }
            StorageRequest::Fsync(ask) => {
                put::<Fsync>(&self.told(self.fsync(from, ask.file).await), reply)
            }
            StorageRequest::Sync(()) => put::<Sync>(&self.told(self.sync_all().await), reply),
            StorageRequest::Make(ask) => {
                put::<Make>(&self.told(self.make(from, &ask).await), reply)
            }
            StorageRequest::Symlink(ask) => {
                put::<Symlink>(&self.told(self.symlink(from, &ask, bulk).await), reply)
            }
            StorageRequest::Link(ask) => {
                put::<Link>(&self.told(self.link(from, &ask, bulk).await), reply)
            }
            StorageRequest::LinkFile(ask) => {
                put::<LinkFile>(&self.told(self.link_file(from, &ask, bulk).await), reply)
            }
            StorageRequest::Rename(ask) => {
                put::<Rename>(&self.told(self.rename(from, &ask, bulk).await), reply)
            }
            StorageRequest::Remove(ask) => {
                put::<Remove>(&self.told(self.remove(from, &ask).await), reply)
            }
            StorageRequest::SetPath(ask) => {
                put::<SetPath>(&self.told(self.set_path(from, &ask).await), reply)
            }
            StorageRequest::SetFile(ask) => {
                put::<SetFile>(&self.told(self.set_file(from, &ask).await), reply)
            }
            StorageRequest::SetXattr(ask) => {
                put::<SetXattr>(&self.told(self.set_xattr(from, &ask, bulk).await), reply)
            }
            StorageRequest::RemoveXattr(ask) => {
                put::<RemoveXattr>(&self.told(self.remove_xattr(from, &ask).await), reply)
            }
            _ => put::<Close>(&Err(Errno::ENOSYS), reply),
        }
    }

    /// Returns the error for the peer; S's own failures are logged.
    fn told<T>(&self, result: Result<T, Error>) -> Result<T, Errno> {
        result.map_err(|error| {
            if !matches!(error, Error::Errno(_)) {
                log::error!("{error}");
                self.count(|counters| counters.nr_io_errors += 1);
            }
            error.errno()
        })
    }

    /// Returns a peer's open file.
    pub(crate) fn file(&self, from: PeerKey, file: FileId) -> Result<Arc<OpenFile>, Errno> {
        self.state
            .lock()
            .open
            .get(&(from, file))
            .cloned()
            .ok_or(Errno::EBADF)
    }

    /// Closes a file, once a recall has brought what was gathered of it.
    async fn close(&self, from: PeerKey, file: FileId) -> Result<(), Errno> {
        let inode = self.file(from, file)?.held.inode();
        let _door = match &self.leases {
            Some(leases) => Some(leases.door(inode).await),
            None => None,
        };
        let closed = self.state.lock().open.remove(&(from, file));
        if let Some(leases) = &self.leases {
            self.end_dead_promise(leases, inode);
        }
        closed.map(drop).ok_or(Errno::EBADF)
    }

    async fn open(&self, from: PeerKey, request: &OpenRequest<'_>) -> Result<Opened, Error> {
        self.count(|counters| counters.handle_open += 1);
        if self.opened_by(from) >= MAX_OPEN {
            return Err(Errno::EMFILE.into());
        }
        let flags = request.flags;
        let node = if flags.contains(OpenFlags::UNNAMED) {
            self.make_unnamed(request).await?
        } else {
            self.open_or_make(from, request).await?
        };
        let opened = OpenFile {
            held: node.held,
            writable: flags.contains(OpenFlags::WRITE),
            readable: flags.intersects(OpenFlags::READ | OpenFlags::EXECUTE),
            keeps_set_ids: request.caller.privileges.contains(Privileges::FSETID),
            kind: node.stat.mode & convert::TYPE_MASK,
            failed: Mutex::default(),
            brought: Mutex::default(),
        };
        let mut stat = node.stat;
        if is(&stat, REGULAR) && flags.contains(OpenFlags::TRUNCATE) {
            let inode = opened.held.inode();
            let _access = self.access(from, &[inode]).await;
            self.strip_set_ids(&opened).await?;
            self.files.truncate(inode, 0, self.now()).await?;
            stat = self.files.stat(inode).await?;
        }
        if is(&stat, REGULAR) && self.look(from, opened.held.inode()).await.recalled {
            stat = self.files.stat(opened.held.inode()).await?;
        }
        let granted = self.grant_opened(from, &opened, flags).await?;
        if granted.lease != 0 {
            stat = self.files.stat(opened.held.inode()).await?;
        }
        Ok(self.enter(from, opened, granted, &stat))
    }

    /// Returns whether a peer has an inode open for writing.
    pub(crate) fn may_write(&self, peer: PeerKey, inode: u32) -> bool {
        let state = self.state.lock();
        let theirs = (peer, FileId(0))..=(peer, FileId(u64::MAX));
        let mut theirs = state.open.range(theirs).map(|(_, file)| file);
        theirs.any(|file| file.writable && file.held.inode() == inode)
    }

    fn opened_by(&self, peer: PeerKey) -> usize {
        let state = self.state.lock();
        state
            .open
            .range((peer, FileId(0))..=(peer, FileId(u64::MAX)))
            .count()
    }

    /// Adds an open file to the table.
    fn enter(
        &self,
        from: PeerKey,
        opened: OpenFile,
        granted: Granted,
        stat: &ext4::Stat,
    ) -> Opened {
        let mut state = self.state.lock();
        state.next += 1;
        let file = FileId(state.next);
        state.open.insert((from, file), Arc::new(opened));
        let stat = convert::stat(stat, self.files.block_size());
        Opened {
            file,
            lease: granted.lease,
            writes: granted.writes,
            blocks: granted.blocks,
            stat,
        }
    }

    /// Finds what a path names, or makes a file.
    async fn open_or_make(&self, from: PeerKey, request: &OpenRequest<'_>) -> Result<Node, Error> {
        let flags = request.flags;
        let exclusive = flags.contains(OpenFlags::CREATE | OpenFlags::EXCLUSIVE);
        let follow = !exclusive && !flags.contains(OpenFlags::NOFOLLOW);
        let by = &request.caller;
        let walker = self.walker(by);
        for _ in 0..ATTEMPTS {
            let found = walker.find(request.path.as_bytes(), follow).await?;
            if found.node.is_some() && exclusive {
                return Err(Errno::EEXIST.into());
            }
            let (Some(dir), None) = (&found.dir, &found.node) else {
                let node = found.existing()?;
                return self.check_open(by, node, flags);
            };
            if !flags.contains(OpenFlags::CREATE) {
                return Err(Errno::ENOENT.into());
            }
            if found.slash {
                return Err(Errno::EISDIR.into());
            }
            if self.files.is_read_only() {
                return Err(Errno::EROFS.into());
            }
            rights::check_create(by, &dir.stat)?;
            let new = rights::new_node(by, &dir.stat, request.mode, false, self.now());
            let _access = self.access(from, &[]).await;
            let made = self.files.create(dir.held.inode(), &found.name, new).await;
            match made.map_err(Error::from) {
                Err(Error::Errno(Errno::EEXIST)) if !exclusive => continue,
                made => made?,
            };
            match walker.step(dir, &found.name).await {
                // Somebody has removed it already.
                Err(Error::Errno(Errno::ENOENT)) => {}
                opened => return opened,
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// Checks that what a path names may be opened so.
    fn check_open(&self, by: &Caller<'_>, node: Node, flags: OpenFlags) -> Result<Node, Error> {
        if node.is_symlink() {
            return Err(Errno::ELOOP.into());
        }
        let (writes, cuts) = (OpenFlags::WRITE, OpenFlags::TRUNCATE);
        if node.is_dir() && flags.intersects(writes | cuts | OpenFlags::CREATE) {
            return Err(Errno::EISDIR.into());
        }
        if !node.is_dir() && flags.contains(OpenFlags::DIRECTORY) {
            return Err(Errno::ENOTDIR.into());
        }
        let changes = flags.intersects(writes | cuts) && is(&node.stat, REGULAR);
        if changes && self.files.is_read_only() {
            return Err(Errno::EROFS.into());
        }
        let wants = [
            (OpenFlags::READ, READ),
            (writes | cuts, WRITE),
            (OpenFlags::EXECUTE, EXECUTE),
        ];
        let wanted = wants
            .into_iter()
            .filter(|(flag, _)| flags.intersects(*flag));
        let want = wanted.fold(0, |all, (_, right)| all | right);
        rights::check(by, &node.stat, want)?;
        Ok(node)
    }

    async fn make_unnamed(&self, request: &OpenRequest<'_>) -> Result<Node, Error> {
        let by = &request.caller;
        let walker = self.walker(by);
        let dir = walker.existing(request.path.as_bytes(), true).await?;
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        rights::check_create(by, &dir.stat)?;
        let new = rights::new_node(by, &dir.stat, request.mode, false, self.now());
        let inode = self.files.create_unnamed(dir.held.inode(), new).await?;
        let held = self.holds.take(inode);
        let stat = self.files.stat(inode).await?;
        Ok(Node { held, stat })
    }

    async fn read(
        &self,
        from: PeerKey,
        request: &ReadRequest,
        bulk: &mut dyn Bulk,
    ) -> Result<u32, Error> {
        let file = self.file(from, request.file)?;
        if !file.readable {
            return Err(Errno::EBADF.into());
        }
        if file.kind == DIRECTORY {
            return Err(Errno::EISDIR.into());
        }
        let _look = self.look(from, file.held.inode()).await;
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
            let got = self
                .files
                .read(file.held.inode(), at, &mut piece[..want])
                .await?;
            bulk.write(done, &piece[..got]);
            done += got;
            if got < want {
                break;
            }
        }
        self.count(|counters| {
            counters.handle_read += 1;
            counters.nr_bytes_read += done as u64;
        });
        Ok(u32::try_from(done).expect("at most what was asked for"))
    }

    async fn stat(
        &self,
        from: PeerKey,
        request: &StatRequest<'_>,
    ) -> Result<messages::storage::Stat, Error> {
        self.count(|counters| counters.handle_stat += 1);
        let mut node = self
            .walker(&request.caller)
            .existing(request.path.as_bytes(), request.follow)
            .await?;
        let inode = node.held.inode();
        if is(&node.stat, REGULAR) && self.look(from, inode).await.recalled {
            node.stat = self.files.stat(inode).await?;
        }
        Ok(convert::stat(&node.stat, self.files.block_size()))
    }

    async fn stat_file(
        &self,
        from: PeerKey,
        file: FileId,
    ) -> Result<messages::storage::Stat, Error> {
        self.count(|counters| counters.handle_stat += 1);
        let file = self.file(from, file)?;
        let _look = self.look(from, file.held.inode()).await;
        let stat = self.files.stat(file.held.inode()).await?;
        Ok(convert::stat(&stat, self.files.block_size()))
    }

    async fn readlink(&self, ask: &PathRequest<'_>) -> Result<Vec<u8>, Error> {
        let walker = self.walker(&ask.caller);
        let node = walker.existing(ask.path.as_bytes(), false).await?;
        Ok(self.files.read_link(node.held.inode()).await?)
    }

    /// Encodes as many entries as fit; none at the directory's end. EINVAL when not even one fits.
    async fn getdents(
        &self,
        from: PeerKey,
        ask: &GetdentsRequest,
        into: &mut [u8],
    ) -> Result<usize, Error> {
        self.count(|counters| counters.handle_getdents += 1);
        let dir = self.file(from, ask.file)?;
        if !dir.readable {
            return Err(Errno::EBADF.into());
        }
        let max = into
            .len()
            .min(usize::try_from(ask.max).unwrap_or(usize::MAX));
        let mut writer = Writer::new(&mut into[..max]);
        let mut position = ask.position;
        while let Some((entries, next)) = self.files.entries(dir.held.inode(), position).await? {
            for entry in &entries {
                let wire = Entry {
                    inode: entry.inode.into(),
                    next: entry.next,
                    kind: convert::entry_type(entry.kind),
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

    async fn statfs(&self) -> Result<messages::storage::Statfs, Error> {
        let sizes = self.files.statfs().await?;
        Ok(messages::storage::Statfs {
            block_size: sizes.block_size,
            blocks: sizes.blocks,
            free: sizes.free,
            available: sizes.available,
            inodes: sizes.inodes.into(),
            free_inodes: sizes.free_inodes.into(),
            id: u64::from_le_bytes(core::array::from_fn(|at| {
                sizes.uuid[at] ^ sizes.uuid[at + 8]
            })),
            read_only: self.files.is_read_only(),
        })
    }
}

fn put<C: Call>(reply: &Result<C::Reply<'_>, Errno>, into: &mut [u8]) -> usize {
    encode_reply::<C>(reply, into).unwrap_or_else(|error| {
        log::error!("{}: {error}", C::NAME);
        0
    })
}

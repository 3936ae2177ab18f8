//! A cache of paths' attributes and of symbolic links in front of S.
//!
//! A call to S costs some microseconds on hardware and a millisecond in QEMU, and programs ask for
//! the same paths over and over: dynamic loaders, shells that search PATH, Python's imports.
//! [`CachedFiles`] answers `stat`, `readlink` and the opening of what does not exist from what S
//! said before to the same caller, as another may not reach the file.
//!
//! Every change goes through here, so the cache never answers with what was true before a change
//! that has ended:
//!
//! * A change of names (create, rename, remove, link, set attributes by path) makes the whole cache
//!   stale.
//! * A change of an open file makes the attributes stale of the files whose inodes have its
//!   remainder.
//! * A reply is kept only if no change ended while its request was under way.
//!
//! Other nodes change files, too: an answer holds only under the lease of all names
//! (`names_lease.rs`) of the generation that it was got under.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::Instant;
use messages::storage::{
    AllocateFlags, Attributes, Caller, FileId, FlushRequest, Flushed, Leased, MAX_GROUPS,
    OpenFlags, Opened, RenameFlags, Stat, Statfs, Written, XattrFlags, XattrName,
};
use messages::{Wire, Writer};
use spin::Mutex;

use crate::error::{Error, Result, errno};
use crate::gather::{Gathered, Settle};
use crate::names_lease::NamesLease;
use crate::platform::Files;

/// Inodes are told apart by this many remainders.
const SHARDS: usize = 64;
/// Entries and bytes of paths and targets, at most; a full cache is emptied.
const MAX_ENTRIES: usize = 8192;
const MAX_BYTES: usize = 1 << 20;

/// S's answer for a path.
#[derive(Clone, Debug)]
enum Said {
    /// Its attributes.
    Stat(Stat),
    /// Target of the symbolic link.
    Target(Vec<u8>),
    /// There is no such file.
    Missing,
    /// It is no symbolic link.
    NoLink,
}

/// The question that S answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Question {
    /// `stat` of the path.
    Follow,
    /// `lstat` of the path.
    NoFollow,
    /// `readlink` of the path.
    Target,
}

#[derive(Debug)]
struct Entry {
    said: Said,
    /// The count of changes of names at that time.
    names: u64,
    /// The count of changes of such inodes at that time.
    inodes: u64,
    /// The generation of the lease of all names.
    lease: u64,
}

#[derive(Default, Debug)]
struct Entries {
    by_path: BTreeMap<Vec<u8>, Entry>,
    bytes: usize,
}

/// State of the cache before S was asked.
#[derive(Clone, Copy, Debug)]
struct Before {
    /// Changes that had ended.
    changes: u64,
    /// Generation of the lease of all names; `None` if it was not held.
    lease: Option<u64>,
}

/// S, with a cache in front. `C` gives the time.
#[derive(Debug)]
pub struct CachedFiles<F, C = fn() -> Instant> {
    files: F,
    clock: C,
    lease: NamesLease,
    entries: Mutex<Entries>,
    /// Counts all changes. A change counts here first, so that whoever sees its other counts sees
    /// this one.
    changes: AtomicU64,
    names: AtomicU64,
    inodes: [AtomicU64; SHARDS],
    /// Inodes of files that are open to be changed.
    open: Mutex<BTreeMap<FileId, u64>>,
}

/// A change under way; its drop makes stale what it changed, however it ended.
struct Changing<'a, F, C> {
    cache: &'a CachedFiles<F, C>,
    /// The inode; `None` for a change of names.
    inode: Option<u64>,
}

impl<F, C> Drop for Changing<'_, F, C> {
    fn drop(&mut self) {
        self.cache.changes.fetch_add(1, Ordering::SeqCst);
        let count = match self.inode {
            Some(inode) => self.cache.shard(inode),
            None => &self.cache.names,
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

impl<F, C> CachedFiles<F, C> {
    fn shard(&self, inode: u64) -> &AtomicU64 {
        &self.inodes[usize::try_from(inode % SHARDS as u64).unwrap_or(0)]
    }
}

impl<F, C: Fn() -> Instant> CachedFiles<F, C> {
    /// Returns an empty cache in front of `files`.
    pub const fn new(files: F, clock: C) -> Self {
        Self {
            files,
            clock,
            lease: NamesLease::new(),
            entries: Mutex::new(Entries {
                by_path: BTreeMap::new(),
                bytes: 0,
            }),
            changes: AtomicU64::new(0),
            names: AtomicU64::new(0),
            inodes: [const { AtomicU64::new(0) }; SHARDS],
            open: Mutex::new(BTreeMap::new()),
        }
    }

    /// Looks up what S said, if it still holds.
    fn known(&self, by: Caller<'_>, path: &[u8], question: Question) -> Option<Said> {
        let lease = self.lease.held((self.clock)())?;
        let entries = self.entries.lock();
        let entry = entries.by_path.get(&key(by, path, question))?;
        let current = entry.lease == lease
            && entry.names == self.names.load(Ordering::SeqCst)
            && match &entry.said {
                Said::Stat(stat) => entry.inodes == self.shard(stat.inode).load(Ordering::SeqCst),
                Said::Target(_) | Said::Missing | Said::NoLink => true,
            };
        current.then(|| entry.said.clone())
    }

    /// Keeps what S said, if nothing has changed since before it was asked.
    fn keep(&self, by: Caller<'_>, path: &[u8], question: Question, before: Before, said: Said) {
        let Some(lease) = before.lease else {
            return;
        };
        let names = self.names.load(Ordering::SeqCst);
        let inodes = match &said {
            Said::Stat(stat) => self.shard(stat.inode).load(Ordering::SeqCst),
            Said::Target(_) | Said::Missing | Said::NoLink => 0,
        };
        let held = self.lease.held((self.clock)());
        if self.changes.load(Ordering::SeqCst) != before.changes || held != before.lease {
            return;
        }
        let key = key(by, path, question);
        let target = if let Said::Target(target) = &said {
            target.len()
        } else {
            0
        };
        let bytes = key.len() + target;
        let mut entries = self.entries.lock();
        if entries.by_path.len() >= MAX_ENTRIES || entries.bytes + bytes > MAX_BYTES {
            *entries = Entries::default();
        }
        entries.bytes += bytes;
        let entry = Entry {
            said,
            names,
            inodes,
            lease,
        };
        // What is replaced stays counted until the cache is emptied.
        entries.by_path.insert(key, entry);
    }

    /// Begins a change of names.
    fn change_names(&self) -> Changing<'_, F, C> {
        Changing {
            cache: self,
            inode: None,
        }
    }

    /// Begins a change of an open file; of one that was not opened to be changed, as a change of
    /// names.
    fn change_file(&self, file: FileId) -> Changing<'_, F, C> {
        Changing {
            cache: self,
            inode: self.open.lock().get(&file).copied(),
        }
    }

    fn before(&self) -> Before {
        Before {
            changes: self.changes.load(Ordering::SeqCst),
            lease: self.lease.held((self.clock)()),
        }
    }
}

impl<F: Files, C: Fn() -> Instant> CachedFiles<F, C> {
    /// Asks S to open a file that is not made or cut by that.
    async fn open_existing(
        &self,
        by: Caller<'_>,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Opened> {
        let question = if flags.contains(OpenFlags::NOFOLLOW) {
            Question::NoFollow
        } else {
            Question::Follow
        };
        self.lease.get(&self.files, &self.clock).await?;
        if let Some(Said::Missing) = self.known(by, path, question) {
            return Err(errno::ENOENT.into());
        }
        let before = self.before();
        let opened = self.files.open(by, path, flags, mode).await;
        match &opened {
            Ok(opened) => self.keep(by, path, question, before, Said::Stat(opened.stat)),
            Err(Error::Errno(errno::ENOENT)) => {
                self.keep(by, path, question, before, Said::Missing)
            }
            Err(_) => {}
        }
        opened
    }
}

/// Returns the key of a question: the path with a byte behind that no path holds, and who asks.
fn key(by: Caller<'_>, path: &[u8], question: Question) -> Vec<u8> {
    let mut caller = [0; 16 + 4 * MAX_GROUPS];
    let mut writer = Writer::new(&mut caller);
    by.put(&mut writer).expect("as long as a caller can be");
    let len = writer.len();
    let mut key = Vec::with_capacity(path.len() + 2 + len);
    key.extend_from_slice(path);
    key.extend([0, question as u8]);
    key.extend_from_slice(&caller[..len]);
    key
}

impl<F: Files, C: Fn() -> Instant> Files for CachedFiles<F, C> {
    async fn open(
        &self,
        by: Caller<'_>,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Opened> {
        let changing = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::UNNAMED;
        let opened = if flags.intersects(changing) {
            let _change = self.change_names();
            self.files.open(by, path, flags, mode).await
        } else {
            self.open_existing(by, path, flags, mode).await
        }?;
        if flags.contains(OpenFlags::WRITE) {
            self.open.lock().insert(opened.file, opened.stat.inode);
        }
        Ok(opened)
    }
    async fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.files.read(file, offset, into).await
    }
    async fn stat(&self, by: Caller<'_>, path: &[u8], follow: bool) -> Result<Stat> {
        let question = if follow {
            Question::Follow
        } else {
            Question::NoFollow
        };
        self.lease.get(&self.files, &self.clock).await?;
        match self.known(by, path, question) {
            Some(Said::Stat(stat)) => return Ok(stat),
            Some(Said::Missing) => return Err(errno::ENOENT.into()),
            _ => {}
        }
        let before = self.before();
        let stat = self.files.stat(by, path, follow).await;
        match &stat {
            Ok(stat) => self.keep(by, path, question, before, Said::Stat(*stat)),
            Err(Error::Errno(errno::ENOENT)) => {
                self.keep(by, path, question, before, Said::Missing)
            }
            Err(_) => {}
        }
        stat
    }
    async fn stat_file(&self, file: FileId) -> Result<Stat> {
        self.files.stat_file(file).await
    }
    async fn lease(&self, file: FileId) -> Result<Leased> {
        self.files.lease(file).await
    }
    async fn getdents(&self, file: FileId, position: u64, into: &mut [u8]) -> Result<usize> {
        self.files.getdents(file, position, into).await
    }
    async fn readlink(&self, by: Caller<'_>, path: &[u8], into: &mut [u8]) -> Result<usize> {
        self.lease.get(&self.files, &self.clock).await?;
        match self.known(by, path, Question::Target) {
            // A shorter buffer gets what S would have given: the beginning.
            Some(Said::Target(target)) => {
                let len = target.len().min(into.len());
                into[..len].copy_from_slice(&target[..len]);
                return Ok(len);
            }
            Some(Said::NoLink) => return Err(errno::EINVAL.into()),
            Some(Said::Missing) => return Err(errno::ENOENT.into()),
            _ => {}
        }
        let before = self.before();
        let got = self.files.readlink(by, path, into).await;
        let said = match &got {
            Ok(len) if *len < into.len() => Said::Target(into[..*len].to_vec()),
            Err(Error::Errno(errno::EINVAL)) => Said::NoLink,
            Err(Error::Errno(errno::ENOENT)) => Said::Missing,
            // A target that fills the buffer may be longer.
            Ok(_) | Err(_) => return got,
        };
        self.keep(by, path, Question::Target, before, said);
        got
    }
    async fn close(&self, file: FileId) -> Result<()> {
        self.open.lock().remove(&file);
        self.files.close(file).await
    }
    async fn write(&self, file: FileId, offset: Option<u64>, bytes: &[u8]) -> Result<Written> {
        let _change = self.change_file(file);
        self.files.write(file, offset, bytes).await
    }
    async fn truncate(&self, file: FileId, size: u64) -> Result<()> {
        let _change = self.change_file(file);
        self.files.truncate(file, size).await
    }
    async fn allocate(
        &self,
        file: FileId,
        flags: AllocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let _change = self.change_file(file);
        self.files.allocate(file, flags, offset, len).await
    }
    async fn fsync(&self, file: FileId) -> Result<()> {
        self.files.fsync(file).await
    }
    async fn sync(&self) -> Result<()> {
        self.files.sync().await
    }
    async fn make(&self, by: Caller<'_>, path: &[u8], mode: u32, device: u64) -> Result<()> {
        let _change = self.change_names();
        self.files.make(by, path, mode, device).await
    }
    async fn symlink(&self, by: Caller<'_>, path: &[u8], target: &[u8]) -> Result<()> {
        let _change = self.change_names();
        self.files.symlink(by, path, target).await
    }
    async fn link(&self, by: Caller<'_>, old: &[u8], follow: bool, new: &[u8]) -> Result<()> {
        let _change = self.change_names();
        self.files.link(by, old, follow, new).await
    }
    async fn link_file(&self, by: Caller<'_>, file: FileId, new: &[u8]) -> Result<()> {
        let _change = self.change_names();
        self.files.link_file(by, file, new).await
    }
    async fn rename(
        &self,
        by: Caller<'_>,
        old: &[u8],
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<u64> {
        let _change = self.change_names();
        self.files.rename(by, old, new, flags).await
    }
    async fn remove(&self, by: Caller<'_>, path: &[u8], directory: bool) -> Result<u64> {
        let _change = self.change_names();
        self.files.remove(by, path, directory).await
    }
    async fn set_path(
        &self,
        by: Caller<'_>,
        path: &[u8],
        follow: bool,
        set: &Attributes,
    ) -> Result<()> {
        let _change = self.change_names();
        self.files.set_path(by, path, follow, set).await
    }
    async fn set_file(&self, by: Caller<'_>, file: FileId, set: &Attributes) -> Result<()> {
        let _change = self.change_file(file);
        self.files.set_file(by, file, set).await
    }
    async fn get_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
    ) -> Result<Vec<u8>> {
        self.files.get_xattr(by, file, name).await
    }
    async fn list_xattrs(&self, by: Caller<'_>, file: FileId) -> Result<Vec<u8>> {
        self.files.list_xattrs(by, file).await
    }
    async fn set_xattr(
        &self,
        by: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let _change = self.change_file(file);
        self.files.set_xattr(by, file, name, value, flags).await
    }
    async fn remove_xattr(&self, by: Caller<'_>, file: FileId, name: XattrName<'_>) -> Result<()> {
        let _change = self.change_file(file);
        self.files.remove_xattr(by, file, name).await
    }
    async fn write_lease(&self, file: FileId) -> Result<Leased> {
        self.files.write_lease(file).await
    }
    async fn flush(&self, request: &FlushRequest, pieces: &[u8]) -> Result<Flushed> {
        self.files.flush(request, pieces).await
    }
    async fn gather(
        &self,
        file: FileId,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<Option<Written>> {
        let _change = self.change_file(file);
        self.files.gather(file, offset, bytes).await
    }
    async fn settle(&self, which: Settle) -> Result<()> {
        self.files.settle(which).await
    }
    fn recall_names(&self, lease: u64, now: Instant) {
        self.lease.recalled(lease, now);
    }
    fn gathered(&self) -> Option<&Gathered> {
        self.files.gathered()
    }
    async fn statfs(&self) -> Result<Statfs> {
        self.files.statfs().await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Cached = CachedFiles<FakeFiles>;

    const ROOT: Caller<'static> = Caller::ROOT;
    use crate::tests::fake_files::FakeFiles;

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the fake answers at once"),
        }
    }

    fn cached() -> Cached {
        let files = [(&b"/a"[..], &b"text"[..]), (b"/d", b"")];
        let mut fake = FakeFiles::new(
            files
                .map(|(path, data)| (path.to_vec(), data.to_vec()))
                .into(),
        );
        fake.links = [(b"/l".to_vec(), b"/a".to_vec())].into();
        CachedFiles::new(fake, || Instant::from_nanos(1_000_000_000))
    }

    fn asked(files: &Cached) -> u64 {
        files.files.asked.get()
    }

    #[test]
    fn s_is_asked_once_for_what_does_not_change() {
        let files = cached();
        for _ in 0..3 {
            assert_eq!(
                now(files.stat(ROOT, b"/a", true)).map(|stat| stat.size),
                Ok(4)
            );
            assert_eq!(
                now(files.stat(ROOT, b"/x", true)).err(),
                Some(errno::ENOENT.into())
            );
            let opened = now(files.open(ROOT, b"/x", OpenFlags::empty(), 0));
            assert_eq!(opened.err(), Some(errno::ENOENT.into()));
            let mut target = [0; 10];
            assert_eq!(now(files.readlink(ROOT, b"/l", &mut target)), Ok(2));
            assert_eq!(&target[..2], b"/a");
            assert_eq!(now(files.readlink(ROOT, b"/l", &mut target[..1])), Ok(1));
            let none = now(files.readlink(ROOT, b"/a", &mut target));
            assert_eq!(none.err(), Some(errno::EINVAL.into()));
        }
        assert_eq!(asked(&files), 4);
        assert!(now(files.stat(ROOT, b"/a", false)).is_ok());
        assert_eq!(asked(&files), 5, "lstat is another question");
    }

    #[test]
    fn changes_of_names_make_all_stale_and_writes_their_file() {
        let files = cached();
        assert!(now(files.stat(ROOT, b"/n", true)).is_err());
        let flags = OpenFlags::CREATE | OpenFlags::WRITE;
        let opened = now(files.open(ROOT, b"/n", flags, 0o644)).unwrap();
        assert_eq!(
            now(files.stat(ROOT, b"/n", true)).map(|stat| stat.size),
            Ok(0)
        );
        assert!(now(files.stat(ROOT, b"/a", true)).is_ok());
        let before = asked(&files);
        assert!(now(files.write(opened.file, Some(0), b"abc")).is_ok());
        assert_eq!(
            now(files.stat(ROOT, b"/n", true)).map(|stat| stat.size),
            Ok(3)
        );
        assert!(now(files.stat(ROOT, b"/a", true)).is_ok());
        assert_eq!(asked(&files), before + 1, "only the file that was written");
        assert!(now(files.truncate(opened.file, 1)).is_ok());
        assert_eq!(
            now(files.stat(ROOT, b"/n", true)).map(|stat| stat.size),
            Ok(1)
        );
        assert!(now(files.remove(ROOT, b"/n", false)).is_ok());
        assert_eq!(
            now(files.stat(ROOT, b"/n", true)).err(),
            Some(errno::ENOENT.into())
        );
    }

    #[test]
    fn a_reply_that_a_change_overtook_is_not_kept() {
        let files = cached();
        let stat = now(files.stat(ROOT, b"/a", true)).unwrap();
        let before = files.before();
        drop(files.change_names());
        files.keep(ROOT, b"/a", Question::Follow, before, Said::Stat(stat));
        assert!(files.known(ROOT, b"/a", Question::Follow).is_none());
        files.keep(
            ROOT,
            b"/a",
            Question::Follow,
            files.before(),
            Said::Stat(stat),
        );
        assert!(files.known(ROOT, b"/a", Question::Follow).is_some());
    }

    #[test]
    fn nothing_is_answered_without_the_lease_of_all_names() {
        let files = cached();
        let stat = |path: &[u8]| now(files.stat(ROOT, path, true)).map(|stat| stat.size);
        assert_eq!(stat(b"/a"), Ok(4));
        assert!(stat(b"/x").is_err());
        files.files.change("/a", b"longer text");
        assert_eq!(stat(b"/a"), Ok(4), "under the lease");
        // Another node's change comes after the recall.
        files.recall_names(1, (files.clock)());
        files.files.names.set(2);
        assert_eq!(
            stat(b"/a"),
            Ok(11),
            "none is asked for right after a recall"
        );
        let before = asked(&files);
        assert_eq!(stat(b"/a"), Ok(11));
        assert_eq!(asked(&files), before + 1);
    }

    #[test]
    fn a_reply_that_a_recall_overtook_is_not_kept() {
        let files = cached();
        let stat = now(files.stat(ROOT, b"/a", true)).unwrap();
        let before = files.before();
        files.recall_names(1, (files.clock)());
        files.keep(ROOT, b"/a", Question::Follow, before, Said::Stat(stat));
        assert!(files.known(ROOT, b"/a", Question::Follow).is_none());
        let refused = cached();
        refused.files.names.set(0);
        for asks in 1..4 {
            assert!(now(refused.stat(ROOT, b"/a", true)).is_ok());
            assert_eq!(asked(&refused), asks, "each time, as there is no lease");
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let files = cached();
        let most = Cell::new(0);
        for number in 0..MAX_ENTRIES * 2 {
            let path = format!("/{number:0>300}");
            assert!(now(files.stat(ROOT, path.as_bytes(), true)).is_err());
            let entries = files.entries.lock();
            assert!(entries.by_path.len() <= MAX_ENTRIES && entries.bytes <= MAX_BYTES);
            most.set(most.get().max(entries.bytes));
        }
        assert!(most.get() > MAX_BYTES / 2);
    }
}

//! Writes that are gathered and brought to S later, many at a time.
//!
//! A call to S takes a millisecond in QEMU, and programs write small pieces. While this node holds
//! a write lease of a file, no other node looks at the file or changes it, so a `write` is kept
//! here (`Gathering::gather`) and runs of them go to S in one call.
//!
//! * [`Gathering`] is S as the rest of the node sees it: every call that might tell of a file's
//!   bytes, size or times, or that publishes it under another name, first brings what was gathered.
//!   So nothing above needs to know what S has not got.
//! * S also gets it after `AGE`, when a run is full, at `close` and at `fsync`, which takes one
//!   call for both.
//! * A recall takes a lock only: its answer carries what was gathered, and S carries it out.
//! * S promises blocks of its disk with a write lease, so that what waits fits there. No more is
//!   kept than that: the rest is written through, so ENOSPC comes from `write`.
//! * A run that S refuses is lost, as Linux's write-back loses pages. Each open file is told so
//!   once, by its next fsync or close (`Gathered::failed_since`).
//!
//! # What is left out
//!
//! Long writes (over `LONGEST`) and those of files opened by `O_DIRECT` or `O_SYNC` go to S at
//! once. Data lies in this node's own memory, at most `MAX_FILES` runs of 64 KB; M has none of
//! it. A writer waits while its full run is brought.

mod files;
mod run;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{Duration, Instant};
use leases::{Holder, Kind};
use messages::Errno;
use messages::recall::{MAX_PART, RecallRequest};
use messages::storage::{FileId, FlushRequest, Flushed, Stat, Written};
use spin::Mutex;

use self::run::Run;
use crate::error::errno;
use crate::wait::{Gate, WaitQueue};

pub use files::Gathering;

/// The longest time that a write waits for the next one.
const AGE: Duration = Duration::from_secs(1);
/// Time that a lease must still last for a write to be kept: it is brought in time.
const SPARE: Duration = Duration::from_secs(2);
/// Time after a refusal in which no write lease of the file is asked for.
const REFUSED: Duration = Duration::from_secs(1);
/// The longest write that is kept.
const LONGEST: usize = 32 << 10;
/// Files of which something may be kept.
const MAX_FILES: usize = 32;
/// Offsets up to which every file system's files reach.
const MAX_END: u64 = 8 << 30;
/// The most files whose failures are remembered, but for those that are open.
const MAX_FAILED: usize = 256;

/// Writes to a file that S has not got.
#[derive(Debug)]
struct Dirty {
    /// The open file that it was written to.
    file: FileId,
    /// The lease that it was written under.
    generation: u64,
    /// The file's size under that lease, if it is known.
    size: Option<u64>,
    run: Run,
    /// The first write that waits.
    since: Instant,
    /// The last write, gathered or not.
    last: Instant,
    /// Pieces on their way to S.
    flying: Option<Arc<Vec<u8>>>,
    /// Blocks of the file that they touch.
    flying_blocks: u64,
    /// A recall has brought the pieces that are on their way, too.
    flying_handed: bool,
    /// Pieces that a recall brings to S, part by part.
    handed: Vec<u8>,
    /// S is to be asked whether it could carry out what a recall has brought.
    asks: bool,
    /// S has refused a lease until then.
    refused: Instant,
    /// Held by whoever brings it.
    gate: Arc<Gate>,
}

impl Dirty {
    fn new(file: FileId) -> Self {
        let never = Instant::from_nanos(0);
        Self {
            file,
            generation: 0,
            size: None,
            run: Run::default(),
            since: never,
            last: never,
            flying: None,
            flying_blocks: 0,
            flying_handed: false,
            handed: Vec::new(),
            asks: false,
            refused: never,
            gate: Arc::default(),
        }
    }

    /// Returns whether S has all.
    fn is_clean(&self) -> bool {
        self.run.is_empty() && self.flying.is_none() && !self.asks
    }
}

/// Blocks of a file that S has promised to keep free for what waits.
#[derive(Debug, Clone, Copy)]
struct Promise {
    /// The lease that it came with.
    generation: u64,
    blocks: u64,
    /// Bytes of a block.
    size: u64,
}

impl Promise {
    fn new(generation: u64, blocks: u32, size: u32) -> Self {
        Self {
            generation,
            blocks: blocks.into(),
            size: u64::from(size).max(1),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// The write leases.
    holder: Holder,
    /// By inode.
    files: BTreeMap<u64, Dirty>,
    /// By inode; those of regular files that are open at S.
    promises: BTreeMap<u64, Promise>,
    /// Inodes of regular files that are open at S.
    open: BTreeMap<FileId, u64>,
    /// Failures by inode, with their numbers.
    failed: BTreeMap<u64, (u64, Errno)>,
    failures: u64,
    /// The last failure's errno.
    last: Option<Errno>,
    /// Opens under way that cut the file which they open.
    cutting: u32,
    /// Such opens begun.
    cuts: u64,
    /// Writes kept.
    kept: u64,
}

/// An attempt to keep a write.
enum Tried {
    Kept(Written),
    /// Earlier writes must be brought first.
    Full,
    /// A lease must be asked for first.
    Ask,
    /// It is to be written through.
    Not,
}

impl State {
    /// Returns the entry of an open file that may keep something.
    fn entry(&mut self, file: FileId) -> Option<(u64, &mut Dirty)> {
        let &inode = self.open.get(&file)?;
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&inode) {
            let idle = |dirty: &Dirty| dirty.is_clean() && dirty.handed.is_empty();
            let idle = self.files.iter().find(|(_, dirty)| idle(dirty));
            let &idle = idle?.0;
            self.files.remove(&idle);
        }
        let dirty = self.files.entry(inode);
        Some((inode, dirty.or_insert_with(|| Dirty::new(file))))
    }

    /// Tries to keep a write.
    fn keep(&mut self, file: FileId, at: Option<u64>, bytes: &[u8], now: Instant) -> Tried {
        if self.cutting > 0 || bytes.is_empty() || bytes.len() > LONGEST {
            return Tried::Not;
        }
        let Some(&inode) = self.open.get(&file) else {
            return Tried::Not;
        };
        let held = self.holder.valid(inode, now + SPARE);
        let promise = self.promises.get(&inode).copied();
        let promise = held.and_then(|held| promise.filter(|at| at.generation == held.generation));
        let may_ask = self.holder.may_ask(inode, now);
        let Some((_, dirty)) = self.entry(file) else {
            return Tried::Not;
        };
        let (Some(held), Some(promise)) = (held, promise) else {
            // A lone write is not worth a request for a lease.
            let often = dirty.last != Instant::from_nanos(0) && now < dirty.last + AGE;
            dirty.last = now;
            return match may_ask && often && dirty.refused <= now {
                true => Tried::Ask,
                false => Tried::Not,
            };
        };
        if (dirty.file, dirty.generation) != (file, held.generation) {
            if !dirty.is_clean() {
                return Tried::Full;
            }
            if dirty.generation != held.generation {
                dirty.size = None;
            }
            (dirty.file, dirty.generation) = (file, held.generation);
        }
        let Some(offset) = at.or(dirty.size) else {
            dirty.last = now;
            return Tried::Not;
        };
        let end = offset.saturating_add(bytes.len() as u64);
        if end > MAX_END {
            return Tried::Not;
        }
        let blocks = dirty.run.blocks_with(offset, bytes.len(), promise.size);
        if !dirty.run.fits(bytes.len()) || blocks + dirty.flying_blocks > promise.blocks {
            // Without anything to be brought there will be no more room.
            return match dirty.is_clean() {
                true => Tried::Not,
                false => Tried::Full,
            };
        }
        if dirty.run.is_empty() {
            dirty.since = now;
        }
        dirty.last = now;
        dirty.run.add(offset, bytes, promise.size);
        dirty.size = dirty.size.map(|size| size.max(end));
        self.kept += 1;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Tried::Kept(Written { offset, len })
    }

    /// Takes what was gathered of a file, to be brought to S.
    fn take_off(&mut self, inode: u64, now: Instant) -> Option<(FlushRequest, Arc<Vec<u8>>)> {
        let dirty = self.files.get_mut(&inode)?;
        if dirty.flying_handed {
            dirty.flying = None;
        }
        dirty.flying_handed = false;
        // What was on its way when its task ended goes again.
        if dirty.flying.is_none() && !dirty.is_clean() {
            dirty.asks = false;
            dirty.flying_blocks = dirty.run.blocks();
            dirty.flying = Some(Arc::new(dirty.run.take_pieces()));
        }
        let pieces = dirty.flying.clone()?;
        let age = now.since(dirty.last).as_millis();
        let request = FlushRequest {
            file: dirty.file,
            lease: dirty.generation,
            age_ms: u32::try_from(age).unwrap_or(u32::MAX),
            durable: false,
        };
        Some((request, pieces))
    }

    /// Notes that S has answered for what was brought.
    fn landed(&mut self, inode: u64, answer: Result<Flushed, Errno>) {
        let Some(dirty) = self.files.get_mut(&inode) else {
            return;
        };
        dirty.flying = None;
        dirty.flying_blocks = 0;
        let handed = core::mem::take(&mut dirty.flying_handed);
        match answer {
            Ok(flushed) => {
                dirty.asks &= handed;
                let promise = self.promises.get_mut(&inode);
                let promise = promise.filter(|at| at.generation == dirty.generation);
                if let Some(promise) = promise {
                    promise.blocks = flushed.blocks.into();
                }
            }
            // S has carried it out, as the recall brought it first.
            Err(errno::ESTALE) if handed => {}
            Err(errno) => {
                log::error!("what was written to inode {inode} is lost: {errno}");
                dirty.size = None;
                self.holder.forget(inode);
                self.promises.remove(&inode);
                let told = if errno == errno::ESTALE {
                    errno::EIO
                } else {
                    errno
                };
                self.fail(inode, told);
            }
        }
    }

    fn fail(&mut self, inode: u64, errno: Errno) {
        self.failures += 1;
        self.last = Some(errno);
        self.failed.insert(inode, (self.failures, errno));
        if self.failed.len() > MAX_FAILED {
            // Nobody can be told any more of files that are not open.
            let open = &self.open;
            self.failed
                .retain(|failed, _| *failed == inode || open.values().any(|at| at == failed));
        }
    }

    /// Gives a lease up, with what was gathered under it.
    fn hand_over(&mut self, ask: &RecallRequest, now: Instant) {
        self.holder.recalled(ask.inode, ask.lease, now);
        let Some(dirty) = self.files.get_mut(&ask.inode) else {
            return;
        };
        if dirty.generation > ask.lease {
            return;
        }
        dirty.size = None;
        if let Some(flying) = &dirty.flying
            && !dirty.flying_handed
        {
            dirty.handed.extend_from_slice(flying);
            dirty.flying_handed = true;
        }
        let pieces = dirty.run.take_pieces();
        dirty.handed.extend_from_slice(&pieces);
        dirty.asks = !dirty.handed.is_empty();
    }

    /// Forgets what is known of a file's size.
    fn resized(&mut self, file: FileId) {
        let inode = self.open.get(&file);
        if let Some(dirty) = inode.and_then(|inode| self.files.get_mut(inode)) {
            dirty.size = None;
        }
    }

    fn dirty(&self) -> impl Iterator<Item = (u64, &Dirty)> {
        let files = self.files.iter().map(|(&inode, dirty)| (inode, dirty));
        files.filter(|(_, dirty)| !dirty.is_clean())
    }
}

/// Writes to all files that S has not got.
#[derive(Debug, Default)]
pub struct Gathered {
    state: Mutex<State>,
    /// Woken when something waits that nothing waited before.
    wanted: WaitQueue,
}

impl Gathered {
    /// Answers a recall: gives the lease up, and fills `into` with pieces that were gathered under
    /// it, from where S asks. Returns their open file, the bytes of all, and those put.
    pub(crate) fn recalled(
        &self,
        ask: &RecallRequest,
        now: Instant,
        into: &mut [u8; MAX_PART],
    ) -> (FileId, u32, usize) {
        let mut state = self.state.lock();
        if ask.from == 0 {
            state.hand_over(ask, now);
        }
        let Some(dirty) = state.files.get_mut(&ask.inode) else {
            return (FileId(0), 0, 0);
        };
        let total = u32::try_from(dirty.handed.len()).unwrap_or(0);
        let from = usize::try_from(ask.from).unwrap_or(usize::MAX);
        let rest = dirty.handed.get(from..).unwrap_or_default();
        let len = rest.len().min(MAX_PART);
        into[..len].copy_from_slice(&rest[..len]);
        if len == 0 {
            dirty.handed = Vec::new();
        }
        (dirty.file, total, len)
    }

    /// Returns the number of the last failure.
    pub(crate) fn failures(&self) -> u64 {
        self.state.lock().failures
    }

    /// Returns the last failure to bring writes of a file to S, if its number is above `last`.
    pub(crate) fn failed_since(&self, inode: u64, last: u64) -> Option<(u64, Errno)> {
        let failed = self.state.lock().failed.get(&inode).copied();
        failed.filter(|&(number, _)| number > last)
    }

    /// Returns the last failure of any file, if its number is above `last`.
    pub(crate) fn any_failed_since(&self, last: u64) -> Option<(u64, Errno)> {
        let state = self.state.lock();
        let failed = state.last.map(|errno| (state.failures, errno));
        failed.filter(|&(number, _)| number > last)
    }

    /// Returns how many writes were kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.state.lock().kept
    }

    /// Waits until something waits to be brought; returns when it is due.
    pub(crate) async fn due(&self) -> Instant {
        let first = || {
            let state = self.state.lock();
            let due = state.dirty().map(|(_, dirty)| dirty.since + AGE);
            due.min()
        };
        self.wanted.until(first).await
    }
}

/// The files whose writes are to be brought.
#[derive(Clone, Copy, Debug)]
pub enum Settle {
    /// An open file's.
    File(FileId),
    /// All that have waited long enough.
    Due(Instant),
    /// All.
    All,
}

/// A request for a write lease, under way until this is dropped.
struct Asking<'a> {
    state: &'a Mutex<State>,
    ask: Option<leases::Ask>,
}

impl<'a> Asking<'a> {
    fn new(state: &'a Mutex<State>, now: Instant) -> Self {
        let ask = Some(state.lock().holder.ask(now));
        Self { state, ask }
    }

    /// Takes over S's answer: a lease, 0 being a refusal, and the blocks promised with it. Returns
    /// whether the lease is held.
    fn answered(mut self, (lease, blocks): (u64, u32), stat: &Stat) -> bool {
        let Some(ask) = self.ask.take() else {
            return false;
        };
        let granted = (lease != 0).then_some((lease, Kind::Write));
        let mut state = self.state.lock();
        let held = state.holder.answered(ask, stat.inode, granted);
        if held.is_some_and(|held| held.generation == lease) {
            let promise = Promise::new(lease, blocks, stat.block_size);
            state.promises.insert(stat.inode, promise);
        }
        held.is_some()
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            self.state.lock().holder.abandoned(ask);
        }
    }
}

/// An open that cuts a file: nothing is gathered until this is dropped.
struct Cutting<'a>(&'a Mutex<State>);

impl<'a> Cutting<'a> {
    fn new(state: &'a Mutex<State>) -> Self {
        let mut at = state.lock();
        at.cutting += 1;
        at.cuts += 1;
        drop(at);
        Self(state)
    }
}

impl Drop for Cutting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.cutting -= 1;
        state.files.values_mut().for_each(|dirty| dirty.size = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(3);
    const INODE: u64 = 12;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000 * (millis + 1))
    }

    fn leased() -> State {
        let mut state = State::default();
        state.open.insert(FILE, INODE);
        let ask = state.holder.ask(at(0));
        assert!(
            state
                .holder
                .answered(ask, INODE, Some((7, Kind::Write)))
                .is_some()
        );
        state.promises.insert(INODE, Promise::new(7, 100, 4096));
        state
    }

    fn keep(state: &mut State, offset: u64, bytes: &[u8], now: Instant) -> bool {
        matches!(state.keep(FILE, Some(offset), bytes, now), Tried::Kept(_))
    }

    fn recall(state: &mut State, now: Instant) -> Vec<u8> {
        let ask = RecallRequest {
            inode: INODE,
            lease: 7,
            from: 0,
        };
        state.hand_over(&ask, now);
        core::mem::take(&mut state.files.get_mut(&INODE).unwrap().handed)
    }

    #[test]
    fn a_recall_brings_what_is_on_its_way_too_and_a_late_refusal_loses_nothing() {
        let mut state = leased();
        assert!(keep(&mut state, 0, b"flies", at(1)));
        let (request, flying) = state.take_off(INODE, at(31)).unwrap();
        assert_eq!((request.file, request.lease, request.age_ms), (FILE, 7, 30));
        assert!(keep(&mut state, 9, b"waits", at(2)));
        let handed = recall(&mut state, at(3));
        let pieces: Vec<_> = messages::pieces::pieces(&handed).flatten().collect();
        let places: Vec<_> = pieces.iter().map(|p| (p.offset, p.bytes)).collect();
        assert_eq!(
            places,
            [(0, &b"flies"[..]), (9, b"waits")],
            "in their order"
        );
        assert!(handed.starts_with(&flying));
        state.landed(INODE, Err(errno::ESTALE));
        assert!(state.failed.is_empty());
        assert!(!keep(&mut state, 0, b"x", at(60)), "no lease");
        // S is asked once whether it could carry it out.
        let (_, nothing) = state.take_off(INODE, at(61)).unwrap();
        assert!(nothing.is_empty());
        state.landed(INODE, Ok(Flushed { blocks: 100 }));
        assert!(state.files[&INODE].is_clean());
    }

    #[test]
    fn a_lease_that_was_lost_without_a_recall_is_a_failure() {
        let mut state = leased();
        assert!(keep(&mut state, 0, b"lost", at(1)));
        state.take_off(INODE, at(2)).unwrap();
        state.landed(INODE, Err(errno::ESTALE));
        assert_eq!(state.failed.get(&INODE), Some(&(1, errno::EIO)));
    }

    #[test]
    fn what_was_on_its_way_when_its_task_ended_goes_again() {
        let mut state = leased();
        assert!(keep(&mut state, 0, b"first", at(1)));
        let (_, first) = state.take_off(INODE, at(2)).unwrap();
        assert!(keep(&mut state, 0, b"again", at(3)));
        let (_, taken) = state.take_off(INODE, at(4)).unwrap();
        assert_eq!(first, taken);
        state.landed(INODE, Ok(Flushed { blocks: 100 }));
        let (_, second) = state.take_off(INODE, at(5)).unwrap();
        assert!(second.ends_with(b"again"));
        // Unless a recall has brought it.
        recall(&mut state, at(6));
        let (_, asks) = state.take_off(INODE, at(7)).unwrap();
        assert!(asks.is_empty());
    }

    #[test]
    fn nothing_is_kept_that_may_outlive_its_lease() {
        let mut state = leased();
        let last = at(0) + leases::TERM - SPARE;
        assert!(keep(&mut state, 0, b"x", last - Duration::from_millis(1)));
        assert!(!keep(&mut state, 1, b"x", last));
    }
}

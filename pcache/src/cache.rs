//! The cache: its sets, and the ends of transfers.

use alloc::boxed::Box;

use metrics::{Histogram, Summary};
use mutants::Mutant;

use crate::batch::{BATCH, Batch};
use crate::queue::Queues;
use crate::rmap::Pool;
use crate::set::{Line, Set, State};
use crate::shootdown::Shootdowns;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::victims::{MOST, Victims};
use crate::{
    Chunks, Counters, Entry, Error, Geometry, IoFailed, LineId, Machine, Mechanism, Policy, Slot,
    SpaceId,
};

/// One transfer in this many has its time taken: two clock reads and a histogram cost as much as a
/// lookup.
const TIMED: u32 = 8;

/// At most one set in so many waits for a victim: some three misses in a hundred meet one that
/// does.
const FEW: u32 = 16;

/// Parameters of choosing and preparing victims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The line of a full set that leaves first.
    pub policy: Policy,
    /// Mechanism of eviction.
    pub mechanism: Mechanism,
    /// Lines of each set that are kept free or clean and unmapped (they still hold their page), so
    /// that a miss finds one at once. At most half of the ways.
    pub reserve: u32,
    /// Sets that wait for a victim before a batch is begun, for [`Mechanism::Batch`].
    pub batch: u32,
    /// Lines of the victim cache, for [`Mechanism::Victim`]: at least 1 and at most 128.
    pub victims: u32,
    /// Cores that take misses.
    pub cores: u32,
}

impl Config {
    /// Returns the lines that a machine must have beside those of the sets.
    #[must_use]
    pub fn further_lines(&self) -> u32 {
        match self.mechanism {
            Mechanism::Victim => self.victims.clamp(1, MOST),
            _ => 0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            mechanism: Mechanism::default(),
            reserve: 1,
            batch: 16,
            victims: 8,
            cores: 1,
        }
    }
}

/// A set-associative cache of slots. The machine around it is `M`.
pub struct Cache<M: Machine> {
    pub(crate) machine: M,
    pub(crate) chunks: Chunks,
    pub(crate) geometry: Geometry,
    pub(crate) config: Config,
    /// Sets that wait before a batch is begun.
    pub(crate) batch: usize,
    sets: Box<[Mutex<Set<M::Entry>>]>,
    pub(crate) pool: Pool<M::Entry>,
    pub(crate) queues: Queues,
    pub(crate) shootdowns: Shootdowns,
    pub(crate) victims: Option<Victims>,
    fills: Histogram,
    flushes: Histogram,
    pub(crate) ahead: ReadaheadStats,
}

/// Use and waste of readahead, from which the window is set.
#[derive(Default)]
pub(crate) struct ReadaheadStats {
    pub(crate) used: AtomicU64,
    pub(crate) wasted: AtomicU64,
}

impl<M: Machine> Cache<M> {
    /// Returns an empty cache. This is the only place that allocates, but for the chunk table.
    #[must_use]
    pub fn new(geometry: Geometry, config: Config, chunks: Chunks, machine: M) -> Self {
        let reserve = config.reserve.clamp(1, geometry.ways() / 2);
        // Of few sets the next miss may well be in one that waits: then it may wait for a WRITE.
        let few = (geometry.sets() / FEW).max(1);
        let batch = (config.batch.min(few) as usize).clamp(1, BATCH / 2);
        let further = config.further_lines();
        Self {
            machine,
            chunks,
            geometry,
            config: Config { reserve, ..config },
            batch,
            sets: (0..geometry.sets())
                .map(|_| Mutex::new(Set::new(geometry.ways())))
                .collect(),
            pool: Pool::new(geometry.lines()),
            queues: Queues::new(config.cores, geometry.sets()),
            shootdowns: Shootdowns::new(config.cores),
            victims: (further > 0).then(|| Victims::new(geometry.lines(), further)),
            fills: Histogram::default(),
            flushes: Histogram::default(),
            ahead: ReadaheadStats::default(),
        }
    }

    /// Returns the cache's shape.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Returns the machine that the cache works on.
    #[must_use]
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// Returns the chunk table.
    #[must_use]
    pub const fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Returns the counters, summed over the sets.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for set in &self.sets {
            sum.add(&set.lock().counters);
        }
        sum
    }

    /// Returns the times that READs took, of one in eight of them.
    #[must_use]
    pub fn fill_times(&self) -> Summary {
        self.fills.summary()
    }

    /// Returns the times that WRITEs took (LegoOS's `pcache_flush_net`), of one in eight of them.
    #[must_use]
    pub fn flush_times(&self) -> Summary {
        self.flushes.summary()
    }

    /// Returns how many lines are in use, and how many of them are being read or written.
    #[must_use]
    pub fn lines_in_use(&self) -> (usize, usize) {
        let mut sum = self.victims.as_ref().map_or((0, 0), Victims::in_use);
        for set in &self.sets {
            for line in &set.lock().lines {
                sum.0 += usize::from(line.state != State::Free);
                sum.1 += usize::from(matches!(line.state, State::Reading | State::Writing));
            }
        }
        sum
    }

    /// Returns how many further mappings (of lines that several entries map) there is room for.
    #[must_use]
    pub fn spare_mappings(&self) -> usize {
        self.pool.free()
    }

    /// Takes the end of the transfer of `line`. A READ's page is mapped where it was missed, if the
    /// entry there is still what it was.
    ///
    /// # Errors
    ///
    /// [`Error::Fill`] or [`Error::WriteBack`] if the transfer failed: the node must say so, for a
    /// program's data is at stake. [`Error::UnknownTransfer`] if none is under way; nothing
    /// changed.
    pub fn complete(&self, id: LineId, result: Result<(), IoFailed>) -> Result<(), Error> {
        let Some((index, way)) = self.geometry.place(id) else {
            return self.victim_written(id, result);
        };
        let mut set = self.set(index);
        let outcome = match (set.lines[way].state, result) {
            (State::Reading, Ok(())) => {
                self.read_ended(&mut set, way, id);
                Ok(())
            }
            (State::Writing, Ok(())) => {
                set.counters.nr_clflush += 1;
                set.lines[way].state = State::Valid;
                self.flush_took(set.lines[way].started);
                self.settle(&mut set, way);
                Ok(())
            }
            (_, Err(cause)) => Err(self.failed(&mut set, id, way, cause)),
            _ => Err(Error::UnknownTransfer(id)),
        };
        Set::changed(set);
        outcome
    }

    /// Takes the end of a transfer that failed.
    #[cold]
    fn failed(&self, set: &mut Set<M::Entry>, id: LineId, way: usize, cause: IoFailed) -> Error {
        let Some(slot) = set.slot(way) else {
            return Error::UnknownTransfer(id);
        };
        let line = &mut set.lines[way];
        let error = match line.state {
            State::Reading => {
                (line.state, line.first) = (State::Failed(cause), None);
                set.counters.nr_pcache_fill_failed += 1;
                Error::Fill { slot, cause }
            }
            State::Writing => {
                (line.state, line.dirty) = (State::Valid, !Mutant::FailedWriteForgotten.on());
                set.counters.nr_clflush_fail += 1;
                Error::WriteBack { slot, cause }
            }
            _ => return Error::UnknownTransfer(id),
        };
        self.settle(set, way);
        error
    }

    /// Maps a page whose READ has ended.
    fn read_ended(&self, set: &mut Set<M::Entry>, way: usize, id: LineId) {
        set.counters.nr_pcache_fill_from_memory += 1;
        self.took(&self.fills, set.lines[way].started);
        let line = &mut set.lines[way];
        line.state = State::Valid;
        line.fetched = true;
        let Some(at) = line.first else {
            return self.settle(set, way);
        };
        let present = line
            .expected
            .to_present(self.machine.frame(id))
            .with_accessed(!line.prefetched);
        if present.is_executable() {
            self.make_code(line, id);
        }
        // It fails if the entry went away, moved or has other rights now.
        if line.dead || at.entry.exchange(line.expected, present).is_err() {
            line.first = None;
            self.settle(set, way);
        }
    }

    /// Notes how long a write-back took.
    pub(crate) fn flush_took(&self, started: hal::Instant) {
        self.took(&self.flushes, started);
    }

    fn took(&self, times: &Histogram, started: hal::Instant) {
        if started.nanos != 0 {
            times.record(self.machine.now().since(started));
        }
    }

    /// Returns the time for a transfer of the set that begins, or zero if its time is not taken.
    pub(crate) fn start_time(&self, set: &Set<M::Entry>) -> hal::Instant {
        if set.tick.is_multiple_of(TIMED) {
            self.machine.now()
        } else {
            hal::Instant::default()
        }
    }

    /// Gets a line ready to be executed by programs.
    pub(crate) fn make_code(&self, line: &mut Line<M::Entry>, id: LineId) {
        line.code = true;
        if core::mem::take(&mut line.fetched) {
            self.machine.prepare_code(id);
        }
    }

    /// Prepares a newly taken line for other bytes.
    pub(crate) fn renew(&self, set: &mut Set<M::Entry>, index: u32, way: usize) {
        if core::mem::take(&mut set.lines[way].code) {
            self.machine.retire_code(self.geometry.line(index, way));
        }
    }

    /// Frees line and slot if the slot has no user and nothing is under way; else notes the change.
    pub(crate) fn settle(&self, set: &mut Set<M::Entry>, way: usize) {
        let line = &set.lines[way];
        let quiet = matches!(line.state, State::Valid | State::Failed(_)) && line.flushing == 0;
        match set.slot(way) {
            Some(slot) if line.dead && quiet => {
                set.clear(way);
                self.chunks.free(slot);
            }
            _ => set.update(way),
        }
    }

    /// Takes a user from a slot whose entry went away; the last one frees line and slot, at once or
    /// when nothing of it is under way any more.
    pub(crate) fn drop_user(&self, set: &mut Set<M::Entry>, slot: Slot) {
        if !self.chunks.drop_user(slot) {
            return;
        }
        match set.find(slot) {
            Some(way) => {
                set.lines[way].dead = true;
                self.settle(set, way);
            }
            None if self.forget_victim(slot) => self.chunks.free(slot),
            None => {}
        }
    }

    /// Takes the user from a slot that no entry names: one of a shared object that nothing maps.
    pub fn drop_slot(&self, slot: Slot) {
        let mut set = self.set(self.geometry.set_of(slot));
        self.drop_user(&mut set, slot);
    }

    pub(crate) fn set(&self, index: u32) -> MutexGuard<'_, Set<M::Entry>> {
        self.sets[index as usize].lock()
    }

    /// Returns the set and way of the line that a present entry maps.
    pub(crate) fn place_of(&self, frame: u64) -> (LineId, u32, usize) {
        let line = self.machine.line(frame).expect("an entry maps a line");
        let (index, way) = self.geometry.place(line).expect("a line of this cache");
        (line, index, way)
    }

    /// Returns a batch for changes of a space's entries that need a shootdown.
    pub fn batch(&self, space: SpaceId) -> Batch<'_, M> {
        Batch::new(self, Some(space))
    }

    /// Returns how many pages of readahead were used, and how many were evicted unused.
    #[must_use]
    pub fn read_ahead(&self) -> (u64, u64) {
        (
            self.ahead.used.load(Ordering::Relaxed),
            self.ahead.wasted.load(Ordering::Relaxed),
        )
    }
}

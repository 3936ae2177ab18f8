//! The cache: its sets, the way of a miss, the ends of transfers.

use alloc::boxed::Box;

use hal::Instant;
use metrics::{Histogram, Summary};

use crate::set::{Set, State};
use crate::sync::{Mutex, MutexGuard};
use crate::wait::WaitList;
use crate::{
    Counters, Error, Geometry, IoFailed, LineId, Load, Machine, Page, Pinned, Policy, Source, Token,
};

/// How a cache chooses and prepares its victims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Which line of a full set leaves first.
    pub policy: Policy,
    /// Lines of a full set that are made ready for the next miss ahead of it (unmapped and written back, but still
    /// holding their page), so that a miss does not wait for the write-back of its own victim. At most half of the ways.
    pub reserve: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::Clock,
            reserve: 1,
        }
    }
}

/// A set-associative cache of pages. The machine around it is `M`.
pub struct Cache<M> {
    pub(crate) machine: M,
    geometry: Geometry,
    pub(crate) policy: Policy,
    pub(crate) reserve: usize,
    sets: Box<[Mutex<Set>]>,
    waits: Box<[Mutex<WaitList>]>,
    fills: Histogram,
    flushes: Histogram,
}

/// The answer to an access.
pub enum Access<'a, M: Machine> {
    /// The page is in a line, which stays as long as the pin lives.
    Ready(Pinned<'a, M>),
    /// The page's line is the caller's to load ([`Source::Caller`]).
    Load(Load<'a, M>),
    /// The page's line, or any line of its set, has to be waited for: try again after the next completion.
    Wait,
}

impl<M: Machine> Cache<M> {
    /// An empty cache. This is the only place that allocates.
    #[must_use]
    pub fn new(geometry: Geometry, config: Config, machine: M) -> Self {
        Self {
            machine,
            geometry,
            policy: config.policy,
            reserve: config.reserve.min(geometry.ways() / 2) as usize,
            sets: (0..geometry.sets())
                .map(|_| Mutex::new(Set::new(geometry.ways())))
                .collect(),
            waits: (0..geometry.sets())
                .map(|_| Mutex::new(WaitList::default()))
                .collect(),
            fills: Histogram::default(),
            flushes: Histogram::default(),
        }
    }

    /// The cache's shape.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The machine that the cache works on.
    #[must_use]
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// Counters, summed over the sets.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for set in &self.sets {
            sum.add(&set.lock().counters);
        }
        sum
    }

    /// The times that reads took, from start to completion.
    #[must_use]
    pub fn fill_times(&self) -> Summary {
        self.fills.summary()
    }

    /// The times that write-backs took, from start to completion (LegoOS's `pcache_flush_net`).
    #[must_use]
    pub fn flush_times(&self) -> Summary {
        self.flushes.summary()
    }

    /// Lines in use, and how many of them are being read or written.
    #[must_use]
    pub fn lines_in_use(&self) -> (usize, usize) {
        let mut sum = (0, 0);
        for set in &self.sets {
            for line in &set.lock().lines {
                sum.0 += usize::from(line.state != State::Free);
                sum.1 += usize::from(matches!(line.state, State::Reading | State::Writing));
            }
        }
        sum
    }

    /// Asks for `page`; starts what is needed to bring it in.
    ///
    /// # Errors
    ///
    /// [`Error::Fill`] if the page could not be read (said once to each access that waited for it; the next one tries
    /// again), [`Error::NoPlace`] if a victim has no place in remote memory.
    pub fn access(&self, page: Page, now: Instant) -> Result<Access<'_, M>, Error> {
        self.attempt(page, now, true)
    }

    /// As [`Cache::access`], for an access that was told to wait: it is not counted again.
    ///
    /// # Errors
    ///
    /// As for [`Cache::access`].
    pub fn access_again(&self, page: Page, now: Instant) -> Result<Access<'_, M>, Error> {
        self.attempt(page, now, false)
    }

    fn attempt(&self, page: Page, now: Instant, first: bool) -> Result<Access<'_, M>, Error> {
        let index = self.geometry.set_of(page);
        let mut uncounted = first;
        // One turn usually does; more are needed only while other cores take what this one makes free.
        for _ in 0..=self.geometry.ways() {
            let mut set = self.set(index);
            set.counters.nr_pgfault += u64::from(core::mem::take(&mut uncounted));
            if let Some(way) = set.find(page) {
                return self.found(&mut set, index, way, first);
            }
            if let Some(way) = set.take() {
                return self.fill(set, index, way, page, now);
            }
            let enough_leave = set.leaving() >= self.reserve.max(1);
            set.counters.nr_pcache_eviction_eagain_concurrent += u64::from(enough_leave);
            if enough_leave || !self.evict(set, index, now)? {
                return Ok(Access::Wait);
            }
        }
        self.wake(index);
        Ok(Access::Wait)
    }

    /// An access whose page has a line.
    fn found(&self, set: &mut Set, index: u32, way: usize, first: bool) -> Result<Access<'_, M>, Error> {
        let Set { lines, counters, .. } = set;
        let line = &mut lines[way];
        if line.doomed || line.unmapping {
            return Ok(Access::Wait);
        }
        match line.state {
            State::Valid | State::Writing => {
                line.pins += 1;
                line.referenced = true;
                counters.nr_pcache_fill_from_victim += u64::from(line.victim);
                counters.nr_pcache_hit += u64::from(first);
                line.victim = false;
                Ok(Access::Ready(Pinned::new(self, index, way, line.page)))
            }
            State::Failed(cause) => {
                let page = line.page;
                line.doomed = true;
                line.settle();
                Err(Error::Fill { page, cause })
            }
            _ => {
                counters.nr_pcache_fill_coalesced += u64::from(first);
                Ok(Access::Wait)
            }
        }
    }

    /// Brings `page` into way `way`, which is free or holds a page that may go.
    fn fill(
        &self,
        mut set: MutexGuard<'_, Set>,
        index: u32,
        way: usize,
        page: Page,
        now: Instant,
    ) -> Result<Access<'_, M>, Error> {
        let id = self.geometry.line(index, way);
        let source = self.machine.source(page);
        let line = &mut set.lines[way];
        match source {
            Source::Remote(from) => {
                line.begin(page, State::Reading, now);
                let token = Token::new(id, line.generation);
                drop(set);
                self.machine.start_read(token, id, from);
                self.evict_ahead(index, now)?;
                Ok(Access::Wait)
            }
            Source::Zero => {
                line.begin(page, State::Loading, now);
                set.counters.nr_pcache_fill_zerofill += 1;
                drop(set);
                self.machine.zero(id);
                let ready = Load::new(self, index, way, page).into_pinned();
                self.evict_ahead(index, now)?;
                Ok(Access::Ready(ready))
            }
            Source::Caller => {
                line.begin(page, State::Loading, now);
                set.counters.nr_pcache_fill_from_file += 1;
                drop(set);
                let load = Load::new(self, index, way, page);
                self.evict_ahead(index, now)?;
                Ok(Access::Load(load))
            }
        }
    }

    /// Takes the end of the transfer that `token` names.
    ///
    /// # Errors
    ///
    /// [`Error::Fill`] or [`Error::WriteBack`] if the transfer failed: the node must say so, for a program's data is at
    /// stake. [`Error::UnknownToken`] if no such transfer is under way; nothing was changed then.
    pub fn complete(&self, token: Token, result: Result<(), IoFailed>, now: Instant) -> Result<(), Error> {
        let (index, way) = self
            .geometry
            .place(token.line())
            .ok_or(Error::UnknownToken(token))?;
        let mut set = self.set(index);
        let Set { lines, counters, .. } = &mut *set;
        let line = &mut lines[way];
        if line.generation != token.generation() {
            return Err(Error::UnknownToken(token));
        }
        let (page, took) = (line.page, now.since(line.started));
        let outcome = match (line.state, result) {
            (State::Reading, Ok(())) => {
                line.state = State::Valid;
                counters.nr_pcache_fill_from_memory += 1;
                self.fills.record(took);
                Ok(())
            }
            (State::Reading, Err(cause)) => {
                line.state = State::Failed(cause);
                counters.nr_pcache_fill_failed += 1;
                Err(Error::Fill { page, cause })
            }
            (State::Writing, Ok(())) => {
                line.state = State::Valid;
                counters.nr_clflush += 1;
                self.flushes.record(took);
                // Said under the lock: no one may take the line before the backing knows, and a page given up
                // meanwhile must not leave a trace in whatever gets its address next.
                if !line.doomed {
                    self.machine.written_back(page);
                }
                Ok(())
            }
            (State::Writing, Err(cause)) => {
                line.state = State::Valid;
                line.dirty = true;
                counters.nr_clflush_fail += 1;
                Err(Error::WriteBack { page, cause })
            }
            _ => return Err(Error::UnknownToken(token)),
        };
        line.settle();
        drop(set);
        self.wake(index);
        outcome
    }

    pub(crate) fn set(&self, index: u32) -> MutexGuard<'_, Set> {
        self.sets[index as usize].lock()
    }

    pub(crate) fn waits(&self, index: u32) -> &Mutex<WaitList> {
        &self.waits[index as usize]
    }

    pub(crate) fn line_id(&self, index: u32, way: usize) -> LineId {
        self.geometry.line(index, way)
    }

    /// Wakes all that wait for a line of the set: something changed.
    pub(crate) fn wake(&self, index: u32) {
        let woken = core::mem::take(&mut *self.waits(index).lock());
        woken.wake();
    }
}

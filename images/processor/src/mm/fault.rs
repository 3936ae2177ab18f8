//! Page faults: misses, first touches, copy-on-write, stack growth.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::{Poll, Waker};
use core::time::Duration;

use locks::MutexGuard;
use messages::{CHUNK_SIZE, PAGE_SIZE};
use pcache::{
    Access, Advice, CHUNK_PAGES, ChunkId, Content, Entry, FaultAnswer, Filled, Machine, Mapping,
    Miss, Plan, Pte, Rights, Slot, Vpn,
};

use super::file::{self, FilePages};
use super::vma::{Backing, VmaFlags, Vmas};
use super::{EntryOf, STACK_GAP, Space, Tables};
use crate::error::{Error, Exit, Result};
use crate::load::PIECE;
use crate::platform::Platform;
use crate::process::Node;

/// Bounds the time that a fault polls for a READ that it started. A READ takes some 5 µs on a card
/// (FDR) and 25 µs on the model, on a busy machine longer; a sleep and an interrupt would cost
/// more. What the core has to do besides ends it sooner ([`Node::poll_pages`]).
const READ_SPIN: Duration = Duration::from_millis(1);
/// Bounds the time that a fault polls for what another one started: it may be a WRITE, whose end
/// only makes room.
const WAIT_SPIN: Duration = Duration::from_micros(100);
/// Bounds the time that the pages of files that are given up may take to be freed.
const RECLAIM: Duration = Duration::from_secs(2);
/// Interval at which that is looked at.
const RECLAIM_STEP: Duration = Duration::from_millis(1);
/// The signal that Linux's out-of-memory killer sends.
const SIGKILL: u8 = 9;

/// Reasons to refuse an access. The numbers are those of Linux's `si_code`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Nothing is mapped there (SIGSEGV, `SEGV_MAPERR`).
    Unmapped,
    /// The mapping's rights forbid it (SIGSEGV, `SEGV_ACCERR`).
    Forbidden,
    /// The page lies beyond the end of a file (SIGBUS, `BUS_ADRERR`).
    BeyondEnd,
}

/// The result of what can be done of a fault at once.
pub(crate) enum ImmediateResult {
    /// The entry permits the access.
    Done,
    /// The fault must wait, or has to do with more than its entry.
    Later {
        /// The cache was not asked yet.
        first: bool,
    },
}

impl ImmediateResult {
    fn of(done: bool, first: bool) -> Self {
        if done {
            Self::Done
        } else {
            Self::Later { first }
        }
    }
}

/// The result of one look at a fault.
enum Step {
    Done,
    /// A READ was started; no waker was kept.
    Started,
    Wait,
    Refused(Refused),
    /// A page of a file must be brought first.
    NeedsFile(Arc<FilePages>, u64),
    /// The region of the page has no chunk with a free slot.
    NeedsChunk,
}

impl<N: Node> Space<'_, N> {
    /// Makes the entry of the page at `addr` permit `access`. With `force` the rights of its VMA do
    /// not matter, only that there is one: for the kernel's own loading.
    ///
    /// # Errors
    ///
    /// What ends the process or the node; an access that is not allowed is `Ok(Err(_))`.
    pub(crate) async fn fault(
        &self,
        addr: u64,
        access: Access,
        force: bool,
    ) -> Result<core::result::Result<(), Refused>> {
        let plan = |miss: Miss| self.prefetcher.lock().miss(miss);
        match self.fault_now(addr, access, plan)? {
            ImmediateResult::Done => Ok(Ok(())),
            ImmediateResult::Later { first } => self.fault_later(addr, access, force, first).await,
        }
    }

    /// Continues what [`fault_now`](Self::fault_now) could not complete. `first` and results are as
    /// there and with [`fault`](Self::fault).
    ///
    /// # Errors
    ///
    /// As [`fault`](Self::fault).
    pub(crate) async fn fault_later(
        &self,
        addr: u64,
        access: Access,
        force: bool,
        mut first: bool,
    ) -> Result<core::result::Result<(), Refused>> {
        let page = addr / PAGE_SIZE * PAGE_SIZE;
        loop {
            match self.step(page, access, force, first, None)? {
                Step::Done => return Ok(Ok(())),
                Step::Refused(why) => return Ok(Err(why)),
                Step::NeedsChunk => self.fetch_chunk(page).await?,
                Step::NeedsFile(file, of_file) => match self.bring(&file, of_file).await {
                    // S can't read it: as a disk that fails.
                    Err(Error::Errno(_)) => return Ok(Err(Refused::BeyondEnd)),
                    brought => brought?,
                },
                step @ (Step::Started | Step::Wait) => {
                    let started = matches!(step, Step::Started);
                    let spin = if started { self.read_spin() } else { WAIT_SPIN };
                    let entry = self.tables.entry(page);
                    if !entry.is_some_and(|entry| self.look_for_completion(entry, access, spin)) {
                        self.wait(page, access, force).await?;
                    }
                }
            }
            first = false;
        }
    }

    /// Does all of a fault that can be done without letting others run: a first touch of memory
    /// that has a chunk, and a miss that needs nothing but its READ, for which it polls. It is the
    /// whole way of nearly every fault, and no `async` function: its state need not outlive the
    /// call. `plan` says what to read with a page that was missed; a thread keeps its own history
    /// for that, so that the streams of threads are told apart and none waits for another's lock.
    ///
    /// Locks of a clean miss: the set's twice (start, end), the page path's twice (post,
    /// completion); of its share of evictions: the set's twice, the queue's once. A batch of
    /// victims adds one of the queue and, with WRITEs, one of the page path. All but sets' are this
    /// core's own.
    ///
    /// # Errors
    ///
    /// As [`fault`](Self::fault): those that end the node.
    #[inline]
    pub(crate) fn fault_now(
        &self,
        addr: u64,
        access: Access,
        plan: impl FnOnce(Miss) -> Plan,
    ) -> Result<ImmediateResult> {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let entry = self
            .tables
            .entry(addr)
            .filter(|entry| !entry.load().is_empty());
        let Some(entry) = entry else {
            let step = self.first_touch(addr / PAGE_SIZE * PAGE_SIZE, access, false, None)?;
            return Ok(ImmediateResult::of(matches!(step, Step::Done), true));
        };
        if !entry.load().is_remote() {
            return Ok(ImmediateResult::Later { first: true });
        }
        let at = self.mapping(addr, entry);
        let plan = self.miss(at.page.vpn).map_or(Plan::NONE, plan);
        let came = match self.node.cache().touch(at, access, true, plan, None)? {
            FaultAnswer::Done => true,
            FaultAnswer::Started => self.look_for_completion(entry, access, self.read_spin()),
            FaultAnswer::Wait | FaultAnswer::Empty | FaultAnswer::Copy | FaultAnswer::Denied => {
                false
            }
        };
        Ok(ImmediateResult::of(came, false))
    }

    /// Brings a page of a file. Boxed: the kernel's own space is filled by faults of its own.
    async fn bring(&self, file: &FilePages, page: u64) -> Result<()> {
        let space = self.node.kernel().tmpfs().space();
        Box::pin(file::bring(self.node, space, file, page, PIECE)).await
    }

    /// Returns how long to poll for a READ: no longer than other threads of the core can do without
    /// it.
    fn read_spin(&self) -> Duration {
        let core = self.node.cache().machine().core();
        if self.node.kernel().cores.threads_on(core) > 1 {
            WAIT_SPIN
        } else {
            READ_SPIN
        }
    }

    /// Polls the device, for no longer than `spin`, until the page has come; true if it has.
    fn look_for_completion(&self, entry: EntryOf<N>, access: Access, spin: Duration) -> bool {
        let platform = self.node.platform();
        let mut now = platform.now();
        let end = now + spin;
        while now < end && self.node.poll_pages(now) {
            if entry.load().permits(access) {
                return true;
            }
            now = platform.now();
        }
        false
    }

    /// Waits until a look at the page comes to something else than waiting.
    async fn wait(&self, page: u64, access: Access, force: bool) -> Result<()> {
        poll_fn(
            |context| match self.step(page, access, force, false, Some(context.waker())) {
                Ok(Step::Wait) => Poll::Pending,
                Ok(_) => Poll::Ready(Ok(())),
                Err(error) => Poll::Ready(Err(error)),
            },
        )
        .await
    }

    /// Does what one look at the page's entry allows.
    fn step(
        &self,
        page: u64,
        access: Access,
        force: bool,
        first: bool,
        waker: Option<&Waker>,
    ) -> Result<Step> {
        let Some(entry) = self.tables.entry(page) else {
            return self.first_touch(page, access, force, waker);
        };
        let at = self.mapping(page, entry);
        Ok(
            match self
                .node
                .cache()
                .touch(at, access, first, Plan::NONE, waker)?
            {
                FaultAnswer::Done => Step::Done,
                FaultAnswer::Started => Step::Started,
                FaultAnswer::Wait => Step::Wait,
                FaultAnswer::Empty => return self.first_touch(page, access, force, waker),
                FaultAnswer::Copy => self.copy_page(page, at, waker),
                FaultAnswer::Denied if force && entry.load().is_present() => Step::Done,
                FaultAnswer::Denied if self.first_store(page, access, at) => {
                    return self.step(page, access, force, false, waker);
                }
                FaultAnswer::Denied => Step::Refused(Refused::Forbidden),
            },
        )
    }

    /// Lets a program store to a page of a file that it has only read through this mapping;
    /// returns whether it may. Called for an entry that does not permit the access.
    fn first_store(&self, page: u64, access: Access, at: Mapping<EntryOf<N>>) -> bool {
        if access != Access::Write {
            return false;
        }
        let vmas = self.vmas.lock();
        let Some((range, vma)) = vmas.find(page) else {
            return false;
        };
        let Some((file, of_file)) = vma.stored_file(range.start, page) else {
            return false;
        };
        if !vma.rights.contains(Rights::WRITE) {
            return false;
        }
        file.stored_to(of_file);
        let cache = self.node.cache();
        let mut batch = cache.batch(self.tables.space());
        cache.protect_page(at, vma.rights, &mut batch);
        true
    }

    /// Returns what a prefetcher is to know of a miss; `None` if nothing is read ahead.
    #[inline]
    fn miss(&self, vpn: Vpn) -> Option<Miss> {
        if !self.node.reads_ahead() {
            return None;
        }
        let advice = if self.advised.load(Ordering::Relaxed) {
            let vmas = self.vmas.lock();
            vmas.find(vpn.addr())
                .map_or(Advice::Normal, |(_, vma)| vma.advice)
        } else {
            Advice::Normal
        };
        let fate = self.node.cache().read_ahead();
        Some(Miss { vpn, advice, fate })
    }

    /// Handles a page that was never touched: its VMA says what it contains.
    #[inline]
    fn first_touch(
        &self,
        page: u64,
        access: Access,
        force: bool,
        waker: Option<&Waker>,
    ) -> Result<Step> {
        let mut vmas = self.vmas.lock();
        match vmas.anonymous(page) {
            Some(rights) if rights.allow(access) => self.touch_anonymous(page, rights, waker),
            _ => self.first_touch_of_other(vmas, page, (access, force), waker),
        }
    }

    /// Handles a first touch of all but anonymous memory, and accesses that the rights do not
    /// allow.
    #[inline(never)]
    fn first_touch_of_other(
        &self,
        mut vmas: MutexGuard<'_, Vmas>,
        page: u64,
        (access, force): (Access, bool),
        waker: Option<&Waker>,
    ) -> Result<Step> {
        if vmas.find(page).is_none() && !self.grow_stack(&mut vmas, page) {
            return Ok(Step::Refused(Refused::Unmapped));
        }
        let Some((range, vma)) = vmas.find(page) else {
            return Ok(Step::Refused(Refused::Unmapped));
        };
        if !force && !vma.rights.allow(access) {
            return Ok(Step::Refused(Refused::Forbidden));
        }
        if matches!(vma.backing, Backing::Beyond) {
            return Ok(Step::Refused(Refused::BeyondEnd));
        }
        let rights = vma.rights;
        if let Backing::File(file, first) = &vma.backing {
            let of_file = first + (page - range.start) / PAGE_SIZE;
            if of_file >= file.count() {
                return Ok(Step::Refused(Refused::BeyondEnd));
            }
            let Some(slot) = file.slot(of_file) else {
                return Ok(Step::NeedsFile(file.clone(), of_file));
            };
            let remote = match vma.stored_file(range.start, page) {
                None => Pte::remote(slot, rights).with_object().with_cow(),
                Some(_) if access == Access::Write => {
                    file.stored_to(of_file);
                    Pte::remote(slot, rights).with_object()
                }
                Some(_) => Pte::remote(slot, rights - Rights::WRITE).with_object(),
            };
            let at = self.make_entry(page)?;
            let _ = at.entry.exchange(Pte::EMPTY, remote);
            drop(vmas);
            return self.step(page, access, force, false, waker);
        }
        if let Backing::Object(object, first) = &vma.backing {
            let of_object = first + (page - range.start) / PAGE_SIZE;
            if vma.flags.contains(VmaFlags::BOUNDED) && of_object >= object.pages() {
                return Ok(Step::Refused(Refused::BeyondEnd));
            }
            let at = self.make_entry(page)?;
            if let Some(slot) = object.slot(of_object) {
                // Others touched it: from here on it is a miss like any other.
                let remote = Pte::remote(slot, rights).with_object();
                let _ = at.entry.exchange(Pte::EMPTY, remote);
                drop(vmas);
                return self.step(page, access, force, false, waker);
            }
            let Some(slot) = self.slot(page) else {
                return Ok(Step::NeedsChunk);
            };
            let object = object.clone();
            let step = self.install(at, slot, rights, true, waker);
            if matches!(step, Step::Done) && object.put(of_object, slot).is_some() {
                log::error!("a page of an object was touched twice at once");
            }
            return Ok(step);
        }
        self.touch_anonymous(page, rights, waker)
    }

    /// Gives a page that was never touched, and starts as zeros, a slot. Called with the VMAs
    /// locked.
    #[inline]
    fn touch_anonymous(&self, page: u64, rights: Rights, waker: Option<&Waker>) -> Result<Step> {
        let at = self.make_entry(page)?;
        let Some(slot) = self.slot(page) else {
            return Ok(Step::NeedsChunk);
        };
        Ok(self.install(at, slot, rights, false, waker))
    }

    /// Returns the place of a page's entry, with its tables made. Called with the VMAs locked.
    #[inline]
    fn make_entry(&self, page: u64) -> Result<Mapping<EntryOf<N>>> {
        let Some(entry) = self.tables.entry_or_create(page) else {
            log::error!("no memory for page tables");
            return Err(Error::Ended(Exit::Signal(SIGKILL)));
        };
        Ok(self.mapping(page, entry))
    }

    /// Maps a zeroed line.
    #[inline]
    fn install(
        &self,
        at: Mapping<EntryOf<N>>,
        slot: Slot,
        rights: Rights,
        object: bool,
        waker: Option<&Waker>,
    ) -> Step {
        let cache = self.node.cache();
        let filled = cache.install(at, slot, rights, Content::Zero, object, waker);
        if filled != Filled::Done {
            cache.chunks().cancel(slot);
        }
        match filled {
            Filled::Wait => Step::Wait,
            _ => Step::Done,
        }
    }

    /// Gives a page that is marked copy-on-write a slot of its own.
    fn copy_page(&self, page: u64, at: Mapping<EntryOf<N>>, waker: Option<&Waker>) -> Step {
        let cache = self.node.cache();
        let mut filled = cache.reuse(at);
        if filled == Filled::Wait {
            let Some(slot) = self.slot(page) else {
                return Step::NeedsChunk;
            };
            filled = cache.copy(at, slot, waker);
            if filled != Filled::Done {
                cache.chunks().cancel(slot);
            }
        }
        match filled {
            Filled::Wait => Step::Wait,
            _ => Step::Done,
        }
    }

    /// Allocates a slot of the page's region; `None` if that has no chunk, or none with room.
    #[inline]
    fn slot(&self, page: u64) -> Option<Slot> {
        let chunk = *self.regions.lock().get(&(page / CHUNK_SIZE))?;
        let wish = page / PAGE_SIZE % CHUNK_PAGES;
        self.node.cache().chunks().allocate(chunk, wish)
    }

    /// Gets a chunk for the page's region. If M has none, the region gets one that has room still;
    /// if there is no such either, the process ends as by Linux's out-of-memory killer.
    async fn fetch_chunk(&self, page: u64) -> Result<()> {
        if let Some(chunk) = self.node.supply().take(self.node, self.pid).await? {
            self.set_region(page / CHUNK_SIZE, chunk);
            return Ok(());
        }
        if self.take_room(page) || self.take_room_of_files(page).await {
            return Ok(());
        }
        log::error!("process {}: M has no memory left", self.pid);
        Err(Error::Ended(Exit::Signal(SIGKILL)))
    }

    /// Gives the page's region a chunk that is here and has room; returns whether there is one.
    fn take_room(&self, page: u64) -> bool {
        let cache = self.node.cache();
        if let Some(chunk) = self.node.supply().take_spare(cache) {
            self.set_region(page / CHUNK_SIZE, chunk);
            return true;
        }
        let Some(slot) = cache.chunks().allocate_any() else {
            return false;
        };
        // The slot keeps the chunk until it is the region's.
        self.set_region(page / CHUNK_SIZE, slot.chunk());
        cache.chunks().cancel(slot);
        true
    }

    /// Gives up the pages of files that nothing uses, and waits for room of theirs.
    async fn take_room_of_files(&self, page: u64) -> bool {
        let kernel = self.node.kernel();
        let gone = kernel.file_cache.lock().give_up();
        if gone.is_empty() {
            return false;
        }
        drop(gone);
        kernel.closing.hurry();
        let platform = self.node.platform();
        let end = platform.now() + RECLAIM;
        while platform.now() < end {
            platform.sleep_until(platform.now() + RECLAIM_STEP).await;
            if self.take_room(page) {
                return true;
            }
        }
        false
    }

    /// Makes a chunk a region's, instead of one that is full.
    fn set_region(&self, region: u64, chunk: ChunkId) {
        let chunks = self.node.cache().chunks();
        chunks.attach(chunk);
        if let Some(full) = self.regions.lock().insert(region, chunk) {
            chunks.detach(full);
        }
    }

    /// Returns the start of the stack above `page` that may grow down to it.
    pub(super) fn stack_above(&self, vmas: &Vmas, page: u64) -> Option<u64> {
        let (range, vma) = vmas.above(page)?;
        let may = vma.flags.contains(VmaFlags::GROWSDOWN)
            && range.end - page <= self.stack_limit.load(Ordering::Relaxed);
        let below = vmas.end_below(page + 1);
        let clear = page >= below.saturating_add(STACK_GAP) && page >= super::MMAP_MIN;
        (may && clear).then_some(range.start)
    }

    /// Grows the stack above `page` down to it; false if there is none that may.
    fn grow_stack(&self, vmas: &mut Vmas, page: u64) -> bool {
        let Some(start) = self.stack_above(vmas, page) else {
            return false;
        };
        vmas.grow_down(start, page);
        true
    }
}

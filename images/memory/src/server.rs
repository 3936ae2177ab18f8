//! Carries out the manager's actions, while other requests are answered.

use alloc::collections::BTreeMap;
use core::future::poll_fn;
use core::task::Poll;

use futures_util::task::AtomicWaker;
use hal::{Duration, Instant};
use spin::Mutex;
use verbs::Rkey;

use crate::{Action, Counters, ExtentId, Lost, Manager, PeerKey, Step};

/// The time that a request for chunks may wait for extents to be registered and cleaned.
///
/// It is well below the deadline of FIT's calls: a caller that has given up would never return the
/// chunks.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The time between two looks at whether another task's action has ended.
const LOOK: Duration = Duration::from_micros(50);

/// The most requests that wait for memory to be cleaned, each in a task that runs handlers.
///
/// More are answered by EAGAIN: if all those tasks waited, no request would be answered. So each
/// core has [`WORKERS`] of them.
pub const MAX_WAITING: usize = 6;

/// The most waiting requests of one peer, so that one peer does not take all places.
pub const MAX_WAITING_OF_PEER: usize = 2;

/// The number of tasks that should run [`Server::handle`] on each core.
pub const WORKERS: u16 = 8;

const _: () = assert!((WORKERS as usize) > MAX_WAITING);

/// An action that the machine could not carry out. The machine has logged why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// The machine under the manager: the HCA, the memory and the clock.
pub trait Machine: Send + Sync {
    /// Registers an extent for a borrower, with rights to read and write, and returns the region's
    /// key.
    fn register(
        &self,
        extent: ExtentId,
        to: PeerKey,
        addr: u64,
        len: u64,
    ) -> impl Future<Output = Result<Rkey, Failed>> + Send;

    /// Deregisters an extent's region.
    fn deregister(&self, extent: ExtentId) -> impl Future<Output = Result<(), Failed>> + Send;

    /// Zeroes `len` bytes from the bus address `addr` on.
    fn zero(&self, addr: u64, len: u64);

    /// Lets the core's other tasks run.
    fn yield_now(&self) -> impl Future<Output = ()> + Send;

    /// Waits for `span`.
    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + Send;

    /// Returns the time.
    fn now(&self) -> Instant;
}

/// M at work: the manager under its lock, and the machine.
///
/// The lock is never held while an action is carried out, so requests are answered meanwhile.
#[derive(Debug)]
pub struct Server<M> {
    pub(crate) manager: Mutex<Manager>,
    pub(crate) machine: M,
    /// Number of waiting requests of each peer.
    waiting: Mutex<BTreeMap<PeerKey, usize>>,
    /// Wakes the task that runs [`clean`](Self::clean).
    cleaner: AtomicWaker,
}

impl<M: Machine> Server<M> {
    /// Serves what `manager` lends.
    #[must_use]
    pub fn new(manager: Manager, machine: M) -> Self {
        Self {
            manager: Mutex::new(manager),
            machine,
            waiting: Mutex::new(BTreeMap::new()),
            cleaner: AtomicWaker::new(),
        }
    }

    /// Returns the manager's counters and gauges.
    pub fn counters(&self) -> Counters {
        self.manager.lock().counters()
    }

    /// Returns the machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Answers one request; returns the reply's length. See [`Manager::handle`].
    pub async fn handle(
        &self,
        from: PeerKey,
        kind: u16,
        request: &[u8],
        reply: &mut [u8],
    ) -> usize {
        let (mut deadline, mut place) = (None, None);
        loop {
            let step = self.manager.lock().handle(from, kind, request, reply);
            let short = match step {
                Step::Replied(len) => return len,
                Step::First(action) => {
                    let failed = self.carry_out(action).await.is_err();
                    self.cleaner.wake();
                    let registers = matches!(action, Action::Register { .. });
                    // The same extent would be ordered again at once. A region that can't be
                    // deregistered is not.
                    if failed && registers {
                        break;
                    }
                    registers
                }
                Step::Wait => false,
            };
            // The action was carried out, so even requests that are put off get on.
            if !short && place.is_none() {
                place = self.wait(from);
                if place.is_none() {
                    return self.manager.lock().put_off(reply);
                }
            }
            if step == Step::Wait {
                self.machine.sleep(LOOK).await;
            }
            let now = self.machine.now();
            if now >= *deadline.get_or_insert(now + PATIENCE) {
                break;
            }
        }
        let mut manager = self.manager.lock();
        manager.handle_at_once(from, kind, request, reply)
    }

    /// Takes a place among the waiting requests, if there is one.
    fn wait(&self, peer: PeerKey) -> Option<Place<'_>> {
        let mut waiting = self.waiting.lock();
        let total: usize = waiting.values().sum();
        let theirs = waiting.get(&peer).copied().unwrap_or(0);
        if total == MAX_WAITING || theirs == MAX_WAITING_OF_PEER {
            return None;
        }
        waiting.insert(peer, theirs + 1);
        let waiting = &self.waiting;
        Some(Place { waiting, peer })
    }

    /// Takes back all that a lost peer had; [`clean`](Self::clean) makes it fit for others.
    pub fn peer_lost(&self, peer: PeerKey) -> Lost {
        let lost = self.manager.lock().peer_lost(peer);
        self.cleaner.wake();
        lost
    }

    /// Cleans what borrowers leave behind, piece by piece. It never ends, and one task runs it.
    pub async fn clean(&self) {
        loop {
            let action = poll_fn(|context| {
                self.cleaner.register(context.waker());
                let action = self.manager.lock().clean();
                action.map_or(Poll::Pending, Poll::Ready)
            });
            // A failure was logged, and its extent is out of use.
            let (Ok(()) | Err(Failed)) = self.carry_out(action.await).await;
        }
    }

    async fn carry_out(&self, action: Action) -> Result<(), Failed> {
        match action {
            Action::Register {
                extent,
                to,
                addr,
                len,
            } => {
                let result = self.machine.register(extent, to, addr, len).await;
                let mut manager = self.manager.lock();
                match result {
                    Ok(rkey) => manager.registered(extent, rkey),
                    Err(Failed) => manager.refused(extent),
                }
                result.map(drop)
            }
            Action::Deregister { extent } => {
                let result = self.machine.deregister(extent).await;
                let mut manager = self.manager.lock();
                match result {
                    Ok(()) => manager.deregistered(extent),
                    Err(Failed) => manager.stuck(extent),
                }
                result
            }
            Action::Zero { extent, addr, len } => {
                self.machine.zero(addr, len);
                self.manager.lock().zeroed(extent);
                self.machine.yield_now().await;
                Ok(())
            }
        }
    }
}

/// A waiting request's place.
struct Place<'a> {
    waiting: &'a Mutex<BTreeMap<PeerKey, usize>>,
    peer: PeerKey,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.peer);
            }
        }
    }
}

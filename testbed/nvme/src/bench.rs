//! A machine with a controller, its clock and its executor.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hal::{Duration, Instant};
use harness::{Board, Machine, World};
use hca_model::{Host, NodeIndex};

use crate::config_space::BAR_LEN;
use crate::{Controller, ControllerFacts};

/// Bytes of the machine's memory.
const MEMORY_LEN: usize = 32 << 20;
/// More virtual time than a test needs.
const LIMIT: Duration = Duration::from_secs(10_000);

struct Shared {
    controller: Mutex<Controller>,
    now: AtomicU64,
    wake_at: AtomicU64,
}

impl Shared {
    fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl World for Shared {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.now.load(Ordering::Acquire))
    }

    fn wake_at(&self, deadline: Instant) {
        self.wake_at.fetch_min(deadline.nanos, Ordering::AcqRel);
    }

    fn config_read(&self, _: NodeIndex, offset: u16, into: &mut [u8]) {
        self.controller().space.read(offset, into);
    }

    fn config_write(&self, _: NodeIndex, offset: u16, from: &[u8]) {
        self.controller().space.write(offset, from);
    }

    fn bar_read(&self, _: NodeIndex, _: u8, offset: u64, into: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let value = self.controller().read(offset, self.now());
        into.copy_from_slice(&value.to_le_bytes()[..into.len()]);
    }

    fn bar_write(&self, _: NodeIndex, _: u8, offset: u64, from: &[u8]) {
        let (dwords, _) = from.as_chunks::<4>();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (dword, at) in dwords.iter().zip((offset..).step_by(4)) {
            let value = u32::from_le_bytes(*dword);
            self.controller().write(at, value, self.now());
        }
    }

    fn detach(&self, _: NodeIndex) {
        self.controller().unplug();
    }
}

/// A machine with one controller, and virtual time.
pub struct Bench {
    shared: Arc<Shared>,
    machine: Machine,
    tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Bench {
    /// Creates a machine with such a controller.
    #[must_use]
    pub fn new(facts: ControllerFacts) -> Self {
        const { assert!(BAR_LEN >= 1 << 13, "doorbells fit") };
        let board = Arc::new(Board::new(MEMORY_LEN));
        let host: Arc<dyn Host> = Arc::clone(&board) as _;
        let shared = Arc::new(Shared {
            controller: Mutex::new(Controller::new(facts, host)),
            now: AtomicU64::new(1),
            wake_at: AtomicU64::new(u64::MAX),
        });
        let machine = Machine::new(Arc::clone(&shared) as _, NodeIndex(0), board);
        Self {
            shared,
            machine,
            tasks: Vec::new(),
        }
    }

    /// Returns the machine, for a driver.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.machine.clone()
    }

    /// Does something with the controller.
    pub fn with_controller<T>(&self, action: impl FnOnce(&mut Controller) -> T) -> T {
        action(&mut self.shared.controller())
    }

    /// Returns all that the driver did against the rules.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let mut found = self.shared.controller().violations().to_vec();
        let memory = self.machine.violations();
        if memory > 0 {
            found.push(format!("{memory} accesses to memory that was not lent"));
        }
        found
    }

    /// Returns the virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.shared.now()
    }

    /// Runs a task beside whatever [`block_on`](Self::block_on) runs.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(Box::pin(task));
    }

    /// Ends the tasks that were spawned.
    pub fn end_tasks(&mut self) {
        self.tasks.clear();
    }

    /// Runs until `main` ends.
    ///
    /// # Panics
    ///
    /// When nothing can ever happen again, or more virtual time has passed than a test should need.
    pub fn block_on<T>(&mut self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let mut context = Context::from_waker(Waker::noop());
        let limit = self.now() + LIMIT;
        loop {
            self.shared.wake_at.store(u64::MAX, Ordering::Release);
            if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
                return value;
            }
            self.tasks
                .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            let now = self.now();
            let due = self.shared.controller().poll(now);
            let sleeper = self.shared.wake_at.load(Ordering::Acquire);
            let next = due.map_or(u64::MAX, |due| due.nanos).min(sleeper);
            assert!(next != u64::MAX, "at {now:?} every task waits for nothing");
            let next = Instant::from_nanos(next.max(now.nanos + 1));
            assert!(next < limit, "still waiting after {LIMIT:?}");
            self.shared.now.store(next.nanos, Ordering::Release);
            self.shared.controller().poll(next);
        }
    }
}

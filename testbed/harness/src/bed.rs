//! The testbed: clock, cluster, tasks.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hal::{Duration, Instant};
use hca_model::{Cluster, ClusterConfig, Host, NodeConfig, NodeIndex};
use verbs::Guid;

use crate::machine::{Board, Machine, World};

/// A machine's memory in bytes.
const MEMORY_LEN: usize = 64 << 20;
/// Default number of processor stores for each read of a card ahead in its send queues.
const READ_AHEAD: u64 = 64;
/// A test that takes more virtual time than this does not end.
const LIMIT: Duration = Duration::from_secs(600);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// State that all machines share.
struct Shared {
    cluster: Mutex<Cluster>,
    now: AtomicU64,
    /// Earliest time at which a sleeping task is to be polled again.
    wake_at: AtomicU64,
    /// Processor stores for each read of a card ahead in its send queues.
    read_ahead: AtomicU64,
    /// Tasks that were spawned and not polled yet.
    spawned: Mutex<Vec<Task>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        lock(&self.cluster)
    }

    /// Lets a card read ahead between two stores of its processor.
    fn stored(&self, node: NodeIndex) {
        let one_in = self.read_ahead.load(Ordering::Relaxed);
        // A store by whoever holds the cluster is none of a driver.
        if let Ok(mut cluster) = self.cluster.try_lock() {
            cluster.read_ahead(node, self.now(), one_in);
        }
    }
}

impl World for Shared {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.now.load(Ordering::Acquire))
    }

    fn wake_at(&self, deadline: Instant) {
        self.wake_at.fetch_min(deadline.nanos, Ordering::AcqRel);
    }

    fn config_read(&self, node: NodeIndex, offset: u16, into: &mut [u8]) {
        self.cluster()
            .config_read_at(node, self.now(), offset, into);
    }

    fn config_write(&self, node: NodeIndex, offset: u16, from: &[u8]) {
        self.cluster().config_write(node, self.now(), offset, from);
    }

    fn bar_read(&self, node: NodeIndex, bar: u8, offset: u64, into: &mut [u8]) {
        self.cluster().bar_read(node, self.now(), bar, offset, into);
    }

    fn bar_write(&self, node: NodeIndex, bar: u8, offset: u64, from: &[u8]) {
        self.cluster()
            .bar_write(node, self.now(), bar, offset, from);
    }

    fn detach(&self, node: NodeIndex) {
        self.cluster().detach(node, self.now());
    }
}

/// Addresses that the machines' firmware gives the card's BARs 0 and 2.
const BARS: [u32; 2] = [0xf000_0000, 0xe000_0000];

/// Machines, their cards and the fabric, in virtual time on one thread.
///
/// Tasks run round-robin; when all of them wait, time goes on to the next thing that is due. The
/// same test makes the same run each time.
pub struct Testbed {
    world: Arc<Shared>,
    tasks: Vec<Task>,
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new(ClusterConfig::default())
    }
}

impl Testbed {
    /// Creates a testbed without machines.
    #[must_use]
    pub fn new(config: ClusterConfig) -> Self {
        Self {
            world: Arc::new(Shared {
                cluster: Mutex::new(Cluster::new(config)),
                now: AtomicU64::new(1),
                wake_at: AtomicU64::new(u64::MAX),
                read_ahead: AtomicU64::new(READ_AHEAD),
                spawned: Mutex::default(),
            }),
            tasks: Vec::new(),
        }
    }

    /// Adds a machine whose card has one port.
    pub fn add_machine(&self, name: &str, guid: Guid) -> Machine {
        self.add_machine_with_ports(name, guid, 1)
    }

    /// Adds a machine whose card has `ports` ports.
    pub fn add_machine_with_ports(&self, name: &str, guid: Guid, ports: u8) -> Machine {
        self.add(NodeConfig::new(name, guid, ports))
    }

    /// Adds a machine with this card.
    pub fn add(&self, config: NodeConfig) -> Machine {
        let board = Arc::new(Board::new(MEMORY_LEN));
        let host: Arc<dyn Host> = Arc::clone(&board) as _;
        let node = self.world.cluster().add_node(config, host);
        self.world.cluster().put_on_bus(node, self.now(), BARS);
        let world = Arc::downgrade(&self.world);
        board.memory.on_store(move || {
            if let Some(world) = world.upgrade() {
                world.stored(node);
            }
        });
        Machine::new(Arc::clone(&self.world) as _, node, board)
    }

    /// Resets a machine's bus, as when its card was unplugged and plugged in: firmware gives the
    /// card its addresses again.
    pub fn reset_bus(&self, machine: &Machine) {
        let mut cluster = self.world.cluster();
        cluster.reset(machine.node(), self.now());
        cluster.put_on_bus(machine.node(), self.now(), BARS);
    }

    /// Returns the virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.world.now()
    }

    /// Does something with the cluster itself: pull a cable, count packets.
    pub fn with_cluster<T>(&self, action: impl FnOnce(&mut Cluster, Instant) -> T) -> T {
        let now = self.world.now();
        action(&mut self.world.cluster(), now)
    }

    /// Has the cards read ahead in their send queues after each store of their processors from now
    /// on.
    pub fn read_ahead_always(&self) {
        self.world.read_ahead.store(1, Ordering::Relaxed);
    }

    /// Runs a task beside whatever [`block_on`](Self::block_on) runs.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.world.spawned).push(Box::pin(task));
    }

    /// Runs until `main` ends.
    ///
    /// # Panics
    ///
    /// When nothing can ever happen again, or more virtual time has passed than a test should need.
    pub fn block_on<T>(&mut self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let mut context = Context::from_waker(Waker::noop());
        let limit = self.world.now() + LIMIT;
        loop {
            self.world.wake_at.store(u64::MAX, Ordering::Release);
            if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
                return value;
            }
            self.tasks.append(&mut lock(&self.world.spawned));
            self.tasks
                .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            self.advance(limit);
        }
    }

    /// Lets time go on to what is due next.
    fn advance(&self, limit: Instant) {
        let now = self.world.now();
        let due = self.world.cluster().poll(now);
        let sleeper = self.world.wake_at.load(Ordering::Acquire);
        let next = due.map_or(u64::MAX, |due| due.nanos).min(sleeper);
        assert!(next != u64::MAX, "at {now:?} every task waits for nothing");
        let next = Instant::from_nanos(next.max(now.nanos + 1));
        assert!(next < limit, "still waiting after {LIMIT:?}");
        self.world.now.store(next.nanos, Ordering::Release);
        // What is due at that time happens before anybody looks.
        self.world.cluster().poll(next);
    }
}

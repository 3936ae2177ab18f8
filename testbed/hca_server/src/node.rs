//! One node's adapter in the shared model, and the thread that keeps the model's time.
//!
//! Lock order: the cluster's lock, then a leaf (guest memory or vectors). A session thread holds
//! the cluster's lock for one access; the model answers at once, so that no guest core waits long
//! for another's access.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant as HostInstant};

use hal::Instant;
use harness::{Board, World};
use hca_model::trace::Recorder;
use hca_model::{ClusterConfig, DmaError, Host, NodeConfig, NodeIndex};

use crate::Function;
use crate::irq::Vectors;
use crate::layout::Layout;
use crate::memory::Memory;
use crate::socket::Port;

/// A cluster's model, shared by the threads that serve its nodes.
pub struct Cluster {
    state: Mutex<State>,
    earlier: Condvar,
    epoch: HostInstant,
}

struct State {
    model: hca_model::Cluster,
    /// Time of the timer thread's next wakeup; `None` while nothing is due.
    armed: Option<Instant>,
}

impl Cluster {
    /// Creates a cluster without nodes.
    #[must_use]
    pub fn new(config: ClusterConfig) -> Arc<Self> {
        let state = State {
            model: hca_model::Cluster::new(config),
            armed: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            earlier: Condvar::new(),
            epoch: HostInstant::now(),
        })
    }

    /// Tells `recorder` what the adapters do that are added from now on.
    pub fn record(&self, recorder: Arc<dyn Recorder>) {
        self.lock().model.record(recorder);
    }

    /// Adds a node. It has no machine until its first client comes.
    pub fn add_node(self: &Arc<Self>, config: NodeConfig) -> Node {
        let mut state = self.lock();
        let machine = Arc::new(Machine::default());
        let ports = config.ports;
        let index = state
            .model
            .add_node(config, Arc::clone(&machine) as Arc<dyn Host>);
        let now = self.now();
        let layout = Layout::probe(&mut state.model, index, now);
        state.model.detach(index, now);
        drop(state);
        let machine = Arc::new(Machine {
            memory: Memory::default(),
            vectors: Vectors::new(layout.vectors),
        });
        Node {
            cluster: Arc::clone(self),
            index,
            ports,
            layout,
            machine,
        }
    }

    /// Adds a node whose machine is in this process: for a driver that runs here, beside those in
    /// guests. Its time is the cluster's.
    pub fn add_local(self: &Arc<Self>, config: NodeConfig) -> harness::Machine {
        let board = Arc::new(Board::new(LOCAL_MEMORY_LEN));
        let host = Arc::clone(&board) as Arc<dyn Host>;
        let index = self.lock().model.add_node(config, host);
        harness::Machine::new(Arc::clone(self) as Arc<dyn World>, index, board)
    }

    /// Calls the model whenever something in it is due. Does not return.
    pub fn keep_time(&self) -> ! {
        let mut state = self.lock();
        loop {
            let now = self.now();
            state.armed = state.model.poll(now);
            state = match state.armed.map(|due| due.since(now)) {
                None => self.earlier.wait(state).expect(WHOLE),
                Some(span) if span.is_zero() => {
                    // Work is left; let those who wait for an access go first.
                    drop(state);
                    std::thread::yield_now();
                    self.lock()
                }
                Some(span) => self.earlier.wait_timeout(state, span).expect(WHOLE).0,
            };
        }
    }

    /// Does something to the model, then what became due by it.
    fn change(&self, change: impl FnOnce(&mut hca_model::Cluster, Instant)) {
        let mut state = self.lock();
        let now = self.now();
        change(&mut state.model, now);
        // Under the same lock as the access, so a doorbell's work is done when its write returns: a
        // guest core that then reads a completion finds what hardware could have written by then.
        let due = state.model.poll(now);
        let earlier = due.is_some_and(|due| state.armed.is_none_or(|armed| due < armed));
        if earlier {
            state.armed = due;
            drop(state);
            // Without the lock, or the timer's thread would wake into it.
            self.earlier.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(WHOLE)
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl World for Cluster {
    fn now(&self) -> Instant {
        Self::now(self)
    }

    /// Does nothing: whoever runs the machine's tasks polls the time.
    fn wake_at(&self, _: Instant) {}

    fn config_read(&self, node: NodeIndex, offset: u16, into: &mut [u8]) {
        self.lock().model.config_read(node, offset, into);
    }

    fn config_write(&self, node: NodeIndex, offset: u16, from: &[u8]) {
        self.change(|model, now| model.config_write(node, now, offset, from));
    }

    fn bar_read(&self, node: NodeIndex, bar: u8, offset: u64, into: &mut [u8]) {
        let now = self.now();
        self.lock().model.bar_read(node, now, bar, offset, into);
    }

    fn bar_write(&self, node: NodeIndex, bar: u8, offset: u64, from: &[u8]) {
        self.change(|model, now| model.bar_write(node, now, bar, offset, from));
    }

    fn detach(&self, node: NodeIndex) {
        self.change(|model, now| model.detach(node, now));
    }
}

/// Memory of a machine in this process.
const LOCAL_MEMORY_LEN: usize = 64 << 20;

/// Panic message for a poisoned cluster lock. It is never seen: a panic in the model would leave it
/// half changed, so a panic ends the process.
const WHOLE: &str = "a thread panicked within the model";

/// A node's machine as the model reaches it: what its client lent.
#[derive(Debug)]
pub struct Machine {
    /// The guest's memory.
    pub memory: Memory,
    /// The guest's MSI-X vectors.
    pub vectors: Vectors,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory: Memory::default(),
            vectors: Vectors::new(0),
        }
    }
}

impl Host for Machine {
    fn dma_read(&self, addr: u64, into: &mut [u8]) -> Result<(), DmaError> {
        self.memory.read(addr, into).map_err(|gap| DmaError {
            addr: gap.address,
            len: gap.len,
        })
    }

    fn dma_write(&self, addr: u64, from: &[u8]) -> Result<(), DmaError> {
        self.memory.write(addr, from).map_err(|gap| DmaError {
            addr: gap.address,
            len: gap.len,
        })
    }

    fn raise(&self, vector: u16) {
        self.vectors.raise(vector);
    }

    fn set_pin(&self, asserted: bool) {
        self.vectors.pin.set(asserted);
    }
}

/// One node's adapter.
pub struct Node {
    cluster: Arc<Cluster>,
    index: NodeIndex,
    ports: u8,
    layout: Layout,
    machine: Arc<Machine>,
}

impl Node {
    /// Serves clients for ever, one at a time, each looked after for `spin` before sleeping; gives
    /// up only if the listening socket fails, with its error.
    pub fn serve(&self, name: &str, listener: &UnixListener, spin: Duration) -> std::io::Error {
        let port = Port {
            function: self,
            memory: &self.machine.memory,
            vectors: &self.machine.vectors,
            spin,
        };
        port.serve(name, listener)
    }

    /// Its cables.
    #[must_use]
    pub fn cables(&self) -> Cables {
        Cables {
            cluster: Arc::clone(&self.cluster),
            index: self.index,
            ports: self.ports,
        }
    }
}

/// The cables between one node's adapter and the switch.
pub struct Cables {
    cluster: Arc<Cluster>,
    index: NodeIndex,
    ports: u8,
}

impl Cables {
    /// Plugs or pulls the cable of a port, which counts from 1; false if there is no such port.
    pub fn plug(&self, port: u8, into: bool) -> bool {
        let is_there = (1..=self.ports).contains(&port);
        if is_there {
            self.cluster
                .change(|model, now| model.set_link(self.index, now, port, into));
        }
        is_there
    }
}

impl Function for Node {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) {
        World::config_read(&*self.cluster, self.index, offset, into);
    }

    fn config_write(&self, offset: u16, from: &[u8]) {
        World::config_write(&*self.cluster, self.index, offset, from);
    }

    fn bar_read(&self, bar: u8, offset: u64, into: &mut [u8]) {
        World::bar_read(&*self.cluster, self.index, bar, offset, into);
    }

    fn bar_write(&self, bar: u8, offset: u64, from: &[u8]) {
        World::bar_write(&*self.cluster, self.index, bar, offset, from);
    }

    fn reset(&self) {
        self.cluster
            .change(|model, now| model.reset(self.index, now));
    }

    fn attach(&self) {
        let machine = Arc::clone(&self.machine) as Arc<dyn Host>;
        self.cluster
            .change(|model, now| model.attach(self.index, now, machine));
    }

    fn detach(&self) {
        World::detach(&*self.cluster, self.index);
    }
}

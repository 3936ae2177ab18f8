//! A process: what the kernel knows of a running program.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hal::Instant;
use messages::memory::ProcessId;
use pcache::{Cache, SpaceId};
use spin::Mutex;

use crate::ahead::Ahead;
use crate::error::Result;
use crate::files::Table;
use crate::layout::Layout;
use crate::platform::{Files, Hardware, Memory, Platform};
use crate::signals::Signals;
use crate::space::CacheMachine;
use crate::syscall::{Heap, Stretch};

/// Everything a process reaches beyond itself.
pub trait Node {
    /// Page tables, lines, one-sided transfers.
    type Hardware: Hardware;
    /// Clock, chance, console.
    type Platform: Platform;
    /// M.
    type Memory: Memory;
    /// S.
    type Files: Files;
    /// The cache.
    fn cache(&self) -> &Cache<CacheMachine<Self::Hardware>>;
    /// The machine.
    fn platform(&self) -> &Self::Platform;
    /// M.
    fn memory(&self) -> &Self::Memory;
    /// S.
    fn files(&self) -> &Self::Files;
}

/// One process of one thread.
pub struct Process<'n, N: Node> {
    pub(crate) node: &'n N,
    pub(crate) pid: u32,
    /// The address space at M, and its name in the cache.
    pub(crate) id: ProcessId,
    pub(crate) space: SpaceId,
    pub(crate) layout: Layout,
    pub(crate) heap: Heap,
    pub(crate) stretch: Stretch,
    pub(crate) table: Table,
    pub(crate) ahead: Mutex<Ahead>,
    pub(crate) signals: Signals,
    pub(crate) cwd: Vec<u8>,
    pub(crate) exec_path: Vec<u8>,
    pub(crate) umask: u64,
    pub(crate) strace: bool,
    pub(crate) started: Instant,
    pub(crate) unimplemented: BTreeMap<u64, u64>,
}

impl<'n, N: Node> Process<'n, N> {
    /// A process without a program: an empty address space at M, standard files.
    pub(crate) async fn empty(node: &'n N, pid: u32) -> Result<Self> {
        let id = node.memory().create(pid).await?;
        Ok(Self {
            node,
            pid,
            id,
            space: SpaceId(id.0),
            layout: Layout::default(),
            heap: Heap::default(),
            stretch: Stretch::default(),
            table: Table::new(),
            ahead: Mutex::default(),
            signals: Signals::new(),
            cwd: b"/".to_vec(),
            exec_path: Vec::new(),
            umask: 0o022,
            strace: false,
            started: node.platform().now(),
            unimplemented: BTreeMap::new(),
        })
    }

    pub(crate) fn now(&self) -> Instant {
        self.node.platform().now()
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The address space's name in the cache and in page tables.
    #[must_use]
    pub fn space(&self) -> SpaceId {
        self.space
    }

    /// When the program's first instruction was about to run.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The address space's layout.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// System calls answered by ENOSYS, and how often.
    pub fn unimplemented(&self) -> impl Iterator<Item = (u64, u64)> {
        self.unimplemented.iter().map(|(&number, &count)| (number, count))
    }

    /// Gives everything back: pages, files, the address space at M.
    ///
    /// # Errors
    ///
    /// What the node cannot go on from.
    pub async fn end(mut self) -> Result<()> {
        for file in self.table.drain() {
            self.release(file).await?;
        }
        let cache = self.node.cache();
        cache.discard_space(self.space);
        cache.quiesce(self.space).await;
        cache.machine().spaces.remove_space(self.space);
        self.node.memory().end(self.id).await
    }
}

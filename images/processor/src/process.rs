//! A process: what the kernel knows of a running program.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hal::Instant;
use pcache::{Cache, Machine};
use spin::Mutex;

use crate::ahead::Ahead;
use crate::error::{Result, errno};
use crate::files::Table;
use crate::mm::supply::Supply;
use crate::mm::{Space, Tables};
use crate::platform::{Files, Memory, Platform};
use crate::signals::Signals;
use crate::syscall::Heap;

/// Everything a process reaches beyond itself.
pub trait Node {
    /// Lines, shootdowns, one-sided transfers.
    type Machine: Machine;
    /// The page tables of one address space.
    type Tables: Tables<Entry = <Self::Machine as Machine>::Entry>;
    /// Clock, RNG, console.
    type Platform: Platform;
    /// M.
    type Memory: Memory;
    /// S.
    type Files: Files;
    /// Returns the cache.
    fn cache(&self) -> &Cache<Self::Machine>;
    /// Returns the chunks and promises that this node has of M.
    fn supply(&self) -> &Supply;
    /// Makes the page tables of a new address space; `None` when there is no memory for them.
    fn new_tables(&self) -> Option<Self::Tables>;
    /// Looks once for pages that have come; false if the task had better let others run.
    fn poll_pages(&self, now: Instant) -> bool;
    /// Returns whether misses read neighbours ahead.
    fn reads_ahead(&self) -> bool;
    /// Returns the machine.
    fn platform(&self) -> &Self::Platform;
    /// Returns M.
    fn memory(&self) -> &Self::Memory;
    /// Returns S.
    fn files(&self) -> &Self::Files;
}

/// One process of one thread.
pub struct Process<'n, N: Node> {
    pub(crate) node: &'n N,
    pub(crate) pid: u32,
    pub(crate) memory: Space<'n, N>,
    pub(crate) heap: Heap,
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
    /// Returns a process without a program: an empty address space, standard files.
    ///
    /// # Errors
    ///
    /// ENOMEM when there is no memory for page tables.
    pub(crate) fn empty(node: &'n N, pid: u32) -> Result<Self> {
        let tables = node.new_tables().ok_or(errno::ENOMEM)?;
        Ok(Self {
            node,
            pid,
            memory: Space::new(node, pid, tables),
            heap: Heap::default(),
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

    /// Returns the address space.
    pub fn memory(&self) -> &Space<'n, N> {
        &self.memory
    }

    /// When the program's first instruction was about to run.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// System calls answered by ENOSYS, and how often.
    pub fn unimplemented(&self) -> impl Iterator<Item = (u64, u64)> {
        self.unimplemented.iter().map(|(&number, &count)| (number, count))
    }

    /// Gives everything back: pages, files, chunks.
    ///
    /// # Errors
    ///
    /// What the node cannot go on from.
    pub async fn end(mut self) -> Result<()> {
        for file in self.table.drain() {
            self.release(file).await?;
        }
        self.memory.end().await?;
        self.node.supply().settle(self.node).await
    }
}

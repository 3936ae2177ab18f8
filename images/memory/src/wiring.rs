//! Wires M to its machine: finds the memory to lend, registers and zeroes it, and serves the
//! borrowers.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use fit::{Config, Domains, Exchange, LostCause, PeerId, Role};
use hal::{DmaBuffer, Duration, Instant};
use libos::{Boot, CommandLine, Exit, FrameArray, PAGE_SIZE, frames};
use memory::{ExtentId, Failed, Machine, Manager, PeerKey, Pool, Server, WORKERS};
use messages::CHUNK_SIZE;
use node::{Card, Error, Fit, Node};
use spin::Mutex;
use verbs::{Access, Device, Region, Rkey};

/// Bytes that stay the kernel's own: heap, page tables, FIT's buffers.
const RESERVE: u64 = 32 << 20;
/// Memory has few holes.
const MAX_PIECES: usize = 8;

/// Page paths that are accepted at once: of each P one a core that takes misses.
const PAGE_PATHS: u16 = 64;

/// M's main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let config = Config {
        message_version: messages::VERSION,
        message_size: messages::MESSAGE_SIZE,
        // What is lent to one peer must be out of the others' reach.
        domains: Domains::PerPeer,
        // A request that waits for memory to be cleaned keeps its worker.
        workers: WORKERS,
        page_paths: PAGE_PATHS,
        capacity: u32::try_from(to_lend() >> 20).unwrap_or(u32::MAX),
        ..Config::default()
    };
    let node = Node::start(Role::Memory, line, config).await?;
    let pieces = pieces()?;
    let pool = Pool::new(&pieces.ranges()).dirty();
    log::info!(
        "lending {} chunks of {} MiB in {} extents",
        pool.chunks(),
        CHUNK_SIZE >> 20,
        pool.extents()
    );
    let hardware = Hardware {
        pieces,
        regions: Mutex::new(BTreeMap::new()),
        card: node.card.clone(),
        fit: node.fit.clone(),
    };
    let borrowers = Borrowers(Server::new(Manager::new(pool), hardware));
    let borrowers: &'static Borrowers = Box::leak(Box::new(borrowers));
    libos::spawn(borrowers.0.clean()).detach();
    node.serve(borrowers);
    node.join();
    core::future::pending().await
}

/// Returns the bytes that are to spare, in whole chunks.
fn to_lend() -> u64 {
    let free = (frames::free() * PAGE_SIZE) as u64;
    free.saturating_sub(RESERVE) / CHUNK_SIZE * CHUNK_SIZE
}

/// Takes all memory that is to spare, in as few pieces as its holes allow.
fn pieces() -> Result<Pieces, Error> {
    let mut pieces = Pieces(Vec::new());
    let mut wanted = to_lend();
    while wanted >= CHUNK_SIZE && pieces.0.len() < MAX_PIECES {
        let count = usize::try_from(wanted).unwrap_or(0) / PAGE_SIZE;
        let Some(array) = FrameArray::allocate_dirty(count) else {
            wanted = wanted / 2 / CHUNK_SIZE * CHUNK_SIZE;
            continue;
        };
        pieces.0.push(array);
        wanted = wanted.min(to_lend());
    }
    if pieces.0.is_empty() {
        return Err(Error::Role(format!(
            "no memory to lend: {} MiB free",
            (frames::free() * PAGE_SIZE) >> 20
        )));
    }
    Ok(pieces)
}

/// The memory that is lent. Its contents are whatever they were until the cleaner comes there.
struct Pieces(Vec<&'static FrameArray>);

impl Pieces {
    /// Returns each piece's bus address and length in bytes.
    fn ranges(&self) -> Vec<(u64, u64)> {
        let range = |array: &&FrameArray| {
            (
                array.buffer().bus_addr().0,
                (array.count() * PAGE_SIZE) as u64,
            )
        };
        self.0.iter().map(range).collect()
    }

    fn zero(&self, addr: u64, len: u64) {
        for array in &self.0 {
            let buffer = array.buffer();
            let offset = addr
                .checked_sub(buffer.bus_addr().0)
                .and_then(|offset| usize::try_from(offset).ok());
            if let (Some(offset), Ok(len)) = (offset, usize::try_from(len))
                && offset < buffer.len()
            {
                buffer.fill(offset, len, 0);
                return;
            }
        }
        panic!("{addr:#x} lies in no piece");
    }
}

/// The HCA and the memory.
struct Hardware {
    pieces: Pieces,
    /// The regions of the extents that are lent.
    regions: Mutex<BTreeMap<ExtentId, Region>>,
    card: Arc<Card>,
    fit: Fit,
}

impl Machine for Hardware {
    async fn register(
        &self,
        extent: ExtentId,
        to: PeerKey,
        addr: u64,
        len: u64,
    ) -> Result<Rkey, Failed> {
        let access = Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        };
        let domain = self.fit.domain(PeerId(to.0));
        match self.card.register(domain, addr, len, access).await {
            Ok(region) => {
                self.regions.lock().insert(extent, region);
                Ok(region.rkey)
            }
            Err(error) => {
                log::error!("peer {}: {len} bytes can't be registered: {error}", to.0);
                Err(Failed)
            }
        }
    }

    async fn deregister(&self, extent: ExtentId) -> Result<(), Failed> {
        let region = self.regions.lock().remove(&extent);
        let Some(region) = region else {
            return Ok(());
        };
        self.card.deregister(&region).await.map_err(|error| {
            log::error!("a region can't be deregistered: {error}");
            Failed
        })
    }

    fn zero(&self, addr: u64, len: u64) {
        self.pieces.zero(addr, len);
    }

    async fn yield_now(&self) {
        libos::yield_now().await;
    }

    async fn sleep(&self, span: Duration) {
        libos::sleep(span).await;
    }

    fn now(&self) -> Instant {
        libos::now()
    }
}

/// Serves the borrowers.
struct Borrowers(Server<Hardware>);

impl fit::Handler for Borrowers {
    async fn handle(&self, from: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        let len = self
            .0
            .handle(PeerKey(from.0), kind, request, exchange.message())
            .await;
        exchange.set_len(len);
    }

    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>) {
        let lost = self.0.peer_lost(PeerKey(peer.0));
        let counters = self.0.counters();
        log::info!(
            "peer {} is gone{}; it had {} chunks of {} processes; {} of {} chunks are lent",
            peer.0,
            LostCause::clause(&cause),
            lost.chunks(),
            lost.processes(),
            counters.nr_chunks_lent,
            counters.nr_chunks
        );
        node::log_profile(&self.0.machine().fit);
    }
}

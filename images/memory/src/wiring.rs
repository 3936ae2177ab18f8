//! What M is made of on the machine: memory to lend, and an ear for its borrowers.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use fit::{Config, Domains, Exchange, LostCause, PeerId, Role};
use hal::DmaBuffer;
use libos::{Boot, CommandLine, Exit, FrameArray, PAGE_SIZE, frames};
use memory::{Backing, LotId, MAX_LOTS, Manager, Order, PeerKey, Pool, Step};
use messages::WINDOW_SIZE;
use node::{Card, Error, Fit, Node};
use spin::Mutex;
use verbs::{Access, Device, Region};

/// What stays the kernel's own: heap, page tables, FIT's buffers.
const RESERVE: u64 = 32 << 20;
/// Memory has few holes.
const MAX_PIECES: usize = 8;

/// M's main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let config = Config {
        message_version: messages::VERSION,
        // What is lent to one peer must be out of the others' reach.
        domains: Domains::PerPeer,
        capacity: u32::try_from(to_lend() >> 20).unwrap_or(u32::MAX),
        ..Config::default()
    };
    let node = Node::start(Role::Memory, line, config).await?;
    let server = Server {
        manager: Mutex::new(lend()?),
        regions: Mutex::new(BTreeMap::new()),
        card: node.card.clone(),
        fit: node.fit.clone(),
    };
    let server: &'static Server = alloc::boxed::Box::leak(alloc::boxed::Box::new(server));
    node.serve(server);
    node.join();
    core::future::pending().await
}

/// Bytes that are to spare, in whole windows.
fn to_lend() -> u64 {
    let free = (frames::free() * PAGE_SIZE) as u64;
    free.saturating_sub(RESERVE) / WINDOW_SIZE * WINDOW_SIZE
}

/// Takes all memory that is to spare, in as few pieces as its holes allow. It is registered for those who borrow it.
fn lend() -> Result<Manager<Pieces>, Error> {
    let (mut pool, mut pieces) = (Pool::new(), Pieces(Vec::new()));
    let mut wanted = to_lend();
    let lot_windows = Pool::lot_windows(wanted);
    while wanted >= WINDOW_SIZE && pieces.0.len() < MAX_PIECES {
        let count = usize::try_from(wanted).unwrap_or(0) / PAGE_SIZE;
        let Some(array) = FrameArray::allocate(count) else {
            wanted = wanted / 2 / WINDOW_SIZE * WINDOW_SIZE;
            continue;
        };
        let addr = array.buffer().bus_addr().0;
        pool.add_memory(addr, wanted, lot_windows);
        pieces.0.push((addr, array));
        wanted = wanted.min(to_lend());
    }
    if pool.total() == 0 {
        return Err(Error::Role(format!(
            "no memory to lend: {} MiB free",
            (frames::free() * PAGE_SIZE) >> 20
        )));
    }
    let mib = (pool.total() as u64 * WINDOW_SIZE) >> 20;
    log::info!("lending {mib} MiB in {} lots", pool.lots());
    Ok(Manager::new(pool, pieces))
}

/// The memory that is lent, by bus address.
struct Pieces(Vec<(u64, &'static FrameArray)>);

impl Backing for Pieces {
    fn zero(&mut self, addr: u64) {
        for (start, array) in &self.0 {
            let Some(offset) = addr.checked_sub(*start) else {
                continue;
            };
            let Ok(first) = usize::try_from(offset / PAGE_SIZE as u64) else {
                continue;
            };
            if first < array.count() {
                let pages = usize::try_from(WINDOW_SIZE).unwrap_or(0) / PAGE_SIZE;
                array.buffer().fill(first * PAGE_SIZE, pages * PAGE_SIZE, 0);
                return;
            }
        }
        panic!("a chunk at {addr:#x} that no piece holds");
    }
}

/// Answers the borrowers.
struct Server {
    manager: Mutex<Manager<Pieces>>,
    /// The regions of the lots that are lent.
    regions: Mutex<BTreeMap<LotId, Region>>,
    card: Arc<Card>,
    fit: Fit,
}

impl Server {
    /// Does what the pool must have done before a request can be answered; false if it can't be.
    async fn carry_out(&self, order: Order) -> bool {
        match order {
            Order::Register { lot, to, addr, len } => {
                let access = Access {
                    local_write: true,
                    remote_read: true,
                    remote_write: true,
                };
                let domain = self.fit.domain(PeerId(to.0));
                match self.card.register(domain, addr, len, access).await {
                    Ok(region) => {
                        self.regions.lock().insert(lot, region);
                        self.manager.lock().pool_mut().0.registered(lot, region.rkey);
                        true
                    }
                    Err(error) => {
                        log::error!("a region for peer {}: {error}", to.0);
                        self.manager.lock().pool_mut().0.refused(lot);
                        false
                    }
                }
            }
            Order::TakeBack { lot } => {
                let region = self.regions.lock().remove(&lot);
                let result = match region {
                    Some(region) => self.card.deregister(&region).await,
                    None => Ok(()),
                };
                let mut manager = self.manager.lock();
                let (pool, backing) = manager.pool_mut();
                if let Err(error) = &result {
                    log::error!("a region can't be taken back, its memory is lost: {error}");
                    pool.stuck(lot);
                } else {
                    pool.taken_back(lot, backing);
                }
                result.is_ok()
            }
        }
    }
}

impl fit::Handler for Server {
    async fn handle(&self, from: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        let key = PeerKey(from.0);
        // Each lot is taken back and registered once at most, unless others are served in between.
        for _ in 0..2 * MAX_LOTS {
            let step = self.manager.lock().handle(key, kind, request, exchange.message());
            match step {
                Step::Replied(len) => return exchange.set_len(len),
                Step::First(order) => {
                    if !self.carry_out(order).await {
                        break;
                    }
                }
            }
        }
        let len = self
            .manager
            .lock()
            .handle_at_once(key, kind, request, exchange.message());
        exchange.set_len(len);
    }

    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>) {
        let mut manager = self.manager.lock();
        manager.peer_lost(PeerKey(peer.0));
        let pool = manager.pool();
        log::info!(
            "peer {} is gone{}; {} of {} chunks are free",
            peer.0,
            LostCause::clause(&cause),
            pool.free(),
            pool.total()
        );
        node::log_profile(&self.fit);
    }
}

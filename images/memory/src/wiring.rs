//! What M is made of on the machine: memory to lend, and an ear for its borrowers.

use alloc::format;
use alloc::vec::Vec;

use fit::{Config, PeerId, ReplyBuf, Role};
use hal::DmaBuffer;
use libos::{Boot, CommandLine, Exit, FrameArray, PAGE_SIZE, frames};
use memory::{Backing, Manager, PeerKey, Pool};
use messages::WINDOW_SIZE;
use node::{Card, Error, Node};
use spin::Mutex;
use verbs::{Access, Device, Domain, RemoteAddr};

/// What stays the kernel's own: heap, page tables, FIT's buffers.
const RESERVE: u64 = 32 << 20;
/// The HCA is slow with many regions, and memory has few holes.
const MAX_REGIONS: usize = 8;

/// M's main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let config = Config {
        message_version: messages::VERSION,
        capacity: u32::try_from(to_lend() >> 20).unwrap_or(u32::MAX),
        ..Config::default()
    };
    let node = Node::start(Role::Memory, line, config).await?;
    let server = Server(Mutex::new(lend(&node.card).await?));
    let fit = node.fit.clone();
    libos::spawn(async move { node::end(fit.run_core(0).await.map_err(Error::from)) }).detach();
    let core = node.fit.core(0);
    let server: &'static Server = alloc::boxed::Box::leak(alloc::boxed::Box::new(server));
    let fit = node.fit.clone();
    libos::spawn(async move { fit.watch(server).await }).detach();
    node.join();
    core.serve(server).await;
    Ok(())
}

/// Bytes that are to spare, in whole windows.
fn to_lend() -> u64 {
    let free = (frames::free() * PAGE_SIZE) as u64;
    free.saturating_sub(RESERVE) / WINDOW_SIZE * WINDOW_SIZE
}

/// Registers all memory that is to spare, in as few regions as its holes allow.
async fn lend(card: &Card) -> Result<Manager<Regions>, Error> {
    let (mut pool, mut regions) = (Pool::new(), Regions(Vec::new()));
    let mut wanted = to_lend();
    while wanted >= WINDOW_SIZE && regions.0.len() < MAX_REGIONS {
        let count = usize::try_from(wanted).unwrap_or(0) / PAGE_SIZE;
        let Some(array) = FrameArray::allocate(count) else {
            wanted = wanted / 2 / WINDOW_SIZE * WINDOW_SIZE;
            continue;
        };
        let access = Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        };
        let region = card
            .register(Domain::default(), array.buffer().bus_addr().0, wanted, access)
            .await?;
        pool.add_region(
            RemoteAddr {
                addr: region.addr,
                rkey: region.rkey,
            },
            wanted,
        );
        regions.0.push((region.addr, array));
        wanted = wanted.min(to_lend());
    }
    if pool.total() == 0 {
        return Err(Error::Role(format!(
            "no memory to lend: {} MiB free",
            (frames::free() * PAGE_SIZE) >> 20
        )));
    }
    let mib = (pool.total() as u64 * WINDOW_SIZE) >> 20;
    log::info!("lending {mib} MiB in {} regions", regions.0.len());
    Ok(Manager::new(pool, regions))
}

/// The registered memory, by bus address.
struct Regions(Vec<(u64, &'static FrameArray)>);

impl Backing for Regions {
    fn zero(&mut self, chunk: RemoteAddr) {
        for (start, array) in &self.0 {
            let Some(offset) = chunk.addr.checked_sub(*start) else {
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
        panic!("a chunk at {:#x} that no region holds", chunk.addr);
    }
}

/// Answers the borrowers.
struct Server(Mutex<Manager<Regions>>);

impl fit::Handler for Server {
    async fn handle(&self, from: PeerId, kind: u16, request: &[u8], reply: &mut dyn ReplyBuf) {
        let len = self
            .0
            .lock()
            .handle(PeerKey(from.0), kind, request, reply.message());
        reply.set_len(len);
    }

    fn peer_lost(&self, peer: PeerId) {
        let mut manager = self.0.lock();
        manager.peer_lost(PeerKey(peer.0));
        let pool = manager.pool();
        log::info!(
            "peer {} is gone; {} of {} chunks are free",
            peer.0,
            pool.free(),
            pool.total()
        );
    }
}

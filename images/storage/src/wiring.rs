//! What S is made of on the machine: a virtio disk, and an ear for its readers.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;

use fit::{Config, Domains, Exchange, LostCause, PeerId, Role};
use libos::virtio::{self, Disk};
use libos::{Boot, CommandLine, Exit};
use node::{Error, Fit, Node};
use spin::Mutex;
use storage::{BlockDevice, Bulk, DiskError, Ext4, PeerKey};

/// Bytes of a sector, the unit of a virtio disk.
const SECTOR: usize = 512;
/// The longest read that the disk is asked for at once.
const PIECE: usize = 64 << 10;
/// The longest piece of a file that goes into one reply.
const BULK: u32 = 64 << 10;

/// S's main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let disk = virtio::disks()?.into_iter().next();
    let disk = VirtioDisk(Mutex::new(
        disk.ok_or_else(|| Error::Role("no virtio disk in this machine".into()))?,
    ));
    let files = Ext4::mount(disk)
        .await
        .map_err(|error| Error::Role(format!("the disk: {error}")))?;
    log::info!("ext4 mounted, blocks of {} bytes", files.block_size());
    let config = Config {
        message_version: messages::VERSION,
        bulk_size: BULK,
        domains: Domains::PerPeer,
        ..Config::default()
    };
    let node = Node::start(Role::Storage, line, config).await?;
    let server: &'static Server = Box::leak(Box::new(Server {
        files: storage::Server::new(files),
        fit: node.fit.clone(),
    }));
    node.serve(server);
    node.join();
    core::future::pending().await
}

/// The disk. Its driver polls, so that one read is at work at a time.
struct VirtioDisk(Mutex<Disk>);

impl BlockDevice for VirtioDisk {
    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let failed = DiskError {
            offset,
            len: into.len(),
        };
        let mut done = 0;
        while done < into.len() {
            let at = offset.checked_add(done as u64).ok_or(failed)?;
            let at = usize::try_from(at).map_err(|_| failed)?;
            let skip = at % SECTOR;
            let count = (into.len() - done).min(PIECE - skip);
            let len = (skip + count).next_multiple_of(SECTOR);
            let sector = at / SECTOR;
            let mut piece = vec![0; len];
            self.0.lock().read_blocks(sector, &mut piece).map_err(|error| {
                log::error!("disk: {len} bytes at sector {sector}: {error}");
                failed
            })?;
            into[done..done + count].copy_from_slice(&piece[skip..skip + count]);
            done += count;
        }
        Ok(())
    }
}

/// Answers the readers.
struct Server {
    files: storage::Server<VirtioDisk>,
    fit: Fit,
}

/// The caller's buffer, through FIT.
struct FitBulk<'a>(&'a mut dyn Exchange);

impl Bulk for FitBulk<'_> {
    fn limit(&self) -> usize {
        self.0.bulk_limit()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        // The server asked for the limit; what does not fit was not to be sent.
        let _ = self.0.write_bulk(offset, bytes);
    }
}

impl fit::Handler for Server {
    async fn handle(&self, from: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        let mut message = vec![0; messages::MAX_MESSAGE];
        let from = PeerKey(from.0);
        let len = self
            .files
            .handle(from, kind, request, &mut message, &mut FitBulk(exchange))
            .await;
        let room = exchange.message();
        let len = len.min(room.len());
        room[..len].copy_from_slice(&message[..len]);
        exchange.set_len(len);
    }

    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>) {
        self.files.peer_lost(PeerKey(peer.0));
        log::info!("peer {} is gone{}", peer.0, LostCause::clause(&cause));
        node::log_profile(&self.fit);
    }
}

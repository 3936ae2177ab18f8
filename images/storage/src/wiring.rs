//! S on the machine: its disk, and the server's tasks.

mod disk;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;

use ext4::{Errno, Ext4, Options, Time};
use fit::{Call, Config, Domains, Exchange, LostCause, PeerId, Role};
use hal::{Duration, Instant};
use libos::{Boot, CommandLine, Exit};
use messages::recall::{Recall, RecallRequest};
use messages::{Call as _, decode_reply, encode_request};
use node::{Error, Fit, Node};
use storage::lease::{Answer, Holders, Wait};
use storage::{Bulk, PeerKey};

use self::disk::AnyDisk;

/// The longest piece of a file that one call carries.
const BULK: u32 = 64 << 10;
/// Requests that are answered at a time: one that waits for the disk holds none of the others up.
const WORKERS: u16 = 8;
/// Interval of commits without a sync (as Linux's `commit=`).
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// S's main task.
pub(crate) async fn main(boot: Boot) -> Exit {
    node::finish(run(&boot.command_line).await)
}

async fn run(line: &CommandLine) -> Result<(), Error> {
    let clock = clock(line)?;
    let files = mount(disk::find(line).await?, clock()).await?;
    let config = Config {
        message_version: messages::VERSION,
        message_size: messages::MESSAGE_SIZE,
        bulk_size: BULK,
        domains: Domains::PerPeer,
        workers: WORKERS,
        ..Config::default()
    };
    let node = Node::start(Role::Storage, line, config).await?;
    let server: &'static Server = Box::leak(Box::new(Server {
        files: serve(files, clock, line, &node.fit)?,
        fit: node.fit.clone(),
    }));
    libos::spawn(server.keep()).detach();
    node.serve(server);
    node.join();
    core::future::pending().await
}

/// Makes the server, which grants leases unless the command line says `leases=off`.
fn serve(
    files: Ext4<AnyDisk>,
    clock: impl Fn() -> Time + Send + Sync + 'static,
    line: &CommandLine,
    fit: &Fit,
) -> Result<storage::Server<AnyDisk>, Error> {
    let server = storage::Server::new(files, clock);
    match line.value("leases") {
        None | Some("on") => Ok(server.with_leases(Box::new(FitHolders(fit.clone())))),
        Some("off") => Ok(server),
        Some(value) => Err(Error::Role(format!(
            "leases={value}: is neither on nor off"
        ))),
    }
}

/// Peers that hold leases, through FIT.
struct FitHolders(Fit);

impl Holders for FitHolders {
    fn now(&self) -> Instant {
        libos::now()
    }

    fn recall(&self, peer: PeerKey, lease: RecallRequest) -> Wait<'_, Option<Answer>> {
        Box::pin(async move {
            let (mut request, mut reply) = ([0; 32], vec![0; messages::MAX_MESSAGE]);
            let len = encode_request::<Recall>(&lease, &mut request).ok()?;
            let call = Call::new(Recall::KIND.0, &request[..len]);
            let core = self.0.core(0);
            let answered = core.call(PeerId(peer.0), call, &mut reply).await;
            let answered = answered.inspect_err(|error| log::warn!("{}: {error}", Recall::NAME));
            let told = reply.get(..answered.ok()?.len)?;
            let answer = decode_reply::<Recall>(told).ok()?.ok()?;
            Some(Answer {
                file: answer.file,
                total: answer.total,
                part: answer.part.0.to_vec(),
            })
        })
    }

    fn sleep_until(&self, until: Instant) -> Wait<'_, ()> {
        Box::pin(libos::sleep(until.since(libos::now())))
    }
}

/// Returns the time since 1970; `clock=` on the command line gives the seconds at the start.
fn clock(line: &CommandLine) -> Result<impl Fn() -> Time + Copy + Send + Sync + 'static, Error> {
    let start = line.parsed::<u64>("clock")?.unwrap_or(0);
    let begun = libos::now();
    Ok(move || {
        let passed = libos::now().since(begun);
        Time {
            seconds: start.saturating_add(passed.as_secs()).cast_signed(),
            nanos: passed.subsec_nanos(),
        }
    })
}

/// Mounts the disk's file system: to be written, unless the disk or the file system can't be.
async fn mount(disk: AnyDisk, now: Time) -> Result<Ext4<AnyDisk>, Error> {
    let failed = |error: ext4::Error| Error::Role(format!("the disk: {error}"));
    let options = Options {
        read_only: disk.read_only(),
        now,
    };
    let files = match Ext4::mount(disk, options).await {
        Err(ext4::Error::Errno(Errno::EROFS)) => {
            log::warn!("the file system has no journal: it is not written");
            let options = Options {
                read_only: true,
                ..options
            };
            Ext4::mount(disk, options).await.map_err(failed)?
        }
        mounted => mounted.map_err(failed)?,
    };
    let how = if files.is_read_only() {
        "read-only"
    } else {
        "read-write"
    };
    log::info!("ext4 mounted {how}, blocks of {} bytes", files.block_size());
    Ok(files)
}

/// Answers the peers.
struct Server {
    files: storage::Server<AnyDisk>,
    fit: Fit,
}

impl Server {
    /// Makes changes durable now and then.
    async fn keep(&self) {
        let mut told = None;
        loop {
            libos::sleep(COMMIT_INTERVAL).await;
            let failed = self.files.commit().await.err();
            // Once the log has failed nothing can be changed any more, and whoever tries is told.
            if let Some(error) = failed.filter(|_| failed != told) {
                log::error!("changes can't be made durable: {error}");
            }
            told = failed;
        }
    }
}

/// A call's bulk, through FIT.
struct FitBulk<'a>(&'a mut dyn Exchange);

impl Bulk for FitBulk<'_> {
    fn len(&self) -> usize {
        self.0.bulk_len()
    }

    fn read(&mut self, offset: usize, into: &mut [u8]) -> usize {
        self.0.read_bulk(offset, into)
    }

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
        if matches!(cause, Some(LostCause::PeerLeft)) {
            self.files.peer_left(PeerKey(peer.0));
        }
        log::info!("peer {} is gone{}", peer.0, LostCause::clause(&cause));
        node::log_profile(&self.fit);
    }
}

//! Starting a component.

use alloc::sync::Arc;
use alloc::vec::Vec;

use fit::{AccessEnd, Cluster, Config, Handler, Key, MAX_WORKERS, PeerId, Role};
use futures_util::future::join_all;
use hal::{Duration, Instant};
use libos::pci::{self, Function};
use libos::{CommandLine, Exit};
use mlx4::Mlx4;

use crate::Error;

/// Connections that each core can have: enough for some peers with more cores than this node.
const CONNECTIONS: u16 = 8;

/// Time that the peers get to hear that a component leaves.
const LEAVE: Duration = Duration::from_millis(50);

/// The card of a component.
pub type Card = Mlx4<Function>;
/// FIT on it.
pub type Fit = fit::Fit<Card, Function>;
/// One core's access to the peers.
pub type Core = fit::Core<Card, Function>;

/// A component on the fabric.
pub struct Node {
    /// Its card.
    pub card: Arc<Card>,
    /// The card's PCI function.
    pub function: Function,
    /// Its FIT. The image spawns [`Fit::run_core_with`], or lets [`serve`](Self::serve) do what FIT
    /// needs.
    pub fit: Fit,
    cores: u16,
    workers: u16,
}

impl Node {
    /// Brings the card and FIT up for the cluster that the command line names by `cluster=` and
    /// `key=`; `keepalive=`, `port=`, `pollers=`, `polling=`, `workers=` and `profile` change the
    /// `config`. The node is not announced before it [joins](Self::join).
    ///
    /// # Errors
    ///
    /// The first step that failed, or an option that is missing or makes no sense.
    pub async fn start(role: Role, line: &CommandLine, config: Config) -> Result<Self, Error> {
        let config = configure(line, config)?;
        let function = pci::find_any(&mlx4::PCI_IDS).ok_or(Error::NoCard)?;
        let mut secret = [0; 32];
        libos::random_bytes(&mut secret);
        let card = mlx4::Config {
            port: config.port,
            completion_vectors: config.cores,
            secret,
        };
        let card = Arc::new(Mlx4::start(function, card).await?);
        log::info!("ConnectX-3 at {function} is up, port {}", config.port);
        let served = card.clone();
        libos::spawn(async move {
            if let Err(error) = served.service().await {
                log::error!("the HCA failed: {error}");
                libos::power_off(Exit::Failure);
            }
        })
        .detach();
        let fit = Fit::new(card.clone(), function, role, config).await?;
        Ok(Self {
            card,
            function,
            fit,
            cores: config.cores,
            workers: config.workers,
        })
    }

    /// Takes leave of every peer.
    pub async fn leave(&self) {
        self.fit.leave();
        // The datagrams that say so are sent by the control task.
        libos::sleep(LEAVE).await;
    }

    /// Spawns, on each core that has queues, what polls for completions and what runs `handler`: in
    /// the same task or in as many as `workers=` says. Those who join and are lost are told to it.
    pub fn serve<H: Handler>(&self, handler: &'static H) {
        let fit = self.fit.clone();
        libos::spawn(async move { fit.watch(handler).await }).detach();
        for index in 0..self.cores {
            let (fit, alone) = (self.fit.clone(), self.workers == 0);
            libos::spawn_on(index.into(), async move {
                let nothing = |_: AccessEnd, _: Instant| {};
                let ended = match alone {
                    true => fit.run_core_serving(index, handler, nothing).await,
                    false => fit.run_core_with(index, nothing).await,
                };
                end(ended.map_err(Error::from))
            })
            .detach();
            for _ in 0..self.workers {
                let core = self.fit.core(index);
                libos::spawn_on(index.into(), async move { core.serve(handler).await }).detach();
            }
        }
    }

    /// Joins the cluster: from now on members connect to this node and may call it.
    pub fn join(&self) {
        let fit = self.fit.clone();
        libos::spawn(async move { fit.control().await }).detach();
    }

    /// Waits until a node of each of these roles is a member; gives their numbers in order.
    ///
    /// # Errors
    ///
    /// The first role that is missing when the time is over; the log names them all.
    pub async fn find<const N: usize>(&self, roles: [Role; N]) -> Result<[PeerId; N], Error> {
        let found = join_all(roles.map(|role| self.fit.find(role))).await;
        for missing in found.iter().filter_map(|found| found.as_ref().err()) {
            log::error!("{missing}");
        }
        let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(found.try_into().expect("one for each role"))
    }
}

/// The configuration with what the command line says of the cluster.
fn configure(line: &CommandLine, config: Config) -> Result<Config, Error> {
    let name = line.value("cluster").ok_or(Error::NoOption("cluster"))?;
    let key = line.value("key").ok_or(Error::NoOption("key"))?;
    // The text stays out of the log: it may be a key but for a digit.
    let key: Key = key.parse().map_err(Error::Key)?;
    let keepalive = line.parsed("keepalive")?.map(Duration::from_millis);
    let workers = line.parsed("workers")?.unwrap_or(config.workers);
    if workers > MAX_WORKERS {
        return Err(Error::Role(alloc::format!(
            "workers={workers}: at most {MAX_WORKERS}"
        )));
    }
    let cores = line.parsed("pollers")?.unwrap_or(config.cores);
    let most = libos::cores();
    if cores == 0 || usize::from(cores) > most {
        return Err(Error::Role(alloc::format!(
            "pollers={cores}: this machine has {most} cores"
        )));
    }
    let mut entropy = [0; 32];
    libos::random_bytes(&mut entropy);
    Ok(Config {
        cores,
        peers: CONNECTIONS,
        port: line.parsed("port")?.unwrap_or(config.port),
        cluster: Cluster::new(name, key),
        discover: true,
        keepalive: keepalive.unwrap_or(config.keepalive),
        polling: line.parsed("polling")?.unwrap_or(config.polling),
        workers,
        profile: line.has("profile") || config.profile,
        entropy,
        ..config
    })
}

/// Logs what FIT's profile points have measured, if they do.
pub fn log_profile(fit: &Fit) {
    let cores = (0..fit.cores()).map(|index| (index, fit.core(index)));
    let measured = cores.flat_map(|(index, core)| {
        let points: Vec<_> = core.profile().measured().collect();
        points.into_iter().map(move |point| (index, point))
    });
    for (index, (point, time)) in measured {
        log::info!(
            "core {index}, {}: {} times, {} ns on average, half within {} ns, 99 % within {} ns",
            point.name(),
            time.count,
            time.avg_ns,
            time.p50_ns,
            time.p99_ns
        );
    }
}

/// Ends the node when a task that it cannot do without has ended.
pub fn end(result: Result<(), Error>) -> ! {
    libos::power_off(finish(result))
}

/// Turns the end of a component's main function into the node's.
#[must_use]
pub fn finish(result: Result<(), Error>) -> Exit {
    match result {
        Ok(()) => Exit::Success,
        Err(error) => {
            log::error!("{error}");
            Exit::Failure
        }
    }
}

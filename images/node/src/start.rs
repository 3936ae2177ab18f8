//! Starting a component.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use fit::{Config, PeerId, PeerSpec, Role};
use hal::Duration;
use libos::pci::{self, Function};
use libos::{CommandLine, Exit};
use mlx4::Mlx4;

use crate::Error;

/// A ConnectX-3's PCI identity.
const VENDOR: u16 = 0x15b3;
const DEVICE: u16 = 0x1003;

/// How long the peers are given to hear that a component leaves.
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
    /// Its FIT. The image spawns [`Fit::run_core`] or [`Fit::run_core_with`] for each core.
    pub fit: Fit,
}

/// The peers that the command line names, connected.
pub struct Peers(Vec<(PeerSpec, PeerId)>);

impl Peers {
    /// The first peer of a role.
    ///
    /// # Errors
    ///
    /// [`Error::NoPeer`] when the command line names none.
    pub fn one(&self, role: Role) -> Result<PeerId, Error> {
        let found = self.0.iter().find(|(spec, _)| spec.role == role);
        found.map(|&(_, id)| id).ok_or(Error::NoPeer(role))
    }
}

impl Node {
    /// Brings the card up and starts the tasks that serve it and FIT's connections.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub async fn start(role: Role, config: Config) -> Result<Self, Error> {
        let function = pci::find(VENDOR, DEVICE).ok_or(Error::NoCard)?;
        let card = mlx4::Config {
            port: config.port,
            completion_vectors: config.cores,
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
        let control = fit.clone();
        libos::spawn(async move { control.control().await }).detach();
        Ok(Self { card, function, fit })
    }

    /// Takes leave of every peer.
    pub async fn leave(&self) {
        self.fit.leave();
        // The datagrams that say so are sent by the control task.
        libos::sleep(LEAVE).await;
    }

    /// Connects to the peers that the command line names while the caller goes on; a peer that can't be reached ends the
    /// node.
    ///
    /// # Errors
    ///
    /// An option that makes no sense.
    pub fn connect_later(&self, line: &CommandLine) -> Result<(), Error> {
        for spec in specs(line)? {
            let fit = self.fit.clone();
            libos::spawn(async move {
                match fit.connect(spec).await {
                    Ok(_) => log::info!("connected to {spec}"),
                    Err(error) => {
                        log::error!("{error}");
                        libos::power_off(Exit::Failure);
                    }
                }
            })
            .detach();
        }
        Ok(())
    }

    /// Connects to every peer that the command line names, all at once.
    ///
    /// # Errors
    ///
    /// The first peer that could not be reached in time, or an option that makes no sense.
    pub async fn connect(&self, line: &CommandLine) -> Result<Peers, Error> {
        let mut tasks = Vec::new();
        for spec in specs(line)? {
            let fit = self.fit.clone();
            tasks.push((spec, libos::spawn(async move { fit.connect(spec).await })));
        }
        let mut peers = Vec::new();
        for (spec, task) in tasks {
            let id = task.await?;
            log::info!("connected to {spec}");
            peers.push((spec, id));
        }
        Ok(Peers(peers))
    }
}

/// The peers that the command line names.
fn specs(line: &CommandLine) -> Result<Vec<PeerSpec>, Error> {
    let spec = |text: &str| {
        text.parse().map_err(|cause| Error::Peer {
            text: text.to_string(),
            cause,
        })
    };
    line.values("peer").map(spec).collect()
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

//! The ConnectX-3 driver: commands, ICM, EQ, CQ, QP, MR, ports, management datagrams.
//!
//! Generic over [`hal::Platform`], and a [`verbs::Device`] to its users. [`Mlx4::start`] brings a
//! card up; [`Mlx4::service`] must then run beside everything else: it takes events and answers the
//! subnet manager, without which the port does not become ACTIVE. [`Mlx4::stop`] gives the card
//! back; a card that is dropped without is reset, so that it never writes into memory that has a
//! new owner.
//!
//! Rules kept everywhere here:
//!
//! * No layout, shift or mask outside `mlx4_hw`.
//! * Nothing the card writes is believed: indices are the driver's own, and a number from the card
//!   is looked up or checked before it is used.
//! * Every wait has a deadline and an error that names it. A command without an answer ends the
//!   card's use.
//! * Memory that the card was told of is freed only after the card has given it up or was reset.
//!
//! # What is left out
//!
//! Ethernet ports and RoCE; shared receive queues; UC and XRC; atomics; memory windows and
//! registration by work requests; path migration; partitions other than the default; BlueFlame; CQ
//! resize and moderation; 64-byte CQEs and EQEs; INTx; SR-IOV; traps from the firmware's own agents
//! to the subnet manager; performance counters asked for over QP1 (such requests are the user's);
//! both ports at once.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod bring_up;
mod command;
mod completion;
mod control;
mod directed_route;
mod error;
mod event;
mod hca;
mod health;
mod icm;
mod keys;
mod multicast;
mod pages;
mod pci;
mod port;
mod queues;
mod report;
mod resources;
mod special;
mod tear_down;
mod wait;
mod work_queue;

use alloc::sync::Arc;

use hal::{Duration, InterruptVector, Platform};

pub use error::{Awaited, CardNumber, Error, Step};
pub use mlx4_hw::regs::PCI_IDS;
pub use pages::Pages;
pub use queues::Queues;

use hca::Hca;
use special::Management;

/// Settings that a card is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The port to use, from 1.
    pub port: u8,
    /// Interrupt vectors for completion queues, at least 1; one more is used for everything else.
    pub completion_vectors: u16,
    /// Bytes that nobody can guess, from which the keys of memory regions are drawn. With zeros
    /// they are given in order.
    pub secret: [u8; 32],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 1,
            completion_vectors: 1,
            secret: [0; 32],
        }
    }
}

/// Time between two looks of the service that no interrupt called for: an interrupt may get lost.
const LOOK_ANYWAY: Duration = Duration::from_millis(100);

/// Interval between two looks at an event queue on a machine where no interrupt comes.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// A card that runs.
pub struct Mlx4<P: Platform> {
    hca: Arc<Hca<P>>,
    management: Management<P>,
}

impl<P: Platform> Mlx4<P> {
    /// Takes the card, resets it and brings it up to where its port waits for a subnet manager.
    ///
    /// # Errors
    ///
    /// The first step that failed; the card is then reset and has no owner.
    pub async fn start(platform: P, config: Config) -> Result<Self, Error> {
        let hca = Arc::new(bring_up::start(platform, &config).await?);
        let management = Management::start(&hca).await?;
        Ok(Self { hca, management })
    }

    /// The port in use.
    #[must_use]
    pub fn port_number(&self) -> u8 {
        self.hca.port
    }

    /// Takes events and datagrams and answers the subnet manager, for ever: one task a card must
    /// run this.
    ///
    /// # Errors
    ///
    /// Returns only when the card failed or was stopped.
    pub async fn service(&self) -> Result<(), Error> {
        let events = &self.hca.events;
        let platform = &self.hca.platform;
        loop {
            self.service_once().await?;
            match events.vector(0).filter(|_| !events.is_polled()) {
                Some(vector) => {
                    wait::at_most(platform, vector.wait(), LOOK_ANYWAY).await;
                }
                None => platform.sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// One turn of [`service`](Self::service): all that is due now.
    ///
    /// # Errors
    ///
    /// When the card failed or was stopped.
    pub async fn service_once(&self) -> Result<(), Error> {
        self.management.service_once().await
    }

    /// Gives the card back: everything made on it is taken away, in order. It is not used after
    /// that, and its memory is freed when this and all [`Queues`] are dropped.
    ///
    /// # Errors
    ///
    /// The step that failed; the card was then reset instead. [`Error::Failed`] when it was stopped
    /// before.
    pub async fn stop(&self) -> Result<(), Error> {
        self.hca.stop().await
    }
}

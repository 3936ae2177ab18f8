//! Serves the modelled ConnectX-3s of one cluster to QEMU over vfio-user.
//!
//! One process holds the whole cluster: its fabric and each node's adapter. So an RDMA transfer is
//! a copy between two guests' memories, both mapped here. A node's QEMU connects to the node's
//! socket and gets a PCI device.
//!
//! ```text
//!  QEMU ──socket──► socket (messages, descriptors) ──► session (answers one request) ──► Function ──► Cluster
//!       ◄─eventfd── irq (MSI-X vectors), pin ◄───────────────────────────────────────── Host::raise, set_pin
//!       ◄─memory─── memory (guest memory, mapped) ◄───────────────────────────────────── Host::dma_*
//! ```
//!
//! * [`wire`], the messages as bytes, parsed before anything acts on them.
//! * [`session`], one request in, one answer out; knows no socket.
//! * [`socket`], receives and sends messages, and serves one connection after another.
//! * [`memory`], the guest's memory. The only module with unsafe code.
//! * [`irq`], eventfds; [`pin`], the one with a level.
//! * [`layout`], finds a function's sizes in its configuration space.
//! * [`local`], runs what drives a node whose machine is this process:
//!   [`node::Cluster::add_local`].
//! * [`node`], joins a port to the model's cluster, and calls the cluster when its timers are due.
//!
//! # What is left out
//! * Regions that the guest maps: every BAR access comes as a message. One mappable region would
//!   turn off posted writes for the whole device in QEMU 11.
//! * DMA by messages (`DMA_READ`, `DMA_WRITE`): guest memory must come with a descriptor, that is
//!   from a `share=on` backend.
//! * Migration and dirty logging.

pub mod irq;
pub mod layout;
pub mod local;
pub mod memory;
pub mod node;
pub mod pin;
pub mod session;
pub mod socket;
pub mod wire;

use rustix::io::Errno;

use crate::layout::Layout;

/// Error that ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A message's size is less than its header or more than we take; the stream can't be followed.
    #[error("a message of {size} bytes")]
    MessageSize {
        /// The size it gave.
        size: u32,
    },
    /// A message's body is too short for its command or for the counts within it.
    #[error("command {command} with a malformed body of {len} bytes")]
    Malformed {
        /// The command.
        command: u16,
        /// Length of the body.
        len: usize,
    },
    /// A client sent a reply; we ask nothing.
    #[error("a reply (command {command}) that nothing asked for")]
    UnexpectedReply {
        /// The command.
        command: u16,
    },
    /// The client closed its end within a message.
    #[error("the client closed its end within a message")]
    Truncated,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
}

/// A PCI function as a session sees it.
///
/// Offsets and lengths have been checked against [`Layout`].
pub trait Function: Send + Sync {
    /// Returns the function's layout: its regions and vectors. It never changes.
    fn layout(&self) -> Layout;
    /// Reads configuration space.
    fn config_read(&self, offset: u16, into: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u16, from: &[u8]);
    /// Reads a BAR.
    fn bar_read(&self, bar: u8, offset: u64, into: &mut [u8]);
    /// Writes a BAR.
    fn bar_write(&self, bar: u8, offset: u64, from: &[u8]);
    /// Resets the function, as at power-on.
    fn reset(&self);
    /// Attaches the machine: interrupts and DMA may follow.
    fn attach(&self);
    /// Detaches the machine: no interrupt and no DMA may follow.
    fn detach(&self);
}

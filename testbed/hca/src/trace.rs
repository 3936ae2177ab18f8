//! Trace of a card: its commands, doorbells, DMA and interrupts, as events for a recorder.
//!
//! A [`Recorder`] gets every command, doorbell, DMA and interrupt as an [`Event`]; [`Text`] is one
//! that writes them as lines. Without a recorder the model only looks whether there is one.

mod decode;
mod fields;
mod text;

use std::cell::Cell;
use std::sync::Arc;

use hal::Instant;
use mlx4_hw::command::{CmdStatus, Opcode};
use mlx4_hw::regs::{CqArm, EqDoorbell};

pub use fields::fields;
pub use text::Text;

/// Takes what cards do, in the order in which they do it.
///
/// No method may call back into the [`Cluster`](crate::Cluster).
pub trait Recorder: Send + Sync {
    /// Records an event of the card of the node named `node`, at `now`.
    fn record(&self, node: &str, now: Instant, event: &Event<'_>);
}

/// Event of a card's trace.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A command has ended. The DMA of its mailboxes came before.
    Command(Command),
    /// A doorbell was rung.
    Doorbell(Doorbell),
    /// The card reached for memory.
    Dma {
        /// Direction.
        direction: Direction,
        /// Purpose.
        purpose: Purpose,
        /// The bus address.
        addr: u64,
        /// Bytes read or written.
        bytes: &'a [u8],
        /// The access succeeded: there was memory.
        done: bool,
    },
    /// An MSI-X message was sent.
    Interrupt {
        /// Number of the vector.
        vector: u16,
    },
    /// The interrupt pin changed.
    Pin {
        /// Its level.
        asserted: bool,
    },
    /// The card was reset.
    Reset,
}

/// A command and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Opcode.
    pub opcode: Opcode,
    /// Opcode modifier: the command's variant.
    pub op_modifier: u8,
    /// Input modifier: mostly the number of a resource.
    pub in_modifier: u32,
    /// A mailbox's bus address, or a value.
    pub in_param: u64,
    /// A mailbox's bus address.
    pub out_param: u64,
    /// Token by which software identifies the command.
    pub token: u16,
    /// Software asked for an event at its end.
    pub by_event: bool,
    /// Status at its end.
    pub status: CmdStatus,
    /// Its immediate result; the mailbox's address if it has none.
    pub result: u64,
}

/// A doorbell with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// Sends were posted.
    Send {
        /// The UAR page.
        uar: u32,
        /// The queue pair.
        qpn: u32,
    },
    /// A completion queue is to be armed.
    Arm {
        /// The UAR page.
        uar: u32,
        /// For what.
        arm: CqArm,
        /// The consumer index.
        consumer: u32,
    },
    /// Events were taken.
    Events {
        /// The event queue.
        eqn: u32,
        /// The consumer index, and whether to arm.
        value: EqDoorbell,
    },
}

/// Direction of a DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The card reads memory.
    Read,
    /// The card writes memory.
    Write,
}

/// Purpose of a DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A command's input or output.
    Mailbox,
    /// A memory key's entry.
    Mpt,
    /// Entries that translate to pages.
    Mtt,
    /// A multicast group's entry.
    Mcg,
    /// A send request.
    SendWqe,
    /// Send requests that may not be written yet.
    ReadAhead,
    /// A receive request.
    ReceiveWqe,
    /// A completion.
    Cqe,
    /// An event.
    Eqe,
    /// A doorbell record.
    DoorbellRecord,
    /// A message's bytes.
    Payload,
    /// The pages of a region that is registered by a work request.
    PageList,
}

/// A card's way to the recorder.
pub(crate) struct Tracer {
    recorder: Option<Arc<dyn Recorder>>,
    node: String,
    now: Cell<Instant>,
}

impl Tracer {
    pub(crate) fn new(recorder: Option<Arc<dyn Recorder>>, node: &str) -> Self {
        Self {
            recorder,
            node: node.into(),
            now: Cell::default(),
        }
    }

    /// Sets the time of what follows.
    pub(crate) fn set_now(&self, now: Instant) {
        self.now.set(now);
    }

    /// Passes an event to the recorder; it is built only if there is one.
    #[inline]
    pub(crate) fn record<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if let Some(recorder) = &self.recorder {
            recorder.record(&self.node, self.now.get(), &event());
        }
    }
}

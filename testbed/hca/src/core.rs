//! State that all queue pairs of a card share: memory, queues, ports, and packets on their way out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use fabric::Packet;
use fabric::counters::{CountedPorts, PortCounts};
use hal::Instant;
use mlx4_hw::cq::{Cqe, Syndrome};

use crate::Counters;
use crate::cq::CompletionQueues;
use crate::eq::EventQueues;
use crate::memory::Memory;
use crate::port::Port;
use crate::rng::Rng;
use crate::srq::SharedQueues;

/// Card's state except its queue pairs and its firmware.
pub(crate) struct Core {
    /// The time of the call that is being served.
    pub(crate) now: Instant,
    pub(crate) memory: Memory,
    pub(crate) events: EventQueues,
    pub(crate) completions: CompletionQueues,
    pub(crate) shared: SharedQueues,
    pub(crate) ports: Vec<Port>,
    pub(crate) outgoing: VecDeque<(u8, Packet)>,
    /// Queue pairs with something to do at a time.
    pub(crate) timers: BTreeSet<(Instant, u32)>,
    /// Queue pairs with something to do now.
    pub(crate) ready: VecDeque<u32>,
    pub(crate) counters: Counters,
    pub(crate) diagnostics: Diagnostics,
    pub(crate) rng: Rng,
}

/// DIAG_RPRT's counters, by their places in its mailbox (Linux `hw/mlx4/main.c`, `diag_basic`,
/// `diag_ext`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Diagnostics(BTreeMap<usize, u32>);

impl Diagnostics {
    /// Receivers that were not ready: told to the peer, and told by it.
    pub(crate) const NOT_READY_SENT: usize = 0x68;
    pub(crate) const NOT_READY_RECEIVED: usize = 0x6c;
    /// Packets that came too early: at the receiver, and as the peer says.
    pub(crate) const GAP_SEEN: usize = 0x100;
    pub(crate) const GAP_TOLD: usize = 0x104;
    /// Requests that came again.
    pub(crate) const DUPLICATES: usize = 0x130;
    /// Acknowledgements that did not come in time.
    pub(crate) const TIMEOUTS: usize = 0x134;
    const LEN: usize = 0x140;

    /// Counts one of something.
    pub(crate) fn count(&mut self, place: usize) {
        let count = self.0.entry(place).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts a completion with an error.
    pub(crate) fn count_error(&mut self, send: bool, syndrome: Syndrome) {
        let place = match (send, syndrome) {
            (false, Syndrome::LOCAL_LENGTH_ERR) => 0x00,
            (true, Syndrome::LOCAL_LENGTH_ERR) => 0x04,
            (false, Syndrome::LOCAL_QP_OP_ERR) => 0x08,
            (true, Syndrome::LOCAL_QP_OP_ERR) => 0x0c,
            (false, Syndrome::LOCAL_PROT_ERR) => 0x18,
            (true, Syndrome::LOCAL_PROT_ERR) => 0x1c,
            (false, Syndrome::WR_FLUSH_ERR) => 0x20,
            (true, Syndrome::WR_FLUSH_ERR) => 0x24,
            (true, Syndrome::BAD_RESP_ERR) => 0x34,
            (true, Syndrome::REMOTE_INVAL_REQ_ERR) => 0x48,
            (true, Syndrome::REMOTE_ACCESS_ERR) => 0x50,
            (true, Syndrome::REMOTE_OP_ERR) => 0x54,
            (true, Syndrome::TRANSPORT_RETRY_EXC_ERR) => 0x5c,
            (true, Syndrome::RNR_RETRY_EXC_ERR) => 0x64,
            _ => return,
        };
        self.count(place);
    }

    /// Returns the mailbox's bytes.
    pub(crate) fn report(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        for (place, count) in &self.0 {
            bytes[*place..place + 4].copy_from_slice(&count.to_be_bytes());
        }
        bytes
    }
}

impl CountedPorts for Core {
    fn numbers(&self) -> RangeInclusive<u8> {
        1..=u8::try_from(self.ports.len()).unwrap_or(1)
    }

    fn counts(&mut self, port: u8) -> Option<&mut PortCounts> {
        self.port_mut(port).map(|port| &mut port.counts)
    }
}

impl Core {
    /// Adds a completion.
    pub(crate) fn complete(&mut self, cqn: u32, cqe: Cqe, solicited: bool) {
        self.completions.complete(
            self.now,
            &self.memory,
            &mut self.events,
            cqn,
            cqe,
            solicited,
        );
    }

    /// Sends a packet out of a port, which must be up to it.
    pub(crate) fn send(&mut self, port: u8, packet: Packet) {
        let Some(state) = self.ports.get_mut(usize::from(port).wrapping_sub(1)) else {
            return;
        };
        if !state.may_send(&packet) {
            log::debug!(
                "port {port} is not active: a packet to {} is dropped",
                packet.dlid
            );
            return;
        }
        state.counts.sent(&packet);
        self.counters.packets_sent += 1;
        self.counters.bytes_sent += packet.payload.len() as u64;
        self.outgoing.push_back((port, packet));
    }

    /// Returns the port with this number, from 1.
    pub(crate) fn port(&self, number: u8) -> Option<&Port> {
        self.ports.get(usize::from(number).wrapping_sub(1))
    }

    /// Returns the port with this number, from 1, for changes.
    pub(crate) fn port_mut(&mut self, number: u8) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(number).wrapping_sub(1))
    }
}

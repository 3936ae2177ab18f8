//! State that all queue pairs of a card share: memory, queues, ports, and packets on their way out.

use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use fabric::Packet;
use fabric::counters::{CountedPorts, PortCounts};
use hal::Instant;
use mlx4_hw::cq::Cqe;

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
    pub(crate) rng: Rng,
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
        self.completions
            .complete(&self.memory, &mut self.events, cqn, cqe, solicited);
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

//! Packets between ports: delay, order, loss, partitions.

use verbs::{Gid, Lid, Psn, QKey, Qpn, RemoteAddr};

use crate::world::{Event, NodeIndex, World};

/// The port of the first subnet manager.
pub(crate) const FIRST_MANAGER: Lid = Lid(1);
/// The first multicast LID.
pub(crate) const FIRST_MLID: u16 = 0xc000;

/// Operation of a reliable request.
#[derive(Debug, Clone)]
pub(crate) enum WireOp {
    Send {
        data: Vec<u8>,
        imm: Option<u32>,
        solicited: bool,
    },
    Write {
        to: RemoteAddr,
        data: Vec<u8>,
        imm: Option<u32>,
        solicited: bool,
    },
    Read {
        from: RemoteAddr,
        len: u32,
    },
}

/// Reason for which a responder refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nak {
    Sequence,
    NotReady,
    Invalid,
    Access,
}

/// Content of a packet. A message is one packet here, whatever its length.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Request {
        psn: Psn,
        op: WireOp,
        changed: bool,
    },
    Ack {
        psn: Psn,
    },
    Data {
        psn: Psn,
        data: Vec<u8>,
    },
    Nak {
        psn: Psn,
        why: Nak,
    },
    Datagram {
        source: Qpn,
        qkey: QKey,
        group: Option<Gid>,
        data: Vec<u8>,
    },
    Mad(Box<mad::Mad>),
}

/// A packet under way.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) slid: Lid,
    pub(crate) dlid: Lid,
    pub(crate) to: Qpn,
    pub(crate) body: Body,
}

/// The links and what is wrong with them.
pub(crate) struct Network {
    /// The side of a partition that each node is on, and the subnet manager's.
    pub(crate) side: Vec<u8>,
    pub(crate) sm_side: u8,
    pub(crate) port_up: Vec<bool>,
    /// Extra nanoseconds on each packet from or to a node.
    pub(crate) slow: Vec<u64>,
    /// Arrival time of the last in-order packet, for each pair of nodes.
    last: Vec<u64>,
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            side: vec![0; nodes],
            sm_side: 0,
            port_up: vec![true; nodes],
            slow: vec![0; nodes],
            last: vec![0; nodes * nodes],
        }
    }

    pub(crate) fn joined(&self, from: Option<NodeIndex>, to: Option<NodeIndex>) -> bool {
        let up = |node: Option<usize>| node.is_none_or(|node| self.port_up[node]);
        let side = |node: Option<usize>| node.map_or(self.sm_side, |node| self.side[node]);
        up(from) && up(to) && side(from) == side(to)
    }

    /// Nanoseconds that slow links add.
    fn slowed(&self, from: Option<NodeIndex>, to: Option<NodeIndex>) -> u64 {
        let slow = |node: Option<usize>| node.map_or(0, |node| self.slow[node]);
        slow(from) + slow(to)
    }
}

impl World {
    /// Returns the node with this LID; the subnet manager is `Some(None)`.
    fn at_lid(&self, lid: Lid) -> Option<Option<NodeIndex>> {
        if lid == self.sa.lid {
            return Some(None);
        }
        self.by_lid(lid).map(Some)
    }

    /// Sends a packet of a reliable connection: in order, lost now and then.
    pub(crate) fn send_reliable(&mut self, packet: Packet, bytes: usize) {
        let (Some(from), Some(to)) = (self.by_lid(packet.slid), self.by_lid(packet.dlid)) else {
            return;
        };
        if !self.net.joined(Some(from), Some(to)) {
            return;
        }
        if self.rng.chance(self.rates.packet_loss) {
            self.stats.count("packet lost");
            return;
        }
        let delay =
            self.rng.between(700, 2000) + bytes as u64 / 4 + self.net.slowed(Some(from), Some(to));
        let last = &mut self.net.last[from * self.nodes.len() + to];
        let at = (self.now + delay).max(*last + 1);
        *last = at;
        if self.rng.chance(self.rates.packet_duplicate) {
            self.stats.count("packet duplicated");
            let late = self.rng.between(1000, 100_000);
            self.schedule(at + late, Event::Packet(Box::new(packet.clone())));
        }
        self.schedule(at, Event::Packet(Box::new(packet)));
    }

    /// Sends a datagram, management or not: lost, late, duplicated and overtaken now and then.
    pub(crate) fn send_datagram(&mut self, packet: Packet) {
        let (Some(from), Some(to)) = (self.at_lid(packet.slid), self.at_lid(packet.dlid)) else {
            return;
        };
        if !self.net.joined(from, to) {
            return;
        }
        if self.rng.chance(self.rates.datagram_loss) {
            self.stats.count("datagram lost");
            return;
        }
        let mut copies = 1;
        if self.rng.chance(self.rates.datagram_duplicate) {
            self.stats.count("datagram duplicated");
            copies = 2;
        }
        for _ in 0..copies {
            let mut delay = self.rng.between(1000, 20_000) + self.net.slowed(from, to);
            if self.rng.chance(self.rates.datagram_late) {
                self.stats.count("datagram late");
                delay += self.rng.between(1_000_000, 400_000_000);
            }
            self.after(delay, Event::Packet(Box::new(packet.clone())));
        }
        self.overhear(&packet);
    }

    /// Delivers a packet at the end of its way.
    pub(crate) fn arrive(&mut self, packet: Packet) {
        let (Some(from), Some(to)) = (self.at_lid(packet.slid), self.at_lid(packet.dlid)) else {
            return;
        };
        if !self.net.joined(from, to) {
            return;
        }
        let now = self.now;
        let code = [
            u64::from(packet.slid.0),
            u64::from(packet.dlid.0),
            u64::from(packet.to.0),
        ];
        self.trace.event(now, 2, code);
        self.trace.whisper(
            now,
            format_args!(
                "{} to {} {}: {}",
                packet.slid,
                packet.dlid,
                packet.to,
                packet.body.name()
            ),
        );
        let Some(to) = to else {
            if let Body::Mad(mad) = packet.body {
                self.ask_administrator(packet.slid, &mad);
            }
            return;
        };
        if !self.nodes[to].alive {
            return;
        }
        match packet.body {
            Body::Mad(mad) => {
                // QP1's receive queue has an end.
                if self.nodes[to].mads.len() < 256 {
                    self.nodes[to].mads.push_back((packet.slid, *mad));
                }
            }
            Body::Datagram { .. } => self.receive_datagram(to, packet),
            Body::Request { psn, op, changed } => {
                self.on_request(to, (packet.slid, packet.to), psn, op, changed)
            }
            Body::Ack { psn } => self.on_ack(to, (packet.slid, packet.to), psn, None),
            Body::Data { psn, data } => self.on_ack(to, (packet.slid, packet.to), psn, Some(data)),
            Body::Nak { psn, why } => self.on_nak(to, (packet.slid, packet.to), psn, why),
        }
    }
}

impl Body {
    fn name(&self) -> String {
        match self {
            Self::Request { psn, op, .. } => match op {
                WireOp::Send { data, .. } => format!("SEND {psn}, {} bytes", data.len()),
                WireOp::Write { to, data, .. } => {
                    format!("WRITE {psn} to {:#x}, {} bytes", to.addr, data.len())
                }
                WireOp::Read { from, len } => {
                    format!("READ {psn} from {:#x}, {len} bytes", from.addr)
                }
            },
            Self::Ack { psn } => format!("ACK {psn}"),
            Self::Data { psn, data } => format!("READ response {psn}, {} bytes", data.len()),
            Self::Nak { psn, why } => format!("NAK {psn}: {why:?}"),
            Self::Datagram { data, .. } => format!("datagram of {} bytes", data.len()),
            Self::Mad(mad) => format!(
                "MAD class {:#x} attribute {:#x}",
                mad[1],
                u16::from_be_bytes([mad[16], mad[17]])
            ),
        }
    }
}

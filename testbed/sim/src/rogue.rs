//! Member that holds the key and breaks the protocol.
//!
//! Its node runs the unmodified FIT, so it finds the others and connects to them. Its HCA changes,
//! repeats, swallows and makes up what FIT posts on connections: headers, lengths, descriptors,
//! credits, replies to nobody, WRITEs with immediate data, READs and WRITEs of any memory of the
//! peer, under the true keys.

use std::collections::VecDeque;

use verbs::{Psn, Qpn, RemoteAddr, Rkey};

use crate::memory::Denied;
use crate::qp::{Op, Source, Wqe};
use crate::rng::{Ppm, digest};
use crate::world::{NodeIndex, World};

/// The share of posted requests with which something is done.
const RATE: Ppm = 100_000;
/// Messages that are kept, to be sent again.
const KEPT: usize = 16;
/// Name of a request that FIT knows nothing of: it completes unseen.
pub(crate) const EXTRA: u64 = u64::MAX;
/// Bytes of FIT's header, of a descriptor behind it, and the most that a message of the workload
/// has.
const HEADER: usize = fit::HEADER_LEN;
const DESCRIPTOR: usize = 16;
const MESSAGE: u64 = 300;

/// State of the members that break the protocol.
#[derive(Default)]
pub(crate) struct Rogues {
    /// Places of those that are in this run.
    pub(crate) places: Vec<NodeIndex>,
    kept: VecDeque<Vec<u8>>,
}

impl World {
    /// Returns whether the node breaks the protocol.
    pub(crate) fn is_rogue(&self, node: NodeIndex) -> bool {
        self.rogues.places.contains(&node)
    }

    /// Returns whether either end of a connection breaks the protocol.
    pub(crate) fn is_with_rogue(&self, node: NodeIndex, qpn: Qpn) -> bool {
        let path = self.nodes[node].qps.get(&qpn.0).and_then(|qp| qp.path);
        let peer = path.and_then(|path| self.by_lid(path.address.lid()));
        self.is_rogue(node) || peer.is_some_and(|peer| self.is_rogue(peer))
    }

    /// Tells of memory that the peer of a connection must not touch. A rogue that has a key may
    /// use it when the memory is not lent: its owner must be ready for that.
    pub(crate) fn denied_to(&mut self, node: NodeIndex, qpn: Qpn, denied: Denied) {
        let lawful = matches!(denied, Denied::Owned(_)) && self.is_with_rogue(node, qpn);
        if !lawful {
            self.denied(node, denied);
        }
    }

    /// Does something with the request that a rogue posted last.
    pub(crate) fn corrupt(&mut self, node: NodeIndex, qpn: Qpn) {
        if !self.is_rogue(node) {
            return;
        }
        let Some(bytes) = self.last_message(node, qpn) else {
            return;
        };
        if self.rogues.kept.len() == KEPT {
            self.rogues.kept.pop_front();
        }
        self.rogues.kept.push_back(bytes.clone());
        if !self.rng.chance(RATE) {
            return;
        }
        let what = match self.rng.below(9) {
            0 | 1 => {
                let changed = self.other_header(bytes);
                self.replace(node, qpn, changed);
                "rogue: another header"
            }
            2 => {
                let len = self.rng.below(2 * MESSAGE);
                let mut changed = bytes;
                changed.resize(usize::try_from(len).expect("short"), 0x5a);
                self.replace(node, qpn, changed);
                "rogue: another length"
            }
            3 => {
                let changed = self.other_descriptors(bytes);
                self.replace(node, qpn, changed);
                "rogue: other descriptors"
            }
            4 => {
                self.swallow(node, qpn);
                "rogue: not sent"
            }
            5 => {
                let often = self.rng.pick(&[1, 1, 2, 40]);
                for _ in 0..often {
                    self.add(node, qpn, Op::Send { imm: None }, bytes.clone());
                }
                "rogue: sent again"
            }
            6 => {
                let kept = self.rng.index(self.rogues.kept.len());
                let mut old = self.rogues.kept[kept].clone();
                if self.rng.chance(500_000) {
                    old = self.other_header(old);
                }
                self.add(node, qpn, Op::Send { imm: None }, old);
                "rogue: an old message"
            }
            7 => {
                let op = self.immediate(node, qpn);
                self.add(node, qpn, op, vec![7; 8]);
                "rogue: with immediate data"
            }
            _ => {
                self.reach(node, qpn);
                "rogue: reaches for memory"
            }
        };
        self.stats.count(what);
    }

    /// Returns the bytes of the message that was posted last; `None` if it was none.
    fn last_message(&mut self, node: NodeIndex, qpn: Qpn) -> Option<Vec<u8>> {
        let wqe = self.nodes[node].qps.get(&qpn.0)?.sends.back()?;
        let source = matches!(wqe.op, Op::Send { .. }).then(|| wqe.source.clone())?;
        let bytes = self.gather(node, qpn, &source).ok()?;
        (bytes.len() >= HEADER).then_some(bytes)
    }

    fn replace(&mut self, node: NodeIndex, qpn: Qpn, bytes: Vec<u8>) {
        let qp = self.nodes[node].qps.get_mut(&qpn.0);
        if let Some(wqe) = qp.and_then(|qp| qp.sends.back_mut()) {
            wqe.digest = digest(&bytes);
            wqe.source = Source::Inline(bytes);
        }
    }

    /// Takes the last request back: FIT believes that it is posted.
    fn swallow(&mut self, node: NodeIndex, qpn: Qpn) {
        if let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0)
            && let Some(wqe) = qp.sends.pop_back()
        {
            qp.next_psn = wqe.psn;
        }
    }

    /// Posts a request that FIT knows nothing of.
    fn add(&mut self, node: NodeIndex, qpn: Qpn, op: Op, bytes: Vec<u8>) {
        let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
            return;
        };
        let psn: Psn = qp.next_psn;
        qp.next_psn = psn.advance(1);
        qp.sends.push_back(Wqe {
            id: EXTRA,
            index: qp.posted.saturating_sub(1),
            op,
            digest: digest(&bytes),
            source: Source::Inline(bytes),
            signalled: false,
            solicited: true,
            fence: false,
            to: None,
            psn,
        });
    }

    /// Changes one field of a header: type, pieces, reserved, kind, slot, generation, lengths,
    /// credit.
    fn other_header(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let fields = [
            0..1,
            1..2,
            2..3,
            3..4,
            4..6,
            6..8,
            8..12,
            12..16,
            16..20,
            20..24,
        ];
        let field = &mut bytes[fields[self.rng.index(fields.len())].clone()];
        match self.rng.below(4) {
            0 => field[0] = field[0].wrapping_add(1),
            1 => field[0] = field[0].wrapping_sub(1),
            2 => {
                field.fill(0);
                field[0] = self.rng.below(12).to_le_bytes()[0];
            }
            _ => field.fill_with(|| self.rng.number().to_le_bytes()[0]),
        }
        bytes
    }

    /// Changes the first descriptors behind a header, whether or not there are any.
    fn other_descriptors(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len().min(HEADER + 4 * DESCRIPTOR);
        if end > HEADER {
            for _ in 0..self.rng.between(1, 3) {
                let at = HEADER + self.rng.index(end - HEADER);
                bytes[at] = self.rng.number().to_le_bytes()[0];
            }
        }
        bytes
    }

    fn immediate(&mut self, node: NodeIndex, qpn: Qpn) -> Op {
        let imm = Some(0x1234_5678);
        match self.rng.chance(500_000) {
            true => Op::Send { imm },
            false => Op::Write {
                to: self.target(node, qpn),
                imm,
            },
        }
    }

    /// READs or WRITEs memory of the peer.
    fn reach(&mut self, node: NodeIndex, qpn: Qpn) {
        let (at, len) = (self.target(node, qpn), self.rng.pick(&[1, 64, 2048]));
        let op = match self.rng.chance(500_000) {
            true => Op::Read { from: at },
            false => Op::Write { to: at, imm: None },
        };
        self.add(node, qpn, op, vec![0xee; len]);
    }

    /// Draws a place that the peer has registered, for whomever: it knows all keys.
    fn target(&mut self, node: NodeIndex, qpn: Qpn) -> RemoteAddr {
        let path = self.nodes[node].qps.get(&qpn.0).and_then(|qp| qp.path);
        let peer = path.and_then(|path| self.by_lid(path.address.lid()));
        let number = self.rng.number();
        let region = peer.and_then(|peer| self.nodes[peer].memory.any_region(number));
        let (key, addr) = region.unwrap_or((0x100, 0x10_0000));
        RemoteAddr {
            addr,
            rkey: Rkey(key),
        }
    }
}

//! Hostile node without the key: it records announcements and connection messages, and sends
//! recorded, garbled and made-up ones, such as forge the names of connections and transactions.

use mad::cm::{CmMessage, Dreq, Pair, Rej, RejectReason, Rep, Req, Rtu};
use mad::sa::{PathRecord, SaMad};
use mad::{Method, MgmtClass, Status};
use verbs::{Lid, Qpn};

use crate::network::{Body, Packet};
use crate::rule::Rule;
use crate::world::{Event, NodeIndex, World};

/// Recorded datagrams that are kept.
const KEPT: usize = 64;
/// The most bytes of a packet.
const MTU: u64 = 4096;

/// Hostile node's recorded packets. Some are of lives that ended long ago.
#[derive(Default)]
pub(crate) struct Recorder {
    kept: Vec<Packet>,
}

impl World {
    /// Lets the hostile node record a datagram and perhaps send one.
    pub(crate) fn overhear(&mut self, packet: &Packet) {
        let rate = self.rates.hostile;
        if rate == 0 || !is_worth(&packet.body) {
            return;
        }
        if self.recorder.kept.len() < KEPT {
            self.recorder.kept.push(packet.clone());
        } else if self.rng.chance(200_000) {
            let place = self.rng.index(KEPT);
            self.recorder.kept[place] = packet.clone();
        }
        if self.rng.chance(rate) {
            self.strike();
        }
    }

    fn strike(&mut self) {
        let recorded = self.rng.index(self.recorder.kept.len());
        let mut packet = self.recorder.kept[recorded].clone();
        if let Some(answer) = self.forge_answer(&packet) {
            self.stats.count("hostile: answer of the administrator");
            let delay = self.rng.between(1000, 100_000);
            return self.after(delay, Event::Packet(Box::new(answer)));
        }
        let forged = self.forge(&packet).filter(|_| self.rng.chance(400_000));
        if let Some(forged) = forged {
            self.stats.count("hostile: forged with the right names");
            let delay = self.rng.between(1000, 1_000_000);
            return self.after(delay, Event::Packet(Box::new(forged)));
        }
        let what = match self.rng.below(4) {
            0 => "hostile: played again",
            1 => {
                self.garble(&mut packet.body);
                "hostile: garbled"
            }
            2 => {
                self.make_up(&mut packet.body);
                "hostile: made up"
            }
            _ => {
                packet.slid = self.any_lid();
                "hostile: from another port"
            }
        };
        self.stats.count(what);
        if self.rng.chance(500_000) {
            packet.dlid = self.any_lid();
        }
        let delay = if self.rng.chance(500_000) {
            self.rng.between(1000, 1_000_000)
        } else {
            self.rng.between(1_000_000, 5_000_000_000)
        };
        self.after(delay, Event::Packet(Box::new(packet)));
    }

    /// Makes up an answer to a question of the subnet administrator: the right transaction, from
    /// another port, with a way that leads astray.
    fn forge_answer(&mut self, packet: &Packet) -> Option<Packet> {
        let Body::Mad(mad) = &packet.body else {
            return None;
        };
        let asked = SaMad::parse(&mad[..]).ok()?;
        let mut answer = asked.into_response(Status::OK);
        if let Some(mut path) = asked.record::<PathRecord>() {
            path.dlid.set(self.any_lid().0);
            answer.set_record(&path);
        }
        Some(Packet {
            slid: self.any_lid(),
            dlid: packet.slid,
            to: packet.to,
            body: Body::Mad(Box::new(answer.to_mad())),
        })
    }

    /// Checks that a connection request goes to a port of the node that it is for.
    pub(crate) fn check_way(&mut self, node: NodeIndex, to: Lid, mad: &mad::Mad) {
        let Ok((_, CmMessage::Req(req))) = CmMessage::parse(mad) else {
            return;
        };
        // A LID that is nobody's any more was given by the subnet manager once.
        let there = self.by_lid(to).map(|there| self.nodes[there].gid());
        if there.is_some_and(|gid| gid != req.remote_gid) {
            let gid = req.remote_gid;
            self.violate(
                Rule::Astray,
                format_args!("node {node} looks for {gid} at {to}, where another is"),
            );
        }
    }

    /// Makes up a connection message that names a connection as its owners do, with a proof of
    /// another message or none.
    fn forge(&mut self, packet: &Packet) -> Option<Packet> {
        let Body::Mad(mad) = &packet.body else {
            return None;
        };
        let (transaction, message) = CmMessage::parse(mad).ok()?;
        let other = self.rng.chance(500_000);
        // Whether it goes where the recorded one went, and what it says.
        let (onward, forged) = match message {
            CmMessage::Req(req) if other => (false, self.forge_refusal(&req)),
            CmMessage::Req(req) => (false, self.forge_acceptance(&req)),
            CmMessage::Rep(rep) => {
                let pair = |local_comm_id, remote_comm_id| Pair {
                    local_comm_id,
                    remote_comm_id,
                };
                let proof = &rep.private[PROOF_AT..];
                match (other, self.rng.chance(500_000)) {
                    (true, true) => (
                        false,
                        CmMessage::Rtu(Rtu {
                            pair: pair(rep.remote_comm_id, rep.local_comm_id),
                            private: filled(proof),
                        }),
                    ),
                    (true, false) => (
                        false,
                        leave(pair(rep.remote_comm_id, rep.local_comm_id), rep.qpn, proof),
                    ),
                    (false, _) => (
                        true,
                        leave(pair(rep.local_comm_id, rep.remote_comm_id), rep.qpn, proof),
                    ),
                }
            }
            CmMessage::Rtu(rtu) => (true, leave(rtu.pair, Qpn(0x40), &rtu.private)),
            _ => return None,
        };
        let (slid, dlid) = match onward {
            true => (packet.slid, packet.dlid),
            false => (packet.dlid, packet.slid),
        };
        Some(Packet {
            slid,
            dlid,
            to: packet.to,
            body: Body::Mad(Box::new(forged.to_mad(transaction))),
        })
    }

    fn forge_refusal(&mut self, req: &Req) -> CmMessage {
        let reasons = [
            RejectReason::CONSUMER_DEFINED,
            RejectReason::STALE_CONNECTION,
            RejectReason::NO_RESOURCES,
        ];
        CmMessage::Rej(Rej {
            local_comm_id: 0,
            remote_comm_id: req.local_comm_id,
            rejected: 0,
            reason: self.rng.pick(&reasons),
            private: filled(&req.private[PROOF_AT..]),
        })
    }

    fn forge_acceptance(&mut self, req: &Req) -> CmMessage {
        CmMessage::Rep(Rep {
            local_comm_id: 0x1234,
            remote_comm_id: req.local_comm_id,
            qpn: req.qpn,
            starting_psn: req.starting_psn,
            responder_resources: 16,
            initiator_depth: 16,
            rnr_retry: 6,
            ca_guid: req.ca_guid,
            private: filled(&req.private),
        })
    }

    fn any_lid(&mut self) -> Lid {
        let node = self.rng.index(self.nodes.len());
        self.nodes[node].lid
    }

    fn garble(&mut self, body: &mut Body) {
        let bytes: &mut [u8] = match body {
            Body::Datagram { data, .. } => data,
            Body::Mad(mad) => &mut mad[..],
            _ => return,
        };
        if bytes.is_empty() {
            return;
        }
        for _ in 0..self.rng.between(1, 4) {
            let bit = self.rng.index(8);
            let byte = self.rng.index(bytes.len());
            bytes[byte] ^= 1 << bit;
        }
    }

    fn make_up(&mut self, body: &mut Body) {
        match body {
            Body::Datagram { data, .. } => {
                let random = self.rng.below(MTU + 1);
                let len = self.rng.pick(&[0, 95, 96, 97, 216, 217, MTU, random]);
                *data = (0..len)
                    .map(|_| self.rng.number().to_le_bytes()[0])
                    .collect();
            }
            // The header stays, so that it is taken for a connection message.
            Body::Mad(mad) => mad[24..].fill_with(|| self.rng.number().to_le_bytes()[0]),
            _ => {}
        }
    }
}

/// Offset of the proof in the private data of REQ and REP.
const PROOF_AT: usize = 56;

/// Puts bytes into private data of any length, as far as they go.
fn filled<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut private = [0; N];
    let len = bytes.len().min(N);
    private[..len].copy_from_slice(&bytes[..len]);
    private
}

fn leave(pair: Pair, remote_qpn: Qpn, proof: &[u8]) -> CmMessage {
    CmMessage::Dreq(Dreq {
        pair,
        remote_qpn,
        private: filled(proof),
    })
}

/// Announcements, messages of the connection manager, and questions to the subnet administrator.
fn is_worth(body: &Body) -> bool {
    match body {
        Body::Datagram { .. } => true,
        Body::Mad(mad) if mad[1] == MgmtClass::SUBN_ADM.0 => !Method(mad[3]).is_response(),
        Body::Mad(mad) => mad[1] == MgmtClass::CM.0,
        _ => false,
    }
}

//! A node's handler, and the memory that it lends to its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fit::{Exchange, Handler, LostCause, Member, PeerId};
use verbs::{RemoteAddr, Rkey};

use super::local::Local;
use super::{HEAD, NodeLife, pattern};
use crate::memory::Guard;
use crate::rule::Rule;
use crate::sabotage::Sabotage;
use crate::world::{Life, World};

/// The kind of a call that asks for memory. All others are answered as they say.
pub(super) const LEND: u16 = 100;
/// Bytes that are lent.
pub(super) const PLACE: usize = 256;
/// The longest time that a handler computes.
const COMPUTES: u64 = 20_000_000;
/// Bytes of the answer: address, key, and whose it is.
const LENT_LEN: usize = 24;

/// Memory of a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) of: Life,
    pub(super) at: RemoteAddr,
}

impl Place {
    fn encode(&self) -> [u8; LENT_LEN] {
        let mut bytes = [0; LENT_LEN];
        bytes[..8].copy_from_slice(&self.at.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.at.rkey.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.of.incarnation.to_le_bytes());
        bytes[16..].copy_from_slice(&(self.of.node as u64).to_le_bytes());
        bytes
    }

    /// Reads an answer; nothing if nothing was lent.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENT_LEN] = bytes.try_into().ok()?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let rkey = Rkey(word(8));
        Some(Self {
            of: Life {
                node: usize::try_from(long(16)).ok()?,
                incarnation: word(12),
            },
            at: RemoteAddr {
                addr: long(0),
                rkey,
            },
        })
    }
}

#[derive(Default)]
struct Lent {
    to: BTreeMap<PeerId, Vec<Local>>,
    lost: BTreeSet<PeerId>,
}

/// The handler of one life of a node.
pub(super) struct Answers {
    node: Arc<NodeLife>,
    lent: Mutex<Lent>,
}

impl Answers {
    pub(super) fn new(node: Arc<NodeLife>) -> Self {
        Self {
            node,
            lent: Mutex::default(),
        }
    }

    fn lent(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a peer memory that nobody else uses, until it is lost.
    async fn lend(&self, to: PeerId, exchange: &mut dyn Exchange) {
        exchange.set_len(0);
        let len = u32::try_from(PLACE).expect("short");
        let Some(local) = self.node.local(to, len, Guard::Lent).await else {
            return;
        };
        let place = Place {
            of: self.node.machine.life,
            at: local.remote(),
        };
        let refused = {
            let mut lent = self.lent();
            if lent.lost.contains(&to) {
                Some(local)
            } else {
                lent.to.entry(to).or_default().push(local);
                None
            }
        };
        if let Some(local) = refused {
            return self.node.take_back(local).await;
        }
        exchange.message()[..LENT_LEN].copy_from_slice(&place.encode());
        exchange.set_len(LENT_LEN);
    }

    /// Returns whether this node or the peer breaks the protocol.
    fn is_with_rogue(&self, from: PeerId) -> bool {
        let NodeLife {
            machine, plan, fit, ..
        } = &*self.node;
        let rogues = plan.rogues();
        if rogues.is_empty() || rogues.contains(&machine.life.node) {
            return !rogues.is_empty();
        }
        let name = fit.peers().into_iter().find(|(peer, _)| *peer == from);
        let is_its =
            |world: &mut World, gid| rogues.iter().any(|&rogue| world.nodes[rogue].gid() == gid);
        // Of a lost peer nobody knows any more who it was.
        name.is_none_or(|(_, name)| machine.living(|world| is_its(world, name.gid)) != Some(false))
    }

    /// Notes that a message came, and checks that it is what was sent; its number.
    fn look_at(&self, message: &[u8]) -> u64 {
        let number = message
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let machine = &self.node.machine;
        machine.living(|world| world.saw(machine.life, number));
        if message.len() < HEAD || message[HEAD..] != pattern(number, message.len() - HEAD) {
            self.violate(format_args!("message {number} is spoilt"));
        }
        number
    }

    fn violate(&self, what: std::fmt::Arguments<'_>) {
        let machine = &self.node.machine;
        let node = machine.life.node;
        machine.living(|world| world.violate(Rule::Content, format_args!("node {node}: {what}")));
    }

    /// Answers as the request says.
    async fn answer(&self, from: PeerId, request: &[u8], exchange: &mut dyn Exchange) {
        if self.is_with_rogue(from) {
            return self.answer_rogue(request, exchange);
        }
        let word = |at: usize| {
            request.get(at..at + 4).map_or(0, |bytes| {
                u32::from_le_bytes(bytes.try_into().expect("four"))
            })
        };
        let number = self.look_at(request);
        let machine = &self.node.machine;
        let panics = machine.living(|world| world.sabotaged(Sabotage::PanickingHandler));
        assert!(panics != Some(true), "a handler panics, as it was told");
        let computes = |world: &mut World| {
            let rate = world.rates.busy_handler;
            world
                .rng
                .chance(rate)
                .then(|| world.rng.between(100_000, COMPUTES))
        };
        if let Some(span) = machine.living(computes).flatten() {
            machine.compute(span).await;
        }
        if word(8) > 0 {
            machine.pause(u64::from(word(8)) * 1000).await;
        }
        let len = (word(12) as usize).min(exchange.message().len());
        exchange.message()[..len].copy_from_slice(&pattern(number ^ 1, len));
        exchange.set_len(len);
        let mut bulk = vec![0; word(20) as usize];
        let came = exchange.read_bulk(0, &mut bulk);
        // Of a peer that is lost meanwhile there is none any more.
        let gone = came == 0 && exchange.bulk_len() == bulk.len();
        if !gone && (came != exchange.bulk_len() || bulk != pattern(number ^ 3, bulk.len())) {
            self.violate(format_args!("the bulk of request {number} is spoilt"));
        }
        let bulk = (word(16) as usize).min(exchange.bulk_limit());
        exchange.write_bulk(0, &pattern(number ^ 2, bulk));
    }
}

impl Answers {
    /// Answers something, as much as fits, to one whose requests may say anything.
    fn answer_rogue(&self, request: &[u8], exchange: &mut dyn Exchange) {
        let mut bulk = vec![0; exchange.bulk_len()];
        exchange.read_bulk(0, &mut bulk);
        let len = request.len().min(exchange.message().len());
        exchange.message()[..len].copy_from_slice(&request[..len]);
        exchange.set_len(len);
        let limit = exchange.bulk_limit();
        exchange.write_bulk(0, &vec![0xbb; limit]);
    }
}

impl Handler for Answers {
    async fn handle(&self, from: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        match kind {
            LEND => self.lend(from, exchange).await,
            _ => self.answer(from, request, exchange).await,
        }
    }

    async fn receive(&self, from: PeerId, _: u16, body: &[u8]) {
        if !self.is_with_rogue(from) {
            self.look_at(body);
        }
    }

    fn peer_joined(&self, peer: PeerId, member: &Member) {
        let machine = &self.node.machine;
        machine.living(|world| world.told_joined(machine.life, peer, *member));
    }

    fn peer_lost(&self, peer: PeerId, _: Option<LostCause>) {
        let machine = &self.node.machine;
        machine.living(|world| {
            if !world.has(Sabotage::UntoldLoss) {
                world.told_lost(machine.life, peer);
                if self.node.plan.own_domains {
                    world.check_let_go(machine.life.node, self.node.fit.domain(peer));
                }
            }
        });
        let back = {
            let mut lent = self.lent();
            lent.lost.insert(peer);
            lent.to.remove(&peer).unwrap_or_default()
        };
        // From now on it is the owner's, though the device does not know it yet.
        back.iter()
            .for_each(|local| local.buffer.guard(Guard::Owned));
        let node = self.node.clone();
        machine.spawn(async move {
            for local in back {
                node.take_back(local).await;
            }
        });
    }
}

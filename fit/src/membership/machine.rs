//! The decisions: whom to call, whom to probe, whom to forget.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hal::{Duration, Instant};
use mutants::Mutant;
use verbs::{Address, Gid};

use super::announcement::{Announcement, Bad};
use super::proof::{NO_CHALLENGE, Rng};
use super::{ANNOUNCEMENT_LEN, Change, Cluster, Incarnation, Limiter, Member, View, digest};
use crate::{PeerId, PeerName};

/// The most nodes that are known of, members or not.
const MAX_KNOWN: usize = 256;
/// A node that is no member is forgotten when it was not heard for so long.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Announcements at the start, and how far they are apart; then while views differ; then for good.
const FAST: u32 = 10;
const FAST_GAP: Duration = Duration::from_millis(100);
const GAP: Duration = Duration::from_secs(1);
const SLOW_GAP: Duration = Duration::from_secs(5);
/// Time that the node with the larger GID waits for the other's call before it calls itself.
const COURTESY: Duration = Duration::from_secs(1);
/// Between two calls of a node that fail: the shortest and the longest pause.
const CALL_AGAIN: Duration = Duration::from_millis(250);
const MAX_DOUBLINGS: u32 = 5;
/// Before a node that refused for good is asked once more.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);

/// An input of the membership.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A datagram came to the group from this port.
    Heard(Address, &'a [u8]),
    /// A node's connections stand, and it has proven to hold the key.
    Admitted(PeerId, Member, Address),
    /// A call that was asked for came to nothing.
    CallFailed {
        /// GID of the called node.
        gid: Gid,
        /// It refused for good.
        refused: bool,
    },
    /// A member's connections are lost.
    Lost(PeerId),
    /// A node asks for a connection that has one already.
    CalledAgain(Gid),
    /// Time has gone by.
    Tick,
    /// This node goes.
    Leave,
}

/// An output of the membership, to be carried out by its user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send this datagram to the group.
    Announce(Box<[u8; ANNOUNCEMENT_LEN]>),
    /// Connect to this node.
    Call(PeerName),
    /// Find out at once whether this member still answers.
    Probe(PeerId),
    /// End the connections of this member: it has said that it goes.
    Drop(PeerId),
    /// Tell whoever wants to know.
    Tell(Change),
}

/// Counters of the membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MembershipCounters {
    /// Announcements sent.
    pub nr_announced: u64,
    /// Announcements of members, or of nodes that may become some.
    pub nr_heard: u64,
    /// Announcements of other clusters, or other datagrams.
    pub nr_foreign: u64,
    /// Announcements and connection requests of nodes that do not hold the key.
    pub nr_bad_proof: u64,
    /// Well proven, but of another version.
    pub nr_other_version: u64,
    /// Announcements that were played again or came late.
    pub nr_replayed: u64,
    /// Nodes with the identity of this node, or of a member that still answers.
    pub nr_duplicate: u64,
    /// Nodes that there was no room for.
    pub nr_no_room: u64,
    /// Members that joined.
    pub nr_joined: u64,
    /// Members that were lost.
    pub nr_lost: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Heard,
    Calling,
    Member(PeerId),
    /// It said that it goes; kept for a while, so that old announcements of it are known as such.
    Left,
}

#[derive(Debug)]
struct Known {
    member: Member,
    address: Address,
    standing: Standing,
    sequence: u64,
    digest: Option<u64>,
    heard: Instant,
    failures: u32,
    /// The time to call it, if it is no member by then.
    call: Instant,
}

/// The membership's state: the members, and the calls that are due.
pub(crate) struct Membership {
    me: Member,
    address: Address,
    message_version: u16,
    cluster: Cluster,
    rng: Rng,
    known: BTreeMap<Gid, Known>,
    sequence: u64,
    announce: Instant,
    digest: u64,
    limiter: Limiter,
    counters: MembershipCounters,
}

impl Membership {
    /// A node that knows nobody. `me.incarnation` is drawn here.
    pub(crate) fn new(
        mut me: Member,
        message_version: u16,
        cluster: Cluster,
        mut rng: Rng,
        now: Instant,
    ) -> Self {
        me.incarnation = Incarnation(rng.number());
        Self {
            me,
            address: Address::default(),
            message_version,
            cluster,
            rng,
            known: BTreeMap::new(),
            sequence: 0,
            announce: now,
            digest: digest([me].iter()),
            limiter: Limiter::new(now),
            counters: MembershipCounters::default(),
        }
    }

    /// This node.
    pub(crate) fn me(&self) -> Member {
        self.me
    }

    /// Returns the challenge that a request to this port is to be proven for, as far as it is
    /// known: the incarnation of the node there.
    pub(crate) fn challenge(&self, gid: Gid) -> u64 {
        let known = self.known.get(&gid);
        known.map_or(NO_CHALLENGE, |known| known.member.incarnation.0)
    }

    pub(crate) fn counters(&mut self) -> &mut MembershipCounters {
        &mut self.counters
    }

    /// The port has these addresses now.
    pub(crate) fn set_port(&mut self, gid: Gid, address: Address) {
        self.me.name.gid = gid;
        self.address = address;
        self.set_digest();
    }

    /// Returns the members.
    pub(crate) fn view(&self) -> View {
        let agreeing = |known: &&Known| known.digest == Some(self.digest);
        View {
            me: self.me,
            members: self
                .members()
                .map(|(peer, known)| (peer, known.member))
                .collect(),
            digest: self.digest,
            agreeing: self
                .members()
                .map(|(_, known)| known)
                .filter(agreeing)
                .count(),
        }
    }

    fn members(&self) -> impl Iterator<Item = (PeerId, &Known)> {
        self.known
            .values()
            .filter_map(|known| match known.standing {
                Standing::Member(peer) => Some((peer, known)),
                Standing::Heard | Standing::Calling | Standing::Left => None,
            })
    }

    /// The member that a number stands for.
    fn by_peer(&mut self, peer: PeerId) -> Option<&mut Known> {
        self.known
            .values_mut()
            .find(|known| known.standing == Standing::Member(peer))
    }

    fn set_digest(&mut self) {
        if Mutant::StaleDigest.on() {
            return;
        }
        let mut all: Vec<Member> = self.members().map(|(_, known)| known.member).collect();
        all.push(self.me);
        all.sort_unstable_by_key(|member| member.name.gid);
        self.digest = digest(all.iter());
    }

    /// Takes in what happened, and says what to do.
    pub(crate) fn on(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Heard(from, bytes) => self.on_heard(from, bytes, now, &mut actions),
            Event::Admitted(peer, member, address) => {
                self.on_admitted(peer, member, address, now, &mut actions)
            }
            Event::CallFailed { gid, refused } => self.on_call_failed(gid, refused, now),
            Event::Lost(peer) => self.on_lost(peer, now, &mut actions),
            Event::CalledAgain(gid) => self.probe(gid, now, &mut actions),
            Event::Tick => self.on_tick(now, &mut actions),
            Event::Leave => self.announce(true, &mut actions),
        }
        actions
    }

    fn announce(&mut self, leaves: bool, actions: &mut Vec<Action>) {
        self.sequence += 1;
        let announcement = Announcement {
            member: self.me,
            address: self.address,
            message_version: self.message_version,
            leaves,
            sequence: self.sequence,
            members: u32::try_from(self.members().count() + 1).unwrap_or(u32::MAX),
            digest: self.digest,
        };
        self.counters.nr_announced += 1;
        actions.push(Action::Announce(Box::new(
            announcement.encode(&self.cluster),
        )));
    }

    fn on_heard(&mut self, from: Address, bytes: &[u8], now: Instant, actions: &mut Vec<Action>) {
        let announcement = match Announcement::decode(bytes, &self.cluster) {
            Ok(announcement) if announcement.message_version != self.message_version => {
                Err(Bad::Version)
            }
            other => other,
        };
        let announcement = match announcement {
            Ok(announcement) => announcement,
            Err(bad) => return self.refuse(from, bad, now),
        };
        if announcement.member.name.gid == self.me.name.gid {
            // The fabric may bring a node its own announcements.
            if announcement.member.incarnation != self.me.incarnation {
                self.counters.nr_duplicate += 1;
                if self.limiter.allows(now) {
                    log::error!("{from} has the GID of this node");
                }
            }
            return;
        }
        if announcement.address != from {
            return self.refuse(from, Bad::Proof, now);
        }
        let gid = announcement.member.name.gid;
        let Some(known) = self.known.get_mut(&gid) else {
            return self.on_newcomer(&announcement, now);
        };
        if known.member.incarnation == announcement.member.incarnation
            && announcement.sequence <= known.sequence
            && !Mutant::OldAnnouncementTaken.on()
        {
            self.counters.nr_replayed += 1;
            return;
        }
        self.counters.nr_heard += 1;
        let same =
            known.member.incarnation == announcement.member.incarnation && known.address == from;
        match known.standing {
            Standing::Member(peer) if same => {
                known.sequence = announcement.sequence;
                known.digest = Some(announcement.digest);
                known.member.capacity = announcement.member.capacity;
                known.heard = now;
                if announcement.leaves {
                    actions.push(Action::Drop(peer));
                }
            }
            // Another life of it, or another node with its name: whoever answers on the connection
            // is the one.
            Standing::Member(_) => self.probe(gid, now, actions),
            Standing::Heard | Standing::Left | Standing::Calling => {
                let calling = known.standing == Standing::Calling;
                (known.member, known.address) = (announcement.member, from);
                (known.sequence, known.heard) = (announcement.sequence, now);
                if announcement.leaves {
                    known.standing = Standing::Left;
                } else if !calling && !same {
                    known.standing = Standing::Heard;
                    known.failures = 0;
                    known.call = now;
                }
            }
        }
    }

    fn refuse(&mut self, from: Address, bad: Bad, now: Instant) {
        let counter = match bad {
            Bad::Foreign => &mut self.counters.nr_foreign,
            Bad::Proof => &mut self.counters.nr_bad_proof,
            Bad::Version => &mut self.counters.nr_other_version,
        };
        *counter += 1;
        if bad != Bad::Foreign && self.limiter.allows(now) {
            log::warn!("{from} is refused: {bad:?}");
        }
    }

    fn on_newcomer(&mut self, announcement: &Announcement, now: Instant) {
        if self.known.len() >= MAX_KNOWN && !self.forget_one() {
            self.counters.nr_no_room += 1;
            return;
        }
        self.counters.nr_heard += 1;
        let gid = announcement.member.name.gid;
        let courtesy = if self.me.name.gid < gid {
            Duration::ZERO
        } else {
            COURTESY
        };
        let known = Known {
            member: announcement.member,
            address: announcement.address,
            standing: if announcement.leaves {
                Standing::Left
            } else {
                Standing::Heard
            },
            sequence: announcement.sequence,
            digest: None,
            heard: now,
            failures: 0,
            call: now + courtesy,
        };
        self.known.insert(gid, known);
        // It shall hear of this node soon, but not of all nodes at once.
        let soon = now + self.jittered(FAST_GAP);
        self.announce = self.announce.min(soon);
    }

    /// Makes room by forgetting whoever was not heard for longest and is no member.
    fn forget_one(&mut self) -> bool {
        let idle = |known: &&Known| matches!(known.standing, Standing::Heard | Standing::Left);
        let oldest = self
            .known
            .values()
            .filter(idle)
            .min_by_key(|known| known.heard);
        let Some(gid) = oldest.map(|known| known.member.name.gid) else {
            return false;
        };
        self.known.remove(&gid).is_some()
    }

    fn probe(&mut self, gid: Gid, now: Instant, actions: &mut Vec<Action>) {
        let Some(known) = self.known.get(&gid) else {
            return;
        };
        let Standing::Member(peer) = known.standing else {
            return;
        };
        self.counters.nr_duplicate += 1;
        if self.limiter.allows(now) {
            log::info!("{} calls again: does it still answer?", known.member.name);
        }
        actions.push(Action::Probe(peer));
    }

    fn on_admitted(
        &mut self,
        peer: PeerId,
        member: Member,
        address: Address,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let gid = member.name.gid;
        let old = self.known.get(&gid);
        if let Some(Standing::Member(old)) = old.map(|known| known.standing) {
            // A connection that replaces another: the one that is gone is told first.
            self.on_lost(old, now, actions);
        }
        let old = self
            .known
            .get(&gid)
            .filter(|old| old.member.incarnation == member.incarnation);
        let known = Known {
            member,
            address,
            standing: Standing::Member(peer),
            sequence: old.map_or(0, |old| old.sequence),
            digest: old.and_then(|old| old.digest),
            heard: now,
            failures: 0,
            call: now,
        };
        self.known.insert(gid, known);
        self.counters.nr_joined += 1;
        self.set_digest();
        actions.push(Action::Tell(Change::Joined(peer, member)));
        self.announce = self.announce.min(now + self.jittered(FAST_GAP));
    }

    fn on_call_failed(&mut self, gid: Gid, refused: bool, now: Instant) {
        let doublings = self.known.get(&gid).map_or(0, |known| known.failures);
        let pause = CALL_AGAIN * (1 << doublings.min(MAX_DOUBLINGS));
        let pause = self.jittered(if refused { REFUSED_AGAIN } else { pause });
        if let Some(known) = self.known.get_mut(&gid)
            && known.standing == Standing::Calling
        {
            known.standing = Standing::Heard;
            known.failures = known.failures.saturating_add(1);
            known.call = now + pause;
        }
    }

    fn on_lost(&mut self, peer: PeerId, now: Instant, actions: &mut Vec<Action>) {
        let pause = self.jittered(CALL_AGAIN);
        let Some(known) = self.by_peer(peer) else {
            return;
        };
        known.standing = Standing::Heard;
        known.digest = None;
        known.call = now + pause;
        let member = known.member;
        self.counters.nr_lost += 1;
        self.set_digest();
        actions.push(Action::Tell(Change::Lost(peer, member)));
        self.announce = self.announce.min(now + pause);
    }

    fn on_tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if now >= self.announce {
            self.announce(false, actions);
            self.announce = now + self.gap();
        }
        self.known.retain(|_, known| {
            let waits = matches!(known.standing, Standing::Heard | Standing::Left);
            !waits || now.since(known.heard) < FORGOTTEN
        });
        for known in self.known.values_mut() {
            if known.standing == Standing::Heard && now >= known.call {
                known.standing = Standing::Calling;
                actions.push(Action::Call(known.member.name));
            }
        }
    }

    /// The time to the next announcement.
    fn gap(&mut self) -> Duration {
        let differ = self
            .members()
            .any(|(_, known)| known.digest != Some(self.digest));
        let gap = if self.sequence < u64::from(FAST) {
            FAST_GAP
        } else if differ {
            GAP
        } else {
            SLOW_GAP
        };
        self.jittered(gap)
    }

    /// Between three and five quarters of `span`, so that nodes that started together fall apart.
    fn jittered(&mut self, span: Duration) -> Duration {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos - nanos / 4 + self.rng.below(nanos / 2))
    }
}

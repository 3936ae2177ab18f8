//! The making of one connection: taking a queue pair for it, and repeating what has no answer.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{Instant, Platform};
use mad::cm::{CmMessage, RejectReason, Rep, Req};
use mutants::Mutant;
use verbs::{Access, Address, Device, Domain, Gid, PKey, PathToPeer, PortInfo, Psn, Qpn};

use super::Control;
use crate::error::ConnectStep;
use crate::handshake::{
    Hello, SERVICE_ID, Side, Sides, Way, back_off, introduction, mtu_code, persistence, proof_only,
};
use crate::membership::Event;
use crate::membership::proof::{NO_CHALLENGE, PROOF_LEN, Proof, Purpose};
use crate::pages::PageLink;
use crate::peers::{ConnectOrigin, ConnectState, PeerLine};
use crate::resolver::{Resolver, SubnetAdministrator};
use crate::{LostCause, PeerId, PeerName, Target};

/// Connection requests without an answer before the path is asked for again.
const REQUESTS_PER_PATH: u32 = 4;
/// Questions for a path without an answer after which the manager may be elsewhere.
const IGNORED: u32 = 3;
/// Questions for a path, or rounds of requests, after which a peer that was only heard of is given
/// up.
const TRIES: u32 = 6;
/// Acceptances without a proof before the caller is given up: some five seconds.
const REPLIES: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Path,
    Asked,
    Replied,
    Up,
    /// Given up; its queue pair may not be dead yet.
    Failing,
    Ended,
}

/// This side's end of a connection.
#[derive(Clone)]
pub(super) enum End {
    /// A core and its connection of this number.
    Link(u16, u16),
    /// A page path, this node's or the peer's.
    Pages(Arc<PageLink>),
}

/// The making of one connection.
pub(super) struct Attempt {
    pub(super) peer: PeerId,
    pub(super) name: PeerName,
    /// Lane: the number of this connection among those to the peer.
    pub(super) lane: u16,
    pub(super) end: End,
    pub(super) state: State,
    /// This side calls.
    pub(super) calls: bool,
    pub(super) ours: Side,
    pub(super) theirs: Option<Side>,
    /// The peer's limits; `None` until it has told them.
    pub(super) target: Option<Target>,
    pub(super) transaction: u64,
    pub(super) address: Address,
    pub(super) mtu: u16,
    pub(super) sl: u8,
    /// The way that REQ named.
    pub(super) way: Way,
    /// The peer's challenge, which REQ must be proven for, as far as it is known.
    pub(super) challenge: u64,
    /// The proof of the last REQ.
    pub(super) asked: Proof,
    pub(super) tries: u32,
    pub(super) rounds: u32,
    pub(super) next: Instant,
}

impl Attempt {
    /// Begins the making of a connection, this side calling.
    pub(super) fn new(peer: PeerId, name: PeerName, end: End, ours: Side, now: Instant) -> Self {
        Self {
            peer,
            name,
            lane: ours.hello.lane,
            end,
            state: State::Path,
            calls: true,
            ours,
            theirs: None,
            target: None,
            transaction: 0,
            address: Address::default(),
            mtu: 256,
            sl: 0,
            way: Way::default(),
            challenge: NO_CHALLENGE,
            asked: [0; PROOF_LEN],
            tries: 0,
            rounds: 0,
            next: now,
        }
    }

    /// Returns whether the subnet administrator seems to ignore its questions.
    pub(super) fn is_ignored(&self) -> bool {
        self.state == State::Path && self.tries > IGNORED
    }

    /// Returns whether it is of this page path.
    pub(super) fn is_of(&self, pages: &Arc<PageLink>) -> bool {
        matches!(&self.end, End::Pages(link) if Arc::ptr_eq(link, pages))
    }

    /// Both sides, once the peer has said who it is.
    pub(super) fn sides(&self) -> Option<Sides> {
        let theirs = self.theirs?;
        let (caller, callee) = if self.calls {
            (self.ours, theirs)
        } else {
            (theirs, self.ours)
        };
        Some(Sides {
            caller,
            callee,
            way: self.way,
        })
    }
}

impl<D: Device, P: Platform> Control<D, P> {
    /// Makes attempts for the peers that are wanted and have none.
    pub(super) async fn begin_wanted(&mut self, port: &PortInfo) {
        if self.is_leaving() {
            return;
        }
        let wanted = |line: &PeerLine| {
            matches!(line.standing, ConnectState::Trying(_)) && line.wish != ConnectOrigin::Theirs
        };
        let lines: Vec<(PeerId, PeerLine)> = {
            let peers = self.inner.peers.lock();
            let wanted = peers.iter().filter(|(_, line)| wanted(line));
            wanted.map(|(peer, line)| (peer, *line)).collect()
        };
        for (peer, line) in lines {
            if self.attempts.iter().any(|attempt| attempt.peer == peer) {
                continue;
            }
            for lane in 0..self.inner.config.cores {
                if let Err(reason) = self.begin(port, peer, line.name, lane).await {
                    log::error!("{}: no queue pair for it: {reason}", line.name);
                    self.not_made(peer, line, reason);
                    break;
                }
            }
        }
    }

    /// A peer with more cores than this node has is called once for each of them.
    pub(super) async fn widen(&mut self, port: &PortInfo, index: usize, lanes: u16) {
        let (peer, name) = (self.attempts[index].peer, self.attempts[index].name);
        for lane in self.inner.config.cores..lanes {
            let begun = |attempt: &Attempt| attempt.peer == peer && attempt.lane == lane;
            if self.attempts.iter().any(begun) {
                continue;
            }
            if let Err(reason) = self.begin(port, peer, name, lane).await {
                log::error!("{name}: no queue pair for its core {lane}: {reason}");
                return self.give_up(index, LostCause::Device);
            }
        }
    }

    fn not_made(&mut self, peer: PeerId, line: PeerLine, reason: RejectReason) {
        self.set_standing(peer, ConnectState::Refused(reason.0));
        for core in &self.inner.cores {
            core.lock().fail_peer(peer, LostCause::Device);
        }
        if line.wish == ConnectOrigin::Membership {
            let (gid, refused) = (line.name.gid, true);
            self.set_standing(peer, ConnectState::Idle);
            self.on_member_event(Event::CallFailed { gid, refused });
        }
    }

    /// Takes a queue pair for a connection to `name`; returns the attempt's index.
    pub(super) async fn begin(
        &mut self,
        port: &PortInfo,
        peer: PeerId,
        name: PeerName,
        lane: u16,
    ) -> Result<usize, RejectReason> {
        let core = lane % self.inner.config.cores;
        let claimed = self.inner.cores[usize::from(core)].lock().claim(peer, name);
        let (link, qpn) = claimed.ok_or(RejectReason::NO_QP)?;
        if let Err(error) = self.prepare(core, link, qpn, self.inner.domain(peer)).await {
            log::error!("{qpn} for {name}: {error}");
            self.inner.cores[usize::from(core)]
                .lock()
                .fail(link, LostCause::Device);
            return Err(RejectReason::NO_RESOURCES);
        }
        let ours = self.side(port, lane, qpn);
        let now = self.inner.platform.now();
        let mut attempt = Attempt::new(peer, name, End::Link(core, link), ours, now);
        attempt.challenge = self.inner.membership.lock().challenge(name.gid);
        self.attempts.push(attempt);
        Ok(self.attempts.len() - 1)
    }

    /// Begins a queue pair anew in a protection domain, with its buffers.
    async fn prepare(
        &mut self,
        core: u16,
        link: u16,
        qpn: Qpn,
        domain: Domain,
    ) -> Result<(), verbs::Error> {
        let device = &self.inner.device;
        device.reset_qp(qpn).await?;
        let (addr, len) = {
            let mut engine = self.inner.cores[usize::from(core)].lock();
            engine.forget(link);
            engine.memory(link)
        };
        device.init_qp(qpn, domain).await?;
        let old = self.inner.regions.lock().get(&(core, link)).copied();
        if let Some(old) = old {
            // One that can't be taken back stays noted, so that the next peer's turn tries again.
            if Mutant::RefusedRegionForgotten.on() {
                self.inner.regions.lock().remove(&(core, link));
            }
            device.deregister(&old).await?;
            self.inner.regions.lock().remove(&(core, link));
        }
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let region = device.register(domain, addr, len, access).await?;
        self.inner.regions.lock().insert((core, link), region);
        self.inner.cores[usize::from(core)]
            .lock()
            .renew(link, region.lkey);
        Ok(())
    }

    /// This node's side of a new connection.
    pub(super) fn side(&mut self, port: &PortInfo, lane: u16, qpn: Qpn) -> Side {
        let me = self.inner.membership.lock().me();
        let psn = Psn(self.number() >> 8);
        let comm_id = self.number().max(1);
        let nonce = self.rng.nonce();
        let limits = self.inner.device.limits();
        Side {
            gid: port.gid,
            qpn,
            psn,
            comm_id,
            address: port.address,
            reads: (limits.max_reads_as_responder, limits.max_reads),
            hello: Hello::of(&self.inner.config, &me, lane, nonce),
        }
    }

    /// Repeats what has had no answer in time.
    pub(super) async fn step_attempts(&mut self, port: &PortInfo) {
        let now = self.inner.platform.now();
        for index in 0..self.attempts.len() {
            let attempt = &self.attempts[index];
            if now < attempt.next {
                continue;
            }
            match attempt.state {
                State::Path | State::Asked if self.is_hopeless(attempt) => {
                    self.give_up(index, LostCause::NoAnswer);
                }
                State::Path => self.ask_path(index, port).await,
                State::Asked if attempt.tries >= REQUESTS_PER_PATH => {
                    self.restart(index, port);
                    self.ask_path(index, port).await;
                }
                State::Asked => self.ask(index, port).await,
                State::Replied if attempt.tries < REPLIES => self.accept(index, port).await,
                State::Replied => self.give_up(index, LostCause::NoProof),
                State::Up | State::Failing | State::Ended => {}
            }
        }
    }

    /// Returns whether nobody but the membership waits for it, and it was tried often enough.
    fn is_hopeless(&self, attempt: &Attempt) -> bool {
        let peers = self.inner.peers.lock();
        let asked = peers
            .get(attempt.peer)
            .is_some_and(|line| line.wish == ConnectOrigin::User);
        // Who opens a page path gives up by itself.
        let asked = asked || matches!(attempt.end, End::Pages(_));
        !asked && attempt.rounds >= TRIES
    }

    /// Gives a connection up, made or not.
    pub(super) fn give_up(&mut self, index: usize, cause: LostCause) {
        let attempt = &mut self.attempts[index];
        attempt.state = State::Failing;
        match &attempt.end {
            End::Link(core, link) => self.inner.cores[usize::from(*core)]
                .lock()
                .fail(*link, cause),
            End::Pages(link) => link.fail(cause),
        }
    }

    /// Returns whether a connection to this port is with another life of its node than the one that
    /// says this of itself, or with one that has other cores. All lanes of a peer are with one
    /// life.
    pub(super) fn is_another_life(&self, gid: Gid, hello: &Hello) -> bool {
        let differs = |known: &Side| {
            (known.hello.incarnation, known.hello.cores) != (hello.incarnation, hello.cores)
        };
        self.attempts
            .iter()
            .filter(|attempt| attempt.name.gid == gid && attempt.state != State::Ended)
            .filter(|attempt| matches!(attempt.end, End::Link(..)))
            .any(|attempt| attempt.theirs.as_ref().is_some_and(differs))
            && !Mutant::LivesMixed.on()
    }

    /// Gives up the connections to this port that have not proven themselves, and finds out whether
    /// the others still answer.
    pub(super) fn give_up_former(&mut self, gid: Gid) {
        for index in 0..self.attempts.len() {
            let attempt = &self.attempts[index];
            if attempt.name.gid != gid || !matches!(attempt.end, End::Link(..)) {
                continue;
            }
            match attempt.state {
                State::Replied => self.give_up(index, LostCause::NoProof),
                State::Up => {
                    let peer = attempt.peer;
                    self.inner
                        .cores
                        .iter()
                        .for_each(|core| core.lock().probe(peer));
                }
                State::Path | State::Asked | State::Failing | State::Ended => {}
            }
        }
    }

    /// Notes how far the connecting to a peer is that is no member yet.
    fn note_step(&self, index: usize, step: ConnectStep) {
        let Attempt { peer, end, .. } = &self.attempts[index];
        if matches!(end, End::Link(..)) {
            self.set_standing(*peer, ConnectState::Trying(step));
        }
    }

    /// Goes back to the first step under a new name and with a new nonce.
    pub(super) fn restart(&mut self, index: usize, port: &PortInfo) {
        let (lane, qpn) = (self.attempts[index].lane, self.attempts[index].ours.qpn);
        let ours = self.side(port, lane, qpn);
        let attempt = &mut self.attempts[index];
        attempt.ours = ours;
        attempt.state = State::Path;
    }

    async fn ask_path(&mut self, index: usize, port: &PortInfo) {
        let now = self.inner.platform.now();
        let transaction = u64::from(self.number());
        let attempt = &mut self.attempts[index];
        attempt.transaction = transaction;
        attempt.next = now + back_off(attempt.tries);
        attempt.tries += 1;
        attempt.rounds += 1;
        let (to, query) = SubnetAdministrator.question(port, attempt.name.gid, transaction);
        self.note_step(index, ConnectStep::Path);
        self.send(to, &query).await;
    }

    pub(super) async fn ask(&mut self, index: usize, port: &PortInfo) {
        let now = self.inner.platform.now();
        let key = &self.inner.config.cluster.key;
        let attempt = &mut self.attempts[index];
        attempt.next = now + back_off(attempt.tries);
        attempt.tries += 1;
        let parameters = persistence(0, 0);
        attempt.ours.address = port.address;
        attempt.way = Way {
            callee: attempt.address,
            mtu: mtu_code(attempt.mtu.min(port.mtu)),
            sl: attempt.sl,
        };
        let to = (attempt.name.gid, attempt.way);
        attempt.asked = attempt.ours.request(key, to, attempt.challenge);
        let ours = &attempt.ours;
        let req = Req {
            local_comm_id: ours.comm_id,
            service_id: SERVICE_ID,
            ca_guid: port.guid,
            qpn: ours.qpn,
            responder_resources: ours.reads.0,
            initiator_depth: ours.reads.1,
            starting_psn: ours.psn,
            remote_response_timeout: 18, // about a second
            local_response_timeout: 18,
            retry_count: parameters.retry_count,
            rnr_retry: parameters.rnr_retry,
            max_cm_retries: 15,
            pkey: PKey::DEFAULT,
            mtu: attempt.way.mtu,
            local_lid: ours.address.lid(),
            remote_lid: attempt.address.lid(),
            local_gid: ours.gid,
            remote_gid: attempt.name.gid,
            rate: 7, // 40 Gb/s; nothing here depends on it
            sl: attempt.sl,
            ack_timeout: parameters.ack_timeout,
            private: introduction(&ours.hello, &attempt.asked),
        };
        let to = attempt.address;
        let mad = CmMessage::Req(req).to_mad(ours.comm_id.into());
        self.note_step(index, ConnectStep::Answer);
        self.send(to, &mad).await;
    }

    /// Sends REP; again when no RTU comes.
    pub(super) async fn accept(&mut self, index: usize, port: &PortInfo) {
        let now = self.inner.platform.now();
        let key = &self.inner.config.cluster.key;
        let attempt = &mut self.attempts[index];
        attempt.next = now + back_off(attempt.tries);
        attempt.tries += 1;
        let Some(sides) = attempt.sides() else { return };
        let ours = &attempt.ours;
        let rep = Rep {
            local_comm_id: ours.comm_id,
            remote_comm_id: sides.caller.comm_id,
            qpn: ours.qpn,
            starting_psn: ours.psn,
            responder_resources: ours.reads.0,
            initiator_depth: ours.reads.1,
            rnr_retry: persistence(0, 0).rnr_retry,
            ca_guid: port.guid,
            private: introduction(&ours.hello, &sides.prove(key, Purpose::Accept)),
        };
        let to = attempt.address;
        let mad = CmMessage::Rep(rep).to_mad(attempt.transaction);
        self.send(to, &mad).await;
    }

    /// Sends RTU with the proof.
    pub(super) async fn confirm(&self, index: usize) {
        let key = &self.inner.config.cluster.key;
        let attempt = &self.attempts[index];
        let Some(sides) = attempt.sides() else { return };
        let rtu = mad::cm::Rtu {
            pair: mad::cm::Pair {
                local_comm_id: sides.caller.comm_id,
                remote_comm_id: sides.callee.comm_id,
            },
            private: proof_only(&sides.prove(key, Purpose::Confirm)),
        };
        let mad = CmMessage::Rtu(rtu).to_mad(attempt.ours.comm_id.into());
        self.send(attempt.address, &mad).await;
    }

    /// Takes the queue pair to RTS, with the READs that the peer answers and those that it wants
    /// outstanding.
    pub(super) async fn establish(
        &mut self,
        index: usize,
        theirs: Side,
    ) -> Result<(), verbs::Error> {
        let (resources, depth) = theirs.reads;
        let device = self.inner.device.clone();
        let limits = device.limits();
        let attempt = &mut self.attempts[index];
        let path = PathToPeer {
            address: attempt.address,
            qpn: theirs.qpn,
            // What each side's message names is what the other begins with.
            their_psn: attempt.ours.psn,
            our_psn: theirs.psn,
            mtu: attempt.mtu,
            sl: attempt.sl,
        };
        let target = theirs.hello.target(&limits, resources);
        let parameters = persistence(target.reads, limits.max_reads_as_responder.min(depth));
        (attempt.theirs, attempt.target) = (Some(theirs), Some(target));
        let qpn = attempt.ours.qpn;
        device.ready_to_receive(qpn, &path, &parameters).await?;
        device.ready_to_send(qpn, Some(&path), &parameters).await
    }

    /// The peer has proven itself: from now on it is served, unless something stands in the way.
    pub(super) fn admit(&mut self, index: usize) {
        let attempt = &self.attempts[index];
        let (Some(theirs), Some(target)) = (attempt.theirs, attempt.target) else {
            return;
        };
        if self.is_leaving() {
            return self.give_up(index, LostCause::WeLeft);
        }
        if let End::Pages(link) = &attempt.end {
            let up = link.up();
            self.attempts[index].state = if up { State::Up } else { State::Failing };
            return;
        }
        if self
            .inner
            .peers
            .lock()
            .is_other_up(attempt.peer, attempt.name.gid)
        {
            // Two nodes have one GID, or one came back in another role: whoever answers on the
            // older connection is the one.
            let gid = attempt.name.gid;
            self.give_up(index, LostCause::Duplicate);
            return self.on_member_event(Event::CalledAgain(gid));
        }
        let attempt = &mut self.attempts[index];
        let (peer, name, address) = (attempt.peer, attempt.name, attempt.address);
        let End::Link(core, link) = attempt.end else {
            return;
        };
        let mut engine = self.inner.cores[usize::from(core)].lock();
        if !engine.up(link, target) {
            // Its queue pair has failed already: it is about to be buried.
            attempt.state = State::Failing;
            return;
        }
        drop(engine);
        attempt.state = State::Up;
        let life = theirs.hello.incarnation;
        let connected = |attempt: &&Attempt| {
            attempt.peer == peer
                && attempt.state == State::Up
                && matches!(attempt.end, End::Link(..))
                && attempt
                    .theirs
                    .is_some_and(|theirs| theirs.hello.incarnation == life)
        };
        // A peer is a member when each of its connections stands.
        let lanes = theirs.hello.lanes(&self.inner.config);
        if self.attempts.iter().filter(connected).count() < lanes.into() {
            return;
        }
        let member = theirs.hello.member(name.gid);
        log::info!("connected to {name}, {}", member.incarnation);
        if let Some(line) = self.inner.peers.lock().get_mut(peer) {
            line.standing = ConnectState::Up;
            line.member = Some((member, address));
        }
        self.on_member_event(Event::Admitted(peer, member, address));
    }
}

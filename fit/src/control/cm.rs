//! Management datagrams that come in.

use hal::Platform;
use mad::cm::{CmMessage, Dreq, Pair, Rej, RejectReason, Rep, Req, Rtu};
use mad::sa::SaMad;
use mad::{Attribute, Header, Mad, Method, MgmtClass};
use mutants::Mutant;
use verbs::{Address, Device, PortInfo};

use super::attempt::{Attempt, End, State};
use super::{Control, MAX_NONCES};
use crate::handshake::{
    BadHello, Hello, PAGE_LANES, SERVICE_ID, Side, Sides, Way, back_off, mtu_bytes, read_refusal,
    refusal,
};
use crate::membership::Event;
use crate::membership::proof::{NO_CHALLENGE, Purpose};
use crate::peers::{ConnectOrigin, ConnectState};
use crate::resolver::{Resolver, SubnetAdministrator};
use crate::{LostCause, PeerName, VERSION};

/// The way that a request names.
fn way(req: &Req) -> Way {
    Way {
        callee: req.remote_lid.into(),
        mtu: req.mtu,
        sl: req.sl,
    }
}

impl<D: Device, P: Platform> Control<D, P> {
    pub(super) async fn on_mad(&mut self, port: &PortInfo, from: Address, mad: &Mad) {
        match Header::parse(mad) {
            Ok(header) if header.class == MgmtClass::SUBN_ADM => {
                self.on_answer(port, from, mad).await;
            }
            Ok(header) if header.class == MgmtClass::CM => match CmMessage::parse(mad) {
                Ok((transaction, message)) => self.on_cm(port, from, transaction, message).await,
                Err(error) => self.log_limited(format_args!("from {from}: {error}")),
            },
            Ok(header) => log::debug!("from {from}: class {} is not for FIT", header.class),
            Err(error) => self.log_limited(format_args!("from {from}: {error}")),
        }
    }

    /// Logs what strangers can cause, but not as often as they do.
    fn log_limited(&mut self, what: core::fmt::Arguments<'_>) {
        if self.limiter.allows(self.inner.platform.now()) {
            log::warn!("{what}");
        }
    }

    /// An answer of the subnet administrator: from its port, which a stranger's card does not put
    /// into a packet of its own.
    async fn on_answer(&mut self, port: &PortInfo, from: Address, mad: &Mad) {
        if from != port.manager && !Mutant::AnswerFromAnywhere.on() {
            return self.log_limited(format_args!("{from} poses as the subnet administrator"));
        }
        let Ok(answer) = SaMad::parse(mad) else {
            return;
        };
        if answer.header.method != Method::GET_RESP {
            return;
        }
        match answer.header.attribute() {
            Attribute::PATH_RECORD => self.on_path(port, &answer).await,
            Attribute::MC_MEMBER_RECORD => {
                let now = self.inner.platform.now();
                if let Some(group) = &mut self.group {
                    group.on_answer(&answer, now);
                }
            }
            _ => {}
        }
    }

    async fn on_path(&mut self, port: &PortInfo, answer: &SaMad) {
        let Some(path) = SubnetAdministrator.answer(port, answer) else {
            return;
        };
        let waits = |attempt: &Attempt| {
            attempt.state == State::Path && attempt.transaction == path.transaction
        };
        let Some(index) = self.attempts.iter().position(waits) else {
            return;
        };
        let attempt = &mut self.attempts[index];
        if path.to != attempt.name.gid {
            return;
        }
        attempt.address = path.address;
        (attempt.mtu, attempt.sl) = (path.mtu, path.sl);
        attempt.state = State::Asked;
        attempt.tries = 0;
        self.ask(index, port).await;
    }

    async fn on_cm(
        &mut self,
        port: &PortInfo,
        from: Address,
        transaction: u64,
        message: CmMessage,
    ) {
        match message {
            CmMessage::Req(req) => self.on_req(port, from, transaction, &req).await,
            CmMessage::Rep(rep) => self.on_rep(port, from, &rep).await,
            CmMessage::Rej(rej) => self.on_rej(port, &rej),
            CmMessage::Rtu(rtu) => self.on_rtu(&rtu),
            CmMessage::Dreq(dreq) => self.on_dreq(from, transaction, &dreq).await,
            CmMessage::Drep(_) => {}
            CmMessage::Other(attribute) => log::debug!("from {from}: {attribute}"),
        }
    }

    /// The attempt that a peer names by its own and our name.
    fn by_pair(&self, pair: Pair) -> Option<usize> {
        self.attempts.iter().position(|attempt| {
            let theirs = attempt.theirs.map(|theirs| theirs.comm_id);
            attempt.ours.comm_id == pair.remote_comm_id && theirs == Some(pair.local_comm_id)
        })
    }

    fn sides(&self, index: usize) -> Option<Sides> {
        self.attempts[index].sides()
    }

    fn bad_proof(&mut self, from: Address, what: &str) {
        self.inner.membership.lock().counters().nr_bad_proof += 1;
        self.log_limited(format_args!(
            "{what} from {from} does not prove the cluster's key"
        ));
    }

    async fn refuse(&self, to: Address, transaction: u64, req: &Req, reason: RejectReason) {
        let rej = Rej {
            local_comm_id: 0,
            remote_comm_id: req.local_comm_id,
            rejected: 0,
            reason,
            private: refusal(
                &self.inner.config.cluster.key,
                &req.private,
                reason.0,
                self.challenge,
            ),
        };
        self.send(to, &CmMessage::Rej(rej).to_mad(transaction))
            .await;
    }

    async fn on_req(&mut self, port: &PortInfo, from: Address, transaction: u64, req: &Req) {
        let reason = match self.look_at_req(port, from, req) {
            Ok((name, theirs)) => match self.place_for(port, name, theirs).await {
                Ok((index, true)) => return self.accept(index, port).await,
                Ok((index, false)) => {
                    let attempt = &mut self.attempts[index];
                    attempt.calls = false;
                    attempt.transaction = transaction;
                    attempt.address = from;
                    attempt.mtu = mtu_bytes(req.mtu).unwrap_or(256).min(port.mtu);
                    attempt.sl = req.sl;
                    attempt.way = way(req);
                    attempt.ours.address = port.address;
                    attempt.tries = 0;
                    match self.establish(index, theirs).await {
                        Ok(()) => {
                            self.attempts[index].state = State::Replied;
                            return self.accept(index, port).await;
                        }
                        Err(error) => {
                            log::error!("{name}: {error}");
                            self.give_up(index, LostCause::Device);
                            RejectReason::NO_RESOURCES
                        }
                    }
                }
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        self.refuse(from, transaction, req, reason).await;
    }

    /// Checks a request as far as it speaks of itself.
    fn look_at_req(
        &mut self,
        port: &PortInfo,
        from: Address,
        req: &Req,
    ) -> Result<(PeerName, Side), RejectReason> {
        if req.service_id != SERVICE_ID {
            return Err(RejectReason::INVALID_SERVICE_ID);
        }
        let hello = Hello::decode(&req.private, &self.inner.config).map_err(|why| {
            let mut membership = self.inner.membership.lock();
            match why {
                BadHello::Cluster => membership.counters().nr_foreign += 1,
                _ => membership.counters().nr_other_version += 1,
            }
            drop(membership);
            let gid = req.local_gid;
            self.log_limited(format_args!(
                "{gid} refused: {why:?} (this is FIT version {VERSION})"
            ));
            RejectReason::CONSUMER_DEFINED
        })?;
        let theirs = Side {
            gid: req.local_gid,
            qpn: req.qpn,
            psn: req.starting_psn,
            comm_id: req.local_comm_id,
            address: req.local_lid.into(),
            reads: (req.responder_resources, req.initiator_depth),
            hello,
        };
        let key = &self.inner.config.cluster.key;
        let to = (port.gid, way(req));
        let proves = |challenge| {
            theirs.check_request(key, to, challenge, &req.private)
                || Mutant::RequestProofIgnored.on()
        };
        let direct =
            req.remote_gid == port.gid && to.1.callee == port.address && theirs.address == from;
        let direct = direct || Mutant::RequestFromAnywhere.on();
        if !direct || req.local_gid == port.gid || !proves(self.challenge) {
            if direct && proves(NO_CHALLENGE) {
                // It holds the key, and learns by the refusal what it is to prove.
                return Err(RejectReason::STALE_CONNECTION);
            }
            self.bad_proof(from, "a connection request");
            return Err(RejectReason::CONSUMER_DEFINED);
        }
        let name = PeerName {
            role: hello.role,
            gid: req.local_gid,
        };
        Ok((name, theirs))
    }

    /// The attempt that a REQ belongs to, and whether it was answered before; or why it is refused.
    async fn place_for(
        &mut self,
        port: &PortInfo,
        name: PeerName,
        theirs: Side,
    ) -> Result<(usize, bool), RejectReason> {
        let lane = theirs.hello.lane;
        // Lanes of page paths are numbered by their callers: the peer's is none of ours.
        let known = self.attempts.iter().position(|attempt| {
            let same = attempt.name.gid == name.gid && attempt.lane == lane;
            same && attempt.state != State::Ended && (lane < PAGE_LANES || !attempt.calls)
        });
        if let Some(index) = known {
            let attempt = &self.attempts[index];
            let answered = matches!(attempt.state, State::Replied | State::Up);
            if answered && attempt.theirs == Some(theirs) && !attempt.calls {
                return Ok((index, true));
            }
        }
        let nonce = theirs.hello.nonce;
        if self.nonces.contains(&nonce) {
            self.inner.membership.lock().counters().nr_replayed += 1;
            return Err(RejectReason::STALE_CONNECTION);
        }
        if let Some(index) = known {
            let attempt = &self.attempts[index];
            match attempt.state {
                State::Replied => {
                    // It began anew before it had proven itself: the next request finds its place
                    // free.
                    self.give_up(index, LostCause::NoProof);
                    return Err(RejectReason::STALE_CONNECTION);
                }
                State::Up => {
                    // Perhaps it has lost this connection, or is another: whoever answers here is
                    // the one.
                    self.on_member_event(Event::CalledAgain(name.gid));
                    return Err(RejectReason::STALE_CONNECTION);
                }
                // Both call: the smaller GID stays the caller.
                State::Path | State::Asked if port.gid < name.gid || attempt.name != name => {
                    return Err(RejectReason::STALE_CONNECTION);
                }
                State::Path | State::Asked => {}
                State::Failing | State::Ended => return Err(RejectReason::STALE_CONNECTION),
            }
        }
        if self.is_leaving() {
            return Err(RejectReason::NO_RESOURCES);
        }
        if lane < PAGE_LANES && self.is_another_life(name.gid, &theirs.hello) {
            // Connections of the former life end within the keep-alive bound, or at once if it
            // never proved itself.
            self.give_up_former(name.gid);
            return Err(RejectReason::STALE_CONNECTION);
        }
        let index = match known {
            Some(index) => index,
            None if lane >= PAGE_LANES => {
                self.lend(port, name, (lane, theirs.hello.incarnation))
                    .await?
            }
            None if self.inner.peers.lock().is_up(name.gid) => {
                // Perhaps another life of it: whoever answers on the connections that stand is the
                // one.
                self.on_member_event(Event::CalledAgain(name.gid));
                return Err(RejectReason::STALE_CONNECTION);
            }
            None => {
                let peer = self
                    .inner
                    .peers
                    .lock()
                    .line_for(name, ConnectOrigin::Theirs);
                let peer = peer.ok_or(RejectReason::NO_RESOURCES)?;
                match self.begin(port, peer, name, lane).await {
                    Ok(index) => index,
                    Err(reason) => {
                        self.log_limited(format_args!("{name}: no queue pair for it: {reason}"));
                        self.set_standing(peer, ConnectState::Idle);
                        let (gid, refused) = (name.gid, false);
                        self.on_member_event(Event::CallFailed { gid, refused });
                        return Err(reason);
                    }
                }
            }
        };
        if self.nonces.len() == MAX_NONCES {
            // What was proven so far proves nothing any more, so that none of it need be
            // remembered.
            self.challenge = self.rng.number();
            self.nonces.clear();
        }
        if !Mutant::NoncesForgotten.on() {
            self.nonces.push(nonce);
        }
        Ok((index, false))
    }

    async fn on_rep(&mut self, port: &PortInfo, from: Address, rep: &Rep) {
        let named = |attempt: &Attempt| {
            attempt.calls && attempt.ours.comm_id == rep.remote_comm_id && attempt.address == from
        };
        let Some(index) = self.attempts.iter().position(named) else {
            return;
        };
        if self.attempts[index].state == State::Asked {
            let Some(theirs) = self.look_at_rep(index, rep) else {
                return;
            };
            if let Err(error) = self.establish(index, theirs).await {
                log::error!("{}: {error}", self.attempts[index].name);
                return self.give_up(index, LostCause::Device);
            }
            self.admit(index);
            if self.attempts[index].state == State::Up {
                let lanes = theirs.hello.lanes(&self.inner.config);
                self.widen(port, index, lanes).await;
            }
        }
        let theirs = self.attempts[index].theirs.map(|theirs| theirs.comm_id);
        if self.attempts[index].state == State::Up && theirs == Some(rep.local_comm_id) {
            self.confirm(index).await;
        }
    }

    /// Checks an acceptance. One that proves nothing is passed over: the right one may yet come.
    fn look_at_rep(&mut self, index: usize, rep: &Rep) -> Option<Side> {
        let attempt = &self.attempts[index];
        let (name, address, ours) = (attempt.name, attempt.address, attempt.ours);
        let Ok(hello) = Hello::decode(&rep.private, &self.inner.config) else {
            self.bad_proof(address, "an acceptance");
            return None;
        };
        let theirs = Side {
            gid: name.gid,
            qpn: rep.qpn,
            psn: rep.starting_psn,
            comm_id: rep.local_comm_id,
            address,
            reads: (rep.responder_resources, rep.initiator_depth),
            hello,
        };
        let sides = Sides {
            caller: ours,
            callee: theirs,
            way: attempt.way,
        };
        let key = &self.inner.config.cluster.key;
        let proof = crate::handshake::behind_hello(&rep.private);
        if !sides.check(key, Purpose::Accept, proof) && !Mutant::AcceptanceProofIgnored.on() {
            self.bad_proof(address, "an acceptance");
            return None;
        }
        if hello.role != name.role {
            log::error!("{name} is a {}", hello.role);
            self.refused(index, RejectReason::CONSUMER_DEFINED);
            return None;
        }
        let other = match self.attempts[index].end {
            End::Link(..) => self.is_another_life(name.gid, &hello),
            End::Pages(ref link) => {
                let line = self.inner.peers.lock().get(link.peer).copied();
                let member = line.and_then(|line| line.member);
                member.is_none_or(|(member, _)| member.incarnation != hello.incarnation)
            }
        };
        if other {
            // It came back while it was called: all of its connections begin anew.
            self.give_up(index, LostCause::Duplicate);
            return None;
        }
        Some(theirs)
    }

    fn on_rtu(&mut self, rtu: &Rtu) {
        let Some(index) = self.by_pair(rtu.pair) else {
            return;
        };
        let attempt = &self.attempts[index];
        if attempt.state != State::Replied || attempt.calls {
            return;
        }
        let (key, address) = (self.inner.config.cluster.key, attempt.address);
        let proven = self
            .sides(index)
            .is_some_and(|sides| sides.check(&key, Purpose::Confirm, &rtu.private));
        if proven || Mutant::ConfirmationProofIgnored.on() {
            self.admit(index);
        } else {
            self.bad_proof(address, "a confirmation");
        }
    }

    async fn on_dreq(&mut self, from: Address, transaction: u64, dreq: &Dreq) {
        let Some(index) = self.by_pair(dreq.pair) else {
            return;
        };
        let attempt = &self.attempts[index];
        let address = attempt.address;
        let purpose = if attempt.calls {
            Purpose::CalleeLeaves
        } else {
            Purpose::CallerLeaves
        };
        let key = self.inner.config.cluster.key;
        let proven = self
            .sides(index)
            .is_some_and(|sides| sides.check(&key, purpose, &dreq.private));
        if (!proven || address != from) && !Mutant::DisconnectionProofIgnored.on() {
            return self.bad_proof(from, "a disconnection");
        }
        match &self.attempts[index].end {
            End::Link(core, link) => {
                // A completion that is already there tells the real cause.
                let mut core = self.inner.cores[usize::from(*core)].lock();
                core.poll(self.inner.platform.now());
                core.fail(*link, LostCause::PeerLeft);
            }
            End::Pages(link) => link.fail(LostCause::PeerLeft),
        }
        let answer = Pair {
            local_comm_id: dreq.pair.remote_comm_id,
            remote_comm_id: dreq.pair.local_comm_id,
        };
        self.send(address, &CmMessage::Drep(answer).to_mad(transaction))
            .await;
    }

    fn on_rej(&mut self, port: &PortInfo, rej: &Rej) {
        let named = |attempt: &Attempt| {
            attempt.ours.comm_id == rej.remote_comm_id && attempt.state == State::Asked
        };
        let Some(index) = self.attempts.iter().position(named) else {
            return;
        };
        let key = &self.inner.config.cluster.key;
        let Some(told) = read_refusal(key, &self.attempts[index].asked, rej.reason.0, &rej.private)
        else {
            // Anybody can say so. Whoever waits is told if it comes to nothing otherwise.
            if let (End::Link(..), Some(line)) = (
                &self.attempts[index].end,
                self.inner.peers.lock().get_mut(self.attempts[index].peer),
            ) {
                line.hearsay = Some(rej.reason.0);
            }
            return;
        };
        if told != self.attempts[index].challenge {
            // Another life of it, or one that we knew nothing of: now we know what to prove.
            self.restart(index, port);
            let now = self.inner.platform.now();
            let attempt = &mut self.attempts[index];
            (attempt.challenge, attempt.next) = (told, now);
            return;
        }
        if rej.reason == RejectReason::CONSUMER_DEFINED {
            return self.refused(index, rej.reason);
        }
        // Not now: the peer is not ready, or calls us itself. Try again, under a new name.
        log::debug!("{}: {}", self.attempts[index].name, rej.reason);
        let now = self.inner.platform.now();
        self.restart(index, port);
        let attempt = &mut self.attempts[index];
        attempt.tries += 1;
        attempt.next = now + back_off(attempt.tries);
    }

    /// The peer wants no connection, or not this one.
    fn refused(&mut self, index: usize, reason: RejectReason) {
        let (peer, name) = (self.attempts[index].peer, self.attempts[index].name);
        self.log_limited(format_args!("{name} refused the connection: {reason}"));
        match &self.attempts[index].end {
            End::Link(..) => self.set_standing(peer, ConnectState::Refused(reason.0)),
            End::Pages(link) => link.refuse(reason.0),
        }
        self.give_up(index, LostCause::NoAnswer);
    }
}

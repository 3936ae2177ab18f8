//! The control task: finding the path to a peer, the CM exchange, and what becomes of lost connections.
//!
//! ```text
//!  caller:  Path ──SA answers──► Asked ──REP──► Up        callee:  (REQ) ──► Replied ──RTU──► Up
//!             ▲ └─again─┘          │ └─again─┘                        │ └─again─┘
//!             └──── REJ, no answer ┘                                  └── given up: Up all the same
//! ```
//!
//! Every message is repeated with a back-off until its answer comes, so the two sides may come up in any order. If both
//! sides call each other at once, the one with the smaller GID stays the caller.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{Duration, Instant, Platform};
use mad::cm::{CmMessage, Dreq, Pair, Rej, RejectReason, Rep, Req, Rtu};
use mad::sa::{PathRecord, SaMad, path_record_mask};
use mad::{Attribute, Header, Method, MgmtClass, Status};
use verbs::{Device, DeviceEvent, Lid, PKey, PathToPeer, PortInfo, PortState, Psn, Qpn};

use crate::error::ConnectStep;
use crate::handshake::{Hello, SERVICE_ID, back_off, mtu_bytes, mtu_code, persistence};
use crate::node::{Inner, PeerLine, Standing};
use crate::{LostCause, PeerId, PeerSpec, VERSION};

/// How often the control task looks around.
const TICK: Duration = Duration::from_millis(5);

/// Connection requests without an answer before the path is asked for again.
const REQUESTS_PER_PATH: u32 = 4;

/// Acceptances without a confirmation before it is taken for granted.
const REPLIES: u32 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Path,
    Asked,
    Replied,
    Up,
    Ended,
}

/// The making of one connection.
struct Attempt {
    peer: PeerId,
    name: PeerSpec,
    core: u16,
    link: u16,
    qpn: Qpn,
    psn: Psn,
    state: State,
    comm_id: u32,
    remote_comm_id: u32,
    remote_qpn: Qpn,
    transaction: u64,
    lid: Lid,
    mtu: u16,
    sl: u8,
    tries: u32,
    next: Instant,
}

pub(crate) struct Control<D: Device, P: Platform> {
    inner: Arc<Inner<D, P>>,
    port: Option<PortInfo>,
    attempts: Vec<Attempt>,
    counter: u32,
    next_port: Instant,
}

impl<D: Device, P: Platform> Control<D, P> {
    pub(crate) fn new(inner: Arc<Inner<D, P>>) -> Self {
        let now = inner.platform.now();
        // Names from an earlier life of this node must not be met again.
        let counter = u32::try_from(now.nanos >> 10 & u64::from(u32::MAX)).expect("32 bits");
        Self {
            inner,
            port: None,
            attempts: Vec::new(),
            counter,
            next_port: now,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.take_events();
            self.look_at_port().await;
            if let Some(port) = self.port {
                self.begin_wanted();
                while let Some((from, mad)) = self.inner.device.take_mad(self.inner.config.port) {
                    self.on_mad(&port, from, &mad).await;
                }
                self.step_attempts(&port).await;
            }
            self.bury_lost().await;
            let now = self.inner.platform.now();
            self.inner.cores.iter().for_each(|core| core.lock().tick(now));
            self.inner.platform.sleep(TICK).await;
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.inner.device.take_event() {
            match event {
                DeviceEvent::PortChanged { port } if port == self.inner.config.port => {
                    self.port = None;
                    self.next_port = self.inner.platform.now();
                }
                DeviceEvent::QpFailed { qpn } => {
                    for core in &self.inner.cores {
                        let mut core = core.lock();
                        if let Some(link) = core.by_qpn(qpn) {
                            core.fail(link, LostCause::QpFailed);
                        }
                    }
                }
                DeviceEvent::CqFailed { .. } | DeviceEvent::DeviceFailed => {
                    log::error!("{event:?}");
                    self.inner
                        .cores
                        .iter()
                        .for_each(|core| core.lock().fail_all(LostCause::Device));
                }
                other => log::debug!("{other:?}"),
            }
        }
    }

    async fn look_at_port(&mut self) {
        let now = self.inner.platform.now();
        if self.port.is_some() || now < self.next_port {
            return;
        }
        match self.inner.device.port(self.inner.config.port).await {
            Ok(port) if port.state == PortState::Active && port.lid != Lid(0) => self.port = Some(port),
            Ok(_) => self.next_port = now + Duration::from_millis(50),
            Err(error) => {
                log::warn!("port {}: {error}", self.inner.config.port);
                self.next_port = now + Duration::from_millis(500);
            }
        }
    }

    fn number(&mut self) -> u32 {
        self.counter = self.counter.wrapping_add(1);
        self.counter
    }

    fn set_standing(&self, peer: PeerId, standing: Standing) {
        if let Some(line) = self.inner.peers.lock().get_mut(usize::from(peer.0)) {
            line.standing = standing;
        }
    }

    /// Makes attempts for the peers that are wanted and have none.
    fn begin_wanted(&mut self) {
        let lines: Vec<PeerLine> = self.inner.peers.lock().clone();
        for (id, line) in (0..).zip(&lines) {
            let peer = PeerId(id);
            let waiting = matches!(line.standing, Standing::Trying(_)) && line.wanted;
            if !waiting || self.attempts.iter().any(|attempt| attempt.peer == peer) {
                continue;
            }
            for core in 0..self.inner.config.cores {
                if self.begin(peer, line.name, core).is_none() {
                    log::error!(
                        "{}: all {} queue pairs are taken",
                        line.name,
                        self.inner.config.peers
                    );
                    self.set_standing(peer, Standing::Refused(RejectReason::NO_QP.0));
                }
            }
        }
    }

    /// Takes a queue pair for a connection to `name`; returns the attempt's index.
    fn begin(&mut self, peer: PeerId, name: PeerSpec, core: u16) -> Option<usize> {
        let (link, qpn) = self.inner.cores[usize::from(core)].lock().claim(peer, name)?;
        let now = self.inner.platform.now();
        let psn = Psn(self.number().wrapping_mul(0x9e37_79b1) >> 8);
        let comm_id = self.number();
        self.attempts.push(Attempt {
            peer,
            name,
            core,
            link,
            qpn,
            psn,
            state: State::Path,
            comm_id,
            remote_comm_id: 0,
            remote_qpn: Qpn(0),
            transaction: 0,
            lid: Lid(0),
            mtu: 256,
            sl: 0,
            tries: 0,
            next: now,
        });
        Some(self.attempts.len() - 1)
    }

    async fn send(&self, to: Lid, mad: &mad::Mad) {
        let port = self.inner.config.port;
        if let Err(error) = self.inner.device.send_mad(port, to, PKey::DEFAULT, mad).await {
            log::warn!("management datagram to {to}: {error}");
        }
    }

    /// Repeats what has had no answer in time.
    async fn step_attempts(&mut self, port: &PortInfo) {
        let now = self.inner.platform.now();
        for index in 0..self.attempts.len() {
            if now < self.attempts[index].next {
                continue;
            }
            match self.attempts[index].state {
                State::Path => self.ask_path(index, port).await,
                State::Asked if self.attempts[index].tries >= REQUESTS_PER_PATH => {
                    self.restart(index);
                    self.ask_path(index, port).await;
                }
                State::Asked => self.ask(index, port).await,
                State::Replied if self.attempts[index].tries < REPLIES => self.accept(index, port).await,
                State::Replied => self.attempts[index].state = State::Up,
                State::Up | State::Ended => {}
            }
        }
    }

    /// Goes back to the first step under a new name.
    fn restart(&mut self, index: usize) {
        let comm_id = self.number();
        let attempt = &mut self.attempts[index];
        attempt.comm_id = comm_id;
        attempt.state = State::Path;
    }

    async fn ask_path(&mut self, index: usize, port: &PortInfo) {
        let now = self.inner.platform.now();
        let transaction = u64::from(self.number());
        let attempt = &mut self.attempts[index];
        attempt.transaction = transaction;
        attempt.next = now + back_off(attempt.tries);
        attempt.tries += 1;
        let record = PathRecord {
            dgid: attempt.name.gid.0,
            sgid: port.gid.0,
            reversible_paths: 0x80 | 1,
            ..PathRecord::default()
        };
        let mask = path_record_mask::DGID | path_record_mask::SGID | path_record_mask::NUMB_PATH;
        let query = SaMad::request(Method::GET, Attribute::PATH_RECORD, mask, &record, transaction);
        self.set_standing(self.attempts[index].peer, Standing::Trying(ConnectStep::Path));
        self.send(port.sm_lid, &query.to_mad()).await;
    }

    async fn ask(&mut self, index: usize, port: &PortInfo) {
        let now = self.inner.platform.now();
        let limits = self.inner.device.limits();
        let attempt = &mut self.attempts[index];
        attempt.next = now + back_off(attempt.tries);
        attempt.tries += 1;
        let parameters = persistence(0, 0);
        let req = Req {
            local_comm_id: attempt.comm_id,
            service_id: SERVICE_ID,
            ca_guid: port.guid,
            qpn: attempt.qpn,
            responder_resources: limits.max_reads_as_responder,
            initiator_depth: limits.max_reads,
            starting_psn: attempt.psn,
            remote_response_timeout: 18, // about a second
            local_response_timeout: 18,
            retry_count: parameters.retry_count,
            rnr_retry: parameters.rnr_retry,
            max_cm_retries: 15,
            pkey: PKey::DEFAULT,
            mtu: mtu_code(attempt.mtu.min(port.mtu)),
            local_lid: port.lid,
            remote_lid: attempt.lid,
            local_gid: port.gid,
            remote_gid: attempt.name.gid,
            rate: 7, // 40 Gb/s; nothing here depends on it
            sl: attempt.sl,
            ack_timeout: parameters.ack_timeout,
            private: Hello::of(&self.inner.config, self.inner.role, attempt.core).encode(),
        };
        let (lid, peer) = (attempt.lid, attempt.peer);
        let mad = CmMessage::Req(req).to_mad(attempt.comm_id.into());
        self.set_standing(peer, Standing::Trying(ConnectStep::Answer));
        self.send(lid, &mad).await;
    }

    /// Sends REP; again when no RTU comes.
    async fn accept(&mut self, index: usize, port: &PortInfo) {
        let now = self.inner.platform.now();
        let limits = self.inner.device.limits();
        let attempt = &mut self.attempts[index];
        attempt.next = now + back_off(attempt.tries);
        attempt.tries += 1;
        let rep = Rep {
            local_comm_id: attempt.comm_id,
            remote_comm_id: attempt.remote_comm_id,
            qpn: attempt.qpn,
            starting_psn: attempt.psn,
            responder_resources: limits.max_reads_as_responder,
            initiator_depth: limits.max_reads,
            rnr_retry: persistence(0, 0).rnr_retry,
            ca_guid: port.guid,
            private: Hello::of(&self.inner.config, self.inner.role, attempt.core).encode(),
        };
        let lid = attempt.lid;
        let mad = CmMessage::Rep(rep).to_mad(attempt.transaction);
        self.send(lid, &mad).await;
    }

    async fn on_mad(&mut self, port: &PortInfo, from: Lid, mad: &mad::Mad) {
        match Header::parse(mad) {
            Ok(header) if header.class == MgmtClass::SUBN_ADM => self.on_path(port, mad).await,
            Ok(header) if header.class == MgmtClass::CM => match CmMessage::parse(mad) {
                Ok((transaction, message)) => self.on_cm(port, from, transaction, message).await,
                Err(error) => log::warn!("from {from}: {error}"),
            },
            Ok(header) => log::debug!("from {from}: class {} is not for FIT", header.class),
            Err(error) => log::warn!("from {from}: {error}"),
        }
    }

    async fn on_path(&mut self, port: &PortInfo, mad: &mad::Mad) {
        let Ok(answer) = SaMad::parse(mad) else { return };
        let header = &answer.header;
        if header.method != Method::GET_RESP || header.attribute() != Attribute::PATH_RECORD {
            return;
        }
        let transaction = header.transaction.get();
        // Upper halves of transactions belong to whoever carries the datagrams.
        let waits = |attempt: &Attempt| {
            attempt.state == State::Path && attempt.transaction == transaction & u64::from(u32::MAX)
        };
        let Some(index) = self.attempts.iter().position(waits) else {
            return;
        };
        let path = answer
            .record::<PathRecord>()
            .filter(|_| header.status() == Status::OK);
        let Some(path) = path else { return };
        let attempt = &mut self.attempts[index];
        if path.dgid != attempt.name.gid.0 || path.dlid.get() == 0 {
            return;
        }
        attempt.lid = Lid(path.dlid.get());
        attempt.mtu = mtu_bytes(path.mtu.value()).unwrap_or(256).min(port.mtu);
        attempt.sl = u8::try_from(path.qos_sl.get() & 0xf).expect("four bits");
        attempt.state = State::Asked;
        attempt.tries = 0;
        self.ask(index, port).await;
    }

    async fn on_cm(&mut self, port: &PortInfo, from: Lid, transaction: u64, message: CmMessage) {
        match message {
            CmMessage::Req(req) => self.on_req(port, from, transaction, &req).await,
            CmMessage::Rep(rep) => self.on_rep(port, &rep).await,
            CmMessage::Rej(rej) => self.on_rej(&rej),
            CmMessage::Rtu(rtu) => {
                if let Some(attempt) = self.by_pair(rtu.pair)
                    && attempt.state == State::Replied
                {
                    attempt.state = State::Up;
                }
            }
            CmMessage::Dreq(dreq) => {
                let answer = Pair {
                    local_comm_id: dreq.pair.remote_comm_id,
                    remote_comm_id: dreq.pair.local_comm_id,
                };
                let known = self
                    .by_pair(dreq.pair)
                    .map(|attempt| (attempt.core, attempt.link, attempt.lid));
                if let Some((core, link, lid)) = known.filter(|(_, _, lid)| *lid == from) {
                    {
                        // A completion that is already there tells the real cause.
                        let mut core = self.inner.cores[usize::from(core)].lock();
                        core.poll(self.inner.platform.now());
                        core.fail(link, LostCause::PeerLeft);
                    }
                    self.send(lid, &CmMessage::Drep(answer).to_mad(transaction)).await;
                }
            }
            CmMessage::Drep(_) => {}
            CmMessage::Other(attribute) => log::debug!("from {from}: {attribute}"),
        }
    }

    /// The attempt that a peer names by its own and our name.
    fn by_pair(&mut self, pair: Pair) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|attempt| {
            attempt.comm_id == pair.remote_comm_id && attempt.remote_comm_id == pair.local_comm_id
        })
    }

    async fn refuse(&self, to: Lid, transaction: u64, req: &Req, reason: RejectReason) {
        let rej = Rej {
            local_comm_id: 0,
            remote_comm_id: req.local_comm_id,
            rejected: 0,
            reason,
        };
        self.send(to, &CmMessage::Rej(rej).to_mad(transaction)).await;
    }

    async fn on_req(&mut self, port: &PortInfo, from: Lid, transaction: u64, req: &Req) {
        if req.service_id != SERVICE_ID {
            return self
                .refuse(from, transaction, req, RejectReason::INVALID_SERVICE_ID)
                .await;
        }
        let hello = match Hello::decode(&req.private, &self.inner.config) {
            Ok(hello) => hello,
            Err(why) => {
                log::warn!(
                    "{} refused: {why:?} (this is FIT version {VERSION})",
                    req.local_gid
                );
                return self
                    .refuse(from, transaction, req, RejectReason::CONSUMER_DEFINED)
                    .await;
            }
        };
        let name = PeerSpec {
            role: hello.role,
            gid: req.local_gid,
        };
        match self.place_for(port, name, &hello, req) {
            Ok((index, true)) => self.accept(index, port).await,
            Ok((index, false)) => {
                let attempt = &mut self.attempts[index];
                attempt.transaction = transaction;
                attempt.remote_comm_id = req.local_comm_id;
                attempt.lid = from;
                attempt.mtu = mtu_bytes(req.mtu).unwrap_or(256).min(port.mtu);
                attempt.sl = req.sl;
                attempt.tries = 0;
                let theirs = (req.qpn, req.starting_psn);
                let reads = (req.responder_resources, req.initiator_depth);
                if self.establish(index, &hello, theirs, reads).await {
                    self.attempts[index].state = State::Replied;
                    self.accept(index, port).await;
                } else {
                    self.refuse(from, transaction, req, RejectReason::NO_RESOURCES)
                        .await;
                }
            }
            Err(reason) => self.refuse(from, transaction, req, reason).await,
        }
    }

    /// The attempt that a REQ belongs to, and whether it was answered before; or why it is refused.
    fn place_for(
        &mut self,
        port: &PortInfo,
        name: PeerSpec,
        hello: &Hello,
        req: &Req,
    ) -> Result<(usize, bool), RejectReason> {
        let core = hello.core % self.inner.config.cores;
        let known = self.attempts.iter().position(|attempt| {
            attempt.name.gid == name.gid && attempt.core == core && attempt.state != State::Ended
        });
        let Some(index) = known else {
            let peer = self.line_for(name);
            return self
                .begin(peer, name, core)
                .map(|index| (index, false))
                .ok_or(RejectReason::NO_QP);
        };
        let attempt = &self.attempts[index];
        match attempt.state {
            State::Replied | State::Up if attempt.remote_comm_id == req.local_comm_id => Ok((index, true)),
            State::Replied | State::Up => {
                // The peer began anew: the old connection is gone, the next request finds its place free.
                self.inner.cores[usize::from(core)]
                    .lock()
                    .fail(attempt.link, LostCause::PeerLeft);
                Err(RejectReason::STALE_CONNECTION)
            }
            // Both call: the smaller GID stays the caller.
            State::Path | State::Asked if port.gid > name.gid => Ok((index, false)),
            State::Path | State::Asked | State::Ended => Err(RejectReason::STALE_CONNECTION),
        }
    }

    fn line_for(&self, name: PeerSpec) -> PeerId {
        let mut peers = self.inner.peers.lock();
        let known = peers
            .iter()
            .position(|line| line.name == name && line.standing != Standing::Lost);
        let index = known.unwrap_or_else(|| {
            let standing = Standing::Trying(ConnectStep::Request);
            peers.push(PeerLine {
                name,
                standing,
                wanted: false,
            });
            peers.len() - 1
        });
        PeerId(u16::try_from(index).expect("peers are counted in 16 bits"))
    }

    async fn on_rep(&mut self, port: &PortInfo, rep: &Rep) {
        let named = |attempt: &Attempt| attempt.comm_id == rep.remote_comm_id;
        let Some(index) = self.attempts.iter().position(named) else {
            return;
        };
        let pair = Pair {
            local_comm_id: rep.remote_comm_id,
            remote_comm_id: rep.local_comm_id,
        };
        if self.attempts[index].state == State::Asked {
            let Ok(hello) = Hello::decode(&rep.private, &self.inner.config) else {
                return self.refused(index, RejectReason::CONSUMER_DEFINED);
            };
            if hello.role != self.attempts[index].name.role {
                log::error!("{} is a {}", self.attempts[index].name, hello.role);
                return self.refused(index, RejectReason::CONSUMER_DEFINED);
            }
            self.attempts[index].remote_comm_id = rep.local_comm_id;
            let theirs = (rep.qpn, rep.starting_psn);
            let reads = (rep.responder_resources, rep.initiator_depth);
            if !self.establish(index, &hello, theirs, reads).await {
                return self.refused(index, RejectReason::NO_RESOURCES);
            }
            self.attempts[index].state = State::Up;
        }
        let attempt = &self.attempts[index];
        if attempt.state == State::Up && attempt.remote_comm_id == rep.local_comm_id {
            log::debug!("{}: confirmed from {}", attempt.name, port.lid);
            let rtu = CmMessage::Rtu(Rtu {
                pair,
                private: [0; 224],
            })
            .to_mad(attempt.comm_id.into());
            self.send(attempt.lid, &rtu).await;
        }
    }

    fn on_rej(&mut self, rej: &Rej) {
        let named =
            |attempt: &Attempt| attempt.comm_id == rej.remote_comm_id && attempt.state == State::Asked;
        let Some(index) = self.attempts.iter().position(named) else {
            return;
        };
        if rej.reason == RejectReason::CONSUMER_DEFINED {
            return self.refused(index, rej.reason);
        }
        // Not now: the peer is not ready, or calls us itself. Try again, under a new name.
        log::debug!("{}: {}", self.attempts[index].name, rej.reason);
        let now = self.inner.platform.now();
        self.restart(index);
        let attempt = &mut self.attempts[index];
        attempt.next = now + back_off(attempt.tries);
    }

    fn refused(&mut self, index: usize, reason: RejectReason) {
        log::error!("{} refused the connection: {reason}", self.attempts[index].name);
        self.attempts[index].state = State::Ended;
        self.set_standing(self.attempts[index].peer, Standing::Refused(reason.0));
    }

    /// Takes the queue pair to RTS. From then on the peer may send, so the connection is up before it is told.
    async fn establish(
        &mut self,
        index: usize,
        hello: &Hello,
        (qpn, psn): (Qpn, Psn),
        (their_resources, their_depth): (u8, u8),
    ) -> bool {
        let limits = self.inner.device.limits();
        let attempt = &mut self.attempts[index];
        attempt.remote_qpn = qpn;
        let path = PathToPeer {
            lid: attempt.lid,
            qpn,
            // What each side's message names is what the other begins with.
            their_psn: attempt.psn,
            our_psn: psn,
            mtu: attempt.mtu,
            sl: attempt.sl,
        };
        let target = hello.target(&limits, their_resources);
        let parameters = persistence(target.reads, limits.max_reads_as_responder.min(their_depth));
        let attempt = &self.attempts[index];
        let device = &self.inner.device;
        let mut done = device.ready_to_receive(attempt.qpn, &path, &parameters).await;
        if done.is_ok() {
            done = device.ready_to_send(attempt.qpn, Some(&path), &parameters).await;
        }
        let mut core = self.inner.cores[usize::from(attempt.core)].lock();
        match done {
            Ok(()) => {
                core.up(attempt.link, target);
                drop(core);
                let (peer, name) = (attempt.peer, attempt.name);
                log::info!(
                    "connected to {name} (core {}, {} READs)",
                    attempt.core,
                    target.reads
                );
                self.up_if_all(peer, index);
                true
            }
            Err(error) => {
                log::error!("{}: {error}", attempt.name);
                core.fail(attempt.link, LostCause::Device);
                false
            }
        }
    }

    /// A peer is up when each of its connections is.
    fn up_if_all(&self, peer: PeerId, just_up: usize) {
        let all = self.attempts.iter().enumerate().all(|(index, attempt)| {
            attempt.peer != peer || index == just_up || matches!(attempt.state, State::Up | State::Replied)
        });
        if all {
            self.set_standing(peer, Standing::Up);
        }
    }

    /// Kills the queue pairs of lost connections, and tells everyone who waits.
    async fn bury_lost(&mut self) {
        for core in 0..self.inner.cores.len() {
            loop {
                let failing = self.inner.cores[core].lock().failing();
                let Some((link, peer, qpn, cause)) = failing else {
                    break;
                };
                if let Err(error) = self.inner.device.fail_qp(qpn).await {
                    // Nothing more can be done about it: a device that does not answer is being lost itself.
                    log::error!("{qpn}: {error}");
                }
                self.inner.cores[core].lock().dead(link);
                let Some(peer) = peer else { continue };
                self.end_attempt(core, link, peer, cause).await;
            }
        }
    }

    async fn end_attempt(&mut self, core: usize, link: u16, peer: PeerId, cause: Option<LostCause>) {
        let ours = |attempt: &Attempt| {
            usize::from(attempt.core) == core && attempt.link == link && attempt.state != State::Ended
        };
        if let Some(index) = self.attempts.iter().position(ours) {
            self.attempts[index].state = State::Ended;
            let attempt = &self.attempts[index];
            if let Some(cause) = cause {
                log::warn!("{} is lost: {cause}", attempt.name);
            }
            if attempt.remote_comm_id != 0 && cause != Some(LostCause::PeerLeft) {
                let pair = Pair {
                    local_comm_id: attempt.comm_id,
                    remote_comm_id: attempt.remote_comm_id,
                };
                let dreq = Dreq {
                    pair,
                    remote_qpn: attempt.remote_qpn,
                    private: [0; 220],
                };
                self.send(attempt.lid, &CmMessage::Dreq(dreq).to_mad(attempt.comm_id.into()))
                    .await;
            }
        }
        // A peer lost on one core is lost on all.
        for other in &self.inner.cores {
            other.lock().fail_peer(peer, cause.unwrap_or(LostCause::QpFailed));
        }
        let mut peers = self.inner.peers.lock();
        if let Some(line) = peers.get_mut(usize::from(peer.0))
            && line.standing != Standing::Lost
        {
            line.standing = Standing::Lost;
            self.inner.lost.lock().push_back(peer);
        }
    }
}

//! What the nodes do: calls of all kinds and one-sided accesses, each checked.

use std::sync::Arc;

use fit::{
    Call, Config, Core, Error, Exchange, Fit, Handler, OneSided, PeerId, PeerSpec, Piece, Polling, Role,
};
use futures_util::future::{Either, join_all, select};
use hal::{DmaBuffer, Duration, Platform};
use verbs::{Access, Device, Domain, Region, RemoteAddr, Sge};

use crate::check::{Export, PLACE, Phase};
use crate::hca::Hca;
use crate::machine::{Buffer, Machine};
use crate::memory::Guard;
use crate::plan::Plan;
use crate::rng::{Rng, mix};
use crate::rule::Rule;
use crate::world::{Life, NodeIndex, World};

const MESSAGE: u32 = 300;
const BULK: u32 = 2048;
/// Bytes in front of a request's filler: number, delay in microseconds, length of reply and of bulk.
const HEAD: usize = 20;
const PLACES: u64 = 2048;
const WORKERS: usize = 6;
const ALL: Access = Access {
    local_write: true,
    remote_read: true,
    remote_write: true,
};

pub(crate) fn role(node: NodeIndex) -> Role {
    [Role::Processor, Role::Memory, Role::Storage][node % 3]
}

fn config(plan: &Plan) -> Config {
    Config {
        // Each return of a peer takes another queue pair.
        peers: u16::try_from(plan.degree * 14 + 8).expect("few peers"),
        calls: plan.calls,
        serves: plan.calls,
        one_sided: plan.one_sided,
        message_size: MESSAGE,
        bulk_size: BULK,
        signal_every: plan.signal_every,
        polling: Polling::Adaptive(plan.poll_budget),
        timeout: Duration::from_millis(plan.timeout_ms),
        connect_timeout: Duration::from_secs(20),
        ..Config::default()
    }
}

/// The bytes that stand for a number.
fn pattern(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| mix(number ^ (at << 40)).to_le_bytes()[0])
        .collect()
}

/// A node's life: starts FIT and everything that uses it.
pub(crate) async fn live(machine: Machine, plan: Arc<Plan>) {
    let node = machine.life.node;
    let device = Arc::new(Hca(machine.clone()));
    let fit = match Fit::new(device.clone(), machine.clone(), role(node), config(&plan)).await {
        Ok(fit) => fit,
        Err(error) => {
            machine
                .living(|world| world.violate(Rule::Post, format_args!("node {node} can't start: {error}")));
            return;
        }
    };
    let Ok(export) = machine.alloc(PLACES_LEN, 4096) else {
        return;
    };
    let Ok(region) = device
        .register(Domain::default(), export.bus_addr().0, PLACES_LEN as u64, ALL)
        .await
    else {
        return;
    };
    let life = machine.life;
    machine.living(|world| {
        let base = RemoteAddr {
            addr: region.addr,
            rkey: region.rkey,
        };
        let export = Export {
            life,
            base,
            places: PLACES,
            used: 0,
        };
        world.check.exports.insert(node, export);
    });
    let control = fit.clone();
    machine.spawn(async move { control.control().await });
    let core = fit.clone();
    machine.spawn(async move {
        let _ = core.run_core(0).await;
    });
    for _ in 0..WORKERS {
        let (core, handler) = (fit.core(0), Answers(machine.clone()));
        machine.spawn(async move { core.serve(&handler).await });
    }
    for peer in (0..plan.nodes).filter(|peer| plan.talk(node, *peer)) {
        let link = Link {
            rng: Rng::of(
                plan.seed,
                mix(((node as u64) << 32) + peer as u64) ^ u64::from(life.incarnation),
            ),
            machine: machine.clone(),
            device: device.clone(),
            fit: fit.clone(),
            core: fit.core(0),
            plan: plan.clone(),
            peer,
            left: plan.operations,
        };
        machine.spawn(link.run());
    }
    // The export lives as long as the node.
    let _export = export;
    std::future::pending::<()>().await;
}

#[expect(clippy::cast_possible_truncation, reason = "a constant, on a 64-bit host")]
const PLACES_LEN: usize = PLACES as usize * PLACE;

struct Answers(Machine);

impl Handler for Answers {
    async fn handle(&self, _: PeerId, _: u16, request: &[u8], reply: &mut dyn Exchange) {
        let word = |at: usize| {
            request
                .get(at..at + 4)
                .map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four")))
        };
        let number = u64::from(word(0)) | u64::from(word(4)) << 32;
        let life = self.0.life;
        self.0.living(|world| {
            world.saw(life, number);
            if request.len() < HEAD || request[HEAD..] != pattern(number, request.len() - HEAD) {
                world.violate(
                    Rule::Content,
                    format_args!("node {}: the request of call {number} is spoilt", life.node),
                );
            }
        });
        if word(8) > 0 {
            self.0.pause(u64::from(word(8)) * 1000).await;
        }
        let len = (word(12) as usize).min(reply.message().len());
        reply.message()[..len].copy_from_slice(&pattern(number ^ 1, len));
        reply.set_len(len);
        let bulk = (word(16) as usize).min(reply.bulk_limit());
        reply.write_bulk(0, &pattern(number ^ 2, bulk));
    }
    fn peer_lost(&self, _: PeerId) {}
}

/// A buffer that is registered, and its owner's unless it is lent.
struct Local {
    buffer: Buffer,
    region: Region,
}

impl Local {
    fn sge(&self, len: usize) -> Sge {
        Sge {
            addr: self.region.addr,
            len: u32::try_from(len).expect("short"),
            lkey: self.region.lkey,
        }
    }
    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.buffer.read(0, &mut bytes);
        bytes
    }
}

/// One node's talk with one peer.
struct Link {
    rng: Rng,
    machine: Machine,
    device: Arc<Hca>,
    fit: Fit<Hca, Machine>,
    core: Core<Hca, Machine>,
    plan: Arc<Plan>,
    peer: NodeIndex,
    left: u32,
}

/// One connection's place in the peer's export, and what stands there.
struct Session {
    peer: PeerId,
    place: Option<(Life, RemoteAddr)>,
    written: Vec<u8>,
    local: Local,
    second: Local,
}

impl Link {
    async fn run(mut self) {
        loop {
            let spec = PeerSpec {
                role: role(self.peer),
                gid: World::gid(self.peer),
            };
            if let Ok(peer) = self.fit.connect(spec).await {
                self.talk(peer).await;
            }
            let span = self.rng.between(1_000_000, 100_000_000);
            self.machine.pause(span).await;
        }
    }

    fn phase(&self) -> Phase {
        self.machine
            .living(|world| world.check.phase)
            .unwrap_or(Phase::Rest)
    }

    async fn local(&self) -> Option<Local> {
        let buffer = self.machine.alloc(BULK as usize, 64).ok()?;
        let region = self
            .device
            .register(Domain::default(), buffer.bus_addr().0, u64::from(BULK), ALL)
            .await
            .ok()?;
        buffer.guard(Guard::Owned);
        Some(Local { buffer, region })
    }

    /// Talks to a connected peer until it is lost.
    async fn talk(&mut self, peer: PeerId) {
        let (Some(local), Some(second)) = (self.local().await, self.local().await) else {
            return;
        };
        let mut session = Session {
            peer,
            place: self.machine.living(|world| world.take_place(self.peer)).flatten(),
            written: vec![0; PLACE],
            local,
            second,
        };
        loop {
            let ended = match self.phase() {
                Phase::Traffic if self.left > 0 => {
                    self.left -= 1;
                    self.operate(&mut session).await
                }
                Phase::Exam if !self.passed() => self.exam(&mut session).await,
                _ => self.core.state(peer).map(drop),
            };
            // Other errors leave the connection as it was.
            let lost = matches!(ended, Err(Error::PeerLost { .. } | Error::NotConnected(_)));
            if lost || self.core.state(peer) != Ok(fit::LinkState::Up) {
                break;
            }
            let span = self.rng.below(20_000_000);
            self.machine.pause(span + 1000).await;
        }
        // What an abandoned operation was lent comes back only with the queue pair's death.
        while self.core.state(peer) == Ok(fit::LinkState::Failing) {
            self.machine.pause(1_000_000).await;
        }
        for local in [session.local, session.second] {
            local.buffer.guard(Guard::Owned);
            let _ = self.device.deregister(&local.region).await;
        }
    }

    fn passed(&self) -> bool {
        let pair = (self.machine.life.node, self.peer);
        self.machine
            .living(|world| world.check.passed.contains(&pair))
            .unwrap_or(true)
    }

    /// One operation, which the generator chooses.
    async fn operate(&mut self, session: &mut Session) -> Result<(), Error> {
        match self.rng.below(10) {
            0..4 => self.call(session, None).await,
            4 => {
                let patience = self.rng.between(1000, 5_000_000);
                self.call(session, Some(patience)).await
            }
            5 => self
                .burst(session.peer, 1 + self.rng.clone().index(4))
                .await
                .map(drop),
            6 => self.write(session).await,
            7 => self.read(session).await,
            8 => self.batch(session).await,
            _ => self.too_long(session).await,
        }
    }

    fn request(&mut self, number: u64, bulk: u32) -> (Vec<u8>, usize) {
        let room = MESSAGE as usize - fit::HEADER_LEN;
        let slow = self.phase() == Phase::Traffic;
        let delay = match self.rng.below(20) {
            0 if slow => self.rng.below(400_000),
            1..4 if slow => self.rng.below(5000),
            _ => 0,
        };
        let reply = self.rng.index(room + 1);
        let mut request = number.to_le_bytes().to_vec();
        for word in [delay, reply as u64, u64::from(bulk)] {
            request.extend_from_slice(&u32::try_from(word).expect("small").to_le_bytes());
        }
        let filler = self.rng.index(room - HEAD + 1);
        request.extend_from_slice(&pattern(number, filler));
        (request, reply)
    }

    fn open(&self, what: &'static str) -> u64 {
        let timeout = self.plan.timeout_ms * 1_000_000;
        let life = self.machine.life;
        self.machine
            .living(|world| world.open(life, what, timeout))
            .unwrap_or(0)
    }

    fn close(&self, number: u64, ok: bool) {
        self.machine.living(|world| world.close(number, ok));
    }

    fn wrong(&self, rule: Rule, what: &str) {
        let (node, peer) = (self.machine.life.node, self.peer);
        self.machine
            .living(|world| world.violate(rule, format_args!("node {node} to {peer}: {what}")));
    }

    /// A call, perhaps with a bulk reply, perhaps given up after a while.
    async fn call(&mut self, session: &mut Session, patience: Option<u64>) -> Result<(), Error> {
        let bulk_len = if self.rng.chance(300_000) {
            u32::try_from(self.rng.between(1, u64::from(BULK))).expect("small")
        } else {
            0
        };
        let number = self.open("a call");
        let (request, reply_len) = self.request(number, bulk_len);
        let mut pieces = Vec::new();
        if bulk_len > 0 {
            session.local.buffer.guard(Guard::Lent);
            pieces.push(Piece::of(&session.local.region, 0, bulk_len));
        }
        let mut reply = [0; MESSAGE as usize];
        let kind = u16::try_from(self.rng.below(70)).expect("small");
        let core = self.core.clone();
        let call = Box::pin(core.call(
            session.peer,
            Call::new(kind, &request).scatter(&pieces),
            &mut reply,
        ));
        let ended = match patience {
            None => call.await,
            Some(patience) => match select(call, self.machine.pause(patience)).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => {
                    // Given up: the call may still be carried out, and a lent buffer stays lent.
                    self.close(number, false);
                    if bulk_len > 0 {
                        self.replace(session).await;
                    }
                    return Ok(());
                }
            },
        };
        self.close(number, ended.is_ok());
        if bulk_len > 0 {
            session.local.buffer.guard(Guard::Owned);
        }
        let got = ended?;
        self.machine.living(|world| world.answered(number, self.peer));
        let right = got.len == reply_len
            && reply[..got.len] == pattern(number ^ 1, got.len)
            && got.bulk == bulk_len
            && session.local.bytes(bulk_len as usize) == pattern(number ^ 2, bulk_len as usize);
        if !right {
            self.wrong(Rule::Content, "the reply is not what was asked for");
        }
        Ok(())
    }

    /// Puts another buffer in the place of one that stays lent. It is leaked: nobody may use it again.
    async fn replace(&self, session: &mut Session) {
        if let Some(fresh) = self.local().await {
            std::mem::forget(std::mem::replace(&mut session.local, fresh).buffer);
        }
    }

    /// Several short calls at once. Returns how many were answered.
    async fn burst(&mut self, peer: PeerId, count: usize) -> Result<usize, Error> {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let number = self.open("a call of a burst");
                (number, self.request(number, 0).0)
            })
            .collect();
        let this = &*self;
        let ended = join_all(calls.iter().map(|(number, request)| async move {
            let mut reply = [0; MESSAGE as usize];
            let ended = this.core.call(peer, Call::new(1, request), &mut reply).await;
            this.close(*number, ended.is_ok());
            if ended.is_ok() {
                this.machine.living(|world| world.answered(*number, this.peer));
            }
            ended
        }))
        .await;
        let answered = ended.iter().filter(|ended| ended.is_ok()).count();
        ended.into_iter().find_map(Result::err).map_or(Ok(answered), Err)
    }

    async fn write(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some((target, at)) = session.place else {
            return Ok(());
        };
        let number = self.open("a WRITE");
        let bytes = pattern(number, PLACE);
        session.local.buffer.write(0, &bytes);
        session.local.buffer.guard(Guard::Lent);
        let ended = self.core.write(session.peer, session.local.sge(PLACE), at).await;
        session.local.buffer.guard(Guard::Owned);
        self.close(number, ended.is_ok());
        match ended {
            Ok(()) => {
                self.machine
                    .living(|world| world.check_written(target, at, &bytes));
                session.written = bytes;
            }
            // It may or may not have happened, or still happen.
            Err(_) => session.place = None,
        }
        ended
    }

    async fn read(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some((_, at)) = session.place else {
            return Ok(());
        };
        let number = self.open("a READ");
        session.second.buffer.fill(0, PLACE, 0xa5);
        session.second.buffer.guard(Guard::Lent);
        let ended = self.core.read(session.peer, at, session.second.sge(PLACE)).await;
        session.second.buffer.guard(Guard::Owned);
        self.close(number, ended.is_ok());
        ended?;
        if session.second.bytes(PLACE) != session.written {
            self.wrong(Rule::Content, "a READ does not bring what was written last");
        }
        Ok(())
    }

    /// A WRITE and a READ of the same place behind it, with one doorbell.
    async fn batch(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some((target, at)) = session.place else {
            return Ok(());
        };
        if self.plan.one_sided < 2 {
            return Ok(());
        }
        let numbers = [self.open("a WRITE of a batch"), self.open("a READ of a batch")];
        let bytes = pattern(numbers[0], PLACE);
        session.local.buffer.write(0, &bytes);
        for local in [&session.local, &session.second] {
            local.buffer.guard(Guard::Lent);
        }
        let mut tickets = Vec::new();
        let mut refused = None;
        {
            let mut batch = self.core.batch(session.peer);
            let both = [
                (OneSided::Write, &session.local),
                (OneSided::Read, &session.second),
            ];
            for (what, local) in both {
                match batch.add(what, at, local.sge(PLACE)) {
                    Ok(ticket) => tickets.extend(ticket),
                    Err(error) => refused = Some(error),
                }
            }
        }
        let whole = tickets.len() == 2;
        let ended = join_all(tickets).await;
        for local in [&session.local, &session.second] {
            local.buffer.guard(Guard::Owned);
        }
        let ok = whole && ended.iter().all(Result::is_ok);
        for number in numbers {
            self.close(number, ok);
        }
        if ok {
            self.machine
                .living(|world| world.check_written(target, at, &bytes));
            if session.second.bytes(PLACE) != bytes {
                self.wrong(Rule::Content, "a READ overtook the WRITE before it");
            }
            session.written = bytes;
        } else {
            session.place = None;
        }
        ended
            .into_iter()
            .find_map(Result::err)
            .or(refused)
            .map_or(Ok(()), Err)
    }

    async fn too_long(&self, session: &Session) -> Result<(), Error> {
        let number = self.open("a call that is too long");
        let ended = self
            .core
            .call(session.peer, Call::new(1, &[0; MESSAGE as usize]), &mut [])
            .await;
        self.close(number, false);
        match ended {
            Ok(_) => self.wrong(Rule::Content, "a request longer than a message was taken"),
            Err(Error::TooLong { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Shows that the peer answers, and that every slot of the connection is free.
    async fn exam(&mut self, session: &mut Session) -> Result<(), Error> {
        self.burst(session.peer, 1).await?;
        // Replies to calls that were given up come in meanwhile.
        self.machine.pause(1_000_000_000).await;
        let waits = |core: &Core<Hca, Machine>| {
            let counters = core.link_counters();
            counters
                .iter()
                .find(|(id, ..)| *id == session.peer)
                .map(|(.., counters)| counters.nr_back_pressure)
        };
        let before = waits(&self.core);
        self.burst(session.peer, self.plan.calls.into()).await?;
        if waits(&self.core) != before {
            self.wrong(Rule::Credits, "not every slot for calls is free at rest");
        }
        self.all_slots(session).await?;
        // A lost peer costs a line and a queue pair, so there are no more lines than queue pairs, and the refused.
        if self.fit.peers().len() > 2 * usize::from(config(&self.plan).peers) {
            self.wrong(Rule::Growth, "the table of peers grows and grows");
        }
        let pair = (self.machine.life.node, self.peer);
        self.machine.living(|world| world.check.passed.insert(pair));
        Ok(())
    }

    async fn all_slots(&self, session: &mut Session) -> Result<(), Error> {
        let Some((_, at)) = session.place else {
            return Ok(());
        };
        session.second.buffer.guard(Guard::Lent);
        let mut tickets = Vec::new();
        {
            let mut batch = self.core.batch(session.peer);
            for _ in 0..self.plan.one_sided {
                match batch.add(OneSided::Read, at, session.second.sge(PLACE))? {
                    Some(ticket) => tickets.push(ticket),
                    None => self.wrong(
                        Rule::Credits,
                        "not every slot for READs and WRITEs is free at rest",
                    ),
                }
            }
        }
        let ended = join_all(tickets).await;
        session.second.buffer.guard(Guard::Owned);
        ended.into_iter().collect()
    }
}

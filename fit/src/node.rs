//! The asynchronous face: futures over the engine, generic over device and machine.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, AtomicU16};
use core::task::{Context, Poll};

use futures_util::future::select;
use hal::{DmaBuffer, Duration, Instant, Platform};
use verbs::{Access, Device, Domain, Gid, QpConfig, QpKind, Region, RemoteAddr, Sge};

use crate::config::{Layout, SEND_PIECES};
use crate::control::Control;
use crate::group::Group;
use crate::link::Parts;
use crate::membership::Membership;
use crate::membership::proof::{Purpose, Rng, prove};
use crate::peers::Peers;
use crate::shared::{CoreEngine, Inner, Start};
use crate::sync::{Mutex, MutexGuard};
use crate::{
    Call, CallId, Config, Counters, Domains, Engine, Error, Exchange, Handler, Incarnation,
    Incoming, Key, LinkCounters, LinkState, Member, OneSided, OpId, Operation, PeerId, PeerName,
    Profile, ProfilePoint, Reply, Role, Waiting,
};

/// A node's FIT. Cheap to clone: every clone means the same one.
pub struct Fit<D: Device, P: Platform>(pub(crate) Arc<Inner<D, P>>);

impl<D: Device, P: Platform> Clone for Fit<D, P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Device, P: Platform> Fit<D, P> {
    /// Makes every queue, queue pair and buffer that FIT will use; nothing is allocated later on
    /// the data path.
    ///
    /// # Errors
    ///
    /// [`Error::TooDeep`] when the depths do not fit the device, [`Error::Device`] and
    /// [`Error::Memory`] when it or the machine gives less than promised.
    pub async fn new(
        device: Arc<D>,
        platform: P,
        role: Role,
        config: Config,
    ) -> Result<Self, Error> {
        let limits = device.limits();
        config.check(&limits)?;
        let numbers = match config.domains {
            Domains::Shared => 1 << 16,
            // The first is the shared one.
            Domains::PerPeer => limits.max_domains.saturating_sub(1),
        };
        let now = platform.now();
        // The time, too: two lives of a node differ though their entropy be the same.
        let seed = prove(
            &Key(config.entropy),
            Purpose::Draw,
            &[&now.nanos.to_le_bytes()],
        );
        let mut rng = Rng::new(seed);
        let me = Member {
            name: PeerName {
                role,
                gid: Gid::default(),
            },
            incarnation: Incarnation::default(),
            capacity: config.capacity,
        };
        let drawn = rng.fork();
        let membership = Membership::new(me, config.message_version, config.cluster, drawn, now);
        let group = match config.discover {
            true => Some(Group::new(&*device, &platform, &config).await?),
            false => None,
        };
        // Nothing is ever posted there, so nothing completes.
        let lent = match config.page_paths {
            0 => None,
            _ => Some(device.create_queues(2, config.first_vector).await?),
        };
        let mut cores = Vec::new();
        let mut regions = BTreeMap::new();
        for core in 0..config.cores {
            let vector = config.first_vector + core;
            let queues = device
                .create_queues(config.completion_queue_depth(), vector)
                .await?;
            let (engine, registered) =
                make_core(&*device, &platform, &config, role, queues).await?;
            cores.push(Mutex::new(engine));
            let registered = (0..)
                .zip(registered)
                .map(|(link, region)| ((core, link), region));
            regions.extend(registered);
        }
        Ok(Self(Arc::new(Inner {
            device,
            platform,
            config,
            cores,
            profiles: (0..config.cores)
                .map(|_| Profile::new(config.profile))
                .collect(),
            peers: Mutex::new(Peers::new(numbers)),
            regions: Mutex::new(regions),
            membership: Mutex::new(membership),
            changes: Mutex::new(VecDeque::new()),
            leaving: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            ended: Mutex::default(),
            pages: Mutex::default(),
            parking: Arc::default(),
            next_page_lane: AtomicU16::new(0),
            start: Mutex::new(Start { rng, group, lent }),
        })))
    }

    /// The control task: management datagrams, connecting, deadlines, lost peers. Spawned once; it
    /// never ends.
    pub async fn control(&self) {
        // Deadlines and signs of life do not wait for firmware, nor for others' connections.
        let control = pin!(Control::new(self.0.clone()).run());
        select(control, pin!(self.0.watch_deadlines())).await;
    }

    /// Cores that have queues.
    #[must_use]
    pub fn cores(&self) -> u16 {
        self.0.config.cores
    }

    /// One core's access to the peers.
    ///
    /// # Panics
    ///
    /// When there is no such core.
    #[must_use]
    pub fn core(&self, index: u16) -> Core<D, P> {
        assert!(
            index < self.0.config.cores,
            "core {index} of {}",
            self.0.config.cores
        );
        Core {
            inner: self.0.clone(),
            index: index.into(),
        }
    }
}

/// One core's queues, with a queue pair and its buffers for each peer there may be.
async fn make_core<D: Device, P: Platform>(
    device: &D,
    platform: &P,
    config: &Config,
    role: Role,
    mut queues: D::Queues,
) -> Result<(Engine<D::Queues, P::Buffer>, Vec<Region>), Error> {
    let limits = device.limits();
    let depths = config.depths();
    let qp_config = QpConfig {
        kind: QpKind::ReliableConnection,
        domain: Domain::default(),
        port: config.port,
        send_depth: depths.send,
        receive_depth: depths.receive,
        send_sge: SEND_PIECES,
        receive_sge: 1,
        inline: limits.max_inline,
        remote_access: Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        },
    };
    let nobody = PeerName {
        role,
        gid: Gid::default(),
    };
    let (mut parts, mut regions) = (Vec::new(), Vec::new());
    for _ in 0..config.peers {
        let len = Layout::new(config).len();
        let memory = platform.alloc(len, 4096)?;
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let region = device
            .register(
                Domain::default(),
                memory.bus_addr().0,
                memory.len() as u64,
                access,
            )
            .await?;
        regions.push(region);
        let (qp, qpn) = device.create_qp(&mut queues, &qp_config).await?;
        let max_inline = limits.max_inline;
        parts.push(Parts {
            peer: nobody,
            qp,
            qpn,
            memory,
            lkey: region.lkey,
            max_inline,
        });
    }
    let mut engine = Engine::new(*config, queues);
    parts.into_iter().for_each(|parts| {
        engine.add(parts);
    });
    Ok((engine, regions))
}

/// One core's access to the peers. Its calls must be made by tasks of that core.
pub struct Core<D: Device, P: Platform> {
    pub(crate) inner: Arc<Inner<D, P>>,
    pub(crate) index: usize,
}

impl<D: Device, P: Platform> Clone for Core<D, P> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            index: self.index,
        }
    }
}

impl<D: Device, P: Platform> Core<D, P> {
    pub(crate) fn engine(&self) -> MutexGuard<'_, CoreEngine<D, P>> {
        self.inner.cores[self.index].lock()
    }

    /// Brings the peer's memory at `from` into `into` by one RDMA READ.
    ///
    /// The local memory is lent until this ends. Dropping the future does not end the READ: who
    /// drops it may not use the memory again before the connection is lost.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] (also when the READ is past its deadline: the connection is given up
    /// then), [`Error::Overloaded`], [`Error::NotConnected`].
    pub async fn read(&self, peer: PeerId, from: RemoteAddr, into: Sge) -> Result<(), Error> {
        self.one_sided(peer, OneSided::Read, (from, into)).await
    }

    /// Writes local memory to the peer's at `to` by one RDMA WRITE; it ends when the peer's HCA has
    /// acknowledged it.
    ///
    /// The local memory is lent as for [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub async fn write(&self, peer: PeerId, from: Sge, to: RemoteAddr) -> Result<(), Error> {
        self.one_sided(peer, OneSided::Write, (to, from)).await
    }

    async fn one_sided(
        &self,
        peer: PeerId,
        what: OneSided,
        at: (RemoteAddr, Sge),
    ) -> Result<(), Error> {
        let began = self.inner.platform.now();
        let deadline = began + self.inner.config.timeout;
        let operation = what.into();
        let start = |engine: &mut CoreEngine<D, P>, now| {
            let id = engine.start_op(peer, what, at, now, deadline)?;
            engine.flush(peer);
            Ok(id)
        };
        let id = self.started(peer, operation, deadline, start).await?;
        Ticket {
            core: self,
            peer,
            operation,
            began,
            id: Some(id),
        }
        .await
    }

    /// Starts a READ that ends by its tag, in the sink of [`Fit::run_core_with`]. The local memory
    /// is lent until then.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] when all slots are taken, [`Error::PeerLost`],
    /// [`Error::NotConnected`]. No end comes then.
    pub fn start_read(
        &self,
        peer: PeerId,
        from: RemoteAddr,
        into: Sge,
        tag: u64,
    ) -> Result<(), Error> {
        self.start_tagged(peer, (OneSided::Read, tag), (from, into))
    }

    /// Starts a WRITE as [`start_read`](Self::start_read) does a READ.
    ///
    /// # Errors
    ///
    /// As for [`start_read`](Self::start_read).
    pub fn start_write(
        &self,
        peer: PeerId,
        from: Sge,
        to: RemoteAddr,
        tag: u64,
    ) -> Result<(), Error> {
        self.start_tagged(peer, (OneSided::Write, tag), (to, from))
    }

    fn start_tagged(
        &self,
        peer: PeerId,
        what: (OneSided, u64),
        at: (RemoteAddr, Sge),
    ) -> Result<(), Error> {
        let now = self.inner.platform.now();
        let mut engine = self.engine();
        if engine
            .start_tagged(peer, what, at, now, now + self.inner.config.timeout)?
            .is_none()
        {
            let limit = usize::from(self.inner.config.one_sided);
            return Err(Error::Overloaded {
                peer: engine.name(peer)?,
                limit,
            });
        }
        engine.flush(peer);
        Ok(())
    }

    /// Begins a batch of READs and WRITEs that share one doorbell.
    #[must_use]
    pub fn batch(&self, peer: PeerId) -> Batch<'_, D, P> {
        Batch { core: self, peer }
    }

    /// Calls a peer, waits for its reply and puts it into `reply`.
    ///
    /// The memory of the call's pieces is lent as for [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] (the peer may have carried the call out nevertheless),
    /// [`Error::PeerLost`], [`Error::TooLong`] for the request or the reply,
    /// [`Error::TooManyPieces`], [`Error::Overloaded`], [`Error::NotConnected`].
    pub async fn call(
        &self,
        peer: PeerId,
        call: Call<'_>,
        reply: &mut [u8],
    ) -> Result<Reply, Error> {
        let began = self.inner.platform.now();
        let deadline = began + self.inner.config.timeout;
        let start = |engine: &mut CoreEngine<D, P>, now| {
            let id = engine.start_call(peer, &call, now, deadline);
            self.profiled(ProfilePoint::PostCall, now);
            id
        };
        let operation = Operation::Call(call.kind);
        let id = self.started(peer, operation, deadline, start).await?;
        let mut waiting = WaitingCall {
            core: self,
            id: Some(id),
        };
        poll_fn(|context| {
            let ended = self.engine().poll_call(peer, id, context.waker(), reply);
            if ended.is_ready() {
                waiting.id = None;
            }
            ended
        })
        .await
        .map_err(|error| self.cut_short(peer, (operation, began), error))
    }

    /// Sends a peer a message that it does not answer: its [`Handler::receive`] gets it once, or it
    /// is lost with the connection, of which the sender learns nothing here. Waits while the peer
    /// has too many that no handler has taken.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`], [`Error::NoOneWays`], [`Error::Deadline`] when there was no room in
    /// time, [`Error::PeerLost`], [`Error::Overloaded`], [`Error::NotConnected`].
    pub async fn send(&self, peer: PeerId, kind: u16, body: &[u8]) -> Result<(), Error> {
        let deadline = self.inner.platform.now() + self.inner.config.timeout;
        let start = |engine: &mut CoreEngine<D, P>, now| {
            let sent = engine.start_one_way(peer, kind, body);
            self.profiled(ProfilePoint::PostOneWay, now);
            sent
        };
        self.started(peer, Operation::OneWay(kind), deadline, start)
            .await
    }

    /// The state of the connection to `peer`.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`] when there never was one.
    pub fn state(&self, peer: PeerId) -> Result<LinkState, Error> {
        self.engine().state(peer)
    }

    /// A copy of the counters of each connection.
    #[must_use]
    pub fn link_counters(&self) -> Vec<(PeerId, PeerName, Box<LinkCounters>)> {
        let engine = self.engine();
        engine
            .link_counters()
            .map(|(id, name, counters)| (id, name, Box::new(counters.clone())))
            .collect()
    }

    /// A copy of this core's own counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.engine().counters()
    }

    /// Answers the requests of the peers and takes their one-way messages, one at a time. Spawned
    /// once for each worker; it never ends.
    pub async fn serve<H: Handler>(&self, handler: &H) {
        let size = self.inner.config.message_size as usize;
        let mut request = vec![0; size].into_boxed_slice();
        let mut message = vec![0; size].into_boxed_slice();
        let (profile, clock) = (self.profile(), || self.inner.platform.now());
        loop {
            let mut waited = false;
            let incoming = poll_fn(|context| {
                let taken = self.engine().poll_request(context.waker(), &mut request);
                waited |= taken.is_pending();
                taken
            })
            .await;
            let taken = profile.begin(clock);
            if let Some(taken) = taken {
                profile.note(ProfilePoint::Queue, taken.since(incoming.arrived));
            }
            let (from, kind) = (incoming.from, incoming.kind);
            let (body, carried) = request.split_at(incoming.len);
            if incoming.one_way {
                handler.receive(from, kind, body).await;
                profile.end(ProfilePoint::Handler, taken, clock);
                self.give_way(waited).await;
                continue;
            }
            let limit = self.engine().reply_limit(&incoming);
            let mut answer = Answer {
                core: self,
                incoming,
                carried: incoming
                    .carried
                    .then(|| &carried[..incoming.bulk_len as usize]),
                message: &mut message[..limit],
                len: 0,
                bulk: 0,
            };
            handler.handle(from, kind, body, &mut answer).await;
            let (len, bulk) = (answer.len, answer.bulk);
            profile.end(ProfilePoint::Handler, taken, clock);
            let done = profile.begin(clock);
            self.engine().reply(&incoming, &message[..len], bulk);
            profile.end(ProfilePoint::PostReply, done, clock);
            self.give_way(waited).await;
        }
    }
}

impl<D: Device, P: Platform> Core<D, P> {
    /// Returns the times measured at this core's profile points.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.inner.profiles[self.index]
    }

    /// Notes the time since `began` at a profile point.
    pub(crate) fn profiled(&self, point: ProfilePoint, began: Instant) {
        let profile = self.profile();
        profile.end(point, profile.begin(|| began), || self.inner.platform.now());
    }

    /// The error of something that was under way: if the peer is lost, it says what this was.
    pub(crate) fn cut_short(
        &self,
        peer: PeerId,
        (operation, began): (Operation, Instant),
        error: Error,
    ) -> Error {
        let state = self.engine().state(peer).unwrap_or(LinkState::Down);
        let age = self.inner.platform.now().since(began);
        error.while_waiting(Waiting {
            operation,
            age,
            state,
        })
    }

    /// Lets the task that polls have its turn, unless this one waited before: with requests without
    /// end it would have none.
    async fn give_way(&self, waited: bool) {
        if !waited {
            self.inner.platform.sleep(Duration::ZERO).await;
        }
    }
}

/// A READ or WRITE under way; as a future it ends when the access has.
pub struct Ticket<'a, D: Device, P: Platform> {
    core: &'a Core<D, P>,
    peer: PeerId,
    operation: Operation,
    began: Instant,
    id: Option<OpId>,
}

impl<D: Device, P: Platform> Future for Ticket<'_, D, P> {
    type Output = Result<(), Error>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(id) = self.id else {
            return Poll::Pending;
        };
        let ended = self.core.engine().poll_op(self.peer, id, context.waker());
        if ended.is_ready() {
            self.id = None;
        }
        let under_way = (self.operation, self.began);
        ended.map_err(|error| self.core.cut_short(self.peer, under_way, error))
    }
}

impl<D: Device, P: Platform> Drop for Ticket<'_, D, P> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.core.engine().abandon_op(self.peer, id);
        }
    }
}

struct WaitingCall<'a, D: Device, P: Platform> {
    core: &'a Core<D, P>,
    id: Option<CallId>,
}

impl<D: Device, P: Platform> Drop for WaitingCall<'_, D, P> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.core.engine().abandon_call(id);
        }
    }
}

/// READs and WRITEs to one peer that the device is shown by one doorbell, when the batch is
/// dropped.
pub struct Batch<'a, D: Device, P: Platform> {
    core: &'a Core<D, P>,
    peer: PeerId,
}

impl<'a, D: Device, P: Platform> Batch<'a, D, P> {
    /// Adds an access; nothing if no slot is free (end the batch, and wait for one of its tickets).
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`], [`Error::NotConnected`].
    pub fn add(
        &mut self,
        what: OneSided,
        remote: RemoteAddr,
        local: Sge,
    ) -> Result<Option<Ticket<'a, D, P>>, Error> {
        let now = self.core.inner.platform.now();
        let deadline = now + self.core.inner.config.timeout;
        let id = self
            .core
            .engine()
            .start_op(self.peer, what, (remote, local), now, deadline)?;
        Ok(id.map(|id| Ticket {
            core: self.core,
            peer: self.peer,
            operation: what.into(),
            began: now,
            id: Some(id),
        }))
    }
}

impl<D: Device, P: Platform> Drop for Batch<'_, D, P> {
    fn drop(&mut self) {
        self.core.engine().flush(self.peer);
    }
}

/// A call that a handler answers.
struct Answer<'a, D: Device, P: Platform> {
    core: &'a Core<D, P>,
    incoming: Incoming,
    /// The request's bulk, if it came in its message.
    carried: Option<&'a [u8]>,
    message: &'a mut [u8],
    len: usize,
    bulk: u32,
}

impl<D: Device, P: Platform> Exchange for Answer<'_, D, P> {
    fn bulk_len(&self) -> usize {
        self.incoming.bulk_len as usize
    }

    fn read_bulk(&mut self, offset: usize, into: &mut [u8]) -> usize {
        let Some(carried) = self.carried else {
            return self.core.engine().read_bulk(&self.incoming, offset, into);
        };
        let bytes = carried.get(offset..).unwrap_or_default();
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        len
    }

    fn message(&mut self) -> &mut [u8] {
        self.message
    }

    fn set_len(&mut self, len: usize) {
        self.len = len.min(self.message.len());
    }

    fn bulk_limit(&self) -> usize {
        self.incoming.bulk_limit as usize
    }

    fn write_bulk(&mut self, offset: usize, bytes: &[u8]) -> usize {
        let room = self.bulk_limit().saturating_sub(offset);
        let bytes = &bytes[..bytes.len().min(room)];
        if bytes.is_empty() {
            return 0;
        }
        self.core.engine().write_bulk(&self.incoming, offset, bytes);
        let end = u32::try_from(offset + bytes.len()).expect("at most the bulk limit");
        self.bulk = self.bulk.max(end);
        bytes.len()
    }
}

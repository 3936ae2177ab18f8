//! One core's connections over its completion queue.

mod serving;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Poll, Waker};

use hal::{DmaBuffer, Instant};
use verbs::{Completion, Lkey, QueueSet, RemoteAddr, Sge};

use crate::config::MAX_WORKERS;
use crate::link::{Link, Parts};
use crate::turns::{Room, Ticket, Turns};
use crate::waiters::{TooMany, wake_all};
use crate::{
    AccessEnd, Call, CallId, Config, Counters, Error, LinkCounters, LinkState, LostCause, OneSided,
    OpId, PeerId, PeerName, Reply, Target,
};

/// Completions taken in one go.
const BATCH: usize = 32;
/// Lost peers that are remembered.
const MAX_GONE: usize = 64;
/// No connection.
const NONE: u16 = u16::MAX;

/// By which of an engine's connections a peer is reached.
#[derive(Debug, Clone, Copy)]
struct Route {
    /// The one that calls go by; none if there are several, which take turns.
    calls: u16,
    /// The last of them, which all else goes by.
    rest: u16,
}

impl Route {
    const NONE: Self = Self {
        calls: NONE,
        rest: NONE,
    };
}

/// Lost peers, and why.
type Gone = VecDeque<(PeerId, PeerName, LostCause)>;

/// The error of a peer that has no connection any more, or never had one.
#[cold]
fn gone(gone: &Gone, peer: PeerId) -> Error {
    let gone = gone.iter().find(|(gone, ..)| *gone == peer);
    gone.map_or(Error::NotConnected(peer.0), |&(_, peer, cause)| {
        Error::PeerLost {
            peer,
            cause,
            waiting: None,
        }
    })
}

/// Posts and shows the device what can be on a connection, and wakes the servers if requests have
/// arrived.
#[inline]
fn settle<Q: QueueSet, M: DmaBuffer>(link: &mut Link<M>, queues: &mut Q, servers: &mut Vec<Waker>) {
    link.flush(queues);
    if link.take_arrived() && !servers.is_empty() {
        wake_all(servers);
    }
}

/// The data path of one core: every connection's slots and credits, over one [`QueueSet`].
///
/// It has no clock and waits for nothing: `now` is an argument, and what a caller waits for is
/// polled with a waker. Wakers are woken while the engine is borrowed, so a waker must do no more
/// than mark its task as ready.
pub struct Engine<Q, M> {
    config: Config,
    queues: Q,
    /// By the place of their queue pair in the queue set.
    links: Vec<Link<M>>,
    /// By the peers' numbers: by which connections they are reached.
    routes: Vec<Route>,
    servers: Vec<Waker>,
    /// Those who wait for room, in their order.
    turns: Turns,
    /// The connection whose requests are looked at first: they take turns.
    turn: u16,
    /// The connection that the last call went by to a peer that has several.
    last_lane: u16,
    /// The task that polls this engine, while it rests.
    poller: Option<Waker>,
    /// Something was started since the poller last looked.
    started: bool,
    /// The completion queue failed.
    failed: bool,
    counters: Counters,
    /// Buffer for completions; kept, as clearing it at each poll would cost more than all the rest
    /// of a call.
    batch: Box<[Completion]>,
    /// Lost peers whose queue pairs others have now, for those who ask late; the latest at the end.
    gone: Gone,
}

impl<Q: QueueSet, M: DmaBuffer> Engine<Q, M> {
    /// Makes an engine without connections over a queue set of [`Config::completion_queue_depth`]
    /// entries.
    pub fn new(config: Config, queues: Q) -> Self {
        Self {
            config,
            queues,
            links: Vec::with_capacity(config.peers.into()),
            routes: Vec::new(),
            servers: Vec::with_capacity(MAX_WORKERS.into()),
            turns: Turns::new(usize::from(config.calls) * 4),
            turn: 0,
            last_lane: 0,
            poller: None,
            started: false,
            failed: false,
            counters: Counters::default(),
            batch: alloc::vec![Completion::EMPTY; BATCH].into(),
            gone: VecDeque::with_capacity(MAX_GONE),
        }
    }

    /// The queue set, for the control path.
    pub fn queues(&mut self) -> &mut Q {
        &mut self.queues
    }

    /// This core's own counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn count_interrupt_wait(&mut self) {
        self.counters.nr_interrupt_waits += 1;
    }

    /// Returns whether another connection's completions fit the completion queue.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.links.len() < self.config.peers.into()
    }

    /// Takes the queue set's next queue pair in and posts its receives; it waits for a peer.
    pub(crate) fn add(&mut self, parts: Parts<M>) -> u16 {
        assert!(
            self.has_room(),
            "a connection beyond the completion queue's credits"
        );
        let index = u16::try_from(self.links.len()).expect("connections are counted in 16 bits");
        assert_ne!(index, NONE, "a number that stands for no connection");
        assert_eq!(
            parts.qp.0, index,
            "queue pairs are taken in the queue set's order"
        );
        let mut link = Link::new(&self.config, parts);
        link.post_receives(&mut self.queues);
        self.links.push(link);
        index
    }

    /// The connection `index` stands; false if it has failed while it was made.
    pub(crate) fn up(&mut self, index: u16, target: Target) -> bool {
        let link = &mut self.links[usize::from(index)];
        if link.state() != LinkState::Connecting {
            return false;
        }
        link.up(target);
        self.settle(index);
        true
    }

    /// Gives a queue pair to a peer, one that waits or whose peer is lost; nothing if none is left.
    /// A used one must be [renewed](Self::renew).
    pub(crate) fn claim(&mut self, peer: PeerId, name: PeerName) -> Option<(u16, verbs::Qpn)> {
        let free = |link: &Link<M>| link.owner.is_none() || link.is_over();
        let index = self.links.iter().position(free)?;
        let link = &mut self.links[index];
        let old = link.owner.replace(peer);
        if let Some(old) = old {
            if self.gone.len() == MAX_GONE {
                self.gone.pop_front();
            }
            let cause = link.cause().unwrap_or(LostCause::QpFailed);
            self.gone.push_back((old, link.peer, cause));
        }
        link.peer = name;
        let claimed = (u16::try_from(index).ok()?, link.qpn);
        old.into_iter()
            .chain([peer])
            .for_each(|peer| self.reroute(peer));
        Some(claimed)
    }

    /// Looks by which connections `peer` is reached now.
    fn reroute(&mut self, peer: PeerId) {
        let place = usize::from(peer.0);
        if place >= self.routes.len() {
            self.routes.resize(place + 1, Route::NONE);
        }
        let mut route = Route::NONE;
        for (index, link) in (0..).zip(&self.links) {
            if link.owner == Some(peer) {
                let only = route.rest == NONE;
                route = Route {
                    calls: if only { index } else { NONE },
                    rest: index,
                };
            }
        }
        self.routes[place] = route;
    }

    /// The memory of the connection `index`: its bus address and length.
    pub(crate) fn memory(&self, index: u16) -> (u64, u64) {
        self.links[usize::from(index)].memory()
    }

    /// Forgets what is left of requests on the connection `index`, whose queue pair is in RESET.
    pub(crate) fn forget(&mut self, index: u16) {
        self.queues.forget(self.links[usize::from(index)].qp);
    }

    /// Begins the connection `index` anew and posts its receives. Its queue pair is in INIT, its
    /// memory registered under `lkey`.
    pub(crate) fn renew(&mut self, index: u16, lkey: Lkey) {
        let at = usize::from(index);
        let mut link = self.links.remove(at).renewed(&self.config, lkey);
        link.post_receives(&mut self.queues);
        self.links.insert(at, link);
    }

    /// Takes the connection `index` from a peer that was never told of it; its queue pair is dead.
    pub(crate) fn release(&mut self, index: u16) {
        if let Some(peer) = self.links[usize::from(index)].owner.take() {
            self.reroute(peer);
        }
    }

    /// Finds out whether `peer` still answers: a connection without a sign of it soon is lost.
    pub(crate) fn probe(&mut self, peer: PeerId) {
        let queues = &mut self.queues;
        let theirs = self
            .links
            .iter_mut()
            .filter(|link| link.owner == Some(peer));
        theirs.for_each(|link| {
            link.probe();
            link.flush(queues);
        });
    }

    /// Returns whether none of the connections to `peer` touches memory any more.
    pub(crate) fn is_dead(&self, peer: PeerId) -> bool {
        let mut theirs = self.links.iter().filter(|link| link.owner == Some(peer));
        theirs.all(|link| link.state() == LinkState::Down)
    }

    /// Loses the connection `index`.
    pub(crate) fn fail(&mut self, index: u16, cause: LostCause) {
        self.links[usize::from(index)].fail(cause);
    }

    /// Loses every connection that has a peer.
    pub(crate) fn fail_all(&mut self, cause: LostCause) {
        let owned = self.links.iter_mut().filter(|link| link.owner.is_some());
        owned.for_each(|link| link.fail(cause));
    }

    /// Loses every connection to `peer`.
    pub(crate) fn fail_peer(&mut self, peer: PeerId, cause: LostCause) {
        let theirs = self
            .links
            .iter_mut()
            .filter(|link| link.owner == Some(peer));
        theirs.for_each(|link| link.fail(cause));
    }

    /// The queue pair of the connection `index` is dead.
    pub(crate) fn dead(&mut self, index: u16) {
        self.links[usize::from(index)].dead();
    }

    /// The next connection whose queue pair must be killed: its index, its peer, its queue pair,
    /// and why.
    pub(crate) fn failing(&self) -> Option<(u16, Option<PeerId>, verbs::Qpn, Option<LostCause>)> {
        let index = self
            .links
            .iter()
            .position(|link| link.state() == LinkState::Failing)?;
        let link = &self.links[index];
        Some((
            u16::try_from(index).ok()?,
            link.owner,
            link.qpn,
            link.cause(),
        ))
    }

    /// The connection with this queue pair number.
    pub(crate) fn by_qpn(&self, qpn: verbs::Qpn) -> Option<u16> {
        self.links
            .iter()
            .position(|link| link.qpn == qpn)
            .and_then(|index| u16::try_from(index).ok())
    }

    /// The connection to `peer`; with several, the one that all but calls go by.
    fn link(&mut self, peer: PeerId) -> Result<(&mut Link<M>, &mut Q), Error> {
        let index = self.route(peer).rest;
        match self.links.get_mut(usize::from(index)) {
            Some(link) => Ok((link, &mut self.queues)),
            None => Err(gone(&self.gone, peer)),
        }
    }

    #[inline]
    fn route(&self, peer: PeerId) -> Route {
        let route = self.routes.get(usize::from(peer.0));
        route.copied().unwrap_or(Route::NONE)
    }

    /// The peer's name.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`].
    pub fn name(&mut self, peer: PeerId) -> Result<PeerName, Error> {
        Ok(self.link(peer)?.0.peer)
    }

    /// The state of the connection to `peer`.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`] when there never was one.
    pub fn state(&mut self, peer: PeerId) -> Result<LinkState, Error> {
        Ok(self.link(peer)?.0.state())
    }

    /// Returns the reason why `peer` is lost, if it is and is remembered.
    #[must_use]
    pub fn cause(&self, peer: PeerId) -> Option<LostCause> {
        match self.links.iter().rfind(|link| link.owner == Some(peer)) {
            Some(link) => link.cause(),
            None => {
                let gone = self.gone.iter().find(|(gone, ..)| *gone == peer);
                gone.map(|&(_, _, cause)| cause)
            }
        }
    }

    /// The counters of each connection.
    pub fn link_counters(&self) -> impl Iterator<Item = (PeerId, PeerName, &LinkCounters)> {
        self.links
            .iter()
            .filter_map(|link| Some((link.owner?, link.peer, link.counters())))
    }

    /// Takes up to a batch of completions and deals with them. Returns how many there were.
    pub fn poll(&mut self, now: Instant) -> usize {
        let taken = match self.queues.poll(&mut self.batch) {
            Ok(taken) => taken,
            Err(error) => return self.poll_failed(&error),
        };
        let Self {
            batch,
            links,
            queues,
            servers,
            counters,
            ..
        } = self;
        counters.nr_cqe += taken as u64;
        let mut left = &batch[..taken];
        while let [completion, later @ ..] = left {
            left = later;
            let Some(link) = links.get_mut(usize::from(completion.qp.0)) else {
                counters.nr_stray_cqe += 1;
                continue;
            };
            link.on_completion(queues, completion, now, servers);
            // Completions of one connection come in runs: each run shares a doorbell.
            if link.is_due() && later.first().is_none_or(|next| next.qp != completion.qp) {
                settle(link, queues, servers);
            }
        }
        taken
    }

    /// The queue can't be polled, or has told nonsense. Returns how many completions were taken.
    #[cold]
    fn poll_failed(&mut self, error: &verbs::Error) -> usize {
        if matches!(error, verbs::Error::CqFailed) {
            self.failed = true;
            let links = self.links.iter_mut();
            links.for_each(|link| link.fail(LostCause::Device));
            return 0;
        }
        log::error!("{error}");
        self.counters.nr_stray_cqe += 1;
        1
    }

    /// Settles the connection `index`, by the function of this name.
    fn settle(&mut self, index: u16) {
        let link = &mut self.links[usize::from(index)];
        settle(link, &mut self.queues, &mut self.servers);
    }

    /// Asks for an interrupt at the next completion.
    pub fn arm(&mut self) {
        self.queues.arm(false);
    }

    /// Looks at every deadline.
    pub fn tick(&mut self, now: Instant) {
        for index in 0..self.links.len() {
            self.links[index].tick(now);
            self.settle(u16::try_from(index).expect("connections are counted in 16 bits"));
        }
        self.turns.tick(now);
    }

    /// Of several connections to a peer the one whose turn it is: they take turns, but for those
    /// without a free slot.
    fn next_lane(&mut self, peer: PeerId) -> u16 {
        let lanes = (0..).zip(&self.links);
        let ours = lanes.filter(|(_, link)| link.owner == Some(peer));
        let next =
            ours.min_by_key(|(index, link)| (!link.has_free_call(), *index <= self.last_lane));
        self.last_lane = next.map_or(NONE, |(index, _)| index);
        self.last_lane
    }

    /// Keeps a waker to be woken when a slot to `peer` becomes free.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] when too many wait already, [`Error::PeerLost`],
    /// [`Error::NotConnected`].
    pub fn wait_for_room(&mut self, peer: PeerId, waker: &Waker) -> Result<(), Error> {
        self.link(peer)?;
        let mut lanes = self
            .links
            .iter_mut()
            .filter(|link| link.owner == Some(peer));
        lanes.try_for_each(|link| link.wait_for_room(waker))
    }

    /// Returns whether whoever holds `ticket`, or none yet, may start something: nobody waits who
    /// came before.
    #[inline]
    pub(crate) fn is_turn(&self, peer: PeerId, room: Room, ticket: Option<Ticket>) -> bool {
        self.turns.is_turn(peer, room, ticket)
    }

    /// Keeps a waker to be woken when its turn has come and a slot may be free.
    pub(crate) fn wait_for_turn(
        &mut self,
        line: (PeerId, Room),
        ticket: Option<Ticket>,
        waker: &Waker,
    ) -> Result<Ticket, Error> {
        let (peer, room) = line;
        let ticket = match self.turns.wait(line, ticket, waker) {
            Ok(ticket) => ticket,
            Err(TooMany { limit }) => {
                let peer = self.name(peer)?;
                return Err(Error::Overloaded { peer, limit });
            }
        };
        if self.turns.is_turn(peer, room, Some(ticket))
            && let Err(error) = self.wait_for_room(peer, waker)
        {
            self.turns.leave(peer, room, ticket);
            return Err(error);
        }
        Ok(ticket)
    }

    /// Gives a place up: whoever had it has started, or waits no more.
    pub(crate) fn leave(&mut self, peer: PeerId, room: Room, ticket: Ticket) {
        self.turns.leave(peer, room, ticket);
    }

    /// Sends a request and rings the doorbell; nothing if no slot or credit is free just now.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`], [`Error::TooManyPieces`], [`Error::PeerLost`], [`Error::NotConnected`].
    #[inline]
    pub fn start_call(
        &mut self,
        peer: PeerId,
        call: &Call<'_>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        self.expect_completions();
        let lane = self.route(peer).calls;
        match self.links.get_mut(usize::from(lane)) {
            Some(link) => link.start_call(&mut self.queues, (lane, call), now, deadline),
            None => self.start_call_by_turns(peer, call, now, deadline),
        }
    }

    /// Starts a call to a peer that is not reached by just one connection.
    #[inline(never)]
    fn start_call_by_turns(
        &mut self,
        peer: PeerId,
        call: &Call<'_>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<CallId>, Error> {
        let lane = self.next_lane(peer);
        match self.links.get_mut(usize::from(lane)) {
            Some(link) => link.start_call(&mut self.queues, (lane, call), now, deadline),
            None => Err(gone(&self.gone, peer)),
        }
    }

    /// Sends a message that wants no answer and rings the doorbell; nothing if there is no room
    /// just now.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`], [`Error::NoOneWays`], [`Error::PeerLost`], [`Error::NotConnected`].
    pub fn start_one_way(
        &mut self,
        peer: PeerId,
        kind: u16,
        body: &[u8],
    ) -> Result<Option<()>, Error> {
        let (link, queues) = self.link(peer)?;
        let sent = link.start_one_way(queues, kind, body)?;
        link.flush(queues);
        Ok(sent)
    }

    /// Looks whether a call has ended; its reply is copied into `into`, and the id means nothing
    /// afterwards.
    #[inline]
    pub fn poll_call(
        &mut self,
        peer: PeerId,
        id: CallId,
        waker: &Waker,
        into: &mut [u8],
    ) -> Poll<Result<Reply, Error>> {
        match self.links.get_mut(usize::from(id.link)) {
            Some(link) if link.has_call(id) => link.poll_call(&mut self.queues, id, waker, into),
            _ => Poll::Ready(Err(self.call_is_gone(peer, id))),
        }
    }

    /// The error of a call whose connection another peer has now.
    #[cold]
    fn call_is_gone(&self, peer: PeerId, id: CallId) -> Error {
        let link = self.links.get(usize::from(id.link));
        let still = link.is_some_and(|link| link.owner == Some(peer));
        assert!(!still, "a call's end is taken once");
        gone(&self.gone, peer)
    }

    /// The waiter of a call is gone.
    pub fn abandon_call(&mut self, id: CallId) {
        if let Some(link) = self.links.get_mut(usize::from(id.link)) {
            link.abandon_call(&mut self.queues, id);
        }
    }

    /// Starts a READ or WRITE; nothing if no slot is free. The device sees it at the next
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`], [`Error::NotConnected`].
    pub fn start_op(
        &mut self,
        peer: PeerId,
        what: OneSided,
        (remote, local): (RemoteAddr, Sge),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<OpId>, Error> {
        let (link, queues) = self.link(peer)?;
        link.start_op(queues, (what, None), (remote, local), now, deadline)
    }

    /// Starts a READ or WRITE that nobody polls for: its end comes once by
    /// [`take_ended`](Self::take_ended), with this tag. The device sees it at the next
    /// [`flush`](Self::flush). Nothing if no slot is free.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`], [`Error::NotConnected`]; no end comes then.
    pub fn start_tagged(
        &mut self,
        peer: PeerId,
        (what, tag): (OneSided, u64),
        (remote, local): (RemoteAddr, Sge),
        now: Instant,
        deadline: Instant,
    ) -> Result<Option<()>, Error> {
        let (link, queues) = self.link(peer)?;
        let started = link.start_op(queues, (what, Some(tag)), (remote, local), now, deadline)?;
        Ok(started.map(drop))
    }

    /// Takes the next end of an access that was started with a tag.
    pub fn take_ended(&mut self) -> Option<AccessEnd> {
        self.links.iter_mut().find_map(Link::take_ended)
    }

    /// Rings the doorbell for everything posted to `peer`.
    pub fn flush(&mut self, peer: PeerId) {
        if let Ok((link, queues)) = self.link(peer) {
            link.flush(queues);
        }
        self.expect_completions();
    }

    /// Something is under way: the poller does better to poll than to wait for an interrupt.
    fn expect_completions(&mut self) {
        self.started = true;
        if self.poller.is_some() {
            self.wake_poller();
        }
    }

    #[inline(never)]
    /// Lets the poller look, though nothing was started.
    pub(crate) fn rouse(&mut self) {
        self.started = true;
        self.wake_poller();
    }

    /// Returns whether the completion queue failed: nothing ends here any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    fn wake_poller(&mut self) {
        if let Some(poller) = self.poller.take() {
            poller.wake();
        }
    }

    /// Ready when something was started since it was last so.
    pub(crate) fn poll_started(&mut self, waker: &Waker) -> Poll<()> {
        if core::mem::take(&mut self.started) {
            return Poll::Ready(());
        }
        self.poller = Some(waker.clone());
        Poll::Pending
    }

    /// Looks whether an access has ended; the id means nothing afterwards.
    pub fn poll_op(&mut self, peer: PeerId, id: OpId, waker: &Waker) -> Poll<Result<(), Error>> {
        match self.link(peer) {
            Ok((link, _)) => link.poll_op(id, waker),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// The waiter of an access is gone; the access itself goes on.
    pub fn abandon_op(&mut self, peer: PeerId, id: OpId) {
        if let Ok((link, _)) = self.link(peer) {
            link.abandon_op(id);
        }
    }

    #[cfg(test)]
    pub(crate) fn test_link(&mut self, index: usize) -> (&mut Link<M>, &mut Q) {
        (&mut self.links[index], &mut self.queues)
    }
}

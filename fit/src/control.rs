//! The control task: finding the path to a peer, the CM exchange, and what becomes of lost
//! connections.
//!
//! ```text
//!  caller:  Path ──SA answers──► Asked ──REP, proven──► Up      callee:  (REQ, proven) ──► Replied ──RTU, proven──► Up
//!             ▲ └─again─┘          │ └─again─┘                                                │ └─again─┘
//!             └──── REJ, no answer ┘                                                          └── given up: lost
//! ```
//!
//! Every message is repeated with a back-off until its answer comes, so the two sides may come up
//! in any order. If both sides call each other at once, the one with the smaller GID stays the
//! caller. What decides whom to call is `membership`; this task carries its actions out.

mod attempt;
mod cm;
mod lost;
mod pages;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hal::{Duration, Instant, Platform};
use mad::Mad;
use mutants::Mutant;
use verbs::{Address, Device, DeviceEvent, Failure, PKey, PortInfo, PortState};

use crate::group::Group;
use crate::membership::proof::{Nonce, Rng};
use crate::membership::{Action, Event, Limiter};
use crate::peers::{ConnectOrigin, ConnectState};
use crate::shared::{Inner, TICK};
use crate::{LostCause, PeerId};
use attempt::Attempt;

/// Management datagrams that are dealt with before others have their turn: a port full of them must
/// not keep this task from all else.
const MADS_PER_TURN: usize = 16;
/// Time between two looks at the port while the subnet manager answers nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Requests whose nonces are remembered, so that they can't be played again; then there is another
/// challenge.
const MAX_NONCES: usize = 256;

pub(crate) struct Control<D: Device, P: Platform> {
    inner: Arc<Inner<D, P>>,
    port: Option<PortInfo>,
    attempts: Vec<Attempt>,
    rng: Rng,
    /// Nonces of requests that were taken up under this challenge.
    nonces: Vec<Nonce>,
    /// The challenge that requests must be proven for.
    challenge: u64,
    limiter: Limiter,
    next_port: Instant,
    group: Option<Group<D, P>>,
    /// Queue pairs at which peers' page paths end.
    lent: Option<D::Queues>,
    left: bool,
    /// Lost members that are not reported yet, and why they are lost.
    lost: Vec<(PeerId, LostCause)>,
}

impl<D: Device, P: Platform> Control<D, P> {
    pub(crate) fn new(inner: Arc<Inner<D, P>>) -> Self {
        let now = inner.platform.now();
        let (rng, group, lent) = {
            let mut start = inner.start.lock();
            (start.rng.fork(), start.group.take(), start.lent.take())
        };
        let challenge = inner.membership.lock().me().incarnation.0;
        Self {
            inner,
            port: None,
            attempts: Vec::new(),
            rng,
            nonces: Vec::with_capacity(MAX_NONCES),
            challenge,
            limiter: Limiter::new(now),
            next_port: now,
            group,
            lent,
            left: false,
            lost: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.take_events();
            self.look_at_port().await;
            if let Some(port) = self.port {
                self.look_at_members(&port).await;
                self.begin_wanted(&port).await;
                self.begin_pages(&port);
                let bound = if Mutant::DatagramsWithoutBound.on() {
                    usize::MAX
                } else {
                    MADS_PER_TURN
                };
                for _ in 0..bound {
                    let Some((from, mad)) = self.inner.device.take_mad(self.inner.config.port)
                    else {
                        break;
                    };
                    self.on_mad(&port, from, &mad).await;
                }
                self.step_attempts(&port).await;
            }
            if self.inner.cores.iter().any(|core| core.lock().has_failed()) {
                self.inner
                    .end(verbs::Error::Failed(Failure::CompletionQueue));
            }
            self.bury_lost().await;
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
                    if let Some(group) = &mut self.group {
                        group.on_failed(qpn);
                    }
                    self.inner
                        .fail_pages(|link| link.qpn == qpn, LostCause::QpFailed);
                    for core in &self.inner.cores {
                        let mut core = core.lock();
                        if let Some(link) = core.by_qpn(qpn) {
                            core.fail(link, LostCause::QpFailed);
                        }
                    }
                }
                // A completion queue serves all connections of a core, and a node without that core
                // would be none.
                DeviceEvent::CqFailed { .. } => {
                    log::error!("{event:?}");
                    self.inner
                        .end(verbs::Error::Failed(Failure::CompletionQueue));
                }
                DeviceEvent::DeviceFailed => {
                    log::error!("{event:?}");
                    self.inner.end(verbs::Error::Failed(Failure::Firmware));
                }
                other => log::debug!("{other:?}"),
            }
        }
    }

    /// Returns whether the subnet manager seems to be no longer where it was: it answers nothing,
    /// and no event has told why.
    fn doubts_manager(&self) -> bool {
        let ignored = self.group.as_ref().is_some_and(Group::is_ignored);
        let mut attempts = self.attempts.iter();
        let doubts = ignored || attempts.any(Attempt::is_ignored);
        doubts && !Mutant::ManagerNeverDoubted.on()
    }

    async fn look_at_port(&mut self) {
        let now = self.inner.platform.now();
        if now < self.next_port || (self.port.is_some() && !self.doubts_manager()) {
            return;
        }
        match self.inner.device.port(self.inner.config.port).await {
            Ok(port) if self.port == Some(port) => self.next_port = now + LOOK_AGAIN,
            Ok(port) if port.state == PortState::Active && port.address.is_set() => {
                self.port = Some(port);
                self.next_port = now + LOOK_AGAIN;
                self.inner
                    .membership
                    .lock()
                    .set_port(port.gid, port.address);
                if let Some(group) = &mut self.group {
                    group.leave(now);
                }
            }
            Ok(_) => {
                self.port = None;
                self.next_port = now + Duration::from_millis(50);
            }
            Err(error) => {
                log::warn!("port {}: {error}", self.inner.config.port);
                self.next_port = now + Duration::from_millis(500);
            }
        }
    }

    /// Hears and makes announcements.
    async fn look_at_members(&mut self, port: &PortInfo) {
        let now = self.inner.platform.now();
        let Some(group) = &mut self.group else { return };
        let heard = group.hear();
        group
            .mend(&*self.inner.device, self.inner.config.port, now)
            .await;
        if group.is_join_due(now) {
            let transaction = self.rng.number() >> 32;
            let join = group.join(port, transaction, now);
            self.send(port.manager, &join).await;
        }
        for heard in heard {
            self.on_member_event(Event::Heard(heard.from, &heard.bytes));
        }
        if !self.is_leaving() {
            self.on_member_event(Event::Tick);
        } else if !core::mem::replace(&mut self.left, true) {
            self.on_member_event(Event::Leave);
        }
    }

    /// Lets the membership decide, and carries out what it says.
    fn on_member_event(&mut self, event: Event<'_>) {
        let now = self.inner.platform.now();
        let actions = self.inner.membership.lock().on(event, now);
        for action in actions {
            match action {
                Action::Announce(bytes) => {
                    if let Some(group) = &mut self.group {
                        group.send(&bytes);
                    }
                }
                Action::Call(name) => {
                    let line = self
                        .inner
                        .peers
                        .lock()
                        .line_for(name, ConnectOrigin::Membership);
                    if line.is_none() {
                        log::error!("{name}: all numbers of peers are used up");
                        let (gid, refused) = (name.gid, true);
                        self.on_member_event(Event::CallFailed { gid, refused });
                    }
                }
                Action::Probe(peer) => {
                    let cores = self.inner.cores.iter();
                    cores.for_each(|core| core.lock().probe(peer));
                }
                Action::Drop(peer) => {
                    self.inner.fail_peer(peer, LostCause::PeerLeft);
                }
                Action::Tell(change) => self.inner.tell(change),
            }
        }
    }

    /// Returns whether this node has said that it goes: it makes no connection any more.
    fn is_leaving(&self) -> bool {
        self.inner.leaving.load(Ordering::Acquire)
    }

    fn number(&mut self) -> u32 {
        u32::try_from(self.rng.number() >> 32).expect("32 bits")
    }

    fn set_standing(&self, peer: PeerId, standing: ConnectState) {
        if let Some(line) = self.inner.peers.lock().get_mut(peer) {
            line.standing = standing;
        }
    }

    async fn send(&self, to: Address, mad: &Mad) {
        let port = self.inner.config.port;
        if let Err(error) = self
            .inner
            .device
            .send_mad(port, to, PKey::DEFAULT, mad)
            .await
        {
            log::warn!("management datagram to {to}: {error}");
        }
    }
}

//! The connections of page paths: begun for this node's, lent to peers, buried.
//!
//! They are made as all connections are. On the caller's side the queue pair is a page queue; on
//! the other it is a plain one in the caller's protection domain, on which nothing is ever posted:
//! the HCA answers by itself.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::Platform;
use mad::cm::RejectReason;
use verbs::{Access, Device, PortInfo, QpConfig, QpKind};

use super::Control;
use super::attempt::{Attempt, End};
use crate::pages::{PageLink, PageState};
use crate::peers::{ConnectState, PeerLine};
use crate::{Incarnation, LostCause, PeerName};

impl<D: Device, P: Platform> Control<D, P> {
    /// Makes attempts for the page paths that are wanted and have none.
    pub(super) fn begin_pages(&mut self, port: &PortInfo) {
        let wanted =
            |link: &&Arc<PageLink>| link.lent.is_none() && link.state() == PageState::Wanted;
        let links: Vec<_> = self
            .inner
            .pages
            .lock()
            .iter()
            .filter(wanted)
            .cloned()
            .collect();
        for link in links {
            if self.attempts.iter().any(|attempt| attempt.is_of(&link)) {
                continue;
            }
            let line = self.inner.peers.lock().get(link.peer).copied();
            if self.is_leaving() || line.is_none_or(|line| line.standing != ConnectState::Up) {
                link.fail(LostCause::QpFailed);
                continue;
            }
            let ours = self.side(port, link.lane, link.qpn);
            let (peer, name, now) = (link.peer, link.name, self.inner.platform.now());
            let mut attempt = Attempt::new(peer, name, End::Pages(link), ours, now);
            attempt.challenge = self.inner.membership.lock().challenge(name.gid);
            self.attempts.push(attempt);
        }
    }

    /// Makes a queue pair for a page path of the member `name` to end at; returns the attempt's
    /// index.
    pub(super) async fn lend(
        &mut self,
        port: &PortInfo,
        name: PeerName,
        (lane, incarnation): (u16, Incarnation),
    ) -> Result<usize, RejectReason> {
        let peer = {
            let peers = self.inner.peers.lock();
            let is_it = |line: &PeerLine| {
                let same = line
                    .member
                    .is_some_and(|(member, _)| member.incarnation == incarnation);
                same && line.name == name && line.standing == ConnectState::Up
            };
            let member = peers.iter().find(|(_, line)| is_it(line));
            // It may know of its connections before this side does, and calls again.
            member.ok_or(RejectReason::STALE_CONNECTION)?.0
        };
        let lent = |link: &&Arc<PageLink>| link.lent.is_some();
        let count = self.inner.pages.lock().iter().filter(lent).count();
        let config = &self.inner.config;
        let queues = self.lent.as_mut().ok_or(RejectReason::CONSUMER_DEFINED)?;
        if count >= config.page_paths.into() {
            return Err(RejectReason::NO_QP);
        }
        let pair = QpConfig {
            kind: QpKind::ReliableConnection,
            domain: self.inner.domain(peer),
            port: config.port,
            send_depth: 1,
            receive_depth: 1,
            send_sge: 1,
            receive_sge: 1,
            inline: 0,
            remote_access: Access {
                local_write: true,
                remote_read: true,
                remote_write: true,
            },
        };
        let made = self.inner.device.create_qp(queues, &pair).await;
        let (slot, qpn) = made.map_err(|error| {
            log::error!("{name}: no queue pair for its pages: {error}");
            RejectReason::NO_RESOURCES
        })?;
        let link = Arc::new(PageLink::new(peer, name, lane, qpn, Some(slot)));
        self.inner.pages.lock().push(link.clone());
        let ours = self.side(port, lane, qpn);
        let now = self.inner.platform.now();
        self.attempts
            .push(Attempt::new(peer, name, End::Pages(link), ours, now));
        Ok(self.attempts.len() - 1)
    }

    /// Kills the queue pairs of lost page paths and takes away those whose owners are gone; whether
    /// any was killed.
    pub(super) async fn bury_pages(&mut self) -> bool {
        let links = self.inner.pages.lock().clone();
        let mut any = false;
        for link in links {
            if link.state() == PageState::Failing {
                if !self.kill(&link).await {
                    return false;
                }
                any = true;
            }
            if link.state() == PageState::Dead && self.take_away(&link).await {
                let mut pages = self.inner.pages.lock();
                pages.retain(|other| !Arc::ptr_eq(other, &link));
            }
        }
        any
    }

    async fn kill(&mut self, link: &Arc<PageLink>) -> bool {
        if !self.kill_pair(link.qpn).await {
            return false;
        }
        link.dead();
        let cause = link.cause();
        self.end_attempt(|attempt| attempt.is_of(link), cause).await;
        if link.loses_peer() {
            self.inner.fail_peer(link.peer, cause);
        }
        true
    }

    /// Takes a dead queue pair away; false if its owner has it still.
    async fn take_away(&mut self, link: &PageLink) -> bool {
        let device = &self.inner.device;
        let taken = match (link.lent, &mut self.lent) {
            (Some(slot), Some(queues)) => device.destroy_qp(queues, slot).await,
            (Some(_), None) => return true,
            (None, _) => {
                let queue = {
                    let mut parking = self.inner.parking.lock();
                    let at = parking.iter().position(|(qpn, _)| *qpn == link.qpn);
                    at.map(|at| parking.swap_remove(at).1)
                };
                let Some(queue) = queue else { return false };
                device.destroy_pages(queue).await
            }
        };
        if let Err(error) = taken {
            log::error!("{}: {error}", link.qpn);
        }
        true
    }
}

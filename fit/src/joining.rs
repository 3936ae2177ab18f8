//! The asynchronous face of connecting and of the membership.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hal::{Duration, Platform};
use verbs::{Device, Domain};

use crate::peers::{ConnectOrigin, ConnectState};
use crate::{
    Change, Error, Fit, Handler, LostCause, MembershipCounters, PeerId, PeerName, PeerSpec, Role,
    View,
};

/// Time between two looks of a task that waits for a connection.
const LOOK: Duration = Duration::from_millis(5);

impl<D: Device, P: Platform> Fit<D, P> {
    /// Connects to a peer on every core, in whatever order the two come up.
    /// [`control`](Self::control) must run.
    ///
    /// # Errors
    ///
    /// [`Error::NoConnection`] names the peer when
    /// [`Config::connect_timeout`](crate::Config::connect_timeout) is over; [`Error::Refused`] when
    /// it speaks another version or does not hold the cluster's key; [`Error::PeerLost`] when this
    /// node [leaves](Self::leave).
    pub async fn connect(&self, peer: PeerSpec) -> Result<PeerId, Error> {
        let began = self.0.platform.now();
        let lost = |cause| Error::PeerLost {
            peer,
            cause,
            waiting: None,
        };
        let line = self.0.peers.lock().line_for(peer, ConnectOrigin::User);
        let id = line.ok_or(lost(LostCause::QpFailed))?;
        loop {
            if self.0.leaving.load(Ordering::Acquire) {
                return Err(lost(LostCause::WeLeft));
            }
            let waited = self.0.platform.now().since(began);
            let standing = self.0.peers.lock().get(id).map(|line| line.standing);
            match standing {
                Some(ConnectState::Up) => return Ok(id),
                Some(ConnectState::Refused(reason)) => return Err(Error::Refused { peer, reason }),
                Some(ConnectState::Lost | ConnectState::Idle) | None => {
                    return Err(lost(LostCause::QpFailed));
                }
                Some(ConnectState::Trying(step)) if waited >= self.0.config.connect_timeout => {
                    let hearsay = self.0.peers.lock().get_mut(id).and_then(|line| {
                        line.wish = ConnectOrigin::Membership;
                        line.hearsay.take()
                    });
                    return Err(match hearsay {
                        Some(reason) => Error::Refused { peer, reason },
                        None => Error::NoConnection { peer, waited, step },
                    });
                }
                Some(ConnectState::Trying(_)) => self.0.platform.sleep(LOOK).await,
            }
        }
    }

    /// Waits until a node of this role is a member; the one with the smallest GID if there are
    /// several.
    ///
    /// # Errors
    ///
    /// [`Error::NoMember`] when [`Config::connect_timeout`](crate::Config::connect_timeout) is
    /// over.
    pub async fn find(&self, role: Role) -> Result<PeerId, Error> {
        let began = self.0.platform.now();
        loop {
            let view = self.view();
            let found = view
                .members
                .iter()
                .find(|(_, member)| member.name.role == role);
            if let Some(&(peer, _)) = found {
                return Ok(peer);
            }
            let waited = self.0.platform.now().since(began);
            if waited >= self.0.config.connect_timeout {
                return Err(Error::NoMember { role, waited });
            }
            self.0.platform.sleep(LOOK).await;
        }
    }

    /// Returns the members: this node, and all that it is connected to.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.membership.lock().view()
    }

    /// Returns the counters of the membership.
    #[must_use]
    pub fn membership_counters(&self) -> MembershipCounters {
        *self.0.membership.lock().counters()
    }

    /// The protection domain that what is registered for `peer` must lie in.
    #[must_use]
    pub fn domain(&self, peer: PeerId) -> Domain {
        self.0.domain(peer)
    }

    /// Every peer that is or was connected, or is being connected to; of the lost ones only the
    /// latest.
    #[must_use]
    pub fn peers(&self) -> Vec<(PeerId, PeerName)> {
        let peers = self.0.peers.lock();
        peers.iter().map(|(peer, line)| (peer, line.name)).collect()
    }

    /// Waits for the next change in who is there, and returns each once. There is one waiter.
    pub async fn next_change(&self) -> Change {
        loop {
            let change = self.0.changes.lock().pop_front();
            match change {
                Some(change) => return change,
                None => self.0.platform.sleep(LOOK * 4).await,
            }
        }
    }

    /// Tells `handler` of each member that joins and of each that is lost; spawned by a node that
    /// serves. It never ends.
    pub async fn watch<H: Handler>(&self, handler: &H) {
        loop {
            match self.next_change().await {
                Change::Joined(peer, member) => handler.peer_joined(peer, &member),
                Change::Lost(peer, _) => handler.peer_lost(peer, self.lost_cause(peer)),
            }
        }
    }

    /// Returns the reason why `peer` is lost; `None` if it is not, or was never connected. The
    /// latest lost peers are remembered.
    #[must_use]
    pub fn lost_cause(&self, peer: PeerId) -> Option<LostCause> {
        let mut cores = self.0.cores.iter();
        cores.find_map(|core| core.lock().cause(peer))
    }

    /// Leaves: the cluster is told, every connection ends, and each peer is told by a DREQ. No node
    /// is admitted any more.
    pub fn leave(&self) {
        self.0.leaving.store(true, Ordering::Release);
        for core in &self.0.cores {
            core.lock().fail_all(LostCause::WeLeft);
        }
        self.0.fail_pages(|_| true, LostCause::WeLeft);
    }
}

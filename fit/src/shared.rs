//! State that the tasks of a node share.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use hal::{Duration, Platform};
use mutants::Mutant;
use verbs::{Device, Domain, Region};

use crate::config::Config;
use crate::engine::Engine;
use crate::group::Group;
use crate::membership::Membership;
use crate::membership::proof::Rng;
use crate::pages::{OrphanedQueues, PageLink};
use crate::peers::Peers;
use crate::profile::Profile;
use crate::sync::Mutex;
use crate::{Change, Domains, LostCause, PeerId};

/// Time between two rounds of the control task, in which it checks deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// Changes that are kept for a watcher.
const MAX_CHANGES: usize = 1024;

pub(crate) type CoreEngine<D, P> = Engine<<D as Device>::Queues, <P as Platform>::Buffer>;
pub(crate) type CoreMutex<D, P> = Mutex<CoreEngine<D, P>>;

pub(crate) struct Inner<D: Device, P: Platform> {
    pub(crate) device: Arc<D>,
    pub(crate) platform: P,
    pub(crate) config: Config,
    pub(crate) cores: Vec<CoreMutex<D, P>>,
    pub(crate) profiles: Vec<Profile>,
    pub(crate) peers: Mutex<Peers>,
    /// The registrations of the connections' buffers, by core and connection.
    pub(crate) regions: Mutex<BTreeMap<(u16, u16), Region>>,
    /// The page paths of both sides that are not over.
    pub(crate) pages: Mutex<Vec<Arc<PageLink>>>,
    pub(crate) parking: Arc<OrphanedQueues<D::Pages>>,
    pub(crate) next_page_lane: AtomicU16,
    pub(crate) membership: Mutex<Membership>,
    pub(crate) changes: Mutex<VecDeque<Change>>,
    pub(crate) leaving: AtomicBool,
    /// The node has ended, and why.
    pub(crate) is_over: AtomicBool,
    pub(crate) ended: Mutex<Option<verbs::Error>>,
    pub(crate) start: Mutex<Start<D, P>>,
}

/// Initial state of the control task.
pub(crate) struct Start<D: Device, P: Platform> {
    pub(crate) rng: Rng,
    pub(crate) group: Option<Group<D, P>>,
    /// The queue set of the queue pairs that peers' page paths end at, if any are accepted.
    pub(crate) lent: Option<D::Queues>,
}

impl<D: Device, P: Platform> Inner<D, P> {
    /// The domain of a peer's connections.
    pub(crate) fn domain(&self, peer: PeerId) -> Domain {
        match self.config.domains {
            Domains::Shared => Domain::default(),
            Domains::PerPeer if Mutant::OneDomainForAll.on() => Domain(1),
            Domains::PerPeer => Domain(1 + u32::from(peer.0)),
        }
    }

    /// Loses every connection to `peer`.
    pub(crate) fn fail_peer(&self, peer: PeerId, cause: LostCause) {
        for core in &self.cores {
            core.lock().fail_peer(peer, cause);
        }
        self.fail_pages(|link| link.peer == peer, cause);
    }

    /// Ends the node: its device can't be trusted to let go of memory, or can't serve it.
    /// Connections are lost, those who wait and lent nothing are told, and [`Fit::run_core`] ends
    /// with the error. What was lent stays lent.
    pub(crate) fn end(&self, error: verbs::Error) {
        self.ended.lock().get_or_insert(error);
        self.is_over.store(true, Ordering::Release);
        self.fail_pages(|_| true, LostCause::Device);
        for core in &self.cores {
            let mut core = core.lock();
            core.fail_all(LostCause::Device);
            core.rouse();
        }
    }

    /// Returns whether the node has [ended](Self::end).
    pub(crate) fn has_ended(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Looks at every deadline, each few milliseconds, whatever else there is to do.
    pub(crate) async fn watch_deadlines(&self) {
        loop {
            let now = self.platform.now();
            self.cores.iter().for_each(|core| core.lock().tick(now));
            self.platform.sleep(TICK).await;
        }
    }

    /// Keeps a change for whoever watches.
    pub(crate) fn tell(&self, change: Change) {
        let mut changes = self.changes.lock();
        if changes.len() == MAX_CHANGES {
            // Nobody watches, so nobody misses it.
            changes.pop_front();
        }
        changes.push_back(change);
    }

    /// Loses every page path of these.
    pub(crate) fn fail_pages(&self, which: impl Fn(&PageLink) -> bool, cause: LostCause) {
        let pages = self.pages.lock();
        let theirs = pages.iter().filter(|link| which(link));
        theirs.for_each(|link| link.fail(cause));
    }
}

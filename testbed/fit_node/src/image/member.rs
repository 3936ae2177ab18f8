//! The member: its handler of requests, and of other members' joins and losses.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use fit::{Exchange, Handler, PeerId};
use fit_node::payload::{ECHO, TALLY};
use node::Core;
use spin::Mutex;

use super::call::Callers;
use super::echo::Echo;
use super::events;

/// Answers, tells, and has others called.
pub(crate) struct Member {
    core: Core,
    echo: Echo,
    callers: Arc<Callers>,
    /// Members by peer. The lock is a leaf: no other is taken under it.
    peers: Mutex<BTreeMap<PeerId, fit::Member>>,
}

impl Member {
    pub(crate) fn new(core: Core, callers: Arc<Callers>) -> Self {
        Self {
            core,
            echo: Echo::default(),
            callers,
            peers: Mutex::default(),
        }
    }
}

impl Handler for Member {
    async fn handle(&self, from: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        match kind {
            ECHO => self.echo.answer(from, request, exchange),
            TALLY => {
                let tally = self.echo.tally(from, &self.core).encode();
                let into = exchange.message().get_mut(..tally.len());
                let len = into.map_or(0, |into| {
                    into.copy_from_slice(&tally);
                    tally.len()
                });
                exchange.set_len(len);
            }
            _ => exchange.set_len(0),
        }
    }

    fn peer_joined(&self, peer: PeerId, member: &fit::Member) {
        self.peers.lock().insert(peer, *member);
        events::tell_joined(member);
        self.callers.start(peer, member.name);
    }

    fn peer_lost(&self, peer: PeerId, cause: Option<fit::LostCause>) {
        let member = self.peers.lock().remove(&peer);
        self.echo.forget(peer);
        if let Some(member) = member {
            events::tell_lost(&member, cause);
        }
    }
}

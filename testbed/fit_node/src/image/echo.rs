//! The echo service: checks and counts each request, by caller.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use fit::{Exchange, PeerId};
use fit_node::payload::{ECHO, MAX_BULK, TestRequest};
use fit_node::tally::CalleeTally;
use node::Core;
use spin::Mutex;

/// Echo service, with its tally of each caller.
#[derive(Default)]
pub(crate) struct Echo(Mutex<State>);

#[derive(Default)]
struct State {
    seen: BTreeMap<PeerId, CalleeTally>,
    /// A request, body and bulk; then the bulk of its reply. Kept, as its length changes little.
    bytes: Vec<u8>,
}

impl Echo {
    /// Answers a request by what it asks for, in the message or, if the caller has room for it, as
    /// bulk.
    pub(crate) fn answer(&self, from: PeerId, request: &[u8], exchange: &mut dyn Exchange) {
        let mut state = self.0.lock();
        let State { seen, bytes } = &mut *state;
        bytes.clear();
        bytes.extend_from_slice(request);
        // FIT takes no more bulk than it was told to.
        let bulk = exchange.bulk_len().min(MAX_BULK as usize);
        bytes.resize(request.len() + bulk, 0);
        let came = exchange.read_bulk(0, &mut bytes[request.len()..]);
        bytes.truncate(request.len() + came);
        let seen = seen.entry(from).or_default();
        seen.requests += 1;
        seen.request_bytes += bytes.len() as u64;
        exchange.set_len(0);
        match TestRequest::read(bytes) {
            Some(ask) => seen.reply_bytes += reply(ask, bytes, exchange),
            None => seen.wrong += 1,
        }
    }

    /// Returns the tally of caller `from`: the handler's, with FIT's own counters.
    pub(crate) fn tally(&self, from: PeerId, core: &Core) -> CalleeTally {
        let links = core.link_counters();
        let link = links.iter().rfind(|(peer, ..)| *peer == from);
        let seen = self.0.lock().seen.get(&from).copied().unwrap_or_default();
        let Some((_, _, link)) = link else {
            return seen;
        };
        CalleeTally {
            answered: link.served[usize::from(ECHO)],
            stray: link.nr_stray,
            late: link.nr_deadline,
            doorbells: link.nr_doorbells,
            waits: core.counters().nr_interrupt_waits,
            ..seen
        }
    }

    pub(crate) fn forget(&self, peer: PeerId) {
        self.0.lock().seen.remove(&peer);
    }
}

/// Fills the reply; its length. None if there is no room for it.
fn reply(ask: TestRequest, bytes: &mut Vec<u8>, exchange: &mut dyn Exchange) -> u64 {
    let len = ask.reply as usize;
    if exchange.bulk_limit() > 0 {
        bytes.clear();
        bytes.resize(len.min(exchange.bulk_limit()), 0);
        ask.answer(bytes);
        return exchange.write_bulk(0, bytes) as u64;
    }
    let Some(into) = exchange.message().get_mut(..len) else {
        return 0;
    };
    ask.answer(into);
    exchange.set_len(len);
    ask.reply.into()
}

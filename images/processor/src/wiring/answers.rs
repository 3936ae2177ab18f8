//! Answers to S: it recalls leases.

use fit::{Exchange, Handler, LostCause, PeerId};
use spin::Once;

use super::Parts;

/// Answers for the node, once it has its parts.
pub(super) struct Answers(pub(super) &'static Once<Parts>);

impl Handler for Answers {
    async fn handle(&self, _: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        // A node without parts has asked for no lease yet.
        let len = self.0.get().map_or(0, |parts| {
            let now = libos::now();
            let message = exchange.message();
            parts.kernel.answer(parts, now, kind, request, message)
        });
        exchange.set_len(len);
    }

    fn peer_lost(&self, _: PeerId, _: Option<LostCause>) {}
}

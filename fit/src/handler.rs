//! Handlers of the peers' messages, as a node's role provides them.

use core::future::Future;

use crate::{LostCause, Member, PeerId};

/// One call as its handler sees it: the bulk that came with the request, and where the answer goes.
pub trait Exchange: Send {
    /// Bytes of bulk that came with the request.
    fn bulk_len(&self) -> usize;
    /// Copies bulk of the request from `offset` on into `into`, and returns how many bytes there
    /// were. None once the peer is lost.
    fn read_bulk(&mut self, offset: usize, into: &mut [u8]) -> usize;
    /// The reply's message: what of it is used is set by [`set_len`](Self::set_len).
    fn message(&mut self) -> &mut [u8];
    /// Sets how many bytes of [`message`](Self::message) are the reply.
    fn set_len(&mut self, len: usize);
    /// Bytes of bulk that the caller takes.
    fn bulk_limit(&self) -> usize;
    /// Puts bytes of bulk at `offset` and returns how many fitted. The bulk ends where the last of
    /// these ends.
    fn write_bulk(&mut self, offset: usize, bytes: &[u8]) -> usize;
}

/// Handler of the peers' messages.
pub trait Handler: Send + Sync {
    /// Answers one request.
    fn handle(
        &self,
        from: PeerId,
        kind: u16,
        request: &[u8],
        exchange: &mut dyn Exchange,
    ) -> impl Future<Output = ()> + Send;

    /// Takes a message that wants no answer.
    fn receive(&self, from: PeerId, kind: u16, _body: &[u8]) -> impl Future<Output = ()> + Send {
        async move {
            log::warn!(
                "peer {}: nobody takes one-way messages of kind {kind}",
                from.0
            )
        }
    }

    /// A node has joined: its calls may come, and calls to it work. If it was here before, it was
    /// told as lost first.
    fn peer_joined(&self, _peer: PeerId, _member: &Member) {}

    /// A peer is lost, and why, as far as that is remembered: whatever it held can be taken back.
    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>);
}

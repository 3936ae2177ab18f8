//! Messages that a connection sends, inline or from its memory, and those that wait for room.

use hal::DmaBuffer;
use mutants::Mutant;
use verbs::{Payload, QueueSet, SendOp, SendRequest, Sge};

use super::{Link, Outgoing};
use crate::due;
use crate::ring::{Place, Purpose};
use crate::wire::{HEADER_BYTES, HEADER_LEN, Header, MAX_DESCRIPTORS_LEN, MAX_PIECES, MessageType};
use crate::{Error, LinkState, LostCause};

impl<M: DmaBuffer> Link<M> {
    /// Refuses messages that are too long.
    #[inline]
    pub(super) fn check_len(&self, len: usize) -> Result<(), Error> {
        if len <= self.target.message_size as usize {
            return Ok(());
        }
        Err(Error::TooLong {
            peer: self.peer,
            len,
            limit: self.target.message_size as usize,
        })
    }

    /// Returns whether such a body may be [sent at once](Self::send_at_once).
    #[inline(always)]
    pub(super) fn goes_at_once(&self, body: &[u8]) -> bool {
        body.len() < self.at_once as usize
    }

    /// Posts a message whose body [may go at once](Self::goes_at_once), and shows the device what
    /// is posted.
    #[inline(always)]
    pub(super) fn send_at_once<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        place: Place,
        mut header: Header,
        body: &[u8],
    ) {
        header.returned = self.window.tell();
        self.counters.nr_bytes_tx += u64::from(HEADER_BYTES + header.body);
        let posted = queues.send_inline(self.qp, place.id, place.signalled, &header.encode(), body);
        if let Err(error) = posted {
            return self.on_refused_send(&error, Purpose::Unanswered, place);
        }
        if self.due != 0 {
            self.due |= due::DOORBELL;
            return self.flush(queues);
        }
        queues.ring(self.qp);
        self.counters.nr_doorbells += 1;
    }

    /// Posts a message of header and body, inline when short, else from its place in the
    /// connection's memory.
    pub(super) fn send_plain<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        mut header: Header,
        body: &[u8],
        at: usize,
        purpose: Purpose,
    ) {
        let len = HEADER_LEN + body.len();
        if len > self.max_inline as usize {
            self.memory.write(at + HEADER_LEN, body);
            return self.send_staged(queues, header, at, len, purpose);
        }
        header.returned = self.window.tell();
        self.counters.nr_bytes_tx += len as u64;
        let payload = Payload::Inline(&header.encode(), body);
        self.post(queues, SendOp::Send { imm: None }, payload, purpose);
    }

    /// Posts a message, inline when short, else from the connection's memory at `at` and what is
    /// gathered behind it.
    pub(super) fn send_message<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        mut message: Outgoing<'_>,
        at: usize,
        purpose: Purpose,
    ) {
        message.header.returned = self.window.tell();
        let head_len = message.header.head_len();
        let mut head = [0; HEADER_LEN + MAX_DESCRIPTORS_LEN];
        head[..HEADER_LEN].copy_from_slice(&message.header.encode());
        let pieces = message.offered.iter().chain(message.accepting);
        for (piece, place) in pieces.zip(head[HEADER_LEN..].as_chunks_mut().0) {
            *place = piece.descriptor().encode();
        }
        let head = &head[..head_len];
        let len = head_len + message.body.len();
        if len <= self.max_inline as usize && message.carried.is_empty() {
            self.counters.nr_bytes_tx += len as u64;
            let payload = Payload::Inline(head, message.body);
            return self.post(queues, SendOp::Send { imm: None }, payload, purpose);
        }
        self.memory.write(at, head);
        self.memory.write(at + head_len, message.body);
        let mut pieces = [Sge::default(); 1 + MAX_PIECES];
        pieces[0] = self.piece(at, len);
        for (place, piece) in pieces[1..].iter_mut().zip(message.carried) {
            *place = piece.sge();
        }
        self.send_gathered(queues, &pieces[..1 + message.carried.len()], purpose);
    }

    /// Posts a message whose body stands in the connection's memory, behind room for the header.
    pub(super) fn send_staged<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        mut header: Header,
        at: usize,
        len: usize,
        purpose: Purpose,
    ) {
        header.returned = self.window.tell();
        self.memory.write(at, &header.encode());
        let piece = self.piece(at, len);
        self.send_gathered(queues, &[piece], purpose);
    }

    /// Posts a message that is nothing but its header. It always goes inline: [`Config::check`]
    /// sees to that.
    pub(super) fn send_bare<Q: QueueSet>(&mut self, queues: &mut Q, mut header: Header) {
        header.returned = self.window.tell();
        self.counters.nr_bytes_tx += HEADER_LEN as u64;
        let op = SendOp::Send { imm: None };
        let payload = Payload::Inline(&header.encode(), &[]);
        self.post(queues, op, payload, Purpose::Unanswered);
    }

    fn send_gathered<Q: QueueSet>(&mut self, queues: &mut Q, pieces: &[Sge], purpose: Purpose) {
        let len: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        self.counters.nr_bytes_tx += len;
        let op = SendOp::Send { imm: None };
        self.post(queues, op, Payload::Gather(pieces), purpose);
    }

    pub(super) fn piece(&self, at: usize, len: usize) -> Sge {
        let len = u32::try_from(len).expect("a piece of a connection's memory");
        Sge {
            addr: self.memory.bus_addr().offset(at).0,
            len,
            lkey: self.lkey,
        }
    }

    /// The longest body of a reply.
    pub(crate) fn reply_limit(&self) -> usize {
        self.target.message_size as usize - HEADER_LEN
    }

    /// Posts a request. Whoever asks has seen that the send queue has room.
    pub(super) fn post<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        op: SendOp,
        payload: Payload<'_>,
        purpose: Purpose,
    ) {
        let place = self.ring.take(purpose);
        let place = place.expect("a request within the send queue's credits");
        let solicited = matches!(op, SendOp::Send { .. });
        let request = SendRequest {
            id: place.id,
            op,
            payload,
            signalled: place.signalled,
            solicited,
            fence: false,
            to: None,
        };
        match queues.post_send(self.qp, &request) {
            Ok(()) => self.due |= due::DOORBELL,
            Err(error) => self.on_refused_send(&error, purpose, place),
        }
    }

    /// The credits make this impossible; a device that is failing may still refuse.
    #[cold]
    fn on_refused_send(&mut self, error: &verbs::Error, purpose: Purpose, place: Place) {
        log::error!("{}: {error}", self.peer);
        self.ring.give_back(place);
        let cause = self.cause.unwrap_or(LostCause::QpFailed);
        if let Purpose::OneSided(slot) = purpose {
            self.ops.on_failed(slot, cause);
        }
        self.fail(LostCause::Device);
    }

    /// Posts what waits for room, and rings the doorbell if anything was posted since.
    #[inline]
    pub(crate) fn flush<Q: QueueSet>(&mut self, queues: &mut Q) {
        if self.due & due::BACKLOG != 0 {
            self.work_off(queues);
        }
        if self.due & due::DOORBELL != 0 {
            self.due &= !due::DOORBELL;
            queues.ring(self.qp);
            self.counters.nr_doorbells += 1;
        }
    }

    /// Posts what waits for room or credit, replies first.
    #[inline(never)]
    fn work_off<Q: QueueSet>(&mut self, queues: &mut Q) {
        if self.state != LinkState::Up {
            return;
        }
        self.due &= !due::BACKLOG;
        self.send_queued_replies(queues);
        self.fetch_offered(queues);
        self.post_queued_ops(queues);
        self.send_signs(queues);
        self.send_credit(queues);
        if self.has_backlog() {
            self.due |= due::BACKLOG;
        }
    }

    /// Returns whether something waits to be posted.
    fn has_backlog(&self) -> bool {
        self.serves.has_queued()
            || self.serves.has_fetches()
            || self.ops.has_queued()
            || self.alive.owes_signs()
            || self.window.is_credit_due()
    }

    /// Posts the ping and pong that are due, if there is room.
    fn send_signs<Q: QueueSet>(&mut self, queues: &mut Q) {
        while self.ring.room() > 0
            && let Some(sign) = self.alive.next_sign()
        {
            self.send_bare(queues, Header::bare(sign, 0));
        }
    }

    /// Tells the peer of returned receives, if nothing else has.
    fn send_credit<Q: QueueSet>(&mut self, queues: &mut Q) {
        if self.window.is_credit_due() && self.ring.room() > 0 && !Mutant::NoCreditMessages.on() {
            self.send_bare(queues, Header::bare(MessageType::Credit, 0));
        }
    }
}

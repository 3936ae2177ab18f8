//! Handling of a connection's completions, and of the messages that arrive.

use alloc::vec::Vec;
use core::task::Waker;

use hal::{DmaBuffer, Instant};
use verbs::{Completion, CompletionKind, QueueSet, Status};

use super::Link;
use crate::arrivals::OneWayMessage;
use crate::calls::UnclaimedReply;
use crate::due;
use crate::one_sided::OneSided;
use crate::ring::{Purpose, RingMismatch};
use crate::waiters::wake_all;
use crate::wire::{
    Brief, DESCRIPTOR_LEN, Descriptor, HEADER_BYTES, HEADER_LEN, Header, MessageType, Plain,
};
use crate::{LinkState, LostCause};

impl<M: DmaBuffer> Link<M> {
    /// Takes one completion of this connection's queue pair.
    #[inline(always)]
    pub(crate) fn on_completion<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        completion: &Completion,
        now: Instant,
        servers: &mut Vec<Waker>,
    ) {
        if completion.kind == CompletionKind::Receive {
            self.on_received(queues, completion, now, servers);
        } else {
            self.on_other(completion, now);
        }
    }

    /// Takes a completion that is of no message.
    #[inline(never)]
    fn on_other(&mut self, completion: &Completion, now: Instant) {
        if completion.kind == CompletionKind::ReceiveWrite {
            // FIT posts no WRITE with immediate, so no honest peer does.
            return self.fail(LostCause::Protocol);
        }
        let purpose = match self.ring.complete(completion.id) {
            Ok(purpose) => purpose,
            Err(RingMismatch::Stray) => {
                self.counters.nr_stray += 1;
                return;
            }
            Err(RingMismatch::OutOfOrder) => return self.fail(LostCause::Device),
        };
        if completion.status != Status::Success {
            self.fail(LostCause::Transport(completion.status));
        }
        let success = completion.status == Status::Success;
        match purpose {
            Purpose::Unanswered => {}
            Purpose::Gathering(slot, generation) => self.calls.on_gathered(slot, generation),
            Purpose::BulkReply(buffer) => self.due |= self.serves.release_output(buffer),
            Purpose::Fetch(slot) => self.on_fetched(slot, success),
            Purpose::OneSided(slot) => self.on_op_sent(slot, success, now),
        }
        self.room.wake();
    }

    #[inline(always)]
    fn on_received<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        completion: &Completion,
        now: Instant,
        servers: &mut Vec<Waker>,
    ) {
        let Some((index, at)) = self.receives.take(completion.id) else {
            return self.on_stray_receive();
        };
        if completion.status != Status::Success {
            return self.fail(LostCause::Transport(completion.status));
        }
        if completion.bytes > self.message_size {
            return self.fail(LostCause::Protocol);
        }
        self.memory.read(at, &mut self.header);
        let as_most = match Header::decode_plain(&self.header, completion.bytes) {
            Some(Plain::Reply(reply)) => self.on_plain_reply(index, reply, now),
            Some(Plain::Request(request)) => self.on_plain_request(index, request, now, servers),
            None => false,
        };
        if !as_most {
            self.on_rare(queues, index, completion.bytes, now);
        }
    }

    /// A receive has ended that the device does not have, or that was given up when the connection
    /// was lost.
    #[cold]
    fn on_stray_receive(&mut self) {
        if matches!(self.state, LinkState::Connecting | LinkState::Up) {
            self.counters.nr_stray += 1;
        }
    }

    /// Takes any message: its header has been read.
    #[inline(never)]
    fn on_rare<Q: QueueSet>(&mut self, queues: &mut Q, receive: u16, len: u32, now: Instant) {
        let Some(header) = Header::decode(&self.header, len) else {
            return self.fail(LostCause::Protocol);
        };
        self.hear(len);
        match self.window.hear(header.returned) {
            Some(0) => {}
            Some(_) => self.room.wake(),
            None => return self.fail(LostCause::Protocol),
        }
        match header.message {
            MessageType::Reply => self.on_reply(queues, receive, header.brief(), header.bulk, now),
            MessageType::Request => self.on_request(receive, &header, now),
            MessageType::OneWay => self.on_one_way(receive, &header, now),
            MessageType::Ping => {
                self.alive.owe_pong();
                self.due |= due::BACKLOG;
                self.post_receive(queues, receive);
            }
            MessageType::Pong | MessageType::Credit => self.post_receive(queues, receive),
        }
    }

    /// Takes a reply without bulk if a call waits for it and it says nothing new of one-way
    /// messages; whether this was so. Its receive is posted again when the waiter has it.
    #[inline(always)]
    fn on_plain_reply(&mut self, receive: u16, reply: Brief, now: Instant) -> bool {
        match self.calls.awaiting(reply) {
            Some(call) if self.window.knows(reply.returned) => {
                let took = call.answer(receive, reply.body, 0, now);
                self.hear(HEADER_BYTES + reply.body);
                self.counters.call_time.record_ns(took);
                true
            }
            _ => false,
        }
    }

    /// Takes a reply, whatever it brings.
    fn on_reply<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        receive: u16,
        reply: Brief,
        bulk: u32,
        now: Instant,
    ) {
        if let Some(took) = self.calls.answer(receive, reply, bulk, now) {
            self.counters.nr_bytes_rx += u64::from(bulk);
            self.counters.call_time.record_ns(took);
            return;
        }
        match self.calls.on_unawaited(reply, bulk) {
            UnclaimedReply::Broken => return self.fail(LostCause::Protocol),
            UnclaimedReply::Stray => self.counters.nr_stray += 1,
            UnclaimedReply::Late => {}
            UnclaimedReply::Freed => self.room.wake(),
        }
        self.post_receive(queues, receive);
    }

    /// Notes a request without bulk if it says nothing new of one-way messages and its slot is
    /// free; whether this was so. The servers that wait are woken.
    #[inline(always)]
    fn on_plain_request(
        &mut self,
        receive: u16,
        request: Brief,
        now: Instant,
        servers: &mut Vec<Waker>,
    ) -> bool {
        if !self.window.knows(request.returned) || !self.serves.on_plain(receive, request, now) {
            return false;
        }
        self.hear(HEADER_BYTES + request.body);
        if !servers.is_empty() {
            wake_all(servers);
        }
        true
    }

    /// Takes up a request, with the bulk that it brings or wants.
    fn on_request(&mut self, receive: u16, header: &Header, now: Instant) {
        let (memory, at) = (&self.memory, self.receives.at(receive));
        let piece = |index| read_descriptor(memory, at, index);
        match self.serves.on_request(receive, header, now, piece) {
            Some(due) => self.due |= due,
            None => self.fail(LostCause::Protocol),
        }
    }

    /// Keeps a message until a handler takes it.
    fn on_one_way(&mut self, receive: u16, header: &Header, now: Instant) {
        if !self.window.hold() {
            return self.fail(LostCause::Protocol);
        }
        let message = OneWayMessage::new(receive, header.kind, header.body, now);
        self.due |= self.serves.on_one_way(message);
    }

    /// A READ of what a caller offers has ended.
    fn on_fetched(&mut self, slot: u16, success: bool) {
        self.reads_out -= 1;
        if let Some((len, due)) = self.serves.on_fetched(slot, success) {
            self.counters.nr_bytes_rx += u64::from(len);
            self.due |= due;
        }
    }

    /// The device is done with a one-sided access.
    fn on_op_sent(&mut self, slot: u16, success: bool, now: Instant) {
        if self.ops.what(slot) == OneSided::Read {
            self.reads_out -= 1;
        }
        if !success {
            let cause = self.cause.unwrap_or(LostCause::QpFailed);
            return self.ops.on_failed(slot, cause);
        }
        let sent = self.ops.on_done(slot, now);
        match sent.what {
            OneSided::Read => {
                self.counters.nr_bytes_rx += u64::from(sent.len);
                self.counters.read_time.record(sent.age);
            }
            OneSided::Write => self.counters.write_time.record(sent.age),
        }
    }

    /// The descriptor `index` of the request in a receive.
    pub(super) fn descriptor(&self, receive: u16, index: u8) -> Descriptor {
        read_descriptor(&self.memory, self.receives.at(receive), index)
    }

    /// A message of `len` bytes came from the peer.
    #[inline(always)]
    fn hear(&mut self, len: u32) {
        self.alive.hear();
        self.counters.nr_bytes_rx += u64::from(len);
    }
}

/// Reads the descriptor `index` of the message at `at`.
fn read_descriptor<M: DmaBuffer>(memory: &M, at: usize, index: u8) -> Descriptor {
    let mut bytes = [0; DESCRIPTOR_LEN];
    let at = at + HEADER_LEN + usize::from(index) * DESCRIPTOR_LEN;
    memory.read(at, &mut bytes);
    Descriptor::decode(&bytes)
}

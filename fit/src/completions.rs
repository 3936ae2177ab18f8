//! Handling of a connection's completions, and of the messages that arrive.

use alloc::vec::Vec;
use core::task::Waker;

use hal::{DmaBuffer, Instant};
use verbs::{Completion, CompletionKind, QueueSet, Status};

use crate::link::{Link, due};
use crate::receive::Receive;
use crate::ring::{Misfit, Purpose};
use crate::wire::{Header, MessageType, Plain};
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
            Err(Misfit::Stray) => {
                self.counters.nr_stray += 1;
                return;
            }
            Err(Misfit::OutOfOrder) => return self.fail(LostCause::Device),
        };
        if completion.status != Status::Success {
            self.fail(LostCause::Transport(completion.status));
        }
        let success = completion.status == Status::Success;
        match purpose {
            Purpose::Unanswered => {}
            Purpose::Gathering(slot, generation) => self.on_gathered(slot, generation),
            Purpose::BulkReply(buffer) => self.release_output(buffer),
            Purpose::Fetch(slot) => self.on_fetched(slot, success),
            Purpose::OneSided(slot) => self.on_op_sent(slot, success, now),
        }
        self.wake_room_waiters();
    }

    #[inline(always)]
    fn on_received<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        completion: &Completion,
        now: Instant,
        servers: &mut Vec<Waker>,
    ) {
        let index = usize::try_from(completion.id).unwrap_or(usize::MAX);
        let Some((index, at)) = self.receives.get_mut(index).and_then(Receive::take) else {
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
            Some(_) => self.wake_room_waiters(),
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

    /// A message of `len` bytes came from the peer.
    #[inline(always)]
    pub(crate) fn hear(&mut self, len: u32) {
        self.alive.hear();
        self.counters.nr_bytes_rx += u64::from(len);
    }
}

//! Queues of messages, each with a type (Linux `ipc/msg.c`).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::Ids;
use crate::error::{Result, errno};
use crate::wait::WaitQueue;

/// Queues at most: less than Linux's 32,000, as they lie in the kernel's own memory.
pub(crate) const MAX_QUEUES: usize = 4096;
/// Bytes of a message at most (`MSGMAX`), and of a queue unless it is changed (`MSGMNB`).
pub(crate) const MAX_MESSAGE: u64 = 8192;
pub(crate) const QUEUE_BYTES: u64 = 16_384;
/// Bytes that wait in all queues at most; the head of a message counts too.
const MAX_WAITING: u64 = 32 << 20;
const HEAD: u64 = 64;
pub(crate) const MSG_NOERROR: u32 = 0o10_000;
pub(crate) const MSG_EXCEPT: u32 = 0o20_000;

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) kind: i64,
    pub(crate) bytes: Vec<u8>,
}

/// A reader's wish.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) kind: i64,
    pub(crate) flags: u32,
    /// Room for the message's bytes.
    pub(crate) room: usize,
    pub(crate) pid: u32,
    pub(crate) now: u64,
}

/// State of a queue.
#[derive(Debug)]
pub(crate) struct State {
    messages: VecDeque<Message>,
    pub(crate) bytes: u64,
    /// Bytes that may wait.
    pub(crate) limit: u64,
    pub(crate) removed: bool,
    /// Seconds since 1970 of the last send, receive and change.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) changed: u64,
    /// The processes of the last send and receive.
    pub(crate) sender: u32,
    pub(crate) receiver: u32,
}

impl State {
    /// Returns how many messages wait.
    pub(crate) fn count(&self) -> u64 {
        self.messages.len() as u64
    }

    /// Returns the place of the message that a reader wants.
    fn wanted(&self, kind: i64, flags: u32) -> Option<usize> {
        let mut kinds = self.messages.iter().map(|message| message.kind);
        match kind {
            0 => kinds.next().map(|_| 0),
            1.. if flags & MSG_EXCEPT != 0 => kinds.position(|each| each != kind),
            1.. => kinds.position(|each| each == kind),
            _ => {
                // The lowest type that is not above, and the first of it.
                let most = kind.checked_neg().unwrap_or(i64::MAX);
                let lowest = kinds.filter(|&each| each <= most).min()?;
                self.messages
                    .iter()
                    .position(|message| message.kind == lowest)
            }
        }
    }
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) state: Mutex<State>,
    /// Woken at each change.
    pub(crate) changes: WaitQueue,
    waiting: Arc<AtomicU64>,
}

impl Queue {
    fn new(waiting: Arc<AtomicU64>, now: u64) -> Self {
        Self {
            state: Mutex::new(State {
                messages: VecDeque::new(),
                bytes: 0,
                limit: QUEUE_BYTES,
                removed: false,
                sent: 0,
                received: 0,
                changed: now,
                sender: 0,
                receiver: 0,
            }),
            changes: WaitQueue::default(),
            waiting,
        }
    }

    /// Adds a message, which is taken; `None` if there is no room in the queue.
    ///
    /// # Errors
    ///
    /// EIDRM if the queue is removed, ENOMEM if there is no room in the node.
    pub(crate) fn send(
        &self,
        message: &mut Option<Message>,
        pid: u32,
        now: u64,
    ) -> Option<Result<()>> {
        let mut state = self.state.lock();
        if state.removed {
            return Some(Err(errno::EIDRM.into()));
        }
        let len = message.as_ref()?.bytes.len() as u64;
        if state.bytes + len > state.limit || state.count() + 1 > state.limit {
            return None;
        }
        let cost = len + HEAD;
        if self.waiting.fetch_add(cost, Ordering::Relaxed) + cost > MAX_WAITING {
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            return Some(Err(errno::ENOMEM.into()));
        }
        state.messages.push_back(message.take()?);
        state.bytes += len;
        (state.sent, state.sender) = (now, pid);
        drop(state);
        self.changes.wake();
        Some(Ok(()))
    }

    /// Takes the message that is wanted; `None` if there is none.
    ///
    /// # Errors
    ///
    /// EIDRM if the queue is removed, E2BIG if the message is longer than may be.
    pub(crate) fn receive(&self, wish: Wish) -> Option<Result<Message>> {
        let mut state = self.state.lock();
        if state.removed {
            return Some(Err(errno::EIDRM.into()));
        }
        let place = state.wanted(wish.kind, wish.flags)?;
        if state.messages[place].bytes.len() > wish.room && wish.flags & MSG_NOERROR == 0 {
            return Some(Err(errno::E2BIG.into()));
        }
        let mut message = state.messages.remove(place)?;
        let len = message.bytes.len() as u64;
        state.bytes -= len;
        self.waiting.fetch_sub(len + HEAD, Ordering::Relaxed);
        (state.received, state.receiver) = (wish.now, wish.pid);
        drop(state);
        self.changes.wake();
        message.bytes.truncate(wish.room);
        Some(Ok(message))
    }

    /// Forgets all messages; calls that wait here end.
    pub(crate) fn remove(&self) {
        let mut state = self.state.lock();
        state.removed = true;
        let cost = state.bytes + state.count() * HEAD;
        self.waiting.fetch_sub(cost, Ordering::Relaxed);
        state.messages = VecDeque::new();
        state.bytes = 0;
        drop(state);
        self.changes.wake();
    }
}

/// All queues.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) ids: Mutex<Ids<Arc<Queue>>>,
    /// Bytes that wait in all of them.
    waiting: Arc<AtomicU64>,
}

impl Queues {
    /// Returns a new queue, which is not in the table yet.
    pub(crate) fn queue(&self, now: u64) -> Arc<Queue> {
        Arc::new(Queue::new(self.waiting.clone(), now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(queue: &Queue, kind: i64, bytes: &[u8]) -> Option<Result<()>> {
        let bytes = bytes.to_vec();
        queue.send(&mut Some(Message { kind, bytes }), 1, 2)
    }

    fn receive(queue: &Queue, kind: i64, flags: u32) -> Option<Result<Vec<u8>>> {
        let wish = Wish {
            kind,
            flags,
            room: 3,
            pid: 1,
            now: 2,
        };
        let received = queue.receive(wish)?;
        Some(received.map(|message| message.bytes))
    }

    #[test]
    fn messages_are_chosen_by_type() {
        let queues = Queues::default();
        let queue = queues.queue(0);
        for (kind, text) in [(5, "a"), (3, "b"), (4, "c"), (3, "d"), (9, "long")] {
            assert_eq!(send(&queue, kind, text.as_bytes()), Some(Ok(())));
        }
        let got = |text: &str| Some(Ok(text.as_bytes().to_vec()));
        assert_eq!(receive(&queue, 4, 0), got("c"));
        assert_eq!(receive(&queue, 4, 0), None);
        assert_eq!(
            receive(&queue, -4, 0),
            got("b"),
            "the lowest, the first of them"
        );
        assert_eq!(receive(&queue, 5, MSG_EXCEPT), got("d"));
        assert_eq!(receive(&queue, 0, 0), got("a"));
        assert_eq!(receive(&queue, i64::MIN, 0), Some(Err(errno::E2BIG.into())));
        assert_eq!(receive(&queue, 9, MSG_NOERROR), got("lon"));
        assert_eq!(queues.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn queues_and_the_node_have_bounds() {
        let queues = Queues::default();
        let queue = queues.queue(0);
        queue.state.lock().limit = 10;
        assert_eq!(send(&queue, 1, &[0; 11]), None);
        for _ in 0..10 {
            assert_eq!(send(&queue, 1, &[]), Some(Ok(())));
        }
        assert_eq!(send(&queue, 1, &[]), None, "empty messages count too");
        queues.waiting.store(MAX_WAITING, Ordering::Relaxed);
        let other = queues.queue(0);
        assert_eq!(send(&other, 1, &[]), Some(Err(errno::ENOMEM.into())));
        queue.remove();
        assert_eq!(send(&queue, 1, &[]), Some(Err(errno::EIDRM.into())));
        assert_eq!(send(&other, 1, &[]), Some(Ok(())));
    }
}

//! Queues of messages, each with a type (Linux `ipc/msg.c`).
//!
//! Calls that wait are served in the order in which they came: a message goes straight to the first
//! reader that takes it, and room to the first message that fits.

use alloc::collections::{BTreeMap, VecDeque};
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

impl Wish {
    /// Returns whether the reader takes messages of a type, whatever else there is.
    fn accepts(&self, kind: i64) -> bool {
        match self.kind {
            0 => true,
            1.. => (kind == self.kind) != (self.flags & MSG_EXCEPT != 0),
            least => kind <= least.checked_neg().unwrap_or(i64::MAX),
        }
    }

    fn has_room(&self, message: &Message) -> bool {
        message.bytes.len() <= self.room || self.flags & MSG_NOERROR != 0
    }
}

/// The end of a call that waited.
#[derive(Debug)]
enum Done {
    Sent(Result<()>),
    Received(Result<Message>),
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
    /// Calls that wait, by their numbers: readers, and messages with their senders.
    readers: BTreeMap<u64, Wish>,
    senders: BTreeMap<u64, (Message, u32)>,
    /// Calls that waited and are done, until they look.
    done: BTreeMap<u64, Done>,
    next_call: u64,
}

impl State {
    /// Returns whether there is room for a message.
    fn fits(&self, message: &Message) -> bool {
        let len = message.bytes.len() as u64;
        self.bytes + len <= self.limit && self.count() < self.limit
    }

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
                readers: BTreeMap::new(),
                senders: BTreeMap::new(),
                done: BTreeMap::new(),
                next_call: 0,
            }),
            changes: WaitQueue::default(),
            waiting,
        }
    }

    /// Returns the number of a call that may wait here.
    pub(crate) fn call(&self) -> Call<'_> {
        let mut state = self.state.lock();
        state.next_call += 1;
        Call {
            queue: self,
            number: state.next_call,
        }
    }

    /// Gives a message to the first reader that takes it, or to the queue.
    fn place(&self, state: &mut State, message: Message, pid: u32, now: u64) -> Result<()> {
        let cost = message.bytes.len() as u64 + HEAD;
        if self.waiting.fetch_add(cost, Ordering::Relaxed) + cost > MAX_WAITING {
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            return Err(errno::ENOMEM.into());
        }
        (state.sent, state.sender) = (now, pid);
        loop {
            let accepts = |(_, wish): &(&u64, &Wish)| wish.accepts(message.kind);
            let Some((&reader, &wish)) = state.readers.iter().find(accepts) else {
                break;
            };
            state.readers.remove(&reader);
            if !wish.has_room(&message) {
                let refused = Done::Received(Err(errno::E2BIG.into()));
                state.done.insert(reader, refused);
                continue;
            }
            (state.received, state.receiver) = (now, wish.pid);
            state.done.insert(reader, Done::Received(Ok(message)));
            return Ok(());
        }
        state.bytes += message.bytes.len() as u64;
        state.messages.push_back(message);
        Ok(())
    }

    /// Lets in what waits to be sent, as far as there is room.
    pub(crate) fn admit(&self, now: u64) {
        {
            let mut state = self.state.lock();
            self.admit_to(&mut state, now);
        }
        self.changes.wake();
    }

    fn admit_to(&self, state: &mut State, now: u64) {
        let mut from = 0;
        while let Some((&call, (message, _))) = state.senders.range(from..).next() {
            from = call + 1;
            if !state.fits(message) {
                continue;
            }
            if let Some((message, pid)) = state.senders.remove(&call) {
                let placed = self.place(state, message, pid, now);
                state.done.insert(call, Done::Sent(placed));
            }
        }
    }

    /// Adds a message, which is taken; `None` if there is no room in the queue.
    ///
    /// # Errors
    ///
    /// EIDRM if the queue is removed, ENOMEM if there is no room in the node, EAGAIN if the call
    /// does not wait (`waits`).
    pub(crate) fn send(
        &self,
        call: &Call<'_>,
        message: &mut Option<Message>,
        (pid, now): (u32, u64),
        waits: bool,
    ) -> Option<Result<()>> {
        let mut state = self.state.lock();
        if let Some(Done::Sent(done)) = state.done.remove(&call.number) {
            return Some(done);
        }
        if state.removed {
            return Some(Err(errno::EIDRM.into()));
        }
        // It is in the state if it waits already.
        if !state.fits(message.as_ref()?) {
            if !waits {
                return Some(Err(errno::EAGAIN.into()));
            }
            let waiting = (message.take()?, pid);
            state.senders.insert(call.number, waiting);
            return None;
        }
        let placed = self.place(&mut state, message.take()?, pid, now);
        drop(state);
        self.changes.wake();
        Some(placed)
    }

    /// Takes the message that is wanted; `None` if there is none.
    ///
    /// # Errors
    ///
    /// EIDRM if the queue is removed, E2BIG if the message is longer than may be, ENOMSG if the
    /// call does not wait (`waits`).
    pub(crate) fn receive(
        &self,
        call: &Call<'_>,
        wish: Wish,
        waits: bool,
    ) -> Option<Result<Message>> {
        let mut state = self.state.lock();
        if let Some(Done::Received(done)) = state.done.remove(&call.number) {
            return Some(self.hand_over(done, wish));
        }
        if state.removed {
            return Some(Err(errno::EIDRM.into()));
        }
        let Some(place) = state.wanted(wish.kind, wish.flags) else {
            if !waits {
                return Some(Err(errno::ENOMSG.into()));
            }
            state.readers.insert(call.number, wish);
            return None;
        };
        if !wish.has_room(&state.messages[place]) {
            return Some(Err(errno::E2BIG.into()));
        }
        let message = state.messages.remove(place)?;
        state.bytes -= message.bytes.len() as u64;
        (state.received, state.receiver) = (wish.now, wish.pid);
        self.admit_to(&mut state, wish.now);
        drop(state);
        self.changes.wake();
        Some(self.hand_over(Ok(message), wish))
    }

    /// Gives a message to its reader: it waits no more.
    fn hand_over(&self, message: Result<Message>, wish: Wish) -> Result<Message> {
        let mut message = message?;
        let cost = message.bytes.len() as u64 + HEAD;
        self.waiting.fetch_sub(cost, Ordering::Relaxed);
        message.bytes.truncate(wish.room);
        Ok(message)
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

/// A call that may wait for a queue; it waits no more when this is dropped.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    queue: &'a Queue,
    number: u64,
}

impl Call<'_> {
    /// Returns how the message was sent, if it was while the call waited.
    pub(crate) fn sent(&self) -> Option<Result<()>> {
        match self.queue.state.lock().done.remove(&self.number)? {
            Done::Sent(done) => Some(done),
            Done::Received(_) => None,
        }
    }

    /// Returns the message that came while the call waited.
    pub(crate) fn received(&self, wish: Wish) -> Option<Result<Message>> {
        let done = self.queue.state.lock().done.remove(&self.number)?;
        match done {
            Done::Received(done) => Some(self.queue.hand_over(done, wish)),
            Done::Sent(_) => None,
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.readers.remove(&self.number);
        state.senders.remove(&self.number);
        if let Some(Done::Received(Ok(lost))) = state.done.remove(&self.number) {
            let cost = lost.bytes.len() as u64 + HEAD;
            self.queue.waiting.fetch_sub(cost, Ordering::Relaxed);
        }
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
        let mut message = Some(Message { kind, bytes });
        queue.send(&queue.call(), &mut message, (1, 2), true)
    }

    fn receive(queue: &Queue, kind: i64, flags: u32) -> Option<Result<Vec<u8>>> {
        let wish = Wish {
            kind,
            flags,
            room: 3,
            pid: 1,
            now: 2,
        };
        let received = queue.receive(&queue.call(), wish, true)?;
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
    fn calls_that_wait_are_served_in_their_order() {
        let queues = Queues::default();
        let queue = queues.queue(0);
        let wish = |kind: i64| Wish {
            kind,
            flags: 0,
            room: 3,
            pid: 1,
            now: 2,
        };
        let calls = [(); 4].map(|()| queue.call());
        let wants = [7, 0, -5, 0];
        let receive = |at: usize| {
            let received = queue.receive(&calls[at], wish(wants[at]), true);
            received.map(|done| done.map(|message| message.bytes))
        };
        assert_eq!([0, 1, 2, 3].map(receive), [const { None }; 4]);
        let got = |text: &str| Some(Ok(text.as_bytes().to_vec()));
        assert_eq!(send(&queue, 9, b"9"), Some(Ok(())));
        assert_eq!(send(&queue, 7, b"7"), Some(Ok(())));
        assert_eq!(send(&queue, 3, b"long"), Some(Ok(())));
        // Whoever looks first, and whoever comes now.
        let late = queue.receive(&queue.call(), wish(7), false);
        assert_eq!(late, Some(Err(errno::ENOMSG.into())));
        assert_eq!(
            (receive(3), receive(1)),
            (Some(Err(errno::E2BIG.into())), got("9"))
        );
        assert_eq!(receive(2), Some(Err(errno::E2BIG.into())));
        assert_eq!(
            calls[0].received(wish(7)).map(|done| done.map(|m| m.bytes)),
            got("7")
        );
        assert_eq!(queue.state.lock().count(), 1, "the long one");
        drop(calls);
        queue.state.lock().limit = 6;
        let calls = [(); 3].map(|()| queue.call());
        for (call, text) in calls.iter().zip(["1", "22", "3"]) {
            let mut message = Some(Message {
                kind: 1,
                bytes: text.as_bytes().to_vec(),
            });
            let sent = queue.send(call, &mut message, (1, 2), true);
            assert_eq!(sent.is_none(), text == "22", "{text}");
        }
        drop(queue.receive(&queue.call(), wish(3), true));
        assert_eq!(calls[1].sent(), None, "no room yet");
        queue.state.lock().limit = 8;
        queue.admit(3);
        assert_eq!(calls[1].sent(), Some(Ok(())));
        assert_eq!(queue.state.lock().count(), 4);
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

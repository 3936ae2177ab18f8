//! POSIX message queues: named, with priorities, held as files (Linux `ipc/mqueue.c`).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::error::{Result, errno};
use crate::object::{Object, POLL_IN, POLL_OUT, POLL_RDNORM, POLL_WRNORM};
use crate::wait::WaitQueue;

/// Queues with names at most.
const MAX_NAMES: usize = 4096;
/// Bytes that all queues together may come to hold.
const MAX_BYTES: u64 = 32 << 20;
/// Bytes that a message costs beside its own.
const HEAD: u64 = 128;
/// `S_IFREG`.
const REGULAR: u32 = 0o100_000;

/// Bounds of a queue: messages, and bytes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bounds {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Bounds {
    /// Returns the bytes that the queue may come to hold.
    pub(crate) fn cost(self) -> u64 {
        self.bytes
            .saturating_add(HEAD)
            .saturating_mul(self.messages)
    }
}

/// A process that wants to be told of a message in the empty queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Notice {
    pub(crate) pid: u32,
    /// The signal and its value; `None` to be told nothing.
    pub(crate) signal: Option<(u8, u64)>,
}

#[derive(Debug, Default)]
struct State {
    /// By priority, highest first, and by age.
    messages: BTreeMap<(Reverse<u32>, u64), Vec<u8>>,
    sent: u64,
    /// Calls that wait for a message.
    receivers: u32,
    notice: Option<Notice>,
}

/// A queue.
#[derive(Debug)]
pub(crate) struct MessageQueue {
    state: Mutex<State>,
    changes: WaitQueue,
    pub(crate) bounds: Bounds,
    /// Rights and owner.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    budget: Arc<AtomicU64>,
}

impl MessageQueue {
    /// Returns how many messages wait.
    pub(crate) fn count(&self) -> u64 {
        self.state.lock().messages.len() as u64
    }

    /// Adds a message, which is taken; returns who is to be told of it. `None` if the queue is
    /// full.
    pub(crate) fn send(
        &self,
        message: &mut Option<Vec<u8>>,
        priority: u32,
    ) -> Option<Option<Notice>> {
        let mut state = self.state.lock();
        if state.messages.len() as u64 >= self.bounds.messages {
            return None;
        }
        let was_empty = state.messages.is_empty();
        state.sent += 1;
        let place = (Reverse(priority), state.sent);
        state.messages.insert(place, message.take()?);
        let unnoticed = was_empty && state.receivers == 0;
        let notice = if unnoticed { state.notice.take() } else { None };
        drop(state);
        self.changes.wake();
        Some(notice)
    }

    /// Takes the oldest message of the highest priority, and returns that too.
    pub(crate) fn receive(&self) -> Option<(Vec<u8>, u32)> {
        let mut state = self.state.lock();
        let ((Reverse(priority), _), message) = state.messages.pop_first()?;
        drop(state);
        self.changes.wake();
        Some((message, priority))
    }

    /// Counts a call that waits for a message, until what is returned is dropped.
    pub(crate) fn receiver(&self) -> Receiver<'_> {
        self.state.lock().receivers += 1;
        Receiver(self)
    }

    /// Sets who is to be told; `None` takes it back for a process.
    ///
    /// # Errors
    ///
    /// EBUSY if another is to be told already and `lives`.
    pub(crate) fn notify(
        &self,
        pid: u32,
        notice: Option<Notice>,
        lives: impl FnOnce(u32) -> bool,
    ) -> Result<()> {
        let mut state = self.state.lock();
        match (state.notice, notice) {
            (Some(known), None) if known.pid == pid => state.notice = None,
            (_, None) => {}
            (Some(known), Some(_)) if lives(known.pid) => return Err(errno::EBUSY.into()),
            (_, notice) => state.notice = notice,
        }
        Ok(())
    }
}

impl MessageQueue {
    /// Takes the notice back of a process that closes the queue, by whichever of its numbers.
    pub(crate) fn closed_by(&self, pid: u32) {
        let mut state = self.state.lock();
        state.notice.take_if(|notice| notice.pid == pid);
    }
}

impl Drop for MessageQueue {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.bounds.cost(), Ordering::Relaxed);
    }
}

/// A call that waits for a message.
#[derive(Debug)]
pub(crate) struct Receiver<'a>(&'a MessageQueue);

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        self.0.state.lock().receivers -= 1;
    }
}

impl Object for MessageQueue {
    fn read(&self, _: &mut [u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn ready(&self) -> u16 {
        let count = self.count();
        let readable = if count > 0 { POLL_IN | POLL_RDNORM } else { 0 };
        let room = count < self.bounds.messages;
        readable | if room { POLL_OUT | POLL_WRNORM } else { 0 }
    }
    fn queue(&self) -> &WaitQueue {
        &self.changes
    }
    fn as_message_queue(&self) -> Option<&MessageQueue> {
        Some(self)
    }
    fn mode(&self) -> u32 {
        REGULAR | self.mode
    }
    fn readable(&self) -> usize {
        0
    }
}

/// All queues that have names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    queues: Mutex<BTreeMap<Vec<u8>, Arc<MessageQueue>>>,
    budget: Arc<AtomicU64>,
}

impl Named {
    /// Returns the queue of a name.
    pub(crate) fn get(&self, name: &[u8]) -> Option<Arc<MessageQueue>> {
        self.queues.lock().get(name).cloned()
    }

    /// Makes a queue.
    ///
    /// # Errors
    ///
    /// EEXIST if there is one of the name, ENOSPC if there are too many, EMFILE if they hold too
    /// much.
    pub(crate) fn make(
        &self,
        name: &[u8],
        bounds: Bounds,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Arc<MessageQueue>> {
        let mut queues = self.queues.lock();
        if queues.contains_key(name) {
            return Err(errno::EEXIST.into());
        }
        if queues.len() >= MAX_NAMES {
            return Err(errno::ENOSPC.into());
        }
        let cost = bounds.cost();
        if cost > MAX_BYTES || self.budget.load(Ordering::Relaxed) + cost > MAX_BYTES {
            return Err(errno::EMFILE.into());
        }
        self.budget.fetch_add(cost, Ordering::Relaxed);
        let queue = Arc::new(MessageQueue {
            state: Mutex::default(),
            changes: WaitQueue::default(),
            bounds,
            mode,
            owner,
            budget: self.budget.clone(),
        });
        queues.insert(name.to_vec(), queue.clone());
        Ok(queue)
    }

    /// Takes a name away; the queue lives as long as it is open.
    pub(crate) fn remove(&self, name: &[u8]) {
        let removed = self.queues.lock().remove(name);
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bounds = Bounds {
        messages: 2,
        bytes: 8,
    };

    fn send(queue: &MessageQueue, text: &[u8], priority: u32) -> Option<Option<Notice>> {
        queue.send(&mut Some(text.to_vec()), priority)
    }

    #[test]
    fn messages_come_by_priority_and_age() {
        let named = Named::default();
        let queue = named.make(b"q", SMALL, 0o600, (0, 0)).unwrap();
        assert_eq!(
            named.make(b"q", SMALL, 0o600, (0, 0)).err(),
            Some(errno::EEXIST.into())
        );
        assert_eq!(send(&queue, b"low", 1), Some(None));
        assert_eq!(send(&queue, b"high", 7), Some(None));
        assert_eq!(send(&queue, b"more", 7), None, "full");
        assert_eq!(queue.ready() & (POLL_IN | POLL_OUT), POLL_IN);
        assert_eq!(queue.receive(), Some((b"high".to_vec(), 7)));
        send(&queue, b"late", 1).unwrap();
        assert_eq!(queue.receive(), Some((b"low".to_vec(), 1)));
        assert_eq!(queue.receive(), Some((b"late".to_vec(), 1)));
        assert_eq!(queue.receive(), None);
    }

    #[test]
    fn one_is_told_once_of_a_message_that_nobody_waits_for() {
        let named = Named::default();
        let queue = named.make(b"q", SMALL, 0o600, (0, 0)).unwrap();
        let notice = |pid: u32| Notice { pid, signal: None };
        assert_eq!(queue.notify(4, Some(notice(4)), |_| true), Ok(()));
        let busy = queue.notify(5, Some(notice(5)), |_| true);
        assert_eq!(busy, Err(errno::EBUSY.into()));
        assert_eq!(queue.notify(5, None, |_| true), Ok(()), "not its own");
        let receiver = queue.receiver();
        assert_eq!(send(&queue, b"a", 0), Some(None), "somebody waits");
        drop(receiver);
        queue.receive();
        assert_eq!(send(&queue, b"b", 0), Some(Some(notice(4))));
        queue.receive();
        assert_eq!(send(&queue, b"c", 0), Some(None), "once");
        assert_eq!(queue.notify(5, Some(notice(5)), |_| true), Ok(()));
        assert_eq!(
            queue.notify(6, Some(notice(6)), |_| false),
            Ok(()),
            "5 is dead"
        );
    }

    #[test]
    fn what_queues_may_hold_is_bounded_and_given_back() {
        let named = Named::default();
        let half = Bounds {
            messages: 1,
            bytes: MAX_BYTES / 2 - HEAD,
        };
        let open = named.make(b"a", half, 0, (0, 0)).unwrap();
        named.make(b"b", half, 0, (0, 0)).unwrap();
        let more = |name: &[u8]| named.make(name, SMALL, 0, (0, 0)).err();
        assert_eq!(more(b"c"), Some(errno::EMFILE.into()));
        named.remove(b"a");
        assert_eq!(more(b"c"), Some(errno::EMFILE.into()), "still open");
        drop(open);
        assert_eq!(more(b"c"), None);
    }
}

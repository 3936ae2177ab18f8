//! Watches of files and folders (`inotify`), and their queues of events.
//!
//! Files are known by their inode numbers. Changes are told by the node's own file systems
//! (`tmpfs/watch.rs`); what S's disk has does not change, and its watches stay silent.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;

use crate::error::{Result, errno};
use crate::object::{Object, POLL_IN, POLL_RDNORM};
use crate::wait::WaitQueue;

/// Events (Linux `include/uapi/linux/inotify.h`).
pub(crate) const ACCESS: u32 = 1;
pub(crate) const MODIFY: u32 = 2;
pub(crate) const ATTRIB: u32 = 4;
pub(crate) const CLOSE_WRITE: u32 = 8;
pub(crate) const CLOSE_NOWRITE: u32 = 0x10;
pub(crate) const OPEN: u32 = 0x20;
pub(crate) const MOVED_FROM: u32 = 0x40;
pub(crate) const MOVED_TO: u32 = 0x80;
pub(crate) const CREATE: u32 = 0x100;
pub(crate) const DELETE: u32 = 0x200;
pub(crate) const DELETE_SELF: u32 = 0x400;
pub(crate) const MOVE_SELF: u32 = 0x800;
pub(crate) const ALL_EVENTS: u32 = 0xfff;
const OVERFLOW: u32 = 0x4000;
const IGNORED: u32 = 0x8000;
pub(crate) const ISDIR: u32 = 0x4000_0000;
/// Flags of a watch.
pub(crate) const MASK_CREATE: u32 = 0x1000_0000;
pub(crate) const MASK_ADD: u32 = 0x2000_0000;
const ONESHOT: u32 = 0x8000_0000;

/// Events that wait at most in one queue (Linux's `fs.inotify.max_queued_events`).
const MAX_EVENTS: usize = 16_384;
/// Watches at most, of all queues together.
const MAX_WATCHES: usize = 8192;
/// Queues at most (Linux's `fs.inotify.max_user_instances`), and events of all queues together.
const MAX_QUEUES: usize = 128;
const MAX_WAITING: usize = 65_536;
/// Bytes of `struct inotify_event` without its name, and what names are padded to.
const HEADER: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Event {
    watch: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    /// Returns the bytes that the name takes, its final zero and padding included.
    fn name_len(&self) -> usize {
        match self.name.len() {
            0 => 0,
            len => (len + 1).next_multiple_of(HEADER),
        }
    }

    fn encode(&self, into: &mut Vec<u8>) {
        let len = self.name_len();
        into.extend_from_slice(&self.watch.to_le_bytes());
        into.extend_from_slice(&self.mask.to_le_bytes());
        into.extend_from_slice(&self.cookie.to_le_bytes());
        into.extend_from_slice(&u32::try_from(len).unwrap_or(0).to_le_bytes());
        into.extend_from_slice(&self.name);
        into.resize(into.len() + len - self.name.len(), 0);
    }
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    /// Inodes and masks, by the watch's number.
    watches: BTreeMap<i32, (u64, u32)>,
    last: i32,
}

/// A queue of events, and its watches.
#[derive(Debug)]
pub(crate) struct Inotify {
    state: Mutex<State>,
    queue: WaitQueue,
    all: Arc<Watches>,
    me: Weak<Inotify>,
}

/// The watches of all inotify queues of a node, by inode.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_inode: Mutex<BTreeMap<u64, Vec<Weak<Inotify>>>>,
    count: AtomicUsize,
    queues: AtomicUsize,
    /// Events that wait, of all queues together.
    waiting: AtomicUsize,
}

impl Watches {
    /// Returns whether anything is watched.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Returns the inodes that are watched.
    pub(crate) fn inodes(&self) -> Vec<u64> {
        self.by_inode.lock().keys().copied().collect()
    }

    /// Notifies the watches of an inode.
    pub(crate) fn tell(&self, inode: u64, mask: u32, cookie: u32, name: &[u8]) {
        if !self.any() {
            return;
        }
        // They may be the last to hold a queue: its end takes the lock.
        let watching: Vec<_> = {
            let by_inode = self.by_inode.lock();
            let there = by_inode.get(&inode).into_iter().flatten();
            there.filter_map(Weak::upgrade).collect()
        };
        for queue in watching {
            queue.happened(inode, mask, cookie, name);
        }
    }

    fn add(&self, inode: u64, queue: &Weak<Inotify>) -> Result<()> {
        if self.count.fetch_add(1, Ordering::AcqRel) >= MAX_WATCHES {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return Err(errno::ENOSPC.into());
        }
        self.by_inode
            .lock()
            .entry(inode)
            .or_default()
            .push(queue.clone());
        Ok(())
    }

    fn remove(&self, inode: u64, queue: &Weak<Inotify>) {
        let mut by_inode = self.by_inode.lock();
        let Some(there) = by_inode.get_mut(&inode) else {
            return;
        };
        let before = there.len();
        there.retain(|other| !other.ptr_eq(queue));
        self.count.fetch_sub(before - there.len(), Ordering::AcqRel);
        if there.is_empty() {
            by_inode.remove(&inode);
        }
    }
}

impl Inotify {
    /// Makes a queue.
    ///
    /// # Errors
    ///
    /// EMFILE if there are too many.
    pub(crate) fn new(all: &Arc<Watches>) -> Result<Arc<Self>> {
        if all.queues.fetch_add(1, Ordering::AcqRel) >= MAX_QUEUES {
            all.queues.fetch_sub(1, Ordering::AcqRel);
            return Err(errno::EMFILE.into());
        }
        Ok(Arc::new_cyclic(|me| Self {
            state: Mutex::default(),
            queue: WaitQueue::default(),
            all: all.clone(),
            me: me.clone(),
        }))
    }

    /// Watches an inode, or changes what is told of it; returns the watch's number.
    ///
    /// # Errors
    ///
    /// EEXIST if it is watched and must not be; ENOSPC if there are too many watches.
    pub(crate) fn watch(&self, inode: u64, mask: u32) -> Result<i32> {
        let mut state = self.state.lock();
        let there = state.watches.iter_mut().find(|(_, (of, _))| *of == inode);
        if let Some((&watch, (_, before))) = there {
            if mask & MASK_CREATE != 0 {
                return Err(errno::EEXIST.into());
            }
            *before = if mask & MASK_ADD != 0 {
                *before | mask
            } else {
                mask
            };
            return Ok(watch);
        }
        self.all.add(inode, &self.me)?;
        state.last += 1;
        let watch = state.last;
        state.watches.insert(watch, (inode, mask));
        Ok(watch)
    }

    /// Watches no more.
    ///
    /// # Errors
    ///
    /// EINVAL if there is no such watch.
    pub(crate) fn unwatch(&self, watch: i32) -> Result<()> {
        let mut state = self.state.lock();
        let (inode, _) = state.watches.remove(&watch).ok_or(errno::EINVAL)?;
        self.push(&mut state, watch, IGNORED, 0, &[]);
        drop(state);
        self.all.remove(inode, &self.me);
        self.queue.wake();
        Ok(())
    }

    fn happened(&self, inode: u64, mask: u32, cookie: u32, name: &[u8]) {
        let mut state = self.state.lock();
        let there = state.watches.iter().find(|(_, (of, _))| *of == inode);
        let Some((&watch, &(_, asked))) = there else {
            return;
        };
        let gone = mask & DELETE_SELF != 0;
        let told = mask & asked & ALL_EVENTS != 0;
        if told {
            self.push(&mut state, watch, mask, cookie, name);
        }
        let over = gone || told && asked & ONESHOT != 0;
        if over {
            state.watches.remove(&watch);
            self.push(&mut state, watch, IGNORED, 0, &[]);
        }
        drop(state);
        if over {
            self.all.remove(inode, &self.me);
        }
        if told || over {
            self.queue.wake();
        }
    }

    fn push(&self, state: &mut State, watch: i32, mask: u32, cookie: u32, name: &[u8]) {
        let mut event = Event {
            watch,
            mask,
            cookie,
            name: name.to_vec(),
        };
        let all = self.all.waiting.load(Ordering::Relaxed);
        if state.events.len() >= MAX_EVENTS || all >= MAX_WAITING {
            event = Event {
                watch: -1,
                mask: OVERFLOW,
                cookie: 0,
                name: Vec::new(),
            };
        }
        // The same again says nothing new.
        if state.events.back() != Some(&event) {
            state.events.push_back(event);
            self.all.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Object for Inotify {
    fn name(&self) -> &[u8] {
        b"anon_inode:inotify"
    }
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let mut state = self.state.lock();
        let mut bytes = Vec::new();
        while let Some(event) = state.events.front() {
            if bytes.len() + HEADER + event.name_len() > into.len() {
                break;
            }
            event.encode(&mut bytes);
            state.events.pop_front();
            self.all.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if bytes.is_empty() {
            let none = state.events.is_empty();
            return Err(if none { errno::EAGAIN } else { errno::EINVAL }.into());
        }
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EBADF.into())
    }

    fn ready(&self) -> u16 {
        if self.state.lock().events.is_empty() {
            0
        } else {
            POLL_IN | POLL_RDNORM
        }
    }

    fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    fn as_inotify(&self) -> Option<&Inotify> {
        Some(self)
    }

    fn mode(&self) -> u32 {
        0o600
    }

    fn readable(&self) -> usize {
        let state = self.state.lock();
        state
            .events
            .iter()
            .map(|event| HEADER + event.name_len())
            .sum()
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.all
            .waiting
            .fetch_sub(state.events.len(), Ordering::Relaxed);
        self.all.queues.fetch_sub(1, Ordering::AcqRel);
        let watches = core::mem::take(&mut state.watches);
        for (inode, _) in watches.into_values() {
            self.all.remove(inode, &self.me);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(queue: &Inotify) -> Vec<(i32, u32, u32, Vec<u8>)> {
        let mut bytes = vec![0; 4096];
        let len = queue.read(&mut bytes).unwrap_or(0);
        let (mut found, mut rest) = (Vec::new(), &bytes[..len]);
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let end = HEADER + word(12) as usize;
            let name = rest[HEADER..end]
                .split(|&b| b == 0)
                .next()
                .unwrap_or_default();
            found.push((word(0).cast_signed(), word(4), word(8), name.to_vec()));
            rest = &rest[end..];
        }
        found
    }

    #[test]
    fn events_are_told_to_those_who_asked_and_not_twice() {
        let all = Arc::new(Watches::default());
        let (one, other) = (Inotify::new(&all).unwrap(), Inotify::new(&all).unwrap());
        all.tell(5, CREATE, 0, b"nobody");
        assert_eq!(one.watch(5, CREATE | DELETE), Ok(1));
        assert_eq!(other.watch(5, MODIFY), Ok(1));
        for _ in 0..2 {
            all.tell(5, CREATE, 0, b"name");
        }
        all.tell(5, MODIFY, 0, b"name");
        assert_eq!(events(&one), [(1, CREATE, 0, b"name".to_vec())]);
        assert_eq!(events(&other), [(1, MODIFY, 0, b"name".to_vec())]);
        assert_eq!(one.watch(5, MODIFY | MASK_ADD), Ok(1));
        assert_eq!(one.watch(5, MASK_CREATE | 1), Err(errno::EEXIST.into()));
        assert_eq!(one.watch(6, ALL_EVENTS | ONESHOT), Ok(2));
        all.tell(6, ATTRIB, 0, b"");
        all.tell(6, ATTRIB, 0, b"");
        all.tell(5, DELETE_SELF, 0, b"");
        let expected = [
            (2, ATTRIB, 0, vec![]),
            (2, IGNORED, 0, vec![]),
            (1, IGNORED, 0, vec![]),
        ];
        assert_eq!(events(&one), expected);
        assert_eq!(one.unwatch(1), Err(errno::EINVAL.into()));
        drop((one, other));
        assert!(!all.any() && all.inodes().is_empty());
    }

    #[test]
    fn too_many_events_and_watches_are_said_to_be() {
        let all = Arc::new(Watches::default());
        let queue = Inotify::new(&all).unwrap();
        queue.watch(1, ALL_EVENTS).unwrap();
        for n in 0..MAX_EVENTS + 10 {
            all.tell(1, CREATE, 0, format!("{n}").as_bytes());
        }
        assert_eq!(queue.state.lock().events.len(), MAX_EVENTS + 1);
        let last = queue.state.lock().events.back().cloned().unwrap();
        assert_eq!((last.watch, last.mask), (-1, OVERFLOW));
        assert_eq!(queue.read(&mut [0; 20]), Err(errno::EINVAL.into()));
        for inode in 2..=MAX_WATCHES as u64 {
            queue.watch(inode, MODIFY).unwrap();
        }
        assert_eq!(queue.watch(1 << 30, MODIFY), Err(errno::ENOSPC.into()));
        let more: Vec<_> = (1..MAX_QUEUES)
            .map(|_| Inotify::new(&all).unwrap())
            .collect();
        assert!(Inotify::new(&all).is_err());
        drop((more, queue));
        assert!(Inotify::new(&all).is_ok() && all.waiting.load(Ordering::Relaxed) == 0);
    }
}

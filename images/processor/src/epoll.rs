//! Sets of files that are waited for together (`epoll`).

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::task::Waker;

use spin::Mutex;

use crate::error::{Result, errno};
use crate::files::{Kind, OpenFile};
use crate::object::{Object, POLL_ERR, POLL_HUP, POLL_IN, POLL_RDNORM};
use crate::wait::WaitQueue;

/// Flags beside the bits of poll (Linux `include/uapi/linux/eventpoll.h`).
pub(crate) const EPOLLONESHOT: u32 = 1 << 30;
pub(crate) const EPOLLET: u32 = 1 << 31;
/// Sets within sets at most (Linux `EP_MAX_NESTS`).
const MAX_NESTS: u32 = 4;

/// A file of a set.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) file: Weak<OpenFile>,
    /// Poll bits that are asked for, and flags.
    pub(crate) events: u32,
    pub(crate) data: u64,
    /// It was reported, and is silent until it is changed (`EPOLLONESHOT`).
    disarmed: bool,
    /// Changes of the file that were reported, for `EPOLLET`.
    reported: Option<u64>,
}

/// A set.
#[derive(Debug, Default)]
pub(crate) struct Epoll {
    items: Mutex<BTreeMap<i32, Item>>,
    queue: WaitQueue,
}

impl Epoll {
    /// Adds a file under its number.
    pub(crate) fn add(&self, fd: i32, file: &Arc<OpenFile>, events: u32, data: u64) -> Result<()> {
        let mut items = self.items.lock();
        let there = items.get(&fd).and_then(|item| item.file.upgrade());
        if there.is_some_and(|there| Arc::ptr_eq(&there, file)) {
            return Err(errno::EEXIST.into());
        }
        let item = Item {
            file: Arc::downgrade(file),
            events,
            data,
            disarmed: false,
            reported: None,
        };
        items.insert(fd, item);
        drop(items);
        self.queue.wake();
        Ok(())
    }

    /// Changes what is asked of a file.
    pub(crate) fn modify(
        &self,
        fd: i32,
        file: &Arc<OpenFile>,
        events: u32,
        data: u64,
    ) -> Result<()> {
        {
            let mut items = self.items.lock();
            let item = items
                .get_mut(&fd)
                .filter(|item| item.is(file))
                .ok_or(errno::ENOENT)?;
            (item.events, item.data, item.disarmed, item.reported) = (events, data, false, None);
        }
        self.queue.wake();
        Ok(())
    }

    /// Takes a file out.
    pub(crate) fn remove(&self, fd: i32, file: &Arc<OpenFile>) -> Result<()> {
        let mut items = self.items.lock();
        items
            .get(&fd)
            .filter(|item| item.is(file))
            .ok_or(errno::ENOENT)?;
        items.remove(&fd);
        Ok(())
    }

    /// Returns up to `most` files that are ready, as bits and data. `ready` tells the bits of one.
    pub(crate) fn take_ready(
        &self,
        most: usize,
        ready: impl Fn(&OpenFile) -> u16,
    ) -> Vec<(u32, u64)> {
        let mut items = self.items.lock();
        // Files that were closed leave by themselves.
        items.retain(|_, item| item.file.strong_count() > 0);
        let mut found = Vec::new();
        for item in items.values_mut() {
            let Some(file) = item.file.upgrade() else {
                continue;
            };
            let bits = item.holds(ready(&file));
            let changes = changes(&file);
            let old = item.events & EPOLLET != 0 && item.reported == Some(changes);
            if bits == 0 || item.disarmed || old {
                continue;
            }
            item.reported = Some(changes);
            item.disarmed = item.events & EPOLLONESHOT != 0;
            found.push((u32::from(bits), item.data));
            if found.len() == most {
                break;
            }
        }
        found
    }

    /// Returns whether waiting for `other` would end in waiting for this set.
    pub(crate) fn is_within(&self, other: &Epoll, depth: u32) -> bool {
        if core::ptr::eq(self, other) || depth > MAX_NESTS {
            return true;
        }
        let files: Vec<_> = other
            .items
            .lock()
            .values()
            .filter_map(|item| item.file.upgrade())
            .collect();
        files.iter().any(|file| match &file.kind {
            Kind::Object(object) => object
                .as_epoll()
                .is_some_and(|inner| self.is_within(inner, depth + 1)),
            _ => false,
        })
    }

    fn objects(&self) -> Vec<(Arc<OpenFile>, Item)> {
        let items = self.items.lock();
        let files = items
            .values()
            .filter_map(|item| Some((item.file.upgrade()?, item.clone())));
        files.collect()
    }
}

impl Item {
    fn is(&self, file: &Arc<OpenFile>) -> bool {
        core::ptr::eq(self.file.as_ptr(), Arc::as_ptr(file))
    }

    /// Returns which of the bits that hold are to be told.
    fn holds(&self, bits: u16) -> u16 {
        let asked = u16::try_from(self.events & 0xffff).unwrap_or(0);
        bits & (asked | POLL_ERR | POLL_HUP)
    }
}

fn changes(file: &OpenFile) -> u64 {
    match &file.kind {
        Kind::Object(object) => object.changes(),
        _ => 0,
    }
}

impl Object for Epoll {
    fn name(&self) -> &[u8] {
        b"anon_inode:[eventpoll]"
    }
    fn read(&self, _: &mut [u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn write(&self, _: &[u8]) -> Result<usize> {
        Err(errno::EINVAL.into())
    }
    fn ready(&self) -> u16 {
        let holds = self.objects().iter().any(|(file, item)| match &file.kind {
            Kind::Object(object) => !item.disarmed && item.holds(object.ready()) != 0,
            _ => false,
        });
        if holds { POLL_IN | POLL_RDNORM } else { 0 }
    }
    fn queue(&self) -> &WaitQueue {
        &self.queue
    }
    fn register(&self, waker: &Waker) {
        self.queue.register(waker);
        for (file, _) in self.objects() {
            if let Kind::Object(object) = &file.kind {
                object.register(waker);
            }
        }
    }
    fn as_epoll(&self) -> Option<&Epoll> {
        Some(self)
    }
    fn mode(&self) -> u32 {
        0o600
    }
    fn readable(&self) -> usize {
        0
    }
}

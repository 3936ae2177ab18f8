//! Doors through which one task goes at a time, by inode: whoever brings what a peer has gathered.
//!
//! Held over recalls and over the disk's work, never while a task waits for another door.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};

use spin::Mutex;

/// Inodes are told apart by this many remainders.
const DOORS: usize = 64;

#[derive(Debug, Default)]
struct Door {
    taken: bool,
    waiting: Vec<Waker>,
}

/// Doors of all inodes.
#[derive(Debug)]
pub(crate) struct Doors([Mutex<Door>; DOORS]);

impl Default for Doors {
    fn default() -> Self {
        Self(core::array::from_fn(|_| Mutex::default()))
    }
}

/// A door that others wait at until this is dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Mutex<Door>);

impl Doors {
    /// Waits at an inode's door.
    pub(crate) async fn pass(&self, inode: u32) -> Pass<'_> {
        let door = &self.0[inode as usize % DOORS];
        poll_fn(|context| {
            let mut at = door.lock();
            if !at.taken {
                at.taken = true;
                return Poll::Ready(Pass(door));
            }
            let waker = context.waker();
            if !at.waiting.iter().any(|known| known.will_wake(waker)) {
                at.waiting.push(waker.clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut door = self.0.lock();
            door.taken = false;
            core::mem::take(&mut door.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

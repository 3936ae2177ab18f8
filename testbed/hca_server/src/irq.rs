//! Interrupts: MSI-X vectors, each an eventfd that QEMU gave, and the pin.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::debug;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::pin::Pin;

/// A device's vectors, and the pin in their stead.
///
/// The lock is a leaf: nothing else is taken under it.
#[derive(Debug)]
pub struct Vectors {
    eventfds: Mutex<Vec<Option<OwnedFd>>>,
    /// The interrupt pin.
    pub pin: Pin,
}

impl Vectors {
    /// Makes `count` vectors, none connected.
    #[must_use]
    pub fn new(count: u16) -> Self {
        Self {
            eventfds: Mutex::new((0..count).map(|_| None).collect()),
            pin: Pin::default(),
        }
    }

    /// Connects vectors from `start` on. Gives false, and changes nothing, if there are not as
    /// many.
    pub fn connect(&self, start: usize, fds: Vec<OwnedFd>) -> bool {
        let mut eventfds = self.lock();
        let Some(slots) = slots(&mut eventfds, start, fds.len()) else {
            return false;
        };
        for (slot, fd) in slots.iter_mut().zip(fds) {
            // A full counter must not hold up the device: the interrupt is pending already.
            if let Err(error) =
                fcntl_getfl(&fd).and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            {
                debug!("an eventfd stays blocking: {error}");
            }
            *slot = Some(fd);
        }
        true
    }

    /// Disconnects `count` vectors from `start` on. Gives false, and changes nothing, if there are
    /// not as many.
    pub fn disconnect(&self, start: usize, count: usize) -> bool {
        let mut eventfds = self.lock();
        let Some(slots) = slots(&mut eventfds, start, count) else {
            return false;
        };
        slots.fill_with(|| None);
        true
    }

    /// Disconnects all.
    pub fn clear(&self) {
        self.lock().fill_with(|| None);
    }

    /// Raises a vector. One that is not connected is lost, as on a bus whose function has MSI-X
    /// off.
    pub fn raise(&self, vector: u16) {
        let eventfds = self.lock();
        let Some(Some(fd)) = eventfds.get(usize::from(vector)) else {
            debug!("vector {vector} is not connected");
            return;
        };
        // By now all DMA writes of the event are in the guest's memory, as the model made them
        // first: an interrupt never overtakes the entry that it tells of (an MSI is a posted write
        // itself).
        if let Err(error) = rustix::io::write(fd, &1u64.to_ne_bytes()) {
            debug!("vector {vector}: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<OwnedFd>>> {
        self.eventfds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slots(
    eventfds: &mut [Option<OwnedFd>],
    start: usize,
    count: usize,
) -> Option<&mut [Option<OwnedFd>]> {
    eventfds.get_mut(start..start.checked_add(count)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_vector_counts_on_its_own_eventfd() {
        let vectors = Vectors::new(3);
        let fd = eventfd(0, EventfdFlags::empty()).expect("eventfd");
        assert!(vectors.connect(2, vec![fd.try_clone().expect("clone")]));
        vectors.raise(0);
        vectors.raise(2);
        vectors.raise(2);
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).expect("read");
        assert_eq!(u64::from_ne_bytes(count), 2);
    }

    #[test]
    fn vectors_beyond_the_last_are_refused_whole() {
        let vectors = Vectors::new(2);
        let fds = (0..2)
            .map(|_| eventfd(0, EventfdFlags::empty()).expect("eventfd"))
            .collect();
        assert!(!vectors.connect(1, fds));
        assert!(!vectors.disconnect(usize::MAX, 2));
        vectors.raise(7);
    }
}

//! The interrupt pin, an eventfd that QEMU gave, with a level behind it.
//!
//! The rule is VFIO's (Linux `drivers/vfio/pci/vfio_pci_intrs.c`): telling the client masks the
//! interrupt, and when the client unmasks it, by a message or by an eventfd that KVM signals at the
//! guest's end of interrupt, it is told again as long as the level holds.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use log::debug;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};

/// A device's interrupt pin.
#[derive(Debug, Default)]
pub struct Pin {
    line: Arc<Line>,
    /// Taken before the line's lock, never under it.
    unmasker: Mutex<Option<Unmasker>>,
}

/// The level and whom to tell of it. The lock is a leaf: nothing else is taken under it.
#[derive(Debug, Default)]
struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    asserted: bool,
    masked: bool,
    client: Option<OwnedFd>,
}

impl State {
    /// Tells the client of a level that it has not heard of.
    fn tell(&mut self) {
        if !self.asserted || self.masked {
            return;
        }
        let Some(fd) = &self.client else { return };
        self.masked = true;
        if let Err(error) = rustix::io::write(fd, &1_u64.to_ne_bytes()) {
            debug!("the interrupt pin: {error}");
        }
    }
}

impl Line {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.tell();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pin {
    /// Asserts or deasserts the pin.
    pub fn set(&self, asserted: bool) {
        self.line.change(|state| state.asserted = asserted);
    }

    /// Connects the client's eventfd, or none. The interrupt is unmasked by that.
    pub fn connect(&self, client: Option<OwnedFd>) {
        self.line.change(|state| {
            state.client = client;
            state.masked = false;
        });
    }

    /// Masks or unmasks the interrupt.
    pub fn mask(&self, masked: bool) {
        self.line.change(|state| state.masked = masked);
    }

    /// Has the interrupt unmasked whenever an eventfd is signalled, or by messages only.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or thread left for it.
    pub fn unmask_by(&self, signal: Option<OwnedFd>) -> Result<(), Errno> {
        let unmasker = signal
            .map(|signal| Unmasker::start(signal, Arc::clone(&self.line)))
            .transpose()?;
        let mut place = self.unmasker.lock().unwrap_or_else(PoisonError::into_inner);
        *place = unmasker;
        Ok(())
    }

    /// Forgets the client. The pin is deasserted: its device is reset.
    pub fn clear(&self) {
        let mut place = self.unmasker.lock().unwrap_or_else(PoisonError::into_inner);
        *place = None;
        *self.line.lock() = State::default();
    }
}

/// A thread that unmasks the interrupt when it is signalled.
#[derive(Debug)]
struct Unmasker {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Unmasker {
    fn start(signal: OwnedFd, line: Arc<Line>) -> Result<Self, Errno> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let told = stop.try_clone().map_err(|_| Errno::MFILE)?;
        let thread = std::thread::Builder::new()
            .name("unmask".into())
            .spawn(move || {
                while was_signalled(&signal, &told) {
                    line.change(|state| state.masked = false);
                }
            })
            .map_err(|_| Errno::AGAIN)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Waits for a signal and takes it. False when it is time to stop.
fn was_signalled(signal: &OwnedFd, stop: &OwnedFd) -> bool {
    let mut ready = [
        PollFd::new(signal, PollFlags::IN),
        PollFd::new(stop, PollFlags::IN),
    ];
    if retry_on_intr(|| poll(&mut ready, None)).is_err() || !ready[1].revents().is_empty() {
        return false;
    }
    let mut count = [0; 8];
    matches!(
        rustix::io::read(signal, &mut count),
        Ok(8) | Err(Errno::AGAIN | Errno::INTR)
    )
}

impl Drop for Unmasker {
    fn drop(&mut self) {
        if rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal() -> (OwnedFd, OwnedFd) {
        let fd = eventfd(0, EventfdFlags::empty()).expect("eventfd");
        (fd.try_clone().expect("clone"), fd)
    }

    /// Waits until it is signalled.
    fn take(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).expect("read");
        u64::from_ne_bytes(count)
    }

    fn is_told(fd: &OwnedFd) -> bool {
        let mut ready = [PollFd::new(fd, PollFlags::IN)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut ready, Some(&now)) == Ok(1)
    }

    #[test]
    fn a_level_is_told_once_and_again_when_unmasked_while_it_holds() {
        let pin = Pin::default();
        let (client, told) = signal();
        pin.connect(Some(client));
        pin.set(true);
        pin.set(false);
        pin.set(true);
        assert_eq!(take(&told), 1);
        pin.mask(false);
        assert_eq!(take(&told), 1);
        pin.set(false);
        pin.mask(false);
        assert!(!is_told(&told));
    }

    #[test]
    fn a_level_before_the_client_is_told_to_it() {
        let pin = Pin::default();
        pin.set(true);
        let (client, told) = signal();
        pin.connect(Some(client));
        assert_eq!(take(&told), 1);
    }

    #[test]
    fn an_eventfd_unmasks_as_often_as_it_is_signalled() {
        let pin = Pin::default();
        let ((client, told), (unmask, end)) = (signal(), signal());
        pin.connect(Some(client));
        pin.unmask_by(Some(unmask)).expect("a thread");
        pin.set(true);
        for _ in 0..3 {
            assert_eq!(take(&told), 1);
            rustix::io::write(&end, &1_u64.to_ne_bytes()).expect("write");
        }
        assert_eq!(take(&told), 1);
        pin.clear();
        pin.set(true);
        assert!(!is_told(&told));
    }
}

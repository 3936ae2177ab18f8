//! The state of an interrupt vector, fired or not, and the task that waits for it: [`Slot`].

use core::task::{Poll, Waker};

use crate::sync::{AtomicBool, AtomicWaker, Ordering};

/// One vector. Interrupts on any core fire it, one task waits for it.
pub(crate) struct Slot {
    fired: AtomicBool,
    waker: AtomicWaker,
}

impl Slot {
    #[cfg(not(interleave))]
    pub(crate) const fn new() -> Self {
        Self {
            fired: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    #[cfg(interleave)]
    pub(crate) fn new() -> Self {
        Self {
            fired: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// The interrupt came.
    pub(crate) fn fire(&self) {
        self.fired.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready when the interrupt came since this was last ready. Who waits is noted before the look,
    /// so that one that comes in between wakes it.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<()> {
        self.waker.register(waker);
        if self.fired.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(all(test, not(interleave)))]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_before_the_wait_counts_once() {
        let slot = Slot::new();
        slot.fire();
        slot.fire();
        assert_eq!(slot.poll(Waker::noop()), Poll::Ready(()));
        assert_eq!(slot.poll(Waker::noop()), Poll::Pending);
    }
}

#[cfg(all(test, interleave))]
mod interleavings {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool as Flag;
    use std::task::Wake;

    use loom::thread;

    use super::*;

    /// Remembers that it was woken.
    #[derive(Default)]
    struct Woken(Flag);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// A task looks once while the interrupt comes: it sees it, or is woken to look again.
    fn interrupt_is_seen(look: fn(&Slot, &Waker) -> Poll<()>) {
        loom::model(move || {
            let slot = Arc::new(Slot::new());
            let device = slot.clone();
            let woken = Arc::new(Woken::default());
            let interrupt = thread::spawn(move || device.fire());
            let seen = look(&slot, &Waker::from(woken.clone())).is_ready();
            interrupt.join().expect("it fires and ends");
            assert!(seen || woken.0.load(Ordering::SeqCst), "slept over");
        });
    }

    #[test]
    fn no_interrupt_is_slept_over() {
        interrupt_is_seen(Slot::poll);
    }

    #[test]
    #[should_panic(expected = "slept over")]
    fn looking_before_the_waker_is_there_is_found() {
        interrupt_is_seen(|slot, waker| {
            if slot.fired.swap(false, Ordering::AcqRel) {
                return Poll::Ready(());
            }
            slot.waker.register(waker);
            Poll::Pending
        });
    }
}

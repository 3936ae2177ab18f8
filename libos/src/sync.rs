//! Locks and atomics of what interrupts and other cores reach. Under `cfg(interleave)` they are
//! loom's, which tries all orders.

#[cfg(not(interleave))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(interleave))]
pub(crate) use futures_util::task::AtomicWaker;
#[cfg(not(interleave))]
pub(crate) use spin::Mutex;

#[cfg(interleave)]
pub(crate) use instead::{AtomicWaker, Mutex};
#[cfg(interleave)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(interleave)]
mod instead {
    use core::task::Waker;

    /// loom's, with spin's face.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("who panics ends the test")
        }
    }

    /// loom's, with the face of `futures_util`'s.
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self(loom::future::AtomicWaker::new())
        }

        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }
}

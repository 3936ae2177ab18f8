//! The locks and atomics of shared state, which the model checker can replace; in this crate's own tests
//! the locks are counted.

pub(crate) use locks::{AtomicU32, AtomicU64, MutexGuard, Ordering};

#[cfg(any(interleave, not(test)))]
pub(crate) use locks::Mutex;

#[cfg(all(not(interleave), test))]
pub(crate) use counted::Mutex;

#[cfg(all(not(interleave), test))]
pub(crate) mod counted {
    //! spin's mutex that counts how often a thread takes one.

    use std::cell::Cell;

    thread_local! {
        static TAKEN: Cell<u32> = const { Cell::new(0) };
    }

    /// Returns how many locks this thread has taken since the last call.
    pub(crate) fn taken() -> u32 {
        TAKEN.replace(0)
    }

    #[derive(Default)]
    pub(crate) struct Mutex<T>(locks::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(locks::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> super::MutexGuard<'_, T> {
            TAKEN.set(TAKEN.get() + 1);
            self.0.lock()
        }
    }
}

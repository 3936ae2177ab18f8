//! The locks and atomics of shared state. Under `cfg(interleave)` they are shuttle's, which tries the
//! orders in which cores can come to them (`testbed/interleave`).

#[cfg(not(interleave))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(all(not(interleave), not(test)))]
pub(crate) use spin::{Mutex, MutexGuard};

#[cfg(all(not(interleave), test))]
pub(crate) use counted::Mutex;
#[cfg(all(not(interleave), test))]
pub(crate) use spin::MutexGuard;

#[cfg(interleave)]
pub(crate) use instead::Mutex;
#[cfg(interleave)]
pub(crate) use shuttle::sync::MutexGuard;
#[cfg(interleave)]
pub(crate) use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(interleave)]
mod instead {
    /// shuttle's mutex with spin's interface.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> super::MutexGuard<'_, T> {
            self.0.lock().expect("a panic ends the test")
        }
    }
}

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
    pub(crate) struct Mutex<T>(spin::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(spin::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> super::MutexGuard<'_, T> {
            TAKEN.set(TAKEN.get() + 1);
            self.0.lock()
        }
    }
}

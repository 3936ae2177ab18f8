//! The locks and atomics of state that cores share.
//!
//! They are spin's and the CPU's. Under `cfg(interleave)` they are shuttle's, which tries the
//! orders in which cores can come to them (`cargo xtask interleave`). With the feature `count`, for
//! tests, each thread counts the mutexes that it locks.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(all(not(interleave), feature = "count"))]
extern crate std;

#[cfg(all(not(interleave), feature = "count"))]
pub use counted::{Mutex, taken};

#[cfg(not(interleave))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(all(not(interleave), not(feature = "count")))]
pub use spin::Mutex;
#[cfg(not(interleave))]
pub use spin::MutexGuard;

#[cfg(interleave)]
pub use instead::Mutex;
#[cfg(interleave)]
pub use shuttle::sync::MutexGuard;
#[cfg(interleave)]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(all(not(interleave), feature = "count"))]
mod counted {
    use core::cell::Cell;

    std::thread_local! {
        static TAKEN: Cell<u32> = const { Cell::new(0) };
    }

    /// Returns how many locks this thread has taken since the last call.
    pub fn taken() -> u32 {
        TAKEN.replace(0)
    }

    /// spin's mutex, counted.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(spin::Mutex<T>);

    impl<T> Mutex<T> {
        /// Returns an unlocked mutex.
        pub const fn new(value: T) -> Self {
            Self(spin::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> super::MutexGuard<'_, T> {
            TAKEN.set(TAKEN.get() + 1);
            self.0.lock()
        }
    }
}

#[cfg(interleave)]
mod instead {
    /// shuttle's mutex with spin's interface.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// Returns an unlocked mutex.
        pub const fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        ///
        /// # Panics
        ///
        /// When a holder panicked, which ends the test anyway.
        pub fn lock(&self) -> super::MutexGuard<'_, T> {
            self.0.lock().expect("a panic ends the test")
        }
    }
}

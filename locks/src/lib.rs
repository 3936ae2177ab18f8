//! The locks and atomics of state that cores share.
//!
//! They are spin's and the CPU's. Under `cfg(interleave)` they are shuttle's, which tries the orders in
//! which cores can come to them (`cargo xtask interleave`).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(not(interleave))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(not(interleave))]
pub use spin::{Mutex, MutexGuard};

#[cfg(interleave)]
pub use instead::Mutex;
#[cfg(interleave)]
pub use shuttle::sync::MutexGuard;
#[cfg(interleave)]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

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

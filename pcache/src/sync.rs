//! The locks of what cores share. Under `cfg(interleave)` they are shuttle's, which tries the orders in which cores can come
//! to them (`testbed/interleave`).

#[cfg(not(interleave))]
pub(crate) use spin::{Mutex, MutexGuard};

#[cfg(interleave)]
pub(crate) use instead::Mutex;
#[cfg(interleave)]
pub(crate) use shuttle::sync::MutexGuard;

#[cfg(interleave)]
mod instead {
    /// shuttle's, with spin's face.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> super::MutexGuard<'_, T> {
            self.0.lock().expect("who panics ends the test")
        }
    }
}

//! The locks and atomics of shared state, which the model checker can replace.

pub(crate) use locks::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};

//! The locks of what tasks on different cores share, which the model checker can replace.

pub(crate) use locks::{Mutex, MutexGuard};

//! Tasks of a core: the executor, its queue, timers and the clock.

#[cfg(any(test, target_os = "none"))]
mod hpet;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod run_queue;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod shortest;

// Modules that exist on the machine only, not on the host.
#[cfg(target_os = "none")]
pub(crate) mod executor;
#[cfg(target_os = "none")]
pub(crate) mod time;
#[cfg(target_os = "none")]
pub(crate) mod timer;

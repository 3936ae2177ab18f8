//! Cores: their start, interrupts, traps, and the way into programs and back.

#[cfg(any(test, target_os = "none"))]
mod errata;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod interrupt_slot;

// Modules that exist on the machine only, not on the host.
#[cfg(target_os = "none")]
pub(crate) mod apic;
#[cfg(target_os = "none")]
pub(crate) mod core_local;
#[cfg(target_os = "none")]
pub(crate) mod fpu;
#[cfg(target_os = "none")]
pub(crate) mod identify;
#[cfg(target_os = "none")]
pub(crate) mod interrupts;
#[cfg(target_os = "none")]
pub mod quirks;
#[cfg(target_os = "none")]
pub(crate) mod random;
#[cfg(target_os = "none")]
pub(crate) mod segments;
#[cfg(target_os = "none")]
pub(crate) mod smp;
#[cfg(target_os = "none")]
pub(crate) mod traps;
#[cfg(target_os = "none")]
pub(crate) mod user;
#[cfg(target_os = "none")]
pub mod vdso;

//! The seam between drivers and machines.
//!
//! Traits only: a driver is written against [`Platform`] and never learns whether its registers are
//! a mapped BAR on metal, a trapped BAR in QEMU or a model in the same process. libos implements
//! the traits for the unikernels; a test harness implements them over the device model.
//!
//! Three rules hold for every implementation:
//!
//! * Registers and DMA memory are never lent as references: a device changes them behind the
//!   compiler's back. They are read and written by value ([`Registers`], [`DmaBuffer`]).
//! * Ordering between DMA memory and registers is stated at the place that needs it, by
//!   [`fence::publish`] and [`fence::observe`].
//! * Time is the platform's ([`Platform::now`]), so a test can own it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod addr;
mod dma;
pub mod fence;
mod platform;
mod time;

pub use addr::{BusAddr, PhysAddr};
pub use dma::DmaBuffer;
pub use platform::{ConfigSpace, Error, InterruptVector, Platform, Registers};
pub use time::{Duration, Instant};

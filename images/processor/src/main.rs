//! P's image: wires the processor's logic to libos, the driver and FIT. On the host this is an
//! empty program.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod wiring;

libos::entry!(wiring::main);

//! Starts an image from UEFI firmware. On the host this is an empty program.
//!
//! The image is a section of this program. It is copied to memory that the firmware gives, which is
//! then left: the image is entered with page tables of the loader's and the record that the crate
//! `handover` describes. Whatever goes wrong before is said on the firmware's console, and the
//! firmware goes on with what it would start next.
// UNSAFETY: turns the firmware's memory into slices, leaves the firmware, loads page tables and
// jumps.
#![cfg_attr(target_os = "uefi", no_std, no_main)]
#![cfg_attr(target_os = "uefi", expect(unsafe_code, reason = "machine entry"))]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod firmware;
#[cfg(target_os = "uefi")]
mod jump;

#[cfg(not(target_os = "uefi"))]
fn main() {}

//! The pure parts of the UEFI loader: what it reads of itself and of the image, and the page tables
//! it makes.
//!
//! * [`sections`]: the image and the command line are sections of the loader's own PE file, which
//!   the build adds.
//! * [`image`]: the image's ELF file. * [`tables`]: page tables. * [`command_line`]: where the line
//!   comes from.
//!
//! `main.rs` wires them to the firmware.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command_line;
mod error;
pub mod image;
pub mod sections;
pub mod tables;

pub use error::Error;

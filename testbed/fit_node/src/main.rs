//! The image: a node that joins a cluster and plays the part that its command line names. On the
//! host this is an empty program.
//!
//! `docs/user/nodes.md` has the options and the lines that it prints.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod image;

libos::entry!(image::main);

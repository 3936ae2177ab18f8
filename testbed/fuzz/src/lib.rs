//! Fuzz targets: each takes any bytes, feeds them to something that takes foreign bytes apart, and
//! asserts what must hold.
//!
//! * [`TARGETS`]: all of them, a file each in `targets`. Some read their bytes as they stand, some
//!   take them as the script of a hostile peer, disk, guest or device.
//! * [`Target`]: a name, the function, and seeds: inputs that mean something, where the search
//!   begins.
//! * `main.rs` (feature `engine`) hands the bytes of libFuzzer to a target, by `cargo xtask fuzz`;
//!   `tests/seeds.rs` runs the seeds and what is near them as plain tests, without coverage.
//!
//! A panic is a finding, and so are an input that takes seconds and one that takes hundreds of
//! megabytes. `docs/testing.md` tells how to run one, how to do a finding again, and how to add a
//! target.
#![forbid(unsafe_code)]

mod input;
mod targets;

/// Fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name on the command line.
    pub name: &'static str,
    /// Takes the bytes; panics when something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input that is of use.
    pub max_len: usize,
}

pub use targets::{PLANTED, TARGETS};

/// Returns the target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS
        .iter()
        .chain([&PLANTED])
        .find(|target| target.name == name)
}

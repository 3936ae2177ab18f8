//! `bench miss --scale`: misses a second with 1 to 4 cores and 1 to 8 threads.

use std::path::Path;

use anyhow::{Result, bail};

/// Cores of P, and threads of the program.
pub(super) const CORES: [u32; 3] = [1, 2, 4];
/// See [`CORES`].
pub(super) const THREADS: [u32; 4] = [1, 2, 4, 8];

pub(super) fn measure(_folder: &Path, _program: &Path) -> Result<()> {
    bail!(
        "P runs programs of one thread only, so {CORES:?} cores and {THREADS:?} threads can't be compared yet"
    )
}

//! The programs that run with all and with a part of their memory local.

use anyhow::Result;

use crate::run;

/// Shares of a program's memory that are local, in per cent. The first is ample, for all to be
/// compared with.
pub(super) const SHARES: [f64; 4] = [100.0, 50.0, 25.0, 12.5];
/// The names of all programs.
pub(super) const NAMES: [&str; 5] = ["random", "scan", "qsort", "hash", "sort"];
/// Memory beside the working set, in KiB: the program itself, its stack and page tables.
const BESIDE: u64 = 512;
/// MiB of a region, for the programs that have one.
const REGION: &str = "8";
/// A granule of the cache, in KiB.
const GRANULE: u64 = 64;

/// A program and what it needs.
pub(super) struct Program {
    /// Its name.
    pub(super) name: &'static str,
    /// Its arguments: `pages`'s, or busybox's.
    pub(super) args: Vec<&'static str>,
    /// The program is busybox, not `pages`.
    pub(super) is_busybox: bool,
    /// Its working set in KiB.
    pub(super) working_set: u64,
}

/// Word lists, by their names below the folder that each system keeps them in.
pub(super) const WORDS: [&str; 2] = ["web2", "american-english-huge"];

/// Returns all programs. The memory of `sort` is measured here.
pub(super) fn all() -> Result<Vec<Program>> {
    let pages = |name, args: &[&'static str]| Program {
        name,
        args: args.to_vec(),
        is_busybox: false,
        working_set: 8 << 10,
    };
    Ok(vec![
        pages("random", &["random", REGION, "4000"]),
        pages("scan", &["scan", REGION, "3"]),
        pages("qsort", &["qsort", REGION]),
        pages("hash", &["hash", REGION, "4000"]),
        Program {
            name: "sort",
            args: vec!["sort", "-o", "/dev/null"],
            is_busybox: true,
            working_set: run::sort_peak()? >> 10,
        },
    ])
}

impl Program {
    /// Returns the local memory in KiB for a share.
    pub(super) fn local(&self, share: f64) -> u64 {
        // A cache of sets needs more than the working set to hold it.
        let factor = if share >= 100.0 { 2.0 } else { share / 100.0 };
        // Sizes of programs: far below 2^52.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a product of positive numbers far below 2^52"
        )]
        let local = (self.working_set as f64 * factor) as u64 + BESIDE;
        local.next_multiple_of(GRANULE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_memory_is_a_share_and_what_lies_beside() {
        let program = Program {
            name: "x",
            args: vec![],
            is_busybox: false,
            working_set: 16 << 10,
        };
        assert_eq!(program.local(100.0), (32 << 10) + BESIDE);
        assert_eq!(program.local(12.5), (2 << 10) + BESIDE);
    }
}

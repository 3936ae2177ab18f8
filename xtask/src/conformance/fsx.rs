//! fsx: random operations on one file, each checked against what the file must hold.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::crates::install;
use super::suite::{Case, Ended, FOLDER, Outcome, Suite, Verdict, last_line};

/// The version that is run.
const VERSION: &str = "0.3.2";
/// Operations of a case; ten cases on S's disk make a million.
const OPERATIONS: u32 = 100_000;
/// Seeds of the cases on S's disk, and of those in P's own memory.
const ON_DISK: u32 = 10;
const IN_MEMORY: u32 = 2;
/// Seconds for a case.
const LIMIT: u64 = 3600;
/// Operations and how often each comes. Syncs are rarer, as they take S a commit each.
const WEIGHTS: &str = "flen = 262144\n\
    [weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 10\nread = 10\nwrite = 10\n\
    truncate = 10\nfsync = 0.2\nfdatasync = 0.2\nposix_fallocate = 5\npunch_hole = 5\nsendfile = 5\n\
    posix_fadvise = 1\ncopy_file_range = 5\n";

/// The suite. A case is a seed on a file system.
pub(super) struct Fsx;

impl Suite for Fsx {
    fn name(&self) -> &'static str {
        "fsx"
    }

    fn about(&self) -> &'static str {
        "The crate fsx 0.3.2: reads, writes, mappings read and written, cuts, holes, copies and \
         syncs of one file of up to 256 KB, 100,000 by each seed."
    }

    fn packages(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare(&self, folder: &Path) -> Result<Vec<Case>> {
        install(folder, self.name(), VERSION)?;
        fs::write(folder.join("fsx.toml"), WEIGHTS).context("can't write fsx's settings")?;
        let case = |place: &str, path: &str, seed: u32| Case {
            name: format!("{place}-{seed}"),
            command: format!(
                "exec {FOLDER}/fsx-{VERSION} -f {FOLDER}/fsx.toml -N {OPERATIONS} -S {seed} -P /tmp {path}/fsx-{seed}"
            ),
            limit: LIMIT,
        };
        let disk = (1..=ON_DISK).map(|seed| case("disk", FOLDER, seed));
        let memory = (1..=IN_MEMORY).map(|seed| case("memory", "/tmp/case", seed));
        Ok(disk.chain(memory).collect())
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let outcome = match ended {
            Ended::Status(0) => Outcome::Pass,
            _ => Outcome::Fail,
        };
        Verdict::whole(outcome, format!("{ended}: {}", last_line(output)))
    }
}

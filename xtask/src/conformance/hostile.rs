//! trinity and crashme: random system calls and random code. They ask that nothing but the program
//! ends.

use std::path::Path;

use anyhow::Result;

use super::suite::{Case, Ended, Outcome, Suite, Verdict, last_line};

/// Runs of each program, each with a seed of its own.
const SEEDS: u32 = 5;
/// Seconds after which trinity is told to end. A number of calls would not bound it: it kills a
/// child whose call blocks after 30 s only.
const SECONDS: u32 = 60;
/// Seconds that a run may take.
const LIMIT: u64 = 240;

/// The suite. A case is a program and a seed.
pub(super) struct Hostile;

/// Returns a line that runs a program as a user without rights in a folder of its own.
fn as_nobody(program: &str) -> String {
    let drop = "setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs";
    format!("d=$(mktemp -d) && chmod 777 $d && cd $d && exec {drop} {program}")
}

impl Suite for Hostile {
    fn name(&self) -> &'static str {
        "hostile"
    }

    fn about(&self) -> &'static str {
        "trinity, random system calls by four processes for a minute, and crashme, random code, both Debian's, as a \
         user without rights. A run passes if it ends and the cluster goes on. Failures are not run on Linux."
    }

    fn packages(&self) -> &'static [&'static str] {
        &["trinity", "crashme", "util-linux"]
    }

    fn prepare(&self, _folder: &Path) -> Result<Vec<Case>> {
        let trinity =
            |seed| format!("timeout -s INT -k 60 {SECONDS} trinity -q -q -l off -C 4 -s {seed}");
        // 2,000 bytes of code that changes by 80 bytes a try; 300 tries.
        let crashme = |seed| format!("crashme +2000.80 {seed} 300");
        let case = |name: &str, seed: u32, command: String| Case {
            name: format!("{name} {seed}"),
            command: as_nobody(&command),
            limit: LIMIT,
        };
        let seeds = 1..=SEEDS;
        let cases = seeds.flat_map(|seed| {
            [
                case("trinity", seed, trinity(seed)),
                case("crashme", seed, crashme(seed)),
            ]
        });
        Ok(cases.collect())
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let outcome = match ended {
            // The shell's, if it found no program or none that starts.
            Ended::Status(126 | 127) => Outcome::Fail,
            Ended::Status(_) => Outcome::Pass,
            Ended::TimedOut | Ended::Lost(_) => Outcome::Fail,
        };
        Verdict::whole(outcome, format!("{ended}: {}", last_line(output)))
    }

    fn may_run_here(&self) -> bool {
        false
    }
}

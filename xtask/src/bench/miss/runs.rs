//! Runs of the test program on a cluster, counted or traced.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::counts::{Counts, Phase};
use super::plugin;
use crate::bench::child::xtask;

/// The program's place on S's disk.
const PROGRAM: &str = "/bin/pages";
/// Seconds that a program may take under the plugin on a busy machine.
const LIMIT: &str = "300";

/// Files and settings that all runs share.
pub(super) struct Bed<'a> {
    /// The folder of all runs.
    pub(super) folder: &'a Path,
    /// The plugin.
    pub(super) plugin: &'a Path,
    /// The test program.
    pub(super) program: &'a Path,
    /// Addresses that follow a completion.
    pub(super) seen: &'a [u64],
}

/// Settings of one run.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    /// Options of `run`.
    pub(super) options: &'a [&'a str],
    /// Microseconds for which P stops after each store to the adapter.
    pub(super) hold_us: u64,
}

/// A counted run.
#[derive(Default)]
pub(super) struct Run {
    /// Counts of the plugin.
    pub(super) counts: Counts,
    /// Output of the program.
    pub(super) said: Said,
}

/// Output of the program, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::bench) struct Said {
    /// The phases that it went through.
    pub(in crate::bench) phases: Vec<Phased>,
    /// Result of part `scale`.
    pub(in crate::bench) scaled: Option<Scaled>,
    /// Parts that it left out, with the reason.
    pub(in crate::bench) skipped: Vec<(String, String)>,
}

/// A phase as the program tells it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::bench) struct Phased {
    /// Its number.
    pub(in crate::bench) number: Phase,
    /// Its name.
    pub(in crate::bench) name: String,
    /// Operations in it.
    pub(in crate::bench) operations: u64,
    /// Its time by the guest's clock.
    pub(in crate::bench) nanos: u64,
}

/// Operations of several threads together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) struct Scaled {
    /// Number of operations.
    pub(in crate::bench) operations: u64,
    /// The time of all.
    pub(in crate::bench) nanos: u64,
    /// The time of one: the median, and what 99 of 100 keep within.
    pub(in crate::bench) quantiles: [u64; 2],
}

impl Scaled {
    /// Reads what follows the number of threads.
    fn parse(words: &[&str]) -> Option<Self> {
        let numbers: Option<Vec<u64>> = words.iter().map(|word| word.parse().ok()).collect();
        let &[operations, nanos, median, most] = &numbers?[..] else {
            return None;
        };
        let quantiles = [median, most];
        (nanos > 0).then_some(Self {
            operations,
            nanos,
            quantiles,
        })
    }
}

impl Bed<'_> {
    /// Runs the program with the plugin in P.
    pub(super) fn count(&self, name: &str, settings: Settings<'_>, args: &[&str]) -> Result<Run> {
        let out = self.folder.join(format!("{name}.counts"));
        let plugin = plugin::option("processor", self.plugin, &out, settings.hold_us, self.seen);
        let options = [&["--plugin", &plugin], settings.options].concat();
        let said = self.run(&options, args)?;
        let text = fs::read_to_string(&out)
            .with_context(|| format!("P's QEMU left no {}", out.display()))?;
        let counts = Counts::parse(&text).with_context(|| format!("{}", out.display()))?;
        Ok(Run { counts, said })
    }

    /// Runs the program and records what the adapters do; returns the trace's path.
    pub(super) fn trace(&self, name: &str, options: &[&str], args: &[&str]) -> Result<PathBuf> {
        let file = self.folder.join(format!("{name}.trace"));
        let path = file.display().to_string();
        self.run(&[&["--trace", &path], options].concat(), args)?;
        Ok(file)
    }

    /// Runs the program.
    pub(super) fn run(&self, options: &[&str], args: &[&str]) -> Result<Said> {
        let mut add = self.program.as_os_str().to_owned();
        add.push(format!(":{PROGRAM}"));
        let mut words: Vec<&OsStr> = ["run", "--timeout", LIMIT, "--add"]
            .map(OsStr::new)
            .to_vec();
        words.push(&add);
        words.extend(options.iter().map(OsStr::new));
        words.extend(["--", PROGRAM].map(OsStr::new));
        words.extend(args.iter().map(OsStr::new));
        Said::parse(&xtask(&words)?)
    }
}

impl Said {
    /// Reads the program's output.
    pub(in crate::bench) fn parse(text: &str) -> Result<Self> {
        let (mut said, mut is_right) = (Self::default(), false);
        for line in text.lines() {
            let words: Vec<&str> = line.split('\t').collect();
            match words[..] {
                ["phase", number, name, operations, nanos] => {
                    let wrong = || format!("{line:?} is no phase");
                    said.phases.push(Phased {
                        number: number.parse().with_context(wrong)?,
                        name: name.into(),
                        operations: operations.parse().with_context(wrong)?,
                        nanos: nanos.parse().with_context(wrong)?,
                    });
                }
                ["scale", _, ref rest @ ..] => {
                    let scaled = Scaled::parse(rest);
                    said.scaled = Some(scaled.with_context(|| format!("{line:?} tells no times"))?);
                }
                ["skip", name, reason] => said.skipped.push((name.into(), reason.into())),
                ["wrong", count] => {
                    ensure!(count == "0", "the program found {count} wrong pages");
                    is_right = true;
                }
                _ => {}
            }
        }
        ensure!(
            is_right,
            "the program did not reach its end; it said:\n{text}"
        );
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_understood() {
        let said = Said::parse("phase\t4\tclean\t8192\t341912322\nskip\tcow\tfork: no\nwrong\t0\n")
            .unwrap();
        let phase = &said.phases[0];
        assert_eq!(
            (phase.number, &phase.name[..], phase.operations),
            (4, "clean", 8192)
        );
        let said =
            Said::parse("scale\t2\t100\t5000\t40\t90\nskip\tcow\tfork: no\nwrong\t0\n").unwrap();
        assert_eq!(said.scaled.map(|scaled| scaled.quantiles), Some([40, 90]));
        assert_eq!(said.skipped, [("cow".to_owned(), "fork: no".to_owned())]);
    }

    #[test]
    fn wrong_pages_and_half_outputs_are_errors() {
        for bad in [
            "wrong\t3\n",
            "phase\t4\tclean\t8192\t5\n",
            "scale\t2\t100\twrong\t0\n",
            "phase\t400\tclean\t8192\t5\nwrong\t0\n",
            "",
        ] {
            assert!(Said::parse(bad).is_err(), "{bad:?}");
        }
    }
}

//! Runs of the test program on a cluster, counted or traced.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::counts::{Counts, Phase};
use super::plugin;

/// The program's place on S's disk.
const PROGRAM: &str = "/bin/pages";
/// Seconds that a program may take under the plugin on a busy machine.
const LIMIT: &str = "300";

/// What each run needs.
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

/// How P runs.
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
    /// What the plugin counted.
    pub(super) counts: Counts,
    /// What the program said.
    pub(super) said: Said,
}

/// What the program says at its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The phases that it went through.
    pub(super) phases: Vec<Phased>,
    /// Parts that it left out, with the reason.
    pub(super) skipped: Vec<(String, String)>,
}

/// A phase as the program tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Phased {
    /// Its number.
    pub(super) number: Phase,
    /// Its name.
    pub(super) name: String,
    /// Operations in it.
    pub(super) operations: u64,
    /// Its time by the guest's clock.
    pub(super) nanos: u64,
}

impl Bed<'_> {
    /// Runs the program with the plugin in P.
    pub(super) fn count(&self, name: &str, settings: Settings<'_>, args: &[&str]) -> Result<Run> {
        let out = self.folder.join(format!("{name}.counts"));
        let plugin = plugin::option("processor", self.plugin, &out, settings.hold_us, self.seen);
        let options = [&["--plugin", &plugin], settings.options].concat();
        let said = self.run(&options, args)?;
        let text = fs::read_to_string(&out).with_context(|| format!("P's QEMU left no {}", out.display()))?;
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

    fn run(&self, options: &[&str], args: &[&str]) -> Result<Said> {
        // A process of its own: each run of a cluster handles signals, and Ctrl-C reaches both.
        let this = std::env::current_exe().context("can't find this program")?;
        let mut add = self.program.as_os_str().to_owned();
        add.push(OsString::from(format!(":{PROGRAM}")));
        let output = Command::new(this)
            .args(["run", "--timeout", LIMIT, "--add"])
            .arg(add)
            .args(options)
            .args(["--", PROGRAM])
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .context("can't start a run")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`cargo xtask run {} -- {PROGRAM} {}` ended with {}:\n{stdout}{stderr}",
                options.join(" "),
                args.join(" "),
                output.status
            );
        }
        Said::parse(&stdout)
    }
}

impl Said {
    /// Reads the program's output.
    pub(super) fn parse(text: &str) -> Result<Self> {
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
                ["skip", name, reason] => said.skipped.push((name.into(), reason.into())),
                ["wrong", count] => {
                    ensure!(count == "0", "the program found {count} wrong pages");
                    is_right = true;
                }
                _ => {}
            }
        }
        ensure!(is_right, "the program did not reach its end; it said:\n{text}");
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_understood() {
        let said = Said::parse("phase\t4\tclean\t8192\t341912322\nskip\tcow\tfork: no\nwrong\t0\n").unwrap();
        let phase = &said.phases[0];
        assert_eq!(
            (phase.number, &phase.name[..], phase.operations),
            (4, "clean", 8192)
        );
        assert_eq!(said.skipped, [("cow".to_owned(), "fork: no".to_owned())]);
    }

    #[test]
    fn wrong_pages_and_half_outputs_are_errors() {
        for bad in [
            "wrong\t3\n",
            "phase\t4\tclean\t8192\t5\n",
            "phase\t400\tclean\t8192\t5\nwrong\t0\n",
            "",
        ] {
            assert!(Said::parse(bad).is_err(), "{bad:?}");
        }
    }
}

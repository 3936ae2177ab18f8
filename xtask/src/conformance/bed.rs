//! Runs cases one after the other, many in one cluster or one `chroot`.
//!
//! A script in the root file system runs the cases and tells of each one's begin and end on its
//! standard output. A cluster that dies or says nothing for too long is started again at the next
//! case.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::suite::{Case, Ended, FOLDER, last_line};
use crate::bed::{INTERRUPTED, native};
use crate::run;
use crate::tools::say;

/// Runs cases from the one whose number is given, each in a process group of its own (`set -m`). It
/// starts no program of its own for a case: each would cost as much as a short test. A watchdog,
/// which is a copy of the shell, ends a case at its limit by killing everything but process 1, the
/// shell itself; the shell does the same to whatever a case left running.
const SCRIPT: &str = r#"#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
shopt -s nullglob dotglob
set -m
[ -e /tmp/never ] || mkfifo /tmp/never
exec 9<>/tmp/never
[ -d /tmp/case ] || mkdir -m 1777 /tmp/case
number=0
while IFS=$'\t' read -r limit command; do
  number=$((number + 1))
  [ $number -lt $1 ] && continue
  echo "@begin $number"
  left=(/tmp/case/*)
  [ ${#left[@]} -eq 0 ] || rm -rf "${left[@]}"
  [ -e /tmp/late ] && rm -f /tmp/late
  (read -r -t "$limit" -u 9; : >/tmp/late; kill -9 -1) 2>/dev/null &
  (exec 9>&-; cd /tmp/case && eval "$command") </dev/null >/tmp/output 2>&1
  status=$?
  kill -9 -1 2>/dev/null
  wait 2>/dev/null
  mapfile -t lines </tmp/output
  if [ ${#lines[@]} -gt 100 ]; then
    tail -c 300000 /tmp/output | sed 's/^/|/'
  elif [ ${#lines[@]} -gt 0 ]; then
    printf '|%s\n' "${lines[@]}"
  fi
  echo
  [ -e /tmp/late ] && status=late
  echo "@end $number $status"
done </conformance/cases
exit 0
"#;
/// Time that a boot and the making of a disk may take.
const BOOT: Duration = Duration::from_secs(240);
/// Time that a case may take beyond its limit, for the shell's work and a busy machine.
const GRACE: Duration = Duration::from_secs(40);
/// Time that a run which is told to end may take.
const FAREWELL: Duration = Duration::from_secs(20);
/// Clusters that may fail one after the other before a case begins.
const MAX_FALSE_STARTS: u32 = 2;

/// Place in which cases run.
pub(super) enum Place<'a> {
    /// On a cluster, started with these options of `run`.
    Cluster(&'a [String]),
    /// On this machine, in the same root file system.
    Native,
}

/// A root file system and a place to run in.
pub(super) struct Bed<'a> {
    /// The root file system.
    pub(super) root: &'a Path,
    /// The place.
    pub(super) place: Place<'a>,
}

impl Bed<'_> {
    /// Runs the cases in order, and calls `each` with how each one ended and what it said, until
    /// that breaks off.
    ///
    /// # Errors
    /// If clusters can't be started, or the run is interrupted.
    pub(super) fn run(
        &self,
        cases: &[Case],
        mut each: impl FnMut(&Case, Ended, &str) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let inside = self.root.join(FOLDER.trim_start_matches('/'));
        let list: String = cases
            .iter()
            .map(|case| format!("{}\t{}\n", case.limit, case.command))
            .collect();
        fs::write(inside.join("cases"), list).context("can't write the list of cases")?;
        fs::write(inside.join("run"), SCRIPT).context("can't write the script")?;
        let mut next = 0;
        let mut false_starts = 0;
        while next < cases.len() {
            let mut session = self.start(next + 1)?;
            let before = next;
            let why = match session.follow(cases, &mut next, &mut each)? {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(None) => continue,
                ControlFlow::Continue(Some(why)) => why,
            };
            if next == before && !session.began {
                false_starts += 1;
                ensure!(
                    false_starts <= MAX_FALSE_STARTS,
                    "no case could be started: {why}"
                );
                say(&format!("The cluster did not start: {why}"));
                continue;
            }
            false_starts = 0;
            if session.began {
                let goes_on = each(&cases[next], Ended::Lost(why), &session.said)?;
                next += 1;
                if goes_on.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn start(&self, first: usize) -> Result<Session> {
        let mut command = match self.place {
            Place::Cluster(options) => {
                // A source that was edited since the first start is built here, not within the
                // time that a boot may take.
                run::prepare()?;
                self.cluster(options, first)?
            }
            Place::Native => native::command(
                self.root,
                &["/bin/bash", "/conformance/run", &first.to_string()],
            )?,
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("can't start the cases")?;
        let stdout = child.stdout.take().context("the cases have no output")?;
        let mut stderr = child.stderr.take().context("the cases have no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                let text = String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_owned();
                if sender.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            // What can't be read is not shown.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Session {
            child,
            lines,
            errors: Some(errors),
            began: false,
            said: String::new(),
        })
    }

    fn cluster(&self, options: &[String], first: usize) -> Result<Command> {
        let ourselves = std::env::current_exe().context("can't find this program")?;
        let mut command = Command::new(ourselves);
        command.args([
            "run",
            "--boot-timeout",
            "200",
            "--disk-room",
            "512M",
            "--root",
        ]);
        command.arg(self.root).args(options);
        command.args(["--", "/bin/bash", "/conformance/run", &first.to_string()]);
        Ok(command)
    }
}

/// Reads what follows `@end`: the case's number, and its status or `late`.
fn ended(words: &str) -> Option<Ended> {
    match words.split_once(' ')?.1 {
        "late" => Some(Ended::TimedOut),
        status => status.parse().ok().map(Ended::Status),
    }
}

/// A cluster or `chroot` that runs cases.
struct Session {
    child: Child,
    lines: Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
    /// Whether a case runs.
    began: bool,
    /// Output so far.
    said: String,
}

impl Session {
    /// Follows the cases until all have ended or the session is lost, and returns why then, or
    /// until `each` breaks off.
    fn follow(
        &mut self,
        cases: &[Case],
        next: &mut usize,
        each: &mut impl FnMut(&Case, Ended, &str) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<(), Option<String>>> {
        let mut deadline = Instant::now() + BOOT;
        loop {
            let Some(line) = self.line(deadline)? else {
                let silent = Instant::now() >= deadline;
                let why = self.end();
                let lost = (*next < cases.len()).then(|| {
                    if silent {
                        format!("it fell silent; {why}")
                    } else {
                        why
                    }
                });
                return Ok(ControlFlow::Continue(lost));
            };
            if let Some(text) = line.strip_prefix('|') {
                self.said += text;
                self.said.push('\n');
            } else if line.starts_with("@begin ") {
                self.began = true;
                self.said.clear();
                let limit = cases.get(*next).map_or(0, |case| case.limit);
                deadline = Instant::now() + Duration::from_secs(limit) + GRACE;
            } else if let Some(rest) = line.strip_prefix("@end ") {
                let Some((case, ended)) = cases.get(*next).zip(ended(rest)) else {
                    bail!("the script said {line:?}");
                };
                let goes_on = each(case, ended, &self.said)?;
                *next += 1;
                self.began = false;
                if goes_on.is_break() {
                    self.end();
                    return Ok(ControlFlow::Break(()));
                }
                deadline = Instant::now() + GRACE;
            }
        }
    }

    /// Returns the next line; `None` at the end of the output or the deadline.
    fn line(&self, deadline: Instant) -> Result<Option<String>> {
        const LOOK: Duration = Duration::from_millis(500);
        loop {
            ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// Ends the session, and returns the last line of its errors.
    fn end(&mut self) -> String {
        let since = Instant::now();
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // One that has ended is a zombie until it is waited for, so the number is still its
            // own.
            let _ = kill_process(pid, Signal::INT);
        }
        while since.elapsed() < FAREWELL {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let errors = self.errors.take().map(thread::JoinHandle::join);
        let errors = errors.and_then(Result::ok).unwrap_or_default();
        let told = errors
            .lines()
            .find(|line| line.contains("panic"))
            .or_else(|| errors.lines().find(|line| line.starts_with("error: ")));
        told.map_or_else(|| last_line(&errors), str::to_owned)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.errors.is_some() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read() {
        assert_eq!(ended("3 0"), Some(Ended::Status(0)));
        assert_eq!(ended("3 137"), Some(Ended::Status(137)));
        assert_eq!(ended("3 late"), Some(Ended::TimedOut));
        assert_eq!(ended("3"), None);
        assert_eq!(ended("3 x"), None);
    }
}

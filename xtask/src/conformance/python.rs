//! CPython's own tests, a listed set of modules, run by Debian's Python.
//!
//! Left out are modules that need a network, other systems or a graphical display, and those that
//! take minutes on any machine.

use std::path::Path;

use anyhow::Result;

use super::suite::{Case, Ended, Outcome, Suite, Verdict, last_line};

/// Seconds for a module. QEMU without hardware acceleration computes some 20 times slower than the
/// host.
const LIMIT: u64 = 300;
/// The modules, those that ask most of a kernel first.
const MODULES: &str = "
    posix os signal threading subprocess mmap ctypes select selectors epoll poll fcntl ioctl pty
    openpty tty termios resource thread threadsignals threading_local fork1 wait3 wait4 popen pwd
    grp time timeit sched queue socket socketserver asyncio.test_unix_events
    asyncio.test_subprocess asyncio.test_events multiprocessing_fork.test_processes
    multiprocessing_fork.test_threads multiprocessing_fork.test_misc multiprocessing_main_handling
    concurrent_futures.test_thread_pool concurrent_futures.test_process_pool file fileio bufio io
    largefile file_eintr eintr tempfile threadedtempfile shutil glob fnmatch pathlib posixpath
    genericpath filecmp fileinput stat tarfile zipfile gzip bz2 lzma zlib sqlite3 dbm dbm_dumb
    shelve mailbox netrc getpass platform sys sysconfig site faulthandler atexit gc weakref
    tracemalloc syslog errno exceptions builtin import importlib runpy pkgutil zipimport cmd_line
    cmd_line_script script_helper c_locale_coercion utf8_mode locale repl code pdb bdb trace
    random uuid hashlib hmac secrets logging argparse getopt optparse configparser csv json pickle
    pickletools copy copyreg marshal struct array binascii base64 codecs codeccallbacks
    charmapcodec unicodedata unicode_file unicode_file_functions string str bytes memoryview
    memoryio buffer re textwrap difflib int float complex cmath math fractions decimal statistics
    numeric_tower bool list tuple dict set deque collections heapq bisect itertools functools
    operator iter generators coroutines contextlib context enum dataclasses types typing inspect
    ast compile grammar syntax tokenize dis traceback warnings unittest doctest datetime calendar
    strptime strftime zoneinfo html xml_etree minidom sax email http_cookies urlparse ipaddress
    mimetypes wave shlex cmd sort range slice print format fstring descr class super property
    scope with raise baseexception structseq univnewlines tomllib
";

/// The suite. A case is a module; a failed module's results are those of its failed tests.
pub(super) struct Python;

impl Suite for Python {
    fn name(&self) -> &'static str {
        "python"
    }

    fn about(&self) -> &'static str {
        "CPython 3.13's own tests (Debian's `libpython3.13-testsuite`), the modules that `--list` prints; a module \
         whose tests all pass counts once, else each of its failed tests does."
    }

    fn packages(&self) -> &'static [&'static str] {
        &[
            "python3",
            "python3-minimal",
            "python3.13",
            "libpython3.13-testsuite",
            "procps",
            "tzdata",
        ]
    }

    fn prepare(&self, _folder: &Path) -> Result<Vec<Case>> {
        // A failed module's output names its tests (`--verbose3`), a passed one's is not shown.
        let case = |module| Case {
            name: format!("test_{module}"),
            command: format!(
                "exec python3 -m test --verbose3 --timeout {} test.test_{module}",
                LIMIT - 10
            ),
            limit: LIMIT,
        };
        Ok(MODULES.split_whitespace().map(case).collect())
    }

    fn judge(&self, _case: &Case, ended: &Ended, output: &str) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = failed(output);
        let skipped = output.lines().find(|line| line.contains(" skipped -- "));
        match ended {
            Ended::Status(0) => match skipped {
                Some(line) => Verdict::whole(Outcome::Skip, line),
                None => Verdict::whole(Outcome::Pass, ""),
            },
            // `python3 -m test` says so if no test of the module could run here.
            Ended::Status(4) => Verdict::whole(Outcome::Skip, last_line(output)),
            Ended::Status(_) if !verdicts.is_empty() => verdicts,
            _ => {
                verdicts.extend(Verdict::whole(
                    Outcome::Fail,
                    format!("{ended}: {}", running(output)),
                ));
                verdicts
            }
        }
    }
}

/// Returns the test that was running last, if the output tells, else its last line.
fn running(output: &str) -> String {
    let frame = output
        .lines()
        .find(|line| line.trim_start().starts_with("File ") && line.contains("/test"));
    frame.map_or_else(|| last_line(output), |line| line.trim().to_owned())
}

/// Returns the failed tests: `unittest` prints a line `FAIL: NAME (CLASS)` or `ERROR: …` for each,
/// and the traceback's last line before the next line of dashes.
fn failed(output: &str) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut within = false;
    for line in output.lines() {
        let name = ["FAIL: ", "ERROR: "]
            .iter()
            .find_map(|word| line.strip_prefix(word));
        if let Some(name) = name {
            let whole = name
                .rsplit_once('(')
                .map_or(name, |(_, path)| path.trim_end_matches(')'));
            // A subtest names its parameters; its test has failed.
            let test = if whole.starts_with("test.") {
                whole
            } else {
                name.split(' ').next().unwrap_or(name)
            };
            within = true;
            if verdicts.last().is_none_or(|last| last.test != test) {
                verdicts.push(Verdict {
                    test: test.to_owned(),
                    outcome: Outcome::Fail,
                    why: String::new(),
                });
            }
        } else if line.starts_with("======") || line.starts_with("Ran ") {
            within = false;
        } else if within
            && !line.starts_with(' ')
            && line.contains("Error")
            && let Some(last) = verdicts.last_mut()
        {
            last.why = last_line(line);
        }
    }
    verdicts.sort_by(|a, b| a.test.cmp(&b.test));
    verdicts.dedup_by(|a, b| a.test == b.test);
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_named_with_their_errors() {
        let output = "======\nERROR: test_a (test.test_x.C.test_a)\n------\nTraceback (most recent call last):\n  File \"x\"\n\
                      OSError: [Errno 38] no\n\n======\nFAIL: test_b (test.test_x.C.test_b) (size=3)\n------\n\
                      AssertionError: 1 != 2\n\nRan 2 tests\n";
        let found = failed(output);
        let names: Vec<_> = found
            .iter()
            .map(|verdict| (verdict.test.as_str(), verdict.why.as_str()))
            .collect();
        assert_eq!(names[0], ("test.test_x.C.test_a", "OSError: [Errno 38] no"));
        assert_eq!(names[1].1, "AssertionError: 1 != 2");
        let case = Python.prepare(Path::new("/")).expect("cases").remove(0);
        let whole = Python.judge(&case, &Ended::TimedOut, "");
        assert_eq!((whole.len(), whole[0].outcome), (1, Outcome::Fail));
        assert_eq!(Python.judge(&case, &Ended::Status(2), output).len(), 2);
        assert_eq!(
            Python.judge(&case, &Ended::Status(0), "test_x skipped -- no y")[0].outcome,
            Outcome::Skip
        );
    }

    #[test]
    fn there_are_150_modules_and_none_twice() {
        let mut modules: Vec<_> = MODULES.split_whitespace().collect();
        modules.sort_unstable();
        modules.dedup();
        assert!(modules.len() >= 150 && modules.len() == MODULES.split_whitespace().count());
    }
}

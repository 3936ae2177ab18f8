//! Start of a program: its arguments, environment and folder, and the kinds of its streams here.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use console::{Source, Start};
use rustix::fs::{FileType, fstat, major, minor};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::isatty;

use super::console::{BlockingFile, Streams};
use super::demo::Collector;
use super::terminal::Terminal;
use super::top::Top;

/// Default environment of each program; a user's home is found on P.
const ENVIRONMENT: [&str; 2] = ["PATH=/bin:/usr/bin", "HOME=/root"];
/// The default that is root's alone.
const OF_ROOT: &str = "HOME";
/// Linux's memory devices (`Documentation/admin-guide/devices.txt`).
const MEMORY: u32 = 1;
const NULL: u32 = 3;
const FULL: u32 = 7;

/// Returns the environment: the defaults, and what is set; the last of a name counts.
pub(super) fn environment(own: &[OsString], is_root: bool) -> Vec<OsString> {
    let mut variables: Vec<OsString> = Vec::new();
    let mut defaults = ENVIRONMENT.map(OsString::from).to_vec();
    defaults.retain(|variable| is_root || name(variable) != OF_ROOT.as_bytes());
    for variable in defaults.iter().chain(own) {
        match variables
            .iter_mut()
            .find(|other| name(other) == name(variable))
        {
            Some(other) => other.clone_from(variable),
            None => variables.push(variable.clone()),
        }
    }
    variables
}

fn name(variable: &OsStr) -> &[u8] {
    variable
        .as_bytes()
        .split(|&byte| byte == b'=')
        .next()
        .unwrap_or_default()
}

/// Returns what is to run.
pub(crate) fn start(
    program: &[OsString],
    own_env: &[OsString],
    folder: &OsStr,
    user: &str,
) -> Start {
    let bytes = |words: &[OsString]| words.iter().map(|word| word.as_bytes().to_vec()).collect();
    Start {
        folder: folder.as_bytes().to_vec(),
        user: user.as_bytes().to_vec(),
        args: bytes(program),
        env: bytes(&environment(own_env, user.is_empty())),
        ..Start::default()
    }
}

/// Returns what our standard input, output and error are: `/dev/null` and `/dev/full` are P's own
/// then, which answer each call as Linux's do.
///
/// Only where the input is a terminal of ours are the outputs one: it is then raw, and P edits.
pub(crate) fn sources(terminal: Option<&Terminal>) -> [Source; 3] {
    let own = [stdin(), stdout(), stderr()];
    own.map(|stream| match terminal {
        Some(_) if isatty(stream) => Source::Terminal,
        _ => source(stream),
    })
}

fn source(stream: BorrowedFd<'_>) -> Source {
    let Ok(stat) = fstat(stream) else {
        return Source::Stream;
    };
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    match (FileType::from_raw_mode(stat.st_mode), device) {
        (FileType::CharacterDevice, (MEMORY, NULL)) => Source::Null,
        (FileType::CharacterDevice, (MEMORY, FULL)) => Source::Full,
        _ => Source::Stream,
    }
}

/// Returns our own streams; the trace of calls goes to standard error unless it has a file.
pub(crate) fn streams(
    trace: Option<std::fs::File>,
    terminal: Option<&Terminal>,
    top: Option<Top>,
) -> Result<Streams> {
    let own = |stream: BorrowedFd<'_>| {
        let shared = stream.as_fd().try_clone_to_owned();
        shared
            .map(|fd| BlockingFile(fd.into()))
            .context("can't share a standard stream")
    };
    let trace: Box<dyn Write + Send> = match trace {
        Some(file) => Box::new(file),
        None => Box::new(own(stderr())?),
    };
    let input: Box<dyn Read + Send> = Box::new(own(stdin())?);
    let shown: Box<dyn Write + Send> = match terminal {
        Some(terminal) => Box::new(BlockingFile(terminal.output()?)),
        None => sink(),
    };
    Ok(Streams {
        input,
        outputs: [
            Box::new(own(stdout())?),
            Box::new(own(stderr())?),
            trace,
            shown,
            top.map_or_else(sink, |top| Box::new(top)),
        ],
        typed: terminal.is_some(),
    })
}

/// Returns the demonstration's streams: no input, and an output that is kept.
pub(super) fn demo_streams(collected: &Collector) -> Streams {
    Streams {
        input: Box::new(std::io::empty()),
        outputs: [
            Box::new(collected.clone()),
            Box::new(std::io::stderr()),
            Box::new(std::io::stderr()),
            sink(),
            sink(),
        ],
        typed: false,
    }
}

fn sink() -> Box<dyn Write + Send> {
    Box::new(std::io::sink())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_last_of_a_variable_counts_and_defaults_can_be_replaced() {
        let own = ["A=1", "PATH=", "A=2=3"].map(OsString::from);
        assert_eq!(environment(&own, true), ["PATH=", "HOME=/root", "A=2=3"]);
        assert_eq!(environment(&own, false), ["PATH=", "A=2=3"]);
    }

    #[test]
    fn null_and_full_are_told_from_other_streams() {
        let source_of = |path: &str| source(File::open(path).expect("a device").as_fd());
        assert_eq!(source_of("/dev/null"), Source::Null);
        assert_eq!(source_of("/dev/full"), Source::Full);
        assert_eq!(
            [source_of("/dev/zero"), source_of("/")],
            [Source::Stream; 2]
        );
    }
}

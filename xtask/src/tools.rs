//! Programs: finding and running them, and reports of steps that take long.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A step that takes no longer is not worth a line.
const SHORT: Duration = Duration::from_secs(1);

static QUIET: AtomicBool = AtomicBool::new(false);

/// Makes [`say`] say nothing from now on.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Prints a line of progress; standard output is the program's.
pub(crate) fn say(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        eprintln!("tessera: {text}");
    }
}

/// Runs a step that may take long: prints its name once it has taken a second, and its duration at
/// the end.
pub(crate) fn step<T>(what: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let (done, ended) = mpsc::channel::<()>();
    let announced = std::thread::scope(|scope| {
        let told = scope.spawn(move || {
            let long = ended.recv_timeout(SHORT) == Err(RecvTimeoutError::Timeout);
            if long {
                say(what);
            }
            long
        });
        let result = body();
        drop(done);
        (result, told.join().unwrap_or(true))
    });
    let (result, long) = announced;
    let done = result.with_context(|| format!("{what}: failed"))?;
    if long {
        say(&format!("{what}: {:.1} s", start.elapsed().as_secs_f32()));
    }
    Ok(done)
}

/// Finds a program in `PATH`, or where systems keep their administrators' programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Finds a program with [`find`]; the error says how to get it.
pub(crate) fn need(program: &str, remedy: &str) -> Result<PathBuf> {
    find(program).with_context(|| format!("`{program}` is missing: {remedy}"))
}

/// Runs a program that should succeed quietly; its output is shown only if it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run `{name}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let told = if stderr.trim().is_empty() {
            stdout.trim()
        } else {
            stderr.trim()
        };
        bail!("`{name}` ended with {}:\n{told}", output.status);
    }
    Ok(stdout)
}

/// Runs a program whose output goes to ours.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("can't run `{name}`"))?;
    if !status.success() {
        let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!("`{name} {}` ended with {status}", args.join(" "));
    }
    Ok(())
}

/// Parses a size in bytes: `4096`, `4K`, `16M`, `1G`.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = if plain {
        digits.parse::<u64>().ok()
    } else {
        None
    };
    number
        .and_then(|number| number.checked_mul(unit))
        .with_context(|| format!("{text:?} is no size: write bytes, or a number with K, M or G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_limits() {
        assert_eq!(parse_size("4096").ok(), Some(4096));
        assert_eq!(parse_size("8M").ok(), Some(8 << 20));
        assert_eq!(parse_size("1g").ok(), Some(1 << 30));
        for wrong in ["", "M", "+1", "-1", "1T", "1.5M", "99999999999G", "ü"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_failed_program_shows_what_it_said() {
        let error = quiet(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"]))
            .expect_err("exit 3");
        let text = format!("{error:#}");
        assert!(
            text.contains("why") && text.contains("exit status: 3"),
            "{text}"
        );
    }
}

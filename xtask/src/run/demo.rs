//! The job of a run without a program: `sort` over word lists, in far less memory than it needs,
//! compared with the same program run here.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use super::disk::{BUSYBOX, WORDS};
use crate::tools::step;

/// The part of the program's memory that its cache may hold.
const SHARE: u64 = 8;
/// Granule of the cache's size.
const GRANULE: u64 = 256 << 10;

/// Result of the same program run on the host.
pub(crate) struct Native {
    /// Its output.
    pub(crate) output: Vec<u8>,
    /// The most memory that it held, in bytes.
    pub(crate) peak: u64,
}

/// Returns the program and its arguments, as P gets them.
pub(crate) fn program() -> [&'static str; 4] {
    [BUSYBOX, "sort", WORDS[0], WORDS[1]]
}

/// Runs the program here, over the same files.
pub(crate) fn run_here(staged: &Path, environment: &[OsString]) -> Result<Native> {
    step("Running the same program here, to compare with", || {
        let here = |path: &str| staged.join(path.trim_start_matches('/'));
        let mut child = Command::new(here(BUSYBOX))
            .arg("sort")
            .args(WORDS.map(here))
            .env_clear()
            .envs(environment.iter().filter_map(|variable| split(variable)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't run busybox here")?;
        let mut stdout = child.stdout.take().context("no output")?;
        let mut output = vec![0; 1];
        let first = stdout.read_exact(&mut output);
        // It has sorted all it was given, and waits for us to take its output: no moment needs more
        // memory.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let rest = stdout.read_to_end(&mut output);
        let end = child.wait().context("can't wait for busybox")?;
        first.and(rest).context("can't read its output")?;
        ensure!(end.success(), "busybox ended with {end}");
        let peak = peak(&status).context("/proc tells no peak memory of busybox")?;
        Ok(Native { output, peak })
    })
}

/// Parts a variable's name from its value.
fn split(variable: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let bytes = variable.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=')?;
    Some((
        OsStr::from_bytes(&bytes[..at]),
        OsStr::from_bytes(&bytes[at + 1..]),
    ))
}

/// Returns the highest resident size in `/proc/PID/status`, in bytes.
fn peak(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns the most memory that the program holds, in bytes, by running it here.
pub(crate) fn measured_peak() -> Result<u64> {
    let folder = crate::bed::make_folder()?;
    let native = super::disk::stage(&folder, None, &[]).and_then(|()| run_here(&folder, &[]));
    // What is left of it is in nobody's way.
    let _ = fs::remove_dir_all(&folder);
    Ok(native?.peak)
}

/// Returns the size of the cache for a program of that peak: at most the share of it.
pub(crate) fn cache_size(peak: u64) -> u64 {
    (peak / SHARE / GRANULE).max(1) * GRANULE
}

/// Keeps what is written to it.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    /// Takes the bytes written so far.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Says whether two outputs are the same, and if not where they part.
pub(crate) fn compare(ours: &[u8], native: &[u8]) -> Result<String> {
    let same = ours.iter().zip(native).take_while(|(a, b)| a == b).count();
    ensure!(
        ours == native,
        "MISMATCH with the native run: {} bytes, not {}; the first {same} agree",
        ours.len(),
        native.len()
    );
    Ok(format!(
        "match: all {} bytes are those of the native run",
        native.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_holds_at_most_the_share() {
        assert_eq!(cache_size(32 << 20), 4 << 20);
        assert_eq!(cache_size((32 << 20) - 1), (4 << 20) - GRANULE);
    }

    #[test]
    fn a_difference_is_placed() {
        assert!(compare(b"words", b"words").is_ok());
        let error = compare(b"wordy", b"words")
            .expect_err("they differ")
            .to_string();
        assert!(error.contains("first 4 agree"), "{error}");
        assert!(compare(b"word", b"words").is_err());
    }

    #[test]
    fn the_peak_is_read_in_kib() {
        assert_eq!(
            peak("Name:\tx\nVmHWM:\t   31000 kB\nVmRSS:\t 5 kB\n"),
            Some(31000 * 1024)
        );
        assert_eq!(peak("Name:\tx\n"), None);
    }
}

//! VMs on a modelled fabric: their folder, the fabric's server, the machines, and the end of all.
//!
//! * [`process`]: starts and ends a process. * [`server`]: the fabric's server.
//! * [`machine`]: QEMU's command line. * [`firmware`]: firmware and boot media. * [`plugin`]: a TCG
//!   plugin for a machine.
//! * [`left`]: an image's result, by its exit status. * [`cmdline`]: an image's command line.
//! * [`native`]: programs of a root file system on this machine's Linux.
//! * [`streams`]: follows the guests' output. * [`labelled`]: puts a node's name before its lines.

pub(crate) mod cmdline;
pub(crate) mod firmware;
pub(crate) mod labelled;
pub(crate) mod left;
pub(crate) mod machine;
pub(crate) mod native;
pub(crate) mod plugin;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod streams;

use std::fs;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::tools::need;

/// Exit status of a run that failed by itself, as `docker run` and `env` have it.
pub(crate) const FAILED: u8 = 125;
/// Exit status after Ctrl-C: 128 + SIGINT.
pub(crate) const INTERRUPTED_STATUS: u8 = 130;
/// Exit status when the output has no reader any more: 128 + SIGPIPE.
pub(crate) const OUTPUT_CLOSED_STATUS: u8 = 141;
/// Lines of a node's log that an error shows.
const TAIL: usize = 20;

/// Set by the signal handler.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT and SIGTERM set [`INTERRUPTED`].
pub(crate) fn handle_signals() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .context("can't handle signals")
}

/// Checks that VMs can be started so that none outlives this program.
pub(crate) fn need_launcher() -> Result<()> {
    let remedy = "it comes with util-linux; a VM could outlive this program without it";
    need(process::LAUNCHER[0], remedy).map(drop)
}

/// Returns the socket of a node's adapter.
pub(crate) fn socket(folder: &Path, node: &str) -> PathBuf {
    folder.join(format!("{node}.sock"))
}

/// Returns the file of a node's log.
pub(crate) fn log(folder: &Path, node: &str) -> PathBuf {
    folder.join(format!("{node}.log"))
}

/// The longest path of a socket (Linux `sun_path`, with its end mark).
const MAX_SOCKET: usize = 107;
/// Bytes that a node's socket adds to the path of the temporary folder, at most.
const SOCKET_NAME: usize = "/tessera-4194304-99/processor-2.sock".len();

/// Checks that the nodes' sockets can lie in the temporary folder.
pub(crate) fn check_folder() -> Result<()> {
    check_path(&std::env::temp_dir())
}

fn check_path(base: &Path) -> Result<()> {
    let text = base.as_os_str().as_encoded_bytes();
    ensure!(
        text.len() + SOCKET_NAME <= MAX_SOCKET,
        "the temporary folder's path is too long for sockets, {} bytes: set TMPDIR to one of at most {}",
        text.len(),
        MAX_SOCKET - SOCKET_NAME
    );
    ensure!(
        !text.contains(&b','),
        "the temporary folder's path has a comma, which parts options of the fabric's server: set TMPDIR to another"
    );
    Ok(())
}

/// Makes a new folder that only we may enter, with a path short enough for sockets.
pub(crate) fn make_folder() -> Result<PathBuf> {
    let base = std::env::temp_dir();
    for attempt in 0..100 {
        let folder = base.join(format!("tessera-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("can't make {}", folder.display()));
            }
        }
    }
    bail!(
        "too many old folders {}/tessera-*: remove them",
        base.display()
    )
}

/// Makes a new pipe that QEMU reads from. It is open both ways, so that neither opening it nor a
/// pause ends it.
pub(crate) fn make_pipe(path: &Path) -> Result<fs::File> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .with_context(|| format!("can't make the pipe {}", path.display()))?;
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("can't open the pipe {}", path.display()))
}

/// Returns a random key of a cluster, as 64 hexadecimal digits.
pub(crate) fn random_key() -> Result<String> {
    let mut key = [0; 32];
    let source = "/dev/urandom";
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut key))
        .context(source)?;
    Ok(key.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the last lines of a file, indented; empty if there is none.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last: Vec<String> = lines[lines.len().saturating_sub(TAIL)..]
        .iter()
        .map(|line| format!("    {}", line.trim_end()))
        .collect();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_folders_that_sockets_can_t_lie_in_are_refused() {
        assert!(check_path(Path::new("/tmp")).is_ok());
        let longest = "/".repeat(MAX_SOCKET - SOCKET_NAME);
        assert!(check_path(Path::new(&longest)).is_ok());
        assert!(check_path(Path::new(&(longest + "x"))).is_err());
        assert!(check_path(Path::new("/tmp/a,b")).is_err());
    }
}

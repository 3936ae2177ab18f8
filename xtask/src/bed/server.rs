//! The server of the modelled fabric and its adapters.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::Process;
use super::{socket, tail};

/// Deadline of the server's start, until it listens.
const DEADLINE: Duration = Duration::from_secs(10);

/// Starts the server with an adapter for each node; gives it with the GID of each node's first
/// port.
///
/// `adapter` follows each node's socket on the server's command line: `,ports=2`. `options` are the
/// server's own.
pub(crate) fn start(
    program: &Path,
    folder: &Path,
    nodes: &[&str],
    adapter: &str,
    options: &[&OsStr],
) -> Result<(Process, BTreeMap<String, String>)> {
    let mut command = Command::new(program);
    command.args(options);
    for node in nodes {
        let socket = socket(folder, node);
        command
            .arg("--node")
            .arg(format!("{node}={}{adapter}", socket.display()));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Process::start("fabric", command, folder)?;
    let stdout = server
        .child()
        .stdout
        .take()
        .context("the fabric server has no output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut gids = BTreeMap::new();
    let deadline = Instant::now() + DEADLINE;
    while gids.len() < nodes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(line) = receiver.recv_timeout(left) else {
            bail!(
                "the fabric server did not become ready within {DEADLINE:?}\n{}",
                tail(&server.stderr)
            );
        };
        let words: Vec<&str> = line.split('\t').collect();
        if let ["ready", name, gid] = words[..]
            && nodes.contains(&name)
        {
            gids.insert(name.to_owned(), gid.to_owned());
        }
    }
    Ok((server, gids))
}

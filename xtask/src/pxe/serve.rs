//! The running boot server: dnsmasq, and HTTP where the cluster file asks for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cluster::Cluster;
use super::http::Server;
use super::tree::Tree;
use crate::bed::process::{LAUNCHER, Process, silent};
use crate::bed::{self, INTERRUPTED, tail};
use crate::tools::{quiet, say};

/// Poll interval of dnsmasq and of Ctrl-C.
const PAUSE: Duration = Duration::from_millis(50);

/// Returns dnsmasq's program.
///
/// # Errors
///
/// If it is not installed; the error says how to get it.
pub(super) fn need_dnsmasq() -> Result<PathBuf> {
    super::find_dnsmasq().context(
        "`dnsmasq` is missing: `apt-get install dnsmasq-base`, or make the files without --serve",
    )
}

/// Checks the configuration by dnsmasq itself.
pub(super) fn check(program: &Path, configuration: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command
        .arg("--test")
        .arg(format!("--conf-file={}", configuration.display()));
    quiet(&mut command).map(drop)
}

/// Serves until Ctrl-C or SIGTERM; dnsmasq ends on every path.
///
/// # Errors
///
/// If dnsmasq or the HTTP server ends by itself.
pub(super) fn serve(program: &Path, cluster: &Cluster, tree: &Tree) -> Result<()> {
    bed::need_launcher()?;
    bed::handle_signals()?;
    check(program, &tree.configuration)?;
    let server = &cluster.server;
    let http = server
        .http_port
        .map(|port| Server::start(SocketAddr::from((server.address, port)), &tree.files))
        .transpose()?;
    let mut command = Command::new(LAUNCHER[0]);
    command.args(&LAUNCHER[1..]).arg(program);
    command.args(["--keep-in-foreground", "--log-facility=-"]);
    command.arg(format!("--conf-file={}", tree.configuration.display()));
    let folder = tree
        .configuration
        .parent()
        .context("the configuration lies in no folder")?;
    let mut dnsmasq = Process::start("dnsmasq", silent(command), folder)?;
    say(&format!(
        "Serving on {}; Ctrl-C ends it. dnsmasq's log: {}",
        server.interface,
        dnsmasq.stderr.display()
    ));
    while !INTERRUPTED.load(Ordering::Relaxed) {
        if let Some(status) = dnsmasq.ended()? {
            bail!(
                "dnsmasq ended with {status}; it said:\n{}",
                tail(&dnsmasq.stderr)
            );
        }
        http.as_ref().map_or(Ok(()), Server::check)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

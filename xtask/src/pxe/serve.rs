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
use crate::debian::{Bundle, TRIXIE};
use crate::tools::{self, quiet, say};

/// Poll interval of dnsmasq and of Ctrl-C.
const PAUSE: Duration = Duration::from_millis(50);

/// The loader of Debian's programs, by which they find their own libraries.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const PROGRAM: &str = "usr/sbin/dnsmasq";

const BUNDLE: Bundle<'_> = Bundle {
    name: "dnsmasq-1",
    release: TRIXIE,
    packages: &["dnsmasq-base"],
    dependencies: true,
    backports: false,
    files: &[LOADER, PROGRAM],
};

/// Returns dnsmasq: the system's, or one fetched from Debian now or before.
///
/// # Errors
///
/// If there is none; the error says how to get it.
pub(super) fn obtain() -> Result<Vec<PathBuf>> {
    if let Some(program) = tools::find("dnsmasq") {
        return Ok(vec![program]);
    }
    let root = BUNDLE.obtain().context(
        "`dnsmasq` is missing: `apt-get install dnsmasq-base`, or make the files without --serve",
    )?;
    Ok(vec![
        root.join(LOADER),
        "--library-path".into(),
        root.join("usr/lib/x86_64-linux-gnu"),
        root.join(PROGRAM),
    ])
}

/// Checks the configuration by dnsmasq itself.
pub(super) fn check(program: &[PathBuf], configuration: &Path) -> Result<()> {
    let mut command = Command::new(&program[0]);
    command
        .args(&program[1..])
        .arg("--test")
        .arg(format!("--conf-file={}", configuration.display()));
    quiet(&mut command).map(drop)
}

/// Serves until Ctrl-C or SIGTERM; dnsmasq ends on every path.
///
/// # Errors
///
/// If dnsmasq or the HTTP server ends by itself.
pub(super) fn serve(program: &[PathBuf], cluster: &Cluster, tree: &Tree) -> Result<()> {
    bed::need_launcher()?;
    bed::handle_signals()?;
    check(program, &tree.configuration)?;
    let server = &cluster.server;
    let http = server
        .http_port
        .map(|port| Server::start(SocketAddr::from((server.address, port)), &tree.files))
        .transpose()?;
    let mut command = Command::new(LAUNCHER[0]);
    command.args(&LAUNCHER[1..]).args(program);
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

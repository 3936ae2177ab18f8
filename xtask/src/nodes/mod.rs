//! `nodes`: runs nodes of FIT in QEMU, which lines of standard input start, kill, stop and unplug.
//!
//! [`cluster`] runs the machines; the image is `testbed/fit_node`.

pub(crate) mod cluster;

use std::fs;
use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::cluster::{Cluster, Parts};
use crate::bed::labelled::Labelled;
use crate::bed::{self, FAILED, INTERRUPTED, INTERRUPTED_STATUS, left};
use crate::tools::say;

/// Poll interval of the nodes.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts nodes of FIT in QEMU on one modelled fabric, kills, stops and unplugs them, as lines of
/// standard input say
///
/// The lines: `start NODE [OPTION…]`, `kill NODE`, `stop NODE`, `continue NODE`, `cable NODE in`
/// and `cable NODE out`. A node's options are in docs/user/nodes.md. What each node says comes
/// under its name; a line that is carried out comes back as `nodes: LINE`. The end of the input
/// ends all nodes. Exit status: 0; 125 if the run itself failed; 130 after Ctrl-C.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Adapters on the fabric, for nodes named node0, node1 and so on
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    adapters: u8,
    /// Milliseconds that a node may be silent before the others take it for lost; 0 for ever
    #[arg(long, default_value_t = 2000, value_name = "MS")]
    keepalive: u64,
    /// Log level of the nodes
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: Option<String>,
    /// Keeps the folder with the nodes' logs, and says where it is; a failed run keeps it always
    #[arg(long)]
    keep_logs: bool,
}

/// Gets and builds all that nodes need, so that the first of many runs takes no longer than the
/// others.
pub(crate) fn prepare() -> Result<()> {
    Parts::obtain().map(drop)
}

pub(crate) fn main(args: Args) -> ExitCode {
    match args.run() {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            FAILED.into()
        }
    }
}

impl Args {
    fn run(self) -> Result<u8> {
        let parts = Parts::obtain()?;
        bed::handle_signals()?;
        let folder = bed::make_folder()?;
        let result = self.run_in(&parts, &folder);
        if result.is_ok() && !self.keep_logs {
            let _ = fs::remove_dir_all(&folder);
        } else {
            say(&format!("The nodes' logs are in {}", folder.display()));
        }
        result
    }

    fn run_in(&self, parts: &Parts, folder: &Path) -> Result<u8> {
        let names: Vec<String> = (0..self.adapters)
            .map(|node| format!("node{node}"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut cluster = Cluster::new(parts, folder, &names)?;
        cluster.tell_all("keepalive", &self.keepalive.to_string());
        if let Some(level) = &self.log {
            cluster.tell_all("log", level);
        }
        println!("nodes: ready");
        let lines = read_lines();
        loop {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(INTERRUPTED_STATUS);
            }
            for (name, status) in cluster.ended()? {
                println!("nodes: {name} has ended: {}", left::describe(status));
            }
            match lines.recv_timeout(PAUSE) {
                Ok(line) => {
                    follow(&mut cluster, &line).with_context(|| format!("{line:?}"))?;
                    println!("nodes: {line}");
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}

/// Reads standard input line by line, in a thread that ends with the process at the latest.
fn read_lines() -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if !line.trim().is_empty() && sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Carries a line out.
fn follow(cluster: &mut Cluster<'_>, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["start", node, ref options @ ..] => {
            let bad = options.iter().find(|option| option.starts_with('-'));
            ensure!(bad.is_none(), "options of a node are KEY=VALUE");
            cluster.start(node, options, Labelled::new(node, std::io::stdout()))
        }
        ["kill", node] => cluster.kill(node),
        ["stop", node] => cluster.stop(node, true),
        ["continue", node] => cluster.stop(node, false),
        ["cable", node, way @ ("in" | "out")] => cluster.cable(node, way == "in"),
        _ => bail!(
            "a line is start NODE [OPTION…], kill, stop or continue NODE, or cable NODE in|out"
        ),
    }
}

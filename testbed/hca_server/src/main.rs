//! Serves modelled ConnectX-3s to QEMU over vfio-user.
//!
//! Prints a line `ready<TAB>NAME<TAB>GID` for each node, the GID being that of its first port, once
//! all sockets listen. Then it takes lines `cable NODE PORT in` and `cable NODE PORT out` on its
//! standard input. It ends when that does, or by SIGINT or SIGTERM.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use fabric::{FabricConfig, Faults, LinkRate, Manager};
use hca_model::trace::{Recorder, Text};
use hca_model::{Board, ClusterConfig, Device, NodeConfig};
use hca_server::node::{Cables, Cluster};
use verbs::{Gid, Guid};

/// Serves modelled ConnectX-3s, joined by a modelled fabric, to QEMU over vfio-user
#[derive(Parser)]
#[command(version)]
struct Args {
    /// A node: its name and the socket to make, and optionally its node GUID, its number of ports,
    /// its MSI-X vectors (0: interrupt pin only), and its kind: `pro` for a ConnectX-3 Pro,
    /// `blueflame` for one that offers BlueFlame, `plain` for one without entries of 64 bytes and
    /// EQs of the system
    #[arg(
        long = "node",
        value_name = "NAME=SOCKET[,guid=HEX][,ports=N][,vectors=N][,pro][,blueflame][,plain]",
        required = true
    )]
    nodes: Vec<NodeArg>,
    /// Look for the next message this long before sleeping; takes a core a node while it does
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1000))]
    spin_us: u64,
    /// Manager of the subnet: the fabric itself, or a program on a node, before which no port is
    /// active
    #[arg(long, value_name = "WHO", value_enum, default_value = "fabric")]
    sm: Sm,
    /// Time a link trains before it carries packets
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    training_ms: u64,
    /// Rate of the links [default: a packet takes no time on them]
    #[arg(long, value_name = "RATE", value_enum)]
    rate: Option<Rate>,
    /// Time that a packet takes from port to port beside that
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    latency_us: u64,
    /// Packets of a thousand that are lost
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1000))]
    loss_per_mille: u16,
    /// Records every command, doorbell, DMA and interrupt of all adapters in this file: one line
    /// each, parted by tabs
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Rate of the links, of four lanes each.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Rate {
    /// 40 Gb/s.
    Qdr,
    /// 56 Gb/s.
    Fdr,
}

impl From<Rate> for LinkRate {
    fn from(rate: Rate) -> Self {
        match rate {
            Rate::Qdr => Self::Qdr,
            Rate::Fdr => Self::Fdr,
        }
    }
}

/// Manager of the subnet.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Sm {
    /// The fabric itself.
    Fabric,
    /// A program on a node.
    Node,
}

impl From<Sm> for Manager {
    fn from(sm: Sm) -> Self {
        match sm {
            Sm::Fabric => Self::Own,
            Sm::Node => Self::Foreign,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct NodeArg {
    name: String,
    socket: PathBuf,
    guid: Option<u64>,
    ports: u8,
    board: Board,
}

impl FromStr for NodeArg {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let (name, socket) = parts
            .next()
            .and_then(|first| first.split_once('='))
            .filter(|(name, socket)| !name.is_empty() && !socket.is_empty())
            .context("a node is NAME=SOCKET")?;
        let mut node = Self {
            name: name.into(),
            socket: socket.into(),
            guid: None,
            ports: 1,
            board: Board::default(),
        };
        for option in parts {
            match option.split_once('=') {
                Some(("guid", hex)) => {
                    let digits = hex.strip_prefix("0x").unwrap_or(hex);
                    node.guid = Some(
                        u64::from_str_radix(digits, 16).with_context(|| format!("guid {hex:?}"))?,
                    );
                }
                Some(("ports", ports @ ("1" | "2"))) => node.ports = ports.parse()?,
                Some(("vectors", vectors)) => {
                    node.board.vectors = vectors
                        .parse()
                        .ok()
                        .filter(|vectors| *vectors <= 128)
                        .with_context(|| format!("vectors {vectors:?}"))?;
                }
                None if option == "pro" => node.board.device = Device::ConnectX3Pro,
                None if option == "blueflame" => node.board.blueflame = true,
                None if option == "plain" => {
                    node.board.wide_entries = false;
                    node.board.system_eqs = false;
                }
                _ => bail!(
                    "{option:?} is neither guid=HEX nor ports=1, ports=2, vectors=N, pro, blueflame \
                     nor plain"
                ),
            }
        }
        Ok(node)
    }
}

/// Returns the default node GUID of the node at `index`: Mellanox's OUI, with room for each node's
/// ports.
fn default_guid(index: usize) -> u64 {
    0x0002_c903_0000_0000 | (index as u64 + 1) << 8
}

fn main() -> Result<()> {
    env_logger::Builder::from_env(env_logger::Env::new().default_filter_or("info")).init();
    let args = Args::parse();
    let cluster = Cluster::new(ClusterConfig {
        fabric: FabricConfig {
            training: Duration::from_millis(args.training_ms),
            manager: args.sm.into(),
            rate: args.rate.map(LinkRate::from),
            latency: Duration::from_micros(args.latency_us),
            faults: Faults {
                loss: f64::from(args.loss_per_mille) / 1000.0,
                ..Faults::default()
            },
            ..FabricConfig::default()
        },
    });
    let trace = args.trace.as_deref().map(open_trace).transpose()?;
    if let Some(trace) = &trace {
        cluster.record(Arc::clone(trace) as Arc<dyn Recorder>);
    }
    let mut ready = String::new();
    let mut listeners = Vec::new();
    let mut cables = BTreeMap::new();
    for (index, node) in args.nodes.iter().enumerate() {
        let twin = args.nodes[..index]
            .iter()
            .any(|other| other.name == node.name);
        ensure!(!twin, "two nodes are named {}", node.name);
        let listener = UnixListener::bind(&node.socket)
            .with_context(|| format!("can't make the socket {}", node.socket.display()))?;
        let guid = node.guid.unwrap_or_else(|| default_guid(index));
        let config = NodeConfig {
            board: node.board.clone(),
            ..NodeConfig::new(node.name.clone(), Guid(guid), node.ports)
        };
        let served = cluster.add_node(config);
        cables.insert(node.name.clone(), served.cables());
        listeners.push((node.name.clone(), listener, served));
        let gid = Gid::new(Gid::DEFAULT_PREFIX, Guid(guid.wrapping_add(1)));
        ready += &format!("ready\t{}\t{gid}\n", node.name);
    }

    let sockets: Vec<PathBuf> = args.nodes.iter().map(|node| node.socket.clone()).collect();
    let leave = move |code| {
        for socket in &sockets {
            // Nothing to do about one that can't be removed: whoever starts next will hear of it.
            let _ = std::fs::remove_file(socket);
        }
        if let Some(Err(error)) = trace.as_ref().map(|trace| trace.flush()) {
            log::error!("the trace is not whole: {error}");
        }
        exit(code)
    };
    let on_signal = leave.clone();
    ctrlc::set_handler(move || on_signal(0))
        .map_err(|error| anyhow!("can't handle signals: {error}"))?;

    let spin = Duration::from_micros(args.spin_us);
    for (name, listener, node) in listeners {
        let leave = leave.clone();
        spawn(name.clone(), move || {
            let error = node.serve(&name, &listener, spin);
            log::error!("{name}: can't take connections: {error}");
            leave(1)
        })?;
    }
    spawn("timer".into(), move || cluster.keep_time())?;

    let mut stdout = std::io::stdout();
    stdout
        .write_all(ready.as_bytes())
        .and_then(|()| stdout.flush())
        .context("can't say that we are ready")?;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if let Err(error) = follow(&line, &cables) {
            log::error!("{line:?}: {error:#}");
        }
    }
    leave(0);
    Ok(())
}

/// Plugs or pulls a cable, as a line of standard input says.
fn follow(line: &str, cables: &BTreeMap<String, Cables>) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["cable", node, port, way @ ("in" | "out")] = words[..] else {
        bail!("a line is: cable NODE PORT in|out");
    };
    let cables = cables
        .get(node)
        .with_context(|| format!("no node {node}"))?;
    let number = port.parse().with_context(|| format!("port {port:?}"))?;
    ensure!(
        cables.plug(number, way == "in"),
        "{node} has no port {number}"
    );
    Ok(())
}

/// Creates a recorder that writes to a new file.
fn open_trace(path: &Path) -> Result<Arc<Text<BufWriter<File>>>> {
    let file = File::create(path).with_context(|| format!("can't make {}", path.display()))?;
    Ok(Arc::new(Text::new(BufWriter::new(file))))
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .context("can't start a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_with_their_options() {
        let node: NodeArg = "p=/tmp/p.sock,guid=0x2c90300000010,ports=2"
            .parse()
            .expect("a node");
        let expected = NodeArg {
            name: "p".into(),
            socket: "/tmp/p.sock".into(),
            guid: Some(0x2_c903_0000_0010),
            ports: 2,
            board: Board::default(),
        };
        assert_eq!(node, expected);
        let node: NodeArg = "p=s,pro,vectors=0".parse().expect("a node");
        assert_eq!(
            (node.board.device, node.board.vectors),
            (Device::ConnectX3Pro, 0)
        );
        for wrong in [
            "p",
            "=x",
            "p=",
            "p=s,guid=",
            "p=s,guid=xyz",
            "p=s,ports=3",
            "p=s,ports",
            "p=s,vectors=129",
            "p=s,amateur",
        ] {
            assert!(wrong.parse::<NodeArg>().is_err(), "{wrong}");
        }
    }
}

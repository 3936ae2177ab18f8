//! Machines with the image of `testbed/fit_node` on one fabric, and the commands that act on them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail, ensure};

use crate::bed::cmdline::CommandLine;
use crate::bed::firmware::Start;
use crate::bed::machine::{Adapter, Chipset, Machine};
use crate::bed::process::{Process, silent};
use crate::bed::streams::Follower;
use crate::bed::{self, server};
use crate::qemu::Qemu;
use crate::tools::step;
use crate::{build_image, project};

/// Main memory of a node.
const MEMORY: u64 = 128 << 20;

/// Programs and image that must be made before nodes can start.
pub(crate) struct Parts {
    pub(crate) qemu: Qemu,
    pub(crate) server: PathBuf,
    pub(crate) image: PathBuf,
}

impl Parts {
    /// Gets and builds them.
    pub(crate) fn obtain() -> Result<Self> {
        bed::need_launcher()?;
        Ok(Self {
            qemu: Qemu::obtain()?,
            server: step("Building the fabric server", project::build_hca_server)?,
            image: build_image::build_fit_node()?,
        })
    }
}

/// Nodes on a fabric. Dropping it ends them all.
pub(crate) struct Cluster<'a> {
    parts: &'a Parts,
    folder: &'a Path,
    /// Options of every node.
    options: Vec<(String, String)>,
    nodes: BTreeMap<String, Node>,
    server: Process,
}

/// A place for a machine, and the machine in it.
#[derive(Default)]
struct Node {
    machine: Option<(Process, Follower)>,
    /// Machines that it has had.
    lives: u32,
}

impl<'a> Cluster<'a> {
    /// Starts the fabric, with adapters for nodes of these names. All nodes are of one cluster,
    /// with a key drawn here.
    pub(crate) fn new(parts: &'a Parts, folder: &'a Path, names: &[&str]) -> Result<Self> {
        let (server, _) = server::start(&parts.server, folder, names, "", &[])?;
        let options = [("cluster", "nodes".to_owned()), ("key", bed::random_key()?)];
        Ok(Self {
            parts,
            folder,
            options: options.map(|(key, value)| (key.to_owned(), value)).into(),
            nodes: names
                .iter()
                .map(|&name| (name.to_owned(), Node::default()))
                .collect(),
            server,
        })
    }

    /// Tells every node that starts from now on.
    pub(crate) fn tell_all(&mut self, key: &str, value: &str) {
        self.options.push((key.into(), value.into()));
    }

    /// Starts a node's machine with these options, which come after those of all nodes and override
    /// them. Its log goes to `log`, too.
    pub(crate) fn start(
        &mut self,
        name: &str,
        options: &[&str],
        log: impl Write + Send + 'static,
    ) -> Result<()> {
        let node = self.nodes.get_mut(name).with_context(|| no_node(name))?;
        ensure!(node.machine.is_none(), "{name} runs already");
        node.lives += 1;
        let mut line = CommandLine::default();
        for (key, value) in &self.options {
            line.option(key, value);
        }
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => line.option(key, value),
                None => line.flag(option),
            }
        }
        // A life's log is its own: QEMU begins a file anew.
        let file = bed::log(self.folder, &format!("{name}-{}", node.lives));
        File::create_new(&file).with_context(|| format!("can't make {}", file.display()))?;
        let socket = bed::socket(self.folder, name);
        let machine = Machine {
            start: Start::Kernel {
                kernel: &self.parts.image,
                command_line: &line.finish()?,
            },
            chipset: Chipset::Q35,
            cpu_model: "max",
            memory: MEMORY,
            cpus: "1",
            adapters: &Adapter::usual(&socket),
            iommu: false,
            reboots: false,
            plugin: None,
        };
        let command = silent(machine.image_command(&self.parts.qemu, &file));
        let follower = Follower::start(&file, log)?;
        let process = Process::start(name, command, self.folder)?;
        node.machine = Some((process, follower));
        Ok(())
    }

    fn machine(&mut self, name: &str) -> Result<&mut Process> {
        let node = self.nodes.get_mut(name).with_context(|| no_node(name))?;
        let machine = node.machine.as_mut();
        let (process, _) = machine.with_context(|| format!("{name} does not run"))?;
        Ok(process)
    }

    /// Ends a node's machine at once, as a loss of power would.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        self.machine(name)?.kill()?;
        self.remove(name)
    }

    /// Takes a machine that has ended away; its log is whole then.
    fn remove(&mut self, name: &str) -> Result<()> {
        let machine = self
            .nodes
            .get_mut(name)
            .and_then(|node| node.machine.take());
        let Some((process, mut follower)) = machine else {
            return Ok(());
        };
        drop(process);
        follower.finish()
    }

    /// Stops a node's machine where it is, or lets it go on.
    pub(crate) fn stop(&mut self, name: &str, stop: bool) -> Result<()> {
        self.machine(name)?.stop(stop)
    }

    /// Plugs or pulls the cable of a node's adapter.
    pub(crate) fn cable(&mut self, name: &str, plug: bool) -> Result<()> {
        ensure!(self.nodes.contains_key(name), no_node(name));
        let way = if plug { "in" } else { "out" };
        let pipe = self.server.child().stdin.as_mut();
        let pipe = pipe.context("the fabric server takes no input")?;
        writeln!(pipe, "cable {name} 1 {way}").context("can't tell the fabric server of a cable")
    }

    /// Returns the nodes that have ended by themselves since the last call, with their statuses.
    pub(crate) fn ended(&mut self) -> Result<Vec<(String, ExitStatus)>> {
        if let Some(status) = self.server.ended()? {
            let said = bed::tail(&self.server.stderr);
            bail!("the fabric server ended with {status}; it said:\n{said}");
        }
        let mut ended = Vec::new();
        for (name, node) in &mut self.nodes {
            if let Some((process, follower)) = &mut node.machine {
                ensure!(!follower.has_failed(), "nobody reads what {name} says");
                if let Some(status) = process.ended()? {
                    ended.push((name.clone(), status));
                }
            }
        }
        for (name, _) in &ended {
            self.remove(name)?;
        }
        Ok(ended)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // All at the same time, not one after the other.
        for (process, _) in self
            .nodes
            .values_mut()
            .filter_map(|node| node.machine.as_mut())
        {
            process.ask_to_end();
        }
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            // What is left of its log has nobody to read it.
            let _ = self.remove(&name);
        }
    }
}

fn no_node(name: &str) -> String {
    format!("there is no adapter for a node {name}")
}

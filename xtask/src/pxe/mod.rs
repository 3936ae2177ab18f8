//! `pxe`: the files and the configuration of a boot server, from the description of a cluster.
//!
//! * [`mod@file`]: the cluster file as TOML. * [`cluster`]: its meaning, checked.
//! * [`fault`]: faults of the file, with line and key. * [`mac`]: MAC addresses.
//! * [`dnsmasq`]: the configuration. * [`tree`]: the files. * [`serve`]: the running server.
//! * [`http`]: the HTTP server beside dnsmasq.
//!
//! Left out: firmware of legacy BIOS, IPv6, a DHCP server that is there already (its entries can be
//! copied from the configuration), more than one interface. SIGKILL of this program leaves dnsmasq
//! running: Linux forgets the signal of a dead parent when dnsmasq changes its user.

mod cluster;
mod dnsmasq;
mod fault;
mod file;
mod http;
mod mac;
mod serve;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;

use self::cluster::Cluster;
use self::tree::{Owner, Tree};
use crate::build_image::sign::Signer;
use crate::build_image::{self, Contents, Format, Role};
use crate::tools::quiet;

/// User that Debian and others make for dnsmasq.
const DEFAULT_USER: &str = "dnsmasq";

/// Words on what keeps the key, and from whom.
const RISK: &str = "\
Each loader holds the cluster's key. TFTP and HTTP give a file to anybody who knows its name:
the names are random, and DHCP tells each to one MAC address only. That is no help against
those who listen on this network or pretend to have that MAC address: the network should be
the rack's own.
";

/// Makes the files of a boot server for a cluster, and serves them
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Description of the cluster (see docs/user/pxe.md)
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
    /// Folder for the files; those of an earlier run are replaced
    #[arg(long, value_name = "FOLDER", default_value = "target/pxe")]
    out: PathBuf,
    /// Signs the loaders with this key and certificate (PEM), for firmware with Secure Boot
    #[arg(long, num_args = 2, value_names = ["KEY", "CERT"])]
    sign: Option<Vec<PathBuf>>,
    /// Serves them until Ctrl-C, by dnsmasq on the interface that the description names
    #[arg(long)]
    serve: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let cluster = cluster::read(&self.cluster)?;
        let program = self.serve.then(serve::obtain).transpose()?;
        let signer = self.sign.as_deref().map(Signer::of).transpose()?;
        let owner = owner(cluster.server.user.as_deref())?;
        let mut images = HashMap::new();
        for node in &cluster.nodes {
            if !images.contains_key(node.role.name()) {
                images.insert(node.role.name(), build_image::build(node.role)?);
            }
        }
        let tree = tree::write(&self.out, &cluster, &owner, |node, path| {
            let image: &PathBuf = &images[node.role.name()];
            let contents = Contents {
                cmdline: Some(&node.line),
                signer: signer.as_ref(),
                ..Contents::default()
            };
            build_image::pack(image, Format::Efi, &contents, path)
        })?;
        print!("{}", report(&cluster, &tree, &owner));
        if let Some(id) = owner.id
            && let Some(folder) = tree::barrier(&tree.files, id)
        {
            let (folder, user) = (folder.display(), &owner.name);
            eprintln!("warning: {user} can't pass {folder}: choose another --out, or chmod o+x");
        }
        for warning in &cluster.warnings {
            eprintln!("warning: {warning}");
        }
        match program {
            Some(program) => serve::serve(&program, &cluster, &tree),
            None => Ok(()),
        }
    }
}

/// Gets dnsmasq, for who will serve without a way to Debian.
pub(crate) fn prepare() -> Result<()> {
    serve::obtain().map(drop)
}

/// Returns the file with what dnsmasq says, in the folder of the tree.
fn log_file(out: &Path) -> PathBuf {
    out.join("dnsmasq.err")
}

/// Returns who is to own the files: the user that dnsmasq changes to, or us if we may not give
/// files away.
fn owner(wanted: Option<&str>) -> Result<Owner> {
    let id = |args: &[&str]| {
        Ok::<_, anyhow::Error>(quiet(Command::new("id").args(args))?.trim().to_owned())
    };
    if !geteuid().is_root() {
        let name = id(&["-un"]).context("this user has no name, which dnsmasq needs")?;
        ensure!(
            wanted.is_none_or(|wanted| wanted == name),
            "server.user: only root can give files to {:?}; this user is {name:?}",
            wanted.unwrap_or_default()
        );
        return Ok(Owner { name, id: None });
    }
    let name = wanted.unwrap_or(DEFAULT_USER);
    let number = id(&["-u", name]).with_context(|| {
        format!("there is no user {name:?}: install dnsmasq, or name its user by server.user")
    })?;
    let number = number.parse().context("`id` gave no number")?;
    ensure!(
        number != 0,
        "server.user: TFTP's files would have to be readable by all if root served them"
    );
    Ok(Owner {
        name: name.into(),
        id: Some(number),
    })
}

/// Returns what is served to whom, and what keeps the key from others.
fn report(cluster: &Cluster, tree: &Tree, owner: &Owner) -> String {
    let server = &cluster.server;
    let mut text = format!(
        "Boot server {} ({}/{}, files of user {}):\n",
        server.interface, server.address, server.prefix, owner.name
    );
    for (node, names) in cluster.nodes.iter().zip(&tree.names) {
        text += &format!(
            "\t{}\t{}\t{}\t{}\t{}\n",
            node.mac,
            node.address,
            node.name,
            node.role.name(),
            names.loader()
        );
    }
    for role in Role::ALL
        .into_iter()
        .filter(|role| cluster.nodes.iter().all(|node| node.role != *role))
    {
        text += &format!("\tno {} node: it must come from elsewhere\n", role.name());
    }
    text += RISK;
    text += &format!("Files:\t{}\n", tree.files.display());
    text += &format!(
        "Run:\tdnsmasq --keep-in-foreground --conf-file={}\n",
        tree.configuration.display()
    );
    let http = match server.http_port {
        Some(port) => format!(
            "http://{}:{port}/ by `--serve`, or another server without listings",
            server.address
        ),
        None => "none: server.http_port is absent, so UEFI HTTP boot gets no answer".into(),
    };
    text + &format!("HTTP:\t{http}\n")
}

//! A rack's boot network in a network namespace of its own: a bridge with an address, a TAP
//! interface a node, and `xtask pxe --serve` beside them.
//!
//! ```text
//!   dnsmasq, HTTP ── boot 10.9.0.1/24 ──┬── boot-p ── QEMU of P
//!   (`xtask pxe --serve`)    (bridge)   ├── boot-m ── QEMU of M
//!                                       └── boot-s ── QEMU of S
//! ```
//!
//! The namespace is made by `unshare`, which then starts this program anew; it goes with its last
//! process.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

use super::media::Source;
use super::vm::Vm;
use crate::bed::process::{Process, silent};
use crate::bed::tail;
use crate::build_image::disk::ExtraFile;
use crate::build_image::{self, Role};
use crate::tools::{need, quiet};
use crate::{ipxe, pxe};

/// Set for the program that was started anew in the namespace.
const ENTERED: &str = "TESSERA_BOOT_NETWORK";
/// The bridge, whose address is the server's.
const BRIDGE: &str = "boot";
const ADDRESS: &str = "10.9.0.1/24";
const HTTP_PORT: u16 = 8080;
/// A user whom every system has, and who is not root.
const USER: &str = "nobody";
/// Time limit of the server's start; the images are built already.
const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Beginning of the line by which `xtask pxe` reports that dnsmasq runs.
const SERVING: &str = "Serving on ";

/// Returns the TAP interface of a node.
pub(super) fn interface(role: Role) -> &'static str {
    match role {
        Role::Processor => "boot-p",
        Role::Memory => "boot-m",
        Role::Storage => "boot-s",
    }
}

/// Returns the MAC address of a node's card.
pub(super) fn mac(role: Role) -> &'static str {
    match role {
        Role::Processor => "52:54:00:00:00:01",
        Role::Memory => "52:54:00:00:00:02",
        Role::Storage => "52:54:00:00:00:03",
    }
}

fn address(role: Role) -> &'static str {
    match role {
        Role::Processor => "10.9.0.11",
        Role::Memory => "10.9.0.12",
        Role::Storage => "10.9.0.13",
    }
}

/// Starts this program anew in a network namespace of its own, and makes the network there;
/// returns in the new program.
///
/// # Errors
///
/// If this user may not, or a program is missing.
pub(super) fn enter() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "a boot server's network can only be made by root: choose another --boot-from"
    );
    let ip = need("ip", "`apt-get install iproute2`")?;
    if std::env::var_os(ENTERED).is_none() {
        // No network leads out of the namespace.
        pxe::prepare()?;
        super::prepare()?;
        build_image::prepare_loader()?;
        let unshare = need("unshare", "it comes with util-linux")?;
        let own = std::env::current_exe().context("this program has no path")?;
        let error = Command::new(unshare)
            .args(["--net", "--"])
            .arg(own)
            .args(std::env::args_os().skip(1))
            .env(ENTERED, "1")
            .exec();
        return Err(error).context("can't start `unshare`");
    }
    let ip = |line: &str| quiet(Command::new(&ip).args(line.split(' '))).map(drop);
    ip("link set lo up")?;
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {ADDRESS} dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    for role in Role::ALL {
        let tap = interface(role);
        ip(&format!("tuntap add {tap} mode tap")).context("/dev/net/tun is needed")?;
        ip(&format!("link set {tap} master {BRIDGE} up"))?;
    }
    Ok(())
}

/// Makes a USB stick with iPXE, which is to boot by the node's card of this network.
pub(super) fn make_ipxe_stick(role: Role, path: &Path) -> Result<()> {
    // It has a driver of the HCA too, on whose fabric no boot server is.
    let script = format!(
        "#!ipxe\nset n:int32 0\n:next\niseq ${{net${{n}}/mac}} {} && goto found ||\ninc n\n\
         iseq ${{n}} 8 || goto next\nexit 1\n:found\nautoboot net${{n}}\n",
        mac(role)
    );
    let beside = ExtraFile {
        name: "autoexec.ipxe",
        contents: script.as_bytes(),
    };
    let program = ipxe::obtain()?.join(ipxe::PROGRAM);
    build_image::foreign_disk(&program, &[beside], path)
}

/// A running boot server, which ends when this is dropped.
pub(super) struct BootServer {
    _server: Process,
}

impl BootServer {
    /// Starts the server for those of the machines that boot from it; `None` if none does.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub(super) fn start(vms: &[Vm<'_>], folder: &Path) -> Result<Option<Self>> {
        let nodes: Vec<(Role, &str)> = vms
            .iter()
            .filter_map(|vm| match &vm.source {
                Source::BootServer { line, .. } => Some((vm.role, line.as_str())),
                _ => None,
            })
            .collect();
        if nodes.is_empty() {
            return Ok(None);
        }
        let file = cluster_file(folder);
        // The folder is this user's alone, so that nobody else reads the key.
        let text = describe(&nodes)?;
        fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)))
            .with_context(|| format!("can't write {}", file.display()))?;
        let own = std::env::current_exe().context("this program has no path")?;
        let mut command = Command::new(own);
        command.arg("pxe").arg("--serve").arg("--cluster").arg(file);
        command.arg("--out").arg(served(folder));
        let mut server = Process::start("boot-server", silent(command), folder)?;
        let deadline = Instant::now() + DEADLINE;
        while !fs::read_to_string(&server.stderr)
            .unwrap_or_default()
            .contains(SERVING)
        {
            if let Some(status) = server.ended()? {
                bail!(
                    "the boot server ended with {status}; it said:\n{}",
                    tail(&server.stderr)
                );
            }
            ensure!(
                Instant::now() < deadline,
                "the boot server did not start within {DEADLINE:?}:\n{}",
                tail(&server.stderr)
            );
            std::thread::sleep(PAUSE);
        }
        Ok(Some(Self { _server: server }))
    }
}

fn cluster_file(folder: &Path) -> PathBuf {
    folder.join("cluster.toml")
}

/// Returns the folder of the server's files: beside the run's, which only this user may pass.
fn served(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push("-boot");
    name.into()
}

/// Removes the files of a run, which hold the cluster's key, but for the server's log.
pub(super) fn remove(folder: &Path) {
    let _ = fs::remove_file(cluster_file(folder));
    let served = served(folder);
    let _ = fs::copy(served.join("dnsmasq.err"), folder.join("dnsmasq.err"));
    let _ = fs::remove_dir_all(served);
}

/// Describes nodes with these kernel command lines to `xtask pxe`.
fn describe(nodes: &[(Role, &str)]) -> Result<String> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = String::new();
    for (index, (role, line)) in nodes.iter().enumerate() {
        // Such a token is encoded already, and would be once more.
        ensure!(
            !line.contains('%'),
            "{}: an option with unusual characters can't go through a cluster file: {line}",
            role.name()
        );
        let option = |key: &str| {
            let mut tokens = line.split(' ');
            tokens.find_map(|token| token.strip_prefix(key)?.strip_prefix('='))
        };
        let (Some(name), Some(key)) = (option("cluster"), option("key")) else {
            bail!("{}: no cluster or no key: {line}", role.name());
        };
        if index == 0 {
            let (name, key, user) = (quoted(name), quoted(key), quoted(USER));
            let _ = write!(
                text,
                "[cluster]\nname = {name}\nkey = {key}\n\n[server]\ninterface = \"{BRIDGE}\"\n\
                 address = \"{ADDRESS}\"\nhttp_port = {HTTP_PORT}\nuser = {user}\n"
            );
        }
        let options: Vec<String> = line
            .split(' ')
            .filter(|token| !token.starts_with("cluster=") && !token.starts_with("key="))
            .map(quoted)
            .collect();
        let (name, options) = (role.name(), options.join(", "));
        let (mac, address) = (mac(*role), address(*role));
        let _ = write!(
            text,
            "\n[[node]]\nname = \"{name}\"\nrole = \"{name}\"\nmac = \"{mac}\"\n\
             address = \"{address}\"\noptions = [{options}]\n"
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_described_by_their_options() {
        let nodes = [
            (Role::Memory, "cluster=run key=ab keepalive=5 workers=2"),
            (Role::Storage, "cluster=run key=ab clock=1"),
        ];
        let text = describe(&nodes).expect("a description");
        for part in [
            "[cluster]\nname = \"run\"\nkey = \"ab\"\n",
            "role = \"memory\"\nmac = \"52:54:00:00:00:02\"\naddress = \"10.9.0.12\"\n\
             options = [\"keepalive=5\", \"workers=2\"]\n",
            "options = [\"clock=1\"]\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_eq!(text.matches("[cluster]").count(), 1);
        assert!(describe(&[(Role::Memory, "cluster=a key=b env=%20")]).is_err());
        assert!(describe(&[(Role::Memory, "cluster=a")]).is_err());
    }
}

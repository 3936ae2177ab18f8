//! A checked cluster: each node with its role, its card and its kernel command line.
//!
//! All faults of the file are found in one pass, each named with its line and key
//! ([`super::fault`]).

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use toml::Spanned;

use super::fault::Faults;
use super::file::{self, File};
use super::mac::Mac;
use crate::bed::cmdline::CommandLine;
use crate::build_image::Role;
use crate::run::boot::BootOption;

/// Hexadecimal digits of a cluster's key (`docs/architecture.md`, "Kernel command line").
const KEY_DIGITS: usize = 64;
/// The longest label of a host's name (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 63;
/// The longest name of an interface (Linux `IFNAMSIZ`, with its end mark).
const MAX_INTERFACE: usize = 15;
/// Permissions of others than the owner.
const OTHERS: u32 = 0o077;

/// A cluster and the server that it boots from.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) server: Server,
    pub(super) nodes: Vec<Node>,
    /// Weaknesses that do not keep the files from being made.
    pub(super) warnings: Vec<String>,
}

/// The boot server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) interface: String,
    pub(super) address: Ipv4Addr,
    /// The length of the network's prefix.
    pub(super) prefix: u32,
    pub(super) http_port: Option<u16>,
    pub(super) user: Option<String>,
}

impl Server {
    /// Returns the network's mask.
    pub(super) fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - self.prefix).unwrap_or(0))
    }

    /// Returns the network's own address.
    pub(super) fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & self.mask().to_bits())
    }

    /// Returns whether a host of the network may have an address.
    fn has(&self, address: Ipv4Addr) -> bool {
        let (host, mask) = (address.to_bits(), self.mask().to_bits());
        host & mask == self.network().to_bits() && host & !mask != 0 && host | mask != u32::MAX
    }
}

/// One machine of the cluster.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) mac: Mac,
    pub(super) address: Ipv4Addr,
    /// Its kernel command line, with the cluster's key.
    pub(super) line: String,
}

/// Reads and checks a cluster file.
///
/// # Errors
///
/// If the file or its key's file can't be read, or with all faults of the file.
pub(super) fn read(path: &Path) -> Result<Cluster> {
    let text =
        fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let mut faults = Faults::new(path, &text);
    let file: File = match toml::from_str(&text) {
        Ok(file) => file,
        Err(error) => {
            faults.add_syntax(&error);
            return Err(faults.into_error());
        }
    };
    let mut warnings = Vec::new();
    let key = key(&file.cluster, path, &mut faults, &mut warnings);
    let name = file.cluster.get_ref().name.get_ref();
    if name.is_empty() {
        faults.add(
            &file.cluster.get_ref().name.span(),
            "cluster.name",
            "the name is empty",
        );
    }
    let server = server(&file.server, &mut faults);
    let nodes = nodes(
        &file,
        &key.unwrap_or_default(),
        server.as_ref(),
        &mut faults,
    );
    if file.node.is_empty() {
        faults.add(&(text.len()..text.len()), "node", "there is no [[node]]");
    }
    match server {
        Some(server) if faults.is_empty() => Ok(Cluster {
            server,
            nodes,
            warnings,
        }),
        _ => Err(faults.into_error()),
    }
}

/// Returns the cluster's key, from the file itself or the file that it names.
fn key(
    cluster: &Spanned<file::Cluster>,
    path: &Path,
    faults: &mut Faults<'_>,
    warnings: &mut Vec<String>,
) -> Option<String> {
    let remedy = "`openssl rand -hex 32` makes one";
    let (field, at, text, holder) = match (&cluster.get_ref().key, &cluster.get_ref().key_file) {
        (Some(key), None) => (
            "cluster.key",
            key.span(),
            key.get_ref().clone(),
            path.to_owned(),
        ),
        (None, Some(file)) => {
            let holder = path.parent().unwrap_or(Path::new("")).join(file.get_ref());
            match fs::read_to_string(&holder) {
                Ok(text) => (
                    "cluster.key_file",
                    file.span(),
                    text.trim().to_owned(),
                    holder,
                ),
                Err(error) => {
                    let fault = format!("can't read {}: {error}; {remedy}", holder.display());
                    faults.add(&file.span(), "cluster.key_file", fault);
                    return None;
                }
            }
        }
        (None, None) => {
            faults.add(
                &cluster.span(),
                "cluster.key",
                format!("missing, as is key_file; {remedy}"),
            );
            return None;
        }
        (Some(key), Some(_)) => {
            faults.add(
                &key.span(),
                "cluster.key",
                "there is a key_file too: give one of them",
            );
            return None;
        }
    };
    // The text itself stays out of the message: it may be a key but for a digit.
    if text.len() != KEY_DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        faults.add(
            &at,
            field,
            format!("a key has {KEY_DIGITS} hexadecimal digits; {remedy}"),
        );
        return None;
    }
    let mode = fs::metadata(&holder).map_or(0, |metadata| metadata.permissions().mode());
    if mode & OTHERS != 0 {
        let told = "others than its owner may read or write the cluster's key in it";
        warnings.push(format!("{}: {told}: chmod 600", holder.display()));
    }
    Some(text)
}

fn server(server: &file::Server, faults: &mut Faults<'_>) -> Option<Server> {
    let interface = server.interface.get_ref();
    if interface.is_empty() || interface.len() > MAX_INTERFACE || !is_plain(interface) {
        let fault = format!("{interface:?} is no name of a network interface");
        faults.add(&server.interface.span(), "server.interface", fault);
    }
    if let Some(port) = server
        .http_port
        .as_ref()
        .filter(|port| *port.get_ref() == 0)
    {
        faults.add(
            &port.span(),
            "server.http_port",
            "port 0 can't be asked for a file",
        );
    }
    if let Some(user) = &server.user
        && (user.get_ref().is_empty()
            || !is_plain(user.get_ref())
            || user.get_ref().starts_with('-'))
    {
        let fault = format!("{:?} is no user's name", user.get_ref());
        faults.add(&user.span(), "server.user", fault);
    }
    let text = server.address.get_ref();
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let address = address.parse().ok()?;
        // A network that has an address for the server and for a node.
        let prefix = prefix
            .parse()
            .ok()
            .filter(|prefix| (8..=30).contains(prefix))?;
        Some(Server {
            interface: interface.clone(),
            address,
            prefix,
            http_port: server.http_port.as_ref().map(|port| *port.get_ref()),
            user: server.user.as_ref().map(|user| user.get_ref().clone()),
        })
    });
    let parsed = parsed.filter(|server| server.has(server.address));
    if parsed.is_none() {
        let fault = format!(
            "{text:?} is no address of a host with the length of its network's prefix, 8 to 30: \
             write it as 10.0.0.1/24"
        );
        faults.add(&server.address.span(), "server.address", fault);
    }
    parsed
}

/// Returns whether a name has only characters that mean nothing else in dnsmasq's configuration.
fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn nodes(file: &File, key: &str, server: Option<&Server>, faults: &mut Faults<'_>) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for raw in &file.node {
        let before = faults.count();
        let role = role(&raw.role, faults);
        let mac = raw.mac.get_ref().parse::<Mac>();
        let mac = mac
            .map_err(|fault| faults.add(&raw.mac.span(), "node.mac", fault))
            .ok();
        let address = address(&raw.address, server, faults);
        name(&raw.name, faults);
        for other in &nodes {
            let same = |what| format!("node {:?} has the same {what}", other.name);
            if other.name == *raw.name.get_ref() {
                faults.add(&raw.name.span(), "node.name", same("name"));
            }
            if Some(other.mac) == mac {
                faults.add(&raw.mac.span(), "node.mac", same("MAC address"));
            }
            if Some(other.address) == address {
                faults.add(&raw.address.span(), "node.address", same("address"));
            }
        }
        let line = role.and_then(|role| line(file, raw, role, key, faults));
        if let (Some(role), Some(mac), Some(address), Some(line)) = (role, mac, address, line)
            && faults.count() == before
        {
            let name = raw.name.get_ref().clone();
            nodes.push(Node {
                name,
                role,
                mac,
                address,
                line,
            });
        }
    }
    nodes
}

fn role(text: &Spanned<String>, faults: &mut Faults<'_>) -> Option<Role> {
    let role = Role::ALL
        .into_iter()
        .find(|role| role.name() == text.get_ref());
    if role.is_none() {
        let fault = format!(
            "{:?} is no role, but processor, memory or storage",
            text.get_ref()
        );
        faults.add(&text.span(), "node.role", fault);
    }
    role
}

fn name(text: &Spanned<String>, faults: &mut Faults<'_>) {
    let name = text.get_ref();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let ends = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > MAX_NAME || ends || !name.bytes().all(plain) {
        let fault = format!("{name:?} is no host's name: letters, digits and inner hyphens");
        faults.add(&text.span(), "node.name", fault);
    }
}

fn address(
    text: &Spanned<String>,
    server: Option<&Server>,
    faults: &mut Faults<'_>,
) -> Option<Ipv4Addr> {
    let Ok(address) = text.get_ref().parse::<Ipv4Addr>() else {
        let fault = format!("{:?} is no IPv4 address", text.get_ref());
        faults.add(&text.span(), "node.address", fault);
        return None;
    };
    if let Some(server) = server
        && (!server.has(address) || address == server.address)
    {
        let (network, prefix) = (server.network(), server.prefix);
        let fault = format!("{address} is not free for a node in {network}/{prefix}");
        faults.add(&text.span(), "node.address", fault);
        return None;
    }
    Some(address)
}

/// Returns the kernel command line of a node.
fn line(
    file: &File,
    node: &file::Node,
    role: Role,
    key: &str,
    faults: &mut Faults<'_>,
) -> Option<String> {
    let mut line = CommandLine::default();
    line.option("cluster", file.cluster.get_ref().name.get_ref());
    line.option("key", key);
    let common = file
        .cluster
        .get_ref()
        .options
        .iter()
        .map(|option| ("cluster.options", "all", option));
    let own = node
        .options
        .iter()
        .map(|option| ("node.options", role.name(), option));
    for (field, of, option) in common.chain(own) {
        match format!("{of}:{}", option.get_ref()).parse::<BootOption>() {
            Ok(option) => option.add_to(&mut line),
            Err(fault) => faults.add(&option.span(), field, fault),
        }
    }
    if let Some(first) = node.program.first()
        && role != Role::Processor
    {
        let fault = format!(
            "a program runs on a processor, not on a {} node",
            role.name()
        );
        faults.add(&first.span(), "node.program", fault);
    }
    if let Some(last) = node.program.last().filter(|last| last.get_ref().is_empty()) {
        // The loader trims the line (`boot/uefi/src/command_line.rs`).
        faults.add(
            &last.span(),
            "node.program",
            "the last argument can't be empty",
        );
    }
    if !node.program.is_empty() {
        line.flag("--");
        node.program
            .iter()
            .for_each(|word| line.flag(word.get_ref()));
    }
    let done = line.finish();
    done.map_err(|error| faults.add(&node.name.span(), "node.options", error))
        .ok()
}

//! The cluster file as TOML: tables, keys and types, without their meaning ([`super::cluster`]).

use serde::Deserialize;
use toml::Spanned;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) cluster: Spanned<Cluster>,
    pub(super) server: Server,
    #[serde(default)]
    pub(super) node: Vec<Node>,
}

/// `[cluster]`: common to all nodes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    pub(super) name: Spanned<String>,
    /// The cluster's key, or the file that holds it.
    pub(super) key: Option<Spanned<String>>,
    pub(super) key_file: Option<Spanned<String>>,
    /// Options for the kernel command line of all nodes.
    #[serde(default)]
    pub(super) options: Vec<Spanned<String>>,
}

/// `[server]`: the boot server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) interface: Spanned<String>,
    /// Its IPv4 address with the length of the network's prefix.
    pub(super) address: Spanned<String>,
    /// Port of the HTTP server; none if absent.
    pub(super) http_port: Option<Spanned<u16>>,
    /// The user that dnsmasq runs as.
    pub(super) user: Option<Spanned<String>>,
}

/// `[[node]]`: one machine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: Spanned<String>,
    pub(super) role: Spanned<String>,
    /// Of the network card that it boots by.
    pub(super) mac: Spanned<String>,
    /// The IPv4 address that it gets while it boots.
    pub(super) address: Spanned<String>,
    #[serde(default)]
    pub(super) options: Vec<Spanned<String>>,
    /// P's program and its arguments.
    #[serde(default)]
    pub(super) program: Vec<Spanned<String>>,
}

//! dnsmasq's configuration: DHCP for the nodes that the cluster file names, and TFTP.
//!
//! Three kinds of firmware are told apart by what they say of themselves:
//!
//! | firmware | says | gets |
//! |---|---|---|
//! | UEFI, PXE | architecture 7 or 9 | the loader by TFTP |
//! | UEFI, HTTP boot | vendor class `HTTPClient` | the loader's address at the HTTP server |
//! | iPXE for UEFI | user class `iPXE` | a script that loads the loader |
//!
//! Architectures: RFC 4578, section 2.1, and IANA's "Processor Architecture Types".

use std::path::Path;

use super::cluster::{Cluster, Node};
use super::tree::Names;

/// First line of the file, by which a later run knows it.
pub(super) const MARK: &str = "# Made by `cargo xtask pxe` from a cluster file: change that one.";

/// Returns the configuration. TFTP serves `files`, whose owner dnsmasq runs as.
pub(super) fn configuration(
    cluster: &Cluster,
    names: &[Names],
    files: &Path,
    owner: &str,
) -> String {
    let server = &cluster.server;
    let mut lines = vec![
        MARK.to_owned(),
        "# The names of files in it are secret.".into(),
        "port=0".into(),
        format!("interface={}", server.interface),
        "except-interface=lo".into(),
        "bind-interfaces".into(),
        "no-resolv".into(),
        "no-hosts".into(),
        format!("user={owner}"),
        "pid-file=".into(),
        "leasefile-ro".into(),
        "log-dhcp".into(),
        String::new(),
        "# No router and no name server: nodes need none.".into(),
        "dhcp-option=3".into(),
        "dhcp-option=6".into(),
        format!("dhcp-range={},static,{}", server.network(), server.mask()),
        "# Other machines get no answer.".into(),
        "dhcp-ignore=tag:!known".into(),
        String::new(),
        "enable-tftp".into(),
        format!("tftp-root={}", files.display()),
        "# Only files of dnsmasq's own user.".into(),
        "tftp-secure".into(),
        String::new(),
        "dhcp-match=set:efi,option:client-arch,7".into(),
        "dhcp-match=set:efi,option:client-arch,9".into(),
        "dhcp-vendorclass=set:http,HTTPClient".into(),
        "dhcp-userclass=set:ipxe,iPXE".into(),
    ];
    if server.http_port.is_some() {
        lines
            .push("# Firmware takes an answer to HTTP boot only if the server says so too.".into());
        lines.push("dhcp-option-force=tag:http,60,HTTPClient".into());
    }
    for (index, (node, names)) in cluster.nodes.iter().zip(names).enumerate() {
        lines.push(String::new());
        lines.extend(of_node(cluster, index, node, names));
    }
    lines.join("\n") + "\n"
}

fn of_node(cluster: &Cluster, index: usize, node: &Node, names: &Names) -> Vec<String> {
    let Node {
        mac,
        address,
        name,
        role,
        ..
    } = node;
    let (tag, server) = (format!("node{index}"), cluster.server.address);
    let mut lines = vec![
        format!("# {name}: {}", role.name()),
        format!("dhcp-host={mac},set:{tag},{address},{name}"),
        format!(
            "dhcp-boot=tag:{tag},tag:efi,tag:!ipxe,tag:!http,{},,{server}",
            names.loader()
        ),
        format!(
            "dhcp-boot=tag:{tag},tag:efi,tag:ipxe,{},,{server}",
            names.script()
        ),
    ];
    if let Some(port) = cluster.server.http_port {
        let url = format!("http://{server}:{port}/{}", names.loader());
        lines.push(format!("dhcp-boot=tag:{tag},tag:http,tag:!ipxe,{url}"));
    }
    lines
}

/// Returns the script of iPXE that loads a node's loader.
pub(super) fn script(cluster: &Cluster, node: &Node, names: &Names) -> String {
    let (server, loader) = (cluster.server.address, names.loader());
    let url = match cluster.server.http_port {
        Some(port) => format!("http://{server}:{port}/{loader}"),
        None => format!("tftp://{server}/{loader}"),
    };
    let (name, role) = (&node.name, node.role.name());
    format!("#!ipxe\necho Tessera: {name}, {role}\nchain {url}\n")
}

//! Tests of whole cluster files and of the files made from them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::http::Server;
use super::tree::{self, Owner, Tree};
use super::{cluster, dnsmasq, log_file, report, serve};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A folder of one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tessera-pxe-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn cluster_file(&self, text: &str) -> PathBuf {
        let path = self.0.join("cluster.toml");
        fs::write(&path, text).expect("a cluster file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn good() -> String {
    format!(
        r#"[cluster]
name = "rack one"
key = "{KEY}"
options = ["keepalive=5000"]

[server]
interface = "eno1"
address = "10.9.0.1/24"
http_port = 8080

[[node]]
name = "p0"
role = "processor"
mac = "52:54:00:00:00:01"
address = "10.9.0.11"
options = ["pcache=4G", "ways=8"]
program = ["/bin/echo", "two words"]

[[node]]
name = "m0"
role = "memory"
mac = "52:54:00:00:00:02"
address = "10.9.0.12"
"#
    )
}

/// Returns the text of the error about a changed file, with the folder's name cut off.
fn fault(from: &str, to: &str) -> String {
    let text = good();
    assert!(text.contains(from), "{from:?}");
    fault_of(&text.replacen(from, to, 1))
}

fn fault_of(text: &str) -> String {
    let thread = format!("{:?}", std::thread::current().id());
    let folder = Folder::new(&format!("fault-{}", thread.replace(['(', ')'], "-")));
    let error = cluster::read(&folder.cluster_file(text)).expect_err("a fault");
    let text = format!("{error:#}");
    assert!(!text.contains(KEY), "the key is in the error: {text}");
    text.replace(&format!("{}/", folder.0.display()), "")
}

fn write(folder: &Folder, text: &str) -> (cluster::Cluster, Tree) {
    let cluster = cluster::read(&folder.cluster_file(text)).expect("a good file");
    let owner = Owner {
        name: "boots".into(),
        id: None,
    };
    let pack = |node: &cluster::Node, path: &Path| Ok(fs::write(path, &node.line)?);
    let tree = tree::write(&folder.0.join("out"), &cluster, &owner, pack).expect("written");
    (cluster, tree)
}

#[test]
fn nodes_get_the_command_line_of_their_role() {
    let folder = Folder::new("lines");
    let cluster = cluster::read(&folder.cluster_file(&good())).expect("a good file");
    let lines: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.line.as_str())
        .collect();
    let common = format!("cluster=rack%20one key={KEY} keepalive=5000");
    let processor = format!("{common} pcache=4G ways=8 -- /bin/echo two%20words");
    assert_eq!(lines, [processor, common]);
    assert!(cluster.warnings.is_empty(), "{:?}", cluster.warnings);
}

/// Changes of the good file: the text, the new text, and the line, key and words of the fault.
const FAULTS: [(&str, &str, u32, &str, &str); 21] = [
    (
        "role = \"memory\"",
        "role = \"disk\"",
        21,
        "node.role",
        "no role",
    ),
    ("00:00:01", "00:00:0g", 14, "node.mac", "no MAC address"),
    (
        "00:00:02",
        "00:00:01",
        22,
        "node.mac",
        "\"p0\" has the same MAC",
    ),
    (
        "10.9.0.12",
        "10.9.0.11",
        23,
        "node.address",
        "\"p0\" has the same address",
    ),
    ("10.9.0.12", "10.9.1.12", 23, "node.address", "not free"),
    ("10.9.0.12", "10.9.0.1", 23, "node.address", "not free"),
    ("10.9.0.12", "10.9.0.255", 23, "node.address", "not free"),
    ("\"m0\"", "\"p0\"", 20, "node.name", "the same name"),
    ("\"m0\"", "\"m,0\"", 20, "node.name", "no host's name"),
    (
        "10.9.0.1/24",
        "10.9.0.0/24",
        8,
        "server.address",
        "no address of a host",
    ),
    (
        "10.9.0.1/24",
        "10.9.0.1/99",
        8,
        "server.address",
        "no address of a host",
    ),
    ("eno1", "en,o1", 7, "server.interface", "no name"),
    ("ways=8", "way=8", 16, "node.options", "has no option"),
    (
        "keepalive=5000",
        "pcache=1G",
        4,
        "cluster.options",
        "has no option",
    ),
    ("8080", "0", 9, "server.http_port", "port 0"),
    ("8080", "99999", 9, "http_port", "invalid"),
    ("mac = ", "mak = ", 14, "mak", "unknown field"),
    ("role = \"memory\"\n", "", 19, "role", "missing field"),
    (
        "mac = \"52:54:00:00:00:02\"",
        "mac = 5",
        22,
        "mac",
        "invalid type",
    ),
    ("[server]", "[server", 6, "syntax", ""),
    ("\"two words\"", "\"\"", 17, "node.program", "last argument"),
];

#[test]
fn faults_name_the_line_and_the_key() {
    for (from, to, line, key, told) in FAULTS {
        let text = fault(from, to);
        let place = format!("cluster.toml:{line}: {key}: ");
        assert!(
            text.contains(&place) && text.contains(told),
            "{from:?} to {to:?}: {text}"
        );
    }
}

#[test]
fn the_key_is_needed_once_and_whole() {
    let key = format!("key = \"{KEY}\"");
    assert!(
        fault(&key, "").contains("cluster.toml:1: cluster.key: missing"),
        "none"
    );
    assert!(
        fault(KEY, &KEY[1..]).contains("cluster.toml:3: cluster.key: a key has 64"),
        "short"
    );
    let both = format!("{key}\nkey_file = \"k\"");
    assert!(fault(&key, &both).contains("give one of them"), "both");
    let text = fault(&key, "key_file = \"none\"");
    assert!(
        text.contains("cluster.toml:3: cluster.key_file: can't read"),
        "{text}"
    );

    let folder = Folder::new("key");
    fs::write(folder.0.join("k"), format!("{KEY}\n")).expect("a key file");
    fs::set_permissions(folder.0.join("k"), fs::Permissions::from_mode(0o644)).expect("its mode");
    let path = folder.cluster_file(&good().replace(&key, "key_file = \"k\""));
    let cluster = cluster::read(&path).expect("a good file");
    assert!(cluster.nodes[1].line.contains(KEY));
    assert!(
        cluster.warnings[0].contains("chmod 600"),
        "{:?}",
        cluster.warnings
    );
}

#[test]
fn all_faults_are_told_at_once_in_order() {
    let text = good().replace("\"memory\"", "\"disk\"").replace("eno1", "");
    let text = fault_of(&text.replace("00:00:01", "00:00"));
    let places = text
        .match_indices("cluster.toml:")
        .map(|(at, _)| &text[at + 13..at + 15]);
    let places: Vec<_> = places.collect();
    assert_eq!(places, ["7:", "14", "21"], "{text}");
    assert!(fault_of("").contains("missing field `cluster`"));
    let bare = good();
    let bare = &bare[..bare.find("[[node]]").expect("nodes")];
    assert!(fault_of(bare).contains("there is no [[node]]"));
}

#[test]
fn files_are_the_owner_s_alone_and_their_names_can_t_be_guessed() {
    let folder = Folder::new("tree");
    let (_, first) = write(&folder, &good());
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&first.files), 0o700);
    assert_eq!(mode(&first.configuration), 0o600);
    assert_eq!(mode(&log_file(&folder.0.join("out"))), 0o600);
    for names in &first.names {
        for name in [names.loader(), names.script()] {
            assert_eq!(mode(&first.files.join(&name)), 0o600, "{name}");
            let stem = name.split('.').next().unwrap_or_default();
            assert!(
                stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{name}"
            );
        }
    }
    assert_ne!(first.names[0], first.names[1]);
    let (_, again) = write(&folder, &good());
    assert_ne!(first.names, again.names);
    assert_eq!(
        fs::read_dir(&again.files).expect("a folder").count(),
        4,
        "old files are left"
    );
}

#[test]
fn folders_of_others_are_left_alone() {
    let folder = Folder::new("others");
    let cluster = cluster::read(&folder.cluster_file(&good())).expect("a good file");
    let owner = Owner {
        name: "boots".into(),
        id: None,
    };
    let pack = |_: &cluster::Node, _: &Path| panic!("nothing may be written");
    for file in ["letter", "files/letter", "dnsmasq.conf"] {
        let out = folder.0.join(file.replace('/', "-"));
        let path = out.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, "mine").expect("written");
        tree::write(&out, &cluster, &owner, pack).expect_err(file);
        assert_eq!(fs::read_to_string(&path).expect("still there"), "mine");
    }
}

#[test]
fn the_configuration_tells_each_card_its_own_files() {
    let folder = Folder::new("conf");
    let (cluster, tree) = write(&folder, &good());
    let text = fs::read_to_string(&tree.configuration).expect("a configuration");
    assert!(!text.contains(KEY), "the key is in it");
    let (p, m) = (&tree.names[0], &tree.names[1]);
    for line in [
        dnsmasq::MARK.to_owned(),
        "interface=eno1".into(),
        "user=boots".into(),
        "dhcp-range=10.9.0.0,static,255.255.255.0".into(),
        "dhcp-ignore=tag:!known".into(),
        format!("tftp-root={}", tree.files.display()),
        "dhcp-host=52:54:00:00:00:02,set:node1,10.9.0.12,m0".into(),
        format!(
            "dhcp-boot=tag:node0,tag:efi,tag:!ipxe,tag:!http,{},,10.9.0.1",
            p.loader()
        ),
        format!(
            "dhcp-boot=tag:node1,tag:efi,tag:ipxe,{},,10.9.0.1",
            m.script()
        ),
        format!(
            "dhcp-boot=tag:node1,tag:http,tag:!ipxe,http://10.9.0.1:8080/{}",
            m.loader()
        ),
    ] {
        assert!(
            text.lines().any(|there| there == line),
            "{line:?} is not in\n{text}"
        );
    }
    let script = fs::read_to_string(tree.files.join(m.script())).expect("a script");
    assert!(script.starts_with("#!ipxe\n"), "{script}");
    assert!(
        script.contains(&format!("chain http://10.9.0.1:8080/{}\n", m.loader())),
        "{script}"
    );
    let told = report(
        &cluster,
        &tree,
        &Owner {
            name: "boots".into(),
            id: None,
        },
    );
    assert!(
        told.contains("52:54:00:00:00:01\t10.9.0.11\tp0\tprocessor"),
        "{told}"
    );
    assert!(
        told.contains("no storage node") && !told.contains(KEY),
        "{told}"
    );

    let (cluster, tree) = write(&folder, &good().replace("http_port = 8080\n", ""));
    let text = fs::read_to_string(&tree.configuration).expect("a configuration");
    assert!(!text.contains("http://"), "{text}");
    let script = dnsmasq::script(&cluster, &cluster.nodes[0], &tree.names[0]);
    assert!(script.contains("chain tftp://10.9.0.1/"), "{script}");
}

#[test]
fn dnsmasq_takes_the_configuration() {
    let program = serve::obtain().expect("dnsmasq, or Debian's");
    let folder = Folder::new("dnsmasq");
    let (_, tree) = write(&folder, &good());
    serve::check(&program, &tree.configuration).expect("dnsmasq takes it");
    let text = fs::read_to_string(&tree.configuration).expect("a configuration");
    fs::write(&tree.configuration, text + "dhcp-boot\n").expect("written");
    serve::check(&program, &tree.configuration).expect_err("a bad line");
}

/// Asks the server, and returns its answer's head and body.
fn ask(server: &Server, what: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.address()).expect("connected");
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: boot\r\nConnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head, answer[end + 4..].to_vec())
}

#[test]
fn http_gives_a_file_to_who_knows_its_name_and_no_listing() {
    let folder = Folder::new("http");
    let (cluster, tree) = write(&folder, &good());
    let server = Server::start(([127, 0, 0, 1], 0).into(), &tree.files).expect("loopback");
    let loader = tree.names[0].loader();
    let (head, body) = ask(&server, &format!("GET /{loader}"));
    let line = cluster.nodes[0].line.as_bytes();
    assert!(head.starts_with("HTTP/1.1 200") && body == line, "{head}");
    let (head, body) = ask(&server, &format!("HEAD /{loader}"));
    let length = format!("Content-Length: {}", line.len());
    assert!(head.contains(&length) && body.is_empty(), "{head}");
    for what in [
        "GET /",
        "GET /../dnsmasq.conf",
        "GET /x.efi",
        &format!("POST /{loader}"),
    ] {
        let (head, body) = ask(&server, what);
        assert!(
            head.starts_with("HTTP/1.1 404") && body.is_empty(),
            "{what}: {head}"
        );
    }
    server.check().expect("it runs");
}

//! Images that UEFI firmware starts: OVMF, from a stick, a CD and the network.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testbed_tests::{Run, xtask};

/// Each component is started in another way, and the three run one program. A program that reads
/// files needs all of them.
#[test]
fn three_nodes_that_firmware_started_in_three_ways_run_a_program() {
    let run = Run::new(&[
        "--boot-from=processor:disk",
        "--boot-from=memory:iso",
        "--boot-from=storage:pxe",
        "--cpus=2",
        "--keep-logs",
    ]);
    let ran = run.run(&["busybox", "sort", "/usr/share/dict/web2"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_sorted(&ran.stdout);
    let folder = logs(&ran.stderr);
    for (node, source) in [
        ("processor", "the file"),
        ("memory", "the build"),
        ("storage", "the build"),
    ] {
        let log = log_of(&folder, node);
        assert!(
            log.contains("libos::boot::start: started by UEFI"),
            "{node}: {log}"
        );
        assert!(
            log.contains(&format!("the command line from {source}")),
            "{node}: {log}"
        );
    }
    let left = [
        "processor.stick",
        "memory.iso",
        "storage.tftp",
        "storage.vars",
    ];
    for file in left {
        assert!(
            !folder.join(file).exists(),
            "{file} holds the key and is left"
        );
    }
    fs::remove_dir_all(folder).expect("removed");
}

/// A rack's boot server serves three machines in three ways, in a network of its own. Only root can
/// make that.
#[test]
fn three_nodes_boot_from_what_xtask_pxe_serves() {
    let own = fs::metadata("/proc/self").expect("proc is mounted").uid();
    if own != 0 || !Path::new("/dev/net/tun").exists() {
        println!("skipped: a network needs root and /dev/net/tun");
        return;
    }
    let run = Run::new(&[
        "--boot-from=processor:rack-http",
        "--boot-from=memory:rack-pxe",
        "--boot-from=storage:rack-ipxe",
        "--boot-timeout=240",
        "--keep-logs",
    ]);
    let ran = run.run(&["busybox", "sort", "/usr/share/dict/web2"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_sorted(&ran.stdout);
    let folder = logs(&ran.stderr);
    for (node, way) in [
        ("processor", "  URI: http://10.9.0.1:8080/"),
        ("memory", "  Server IP address is 10.9.0.1"),
        ("storage", "\nTessera: storage, storage"),
    ] {
        let log = log_of(&folder, node);
        for said in [
            way,
            "the command line from the build",
            "libos::boot::start: started by UEFI",
        ] {
            assert!(log.contains(said), "{node}: {said:?} is not in {log}");
        }
    }
    let served = PathBuf::from(format!("{}-boot", folder.display()));
    for file in ["cluster.toml", "storage.stick", "storage.vars"] {
        assert!(
            !folder.join(file).exists(),
            "{file} holds the key and is left"
        );
    }
    assert!(!served.exists(), "{} is left", served.display());
    fs::remove_dir_all(folder).expect("removed");
}

/// Firmware with Secure Boot starts what its key has signed, and nothing that another key has.
#[test]
fn secure_boot_starts_what_its_key_has_signed() {
    let secure = ["--boot-from=memory:disk", "--secure-boot", "--keep-logs"];
    let ran = Run::new(&secure).run(&["busybox", "echo", "signed"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, b"signed\n");
    fs::remove_dir_all(logs(&ran.stderr)).expect("removed");

    let own = std::env::temp_dir().join(format!("tessera-own-key-{}", std::process::id()));
    let (key, certificate) = (own.with_extension("key"), own.with_extension("pem"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=of nobody", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{made:?}");
    let paths = [&key, &certificate].map(|path| path.display().to_string());
    let foreign = [
        &["--sign", &paths[0], &paths[1], "--boot-timeout=30"],
        &secure[..],
    ]
    .concat();
    let ran = Run::new(&foreign).run(&["busybox", "echo", "foreign"]);
    for file in [key, certificate] {
        fs::remove_file(file).expect("removed");
    }
    assert_eq!(ran.code, Some(125), "{}", ran.stderr);
    let folder = logs(&ran.stderr);
    let log = log_of(&folder, "memory");
    assert!(log.contains("Access Denied"), "{log}");
    assert!(!log.contains("started by UEFI"), "{log}");
    fs::remove_dir_all(folder).expect("removed");
}

/// A machine without UEFI: its BIOS runs the network card's iPXE, that loads GRUB, and GRUB the
/// image.
#[test]
fn a_bios_starts_a_node_by_ipxe_and_grub() {
    let run = Run::new(&["--boot-from=memory:grub", "--keep-logs"]);
    let ran = run.run(&["busybox", "echo", "$HOME it's"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, b"$HOME it's\n");
    let folder = logs(&ran.stderr);
    let log = log_of(&folder, "memory");
    assert!(log.contains("started by Multiboot2"), "{log}");
    let left = folder.join("memory.tftp");
    assert!(!left.exists(), "it holds the key and is left");
    fs::remove_dir_all(folder).expect("removed");
}

/// Panics unless the output has many lines, in order.
fn assert_sorted(stdout: &[u8]) {
    let lines: Vec<&[u8]> = stdout.split(|&byte| byte == b'\n').collect();
    assert!(lines.len() > 1000 && lines[..lines.len() - 1].is_sorted());
}

/// Returns a node's log, with what firmware and loaders wrote on the same line.
fn log_of(folder: &Path, node: &str) -> String {
    let log = fs::read(folder.join(format!("{node}.log"))).expect("a log");
    String::from_utf8_lossy(&log).into_owned()
}

/// Returns the folder that `--keep-logs` names.
fn logs(stderr: &str) -> PathBuf {
    stderr
        .lines()
        .find_map(|line| {
            line.split_once("logs are in ")
                .map(|(_, folder)| PathBuf::from(folder))
        })
        .expect("--keep-logs says where they are")
}

/// The log of nodes that firmware started is on their screens, as it is on the serial port.
#[test]
fn the_log_is_on_the_screen() {
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("screens");
    let _ = fs::remove_dir_all(&to);
    let options = [
        "--boot-from=memory:disk",
        "--boot-from=storage:disk",
        "--keep-logs",
    ];
    let screens = format!("--screens={}", to.display());
    let ran = Run::new(&[&options[..], &[&screens]].concat()).run(&["busybox", "echo", "seen"]);
    assert_eq!(
        (ran.code, &ran.stdout[..]),
        (Some(0), &b"seen\n"[..]),
        "{}",
        ran.stderr
    );
    let folder = logs(&ran.stderr);
    for node in ["memory", "storage"] {
        let log = fs::read(folder.join(format!("{node}.log"))).expect("a log");
        let log = String::from_utf8_lossy(&log).into_owned();
        let shown = testbed_tests::screen::text(&to.join(format!("{node}.ppm")));
        // A line of the log may take two of the screen.
        let flat = |text: &str| text.split_whitespace().collect::<String>();
        let last = log
            .lines()
            .rfind(|line| line.contains("INFO"))
            .expect("lines");
        assert!(
            !shown.contains('\u{fffd}'),
            "{node}: not all are glyphs:\n{shown}"
        );
        assert!(
            shown.contains("INFO  libos::boot::start: started by UEFI"),
            "{node}:\n{shown}"
        );
        assert!(
            flat(&log).contains(&flat(&shown)),
            "{node}:\n{shown}\n{log}"
        );
        assert!(shown.lines().count() > 8, "{node}: {last}\n{shown}");
    }
    fs::remove_dir_all(folder).expect("removed");
    fs::remove_dir_all(to).expect("removed");
}

/// The same input gives the same bytes, at another time too.
#[test]
fn files_for_firmware_are_the_same_each_time() {
    for format in ["efi", "iso", "disk"] {
        let made = || {
            let output = xtask()
                .args([
                    "build-image",
                    "memory",
                    "--format",
                    format,
                    "--cmdline",
                    "cluster=a",
                ])
                .stderr(Stdio::inherit())
                .output()
                .expect("xtask runs");
            assert!(output.status.success());
            let said = String::from_utf8(output.stdout).expect("text");
            let path = said
                .lines()
                .next()
                .and_then(|line| line.rsplit('\t').next());
            fs::read(path.expect("the file's path")).expect("the file")
        };
        let first = made();
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert!(first == made(), "{format}");
    }
}

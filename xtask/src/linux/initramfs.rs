//! A guest's files: Debian packages, the kernel's modules, the first process and the commands.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::alternatives::{self, Alternative};
use super::cpio::Archive;
use super::kernel::Kernel;
use crate::debian::{BOOKWORM, Bundle};
use crate::run::Add;

/// Packages of every guest.
const TOOLS: Bundle<'_> = Bundle {
    name: "linux-tools-2",
    release: BOOKWORM,
    packages: &[
        "busybox-static",
        "kmod",
        "rdma-core",
        "ibverbs-utils",
        "infiniband-diags",
        "opensm",
        "perftest",
        "rdmacm-utils",
        "iproute2",
    ],
    dependencies: true,
    backports: false,
    files: &[
        "bin/busybox",
        "bin/kmod",
        "usr/bin/ibv_devinfo",
        "usr/bin/ib_write_bw",
        "usr/sbin/opensm",
    ],
};
/// The shell. Busybox's own prefers its applets to the packages' programs: `ip` would be another
/// one than iproute2's.
const SHELL: Bundle<'_> = Bundle {
    name: "linux-shell-1",
    packages: &["dash"],
    dependencies: false,
    files: &["bin/dash"],
    ..TOOLS
};
/// Programs that busybox has and the packages' root may lack.
const APPLETS: &str = "awk basename cat chmod cmp cp cut date dd df diff dirname dmesg echo env expr false find free grep \
    head hexdump hostname id kill killall ln ls md5sum mkdir mkfifo mknod mkswap mount mv nc od pgrep pidof pkill ping printf \
    ps pwd readlink realpath reboot rm rmdir sed seq setsid sha256sum sleep sort stat stty swapoff swapon sync sysctl tail tee \
    telnet test time timeout top touch tr true umount uname uniq uptime vi wc which xargs yes";
/// Folders that no guest needs; Perl alone is as large as all the rest.
const LEFT_OUT: [&str; 12] = [
    "boot",
    "usr/lib/modules",
    "usr/include",
    "usr/lib/udev",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl",
];
/// Documentation that guests get: pyverbs' own tests.
const TESTS: (&str, &str) = ("usr/share/doc", "rdma-core/tests");
/// Folders at the root that Debian has moved below `/usr`, and some packages of Debian 12 have not.
const MOVED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Programs of every guest that are no package's.
const PROGRAMS: [(&str, &str); 5] = [
    ("await", include_str!("await.sh")),
    ("cable", include_str!("cable.sh")),
    ("lose-power", include_str!("lose-power.sh")),
    ("on", include_str!("on.sh")),
    ("serve-commands", include_str!("serve-commands.sh")),
];
/// Files that Debian's packages make when they are installed, or that are of packages which guests
/// do without (`base-passwd`, `netbase`): programs look up users, groups and protocols.
const BASE_FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\ntty:x:5:\nrdma:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/protocols",
        "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\nsctp 132 SCTP\n",
    ),
    (
        "etc/services",
        "ssh 22/tcp\nsunrpc 111/tcp\nsunrpc 111/udp\nnfs 2049/tcp\nnfs 2049/udp\niscsi-target 3260/tcp\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n",
    ),
];

/// Contents of the guests' root beside the kernel's modules.
pub(crate) struct Contents<'a> {
    /// More packages.
    pub(crate) packages: &'a [String],
    /// More modules, loaded before the commands.
    pub(crate) modules: &'a [String],
    /// Files of the host.
    pub(crate) add: &'a [Add],
    /// Each node's command.
    pub(crate) commands: &'a [String],
    /// Number of guests.
    pub(crate) nodes: usize,
}

/// Returns the folders of the packages, fetched if they are missing.
fn roots(packages: &[String]) -> Result<Vec<PathBuf>> {
    let mut roots = vec![TOOLS.obtain()?, SHELL.obtain()?];
    if !packages.is_empty() {
        let mut names: Vec<&str> = packages.iter().map(String::as_str).collect();
        names.sort_unstable();
        let name = format!("linux-packages-2-{}", names.join("+"));
        let bundle = Bundle {
            name: &name,
            packages: &names,
            // What any package has.
            files: &["usr"],
            ..TOOLS
        };
        roots.push(bundle.obtain()?);
    }
    Ok(roots)
}

/// Fetches what every guest has.
pub(crate) fn prepare() -> Result<()> {
    roots(&[]).map(drop)
}

/// Writes the archive of all guests' files.
pub(crate) fn write(to: &Path, kernel: &Kernel, contents: &Contents<'_>) -> Result<()> {
    let roots = roots(contents.packages)?;
    let file = File::create(to).with_context(|| format!("can't make {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in MOVED {
        archive.folder(&format!("usr/{folder}"))?;
        archive.link(folder, &format!("usr/{folder}"))?;
    }
    for folder in ["dev", "proc", "root", "run", "sys", "tmp", "guest"] {
        archive.folder(folder)?;
    }
    // Before the packages' own, which thereby replace them: the last of a name counts.
    for (path, text) in BASE_FILES {
        archive.file(path, false, text.as_bytes())?;
    }
    for applet in APPLETS.split_whitespace() {
        archive.link(&format!("usr/bin/{applet}"), "/bin/busybox")?;
    }
    for root in &roots {
        put(&mut archive, root, "")?;
        for Alternative { link, target } in alternatives::of(root)? {
            archive.link(&moved(&link), &target)?;
        }
    }
    archive.link("usr/bin/sh", "dash")?;
    modules(&mut archive, kernel, contents.modules)?;
    for add in contents.add {
        put(
            &mut archive,
            &add.host,
            add.guest.to_string_lossy().trim_start_matches('/'),
        )?;
    }
    archive.file("init", true, include_bytes!("init.sh"))?;
    for (program, script) in PROGRAMS {
        archive.file(&format!("usr/bin/{program}"), true, script.as_bytes())?;
    }
    archive.file("guest/nodes", false, contents.nodes.to_string().as_bytes())?;
    archive.file(
        "guest/modules",
        false,
        contents.modules.join("\n").as_bytes(),
    )?;
    for (node, command) in contents.commands.iter().enumerate() {
        archive.file(&format!("guest/command.{node}"), false, command.as_bytes())?;
    }
    archive
        .finish()?
        .flush()
        .context("can't write the guests' files")
}

fn modules(archive: &mut Archive<impl Write>, kernel: &Kernel, named: &[String]) -> Result<()> {
    let folder = kernel.module_folder();
    let guest = format!("usr/lib/modules/{}", kernel.release);
    let entries = fs::read_dir(&folder).context("can't list the modules' folder")?;
    let lists = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("modules."));
    for file in lists.chain(kernel.modules(named)?) {
        let bytes = fs::read(folder.join(&file))
            .with_context(|| format!("can't read the module {file}"))?;
        archive.file(&format!("{guest}/{file}"), false, &bytes)?;
    }
    Ok(())
}

/// Adds a file, or a folder with all it holds.
fn put(archive: &mut Archive<impl Write>, host: &Path, guest: &str) -> Result<()> {
    let guest = moved(guest);
    if LEFT_OUT.contains(&guest.as_str()) {
        let tests = host.join(TESTS.1);
        if guest == TESTS.0 && tests.is_dir() {
            return put(archive, &tests, &format!("{guest}/{}", TESTS.1));
        }
        return Ok(());
    }
    let read = || format!("can't read {}", host.display());
    let meta = fs::symlink_metadata(host).with_context(read)?;
    if meta.is_dir() {
        archive.folder(&guest)?;
        let entries = fs::read_dir(host).with_context(read)?;
        let mut names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            .collect();
        names.sort();
        for name in names {
            let inner = name
                .to_str()
                .with_context(|| format!("{} holds a name that is no text", host.display()))?;
            let path = if guest.is_empty() {
                inner.to_owned()
            } else {
                format!("{guest}/{inner}")
            };
            put(archive, &host.join(&name), &path)?;
        }
    } else if meta.is_symlink() {
        let target = fs::read_link(host).with_context(read)?;
        archive.link(&guest, &target.to_string_lossy())?;
    } else if meta.is_file() {
        let executable = meta.permissions().mode() & 0o111 != 0;
        archive.file(&guest, executable, &fs::read(host).with_context(read)?)?;
    }
    Ok(())
}

/// Returns a path's place now that `/bin` and others are links.
fn moved(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if MOVED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lay_beside_usr_lies_in_it() {
        assert_eq!(moved("bin/kmod"), "usr/bin/kmod");
        assert_eq!(moved("lib"), "usr/lib");
        assert_eq!(moved("library/x"), "library/x");
        assert_eq!(moved("usr/bin/x"), "usr/bin/x");
        assert_eq!(moved(""), "");
    }
}

//! Debian's kernel: its image, uncompressed, and the modules that guests need.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{BOOKWORM, Bundle, TRIXIE};
use crate::tools::{self, quiet, say};

/// The modules that every guest may load, without those that they depend on.
const MODULES: [&str; 13] = [
    "mlx4_core",
    "mlx4_ib",
    "mlx4_en",
    "ib_uverbs",
    "ib_umad",
    "rdma_ucm",
    "ib_ipoib",
    "virtio_pci",
    "virtio_net",
    "nvme_rdma",
    "nvmet_rdma",
    "brd",
    "zram",
];
/// Magic number of an xz stream.
const XZ: &[u8] = b"\xfd7zXZ\0";

/// A kernel, fetched and made ready.
pub(crate) struct Kernel {
    root: PathBuf,
    /// Its release, as `uname -r` tells it.
    pub(crate) release: String,
    /// Image that QEMU loads.
    pub(crate) image: PathBuf,
}

impl Kernel {
    /// Returns the kernel of the package `linux-image-VERSION` of a release of Debian, fetched if
    /// it is missing. `text` is as [`Source::parse`] takes it.
    pub(crate) fn obtain(text: &str) -> Result<Self> {
        let Source {
            release,
            backports,
            version,
        } = Source::parse(text)?;
        // The default kernel's folder has kept its name.
        let from = match (release, backports) {
            (BOOKWORM, false) => String::new(),
            (release, backports) => {
                format!("{release}{}-", if backports { "-backports" } else { "" })
            }
        };
        let name = format!("linux-kernel-1-{from}{version}");
        let package = format!("linux-image-{version}");
        let root = Bundle {
            name: &name,
            release,
            packages: &[&package, "kmod", "xz-utils"],
            dependencies: true,
            backports,
            files: &["usr/bin/xz"],
        }
        .obtain()?;
        link_moved(&root)?;
        let release = only_entry(&root.join("lib/modules"))?;
        let image = root.join("vmlinux");
        let kernel = Self {
            root,
            release,
            image,
        };
        kernel.prepare()?;
        Ok(kernel)
    }

    /// Uncompresses the image, so that no guest has to, and lists what each module depends on;
    /// once.
    fn prepare(&self) -> Result<()> {
        let lock =
            File::create(self.root.join("prepare.lock")).context("can't make a lock file")?;
        lock.lock().context("can't lock the kernel's folder")?;
        if self.image.exists() {
            return Ok(());
        }
        tools::step(&format!("Preparing Linux {}", self.release), || {
            let mut depmod = self.program("bin/kmod", "depmod");
            quiet(depmod.arg("-b").arg(&self.root).arg(&self.release))
                .context("can't list the modules")?;
            // Kernels of 2026 lie beside their modules.
            let places = [
                self.root.join(format!("boot/vmlinuz-{}", self.release)),
                self.module_folder().join("vmlinuz"),
            ];
            let packed = places.into_iter().find(|place| place.exists());
            let packed = packed.context("the package holds no kernel")?;
            let bytes =
                fs::read(&packed).with_context(|| format!("can't read {}", packed.display()))?;
            let payload =
                payload(&bytes).with_context(|| format!("{} is no bzImage", packed.display()))?;
            let partial = self.root.join("vmlinux.partial");
            if payload.starts_with(XZ) {
                self.unpack(payload, &partial)?;
            } else {
                // QEMU boots it as it is, only slower.
                fs::write(&partial, &bytes).context("can't write the kernel")?;
            }
            fs::rename(&partial, &self.image).context("can't write the kernel")
        })
    }

    fn unpack(&self, payload: &[u8], to: &Path) -> Result<()> {
        let from = self.root.join("vmlinux.xz");
        fs::write(&from, payload).context("can't write the kernel's payload")?;
        // After the stream comes its length, which is no part of it.
        let status = self
            .program("usr/bin/xz", "xz")
            .args(["-dc", "--single-stream"])
            .stdin(File::open(&from).context("can't read the kernel's payload")?)
            .stdout(File::create(to).context("can't write the kernel")?)
            .stderr(Stdio::inherit())
            .status()
            .context("can't run xz")?;
        ensure!(status.success(), "xz ended with {status}");
        fs::remove_file(from).context("can't remove the kernel's payload")
    }

    /// Returns a command of a program of the bundle, run by its own loader under its usual name.
    fn program(&self, path: &str, name: &str) -> Command {
        let mut command = Command::new(self.root.join(LOADER));
        let folders = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
            .map(|folder| self.root.join(folder).display().to_string());
        command.args(["--library-path", &folders.join(":"), "--argv0", name]);
        command.arg(self.root.join(path));
        command
    }

    /// Returns the folder of its modules and their lists.
    pub(crate) fn module_folder(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// Returns the modules that guests need and those named, with their dependencies, by their
    /// paths below [`Self::module_folder`]. Of the former a kernel may lack some, which is said.
    ///
    /// # Errors
    /// Fails if the kernel has no module of a given name, not even built in.
    pub(crate) fn modules(&self, named: &[String]) -> Result<BTreeSet<String>> {
        let read = |list: &str| {
            fs::read_to_string(self.module_folder().join(list))
                .with_context(|| format!("can't read {list}"))
        };
        let lists = Lists {
            dependencies: read("modules.dep")?,
            builtin: read("modules.builtin")?,
        };
        let (mut files, missing) = lists.closure(MODULES);
        if !missing.is_empty() {
            say(&format!(
                "Linux {} has no modules {missing:?}",
                self.release
            ));
        }
        let (more, missing) = lists.closure(named.iter().map(String::as_str));
        ensure!(missing.is_empty(), "the kernel has no modules {missing:?}");
        files.extend(more);
        Ok(files)
    }
}

/// `depmod`'s lists of a kernel's modules.
struct Lists {
    /// `modules.dep`: each module's file and those that it needs, indirect ones as well.
    dependencies: String,
    /// `modules.builtin`: the files that modules would have which are part of the kernel.
    builtin: String,
}

impl Lists {
    /// Returns the files of the named modules and of all that they need, and the names that the
    /// kernel has neither as a module nor built in.
    fn closure<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let mut files = BTreeSet::new();
        let mut missing: BTreeSet<String> = names.into_iter().map(normal).collect();
        for (module, needs) in self
            .dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
        {
            if missing.remove(&name_of(module)) {
                files.insert(module.to_owned());
                files.extend(needs.split_whitespace().map(str::to_owned));
            }
        }
        for module in self.builtin.lines() {
            missing.remove(&name_of(module));
        }
        (files, missing)
    }
}

/// Returns a module's name as the kernel writes it, with underscores.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the name of the module in a file.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split('.').next().unwrap_or(file))
}

/// Links the folders that newer releases have below `usr` only, as `base-files` would.
fn link_moved(root: &Path) -> Result<()> {
    for folder in ["bin", "lib"] {
        match symlink(Path::new("usr").join(folder), root.join(folder)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("can't link {folder}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Place of a kernel's package.
#[derive(Debug, PartialEq, Eq)]
struct Source<'a> {
    release: &'static str,
    backports: bool,
    version: &'a str,
}

impl<'a> Source<'a> {
    /// Parses `VERSION`, which is Debian 12's, or `RELEASE/VERSION`.
    fn parse(text: &'a str) -> Result<Self> {
        let (suite, version) = text.split_once('/').unwrap_or((BOOKWORM, text));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-+~".contains(&byte);
        ensure!(
            !version.is_empty() && version.bytes().all(plain),
            "{version:?} is no kernel version"
        );
        let (name, backports) = match suite.strip_suffix("-backports") {
            Some(name) => (name, true),
            None => (suite, false),
        };
        let release = [BOOKWORM, TRIXIE]
            .into_iter()
            .find(|release| *release == name)
            .with_context(|| {
                format!("{suite:?} is neither {BOOKWORM}, {TRIXIE} nor one's -backports")
            })?;
        Ok(Self {
            release,
            backports,
            version,
        })
    }
}

const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// Returns the compressed kernel in a bzImage (Linux `Documentation/x86/boot.rst`: setup_sects,
/// payload_offset, payload_length).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = setup.checked_add(number(0x248)?)?;
    image.get(start..start.checked_add(number(0x24c)?)?)
}

fn only_entry(folder: &Path) -> Result<String> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        _ => bail!("{} does not hold one kernel's modules", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need_unless_they_are_built_in() {
        let lists = Lists {
            dependencies: "kernel/a/mlx4_ib.ko: kernel/b/ib_core.ko kernel/b/mlx4_core.ko\nkernel/c/nvme-rdma.ko.xz:\nkernel/d/x.ko:\n".into(),
            // Debian's cloud kernels and 6.12 have virtio so.
            builtin: "kernel/drivers/virtio/virtio_pci.ko\n".into(),
        };
        let (files, missing) = lists.closure(["mlx4_ib", "nvme-rdma", "virtio_pci"]);
        let expected = [
            "kernel/a/mlx4_ib.ko",
            "kernel/b/ib_core.ko",
            "kernel/b/mlx4_core.ko",
            "kernel/c/nvme-rdma.ko.xz",
        ];
        assert!(files.iter().eq(&expected.map(str::to_owned)), "{files:?}");
        assert!(missing.is_empty(), "{missing:?}");
        let (_, missing) = lists.closure(["mlx5_core"]);
        assert!(missing.iter().eq(["mlx5_core"]), "{missing:?}");
    }

    #[test]
    fn a_kernel_is_of_debian_12_unless_its_release_is_named() {
        let source = |release, backports, version| Source {
            release,
            backports,
            version,
        };
        for (text, expected) in [
            ("amd64", Some(source(BOOKWORM, false, "amd64"))),
            (
                "trixie/cloud-amd64",
                Some(source(TRIXIE, false, "cloud-amd64")),
            ),
            (
                "trixie-backports/amd64",
                Some(source(TRIXIE, true, "amd64")),
            ),
            ("sid/amd64", None),
            ("trixie/", None),
            ("trixie/a/b", None),
            ("a b", None),
        ] {
            assert_eq!(Source::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        let mut image = vec![0; 0x600];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 8;
        image[0x24c] = 3;
        image[0x408..0x40b].copy_from_slice(b"abc");
        assert_eq!(payload(&image), Some(&b"abc"[..]));
        image[0x24d] = 0xff;
        assert_eq!(payload(&image), None, "beyond the end");
        assert_eq!(payload(b"short"), None);
    }
}

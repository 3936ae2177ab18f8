//! Root file systems for S's disk: Debian's packages, or a folder of the user's.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::debian::{BOOKWORM, Bundle, TRIXIE};
use crate::tools::quiet;

/// Packages that each root file system has.
const BASE: [&str; 14] = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "mawk",
    "ncurses-base",
    "sed",
    "tar",
];
/// Folders at the root that Debian has moved below `/usr`; some packages of Debian 12 have not.
const MOVED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Links that packages' scripts would make, which do not run here: to the first target that is
/// there.
const LINKS: [(&str, &[&str]); 8] = [
    ("usr/bin/sh", &["dash"]),
    ("usr/bin/awk", &["gawk", "mawk"]),
    ("usr/bin/python", &["python3"]),
    ("usr/bin/cc", &["gcc"]),
    ("usr/bin/which", &["which.debianutils"]),
    (
        "usr/lib/x86_64-linux-gnu/libblas.so.3",
        &["openblas-pthread/libblas.so.3", "blas/libblas.so.3"],
    ),
    (
        "usr/lib/x86_64-linux-gnu/libopenblas.so.0",
        &["openblas-pthread/libopenblas.so.0"],
    ),
    (
        "usr/lib/x86_64-linux-gnu/liblapack.so.3",
        &["openblas-pthread/liblapack.so.3", "lapack/liblapack.so.3"],
    ),
];
/// Files that packages' scripts would copy.
const COPIES: [(&str, &str); 2] = [
    ("etc/passwd", "usr/share/base-passwd/passwd.master"),
    ("etc/group", "usr/share/base-passwd/group.master"),
];
/// Files that an installation would write.
const WRITTEN: [(&str, &str); 1] = [(
    "etc/hosts",
    "127.0.0.1\tlocalhost\n127.0.1.1\ttessera\n::1\tlocalhost ip6-localhost ip6-loopback\n",
)];

/// The source of a root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A release of Debian.
    Debian(&'static str),
    /// A folder of the host.
    Folder(PathBuf),
}

impl FromStr for Root {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(release) = [BOOKWORM, TRIXIE]
            .into_iter()
            .find(|&release| release == text)
        {
            return Ok(Self::Debian(release));
        }
        let folder = PathBuf::from(text);
        if folder.is_dir() {
            Ok(Self::Folder(folder))
        } else {
            Err(format!(
                "it is {BOOKWORM}, {TRIXIE} or a folder, and there is no folder {text}"
            ))
        }
    }
}

impl Root {
    /// Returns the folder with the files, fetched now if they are Debian's and not in the cache.
    pub(crate) fn obtain(&self, packages: &[String]) -> Result<PathBuf> {
        match self {
            Self::Folder(folder) => {
                ensure!(
                    packages.is_empty(),
                    "--packages needs --root {BOOKWORM} or --root {TRIXIE}: a folder has what it has"
                );
                Ok(folder.clone())
            }
            Self::Debian(release) => debian(release, packages),
        }
    }

    /// Copies the files to a folder, replacing what is there: programs may change the copy. It has
    /// the folders that P mounts file systems of its own on.
    pub(crate) fn copy(&self, packages: &[String], to: &Path) -> Result<()> {
        let from = self.obtain(packages)?;
        if to.exists() {
            fs::remove_dir_all(to).with_context(|| format!("can't remove {}", to.display()))?;
        }
        quiet(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .args([&from, to]),
        )?;
        for name in ["dev", "etc", "proc", "root", "tmp", "sys", "run"] {
            fs::create_dir_all(to.join(name))
                .with_context(|| format!("can't make the folder {name}"))?;
        }
        Ok(())
    }
}

fn debian(release: &'static str, packages: &[String]) -> Result<PathBuf> {
    let mut all: Vec<&str> = BASE
        .into_iter()
        .chain(packages.iter().map(String::as_str))
        .collect();
    all.sort_unstable();
    all.dedup();
    let mut hasher = DefaultHasher::new();
    all.hash(&mut hasher);
    let name = format!("root-{release}-{:016x}", hasher.finish());
    let bundle = Bundle {
        name: &name,
        release,
        packages: &all,
        dependencies: true,
        backports: false,
        files: &["usr/bin/bash"],
    };
    // Debian 12's bash lies in /bin until the folders are merged.
    let folder = match bundle.obtain() {
        Ok(folder) => folder,
        Err(error) if release == BOOKWORM => Bundle {
            files: &["usr/bin"],
            ..bundle
        }
        .obtain()
        .with_context(|| error.to_string())?,
        Err(error) => return Err(error),
    };
    finish(&folder).with_context(|| format!("can't finish {}", folder.display()))?;
    Ok(folder)
}

/// Does what packages' scripts would do, where programs need it.
fn finish(folder: &Path) -> Result<()> {
    for name in MOVED {
        let (old, new) = (folder.join(name), folder.join("usr").join(name));
        if fs::symlink_metadata(&old).is_ok_and(|meta| meta.is_dir()) {
            merge(&old, &new)?;
        }
        fs::create_dir_all(&new)?;
        if fs::symlink_metadata(&old).is_err() {
            symlink(Path::new("usr").join(name), &old)?;
        }
    }
    for (link, targets) in LINKS {
        let link = folder.join(link);
        let beside = link.parent().context("a link lies in a folder")?;
        let there = targets
            .iter()
            .find(|target| fs::symlink_metadata(beside.join(target)).is_ok());
        if let Some(target) = there
            && fs::symlink_metadata(&link).is_err()
        {
            symlink(target, link)?;
        }
    }
    for (to, from) in COPIES {
        let (to, from) = (folder.join(to), folder.join(from));
        if !to.exists() && from.exists() {
            fs::copy(from, to)?;
        }
    }
    for (path, text) in WRITTEN {
        let path = folder.join(path);
        if fs::symlink_metadata(&path).is_err() {
            fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
            fs::write(&path, text)?;
        }
    }
    Ok(())
}

/// Moves all that a folder holds into another, and removes it.
fn merge(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() && fs::symlink_metadata(&new).is_ok_and(|meta| meta.is_dir())
        {
            merge(&old, &new)?;
        } else if fs::symlink_metadata(&new).is_err() {
            fs::rename(&old, &new)?;
        }
    }
    fs::remove_dir_all(from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_releases_or_folders() {
        assert_eq!("trixie".parse(), Ok(Root::Debian(TRIXIE)));
        assert_eq!("/".parse(), Ok(Root::Folder("/".into())));
        assert!(
            "/no/such/folder"
                .parse::<Root>()
                .unwrap_err()
                .contains("bookworm")
        );
    }

    #[test]
    fn folders_that_debian_moved_are_merged() {
        let folder = std::env::temp_dir().join(format!("tessera-root-{}", std::process::id()));
        for (path, text) in [
            ("bin/a", "a"),
            ("usr/bin/b", "b"),
            ("lib/x/c", "c"),
            ("usr/lib/x/d", "d"),
        ] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for _ in 0..2 {
            finish(&folder).unwrap();
            for (path, text) in [
                ("usr/bin/a", "a"),
                ("bin/b", "b"),
                ("lib/x/c", "c"),
                ("lib/x/d", "d"),
            ] {
                assert_eq!(
                    fs::read_to_string(folder.join(path)).unwrap(),
                    text,
                    "{path}"
                );
            }
            let hosts = fs::read_to_string(folder.join("etc/hosts")).unwrap();
            assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        }
        fs::remove_dir_all(folder).unwrap();
    }
}

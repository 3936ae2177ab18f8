//! The files of a boot server, which only its own user may read.
//!
//! ```text
//! OUT/dnsmasq.conf          0600
//! OUT/files/                0700
//!     RANDOM.efi            0600  the loader of one node, with its kernel command line and the key
//!     RANDOM.ipxe           0600  a script of iPXE that loads it
//! ```
//!
//! TFTP and HTTP ask nobody for a password, so that each node's files have a name of its own that
//! cannot be guessed. DHCP tells it to the node's card.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::cluster::{Cluster, Node};
use super::dnsmasq;
use crate::bed::random_key;

/// Name of the folder that TFTP and HTTP serve.
const FILES: &str = "files";
/// Name of dnsmasq's configuration.
const CONFIGURATION: &str = "dnsmasq.conf";
/// Digits of a file's name: 128 bits.
const NAME_DIGITS: usize = 32;

/// Names of a node's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    stem: String,
}

impl Names {
    fn random() -> Result<Self> {
        let mut stem = random_key()?;
        stem.truncate(NAME_DIGITS);
        Ok(Self { stem })
    }

    /// Returns the name of its UEFI loader.
    pub(super) fn loader(&self) -> String {
        format!("{}.efi", self.stem)
    }

    /// Returns the name of its script for iPXE.
    pub(super) fn script(&self) -> String {
        format!("{}.ipxe", self.stem)
    }
}

/// The user that owns the files, and that dnsmasq runs as.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) name: String,
    /// The number to give the files to; `None` if they are this user's already.
    pub(super) id: Option<u32>,
}

/// The written files.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) configuration: PathBuf,
    pub(super) files: PathBuf,
    /// Names of the nodes' files, in the order of the nodes.
    pub(super) names: Vec<Names>,
}

/// Writes the files into a folder. `pack` writes the loader of a node.
///
/// # Errors
///
/// If the folder holds something else than such files, or a file can't be written.
pub(super) fn write(
    out: &Path,
    cluster: &Cluster,
    owner: &Owner,
    mut pack: impl FnMut(&Node, &Path) -> Result<()>,
) -> Result<Tree> {
    let out = std::path::absolute(out).with_context(|| format!("no path: {}", out.display()))?;
    let text = out.to_str().context("the folder's name is not UTF-8")?;
    ensure!(
        !text.contains(['\n', ',', '"', '\\', '#']),
        "dnsmasq can't be told of a folder with such a name: {text:?}"
    );
    clear(&out)?;
    // Its own user must get in to the files; no name in it is secret.
    make_folder(&out, 0o711)?;
    let files = out.join(FILES);
    make_folder(&files, 0o700)?;
    let names: Vec<Names> = cluster
        .nodes
        .iter()
        .map(|_| Names::random())
        .collect::<Result<_>>()?;
    for (node, names) in cluster.nodes.iter().zip(&names) {
        let loader = files.join(names.loader());
        pack(node, &loader)?;
        hand_over(&loader, 0o600, owner)?;
        let script = dnsmasq::script(cluster, node, names);
        write_file(&files.join(names.script()), &script, owner)?;
    }
    let configuration = out.join(CONFIGURATION);
    let text = dnsmasq::configuration(cluster, &names, &files, &owner.name);
    write_file(&configuration, &text, owner)?;
    // dnsmasq tells the files' names in its log.
    write_file(&super::log_file(&out), "", owner)?;
    hand_over(&files, 0o700, owner)?;
    Ok(Tree {
        configuration,
        files,
        names,
    })
}

/// Removes the files of an earlier run, and nothing else.
fn clear(out: &Path) -> Result<()> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("can't list {}", out.display())),
    };
    let (configuration, files) = (out.join(CONFIGURATION), out.join(FILES));
    let mut empty = true;
    for entry in entries {
        let path = entry
            .with_context(|| format!("can't list {}", out.display()))?
            .path();
        empty = false;
        if path != configuration && path != files && path != super::log_file(out) {
            bail!(
                "{} is not of an earlier run: choose another --out",
                path.display()
            );
        }
    }
    if empty {
        return Ok(());
    }
    let text = fs::read_to_string(&configuration).unwrap_or_default();
    let whose = format!(
        "{} holds files that this command did not make",
        out.display()
    );
    ensure!(
        text.starts_with(dnsmasq::MARK),
        "{whose}: choose another --out"
    );
    // The configuration goes last: it marks the folder as ours if this is interrupted.
    if files.exists() {
        fs::remove_dir_all(&files).with_context(|| format!("can't remove {}", files.display()))?;
    }
    let _ = fs::remove_file(super::log_file(out));
    let removed = fs::remove_file(&configuration);
    removed.with_context(|| format!("can't remove {}", configuration.display()))
}

fn make_folder(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path);
    made.with_context(|| format!("can't make the folder {}", path.display()))?;
    set_mode(path, mode)
}

fn write_file(path: &Path, text: &str, owner: &Owner) -> Result<()> {
    // Made empty first, so that nobody else may read what is written into it.
    fs::write(path, "").with_context(|| format!("can't make {}", path.display()))?;
    set_mode(path, 0o600)?;
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))?;
    hand_over(path, 0o600, owner)
}

fn hand_over(path: &Path, mode: u32, owner: &Owner) -> Result<()> {
    set_mode(path, mode)?;
    if owner.id.is_some() {
        let given = chown(path, owner.id, None);
        given.with_context(|| format!("can't give {} to {}", path.display(), owner.name))?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    set.with_context(|| format!("can't set the permissions of {}", path.display()))
}

/// Returns the first folder on the way to the files that a user can't pass.
///
/// Groups are not looked at: a user who passes by them is named too.
pub(super) fn barrier(files: &Path, user: u32) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;

    let closed = |folder: &&Path| {
        let Ok(metadata) = fs::metadata(folder) else {
            return true;
        };
        let bit = if metadata.uid() == user { 0o100 } else { 0o001 };
        metadata.mode() & bit == 0
    };
    let mut above: Vec<&Path> = files.ancestors().skip(1).collect();
    above.reverse();
    above.into_iter().find(closed).map(Path::to_owned)
}

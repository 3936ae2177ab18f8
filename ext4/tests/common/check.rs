//! Compares what a disk holds with the reference.

use std::collections::{BTreeMap, BTreeSet};

use ext4::{Error, Ext4, Options, ROOT};

use super::disk::MemDisk;
use super::model::{Kind, Model};
use super::{at, block_on};

/// A file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) inode: u32,
    pub(crate) kind: u16,
    pub(crate) mode: u16,
    pub(crate) links: u32,
    /// Contents of a file, target of a link.
    pub(crate) data: Vec<u8>,
}

/// Reads everything, by path; leaves `lost+found` out.
pub(crate) async fn read_all(fs: &Ext4<MemDisk>) -> Result<BTreeMap<Vec<u8>, Found>, Error> {
    let mut all = BTreeMap::new();
    let mut left = vec![(Vec::new(), ROOT)];
    while let Some((path, dir)) = left.pop() {
        let mut position = 0;
        while let Some((entries, next)) = fs.entries(dir, position).await? {
            position = next;
            for entry in entries {
                let skipped =
                    [b".".as_slice(), b"..", b"lost+found"].contains(&entry.name.as_slice());
                if skipped {
                    continue;
                }
                assert_eq!(
                    fs.lookup(dir, &entry.name).await?,
                    entry.inode,
                    "each entry is found by its name"
                );
                let path = [path.as_slice(), b"/", &entry.name].concat();
                let stat = fs.stat(entry.inode).await?;
                let kind = stat.mode & 0xf000;
                let data = match kind {
                    0x8000 => {
                        let mut data = vec![0; usize::try_from(stat.size).expect("fits")];
                        let read = fs.read(entry.inode, 0, &mut data).await?;
                        assert_eq!(read, data.len());
                        data
                    }
                    0xa000 => fs.read_link(entry.inode).await?,
                    _ => Vec::new(),
                };
                if kind == 0x4000 {
                    left.push((path.clone(), entry.inode));
                }
                let (mode, links) = (stat.mode & 0xfff, stat.links);
                all.insert(
                    path,
                    Found {
                        inode: entry.inode,
                        kind,
                        mode,
                        links,
                        data,
                    },
                );
            }
        }
    }
    Ok(all)
}

/// Mounts an image read-only and reads everything.
pub(crate) fn read_image(image: Vec<u8>) -> Result<BTreeMap<Vec<u8>, Found>, Error> {
    block_on(async {
        let options = Options {
            read_only: true,
            now: at(0),
        };
        let fs = Ext4::mount(MemDisk::new(image, 1), options).await?;
        read_all(&fs).await
    })
}

/// Returns the first difference in names, types, links, modes, sizes and targets.
pub(crate) fn difference(found: &BTreeMap<Vec<u8>, Found>, model: &Model) -> Option<String> {
    let paths = model.paths();
    let names: BTreeSet<_> = found.keys().chain(paths.keys()).collect();
    let mut inodes = BTreeMap::new();
    for path in names {
        let text = String::from_utf8_lossy(path).into_owned();
        let (Some(is), Some(id)) = (found.get(path), paths.get(path)) else {
            let state = if found.contains_key(path) {
                "is there"
            } else {
                "is missing"
            };
            return Some(format!("{text} {state}"));
        };
        let node = &model.nodes[id];
        let (kind, same) = match &node.kind {
            Kind::File(data) => (0x8000, data.len() == is.data.len()),
            Kind::Dir(_) => (0x4000, true),
            Kind::Symlink(target) => (0xa000, *target == is.data),
        };
        if (kind, node.mode, node.links, true) != (is.kind, is.mode, is.links, same) {
            return Some(format!(
                "{text}: {:?} is {is:x?}",
                (kind, node.mode, node.links)
            ));
        }
        // Names of one file lead to one inode.
        if *inodes.entry(*id).or_insert(is.inode) != is.inode {
            return Some(format!("{text} is another file"));
        }
    }
    None
}

/// Asserts that everything is as the reference has it.
pub(crate) fn assert_same(found: &BTreeMap<Vec<u8>, Found>, model: &Model) {
    assert_eq!(difference(found, model), None);
    for (path, id) in model.paths() {
        if let Kind::File(data) = &model.nodes[&id].kind {
            let is = &found[&path].data;
            let at = data.iter().zip(is).position(|(a, b)| a != b);
            assert_eq!(at, None, "{}: bytes differ", String::from_utf8_lossy(&path));
        }
    }
}

//! The names that a folder of S's disk has.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use messages::storage::{Caller, Entries, FileId, OpenFlags};

use crate::error::{Error, Result};
use crate::platform::Files;
use crate::process::Node;

/// Names that are looked at in one folder.
const MOST: usize = 4096;

/// Returns the names in a folder of S's disk; none if there is no such folder.
pub(super) async fn names<N: Node>(node: &N, path: &[u8]) -> Result<BTreeSet<Vec<u8>>> {
    let flags = OpenFlags::READ | OpenFlags::DIRECTORY;
    let opened = match node.files().open(Caller::ROOT, path, flags, 0).await {
        Err(Error::Errno(_)) => return Ok(BTreeSet::new()),
        opened => opened?,
    };
    let names = list(node, opened.file).await;
    node.files().close(opened.file).await?;
    match names {
        Err(Error::Errno(_)) => Ok(BTreeSet::new()),
        names => names,
    }
}

async fn list<N: Node>(node: &N, folder: FileId) -> Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    let mut position = 0;
    let mut encoded = vec![0; messages::MAX_MESSAGE];
    loop {
        let got = node
            .files()
            .getdents(folder, position, &mut encoded)
            .await?;
        let before = position;
        for entry in Entries(&encoded[..got.min(encoded.len())]).iter() {
            let Ok(entry) = entry else { return Ok(names) };
            position = entry.next;
            if entry.name != b"." && entry.name != b".." {
                names.insert(entry.name.to_vec());
            }
        }
        if position == before || names.len() > MOST {
            return Ok(names);
        }
    }
}

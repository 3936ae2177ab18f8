//! The first program's path: as it is given, from the working folder, or by a search of PATH.

use alloc::string::String;
use alloc::vec::Vec;

use messages::storage::{Caller, Stat};

use crate::error::Error;
use crate::load::{Command, Refusal};
use crate::platform::Files;
use crate::process::Node;

/// `S_IFMT`, `S_IFDIR` and `S_IFREG`.
const TYPE_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const ANY_EXECUTE: u32 = 0o111;
/// The folders that are searched without a PATH, as by Linux's `execvp`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Completes a command's path and working folder, as root's shell in that folder would.
///
/// # Errors
///
/// A [`Refusal`], whose text says what to do.
pub async fn find<N: Node>(node: &N, mut command: Command) -> Result<Command, Refusal> {
    if command.cwd.is_empty() {
        command.cwd.push(b'/');
    }
    let folder = node.files().stat(Caller::ROOT, &command.cwd, true).await;
    if !folder.is_ok_and(|stat| stat.mode & TYPE_MASK == FOLDER) {
        return Err(Refusal::NoFolder(text(&command.cwd)));
    }
    if command.path.contains(&b'/') {
        let whole = join(&command.cwd, &command.path);
        command.name = core::mem::replace(&mut command.path, whole);
        if status(node, &command.path)
            .await?
            .is_some_and(|stat| stat.mode & TYPE_MASK == FOLDER)
        {
            return Err(Refusal::IsFolder(text(&command.path)));
        }
        return Ok(command);
    }
    let path = command
        .env
        .iter()
        .find_map(|variable| variable.strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH);
    for folder in path.split(|&byte| byte == b':') {
        // An empty part is the working folder.
        let candidate = join(&join(&command.cwd, folder), &command.path);
        let runs = |stat: Stat| stat.mode & TYPE_MASK == REGULAR && stat.mode & ANY_EXECUTE != 0;
        if status(node, &candidate).await?.is_some_and(runs) {
            command.path = candidate;
            return Ok(command);
        }
    }
    Err(Refusal::NotInPath {
        name: text(&command.path),
        path: text(path),
    })
}

/// Returns a file's status; `None` if the path leads nowhere.
async fn status<N: Node>(node: &N, path: &[u8]) -> Result<Option<Stat>, Refusal> {
    match node.files().stat(Caller::ROOT, path, true).await {
        Ok(stat) => Ok(Some(stat)),
        Err(Error::Errno(_)) => Ok(None),
        Err(cause) => Err(Refusal::Failed {
            path: text(path),
            cause,
        }),
    }
}

/// Returns where `path` leads from `folder`.
fn join(folder: &[u8], path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") || path.is_empty() {
        return if path.is_empty() { folder } else { path }.to_vec();
    }
    let mut whole = folder.to_vec();
    if !whole.ends_with(b"/") {
        whole.push(b'/');
    }
    whole.extend_from_slice(path);
    whole
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

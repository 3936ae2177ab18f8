//! Open files on their way from one socket to another, and the end of those that nobody can
//! receive.
//!
//! A socket that was sent to itself, or two that were sent to each other, keep each other open
//! after every program has closed them. [`InFlightFiles::garbage`] finds them as Linux does: files
//! that only ways hold, and only ways that end at such files.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use super::{Channel, Right, Socket};
use crate::error::{Result, errno};
use crate::files::{Kind, OpenFile};

/// Files on their way at most, of all sockets together.
pub(super) const MAX_FLYING: usize = 2048;

/// The files on their way, by address.
#[derive(Debug, Default)]
pub(crate) struct InFlightFiles {
    files: BTreeMap<usize, Flying>,
    count: usize,
}

#[derive(Debug)]
struct Flying {
    file: Weak<OpenFile>,
    /// Number of messages in flight that carry it.
    count: usize,
}

fn key(file: &Right) -> usize {
    Arc::as_ptr(file).addr()
}

/// Returns the socket that a file is.
fn socket(file: &OpenFile) -> Option<&Socket> {
    match &file.kind {
        Kind::Object(object) => object.as_socket(),
        _ => None,
    }
}

/// Visits the files that wait to be received from a socket, or from one that waits to be accepted
/// there.
fn each_waiting(socket: &Socket, visit: &mut impl FnMut(&Right)) {
    for channel in channels(socket) {
        channel.half.lock().each_right(&mut *visit);
    }
}

/// Returns what a socket receives from, and what those receive from that wait to be accepted there.
fn channels(socket: &Socket) -> Vec<Arc<Channel>> {
    let state = socket.state.lock();
    // No sockets: the last one to hold a socket must hold no lock.
    let embryos = state.waiting.iter().map(|embryo| embryo.receive.clone());
    embryos.chain([socket.receive.clone()]).collect()
}

impl InFlightFiles {
    /// Notes files that begin their way.
    ///
    /// # Errors
    ///
    /// ETOOMANYREFS if there are too many.
    pub(super) fn fly(&mut self, files: &[Right]) -> Result<()> {
        if self.count + files.len() > MAX_FLYING {
            return Err(errno::ETOOMANYREFS.into());
        }
        for file in files {
            let new = || Flying {
                file: Arc::downgrade(file),
                count: 0,
            };
            self.files.entry(key(file)).or_insert_with(new).count += 1;
        }
        self.count += files.len();
        Ok(())
    }

    /// Notes files that have ended their way.
    pub(super) fn land(&mut self, files: &[Right]) {
        for file in files {
            if let Some(flying) = self.files.get_mut(&key(file)) {
                flying.count -= 1;
                self.count -= 1;
                if flying.count == 0 {
                    self.files.remove(&key(file));
                }
            }
        }
    }

    /// Returns whether a file is on its way.
    pub(super) fn has(&self, file: &Right) -> bool {
        self.files.contains_key(&key(file))
    }

    /// Returns whether no file is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the files that nobody can receive off their ways. Returns them, and others that were
    /// looked at; both are to be dropped without a lock.
    pub(super) fn garbage(&mut self) -> (Vec<Right>, Vec<Right>) {
        // Only ways hold these. The files are held here from now on, so count before.
        let only_flying = |flying: &&Flying| flying.file.strong_count() == flying.count;
        let candidates: Vec<Right> = {
            let found = self.files.values().filter(only_flying);
            found.filter_map(|flying| flying.file.upgrade()).collect()
        };
        let mut within: BTreeMap<usize, usize> =
            candidates.iter().map(|file| (key(file), 0)).collect();
        for file in candidates.iter().filter_map(|file| socket(file)) {
            each_waiting(file, &mut |inner| {
                within.entry(key(inner)).and_modify(|count| *count += 1);
            });
        }
        // What is also on another way can be received, and what can be received from it too.
        let reached = |file: &&Right| self.files[&key(file)].count > within[&key(file)];
        let mut live: Vec<usize> = candidates.iter().filter(reached).map(key).collect();
        let by_key: BTreeMap<usize, &Right> =
            candidates.iter().map(|file| (key(file), file)).collect();
        let mut seen: BTreeSet<usize> = live.iter().copied().collect();
        while let Some(next) = live.pop() {
            let Some(socket) = by_key.get(&next).and_then(|file| socket(file)) else {
                continue;
            };
            each_waiting(socket, &mut |inner| {
                if by_key.contains_key(&key(inner)) && seen.insert(key(inner)) {
                    live.push(key(inner));
                }
            });
        }
        let mut dead = Vec::new();
        for file in candidates.iter().filter(|file| !seen.contains(&key(file))) {
            let Some(socket) = socket(file) else { continue };
            for channel in channels(socket) {
                dead.append(&mut channel.half.lock().strip_rights());
            }
        }
        self.land(&dead);
        (dead, candidates)
    }
}

//! Interprocess communication: System V's shared memory, semaphores and message queues, and POSIX
//! message queues.
//!
//! * [`Ids`]: objects of one kind by number and key, with their owners and rights (Linux
//!   `ipc/util.c`). * [`segments`], [`semaphores`], [`queues`]: System V's three
//!   kinds. * [`posix`]: POSIX message queues.
//!
//! The calls are in `syscall/ipc`. All live on this node; nothing of them is M's but the pages of
//! segments. Lock order: a kind's [`Ids`], then one object.

pub(crate) mod posix;
pub(crate) mod queues;
pub(crate) mod segments;
pub(crate) mod semaphores;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use spin::Mutex;

use crate::creds::{CAP_SYS_ADMIN, Creds};
use crate::error::{Result, errno};
use crate::process::Node;
use posix::Named;
use queues::Queues;
use segments::Segment;
use semaphores::Semaphores;

/// The key of an object that no other call finds.
pub(crate) const IPC_PRIVATE: u32 = 0;
pub(crate) const IPC_CREAT: u32 = 0o1000;
pub(crate) const IPC_EXCL: u32 = 0o2000;
pub(crate) const IPC_NOWAIT: u32 = 0o4000;
/// `CAP_IPC_OWNER`.
const CAP_IPC_OWNER: u32 = 15;
/// Bits of a number that are its place in the table; the sequence number is above (Linux
/// `ipc/util.h`, `IPCMNI_SHIFT`).
const PLACE_BITS: u32 = 15;
const SEQUENCES: u32 = 1 << 16;
/// Bytes of `struct ipc64_perm`.
pub(crate) const PERM_SIZE: usize = 48;

/// Owner and rights of an object (`struct ipc64_perm`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Perm {
    pub(crate) key: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    creator: (u32, u32),
    /// Rights of nine bits, and marks of the kind above them.
    pub(crate) mode: u32,
}

impl Perm {
    /// Checks that a thread has the rights whose bits are set anywhere in `flags`.
    ///
    /// # Errors
    ///
    /// EACCES.
    pub(crate) fn check(&self, creds: &Creds, flags: u32) -> Result<()> {
        let wanted = (flags >> 6 | flags >> 3 | flags) & 7;
        let (user, group) = (creds.user.effective, creds.group.effective);
        let in_group = |id: u32| group == id || creds.groups.contains(&id);
        let granted = if user == self.uid || user == self.creator.0 {
            self.mode >> 6
        } else if in_group(self.gid) || in_group(self.creator.1) {
            self.mode >> 3
        } else {
            self.mode
        };
        if wanted & !granted & 7 == 0 || creds.can(CAP_IPC_OWNER) {
            Ok(())
        } else {
            Err(errno::EACCES.into())
        }
    }

    /// Checks that a thread may change or remove the object.
    ///
    /// # Errors
    ///
    /// EPERM.
    pub(crate) fn check_owner(&self, creds: &Creds) -> Result<()> {
        let user = creds.user.effective;
        if user == self.uid || user == self.creator.0 || creds.can(CAP_SYS_ADMIN) {
            Ok(())
        } else {
            Err(errno::EPERM.into())
        }
    }

    /// Takes owner and rights out of a program's `struct ipc64_perm` (`IPC_SET`).
    pub(crate) fn set(&mut self, bytes: &[u8; PERM_SIZE]) {
        let int =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four of 48 bytes"));
        (self.uid, self.gid) = (int(4), int(8));
        self.mode = self.mode & !0o777 | int(20) & 0o777;
    }
}

/// An object in its table.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// The number by which programs name it.
    pub(crate) id: u32,
    pub(crate) perm: Perm,
    pub(crate) object: T,
}

impl<T> Entry<T> {
    /// Returns owner and rights as programs see them.
    pub(crate) fn encode_perm(&self) -> Structure {
        let (perm, mut bytes) = (&self.perm, Structure::default());
        let (uid, gid) = perm.creator;
        for int in [perm.key, perm.uid, perm.gid, uid, gid, perm.mode] {
            bytes.int(int);
        }
        bytes.int(self.id >> PLACE_BITS);
        bytes.int(0);
        bytes.longs(&[0, 0]);
        bytes
    }
}

/// A structure of the ABI that is being put together.
#[derive(Default)]
pub(crate) struct Structure(pub(crate) Vec<u8>);

impl Structure {
    pub(crate) fn int(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn longs(&mut self, values: &[u64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.0.extend(bytes);
    }
}

/// A request for an object by its key (`shmget`, `semget`, `msgget`).
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) key: u32,
    pub(crate) flags: u32,
    pub(crate) creds: &'a Creds,
}

/// Objects of one kind.
#[derive(Debug)]
pub(crate) struct Ids<T> {
    entries: BTreeMap<u32, Entry<T>>,
    next: u32,
    sequence: u32,
}

impl<T> Default for Ids<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            next: 0,
            sequence: 0,
        }
    }
}

impl<T> Ids<T> {
    /// Returns the object of a key; `None` if it has to be made.
    ///
    /// # Errors
    ///
    /// EEXIST, ENOENT, EACCES as the flags and rights say; `fits` says whether it is large enough.
    pub(crate) fn find_key(
        &self,
        request: Request<'_>,
        fits: impl FnOnce(&T) -> Result<()>,
    ) -> Result<Option<u32>> {
        let Request { key, flags, creds } = request;
        let known = || self.entries.values().find(|entry| entry.perm.key == key);
        match (key != IPC_PRIVATE).then(known).flatten() {
            Some(_) if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL => {
                Err(errno::EEXIST.into())
            }
            Some(entry) => {
                entry.perm.check(creds, flags)?;
                fits(&entry.object)?;
                Ok(Some(entry.id))
            }
            None if key != IPC_PRIVATE && flags & IPC_CREAT == 0 => Err(errno::ENOENT.into()),
            None => Ok(None),
        }
    }

    /// Adds an object; returns its number.
    ///
    /// # Errors
    ///
    /// ENOSPC if there are `limit` already.
    pub(crate) fn add(&mut self, request: Request<'_>, limit: usize, object: T) -> Result<u32> {
        if self.entries.len() >= limit {
            return Err(errno::ENOSPC.into());
        }
        while self.entries.contains_key(&self.next) {
            self.advance();
        }
        let place = self.next;
        let id = self.sequence << PLACE_BITS | place;
        self.advance();
        let (uid, gid) = (request.creds.user.effective, request.creds.group.effective);
        let perm = Perm {
            key: request.key,
            uid,
            gid,
            creator: (uid, gid),
            mode: request.flags & 0o777,
        };
        self.entries.insert(place, Entry { id, perm, object });
        Ok(id)
    }

    /// Goes on to the next place; each round has a sequence number of its own.
    fn advance(&mut self) {
        self.next = (self.next + 1) & ((1 << PLACE_BITS) - 1);
        if self.next == 0 {
            self.sequence = (self.sequence + 1) % SEQUENCES;
        }
    }

    /// Returns the object of a number.
    ///
    /// # Errors
    ///
    /// EINVAL if there is none.
    pub(crate) fn get(&mut self, id: u32) -> Result<&mut Entry<T>> {
        let entry = self.entries.get_mut(&(id & ((1 << PLACE_BITS) - 1)));
        entry
            .filter(|entry| entry.id == id)
            .ok_or_else(|| errno::EINVAL.into())
    }

    /// Returns the object at a place of the table (`SHM_STAT` and its like).
    pub(crate) fn at(&mut self, place: u32) -> Result<&mut Entry<T>> {
        self.entries
            .get_mut(&place)
            .ok_or_else(|| errno::EINVAL.into())
    }

    /// Takes an object out.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Entry<T>> {
        self.get(id).ok()?;
        self.entries.remove(&(id & ((1 << PLACE_BITS) - 1)))
    }

    /// Keeps only the objects that `keep` says.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.entries.retain(|_, entry| keep(&entry.object));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.values()
    }

    /// Returns the objects, to be changed.
    pub(crate) fn objects(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.values_mut().map(|entry| &mut entry.object)
    }

    /// Returns how many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the highest place in use; 0 for none.
    pub(crate) fn highest(&self) -> u32 {
        self.entries.keys().next_back().copied().unwrap_or(0)
    }

    /// Takes all objects out.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        let entries = core::mem::take(&mut self.entries);
        entries.into_values().map(|entry| entry.object).collect()
    }
}

/// The node's objects of all kinds.
#[derive(Debug, Default)]
pub(crate) struct Ipc {
    pub(crate) segments: Mutex<Ids<Segment>>,
    pub(crate) semaphores: Semaphores,
    pub(crate) queues: Queues,
    /// POSIX message queues.
    pub(crate) named: Named,
}

impl Ipc {
    /// Frees all, at the end of a run.
    pub(crate) async fn end<N: Node>(&self, node: &N) {
        let segments = self.segments.lock().take_all();
        for segment in segments {
            segment.let_go(node).await;
        }
        self.semaphores.ids.lock().take_all();
        self.queues.ids.lock().take_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::creds::Capabilities;

    fn creds(uid: u32, gid: u32) -> Creds {
        let mut creds = Creds::new(uid, gid);
        creds.capabilities = Capabilities {
            effective: 0,
            permitted: 0,
            inheritable: 0,
            bounding: 0,
            ambient: 0,
        };
        creds
    }

    #[test]
    fn numbers_of_removed_objects_are_not_those_of_new_ones() {
        let (mut ids, creds) = (Ids::default(), creds(1, 1));
        let request = Request {
            key: 7,
            flags: 0o600,
            creds: &creds,
        };
        let first = ids.add(request, 2, 'a').unwrap();
        for _ in 0..1 << PLACE_BITS {
            let id = ids.add(request, 2, 'b').unwrap();
            assert_ne!(id, first);
            assert_eq!(ids.remove(id).map(|entry| entry.object), Some('b'));
            assert!(ids.get(id).is_err());
        }
        let second = ids.add(request, 2, 'c').unwrap();
        assert!(ids.add(request, 2, 'd').is_err(), "two are the most");
        assert!(ids.get(second).is_ok() && ids.get(first).is_ok());
    }

    #[test]
    fn a_round_that_ends_at_a_taken_place_is_one_too() {
        let (mut ids, creds) = (Ids::default(), creds(1, 1));
        let request = Request {
            key: 7,
            flags: 0o600,
            creds: &creds,
        };
        let first = ids.add(request, 9, 'a').unwrap();
        ids.remove(first).unwrap();
        ids.next = (1 << PLACE_BITS) - 1;
        ids.add(request, 9, 'b').unwrap();
        (ids.next, ids.sequence) = ((1 << PLACE_BITS) - 1, 0);
        assert_ne!(ids.add(request, 9, 'c').unwrap(), first);
    }

    #[test]
    fn rights_are_the_owner_s_the_group_s_or_the_others() {
        let owner = creds(1, 1);
        let perm = Perm {
            key: 0,
            uid: 1,
            gid: 5,
            creator: (2, 6),
            mode: 0o640,
        };
        let may = |creds: &Creds, flags| perm.check(creds, flags).is_ok();
        assert!(may(&owner, 0o600) && may(&creds(2, 9), 0o600));
        assert!(may(&creds(3, 5), 0o400) && may(&creds(3, 6), 0o040) && !may(&creds(3, 5), 0o200));
        assert!(!may(&creds(3, 9), 0o004) && may(&creds(3, 9), 0));
        assert!(may(&Creds::new(0, 0), 0o666), "CAP_IPC_OWNER");
        assert!(perm.check_owner(&owner).is_ok() && perm.check_owner(&creds(3, 5)).is_err());
    }

    #[test]
    fn keys_find_or_make_as_flags_say() {
        let (mut ids, creds) = (Ids::default(), creds(1, 1));
        let request = |key, flags| Request {
            key,
            flags,
            creds: &creds,
        };
        let find = |ids: &Ids<u8>, key, flags| ids.find_key(request(key, flags), |_| Ok(()));
        assert_eq!(find(&ids, 9, 0), Err(errno::ENOENT.into()));
        assert_eq!(find(&ids, 9, IPC_CREAT), Ok(None));
        let id = ids.add(request(9, 0o400), 4, 1).unwrap();
        assert_eq!(find(&ids, 9, 0o400), Ok(Some(id)));
        assert_eq!(find(&ids, 9, 0o200), Err(errno::EACCES.into()));
        let exclusive = find(&ids, 9, IPC_CREAT | IPC_EXCL);
        assert_eq!(exclusive, Err(errno::EEXIST.into()));
        assert_eq!(find(&ids, IPC_PRIVATE, 0), Ok(None));
    }
}

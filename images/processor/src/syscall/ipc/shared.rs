//! Shared memory: shmget, shmat, shmdt, shmctl (Linux `ipc/shm.c`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use messages::{PAGE_SIZE, USER_END};
use pcache::Rights;

use super::{Args, IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, int};
use crate::error::{Error, Result, errno};
use crate::ipc::segments::{MAX_SEGMENTS, SHM_DEST, SHM_LOCKED, Segment};
use crate::ipc::{Entry, IPC_PRIVATE, Ids, Request, Structure};
use crate::mm::MMAP_MIN;
use crate::mm::map::Place;
use crate::mm::object::{Object, let_go};
use crate::mm::vma::{Backing, Vma, VmaFlags};
use crate::process::Node;
use crate::thread::Thread;

const SHM_NORESERVE: u32 = 0o10_000;
const SHM_RDONLY: u32 = 0o10_000;
const SHM_RND: u32 = 0o20_000;
const SHM_REMAP: u32 = 0o40_000;
const SHM_EXEC: u32 = 0o100_000;
const SHM_HUGETLB: u32 = 0o4000;
const SHM_LOCK: u32 = 11;
const SHM_UNLOCK: u32 = 12;
const SHM_STAT: u32 = 13;
const SHM_INFO: u32 = 14;
const SHM_STAT_ANY: u32 = 15;
/// The longest segment (`SHMMAX`).
const MAX_SIZE: u64 = u64::MAX - (1 << 24);

fn encode(entry: &Entry<Segment>) -> Structure {
    let segment = &entry.object;
    let mut bytes = entry.encode_perm();
    bytes.longs(&[
        segment.size,
        segment.attached,
        segment.detached,
        segment.changed,
    ]);
    bytes.int(segment.creator);
    bytes.int(segment.last);
    bytes.longs(&[segment.attachments() as u64, 0, 0]);
    bytes
}

impl<N: Node> Thread<N> {
    /// Calls `act` with the segments that live.
    fn with_segments<T>(&self, act: impl FnOnce(&mut Ids<Segment>) -> T) -> T {
        let mut ids = self.ipc().segments.lock();
        ids.retain(Segment::lives);
        act(&mut ids)
    }

    pub(super) async fn sys_shmget(&self, [key, size, flags, ..]: Args) -> Result<u64> {
        let creds = self.creds();
        let flags = int(flags);
        let request = Request {
            key: int(key),
            flags,
            creds: &creds,
        };
        let fits = |segment: &Segment| match segment.size < size {
            true => Err(errno::EINVAL.into()),
            false => Ok(()),
        };
        if let Some(id) = self.with_segments(|ids| ids.find_key(request, fits))? {
            return Ok(id.into());
        }
        if size == 0 || size > MAX_SIZE || flags & SHM_HUGETLB != 0 {
            return Err(errno::EINVAL.into());
        }
        if size > USER_END {
            return Err(errno::ENOMEM.into());
        }
        let promised = flags & SHM_NORESERVE == 0;
        if promised {
            let pages = size.div_ceil(PAGE_SIZE);
            self.node.supply().commit(self.node, pages).await?;
        }
        let segment = Segment::new(size, promised, self.pid, self.seconds());
        // Another call may have made one of the key meanwhile.
        let added = self.with_segments(|ids| match ids.find_key(request, fits) {
            Ok(None) => Ok((ids.add(request, MAX_SEGMENTS, segment), None)),
            Ok(Some(id)) => Ok((Ok(id), Some(segment))),
            Err(error) => Err((error, segment)),
        });
        let (id, unused) = match added {
            Ok((id, unused)) => (id, unused),
            Err((error, unused)) => (Err(error), Some(unused)),
        };
        match unused {
            Some(segment) => segment.let_go(self.node).await,
            // A table that is full drops the segment, which has no pages yet.
            None if id.is_err() && promised => {
                self.node.supply().uncommit(size.div_ceil(PAGE_SIZE));
            }
            None => {}
        }
        Ok(id?.into())
    }

    pub(super) async fn sys_shmat(&self, [id, addr, flags, ..]: Args) -> Result<u64> {
        let flags = int(flags);
        let place = place(addr, flags)?;
        let (wanted, mut rights) = match flags & SHM_RDONLY {
            0 => (0o666, Rights::READ | Rights::WRITE),
            _ => (0o444, Rights::READ),
        };
        let mut mode = wanted;
        if flags & SHM_EXEC != 0 {
            rights |= Rights::EXEC;
            mode |= 0o111;
        }
        let creds = self.creds();
        let (object, size) = self.with_segments(|ids| {
            let entry = ids.get(int(id))?;
            entry.perm.check(&creds, mode)?;
            let object = entry.object.object().ok_or(errno::EIDRM)?;
            Ok::<_, Error>((object, entry.object.size))
        })?;
        let len = size.next_multiple_of(PAGE_SIZE);
        let mapped = self.attach(place, len, rights, &object).await;
        if mapped.is_ok() {
            let (pid, now) = (self.pid, self.seconds());
            self.with_segments(|ids| {
                if let Ok(entry) = ids.get(int(id)) {
                    (entry.object.attached, entry.object.last) = (now, pid);
                }
            });
        }
        // The segment may have been removed, and the mapping too: then these pages are the last.
        let_go(self.node, object).await;
        mapped
    }

    async fn attach(
        &self,
        place: Place,
        len: u64,
        rights: Rights,
        object: &Arc<Object>,
    ) -> Result<u64> {
        self.may_map(len)?;
        let mut vma = Vma::anonymous(rights);
        vma.backing = Backing::Object(object.clone(), 0);
        // The segment itself has the promise.
        vma.flags |= VmaFlags::NORESERVE;
        vma.flags
            .set(VmaFlags::READONLY, !rights.contains(Rights::WRITE));
        let _change = self.memory.change().await;
        match self.memory.map(place, len, vma).await {
            Err(Error::Errno(errno::EEXIST)) => Err(errno::EINVAL.into()),
            mapped => mapped,
        }
    }

    pub(super) async fn sys_shmdt(&self, [addr, ..]: Args) -> Result<u64> {
        let _change = self.memory.change().await;
        let found = self.memory.with_vmas(|vmas| {
            let (range, vma) = vmas.find(addr)?;
            let Backing::Object(object, 0) = &vma.backing else {
                return None;
            };
            let pages = object.segment_pages().filter(|_| range.start == addr)?;
            let all = vmas.pieces(addr..addr + pages * PAGE_SIZE);
            let own = all.into_iter().filter(|(_, vma)| match &vma.backing {
                Backing::Object(other, _) => Arc::ptr_eq(object, other),
                _ => false,
            });
            let pieces: Vec<_> = own.map(|(range, _)| range).collect();
            Some((object.clone(), pieces))
        });
        let (object, pieces) = found.ok_or(errno::EINVAL)?;
        for range in pieces {
            self.memory.unmap(range).await?;
        }
        let (pid, now) = (self.pid, self.seconds());
        self.with_segments(|ids| {
            if let Some(segment) = ids.objects().find(|segment| segment.is(&object)) {
                (segment.detached, segment.last) = (now, pid);
            }
        });
        let_go(self.node, object).await;
        Ok(0)
    }

    pub(super) async fn sys_shmctl(&self, [id, command, addr, ..]: Args) -> Result<u64> {
        let (id, creds) = (int(id), self.creds());
        match int(command) {
            IPC_RMID => self.remove_segment(id).await,
            IPC_SET => {
                let bytes = self.read_perm(addr).await?;
                let now = self.seconds();
                self.with_segments(|ids| {
                    let entry = ids.get(id)?;
                    entry.perm.check_owner(&creds)?;
                    entry.perm.set(&bytes);
                    entry.object.changed = now;
                    Ok(0)
                })
            }
            command @ (IPC_STAT | SHM_STAT | SHM_STAT_ANY) => {
                let (status, value) = self.with_segments(|ids| {
                    let entry = match command {
                        IPC_STAT => ids.get(id)?,
                        _ => ids.at(id)?,
                    };
                    if command != SHM_STAT_ANY {
                        entry.perm.check(&creds, 0o444)?;
                    }
                    let value = if command == IPC_STAT { 0 } else { entry.id };
                    Ok::<_, Error>((encode(entry), value))
                })?;
                self.memory.write(addr, &status.0).await?;
                Ok(value.into())
            }
            command @ (IPC_INFO | SHM_INFO) => self.segments_info(command, addr).await,
            command @ (SHM_LOCK | SHM_UNLOCK) => self.with_segments(|ids| {
                let entry = ids.get(id)?;
                entry.perm.check_owner(&creds)?;
                entry.perm.mode &= !SHM_LOCKED;
                // Any page may be away, and comes back by itself: only the mark changes.
                if command == SHM_LOCK {
                    entry.perm.mode |= SHM_LOCKED;
                }
                Ok(0)
            }),
            _ => Err(errno::EINVAL.into()),
        }
    }

    async fn remove_segment(&self, id: u32) -> Result<u64> {
        let creds = self.creds();
        let object = self.with_segments(|ids| {
            let entry = ids.get(id)?;
            entry.perm.check_owner(&creds)?;
            entry.perm.key = IPC_PRIVATE;
            entry.perm.mode |= SHM_DEST;
            Ok::<_, Error>(entry.object.remove())
        })?;
        if let Some(object) = object {
            let_go(self.node, object).await;
        }
        Ok(0)
    }

    async fn segments_info(&self, command: u32, addr: u64) -> Result<u64> {
        let (count, pages, highest) = self.with_segments(|ids| {
            let pages = ids
                .iter()
                .map(|entry| entry.object.size.div_ceil(PAGE_SIZE));
            (ids.len(), pages.sum::<u64>(), ids.highest())
        });
        let mut info = Structure::default();
        if command == IPC_INFO {
            let most = MAX_SEGMENTS as u64;
            info.longs(&[MAX_SIZE, 1, most, most, MAX_SIZE, 0, 0, 0, 0]);
        } else {
            info.longs(&[count as u64, pages, pages, 0, 0, 0]);
        }
        self.memory.write(addr, &info.0).await?;
        Ok(highest.into())
    }
}

/// Returns where a segment is to be attached.
fn place(addr: u64, flags: u32) -> Result<Place> {
    if addr == 0 {
        return match flags & SHM_REMAP {
            0 => Ok(Place::Wish(0)),
            _ => Err(errno::EINVAL.into()),
        };
    }
    let down = addr / PAGE_SIZE * PAGE_SIZE;
    if down != addr && flags & SHM_RND == 0 || !(MMAP_MIN..USER_END).contains(&down) {
        return Err(errno::EINVAL.into());
    }
    Ok(match flags & SHM_REMAP {
        0 => Place::Free(down),
        _ => Place::Exactly(down),
    })
}

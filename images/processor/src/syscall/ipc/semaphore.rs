//! Semaphores: semget, semop, semtimedop, semctl (Linux `ipc/sem.c`).

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::{Args, IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, int};
use crate::error::{Error, Result, errno};
use crate::ipc::semaphores::{
    Caller, MAX_IN_SET, MAX_OPERATIONS, MAX_SEMAPHORES, MAX_SETS, MAX_VALUE, Operation, Set,
};
use crate::ipc::{Entry, Request, Structure};
use crate::process::Node;
use crate::thread::Thread;

const GETPID: u32 = 11;
const GETVAL: u32 = 12;
const GETALL: u32 = 13;
const GETNCNT: u32 = 14;
const GETZCNT: u32 = 15;
const SETVAL: u32 = 16;
const SETALL: u32 = 17;
const SEM_STAT: u32 = 18;
const SEM_INFO: u32 = 19;
const SEM_STAT_ANY: u32 = 20;

fn encode(entry: &Entry<Arc<Set>>) -> Structure {
    let state = entry.object.state.lock();
    let mut bytes = entry.encode_perm();
    let count = state.semaphores.len() as u64;
    bytes.longs(&[state.operated, 0, state.changed, 0, count, 0, 0]);
    bytes
}

impl<N: Node> Thread<N> {
    pub(super) fn sys_semget(&self, [key, count, flags, ..]: Args) -> Result<u64> {
        let (creds, count) = (self.creds(), int(count));
        if count > MAX_IN_SET {
            return Err(errno::EINVAL.into());
        }
        let request = Request {
            key: int(key),
            flags: int(flags),
            creds: &creds,
        };
        let len = |set: &Arc<Set>| set.state.lock().semaphores.len();
        let fits = |set: &Arc<Set>| match len(set) < count as usize {
            true => Err(errno::EINVAL.into()),
            false => Ok(()),
        };
        let mut ids = self.ipc().semaphores.ids.lock();
        if let Some(id) = ids.find_key(request, fits)? {
            return Ok(id.into());
        }
        if count == 0 {
            return Err(errno::EINVAL.into());
        }
        let all: usize = ids.iter().map(|entry| len(&entry.object)).sum();
        if all + count as usize > MAX_SEMAPHORES {
            return Err(errno::ENOSPC.into());
        }
        let set = Arc::new(Set::new(count, self.seconds()));
        Ok(ids.add(request, MAX_SETS, set)?.into())
    }

    /// Returns a set on which the thread has rights.
    fn semaphores(&self, id: u32, mode: u32) -> Result<Arc<Set>> {
        let creds = self.creds();
        let mut ids = self.ipc().semaphores.ids.lock();
        let entry = ids.get(id)?;
        entry.perm.check(&creds, mode)?;
        Ok(entry.object.clone())
    }

    pub(super) async fn sys_semtimedop(&self, [id, addr, count, timeout, ..]: Args) -> Result<u64> {
        let id = int(id);
        if count == 0 || id.cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        if count > MAX_OPERATIONS {
            return Err(errno::E2BIG.into());
        }
        let count = usize::try_from(count).map_err(|_| errno::E2BIG)?;
        let mut bytes = vec![0; count * Operation::SIZE];
        self.memory.read(addr, &mut bytes).await?;
        let operations: Vec<Operation> = bytes
            .chunks_exact(Operation::SIZE)
            .map(Operation::parse)
            .collect();
        let end = match timeout {
            0 => None,
            addr => Some(self.now() + self.timespec(addr).await?),
        };
        let alters = operations.iter().any(|operation| operation.change != 0);
        let set = self.semaphores(id, if alters { 0o222 } else { 0o444 })?;
        let caller = Caller {
            pid: self.pid,
            set: id,
            now: self.seconds(),
        };
        let waiter = set.waiter();
        let all = &self.ipc().semaphores;
        let attempt = || all.attempt(&waiter, caller, &operations);
        let wait = self.unless_late(set.queue.until(attempt), end);
        let waited = self.unless_called(wait).await;
        if let Some(done) = waiter.served() {
            return done.map(|()| 0);
        }
        match waited {
            Ok(Some(done)) => done.map(|()| 0),
            Ok(None) => Err(errno::EAGAIN.into()),
            // Never made again, whatever the handler's flags say.
            Err(Error::Errno(_)) => Err(errno::EINTR.into()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn sys_semctl(&self, [id, index, command, arg, ..]: Args) -> Result<u64> {
        let (id, index) = (int(id), int(index));
        match int(command) {
            IPC_RMID => self.remove_semaphores(id),
            IPC_SET => {
                let bytes = self.read_perm(arg).await?;
                let (creds, now) = (self.creds(), self.seconds());
                let mut ids = self.ipc().semaphores.ids.lock();
                let entry = ids.get(id)?;
                entry.perm.check_owner(&creds)?;
                entry.perm.set(&bytes);
                entry.object.state.lock().changed = now;
                Ok(0)
            }
            command @ (IPC_STAT | SEM_STAT | SEM_STAT_ANY) => {
                let (status, value) = self.semaphores_status(id, command)?;
                self.memory.write(arg, &status.0).await?;
                Ok(value.into())
            }
            command @ (IPC_INFO | SEM_INFO) => self.semaphores_info(command, arg).await,
            GETALL => {
                let set = self.semaphores(id, 0o444)?;
                let values: Vec<u8> = {
                    let state = set.state.lock();
                    let values = state.semaphores.iter().map(|each| each.value.to_le_bytes());
                    values.flat_map(|bytes| [bytes[0], bytes[1]]).collect()
                };
                self.memory.write(arg, &values).await?;
                Ok(0)
            }
            SETALL => {
                let set = self.semaphores(id, 0o222)?;
                let len = set.state.lock().semaphores.len();
                let mut bytes = vec![0; len * 2];
                self.memory.read(arg, &mut bytes).await?;
                let values = bytes.chunks_exact(2);
                let values = values.map(|pair| i32::from(u16::from_le_bytes([pair[0], pair[1]])));
                self.set_semaphores(&set, id, None, &values.collect::<Vec<_>>())
            }
            SETVAL => {
                let set = self.semaphores(id, 0o222)?;
                self.set_semaphores(&set, id, Some(index), &[int(arg).cast_signed()])
            }
            command => self.semaphore_value(id, index, command),
        }
    }

    fn semaphore_value(&self, id: u32, index: u32, command: u32) -> Result<u64> {
        if !matches!(command, GETPID | GETVAL | GETNCNT | GETZCNT) {
            return Err(errno::EINVAL.into());
        }
        let set = self.semaphores(id, 0o444)?;
        let semaphore = set.state.lock().semaphores.get(index as usize).copied();
        let semaphore = semaphore.ok_or(errno::EINVAL)?;
        Ok(match command {
            GETPID => semaphore.pid.into(),
            GETVAL => semaphore.value.unsigned_abs().into(),
            GETNCNT => set.waiters(index, false),
            _ => set.waiters(index, true),
        })
    }

    /// Sets values, of all semaphores or one; nothing of them is undone any more.
    fn set_semaphores(
        &self,
        set: &Set,
        id: u32,
        index: Option<u32>,
        values: &[i32],
    ) -> Result<u64> {
        if values.iter().any(|value| !(0..=MAX_VALUE).contains(value)) {
            return Err(errno::ERANGE.into());
        }
        let mut state = set.state.lock();
        if state.removed {
            return Err(errno::EIDRM.into());
        }
        let first = index.unwrap_or(0) as usize;
        let places = state.semaphores.get_mut(first..first + values.len());
        for (place, &value) in places.ok_or(errno::EINVAL)?.iter_mut().zip(values) {
            (place.value, place.pid) = (value, self.pid);
        }
        state.changed = self.seconds();
        self.ipc().semaphores.forget_undos(id, index);
        self.ipc().semaphores.serve(&mut state, self.seconds());
        drop(state);
        set.queue.wake();
        Ok(0)
    }

    fn remove_semaphores(&self, id: u32) -> Result<u64> {
        let creds = self.creds();
        let removed = {
            let mut ids = self.ipc().semaphores.ids.lock();
            ids.get(id)?.perm.check_owner(&creds)?;
            ids.remove(id)
        };
        if let Some(entry) = removed {
            entry.object.state.lock().removed = true;
            self.ipc().semaphores.forget_undos(id, None);
            entry.object.queue.wake();
        }
        Ok(0)
    }

    fn semaphores_status(&self, id: u32, command: u32) -> Result<(Structure, u32)> {
        let creds = self.creds();
        let mut ids = self.ipc().semaphores.ids.lock();
        let entry = match command {
            IPC_STAT => ids.get(id)?,
            _ => ids.at(id)?,
        };
        if command != SEM_STAT_ANY {
            entry.perm.check(&creds, 0o444)?;
        }
        let value = if command == IPC_STAT { 0 } else { entry.id };
        Ok((encode(entry), value))
    }

    /// Tells `struct seminfo`.
    async fn semaphores_info(&self, command: u32, addr: u64) -> Result<u64> {
        let (sets, all, highest) = {
            let ids = self.ipc().semaphores.ids.lock();
            let len = |entry: &Entry<Arc<Set>>| entry.object.state.lock().semaphores.len();
            (ids.len(), ids.iter().map(len).sum::<usize>(), ids.highest())
        };
        let int = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (usage, adjust) = match command {
            IPC_INFO => (20, MAX_VALUE.unsigned_abs()),
            _ => (int(sets), int(all)),
        };
        let semaphores = int(MAX_SEMAPHORES);
        let operations = u32::try_from(MAX_OPERATIONS).unwrap_or(u32::MAX);
        let mut info = Structure::default();
        for value in [
            semaphores,
            int(MAX_SETS),
            semaphores,
            semaphores,
            MAX_IN_SET,
            operations,
            operations,
            usage,
            MAX_VALUE.unsigned_abs(),
            adjust,
        ] {
            info.int(value);
        }
        self.memory.write(addr, &info.0).await?;
        Ok(highest.into())
    }
}

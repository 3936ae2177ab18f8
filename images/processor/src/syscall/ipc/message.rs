//! Messages: msgget, msgsnd, msgrcv, msgctl (Linux `ipc/msg.c`).

use alloc::sync::Arc;
use alloc::vec;

use super::{Args, IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, int};
use crate::creds::CAP_SYS_RESOURCE;
use crate::error::{Error, Result, errno};
use crate::ipc::queues::{MAX_MESSAGE, MAX_QUEUES, Message, QUEUE_BYTES, Queue, Wish};
use crate::ipc::{Entry, IPC_NOWAIT, Request, Structure};
use crate::process::Node;
use crate::thread::Thread;

const MSG_COPY: u32 = 0o40_000;
const MSG_STAT: u32 = 11;
const MSG_INFO: u32 = 12;
const MSG_STAT_ANY: u32 = 13;
/// The place of `msg_qbytes` in `struct msqid64_ds`.
const LIMIT_AT: u64 = 88;

fn encode(entry: &Entry<Arc<Queue>>) -> Structure {
    let state = entry.object.state.lock();
    let mut bytes = entry.encode_perm();
    bytes.longs(&[state.sent, state.received, state.changed]);
    bytes.longs(&[state.bytes, state.count(), state.limit]);
    bytes.int(state.sender);
    bytes.int(state.receiver);
    bytes.longs(&[0, 0]);
    bytes
}

impl<N: Node> Thread<N> {
    pub(super) fn sys_msgget(&self, [key, flags, ..]: Args) -> Result<u64> {
        let creds = self.creds();
        let request = Request {
            key: int(key),
            flags: int(flags),
            creds: &creds,
        };
        let queues = &self.ipc().queues;
        let mut ids = queues.ids.lock();
        if let Some(id) = ids.find_key(request, |_| Ok(()))? {
            return Ok(id.into());
        }
        let queue = queues.queue(self.seconds());
        Ok(ids.add(request, MAX_QUEUES, queue)?.into())
    }

    /// Returns a queue on which the thread has rights.
    fn queue(&self, id: u64, mode: u32) -> Result<Arc<Queue>> {
        let creds = self.creds();
        let mut ids = self.ipc().queues.ids.lock();
        let entry = ids.get(int(id))?;
        entry.perm.check(&creds, mode)?;
        Ok(entry.object.clone())
    }

    pub(super) async fn sys_msgsnd(&self, [id, addr, len, flags, ..]: Args) -> Result<u64> {
        let len = usize::try_from(len).map_err(|_| errno::EINVAL)?;
        if len as u64 > MAX_MESSAGE || int(id).cast_signed() < 0 {
            return Err(errno::EINVAL.into());
        }
        let kind = self.memory.read_u64(addr).await?.cast_signed();
        if kind < 1 {
            return Err(errno::EINVAL.into());
        }
        let mut bytes = vec![0; len];
        let text = addr.checked_add(8).ok_or(errno::EFAULT)?;
        self.memory.read(text, &mut bytes).await?;
        let queue = self.queue(id, 0o222)?;
        let mut message = Some(Message { kind, bytes });
        let (by, waits) = ((self.pid, self.seconds()), int(flags) & IPC_NOWAIT == 0);
        let call = queue.call();
        let attempt = || queue.send(&call, &mut message, by, waits);
        let sent = self.unless_handled(queue.changes.until(attempt)).await;
        match call.sent() {
            Some(sent) => sent?,
            None => sent??,
        }
        Ok(0)
    }

    pub(super) async fn sys_msgrcv(&self, [id, addr, room, kind, flags, _]: Args) -> Result<u64> {
        let flags = int(flags);
        let room = usize::try_from(room).ok();
        let room = room.filter(|&room| room.cast_signed() >= 0 && int(id).cast_signed() >= 0);
        let room = room.ok_or(errno::EINVAL)?;
        if flags & MSG_COPY != 0 {
            // As of a kernel without checkpoints (`CONFIG_CHECKPOINT_RESTORE`).
            return Err(errno::ENOSYS.into());
        }
        let queue = self.queue(id, 0o444)?;
        let wish = Wish {
            kind: kind.cast_signed(),
            flags,
            room,
            pid: self.pid,
            now: self.seconds(),
        };
        let (call, waits) = (queue.call(), flags & IPC_NOWAIT == 0);
        let attempt = || queue.receive(&call, wish, waits);
        let received = self.unless_handled(queue.changes.until(attempt)).await;
        let message = match call.received(wish) {
            Some(received) => received?,
            None => received??,
        };
        let kind = message.kind.cast_unsigned();
        self.memory.write_words(addr, &[kind]).await?;
        let text = addr.checked_add(8).ok_or(errno::EFAULT)?;
        self.memory.write(text, &message.bytes).await?;
        Ok(message.bytes.len() as u64)
    }

    /// Waits, unless a signal comes first; its handler makes the call EINTR.
    async fn unless_handled<T>(&self, wait: impl Future<Output = T>) -> Result<T> {
        self.unless_called(wait).await.map_err(|error| match error {
            Error::Errno(errno::ERESTARTSYS) => errno::ERESTARTNOHAND.into(),
            other => other,
        })
    }

    pub(super) async fn sys_msgctl(&self, [id, command, addr, ..]: Args) -> Result<u64> {
        let creds = self.creds();
        let queues = &self.ipc().queues;
        match int(command) {
            IPC_RMID => {
                let removed = {
                    let mut ids = queues.ids.lock();
                    ids.get(int(id))?.perm.check_owner(&creds)?;
                    ids.remove(int(id))
                };
                removed.inspect(|entry| entry.object.remove());
                Ok(0)
            }
            IPC_SET => {
                let bytes = self.read_perm(addr).await?;
                let place = addr.checked_add(LIMIT_AT).ok_or(errno::EFAULT)?;
                let limit = self.memory.read_u64(place).await?;
                let mut ids = queues.ids.lock();
                let entry = ids.get(int(id))?;
                entry.perm.check_owner(&creds)?;
                if limit > QUEUE_BYTES && !creds.can(CAP_SYS_RESOURCE) {
                    return Err(errno::EPERM.into());
                }
                entry.perm.set(&bytes);
                {
                    let mut state = entry.object.state.lock();
                    (state.limit, state.changed) = (limit, self.seconds());
                }
                entry.object.admit(self.seconds());
                Ok(0)
            }
            command @ (IPC_STAT | MSG_STAT | MSG_STAT_ANY) => {
                let (status, value) = {
                    let mut ids = queues.ids.lock();
                    let entry = match command {
                        IPC_STAT => ids.get(int(id))?,
                        _ => ids.at(int(id))?,
                    };
                    if command != MSG_STAT_ANY {
                        entry.perm.check(&creds, 0o444)?;
                    }
                    let value = if command == IPC_STAT { 0 } else { entry.id };
                    (encode(entry), value)
                };
                self.memory.write(addr, &status.0).await?;
                Ok(value.into())
            }
            command @ (IPC_INFO | MSG_INFO) => self.queues_info(command, addr).await,
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Tells `struct msginfo`.
    async fn queues_info(&self, command: u32, addr: u64) -> Result<u64> {
        let (queues, messages, bytes, highest) = {
            let ids = self.ipc().queues.ids.lock();
            let (mut messages, mut bytes) = (0, 0);
            for entry in ids.iter() {
                let state = entry.object.state.lock();
                messages += state.count();
                bytes += state.bytes;
            }
            (ids.len() as u64, messages, bytes, ids.highest())
        };
        let (pool, map, header) = match command {
            IPC_INFO => (
                MAX_QUEUES as u64 * QUEUE_BYTES / 1024,
                QUEUE_BYTES,
                QUEUE_BYTES,
            ),
            _ => (queues, messages, bytes),
        };
        let mut info = Structure::default();
        let most = MAX_QUEUES as u64;
        for value in [pool, map, MAX_MESSAGE, QUEUE_BYTES, most, 16, header] {
            info.int(u32::try_from(value).unwrap_or(u32::MAX));
        }
        // `msgseg` has 16 bits, and padding behind.
        info.int(0xffff);
        self.memory.write(addr, &info.0).await?;
        Ok(highest.into())
    }
}

//! POSIX message queues: mq_open, mq_unlink, mq_timedsend, mq_timedreceive, mq_notify,
//! mq_getsetattr (Linux `ipc/mqueue.c`).

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Args, int};
use crate::creds::{CAP_FOWNER, CAP_SYS_RESOURCE, READ, WRITE};
use crate::error::{Result, errno};
use crate::files::{Kind, O_NONBLOCK, OpenFile};
use crate::ipc::posix::{Bounds, MessageQueue, Notice};
use crate::limits::Resource;
use crate::object::Object;
use crate::platform::Platform;
use crate::process::Node;
use crate::signals::{SI_MESGQ, SignalInfo, number};
use crate::thread::Thread;

const O_ACCMODE: u32 = 3;
const O_CREAT: u32 = 0o100;
const O_EXCL: u32 = 0o200;
/// The longest name.
const NAME_MAX: usize = 255;
/// Bounds of a queue for which none are asked, and of one that an unprivileged program asks for.
const DEFAULT: Bounds = Bounds {
    messages: 10,
    bytes: 8192,
};
/// Bounds that nobody may exceed (`HARD_MSGMAX`, `HARD_MSGSIZEMAX`).
const HARD: Bounds = Bounds {
    messages: 65_536,
    bytes: 16 << 20,
};
/// Priorities are below this (`MQ_PRIO_MAX`).
const PRIORITIES: u32 = 32_768;
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;

/// An open queue.
struct Opened {
    file: Arc<OpenFile>,
    object: Arc<dyn Object>,
}

impl Opened {
    fn queue(&self) -> &MessageQueue {
        self.object
            .as_message_queue()
            .expect("looked at when found")
    }
}

impl<N: Node> Thread<N> {
    /// Reads a queue's name, which the C library gives without its slash.
    async fn queue_name(&self, addr: u64) -> Result<Vec<u8>> {
        let name = self.memory.read_string(addr, NAME_MAX).await?;
        match &name[..] {
            b"" => Err(errno::ENOENT.into()),
            b"." | b".." => Err(errno::EACCES.into()),
            name if name.contains(&b'/') => Err(errno::EACCES.into()),
            _ => Ok(name),
        }
    }

    pub(super) async fn sys_mq_open(
        &self,
        [name, flags, mode, attributes, ..]: Args,
    ) -> Result<u64> {
        let flags = int(flags);
        let wanted = match flags & O_ACCMODE {
            0 => READ,
            1 => WRITE,
            2 => READ | WRITE,
            _ => return Err(errno::EINVAL.into()),
        };
        let name = self.queue_name(name).await?;
        let bounds = match attributes {
            0 => DEFAULT,
            _ if flags & O_CREAT == 0 => DEFAULT,
            addr => Bounds {
                messages: self.memory.read_u64(addr.saturating_add(8)).await?,
                bytes: self.memory.read_u64(addr.saturating_add(16)).await?,
            },
        };
        let named = &self.ipc().named;
        let creds = self.creds();
        let queue = match named.get(&name) {
            Some(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => {
                return Err(errno::EEXIST.into());
            }
            Some(queue) => {
                let (uid, gid) = queue.owner;
                if !creds.may(queue.mode, uid, gid, wanted) {
                    return Err(errno::EACCES.into());
                }
                queue
            }
            None if flags & O_CREAT == 0 => return Err(errno::ENOENT.into()),
            None => {
                self.check_bounds(bounds)?;
                let mode = int(mode) & 0o777 & !int(self.fs.lock().umask);
                let owner = (creds.user.fs, creds.group.fs);
                named.make(&name, bounds, mode, owner)?
            }
        };
        let path = [b"/", &name[..]].concat();
        let status = flags & (O_ACCMODE | O_NONBLOCK);
        let file = OpenFile::new(Kind::Object(queue), path, status, None);
        self.table().add(Arc::new(file), 0, true)
    }

    fn check_bounds(&self, bounds: Bounds) -> Result<()> {
        let most = if self.creds().can(CAP_SYS_RESOURCE) {
            HARD
        } else {
            DEFAULT
        };
        let fits = (1..=most.messages).contains(&bounds.messages)
            && (1..=most.bytes).contains(&bounds.bytes);
        if !fits {
            return Err(errno::EINVAL.into());
        }
        if bounds.cost() > self.process.limits.lock().soft(Resource::MessageQueues) {
            return Err(errno::EMFILE.into());
        }
        Ok(())
    }

    pub(super) async fn sys_mq_unlink(&self, [name, ..]: Args) -> Result<u64> {
        let name = self.queue_name(name).await?;
        let named = &self.ipc().named;
        let queue = named.get(&name).ok_or(errno::ENOENT)?;
        let creds = self.creds();
        // The folder of queues is as `/tmp` is: everybody's, but for others' names.
        if queue.owner.0 != creds.user.fs && !creds.can(CAP_FOWNER) {
            return Err(errno::EPERM.into());
        }
        named.remove(&name);
        Ok(0)
    }

    /// Returns the open queue of a number; `not` is the access mode that may not use it.
    fn opened(&self, fd: u64, not: Option<u32>) -> Result<Opened> {
        let file = self.file(fd)?;
        let Kind::Object(object) = &file.kind else {
            return Err(errno::EBADF.into());
        };
        if object.as_message_queue().is_none() || not == Some(file.flags() & O_ACCMODE) {
            return Err(errno::EBADF.into());
        }
        let object = object.clone();
        Ok(Opened { file, object })
    }

    /// Returns the end of a timeout by the clock of the day; `None` for none.
    async fn queue_end(&self, addr: u64) -> Result<Option<hal::Instant>> {
        match addr {
            0 => Ok(None),
            addr => {
                let at: Duration = self.timespec(addr).await?;
                let left = at.saturating_sub(self.node.platform().wall_clock());
                Ok(Some(self.now() + left))
            }
        }
    }

    /// Tries until something comes of it, the time is over or, for a file that does not wait, at
    /// once.
    async fn until_queue<T>(
        &self,
        opened: &Opened,
        end: Option<hal::Instant>,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        if let Some(done) = attempt() {
            return Ok(done);
        }
        if opened.file.nonblocking() {
            return Err(errno::EAGAIN.into());
        }
        let wait = self.unless_late(opened.object.queue().until(attempt), end);
        let waited = self.unless_called(wait).await?;
        waited.ok_or_else(|| errno::ETIMEDOUT.into())
    }

    pub(super) async fn sys_mq_timedsend(
        &self,
        [fd, addr, len, priority, timeout, _]: Args,
    ) -> Result<u64> {
        let priority = int(priority);
        if priority >= PRIORITIES {
            return Err(errno::EINVAL.into());
        }
        let end = self.queue_end(timeout).await?;
        let opened = self.opened(fd, Some(0))?;
        let queue = opened.queue();
        if len > queue.bounds.bytes {
            return Err(errno::EMSGSIZE.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| errno::EMSGSIZE)?];
        self.memory.read(addr, &mut bytes).await?;
        let mut message = Some(bytes);
        let attempt = || queue.send(&mut message, priority);
        let notice = self.until_queue(&opened, end, attempt).await?;
        if let Some(Notice {
            pid,
            signal: Some((signal, value)),
        }) = notice
            && let Some(process) = self.node.kernel().process(pid)
        {
            let sender = u64::from(self.creds().user.real) << 32 | u64::from(self.pid);
            process.send(SignalInfo {
                signal,
                code: SI_MESGQ,
                fields: [sender, value],
            });
        }
        Ok(0)
    }

    pub(super) async fn sys_mq_timedreceive(
        &self,
        [fd, addr, room, priority_at, timeout, _]: Args,
    ) -> Result<u64> {
        let end = self.queue_end(timeout).await?;
        let opened = self.opened(fd, Some(1))?;
        let queue = opened.queue();
        if room < queue.bounds.bytes {
            return Err(errno::EMSGSIZE.into());
        }
        let receiver = queue.receiver();
        let attempt = || queue.receive();
        let received = self.until_queue(&opened, end, attempt).await;
        drop(receiver);
        let (message, priority) = received?;
        self.memory.write(addr, &message).await?;
        if priority_at != 0 {
            let bytes = priority.to_le_bytes();
            self.memory.write(priority_at, &bytes).await?;
        }
        Ok(message.len() as u64)
    }

    pub(super) async fn sys_mq_notify(&self, [fd, addr, ..]: Args) -> Result<u64> {
        let opened = self.opened(fd, None);
        let notice = match addr {
            0 => None,
            addr => {
                // `struct sigevent`: value, signal, how.
                let value = self.memory.read_u64(addr).await?;
                let words = self.memory.read_u64(addr.saturating_add(8)).await?;
                let signal = match int(words >> 32) {
                    SIGEV_NONE => None,
                    // No signal at all is none to be told by, as on Linux.
                    SIGEV_SIGNAL if int(words) == 0 => None,
                    SIGEV_SIGNAL => Some((number(u64::from(int(words)))?, value)),
                    // By threads the C library wants a socket of the kernel's, which is not here.
                    _ => return Err(errno::EINVAL.into()),
                };
                let pid = self.pid;
                Some(Notice { pid, signal })
            }
        };
        let lives = |pid: u32| self.node.kernel().process(pid).is_some();
        opened?.queue().notify(self.pid, notice, lives)?;
        Ok(0)
    }

    pub(super) async fn sys_mq_getsetattr(&self, [fd, new, old, ..]: Args) -> Result<u64> {
        let flags = match new {
            0 => None,
            addr => Some(self.memory.read_u64(addr).await?),
        };
        if flags.is_some_and(|flags| flags & !u64::from(O_NONBLOCK) != 0) {
            return Err(errno::EINVAL.into());
        }
        let opened = self.opened(fd, None)?;
        let queue = opened.queue();
        let words = [
            u64::from(opened.file.flags() & O_NONBLOCK),
            queue.bounds.messages,
            queue.bounds.bytes,
            queue.count(),
        ];
        if let Some(flags) = flags {
            opened.file.set_flags(int(flags));
        }
        if old != 0 {
            self.memory.write_words(old, &words).await?;
        }
        Ok(0)
    }
}

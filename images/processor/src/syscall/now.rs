//! Calls that need not wait: answered without a task's state.

use alloc::sync::Arc;

use linux_raw_sys::general as nr;
use messages::PAGE_SIZE;
use pcache::{Access, Entry};

use super::Args;
use crate::files::{Kind, O_PATH, OpenFile};
use crate::mm::Tables;
use crate::object::Object;
use crate::process::Node;
use crate::thread::Thread;

/// The most bytes that are read or written without a wait, fewer than `PIPE_BUF`. Most messages by
/// which programs wake one another are shorter.
pub(crate) const SHORT: usize = 128;

/// Bytes that a call took from a file and could not put into the program's memory yet.
pub(crate) struct Taken {
    pub(crate) bytes: [u8; SHORT],
    pub(crate) len: usize,
}

impl Taken {
    /// Returns the bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<N: Node> Thread<N> {
    /// Answers a call if that takes no waiting; `None` for all others.
    #[inline]
    pub(crate) fn call_now(&self, number: u64, args: impl FnOnce() -> Args) -> Option<u64> {
        Some(match u32::try_from(number).ok()? {
            nr::__NR_mmap => return self.mmap_now(args()),
            nr::__NR_munmap => return self.munmap_now(args()),
            nr::__NR_write => return self.write_now(args()),
            nr::__NR_getpid => self.process.pid.into(),
            nr::__NR_getppid => self.process.parent().into(),
            nr::__NR_gettid => self.tid().into(),
            nr::__NR_getuid => self.creds().user.real.into(),
            nr::__NR_geteuid => self.creds().user.effective.into(),
            nr::__NR_getgid => self.creds().group.real.into(),
            nr::__NR_getegid => self.creds().group.effective.into(),
            _ => return None,
        })
    }

    /// Writes a few bytes to a pipe or the like that has room, from a page that is in the cache.
    ///
    /// A write and a read of an eventfd take 1107 instructions together, with the ways into the
    /// kernel and out, and 3850 by the long way (`cargo xtask bench latency`).
    fn write_now(&self, [fd, addr, count, ..]: Args) -> Option<u64> {
        let len = short_len(addr, count)?;
        let (_file, object) = self.plain_object(fd, 0)?;
        let entry = self.memory.tables().entry(addr)?;
        let mut bytes = [0; SHORT];
        let bytes = bytes.get_mut(..len)?;
        let cache = self.node.cache();
        if !cache.copy_out(entry, Access::Read, offset(addr), bytes) {
            return None;
        }
        // What fails is tried again, and fails again, where the call may wait.
        Some(object.write(bytes).ok()? as u64)
    }

    /// Reads a few bytes from a pipe or the like that has some, into a page that is in the cache.
    #[inline]
    pub(crate) fn read_now(&mut self, [fd, addr, count, ..]: Args) -> Option<u64> {
        let len = short_len(addr, count)?;
        let (_file, object) = self.plain_object(fd, 1)?;
        let entry = self.memory.tables().entry(addr)?;
        if !entry.load().permits(Access::Write) {
            return None;
        }
        let mut bytes = [0; SHORT];
        let len = object.read(bytes.get_mut(..len)?).ok()?;
        let cache = self.node.cache();
        if !cache.copy_in(entry, false, offset(addr), &bytes[..len]) {
            // Another core has just taken the page away. The file has given its bytes up.
            self.taken = Some(Taken { bytes, len });
            return None;
        }
        Some(len as u64)
    }

    /// Returns an open object that takes short writes whole, unless it was opened only for `not`.
    fn plain_object(&self, fd: u64, not: u32) -> Option<(Arc<OpenFile>, Arc<dyn Object>)> {
        let file = self.table().get(fd).ok()?;
        let flags = file.flags();
        let Kind::Object(object) = &file.kind else {
            return None;
        };
        if flags & O_PATH != 0 || flags & 3 == not || !object.is_plain() {
            return None;
        }
        let object = object.clone();
        Some((file, object))
    }
}

/// Returns the length of a range that lies in one page and is not empty, if it is short.
fn short_len(addr: u64, count: u64) -> Option<usize> {
    let len = usize::try_from(count).ok().filter(|&len| len <= SHORT)?;
    (len > 0 && addr % PAGE_SIZE + count <= PAGE_SIZE).then_some(len)
}

fn offset(addr: u64) -> usize {
    usize::try_from(addr % PAGE_SIZE).unwrap_or_default()
}

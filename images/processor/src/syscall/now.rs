//! Calls that need neither wait nor touch the program's memory: answered without a task's state.

use linux_raw_sys::general as nr;

use super::Args;
use crate::process::Node;
use crate::thread::Thread;

impl<N: Node> Thread<N> {
    /// Answers a call if that takes no waiting; `None` for all others.
    #[inline]
    pub(crate) fn call_now(&self, number: u64, args: impl FnOnce() -> Args) -> Option<u64> {
        Some(match u32::try_from(number).ok()? {
            nr::__NR_mmap => return self.mmap_now(args()),
            nr::__NR_munmap => return self.munmap_now(args()),
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
}

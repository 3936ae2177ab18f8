//! Calls that neither wait nor touch the program's memory: answered without a task's state.

use linux_raw_sys::general as nr;

use crate::process::Node;
use crate::thread::Thread;

impl<N: Node> Thread<N> {
    /// Answers a call that has its answer at once; `None` for all others.
    #[inline]
    pub(crate) fn call_now(&self, number: u64) -> Option<u64> {
        Some(match u32::try_from(number).ok()? {
            nr::__NR_getpid => self.process.pid.into(),
            nr::__NR_gettid => self.tid().into(),
            nr::__NR_getuid | nr::__NR_geteuid | nr::__NR_getgid | nr::__NR_getegid => 0,
            nr::__NR_setuid | nr::__NR_setgid | nr::__NR_setreuid | nr::__NR_setregid => 0,
            nr::__NR_setresuid | nr::__NR_setresgid | nr::__NR_getgroups | nr::__NR_setgroups => 0,
            nr::__NR_sched_setaffinity | nr::__NR_setrlimit => 0,
            _ => return None,
        })
    }
}

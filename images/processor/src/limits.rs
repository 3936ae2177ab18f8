//! Limits of resources (`setrlimit`).

use hal::Instant;

use crate::error::{Result, errno};
use crate::files::MAX_FILES;
use crate::mm::STACK_LIMIT;
use crate::signals::{SIGKILL, SIGXCPU};

/// Resources that have limits (`RLIM_NLIMITS`).
pub(crate) const RESOURCES: usize = 16;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// No limit.
pub(crate) const INFINITY: u64 = u64::MAX;

/// A resource, by Linux's number (`include/uapi/asm-generic/resource.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource {
    /// Seconds of CPU time.
    CpuTime = 0,
    /// Bytes of a file that is written.
    FileSize = 1,
    /// Bytes of the stack.
    Stack = 3,
    /// Bytes of a core dump.
    Core = 4,
    /// Processes and threads of a user.
    Processes = 6,
    /// One more than the highest file number.
    Files = 7,
    /// Bytes of addresses.
    Addresses = 9,
    /// Bytes that POSIX message queues may come to hold.
    MessageQueues = 12,
}

/// A resource's limit: what counts, and how far it may be raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Limit {
    const NONE: Self = Self {
        soft: INFINITY,
        hard: INFINITY,
    };
}

/// The limits of a process.
#[derive(Clone, Debug)]
pub(crate) struct Limits([Limit; RESOURCES]);

impl Default for Limits {
    /// Returns the limits of a process that Linux starts.
    fn default() -> Self {
        /// Locked memory, queued signals, bytes of message queues, niceness, real-time priority.
        const OTHERS: [(usize, u64); 5] =
            [(8, 8 << 20), (11, 4096), (12, 819_200), (13, 0), (14, 0)];
        let mut limits = [Limit::NONE; RESOURCES];
        for (resource, value) in OTHERS {
            limits[resource] = Limit {
                soft: value,
                hard: value,
            };
        }
        limits[Resource::Stack as usize].soft = STACK_LIMIT;
        limits[Resource::Core as usize].soft = 0;
        limits[Resource::Files as usize] = Limit {
            soft: 1024,
            hard: MAX_FILES as u64,
        };
        Self(limits)
    }
}

impl Limits {
    /// Returns what counts of a resource's limit.
    pub(crate) fn soft(&self, resource: Resource) -> u64 {
        self.0[resource as usize].soft
    }

    /// Returns the limit of a resource by its number.
    pub(crate) fn get(&self, resource: usize) -> Result<Limit> {
        self.0
            .get(resource)
            .copied()
            .ok_or_else(|| errno::EINVAL.into())
    }

    /// Returns the CPU time at which a limit is reached.
    pub(crate) fn next_cpu_time(&self) -> Option<Instant> {
        let Limit { soft, hard } = self.0[Resource::CpuTime as usize];
        let nanos = soft.min(hard).max(1).checked_mul(SECOND)?;
        Some(Instant::from_nanos(nanos))
    }

    /// Returns the signal for a process that has had so much CPU time: SIGKILL at the hard limit,
    /// SIGXCPU at the soft one, which grows by a second then (Linux
    /// `kernel/time/posix-cpu-timers.c`, `check_process_timers`).
    pub(crate) fn spend(&mut self, total: Instant) -> Option<u8> {
        let limit = &mut self.0[Resource::CpuTime as usize];
        let reached = |seconds: u64| total.nanos / SECOND >= seconds.max(1);
        if reached(limit.hard) {
            return Some(SIGKILL);
        }
        if reached(limit.soft) {
            limit.soft = limit.soft.max(1) + 1;
            return Some(SIGXCPU);
        }
        None
    }

    /// Sets a limit; only the privileged may raise how far.
    pub(crate) fn set(&mut self, resource: usize, new: Limit, privileged: bool) -> Result<()> {
        let had = self.get(resource)?;
        if new.soft > new.hard {
            return Err(errno::EINVAL.into());
        }
        let too_many_files = resource == Resource::Files as usize && new.hard > MAX_FILES as u64;
        if new.hard > had.hard && !privileged || too_many_files {
            return Err(errno::EPERM.into());
        }
        self.0[resource] = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_of_its_cpu_time_each_second_and_ends_at_the_hard_limit() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let mut limits = Limits::default();
        assert_eq!(limits.next_cpu_time(), None);
        assert_eq!(limits.spend(at(u64::MAX / SECOND)), None);
        let cpu = Resource::CpuTime as usize;
        limits.set(cpu, Limit { soft: 2, hard: 4 }, false).unwrap();
        assert_eq!(limits.next_cpu_time(), Some(at(2000)));
        assert_eq!(limits.spend(at(1999)), None);
        assert_eq!(limits.spend(at(2000)), Some(SIGXCPU));
        assert_eq!(limits.next_cpu_time(), Some(at(3000)));
        assert_eq!(limits.spend(at(2999)), None);
        assert_eq!(limits.spend(at(3500)), Some(SIGXCPU));
        assert_eq!(limits.spend(at(4000)), Some(SIGKILL));
        limits.set(cpu, Limit { soft: 0, hard: 4 }, false).unwrap();
        assert_eq!(limits.next_cpu_time(), Some(at(1000)), "0 is a second");
        let endless = Limit {
            soft: INFINITY,
            hard: INFINITY,
        };
        limits.set(cpu, endless, true).unwrap();
        assert_eq!(limits.spend(at(5000)), None);
    }

    #[test]
    fn limits_are_lowered_by_anyone_and_raised_by_the_privileged() {
        let mut limits = Limits::default();
        let limit = |soft, hard| Limit { soft, hard };
        assert_eq!(limits.set(0, limit(5, 4), true), Err(errno::EINVAL.into()));
        limits.set(0, limit(3, 4), false).unwrap();
        assert_eq!(limits.set(0, limit(3, 5), false), Err(errno::EPERM.into()));
        limits.set(0, limit(3, 5), true).unwrap();
        assert_eq!(limits.get(0), Ok(limit(3, 5)));
        assert_eq!(limits.get(16), Err(errno::EINVAL.into()));
        let files = Resource::Files as usize;
        let all = limit(INFINITY, INFINITY);
        assert_eq!(
            limits.set(files, all, true),
            Err(errno::EPERM.into()),
            "as nr_open bounds"
        );
    }
}

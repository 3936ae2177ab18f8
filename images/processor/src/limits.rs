//! Limits of resources (`setrlimit`).

use crate::error::{Result, errno};
use crate::files::MAX_FILES;
use crate::mm::STACK_LIMIT;

/// Resources that have limits (`RLIM_NLIMITS`).
pub(crate) const RESOURCES: usize = 16;
/// No limit.
pub(crate) const INFINITY: u64 = u64::MAX;

/// A resource, by Linux's number (`include/uapi/asm-generic/resource.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource {
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

//! Priorities and schedulers. Niceness and policies are kept and told; threads share a core's time
//! equally whatever they are.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as nr;

use super::{Args, int};
use crate::creds::CAP_SYS_NICE;
use crate::error::{Result, errno};
use crate::process::Node;
use crate::thread::{Shared, Thread};

const SCHED_FIFO: u32 = 1;
const SCHED_RR: u32 = 2;
const SCHED_BATCH: u32 = 3;
const SCHED_IDLE: u32 = 5;
/// Bytes of `struct sched_attr`, now and in its first version.
const ATTRIBUTES: usize = 56;
const ATTRIBUTES_FIRST: usize = 48;
/// Flags of `struct sched_attr`.
const RESET_ON_FORK: u32 = 1;
const KEEP_POLICY: u32 = 8;
/// The policy's number without `SCHED_RESET_ON_FORK`.
const POLICY: u32 = 0x3fff_ffff;

impl<N: Node> Thread<N> {
    /// Answers the calls of this family; `None` for others.
    pub(super) async fn priority_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        Some(match number {
            nr::__NR_getpriority => self.sys_getpriority(a),
            nr::__NR_setpriority => self.sys_setpriority(a),
            nr::__NR_sched_getscheduler => self
                .thread_named(a[0])
                .map(|thread| thread.policy().0.into()),
            nr::__NR_sched_setscheduler => self.sys_set_scheduler(a[0], Some(a[1]), a[2]).await,
            nr::__NR_sched_setparam => self.sys_set_scheduler(a[0], None, a[1]).await,
            nr::__NR_sched_getparam => self.sys_get_param(a[0], a[1]).await,
            nr::__NR_sched_get_priority_max => priority_range(a[0]).map(|(_, most)| most),
            nr::__NR_sched_get_priority_min => priority_range(a[0]).map(|(least, _)| least),
            nr::__NR_sched_rr_get_interval => self.sys_interval(a[0], a[1]).await,
            nr::__NR_sched_setattr => self.sys_set_attributes(a).await,
            nr::__NR_sched_getattr => self.sys_get_attributes(a).await,
            nr::__NR_ioprio_set => Ok(0),
            // IOPRIO_CLASS_NONE.
            nr::__NR_ioprio_get => Ok(0),
            _ => return None,
        })
    }

    /// Returns the threads that `which` and `who` of getpriority(2) mean.
    fn meant(&self, which: u64, who: u64) -> Result<Vec<Arc<Shared>>> {
        const PROCESS: u32 = 0;
        const GROUP: u32 = 1;
        const USER: u32 = 2;
        let who = int(who);
        let kernel = self.node.kernel();
        let all = || {
            let threads = kernel.living().into_iter();
            threads.flat_map(|process| process.threads.lock().values().cloned().collect::<Vec<_>>())
        };
        let found: Vec<_> = match int(which) {
            PROCESS => self.thread_named(who.into()).into_iter().collect(),
            GROUP => {
                let own = kernel.relation(self.pid, |own| own.group)?;
                let group = if who == 0 { own } else { who };
                let members = kernel
                    .living()
                    .into_iter()
                    .filter(|process| kernel.relation(process.pid, |of| of.group) == Ok(group));
                members
                    .flat_map(|process| {
                        process.threads.lock().values().cloned().collect::<Vec<_>>()
                    })
                    .collect()
            }
            USER => {
                let user = if who == 0 {
                    self.creds().user.real
                } else {
                    who
                };
                all()
                    .filter(|thread| thread.creds().user.real == user)
                    .collect()
            }
            _ => return Err(errno::EINVAL.into()),
        };
        if found.is_empty() {
            return Err(errno::ESRCH.into());
        }
        Ok(found)
    }

    fn sys_getpriority(&self, [which, who, ..]: Args) -> Result<u64> {
        let threads = self.meant(which, who)?;
        let least = threads
            .iter()
            .map(|thread| thread.nice())
            .min()
            .unwrap_or(0);
        // As 1 to 40, so that no value looks like an error.
        Ok(u64::try_from(20 - least).unwrap_or(20))
    }

    fn sys_setpriority(&self, [which, who, nice, ..]: Args) -> Result<u64> {
        let nice = int(nice).cast_signed().clamp(-20, 19);
        let privileged = self.creds().can(CAP_SYS_NICE);
        for thread in self.meant(which, who)? {
            if !privileged && nice < thread.nice() {
                return Err(errno::EACCES.into());
            }
            if !privileged && thread.creds().user.real != self.creds().user.effective {
                return Err(errno::EPERM.into());
            }
            thread.set_nice(nice);
        }
        Ok(0)
    }

    async fn sys_set_scheduler(&self, tid: u64, policy: Option<u64>, param: u64) -> Result<u64> {
        let thread = self.thread_named(tid)?;
        let mut bytes = [0; 4];
        self.memory.read(param, &mut bytes).await?;
        let priority = u64::from(u32::from_le_bytes(bytes));
        let policy = policy.map_or(thread.policy().0, int);
        let (least, most) = priority_range(u64::from(policy & POLICY))?;
        if !(least..=most).contains(&priority) {
            return Err(errno::EINVAL.into());
        }
        if most > 0 && !self.creds().can(CAP_SYS_NICE) {
            return Err(errno::EPERM.into());
        }
        thread.set_policy(policy, u32::try_from(priority).unwrap_or(0));
        Ok(0)
    }

    /// Sets policy, static priority and niceness at once (`struct sched_attr`).
    async fn sys_set_attributes(&self, [tid, addr, flags, ..]: Args) -> Result<u64> {
        if addr == 0 || int(tid).cast_signed() < 0 || int(flags) != 0 {
            return Err(errno::EINVAL.into());
        }
        let mut bytes = [0; ATTRIBUTES];
        self.memory.read(addr, &mut bytes[..4]).await?;
        let size = match u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) {
            0 => ATTRIBUTES_FIRST,
            size => usize::try_from(size).map_err(|_| errno::E2BIG)?,
        };
        if !(ATTRIBUTES_FIRST..=4096).contains(&size) {
            let own = u32::try_from(ATTRIBUTES).unwrap_or(0).to_le_bytes();
            self.memory.write(addr, &own).await?;
            return Err(errno::E2BIG.into());
        }
        let mut rest = alloc::vec![0; size];
        self.memory.read(addr, &mut rest).await?;
        let known = size.min(ATTRIBUTES);
        bytes[..known].copy_from_slice(&rest[..known]);
        if rest[known..].iter().any(|&byte| byte != 0) {
            return Err(errno::E2BIG.into());
        }
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four of 56 bytes"));
        let (policy, flags, nice, priority) = (word(4), word(8), word(16), word(20));
        if flags & !(RESET_ON_FORK | KEEP_POLICY) != 0 || word(12) != 0 {
            return Err(errno::EINVAL.into());
        }
        let thread = self.thread_named(tid)?;
        let (known, _) = thread.policy();
        let policy = if flags & KEEP_POLICY != 0 {
            known & POLICY
        } else {
            policy
        };
        let (least, most) = priority_range(policy.into())?;
        if !(least..=most).contains(&u64::from(priority)) {
            return Err(errno::EINVAL.into());
        }
        let nice = nice.cast_signed().clamp(-20, 19);
        let fair = most == 0;
        if !self.creds().can(CAP_SYS_NICE) && (!fair || nice < thread.nice()) {
            return Err(errno::EPERM.into());
        }
        let reset = if flags & RESET_ON_FORK != 0 {
            !POLICY & 0x4000_0000
        } else {
            0
        };
        thread.set_policy(policy | reset, priority);
        if fair {
            thread.set_nice(nice);
        }
        Ok(0)
    }

    async fn sys_get_attributes(&self, [tid, addr, size, flags, ..]: Args) -> Result<u64> {
        let size = usize::try_from(int(size)).map_err(|_| errno::EINVAL)?;
        let wrong = addr == 0 || int(tid).cast_signed() < 0 || int(flags) != 0;
        if wrong || !(ATTRIBUTES_FIRST..=4096).contains(&size) {
            return Err(errno::EINVAL.into());
        }
        let thread = self.thread_named(tid)?;
        let (policy, priority) = thread.policy();
        let size = size.min(ATTRIBUTES);
        let mut bytes = [0; ATTRIBUTES];
        let mut put = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, u32::try_from(size).unwrap_or(0));
        put(4, policy & POLICY);
        put(
            8,
            if policy & !POLICY != 0 {
                RESET_ON_FORK
            } else {
                0
            },
        );
        put(16, thread.nice().cast_unsigned());
        put(20, priority);
        self.memory.write(addr, &bytes[..size]).await?;
        Ok(0)
    }

    async fn sys_get_param(&self, tid: u64, into: u64) -> Result<u64> {
        let (_, priority) = self.thread_named(tid)?.policy();
        self.memory.write(into, &priority.to_le_bytes()).await?;
        Ok(0)
    }

    async fn sys_interval(&self, tid: u64, into: u64) -> Result<u64> {
        self.thread_named(tid)?;
        self.memory.write_words(into, &[0, 4_000_000]).await?;
        Ok(0)
    }
}

/// Returns the lowest and the highest static priority of a policy.
fn priority_range(policy: u64) -> Result<(u64, u64)> {
    match int(policy) {
        SCHED_FIFO | SCHED_RR => Ok((1, 99)),
        0 | SCHED_BATCH | SCHED_IDLE => Ok((0, 0)),
        _ => Err(errno::EINVAL.into()),
    }
}

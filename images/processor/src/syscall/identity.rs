//! Identity: users, groups, capabilities; and limits of resources.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use linux_raw_sys::general as nr;
use messages::storage::Stat;

use super::{Args, int};
use crate::creds::{
    Asker, CAP_CHOWN, CAP_FOWNER, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, Capabilities, Creds, Ids,
    LAST_CAPABILITY, MAX_GROUPS, WRITE,
};
use crate::error::{Result, errno};
use crate::limits::{Limit, Resource};
use crate::process::{Node, Process};
use crate::signals::{SI_USER, SIGXFSZ, SignalInfo};
use crate::thread::Thread;
use crate::tmpfs::Change;

/// Versions of capget(2)'s header: one word of capabilities, and two (twice).
const CAPABILITY_V1: u32 = 0x1998_0330;
const CAPABILITY_V2: u32 = 0x2007_1026;
const CAPABILITY_V3: u32 = 0x2008_0522;

impl<N: Node> Thread<N> {
    /// Returns the thread's identity.
    pub(crate) fn creds(&self) -> Arc<Creds> {
        self.shared.creds()
    }

    /// Returns the thread's identity as S is told it.
    pub(super) fn asker(&self) -> Asker {
        self.creds().asker()
    }

    /// Answers the calls of this family; `None` for others.
    pub(super) async fn identity_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        let [x, y, z] = [int(a[0]), int(a[1]), int(a[2])];
        Some(match number {
            nr::__NR_setuid => self.become_other(|creds| creds.set_uid(x)),
            nr::__NR_setgid => self.become_other(|creds| creds.set_gid(x)),
            nr::__NR_setreuid => self.become_other(|creds| creds.set_reuid(x, y)),
            nr::__NR_setregid => self.become_other(|creds| creds.set_regid(x, y)),
            nr::__NR_setresuid => self.become_other(|creds| creds.set_resuid([x, y, z])),
            nr::__NR_setresgid => self.become_other(|creds| creds.set_resgid([x, y, z])),
            nr::__NR_setfsuid => Ok(self.shared.change_creds(|creds| creds.set_fsuid(x)).into()),
            nr::__NR_setfsgid => Ok(self.shared.change_creds(|creds| creds.set_fsgid(x)).into()),
            nr::__NR_getresuid => self.put_ids(a, self.creds().user).await,
            nr::__NR_getresgid => self.put_ids(a, self.creds().group).await,
            nr::__NR_getgroups => self.sys_getgroups(a).await,
            nr::__NR_setgroups => self.sys_setgroups(a).await,
            nr::__NR_capget => self.sys_capget(a).await,
            nr::__NR_capset => self.sys_capset(a).await,
            nr::__NR_getrlimit => self.limit(self.pid.into(), a[0], 0, a[1]).await,
            nr::__NR_setrlimit => self.limit(self.pid.into(), a[0], a[1], 0).await,
            nr::__NR_prlimit64 => self.limit(a[0], a[1], a[2], a[3]).await,
            nr::__NR_sethostname => self.sys_sethostname(a).await,
            nr::__NR_setdomainname => self.sys_sethostname([a[0], 0, 0, 0, 0, 0]).await,
            _ => return None,
        })
    }

    fn become_other(&self, change: impl FnOnce(&mut Creds) -> Result<()>) -> Result<u64> {
        self.shared.change_creds(change).map(|()| 0)
    }

    async fn put_ids(&self, [real, effective, saved, ..]: Args, ids: Ids) -> Result<u64> {
        for (at, id) in [
            (real, ids.real),
            (effective, ids.effective),
            (saved, ids.saved),
        ] {
            self.memory.write(at, &id.to_le_bytes()).await?;
        }
        Ok(0)
    }

    async fn sys_getgroups(&self, [room, into, ..]: Args) -> Result<u64> {
        let groups = self.creds().groups.clone();
        let room = usize::try_from(int(room).cast_signed()).map_err(|_| errno::EINVAL)?;
        if room > 0 {
            if room < groups.len() {
                return Err(errno::EINVAL.into());
            }
            let bytes: Vec<u8> = groups
                .iter()
                .flat_map(|group| group.to_le_bytes())
                .collect();
            self.memory.write(into, &bytes).await?;
        }
        Ok(groups.len() as u64)
    }

    async fn sys_setgroups(&self, [count, from, ..]: Args) -> Result<u64> {
        let count = usize::try_from(int(count)).unwrap_or(usize::MAX);
        if count > MAX_GROUPS {
            return Err(errno::EINVAL.into());
        }
        let mut bytes = vec![0; count * 4];
        self.memory.read(from, &mut bytes).await?;
        let (words, _) = bytes.as_chunks();
        let mut groups: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        groups.sort_unstable();
        self.become_other(|creds| creds.set_groups(groups.into()))
    }

    /// Reads a header of capget(2); returns how many words the data has, and the process.
    async fn capability_header(&self, header: u64) -> Result<(u64, u32)> {
        let words = self.memory.read_u64(header).await?;
        match int(words) {
            CAPABILITY_V1 => Ok((1, int(words >> 32))),
            CAPABILITY_V2 | CAPABILITY_V3 => Ok((2, int(words >> 32))),
            _ => {
                self.memory
                    .write(header, &CAPABILITY_V3.to_le_bytes())
                    .await?;
                Err(errno::EINVAL.into())
            }
        }
    }

    async fn sys_capget(&self, [header, data, ..]: Args) -> Result<u64> {
        let (words, pid) = match self.capability_header(header).await {
            // A question for the version alone.
            Err(error) => return if data == 0 { Ok(0) } else { Err(error) },
            header => header?,
        };
        let creds = match pid {
            0 => self.creds(),
            pid => self.process_named(pid)?.creds().ok_or(errno::ESRCH)?,
        };
        if data == 0 {
            return Ok(0);
        }
        let held = creds.capabilities;
        let mut bytes = Vec::new();
        for word in 0..words {
            for set in [held.effective, held.permitted, held.inheritable] {
                bytes.extend_from_slice(&int(set >> (word * 32)).to_le_bytes());
            }
        }
        self.memory.write(data, &bytes).await?;
        Ok(0)
    }

    async fn sys_capset(&self, [header, data, ..]: Args) -> Result<u64> {
        let (words, pid) = self.capability_header(header).await?;
        if pid != 0 && pid != self.tid() && pid != self.pid {
            return Err(errno::EPERM.into());
        }
        let mut sets = [0_u64; 3];
        for word in 0..words {
            for (index, set) in (0..).zip(&mut sets) {
                let mut bytes = [0; 4];
                let at = data.saturating_add(word * 12 + index * 4);
                self.memory.read(at, &mut bytes).await?;
                *set |= u64::from(u32::from_le_bytes(bytes)) << (word * 32);
            }
        }
        let known = (1 << (LAST_CAPABILITY + 1)) - 1;
        let [effective, permitted, inheritable] = sets.map(|set| set & known);
        self.become_other(|creds| creds.set_capabilities(effective, permitted, inheritable))
    }

    /// Returns a process by its number; 0 is the caller's.
    fn process_named(&self, pid: u32) -> Result<Arc<Process<N>>> {
        if pid == 0 {
            return Ok(self.process.clone());
        }
        let process = self.node.kernel().process_of(pid);
        process.ok_or_else(|| errno::ESRCH.into())
    }

    /// Gives and sets a limit of a process. The addresses may be 0.
    async fn limit(&self, pid: u64, resource: u64, new: u64, old: u64) -> Result<u64> {
        let resource = usize::try_from(int(resource)).unwrap_or(usize::MAX);
        let process = self.process_named(int(pid))?;
        let had = process.limits.lock().get(resource)?;
        let own = process.pid == self.pid;
        let creds = self.creds();
        if !own
            && !process
                .creds()
                .is_some_and(|other| creds.may_signal(&other))
        {
            return Err(errno::EPERM.into());
        }
        if new != 0 {
            let soft = self.memory.read_u64(new).await?;
            let hard = self.memory.read_u64(new.saturating_add(8)).await?;
            let limit = Limit { soft, hard };
            let privileged = creds.can(CAP_SYS_RESOURCE);
            process.limits.lock().set(resource, limit, privileged)?;
            process.note_cpu_timers();
            if own {
                self.apply_limits();
            }
        }
        if old != 0 {
            self.memory.write_words(old, &[had.soft, had.hard]).await?;
        }
        Ok(0)
    }

    /// Tells the parts that count resources of their limits.
    pub(crate) fn apply_limits(&self) {
        let limits = self.process.limits.lock().clone();
        self.table().set_limit(limits.soft(Resource::Files));
        self.memory.set_stack_limit(limits.soft(Resource::Stack));
    }

    /// Returns EACCES if the thread may not do `want` with a file, of the bits of access(2).
    pub(super) fn check_rights(&self, stat: &Stat, want: u32) -> Result<()> {
        if self.creds().may(stat.mode, stat.uid, stat.gid, want) {
            Ok(())
        } else {
            Err(errno::EACCES.into())
        }
    }

    /// Returns EPERM if the thread may not change mode, owner or times of a file.
    pub(super) fn check_change(&self, stat: &Stat, change: &Change) -> Result<()> {
        let creds = self.creds();
        let owns = creds.user.fs == stat.uid;
        let allowed = match *change {
            Change::Owner(uid, gid) => {
                let same_user = uid == u32::MAX || uid == stat.uid;
                let own_group =
                    gid == u32::MAX || creds.group.fs == gid || creds.groups.contains(&gid);
                creds.can(CAP_CHOWN) || owns && same_user && own_group
            }
            Change::Present(_) if !owns && !creds.can(CAP_FOWNER) => {
                return self.check_rights(stat, WRITE);
            }
            _ => owns || creds.can(CAP_FOWNER),
        };
        if allowed {
            Ok(())
        } else {
            Err(errno::EPERM.into())
        }
    }

    /// Returns EFBIG, and sends SIGXFSZ, if a file may not reach as far as `end`.
    pub(super) fn check_size(&self, end: u64) -> Result<()> {
        if end <= self.process.limits.lock().soft(Resource::FileSize) {
            return Ok(());
        }
        let info = SignalInfo::from_process(SIGXFSZ, SI_USER, self.pid);
        self.process.send_thread(&self.shared, info);
        Err(errno::EFBIG.into())
    }

    /// Returns an error if `more` bytes of addresses are too many for the process's limit.
    pub(crate) fn may_map(&self, more: u64) -> Result<()> {
        let limit = self.process.limits.lock().soft(Resource::Addresses);
        if limit != u64::MAX
            && self
                .memory
                .with_vmas(crate::mm::vma::Vmas::size)
                .saturating_add(more)
                > limit
        {
            return Err(errno::ENOMEM.into());
        }
        Ok(())
    }

    async fn sys_sethostname(&self, [name, len, ..]: Args) -> Result<u64> {
        const MAX: u64 = 64;
        if !self.creds().can(CAP_SYS_ADMIN) {
            return Err(errno::EPERM.into());
        }
        if len > MAX {
            return Err(errno::EINVAL.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| errno::EINVAL)?];
        self.memory.read(name, &mut bytes).await?;
        if !bytes.is_empty() {
            *self.node.kernel().host_name.lock() = bytes;
        }
        Ok(0)
    }

    /// Answers prctl(2). Nothing here can be dumped or traced.
    pub(super) async fn sys_prctl(&self, [option, arg, second, ..]: Args) -> Result<u64> {
        const PR_SET_PDEATHSIG: u32 = 1;
        const PR_GET_PDEATHSIG: u32 = 2;
        const PR_GET_DUMPABLE: u32 = 3;
        const PR_SET_DUMPABLE: u32 = 4;
        const PR_GET_KEEPCAPS: u32 = 7;
        const PR_SET_KEEPCAPS: u32 = 8;
        const PR_SET_NAME: u32 = 15;
        const PR_GET_NAME: u32 = 16;
        const PR_GET_SECCOMP: u32 = 21;
        const PR_CAPBSET_READ: u32 = 23;
        const PR_CAPBSET_DROP: u32 = 24;
        const PR_SET_TIMERSLACK: u32 = 29;
        const PR_GET_TIMERSLACK: u32 = 30;
        const PR_SET_CHILD_SUBREAPER: u32 = 36;
        const PR_GET_CHILD_SUBREAPER: u32 = 37;
        const PR_SET_NO_NEW_PRIVS: u32 = 38;
        const PR_GET_NO_NEW_PRIVS: u32 = 39;
        const PR_SET_VMA: u32 = 0x5356_4d41;
        match int(option) {
            PR_SET_PDEATHSIG | PR_SET_DUMPABLE | PR_SET_TIMERSLACK | PR_SET_VMA => Ok(0),
            PR_SET_NO_NEW_PRIVS if arg == 1 => Ok(0),
            PR_GET_NO_NEW_PRIVS | PR_GET_SECCOMP => Ok(0),
            PR_GET_PDEATHSIG | PR_GET_CHILD_SUBREAPER => {
                self.memory.write(arg, &[0; 4]).await.map(|()| 0)
            }
            // Orphans are the first process's.
            PR_SET_CHILD_SUBREAPER if arg == 0 => Ok(0),
            PR_GET_DUMPABLE => Ok(1),
            PR_GET_TIMERSLACK => Ok(50_000),
            PR_GET_KEEPCAPS => Ok(self.creds().keep_capabilities.into()),
            PR_SET_KEEPCAPS if arg <= 1 => {
                self.shared
                    .change_creds(|creds| creds.keep_capabilities = arg == 1);
                Ok(0)
            }
            PR_CAPBSET_READ | PR_CAPBSET_DROP if arg > u64::from(LAST_CAPABILITY) => {
                Err(errno::EINVAL.into())
            }
            PR_CAPBSET_READ => Ok(self.creds().capabilities.bounding >> arg & 1),
            PR_CAPBSET_DROP => self.become_other(|creds| {
                if !creds.can(crate::creds::CAP_SETPCAP) {
                    return Err(errno::EPERM.into());
                }
                let Capabilities { bounding, .. } = &mut creds.capabilities;
                *bounding &= !(1 << arg);
                Ok(())
            }),
            PR_SET_NAME => {
                // `TASK_COMM_LEN` less the final zero.
                let name = match self.memory.read_string(arg, 15).await {
                    Err(crate::Error::Errno(errno::ENAMETOOLONG)) => {
                        let mut name = vec![0; 15];
                        self.memory.read(arg, &mut name).await?;
                        name
                    }
                    name => name?,
                };
                *self.shared.name.lock() = name;
                Ok(0)
            }
            PR_GET_NAME => {
                let mut name = self.shared.name.lock().clone();
                name.resize(16, 0);
                self.memory.write(arg, &name).await?;
                Ok(0)
            }
            47 => self.ambient(int(arg), second),
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Answers `PR_CAP_AMBIENT`.
    fn ambient(&self, what: u32, capability: u64) -> Result<u64> {
        const IS_SET: u32 = 1;
        const RAISE: u32 = 2;
        const LOWER: u32 = 3;
        const CLEAR_ALL: u32 = 4;
        if what != CLEAR_ALL && capability > u64::from(LAST_CAPABILITY) {
            return Err(errno::EINVAL.into());
        }
        self.shared.change_creds(|creds| {
            let held = &mut creds.capabilities;
            match what {
                IS_SET => return Ok(held.ambient >> capability & 1),
                RAISE if held.permitted & held.inheritable & 1 << capability == 0 => {
                    return Err(errno::EPERM.into());
                }
                RAISE => held.ambient |= 1 << capability,
                LOWER => held.ambient &= !(1 << capability),
                CLEAR_ALL => held.ambient = 0,
                _ => return Err(errno::EINVAL.into()),
            }
            Ok(0)
        })
    }

    /// Names the thread after the program that it runs.
    pub(crate) fn name_after(&self, path: &[u8]) {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        *self.shared.name.lock() = name[..name.len().min(15)].to_vec();
    }
}

impl<N: Node> Process<N> {
    /// Returns the identity of the process's first thread; `None` after its end.
    pub(crate) fn creds(&self) -> Option<Arc<Creds>> {
        let threads = self.threads.lock();
        threads.values().next().map(|thread| thread.creds())
    }
}

//! The rest: the machine, limits, randomness, signals, thread-local storage.

use alloc::vec;

use super::Args;
use super::layout::Bytes;
use crate::error::{Result, errno};
use crate::files::MAX_FILES;
use crate::platform::{Cpu, Platform};
use crate::process::Node;
use crate::thread::Thread;

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;
const RLIMIT_STACK: u64 = 3;
const RLIMIT_CORE: u64 = 4;
const RLIMIT_NOFILE: u64 = 7;
const RLIMITS: u64 = 16;
/// Bytes of each field of `struct utsname`.
const NAME_SIZE: usize = 65;
/// Bytes of `struct sysinfo`.
const SYSINFO_SIZE: usize = 112;

impl<N: Node> Thread<N> {
    pub(super) async fn sys_arch_prctl(&mut self, [code, arg, ..]: Args) -> Result<u64> {
        let done = match code {
            ARCH_SET_FS => self.cpu.set_fs_base(arg),
            ARCH_SET_GS => self.cpu.set_gs_base(arg),
            ARCH_GET_FS => {
                return self
                    .memory
                    .write_words(arg, &[self.cpu.fs_base()])
                    .await
                    .map(|()| 0);
            }
            ARCH_GET_GS => {
                return self
                    .memory
                    .write_words(arg, &[self.cpu.gs_base()])
                    .await
                    .map(|()| 0);
            }
            _ => return Err(errno::EINVAL.into()),
        };
        if done { Ok(0) } else { Err(errno::EPERM.into()) }
    }

    pub(super) async fn sys_uname(&self, [into, ..]: Args) -> Result<u64> {
        // The release is what the C library looks at: one that it takes for recent enough.
        let fields = [
            "Linux",
            "tessera",
            "6.1.0-tessera",
            "#1 Tessera",
            "x86_64",
            "(none)",
        ];
        let mut bytes = vec![0; fields.len() * NAME_SIZE];
        for (field, place) in fields.iter().zip(bytes.chunks_exact_mut(NAME_SIZE)) {
            place[..field.len()].copy_from_slice(field.as_bytes());
        }
        self.memory.write(into, &bytes).await?;
        Ok(0)
    }

    pub(super) async fn sys_sysinfo(&self, [into, ..]: Args) -> Result<u64> {
        let cache = self.node.cache().geometry().usable_bytes();
        let mut bytes = Bytes::default().u64(self.now().nanos / 1_000_000_000);
        // Loads; then memory: the cache's size stands for all, as nobody here knows M's.
        for word in [0, 0, 0, cache, cache, 0, 0, 0, 0, 1, 0, 0] {
            bytes = bytes.u64(word);
        }
        self.memory.write(into, &bytes.u32(1).done(SYSINFO_SIZE)).await?;
        Ok(0)
    }

    pub(super) async fn sys_getrandom(&self, [into, len, flags, ..]: Args) -> Result<u64> {
        if flags & !7 != 0 {
            return Err(errno::EINVAL.into());
        }
        let mut piece = [0; 256];
        let mut done = 0;
        let len = len.min(i32::MAX as u64);
        while done < len {
            let want = usize::try_from(len - done).map_or(piece.len(), |left| left.min(piece.len()));
            self.node.platform().random(&mut piece[..want]);
            self.memory
                .write(into.saturating_add(done), &piece[..want])
                .await?;
            done += want as u64;
        }
        Ok(done)
    }

    /// Gives a limit; to set one is accepted and changes nothing.
    pub(super) async fn sys_limit(&self, resource: u64, into: u64) -> Result<u64> {
        if resource >= RLIMITS {
            return Err(errno::EINVAL.into());
        }
        let limits = match resource {
            RLIMIT_STACK => [8 << 20, u64::MAX],
            RLIMIT_CORE => [0, 0],
            RLIMIT_NOFILE => [MAX_FILES as u64; 2],
            _ => [u64::MAX; 2],
        };
        if into != 0 {
            self.memory.write_words(into, &limits).await?;
        }
        Ok(0)
    }

    pub(super) async fn sys_affinity(&self, [pid, len, into, ..]: Args) -> Result<u64> {
        let known =
            pid == 0 || u32::try_from(pid).is_ok_and(|pid| self.node.kernel().process_of(pid).is_some());
        if !known {
            return Err(errno::ESRCH.into());
        }
        let cores = self.node.cores().min(64);
        if len < 8 || !len.is_multiple_of(8) {
            return Err(errno::EINVAL.into());
        }
        self.memory.write_words(into, &[u64::MAX >> (64 - cores)]).await?;
        Ok(8)
    }

    pub(super) async fn sys_getcpu(&self, [cpu, node, ..]: Args) -> Result<u64> {
        let core = u32::try_from(self.core()).unwrap_or(0);
        if cpu != 0 {
            self.memory.write(cpu, &core.to_le_bytes()).await?;
        }
        if node != 0 {
            self.memory.write(node, &[0; 4]).await?;
        }
        Ok(0)
    }

    /// Names and flags of a process: a name is kept nowhere, and nothing here can be dumped or traced.
    pub(super) async fn sys_prctl(&self, [option, arg, ..]: Args) -> Result<u64> {
        const PR_SET_PDEATHSIG: u64 = 1;
        const PR_GET_DUMPABLE: u64 = 3;
        const PR_SET_DUMPABLE: u64 = 4;
        const PR_SET_NAME: u64 = 15;
        const PR_GET_NAME: u64 = 16;
        const PR_CAPBSET_READ: u64 = 23;
        const PR_SET_NO_NEW_PRIVS: u64 = 38;
        const PR_GET_NO_NEW_PRIVS: u64 = 39;
        match option {
            PR_SET_PDEATHSIG | PR_SET_DUMPABLE | PR_SET_NO_NEW_PRIVS | PR_GET_NO_NEW_PRIVS => Ok(0),
            PR_GET_DUMPABLE | PR_CAPBSET_READ => Ok(1),
            PR_SET_NAME => self.memory.read_string(arg, 4096).await.map(|_| 0),
            PR_GET_NAME => {
                let path = self.exec_path.lock().clone();
                let mut name = path.rsplit(|&b| b == b'/').next().unwrap_or_default().to_vec();
                // `TASK_COMM_LEN`, the final zero included.
                name.resize(name.len().min(15), 0);
                name.resize(16, 0);
                self.memory.write(arg, &name).await?;
                Ok(0)
            }
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Tells of a file system as large as M's promise, whichever is asked for.
    pub(super) async fn sys_statfs(&self, into: u64) -> Result<u64> {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        let blocks = self.node.cache().geometry().usable_bytes() / 4096;
        let mut bytes = Bytes::default().u64(TMPFS_MAGIC).u64(4096);
        for word in [blocks, blocks, blocks, 1 << 20, 1 << 20, 0, 255, 4096, 0] {
            bytes = bytes.u64(word);
        }
        self.memory.write(into, &bytes.done(120)).await?;
        Ok(0)
    }
}

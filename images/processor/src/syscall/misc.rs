//! The rest: the machine, limits, randomness, signals, thread-local storage.

use alloc::vec;

use super::Args;
use super::layout::Bytes;
use crate::error::{Result, errno};
use crate::files::MAX_FILES;
use crate::platform::{Cpu, Platform};
use crate::process::{Node, Process};
use crate::signals::{ACTION_SIZE, Signals};

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
/// Bytes of a signal mask.
const MASK_SIZE: u64 = 8;
const SS_DISABLE: u64 = 2;

impl<N: Node> Process<'_, N> {
    pub(super) async fn sys_arch_prctl(&self, cpu: &mut impl Cpu, [code, arg, ..]: Args) -> Result<u64> {
        let done = match code {
            ARCH_SET_FS => cpu.set_fs_base(arg),
            ARCH_SET_GS => cpu.set_gs_base(arg),
            ARCH_GET_FS => return self.memory.write_words(arg, &[cpu.fs_base()]).await.map(|()| 0),
            ARCH_GET_GS => return self.memory.write_words(arg, &[cpu.gs_base()]).await.map(|()| 0),
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
        if pid != 0 && pid != u64::from(self.pid) {
            return Err(errno::ESRCH.into());
        }
        if len < 8 || !len.is_multiple_of(8) {
            return Err(errno::EINVAL.into());
        }
        self.memory.write_words(into, &[1]).await?;
        Ok(8)
    }

    pub(super) async fn sys_sigaction(&mut self, [signal, new, old, size, ..]: Args) -> Result<u64> {
        let signal = Signals::number(signal)?;
        if size != MASK_SIZE || (new != 0 && !Signals::changeable(signal)) {
            return Err(errno::EINVAL.into());
        }
        let mut action = [0; ACTION_SIZE];
        if new != 0 {
            self.memory.read(new, &mut action).await?;
        }
        let before = *self.signals.action(signal);
        if new != 0 {
            *self.signals.action(signal) = action;
        }
        if old != 0 {
            self.memory.write(old, &before).await?;
        }
        Ok(0)
    }

    pub(super) async fn sys_sigprocmask(&mut self, [how, new, old, size, ..]: Args) -> Result<u64> {
        if size != MASK_SIZE {
            return Err(errno::EINVAL.into());
        }
        let before = self.signals.mask;
        let change = if new == 0 {
            None
        } else {
            Some(self.memory.read_u64(new).await?)
        };
        if old != 0 {
            self.memory.write_words(old, &[before]).await?;
        }
        if let Some(set) = change {
            self.signals.set_mask(match how {
                0 => before | set,
                1 => before & !set,
                2 => set,
                _ => return Err(errno::EINVAL.into()),
            })?;
        }
        Ok(0)
    }

    pub(super) async fn sys_sigaltstack(&mut self, [new, old, ..]: Args) -> Result<u64> {
        let before = self.signals.alternate;
        if new != 0 {
            let mut words = [0; 3];
            for (index, word) in words.iter_mut().enumerate() {
                *word = self.memory.read_u64(new.saturating_add(index as u64 * 8)).await?;
            }
            // Flags are an int with padding behind.
            words[1] &= 0xffff_ffff;
            if words[1] & !SS_DISABLE != 0 {
                return Err(errno::EINVAL.into());
            }
            self.signals.alternate = words;
        }
        if old != 0 {
            self.memory.write_words(old, &before).await?;
        }
        Ok(0)
    }

    pub(super) fn sys_kill(&mut self, target: u64, signal: u64) -> Result<u64> {
        // Process 0 is the own group; there is no one else.
        let target = target & 0xffff_ffff;
        if target != 0 && target != u64::from(self.pid) {
            return Err(errno::ESRCH.into());
        }
        if signal != 0 {
            self.signals.send(Signals::number(signal)?)?;
        }
        Ok(0)
    }
}

//! The rest: the machine, randomness, thread-local storage, priorities.

use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering;

use pcache::Machine as _;

use super::layout::Bytes;
use super::{Args, int};
use crate::error::{Result, errno};
use crate::mm::Tables as _;
use crate::platform::{Cpu, Platform};
use crate::process::Node;
use crate::thread::{Shared, Thread};

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;
/// `PER_MASK` and `PER_LINUX32` (Linux `include/uapi/linux/personality.h`).
const DOMAIN: u32 = 0xff;
const LINUX32: u32 = 8;
/// Bytes of each field of `struct utsname`.
const NAME_SIZE: usize = 65;
/// Bytes of `struct sysinfo`.
const SYSINFO_SIZE: usize = 112;

/// The number of `tmpfs` (Linux `include/uapi/linux/magic.h`).
pub(super) const TMPFS_MAGIC: u64 = 0x0102_1994;

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
        if done {
            Ok(0)
        } else {
            Err(errno::EPERM.into())
        }
    }

    /// Tells the process's personality and sets another. Of its bits only `ADDR_NO_RANDOMIZE` and
    /// the one domain of 32-bit programs, which `uname` tells of, have an effect.
    pub(super) fn sys_personality(&self, wish: u64) -> u64 {
        const ASK: u32 = 0xffff_ffff;
        let wish = int(wish);
        let before = if wish == ASK {
            self.process.personality()
        } else {
            self.process.personality.swap(wish, Ordering::Relaxed)
        };
        before.into()
    }

    pub(super) async fn sys_uname(&self, [into, ..]: Args) -> Result<u64> {
        // The release is what the C library looks at: one that it takes for recent enough.
        let name = self.node.kernel().host_name.lock().clone();
        let domain = self.process.personality() & DOMAIN;
        let machine: &[u8] = if domain == LINUX32 {
            b"i686"
        } else {
            b"x86_64"
        };
        let fields: [&[u8]; 6] = [
            b"Linux",
            &name,
            b"6.1.0-tessera",
            b"#1 SMP Tessera",
            machine,
            b"(none)",
        ];
        let mut bytes = vec![0; fields.len() * NAME_SIZE];
        for (field, place) in fields.iter().zip(bytes.chunks_exact_mut(NAME_SIZE)) {
            place[..field.len()].copy_from_slice(field);
        }
        self.memory.write(into, &bytes).await?;
        Ok(0)
    }

    pub(super) async fn sys_sysinfo(&self, [into, ..]: Args) -> Result<u64> {
        let (total, free) = self.memory_of_all().await?;
        let (_, threads) = self.node.kernel().count_threads();
        let mut bytes = Bytes::default().u64(self.now().nanos / 1_000_000_000);
        // Loads, memory, the number of threads; sizes are in bytes.
        for word in [0, 0, 0, total, free, 0, 0, 0, 0, threads as u64, 0, 0] {
            bytes = bytes.u64(word);
        }
        self.memory
            .write(into, &bytes.u32(1).done(SYSINFO_SIZE))
            .await?;
        Ok(0)
    }

    pub(super) async fn sys_getrandom(&self, [into, len, flags, ..]: Args) -> Result<u64> {
        if flags & !7 != 0 {
            return Err(errno::EINVAL.into());
        }
        let mut piece = [0; 256];
        let mut done = 0;
        // A length beyond what is writable fills what there is.
        let len = self
            .memory
            .reachable(into, len.min(i32::MAX as u64), true)?;
        while done < len {
            let want =
                usize::try_from(len - done).map_or(piece.len(), |left| left.min(piece.len()));
            self.node.platform().random(&mut piece[..want]);
            self.memory
                .write(into.saturating_add(done), &piece[..want])
                .await?;
            done += want as u64;
        }
        Ok(done)
    }

    /// Returns a thread by its number; 0 is the caller.
    pub(super) fn thread_named(&self, tid: u64) -> Result<Arc<Shared>> {
        let tid = int(tid);
        if tid == 0 || tid == self.tid() {
            return Ok(self.shared.clone());
        }
        let process = self.node.kernel().process_of(tid).ok_or(errno::ESRCH)?;
        let thread = process.threads.lock().get(&tid).cloned();
        thread.ok_or_else(|| errno::ESRCH.into())
    }

    pub(super) async fn sys_affinity(&self, [tid, len, into, ..]: Args) -> Result<u64> {
        let thread = self.thread_named(tid)?;
        if len < 8 || !len.is_multiple_of(8) {
            return Err(errno::EINVAL.into());
        }
        let cores = self.node.cores().min(64);
        let present = u64::MAX >> (64 - cores);
        self.memory
            .write_words(into, &[thread.affinity() & present])
            .await?;
        Ok(8)
    }

    pub(super) async fn sys_set_affinity(&self, [tid, len, from, ..]: Args) -> Result<u64> {
        let thread = self.thread_named(tid)?;
        let mut bytes = [0; 8];
        let len = usize::try_from(len).map_or(8, |len| len.min(8));
        self.memory.read(from, &mut bytes[..len]).await?;
        let cores = self.node.cores().min(64);
        let allowed = u64::from_le_bytes(bytes) & u64::MAX >> (64 - cores);
        if allowed == 0 {
            return Err(errno::EINVAL.into());
        }
        thread.set_affinity(allowed);
        thread.call(self.node);
        if thread.tid() == self.tid() {
            // The call returns on a core that is allowed.
            self.node.platform().yield_now().await;
        }
        Ok(0)
    }

    /// Makes all threads of the process see memory in one order (membarrier(2)): every core in user
    /// mode with this address space answers an interrupt before this returns, as for a change of
    /// mappings.
    pub(super) fn sys_membarrier(&self, [command, flags, ..]: Args) -> Result<u64> {
        const PRIVATE_EXPEDITED: u32 = 8;
        const REGISTER_PRIVATE_EXPEDITED: u32 = 16;
        if flags != 0 {
            return Err(errno::EINVAL.into());
        }
        match int(command) {
            0 => Ok((PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED).into()),
            PRIVATE_EXPEDITED => {
                let space = self.memory.tables().space();
                self.node.cache().machine().flush_space(space);
                Ok(0)
            }
            REGISTER_PRIVATE_EXPEDITED => Ok(0),
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Tells how the clock is adjusted (adjtimex(2)): not at all.
    pub(super) async fn sys_adjtimex(&self, [into, ..]: Args) -> Result<u64> {
        /// Bytes of `struct timex`, and the places of the tick and of the time in it.
        const TIMEX: usize = 208;
        const TIME_ERROR: u64 = 5;
        let mut bytes = vec![0; TIMEX];
        self.memory.read(into, &mut bytes).await?;
        if bytes[..4] != [0; 4] {
            return Err(errno::EPERM.into());
        }
        let now = self.node.platform().wall_clock();
        let mut put = |at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        // STA_UNSYNC.
        put(40, 0x40);
        put(72, now.as_secs());
        put(80, now.subsec_micros().into());
        put(88, 10_000);
        self.memory.write(into, &bytes).await?;
        Ok(TIME_ERROR)
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

    /// Tells the sizes of a file system of this node's own.
    pub(super) async fn put_tmp_statfs(&self, into: u64) -> Result<u64> {
        let blocks = self.node.cache().geometry().usable_bytes() / 4096;
        let mut bytes = Bytes::default().u64(TMPFS_MAGIC).u64(4096);
        for word in [blocks, blocks, blocks, 1 << 20, 1 << 20, 0, 255, 4096, 0] {
            bytes = bytes.u64(word);
        }
        self.memory.write(into, &bytes.done(120)).await?;
        Ok(0)
    }
}

//! Restartable sequences: the words by which a program knows its core, and critical sections that
//! start over when another thread may have run in between.
//!
//! Linux `include/uapi/linux/rseq.h` and `kernel/rseq.c`. Of the program's `struct rseq`:
//!
//! ```text
//!   0  cpu_id_start      8  rseq_cs: the critical section, 0 outside   20  node_id
//!   4  cpu_id           16  flags                                     24  mm_cid
//! ```
//!
//! Registered in [`Thread::rseq`] by `syscall/rseq.rs`. A thread's turn that follows another
//! thread's on the same core, a move to another core and a signal make
//! [`restart_sequence`](Thread::restart_sequence) run before the program goes on.

use core::sync::atomic::Ordering;

use messages::USER_END;

use crate::deliver::RIP;
use crate::error::{Error, Exit, Result};
use crate::platform::Cpu;
use crate::process::Node;
use crate::signals::SIGSEGV;
use crate::thread::{Shared, Thread};

/// Bytes of `struct rseq` that the kernel keeps (`AT_RSEQ_FEATURE_SIZE`).
pub(crate) const FEATURE_SIZE: usize = 28;
/// Alignment of `struct rseq`, and its size in the first version (`AT_RSEQ_ALIGN`).
pub(crate) const ALIGN: u64 = 32;
/// The core's number before the first and after the last turn (`RSEQ_CPU_ID_UNINITIALIZED`).
const UNINITIALIZED: u32 = u32::MAX;
const CRITICAL_AT: u64 = 8;
const NODE_AT: u64 = 20;

/// The program's area of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Registration {
    /// Address of the program's `struct rseq`.
    pub(crate) addr: u64,
    /// Its length.
    pub(crate) len: u32,
    /// The word before each abort handler.
    pub(crate) signature: u32,
}

/// A critical section (`struct rseq_cs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Critical {
    start: u64,
    len: u64,
    abort: u64,
}

impl Critical {
    /// Reads a section; `None` if Linux would refuse it.
    fn parse(bytes: &[u8; 32]) -> Option<Self> {
        let word = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight of 32 bytes"))
        };
        let (start, len, abort) = (word(8), word(16), word(24));
        let end = start.checked_add(len)?;
        // The first word is version and flags, of which none is supported any more.
        let known = word(0) == 0 && start < USER_END && end < USER_END && abort < USER_END;
        let abort_is_outside = abort.wrapping_sub(start) >= len;
        // The signature lies in the four bytes below.
        (known && abort_is_outside && abort >= 4).then_some(Self { start, len, abort })
    }

    fn holds(&self, ip: u64) -> bool {
        ip.wrapping_sub(self.start) < self.len
    }
}

impl Shared {
    /// Notes whether the thread has registered an area.
    pub(crate) fn set_has_rseq(&self, has: bool) {
        self.has_rseq.store(has, Ordering::Relaxed);
    }

    /// Notes that the core may have run another thread, or is another one than before.
    pub(crate) fn note_turn_of_other(&self) {
        if self.has_rseq.load(Ordering::Relaxed) {
            self.attend();
        }
    }
}

impl<N: Node> Thread<N> {
    /// Brings the program's words up to date, and moves it out of a critical section to the
    /// section's abort handler. Does nothing for a thread that has registered no area.
    ///
    /// # Errors
    ///
    /// Ends the process with SIGSEGV if the area or the section is none (as Linux does: a handler
    /// would meet the same area).
    pub(crate) async fn restart_sequence(&mut self) -> Result<()> {
        let Some(registration) = self.rseq else {
            return Ok(());
        };
        match self.try_restart(registration).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(Error::Errno(_)) => {
                log::warn!(
                    "process {} ends by signal {SIGSEGV}: its rseq area at {:#x} is not one",
                    self.pid,
                    registration.addr
                );
                Err(Error::Ended(Exit::Signal(SIGSEGV)))
            }
            Err(error) => Err(error),
        }
    }

    async fn try_restart(&mut self, registration: Registration) -> Result<bool> {
        let mut area = [0; FEATURE_SIZE];
        self.memory.read(registration.addr, &mut area).await?;
        let (ids, critical) = (&area[..8], &area[8..16]);
        let critical = u64::from_le_bytes(critical.try_into().expect("eight bytes"));
        if critical != 0 && !self.leave_critical(registration, critical, &area).await? {
            return Ok(false);
        }
        let core = u32::try_from(self.core()).unwrap_or(UNINITIALIZED);
        // Cores are fewer than threads may be, so a core's number also serves as mm_cid: no two
        // threads of an address space that run have the same.
        let (now, place) = (words(core, core), words(0, core));
        if ids != now {
            self.memory.write(registration.addr, &now).await?;
        }
        if area[20..28] != place {
            let at = registration.addr + NODE_AT;
            self.memory.write(at, &place).await?;
        }
        Ok(true)
    }

    /// Ends the critical section at `addr`; false if it is none.
    async fn leave_critical(
        &mut self,
        registration: Registration,
        addr: u64,
        area: &[u8; FEATURE_SIZE],
    ) -> Result<bool> {
        let mut bytes = [0; 32];
        self.memory.read(addr, &mut bytes).await?;
        let Some(critical) = Critical::parse(&bytes) else {
            return Ok(false);
        };
        let mut signature = [0; 4];
        self.memory.read(critical.abort - 4, &mut signature).await?;
        if u32::from_le_bytes(signature) != registration.signature {
            return Ok(false);
        }
        let inside = critical.holds(self.cpu.ip());
        if inside && area[16..20] != [0; 4] {
            return Ok(false);
        }
        let place = registration.addr + CRITICAL_AT;
        self.memory.write_words(place, &[0]).await?;
        if inside {
            let mut registers = self.cpu.registers();
            registers[RIP] = critical.abort;
            self.cpu.set_registers(&registers);
        }
        Ok(true)
    }

    /// Writes what an area holds that no thread has registered.
    pub(crate) async fn reset_area(&self, addr: u64) -> Result<()> {
        self.memory.write(addr, &words(0, UNINITIALIZED)).await?;
        self.memory.write(addr + NODE_AT, &words(0, 0)).await
    }
}

fn words(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_le_bytes());
    bytes[4..].copy_from_slice(&second.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(words: [u64; 4]) -> Option<Critical> {
        let mut bytes = [0; 32];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        Critical::parse(&bytes)
    }

    #[test]
    fn sections_are_checked() {
        let good = section([0, 0x1000, 0x10, 0x2000]).unwrap();
        assert!(good.holds(0x1000) && good.holds(0x100f));
        assert!(!good.holds(0x1010) && !good.holds(0xfff));
        for bad in [
            // Version, flags, beyond the program, around the end, abort inside, no signature.
            [1, 0x1000, 0x10, 0x2000],
            [1 << 32, 0x1000, 0x10, 0x2000],
            [0, USER_END, 0x10, 0x2000],
            [0, 0x1000, USER_END, 0x2000],
            [0, 0x1000, u64::MAX, 0x2000],
            [0, 0x1000, 0x10, 0x1008],
            [0, 0x1000, 0x10, 3],
            [0, 0x1000, 0x10, USER_END],
        ] {
            assert_eq!(section(bad), None, "{bad:x?}");
        }
    }
}

//! The firmware's health: its catastrophic error buffer.
//!
//! Firmware that fails writes what happened there, and may be unable to report an event (Linux
//! `mlx4/catas.c`, `poll_catas`, `dump_err_buf`). Only a reset helps.

use alloc::sync::Arc;

use hal::{Duration, Instant, Platform, Registers};
use mlx4_hw::query_fw::QueryFw;
use mlx4_hw::regs;
use spin::Mutex;

use crate::Error;
use crate::error::Step;

/// The interval between two looks at the buffer while it is clear.
const INTERVAL: Duration = Duration::from_secs(1);
/// Dwords of the buffer that are logged at most.
const MOST_DWORDS: usize = 64;

/// The buffer, and when it is looked at next.
pub(crate) struct Health<P: Platform> {
    registers: Arc<P::Bar>,
    offset: usize,
    /// 0 where firmware names no place that is mapped.
    dwords: usize,
    next: Mutex<Instant>,
}

impl<P: Platform> Health<P> {
    /// Finds the buffer where firmware says it is; nothing is watched if that is not in BAR 0.
    pub(crate) fn new(registers: &Arc<P::Bar>, firmware: &QueryFw) -> Self {
        let dwords = usize::try_from(firmware.catastrophic_len.get()).unwrap_or(usize::MAX);
        let dwords = dwords.min(MOST_DWORDS);
        let offset = usize::try_from(firmware.catastrophic_offset.get()).unwrap_or(usize::MAX);
        let end = offset.checked_add(dwords * 4);
        let inside = firmware.catastrophic_bar.get() == 0
            && offset.is_multiple_of(4)
            && end.is_some_and(|end| end <= registers.len());
        if !inside {
            log::warn!("the catastrophic error buffer is at {offset:#x}, where it is not watched");
        }
        Self {
            registers: Arc::clone(registers),
            offset,
            dwords: if inside { dwords } else { 0 },
            next: Mutex::default(),
        }
    }

    /// Looks at the buffer if the last look was long enough ago.
    pub(crate) fn check_at_times(&self, now: Instant) -> Result<(), Error> {
        let mut next = self.next.lock();
        if now < *next {
            return Ok(());
        }
        *next = now + INTERVAL;
        self.check()
    }

    /// Looks at the buffer: its first dword is 0 while the firmware works.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.dwords == 0 {
            return Ok(());
        }
        match self.dword(0) {
            0 => Ok(()),
            regs::GONE => Err(Error::Gone {
                during: Step::Health,
            }),
            first => {
                for index in 0..self.dwords {
                    log::error!(
                        "catastrophic error buffer {index:#04x}: {:08x}",
                        self.dword(index)
                    );
                }
                Err(Error::Catastrophic(first))
            }
        }
    }

    fn dword(&self, index: usize) -> u32 {
        regs::swap(self.registers.read_u32(self.offset + index * 4))
    }
}

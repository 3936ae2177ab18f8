//! Clocks and sleeping.

use core::time::Duration;

use hal::Instant;
use linux_raw_sys::general as nr;

use super::Args;
use crate::error::{Result, errno};
use crate::platform::Platform;
use crate::process::{Node, Process};

const CLOCK_REALTIME: u64 = 0;
const CLOCK_REALTIME_COARSE: u64 = 5;
/// The highest clock that Linux numbers (`CLOCK_TAI`).
const LAST_CLOCK: u64 = 11;
/// Operations of futex(2), and the bits beside them.
const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const FUTEX_WAIT_BITSET: u64 = 9;
const FUTEX_WAKE_BITSET: u64 = 10;
const FUTEX_CLOCK_REALTIME: u64 = 0x100;
const TIMER_ABSTIME: u64 = 1;
/// Clock ticks a second (`USER_HZ`).
const TICK_NANOS: u64 = 10_000_000;

impl<N: Node> Process<'_, N> {
    fn clock(&self, clock: u64) -> Result<Duration> {
        match clock {
            CLOCK_REALTIME | CLOCK_REALTIME_COARSE | LAST_CLOCK => Ok(self.node.platform().wall_clock()),
            // CPU time: what the program ran, as it is the only one here.
            2 | 3 => Ok(self.now().since(self.started)),
            1 | 4 | 6 | 7 => Ok(Duration::from_nanos(self.now().nanos)),
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) async fn sys_clock_gettime(&self, [clock, into, ..]: Args) -> Result<u64> {
        let time = self.clock(clock)?;
        self.memory
            .write_words(into, &[time.as_secs(), u64::from(time.subsec_nanos())])
            .await?;
        Ok(0)
    }

    pub(super) async fn sys_clock_getres(&self, [clock, into, ..]: Args) -> Result<u64> {
        self.clock(clock)?;
        if into != 0 {
            self.memory.write_words(into, &[0, 1]).await?;
        }
        Ok(0)
    }

    pub(super) async fn sys_gettimeofday(&self, [into, zone, ..]: Args) -> Result<u64> {
        let time = self.clock(CLOCK_REALTIME)?;
        if into != 0 {
            self.memory
                .write_words(into, &[time.as_secs(), u64::from(time.subsec_micros())])
                .await?;
        }
        if zone != 0 {
            self.memory.write_words(zone, &[0]).await?;
        }
        Ok(0)
    }

    pub(super) async fn sys_time(&self, [into, ..]: Args) -> Result<u64> {
        let seconds = self.clock(CLOCK_REALTIME)?.as_secs();
        if into != 0 {
            self.memory.write_words(into, &[seconds]).await?;
        }
        Ok(seconds)
    }

    /// A `struct timespec`.
    async fn timespec(&self, addr: u64) -> Result<Duration> {
        let (seconds, nanos) = (
            self.memory.read_u64(addr).await?,
            self.memory.read_u64(addr.saturating_add(8)).await?,
        );
        match u32::try_from(nanos) {
            Ok(nanos @ ..1_000_000_000) if seconds.cast_signed() >= 0 => Ok(Duration::new(seconds, nanos)),
            _ => Err(errno::EINVAL.into()),
        }
    }

    pub(super) async fn sys_nanosleep(&self, addr: u64) -> Result<u64> {
        let time = self.timespec(addr).await?;
        self.node.platform().sleep_until(self.now() + time).await;
        Ok(0)
    }

    pub(super) async fn sys_clock_nanosleep(&self, [clock, flags, addr, ..]: Args) -> Result<u64> {
        let now = self.clock(clock)?;
        let mut time = self.timespec(addr).await?;
        if flags & TIMER_ABSTIME != 0 {
            time = time.saturating_sub(now);
        }
        self.node.platform().sleep_until(self.now() + time).await;
        Ok(0)
    }

    fn ran(&self) -> Duration {
        let now: Instant = self.now();
        now.since(self.started)
    }

    pub(super) async fn sys_getrusage(&self, [_, into, ..]: Args) -> Result<u64> {
        let mut words = [0; 18];
        words[0] = self.ran().as_secs();
        words[1] = u64::from(self.ran().subsec_micros());
        self.memory.write_words(into, &words).await?;
        Ok(0)
    }

    pub(super) async fn sys_times(&self, [into, ..]: Args) -> Result<u64> {
        let ticks = u64::try_from(self.ran().as_nanos()).unwrap_or(u64::MAX) / TICK_NANOS;
        if into != 0 {
            self.memory.write_words(into, &[ticks, 0, 0, 0]).await?;
        }
        Ok(self.now().nanos / TICK_NANOS)
    }

    /// Waits on and wakes a word of memory. There is no other thread: nobody is ever woken, and who waits does so until its
    /// time is up.
    pub(super) async fn sys_futex(&mut self, [addr, op, value, timeout, ..]: Args) -> Result<u64> {
        if !addr.is_multiple_of(4) {
            return Err(errno::EINVAL.into());
        }
        let absolute = match op & FUTEX_COMMAND {
            FUTEX_WAKE | FUTEX_WAKE_BITSET => return Ok(0),
            FUTEX_WAIT => false,
            FUTEX_WAIT_BITSET => true,
            _ => return self.unknown(nr::__NR_futex.into()),
        };
        let mut word = [0; 4];
        self.memory.read(addr, &mut word).await?;
        if u64::from(u32::from_le_bytes(word)) != value & 0xffff_ffff {
            return Err(errno::EAGAIN.into());
        }
        if timeout == 0 {
            loop {
                self.node
                    .platform()
                    .sleep_until(self.now() + Duration::from_secs(3600))
                    .await;
            }
        }
        let mut time = self.timespec(timeout).await?;
        if absolute && op & FUTEX_CLOCK_REALTIME != 0 {
            time = time.saturating_sub(self.node.platform().wall_clock());
        } else if absolute {
            time = time.saturating_sub(Duration::from_nanos(self.now().nanos));
        }
        self.node.platform().sleep_until(self.now() + time).await;
        Err(errno::ETIMEDOUT.into())
    }

    pub(super) async fn sys_yield(&self) -> Result<u64> {
        self.node.platform().yield_now().await;
        Ok(0)
    }
}

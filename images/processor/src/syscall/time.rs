//! Clocks and sleeping.

use core::time::Duration;

use super::Args;
use crate::error::{Result, errno};
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;
use hal::Instant;

const CLOCK_REALTIME: u64 = 0;
const CLOCK_REALTIME_COARSE: u64 = 5;
/// The highest clock that Linux numbers (`CLOCK_TAI`).
const LAST_CLOCK: u64 = 11;
const TIMER_ABSTIME: u64 = 1;
/// Clock ticks a second (`USER_HZ`).
const TICK_NANOS: u64 = 10_000_000;

impl<N: Node> Thread<N> {
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
    pub(super) async fn timespec(&self, addr: u64) -> Result<Duration> {
        let (seconds, nanos) = (
            self.memory.read_u64(addr).await?,
            self.memory.read_u64(addr.saturating_add(8)).await?,
        );
        match u32::try_from(nanos) {
            Ok(nanos @ ..1_000_000_000) if seconds.cast_signed() >= 0 => Ok(Duration::new(seconds, nanos)),
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Sleeps, and tells what was left if a signal ended it.
    async fn sleep(&self, time: Duration, left: u64) -> Result<u64> {
        let end = self.now() + time;
        let slept = self.unless_called(self.node.platform().sleep_until(end)).await;
        if slept.is_err() {
            if left != 0 {
                let rest = end.since(self.now());
                let words = [rest.as_secs(), u64::from(rest.subsec_nanos())];
                self.memory.write_words(left, &words).await?;
            }
            return Err(errno::EINTR.into());
        }
        Ok(0)
    }

    pub(super) async fn sys_nanosleep(&self, [addr, left, ..]: Args) -> Result<u64> {
        let time = self.timespec(addr).await?;
        self.sleep(time, left).await
    }

    pub(super) async fn sys_clock_nanosleep(&self, [clock, flags, addr, left, ..]: Args) -> Result<u64> {
        let now = self.clock(clock)?;
        let time = self.timespec(addr).await?;
        if flags & TIMER_ABSTIME != 0 {
            self.sleep(time.saturating_sub(now), 0).await
        } else {
            self.sleep(time, left).await
        }
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

    pub(super) async fn sys_yield(&self) -> Result<u64> {
        self.node.platform().yield_now().await;
        Ok(0)
    }
}

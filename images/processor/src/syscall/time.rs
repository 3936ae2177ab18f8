//! Clocks and sleeping.

use core::time::Duration;

use super::{Args, int};
use crate::error::{Result, errno};
use crate::platform::Platform;
use crate::process::Node;
use crate::thread::Thread;

const CLOCK_REALTIME: u64 = 0;
const CLOCK_PROCESS: u64 = 2;
const CLOCK_THREAD: u64 = 3;
const CLOCK_REALTIME_COARSE: u64 = 5;
const CLOCK_REALTIME_ALARM: u64 = 8;
/// The highest clock that Linux numbers (`CLOCK_TAI`).
const LAST_CLOCK: u64 = 11;
const TIMER_ABSTIME: u64 = 1;
/// Clock ticks a second (`USER_HZ`).
const TICK_NANOS: u64 = 10_000_000;

impl<N: Node> Thread<N> {
    pub(super) fn clock(&self, clock: u64) -> Result<Duration> {
        match clock {
            CLOCK_REALTIME | CLOCK_REALTIME_COARSE | CLOCK_REALTIME_ALARM | LAST_CLOCK => {
                Ok(self.node.platform().wall_clock())
            }
            CLOCK_PROCESS => Ok(self.process_time()),
            CLOCK_THREAD => Ok(self.shared.time.total(self.now())),
            1 | 4 | 6 | 7 | 9 => Ok(Duration::from_nanos(self.now().nanos)),
            other => self.cpu_clock(int(other)),
        }
    }

    /// Returns the CPU time of the process or thread that a clock's number names (Linux
    /// `include/linux/posix-timers_types.h`).
    fn cpu_clock(&self, clock: u32) -> Result<Duration> {
        const PER_THREAD: u32 = 4;
        const WHICH: u32 = 3;
        let id = (!clock.cast_signed() >> 3).cast_unsigned();
        if clock.cast_signed() >= 0 || clock & WHICH == WHICH {
            return Err(errno::EINVAL.into());
        }
        if clock & PER_THREAD == 0 {
            if id == 0 || id == self.pid {
                return Ok(self.process_time());
            }
            let process = self.node.kernel().process(id).ok_or(errno::EINVAL)?;
            return Ok(process.cpu_time.total());
        }
        if id == 0 {
            return Ok(self.shared.time.total(self.now()));
        }
        let thread = self.process.threads.lock().get(&id).cloned();
        Ok(thread.ok_or(errno::EINVAL)?.time.total(self.now()))
    }

    pub(super) async fn sys_clock_gettime(&self, [clock, into, ..]: Args) -> Result<u64> {
        let time = self.clock(clock)?;
        self.memory
            .write_words(into, &[time.as_secs(), u64::from(time.subsec_nanos())])
            .await?;
        Ok(0)
    }

    /// Refuses to set a clock: the node's goes by the machine's.
    pub(super) fn sys_clock_settime(&self, [clock, ..]: Args) -> Result<u64> {
        match clock {
            CLOCK_REALTIME => Err(errno::EPERM.into()),
            _ => Err(errno::EINVAL.into()),
        }
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
            Ok(nanos @ ..1_000_000_000) if seconds.cast_signed() >= 0 => {
                Ok(Duration::new(seconds, nanos))
            }
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Sleeps, and tells what was left if a signal ended it.
    async fn sleep(&self, time: Duration, left: u64) -> Result<u64> {
        let end = self.now() + time;
        let slept = self
            .unless_called(self.node.platform().sleep_until(end))
            .await;
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

    pub(super) async fn sys_clock_nanosleep(
        &self,
        [clock, flags, addr, left, ..]: Args,
    ) -> Result<u64> {
        let now = self.clock(clock)?;
        let time = self.timespec(addr).await?;
        if flags & TIMER_ABSTIME != 0 {
            self.sleep(time.saturating_sub(now), 0).await
        } else {
            self.sleep(time, left).await
        }
    }

    pub(super) async fn sys_getrusage(&self, [who, into, ..]: Args) -> Result<u64> {
        const SELF: i32 = 0;
        const CHILDREN: i32 = -1;
        const THREAD: i32 = 1;
        let usage = match int(who).cast_signed() {
            SELF => self.usage(self.process_time()),
            THREAD => self.usage(self.shared.time.total(self.now())),
            CHILDREN => rusage(self.process.cpu_time.of_children(), 0, 0),
            _ => return Err(errno::EINVAL.into()),
        };
        self.memory.write_words(into, &usage).await?;
        Ok(0)
    }

    fn usage(&self, time: Duration) -> Usage {
        rusage(time, self.memory.faults(), self.memory.resident())
    }

    pub(super) async fn sys_times(&self, [into, ..]: Args) -> Result<u64> {
        let ticks =
            |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / TICK_NANOS;
        if into != 0 {
            let own = ticks(self.process_time());
            let children = ticks(self.process.cpu_time.of_children());
            self.memory
                .write_words(into, &[own, 0, children, 0])
                .await?;
        }
        Ok(self.now().nanos / TICK_NANOS)
    }

    pub(super) async fn sys_yield(&self) -> Result<u64> {
        self.node.platform().yield_now().await;
        Ok(0)
    }
}

/// The words of `struct rusage`.
pub(super) type Usage = [u64; 18];

/// Returns a `struct rusage`. All time is the program's: the kernel's is not told apart.
pub(super) fn rusage(time: Duration, faults: u64, resident_bytes: u64) -> Usage {
    let mut words = [0; 18];
    words[0] = time.as_secs();
    words[1] = time.subsec_micros().into();
    words[4] = resident_bytes / 1024;
    words[8] = faults;
    words
}

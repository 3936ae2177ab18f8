//! Timers: alarm, interval timers, POSIX timers, timer files; and files that signals are read from.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use hal::Instant;
use linux_raw_sys::general as nr;

use super::{Args, int};
use crate::error::{Result, errno};
use crate::files::{Kind, O_NONBLOCK, OpenFile};
use crate::object::Object;
use crate::platform::Platform;
use crate::process::{Node, Process};
use crate::signal_file::{SIGNAL_SIZE, SignalFile, encode};
use crate::signals::{SI_KERNEL, SIGALRM, SIGPROF, SIGVTALRM, SignalInfo, number};
use crate::thread::Thread;
use crate::timer::{Clock, LONGEST, Target, Timer};
use crate::timer_file::TimerFile;

const CLOCK_REALTIME: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;
const CLOCK_PROCESS_CPUTIME_ID: u32 = 2;
const CLOCK_THREAD_CPUTIME_ID: u32 = 3;
const CLOCK_BOOTTIME: u32 = 7;
const CLOCK_REALTIME_ALARM: u32 = 8;
const CLOCK_BOOTTIME_ALARM: u32 = 9;
const CLOCK_TAI: u32 = 11;
const TIMER_ABSTIME: u64 = 1;
const TFD_TIMER_CANCEL_ON_SET: u64 = 2;
const O_CLOEXEC: u64 = 0o2_000_000;
/// `sigev_notify`.
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const SIGEV_THREAD_ID: u32 = 4;
/// Timers of `timer_create` that a process may have. Linux bounds them by `RLIMIT_SIGPENDING`.
const MAX_TIMERS: usize = 4096;
/// The value of `which` of setitimer for all CPU time.
const ITIMER_PROF: usize = 2;

/// Returns whether a clock's absolute times are those since 1970.
fn is_wall(clock: u32) -> bool {
    matches!(clock, CLOCK_REALTIME | CLOCK_REALTIME_ALARM | CLOCK_TAI)
}

impl<N: Node> Thread<N> {
    /// Answers the calls of this family; `None` for others.
    pub(super) async fn timer_call(&mut self, number: u32, a: Args) -> Option<Result<u64>> {
        Some(match number {
            nr::__NR_alarm => self.sys_alarm(a[0]),
            nr::__NR_getitimer => self.sys_getitimer(a).await,
            nr::__NR_setitimer => self.sys_setitimer(a).await,
            nr::__NR_timer_create => self.sys_timer_create(a).await,
            nr::__NR_timer_settime => self.sys_timer_settime(a).await,
            nr::__NR_timer_gettime => self.sys_timer_gettime(a).await,
            nr::__NR_timer_getoverrun => self.sys_timer_getoverrun(a[0]),
            nr::__NR_timer_delete => self.sys_timer_delete(a[0]),
            nr::__NR_timerfd_create => self.sys_timerfd_create(a),
            nr::__NR_timerfd_settime => self.sys_timerfd_settime(a).await,
            nr::__NR_timerfd_gettime => self.sys_timerfd_gettime(a).await,
            nr::__NR_signalfd => self.sys_signalfd([a[0], a[1], a[2], 0, 0, 0]).await,
            nr::__NR_signalfd4 => self.sys_signalfd(a).await,
            _ => return None,
        })
    }

    /// Returns a timer of `setitimer`, after making it if it was never set.
    fn interval_timer(&self, which: usize) -> Arc<Timer> {
        let mut timers = self.process.timers.lock();
        let timer = timers.interval[which].get_or_insert_with(|| {
            let (signal, clock) = match which {
                0 => (SIGALRM, Clock::Machine),
                ITIMER_PROF => (SIGPROF, Clock::Process),
                _ => (SIGVTALRM, Clock::Process),
            };
            let info = SignalInfo {
                signal,
                code: SI_KERNEL,
                fields: [0; 2],
            };
            let target = Target::Process(self.pid, info);
            Arc::new(Timer::new(self.node.kernel().timers(), clock, target))
        });
        timer.clone()
    }

    /// Returns the time of a clock, as timers count it.
    fn timer_now(&self, clock: Clock) -> Instant {
        match clock {
            Clock::Machine | Clock::Wall => self.now(),
            Clock::Process => Instant::from_nanos(0) + self.process_time(),
        }
    }

    /// Sets a timer to expire after `first`, which zero disarms, and then at each `interval`.
    fn arm(&self, timer: &Arc<Timer>, first: Duration, interval: Duration) -> (Duration, Duration) {
        let now = self.timer_now(timer.clock);
        let next = (!first.is_zero()).then(|| now + first.min(LONGEST));
        self.process
            .set_timer(timer, now, next, interval.min(LONGEST))
    }

    fn sys_alarm(&self, seconds: u64) -> Result<u64> {
        let timer = self.interval_timer(0);
        let first = Duration::from_secs(int(seconds).into());
        let (left, _) = self.arm(&timer, first, Duration::ZERO);
        // Part of a second left counts as one.
        let rounded = left.as_secs() + u64::from(left.subsec_nanos() >= 500_000_000);
        Ok(if left.is_zero() { 0 } else { rounded.max(1) })
    }

    fn which(raw: u64) -> Result<usize> {
        let which = usize::try_from(int(raw)).ok().filter(|&which| which < 3);
        which.ok_or_else(|| errno::EINVAL.into())
    }

    async fn sys_getitimer(&self, [which, into, ..]: Args) -> Result<u64> {
        let timer = self.interval_timer(Self::which(which)?);
        let left = timer.left(self.timer_now(timer.clock));
        self.put_itimerval(into, left).await
    }

    async fn put_itimerval(
        &self,
        into: u64,
        (left, interval): (Duration, Duration),
    ) -> Result<u64> {
        let micros = |time: Duration| [time.as_secs(), u64::from(time.subsec_micros())];
        let ([a, b], [c, d]) = (micros(interval), micros(left));
        self.memory.write_words(into, &[a, b, c, d]).await?;
        Ok(0)
    }

    async fn sys_setitimer(&self, [which, new, old, ..]: Args) -> Result<u64> {
        let which = Self::which(which)?;
        let (mut first, mut interval) = (Duration::ZERO, Duration::ZERO);
        if new != 0 {
            interval = self.timeval(new).await?;
            first = self.timeval(new.saturating_add(16)).await?;
        }
        let timer = self.interval_timer(which);
        let before = self.arm(&timer, first, interval);
        if old != 0 {
            self.put_itimerval(old, before).await?;
        }
        Ok(0)
    }

    /// Reads a `struct timeval`.
    pub(super) async fn timeval(&self, addr: u64) -> Result<Duration> {
        let seconds = self.memory.read_u64(addr).await?;
        let micros = self.memory.read_u64(addr.saturating_add(8)).await?;
        match u32::try_from(micros) {
            Ok(micros @ ..1_000_000) if seconds.cast_signed() >= 0 => {
                Ok(Duration::new(seconds, micros * 1000))
            }
            _ => Err(errno::EINVAL.into()),
        }
    }

    async fn sys_timer_create(&self, [clock, event, into, ..]: Args) -> Result<u64> {
        let clock = match int(clock) {
            CLOCK_PROCESS_CPUTIME_ID => Clock::Process,
            // Not told apart from the process's: there is no clock of one thread for timers.
            CLOCK_THREAD_CPUTIME_ID => Clock::Process,
            clock if is_wall(clock) => Clock::Wall,
            CLOCK_MONOTONIC | CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM => Clock::Machine,
            _ => return Err(errno::EINVAL.into()),
        };
        let (mut value, mut signal, mut notify, mut tid) =
            (None, u32::from(SIGALRM), SIGEV_SIGNAL, 0);
        if event != 0 {
            value = Some(self.memory.read_u64(event).await?);
            let how = self.memory.read_u64(event.saturating_add(8)).await?;
            (signal, notify) = (int(how), int(how >> 32));
            tid = int(self.memory.read_u64(event.saturating_add(16)).await?);
        }
        if self.process.timers.lock().by_id.len() >= MAX_TIMERS {
            return Err(errno::EAGAIN.into());
        }
        let id = self.process.timers.lock().new_id();
        let value = value.unwrap_or(id.cast_unsigned().into());
        let info = || number(signal.into()).map(|signal| SignalInfo::timer(signal, id, value));
        let target = match notify {
            SIGEV_NONE => Target::Nobody,
            SIGEV_SIGNAL | SIGEV_THREAD => Target::Process(self.pid, info()?),
            SIGEV_THREAD_ID if self.process.threads.lock().contains_key(&tid) => {
                Target::Thread(self.pid, tid, info()?)
            }
            _ => return Err(errno::EINVAL.into()),
        };
        self.memory.write(into, &id.to_le_bytes()).await?;
        let timer = Arc::new(Timer::new(self.node.kernel().timers(), clock, target));
        self.process.timers.lock().by_id.insert(id, timer);
        Ok(0)
    }

    fn timer(&self, id: u64) -> Result<Arc<Timer>> {
        let timers = self.process.timers.lock();
        let timer = timers.by_id.get(&int(id).cast_signed()).cloned();
        timer.ok_or_else(|| errno::EINVAL.into())
    }

    /// Reads a `struct itimerspec`: the interval and the first expiry.
    async fn itimerspec(&self, addr: u64) -> Result<(Duration, Duration)> {
        let interval = self.timespec(addr).await?;
        Ok((interval, self.timespec(addr.saturating_add(16)).await?))
    }

    async fn put_itimerspec(
        &self,
        into: u64,
        (left, interval): (Duration, Duration),
    ) -> Result<u64> {
        let nanos = |time: Duration| [time.as_secs(), u64::from(time.subsec_nanos())];
        let ([a, b], [c, d]) = (nanos(interval), nanos(left));
        self.memory.write_words(into, &[a, b, c, d]).await?;
        Ok(0)
    }

    /// Returns the time to an absolute one, which may be past: the shortest time then.
    fn until(&self, at: Duration, clock: Clock) -> Duration {
        if at.is_zero() {
            return at;
        }
        let now = match clock {
            Clock::Wall => self.node.platform().wall_clock(),
            clock => Duration::from_nanos(self.timer_now(clock).nanos),
        };
        at.saturating_sub(now).max(Duration::from_nanos(1))
    }

    async fn sys_timer_settime(&self, [id, flags, new, old, ..]: Args) -> Result<u64> {
        let timer = self.timer(id)?;
        let (interval, mut first) = self.itimerspec(new).await?;
        if flags & TIMER_ABSTIME != 0 {
            first = self.until(first, timer.clock);
        }
        let before = self.arm(&timer, first, interval);
        if old != 0 {
            self.put_itimerspec(old, before).await?;
        }
        Ok(0)
    }

    async fn sys_timer_gettime(&self, [id, into, ..]: Args) -> Result<u64> {
        let timer = self.timer(id)?;
        let left = timer.left(self.timer_now(timer.clock));
        self.put_itimerspec(into, left).await
    }

    fn sys_timer_getoverrun(&self, id: u64) -> Result<u64> {
        self.timer(id)?;
        let overruns = self.process.overruns.lock();
        Ok(overruns.get(&int(id).cast_signed()).copied().unwrap_or(0))
    }

    fn sys_timer_delete(&self, id: u64) -> Result<u64> {
        let timer = self.timer(id)?;
        self.arm(&timer, Duration::ZERO, Duration::ZERO);
        self.process
            .timers
            .lock()
            .by_id
            .remove(&int(id).cast_signed());
        self.process.overruns.lock().remove(&int(id).cast_signed());
        Ok(0)
    }

    fn sys_timerfd_create(&self, [clock, flags, ..]: Args) -> Result<u64> {
        let clock = int(clock);
        let known = is_wall(clock) && clock != CLOCK_TAI
            || matches!(
                clock,
                CLOCK_MONOTONIC | CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM
            );
        if !known || flags & !(O_CLOEXEC | u64::from(O_NONBLOCK)) != 0 {
            return Err(errno::EINVAL.into());
        }
        let clock = if is_wall(clock) {
            Clock::Wall
        } else {
            Clock::Machine
        };
        let file = TimerFile::new(self.node.kernel().timers(), clock);
        let status = int(flags) & O_NONBLOCK | 2;
        self.add_object(Arc::new(file), status, flags & O_CLOEXEC != 0)
    }

    /// Returns the timer of a file.
    fn timer_of(&self, fd: u64) -> Result<Arc<Timer>> {
        let file = self.file(fd)?;
        let Kind::Object(object) = &file.kind else {
            return Err(errno::EINVAL.into());
        };
        Ok(object.as_timer().ok_or(errno::EINVAL)?.clone())
    }

    async fn sys_timerfd_settime(&self, [fd, flags, new, old, ..]: Args) -> Result<u64> {
        if flags & !(TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET) != 0 {
            return Err(errno::EINVAL.into());
        }
        let (interval, mut first) = self.itimerspec(new).await?;
        let timer = self.timer_of(fd)?;
        if flags & TIMER_ABSTIME != 0 {
            first = self.until(first, timer.clock);
        }
        let before = self.arm(&timer, first, interval);
        if old != 0 {
            self.put_itimerspec(old, before).await?;
        }
        Ok(0)
    }

    async fn sys_timerfd_gettime(&self, [fd, into, ..]: Args) -> Result<u64> {
        let timer = self.timer_of(fd)?;
        self.put_itimerspec(into, timer.left(self.now())).await
    }

    async fn sys_signalfd(&self, [fd, mask, size, flags, ..]: Args) -> Result<u64> {
        if size != 8 || flags & !(O_CLOEXEC | u64::from(O_NONBLOCK)) != 0 {
            return Err(errno::EINVAL.into());
        }
        let set = self.memory.read_u64(mask).await?;
        if int(fd).cast_signed() == -1 {
            let file = SignalFile::new(set, self.process.signalled.clone());
            let status = int(flags) & O_NONBLOCK | 2;
            return self.add_object(Arc::new(file), status, flags & O_CLOEXEC != 0);
        }
        let file = self.file(fd)?;
        let Kind::Object(object) = &file.kind else {
            return Err(errno::EINVAL.into());
        };
        object.as_signals().ok_or(errno::EINVAL)?.replace(set);
        Ok(int(fd).into())
    }

    /// Reads signals of this thread and its process from a signal file.
    pub(crate) async fn read_signals(
        &self,
        file: &OpenFile,
        object: &Arc<dyn Object>,
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        let signals = object.as_signals().ok_or(errno::EINVAL)?;
        let most = usize::try_from(count).unwrap_or(usize::MAX) / SIGNAL_SIZE;
        if most == 0 {
            return Err(errno::EINVAL.into());
        }
        let take = || self.take_signal(signals.set());
        let attempt = || match take() {
            None if file.nonblocking() => Some(Err(errno::EAGAIN)),
            None => None,
            Some(info) => Some(Ok(info)),
        };
        let first = self.unless_called(object.queue().until(attempt)).await??;
        let mut bytes = Vec::from(encode(&first));
        while bytes.len() / SIGNAL_SIZE < most {
            let Some(info) = take() else { break };
            bytes.extend(encode(&info));
        }
        self.memory.write(addr, &bytes).await?;
        Ok(bytes.len() as u64)
    }
}

impl<N: Node> Process<N> {
    /// Notes what the program is told of a timer's overrun when it asks.
    pub(crate) fn note_overrun(&self, info: &SignalInfo) {
        if let Some(id) = info.timer_id() {
            self.overruns.lock().insert(id, info.overrun());
        }
    }

    /// Deletes the timers that a new program does not inherit.
    pub(crate) fn delete_timers(&self) {
        let timers = core::mem::take(&mut self.timers.lock().by_id);
        for timer in timers.values() {
            let now = Instant::from_nanos(0);
            self.set_timer(timer, now, None, Duration::ZERO);
        }
        self.overruns.lock().clear();
    }
}

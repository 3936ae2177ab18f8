//! Timers of programs: expiry times and targets.
//!
//! A [`Timer`] is pure state. [`Timers`] holds the armed ones that follow the wall clock by the
//! time of their next expiry; one task ([`Kernel::keep_timers`]) waits for the earliest and expires
//! what is due. Timers of CPU time are held by their process and looked at when one of its threads
//! leaves the CPU.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::time::Duration;

use hal::Instant;
use spin::Mutex;

use crate::kernel::Kernel;
use crate::platform::Platform;
use crate::process::{Node, Process};
use crate::signals::{SI_KERNEL, SignalInfo};
use crate::wait::{WaitQueue, either};

/// The longest time to the next expiry, beyond which a timer never expires: 292 years fit into
/// nanoseconds of 64 bits, and a deadline is the sum of two.
pub(crate) const LONGEST: Duration = Duration::from_secs(1 << 32);
/// The shortest interval that is kept: below it expiries are counted, but not acted on one by one.
const SHORTEST: Duration = Duration::from_micros(10);

/// The clock that a timer follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clock {
    /// The machine's time.
    Machine,
    /// The machine's time; absolute times are those since 1970.
    Wall,
    /// The CPU time of the timer's process.
    Process,
}

/// Receivers of an expiry.
#[derive(Debug)]
pub(crate) enum Target {
    /// No target: the timer is only queried.
    Nobody,
    /// A process by its number, by a signal. Timers end with their process.
    Process(u32, SignalInfo),
    /// A thread of a process, by a signal.
    Thread(u32, u32, SignalInfo),
    /// The waiters of a timer file.
    File(Arc<WaitQueue>),
}

/// The setting of a timer, in the time of its clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Setting {
    /// The next expiry; `None` while the timer is disarmed.
    next: Option<Instant>,
    interval: Duration,
    /// Expiries that were not read yet.
    expired: u64,
    /// The number under which [`Timers`] holds the timer.
    ticket: u64,
}

impl Setting {
    /// Counts the expiries until `now` and arms the timer for the next; returns how many there
    /// were.
    fn expire(&mut self, now: Instant) -> u64 {
        let Some(next) = self.next.filter(|&next| next <= now) else {
            return 0;
        };
        let late = now.since(next);
        let count = if self.interval.is_zero() {
            self.next = None;
            1
        } else {
            let interval = u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX);
            let periods = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX) / interval + 1;
            let ahead = Duration::from_nanos(interval.saturating_mul(periods));
            self.next = Some(next + ahead.max(SHORTEST));
            periods
        };
        self.expired = self.expired.saturating_add(count);
        count
    }
}

/// A timer.
#[derive(Debug)]
pub(crate) struct Timer {
    pub(crate) clock: Clock,
    target: Target,
    setting: Mutex<Setting>,
    timers: Arc<Timers>,
}

impl Timer {
    pub(crate) fn new(timers: &Arc<Timers>, clock: Clock, target: Target) -> Self {
        Self {
            clock,
            target,
            setting: Mutex::default(),
            timers: timers.clone(),
        }
    }

    /// Sets the next expiry and the interval; `None` disarms. Returns the setting before.
    fn set(&self, next: Option<Instant>, interval: Duration, ticket: u64) -> Setting {
        let new = Setting {
            next,
            interval,
            expired: 0,
            ticket,
        };
        core::mem::replace(&mut self.setting.lock(), new)
    }

    /// Returns the time to the next expiry, zero if there is none, and the interval.
    pub(crate) fn left(&self, now: Instant) -> (Duration, Duration) {
        let setting = self.setting.lock();
        // A timer that is armed has some time left, however late it is seen.
        let left = |next: Instant| next.since(now).max(Duration::from_nanos(1));
        (setting.next.map_or(Duration::ZERO, left), setting.interval)
    }

    /// Takes the expiries that were not read yet.
    pub(crate) fn take_expired(&self) -> u64 {
        core::mem::take(&mut self.setting.lock().expired)
    }

    /// Returns whether there are unread expiries.
    pub(crate) fn has_expired(&self) -> bool {
        self.setting.lock().expired > 0
    }

    fn next(&self) -> Option<Instant> {
        self.setting.lock().next
    }

    /// Notifies the target of `count` expiries.
    fn tell<N: Node>(&self, node: &N, count: u64) {
        let (Target::Process(pid, info) | Target::Thread(pid, _, info)) = &self.target else {
            if let Target::File(queue) = &self.target {
                queue.wake();
            }
            return;
        };
        let Some(process) = node.kernel().process(*pid) else {
            return;
        };
        let info = info.with_overrun(count - 1);
        if let Target::Thread(_, tid, _) = &self.target {
            let thread = process.threads.lock().get(tid).cloned();
            if let Some(thread) = thread {
                process.send_thread(&thread, info);
            }
        } else {
            process.send(info);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let setting = *self.setting.get_mut();
        if let Some(at) = setting.next {
            self.timers
                .armed
                .lock()
                .by_time
                .remove(&(at, setting.ticket));
        }
    }
}

/// The armed timers that follow the machine's time.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    armed: Mutex<Armed>,
    /// Woken when the earliest expiry has become another.
    changed: WaitQueue,
}

#[derive(Debug, Default)]
struct Armed {
    by_time: BTreeMap<(Instant, u64), Weak<Timer>>,
    last_ticket: u64,
}

impl Timers {
    /// Arms a timer of the machine's time, or disarms it. Returns the time that was left, and the
    /// interval.
    fn set(
        &self,
        timer: &Arc<Timer>,
        now: Instant,
        next: Option<Instant>,
        interval: Duration,
    ) -> (Duration, Duration) {
        let before = timer.left(now);
        let earliest = {
            let mut armed = self.armed.lock();
            armed.last_ticket += 1;
            let ticket = armed.last_ticket;
            let old = timer.set(next, interval, ticket);
            if let Some(at) = old.next {
                armed.by_time.remove(&(at, old.ticket));
            }
            if let Some(at) = next {
                armed.by_time.insert((at, ticket), Arc::downgrade(timer));
            }
            armed.by_time.keys().next().map(|&(at, _)| at)
        };
        if next.is_some() && earliest == next {
            self.changed.wake();
        }
        before
    }

    #[cfg(test)]
    pub(crate) fn armed_count(&self) -> usize {
        self.armed.lock().by_time.len()
    }

    fn next(&self) -> Option<Instant> {
        self.armed.lock().by_time.keys().next().map(|&(at, _)| at)
    }

    /// Counts the expiries of timers that are due, and arms those with an interval again. Returns
    /// the timers and their counts.
    fn take_due(&self, now: Instant) -> Vec<(Arc<Timer>, u64)> {
        let mut due = Vec::new();
        let mut armed = self.armed.lock();
        while let Some(entry) = armed
            .by_time
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
        {
            let Some(timer) = entry.remove().upgrade() else {
                continue;
            };
            let (count, setting) = {
                let mut setting = timer.setting.lock();
                (setting.expire(now), *setting)
            };
            if let Some(next) = setting.next {
                let key = (next, setting.ticket);
                armed.by_time.insert(key, Arc::downgrade(&timer));
            }
            due.push((timer, count));
        }
        due
    }
}

impl<N: Node> Kernel<N> {
    /// Expires timers, for as long as it is polled.
    pub async fn keep_timers(&self, node: &'static N) {
        let timers = self.timers();
        loop {
            let changes = timers.changed.changes();
            let changed = timers
                .changed
                .until(|| (timers.changed.changes() != changes).then_some(()));
            match timers.next() {
                None => changed.await,
                Some(next) => {
                    either(changed, node.platform().sleep_until(next)).await;
                }
            }
            self.expire_timers(node);
        }
    }

    /// Expires the timers that are due.
    pub(crate) fn expire_timers(&self, node: &N) {
        for (timer, count) in self.timers().take_due(node.platform().now()) {
            if count > 0 {
                timer.tell(node, count);
            }
        }
    }
}

/// The timers of one process.
#[derive(Debug)]
pub(crate) struct ProcessTimers {
    /// Those of `setitimer`: of real time, of the program's CPU time, and of all its CPU time.
    pub(crate) interval: [Option<Arc<Timer>>; 3],
    /// Those of `timer_create`, by number.
    pub(crate) by_id: BTreeMap<i32, Arc<Timer>>,
    last_id: i32,
}

impl Default for ProcessTimers {
    fn default() -> Self {
        Self {
            interval: [None, None, None],
            by_id: BTreeMap::new(),
            last_id: -1,
        }
    }
}

impl ProcessTimers {
    /// Returns a number that no timer of the process has.
    pub(crate) fn new_id(&mut self) -> i32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1).max(0);
            if !self.by_id.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    fn of_cpu_time(&self) -> Vec<Arc<Timer>> {
        let all = self.interval.iter().flatten().chain(self.by_id.values());
        all.filter(|timer| timer.clock == Clock::Process)
            .cloned()
            .collect()
    }
}

impl<N: Node> Process<N> {
    /// Arms or disarms a timer of this process. `now` and `next` are in the time of its clock.
    pub(crate) fn set_timer(
        &self,
        timer: &Arc<Timer>,
        now: Instant,
        next: Option<Instant>,
        interval: Duration,
    ) -> (Duration, Duration) {
        match timer.clock {
            Clock::Machine | Clock::Wall => {
                self.node.kernel().timers().set(timer, now, next, interval)
            }
            Clock::Process => {
                let before = timer.left(now);
                timer.set(next, interval, 0);
                self.note_cpu_timers();
                before
            }
        }
    }

    /// Notes when the next timer of CPU time expires, or a limit is reached.
    pub(crate) fn note_cpu_timers(&self) {
        let timers = self.timers.lock().of_cpu_time();
        let next = timers.iter().filter_map(|timer| timer.next()).min();
        let limit = self.limits.lock().next_cpu_time();
        self.cpu_time.set_limit(next.into_iter().chain(limit).min());
    }

    /// Expires the timers of CPU time that are due, and enforces its limit.
    pub(crate) fn expire_cpu_timers(&self, now: Instant) {
        let timers = self.timers.lock().of_cpu_time();
        for timer in timers {
            let count = timer.setting.lock().expire(now);
            if count > 0 {
                timer.tell(self.node, count);
            }
        }
        let signal = self.limits.lock().spend(now);
        if let Some(signal) = signal {
            self.send(SignalInfo::from_process(signal, SI_KERNEL, 0));
        }
        self.note_cpu_timers();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Instant {
        Instant::from_nanos(count * 1_000_000)
    }

    #[test]
    fn a_late_look_counts_every_period_and_keeps_their_phase() {
        let mut setting = Setting {
            next: Some(ms(10)),
            interval: Duration::from_millis(5),
            ..Setting::default()
        };
        assert_eq!(setting.expire(ms(9)), 0);
        assert_eq!(setting.expire(ms(10)), 1);
        assert_eq!(setting.next, Some(ms(15)));
        assert_eq!(setting.expire(ms(31)), 4, "15, 20, 25, 30");
        assert_eq!((setting.next, setting.expired), (Some(ms(35)), 5));
    }

    #[test]
    fn one_shot_timers_expire_once() {
        let mut setting = Setting {
            next: Some(ms(1)),
            ..Setting::default()
        };
        assert_eq!((setting.expire(ms(100)), setting.next), (1, None));
        assert_eq!(setting.expire(ms(200)), 0);
    }

    #[test]
    fn tiny_intervals_do_not_expire_at_every_look() {
        let mut setting = Setting {
            next: Some(ms(1)),
            interval: Duration::from_nanos(1),
            ..Setting::default()
        };
        assert_eq!(setting.expire(ms(2)), 1_000_001);
        assert!(setting.next.unwrap() >= ms(1) + SHORTEST);
    }
}

//! Alarms, interval timers, POSIX timers, timer files, signal files, CPU time.

use super::*;
use crate::signals::SignalInfo;

const SIGALRM: u64 = 14;
const SIGUSR1: u64 = 10;
const NONBLOCK: u64 = 0o4000;
/// Above all times that a test's calls take on the fake's clock.
const LATER: u64 = 1 << 40;

impl Run {
    fn words(&self, addr: u64, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(addr, &bytes)
    }

    fn word(&self, addr: u64) -> u64 {
        u64::from_le_bytes(self.get(addr, 8).try_into().unwrap())
    }

    /// Moves the clock on and expires what is due.
    fn pass(&mut self, nanos: u64) {
        let clock = &self.node.platform.clock;
        clock.set(clock.get() + nanos);
        self.node.kernel.expire_timers(self.node);
    }

    fn block(&mut self, signal: u64) {
        self.words(DATA, &[1 << (signal - 1)]);
        assert_eq!(self.call(nr::__NR_rt_sigprocmask, &[0, DATA, 0, 8]), Ok(0));
    }

    fn pending(&mut self) -> u64 {
        self.call(nr::__NR_rt_sigpending, &[DATA, 8]).unwrap();
        self.word(DATA)
    }
}

#[test]
fn an_alarm_ends_the_program_with_142() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(run.call(nr::__NR_alarm, &[10]), Ok(0));
    assert_eq!(
        run.call(nr::__NR_alarm, &[5]),
        Ok(10),
        "what was left of the first"
    );
    run.pass(4_000_000_000);
    assert!(!run.thread.called());
    run.pass(1_000_000_000);
    assert!(run.thread.called());
    assert_eq!(run.go(), Ok(Exit::Signal(14)));
    assert_eq!(Exit::Signal(14).status(), 142);
}

#[test]
fn an_alarm_is_disarmed_and_not_inherited() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_alarm, &[1]).unwrap();
    run.call(nr::__NR_fork, &[]).unwrap();
    let child = node.started.borrow_mut().pop().unwrap();
    assert_eq!(run.call(nr::__NR_alarm, &[0]), Ok(1));
    run.pass(LATER);
    assert!(!run.thread.called() && !child.called());
    node.block_on(child.run());
    run.end();
}

#[test]
fn interval_timers_repeat_and_tell_what_is_left() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.block(SIGALRM);
    // Every 100 ms, at first after 250 ms.
    run.words(DATA, &[0, 100_000, 0, 250_000]);
    assert_eq!(run.call(nr::__NR_setitimer, &[0, DATA, 0]), Ok(0));
    run.pass(249_000_000);
    assert_eq!(run.pending(), 0);
    run.pass(1_000_000);
    assert_eq!(run.pending(), 1 << (SIGALRM - 1));
    run.call(nr::__NR_getitimer, &[0, DATA]).unwrap();
    let (interval, left) = (run.word(DATA + 8), run.word(DATA + 24));
    assert_eq!(interval, 100_000);
    assert!((90_000..=100_000).contains(&left), "{left}");
    let wrong = run.call(nr::__NR_setitimer, &[3, DATA, 0]);
    assert_eq!(errno_of(wrong), Some(errno::EINVAL));
    run.words(DATA, &[0, 0, 0, 1_000_000]);
    let wrong = run.call(nr::__NR_setitimer, &[0, DATA, 0]);
    assert_eq!(
        errno_of(wrong),
        Some(errno::EINVAL),
        "a million microseconds"
    );
}

#[test]
fn posix_timers_count_overruns_and_carry_their_value() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.block(SIGUSR1);
    // struct sigevent: value, signal and SIGEV_SIGNAL.
    run.words(DATA + 64, &[0xabcd, SIGUSR1, 0]);
    assert_eq!(
        run.call(nr::__NR_timer_create, &[1, DATA + 64, DATA + 128]),
        Ok(0)
    );
    let id = run.word(DATA + 128) & 0xffff_ffff;
    run.words(DATA, &[0, 10_000_000, 0, 10_000_000]);
    assert_eq!(run.call(nr::__NR_timer_settime, &[id, 0, DATA, 0]), Ok(0));
    run.pass(10_000_000);
    run.pass(20_000_000);
    run.words(DATA, &[1 << (SIGUSR1 - 1)]);
    let taken = run.call(nr::__NR_rt_sigtimedwait, &[DATA, DATA + 256, 0, 8]);
    assert_eq!(taken, Ok(SIGUSR1));
    let info = run.get(DATA + 256, 32);
    assert_eq!(info[8..12], (-2i32).to_le_bytes(), "SI_TIMER");
    assert_eq!(
        info[20..24],
        2u32.to_le_bytes(),
        "two expiries more than one"
    );
    assert_eq!(info[24..32], 0xabcd_u64.to_le_bytes());
    assert_eq!(run.call(nr::__NR_timer_getoverrun, &[id]), Ok(2));
    assert_eq!(run.call(nr::__NR_timer_delete, &[id]), Ok(0));
    let gone = run.call(nr::__NR_timer_gettime, &[id, DATA]);
    assert_eq!(errno_of(gone), Some(errno::EINVAL));
    run.pass(LATER);
    assert_eq!(run.pending(), 0);
}

#[test]
fn absolute_times_of_both_clocks_are_met() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    for (clock, base) in [(0, 1_700_000_000_000_000_000), (1, 0)] {
        let fd = run
            .call(nr::__NR_timerfd_create, &[clock, NONBLOCK])
            .unwrap();
        let at = base + node.platform.clock.get() + 1_000_000_000;
        run.words(DATA, &[0, 0, at / 1_000_000_000, at % 1_000_000_000]);
        assert_eq!(run.call(nr::__NR_timerfd_settime, &[fd, 1, DATA, 0]), Ok(0));
        run.pass(900_000_000);
        let early = run.call(nr::__NR_read, &[fd, DATA, 8]);
        assert_eq!(errno_of(early), Some(errno::EAGAIN), "clock {clock}");
        run.pass(100_000_000);
        assert_eq!(
            run.call(nr::__NR_read, &[fd, DATA, 8]),
            Ok(8),
            "clock {clock}"
        );
        assert_eq!(run.word(DATA), 1);
    }
}

#[test]
fn a_timer_file_is_ready_when_it_expired_and_gone_with_its_last_number() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.call(nr::__NR_timerfd_create, &[1, 0]).unwrap();
    run.words(DATA, &[0, 1_000_000, 0, 1_000_000]);
    run.call(nr::__NR_timerfd_settime, &[fd, 0, DATA, 0])
        .unwrap();
    run.words(DATA + 64, &[fd | 1 << 32]);
    assert_eq!(run.call(nr::__NR_poll, &[DATA + 64, 1, 0]), Ok(0));
    run.pass(5_000_000);
    assert_eq!(run.call(nr::__NR_poll, &[DATA + 64, 1, 0]), Ok(1));
    assert_eq!(run.call(nr::__NR_read, &[fd, DATA, 8]), Ok(8));
    assert_eq!(run.word(DATA), 5);
    let short = run.call(nr::__NR_read, &[fd, DATA, 7]);
    assert_eq!(errno_of(short), Some(errno::EINVAL));
    run.call(nr::__NR_close, &[fd]).unwrap();
    assert_eq!(node.kernel.timers().armed_count(), 0);
}

#[test]
fn signals_are_read_from_a_file() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.block(SIGUSR1);
    run.words(DATA, &[1 << (SIGUSR1 - 1)]);
    let fd = run
        .call(nr::__NR_signalfd4, &[u64::MAX, DATA, 8, NONBLOCK])
        .unwrap();
    let none = run.call(nr::__NR_read, &[fd, DATA, 128]);
    assert_eq!(errno_of(none), Some(errno::EAGAIN));
    run.call(nr::__NR_kill, &[1, SIGUSR1]).unwrap();
    run.words(DATA + 64, &[fd | 1 << 32]);
    assert_eq!(run.call(nr::__NR_poll, &[DATA + 64, 1, 0]), Ok(1));
    assert_eq!(run.call(nr::__NR_read, &[fd, DATA, 4096]), Ok(128));
    let told = run.get(DATA, 16);
    assert_eq!(
        (told[0], &told[12..16]),
        (10, &1u32.to_le_bytes()[..]),
        "from process 1"
    );
    assert_eq!(run.pending(), 0);
}

#[test]
fn cpu_time_is_that_of_the_thread_s_turns() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_fork, &[]).unwrap();
    let child = node.started.borrow_mut().pop().unwrap();
    node.block_on(child.run());
    // Time that passes while nobody runs is nobody's.
    run.pass(LATER);
    run.call(nr::__NR_clock_gettime, &[2, DATA]).unwrap();
    assert_eq!(run.word(DATA), 0);
    assert!(run.call(nr::__NR_wait4, &[u64::MAX, 0, 0, DATA]).is_ok());
    assert!(
        run.word(DATA) == 0 && run.word(DATA + 8) < 1000,
        "the child's few turns"
    );
    let nobody = run.call(nr::__NR_getrusage, &[7, DATA]);
    assert_eq!(errno_of(nobody), Some(errno::EINVAL));
    let nobody = run.call(
        nr::__NR_clock_gettime,
        &[(!77u64 << 3 | 2) & 0xffff_ffff, DATA],
    );
    assert_eq!(errno_of(nobody), Some(errno::EINVAL));
}

#[test]
fn timers_of_cpu_time_expire_by_it() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    // ITIMER_PROF after 1 ms of CPU time.
    run.words(DATA, &[0, 0, 0, 1000]);
    assert_eq!(run.call(nr::__NR_setitimer, &[2, DATA, 0]), Ok(0));
    run.pass(LATER);
    assert!(!run.thread.called());
    run.thread.process.cpu_time.add(999_000);
    run.thread
        .process
        .expire_cpu_timers(hal::Instant::from_nanos(999_000));
    assert!(!run.thread.called());
    assert!(
        run.thread.process.cpu_time.add(1_000).is_some(),
        "the limit is reached"
    );
    run.thread
        .process
        .expire_cpu_timers(hal::Instant::from_nanos(1_000_000));
    assert_eq!(run.go(), Ok(Exit::Signal(27)));
}

#[test]
fn a_process_and_its_children_end_with_their_cpu_time() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.words(DATA, &[2, 3]);
    // RLIMIT_CPU.
    assert_eq!(run.call(nr::__NR_setrlimit, &[0, DATA]), Ok(0));
    run.call(nr::__NR_fork, &[]).unwrap();
    let child = node.started.borrow_mut().pop().unwrap();
    assert_eq!(child.process.cpu_time.add(1_999_000_000), None);
    assert!(child.process.cpu_time.add(1_000_000).is_some());
    child
        .process
        .expire_cpu_timers(hal::Instant::from_nanos(2_000_000_000));
    node.block_on(child.run());
    run.call(nr::__NR_wait4, &[u64::MAX, DATA, 0, 0]).unwrap();
    assert_eq!(run.get(DATA, 4), [24, 0, 0, 0], "SIGXCPU");
    // A handler or none: the hard limit ends it.
    run.thread
        .process
        .expire_cpu_timers(hal::Instant::from_nanos(3_000_000_000));
    assert_eq!(run.go(), Ok(Exit::Signal(9)));
}

#[test]
fn a_wait_for_a_signal_takes_it_from_its_handler() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    // A handler, SA_RESTORER and its restorer; nothing is blocked.
    run.words(DATA, &[0x40_0200, 0x0400_0000, 0x40_0300, 0]);
    assert_eq!(
        run.call(nr::__NR_rt_sigaction, &[SIGUSR1, DATA, 0, 8]),
        Ok(0)
    );
    run.words(DATA, &[1 << (SIGUSR1 - 1)]);
    let wait = SystemCall {
        number: nr::__NR_rt_sigtimedwait.into(),
        args: [DATA, 0, 0, 8, 0, 0],
    };
    let process = run.thread.process.clone();
    {
        let mut waiting = std::pin::pin!(run.thread.system_call(wait));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        process.send(SignalInfo::from_process(10, 0, 1));
        let taken = node.block_on(waiting);
        assert_eq!(taken, Ok(Outcome::Value(SIGUSR1)));
    }
    assert_eq!(run.thread.due(), 0);
    run.end();
}

/// A program that waits for its children's ends does this: SIGCHLD is ignored by default.
#[test]
fn a_wait_takes_what_is_blocked_though_it_is_ignored_or_stops() {
    for signal in [17_u8, 20, 23] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        run.words(DATA, &[1 << (signal - 1)]);
        // SIG_BLOCK.
        let blocked = run.call(nr::__NR_rt_sigprocmask, &[0, DATA, 0, 8]);
        assert_eq!(blocked, Ok(0));
        let wait = SystemCall {
            number: nr::__NR_rt_sigtimedwait.into(),
            args: [DATA, 0, 0, 8, 0, 0],
        };
        let process = run.thread.process.clone();
        {
            let mut waiting = std::pin::pin!(run.thread.system_call(wait));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            process.send(SignalInfo::from_process(signal, 0, 1));
            let taken = node.try_block_on(waiting.as_mut());
            assert_eq!(taken, Some(Ok(Outcome::Value(signal.into()))));
        }
        assert!(!process.is_stopped());
    }
}

//! Processes, threads, signals and pipes.

use super::*;
use crate::error::errno;

const PROT_RW: u64 = 3;
const PRIVATE: u64 = 0x22;
const SHARED: u64 = 0x21;
/// The flags of glibc's `pthread_create`.
const THREAD: u64 = 0x3d_0f00;
const SIGUSR1: u64 = 10;
const SIGCHLD: u64 = 17;
const HANDLER: u64 = 0x40_0200;
const RESTORER: u64 = 0x40_0300;

fn script(call: u32, args: &[u64]) -> (Trap, SystemCall) {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let number = call.into();
    (Trap::Syscall, SystemCall { number, args: all })
}

fn u32_at(run: &Run, at: u64) -> u32 {
    u32::from_le_bytes(run.get(at, 4).try_into().unwrap())
}

/// Sets a handler for a signal.
fn handle(run: &mut Run, signal: u64, flags: u64) {
    let words = [HANDLER, flags | 0x0400_0000, RESTORER, 0];
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word: &u64| word.to_le_bytes())
        .collect();
    run.put(DATA, &bytes);
    assert_eq!(
        run.call(nr::__NR_rt_sigaction, &[signal, DATA, 0, 8]),
        Ok(0)
    );
}

#[test]
fn a_thread_shares_memory_and_files_and_tells_of_its_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let stack = run.map(65_536).unwrap() + 65_536;
    let (parent_tid, child_tid) = (DATA, DATA + 8);
    let tid = run.call(
        nr::__NR_clone,
        &[THREAD, stack, parent_tid, child_tid, DATA + 64],
    );
    let tid = tid.unwrap();
    assert_eq!(u64::from(u32_at(&run, parent_tid)), tid);
    run.put(child_tid, &7u32.to_le_bytes());
    let mut thread = node.started.borrow_mut().pop().unwrap();
    assert_eq!((thread.cpu.sp(), thread.cpu.fs_base()), (stack, DATA + 64));
    assert_eq!((thread.pid(), u64::from(thread.tid())), (1, tid));
    thread.cpu.script = vec![
        script(nr::__NR_close, &[2]),
        script(nr::__NR_gettid, &[]),
        script(nr::__NR_exit, &[3]),
    ];
    node.block_on(thread.run());
    assert_eq!(
        u32_at(&run, child_tid),
        0,
        "the word is cleared for those that join"
    );
    assert_eq!(errno_of(run.call(nr::__NR_close, &[2])), Some(errno::EBADF));
    assert_eq!(node.ended(1), None, "the process goes on");
    run.end();
    assert_eq!(node.ended(1), Some(Exit::Code(0)));
    assert!(node.memory.lent.borrow().is_empty());
}

#[test]
fn a_snapshot_lists_processes_and_their_threads() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let stack = run.map(65_536).unwrap() + 65_536;
    let alone = node.block_on(crate::top::snapshot(node));
    assert_eq!(alone.len(), 2, "a thread alone has no line: {alone:?}");
    assert!(alone[1].starts_with("process\t1\t0\t0\t"), "{alone:?}");
    let tid = run.call(nr::__NR_clone, &[THREAD, stack, DATA, DATA + 8, DATA + 64]);
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    let lines = node.block_on(crate::top::snapshot(node));
    let fields = |index: usize| lines[index].split('\t').collect::<Vec<_>>();
    assert_eq!((fields(0)[0], fields(0).len()), ("all", 6));
    assert_eq!(fields(0)[2..4], ["2", "3"], "processes and threads");
    assert_eq!((fields(1).len(), fields(1)[5]), (11, "2"), "threads of it");
    assert_eq!(fields(3)[..3], ["thread", "1", &tid.unwrap().to_string()]);
    assert_eq!(fields(3).len(), 7);
    assert_eq!(fields(4)[..3], ["process", &child.to_string(), "1"]);
    let mapped: u64 = fields(4)[7].parse().unwrap();
    assert!(mapped >= 65_536, "{lines:?}");
}

#[test]
fn threads_of_a_node_have_a_limit() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let mut threads = 1;
    let refused = loop {
        match run.call(nr::__NR_clone, &[THREAD, DATA + 256]) {
            Ok(_) => threads += 1,
            refused => break refused,
        }
    };
    assert_eq!((threads, errno_of(refused)), (4096, Some(errno::EAGAIN)));
    let fork = run.call(nr::__NR_fork, &[]);
    assert_eq!(errno_of(fork), Some(errno::EAGAIN));
}

#[test]
fn exit_group_ends_every_thread() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_clone, &[THREAD, DATA + 256]).unwrap();
    run.thread.cpu.script = vec![script(nr::__NR_exit_group, &[9])];
    node.block_on(run.thread.run());
    assert_eq!(node.ended(1), None);
    let mut thread = node.started.borrow_mut().pop().unwrap();
    thread.cpu.script = vec![script(nr::__NR_exit_group, &[1])];
    node.block_on(thread.run());
    assert_eq!(node.ended(1), Some(Exit::Code(9)), "the first to say how");
}

#[test]
fn a_child_is_waited_for_and_leaves_nothing() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let private = run.mmap(0, 4096, PROT_RW, PRIVATE).unwrap();
    let both = run.mmap(0, 4096, PROT_RW, SHARED).unwrap();
    run.put(private, b"parent");
    let pid = run.call(nr::__NR_fork, &[]).unwrap();
    let nohang = run.call(nr::__NR_wait4, &[u64::MAX, 0, 1, 0]);
    assert_eq!(nohang, Ok(0), "it has not ended");
    let mut child = node.started.borrow_mut().pop().unwrap();
    assert_eq!(
        node.block_on(child.memory().write(private, b"child ")),
        Ok(())
    );
    assert_eq!(node.block_on(child.memory().write(both, b"shared")), Ok(()));
    child.cpu.script = vec![
        script(nr::__NR_getppid, &[]),
        script(nr::__NR_exit_group, &[0x105]),
    ];
    node.block_on(child.run());
    assert_eq!(run.get(private, 6), b"parent");
    assert_eq!(run.get(both, 6), b"shared");
    let waited = run.call(nr::__NR_wait4, &[u64::MAX, DATA, 0, 0]);
    assert_eq!((waited, u32_at(&run, DATA)), (Ok(pid), 0x500));
    let again = run.call(nr::__NR_wait4, &[u64::MAX, DATA, 0, 0]);
    assert_eq!(errno_of(again), Some(errno::ECHILD));
    run.end();
    node.drain();
    assert_eq!(node.cache.lines_in_use(), (0, 0));
    assert!(node.memory.lent.borrow().is_empty());
    assert_eq!(
        (node.supply.committed(), node.memory.promised.get()),
        (0, 0)
    );
}

#[test]
fn orphans_are_the_first_process_s_and_ignored_children_nobody_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    let mut first = node.started.borrow_mut().pop().unwrap();
    let fork = SystemCall {
        number: nr::__NR_fork.into(),
        args: [0; 6],
    };
    let grandchild = node.block_on(first.system_call(fork)).unwrap();
    let mut orphan = node.started.borrow_mut().pop().unwrap();
    node.block_on(first.run());
    let getppid = SystemCall {
        number: nr::__NR_getppid.into(),
        args: [0; 6],
    };
    assert_eq!(
        node.block_on(orphan.system_call(getppid)),
        Ok(Outcome::Value(1))
    );
    node.block_on(orphan.run());
    assert_eq!(run.call(nr::__NR_wait4, &[child, 0, 0, 0]), Ok(child));
    let waited = run.call(nr::__NR_wait4, &[u64::MAX, 0, 0, 0]);
    assert_eq!(waited.map(Outcome::Value), Ok(grandchild));
    run.put(DATA, &1u64.to_le_bytes());
    run.put(DATA + 8, &[0; 24]);
    assert_eq!(
        run.call(nr::__NR_rt_sigaction, &[SIGCHLD, DATA, 0, 8]),
        Ok(0)
    );
    run.call(nr::__NR_fork, &[]).unwrap();
    node.run_started();
    let none = run.call(nr::__NR_wait4, &[u64::MAX, 0, 0, 0]);
    assert_eq!(errno_of(none), Some(errno::ECHILD));
}

/// A process that has lost its parent could else end the first one by a signal of its choice.
#[test]
fn children_end_with_a_signal_of_their_choice_for_their_makers_only() {
    const REAL_TIME: u64 = 39;
    const NO_SIGNAL: u64 = 200;
    const CLONE_PARENT: u64 = 0x8000;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let sibling = run.call(nr::__NR_clone, &[CLONE_PARENT | REAL_TIME, 0]);
    assert_eq!(
        errno_of(sibling),
        Some(errno::EINVAL),
        "of the first process"
    );
    run.call(nr::__NR_fork, &[]).unwrap();
    let mut first = node.started.borrow_mut().pop().unwrap();
    for flags in [REAL_TIME, CLONE_PARENT | REAL_TIME] {
        let clone = SystemCall {
            number: nr::__NR_clone.into(),
            args: [flags, 0, 0, 0, 0, 0],
        };
        node.block_on(first.system_call(clone)).unwrap();
    }
    let orphans = std::mem::take(&mut *node.started.borrow_mut());
    node.block_on(first.run());
    assert_eq!(orphans.len(), 2);
    orphans
        .into_iter()
        .for_each(|orphan| node.block_on(orphan.run()));
    assert_eq!(run.thread.due() & 1 << (REAL_TIME - 1), 0);
    for (signal, heard) in [(NO_SIGNAL, false), (REAL_TIME, true)] {
        run.call(nr::__NR_clone, &[signal, 0]).unwrap();
        node.run_started();
        assert_eq!(run.thread.due() & 1 << (REAL_TIME - 1) != 0, heard);
    }
}

/// Sending these looks at the tree of processes, which an ending process has locked.
#[test]
fn a_child_s_end_may_stop_continue_and_kill_its_parent() {
    const SIGKILL: u8 = 9;
    const SIGCONT: u8 = 18;
    const SIGSTOP: u8 = 19;
    const SIGTSTP: u8 = 20;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_fork, &[]).unwrap();
    let mut parent = node.started.borrow_mut().pop().unwrap();
    // Another group, whose keeper is the first process.
    let group = SystemCall {
        number: nr::__NR_setpgid.into(),
        args: [0; 6],
    };
    node.block_on(parent.system_call(group)).unwrap();
    let stops = [
        (SIGTSTP, true),
        (SIGCONT, false),
        (SIGSTOP, true),
        (SIGKILL, false),
    ];
    for (signal, stopped) in stops {
        let clone = SystemCall {
            number: nr::__NR_clone.into(),
            args: [signal.into(), 0, 0, 0, 0, 0],
        };
        node.block_on(parent.system_call(clone)).unwrap();
        node.run_started();
        assert_eq!(parent.process.is_stopped(), stopped, "signal {signal}");
    }
    node.block_on(parent.run());
    run.put(DATA, &[0; 4]);
    run.call(nr::__NR_wait4, &[u64::MAX, DATA, 0, 0]).unwrap();
    assert_eq!(u32_at(&run, DATA), SIGKILL.into());
}

#[test]
fn execve_brings_another_program_and_keeps_what_it_should() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let kept = run.open("/big").unwrap();
    run.put(DATA, b"/script\0");
    let closed = run.call(nr::__NR_open, &[DATA, 0o2_000_000]).unwrap();
    handle(&mut run, SIGUSR1, 0);
    let old = run.map(4096).unwrap();
    let thread = run.call(nr::__NR_clone, &[THREAD, DATA + 256]).unwrap();
    run.put(DATA, b"/bin/program\0");
    let strings: Vec<u8> = [DATA, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    run.put(DATA + 64, &strings);
    let exec = SystemCall {
        number: nr::__NR_execve.into(),
        args: [DATA, DATA + 64, DATA + 72, 0, 0, 0],
    };
    // The other thread must end before.
    let other = node.started.borrow_mut().pop().unwrap();
    assert_eq!(u64::from(other.tid()), thread);
    let mut exec = Box::pin(run.thread.system_call(exec));
    assert!(node.try_block_on(exec.as_mut()).is_none());
    node.block_on(other.run());
    assert_eq!(node.block_on(exec), Ok(Outcome::Registers));
    assert_eq!((run.thread.cpu.ip(), run.thread.tid()), (0x40_0100, 1));
    assert!(run.unreadable(old));
    assert_eq!(run.call(nr::__NR_lseek, &[kept, 0, 2]), Ok(100_000));
    assert_eq!(
        errno_of(run.call(nr::__NR_lseek, &[closed, 0, 2])),
        Some(errno::EBADF)
    );
    assert_eq!(
        run.call(nr::__NR_rt_sigaction, &[SIGUSR1, 0, DATA, 8]),
        Ok(0)
    );
    assert_eq!(run.get(DATA, 8), [0; 8]);
    run.put(DATA, b"/big\0");
    let refused = run.call(nr::__NR_execve, &[DATA, 0, 0]);
    assert_eq!(
        errno_of(refused),
        Some(errno::ENOEXEC),
        "the old program goes on"
    );
    run.end();
    assert!(node.memory.lent.borrow().is_empty());
}

#[test]
fn a_parent_that_lent_its_memory_waits_for_the_child() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let vfork = SystemCall {
        number: nr::__NR_vfork.into(),
        args: [0; 6],
    };
    let mut call = Box::pin(run.thread.system_call(vfork));
    assert!(node.try_block_on(call.as_mut()).is_none());
    let child = node.started.borrow_mut().pop().unwrap();
    node.block_on(child.run());
    assert!(matches!(node.block_on(call), Ok(Outcome::Value(2..))));
}

#[test]
fn a_parent_that_hears_of_no_ends_stops_waiting_with_its_last_child() {
    const IGNORE: u64 = 1;
    const NO_CHILD_WAIT: u64 = 2;
    for (handler, flags) in [(IGNORE, 0), (HANDLER, NO_CHILD_WAIT)] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        let action = [handler, flags, 0, 0].map(u64::to_le_bytes).concat();
        run.put(DATA, &action);
        let call = [17, DATA, 0, 8];
        assert_eq!(run.call(nr::__NR_rt_sigaction, &call), Ok(0));
        run.call(nr::__NR_fork, &[]).unwrap();
        let child = node.started.borrow_mut().pop().unwrap();
        let process = run.thread.process.clone();
        let wait = SystemCall {
            number: nr::__NR_wait4.into(),
            args: [u64::MAX, 0, 0, 0, 0, 0],
        };
        let mut waits = Box::pin(run.thread.system_call(wait));
        assert!(node.try_block_on(waits.as_mut()).is_none());
        let before = process.children_changed.changes();
        node.block_on(child.run());
        assert!(process.children_changed.changes() > before, "it is woken");
        let ended = node.block_on(waits);
        assert!(
            matches!(ended, Err(Error::Errno(errno::ECHILD))),
            "{ended:?}"
        );
    }
}

#[test]
fn futexes_wake_those_that_wait() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_clone, &[THREAD, DATA + 256]).unwrap();
    let mut other = node.started.borrow_mut().pop().unwrap();
    run.put(DATA, &7u32.to_le_bytes());
    let wait = SystemCall {
        number: nr::__NR_futex.into(),
        args: [DATA, 0x80, 7, 0, 0, 0],
    };
    let mut waits = Box::pin(other.system_call(wait));
    assert!(node.try_block_on(waits.as_mut()).is_none());
    assert_eq!(run.call(nr::__NR_futex, &[DATA + 4, 0x81, 1]), Ok(0));
    assert_eq!(run.call(nr::__NR_futex, &[DATA, 0x81, 1]), Ok(1));
    assert_eq!(node.block_on(waits), Ok(Outcome::Value(0)));
    // A page that has left is brought before the word is looked at.
    let at = run.map(200 * 4096).unwrap();
    for page in 0..200 {
        run.put(at + page * 4096, &[1]);
    }
    let different = run.call(nr::__NR_futex, &[DATA, 0x80, 8, 0]);
    assert_eq!(errno_of(different), Some(errno::EAGAIN));
}

#[test]
fn handlers_run_and_return_to_where_they_came_from() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    handle(&mut run, SIGUSR1, 4);
    let before = run.thread.cpu.registers();
    assert_eq!(run.call(nr::__NR_kill, &[1, SIGUSR1]), Ok(0));
    node.block_on(run.thread.step()).unwrap();
    let sp = run.thread.cpu.sp();
    assert_eq!((run.thread.cpu.ip(), (sp + 8) % 16), (HANDLER, 0));
    assert_eq!(run.thread.cpu.registers()[8], SIGUSR1, "rdi");
    assert_eq!(run.get(sp, 8), RESTORER.to_le_bytes());
    assert_eq!(u64::from(u32_at(&run, sp + 312)), SIGUSR1, "siginfo");
    assert_eq!(u32_at(&run, sp + 312 + 16), 1, "its sender");
    assert!(run.thread.shared.masks(10));
    // The handler returns: its ret takes the restorer's address, which makes the call.
    run.thread.cpu.set_sp(sp + 8);
    let back = SystemCall {
        number: nr::__NR_rt_sigreturn.into(),
        args: [0; 6],
    };
    assert_eq!(
        node.block_on(run.thread.system_call(back)),
        Ok(Outcome::Registers)
    );
    assert_eq!(run.thread.cpu.registers(), before);
    assert!(!run.thread.shared.masks(10));
}

#[test]
fn blocked_signals_wait_and_unhandled_ones_end_the_program() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, &(1u64 << 9).to_le_bytes());
    assert_eq!(run.call(nr::__NR_rt_sigprocmask, &[0, DATA, 0, 8]), Ok(0));
    assert_eq!(run.call(nr::__NR_tkill, &[1, SIGUSR1]), Ok(0));
    assert_eq!(run.call(nr::__NR_rt_sigpending, &[DATA + 8, 8]), Ok(0));
    assert_eq!(run.get(DATA + 8, 8), (1u64 << 9).to_le_bytes());
    let zero = SystemCall::default();
    run.thread.cpu.script = vec![(Trap::Preempted, zero)];
    node.block_on(run.thread.step()).unwrap();
    assert_eq!(run.call(nr::__NR_rt_sigprocmask, &[1, DATA, 0, 8]), Ok(0));
    assert_eq!(run.go(), Ok(Exit::Signal(10)));
}

#[test]
fn a_signal_interrupts_a_wait_or_the_call_is_made_again() {
    let fd = 3;
    for (flags, again) in [(0, false), (0x1000_0000, true)] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        handle(&mut run, SIGUSR1, flags);
        assert_eq!(run.call(nr::__NR_pipe, &[DATA]), Ok(0));
        run.thread.cpu.script = vec![script(nr::__NR_read, &[fd, DATA, 10])];
        let ip = run.thread.cpu.ip();
        let process = run.thread.process.clone();
        let mut reads = Box::pin(run.thread.step());
        assert!(node.try_block_on(reads.as_mut()).is_none());
        let info = crate::signals::SignalInfo::from_process(10, 0, 1);
        process.send(info);
        node.block_on(reads).unwrap();
        assert_eq!(run.thread.cpu.ip(), HANDLER);
        let frame = run.thread.cpu.sp();
        let word = |at: u64| u64::from_le_bytes(run.get(frame + at, 8).try_into().unwrap());
        // rax and rip of the frame's sigcontext.
        let (rax, rip) = (word(48 + 13 * 8), word(48 + 16 * 8));
        let expected = if again {
            (0, ip - 2)
        } else {
            ((-4i64).cast_unsigned(), ip)
        };
        assert_eq!((rax, rip), expected);
    }
}

#[test]
fn pipes_carry_bytes_between_processes_and_break() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(run.call(nr::__NR_pipe2, &[DATA, 0]), Ok(0));
    let (reader, writer) = (
        u64::from(u32_at(&run, DATA)),
        u64::from(u32_at(&run, DATA + 4)),
    );
    run.put(DATA, b"through");
    run.call(nr::__NR_fork, &[]).unwrap();
    let mut child = node.started.borrow_mut().pop().unwrap();
    child.cpu.script = vec![
        script(nr::__NR_close, &[reader]),
        script(nr::__NR_write, &[writer, DATA, 7]),
    ];
    node.block_on(child.run());
    let entry = [3u32.to_le_bytes(), 0x41u32.to_le_bytes()].concat();
    run.put(DATA + 64, &entry);
    assert_eq!(run.call(nr::__NR_poll, &[DATA + 64, 1, u64::MAX]), Ok(1));
    assert_eq!(u32_at(&run, DATA + 68) >> 16, 0x41);
    run.call(nr::__NR_close, &[writer]).unwrap();
    assert_eq!(run.call(nr::__NR_read, &[reader, DATA + 32, 100]), Ok(7));
    assert_eq!(run.get(DATA + 32, 7), b"through");
    assert_eq!(run.call(nr::__NR_read, &[reader, DATA + 32, 100]), Ok(0));
    assert_eq!(run.call(nr::__NR_pipe2, &[DATA, 0o4000]), Ok(0));
    let (reader, writer) = (
        u64::from(u32_at(&run, DATA)),
        u64::from(u32_at(&run, DATA + 4)),
    );
    let empty = run.call(nr::__NR_read, &[reader, DATA, 1]);
    assert_eq!(errno_of(empty), Some(errno::EAGAIN));
    run.call(nr::__NR_close, &[reader]).unwrap();
    let broken = run.call(nr::__NR_write, &[writer, DATA, 1]);
    assert_eq!(errno_of(broken), Some(errno::EPIPE));
    assert_eq!(run.go(), Ok(Exit::Signal(13)));
}

#[test]
fn groups_and_sessions_follow_linux_s_rules() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(errno_of(run.call(nr::__NR_setsid, &[])), Some(errno::EPERM));
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    assert_eq!(run.call(nr::__NR_getpgid, &[child]), Ok(1));
    assert_eq!(run.call(nr::__NR_setpgid, &[child, 0]), Ok(0));
    assert_eq!(run.call(nr::__NR_getpgid, &[child]), Ok(child));
    assert_eq!(
        errno_of(run.call(nr::__NR_setpgid, &[child, 77])),
        Some(errno::EPERM)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_getpgid, &[99])),
        Some(errno::ESRCH)
    );
    assert_eq!(run.call(nr::__NR_kill, &[child.wrapping_neg(), 9]), Ok(0));
    node.run_started();
    assert_eq!(run.call(nr::__NR_waitid, &[1, child, DATA, 4]), Ok(0));
    let (signal, code, pid) = (
        u32_at(&run, DATA),
        u32_at(&run, DATA + 8),
        u32_at(&run, DATA + 16),
    );
    assert_eq!((signal, code, u64::from(pid)), (17, 2, child));
    assert_eq!(u32_at(&run, DATA + 24), 9);
}

/// Waits on a set without patience; returns the events as (bits, data).
fn epoll_now(run: &mut Run, set: u64) -> Vec<(u32, u64)> {
    let count = run
        .call(nr::__NR_epoll_wait, &[set, DATA + 256, 8, 0])
        .unwrap();
    let bytes = run.get(DATA + 256, usize::try_from(count).unwrap() * 12);
    let event = |event: &[u8]| {
        let bits = u32::from_le_bytes(event[..4].try_into().unwrap());
        (bits, u64::from_le_bytes(event[4..].try_into().unwrap()))
    };
    bytes.chunks_exact(12).map(event).collect()
}

fn epoll_ctl(run: &mut Run, set: u64, op: u64, fd: u64, events: u32) -> Result<u64, Error> {
    let event = [&events.to_le_bytes()[..], &(fd * 100).to_le_bytes()].concat();
    run.put(DATA + 128, &event);
    run.call(nr::__NR_epoll_ctl, &[set, op, fd, DATA + 128])
}

#[test]
fn sets_of_files_tell_by_level_by_edge_and_once() {
    const EDGE: u32 = 1 << 31;
    const ONCE: u32 = 1 << 30;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let set = run.call(nr::__NR_epoll_create1, &[0]).unwrap();
    let outer = run.call(nr::__NR_epoll_create1, &[0]).unwrap();
    let counter = run.call(nr::__NR_eventfd2, &[0, 0]).unwrap();
    assert_eq!(epoll_ctl(&mut run, set, 1, counter, 1), Ok(0));
    assert_eq!(epoll_ctl(&mut run, outer, 1, set, 1), Ok(0));
    assert_eq!(
        errno_of(epoll_ctl(&mut run, set, 1, counter, 1)),
        Some(errno::EEXIST)
    );
    assert_eq!(
        errno_of(epoll_ctl(&mut run, set, 1, outer, 1)),
        Some(errno::ELOOP)
    );
    let file = run.open("/big").unwrap();
    assert_eq!(
        errno_of(epoll_ctl(&mut run, set, 1, file, 1)),
        Some(errno::EPERM)
    );
    assert_eq!(epoll_now(&mut run, set), []);
    let add = |run: &mut Run| {
        run.put(DATA, &1u64.to_le_bytes());
        run.call(nr::__NR_write, &[counter, DATA, 8]).unwrap();
    };
    add(&mut run);
    for _ in 0..2 {
        assert_eq!(epoll_now(&mut run, set), [(1, counter * 100)]);
        assert_eq!(epoll_now(&mut run, outer), [(1, set * 100)]);
    }
    assert_eq!(epoll_ctl(&mut run, set, 3, counter, 1 | EDGE), Ok(0));
    assert_eq!(epoll_now(&mut run, set), [(1, counter * 100)]);
    assert_eq!(epoll_now(&mut run, set), [], "nothing has changed");
    add(&mut run);
    assert_eq!(epoll_now(&mut run, set), [(1, counter * 100)]);
    assert_eq!(epoll_ctl(&mut run, set, 3, counter, 1 | ONCE), Ok(0));
    assert_eq!(epoll_now(&mut run, set), [(1, counter * 100)]);
    add(&mut run);
    assert_eq!(epoll_now(&mut run, set), []);
    assert_eq!(epoll_ctl(&mut run, set, 3, counter, 4), Ok(0));
    assert_eq!(epoll_now(&mut run, set), [(4, counter * 100)]);
    assert_eq!(epoll_ctl(&mut run, set, 2, counter, 0), Ok(0));
    assert_eq!(
        errno_of(epoll_ctl(&mut run, set, 2, counter, 0)),
        Some(errno::ENOENT)
    );
    // A file that is closed leaves by itself.
    assert_eq!(epoll_ctl(&mut run, set, 1, counter, 4), Ok(0));
    run.call(nr::__NR_close, &[counter]).unwrap();
    assert_eq!(epoll_now(&mut run, set), []);
}

#[test]
fn a_wait_for_a_set_ends_when_a_file_of_an_inner_set_changes() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(run.call(nr::__NR_pipe2, &[DATA, 0]), Ok(0));
    let (reader, writer) = (
        u64::from(u32_at(&run, DATA)),
        u64::from(u32_at(&run, DATA + 4)),
    );
    let set = run.call(nr::__NR_epoll_create1, &[0]).unwrap();
    let outer = run.call(nr::__NR_epoll_create1, &[0]).unwrap();
    assert_eq!(epoll_ctl(&mut run, set, 1, reader, 1), Ok(0));
    assert_eq!(epoll_ctl(&mut run, outer, 1, set, 1), Ok(0));
    run.call(nr::__NR_clone, &[THREAD, DATA + 256]).unwrap();
    let mut other = node.started.borrow_mut().pop().unwrap();
    let wait = SystemCall {
        number: nr::__NR_epoll_wait.into(),
        args: [outer, DATA + 512, 8, u64::MAX, 0, 0],
    };
    let count = std::sync::Arc::new(Wakes::default());
    let waker = std::task::Waker::from(count.clone());
    let mut waits = Box::pin(other.system_call(wait));
    let mut context = std::task::Context::from_waker(&waker);
    assert!(waits.as_mut().poll(&mut context).is_pending());
    let before = count.0.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(run.call(nr::__NR_write, &[writer, DATA, 1]), Ok(1));
    assert!(count.0.load(std::sync::atomic::Ordering::SeqCst) > before);
    assert_eq!(node.block_on(waits), Ok(Outcome::Value(1)));
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Wakes(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

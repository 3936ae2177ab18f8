//! Processes as files.

use super::*;
use crate::error::errno;

const SIGCHLD: u64 = 17;
const CLONE_PIDFD: u64 = 0x1000;
const P_PIDFD: u64 = 3;
const WNOHANG: u64 = 1;
const WEXITED: u64 = 4;

fn poll(run: &mut Run, fd: u64) -> u16 {
    let fd = u32::try_from(fd).unwrap();
    run.put(DATA, &[&fd.to_le_bytes()[..], &[0xff, 0xff, 0, 0]].concat());
    run.call(nr::__NR_poll, &[DATA, 1, 0]).unwrap();
    u16::from_le_bytes(run.get(DATA + 6, 2).try_into().unwrap())
}

#[test]
fn a_process_is_a_file_that_is_readable_at_its_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    let fd = run.call(nr::__NR_pidfd_open, &[child, 0]).unwrap();
    assert_eq!(
        run.call(nr::__NR_fcntl, &[fd, 1]),
        Ok(1),
        "it closes on exec"
    );
    assert_eq!(poll(&mut run, fd), 0);
    let waiting = run.call(nr::__NR_waitid, &[P_PIDFD, fd, DATA, WEXITED | WNOHANG, 0]);
    assert_eq!((waiting, run.get(DATA, 4)), (Ok(0), vec![0; 4]));
    for signal in [0, SIGCHLD] {
        assert_eq!(
            run.call(nr::__NR_pidfd_send_signal, &[fd, signal, 0, 0]),
            Ok(0)
        );
    }
    let thread = node.started.borrow_mut().pop().unwrap();
    node.block_on(thread.run());
    assert_eq!(poll(&mut run, fd), 0x41);
    assert_eq!(
        run.call(nr::__NR_waitid, &[P_PIDFD, fd, DATA, WEXITED, 0]),
        Ok(0)
    );
    assert_eq!(run.get(DATA, 1), [17]);
    // Waited for, it is nobody; its number may be another's.
    assert_eq!(poll(&mut run, fd), 0x51);
    let signal = run.call(nr::__NR_pidfd_send_signal, &[fd, 0, 0, 0]);
    assert_eq!(errno_of(signal), Some(errno::ESRCH));
    let again = run.call(nr::__NR_waitid, &[P_PIDFD, fd, DATA, WEXITED, 0]);
    assert_eq!(errno_of(again), Some(errno::ECHILD));
    for (pid, flags, error) in [
        (0, 0, errno::EINVAL),
        (child, 0, errno::ESRCH),
        (1, 1, errno::EINVAL),
    ] {
        assert_eq!(
            errno_of(run.call(nr::__NR_pidfd_open, &[pid, flags])),
            Some(error)
        );
    }
    let wrong = run.call(nr::__NR_waitid, &[P_PIDFD, 0, DATA, WEXITED, 0]);
    assert_eq!(errno_of(wrong), Some(errno::EBADF));
    let wrong = run.call(nr::__NR_pidfd_send_signal, &[0, 0, 0, 0]);
    assert_eq!(errno_of(wrong), Some(errno::EBADF));
    run.end();
}

#[test]
fn clone_gives_the_parent_a_file_of_the_child() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let child = run
        .call(nr::__NR_clone, &[SIGCHLD | CLONE_PIDFD, 0, DATA + 64])
        .unwrap();
    let fd = u64::from(u32::from_le_bytes(
        run.get(DATA + 64, 4).try_into().unwrap(),
    ));
    assert!(child > 1 && fd > 2);
    let mut thread = node.started.borrow_mut().pop().unwrap();
    let closing = SystemCall {
        number: nr::__NR_close.into(),
        args: [fd, 0, 0, 0, 0, 0],
    };
    let closed = node.block_on(thread.system_call(closing)).map(drop);
    assert_eq!(errno_of(closed), Some(errno::EBADF), "the child has none");
    // A call that does not wait says so.
    let flags = run.call(nr::__NR_fcntl, &[fd, 4, 0o4000]);
    assert_eq!(flags, Ok(0));
    let waiting = run.call(nr::__NR_waitid, &[P_PIDFD, fd, DATA, WEXITED, 0]);
    assert_eq!(errno_of(waiting), Some(errno::EAGAIN));
    node.block_on(thread.run());
    assert_eq!(poll(&mut run, fd), 0x41);
    let both = [SIGCHLD | CLONE_PIDFD | 0x10_0000, 0, DATA + 64];
    assert_eq!(
        errno_of(run.call(nr::__NR_clone, &both)),
        Some(errno::EINVAL)
    );
    run.end();
}

#[test]
fn a_folder_of_proc_takes_signals_and_is_no_pidfd_else() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    let open = |run: &mut Run, path: &str| {
        run.put(DATA, &[path.as_bytes(), &[0]].concat());
        run.call(nr::__NR_open, &[DATA, 0]).unwrap()
    };
    let folder = open(&mut run, &format!("/proc/{child}"));
    let other = open(&mut run, "/proc");
    assert_eq!(
        run.call(nr::__NR_pidfd_send_signal, &[folder, 0, 0, 0]),
        Ok(0)
    );
    let signal = run.call(nr::__NR_pidfd_send_signal, &[other, 0, 0, 0]);
    assert_eq!(errno_of(signal), Some(errno::EBADF));
    let waited = run.call(
        nr::__NR_waitid,
        &[P_PIDFD, folder, DATA, WEXITED | WNOHANG, 0],
    );
    assert_eq!(errno_of(waited), Some(errno::EBADF));
    let thread = node.started.borrow_mut().pop().unwrap();
    node.block_on(thread.run());
    assert_eq!(run.call(nr::__NR_wait4, &[child, DATA, 0, 0]), Ok(child));
    let signal = run.call(nr::__NR_pidfd_send_signal, &[folder, 0, 0, 0]);
    assert_eq!(errno_of(signal), Some(errno::ESRCH));
}

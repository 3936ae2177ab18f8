//! Locks of files.

use super::*;
use crate::error::errno;

const F_GETLK: u64 = 5;
const F_SETLK: u64 = 6;
const F_SETLKW: u64 = 7;
const F_OFD_SETLK: u64 = 37;
const READ: u16 = 0;
const WRITE: u16 = 1;
const UNLOCK: u16 = 2;

/// Lays out a `struct flock`.
fn flock(kind: u16, start: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&start.to_le_bytes());
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn system_call(number: u32, args: &[u64]) -> SystemCall {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    SystemCall {
        number: number.into(),
        args: all,
    }
}

/// A lock call of a process.
fn lock(
    node: &FakeNode,
    thread: &mut Thread<FakeNode>,
    fd: u64,
    command: u64,
    flock: &[u8],
) -> Result<(), Error> {
    node.block_on(thread.memory().write(DATA, flock)).unwrap();
    let call = system_call(nr::__NR_fcntl, &[fd, command, DATA]);
    node.block_on(thread.system_call(call)).map(drop)
}

fn child(node: &FakeNode, run: &mut Run) -> Thread<FakeNode> {
    run.call(nr::__NR_fork, &[]).unwrap();
    node.started.borrow_mut().pop().unwrap()
}

#[test]
fn processes_exclude_each_other_until_one_closes_the_file() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"/tmp/f\0");
    let fd = run.call(nr::__NR_open, &[DATA, 0o102, 0o600]).unwrap();
    let again = run.call(nr::__NR_open, &[DATA, 0o2]).unwrap();
    let mut other = child(node, &mut run);
    let parent = &mut run.thread;
    assert_eq!(
        lock(node, parent, fd, F_SETLK, &flock(WRITE, 10, 10)),
        Ok(())
    );
    let all = flock(READ, 0, 0);
    assert_eq!(
        errno_of(lock(node, &mut other, fd, F_SETLK, &all)),
        Some(errno::EAGAIN)
    );
    assert_eq!(lock(node, &mut other, fd, F_GETLK, &all), Ok(()));
    let mut told = vec![0; 32];
    node.block_on(other.memory().read(DATA, &mut told)).unwrap();
    let mut expected = flock(WRITE, 10, 10);
    expected[24] = 1;
    assert_eq!(told, expected);
    let free = lock(node, &mut other, fd, F_SETLK, &flock(READ, 0, 10));
    assert_eq!(free, Ok(()));
    // A wait that would wait for itself.
    let mut waiting = Box::pin(async {
        let call = system_call(nr::__NR_fcntl, &[fd, F_SETLKW, DATA]);
        other
            .memory()
            .write(DATA, &flock(WRITE, 15, 1))
            .await
            .unwrap();
        other.system_call(call).await.map(drop)
    });
    assert!(node.try_block_on(waiting.as_mut()).is_none());
    let circle = lock(node, &mut run.thread, fd, F_SETLKW, &flock(WRITE, 0, 1));
    assert_eq!(errno_of(circle), Some(errno::EDEADLK));
    // Closing any number of the file lets all of the process's locks go.
    assert_eq!(run.call(nr::__NR_close, &[again]), Ok(0));
    assert_eq!(node.block_on(waiting), Ok(()));
    let after = lock(node, &mut run.thread, fd, F_SETLK, &flock(WRITE, 15, 1));
    assert_eq!(errno_of(after), Some(errno::EAGAIN));
    let locks = run.shown("/proc/locks");
    let other_pid = other.pid();
    let inode = locks
        .split(':')
        .nth(3)
        .and_then(|rest| rest.split(' ').next());
    let inode = inode.expect("an inode").to_owned();
    assert_eq!(
        locks,
        format!(
            "1: POSIX  ADVISORY  READ {other_pid} 00:17:{inode} 0 9\n\
             2: POSIX  ADVISORY  WRITE {other_pid} 00:17:{inode} 15 15\n"
        )
    );
    // And so does the process's end.
    node.block_on(other.run());
    assert_eq!(
        lock(node, &mut run.thread, fd, F_SETLK, &flock(WRITE, 0, 0)),
        Ok(())
    );
    run.end();
}

#[test]
fn files_of_s_are_locked_as_they_may_be_used() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    let mut other = child(node, &mut run);
    assert_eq!(
        lock(node, &mut run.thread, fd, F_SETLK, &flock(READ, 0, 1)),
        Ok(())
    );
    let write = lock(node, &mut run.thread, fd, F_SETLK, &flock(WRITE, 0, 1));
    assert_eq!(errno_of(write), Some(errno::EBADF));
    assert_eq!(
        lock(node, &mut other, fd, F_SETLK, &flock(READ, 0, 1)),
        Ok(())
    );
    assert_eq!(
        lock(node, &mut other, fd, F_SETLK, &flock(UNLOCK, 0, 0)),
        Ok(())
    );
    let bad = lock(node, &mut other, fd, F_SETLK, &flock(9, 0, 0));
    assert_eq!(errno_of(bad), Some(errno::EINVAL));
    node.block_on(other.run());
    run.end();
}

#[test]
fn open_files_hold_locks_of_their_own() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"/tmp/f\0");
    let one = run.call(nr::__NR_open, &[DATA, 0o102, 0o600]).unwrap();
    let two = run.call(nr::__NR_open, &[DATA, 0o2]).unwrap();
    let copy = run.call(nr::__NR_dup, &[one]).unwrap();
    let write = flock(WRITE, 0, 5);
    assert_eq!(
        lock(node, &mut run.thread, one, F_OFD_SETLK, &write),
        Ok(())
    );
    let other = lock(node, &mut run.thread, two, F_OFD_SETLK, &write);
    assert_eq!(errno_of(other), Some(errno::EAGAIN));
    run.call(nr::__NR_close, &[one]).unwrap();
    let other = lock(node, &mut run.thread, two, F_OFD_SETLK, &write);
    assert_eq!(
        errno_of(other),
        Some(errno::EAGAIN),
        "a number of it is left"
    );
    run.call(nr::__NR_close, &[copy]).unwrap();
    assert_eq!(
        lock(node, &mut run.thread, two, F_OFD_SETLK, &write),
        Ok(())
    );
    // Whole files, beside that.
    run.put(DATA, b"/tmp/f\0");
    let three = run.call(nr::__NR_open, &[DATA, 0]).unwrap();
    assert_eq!(run.call(nr::__NR_flock, &[three, 2]), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_flock, &[two, 1 | 4])),
        Some(errno::EAGAIN)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_flock, &[two, 16])),
        Some(errno::EINVAL)
    );
    run.call(nr::__NR_close, &[three]).unwrap();
    assert_eq!(run.call(nr::__NR_flock, &[two, 1 | 4]), Ok(0));
    run.end();
}

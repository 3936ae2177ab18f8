//! System V's shared memory, semaphores and message queues.

use super::*;
use crate::error::errno;

const CREATE: u64 = 0o1600;
const NOWAIT: u64 = 0o4000;
const RMID: u64 = 0;
const SET: u64 = 1;
const STAT: u64 = 2;
const GETVAL: u64 = 12;
const SETVAL: u64 = 16;
const UNDO: u64 = 0x1000;

fn word(run: &Run, at: u64) -> u64 {
    u64::from_le_bytes(run.get(at, 8).try_into().unwrap())
}

fn fork(run: &mut Run) -> Thread<FakeNode> {
    run.call(nr::__NR_fork, &[]).unwrap();
    run.node.started.borrow_mut().pop().unwrap()
}

fn nothing_is_left(node: &FakeNode) {
    node.drain();
    assert_eq!(node.cache.lines_in_use(), (0, 0));
    assert!(node.memory.lent.borrow().is_empty());
    assert_eq!(
        (node.supply.committed(), node.memory.promised.get()),
        (0, 0)
    );
}

#[test]
fn a_segment_is_the_same_memory_wherever_it_is_attached() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let id = run.call(nr::__NR_shmget, &[77, 5000, CREATE]).unwrap();
    assert_eq!(run.call(nr::__NR_shmget, &[77, 5000, 0]), Ok(id));
    let large = run.call(nr::__NR_shmget, &[77, 5001, 0]);
    assert_eq!(errno_of(large), Some(errno::EINVAL));
    let one = run.call(nr::__NR_shmat, &[id, 0, 0]).unwrap();
    let two = run.call(nr::__NR_shmat, &[id, 0, 0o10_000]).unwrap();
    assert_ne!(one, two);
    run.put(one + 4096, b"seen");
    assert_eq!(run.get(two + 4096, 4), b"seen");
    let written = node.block_on(run.thread.memory().write(two, b"no"));
    assert_eq!(errno_of(written), Some(errno::EFAULT), "read-only");
    let child = fork(&mut run);
    assert_eq!(node.block_on(child.memory().write(one, b"child")), Ok(()));
    assert_eq!(run.get(two, 5), b"child");
    assert_eq!(run.call(nr::__NR_shmctl, &[id, STAT, DATA]), Ok(0));
    assert_eq!((word(&run, DATA + 48), word(&run, DATA + 88)), (5000, 4));
    node.block_on(child.run());
    assert_eq!(run.call(nr::__NR_shmdt, &[two]), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_shmdt, &[two])),
        Some(errno::EINVAL)
    );
    assert_eq!(run.call(nr::__NR_shmctl, &[id, STAT, DATA]), Ok(0));
    assert_eq!(word(&run, DATA + 88), 1);
    run.end();
    nothing_is_left(node);
}

#[test]
fn a_removed_segment_lives_as_long_as_it_is_attached() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let before = node.supply.committed();
    let id = run.call(nr::__NR_shmget, &[77, 8192, CREATE]).unwrap();
    assert_eq!(node.supply.committed(), before + 2);
    let at = run.call(nr::__NR_shmat, &[id, 0, 0]).unwrap();
    assert_eq!(node.supply.committed(), before + 2, "promised once");
    run.put(at, b"kept");
    assert_eq!(run.call(nr::__NR_shmctl, &[id, RMID, 0]), Ok(0));
    assert_eq!(
        errno_of(run.call(nr::__NR_shmget, &[77, 1, 0])),
        Some(errno::ENOENT)
    );
    assert_eq!(run.call(nr::__NR_shmctl, &[id, STAT, DATA]), Ok(0));
    assert_eq!(run.get(DATA + 20, 4), 0o1600u32.to_le_bytes(), "SHM_DEST");
    let again = run.call(nr::__NR_shmat, &[id, 0, 0]).unwrap();
    assert_eq!(run.get(again, 4), b"kept");
    for at in [at, again] {
        assert_eq!(run.call(nr::__NR_shmdt, &[at]), Ok(0));
    }
    assert_eq!(
        errno_of(run.call(nr::__NR_shmat, &[id, 0, 0])),
        Some(errno::EINVAL)
    );
    assert_eq!(node.supply.committed(), before);
    // Never touched, never attached, not removed: goes with the node.
    run.call(nr::__NR_shmget, &[0, 4096, 0o600]).unwrap();
    run.end();
    nothing_is_left(node);
}

#[test]
fn segments_go_where_they_are_asked_to() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let id = run.call(nr::__NR_shmget, &[0, 4096, 0o600]).unwrap();
    let free = run.map(4096).unwrap();
    let mut attach = |addr: u64, flags: u64| run.call(nr::__NR_shmat, &[id, addr, flags]);
    assert_eq!(errno_of(attach(free, 0)), Some(errno::EINVAL), "taken");
    assert_eq!(attach(free, 0o40_000), Ok(free), "SHM_REMAP");
    assert_eq!(errno_of(attach(free + 5, 0)), Some(errno::EINVAL));
    assert_eq!(errno_of(attach(0, 0o40_000)), Some(errno::EINVAL));
    assert_eq!(attach(free + 5, 0o60_000), Ok(free), "SHM_RND");
    assert_eq!(errno_of(attach(1 << 62, 0)), Some(errno::EINVAL));
    for size in [0, u64::MAX] {
        let made = run.call(nr::__NR_shmget, &[0, size, 0o600]);
        assert_eq!(errno_of(made), Some(errno::EINVAL));
    }
    let made = run.call(nr::__NR_shmget, &[0, 1 << 40, 0o600]);
    assert_eq!(errno_of(made), Some(errno::ENOMEM), "more than M has");
    run.end();
    nothing_is_left(node);
}

impl Run {
    /// Operates on a set, by triples of semaphore, change and flags.
    fn operate(&mut self, id: u64, operations: &[(u16, i16, u64)]) -> Result<u64, Error> {
        let bytes = operations.iter().flat_map(|&(index, change, flags)| {
            let flags = u16::try_from(flags).unwrap();
            let halves = [index, change.cast_unsigned(), flags];
            halves.into_iter().flat_map(u16::to_le_bytes)
        });
        self.put(DATA, &bytes.collect::<Vec<u8>>());
        self.call(nr::__NR_semop, &[id, DATA, operations.len() as u64])
    }

    fn value(&mut self, id: u64, index: u64) -> u64 {
        self.call(nr::__NR_semctl, &[id, index, GETVAL]).unwrap()
    }
}

#[test]
fn a_semaphore_waits_and_is_undone() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let id = run.call(nr::__NR_semget, &[0, 2, 0o600]).unwrap();
    assert_eq!(run.call(nr::__NR_semctl, &[id, 1, SETVAL, 5]), Ok(0));
    let high = run.call(nr::__NR_semctl, &[id, 1, SETVAL, 40_000]);
    assert_eq!(errno_of(high), Some(errno::ERANGE));
    let now = run.operate(id, &[(0, -1, NOWAIT)]);
    assert_eq!(errno_of(now), Some(errno::EAGAIN));
    run.put(DATA + 64, &[0; 16]);
    let timed = run.call(nr::__NR_semtimedop, &[id, DATA, 1, DATA + 64]);
    assert_eq!(errno_of(timed), Some(errno::EAGAIN));

    let mut child = fork(&mut run);
    run.put(DATA + 32, &[0, 0, 0xff, 0xff, 0, 0]);
    let wait = SystemCall {
        number: nr::__NR_semop.into(),
        args: [id, DATA + 32, 1, 0, 0, 0],
    };
    node.block_on(child.memory().write(DATA + 32, &[0, 0, 0xff, 0xff, 0, 0]))
        .unwrap();
    {
        let mut waiting = std::pin::pin!(child.system_call(wait));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(run.call(nr::__NR_semctl, &[id, 0, 14]), Ok(1), "GETNCNT");
        assert_eq!(run.operate(id, &[(0, 1, 0), (1, -2, 0)]), Ok(0));
        assert_eq!(node.block_on(waiting), Ok(Outcome::Value(0)));
    }
    assert_eq!((run.value(id, 0), run.value(id, 1)), (0, 3));
    let undo = SystemCall {
        number: nr::__NR_semop.into(),
        args: [id, DATA + 32, 1, 0, 0, 0],
    };
    let bytes = [1u16, 2, u16::try_from(UNDO).unwrap()].map(u16::to_le_bytes);
    node.block_on(child.memory().write(DATA + 32, bytes.as_flattened()))
        .unwrap();
    assert_eq!(
        node.block_on(child.system_call(undo)),
        Ok(Outcome::Value(0))
    );
    assert_eq!(run.value(id, 1), 5);
    node.block_on(child.run());
    assert_eq!(run.value(id, 1), 3, "undone at the process's end");
    run.end();
}

#[test]
fn removing_a_set_or_queue_ends_waits() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let set = run.call(nr::__NR_semget, &[0, 1, 0o600]).unwrap();
    let queue = run.call(nr::__NR_msgget, &[0, 0o600]).unwrap();
    let waits = [
        (
            nr::__NR_semop,
            [set, DATA + 32, 1, 0, 0, 0],
            nr::__NR_semctl,
            [set, 0, RMID],
        ),
        (
            nr::__NR_msgrcv,
            [queue, DATA, 10, 0, 0, 0],
            nr::__NR_msgctl,
            [queue, RMID, 0],
        ),
    ];
    for (number, args, remove, of) in waits {
        let mut child = fork(&mut run);
        node.block_on(child.memory().write(DATA + 32, &[0, 0, 0xff, 0xff, 0, 0]))
            .unwrap();
        let call = SystemCall {
            number: number.into(),
            args,
        };
        {
            let mut waiting = std::pin::pin!(child.system_call(call));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert_eq!(run.call(remove, &of), Ok(0));
            let ended = node.block_on(waiting).map(|_| ());
            assert_eq!(errno_of(ended), Some(errno::EIDRM));
        }
        node.block_on(child.run());
        assert_eq!(errno_of(run.call(remove, &of)), Some(errno::EINVAL));
    }
    run.end();
}

#[test]
fn messages_go_through_a_queue() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let id = run.call(nr::__NR_msgget, &[0, 0o600]).unwrap();
    for (kind, text) in [(2u64, b"two"), (1, b"one")] {
        run.put(DATA, &kind.to_le_bytes());
        run.put(DATA + 8, text);
        assert_eq!(run.call(nr::__NR_msgsnd, &[id, DATA, 3, 0]), Ok(0));
    }
    assert_eq!(run.call(nr::__NR_msgctl, &[id, STAT, DATA]), Ok(0));
    assert_eq!(
        [72, 80, 88].map(|at| word(&run, DATA + at)),
        [6, 2, 16_384],
        "bytes, messages, limit"
    );
    let short = run.call(nr::__NR_msgrcv, &[id, DATA, 2, 1, 0]);
    assert_eq!(errno_of(short), Some(errno::E2BIG));
    assert_eq!(run.call(nr::__NR_msgrcv, &[id, DATA, 9, 1, 0]), Ok(3));
    assert_eq!(
        (word(&run, DATA), run.get(DATA + 8, 3)),
        (1, b"one".to_vec())
    );
    let none = run.call(nr::__NR_msgrcv, &[id, DATA, 9, 1, NOWAIT]);
    assert_eq!(errno_of(none), Some(errno::ENOMSG));
    run.put(DATA, &0u64.to_le_bytes());
    for args in [
        [id, DATA, 3, 0],
        [id, DATA, 9000, 0],
        [id, DATA, u64::MAX, 0],
    ] {
        let sent = run.call(nr::__NR_msgsnd, &args);
        assert_eq!(errno_of(sent), Some(errno::EINVAL));
    }
    // One byte is left when the limit is four.
    run.call(nr::__NR_msgctl, &[id, STAT, DATA]).unwrap();
    run.put(DATA + 88, &4u64.to_le_bytes());
    assert_eq!(run.call(nr::__NR_msgctl, &[id, SET, DATA]), Ok(0));
    run.put(DATA, &5u64.to_le_bytes());
    let full = run.call(nr::__NR_msgsnd, &[id, DATA, 2, NOWAIT]);
    assert_eq!(errno_of(full), Some(errno::EAGAIN));
    assert_eq!(run.call(nr::__NR_msgsnd, &[id, DATA, 1, NOWAIT]), Ok(0));
    run.end();
}

#[test]
fn other_users_have_the_rights_that_the_mode_gives() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let id = run.call(nr::__NR_shmget, &[5, 4096, 0o1604]).unwrap();
    let set = run.call(nr::__NR_semget, &[5, 1, 0o1604]).unwrap();
    assert_eq!(run.call(nr::__NR_setresgid, &[9, 9, 9]), Ok(0));
    assert_eq!(run.call(nr::__NR_setresuid, &[9, 9, 9]), Ok(0));
    let attach = run.call(nr::__NR_shmat, &[id, 0, 0]);
    assert_eq!(errno_of(attach), Some(errno::EACCES));
    run.call(nr::__NR_shmat, &[id, 0, 0o10_000]).unwrap();
    let removed = run.call(nr::__NR_shmctl, &[id, RMID, 0]);
    assert_eq!(errno_of(removed), Some(errno::EPERM));
    assert_eq!(
        errno_of(run.operate(set, &[(0, 1, 0)])),
        Some(errno::EACCES)
    );
    assert_eq!(run.value(set, 0), 0);
    run.end();
    nothing_is_left(node);
}

//! Locks with priority inheritance, between threads and when they end.

use std::pin::pin;
use std::task::{Context, Waker};

use super::*;
use crate::error::errno;

const THREAD: u64 = 0x3d_0f00;
const LOCK: u64 = 6 | 0x80;
const UNLOCK: u64 = 7 | 0x80;
const TRYLOCK: u64 = 8 | 0x80;
const WAIT_REQUEUE: u64 = 11 | 0x80;
const CMP_REQUEUE: u64 = 12 | 0x80;
const WORD: u64 = DATA + 0x40;
const CONDITION: u64 = DATA + 0x80;
/// The head of a robust list: the first entry, the offset from an entry to its word, the pending
/// entry.
const HEAD: u64 = DATA + 0x100;
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;

fn started(run: &mut Run) -> Thread<FakeNode> {
    run.call(nr::__NR_clone, &[THREAD, DATA + 0x800]).unwrap();
    run.node.started.borrow_mut().pop().unwrap()
}

fn futex(args: [u64; 6]) -> SystemCall {
    SystemCall {
        number: nr::__NR_futex.into(),
        args,
    }
}

fn word(run: &Run) -> u32 {
    u32::from_le_bytes(run.get(WORD, 4).try_into().unwrap())
}

#[test]
fn a_lock_is_handed_to_the_thread_that_waits() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let mut thread = started(&mut run);
    let tid = thread.tid();
    assert_eq!(run.call(nr::__NR_futex, &[WORD, LOCK]), Ok(0));
    assert_eq!(word(&run), 1);
    let again = run.call(nr::__NR_futex, &[WORD, LOCK]);
    assert_eq!(errno_of(again), Some(errno::EDEADLK));
    for (operation, refused) in [(TRYLOCK, errno::EAGAIN), (UNLOCK, errno::EPERM)] {
        let call = futex([WORD, operation, 0, 0, 0, 0]);
        let outcome = node.block_on(thread.system_call(call));
        assert_eq!(outcome, Err(refused.into()));
    }
    {
        let mut waiting = pin!(thread.system_call(futex([WORD, LOCK, 0, 0, 0, 0])));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(word(&run), WAITERS | 1);
        assert_eq!(run.call(nr::__NR_futex, &[WORD, UNLOCK]), Ok(0));
        assert_eq!(node.block_on(waiting), Ok(Outcome::Value(0)));
    }
    assert_eq!(word(&run), WAITERS | tid);
    node.block_on(thread.run());
    let dead = run.call(nr::__NR_futex, &[WORD, LOCK]);
    assert_eq!(errno_of(dead), Some(errno::ESRCH), "the owner has ended");
    run.end();
}

#[test]
fn a_robust_lock_of_an_ended_thread_is_the_waiter_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let mut thread = started(&mut run);
    let lock = node.block_on(thread.system_call(futex([WORD, LOCK, 0, 0, 0, 0])));
    assert_eq!(lock, Ok(Outcome::Value(0)));
    // One entry, 16 bytes behind its word, whose lowest bit tells of the kind of lock.
    let list = [(WORD + 16) | 1, (-16i64).cast_unsigned(), 0];
    run.put(HEAD, &list.map(u64::to_le_bytes).concat());
    run.put(WORD + 16, &(HEAD | 1).to_le_bytes());
    let set = SystemCall {
        number: nr::__NR_set_robust_list.into(),
        args: [HEAD, 24, 0, 0, 0, 0],
    };
    assert_eq!(
        node.block_on(thread.system_call(set)),
        Ok(Outcome::Value(0))
    );
    {
        let mut waiting = pin!(run.thread.system_call(futex([WORD, LOCK, 0, 0, 0, 0])));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        node.block_on(thread.run());
        assert_eq!(node.block_on(waiting), Ok(Outcome::Value(0)));
    }
    assert_eq!(word(&run), OWNER_DIED | WAITERS | 1);
    assert_eq!(run.call(nr::__NR_futex, &[WORD, UNLOCK]), Ok(0));
    assert_eq!(word(&run), 0);
    run.end();
}

#[test]
fn a_condition_s_waiter_gets_the_lock_or_its_time_is_over() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let mut thread = started(&mut run);
    let time = [0u64, 1_000_000].map(u64::to_le_bytes).concat();
    run.put(DATA, &time);
    let late = futex([CONDITION, WAIT_REQUEUE, 0, DATA, WORD, 0]);
    let late = node.block_on(thread.system_call(late));
    assert_eq!(late, Err(errno::ETIMEDOUT.into()));
    assert_eq!(run.call(nr::__NR_futex, &[WORD, LOCK]), Ok(0));
    {
        let wait = futex([CONDITION, WAIT_REQUEUE, 0, 0, WORD, 0]);
        let mut waiting = pin!(thread.system_call(wait));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let mut requeue = |wake: u64, value: u64| {
            let args = [CONDITION, CMP_REQUEUE, wake, 5, WORD, value];
            run.call(nr::__NR_futex, &args)
        };
        assert_eq!(errno_of(requeue(2, 0)), Some(errno::EINVAL));
        assert_eq!(errno_of(requeue(1, 9)), Some(errno::EAGAIN));
        assert_eq!(requeue(1, 0), Ok(1));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(run.call(nr::__NR_futex, &[WORD, UNLOCK]), Ok(0));
        assert_eq!(node.block_on(waiting), Ok(Outcome::Value(0)));
    }
    assert_eq!(word(&run), WAITERS | thread.tid());
    node.block_on(thread.run());
    run.end();
}

//! The second interface of futexes.

use super::*;
use crate::error::errno;

const PRIVATE_U32: u64 = 0x82;
const LIST: u64 = DATA + 0x100;
const TIME: u64 = DATA + 0x80;
const MONOTONIC: u64 = 1;
const THREAD: u64 = 0x3d_0f00;

/// Writes entries (value, address, flags) of a list.
fn list(run: &Run, entries: &[[u64; 3]]) {
    run.put(LIST, &words(entries.as_flattened()));
}

#[test]
fn lists_of_words_are_checked() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let mut refused = |entries: &[[u64; 3]], rest: [u64; 4]| {
        list(&run, entries);
        let args = [LIST, rest[0], rest[1], rest[2], rest[3]];
        errno_of(run.call(nr::__NR_futex_waitv, &args)).unwrap()
    };
    let good = [0, DATA, PRIVATE_U32];
    assert_eq!(refused(&[good], [0, 0, 0, 0]), errno::EINVAL);
    assert_eq!(refused(&[good], [129, 0, 0, 0]), errno::EINVAL);
    assert_eq!(refused(&[good], [1, 1, 0, 0]), errno::EINVAL);
    assert_eq!(refused(&[good], [1, 0, TIME, 9]), errno::EINVAL);
    assert_eq!(refused(&[[0, DATA, 0x83]], [1, 0, 0, 0]), errno::EINVAL);
    assert_eq!(
        refused(&[[0, DATA, 1 << 32 | 2]], [1, 0, 0, 0]),
        errno::EINVAL
    );
    assert_eq!(refused(&[[1 << 32, DATA, 2]], [1, 0, 0, 0]), errno::EINVAL);
    assert_eq!(refused(&[[0, DATA + 2, 2]], [1, 0, 0, 0]), errno::EINVAL);
    assert_eq!(refused(&[[7, DATA, 2]], [1, 0, 0, 0]), errno::EAGAIN);
    assert_eq!(
        refused(&[good, [7, DATA + 4, 2]], [2, 0, 0, 0]),
        errno::EAGAIN
    );
    let timed_out = refused(&[good, good], [2, 0, TIME, MONOTONIC]);
    assert_eq!(timed_out, errno::ETIMEDOUT);
    assert_eq!(
        run.call(nr::__NR_futex, &[DATA, 0x81, 9]),
        Ok(0),
        "nobody is left"
    );
}

#[test]
fn the_word_that_was_woken_is_told() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_clone, &[THREAD, DATA + 0x800]).unwrap();
    let mut thread = node.started.borrow_mut().pop().unwrap();
    let entries = [0, 4, 8].map(|offset| [0, DATA + offset, PRIVATE_U32]);
    list(&run, &entries);
    let wait = SystemCall {
        number: nr::__NR_futex_waitv.into(),
        args: [LIST, 3, 0, 0, 0, 0],
    };
    let woken = {
        let mut waiting = std::pin::pin!(thread.system_call(wait));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let wake = [DATA + 4, u64::from(u32::MAX), 1, PRIVATE_U32];
        assert_eq!(run.call(nr::__NR_futex_wake, &wake), Ok(1));
        node.block_on(waiting)
    };
    assert_eq!(woken, Ok(Outcome::Value(1)));
    assert_eq!(
        run.call(nr::__NR_futex, &[DATA, 0x81, 9]),
        Ok(0),
        "nobody is left"
    );
    node.block_on(thread.run());
    run.end();
}

#[test]
fn a_wait_has_a_mask_and_moves_to_another_word() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_clone, &[THREAD, DATA + 0x800]).unwrap();
    let mut thread = node.started.borrow_mut().pop().unwrap();
    let wait = SystemCall {
        number: nr::__NR_futex_wait.into(),
        args: [DATA, 0, 6, PRIVATE_U32, 0, 0],
    };
    {
        let mut waiting = std::pin::pin!(thread.system_call(wait));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        list(&run, &[[1, DATA, PRIVATE_U32], [0, DATA + 4, PRIVATE_U32]]);
        let requeue = |run: &mut Run| run.call(nr::__NR_futex_requeue, &[LIST, 0, 0, 5]);
        assert_eq!(
            errno_of(requeue(&mut run)),
            Some(errno::EAGAIN),
            "the word is 0"
        );
        list(&run, &[[0, DATA, PRIVATE_U32]]);
        assert_eq!(requeue(&mut run), Ok(1));
        let mut wake =
            |addr: u64, mask: u64| run.call(nr::__NR_futex_wake, &[addr, mask, 1, PRIVATE_U32]);
        assert_eq!(wake(DATA, 6), Ok(0));
        assert_eq!(wake(DATA + 4, 9), Ok(0), "no bit in common");
        assert_eq!(errno_of(wake(DATA + 4, 0)), Some(errno::EINVAL));
        assert_eq!(wake(DATA + 4, 2), Ok(1));
        assert_eq!(node.block_on(waiting), Ok(Outcome::Value(0)));
    }
    node.block_on(thread.run());
    run.end();
}

#[test]
fn a_wake_that_changes_a_word_loses_no_store_of_the_program() {
    const ADD_5_WAKE_IF_9: u64 = 1 << 28 | 5 << 12 | 9;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA + 4, &8u32.to_le_bytes());
    // The program makes it 9 after the kernel has looked.
    node.cache.machine().stored_between.set(Some(9));
    let args = [DATA, 0x85, 1, 1, DATA + 4, ADD_5_WAKE_IF_9];
    assert_eq!(run.call(nr::__NR_futex, &args), Ok(0));
    assert_eq!(run.get(DATA + 4, 4), 14u32.to_le_bytes());
    let args = [DATA, 0x85, 1, 1, DATA + 6, ADD_5_WAKE_IF_9];
    let crooked = run.call(nr::__NR_futex, &args);
    assert_eq!(errno_of(crooked), Some(errno::EINVAL));
}

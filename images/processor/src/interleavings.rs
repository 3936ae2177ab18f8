//! Waits, gates, futexes and signals' queues in the orders in which threads of several cores can
//! come to them (shuttle; `cargo xtask interleave`). A task that is not woken makes a run fail.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use locks::{AtomicU32, Ordering};
use pcache::SpaceId;
use shuttle::future::{block_on, spawn};

use crate::futex::{ANY, Futexes, Key};
use crate::wait::{Gate, WaitQueue};

/// Orders that are tried of each test.
const ORDERS: usize = 2_000;
const WORD: Key = Key::Private(SpaceId(1), 0x1000);
const OTHER: Key = Key::Private(SpaceId(1), 0x2004);

fn in_all_orders(test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(test, ORDERS);
}

/// Waits on a word as `FUTEX_WAIT` does, until it no longer holds `expected`.
async fn wait_while(futexes: &Futexes, word: &AtomicU32, expected: u32) {
    while word.load(Ordering::SeqCst) == expected {
        let holds = || word.load(Ordering::SeqCst) == expected;
        let Some(waiter) = futexes.wait(WORD, ANY, holds) else {
            return;
        };
        poll_fn(|context| {
            if waiter.poll(context.waker()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

#[test]
fn no_wake_of_a_queue_is_lost() {
    in_all_orders(|| {
        let (queue, value) = (Arc::new(WaitQueue::default()), Arc::new(AtomicU32::new(0)));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let (queue, value) = (queue.clone(), value.clone());
                spawn(async move {
                    let two = || (value.load(Ordering::SeqCst) == 2).then_some(());
                    queue.until(two).await;
                })
            })
            .collect();
        for _ in 0..2 {
            let (queue, value) = (queue.clone(), value.clone());
            shuttle::thread::spawn(move || {
                value.fetch_add(1, Ordering::SeqCst);
                queue.wake();
            });
        }
        waiters
            .into_iter()
            .for_each(|waiter| block_on(waiter).unwrap());
    });
}

#[test]
fn one_task_is_in_a_gate_and_all_pass() {
    in_all_orders(|| {
        let (gate, inside) = (Arc::new(Gate::default()), Arc::new(AtomicU32::new(0)));
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let (gate, inside) = (gate.clone(), inside.clone());
                spawn(async move {
                    let _pass = gate.pass().await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    shuttle::future::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| block_on(task).unwrap());
    });
}

#[test]
fn a_futex_s_waiter_sees_the_word_change() {
    in_all_orders(|| {
        let (futexes, word) = (Arc::new(Futexes::default()), Arc::new(AtomicU32::new(0)));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let (futexes, word) = (futexes.clone(), word.clone());
                spawn(async move { wait_while(&futexes, &word, 0).await })
            })
            .collect();
        word.store(1, Ordering::SeqCst);
        futexes.wake(WORD, u32::MAX, ANY);
        waiters
            .into_iter()
            .for_each(|waiter| block_on(waiter).unwrap());
    });
}

#[test]
fn a_requeued_waiter_is_woken_once_or_cancelled_once() {
    in_all_orders(|| {
        let futexes = Arc::new(Futexes::default());
        let waiter = futexes.wait(WORD, ANY, || true).unwrap();
        let moved = {
            let futexes = futexes.clone();
            shuttle::thread::spawn(move || futexes.requeue(WORD, OTHER, (0, 1), || true))
        };
        let woken = {
            let futexes = futexes.clone();
            shuttle::thread::spawn(move || futexes.wake(WORD, 1, ANY) + futexes.wake(OTHER, 1, ANY))
        };
        let cancelled = futexes.cancel(&waiter);
        moved.join().unwrap();
        let woken = woken.join().unwrap();
        assert!(u32::from(cancelled) + woken <= 1, "{cancelled} and {woken}");
        // What neither of the two found has not been lost.
        let left = futexes.wake(WORD, 1, ANY) + futexes.wake(OTHER, 1, ANY);
        assert_eq!(u32::from(cancelled) + woken + left, 1);
    });
}

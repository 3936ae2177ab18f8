//! Waits, gates, futexes and signals' queues in the orders in which threads of several cores can
//! come to them (shuttle; `cargo xtask interleave`). A task that is not woken makes a run fail.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use locks::{AtomicU32, Ordering};
use pcache::SpaceId;
use shuttle::future::{block_on, spawn};

use crate::futex::pi::{Locked, Locker, OWNER_DIED, TID, WAITERS, WaiterEnd, Word};
use crate::futex::{ANY, Futexes, Key, Waiter};
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
        futexes.wake(WORD, u32::MAX, ANY).unwrap();
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
            shuttle::thread::spawn(move || {
                futexes.wake(WORD, 1, ANY).unwrap() + futexes.wake(OTHER, 1, ANY).unwrap()
            })
        };
        let cancelled = futexes.cancel(&waiter);
        moved.join().unwrap();
        let woken = woken.join().unwrap();
        assert!(u32::from(cancelled) + woken <= 1, "{cancelled} and {woken}");
        // What neither of the two found has not been lost.
        let left = futexes.wake(WORD, 1, ANY).unwrap() + futexes.wake(OTHER, 1, ANY).unwrap();
        assert_eq!(u32::from(cancelled) + woken + left, 1);
    });
}

/// A word that a program of several threads changes while the kernel does.
struct Memory(AtomicU32);

impl Word for Memory {
    fn load(&self) -> Option<u32> {
        Some(self.0.load(Ordering::SeqCst))
    }

    fn exchange(&self, old: u32, new: u32) -> Option<()> {
        let exchanged = self
            .0
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
        exchanged.ok().map(drop)
    }
}

struct Shared {
    futexes: Futexes,
    word: Memory,
    inside: AtomicU32,
    /// The threads that have ended, a bit each.
    ended: AtomicU32,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            futexes: Futexes::default(),
            word: Memory(AtomicU32::new(0)),
            inside: AtomicU32::new(0),
            ended: AtomicU32::new(0),
        })
    }

    /// Takes the lock as a C library does: by an exchange, else by the kernel. False if the wait
    /// was given up.
    async fn lock(&self, tid: u32, patient: bool) -> bool {
        if self.word.exchange(0, tid).is_some() {
            return true;
        }
        let lives = |tid: u32| self.ended.load(Ordering::SeqCst) & 1 << tid == 0;
        let by = Locker { tid, priority: 0 };
        let waiter = loop {
            match self.futexes.lock(WORD, by, true, &self.word, &lives) {
                None => {}
                Some(Ok(Locked::Taken)) => return true,
                Some(Ok(Locked::Queued(waiter))) => break waiter,
                Some(Err(errno)) => panic!("{tid}: {errno}"),
            }
        };
        if patient {
            woken(&waiter).await;
        } else {
            shuttle::future::yield_now().await;
        }
        match self.futexes.leave(&waiter) {
            WaiterEnd::Owner => true,
            WaiterEnd::Heir => {
                while self.futexes.inherit(WORD, tid, &self.word).is_none() {}
                true
            }
            WaiterEnd::Without if !patient => false,
            left => panic!("{tid} was woken and is {left:?}"),
        }
    }

    fn unlock(&self, tid: u32) {
        if self.word.exchange(tid, 0).is_none() {
            while self.futexes.unlock(WORD, tid, &self.word).is_none() {}
        }
    }

    /// Ends a thread as its robust list says.
    fn end(&self, tid: u32) {
        let word = self.word.0.load(Ordering::SeqCst);
        if word & TID == tid {
            while self
                .word
                .load()
                .and_then(|value| self.word.exchange(value, value & WAITERS | OWNER_DIED))
                .is_none()
            {}
        }
        let mark = || {
            self.ended.fetch_or(1 << tid, Ordering::SeqCst);
        };
        self.futexes.exit(tid, mark);
    }
}

async fn woken(waiter: &Waiter) {
    poll_fn(|context| {
        if waiter.poll(context.waker()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

#[test]
fn one_task_has_a_lock_of_the_kernel_s_and_all_get_it() {
    in_all_orders(|| {
        let shared = Shared::new();
        let tasks: Vec<_> = (1..4)
            .map(|tid| {
                let shared = shared.clone();
                spawn(async move {
                    // The third does not wait for long.
                    if shared.lock(tid, tid != 3).await {
                        assert_eq!(shared.inside.fetch_add(1, Ordering::SeqCst), 0);
                        shuttle::future::yield_now().await;
                        shared.inside.fetch_sub(1, Ordering::SeqCst);
                        shared.unlock(tid);
                    }
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| block_on(task).unwrap());
        // The last to unlock may have left the mark of a waiter that had gone, in no one's name.
        assert_eq!(shared.word.0.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_lock_of_threads_that_die_gets_to_the_next() {
    in_all_orders(|| {
        let shared = Shared::new();
        let tasks: Vec<_> = (1..4)
            .map(|tid| {
                let shared = shared.clone();
                spawn(async move {
                    let got = shared.lock(tid, true).await;
                    assert!(got);
                    assert_eq!(shared.inside.fetch_add(1, Ordering::SeqCst), 0);
                    shuttle::future::yield_now().await;
                    shared.inside.fetch_sub(1, Ordering::SeqCst);
                    shared.end(tid);
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| block_on(task).unwrap());
        assert_eq!(shared.word.0.load(Ordering::SeqCst) & TID, 0);
    });
}

#[test]
fn a_waiter_that_is_moved_to_a_lock_or_gives_up_is_not_lost() {
    in_all_orders(|| {
        let shared = Shared::new();
        let waiters: Vec<_> = (1..3)
            .map(|tid| {
                let by = Locker { tid, priority: 0 };
                let queued = shared.futexes.wait_for_move((OTHER, WORD), by, || true);
                (tid, queued.unwrap())
            })
            .collect();
        let tasks: Vec<_> = waiters
            .into_iter()
            .map(|(tid, waiter)| {
                let shared = shared.clone();
                spawn(async move {
                    if tid == 1 {
                        woken(&waiter).await;
                    } else {
                        shuttle::future::yield_now().await;
                    }
                    match shared.futexes.leave(&waiter) {
                        WaiterEnd::Owner => {
                            assert_eq!(shared.inside.fetch_add(1, Ordering::SeqCst), 0);
                            shuttle::future::yield_now().await;
                            shared.inside.fetch_sub(1, Ordering::SeqCst);
                            shared.unlock(tid);
                        }
                        WaiterEnd::Without | WaiterEnd::Unmoved => assert_eq!(tid, 2),
                        WaiterEnd::Heir => panic!("nobody died"),
                    }
                })
            })
            .collect();
        let condition = Memory(AtomicU32::new(0));
        let words: (&dyn Word, &dyn Word) = (&condition, &shared.word);
        let moved = shared
            .futexes
            .move_to_lock((OTHER, 0), WORD, 9, words, &|_| true);
        assert!(matches!(moved, Some(Ok(1..=2))), "{moved:?}");
        tasks.into_iter().for_each(|task| block_on(task).unwrap());
        assert_eq!(shared.word.0.load(Ordering::SeqCst), 0);
    });
}

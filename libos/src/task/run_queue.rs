//! One core's runnable tasks, and how the core sleeps without missing one: [`RunQueue`]. The
//! executor fills and empties it.

use alloc::collections::VecDeque;

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// One core's runnable tasks. Any core and any interrupt may add one; the core alone takes them.
pub(crate) struct RunQueue<T> {
    /// The heap's lock is taken under it, and no other.
    tasks: Mutex<VecDeque<T>>,
    /// Set while the core sleeps or is about to; the task that clears it must interrupt the core.
    idle: AtomicBool,
    /// Calls of [`RunQueue::pop`]. Only the core itself writes it.
    polls: AtomicU64,
}

impl<T> RunQueue<T> {
    pub(crate) fn new() -> Self {
        Self {
            tasks: Mutex::new(VecDeque::with_capacity(64)),
            idle: AtomicBool::new(false),
            polls: AtomicU64::new(0),
        }
    }

    /// Adds a task. Whether the core sleeps, or is about to, and must be interrupted by whoever is
    /// told so.
    #[must_use = "a core that sleeps must be interrupted"]
    pub(crate) fn push(&self, task: T) -> bool {
        self.tasks.lock().push_back(task);
        // Pairs with `rest`: either that sees the task or this sees that it sleeps.
        self.idle.swap(false, Ordering::SeqCst)
    }

    /// Takes the next task to poll: a quiescent point of the core (see [`crate::mem::table_pool`]).
    ///
    /// The count is a plain load and store. The queue's lock, which is taken anyway, is what orders
    /// it against [`RunQueue::observe`].
    pub(crate) fn pop(&self) -> Option<T> {
        let polls = self.polls.load(Ordering::Relaxed).wrapping_add(1);
        self.polls.store(polls, Ordering::Release);
        self.tasks.lock().pop_front()
    }

    /// Returns the number of polls so far, or `None` when the core sleeps.
    ///
    /// What the caller did before is seen by the core's next poll, as that one locks the queue
    /// after this call did; and when this returns `None`, or a later [`RunQueue::polls`] another
    /// number, then the poll that ran during this call has ended.
    pub(crate) fn observe(&self) -> Option<u64> {
        let _tasks = self.tasks.lock();
        let idle = self.idle.load(Ordering::Acquire);
        (!idle).then(|| self.polls.load(Ordering::Acquire))
    }

    /// Returns the number of polls so far.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Acquire)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.lock().is_empty()
    }

    /// Lets the core `sleep` until an interrupt, unless there is a task. No wake-up is lost: a task
    /// that was added before the flag is seen here, one that is added after it comes with an
    /// interrupt, and `sleep` ends at once when one is pending.
    pub(crate) fn rest(&self, sleep: impl FnOnce()) {
        // Swaps, as those of `push`: each sees the one before it, so that they have an order that
        // all agree on.
        self.idle.swap(true, Ordering::SeqCst);
        if self.is_empty() {
            sleep();
        }
        self.idle.swap(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(interleave)))]
mod tests {
    use super::*;

    #[test]
    fn a_core_sleeps_only_without_a_task_and_is_told_on_once() {
        let queue = RunQueue::new();
        assert!(!queue.push(1), "it does not sleep");
        queue.rest(|| unreachable!("there is a task"));
        assert_eq!((queue.pop(), queue.pop()), (Some(1), None));
        let mut interrupts = 0;
        queue.rest(|| {
            interrupts += u32::from(queue.push(2));
            interrupts += u32::from(queue.push(3));
        });
        assert_eq!(interrupts, 1, "the first interrupt wakes it");
        assert!(!queue.push(4));
        assert!(!queue.is_empty());
    }

    #[test]
    fn polls_are_counted_and_sleep_is_seen() {
        let queue = RunQueue::<u32>::new();
        assert_eq!(queue.observe(), Some(0));
        let _ = queue.pop();
        assert_eq!((queue.observe(), queue.polls()), (Some(1), 1));
        queue.rest(|| assert_eq!(queue.observe(), None));
        assert_eq!(queue.observe(), Some(1));
        queue.rest(|| {
            assert!(queue.push(1));
            assert_eq!(queue.observe(), Some(1), "it is being woken");
        });
    }
}

#[cfg(all(test, interleave))]
mod interleavings {
    // The standard library's: loom's panics again when a deadlock is unwound.
    use std::sync::Arc;

    use loom::sync::Condvar;
    use loom::thread;

    use super::*;

    /// The event that ends a core's sleep; pending until then.
    struct Interrupt(loom::sync::Mutex<bool>, Condvar);

    impl Interrupt {
        fn send(&self) {
            *self.0.lock().expect("nobody panics") = true;
            self.1.notify_one();
        }

        fn wait(&self) {
            let mut pending = self.0.lock().expect("nobody panics");
            while !*pending {
                pending = self.1.wait(pending).expect("nobody panics");
            }
            *pending = false;
        }
    }

    /// A core that runs `tasks` tasks, which as many others make runnable, in all orders with at
    /// most so many `switches` that nothing forces. A pending interrupt ends the sleep at once, as
    /// `sti; hlt` does.
    fn tasks_run(tasks: u32, switches: Option<usize>, rest: fn(&RunQueue<u32>, &Interrupt)) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = switches;
        model.check(move || {
            let shared = Arc::new((
                RunQueue::new(),
                Interrupt(loom::sync::Mutex::new(false), Condvar::new()),
            ));
            let others: Vec<_> = (0..tasks)
                .map(|task| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let (queue, interrupt) = &*shared;
                        if queue.push(task) {
                            interrupt.send();
                        }
                    })
                })
                .collect();
            let (queue, interrupt) = &*shared;
            let mut ran = 0;
            while ran < tasks {
                match queue.pop() {
                    Some(_) => ran += 1,
                    None => rest(queue, interrupt),
                }
            }
            others
                .into_iter()
                .for_each(|other| other.join().expect("it pushes and ends"));
        });
    }

    #[test]
    fn no_task_is_slept_over() {
        tasks_run(1, None, |queue, interrupt| queue.rest(|| interrupt.wait()));
        // All orders of three threads take minutes; few bugs need more than two switches that
        // nothing forces.
        tasks_run(2, Some(2), |queue, interrupt| {
            queue.rest(|| interrupt.wait())
        });
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn looking_before_the_flag_is_set_is_found() {
        tasks_run(1, None, |queue, interrupt| {
            if queue.is_empty() {
                queue.idle.store(true, Ordering::SeqCst);
                interrupt.wait();
            }
            queue.idle.store(false, Ordering::SeqCst);
        });
    }
}

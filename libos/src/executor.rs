//! An executor per core: a queue of runnable tasks, and sleep when it is empty.
//!
//! A task stays on the core it was spawned on. Wakers may be used anywhere: in an interrupt handler, on another core.
//! A task that polls a device does so by [`yield_now`] in a loop, which keeps the core awake and lets the other tasks
//! run; after some microseconds without success it arms the device's interrupt and awaits that, and the core sleeps.

use alloc::collections::VecDeque;
use core::pin::Pin;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};

use async_task::Runnable;
use spin::Mutex;
use x86_64::instructions::interrupts;

use crate::core_local::{self, CoreLocal};
use crate::{apic, time, timer};

/// A spawned task. Dropping it cancels the task; [`Task::detach`] lets it run on; awaiting it gives its result.
pub type Task<T> = async_task::Task<T>;

/// One core's runnable tasks.
pub(crate) struct RunQueue {
    /// The heap's lock is taken under it, and no other.
    tasks: Mutex<VecDeque<Runnable>>,
}

impl RunQueue {
    pub(crate) fn new() -> Self {
        Self { tasks: Mutex::new(VecDeque::with_capacity(64)) }
    }

    fn pop(&self) -> Option<Runnable> {
        self.tasks.lock().pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.lock().is_empty()
    }
}

/// Makes a task runnable on its core and wakes the core if it sleeps.
fn enqueue(core: &'static CoreLocal, task: Runnable) {
    core.queue.tasks.lock().push_back(task);
    // Pairs with `rest`: either it sees the task or this sees that it sleeps.
    if core.idle.swap(false, Ordering::SeqCst) && core.index != core_local::current() {
        apic::interrupt(core.apic_id, apic::CALL_VECTOR);
    }
}

/// Starts a task on this core.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Task<T> {
    spawn_on(core_local::current(), task)
}

/// Starts a task on the core numbered `core`.
///
/// # Panics
///
/// When no such core runs (see [`crate::cores`]).
pub fn spawn_on<T: Send + 'static>(
    core: usize,
    task: impl Future<Output = T> + Send + 'static,
) -> Task<T> {
    let core = core_local::get(core).expect("no such core runs");
    let (runnable, task) = async_task::spawn(task, move |runnable| enqueue(core, runnable));
    runnable.schedule();
    task
}

/// Lets the core's other tasks run, and interrupts in.
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// Ready at the second poll. See [`yield_now`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Runs this core's tasks for ever.
pub(crate) fn run() -> ! {
    let core = core_local::this();
    loop {
        if core.timers.next() != u64::MAX {
            core.timers.fire(time::now());
        }
        match core.queue.pop() {
            Some(task) => {
                task.run();
                let_interrupts_in();
            }
            None => rest(core),
        }
    }
}

/// Takes the interrupts that are pending.
fn let_interrupts_in() {
    interrupts::enable();
    // Interrupts are taken after the instruction that follows.
    x86_64::instructions::nop();
    interrupts::disable();
}

/// Sleeps until an interrupt. No wake-up is lost: a task queued before the flag is seen here, one queued after it comes
/// with an interrupt, and `sti; hlt` leaves no gap between letting it in and sleeping.
fn rest(core: &CoreLocal) {
    core.idle.store(true, Ordering::SeqCst);
    if core.queue.is_empty() {
        timer::arm(core, core.timers.next());
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
    core.idle.store(false, Ordering::SeqCst);
}

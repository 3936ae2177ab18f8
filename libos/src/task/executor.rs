//! An executor per core: a queue of runnable tasks, and sleep when it is empty.
//!
//! A task stays on the core it was spawned on. Wakers may be used anywhere: in an interrupt
//! handler, on another core. A task that polls a device does so by [`yield_now`] in a loop, which
//! keeps the core awake and lets the other tasks run; after some microseconds without success it
//! arms the device's interrupt and awaits that, and the core sleeps.

use core::pin::Pin;
use core::task::{Context, Poll};

use async_task::Runnable;
use x86_64::instructions::interrupts;

use crate::cpu::apic;
use crate::cpu::core_local::{self, CoreLocal};
use crate::task::{time, timer};

/// A spawned task. Dropping it cancels the task; [`Task::detach`] lets it run on; awaiting it gives
/// its result.
pub type Task<T> = async_task::Task<T>;

/// Makes a task runnable on its core and wakes the core if it sleeps.
fn enqueue(core: &'static CoreLocal, task: Runnable) {
    // The queue's lock makes the task visible before the interrupt, and `push` said that the core
    // sleeps or is about to. On its own core nothing sleeps: this runs there.
    if core.queue.push(task) && core.index != core_local::current() {
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

/// Sleeps until an interrupt, unless a task comes: `sti; hlt` leaves no gap between letting
/// interrupts in and sleeping.
fn rest(core: &CoreLocal) {
    core.queue.rest(|| {
        timer::arm(core, core.timers.next());
        // STI lets no interrupt in before the instruction that follows has begun, so none is served
        // between the look at the queue and HLT (Intel SDM volume 2B, STI).
        interrupts::enable_and_hlt();
        interrupts::disable();
    });
}

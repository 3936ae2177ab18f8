//! The executor: one thread, one task at a time, in an order that follows from the seed.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::world::{Bed, Event, Life, World};

type Body = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks woken and tasks spawned since the executor's last turn.
#[derive(Default)]
pub(crate) struct Ready {
    woken: Mutex<Vec<usize>>,
    spawned: Mutex<Vec<(Life, Body)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ready {
    pub(crate) fn spawn(&self, life: Life, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.spawned).push((life, Box::pin(task)));
    }
}

struct TaskWaker {
    task: usize,
    /// The task is woken already and had no turn since.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            lock(&self.ready.woken).push(self.task);
        }
    }
}

struct Task {
    life: Life,
    body: Body,
    waker: Arc<TaskWaker>,
    /// Turns since someone last asked.
    turns: u32,
}

/// The tasks of all nodes. Numbers of tasks are never used again.
pub(crate) struct Executor {
    bed: Arc<Bed>,
    tasks: Vec<Option<Task>>,
}

impl Executor {
    pub(crate) fn new(bed: Arc<Bed>) -> Self {
        Self {
            bed,
            tasks: Vec::new(),
        }
    }

    /// Schedules a turn for each task that was spawned or woken, at its node's processor.
    pub(crate) fn collect(&mut self) {
        let ready = Arc::clone(&self.bed.ready);
        for (life, body) in std::mem::take(&mut *lock(&ready.spawned)) {
            let task = self.tasks.len();
            let waker = Arc::new(TaskWaker {
                task,
                queued: AtomicBool::new(false),
                ready: Arc::clone(&ready),
            });
            waker.wake_by_ref();
            let turns = 0;
            self.tasks.push(Some(Task {
                life,
                body,
                waker,
                turns,
            }));
        }
        let mut woken = lock(&ready.woken);
        if woken.is_empty() {
            return;
        }
        let mut world = self.bed.world();
        for task in woken.drain(..) {
            if let Some(life) = self.tasks[task].as_ref().map(|task| task.life) {
                give_turn(&mut world, life, task);
            }
        }
    }

    /// Runs one turn of a task.
    pub(crate) fn run(&mut self, index: usize) {
        let Some(task) = &mut self.tasks[index] else {
            return;
        };
        let life = task.life;
        {
            let mut world = self.bed.world();
            let now = world.now;
            world
                .trace
                .event(now, 1, [index as u64, life.node as u64, 0]);
            let cpu = world.living(life).map(|node| node.cpu);
            let stopped = cpu.map(|cpu| cpu.stopped_until.max(cpu.busy_until));
            if let Some(until) = stopped.filter(|until| *until > now) {
                return world.schedule(until, Event::Run(index));
            }
        }
        task.turns += 1;
        task.waker.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&task.waker));
        let done = task.body.as_mut().poll(&mut Context::from_waker(&waker));
        if done == Poll::Ready(()) {
            self.tasks[index] = None;
        }
    }

    /// Returns the node and number of turns of the task with most turns since the last call.
    pub(crate) fn busiest(&mut self) -> Option<(usize, u32)> {
        let tasks = self.tasks.iter_mut().flatten();
        tasks
            .map(|task| (task.life.node, std::mem::take(&mut task.turns)))
            .max_by_key(|(_, turns)| *turns)
    }

    /// Ends all tasks of a node.
    pub(crate) fn end_tasks(&mut self, node: usize) {
        for task in &mut self.tasks {
            if task.as_ref().is_some_and(|task| task.life.node == node) {
                *task = None;
            }
        }
        // What a dying task spawned or woke has no node any more; `collect` and `run` pass over it.
        lock(&self.bed.ready.spawned).retain(|(life, _)| life.node != node);
    }
}

fn give_turn(world: &mut World, life: Life, task: usize) {
    let latency = world.rng.between(50, 400);
    let cost = world.rng.between(50, 300);
    let now = world.now;
    let slow = world.living(life).map_or(0, |node| node.cpu.slow);
    let late = if slow > 0 { world.rng.below(slow) } else { 0 };
    let Some(node) = world.living(life) else {
        return;
    };
    let at = (now + latency).max(node.cpu.free_at) + late;
    node.cpu.free_at = (now + latency).max(node.cpu.free_at) + cost;
    world.schedule(at, Event::Run(task));
}

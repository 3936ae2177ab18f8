//! Tasks of machines in this process, in real time: a driver's service, and what uses the driver.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::thread::sleep;
use std::time::Duration;

/// Poll interval of waiting tasks. They have no wakers: interrupts and deadlines are polled.
const PAUSE: Duration = Duration::from_micros(100);

/// Tasks that run beside a main one, all on the caller's thread.
#[derive(Default)]
pub struct Tasks {
    tasks: Vec<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Tasks {
    /// Runs a task beside whatever [`block_on`](Self::block_on) runs.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        self.tasks.push(Box::pin(task));
    }

    /// Runs until `main` ends. The other tasks stay where they are until the next call.
    pub fn block_on<T>(&mut self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
                return value;
            }
            self.tasks
                .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            sleep(PAUSE);
        }
    }
}

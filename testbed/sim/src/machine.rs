//! One life of a simulated machine: the hal.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};

use hal::{
    BusAddr, ConfigSpace, DmaBuffer, Duration, Error, Instant, InterruptVector, Platform, Registers,
};

use crate::memory::Guard;
use crate::world::{Bed, Life, World};

/// Time that a yield takes.
const YIELD: u64 = 200;
/// Interval of FIT's control task.
const TICK: u64 = 5_000_000;

/// One life of a machine. After the machine's crash nothing that it does has an effect.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) bed: Arc<Bed>,
    pub(crate) life: Life,
}

impl Machine {
    /// Does something with the world, while this life lasts.
    pub(crate) fn living<T>(&self, action: impl FnOnce(&mut World) -> T) -> Option<T> {
        let mut world = self.bed.world();
        world.living(self.life)?;
        Some(action(&mut world))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.bed.ready.spawn(self.life, task);
    }

    /// Computes for a number of real nanoseconds, in which nothing else runs on this machine.
    pub(crate) async fn compute(&self, span: u64) {
        self.living(|world| {
            let until = world.now + span;
            world.nodes[self.life.node].cpu.busy_until = until;
            world.stats.count("handler that computes");
        });
        self.pause(span).await;
    }

    /// Waits a number of real nanoseconds.
    pub(crate) fn pause(&self, span: u64) -> Sleep {
        Sleep {
            machine: self.clone(),
            span,
            timer: None,
        }
    }
}

/// A wait for a point in time.
pub(crate) struct Sleep {
    machine: Machine,
    span: u64,
    timer: Option<(usize, u64)>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut world = self.machine.bed.world();
        let timer = match self.timer {
            Some(timer) if !world.timer_runs(timer) => return Poll::Ready(()),
            Some(_) => return Poll::Pending,
            None => world.start_timer(self.span, context.waker().clone()),
        };
        drop(world);
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        // A sleep that nobody waits for wakes nobody: a task must not live on wakes that it did not
        // ask for.
        if let Some(timer) = self.timer {
            self.machine.bed.world().end_timer(timer);
        }
    }
}

/// A piece of a machine's memory.
pub(crate) struct Buffer {
    machine: Machine,
    addr: u64,
    len: usize,
}

impl Buffer {
    /// Says who may touch it.
    pub(crate) fn guard(&self, guard: Guard) {
        self.machine.living(|world| {
            world.nodes[self.machine.life.node]
                .memory
                .set_guard(self.addr, guard)
        });
    }

    fn with<T>(&self, offset: usize, len: usize, action: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of a buffer of {}",
            self.len
        );
        let at = self.addr + offset as u64;
        self.machine
            .living(|world| {
                world.nodes[self.machine.life.node]
                    .memory
                    .bytes(at, len)
                    .map(action)
            })
            .flatten()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.machine
            .living(|world| world.nodes[self.machine.life.node].memory.free(self.addr));
    }
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.addr)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.with(offset, into.len(), |bytes| into.copy_from_slice(bytes));
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.with(offset, from.len(), |bytes| bytes.copy_from_slice(from));
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.with(offset, len, |bytes| bytes.fill(value));
    }
    fn read_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn read_u64(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// Stand-in for what a simulated machine lacks: registers, configuration space, vectors of its own.
/// It has no value.
pub(crate) enum NoHardware {}

impl Registers for NoHardware {
    fn len(&self) -> usize {
        match *self {}
    }
    fn read_u32(&self, _: usize) -> u32 {
        match *self {}
    }
    fn write_u32(&self, _: usize, _: u32) {
        match *self {}
    }
    fn write_u64(&self, _: usize, _: u64) {
        match *self {}
    }
}

impl InterruptVector for NoHardware {
    async fn wait(&self) {
        match *self {}
    }
}

/// An empty configuration space.
pub(crate) struct NoConfig;

impl ConfigSpace for NoConfig {
    fn read_u32(&self, _: u16) -> u32 {
        u32::MAX
    }
    fn write_u32(&self, _: u16, _: u32) {}
}

impl Platform for Machine {
    type Bar = NoHardware;
    type Config = NoConfig;
    type Buffer = Buffer;
    type Vector = NoHardware;

    fn map_bar(&self, index: u8) -> Result<NoHardware, Error> {
        Err(Error::NoBar { index })
    }

    fn config(&self) -> NoConfig {
        NoConfig
    }

    fn alloc(&self, len: usize, align: usize) -> Result<Buffer, Error> {
        let addr = self.living(|world| world.nodes[self.life.node].memory.alloc(len, align));
        let addr = addr.ok_or(Error::NoDmaMemory { len })?;
        Ok(Buffer {
            machine: self.clone(),
            addr,
            len,
        })
    }

    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = NoHardware> + use<>, Error> {
        Err::<Vec<NoHardware>, _>(Error::TooFewVectors {
            wanted: count,
            have: 0,
        })
    }

    fn now(&self) -> Instant {
        let world = self.bed.world();
        Instant::from_nanos(world.nodes[self.life.node].clock.local(world.now))
    }

    async fn sleep(&self, span: Duration) {
        let span = u64::try_from(span.as_nanos())
            .unwrap_or(u64::MAX >> 2)
            .max(YIELD);
        let real = self.living(|world| world.nodes[self.life.node].clock.real(span));
        match real {
            // The deliberate bug: after a while nobody looks at deadlines any more.
            Some(_) if span == TICK && self.living(|world| world.clock_stands()) == Some(true) => {
                poll_fn(|_| Poll::Pending).await
            }
            Some(real) => self.pause(real).await,
            None => poll_fn(|_| Poll::Pending).await,
        }
    }
}

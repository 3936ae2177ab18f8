//! The hal of a machine: memory, time, and nothing else.

use std::future::poll_fn;
use std::task::Poll;

use hal::{
    BusAddr, ConfigSpace, DmaBuffer, Duration, Error, Instant, InterruptVector, Platform, Registers,
};

use super::*;

/// A piece of a machine's memory; never given back.
pub(crate) struct Buffer {
    pub(super) machine: Machine,
    pub(super) addr: u64,
    pub(super) len: usize,
}

impl DmaBuffer for Buffer {
    fn bus_addr(&self) -> BusAddr {
        BusAddr(self.addr)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        let len = u32::try_from(into.len()).expect("short");
        let at = self.addr + offset as u64;
        self.machine
            .bed
            .with(|world| into.copy_from_slice(world.nodes[self.machine.node].at(at, len)));
    }
    fn write(&self, offset: usize, from: &[u8]) {
        let len = u32::try_from(from.len()).expect("short");
        let at = self.addr + offset as u64;
        self.machine.bed.with(|world| {
            world.nodes[self.machine.node]
                .at(at, len)
                .copy_from_slice(from)
        });
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.write(offset, &vec![value; len]);
    }
    fn read_u32(&self, _: usize) -> u32 {
        unreachable!("FIT uses no words")
    }
    fn write_u32(&self, _: usize, _: u32) {
        unreachable!("FIT uses no words")
    }
    fn read_u64(&self, _: usize) -> u64 {
        unreachable!("FIT uses no words")
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!("FIT uses no words")
    }
}

/// Stand-in for what these machines lack: registers, configuration space and vectors. It has no
/// value.
pub(crate) enum Nothing {}

impl Registers for Nothing {
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

impl ConfigSpace for Nothing {
    fn read_u32(&self, _: u16) -> u32 {
        match *self {}
    }
    fn write_u32(&self, _: u16, _: u32) {
        match *self {}
    }
}

impl InterruptVector for Nothing {
    async fn wait(&self) {
        match *self {}
    }
}

impl Platform for Machine {
    type Bar = Nothing;
    type Config = Nothing;
    type Buffer = Buffer;
    type Vector = Nothing;

    fn map_bar(&self, index: u8) -> Result<Nothing, Error> {
        Err(Error::NoBar { index })
    }
    fn config(&self) -> Nothing {
        unreachable!("no machine of this bed has a bus")
    }
    fn alloc(&self, len: usize, _: usize) -> Result<Buffer, Error> {
        let addr = self.bed.with(|world| {
            let node = &mut world.nodes[self.node];
            let addr = node.given;
            node.given = (addr + len).next_multiple_of(64);
            assert!(node.given <= MEMORY, "a larger memory is needed");
            addr as u64
        });
        Ok(Buffer {
            machine: self.clone(),
            addr,
            len,
        })
    }
    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Nothing> + use<>, Error> {
        Err::<Vec<Nothing>, _>(Error::TooFewVectors {
            wanted: count,
            have: 0,
        })
    }
    fn now(&self) -> Instant {
        self.bed.with(|world| world.now)
    }
    async fn sleep(&self, span: Duration) {
        if span.is_zero() {
            return shuttle::future::yield_now().await;
        }
        let until = self.now() + span;
        poll_fn(|context| {
            self.bed.with(|world| {
                if world.now >= until {
                    return Poll::Ready(());
                }
                world.sleepers.push((until, context.waker().clone()));
                Poll::Pending
            })
        })
        .await;
    }
}

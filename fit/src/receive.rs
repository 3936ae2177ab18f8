//! A connection's receives: each has its place for good, and is the device's or ours.

use alloc::boxed::Box;
use core::slice;

use hal::BusAddr;
use verbs::{Lkey, QpSlot, QueueSet, Sge};

use crate::config::Layout;

/// A receive: where its message goes, reckoned once.
#[derive(Debug)]
pub(crate) struct Receive {
    index: u16,
    /// Offset in the connection's memory.
    at: usize,
    piece: Sge,
    /// Whether it is posted, and its completion will be looked at.
    posted: bool,
}

impl Receive {
    /// Returns the offset of its message in the connection's memory.
    #[inline(always)]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Gives it to the device.
    #[inline(always)]
    pub(crate) fn post<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        qp: QpSlot,
    ) -> Result<(), verbs::Error> {
        self.posted = true;
        queues.post_receive(qp, self.index.into(), slice::from_ref(&self.piece))
    }
}

/// A connection's receives.
#[derive(Debug)]
pub(crate) struct Receives(Box<[Receive]>);

impl Receives {
    /// Makes all of a connection whose memory the device sees at `memory`.
    pub(crate) fn new(layout: &Layout, memory: BusAddr, lkey: Lkey) -> Self {
        let one = |index: u16| {
            let at = layout.receive(index.into());
            Receive {
                index,
                at,
                piece: Sge {
                    addr: memory.offset(at).0,
                    len: layout.message_size(),
                    lkey,
                },
                posted: false,
            }
        };
        Self((0..layout.receives()).map(one).collect())
    }

    #[inline(always)]
    pub(crate) fn get(&mut self, index: u16) -> &mut Receive {
        &mut self.0[usize::from(index)]
    }

    /// Returns the offset of a receive's message in the connection's memory.
    pub(crate) fn at(&self, index: u16) -> usize {
        self.0[usize::from(index)].at
    }

    /// Takes one from the device: its number, and where its message is. Nothing if the device does
    /// not have it.
    #[inline(always)]
    pub(crate) fn take(&mut self, id: u64) -> Option<(u16, usize)> {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let receive = self.0.get_mut(index)?;
        core::mem::take(&mut receive.posted).then_some((receive.index, receive.at))
    }

    /// The connection is lost: what still arrives is dropped.
    pub(crate) fn forget_all(&mut self) {
        self.0.iter_mut().for_each(|receive| receive.posted = false);
    }

    /// Receives that the device holds.
    #[cfg(test)]
    pub(crate) fn posted(&self) -> usize {
        self.0.iter().filter(|receive| receive.posted).count()
    }
}

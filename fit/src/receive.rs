//! A connection's receives: each has its place for good, and is the device's or ours.

use alloc::boxed::Box;
use core::slice;

use hal::{BusAddr, DmaBuffer};
use verbs::{Lkey, PostError, QpSlot, QueueSet, Sge};

use crate::config::Layout;
use crate::link::Link;
use crate::{LinkState, LostCause};

/// A receive: where its message goes, reckoned once.
#[derive(Debug)]
pub(crate) struct Receive {
    index: u16,
    /// Offset in the connection's memory.
    pub(crate) at: usize,
    piece: Sge,
    /// Whether it is posted, and its completion will be looked at.
    posted: bool,
}

impl Receive {
    /// All of a connection whose memory the device sees at `memory`.
    pub(crate) fn all(layout: &Layout, memory: BusAddr, lkey: Lkey) -> Box<[Self]> {
        let one = |index: u16| {
            let at = layout.receive(index.into());
            Self {
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
        (0..layout.receives()).map(one).collect()
    }

    /// Takes it from the device: its number, and where its message is. Nothing if the device does
    /// not have it.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> Option<(u16, usize)> {
        core::mem::take(&mut self.posted).then_some((self.index, self.at))
    }

    /// Detaches the receive from its call: a message that still arrives in it is dropped.
    pub(crate) fn forget(&mut self) {
        self.posted = false;
    }

    /// Gives it to the device.
    #[inline(always)]
    pub(crate) fn post<Q: QueueSet>(
        &mut self,
        queues: &mut Q,
        qp: QpSlot,
    ) -> Result<(), PostError> {
        self.posted = true;
        queues.post_receive(qp, self.index.into(), slice::from_ref(&self.piece))
    }
}

impl<M: DmaBuffer> Link<M> {
    /// Posts every receive. Before the peer can know of the queue pair.
    pub(crate) fn post_receives<Q: QueueSet>(&mut self, queues: &mut Q) {
        for index in 0..self.layout.receives() {
            self.post_receive(queues, index);
        }
    }

    /// Gives a receive to the device, unless the connection is lost.
    #[inline]
    pub(crate) fn post_receive<Q: QueueSet>(&mut self, queues: &mut Q, index: u16) {
        if matches!(self.state, LinkState::Failing | LinkState::Down) {
            return;
        }
        if let Err(error) = self.receives[usize::from(index)].post(queues, self.qp) {
            self.on_refused_receive(&error);
        }
    }

    /// Ends the connection: as for sends, the credits make a refused receive impossible.
    #[cold]
    pub(crate) fn on_refused_receive(&mut self, error: &PostError) {
        log::error!("{}: {error}", self.peer);
        self.fail(LostCause::Device);
    }

    /// Receives that the device holds.
    #[cfg(test)]
    pub(crate) fn receives_posted(&self) -> usize {
        self.receives
            .iter()
            .filter(|receive| receive.posted)
            .count()
    }
}

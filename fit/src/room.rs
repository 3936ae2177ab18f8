//! Waiting for room: the future that starts something as soon as there is a slot for it.

use core::future::poll_fn;
use core::task::Poll;

use hal::{Instant, Platform};
use verbs::Device;

use crate::node::Core;
use crate::shared::CoreEngine;
use crate::turns::{Room, Ticket};
use crate::{Error, Operation, PeerId};

/// A task's place among those who wait; it is given up when this is dropped.
struct Place<'a, D: Device, P: Platform> {
    core: &'a Core<D, P>,
    peer: PeerId,
    room: Room,
    ticket: Option<Ticket>,
}

impl<D: Device, P: Platform> Drop for Place<'_, D, P> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.core.engine().leave(self.peer, self.room, ticket);
        }
    }
}

impl<D: Device, P: Platform> Core<D, P> {
    /// Starts something as soon as there is a slot for it and nobody waits who came before.
    pub(crate) async fn started<T>(
        &self,
        peer: PeerId,
        operation: Operation,
        deadline: Instant,
        mut start: impl FnMut(&mut CoreEngine<D, P>, Instant) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let began = self.inner.platform.now();
        let mut place = Place {
            core: self,
            peer,
            room: operation.into(),
            ticket: None,
        };
        let started = poll_fn(|context| {
            let now = self.inner.platform.now();
            let mut engine = self.engine();
            if engine.is_turn(peer, place.room, place.ticket)
                && let Some(id) = start(&mut engine, now)?
            {
                return Poll::Ready(Ok(id));
            }
            if now >= deadline {
                let (peer, state) = (engine.name(peer)?, engine.state(peer)?);
                return Poll::Ready(Err(Error::Deadline {
                    peer,
                    operation,
                    age: now.since(began),
                    state,
                }));
            }
            let line = (peer, place.room);
            place.ticket = Some(engine.wait_for_turn(line, place.ticket, context.waker())?);
            Poll::Pending
        })
        .await;
        match started {
            Err(error) if place.ticket.is_some() => {
                Err(self.cut_short(peer, (operation, began), error))
            }
            started => started,
        }
    }
}

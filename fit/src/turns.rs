//! Turns of the tasks that wait for room: for each peer and kind of room a line, served in order.
//!
//! Whoever comes while others wait goes to the line's end, and only its head may start something.
//! When the head has started or given up, the next is woken: there may be room for it too.
//!
//! A head that nobody polls (its task waits for something else, or the future was leaked) would
//! hold up all behind it. So each [`tick`](Turns::tick) wakes everyone, and a head that has not
//! been polled since a tick [`PATIENCE`] ago goes to the end of its line. Nobody else is
//! overtaken, but by accesses that never wait (`Core::start_read`, `Batch::add`).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;

use hal::{Duration, Instant};
use mutants::Mutant;

use crate::waiters::TooMany;
use crate::{Operation, PeerId};

/// Time that a head that was woken may leave unused: several ticks, in each of which a task that is
/// ready is polled.
pub(crate) const PATIENCE: Duration = Duration::from_millis(20);

/// Kinds of room, which becomes free apart from the others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Slots of calls.
    Calls,
    /// Credit for one-way messages.
    Messages,
    /// Slots of READs and WRITEs.
    Accesses,
}

impl From<Operation> for Room {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Call(_) => Self::Calls,
            Operation::OneWay(_) => Self::Messages,
            Operation::Read | Operation::Write => Self::Accesses,
        }
    }
}

/// A place in a line; no two are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    waker: Waker,
    /// Time of the first tick since it was polled.
    woken: Option<Instant>,
}

/// Those who wait for one kind of room to one peer. It has at least one waiter.
#[derive(Debug)]
struct Line {
    peer: PeerId,
    room: Room,
    waiters: VecDeque<Waiter>,
}

/// All lines of a core.
#[derive(Debug)]
pub(crate) struct Turns {
    lines: Vec<Line>,
    tickets: u64,
    /// Number of waiters of a line at most.
    max: usize,
}

impl Turns {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            lines: Vec::new(),
            tickets: 0,
            max,
        }
    }

    fn line(&self, peer: PeerId, room: Room) -> Option<usize> {
        let mut lines = self.lines.iter();
        lines.position(|line| line.peer == peer && line.room == room)
    }

    /// Returns whether whoever holds `ticket`, or none yet, may start something.
    #[inline]
    pub(crate) fn is_turn(&self, peer: PeerId, room: Room, ticket: Option<Ticket>) -> bool {
        self.lines.is_empty() || self.is_head(peer, room, ticket)
    }

    #[inline(never)]
    fn is_head(&self, peer: PeerId, room: Room, ticket: Option<Ticket>) -> bool {
        let Some(line) = self.line(peer, room) else {
            return true;
        };
        let head = self.lines[line].waiters.front();
        head.is_none_or(|head| Some(head.ticket) == ticket) || Mutant::WaitersOvertaken.on()
    }

    /// Keeps the waker of whoever could not start: at its place, or at the end of the line.
    pub(crate) fn wait(
        &mut self,
        (peer, room): (PeerId, Room),
        ticket: Option<Ticket>,
        waker: &Waker,
    ) -> Result<Ticket, TooMany> {
        let line = self.line(peer, room).unwrap_or_else(|| {
            let waiters = VecDeque::new();
            self.lines.push(Line {
                peer,
                room,
                waiters,
            });
            self.lines.len() - 1
        });
        let waiters = &mut self.lines[line].waiters;
        if let Some(known) = waiters
            .iter_mut()
            .find(|waiter| Some(waiter.ticket) == ticket)
        {
            known.waker.clone_from(waker);
            known.woken = None;
            return Ok(known.ticket);
        }
        if waiters.len() >= self.max {
            return Err(TooMany { limit: self.max });
        }
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        waiters.push_back(Waiter {
            ticket,
            waker: waker.clone(),
            woken: None,
        });
        Ok(ticket)
    }

    /// Takes a waiter that has started or given up out of its line.
    pub(crate) fn leave(&mut self, peer: PeerId, room: Room, ticket: Ticket) {
        let Some(line) = self.line(peer, room) else {
            return;
        };
        let waiters = &mut self.lines[line].waiters;
        let Some(place) = waiters.iter().position(|waiter| waiter.ticket == ticket) else {
            return;
        };
        waiters.remove(place);
        match waiters.front() {
            None => drop(self.lines.swap_remove(line)),
            Some(next) if place == 0 && !Mutant::NextNotWoken.on() => next.waker.wake_by_ref(),
            Some(_) => {}
        }
    }

    /// Wakes everyone, as each has a deadline, and lets no head wait that is not polled.
    pub(crate) fn tick(&mut self, now: Instant) {
        for line in &mut self.lines {
            let head = line.waiters.front_mut();
            let late = head.is_some_and(|head| {
                let woken = *head.woken.get_or_insert(now);
                now.since(woken) >= PATIENCE
            });
            if late
                && !Mutant::UnpolledHeadStays.on()
                && let Some(mut head) = line.waiters.pop_front()
            {
                head.woken = None;
                line.waiters.push_back(head);
            }
            for waiter in &line.waiters {
                waiter.waker.wake_by_ref();
            }
        }
    }
}

#[cfg(test)]
mod tests;

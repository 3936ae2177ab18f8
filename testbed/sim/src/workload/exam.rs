//! Exam: the operations that must work once faults are over.

use fit::{Core, Error, OneSided};
use futures_util::future::join_all;

use super::answers::PLACE;
use super::link::{Link, Session};
use crate::hca::Hca;
use crate::machine::Machine;
use crate::memory::Guard;
use crate::rule::Rule;

impl Link {
    /// Shows that the peer answers, and that every slot of the connection is free.
    pub(super) async fn exam(&mut self, session: &mut Session) -> Result<(), Error> {
        self.burst(session.peer, 1).await?;
        // Replies to calls that were given up come in meanwhile.
        self.node.machine.pause(1_000_000_000).await;
        let waits = |core: &Core<Hca, Machine>| {
            let counters = core.link_counters();
            counters
                .iter()
                .find(|(id, ..)| *id == session.peer)
                .map(|(.., counters)| counters.nr_back_pressure)
        };
        let before = waits(&self.core);
        let machine = &self.node.machine;
        let other = machine.living(|world| world.life(self.peer));
        let ours = self.node.plan.shape(machine.life);
        let theirs = other.map_or(ours, |life| self.node.plan.shape(life));
        self.burst(session.peer, ours.calls.min(theirs.serves).into())
            .await?;
        if waits(&self.core) != before {
            self.wrong(Rule::Credits, "not every slot for calls is free at rest");
        }
        if !self.all_slots(session).await? {
            return Ok(());
        }
        let pair = (self.node.machine.life.node, self.peer);
        self.node
            .machine
            .living(|world| world.check.passed.insert(pair));
        Ok(())
    }

    /// Returns whether READs and WRITEs in all slots work at once; false if the peer lends no
    /// memory now.
    async fn all_slots(&self, session: &mut Session) -> Result<bool, Error> {
        let Some(place) = self.place(session).await? else {
            return Ok(false);
        };
        session.second.buffer.guard(Guard::Lent);
        let mut tickets = Vec::new();
        let mut refused = None;
        {
            let mut batch = self.core.batch(session.peer);
            for _ in 0..self.node.plan.shape(self.node.machine.life).one_sided {
                match batch.add(OneSided::Read, place.at, session.second.sge(PLACE)) {
                    Ok(Some(ticket)) => tickets.push(ticket),
                    Ok(None) => self.wrong(
                        Rule::Credits,
                        "not every slot for READs and WRITEs is free at rest",
                    ),
                    Err(error) => refused = Some(error),
                }
            }
        }
        let ended = join_all(tickets).await;
        session.second.buffer.guard(Guard::Owned);
        refused.map_or(Ok(()), Err)?;
        ended
            .into_iter()
            .collect::<Result<(), Error>>()
            .map(|()| true)
    }
}

//! READs and WRITEs of all kinds.

use fit::{Error, OneSided};
use futures_util::future::join_all;
use hal::DmaBuffer;

use super::answers::PLACE;
use super::link::{Link, Session};
use super::pattern;
use crate::memory::Guard;
use crate::rule::Rule;
use crate::sabotage::Sabotage;

impl Link {
    /// Does a WRITE.
    pub(super) async fn write(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some(place) = self.place(session).await? else {
            return Ok(());
        };
        let number = self.open(session.peer, "a WRITE");
        let bytes = pattern(number, PLACE);
        session.local.buffer.write(0, &bytes);
        session.local.buffer.guard(Guard::Lent);
        let ended = self
            .core
            .write(session.peer, session.local.sge(PLACE), place.at)
            .await;
        session.local.buffer.guard(Guard::Owned);
        self.close(number, ended.is_ok());
        self.wrote(session, bytes, ended)
    }

    /// Handles the end of a WRITE.
    fn wrote(
        &self,
        session: &mut Session,
        bytes: Vec<u8>,
        ended: Result<(), Error>,
    ) -> Result<(), Error> {
        match (&ended, session.place) {
            (Ok(()), Some(place)) => {
                let machine = &self.node.machine;
                if !self.is_with_rogue() {
                    machine.living(|world| world.check_written(place.of, place.at, &bytes));
                }
                session.written = Some(bytes);
            }
            // It may or may not have happened, or still happen.
            _ => session.place = None,
        }
        ended
    }

    /// Checks that a READ returned the bytes written last, if they are known.
    fn check_read(&self, session: &Session, what: &str) {
        let bytes = session.second.bytes(PLACE);
        if session
            .written
            .as_ref()
            .is_some_and(|written| *written != bytes)
        {
            self.wrong(Rule::Content, what);
        }
    }

    /// Does a READ.
    pub(super) async fn read(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some(place) = self.place(session).await? else {
            return Ok(());
        };
        let number = self.open(session.peer, "a READ");
        session.second.buffer.fill(0, PLACE, 0xa5);
        session.second.buffer.guard(Guard::Lent);
        let ended = self
            .core
            .read(session.peer, place.at, session.second.sge(PLACE))
            .await;
        session.second.buffer.guard(Guard::Owned);
        self.close(number, ended.is_ok());
        ended?;
        self.check_read(session, "a READ does not bring what was written last");
        Ok(())
    }

    /// Does a WRITE and a READ of the same place behind it, with one doorbell.
    pub(super) async fn batch(&mut self, session: &mut Session) -> Result<(), Error> {
        if self.node.plan.shape(self.node.machine.life).one_sided < 2 {
            return Ok(());
        }
        let Some(place) = self.place(session).await? else {
            return Ok(());
        };
        let peer = session.peer;
        let numbers = [
            self.open(peer, "a WRITE of a batch"),
            self.open(peer, "a READ of a batch"),
        ];
        let bytes = pattern(numbers[0], PLACE);
        session.local.buffer.write(0, &bytes);
        for local in [&session.local, &session.second] {
            local.buffer.guard(Guard::Lent);
        }
        let mut tickets = Vec::new();
        let mut refused = None;
        {
            let mut batch = self.core.batch(peer);
            let both = [
                (OneSided::Write, &session.local),
                (OneSided::Read, &session.second),
            ];
            for (what, local) in both {
                match batch.add(what, place.at, local.sge(PLACE)) {
                    Ok(ticket) => tickets.extend(ticket),
                    Err(error) => refused = Some(error),
                }
            }
            self.scribble(session);
        }
        let whole = tickets.len() == 2;
        let ended = join_all(tickets).await;
        for local in [&session.local, &session.second] {
            local.buffer.guard(Guard::Owned);
        }
        let ok = whole && ended.iter().all(Result::is_ok);
        for number in numbers {
            self.close(number, ok);
        }
        if ok {
            self.wrote(session, bytes, Ok(()))?;
            self.check_read(session, "a READ overtook the WRITE before it");
        } else {
            session.place = None;
        }
        ended
            .into_iter()
            .find_map(Result::err)
            .or(refused)
            .map_or(Ok(()), Err)
    }

    /// Changes posted bytes that are not yet sent: a deliberate bug.
    fn scribble(&self, session: &Session) {
        let machine = &self.node.machine;
        if machine.living(|world| world.sabotaged(Sabotage::ScribbledWrite)) == Some(true) {
            session.local.buffer.fill(0, PLACE, 0x5c);
        }
    }

    /// Does a READ or WRITE that ends by its tag.
    pub(super) async fn tagged(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some(place) = self.place(session).await? else {
            return Ok(());
        };
        let (peer, ends) = (session.peer, &self.node.ends);
        let writes = self.rng.chance(500_000);
        let what = if writes {
            "a WRITE by tag"
        } else {
            "a READ by tag"
        };
        let number = self.open(peer, what);
        let bytes = pattern(number, PLACE);
        let local = if writes {
            &session.local
        } else {
            &session.second
        };
        if writes {
            local.buffer.write(0, &bytes);
        }
        local.buffer.guard(Guard::Lent);
        ends.expect(number);
        let started = if writes {
            self.core
                .start_write(peer, local.sge(PLACE), place.at, number)
        } else {
            self.core
                .start_read(peer, place.at, local.sge(PLACE), number)
        };
        if let Err(error) = started {
            ends.give_up(number);
            local.buffer.guard(Guard::Owned);
            self.close(number, false);
            return Err(error);
        }
        self.free_early(local);
        let ok = ends.wait(number).await;
        local.buffer.guard(Guard::Owned);
        // Whether it is lost, and why, is the connection's to say.
        let ended = if ok {
            Ok(())
        } else {
            Err(Error::NotConnected(peer.0))
        };
        if writes {
            return self.wrote(session, bytes, ended);
        }
        ended?;
        self.check_read(
            session,
            "a READ by tag does not bring what was written last",
        );
        Ok(())
    }

    /// Frees memory while it is lent: a deliberate bug.
    fn free_early(&self, local: &super::local::Local) {
        let node = self.node.machine.life.node;
        self.node.machine.living(|world| {
            if world.sabotaged(Sabotage::FreedBuffer) {
                world.nodes[node].memory.free(local.region.addr);
            }
        });
    }
}

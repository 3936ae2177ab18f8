//! Calls of all kinds.

use std::future::poll_fn;
use std::task::Poll;

use fit::{Call, Error, LinkState, PeerId, Piece};
use futures_util::future::{Either, join_all, select};
use hal::DmaBuffer;
use verbs::Region;

use super::answers::{LEND, Place};
use super::link::{Link, Session};
use super::{BULK, HEAD, MESSAGE, pattern};
use crate::check::Phase;
use crate::memory::Guard;
use crate::rule::Rule;
use crate::sabotage::Sabotage;

/// Bytes by which a message names a piece of memory.
const PIECE: usize = 16;

impl Link {
    /// Builds a request that says how to answer it. Returns it with its answer's length.
    fn request(&mut self, number: u64, [bulk, own_bulk]: [u32; 2]) -> (Vec<u8>, usize) {
        let room = MESSAGE as usize - fit::HEADER_LEN;
        let slow = self.phase() == Phase::Traffic;
        let delay = match self.rng.below(20) {
            0 if slow => self.rng.below(400_000),
            1..4 if slow => self.rng.below(5000),
            _ => 0,
        };
        let reply = self.rng.index(room + 1);
        let mut request = number.to_le_bytes().to_vec();
        for word in [delay, reply as u64, bulk.into(), own_bulk.into()] {
            request.extend_from_slice(&u32::try_from(word).expect("small").to_le_bytes());
        }
        // Two pieces each way are told in the message too.
        let pieces = if bulk + own_bulk > 0 { 4 * PIECE } else { 0 };
        let filler = self.rng.index(room - HEAD - pieces + 1);
        request.extend_from_slice(&pattern(number, filler));
        (request, reply)
    }

    /// Draws the length of a bulk: often 0.
    fn bulk_len(&mut self) -> u32 {
        if self.rng.chance(300_000) {
            u32::try_from(self.rng.between(1, u64::from(BULK))).expect("small")
        } else {
            0
        }
    }

    /// Cuts a bulk into two pieces at a random place; none if it is empty.
    fn pieces(&mut self, region: &Region, len: u32) -> Vec<Piece> {
        if len == 0 {
            return Vec::new();
        }
        let cut = u32::try_from(self.rng.below(len.into())).expect("small");
        vec![
            Piece::of(region, 0, cut),
            Piece::of(region, cut.into(), len - cut),
        ]
    }

    /// Makes a call, perhaps with bulk of the request or of the reply, perhaps given up after a
    /// while.
    pub(super) async fn call(
        &mut self,
        session: &mut Session,
        patience: Option<u64>,
    ) -> Result<(), Error> {
        let (bulk_len, own_len) = (self.bulk_len(), self.bulk_len());
        let number = self.open(session.peer, "a call");
        let (request, reply_len) = self.request(number, [bulk_len, own_len]);
        let (gather, scatter) = (
            self.pieces(&session.second.region, own_len),
            self.pieces(&session.local.region, bulk_len),
        );
        if own_len > 0 {
            let bytes = pattern(number ^ 3, own_len as usize);
            session.second.buffer.write(0, &bytes);
            session.second.buffer.guard(Guard::Lent);
        }
        if bulk_len > 0 {
            session.local.buffer.guard(Guard::Lent);
        }
        let mut reply = [0; MESSAGE as usize];
        let kind = u16::try_from(self.rng.below(70)).expect("small");
        let (core, peer) = (&self.core.clone(), session.peer);
        let call = Call::new(kind, &request).gather(&gather).scatter(&scatter);
        let mut call = Box::pin(core.call(peer, call, &mut reply));
        let deaf = self.node.plan.sabotage == Some(Sabotage::LostWake);
        let call = poll_fn(move |context| {
            // The deliberate bug: whoever waits does not learn that the peer is lost.
            if deaf && core.state(peer) != Ok(LinkState::Up) {
                return Poll::Pending;
            }
            call.as_mut().poll(context)
        });
        let ended = match patience {
            None => call.await,
            Some(patience) => match select(call, self.node.machine.pause(patience)).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => {
                    // Given up: the call may still be carried out, and lent buffers stay lent.
                    self.close(number, false);
                    if bulk_len + own_len > 0 {
                        self.replace(session).await;
                    }
                    return Ok(());
                }
            },
        };
        self.close(number, ended.is_ok());
        if bulk_len > 0 {
            session.local.buffer.guard(Guard::Owned);
        }
        if own_len > 0 {
            session.second.buffer.guard(Guard::Owned);
        }
        let got = ended?;
        self.answered(number);
        let right = got.len == reply_len
            && reply[..got.len] == pattern(number ^ 1, got.len)
            && got.bulk == bulk_len
            && session.local.bytes(bulk_len as usize) == pattern(number ^ 2, bulk_len as usize);
        if !right {
            self.wrong(Rule::Content, "the reply is not what was asked for");
        }
        Ok(())
    }

    /// Checks that the peer has seen what it answered.
    fn answered(&self, number: u64) {
        if !self.is_with_rogue() {
            let machine = &self.node.machine;
            machine.living(|world| world.answered(number, self.peer));
        }
    }

    /// Puts other buffers in the place of those that stay lent.
    async fn replace(&self, session: &mut Session) {
        for place in [&mut session.local, &mut session.second] {
            let fresh = self.node.surely(session.peer, BULK, Guard::Owned).await;
            session.given_up.push(std::mem::replace(place, fresh));
        }
    }

    /// Sends a message without an answer.
    pub(super) async fn one_way(&mut self, peer: PeerId) -> Result<(), Error> {
        let number = self.open(peer, "a one-way message");
        let (message, _) = self.request(number, [0, 0]);
        let kind = u16::try_from(self.rng.below(70)).expect("small");
        let ended = self.core.send(peer, kind, &message).await;
        self.close(number, ended.is_ok());
        ended
    }

    /// Makes several short calls at once. Returns the number of answers.
    pub(super) async fn burst(&mut self, peer: PeerId, count: usize) -> Result<usize, Error> {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let number = self.open(peer, "a call of a burst");
                (number, self.request(number, [0, 0]).0)
            })
            .collect();
        let this = &*self;
        let ended = join_all(calls.iter().map(|(number, request)| async move {
            let mut reply = [0; MESSAGE as usize];
            let ended = this
                .core
                .call(peer, Call::new(1, request), &mut reply)
                .await;
            this.close(*number, ended.is_ok());
            if ended.is_ok() {
                this.answered(*number);
            }
            ended
        }))
        .await;
        let answered = ended.iter().filter(|ended| ended.is_ok()).count();
        ended
            .into_iter()
            .find_map(Result::err)
            .map_or(Ok(answered), Err)
    }

    /// Checks that a request that no message holds is refused at once.
    pub(super) async fn too_long(&self, session: &Session) -> Result<(), Error> {
        let number = self.open(session.peer, "a call that is too long");
        let ended = self
            .core
            .call(session.peer, Call::new(1, &[0; MESSAGE as usize]), &mut [])
            .await;
        self.close(number, false);
        match ended {
            Ok(_) => self.wrong(Rule::Content, "a request longer than a message was taken"),
            Err(Error::TooLong { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Returns the memory that the peer lends; requests it once a connection.
    pub(super) async fn place(&self, session: &mut Session) -> Result<Option<Place>, Error> {
        if session.place.is_some() {
            return Ok(session.place);
        }
        let number = self.open(session.peer, "a call for memory");
        let mut reply = [0; MESSAGE as usize];
        let ended = self
            .core
            .call(session.peer, Call::new(LEND, &[]), &mut reply)
            .await;
        self.close(number, ended.is_ok());
        session.place = Place::decode(&reply[..ended?.len]);
        session.written = None;
        Ok(session.place)
    }
}

//! Teardown of lost connections.

use alloc::vec::Vec;

use hal::Platform;
use mad::cm::{CmMessage, Dreq, Pair};
use mutants::Mutant;
use verbs::{Device, Qpn};

use super::Control;
use super::attempt::{Attempt, End, State};
use crate::error::ConnectStep;
use crate::handshake::proof_only;
use crate::membership::Event;
use crate::membership::proof::Purpose;
use crate::pages::PageState;
use crate::peers::{ConnectOrigin, ConnectState};
use crate::{LostCause, PeerId};

impl<D: Device, P: Platform> Control<D, P> {
    /// Kills the queue pairs of lost connections, and tells everyone who waits.
    pub(super) async fn bury_lost(&mut self) {
        // What is buried may take other connections of its peer with it, on cores that were looked
        // at before.
        while self.bury_pages().await | self.bury_links().await {}
        self.tell_lost();
        self.attempts
            .retain(|attempt| attempt.state != State::Ended);
    }

    /// Kills the queue pairs of lost connections; whether there were any.
    async fn bury_links(&mut self) -> bool {
        let mut any = false;
        for core in 0..self.inner.cores.len() {
            loop {
                let failing = self.inner.cores[core].lock().failing();
                let Some((link, peer, qpn, cause)) = failing else {
                    break;
                };
                if Mutant::ToldBeforeReset.on() {
                    self.inner.cores[core].lock().dead(link);
                }
                if !self.kill_pair(qpn).await {
                    return false;
                }
                {
                    let mut engine = self.inner.cores[core].lock();
                    engine.forget(link);
                    engine.dead(link);
                }
                any = true;
                let Some(peer) = peer else { continue };
                let cause = cause.unwrap_or(LostCause::QpFailed);
                let ours = u16::try_from(core).expect("cores are counted in 16 bits");
                let is_its = |attempt: &Attempt| {
                    attempt.peer == peer
                        && matches!(attempt.end, End::Link(core, at) if (core, at) == (ours, link))
                };
                self.end_attempt(is_its, cause).await;
                self.end_peer(core, link, peer, cause);
            }
        }
        any
    }

    /// Resets a lost queue pair, after which the HCA touches no memory for it. ERR would not do:
    /// what the HCA has begun may still end there. If the device does not take the command nobody
    /// can know, so all that is lent stays lent, and the node ends; false then.
    pub(super) async fn kill_pair(&self, qpn: Qpn) -> bool {
        if self.inner.has_ended() {
            return false;
        }
        match self.inner.device.reset_qp(qpn).await {
            Ok(()) => true,
            Err(_) if Mutant::FailedResetIgnored.on() => true,
            Err(error) => {
                log::error!("{qpn} can't be reset: {error}");
                self.inner.end(error);
                false
            }
        }
    }

    /// Reports the lost peers of whose connections none can touch memory any more.
    fn tell_lost(&mut self) {
        let inner = &self.inner;
        let is_dead = |peer: PeerId| {
            let pages = inner.pages.lock();
            let mut theirs = pages.iter().filter(|link| link.peer == peer);
            let dead = theirs.all(|link| link.state() == PageState::Dead)
                && inner.cores.iter().all(|core| core.lock().is_dead(peer));
            dead || Mutant::LossToldEarly.on()
        };
        let (dead, rest) = self.lost.drain(..).partition(|&(peer, _)| is_dead(peer));
        let dead: Vec<(PeerId, LostCause)> = dead;
        self.lost = rest;
        for (peer, cause) in dead {
            let name = self.inner.peers.lock().get(peer).map(|line| line.name);
            if let Some(name) = name {
                log::warn!("{name} is lost: {cause}");
            }
            self.set_standing(peer, ConnectState::Lost);
            self.on_member_event(Event::Lost(peer));
        }
    }

    /// Ends the attempt that a lost connection was made by, and tells the peer.
    pub(super) async fn end_attempt(
        &mut self,
        is_its: impl Fn(&Attempt) -> bool,
        cause: LostCause,
    ) {
        let is_its = |attempt: &&mut Attempt| attempt.state != State::Ended && is_its(attempt);
        let Some(attempt) = self.attempts.iter_mut().find(is_its) else {
            return;
        };
        attempt.state = State::Ended;
        log::debug!("{}, lane {:#x}: {cause}", attempt.name, attempt.lane);
        let tells = cause != LostCause::PeerLeft && !Mutant::NoDisconnect.on();
        let Some(sides) = attempt.sides().filter(|_| tells) else {
            return;
        };
        let (ours, theirs, purpose) = if attempt.calls {
            (sides.caller, sides.callee, Purpose::CallerLeaves)
        } else {
            (sides.callee, sides.caller, Purpose::CalleeLeaves)
        };
        let dreq = Dreq {
            pair: Pair {
                local_comm_id: ours.comm_id,
                remote_comm_id: theirs.comm_id,
            },
            remote_qpn: theirs.qpn,
            private: proof_only(&sides.prove(&self.inner.config.cluster.key, purpose)),
        };
        let (to, mad) = (
            attempt.address,
            CmMessage::Dreq(dreq).to_mad(ours.comm_id.into()),
        );
        self.send(to, &mad).await;
    }

    /// A peer lost on one core is lost on all.
    fn end_peer(&mut self, core: usize, link: u16, peer: PeerId, cause: LostCause) {
        self.inner.fail_peer(peer, cause);
        let Some(line) = self.inner.peers.lock().get(peer).copied() else {
            return;
        };
        match line.standing {
            ConnectState::Up => {
                // Told when the last of its connections is buried: until then the others may touch
                // memory.
                if self.lost.iter().all(|(lost, _)| *lost != peer) {
                    self.lost.push((peer, cause));
                }
                if Mutant::LossToldEarly.on() {
                    self.tell_lost();
                }
                return;
            }
            ConnectState::Lost => return,
            // Another of its connections was buried before.
            ConnectState::Idle => return self.inner.cores[core].lock().release(link),
            ConnectState::Trying(_) | ConnectState::Refused(_) => {}
        }
        // It never was a member: nobody can have anything to do with this connection.
        self.inner.cores[core].lock().release(link);
        let refused = matches!(line.standing, ConnectState::Refused(_));
        match line.wish {
            // Who asked for it keeps waiting, or learns of the refusal.
            ConnectOrigin::User if !refused => {
                self.set_standing(peer, ConnectState::Trying(ConnectStep::Answer));
            }
            ConnectOrigin::User => {}
            ConnectOrigin::Theirs | ConnectOrigin::Membership => {
                self.set_standing(peer, ConnectState::Idle)
            }
        }
        let gid = line.name.gid;
        self.on_member_event(Event::CallFailed { gid, refused });
    }
}

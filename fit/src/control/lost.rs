//! What becomes of lost connections.

use hal::Platform;
use mad::cm::{CmMessage, Dreq, Pair};
use verbs::Device;

use super::Control;
use super::attempt::{Attempt, End, State};
use crate::error::ConnectStep;
use crate::handshake::proof_only;
use crate::membership::Event;
use crate::membership::proof::Purpose;
use crate::peers::{Standing, Wish};
use crate::{LostCause, PeerId};

impl<D: Device, P: Platform> Control<D, P> {
    /// Kills the queue pairs of lost connections, and tells everyone who waits.
    pub(super) async fn bury_lost(&mut self) {
        self.bury_pages().await;
        for core in 0..self.inner.cores.len() {
            loop {
                let failing = self.inner.cores[core].lock().failing();
                let Some((link, peer, qpn, cause)) = failing else {
                    break;
                };
                if let Err(error) = self.inner.device.fail_qp(qpn).await {
                    // Nothing more can be done about it: a device that does not answer is being lost itself.
                    log::error!("{qpn}: {error}");
                }
                self.inner.cores[core].lock().dead(link);
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
        self.attempts.retain(|attempt| attempt.state != State::Ended);
    }

    /// Ends the attempt that a lost connection was made by, and tells the peer.
    pub(super) async fn end_attempt(&mut self, is_its: impl Fn(&Attempt) -> bool, cause: LostCause) {
        let is_its = |attempt: &&mut Attempt| attempt.state != State::Ended && is_its(attempt);
        let Some(attempt) = self.attempts.iter_mut().find(is_its) else {
            return;
        };
        attempt.state = State::Ended;
        log::debug!("{}, lane {:#x}: {cause}", attempt.name, attempt.lane);
        let Some(sides) = attempt.sides().filter(|_| cause != LostCause::PeerLeft) else {
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
        let (lid, mad) = (attempt.lid, CmMessage::Dreq(dreq).to_mad(ours.comm_id.into()));
        self.send(lid, &mad).await;
    }

    /// A peer lost on one core is lost on all.
    fn end_peer(&mut self, core: usize, link: u16, peer: PeerId, cause: LostCause) {
        self.inner.fail_peer(peer, cause);
        let Some(line) = self.inner.peers.lock().get(peer).copied() else {
            return;
        };
        match line.standing {
            Standing::Up => {
                log::warn!("{} is lost: {cause}", line.name);
                self.set_standing(peer, Standing::Lost);
                return self.on_member_event(Event::Lost(peer));
            }
            Standing::Lost => return,
            // Another of its connections was buried before.
            Standing::Idle => return self.inner.cores[core].lock().release(link),
            Standing::Trying(_) | Standing::Refused(_) => {}
        }
        // It never was a member: nobody can have anything to do with this connection.
        self.inner.cores[core].lock().release(link);
        let refused = matches!(line.standing, Standing::Refused(_));
        match line.wish {
            // Who asked for it keeps waiting, or learns of the refusal.
            Wish::User if !refused => {
                self.set_standing(peer, Standing::Trying(ConnectStep::Answer));
            }
            Wish::User => {}
            Wish::Theirs | Wish::Membership => self.set_standing(peer, Standing::Idle),
        }
        let gid = line.name.gid;
        self.on_member_event(Event::CallFailed { gid, refused });
    }
}

//! The state of a page path's queue pair that its owner and the control task share.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use verbs::{QpSlot, Qpn};

use crate::sync::Mutex;
use crate::{LostCause, PeerId, PeerName};

/// The state of a page path's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum PageState {
    /// The control task is to connect it.
    Wanted,
    Up,
    /// Lost; the queue pair may not be dead yet.
    Failing,
    /// Lost, and the queue pair is dead.
    Dead,
}

impl PageState {
    const ALL: [Self; 4] = [Self::Wanted, Self::Up, Self::Failing, Self::Dead];
}

/// The connection of one page path, on either side.
pub(crate) struct PageLink {
    pub(crate) peer: PeerId,
    pub(crate) name: PeerName,
    /// Its lane: a number that the side that has the path gives.
    pub(crate) lane: u16,
    pub(crate) qpn: Qpn,
    /// The queue pair's place, if it is one that the peer reaches this node's memory through.
    pub(crate) lent: Option<QpSlot>,
    state: AtomicU8,
    was_up: AtomicBool,
    closed: AtomicBool,
    /// The reason code of the peer's refusal; 0 for none.
    refused: AtomicU16,
    /// Guards every change of state.
    cause: Mutex<Option<LostCause>>,
}

impl PageLink {
    pub(crate) fn new(
        peer: PeerId,
        name: PeerName,
        lane: u16,
        qpn: Qpn,
        lent: Option<QpSlot>,
    ) -> Self {
        Self {
            peer,
            name,
            lane,
            qpn,
            lent,
            state: AtomicU8::new(PageState::Wanted as u8),
            was_up: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            refused: AtomicU16::new(0),
            cause: Mutex::new(None),
        }
    }

    #[inline]
    pub(crate) fn is_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == PageState::Up as u8
    }

    pub(crate) fn state(&self) -> PageState {
        PageState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    fn set(&self, state: PageState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// The connection stands; false if it has failed while it was made.
    pub(crate) fn up(&self) -> bool {
        let _changing = self.cause.lock();
        let first = self.state() == PageState::Wanted;
        if first {
            self.was_up.store(true, Ordering::Release);
            self.set(PageState::Up);
        }
        first
    }

    /// Loses the connection, if it is not lost yet.
    pub(crate) fn fail(&self, why: LostCause) {
        let mut cause = self.cause.lock();
        if self.state() < PageState::Failing {
            *cause = Some(why);
            self.set(PageState::Failing);
        }
    }

    /// The peer refused it, for this reason.
    pub(crate) fn refuse(&self, reason: u16) {
        self.refused.store(reason, Ordering::Release);
        self.fail(LostCause::NoAnswer);
    }

    pub(crate) fn refusal(&self) -> Option<u16> {
        Some(self.refused.load(Ordering::Acquire)).filter(|&reason| reason != 0)
    }

    /// The queue pair is dead: it touches no memory any more.
    pub(crate) fn dead(&self) {
        let _changing = self.cause.lock();
        self.set(PageState::Dead);
    }

    pub(crate) fn cause(&self) -> LostCause {
        self.cause.lock().unwrap_or(LostCause::QpFailed)
    }

    /// Its owner is gone: the path ends, and the peer stays.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.fail(LostCause::WeLeft);
    }

    /// Returns whether the peer is lost with it. One that was never up, or that either side gave up
    /// by itself, is no sign of that.
    pub(crate) fn loses_peer(&self) -> bool {
        let closed = self.closed.load(Ordering::Acquire) || self.cause() == LostCause::PeerLeft;
        self.was_up.load(Ordering::Acquire) && !closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn link() -> PageLink {
        let name = PeerName {
            role: Role::Memory,
            gid: verbs::Gid::default(),
        };
        PageLink::new(PeerId(1), name, 0, Qpn(0x40), None)
    }

    #[test]
    fn the_first_cause_stays() {
        let link = link();
        assert!(link.up() && link.is_up());
        link.fail(LostCause::PeerLeft);
        link.fail(LostCause::Device);
        assert_eq!(
            (link.state(), link.cause()),
            (PageState::Failing, LostCause::PeerLeft)
        );
        link.dead();
        link.fail(LostCause::Device);
        assert_eq!(
            (link.state(), link.cause()),
            (PageState::Dead, LostCause::PeerLeft)
        );
    }

    #[test]
    fn what_failed_before_it_was_up_never_is() {
        let link = link();
        link.refuse(28);
        assert!(!link.up() && !link.loses_peer());
        assert_eq!(link.refusal(), Some(28));
    }

    #[test]
    fn only_a_failure_of_a_path_that_was_up_loses_the_peer() {
        let failed = link();
        assert!(failed.up());
        failed.fail(LostCause::QpFailed);
        assert!(failed.loses_peer());
        let closed = link();
        assert!(closed.up());
        closed.close();
        assert!(!closed.loses_peer());
    }
}

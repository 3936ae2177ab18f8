//! The peers that this node has, had or wants, by their numbers.

use alloc::collections::BTreeMap;

use mutants::Mutant;
use verbs::{Address, Gid};

use crate::error::ConnectStep;
use crate::{Member, PeerId, PeerName};

/// Lines of lost peers that are kept for those who ask late.
const MAX_OVER: usize = 64;

/// Progress of the connection to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectState {
    Trying(ConnectStep),
    Up,
    Refused(u16),
    /// Nobody tries. The peer never was connected under this number, which therefore serves again.
    Idle,
    Lost,
}

/// Origin of the wish for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectOrigin {
    /// The peer: it calls.
    Theirs,
    /// The membership, which will try again.
    Membership,
    /// The user, until it gives up.
    User,
}

/// One line of the peer table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerLine {
    pub(crate) name: PeerName,
    pub(crate) standing: ConnectState,
    pub(crate) wish: ConnectOrigin,
    /// The member that the peer has proven to be.
    pub(crate) member: Option<(Member, Address)>,
    /// The reason of a refusal that proves nothing: perhaps the peer's, which holds another key.
    pub(crate) hearsay: Option<u16>,
    /// Number of lines that were given before.
    order: u64,
}

/// The table. A number is given again only when all others were given since, but for those of
/// lines that are still here: whoever holds one of a lost peer has long been told so.
pub(crate) struct Peers {
    lines: BTreeMap<PeerId, PeerLine>,
    next: u16,
    /// The last number there is.
    last: u16,
    /// Number of lines given so far.
    given: u64,
}

impl Peers {
    /// Makes an empty table for so many numbers: each may need a protection domain of the device.
    pub(crate) fn new(numbers: u32) -> Self {
        Self {
            lines: BTreeMap::new(),
            next: 0,
            last: u16::try_from(numbers.saturating_sub(1)).unwrap_or(u16::MAX),
            given: 0,
        }
    }

    pub(crate) fn get(&self, peer: PeerId) -> Option<&PeerLine> {
        self.lines.get(&peer)
    }

    pub(crate) fn get_mut(&mut self, peer: PeerId) -> Option<&mut PeerLine> {
        self.lines.get_mut(&peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, &PeerLine)> {
        self.lines.iter().map(|(&peer, line)| (peer, line))
    }

    /// The line of a peer that is not lost; a new one if there is none. Nothing when all numbers
    /// are used up.
    pub(crate) fn line_for(&mut self, name: PeerName, wish: ConnectOrigin) -> Option<PeerId> {
        let live = |line: &PeerLine| line.name == name && line.standing != ConnectState::Lost;
        let step = match wish {
            ConnectOrigin::Theirs => ConnectStep::Request,
            ConnectOrigin::Membership | ConnectOrigin::User => ConnectStep::Port,
        };
        if let Some((&peer, line)) = self.lines.iter_mut().find(|(_, line)| live(line)) {
            let over = matches!(line.standing, ConnectState::Idle | ConnectState::Refused(_));
            if over {
                line.standing = ConnectState::Trying(step);
            }
            if over || wish == ConnectOrigin::User {
                line.wish = wish;
            }
            return Some(peer);
        }
        let peer = self.number()?;
        let line = PeerLine {
            name,
            standing: ConnectState::Trying(step),
            wish,
            member: None,
            hearsay: None,
            order: self.given,
        };
        self.given += 1;
        self.lines.insert(peer, line);
        self.forget_old();
        Some(peer)
    }

    /// Takes the next number that no line has. Nothing if there is none.
    fn number(&mut self) -> Option<PeerId> {
        for _ in 0..=self.last {
            let peer = PeerId(self.next);
            self.next = if self.next == self.last {
                0
            } else {
                self.next + 1
            };
            if !self.lines.contains_key(&peer) || Mutant::NumbersOfLivePeersTaken.on() {
                return Some(peer);
            }
        }
        None
    }

    fn forget_old(&mut self) {
        let over = |line: &PeerLine| {
            matches!(
                line.standing,
                ConnectState::Lost | ConnectState::Refused(_) | ConnectState::Idle
            )
        };
        let count = self.lines.values().filter(|line| over(line)).count();
        if count > MAX_OVER {
            let all = self.lines.iter().filter(|(_, line)| over(line));
            let oldest = all
                .min_by_key(|(_, line)| line.order)
                .map(|(&peer, _)| peer);
            oldest.and_then(|peer| self.lines.remove(&peer));
        }
    }

    /// Returns whether a peer with this GID is connected that has another number.
    pub(crate) fn is_other_up(&self, peer: PeerId, gid: Gid) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|(id, line)| {
            *id != peer && line.name.gid == gid && line.standing == ConnectState::Up
        })
    }

    /// Returns whether a peer with this GID is connected.
    pub(crate) fn is_up(&self, gid: Gid) -> bool {
        let mut lines = self.lines.values();
        lines.any(|line| line.name.gid == gid && line.standing == ConnectState::Up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn name(number: u8) -> PeerName {
        PeerName {
            role: Role::Memory,
            gid: Gid([number; 16]),
        }
    }

    #[test]
    fn a_peer_that_comes_back_has_another_number_and_few_lost_ones_are_kept() {
        let mut peers = Peers::new(1 << 16);
        let mut last = None;
        for _ in 0..1000 {
            let peer = peers.line_for(name(1), ConnectOrigin::Theirs).unwrap();
            assert!(last < Some(peer));
            assert_eq!(peers.line_for(name(1), ConnectOrigin::User), Some(peer));
            peers.get_mut(peer).unwrap().standing = ConnectState::Lost;
            last = Some(peer);
        }
        assert!(peers.iter().count() <= MAX_OVER + 1);
        assert_eq!(
            peers.get(last.unwrap()).unwrap().standing,
            ConnectState::Lost
        );
        // One that was never connected keeps its number.
        let idle = peers.line_for(name(4), ConnectOrigin::Membership).unwrap();
        peers.get_mut(idle).unwrap().standing = ConnectState::Idle;
        assert_eq!(peers.line_for(name(4), ConnectOrigin::Theirs), Some(idle));
        assert_eq!(peers.get(idle).unwrap().wish, ConnectOrigin::Theirs);
    }

    #[test]
    fn numbers_come_round_without_those_of_live_peers() {
        let mut peers = Peers::new(32_763);
        // Connected before all others, and again and again in between.
        let mut live = vec![peers.line_for(name(0), ConnectOrigin::User).unwrap()];
        let mut given: BTreeMap<PeerId, u32> = BTreeMap::new();
        for round in 0..100_000_u32 {
            let peer = peers.line_for(name(1), ConnectOrigin::Theirs).unwrap();
            assert!(!live.contains(&peer), "the number of a live peer");
            if let Some(before) = given.insert(peer, round) {
                assert!(round - before > 32_600, "given again too soon");
            }
            peers.get_mut(peer).unwrap().standing = ConnectState::Lost;
            assert!(peer.0 < 32_763, "a number without a domain");
            if round % 10_000 == 0 {
                let other = name(u8::try_from(2 + round / 10_000).unwrap());
                live.push(peers.line_for(other, ConnectOrigin::User).unwrap());
            }
            // The latest of the lost ones are those that are kept.
            assert!(peers.get(peer).is_some());
        }
        assert!(live.iter().all(|peer| peers.get(*peer).is_some()));
    }
}

//! No chunk has two borrowers, and no byte of one reaches another, whatever order things happen in.

use std::collections::BTreeMap;

use messages::Errno;
use messages::memory::{Lend, LendRequest};
use proptest::prelude::*;

use super::bed::*;
use crate::{Action, PeerKey, Step};

/// A request for chunks that is not answered yet.
struct Flight {
    from: PeerKey,
    count: u16,
    /// The order that it carries out at present.
    action: Option<Action>,
}

/// Several borrowers with requests in flight, and the cleaner.
struct World {
    bed: Bed,
    peers: [PeerKey; 3],
    flights: Vec<Flight>,
    /// The order that the cleaner carries out at present.
    cleaning: Option<Action>,
    promised: BTreeMap<PeerKey, usize>,
    lent: BTreeMap<u64, PeerKey>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Reserve {
        peer: usize,
        chunks: u32,
    },
    Lend {
        peer: usize,
        count: u16,
    },
    /// A request in flight gets on; with `refuse`, the HCA refuses what it would register.
    Advance {
        which: usize,
        refuse: bool,
    },
    Return {
        peer: usize,
        every: usize,
    },
    Clean,
    Lose {
        peer: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0usize..3, 0u32..9).prop_map(|(peer, chunks)| Event::Reserve { peer, chunks }),
        4 => (0usize..3, 1u16..6).prop_map(|(peer, count)| Event::Lend { peer, count }),
        12 => (any::<usize>(), 0u8..20).prop_map(|(which, refuse)| Event::Advance { which, refuse: refuse == 0 }),
        3 => (0usize..3, 1usize..4).prop_map(|(peer, every)| Event::Return { peer, every }),
        6 => Just(Event::Clean),
        1 => (0usize..3).prop_map(|peer| Event::Lose { peer }),
    ]
}

impl World {
    fn new(chunks: u64, size: usize) -> Self {
        Self {
            bed: Bed::new(chunks, size),
            peers: [PeerKey(0), PeerKey(1), PeerKey(2)],
            flights: Vec::new(),
            cleaning: None,
            promised: BTreeMap::new(),
            lent: BTreeMap::new(),
        }
    }

    fn of(&self, peer: PeerKey) -> Vec<u64> {
        let mine = self.lent.iter().filter(|entry| *entry.1 == peer);
        mine.map(|entry| *entry.0).collect()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reserve { peer, chunks } => {
                let peer = self.peers[peer];
                if self.bed.reserve(peer, chunks).is_ok() {
                    self.promised.insert(peer, usize::try_from(chunks).unwrap());
                }
            }
            Event::Lend { peer, count } => self.flights.push(Flight {
                from: self.peers[peer],
                count,
                action: None,
            }),
            Event::Advance { which, refuse } if !self.flights.is_empty() => {
                self.advance(which % self.flights.len(), refuse);
            }
            Event::Advance { .. } => {}
            Event::Return { peer, every } => {
                let peer = self.peers[peer];
                let given: Vec<_> = self.of(peer).into_iter().step_by(every).collect();
                assert_eq!(self.bed.give(peer, &given), Ok(()));
                self.lent.retain(|addr, _| !given.contains(addr));
            }
            Event::Clean => self.clean(),
            Event::Lose { peer } => self.lose(peer),
        }
    }

    fn advance(&mut self, which: usize, refuse: bool) {
        let flight = &mut self.flights[which];
        let mut at_once = false;
        match flight.action.take() {
            Some(Action::Register { extent, .. }) if refuse => {
                self.bed.manager.refused(extent);
                at_once = true;
            }
            Some(action) => self.bed.carry_out(action),
            None => {}
        }
        let (from, count) = (flight.from, flight.count);
        if at_once {
            self.flights.swap_remove(which);
            // One chunk is what this asks for, so nothing else is left unnoticed.
            let reply = self.bed.lend_at_once(from);
            return self.lent_to(from, reply.map(|chunks| chunks.to_vec()), false);
        }
        let (step, reply) = self.bed.step::<Lend>(from, &LendRequest { pid: 1, count });
        match step {
            Step::First(action) => self.flights[which].action = Some(action),
            Step::Wait => {}
            Step::Replied(_) => {
                self.flights.swap_remove(which);
                let chunks = self.bed.lent_by(from, count, &reply);
                self.lent_to(from, chunks, true);
            }
        }
    }

    /// Notes what was lent; with `promise`, a refusal must be within the rules.
    fn lent_to(
        &mut self,
        from: PeerKey,
        chunks: Result<Vec<verbs::RemoteAddr>, Errno>,
        promise: bool,
    ) {
        let lost = !self.peers.contains(&from);
        let promised = self.promised.get(&from).copied().unwrap_or(0);
        match chunks {
            Ok(chunks) => {
                assert!(!lost, "{from:?} is lost");
                for chunk in chunks {
                    assert_eq!(
                        self.lent.insert(chunk.addr, from),
                        None,
                        "{chunk:?} is lent twice"
                    );
                }
                self.bed.hardware.write_all(from);
            }
            Err(Errno::EIO) => assert!(lost),
            Err(errno) => {
                assert_eq!((errno, lost), (Errno::ENOMEM, false));
                assert!(
                    !promise || self.of(from).len() >= promised,
                    "a promise is broken"
                );
            }
        }
    }

    fn clean(&mut self) {
        match self.cleaning.take() {
            Some(action) => self.bed.carry_out(action),
            None => self.cleaning = self.bed.manager.clean(),
        }
    }

    fn lose(&mut self, peer: usize) {
        let key = self.peers[peer];
        let had = self.of(key).len();
        let zeroed = self.bed.hardware.zeroed;
        assert_eq!(self.bed.manager.peer_lost(key).chunks(), had);
        assert_eq!(self.bed.hardware.zeroed, zeroed);
        self.lent.retain(|_, of| *of != key);
        self.promised.remove(&key);
        self.peers[peer] = PeerKey(key.0 + 3);
    }

    /// Ends every request, though each lasts until others have got on.
    fn land(&mut self) {
        for turn in 0..10_000 {
            if self.flights.is_empty() {
                return;
            }
            self.advance(turn % self.flights.len(), false);
            self.clean();
        }
        panic!("{} requests do not end", self.flights.len());
    }

    fn check(&self, chunks: usize) {
        let commitment = |peer| {
            let promised = self.promised.get(&peer).copied().unwrap_or(0);
            promised.max(self.of(peer).len())
        };
        assert!(self.peers.into_iter().map(commitment).sum::<usize>() <= chunks);
        assert_eq!(self.bed.lent(), self.lent.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    #[test]
    fn borrowers_never_meet(
        size in 1usize..4,
        extents in 1usize..6,
        events in proptest::collection::vec(event(), 1..150),
    ) {
        let chunks = size * extents;
        let mut world = World::new(chunks as u64, size);
        for event in events {
            world.happen(event);
            world.check(chunks);
        }
        world.land();
        (0..3).for_each(|peer| world.lose(peer));
        if let Some(action) = world.cleaning.take() {
            world.bed.carry_out(action);
        }
        world.bed.clean();
        prop_assert_eq!(world.bed.manager.pool().idle(), extents);
        prop_assert!(world.bed.hardware.is_zero() && world.bed.hardware.regions() == 0);
        let counters = world.bed.manager.counters();
        prop_assert_eq!((counters.nr_chunks_lent, counters.nr_chunks_promised), (0, 0));
    }
}

#[test]
fn a_chunk_that_stays_with_its_borrower_is_not_zeroed() {
    let mut bed = Bed::new(4, 2);
    let chunks = addresses(&bed.lend(P, 1, 2).unwrap());
    bed.hardware.write_all(P);
    bed.give(P, &chunks).unwrap();
    assert_eq!(bed.clean(), 0);
    let mut again = addresses(&bed.lend(P, 2, 2).unwrap());
    again.sort_unstable();
    assert_eq!((again, bed.hardware.registered), (chunks, 1));
    assert_eq!(bed.hardware.zeroed, 0);
}

#[test]
fn an_empty_extent_goes_to_another_without_its_region_and_zeroed_in_pieces() {
    let mut bed = Bed::new(2, 2);
    let chunks = addresses(&bed.lend(P, 1, 2).unwrap());
    bed.hardware.write_all(P);
    assert_eq!(bed.lend(OTHER, 1, 1), Err(Errno::ENOMEM));
    bed.give(P, &chunks).unwrap();
    assert_eq!(bed.lend(OTHER, 1, 1).unwrap().len(), 1);
    let pieces = usize::try_from(2 * messages::CHUNK_SIZE / crate::PIECE).unwrap();
    assert_eq!((bed.hardware.zeroed, bed.hardware.regions()), (pieces, 1));
    assert_eq!(bed.manager.counters().nr_extents_zeroed, 1);
}

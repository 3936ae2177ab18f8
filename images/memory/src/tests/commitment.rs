//! Promises: granted only if they can be kept, and kept.

use std::collections::{BTreeMap, BTreeSet};

use messages::memory::{Lend, LendRequest};
use messages::{CHUNK_SIZE, Errno};
use proptest::prelude::*;

use super::bed::*;
use crate::{Action, PeerKey, Step};

#[test]
fn a_promise_is_absolute_and_never_given_twice() {
    let mut bed = Bed::new(8, 2);
    assert_eq!(bed.reserve(P, 5), Ok(()));
    assert_eq!(bed.reserve(P, 5), Ok(()));
    // Five chunks take three of the four extents.
    assert_eq!(bed.reserve(OTHER, 3), Err(Errno::ENOMEM));
    assert_eq!(bed.reserve(OTHER, 2), Ok(()));
    // The earlier promise stands when a higher one is refused.
    assert_eq!(bed.reserve(P, 7), Err(Errno::ENOMEM));
    assert_eq!(bed.manager.counters().nr_chunks_promised, 7);
    assert_eq!(bed.reserve(P, 6), Ok(()));
    assert_eq!(bed.reserve(P, 0), Ok(()));
    assert_eq!(bed.reserve(OTHER, 8), Ok(()));
    assert_eq!(bed.reserve(OTHER, u32::MAX), Err(Errno::ENOMEM));
    assert_eq!(bed.manager.counters().nr_enomem, 3);
}

#[test]
fn beyond_its_promise_a_borrower_gets_what_nobody_is_promised() {
    let mut bed = Bed::new(8, 2);
    bed.reserve(OTHER, 3).unwrap();
    let chunks = bed.lend(P, 1, 100).unwrap();
    assert_eq!(chunks.len(), 4);
    assert_eq!(bed.lend(P, 1, 1), Err(Errno::ENOMEM));
    assert_eq!(bed.lend(OTHER, 1, 3).unwrap().len(), 3);
    // The rest of an extent that a borrower holds is of no use to others.
    assert_eq!(bed.lend(OTHER, 1, 3).unwrap().len(), 1);
    assert_eq!(bed.manager.counters().max_chunks_lent, 8);
    assert_eq!(bed.reserve(P, 4), Ok(()));
    assert_eq!(bed.reserve(P, 5), Err(Errno::ENOMEM));
}

#[test]
fn chunks_scattered_over_extents_do_not_break_anothers_promise() {
    let mut bed = Bed::new(8, 2);
    let chunks = bed.lend(P, 1, 8).unwrap();
    let mut by_extent = addresses(&chunks);
    by_extent.sort_unstable();
    let every_second: Vec<_> = by_extent.iter().copied().step_by(2).collect();
    bed.give(P, &every_second).unwrap();
    // Four chunks are free, but each in an extent that P holds.
    assert_eq!((bed.lent(), bed.reserve(OTHER, 1)), (4, Err(Errno::ENOMEM)));
    bed.give(P, &by_extent[1..2]).unwrap();
    assert_eq!(bed.reserve(OTHER, 2), Ok(()));
    assert_eq!(bed.lend(OTHER, 1, 2).unwrap().len(), 2);
}

#[test]
fn the_fullest_extent_is_lent_from_first() {
    let mut bed = Bed::new(8, 4);
    let mut first = addresses(&bed.lend(P, 1, 8).unwrap());
    first.sort_unstable();
    // Three are left in the first extent, one in the second.
    bed.give(P, &[&first[..1], &first[5..]].concat()).unwrap();
    assert_eq!(addresses(&bed.lend(P, 1, 1).unwrap()), first[..1]);
}

#[test]
fn a_request_for_several_chunks_does_not_wait_for_memory_to_be_cleaned_if_it_gets_one() {
    let mut bed = Bed::new(4, 2);
    bed.lend(OTHER, 1, 2).unwrap();
    bed.lend(P, 1, 1).unwrap();
    drop(bed.manager.peer_lost(OTHER));
    assert_eq!(bed.lend(P, 1, 3).unwrap().len(), 1);
    assert_eq!(bed.hardware.zeroed, 0);
    // With nothing at hand it waits for the extent.
    assert_eq!(bed.lend(P, 1, 3).unwrap().len(), 2);
}

#[test]
fn requests_of_one_borrower_wait_for_the_same_extent() {
    let mut bed = Bed::new(2, 2);
    let request = LendRequest { pid: 1, count: 1 };
    let (step, _) = bed.step::<Lend>(P, &request);
    let Step::First(action) = step else {
        panic!("{step:?}");
    };
    let (second, _) = bed.step::<Lend>(P, &request);
    assert_eq!(second, Step::Wait);
    bed.carry_out(action);
    assert_eq!(bed.lend(P, 1, 1).unwrap().len(), 1);
    assert_eq!(bed.lend(P, 1, 1).unwrap().len(), 1);
}

#[test]
fn an_extent_that_cannot_be_registered_is_enomem_and_stays_free() {
    let mut bed = Bed::new(2, 2);
    let request = LendRequest { pid: 1, count: 1 };
    let (step, _) = bed.step::<Lend>(P, &request);
    let Step::First(Action::Register { extent, .. }) = step else {
        panic!("{step:?}");
    };
    bed.manager.refused(extent);
    assert_eq!(bed.lend_at_once(P), Err(Errno::ENOMEM));
    assert_eq!(
        (bed.manager.pool().idle(), bed.reserve(OTHER, 2)),
        (1, Ok(()))
    );
}

#[test]
fn memory_whose_region_stays_is_not_lent_again() {
    let mut bed = Bed::new(4, 2);
    bed.lend(P, 1, 4).unwrap();
    drop(bed.manager.peer_lost(P));
    let Some(Action::Deregister { extent }) = bed.manager.clean() else {
        panic!("nothing to clean");
    };
    bed.manager.stuck(extent);
    bed.clean();
    assert_eq!(
        (bed.manager.counters().nr_chunks, bed.manager.pool().idle()),
        (2, 1)
    );
    assert_eq!(bed.reserve(OTHER, 3), Err(Errno::ENOMEM));
    assert_eq!(bed.lend(OTHER, 1, 4).unwrap().len(), 2);
}

/// A plain model: what each peer is promised and lent.
#[derive(Default)]
struct Model {
    promised: BTreeMap<PeerKey, u64>,
    lent: BTreeMap<u64, PeerKey>,
}

impl Model {
    fn of(&self, peer: PeerKey) -> Vec<u64> {
        let mine = self.lent.iter().filter(|entry| *entry.1 == peer);
        mine.map(|entry| *entry.0).collect()
    }

    fn promised(&self, peer: PeerKey) -> u64 {
        self.promised.get(&peer).copied().unwrap_or(0)
    }

    /// The extents with a chunk of `peer`.
    fn held(&self, peer: PeerKey, size: u64) -> u64 {
        let extents = self
            .of(peer)
            .into_iter()
            .map(|addr| (addr - BASE) / (size * CHUNK_SIZE));
        extents.collect::<BTreeSet<_>>().len() as u64
    }

    /// The extents that are committed to `peer`, if it is promised `chunks`.
    fn committed(&self, peer: PeerKey, chunks: u64, size: u64) -> u64 {
        chunks.div_ceil(size).max(self.held(peer, size))
    }

    /// The extents that are committed to the other peers.
    fn committed_to_others(&self, peer: PeerKey, size: u64) -> u64 {
        let others = PEERS.into_iter().filter(|&other| other != peer);
        others
            .map(|other| self.committed(other, self.promised(other), size))
            .sum()
    }

    fn check(&self, chunks: u64) {
        let commitments = PEERS.map(|peer| self.promised(peer).max(self.of(peer).len() as u64));
        assert!(
            commitments.iter().sum::<u64>() <= chunks,
            "{commitments:?} of {chunks}"
        );
    }
}

const PEERS: [PeerKey; 3] = [PeerKey(0), PeerKey(1), PeerKey(2)];

#[derive(Debug, Clone)]
enum Input {
    Reserve(u32),
    Lend(u16),
    Return(Vec<bool>),
}

fn action() -> impl Strategy<Value = Input> {
    prop_oneof![
        (0u32..14).prop_map(Input::Reserve),
        (1u16..8).prop_map(Input::Lend),
        proptest::collection::vec(any::<bool>(), 12).prop_map(Input::Return),
    ]
}

proptest! {
    #[test]
    fn promises_are_granted_exactly_if_they_can_be_kept(
        size in 1u64..4,
        extents in 1u64..7,
        actions in proptest::collection::vec((0usize..3, action()), 1..60),
    ) {
        let mut bed = Bed::new(size * extents, usize::try_from(size).unwrap());
        let mut model = Model::default();
        for (peer, action) in actions {
            let peer = PEERS[peer];
            let others = model.committed_to_others(peer, size);
            let (mine, promised) = (model.of(peer), model.promised(peer));
            match action {
                Input::Reserve(chunks) => {
                    let wanted = model.committed(peer, chunks.into(), size);
                    let lower = u64::from(chunks) <= promised;
                    let granted = bed.reserve(peer, chunks).is_ok();
                    prop_assert_eq!(granted, lower || others + wanted <= extents);
                    if granted {
                        model.promised.insert(peer, chunks.into());
                    }
                }
                Input::Lend(count) => {
                    let most = (extents - others) * size - mine.len() as u64;
                    match bed.lend(peer, 1, count) {
                        Ok(chunks) => {
                            prop_assert!(chunks.len() as u64 <= most);
                            for chunk in chunks {
                                prop_assert_eq!(model.lent.insert(chunk.addr, peer), None);
                            }
                        }
                        Err(errno) => prop_assert_eq!((errno, most), (Errno::ENOMEM, 0)),
                    }
                }
                Input::Return(which) => {
                    let given = mine.iter().zip(which).filter(|(_, give)| *give).map(|(addr, _)| *addr);
                    let given: Vec<_> = given.collect();
                    prop_assert_eq!(bed.give(peer, &given), Ok(()));
                    model.lent.retain(|addr, _| !given.contains(addr));
                }
            }
            model.check(size * extents);
            prop_assert_eq!(bed.lent(), model.lent.len());
            prop_assert_eq!(bed.manager.held(peer, 1), model.of(peer).len());
        }
    }
}

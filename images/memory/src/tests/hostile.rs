//! Requests that no honest peer makes, and the books kept for honest ones.

use messages::memory::*;
use messages::{CHUNK_SIZE, Errno, MAX_MESSAGE, decode_reply};

use super::bed::*;
use crate::{MAX_EXTENTS, PeerKey, Pool, Step};

#[test]
fn returns_of_what_is_not_lent_change_nothing() {
    let mut bed = Bed::new(8, 2);
    let ours = addresses(&bed.lend(P, 1, 3).unwrap());
    let theirs = addresses(&bed.lend(OTHER, 1, 1).unwrap());
    let never = BASE + 7 * CHUNK_SIZE;
    for bad in [
        0,
        BASE - CHUNK_SIZE,
        BASE + 8 * CHUNK_SIZE,
        u64::MAX,
        ours[0] + 1,
        ours[0] + 4096,
        ours[1],
        never,
        theirs[0],
    ] {
        assert_eq!(
            bed.give(P, &[ours[0], ours[1], bad]),
            Err(Errno::EINVAL),
            "{bad:#x}"
        );
        assert_eq!((bed.lent(), bed.manager.held(P, 1)), (4, 3));
    }
    assert_eq!(bed.manager.counters().nr_bad_requests, 9);
    assert_eq!(bed.give(P, &ours), Ok(()));
    assert_eq!(bed.give(P, &ours[..1]), Err(Errno::EINVAL));
    assert_eq!(bed.give(P, &[]), Ok(()));
}

#[test]
fn requests_that_make_no_sense_are_errors() {
    let mut bed = Bed::new(2, 1);
    assert_eq!(bed.lend(P, 1, 0), Err(Errno::EINVAL));
    for (kind, request) in [(999, &[1, 2, 3][..]), (1, &[]), (2, &[0; 7]), (3, &[1, 0])] {
        let mut reply = [0; MAX_MESSAGE];
        let Step::Replied(len) = bed.manager.handle(P, kind, request, &mut reply) else {
            panic!("an action for call {kind}");
        };
        assert_eq!(
            decode_reply::<Reserve>(&reply[..len]).unwrap(),
            Err(Errno::EPROTO)
        );
    }
    assert_eq!(bed.manager.counters().nr_bad_requests, 5);
    assert_eq!(bed.lend(P, 1, u16::MAX).unwrap().len(), 2);
}

#[test]
fn chunks_are_accounted_to_the_process_that_they_were_lent_for() {
    let mut bed = Bed::new(8, 4);
    let first = addresses(&bed.lend(P, 7, 2).unwrap());
    let second = addresses(&bed.lend(P, 8, 3).unwrap());
    bed.lend(OTHER, 7, 1).unwrap_err();
    assert_eq!((bed.manager.held(P, 7), bed.manager.held(P, 8)), (2, 3));
    // One request may return chunks of several processes.
    bed.give(P, &[first[0], second[0], second[2]]).unwrap();
    assert_eq!((bed.manager.held(P, 7), bed.manager.held(P, 8)), (1, 1));
    bed.give(P, &first[1..]).unwrap();
    assert_eq!((bed.manager.held(P, 7), bed.manager.held(P, 8)), (0, 1));
    let lost = bed.manager.peer_lost(P);
    assert_eq!((lost.chunks(), lost.processes()), (1, 1));
    assert_eq!((bed.manager.held(P, 8), bed.lent()), (0, 0));
}

#[test]
fn a_request_that_outlives_its_peer_gets_nothing() {
    let mut bed = Bed::new(2, 2);
    let request = LendRequest { pid: 1, count: 1 };
    let (Step::First(action), _) = bed.step::<Lend>(P, &request) else {
        panic!("no action");
    };
    drop(bed.manager.peer_lost(P));
    bed.carry_out(action);
    assert_eq!(bed.lend(P, 1, 1), Err(Errno::EIO));
    assert_eq!(bed.reserve(P, 1), Err(Errno::EIO));
    // Its region goes, and the extent is another's to have.
    assert_eq!(bed.lend(OTHER, 1, 2).unwrap().len(), 2);
    assert_eq!(bed.hardware.regions(), 1);
}

#[test]
fn a_lost_peers_number_serves_another_when_many_others_were_lost_since() {
    let mut bed = Bed::new(2, 2);
    drop(bed.manager.peer_lost(P));
    assert_eq!(bed.reserve(P, 1), Err(Errno::EIO));
    for other in 1000..2024 {
        drop(bed.manager.peer_lost(PeerKey(other)));
    }
    bed.reserve(P, 1).unwrap();
    assert_eq!(bed.reserve(PeerKey(1000), 1), Err(Errno::EIO));
}

#[test]
fn extents_are_few_and_of_one_size_however_the_memory_lies() {
    let chunk = CHUNK_SIZE;
    for (pieces, extents, chunks) in [
        (vec![(BASE, 0)], 0, 0),
        (vec![(BASE, chunk - 1)], 0, 0),
        (vec![(BASE, 100 * chunk)], 100, 100),
        (vec![(BASE, 300 * chunk + 5)], 100, 300),
        (
            vec![(1 << 40, 127 * chunk), (BASE, 3 * chunk), (1 << 41, chunk)],
            64,
            128,
        ),
    ] {
        let pool = Pool::new(&pieces);
        assert_eq!(
            (pool.extents(), pool.chunks()),
            (extents, chunks),
            "{pieces:?}"
        );
        assert!(pool.extents() <= MAX_EXTENTS);
    }
}

//! Long requests and replies, one-way messages, and the ways to run handlers and to poll, over the
//! real driver and the model.

use super::common::{SILENT, bytes, config, pair, pair_of};
use fit::{Call, Config, Error, LostCause, Operation, Piece, Polling, ProfilePoint};
use hal::{DmaBuffer, Duration};
use harness::Testbed;
use verbs::Rkey;

const LONGEST: u32 = 2 << 20;

fn long() -> Config {
    Config {
        bulk_size: LONGEST,
        bulk_buffers: 2,
        ..config()
    }
}

/// Cuts `len` bytes of memory into `count` pieces of different lengths.
fn cut(region: &verbs::Region, len: u32, count: u32) -> Vec<Piece> {
    let ends: Vec<_> = (0..=count)
        .map(|part| len / (count * count) * part * part)
        .collect();
    let mut pieces: Vec<_> = ends
        .windows(2)
        .map(|ends| Piece::of(region, ends[0].into(), ends[1] - ends[0]))
        .collect();
    // What the division left over.
    pieces.last_mut().expect("a piece").len += len - ends[ends.len() - 1];
    pieces
}

#[test]
fn bulk_of_all_sizes_goes_there_and_back_in_any_pieces() {
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair_of(&mut bed, long(), long());
    bed.block_on(async {
        let core = processor.fit.core(0);
        let longest = LONGEST as usize;
        let (out, out_region) = processor.lent(longest, 0).await;
        let (back, back_region) = processor.lent(longest, 0).await;
        let pattern: Vec<u8> = (0..LONGEST)
            .map(|at| ((at * 7) >> 3).to_le_bytes()[0])
            .collect();
        out.write(0, &pattern);
        let mut reply = [0; 64];
        for (len, gathers, scatters) in [
            (1, 1, 1),
            (8, 8, 8),
            (500, 3, 2),
            (4000, 1, 1),
            (4096, 2, 3),
            (100_000, 8, 1),
            (LONGEST, 5, 8),
        ] {
            back.fill(0, longest, 0);
            let (gather, scatter) = (
                cut(&out_region, len, gathers),
                cut(&back_region, len, scatters),
            );
            let call = Call::new(3, b"body").gather(&gather).scatter(&scatter);
            let got = core.call(peer, call, &mut reply).await.unwrap();
            assert_eq!((&reply[..got.len], got.bulk), (&b"body"[..], len));
            let len = len as usize;
            assert!(bytes(&back, len) == pattern[..len], "{len} bytes");
        }
        // Bulk one way only.
        let gather = cut(&out_region, 50_000, 2);
        let got = core
            .call(peer, Call::new(3, b"").gather(&gather), &mut [])
            .await;
        assert_eq!(got.map(|got| got.bulk), Ok(0));
    });
    assert_eq!(
        (processor.machine.violations(), memory.machine.violations()),
        (0, 0)
    );
}

#[test]
fn calls_with_bulk_share_few_buffers_and_short_calls_overtake_them() {
    let mut bed = Testbed::default();
    let (processor, _memory, peer) = pair_of(&mut bed, long(), long());
    let core = processor.fit.core(0);
    bed.block_on(async {
        let (_out, region) = processor.lent(100_000, 5).await;
        let (_back, into) = processor.lent(100_000, 0).await;
        let calls = (0..20_u8).map(|tag| {
            let core = core.clone();
            let (gather, scatter) = (cut(&region, 100_000, 3), cut(&into, 100_000, 2));
            async move {
                let (body, mut reply) = ([tag; 50], [0; 64]);
                let mut call = Call::new(3, &body);
                if tag % 2 == 0 {
                    call = call.gather(&gather).scatter(&scatter);
                }
                let got = core.call(peer, call, &mut reply).await.unwrap();
                assert_eq!(reply[..got.len], [tag; 50]);
                assert_eq!(got.bulk, if tag % 2 == 0 { 100_000 } else { 0 });
            }
        });
        futures_util::future::join_all(calls).await;
    });
}

#[test]
fn what_the_peer_does_not_take_is_refused_before_it_is_sent() {
    let mut bed = Testbed::default();
    let (processor, _memory, peer) = pair(&mut bed);
    bed.block_on(async {
        let core = processor.fit.core(0);
        let (_out, region) = processor.lent(100_000, 5).await;
        let gather = cut(&region, 70_000, 2);
        let error = core
            .call(peer, Call::new(3, b"").gather(&gather), &mut [])
            .await;
        assert!(
            matches!(
                error,
                Err(Error::TooLong {
                    len: 70_000,
                    limit: 65_536,
                    ..
                })
            ),
            "{error:?}"
        );
        let many = cut(&region, 900, 9);
        for call in [
            Call::new(3, b"").gather(&many),
            Call::new(3, b"").scatter(&many),
        ] {
            let error = core.call(peer, call, &mut []).await;
            assert!(
                matches!(error, Err(Error::TooManyPieces { pieces: 9, .. })),
                "{error:?}"
            );
        }
        let body = [0; 4000];
        let error = core
            .call(peer, Call::new(3, &body).scatter(&many[..8]), &mut [])
            .await;
        assert!(
            matches!(error, Err(Error::TooLong { limit: 4096, .. })),
            "{error:?}"
        );
        assert!(
            core.call(peer, Call::new(3, b"on"), &mut [0; 8])
                .await
                .is_ok()
        );
    });
}

#[test]
fn an_offer_by_a_key_that_does_not_fit_loses_the_connection() {
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair(&mut bed);
    bed.block_on(async {
        let core = processor.fit.core(0);
        let (_out, region) = processor.lent(50_000, 5).await;
        let mut gather = cut(&region, 50_000, 1);
        gather[0].rkey = Rkey(gather[0].rkey.0 ^ 0x100);
        let error = core
            .call(peer, Call::new(3, b"").gather(&gather), &mut [])
            .await;
        assert!(matches!(error, Err(Error::PeerLost { .. })), "{error:?}");
        while memory.handler.lost.lock().unwrap().is_empty() {
            hal::Platform::sleep(&processor.machine, Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_call_that_lends_memory_and_gets_no_answer_ends_with_its_connection() {
    let mut bed = Testbed::default();
    let (processor, _memory, peer) = pair(&mut bed);
    bed.block_on(async {
        let core = processor.fit.core(0);
        let (_out, region) = processor.lent(50_000, 5).await;
        let gather = cut(&region, 50_000, 1);
        let error = core
            .call(peer, Call::new(SILENT, b"").gather(&gather), &mut [])
            .await;
        let cause = LostCause::Deadline(Operation::Call(SILENT));
        assert!(
            matches!(error, Err(Error::PeerLost { cause: found, .. }) if found == cause),
            "{error:?}"
        );
    });
}

#[test]
fn one_way_messages_come_once_in_order_and_as_many_as_there_is_room_for() {
    let mut bed = Testbed::default();
    let (processor, memory, peer) = pair(&mut bed);
    let core = processor.fit.core(0);
    bed.block_on(async {
        for number in 0..100_u16 {
            let body = vec![number.to_le_bytes()[0]; usize::from(number) * 40];
            core.send(peer, number, &body).await.unwrap();
        }
        let error = core.send(peer, 1, &[0; 4096]).await;
        assert!(
            matches!(error, Err(Error::TooLong { limit: 4096, .. })),
            "{error:?}"
        );
        // A call behind them is answered; by then all have been taken up.
        core.call(peer, Call::new(3, b""), &mut []).await.unwrap();
    });
    let received = memory.handler.received.lock().unwrap();
    assert_eq!(received.len(), 100);
    for (number, (kind, body)) in (0..).zip(received.iter()) {
        assert_eq!((*kind, body.len()), (number, usize::from(number) * 40));
    }
    let counters = &processor.fit.core(0).link_counters()[0].2;
    assert_eq!(counters.nr_one_way, 100);
    assert!(counters.nr_back_pressure > 0, "the window is shorter");
}

#[test]
fn a_peer_without_a_window_takes_no_one_way_messages() {
    let mut bed = Testbed::default();
    let without = Config {
        one_ways: 0,
        ..config()
    };
    let (processor, _memory, peer) = pair_of(&mut bed, config(), without);
    let error = bed.block_on(async { processor.fit.core(0).send(peer, 1, b"x").await });
    assert!(matches!(error, Err(Error::NoOneWays(_))), "{error:?}");
}

#[test]
fn handlers_run_in_the_polling_task_or_in_workers_and_cores_poll_as_they_are_told() {
    for workers in [0, 1, 4] {
        for polling in [Polling::Adaptive(3), Polling::Interrupt] {
            let set_up = Config {
                workers,
                polling,
                profile: workers == 4,
                ..config()
            };
            let mut bed = Testbed::default();
            let (processor, memory, peer) = pair_of(&mut bed, set_up, set_up);
            let core = processor.fit.core(0);
            bed.block_on(async {
                for tag in 0..20_u8 {
                    let mut reply = [0; 64];
                    let got = core
                        .call(peer, Call::new(3, &[tag; 50]), &mut reply)
                        .await
                        .unwrap();
                    assert_eq!(reply[..got.len], [tag; 50]);
                }
            });
            let waits = memory.fit.core(0).counters().nr_interrupt_waits;
            assert_eq!(
                waits == 0,
                polling == Polling::Busy,
                "{polling:?}, {workers} workers: {waits}"
            );
            let measured = |point| memory.fit.core(0).profile().summary(point).count;
            let expected = if set_up.profile { 20 } else { 0 };
            for point in [
                ProfilePoint::Queue,
                ProfilePoint::Handler,
                ProfilePoint::PostReply,
            ] {
                assert_eq!(measured(point), expected, "{}", point.name());
            }
        }
    }
}

//! Pages by a queue pair of their own: content, order, wraps, and what is left when it fails.

use hal::{DmaBuffer, Duration, Platform};
use harness::{ClusterConfig, FabricConfig, Faults, Faulty, Machine, Testbed};
use mlx4::Pages;
use verbs::{
    Access, Device, Domain, PAGE_LEN, PageFailure, PageOp, PageQueue, PagesConfig, Qpn,
    RcParameters, RemoteAddr, RingFull, Rkey, Status,
};

use crate::common::{
    ALL, End, Node, PATIENCE, Piece, RC, end, guid, join_pairs, log, pattern, rc_config, start,
    two_nodes,
};

const LEN: usize = PAGE_LEN as usize;
/// Peers have no rights over lines.
const LINES: Access = Access {
    local_write: true,
    remote_read: false,
    remote_write: false,
};

/// A page queue of `a` that is connected to `b`, its lines, and pages of `b`.
struct Bench<P: Platform = Machine> {
    pages: Pages<P>,
    qpn: Qpn,
    lines: Piece<P>,
    there: Piece,
    far: End,
}

async fn bench<P: Platform>(a: &Node<P>, b: &Node, depth: u32, count: usize) -> Bench<P> {
    bench_with(a, b, depth, count, &RC).await
}

async fn bench_with<P: Platform>(
    a: &Node<P>,
    b: &Node,
    depth: u32,
    count: usize,
    parameters: &RcParameters,
) -> Bench<P> {
    let lines = a.memory(count * LEN, LINES).await;
    let there = b.memory(count * LEN, ALL).await;
    let config = PagesConfig {
        domain: Domain::default(),
        port: 1,
        depth,
        lkey: lines.region.lkey,
        vector: 0,
    };
    let (pages, qpn) = a.device.create_pages(&config).await.expect("a page queue");
    let far = end(b, &rc_config(1)).await;
    join_pairs((a, qpn), (b, far.qpn), parameters).await;
    Bench {
        pages,
        qpn,
        lines,
        there,
        far,
    }
}

impl<P: Platform> Bench<P> {
    fn post(&mut self, op: PageOp, line: u32, page: u32, signalled: bool) -> Result<(), RingFull> {
        let local = self.lines.region.addr + u64::from(line * PAGE_LEN);
        let remote = self.there.remote(u64::from(page * PAGE_LEN));
        self.pages.post(op, line, local, remote, signalled)
    }

    /// Takes all completions that are there.
    fn poll(&mut self, mut done: impl FnMut(PageOp, u32)) -> Result<(), PageFailure> {
        while self.pages.is_ready() {
            self.pages.take(&mut done)?;
        }
        Ok(())
    }

    /// The next requests that end, until there are `count`.
    async fn ended(&mut self, clock: &P, count: usize) -> Vec<(PageOp, u32)> {
        let mut ended = Vec::new();
        let deadline = clock.now() + PATIENCE;
        while ended.len() < count {
            let polled = self.poll(|op, line| ended.push((op, line)));
            polled.expect("a working queue");
            assert!(clock.now() < deadline, "no completion");
            clock.sleep(Duration::from_micros(10)).await;
        }
        ended
    }

    /// The failure that stops the queue, and what ended before.
    async fn failure(&mut self, clock: &P) -> (Vec<(PageOp, u32)>, PageFailure) {
        let mut ended = Vec::new();
        let deadline = clock.now() + PATIENCE;
        loop {
            match self.poll(|op, line| ended.push((op, line))) {
                Ok(_) => assert!(clock.now() < deadline, "no failure"),
                Err(failure) => return (ended, failure),
            }
            clock.sleep(Duration::from_micros(10)).await;
        }
    }

    fn left(&mut self) -> Vec<(PageOp, u32)> {
        std::iter::from_fn(|| self.pages.take_back()).collect()
    }
}

fn page<P: Platform>(piece: &Piece<P>, index: usize) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    piece.buffer.read(index * LEN, &mut bytes);
    bytes
}

use PageOp::{Read, Write};

#[test]
fn a_read_and_a_write_go_by_one_doorbell() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut bench = bench(&a, &b, 8, 2).await;
        bench.there.buffer.write(0, &pattern(LEN, 1));
        bench.lines.buffer.write(LEN, &pattern(LEN, 2));
        bench.post(Read, 0, 0, true).unwrap();
        bench.post(Write, 1, 1, true).unwrap();
        a.platform.sleep(Duration::from_millis(1)).await;
        assert!(!bench.pages.is_ready(), "nothing goes without a doorbell");
        bench.pages.ring();
        assert_eq!(bench.ended(&a.platform, 2).await, [(Read, 0), (Write, 1)]);
        assert_eq!(page(&bench.lines, 0), pattern(LEN, 1));
        assert_eq!(page(&bench.there, 1), pattern(LEN, 2));
        assert_eq!(bench.pages.outstanding(), 0);
    });
    assert_eq!((a.platform.violations(), b.platform.violations()), (0, 0));
}

#[test]
fn unsignalled_writes_end_with_the_read_behind_them() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut bench = bench(&a, &b, 8, 4).await;
        for line in 0..3 {
            bench.lines.buffer.write(line * LEN, &pattern(LEN, line));
            bench
                .post(Write, line.try_into().unwrap(), 0, false)
                .unwrap();
        }
        bench.pages.ring();
        a.platform.sleep(Duration::from_millis(1)).await;
        assert!(!bench.pages.is_ready(), "they make no completions");
        assert_eq!(bench.pages.outstanding(), 3);
        bench.post(Read, 3, 0, true).unwrap();
        bench.pages.ring();
        let all = [(Write, 0), (Write, 1), (Write, 2), (Read, 3)];
        assert_eq!(bench.ended(&a.platform, 4).await, all);
        // The READ saw the last of them.
        assert_eq!(page(&bench.lines, 3), pattern(LEN, 2));
    });
}

#[test]
fn the_ring_wraps_and_refuses_what_it_has_no_place_for() {
    // With a way to go, so that the ring fills.
    let mut bed = Testbed::new(ClusterConfig {
        fabric: FabricConfig {
            latency: Duration::from_micros(2),
            ..FabricConfig::default()
        },
    });
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut bench = bench(&a, &b, 16, 256).await;
        for line in 0..256 {
            bench.there.buffer.write(line * LEN, &pattern(LEN, line));
        }
        let room = bench.pages.room();
        for line in 0..room {
            bench.post(Read, line, line, true).unwrap();
        }
        assert_eq!(bench.post(Read, 0, 0, true), Err(RingFull));
        bench.pages.ring();
        let mut next = 0;
        // More READs are out than the peer answers at once: the card holds the rest back.
        assert!(room > u32::from(RC.reads_as_requester));
        while next < 20 * room {
            for (op, line) in bench.ended(&a.platform, 1).await {
                assert_eq!((op, line), (Read, next % 256), "in order");
                let line = line as usize;
                assert_eq!(page(&bench.lines, line), pattern(LEN, line));
                bench.lines.buffer.fill(line * LEN, LEN, 0);
                next += 1;
            }
            if bench.pages.room() < 3 {
                continue;
            }
            while bench.pages.room() > 0 {
                let line = (next + bench.pages.outstanding()) % 256;
                bench.post(Read, line, line, true).unwrap();
            }
            bench.pages.ring();
        }
    });
    assert_eq!((a.platform.violations(), b.platform.violations()), (0, 0));
}

#[test]
fn a_failure_leaves_what_is_behind_it_in_order() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut bench = bench(&a, &b, 8, 8).await;
        bench.post(Write, 0, 0, false).unwrap();
        bench.post(Read, 1, 0, true).unwrap();
        bench.post(Write, 2, 0, false).unwrap();
        let local = bench.lines.region.addr;
        let nowhere = RemoteAddr {
            rkey: Rkey(0x7700_0001),
            ..bench.there.remote(0)
        };
        bench.pages.post(Read, 3, local, nowhere, true).unwrap();
        bench.post(Write, 4, 0, false).unwrap();
        bench.post(Read, 5, 0, true).unwrap();
        bench.pages.ring();
        let (ended, failure) = bench.failure(&a.platform).await;
        // What the failed one's completion covers was carried out.
        assert_eq!(ended, [(Write, 0), (Read, 1), (Write, 2)]);
        assert_eq!(failure, PageFailure::Request(Status::RemoteAccess));
        assert_eq!(bench.poll(|_, _| panic!("it has stopped")), Err(failure));
        a.device.fail_qp(bench.qpn).await.unwrap();
        assert_eq!(bench.left(), [(Read, 3), (Write, 4), (Read, 5)]);
        assert_eq!(bench.pages.outstanding(), 0);
    });
}

#[test]
fn a_dead_peer_ends_the_retries_and_a_queue_that_is_failed_is_flushed() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let mut killed = bench(&a, &b, 8, 2).await;
        a.device.fail_qp(killed.qpn).await.unwrap();
        killed.post(Read, 1, 0, true).unwrap();
        killed.pages.ring();
        let (ended, failure) = killed.failure(&a.platform).await;
        assert_eq!(
            (ended, failure),
            (vec![], PageFailure::Request(Status::Flushed))
        );

        let mut bench = bench(&a, &b, 8, 2).await;
        b.platform.power_off();
        bench.post(Write, 0, 0, false).unwrap();
        bench.post(Read, 1, 0, true).unwrap();
        bench.pages.ring();
        let (ended, failure) = bench.failure(&a.platform).await;
        assert_eq!(
            (ended, failure),
            (vec![], PageFailure::Request(Status::RetryExceeded))
        );
        assert_eq!(bench.left(), [(Write, 0), (Read, 1)]);
    });
}

#[test]
fn nothing_of_a_page_queue_stays_behind() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        let before = (a.platform.allocated(), b.platform.allocated());
        for _ in 0..3 {
            let mut bench = bench(&a, &b, 8, 2).await;
            bench.post(Read, 1, 0, true).unwrap();
            bench.pages.ring();
            a.device.destroy_pages(bench.pages).await.unwrap();
            a.device.deregister(&bench.lines.region).await.unwrap();
            b.device.destroy_queues(bench.far.queues).await.unwrap();
            b.device.deregister(&bench.there.region).await.unwrap();
        }
        assert_eq!((a.platform.allocated(), b.platform.allocated()), before);
    });
    assert_eq!(a.platform.violations(), 0);
}

#[test]
fn a_peer_that_answers_few_reads_is_sent_no_more_at_once() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.block_on(async {
        // The card counts in powers of two: of six that the peer answers it may use four.
        let few = RcParameters {
            reads_as_requester: 6,
            reads_as_responder: 4,
            ..RC
        };
        let mut bench = bench_with(&a, &b, 64, 64, &few).await;
        for line in 0..64 {
            bench.post(Read, line, line, true).unwrap();
        }
        bench.pages.ring();
        assert_eq!(bench.ended(&a.platform, 64).await.len(), 64);
    });
}

#[test]
fn completions_that_can_not_be_stop_the_queue() {
    log();
    // Spoiled words hit every field in turn: each is believed only if it can be.
    let mut inconsistent = 0;
    for seed in 0..40 {
        let faults = Faults::new(seed);
        let mut bed = Testbed::default();
        let machine = bed.add_machine("a", guid(0));
        let peer = bed.add_machine("b", guid(1));
        let b = start(&mut bed, peer);
        let a = start(&mut bed, Faulty::new(machine, faults.clone()));
        inconsistent += bed.block_on(async {
            let mut bench = bench(&a, &b, 32, 32).await;
            let mut expected = 0;
            faults.spoil_words_one_in(5);
            for line in 0..32 {
                bench.post(Read, line, line, true).unwrap();
            }
            bench.pages.ring();
            a.platform.sleep(Duration::from_millis(1)).await;
            let mut failure = None;
            for _ in 0..64 {
                let polled = bench.poll(|op, line| {
                    assert_eq!(
                        (op, line),
                        (Read, expected),
                        "what ends is outstanding, and in order"
                    );
                    expected += 1;
                });
                failure = polled.err().or(failure);
            }
            faults.spoil_words_one_in(0);
            let left = bench.left();
            assert_eq!(left.len(), 32 - expected as usize, "each ends once");
            i32::from(matches!(failure, Some(PageFailure::Inconsistent { .. })))
        });
    }
    assert!(inconsistent > 10, "{inconsistent}");
}

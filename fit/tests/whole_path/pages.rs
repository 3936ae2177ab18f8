//! Page paths between nodes: opened by the handshake, used, lost and closed.

use fit::{Config, Domains, Error, LostCause, Operation, PagePath, PageRefused, PeerId, Role};
use hal::{DmaBuffer, Duration, Platform};
use harness::{Buffer, Machine, Testbed};
use mlx4::Pages;
use verbs::{Access, Device, PAGE_LEN, PageOp, Region, RemoteAddr, Rkey, Status};

use crate::common::{Node, config, node, pair_of};

use PageOp::{Read, Write};

const LEN: usize = PAGE_LEN as usize;

type Path = PagePath<Pages<Machine>>;
type Ended = Vec<(PageOp, u32, Result<(), LostCause>)>;

fn lending(paths: u16) -> Config {
    Config {
        page_paths: paths,
        domains: Domains::PerPeer,
        ..config()
    }
}

fn borrowing() -> Config {
    Config {
        domains: Domains::PerPeer,
        ..config()
    }
}

/// Memory of `count` pages, registered for `peer`.
async fn pages(node: &Node, peer: PeerId, count: usize, access: Access) -> (Buffer, Region) {
    let buffer = node.machine.alloc(count * LEN, LEN).unwrap();
    let addr = buffer.bus_addr().0;
    let (domain, len) = (node.fit.domain(peer), buffer.len() as u64);
    let region = node.device.register(domain, addr, len, access).await;
    (buffer, region.unwrap())
}

/// A processor with a path of pages to a memory.
struct Bench {
    processor: Node,
    memory: Node,
    peer: PeerId,
    lines: (Buffer, Region),
    there: (Buffer, Region),
}

fn bench(bed: &mut Testbed, ours: Config, theirs: Config) -> Bench {
    let (processor, memory, peer) = pair_of(bed, ours, theirs);
    bed.block_on(async {
        // M is told of P when P's confirmation has come.
        while memory.fit.view().members.is_empty() {
            memory.machine.sleep(Duration::from_millis(1)).await;
        }
        let borrower = memory.fit.view().members[0].0;
        let lines = Access {
            local_write: true,
            ..Access::default()
        };
        let there = Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        };
        Bench {
            lines: pages(&processor, peer, 64, lines).await,
            there: pages(&memory, borrower, 64, there).await,
            processor,
            memory,
            peer,
        }
    })
}

impl Bench {
    async fn open(&self, core: u16) -> Path {
        let lkey = self.lines.1.lkey;
        self.processor
            .fit
            .open_pages(core, self.peer, lkey)
            .await
            .unwrap()
    }

    fn local(&self, line: u32) -> u64 {
        self.lines.1.addr + u64::from(line * PAGE_LEN)
    }

    fn remote(&self, page: u32) -> RemoteAddr {
        RemoteAddr {
            addr: self.there.1.addr + u64::from(page * PAGE_LEN),
            rkey: self.there.1.rkey,
        }
    }

    /// Returns the ends of transfers, once there are `count`.
    async fn ended(&self, path: &mut Path, count: usize) -> Ended {
        let (mut ended, mut wait) = (Vec::new(), Duration::from_micros(1));
        while ended.len() < count {
            let now = self.processor.machine.now();
            path.look(now, &mut |op, line, result| ended.push((op, line, result)));
            self.processor.machine.sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(1));
        }
        ended
    }
}

fn page(buffer: &Buffer, index: u32) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    buffer.read(index as usize * LEN, &mut bytes);
    bytes
}

fn fill(buffer: &Buffer, index: u32, value: u8) {
    buffer.fill(index as usize * LEN, LEN, value);
}

#[test]
fn pages_come_and_go_by_a_path_of_their_own() {
    let mut bed = Testbed::default();
    let bench = bench(&mut bed, borrowing(), lending(2));
    bed.block_on(async {
        let mut path = bench.open(0).await;
        assert_eq!(path.peer().0, bench.peer);
        for round in 0..50_u32 {
            let (line, other) = (round % 64, (round + 1) % 64);
            let value = line.to_le_bytes()[0];
            fill(&bench.there.0, line, value);
            fill(&bench.lines.0, other, !value);
            path.read(line, bench.local(line), bench.remote(line))
                .unwrap();
            path.write(other, bench.local(other), bench.remote(other))
                .unwrap();
            path.ring();
            let all = [(Read, line, Ok(())), (Write, other, Ok(()))];
            assert_eq!(bench.ended(&mut path, 2).await, all);
            assert!(page(&bench.lines.0, line) == [value; LEN]);
            assert!(page(&bench.there.0, other) == [!value; LEN]);
        }
        let counters = path.counters();
        assert_eq!((counters.nr_rdma_read, counters.nr_doorbells), (50, 50));
    });
    let violations = [&bench.processor, &bench.memory].map(|node| node.machine.violations());
    assert_eq!(violations, [0, 0]);
}

/// Shows what the adapter is asked for a page: `cargo test -p fit --test whole_path pages --
/// --nocapture`.
#[test]
fn a_batch_is_one_doorbell() {
    const ROUNDS: u32 = 100;
    let mut bed = Testbed::default();
    let bench = bench(&mut bed, borrowing(), lending(1));
    let mut path = bed.block_on(bench.open(0));
    let card = bench.processor.machine.node();
    // READs and WRITEs of a batch.
    for (reads, writes) in [(1, 0), (1, 1), (8, 0), (0, 8)] {
        let before = bed.with_cluster(|cluster, _| cluster.counters(card));
        let counted = path.counters();
        bed.block_on(async {
            for _ in 0..ROUNDS {
                for line in 0..reads {
                    path.read(line, bench.local(line), bench.remote(line))
                        .unwrap();
                }
                for line in 8..8 + writes {
                    path.write(line, bench.local(line), bench.remote(line))
                        .unwrap();
                }
                path.ring();
                let count = (reads + writes) as usize;
                assert_eq!(bench.ended(&mut path, count).await.len(), count);
            }
        });
        let after = bed.with_cluster(|cluster, _| cluster.counters(card));
        let signalled = path.counters().nr_signalled_write - counted.nr_signalled_write;
        let (rounds, doorbells) = (u64::from(ROUNDS), path.counters().nr_doorbells);
        assert_eq!(doorbells - counted.nr_doorbells, rounds);
        // However many WRITEs there are, the last one ends them all.
        assert_eq!(signalled, if writes > 0 { rounds } else { 0 });
        let line = |what, count: u64| {
            let each = count as f64 / f64::from(ROUNDS);
            println!("counted\t{reads} READs, {writes} WRITEs\t{what}\t{each:.2}");
        };
        line("doorbells in all", after.doorbells - before.doorbells);
        line("reads of memory", after.dma_reads - before.dma_reads);
        line("writes to memory", after.dma_writes - before.dma_writes);
        line("packets sent", after.packets_sent - before.packets_sent);
    }
}

#[test]
fn a_path_of_each_core_and_more_than_one() {
    let mut bed = Testbed::default();
    let two = Config {
        cores: 2,
        connect_timeout: Duration::from_secs(1),
        ..borrowing()
    };
    let bench = bench(&mut bed, two, lending(3));
    bed.block_on(async {
        let mut paths = [
            bench.open(0).await,
            bench.open(1).await,
            bench.open(1).await,
        ];
        for (line, path) in (0..).zip(&mut paths) {
            fill(&bench.there.0, line, 7);
            path.read(line, bench.local(line), bench.remote(line))
                .unwrap();
            path.ring();
        }
        for (line, path) in (0..).zip(&mut paths) {
            assert_eq!(bench.ended(path, 1).await, [(Read, line, Ok(()))]);
            assert!(page(&bench.lines.0, line) == [7; LEN]);
        }
        // No more than M accepts; a path that is closed makes room for another.
        let lkey = bench.lines.1.lkey;
        let refused = bench.processor.fit.open_pages(0, bench.peer, lkey).await;
        assert!(matches!(refused, Err(Error::NoConnection { .. })));
        drop(paths);
        let mut again = bench.open(0).await;
        again.read(9, bench.local(9), bench.remote(9)).unwrap();
        again.ring();
        assert_eq!(bench.ended(&mut again, 1).await, [(Read, 9, Ok(()))]);
        // The peer is still there.
        assert_eq!(bench.processor.fit.lost_cause(bench.peer), None);
        assert!(bench.memory.handler.lost.lock().unwrap().is_empty());
    });
}

#[test]
fn a_peer_that_lends_no_pages_says_so_at_once() {
    let mut bed = Testbed::default();
    let bench = bench(&mut bed, borrowing(), lending(0));
    bed.block_on(async {
        let fit = &bench.processor.fit;
        let refused = fit.open_pages(0, bench.peer, bench.lines.1.lkey).await;
        assert!(
            matches!(refused, Err(Error::Refused { .. })),
            "{:?}",
            refused.err()
        );
        let stranger = fit.open_pages(0, PeerId(77), bench.lines.1.lkey).await;
        assert!(matches!(stranger, Err(Error::NotConnected(77))));
        assert_eq!(fit.lost_cause(bench.peer), None);
    });
}

#[test]
fn a_key_that_does_not_fit_ends_every_request_and_loses_the_peer() {
    let mut bed = Testbed::default();
    let bench = bench(&mut bed, borrowing(), lending(2));
    bed.block_on(async {
        let mut path = bench.open(0).await;
        let other = bench.open(0).await;
        path.write(0, bench.local(0), bench.remote(0)).unwrap();
        path.read(1, bench.local(1), bench.remote(0)).unwrap();
        let nowhere = RemoteAddr {
            rkey: Rkey(0xdead_0000),
            ..bench.remote(0)
        };
        path.read(2, bench.local(2), nowhere).unwrap();
        path.write(3, bench.local(3), bench.remote(3)).unwrap();
        path.ring();
        let cause = LostCause::Transport(Status::RemoteAccess);
        let all = [
            (Write, 0, Ok(())),
            (Read, 1, Ok(())),
            (Read, 2, Err(cause)),
            (Write, 3, Err(cause)),
        ];
        assert_eq!(bench.ended(&mut path, 4).await, all);
        let refused = path.read(1, bench.local(1), bench.remote(0));
        assert_eq!(refused, Err(PageRefused::Lost));
        // Both sides lose each other, and the other path goes with them.
        while other.lost().is_none() || bench.memory.handler.lost.lock().unwrap().is_empty() {
            bench
                .processor
                .machine
                .sleep(Duration::from_millis(1))
                .await;
        }
        assert!(bench.processor.fit.lost_cause(bench.peer).is_some());
    });
    assert_eq!(bench.processor.machine.violations(), 0);
}

#[test]
fn a_dead_peer_ends_every_request_with_the_cause() {
    let mut bed = Testbed::default();
    let bench = bench(&mut bed, borrowing(), lending(1));
    bed.block_on(async {
        let mut path = bench.open(0).await;
        bench.memory.machine.power_off();
        for line in 0..20 {
            path.read(line, bench.local(line), bench.remote(line))
                .unwrap();
        }
        path.ring();
        let ended = bench.ended(&mut path, 20).await;
        for ((op, line, result), expected) in ended.into_iter().zip(0..) {
            assert_eq!((op, line), (Read, expected));
            assert!(result.is_err());
        }
        assert_eq!(path.pending(), 0);
    });
}

#[test]
fn what_takes_too_long_loses_the_path() {
    let mut bed = Testbed::default();
    // Sooner than the transport gives up.
    let hasty = Config {
        timeout: Duration::from_millis(20),
        ..borrowing()
    };
    let bench = bench(&mut bed, hasty, lending(1));
    bed.block_on(async {
        let mut path = bench.open(0).await;
        bench.memory.machine.power_off();
        path.read(4, bench.local(4), bench.remote(4)).unwrap();
        path.ring();
        let began = bench.processor.machine.now();
        let cause = LostCause::Deadline(Operation::Read);
        assert_eq!(bench.ended(&mut path, 1).await, [(Read, 4, Err(cause))]);
        let waited = bench.processor.machine.now().since(began);
        assert!(waited >= Duration::from_millis(20), "{waited:?}");
    });
}

#[test]
fn memory_of_another_borrower_is_out_of_reach() {
    let mut bed = Testbed::default();
    let bench = bench(&mut bed, borrowing(), lending(2));
    let thief = node(&mut bed, 3, Role::Processor, borrowing());
    bed.block_on(async {
        let peer = thief.fit.connect(bench.memory.spec().await).await.unwrap();
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let (lines, region) = pages(&thief, peer, 1, access).await;
        let mut path = thief.fit.open_pages(0, peer, region.lkey).await.unwrap();
        fill(&bench.there.0, 0, 9);
        path.read(0, region.addr, bench.remote(0)).unwrap();
        path.ring();
        let ended = bench.ended(&mut path, 1).await;
        let cause = LostCause::Transport(Status::RemoteAccess);
        assert_eq!(ended, [(Read, 0, Err(cause))]);
        assert!(page(&lines, 0) == [0; LEN]);
        assert_eq!(bench.processor.fit.lost_cause(bench.peer), None);
    });
}

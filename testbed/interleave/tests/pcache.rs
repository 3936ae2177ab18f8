//! pcache on several cores, in every order that shuttle comes to: faults against faults, eviction,
//! fork, munmap and mprotect, and the shootdowns between them.
//!
//! The machine is the one of pcache's own tests: every core has a TLB that keeps what it is not
//! told to drop, and every word read is checked. A task that waits and is not woken makes the run
//! fail.
#![cfg(interleave)]
#![forbid(unsafe_code)]

#[path = "../../../pcache/tests/world/mod.rs"]
mod world;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use pcache::{Cache, Config, Machine, Plan, Rights};
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use world::program::{Outcome, Program};
use world::{Space, World, on_core};

/// Orders that are tried of each test.
const ORDERS: usize = 400;
/// Steps of one run, some twenty times as many as it takes.
const STEPS: usize = 400_000;
const BOTH: Rights = Rights::READ.union(Rights::WRITE);
/// Pages of each program: more than the cache's four lines.
const PAGES: usize = 6;

/// Reads or writes a word of a page, and waits for whatever it needs.
async fn access(
    cache: &Cache<World>,
    program: &mut Program,
    at: (usize, usize),
    write: bool,
) -> Outcome {
    poll_fn(
        |context| match program.access(cache, at, write, None, Plan::NONE, context.waker()) {
            Outcome::Pending => Poll::Pending,
            done => Poll::Ready(done),
        },
    )
    .await
}

async fn done(cache: &Cache<World>, program: &mut Program, at: (usize, usize), write: bool) {
    let outcome = access(cache, program, at, write).await;
    assert!(matches!(outcome, Outcome::Value(_)), "{outcome:?}");
}

/// Ends transfers, the latest or the oldest first, while programs run.
async fn network(cache: Arc<Cache<World>>, running: Arc<AtomicUsize>) {
    on_core(3);
    let mut turn = 0;
    while running.load(Ordering::SeqCst) > 0 {
        turn += 1;
        if let Some((line, result)) = cache.machine().carry_out(turn, false) {
            cache.complete(line, result).expect("a transfer under way");
        }
        yield_now().await;
    }
}

/// Creates a program with written pages, most of which are in remote memory.
async fn begin(cache: &Cache<World>, chunks: &[pcache::ChunkId]) -> Program {
    let mut program = Program::new(Space::new(1), [chunks[0], chunks[1]]);
    for vpn in 0..PAGES {
        program.map(vpn, BOTH, None);
        done(cache, &mut program, (vpn, 0), true).await;
    }
    program
}

/// Runs two tasks against each other, with what the first made of a program.
fn race<A, B>(first: A, second: B)
where
    A: AsyncFn(&Cache<World>, Program) + Copy + Send + Sync + 'static,
    B: AsyncFn(&Cache<World>, Program) + Copy + Send + Sync + 'static,
{
    let run = move || {
        let config = Config {
            cores: 4,
            ..Config::default()
        };
        let (cache, chunks) = world::cache(1, 4, config, 4, 4);
        let (cache, running) = (Arc::new(cache), Arc::new(AtomicUsize::new(2)));
        let network = spawn(network(cache.clone(), running.clone()));
        on_core(0);
        let program = block_on(begin(&cache, &chunks));
        let other = program.thread();
        let task = |core: usize, what: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
            let running = running.clone();
            shuttle::future::spawn_local(async move {
                on_core(core);
                what.await;
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let (cache_a, cache_b) = (cache.clone(), cache.clone());
        let a = task(1, Box::pin(async move { first(&cache_a, program).await }));
        let b = task(2, Box::pin(async move { second(&cache_b, other).await }));
        for task in [a, b, network] {
            block_on(task).expect("nobody aborts it");
        }
    };
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS);
    let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(0x5eed, ORDERS);
    shuttle::Runner::new(scheduler, config).run(run);
}

async fn scan(cache: &Cache<World>, mut program: Program, word: usize) {
    for vpn in 0..PAGES {
        done(cache, &mut program, (vpn, word), true).await;
    }
    for vpn in 0..PAGES {
        done(cache, &mut program, (vpn, word), false).await;
    }
}

#[test]
fn faults_on_the_same_pages_while_each_evicts_the_others() {
    race(
        async |cache, program| scan(cache, program, 1).await,
        async |cache, program| scan(cache, program, 2).await,
    );
}

#[test]
fn fork_against_faults_and_eviction() {
    race(
        async |cache, mut program| {
            // Pages 0 and 1 are this task's alone; the other one goes through the rest.
            let child_space = Space::new(2);
            let chunk = program.chunk;
            for vpn in 2..PAGES {
                program.vmas[vpn] = None;
            }
            let mut child = program.fork(cache, child_space, chunk);
            done(cache, &mut program, (0, 3), true).await;
            done(cache, &mut child, (1, 3), true).await;
            for vpn in 0..2 {
                for word in [0, 3] {
                    done(cache, &mut program, (vpn, word), false).await;
                    done(cache, &mut child, (vpn, word), false).await;
                }
            }
            child.exit(cache);
        },
        async |cache, mut program| {
            for vpn in [2, 3, 4, 5, 2, 3] {
                done(cache, &mut program, (vpn, 1), true).await;
            }
        },
    );
}

#[test]
fn munmap_against_a_fill_and_a_first_touch_after_it() {
    race(
        async |cache, mut program| {
            for vpn in 0..3 {
                program.unmap(cache, vpn, &mut cache.batch(program.space.id));
                program.map(vpn, BOTH, None);
                done(cache, &mut program, (vpn, 0), false).await;
                done(cache, &mut program, (vpn, 1), true).await;
            }
        },
        async |cache, mut program| {
            // Reads its own pages, and starts READs of those that the other one unmaps.
            for vpn in [3, 0, 4, 1, 5, 2] {
                if vpn < 3 {
                    cache.will_need(program.space.at(vpn));
                    cache.machine().ring();
                } else {
                    done(cache, &mut program, (vpn, 2), true).await;
                }
            }
        },
    );
}

#[test]
fn mprotect_against_fills() {
    race(
        async |cache, mut program| {
            for round in 0..2 {
                for vpn in 0..3 {
                    program.protect(cache, vpn, Rights::READ);
                    done(cache, &mut program, (vpn, 0), false).await;
                    let refused = access(cache, &mut program, (vpn, 1), true).await;
                    assert_eq!(refused, Outcome::Fault, "round {round}");
                    program.protect(cache, vpn, BOTH);
                    done(cache, &mut program, (vpn, 1), true).await;
                }
            }
        },
        async |cache, mut program| {
            for vpn in [3, 0, 4, 1, 5, 2, 3] {
                // Reading is allowed all the time.
                let write = vpn >= 3;
                done(cache, &mut program, (vpn, if write { 2 } else { 0 }), write).await;
            }
        },
    );
}

#[test]
fn mremap_against_fills() {
    race(
        async |cache, mut program| {
            for vpn in 0..2 {
                program.remap(cache, vpn, vpn + 20);
                done(cache, &mut program, (vpn + 20, 0), false).await;
                program.remap(cache, vpn + 20, vpn);
                done(cache, &mut program, (vpn, 1), true).await;
            }
        },
        async |cache, mut program| {
            for vpn in [3, 0, 4, 1, 5, 0, 1, 3] {
                if vpn < 2 {
                    cache.will_need(program.space.at(vpn));
                    cache.machine().ring();
                } else {
                    done(cache, &mut program, (vpn, 2), true).await;
                }
            }
        },
    );
}

/// A test that can't fail proves nothing: without shootdowns some order reads what it should not.
#[test]
fn missing_shootdowns_are_found() {
    let found = std::panic::catch_unwind(|| {
        race(
            async |cache, program| {
                cache
                    .machine()
                    .forgets_flushes
                    .store(true, Ordering::SeqCst);
                scan(cache, program, 1).await;
            },
            async |cache, program| scan(cache, program, 2).await,
        );
    });
    assert!(found.is_err());
}

//! pcache's sets and those who wait for them, on several cores, in every order that shuttle comes to.
//!
//! The machine is the one of pcache's own tests: it asserts every rule of the traits. Transfers end in any order. Who waits
//! for a set that changed and is not woken makes the run exceed its steps.
#![cfg(interleave)]
#![forbid(unsafe_code)]

#[path = "../../../pcache/tests/fake/mod.rs"]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fake::Fake;
use hal::Instant;
use pcache::{Cache, Config, Geometry, Got, Page, SpaceId, Vpn};
use shuttle::future::{block_on, spawn, yield_now};

/// Orders that are tried of each test.
const ORDERS: usize = 1000;
/// Steps of one run, some twenty times as many as it takes.
const STEPS: usize = 100_000;
/// Cores, each with a program of its own.
const CORES: u64 = 3;
/// Pages of each: more in all than the cache has lines.
const PAGES: usize = 2;

fn page(space: u64, vpn: u64) -> Page {
    Page {
        space: SpaceId(space),
        vpn: Vpn(vpn),
    }
}

async fn fault(cache: &Cache<Fake>, page: Page) {
    match cache
        .get(page, Instant::default)
        .await
        .expect("nothing fails here")
    {
        Got::Ready(pinned) => {
            yield_now().await;
            pinned.map(true).expect("the tables take it");
        }
        Got::Load(_) => unreachable!("no files here"),
    }
}

/// A program that writes its pages in turn, and finds in each what it wrote last.
async fn program(cache: &Cache<Fake>, space: u64) {
    let mut wrote = [0; PAGES];
    for round in 1..=4_u64 {
        let vpn = round % PAGES as u64;
        let (page, wrote) = (page(space, vpn), &mut wrote[usize::try_from(vpn).expect("small")]);
        // The mapping may go between the fault and the use, as on a real core: then it faults again.
        loop {
            match cache.machine().touch(page, 8, None) {
                None => fault(cache, page).await,
                Some(seen) => {
                    assert_eq!(seen, *wrote, "{page} lost a write");
                    if cache.machine().touch(page, 8, Some(round)).is_some() {
                        *wrote = round;
                        break;
                    }
                }
            }
        }
        if round == 2 {
            cache.revoked(page).await;
            assert!(
                cache.machine().touch(page, 8, None).is_none(),
                "the mapping is gone"
            );
        }
    }
}

/// Ends transfers, the latest or the oldest first, while a program runs.
async fn network(cache: &Cache<Fake>, running: &AtomicUsize) {
    let mut turn = false;
    while running.load(Ordering::SeqCst) > 0 {
        let pending = cache.machine().state().transfers.len();
        if pending > 0 {
            turn = !turn;
            let token = cache
                .machine()
                .carry_out(if turn { pending - 1 } else { 0 }, turn);
            cache
                .complete(token, Ok(()), Instant::default())
                .expect("a transfer under way");
        }
        yield_now().await;
    }
}

fn run_all() {
    let geometry = Geometry::new(4 * 4096, 4).expect("one set of four");
    let cache = Arc::new(Cache::new(
        geometry,
        Config::default(),
        Fake::new(geometry.lines()),
    ));
    let running = Arc::new(AtomicUsize::new(usize::try_from(CORES).expect("small")));
    let programs: Vec<_> = (0..CORES)
        .map(|space| {
            let (cache, running) = (cache.clone(), running.clone());
            spawn(async move {
                program(&cache, space).await;
                running.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    let (of_network, counted) = (cache.clone(), running.clone());
    let network = spawn(async move { network(&of_network, &counted).await });
    for task in programs.into_iter().chain([network]) {
        block_on(task).expect("nobody aborts it");
    }
    assert!(
        cache.counters().nr_clflush > 0,
        "there was to be no room for all pages"
    );
}

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS);
    config
}

#[test]
fn cores_that_share_a_set_lose_nothing_and_wait_for_nothing_in_vain() {
    let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(0x5eed, ORDERS);
    shuttle::Runner::new(scheduler, config()).run(run_all);
}

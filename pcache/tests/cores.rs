//! Several cores on one cache: their pages share sets, never bytes.

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fake::Fake;
use hal::Instant;
use pcache::{Access, Cache, Config, Geometry, Page, SpaceId, Vpn};

const CORES: u64 = 4;
const PAGES: usize = 12;
const ROUNDS: u64 = 300;

fn core(cache: &Cache<Fake>, space: u64) {
    let mut expected = [0; PAGES];
    let mut random = space + 1;
    for round in 1..=ROUNDS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let vpn = (random >> 33) % PAGES as u64;
        let page = Page {
            space: SpaceId(space),
            vpn: Vpn(vpn),
        };
        let expected = &mut expected[usize::try_from(vpn).unwrap()];
        let write = random >> 62 != 0;
        // The mapping may go between the fault and the use, as on a real core: then it faults again.
        loop {
            match cache.machine().touch(page, 8, None) {
                Some(seen) => assert_eq!(seen, *expected, "{page} lost a write"),
                None => {
                    fault(cache, page);
                    continue;
                }
            }
            if !write {
                break;
            }
            if cache.machine().touch(page, 8, Some(round)).is_some() {
                *expected = round;
                break;
            }
            fault(cache, page);
        }
    }
}

/// Counts a core out, also when it panics.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn fault(cache: &Cache<Fake>, page: Page) {
    match cache.access(page, Instant::default()).unwrap() {
        Access::Ready(pinned) => pinned.map(true).unwrap(),
        Access::Load(_) => unreachable!("no files here"),
        Access::Wait => thread::yield_now(),
    }
}

#[test]
fn cores_sharing_sets_lose_nothing() {
    let geometry = Geometry::new(2 * 4 * 4096, 4).unwrap();
    let cache = Cache::new(geometry, Config::default(), Fake::new(geometry.lines()));
    let running = AtomicUsize::new(0);
    thread::scope(|scope| {
        for space in 0..CORES {
            let (cache, running) = (&cache, &running);
            running.fetch_add(1, Ordering::SeqCst);
            scope.spawn(move || {
                let _done = Done(running);
                core(cache, space);
            });
        }
        while running.load(Ordering::SeqCst) > 0 {
            let pending = cache.machine().state().transfers.len();
            if pending == 0 {
                thread::yield_now();
                continue;
            }
            let token = cache.machine().carry_out(pending - 1, pending % 2 == 0);
            cache.complete(token, Ok(()), Instant::default()).unwrap();
        }
    });
    assert!(
        cache.counters().nr_clflush > 0,
        "the working set was to be larger than the cache"
    );
}

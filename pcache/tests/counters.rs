//! Exact counts for known patterns of access, and the single steps of a line's life.

mod fake;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use fake::Fake;
use hal::Instant;
use pcache::{Access, Cache, Config, Counters, Error, Geometry, Got, IoFailed, Page, SpaceId, Token, Vpn};

fn cache(lines: u32) -> Cache<Fake> {
    let geometry = Geometry::new(u64::from(lines) * 4096, 4).unwrap();
    Cache::new(geometry, Config::default(), Fake::new(lines))
}

fn page(vpn: u64) -> Page {
    Page {
        space: SpaceId(1),
        vpn: Vpn(vpn),
    }
}

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

/// Uses a page as a program does, ending transfers as needed.
fn touch(cache: &Cache<Fake>, vpn: u64, write: bool) {
    let value = write.then_some(vpn);
    while cache.machine().touch(page(vpn), 0, value).is_none() {
        match cache.access(page(vpn), at(0)).unwrap() {
            Access::Ready(pinned) => pinned.map(true).unwrap(),
            Access::Load(_) => unreachable!("no files here"),
            Access::Wait => finish_all(cache),
        }
    }
    finish_all(cache);
}

fn finish_all(cache: &Cache<Fake>) {
    while !cache.machine().state().transfers.is_empty() {
        let token = cache.machine().carry_out(0, false);
        cache.complete(token, Ok(()), at(1_000)).unwrap();
    }
}

#[test]
fn working_set_that_fits_is_never_evicted() {
    let cache = cache(64);
    for _ in 0..3 {
        (0..64).for_each(|vpn| touch(&cache, vpn, true));
    }
    let c = cache.counters();
    assert_eq!((c.nr_pcache_fill_zerofill, c.nr_pcache_fill_from_memory), (64, 0));
    assert_eq!(c.nr_pcache_eviction_succeed, 0);
}

#[test]
fn clean_pages_leave_without_a_message() {
    let cache = cache(4);
    (0..12).for_each(|vpn| touch(&cache, vpn, false));
    let c = cache.counters();
    assert_eq!(
        c.nr_pcache_fill_zerofill, 12,
        "never written back, so never read back"
    );
    assert_eq!(
        (
            c.nr_pcache_eviction_clean,
            c.nr_pcache_eviction_dirty,
            c.nr_clflush
        ),
        (8, 0, 0)
    );
}

#[test]
fn dirty_pages_make_one_write_and_one_read_each() {
    let cache = cache(4);
    (0..8).for_each(|vpn| touch(&cache, vpn, true));
    let c = cache.counters();
    // Four evicted, and the reserve is one ahead.
    assert_eq!(
        (
            c.nr_pcache_eviction_dirty,
            c.nr_pcache_eviction_clean,
            c.nr_clflush
        ),
        (4, 0, 5)
    );
    assert_eq!(cache.flush_times().count, 5);
    touch(&cache, 0, false);
    let c = cache.counters();
    assert_eq!((c.nr_pcache_fill_from_memory, c.nr_pcache_fill_zerofill), (1, 8));
    assert_eq!(cache.fill_times().avg_ns, 1_000);
}

#[test]
fn miss_does_not_wait_for_its_victim() {
    let cache = cache(4);
    (0..5).for_each(|vpn| touch(&cache, vpn, true));
    // The set is full of dirty pages but for the reserve: the miss is served at once, its successor is being prepared.
    assert!(matches!(cache.access(page(9), at(0)), Ok(Access::Ready(_))));
    assert_eq!(cache.machine().state().transfers.len(), 1);
}

#[test]
fn page_on_its_way_out_is_found_again() {
    let cache = cache(4);
    (0..4).for_each(|vpn| touch(&cache, vpn, true));
    // The fourth page's fill pushed page 0 out ahead; bring it back and push again without ending the write.
    touch(&cache, 0, true);
    assert_eq!(cache.counters().nr_pcache_fill_from_victim, 1);
    assert_eq!(cache.counters().nr_pcache_fill_from_memory, 0);
}

#[test]
fn faults_on_one_page_share_one_read() {
    let cache = cache(4);
    (0..9).for_each(|vpn| touch(&cache, vpn, true));
    assert!(matches!(cache.access(page(0), at(0)), Ok(Access::Wait)));
    assert!(matches!(cache.access(page(0), at(0)), Ok(Access::Wait)));
    let reads = cache
        .machine()
        .state()
        .transfers
        .iter()
        .filter(|t| matches!(t, fake::Transfer::Read { .. }))
        .count();
    assert_eq!((reads, cache.counters().nr_pcache_fill_coalesced), (1, 1));
}

#[test]
fn failed_read_names_the_page_and_is_tried_again() {
    let cache = cache(4);
    (0..9).for_each(|vpn| touch(&cache, vpn, true));
    assert!(matches!(cache.access(page(0), at(0)), Ok(Access::Wait)));
    let read = cache
        .machine()
        .state()
        .transfers
        .iter()
        .position(|t| matches!(t, fake::Transfer::Read { .. }));
    let token = cache
        .machine()
        .state()
        .transfers
        .swap_remove(read.unwrap())
        .token();
    let failed = Error::Fill {
        page: page(0),
        cause: IoFailed(12),
    };
    assert_eq!(cache.complete(token, Err(IoFailed(12)), at(0)), Err(failed));
    assert_eq!(cache.access_again(page(0), at(0)).err(), Some(failed));
    touch(&cache, 0, false);
}

#[test]
fn failed_write_back_keeps_the_page() {
    let cache = cache(4);
    (0..3).for_each(|vpn| touch(&cache, vpn, true));
    assert!(matches!(cache.access(page(3), at(0)), Ok(Access::Ready(_))));
    let token = cache.machine().state().transfers.pop().unwrap().token();
    let lost = cache.complete(token, Err(IoFailed(3)), at(0));
    assert_eq!(
        lost,
        Err(Error::WriteBack {
            page: page(0),
            cause: IoFailed(3)
        })
    );
    touch(&cache, 0, false);
    assert_eq!(cache.machine().touch(page(0), 0, None), Some(0));
    assert_eq!(cache.counters().nr_clflush_fail, 1);
}

#[test]
fn unknown_completions_change_nothing() {
    let cache = cache(4);
    for raw in [0, 3, 4, u64::MAX, 1 << 32] {
        let token = Token::from_raw(raw);
        assert_eq!(
            cache.complete(token, Ok(()), at(0)),
            Err(Error::UnknownToken(token))
        );
    }
    assert_eq!(cache.counters(), Counters::default());
}

#[test]
fn page_given_up_in_flight_blocks_its_successor_until_quiet() {
    let cache = cache(4);
    (0..3).for_each(|vpn| touch(&cache, vpn, true));
    assert!(matches!(cache.access(page(3), at(0)), Ok(Access::Ready(_))));
    // Page 0 is being written back.
    assert!(cache.discard(page(0)), "in use by its write-back");
    assert!(
        matches!(cache.access(page(0), at(0)), Ok(Access::Wait)),
        "the old bytes may still land"
    );
    finish_all(&cache);
    assert!(matches!(cache.access_again(page(0), at(0)), Ok(Access::Ready(_))));
    assert_eq!(
        cache.counters().nr_pcache_fill_zerofill,
        5,
        "the new page starts as zeros"
    );
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn every_waiter_is_woken_even_beyond_the_slots() {
    let cache = cache(4);
    (0..9).for_each(|vpn| touch(&cache, vpn, true));
    let mut waiters: Vec<_> = (0..20)
        .map(|_| {
            (
                Box::pin(cache.get(page(0), || at(0))),
                Arc::new(Count(AtomicUsize::new(0))),
            )
        })
        .collect();
    for (future, count) in &mut waiters {
        let waker = Waker::from(Arc::clone(count));
        assert!(
            future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
    }
    finish_all(&cache);
    for (future, count) in &mut waiters {
        assert!(count.0.load(Ordering::SeqCst) > 0, "a waiter was forgotten");
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(Got::Ready(_)))));
    }
}

#[test]
fn quiesce_waits_for_the_last_transfer() {
    let cache = cache(4);
    (0..3).for_each(|vpn| touch(&cache, vpn, true));
    assert!(matches!(cache.access(page(3), at(0)), Ok(Access::Ready(_))));
    assert!(cache.discard_space(SpaceId(1)));
    let mut quiet = pin!(cache.quiesce(SpaceId(1)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(quiet.as_mut().poll(&mut context).is_pending());
    finish_all(&cache);
    assert!(quiet.as_mut().poll(&mut context).is_ready());
    assert_eq!(cache.lines_in_use(), (0, 0));
}

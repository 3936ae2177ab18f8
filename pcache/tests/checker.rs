//! Every byte that programs read is checked, over every policy and mechanism, with fork, shared
//! mappings, mremap, mprotect, munmap and `MADV_DONTNEED`, on one to four cores, whatever the order
//! in which transfers end.
//!
//! `PCACHE_ACCESSES` sets the number of accesses of the long run (default 300,000).

mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use pcache::{
    Advice, Cache, ChunkId, Config, Mechanism, Miss, Plan, Policy, Prefetcher, Rights, Vpn,
};
use world::program::{Object, Outcome, Program};
use world::{Space, World, on_core};

const POLICIES: [Policy; 4] = [Policy::Clock, Policy::Lru, Policy::Fifo, Policy::Random];
const MECHANISMS: [Mechanism; 4] = [
    Mechanism::Batch,
    Mechanism::Inline,
    Mechanism::Piggyback,
    Mechanism::Victim,
];
const SPACES: usize = 4;
const OBJECT_PAGES: usize = 6;
const BOTH: Rights = Rights::READ.union(Rights::WRITE);
const CODE: Rights = Rights::READ.union(Rights::EXEC);

/// SplitMix64 (Steele et al., OOPSLA'14).
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % end as u64).unwrap()
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).expect("small")
}

/// Two chunks a program.
fn chunks_for(programs: usize) -> u32 {
    2 * number(programs)
}

/// A run: several address spaces on several cores, one step at a time in a random order.
struct Run {
    cache: Cache<World>,
    chunks: Vec<ChunkId>,
    programs: Vec<Option<Program>>,
    spaces: Vec<Space>,
    object: Object,
    prefetchers: Vec<Prefetcher>,
    rng: Rng,
    cores: usize,
    fails: bool,
    done: usize,
    faults: u64,
}

impl Run {
    fn new(seed: u64, sets: u32, config: Config, cores: usize, fails: bool) -> Self {
        let (cache, chunks) = world::cache(sets, 4, config, cores, chunks_for(SPACES));
        let spaces: Vec<Space> = (0..SPACES).map(|n| Space::new(number(n) + 1)).collect();
        let mut run = Self {
            cache,
            chunks,
            programs: (0..SPACES).map(|_| None).collect(),
            spaces,
            object: Object::new(OBJECT_PAGES),
            prefetchers: vec![Prefetcher::default(); SPACES],
            rng: Rng(seed),
            cores,
            fails,
            done: 0,
            faults: 0,
        };
        run.begin(0);
        run
    }

    fn chunks_of(&self, n: usize) -> [ChunkId; 2] {
        [self.chunks[2 * n], self.chunks[2 * n + 1]]
    }

    fn begin(&mut self, n: usize) {
        let mut program = Program::new(self.spaces[n], self.chunks_of(n));
        for vpn in (0..30).chain(60..90) {
            program.map(vpn, BOTH, None);
        }
        for page in 0..OBJECT_PAGES {
            program.map(100 + page, BOTH, Some(page));
        }
        self.programs[n] = Some(program);
    }

    fn step(&mut self) {
        on_core(self.rng.below(self.cores));
        let n = self.rng.below(SPACES);
        if self.programs[n].is_none() {
            return self.start_somehow(n);
        }
        match self.rng.below(1000) {
            0..650 => self.access(n),
            650..950 => self.complete(),
            950..960 => {
                let vpn = self.mapped(n);
                let (cache, program) = (&self.cache, self.programs[n].as_mut().unwrap());
                if program.vmas[vpn].is_some_and(|vma| vma.object.is_none()) {
                    program.discard(cache, vpn);
                }
            }
            960..970 => self.unmap_and_map(n),
            970..980 => {
                let rights = [Rights::empty(), Rights::READ, BOTH, CODE][self.rng.below(4)];
                let vpn = self.mapped(n);
                self.programs[n]
                    .as_mut()
                    .unwrap()
                    .protect(&self.cache, vpn, rights);
            }
            980..995 => {
                let (from, to) = (self.mapped(n), self.rng.below(world::PAGES));
                self.programs[n]
                    .as_mut()
                    .unwrap()
                    .remap(&self.cache, from, to);
            }
            995..998 => self.cache.evict(),
            _ => {
                let program = self.programs[n].take().unwrap();
                self.spaces[n] = program.exit(&self.cache);
            }
        }
    }

    fn start_somehow(&mut self, n: usize) {
        let chunk = self.chunks_of(n);
        let parent = self.rng.below(SPACES);
        match &self.programs[parent] {
            Some(program) => {
                let child = program.fork(&self.cache, self.spaces[n], chunk);
                self.programs[n] = Some(child);
            }
            None => self.begin(n),
        }
    }

    fn mapped(&mut self, n: usize) -> usize {
        let program = self.programs[n].as_ref().unwrap();
        let mapped = |vpn: &usize| program.vmas[*vpn].is_some();
        let mut tries = std::iter::repeat_with(|| self.rng.below(world::PAGES)).take(64);
        tries.find(mapped).unwrap_or(0)
    }

    fn unmap_and_map(&mut self, n: usize) {
        let vpn = self.mapped(n);
        let program = self.programs[n].as_mut().unwrap();
        let Some(vma) = program.vmas[vpn] else { return };
        program.unmap(&self.cache, vpn, &mut self.cache.batch(program.space.id));
        let to = self.rng.below(world::PAGES);
        if program.vmas[to].is_none() {
            program.map(to, BOTH, vma.object);
        }
    }

    fn access(&mut self, n: usize) {
        // Runs of neighbours, so that reading ahead has something to do.
        let start = self.mapped(n);
        let length = 1 + self.rng.below(8);
        for vpn in start..(start + length).min(world::PAGES) {
            let (word, write) = (self.rng.below(world::WORDS), self.rng.below(2) == 0);
            let plan = if self.rng.below(4) == 0 {
                Plan {
                    stride: 1,
                    count: 3,
                }
            } else {
                let fate = self.cache.read_ahead();
                self.prefetchers[n].miss(Miss {
                    vpn: Vpn(vpn as u64),
                    advice: Advice::Normal,
                    fate,
                })
            };
            let program = self.programs[n].as_mut().unwrap();
            let object = Some(&mut self.object);
            let outcome =
                program.access(&self.cache, (vpn, word), write, object, plan, Waker::noop());
            match outcome {
                Outcome::Value(_) => self.done += 1,
                Outcome::Fault => {
                    self.faults += 1;
                    let may = program.vmas[vpn].is_some() && self.rng.below(4) > 0;
                    if may {
                        program.protect(&self.cache, vpn, BOTH);
                    }
                }
                Outcome::Failed => assert!(self.fails),
                Outcome::Pending => return,
            }
        }
    }

    fn complete(&mut self) {
        let fails = self.fails && self.rng.below(20) == 0;
        if self.fails && self.rng.below(40) == 0 {
            let turns = self.rng.below(300);
            self.cache.machine().lose(self.rng.below(100), turns);
        }
        let ended = self.cache.machine().carry_out(self.rng.below(100), fails);
        if let Some((line, result)) = ended {
            assert_eq!(self.cache.complete(line, result).is_err(), result.is_err());
        }
    }

    /// Ends all transfers and all programs; nothing must be left.
    fn finish(mut self) -> Self {
        for n in 0..SPACES {
            if let Some(program) = self.programs[n].take() {
                self.spaces[n] = program.exit(&self.cache);
            }
        }
        let object = std::mem::take(&mut self.object);
        object.end(&self.cache);
        self.fails = false;
        self.cache.evict();
        while self.cache.machine().transfers() > 0 {
            self.complete();
        }
        assert_eq!(self.cache.lines_in_use(), (0, 0), "every line is free");
        for &chunk in &self.chunks {
            assert_eq!(self.cache.chunks().in_use(chunk), 0, "every slot is free");
        }
        let lines = self.cache.geometry().lines() as usize;
        assert_eq!(self.cache.spare_mappings(), lines, "every mapping is free");
        self.check_counters();
        self
    }

    fn check_counters(&self) {
        let c = self.cache.counters();
        assert_eq!(
            c.nr_pcache_fill_from_memory + c.nr_pcache_fill_failed,
            c.nr_pcache_miss + c.nr_pcache_miss_again + c.nr_pcache_prefetch,
            "each READ ends once: {c:?}"
        );
        assert!(c.nr_pcache_prefetch >= c.nr_pcache_prefetch_hit + c.nr_pcache_prefetch_wasted);
        assert_eq!(
            c.nr_pcache_eviction_succeed,
            c.nr_pcache_eviction_clean + c.nr_pcache_eviction_dirty
        );
        let writes = self.cache.machine().writes.load(Ordering::SeqCst) as u64;
        assert_eq!(
            c.nr_clflush + c.nr_clflush_fail,
            writes,
            "each WRITE ends once"
        );
    }
}

fn accesses() -> usize {
    std::env::var("PCACHE_ACCESSES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(300_000)
}

/// Runs until `accesses` were done; each run has another seed.
fn check(sets: u32, fails: bool, accesses: usize) {
    let each = accesses / (POLICIES.len() * MECHANISMS.len() * 4) + 1;
    for (seed, policy) in (1..).zip(POLICIES) {
        for mechanism in MECHANISMS {
            for cores in 1..=4 {
                let config = Config {
                    policy,
                    mechanism,
                    batch: 4,
                    victims: 3,
                    cores: number(cores),
                    ..Config::default()
                };
                let mut run = Run::new(seed * 100 + cores as u64, sets, config, cores, fails);
                for step in 0.. {
                    run.step();
                    if run.done >= each {
                        break;
                    }
                    assert!(step < 200 * each + 100_000, "accesses get on: {config:?}");
                }
                let counters = run.finish().cache.counters();
                assert!(counters.nr_pcache_miss > 0);
                if mechanism == Mechanism::Victim && sets <= 3 {
                    assert!(counters.nr_victim_hit > 0 && counters.nr_victim_eviction_eagain > 0);
                }
            }
        }
    }
}

#[test]
fn no_byte_is_wrong_in_a_cache_of_twelve_lines() {
    check(3, false, accesses());
}

#[test]
fn no_byte_is_wrong_with_four_lines() {
    check(1, false, accesses() / 4);
}

#[test]
fn no_byte_is_wrong_where_much_fits() {
    check(16, false, accesses());
}

#[test]
fn no_byte_is_wrong_when_transfers_fail_or_are_lost() {
    check(3, true, accesses() / 2);
}

/// A checker that can't fail proves nothing: without shootdowns it must find wrong bytes.
#[test]
fn missing_shootdowns_are_found() {
    let found = std::panic::catch_unwind(|| {
        let mut run = Run::new(1, 3, Config::default(), 2, false);
        run.cache
            .machine()
            .forgets_flushes
            .store(true, Ordering::SeqCst);
        for _ in 0..200_000 {
            run.step();
        }
    });
    assert!(found.is_err(), "programs read what they should not");
}

/// Real threads, each with programs of its own that fork and share lines with the others'.
#[test]
fn threads_find_no_wrong_byte() {
    const THREADS: usize = 4;
    let config = Config {
        cores: number(THREADS),
        batch: 2,
        ..Config::default()
    };
    let (cache, chunks) = world::cache(4, 4, config, THREADS + 1, chunks_for(THREADS + 1));
    let ended = AtomicBool::new(false);
    let parent_space = Space::new(100);
    let of_parent = [chunks[2 * THREADS], chunks[2 * THREADS + 1]];
    let mut parent = Program::new(parent_space, of_parent);
    for vpn in 0..20 {
        parent.map(vpn, BOTH, None);
    }
    std::thread::scope(|scope| {
        let network = scope.spawn(|| {
            on_core(THREADS);
            let mut rng = Rng(9);
            while !ended.load(Ordering::SeqCst) || cache.machine().transfers() > 0 {
                match cache.machine().carry_out(rng.below(100), false) {
                    Some((line, result)) => cache.complete(line, result).unwrap(),
                    None => std::thread::yield_now(),
                }
            }
        });
        for vpn in 0..20 {
            until_done(&cache, &mut parent, vpn, true);
        }
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let space = Space::new(number(n) + 1);
                let child = parent.fork(&cache, space, [chunks[2 * n], chunks[2 * n + 1]]);
                let cache = &cache;
                scope.spawn(move || {
                    on_core(n);
                    let (mut program, mut rng) = (child, Rng(n as u64));
                    for _ in 0..accesses() / 40 {
                        let vpn = rng.below(20);
                        if rng.below(50) == 0 {
                            program.discard(cache, vpn);
                        }
                        until_done(cache, &mut program, vpn, rng.below(2) == 0);
                    }
                    program.exit(cache);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        on_core(THREADS);
        parent.exit(&cache);
        cache.evict();
        ended.store(true, Ordering::SeqCst);
        network.join().unwrap();
    });
    // Queues of the cores that ended may still name sets; nothing may hold a line.
    assert_eq!(cache.lines_in_use(), (0, 0));
}

fn until_done(cache: &Cache<World>, program: &mut Program, vpn: usize, write: bool) {
    loop {
        match program.access(cache, (vpn, 1), write, None, Plan::NONE, Waker::noop()) {
            Outcome::Pending => std::thread::yield_now(),
            Outcome::Value(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

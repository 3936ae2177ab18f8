//! Every word that a program reads is what it wrote, over the cache's policies and mechanisms, on
//! one to four cores, with threads, fork, shared mappings, mremap, munmap, mprotect and madvise.
//!
//! The program is `programs/checker.c`; `pcache/tests/checker.rs` does the same in one process.

use testbed_tests::{Run, native, program};

/// Accesses of a run, and of one with four lines, where each takes some 2 ms.
const ACCESSES: u64 = 100_000;
const ACCESSES_OF_FOUR: u64 = 4_000;
const POLICIES: [&str; 4] = ["clock", "lru", "fifo", "random"];
const MECHANISMS: [&str; 4] = ["batch", "inline", "piggyback", "victim"];

/// A run: cores of P, threads of the program, and how the cache is made.
#[derive(Clone, Copy)]
struct Check<'a> {
    accesses: u64,
    cpus: &'a str,
    threads: &'a str,
    policy: &'a str,
    mechanism: &'a str,
    /// Size and ways of the cache, and the pages that all threads have.
    cache: (&'a str, &'a str, &'a str),
}

impl Check<'_> {
    fn run(self, seed: usize) {
        let (size, ways, pages) = self.cache;
        let boot = [
            format!("processor:policy={}", self.policy),
            format!("processor:mechanism={}", self.mechanism),
        ];
        let mut options = vec!["--pcache", size, "--ways", ways, "--cpus", self.cpus];
        options.extend(boot.iter().flat_map(|option| ["--boot", option]));
        let (accesses, seed) = (self.accesses.to_string(), seed.to_string());
        let ran = Run::new(&options)
            .add(program("checker"), "/bin/checker")
            .run(&["/bin/checker", &accesses, self.threads, pages, &seed]);
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(
            said, "all accesses, 0 wrong\n",
            "{options:?}: {}",
            ran.stderr
        );
        assert_eq!(ran.code, Some(0), "{options:?}: {}", ran.stderr);
        let sum = |name: &str| ran.sum(&["counter", name]);
        assert!(
            sum("nr_pcache_eviction_dirty") > self.accesses / 10,
            "{}",
            ran.stderr
        );
        assert!(sum("nr_pcache_cow_copy") > 0, "{}", ran.stderr);
        counters_add_up(&sum, &ran.stderr);
    }
}

/// Checks that each READ, WRITE and victim is counted once.
fn counters_add_up(sum: &impl Fn(&str) -> u64, report: &str) {
    assert_eq!(
        sum("nr_pcache_fill_from_memory") + sum("nr_pcache_fill_failed"),
        sum("nr_pcache_miss") + sum("nr_pcache_miss_again") + sum("nr_pcache_prefetch"),
        "READs: {report}"
    );
    assert_eq!(
        sum("nr_pcache_eviction_succeed"),
        sum("nr_pcache_eviction_clean") + sum("nr_pcache_eviction_dirty"),
        "victims: {report}"
    );
    let fates = sum("nr_pcache_prefetch_hit") + sum("nr_pcache_prefetch_wasted");
    assert!(
        fates <= sum("nr_pcache_prefetch"),
        "pages read ahead: {report}"
    );
}

/// A quarter of the pages is in the cache.
const SMALL: (&str, &str, &str) = ("1M", "8", "1024");
const FOUR_LINES: Check<'_> = Check {
    accesses: ACCESSES_OF_FOUR,
    cpus: "1",
    threads: "1",
    policy: "clock",
    mechanism: "batch",
    cache: ("16K", "4", "64"),
};

#[test]
fn no_word_is_wrong_on_the_host() {
    let accesses = ACCESSES.to_string();
    for threads in ["1", "2", "8"] {
        let ran = native(program("checker"), &[&accesses, threads, "1024", "1"], b"");
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(said, "all accesses, 0 wrong\n", "{}", ran.stderr);
    }
}

#[test]
fn no_word_is_wrong_whatever_leaves_and_when() {
    let cores = [("1", "1"), ("2", "4"), ("4", "8"), ("2", "8")];
    for (seed, (policy, (cpus, threads))) in POLICIES.into_iter().zip(cores).enumerate() {
        Check {
            accesses: ACCESSES,
            cpus,
            threads,
            policy,
            mechanism: MECHANISMS[seed],
            cache: SMALL,
        }
        .run(seed);
    }
}

#[test]
fn no_word_is_wrong_with_four_lines() {
    FOUR_LINES.run(1);
}

#[test]
#[ignore = "takes half an hour: every policy with every mechanism on 1, 2 and 4 cores"]
fn no_word_is_wrong_with_any_policy_and_mechanism() {
    for (seed, policy) in POLICIES.into_iter().enumerate() {
        for mechanism in MECHANISMS {
            for (cpus, threads) in [("1", "2"), ("2", "4"), ("4", "8")] {
                Check {
                    accesses: ACCESSES,
                    cpus,
                    threads,
                    policy,
                    mechanism,
                    cache: SMALL,
                }
                .run(seed);
            }
        }
    }
}

#[test]
#[ignore = "takes some five minutes: as many accesses as elsewhere"]
fn no_word_is_wrong_with_four_lines_for_long() {
    Check {
        accesses: ACCESSES,
        ..FOUR_LINES
    }
    .run(2);
}

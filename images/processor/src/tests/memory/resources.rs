//! Resources of a miss and of a process: allocations, locks, and everything that comes back.

use super::*;

/// Returns the resources that M, the cache and the supply hold for processes.
fn held(node: &FakeNode) -> [usize; 7] {
    let (used, busy) = node.cache.lines_in_use();
    [
        node.memory.lent.borrow().len(),
        node.memory.promised.get() as usize,
        node.cache.chunks().len(),
        used,
        busy,
        node.cache.spare_mappings(),
        usize::try_from(node.supply.committed()).unwrap(),
    ]
}

/// Lets processes that use `len` bytes end one after the other: each leaves what the first one
/// left.
fn end_again_and_again(lines: u64, len: u64, rounds: u64) {
    let node: &FakeNode = node(lines);
    node.memory
        .total
        .set(64 + u32::try_from(len.div_ceil(2 << 20)).unwrap());
    let mut parent = Run::new(node);
    let mut before = None;
    for _ in 0..rounds {
        parent.call(nr::__NR_fork, &[]).unwrap();
        let thread = node.started.borrow_mut().pop().unwrap();
        let mut run = Run { node, thread };
        let at = run.map(len).unwrap();
        (at..at + len).step_by(4096).for_each(|page| {
            run.put(page, &page.to_le_bytes());
        });
        assert_eq!(run.get(at + 4096, 8), (at + 4096).to_le_bytes());
        let tables = run.thread.memory().tables().clone();
        assert!(tables.count() > 0);
        node.block_on(run.thread.run());
        parent.call(nr::__NR_wait4, &[u64::MAX, 0, 0, 0]).unwrap();
        // Slots of lines that were being written come free when that ends.
        node.drain();
        node.block_on(node.supply.settle(node)).unwrap();
        let held = (held(node), tables.count());
        assert_eq!(held, *before.get_or_insert(held));
        assert_eq!(tables.count(), 0);
        node.cache
            .machine()
            .forget_all_but(&node.memory.lent.borrow());
    }
}

#[test]
fn processes_that_end_leave_m_and_p_as_they_were() {
    // Sixteen times what the cache holds.
    let rounds = if cfg!(debug_assertions) { 20 } else { 1000 };
    end_again_and_again(64, 16 * 64 * 4096, rounds);
}

#[test]
#[ignore = "takes minutes: PROCESS_ROUNDS (1000) processes that use 1 GB each"]
fn large_processes_that_end_leave_m_and_p_as_they_were() {
    let rounds = std::env::var("PROCESS_ROUNDS").map_or(1000, |text| text.parse().unwrap());
    end_again_and_again(4096, 1 << 30, rounds);
}

#[test]
fn misses_and_first_touches_allocate_nothing() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let len = 256 * 4096;
    let at = run.map(len).unwrap();
    // Its table, its chunk, and room for as many transfers as there ever are.
    run.put(at, b"first");
    for addr in (at..at + len).step_by(4096).skip(1) {
        run.put(addr, b"touched");
    }
    let misses = || {
        let counted = allocation_counter::measure(|| {
            for addr in (at..at + len)
                .step_by(4096)
                .filter(|addr| addr / 4096 % 7 != 0)
            {
                run.thread
                    .memory()
                    .fault_now(addr, Access::Write, |_| Plan::NONE)
                    .unwrap();
                node.drain();
            }
        });
        counted.count_total
    };
    // The first rounds write pages back, for which the fake's M makes room.
    for _ in 0..3 {
        misses();
    }
    let missed = node.cache.counters().nr_pcache_fill_from_memory;
    assert_eq!(misses(), 0, "of misses");
    assert!(node.cache.counters().nr_pcache_fill_from_memory > missed + 100);
    let fresh = run.map(64 * 4096).unwrap();
    run.put(fresh, b"its table");
    let before = node.cache.counters().nr_pcache_fill_zerofill;
    let counted = allocation_counter::measure(|| {
        for addr in (fresh + 4096..fresh + 32 * 4096).step_by(4096) {
            run.thread
                .memory()
                .fault_now(addr, Access::Write, |_| Plan::NONE)
                .unwrap();
            node.drain();
        }
    });
    assert!(node.cache.counters().nr_pcache_fill_zerofill > before + 20);
    assert_eq!(counted.count_total, 0, "of first touches");
}

/// Returns the locks of a hundred misses of a thread, those of the machine apart, with their share
/// of evictions.
#[cfg(not(interleave))]
fn locks_of_hundred_misses(access: Access) -> u64 {
    let node: &FakeNode = node(1024);
    let mut run = Run::new(node);
    let pages = 4096;
    let at = run.map(pages * 4096).unwrap();
    for addr in (at..at + pages * 4096).step_by(4096) {
        run.put(addr, b"touched");
    }
    let round = |run: &mut Run| {
        let mut locks = 0;
        // An odd stride, so that no page is read ahead.
        for page in (0..pages).map(|page| page * 1009 % pages) {
            let addr = at + page * 4096;
            let _ = ::locks::taken();
            let memory = run.thread.memory();
            let now = memory.fault_now(addr, access, |_| Plan::NONE).unwrap();
            node.drain();
            if matches!(now, crate::mm::fault::ImmediateResult::Later { .. }) {
                // All other lines of the set were on their way.
                run.touch(addr, access).unwrap();
            }
            locks += u64::from(::locks::taken());
            if access == Access::Write {
                run.put(addr, b"changed");
            }
        }
        locks
    };
    round(&mut run);
    let before = node.cache.counters().nr_pcache_miss;
    let locks = round(&mut run);
    let misses = node.cache.counters().nr_pcache_miss - before;
    assert!(misses > pages / 2, "{misses} misses");
    locks * 100 / misses
}

#[cfg(not(interleave))]
#[test]
fn a_miss_takes_few_locks_and_none_of_all_cores() {
    let clean = locks_of_hundred_misses(Access::Read);
    let dirty = locks_of_hundred_misses(Access::Write);
    println!("locks of a hundred misses: clean {clean}, dirty {dirty}");
    // Counted when this was written: clean 508, dirty 610. The machine takes two more, those of the
    // core's page path for the READ's start and its end; a batch's WRITEs add one for all of them.
    assert!(clean + 200 <= 800, "{clean}");
    assert!(dirty + 200 + 100 / 16 <= 850, "{dirty}");
}

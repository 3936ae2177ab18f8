//! What a program's memory does when it grows, shrinks and moves.

use super::*;

#[test]
fn heap_grows_and_shrinks() {
    let node = node(64);
    let mut run = Run::new(&node);
    let start = run.call(nr::__NR_brk, &[0]).unwrap();
    assert_eq!(run.call(nr::__NR_brk, &[start + 10_000]), Ok(start + 10_000));
    run.put(start + 9_000, b"heap");
    assert_eq!(run.call(nr::__NR_brk, &[start]), Ok(start));
    assert_eq!(run.call(nr::__NR_brk, &[start + 10_000]), Ok(start + 10_000));
    assert_eq!(run.get(start + 9_000, 4), [0; 4], "given back and had anew");
    assert_eq!(
        run.call(nr::__NR_brk, &[1 << 40]),
        Ok(start + 10_000),
        "no memory: the end stays"
    );
}

#[test]
fn heap_asks_for_whole_windows_and_gives_them_back() {
    let node = node(64);
    let mut run = Run::new(&node);
    let start = run.call(nr::__NR_brk, &[0]).unwrap();
    let (before, had) = (node.memory.calls.get(), node.memory.windows_left.get());
    for page in 1..=300 {
        let end = start + page * 4096;
        assert_eq!(run.call(nr::__NR_brk, &[end]), Ok(end));
        run.put(end - 8, &page.to_le_bytes());
    }
    assert_eq!(
        node.memory.calls.get(),
        before + 1,
        "300 pages are less than a window"
    );
    for page in 1..=300u64 {
        assert_eq!(run.get(start + page * 4096 - 8, 8), page.to_le_bytes());
    }
    let end = start + 3 * messages::WINDOW_SIZE;
    assert_eq!(run.call(nr::__NR_brk, &[end]), Ok(end));
    assert_eq!(run.call(nr::__NR_brk, &[start]), Ok(start));
    assert!(
        node.memory.windows_left.get() + 1 >= had,
        "one window may stay for the heap to grow into"
    );
    assert_eq!(run.call(nr::__NR_brk, &[start + 4096]), Ok(start + 4096));
    assert_eq!(run.get(start + 4088, 8), [0; 8], "given up, so zero");
}

#[test]
fn mapping_that_grows_step_by_step_asks_for_whole_windows() {
    let node = node(64);
    let mut run = Run::new(&node);
    let at = run.map(4096).unwrap();
    let before = node.memory.calls.get();
    for pages in 2..=200 {
        let grown = run.call(nr::__NR_mremap, &[at, (pages - 1) * 4096, pages * 4096, 1]);
        assert_eq!(grown, Ok(at));
        run.put(at + pages * 4096 - 8, &pages.to_le_bytes());
    }
    assert!(
        node.memory.calls.get() - before <= 3,
        "{} calls",
        node.memory.calls.get() - before
    );
    let end = at + 200 * 4096;
    assert_eq!(
        node.block_on(run.process.read_user(end, &mut [0])),
        Err(Error::Errno(errno::EFAULT)),
        "what M holds in store is not mapped to the program"
    );
    let (prot, flags) = (3, 0x10_0022);
    let wall = run.call(nr::__NR_mmap, &[end, 4096, prot, flags, u64::MAX, 0]);
    assert_eq!(wall, Ok(end), "MAP_FIXED_NOREPLACE");
    run.put(end, b"wall");
    for pages in 2..=200u64 {
        assert_eq!(run.get(at + pages * 4096 - 8, 8), pages.to_le_bytes());
    }
    assert_eq!(run.get(end, 4), b"wall");
}

#[test]
fn what_the_heap_keeps_in_store_is_free_to_the_program() {
    let node = node(64);
    let mut run = Run::new(&node);
    let start = run.call(nr::__NR_brk, &[0]).unwrap();
    let end = start + 4096;
    assert_eq!(run.call(nr::__NR_brk, &[end]), Ok(end));
    let mut buffer = [0];
    assert_eq!(
        run.node.block_on(run.process.read_user(end, &mut buffer)),
        Err(Error::Errno(errno::EFAULT)),
        "not mapped to the program"
    );
    let wall = end + 4 * 4096;
    let (prot, flags) = (3, 0x10_0022);
    assert_eq!(
        run.call(nr::__NR_mmap, &[wall, 4096, prot, flags, u64::MAX, 0]),
        Ok(wall),
        "MAP_FIXED_NOREPLACE"
    );
    run.put(wall, b"wall");
    assert_eq!(run.call(nr::__NR_brk, &[wall]), Ok(wall));
    assert_eq!(
        run.call(nr::__NR_brk, &[wall + 4096]),
        Ok(wall),
        "something is in the way"
    );
    run.put(wall - 4, b"heap");
    assert_eq!(run.get(wall - 4, 8), *b"heapwall");
    // A hole in the heap is not taken for memory that M still has.
    assert_eq!(run.call(nr::__NR_munmap, &[end, 4096]), Ok(0));
    assert_eq!(run.call(nr::__NR_brk, &[start]), Ok(start));
    assert_eq!(run.call(nr::__NR_brk, &[wall]), Ok(wall));
    run.put(end, b"anew");
    assert_eq!(run.get(end, 4), *b"anew");
}

#[test]
fn remapping_keeps_the_bytes() {
    let node = node(64);
    let mut run = Run::new(&node);
    let at = run.map(8192).unwrap();
    let wall = run.map(4096).unwrap();
    assert_eq!(wall, at + 8192);
    run.put(at + 5000, b"moved");
    assert_eq!(
        errno_of(run.call(nr::__NR_mremap, &[at, 8192, 16384, 0])),
        Some(errno::ENOMEM)
    );
    let to = run.call(nr::__NR_mremap, &[at, 8192, 16384, 1]).unwrap();
    assert_eq!(run.get(to + 5000, 5), b"moved");
    assert_eq!(
        errno_of(run.call(nr::__NR_write, &[1, at, 1])),
        Some(errno::EFAULT)
    );
}

#[test]
fn memory_beyond_m_is_enomem() {
    let node = node(64);
    let mut run = Run::new(&node);
    assert_eq!(errno_of(run.map(1 << 30)), Some(errno::ENOMEM));
    assert_eq!(errno_of(run.map(u64::MAX)), Some(errno::ENOMEM));
    assert_eq!(errno_of(run.map(0)), Some(errno::EINVAL));
}

#[test]
fn more_memory_than_the_cache_holds_keeps_its_bytes() {
    let node = node(16);
    let mut run = Run::new(&node);
    let at = run.map(100 * 4096).unwrap();
    let calls = node.memory.calls.get();
    for page in 0..100u64 {
        run.put(at + page * 4096 + 8, &page.to_le_bytes());
    }
    for page in 0..100u64 {
        assert_eq!(run.get(at + page * 4096 + 8, 8), page.to_le_bytes());
    }
    assert!(node.cache.counters().nr_pcache_fill_from_memory > 80);
    assert_eq!(node.memory.calls.get(), calls, "misses ask M nothing");
    run.call(nr::__NR_munmap, &[at, 100 * 4096]).unwrap();
    assert_eq!(
        errno_of(run.call(nr::__NR_write, &[1, at, 1])),
        Some(errno::EFAULT)
    );
    let again = run
        .call(nr::__NR_mmap, &[at, 4096, 3, 0x32, u64::MAX, 0])
        .unwrap();
    assert_eq!(
        run.get(again, 4096),
        vec![0; 4096],
        "memory mapped anew starts as zeros"
    );
}

//! A program's memory as it grows, shrinks, moves and is shared.

mod resources;

use super::tmp::ends_clean;
use messages::Errno;
use pcache::{CHUNK_PAGES, Plan};

use super::*;
use crate::Node;
use crate::mm::fault::Refused;
use crate::mm::layout::Layout;
use crate::mm::vma::MAX_VMAS;
use crate::mm::{MMAP_TOP, STACK_TOP, Space};

const PROT_RW: u64 = 3;
const PRIVATE: u64 = 0x22;
const SHARED: u64 = 0x21;
const FIXED: u64 = 0x10;
const NORESERVE: u64 = 0x4000;

impl Run {
    pub(super) fn mmap(
        &mut self,
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
    ) -> Result<u64, Error> {
        self.call(nr::__NR_mmap, &[addr, len, prot, flags, u64::MAX, 0])
    }

    fn errno(&mut self, number: u32, args: &[u64]) -> Option<Errno> {
        errno_of(self.call(number, args))
    }

    pub(super) fn touch(&mut self, addr: u64, access: Access) -> Result<(), Refused> {
        self.node
            .block_on(self.thread.memory().fault(addr, access, false))
            .unwrap()
    }

    pub(super) fn unreadable(&self, addr: u64) -> bool {
        let read = self
            .node
            .block_on(self.thread.memory().read(addr, &mut [0]));
        errno_of(read) == Some(errno::EFAULT)
    }
}

#[test]
fn heap_grows_and_shrinks() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let start = run.call(nr::__NR_brk, &[0]).unwrap();
    assert_eq!(
        run.call(nr::__NR_brk, &[start + 10_000]),
        Ok(start + 10_000)
    );
    run.put(start + 9_000, b"heap");
    assert_eq!(run.call(nr::__NR_brk, &[start]), Ok(start));
    assert_eq!(
        run.call(nr::__NR_brk, &[start + 10_000]),
        Ok(start + 10_000)
    );
    assert_eq!(run.get(start + 9_000, 4), [0; 4], "given back and had anew");
    assert_eq!(
        run.call(nr::__NR_brk, &[1 << 40]),
        Ok(start + 10_000),
        "no memory: the end stays"
    );
}

#[test]
fn heap_stops_at_what_is_in_its_way() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let start = run.call(nr::__NR_brk, &[0]).unwrap();
    let wall = start + 5 * 4096;
    assert_eq!(
        run.mmap(wall, 4096, PROT_RW, 0x10_0022),
        Ok(wall),
        "MAP_FIXED_NOREPLACE"
    );
    run.put(wall, b"wall");
    assert_eq!(run.call(nr::__NR_brk, &[wall]), Ok(wall));
    assert_eq!(run.call(nr::__NR_brk, &[wall + 4096]), Ok(wall));
    run.put(wall - 4, b"heap");
    assert_eq!(run.get(wall - 4, 8), *b"heapwall");
    // A hole in the heap.
    assert_eq!(run.call(nr::__NR_munmap, &[start + 4096, 4096]), Ok(0));
    assert_eq!(run.call(nr::__NR_brk, &[start]), Ok(start));
    assert_eq!(run.call(nr::__NR_brk, &[wall]), Ok(wall));
    assert_eq!(run.get(wall - 4, 4), [0; 4]);
}

#[test]
fn mapping_and_unmapping_send_nothing() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let first = run.map(1 << 20).unwrap();
    run.put(first, b"x");
    let before = node.memory.calls.get();
    for _ in 0..1000 {
        let at = run.map(1 << 20).unwrap();
        run.put(at, b"x");
        run.call(nr::__NR_munmap, &[at, 1 << 20]).unwrap();
    }
    assert_eq!(node.memory.calls.get(), before);
}

#[test]
fn memory_stays_though_more_is_mapped_behind_it() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(1 << 20).unwrap();
    for page in 0..256 {
        run.put(at + page * 4096, &[0x5a]);
    }
    run.map(50 << 20).unwrap();
    for page in 0..256 {
        assert_eq!(run.get(at + page * 4096, 1), [0x5a], "page {page}");
    }
}

#[test]
fn page_tables_and_chunks_of_what_is_unmapped_come_back() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let start = 0x10_0000_0000;
    let tables = run.thread.memory().tables().count();
    for n in 0..60_000_u64 {
        let at = start + n * (2 << 20);
        assert_eq!(run.mmap(at, 4096, PROT_RW, PRIVATE | FIXED), Ok(at));
        run.put(at, b"x");
        run.call(nr::__NR_munmap, &[at, 4096]).unwrap();
    }
    assert_eq!(run.thread.memory().tables().count(), tables);
    assert!(node.memory.lent.borrow().len() <= 64);
}

#[test]
fn what_no_table_exists_for_costs_nothing() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let len = 64 << 40;
    let at = run.mmap(0, len, 0, PRIVATE | NORESERVE).unwrap();
    assert_eq!(run.call(nr::__NR_mprotect, &[at, len, 1]), Ok(0));
    assert_eq!(run.call(nr::__NR_madvise, &[at, len, 4]), Ok(0));
    assert_eq!(run.call(nr::__NR_munmap, &[at, len]), Ok(0));
    assert_eq!(
        node.supply.committed(),
        run.thread.memory().with_vmas(committed)
    );
}

fn committed(vmas: &crate::mm::vma::Vmas) -> u64 {
    vmas.iter()
        .filter(|(_, vma)| vma.accountable())
        .map(|(range, _)| (range.end - range.start) / 4096)
        .sum()
}

#[test]
fn reservations_cost_nothing_until_they_get_rights() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let before = node.supply.committed();
    let huge = run.mmap(0, 16 << 40, PROT_RW, PRIVATE | NORESERVE).unwrap();
    run.put(huge + (7 << 40), b"sparse");
    assert_eq!(run.get(huge + (7 << 40), 6), b"sparse");
    let reserved = run.mmap(0, 1 << 40, 0, PRIVATE).unwrap();
    assert_eq!(node.supply.committed(), before);
    let len = 1 << 20;
    assert_eq!(
        run.call(nr::__NR_mprotect, &[reserved, len, PROT_RW]),
        Ok(0)
    );
    assert_eq!(node.supply.committed(), before + len / 4096);
    assert_eq!(
        run.errno(nr::__NR_mprotect, &[reserved, 1 << 40, PROT_RW]),
        Some(errno::ENOMEM),
        "M has no 1 TB"
    );
    run.call(nr::__NR_munmap, &[reserved, 1 << 40]).unwrap();
    assert_eq!(node.supply.committed(), before);
}

#[test]
fn memory_beyond_m_is_enomem() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(errno_of(run.map(1 << 30)), Some(errno::ENOMEM));
    assert_eq!(errno_of(run.map(u64::MAX)), Some(errno::ENOMEM));
    assert_eq!(errno_of(run.map(0)), Some(errno::EINVAL));
}

#[test]
fn unpromised_memory_that_runs_out_ends_the_program_not_the_node() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.mmap(0, 1 << 40, PROT_RW, PRIVATE | NORESERVE).unwrap();
    let ended = (0..200).find_map(|n| {
        let written = node.block_on(run.thread.memory().write(at + n * (2 << 20), b"x"));
        written.err()
    });
    // Chunks that have room serve other regions first, so pages of one slot each go far beyond 64.
    assert_eq!(ended, None);
    let ended = (0..64 * CHUNK_PAGES).find_map(|n| {
        let written = node.block_on(run.thread.memory().write(at + n * 4096, b"x"));
        written.err()
    });
    assert_eq!(ended, Some(Error::Ended(Exit::Signal(9))));
}

#[test]
fn m_that_is_busy_is_asked_again() {
    let node: &FakeNode = node(64);
    node.memory.busy.set(5);
    let mut run = Run::new(node);
    let at = run.map(4096).unwrap();
    run.put(at, b"came");
    assert_eq!(node.memory.busy.get(), 0);
}

#[test]
fn more_memory_than_the_cache_holds_keeps_its_bytes() {
    let node: &FakeNode = node(16);
    let mut run = Run::new(node);
    let at = run.map(100 * 4096).unwrap();
    run.put(at, b"x");
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
    assert!(run.unreadable(at));
    let again = run.mmap(at, 4096, PROT_RW, PRIVATE | FIXED).unwrap();
    assert_eq!(run.get(again, 4096), vec![0; 4096], "mapped anew: zeros");
}

#[test]
fn remapping_moves_pages_and_copies_none() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(2 * 4096).unwrap();
    // Found from the top down: the next one lies below.
    let wall = run.mmap(at + 2 * 4096, 4096, PROT_RW, 0x10_0022);
    run.put(at + 5000, b"moved");
    let fills = node.cache.counters().nr_pcache_fill_zerofill;
    assert!(wall.is_ok() || wall == Err(errno::EEXIST.into()));
    assert_eq!(
        run.errno(nr::__NR_mremap, &[at, 8192, 16384, 0]),
        Some(errno::ENOMEM)
    );
    let to = run.call(nr::__NR_mremap, &[at, 8192, 16384, 1]).unwrap();
    assert_eq!(run.get(to + 5000, 5), b"moved");
    assert_eq!(node.cache.counters().nr_pcache_fill_zerofill, fills);
    assert!(run.unreadable(at));
    assert_eq!(run.get(to + 12_288, 1), [0], "it has grown");
    let fixed = to - (64 << 20);
    assert_eq!(
        run.call(nr::__NR_mremap, &[to, 16384, 8192, 3, fixed]),
        Ok(fixed)
    );
    assert_eq!(run.get(fixed + 5000, 5), b"moved");
    assert!(run.unreadable(to) && run.unreadable(to + 8192));
}

#[test]
fn remapping_needs_one_mapping_and_no_more_memory_than_it_grows() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let two = run.map(2 * 4096).unwrap();
    run.call(nr::__NR_mprotect, &[two + 4096, 4096, 1]).unwrap();
    assert_eq!(
        run.errno(nr::__NR_mremap, &[two, 8192, 16384, 1]),
        Some(errno::EFAULT)
    );
    let none = run.mmap(0, 4096, 0, PRIVATE).unwrap();
    run.mmap(none + 4096, 4096, PROT_RW, 0x10_0022).ok();
    let moved = run.call(nr::__NR_mremap, &[none, 4096, 8192, 1]).unwrap();
    assert_eq!(run.touch(moved, Access::Read), Err(Refused::Forbidden));
    // 100 of 128 MB: twice as much would not be had.
    let big = run.map(100 << 20).unwrap();
    run.mmap(big + (100 << 20), 4096, PROT_RW, 0x10_0022).ok();
    let grown = run.call(nr::__NR_mremap, &[big, 100 << 20, 101 << 20, 1]);
    assert!(grown.is_ok(), "{grown:?}");
}

#[test]
fn flags_and_rights_are_checked_as_on_linux() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(
        errno_of(run.mmap(0, 4096, 3, 0x23)),
        Some(errno::EINVAL),
        "both kinds"
    );
    assert_eq!(
        errno_of(run.mmap(0, 4096, 3, 0x20)),
        Some(errno::EINVAL),
        "no kind"
    );
    assert_eq!(
        errno_of(run.mmap(4096, 4096, 3, 0x32)),
        Some(errno::EPERM),
        "too low"
    );
    let at = run.map(3 * 4096).unwrap();
    assert_eq!(
        run.errno(nr::__NR_mprotect, &[at, 4096, 0x40]),
        Some(errno::EINVAL)
    );
    assert_eq!(
        run.errno(nr::__NR_madvise, &[at, 4096, 99]),
        Some(errno::EINVAL)
    );
    assert_eq!(run.call(nr::__NR_madvise, &[at, 4096, 14]), Ok(0), "a hint");
    let low = run.mmap(0, 4096, 3, PRIVATE | 0x40).unwrap();
    assert!(low < 1 << 31, "MAP_32BIT: {low:#x}");
    assert!(at < MMAP_TOP);
}

#[test]
fn holes_are_told_after_the_rest_is_done() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(3 * 4096).unwrap();
    run.put(at, b"one");
    run.put(at + 8192, b"three");
    run.call(nr::__NR_munmap, &[at + 4096, 4096]).unwrap();
    assert_eq!(
        run.errno(nr::__NR_mprotect, &[at, 3 * 4096, 1]),
        Some(errno::ENOMEM)
    );
    assert_eq!(
        run.touch(at, Access::Write),
        Err(Refused::Forbidden),
        "done"
    );
    assert_eq!(
        run.errno(nr::__NR_madvise, &[at, 3 * 4096, 4]),
        Some(errno::ENOMEM)
    );
    assert_eq!(run.get(at, 3), [0; 3]);
    assert_eq!(run.get(at + 8192, 5), [0; 5], "beyond the hole, too");
}

#[test]
fn stacks_grow_to_their_limit_and_no_further() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let bottom = STACK_TOP - (8 << 20);
    run.put(bottom + 100, b"deep");
    assert_eq!(run.get(bottom + 100, 4), b"deep");
    assert_eq!(run.touch(bottom - 8, Access::Write), Err(Refused::Unmapped));
    let at = run
        .mmap(0x20_0000_0000, 4096, 3, PRIVATE | FIXED | 0x100)
        .unwrap();
    assert_eq!(
        run.touch(at - 3 * 4096, Access::Write),
        Ok(()),
        "MAP_GROWSDOWN"
    );
    let wall = at - (2 << 20);
    run.mmap(wall, 4096, 3, PRIVATE | FIXED).unwrap();
    assert_eq!(
        run.touch(wall + 8192, Access::Write),
        Err(Refused::Unmapped),
        "the gap stays"
    );
}

#[test]
fn pages_beyond_the_end_of_a_file_are_bus_errors() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let file = run.open("/script").unwrap();
    let at = run
        .call(nr::__NR_mmap, &[0, 3 * 4096, 1, 2, file, 0])
        .unwrap();
    assert_eq!(run.get(at, 2), b"#!");
    assert_eq!(run.touch(at + 4095, Access::Read), Ok(()));
    assert_eq!(run.touch(at + 4096, Access::Read), Err(Refused::BeyondEnd));
}

#[test]
fn pages_of_a_file_that_was_cut_are_bus_errors_until_it_grows() {
    const CREATE: u64 = 0o102;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    for path in ["/tmp/cut", "/cut"] {
        run.put(DATA, format!("{path}\0").as_bytes());
        let fd = run.call(nr::__NR_open, &[DATA, CREATE, 0o600]).unwrap();
        assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 3 * 4096]), Ok(0));
        let map =
            |run: &mut Run, kind: u64| run.call(nr::__NR_mmap, &[0, 5 * 4096, 3, kind, fd, 0]);
        let both = map(&mut run, 1).unwrap();
        let own = map(&mut run, 2).unwrap();
        run.put(both + 2 * 4096, b"shared");
        run.put(both + 5000, b"kept");
        // A private mapping of this node's own file is a copy, whatever becomes of the file.
        let copy = path == "/tmp/cut";
        run.put(own + 2 * 4096, b"private");
        assert_eq!(
            run.touch(both + 3 * 4096, Access::Read),
            Err(Refused::BeyondEnd)
        );
        run.call(nr::__NR_fork, &[]).unwrap();
        let child = node.started.borrow_mut().pop().unwrap();
        assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 5004]), Ok(0));
        let beyond = Err(Refused::BeyondEnd);
        assert_eq!(run.touch(both + 2 * 4096, Access::Read), beyond, "{path}");
        assert_eq!(run.touch(both + 2 * 4096, Access::Write), beyond, "{path}");
        let private = run.touch(own + 2 * 4096, Access::Read);
        assert_eq!(private, if copy { Ok(()) } else { beyond }, "{path}");
        let theirs = node.block_on(child.memory().fault(both + 2 * 4096, Access::Read, false));
        assert_eq!(theirs, Ok(beyond), "{path}: another process's");
        assert_eq!(run.get(both + 5000, 6), b"kept\0\0", "{path}");
        // It may grow again, and is zero there.
        assert_eq!(run.call(nr::__NR_ftruncate, &[fd, 5 * 4096]), Ok(0));
        assert_eq!(run.get(both + 2 * 4096, 6), [0; 6], "{path}");
        run.put(both + 4 * 4096, b"new");
        let at = run.map(4096).unwrap();
        assert_eq!(run.call(nr::__NR_pread64, &[fd, at, 3, 4 * 4096]), Ok(3));
        assert_eq!(run.get(at, 3), b"new", "{path}");
        node.block_on(child.run());
        run.call(nr::__NR_close, &[fd]).unwrap();
    }
    run.end();
}

#[test]
fn dev_zero_is_memory() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let zero = run.open("/dev/zero").unwrap();
    let at = run.call(nr::__NR_mmap, &[0, 4096, 3, 2, zero, 0]).unwrap();
    run.put(at + 1, b"own");
    assert_eq!(run.get(at, 5), b"\0own\0");
    let null = run.open("/dev/null").unwrap();
    assert_eq!(
        run.errno(nr::__NR_mmap, &[0, 4096, 3, 2, null, 0]),
        Some(errno::ENODEV)
    );
}

#[test]
fn whole_mappings_go_at_the_limit_of_vmas() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let start = 0x20_0000_0000;
    let mut last = 0;
    for n in 0..MAX_VMAS as u64 {
        match run.mmap(start + n * 3 * 4096, 8192, 0, PRIVATE | FIXED) {
            Ok(at) => last = at,
            Err(error) => {
                assert_eq!(error, errno::ENOMEM.into());
                break;
            }
        }
    }
    let count = run.thread.memory().with_vmas(crate::mm::vma::Vmas::len);
    assert_eq!(count, MAX_VMAS);
    assert_eq!(run.call(nr::__NR_munmap, &[last, 8192]), Ok(0));
    assert_eq!(run.call(nr::__NR_munmap, &[start, 8192]), Ok(0));
}

/// A child with a copy of a run's memory.
fn fork(node: &'static FakeNode, run: &Run) -> Space<'static, FakeNode> {
    let child = Space::new(node, 8, node.new_tables().unwrap(), Layout::FIXED);
    node.block_on(run.thread.memory().fork_into(&child))
        .unwrap();
    child
}

#[test]
fn fork_shares_pages_until_they_are_written() {
    let node: &FakeNode = node(16);
    let mut run = Run::new(node);
    let at = run.map(40 * 4096).unwrap();
    for page in 0..40_u64 {
        run.put(at + page * 4096, &page.to_le_bytes());
    }
    let both = run.mmap(0, 4096, PROT_RW, SHARED).unwrap();
    run.put(both, b"before");
    let child = fork(node, &run);
    let read = |child: &Space<'_, FakeNode>, at: u64, len: usize| {
        let mut bytes = vec![0; len];
        node.block_on(child.read(at, &mut bytes)).unwrap();
        bytes
    };
    run.put(at, b"parent's");
    node.block_on(child.write(at + 4096, b"child's!")).unwrap();
    node.block_on(child.write(both, b"shared")).unwrap();
    assert_eq!(read(&child, at, 8), 0_u64.to_le_bytes());
    assert_eq!(run.get(at + 4096, 8), 1_u64.to_le_bytes());
    assert_eq!(
        (run.get(at, 8), read(&child, at + 4096, 8)),
        (b"parent's".to_vec(), b"child's!".to_vec())
    );
    assert_eq!(run.get(both, 6), b"shared");
    for page in 2..40_u64 {
        assert_eq!(run.get(at + page * 4096, 8), page.to_le_bytes());
        assert_eq!(read(&child, at + page * 4096, 8), page.to_le_bytes());
    }
    run.thread.process.end(Exit::Code(0));
    node.block_on(run.thread.run());
    assert_eq!(read(&child, at + 39 * 4096, 8), 39_u64.to_le_bytes());
    node.block_on(child.end()).unwrap();
    node.block_on(node.kernel.finish(node)).unwrap();
    node.drain();
    node.block_on(node.supply.settle(node)).unwrap();
    assert_eq!(node.cache.lines_in_use(), (0, 0));
    assert!(node.memory.lent.borrow().is_empty());
    assert_eq!(
        (node.supply.committed(), node.memory.promised.get()),
        (0, 0)
    );
}

/// Checks that answers without waiting equal those with it, and that nothing is left behind.
#[test]
fn mapping_and_unmapping_at_once_does_the_same() {
    let nodes: [&FakeNode; 2] = [node(64), node(64)];
    let mut runs = nodes.map(Run::new);
    let mut state = 5_u64;
    let mut below = |end: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % end
    };
    let (mut mapped, mut at_once) = (vec![], 0);
    for _ in 0..3_000 {
        let (number, args) = if mapped.is_empty() || below(2) == 0 {
            let flags = [PRIVATE, PRIVATE | NORESERVE, SHARED, PRIVATE | 0x40][below(4)];
            let (len, prot) = ((1 + below(900)) * 4096 - below(2), below(4) as u64);
            (nr::__NR_mmap, [0, len as u64, prot, flags, u64::MAX, 0])
        } else {
            let (at, len): (u64, u64) = mapped[below(mapped.len())];
            let skip = below(4) as u64 * 4096;
            (nr::__NR_munmap, [at + skip, len >> below(3), 0, 0, 0, 0])
        };
        let slow = runs[0].call(number, &args);
        let now = runs[1].thread.call_now(number.into(), || args);
        at_once += u32::from(now.is_some());
        assert_eq!(now.map_or_else(|| runs[1].call(number, &args), Ok), slow);
        if let (nr::__NR_mmap, Ok(at)) = (number, slow) {
            mapped.push((at, args[1]));
            if args[2] == PROT_RW && below(4) == 0 {
                let [first, second] = &runs;
                assert_eq!(first.put(at, b"touched"), second.put(at, b"touched"));
            }
        }
        let [a, b] = runs.each_ref().map(|run| {
            let vmas = run
                .thread
                .memory()
                .with_vmas(|vmas| format!("{:?}", vmas.iter().collect::<Vec<_>>()));
            let node = run.node;
            (
                vmas,
                node.supply.committed(),
                run.thread.memory().tables().count(),
            )
        });
        assert_eq!(a, b);
    }
    assert!(at_once > 500, "{at_once} calls were answered at once");
    for (run, node) in runs.into_iter().zip(nodes) {
        run.end();
        assert!(node.memory.lent.borrow().is_empty());
        assert_eq!(node.cache.lines_in_use(), (0, 0));
    }
}

/// No call keeps the core from its other tasks for long, however much it has to do.
#[test]
fn long_calls_let_other_tasks_run() {
    // All fits: no wait for a page lets them run either.
    let node: &FakeNode = node(8192);
    let mut run = Run::new(node);
    let (len, small) = (16 << 20, 256 << 10);
    let at = run.map(len).unwrap();
    for page in (at..at + len).step_by(4096) {
        run.put(page, &[1]);
    }
    let both = run.mmap(0, len, PROT_RW, SHARED).unwrap();
    for page in (both..both + len).step_by(4096) {
        run.put(page, &[1]);
    }
    let pieces = run.map(4096 * 4).unwrap();
    for n in 0..1024 {
        run.put(
            pieces + n * 16,
            &[at.to_le_bytes(), u64::to_le_bytes(small)].concat(),
        );
    }
    let zero = run.open("/dev/zero").unwrap();
    let random = run.open("/dev/urandom").unwrap();
    let calls: [(u32, &[u64]); 10] = [
        (nr::__NR_readv, &[zero, pieces, 1024]),
        (nr::__NR_read, &[zero, at, len]),
        (nr::__NR_read, &[random, at, len]),
        (nr::__NR_getrandom, &[at, len, 0]),
        (nr::__NR_fork, &[]),
        (nr::__NR_mprotect, &[at, len, 1]),
        (nr::__NR_mprotect, &[at, len, 3]),
        (nr::__NR_mremap, &[at, len, len, 3, at - (1 << 30)]),
        (nr::__NR_madvise, &[at - (1 << 30), len, 4]),
        (nr::__NR_munmap, &[both, len]),
    ];
    for (number, args) in calls {
        node.platform.turns.most.set(0);
        run.call(number, args).unwrap();
        let most = node.platform.turns.most.get();
        // A table's pages, and a few.
        assert!(most <= 600, "call {number}: {most} pages in one turn");
    }
    run.end();
}

#[test]
fn pages_are_taken_and_their_addresses_stay_mapped() {
    const MAY_MOVE: u64 = 1;
    const DONT_UNMAP: u64 = 4;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(8192).unwrap();
    run.put(at + 4090, b"over two pages");
    let call = [at, 8192, 8192, MAY_MOVE | DONT_UNMAP, 0];
    let moved = run.call(nr::__NR_mremap, &call).unwrap();
    assert_eq!(run.get(moved + 4090, 14), b"over two pages");
    assert_eq!(run.get(at + 4090, 14), [0; 14]);
    run.put(at, b"again");
    assert_eq!(run.get(moved, 5), [0; 5]);
    for call in [
        [at, 8192, 4096, MAY_MOVE | DONT_UNMAP, 0],
        [at, 8192, 8192, DONT_UNMAP, 0],
    ] {
        let refused = run.call(nr::__NR_mremap, &call);
        assert_eq!(errno_of(refused), Some(errno::EINVAL));
    }
    ends_clean(node, run);
}

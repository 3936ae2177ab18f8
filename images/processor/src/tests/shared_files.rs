//! Pages of files of S: read when touched, once, whoever maps them.

use super::*;

const PROT_READ: u64 = 1;
const PROT_RW: u64 = 3;
const PRIVATE: u64 = 2;

fn big(node: &FakeNode) -> &[u8] {
    &node.files.files[b"/big".as_slice()]
}

#[test]
fn a_file_is_read_once_for_all_that_map_it() {
    let node: &FakeNode = node(16);
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    let before = node.files.reads.get();
    let at = run
        .call(nr::__NR_mmap, &[0, 100_000, PROT_READ, PRIVATE, fd, 0])
        .unwrap();
    assert_eq!(
        node.files.reads.get(),
        before,
        "nothing is read before it is touched"
    );
    assert!(run.get(at, 100_000) == big(node));
    let read = node.files.reads.get();
    // Again by another mapping, and by a child that the cache has no room for.
    let again = run
        .call(nr::__NR_mmap, &[0, 60_000, PROT_READ, PRIVATE, fd, 8192])
        .unwrap();
    assert!(run.get(again, 60_000) == big(node)[8192..68_192]);
    run.call(nr::__NR_fork, &[]).unwrap();
    let thread = node.started.borrow_mut().pop().unwrap();
    let child = Run { node, thread };
    assert!(child.get(at, 100_000) == big(node));
    assert!(run.get(at, 100_000) == big(node));
    assert_eq!(node.files.reads.get(), read);
    node.block_on(child.thread.run());
    run.end();
    node.drain();
    assert_eq!(
        (node.files.open.get(), node.cache.lines_in_use()),
        (0, (0, 0))
    );
    assert!(node.memory.lent.borrow().is_empty());
}

#[test]
fn stores_go_to_a_copy_and_discarded_pages_are_the_file_s_again() {
    let node: &FakeNode = node(16);
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    let one = run
        .call(nr::__NR_mmap, &[0, 40_960, PROT_READ, PRIVATE, fd, 0])
        .unwrap();
    let two = run
        .call(nr::__NR_mmap, &[0, 40_960, PROT_RW, PRIVATE, fd, 0])
        .unwrap();
    run.put(two + 5000, b"own");
    let refused = run.node.block_on(run.thread.memory().write(one, b"x"));
    assert_eq!(errno_of(refused), Some(errno::EFAULT));
    assert_eq!(run.call(nr::__NR_mprotect, &[one, 4096, PROT_RW]), Ok(0));
    run.put(one, b"mine");
    // All pages go to remote memory and come back.
    let other = run.map(64 * 4096).unwrap();
    for page in 0..64 {
        run.put(other + page * 4096, &[1]);
    }
    assert_eq!(
        (run.get(one, 5), run.get(two + 5000, 4)),
        (
            [b"mine", &big(node)[4..5]].concat(),
            [b"own", &big(node)[5003..5004]].concat(),
        )
    );
    assert_eq!(
        (run.get(one + 5000, 3), run.get(two, 4)),
        (big(node)[5000..5003].to_vec(), big(node)[..4].to_vec())
    );
    assert_eq!(run.call(nr::__NR_madvise, &[two, 40_960, 4]), Ok(0));
    assert_eq!(run.get(two + 5000, 3), big(node)[5000..5003]);
    run.end();
    assert!(node.memory.lent.borrow().is_empty());
}

#[test]
fn a_program_that_runs_again_is_not_read_again() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"/bin/program\0");
    run.call(nr::__NR_execve, &[DATA, 0, 0]).unwrap();
    assert_eq!(run.get(0x40_0000, 0x1000), program());
    let headers = node.files.reads.get();
    run.put(DATA, b"/bin/program\0");
    run.call(nr::__NR_execve, &[DATA, 0, 0]).unwrap();
    assert_eq!(run.get(0x40_0000, 0x1000), program());
    assert!(
        node.files.reads.get() <= headers + 3,
        "the first line, the header, the program headers"
    );
    run.end();
}

#[test]
fn zeros_follow_a_segment_whatever_the_file_has_there() {
    let mut file = program();
    // 0x900 bytes of the file, then zeros, in the same page.
    file[64 + 32..64 + 40].copy_from_slice(&0x900u64.to_le_bytes());
    file[0x900..0xa00].fill(0xff);
    let node: &FakeNode = FakeNode::new(64, &[("/program", &file)]);
    let run = Run::of(node, "/program");
    assert_eq!(run.get(0x40_0000, 0x900), file[..0x900]);
    assert_eq!(run.get(0x40_0900, 0x1700), vec![0; 0x1700]);
    run.end();
}

//! Processes on a fake node.

mod calls;
mod chroot;
mod fake;
pub(crate) mod fake_files;
mod file_stores;
mod futexes;
mod gather;
mod identity;
mod inotify;
mod ipc;
mod jobs;
mod leases;
mod locks;
mod locks_pi;
mod memfd;
mod memory;
mod missing;
mod paths;
mod pidfd;
mod pipes;
mod pseudo;
mod queues;
mod rseq;
mod shared_files;
mod small_calls;
mod sockets;
mod storage;
mod strace;
mod threads;
mod timers;
mod tmp;
mod turns;
mod vsyscall;

use fake::{FakeNode, errno_of};
use linux_raw_sys::general as nr;
use pcache::Access;
use proptest::prelude::*;

use console::Output;

use crate::Cpu;
use crate::deliver::Outcome;
use crate::elf::Header;
use crate::error::errno;
use crate::{Command, Error, Exit, Refusal, SystemCall, Thread, Trap};

/// Returns words as a program's memory has them.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A program of one segment at 0x400000: code and data in one, 0x2000 bytes in memory.
fn program() -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    for (at, value) in [(16, 2u16), (18, 62), (54, 56), (56, 1)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file[64..72].copy_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for (at, value) in [
        (24, 0x40_0100u64),
        (32, 64),
        (64 + 16, 0x40_0000),
        (64 + 32, 0x1000),
        (64 + 40, 0x2000),
    ] {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file
}

fn node(lines: u64) -> &'static mut FakeNode {
    let big: Vec<u8> = (0..100_000u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let files: [(&str, &[u8]); 5] = [
        ("/", b""),
        ("/big", &big),
        ("/bin", b""),
        ("/bin/program", &program()),
        ("/script", b"#!/bin/sh\n"),
    ];
    FakeNode::new(lines, &files)
}

fn command(path: &str) -> Command {
    Command {
        path: path.into(),
        args: vec![path.into(), b"one".to_vec()],
        env: vec![b"A=b".to_vec()],
        ..Command::default()
    }
}

/// A data address of the program, writable and initially zero.
const DATA: u64 = 0x40_1000;

struct Run {
    node: &'static FakeNode,
    thread: Thread<FakeNode>,
}

impl Run {
    fn new(node: &'static FakeNode) -> Self {
        Self::of(node, "/bin/program")
    }

    fn of(node: &'static FakeNode, path: &str) -> Self {
        let thread = node.block_on(Thread::first(node, &command(path))).unwrap();
        Self { node, thread }
    }

    /// Runs the program's script to its end.
    fn go(&mut self) -> Result<Exit, Error> {
        loop {
            match self.node.block_on(self.thread.step()) {
                Ok(()) => {}
                Err(Error::Ended(exit) | Error::ThreadEnded(exit)) => return Ok(exit),
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the program, and all that it started.
    fn end(self) {
        self.thread.process.end(Exit::Code(0));
        self.node.block_on(self.thread.run());
        self.node.run_started();
        self.node
            .block_on(self.node.kernel.finish(self.node))
            .unwrap();
        // A line that was being written back lets its chunk go only now.
        self.node.drain();
        self.node
            .block_on(self.node.supply.settle(self.node))
            .unwrap();
    }

    fn call(&mut self, number: u32, args: &[u64]) -> Result<u64, Error> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let call = SystemCall {
            number: u64::from(number),
            args: all,
        };
        let done = self.node.block_on(self.thread.system_call(call));
        self.node
            .block_on(self.node.kernel.close_files(self.node))
            .unwrap();
        done.map(|outcome| match outcome {
            Outcome::Value(value) => value,
            Outcome::Registers => 0,
        })
    }

    fn put(&self, addr: u64, bytes: &[u8]) -> u64 {
        self.node
            .block_on(self.thread.memory().write(addr, bytes))
            .unwrap();
        addr
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.node
            .block_on(self.thread.memory().read(addr, &mut bytes))
            .unwrap();
        bytes
    }

    fn open(&mut self, path: &str) -> Result<u64, Error> {
        self.put(DATA, format!("{path}\0").as_bytes());
        self.call(nr::__NR_open, &[DATA, 0])
    }

    fn map(&mut self, len: u64) -> Result<u64, Error> {
        self.call(nr::__NR_mmap, &[0, len, 3, 0x22, u64::MAX, 0])
    }
}

#[test]
fn program_is_loaded_with_its_arguments() {
    let node: &FakeNode = node(64);
    let run = Run::new(node);
    assert_eq!(
        (run.thread.cpu.ip(), run.thread.cpu.sp() % 16),
        (0x40_0100, 0)
    );
    assert_eq!(run.get(0x40_0000, 0x1000), program());
    assert_eq!(run.get(DATA, 0x1000), vec![0; 0x1000]);
    let word =
        |n: u64| u64::from_le_bytes(run.get(run.thread.cpu.sp() + n * 8, 8).try_into().unwrap());
    assert_eq!(word(0), 2);
    assert_eq!(run.get(word(2), 4), b"one\0");
    assert_eq!(
        node.files.open.get(),
        1,
        "the program's file, for its pages"
    );
    run.end();
    assert_eq!(node.files.open.get(), 0);
}

#[test]
#[ignore = "wants a static program in TESSERA_STATIC_PROGRAM; `cargo xtask test` gives it Debian's busybox"]
fn real_program_is_loaded_whole_through_a_small_cache() {
    let path =
        std::env::var("TESSERA_STATIC_PROGRAM").expect("TESSERA_STATIC_PROGRAM names a program");
    let file = std::fs::read(path).expect("the program can be read");
    let node = FakeNode::new(32, &[("/busybox", &file)]);
    let run = Run::of(node, "/busybox");
    let header = Header::parse(&file).unwrap();
    let at = usize::try_from(header.headers_at).unwrap();
    let program = header
        .program(&file[at..at + header.headers_len()], file.len() as u64)
        .unwrap();
    let bias = run.thread.cpu.ip() - program.entry;
    for s in &program.segments {
        let (from, len) = (
            usize::try_from(s.file_offset).unwrap(),
            usize::try_from(s.file_len).unwrap(),
        );
        assert!(
            run.get(s.addr + bias, len) == file[from..from + len],
            "segment at {:#x}",
            s.addr
        );
        let zeros = usize::try_from(s.len - s.file_len).unwrap();
        assert!(
            run.get(s.addr + bias + s.file_len, zeros)
                .iter()
                .all(|&b| b == 0)
        );
        assert_eq!(run.thread.memory().rights(s.addr + bias), Some(s.prot));
    }
    assert!(node.cache.counters().nr_pcache_eviction_dirty > 0);
}

#[test]
fn a_dynamic_program_begins_in_its_interpreter() {
    let mut dynamic = program();
    // A second program header, PT_INTERP, names the file whose path follows.
    dynamic[56] = 2;
    dynamic[120..124].copy_from_slice(&[3, 0, 0, 0]);
    for (at, value) in [(120 + 8, 0x800_u64), (120 + 32, 8)] {
        dynamic[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    dynamic[0x800..0x808].copy_from_slice(b"/bin/ld\0");
    let mut interpreter = program();
    // Position-independent, at 0.
    interpreter[16] = 3;
    for (at, value) in [(24, 0x100_u64), (64 + 16, 0)] {
        interpreter[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let node: &FakeNode = FakeNode::new(64, &[("/dynamic", &dynamic), ("/bin/ld", &interpreter)]);
    let run = Run::of(node, "/dynamic");
    let ip = run.thread.cpu.ip();
    assert_eq!(ip % (2 << 20), 0x100);
    assert_eq!(run.get(ip - 0x100, 0x1000), interpreter);
    assert_eq!(run.get(0x40_0000, 0x1000), dynamic);
    let node: &FakeNode = FakeNode::new(64, &[("/dynamic", &dynamic)]);
    let refused = node
        .block_on(Thread::first(node, &command("/dynamic")))
        .err()
        .unwrap();
    assert_eq!(refused.status(), 126);
}

#[test]
fn refusals_have_the_shell_s_statuses() {
    let node: &FakeNode = node(64);
    let refused = |path: &str| {
        let outcome = node.block_on(Thread::first(node, &command(path)));
        outcome.map(|_| ()).unwrap_err()
    };
    assert_eq!(refused("/nowhere").status(), 127);
    let lent = node.memory.lent.borrow().len();
    assert_eq!(refused("/nowhere").to_string(), "/nowhere: not found");
    assert!(matches!(refused("/big"), Refusal::NotRunnable { .. }));
    assert_eq!(refused("/big").to_string(), "/big: not an ELF file");
    assert_eq!(refused("/script").to_string(), "/bin/sh: not found");
    assert_eq!(
        (refused("/big").status(), refused("/bin").status()),
        (126, 126)
    );
    assert_eq!(
        node.memory.lent.borrow().len(),
        lent,
        "nothing but the kernel's own pages"
    );
}

#[test]
fn stores_outside_or_against_rights_end_in_sigsegv() {
    for (addr, access) in [
        (0, Access::Read),
        (0x7ffe_0000_0000, Access::Write),
        (1 << 63, Access::Read),
    ] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        run.thread
            .cpu
            .script
            .push((Trap::PageFault { addr, access }, SystemCall::default()));
        let exit = run.go();
        assert_eq!(exit, Ok(Exit::Signal(11)), "{addr:#x}");
    }
    assert_eq!(Exit::Signal(11).status(), 139);
}

#[test]
fn code_is_not_executed_from_the_stack_nor_read_only_pages_written() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(4096).unwrap();
    run.call(nr::__NR_mprotect, &[at, 4096, 1]).unwrap();
    for (addr, access) in [(at, Access::Write), (run.thread.cpu.sp(), Access::Execute)] {
        run.thread
            .cpu
            .script
            .push((Trap::PageFault { addr, access }, SystemCall::default()));
        assert_eq!(run.go(), Ok(Exit::Signal(11)));
    }
}

#[test]
fn exceptions_become_signals() {
    for (vector, signal) in [(0, 8), (6, 4), (13, 11), (17, 7), (3, 5)] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        run.thread
            .cpu
            .script
            .push((Trap::Exception { vector, error: 0 }, SystemCall::default()));
        assert_eq!(run.go(), Ok(Exit::Signal(signal)));
    }
}

#[test]
fn unknown_calls_are_counted_and_exit_ends_the_run() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    for (number, args) in [
        (u64::from(nr::__NR_io_setup), [0; 6]),
        (1 << 40, [0; 6]),
        (60, [0x1_03, 0, 0, 0, 0, 0]),
    ] {
        run.thread
            .cpu
            .script
            .push((Trap::Syscall, SystemCall { number, args }));
    }
    assert_eq!(run.go(), Ok(Exit::Code(3)));
    assert_eq!(run.thread.cpu.results, [(-38i64).cast_unsigned(); 2]);
    assert_eq!(node.kernel.unimplemented(), [(206, 1), (u64::MAX, 1)]);
    run.end();
    node.drain();
    assert_eq!(node.cache.lines_in_use(), (0, 0));
}

#[test]
fn program_s_own_stores_survive_eviction() {
    let node: &FakeNode = node(8);
    let mut run = Run::new(node);
    let at = run.map(32 * 4096).unwrap();
    for n in 0..32u8 {
        let addr = at + u64::from(n) * 4096;
        run.thread.cpu.script.push((
            Trap::PageFault {
                addr,
                access: Access::Write,
            },
            SystemCall::default(),
        ));
        node.block_on(run.thread.step()).unwrap();
        assert!(node.store(run.thread.memory().tables(), addr + 5, n));
    }
    for n in 0..32u8 {
        assert_eq!(run.get(at + u64::from(n) * 4096 + 5, 1), [n]);
    }
}

#[test]
fn files_are_read_by_pieces_positions_and_mappings() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let big = node.files.files[b"/big".as_slice()].clone();
    let fd = run.open("/big").unwrap();
    assert_eq!(fd, 3);
    let at = run.map(200_000).unwrap();
    assert_eq!(run.call(nr::__NR_read, &[fd, at, 200_000]), Ok(100_000));
    assert_eq!(run.get(at, 100_000), big);
    assert_eq!(run.call(nr::__NR_read, &[fd, at, 10]), Ok(0));
    assert_eq!(
        run.call(nr::__NR_lseek, &[fd, (-5i64).cast_unsigned(), 2]),
        Ok(99_995)
    );
    assert_eq!(run.call(nr::__NR_dup2, &[fd, 9]), Ok(9));
    assert_eq!(
        run.call(nr::__NR_read, &[9, at, 10]),
        Ok(5),
        "duplicates share the position"
    );
    assert_eq!(run.call(nr::__NR_pread64, &[fd, at, 3, 77]), Ok(3));
    assert_eq!(run.get(at, 3), big[77..80]);
    let mapped = run.call(nr::__NR_mmap, &[0, 5000, 1, 2, fd, 4096]).unwrap();
    assert_eq!(run.get(mapped, 5000), big[4096..9096]);
    run.call(nr::__NR_close, &[fd]).unwrap();
    run.call(nr::__NR_close, &[9]).unwrap();
    assert_eq!(
        (
            node.files.open.get(),
            errno_of(run.call(nr::__NR_close, &[9]))
        ),
        (2, Some(errno::EBADF)),
        "this one's and the program's, for their pages"
    );
}

#[test]
fn output_is_whole_and_input_ends() {
    let node: &FakeNode = node(16);
    let mut run = Run::new(node);
    let at = run.map(300_000).unwrap();
    let text: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
    run.put(at, &text);
    assert_eq!(run.call(nr::__NR_write, &[1, at, 300_000]), Ok(300_000));
    node.drain();
    let written: Vec<u8> = node
        .platform
        .out
        .take()
        .into_iter()
        .flat_map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(written, text);
    let pieces: Vec<u8> = [at, 3, at + 10, 2]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    run.put(DATA, &pieces);
    assert_eq!(run.call(nr::__NR_writev, &[2, DATA, 2]), Ok(5));
    node.drain();
    let out = node.platform.out.take();
    let bytes: Vec<u8> = out.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!((out[0].0, &bytes[..3]), (Output::Stderr, &text[..3]));
    node.platform.stdin.borrow_mut().extend(b"in");
    assert_eq!(run.call(nr::__NR_read, &[0, at, 100]), Ok(2));
    assert_eq!(run.call(nr::__NR_read, &[0, at, 100]), Ok(0));
    assert_eq!(
        run.call(nr::__NR_write, &[1, at + 299_998, 9_000]),
        Ok(3_106),
        "up to what is mapped"
    );
}

#[test]
fn errors_are_linux_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"/new\0");
    assert_eq!(
        errno_of(run.call(nr::__NR_open, &[DATA, 0])),
        Some(errno::ENOENT)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_open, &[0, 0])),
        Some(errno::EFAULT)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_read, &[1, DATA, 1])),
        Some(errno::EBADF)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_write, &[0, DATA, 1])),
        Some(errno::EBADF)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_lseek, &[0, 0, 0])),
        Some(errno::ESPIPE)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_ioctl, &[1, 0x5401, DATA])),
        Some(errno::ENOTTY)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_mprotect, &[1, 4096, 1])),
        Some(errno::EINVAL)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_kill, &[99, 9])),
        Some(errno::ESRCH)
    );
    let fd = run.open("/bin").unwrap();
    assert_eq!(
        errno_of(run.call(nr::__NR_read, &[fd, DATA, 1])),
        Some(errno::EISDIR)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_getdents64, &[fd, DATA, 10])),
        Some(errno::EINVAL)
    );
    assert!(run.call(nr::__NR_getdents64, &[fd, DATA, 100]).unwrap() <= 100);
}

#[test]
fn futex_wakes_nobody_and_waits_no_longer_than_told() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, &7u32.to_le_bytes());
    let time: Vec<u8> = [2u64, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    run.put(DATA + 16, &time);
    assert_eq!(run.call(nr::__NR_futex, &[DATA, 0x81, 1]), Ok(0));
    let different = run.call(nr::__NR_futex, &[DATA, 0x80, 8, 0]);
    assert_eq!(errno_of(different), Some(errno::EAGAIN));
    let before = node.platform.clock.get();
    let waited = run.call(nr::__NR_futex, &[DATA, 0x80, 7, DATA + 16]);
    assert_eq!(errno_of(waited), Some(errno::ETIMEDOUT));
    assert!(node.platform.clock.get() >= before + 2_000_000_000);
}

#[test]
fn small_reads_one_behind_the_other_are_few_calls() {
    let node = node(64);
    node.files.most = 1 << 20;
    let node: &FakeNode = node;
    let mut run = Run::new(node);
    let fd = run.open("/big").unwrap();
    let at = run.map(100_000).unwrap();
    let before = node.files.reads.get();
    let mut read = Vec::new();
    loop {
        // A short read in the middle would look like the end of the file.
        let got = run.call(nr::__NR_read, &[fd, at, 3_000]).unwrap();
        read.extend(run.get(at, usize::try_from(got).unwrap()));
        if got < 3_000 {
            break;
        }
    }
    assert!(read == node.files.files[&b"/big"[..]]);
    assert!(
        node.files.reads.get() - before <= 8,
        "{} calls",
        node.files.reads.get() - before
    );
    // Elsewhere, and another file at the same number and place.
    assert_eq!(run.call(nr::__NR_pread64, &[fd, at, 100, 50]), Ok(100));
    assert_eq!(run.get(at, 100), read[50..150]);
    assert_eq!(run.call(nr::__NR_lseek, &[fd, 70_001, 0]), Ok(70_001));
    assert_eq!(run.call(nr::__NR_read, &[fd, at, 100]), Ok(100));
    assert_eq!(run.get(at, 100), read[70_001..70_101]);
    assert_eq!(run.call(nr::__NR_close, &[fd]), Ok(0));
    let script = run.open("/script").unwrap();
    assert_eq!(run.call(nr::__NR_read, &[script, at, 100]), Ok(10));
    assert_eq!(run.get(at, 10), b"#!/bin/sh\n");
    assert_eq!(run.call(nr::__NR_read, &[script, at, 100]), Ok(0));
}

#[test]
fn rights_taken_away_take_effect_on_mapped_pages() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let addr = run.map(4096).unwrap();
    run.thread.cpu.script.push((
        Trap::PageFault {
            addr,
            access: Access::Write,
        },
        SystemCall::default(),
    ));
    node.block_on(run.thread.step()).unwrap();
    assert!(node.store(run.thread.memory().tables(), addr, 1));
    run.call(nr::__NR_mprotect, &[addr, 4096, 1]).unwrap();
    assert!(!node.store(run.thread.memory().tables(), addr, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a program asks, the node neither panics nor stops.
    #[test]
    fn any_call_is_survived(
        calls in prop::collection::vec((0u32..470, prop::array::uniform6(word())), 1..40),
    ) {
        let node: &FakeNode = node(32);
        let mut run = Run::new(node);
        for (number, args) in calls {
            let call = SystemCall { number: number.into(), args };
            match node.try_block_on(run.thread.system_call(call)) {
                // A program may well wait for nothing for ever.
                None | Some(Ok(_) | Err(Error::Errno(_))) => {}
                Some(Err(Error::Ended(_) | Error::ThreadEnded(_))) => break,
                Some(Err(error)) => prop_assert!(false, "call {} stopped the node: {}", number, error),
            }
        }
        run.end();
        node.drain();
        prop_assert_eq!(node.cache.lines_in_use().0, 0);
        prop_assert!(node.memory.lent.borrow().is_empty(), "chunks come back");
        prop_assert_eq!((node.supply.committed(), node.memory.promised.get()), (0, 0));
    }
}

/// Words as hostile or careless programs have them.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..12,
        Just(DATA),
        (0x40_0000u64..0x40_3000),
        (0u64..8).prop_map(|n| 0x7000_0000_0000 + n * 4096),
        Just(4096u64),
        Just(0x22u64),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

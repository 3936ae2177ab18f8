//! Restartable sequences: registered, aborted, and told of the core.

use super::*;
use crate::error::errno;
use crate::rseq::{ALIGN, Registration};

const AREA: u64 = DATA + 0x100;
const SECTION: u64 = DATA + 0x200;
const SIGNATURE: u64 = 0x5305_3053;
/// The section's first instruction, its length and its abort handler.
const START: u64 = 0x40_0100;
const LEN: u64 = 0x20;
const ABORT: u64 = 0x40_0804;
const UNREGISTER: u64 = 1;
const THREAD: u64 = 0x3d_0f00;

impl Run {
    fn register(&mut self) -> Result<u64, Error> {
        self.call(nr::__NR_rseq, &[AREA, ALIGN, 0, SIGNATURE])
    }

    /// Lays a critical section out around the program's next instruction, and enters it.
    fn enter_section(&self) {
        self.put(SECTION, &words(&[0, START, LEN, ABORT]));
        self.put(ABORT - 4, &SIGNATURE.to_le_bytes()[..4]);
        self.put(AREA + 8, &words(&[SECTION]));
    }

    /// Runs the program until it has made a call.
    fn turn(&mut self) {
        let call = SystemCall {
            number: nr::__NR_getpid.into(),
            args: [0; 6],
        };
        self.thread.cpu.script.push((Trap::Syscall, call));
        while !self.thread.cpu.script.is_empty() {
            self.node.block_on(self.thread.step()).unwrap();
        }
    }

    fn ints(&self) -> [u32; 7] {
        let bytes = self.get(AREA, 28);
        core::array::from_fn(|n| u32::from_le_bytes(bytes[n * 4..n * 4 + 4].try_into().unwrap()))
    }
}

#[test]
fn an_area_is_registered_once_and_given_up() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let mut rseq = |args: [u64; 4]| errno_of(run.call(nr::__NR_rseq, &args));
    assert_eq!(rseq([AREA + 8, ALIGN, 0, 1]), Some(errno::EINVAL));
    assert_eq!(rseq([AREA, 16, 0, 1]), Some(errno::EINVAL));
    assert_eq!(rseq([AREA, ALIGN, 2, 1]), Some(errno::EINVAL));
    assert_eq!(rseq([AREA, ALIGN, UNREGISTER, 1]), Some(errno::EINVAL));
    assert_eq!(rseq([1 << 63, ALIGN, 0, 1]), Some(errno::EFAULT));
    assert_eq!(rseq([AREA, ALIGN, 0, SIGNATURE]), None);
    assert_eq!(rseq([AREA, ALIGN, 0, SIGNATURE]), Some(errno::EBUSY));
    assert_eq!(rseq([AREA, ALIGN, 0, 1]), Some(errno::EPERM));
    assert_eq!(rseq([AREA + 32, ALIGN, 0, 1]), Some(errno::EINVAL));
    assert_eq!(rseq([AREA, ALIGN, UNREGISTER, 1]), Some(errno::EPERM));
    run.thread.shared.set_core(1);
    run.turn();
    assert_eq!(run.ints(), [1, 1, 0, 0, 0, 0, 1]);
    let given_up = run.call(nr::__NR_rseq, &[AREA, ALIGN, UNREGISTER, SIGNATURE]);
    assert_eq!(given_up, Ok(0));
    assert_eq!(run.ints(), [0, u32::MAX, 0, 0, 0, 0, 0]);
    run.turn();
    assert_eq!(run.ints()[1], u32::MAX, "written no more");
}

#[test]
fn a_section_is_left_only_where_another_thread_may_have_run() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.register().unwrap();
    run.turn();
    run.enter_section();
    run.turn();
    assert_eq!(run.thread.cpu.ip(), START, "nobody else had the core");
    run.thread.shared.note_turn_of_other();
    run.turn();
    assert_eq!(run.thread.cpu.ip(), ABORT);
    assert_eq!(run.get(AREA + 8, 8), [0; 8]);
    // Outside of it: only forgotten.
    run.put(AREA + 8, &words(&[SECTION]));
    run.thread.shared.note_turn_of_other();
    run.turn();
    assert_eq!(run.thread.cpu.ip(), ABORT);
    assert_eq!(run.get(AREA + 8, 8), [0; 8]);
}

#[test]
fn a_turn_of_another_thread_on_the_core_is_seen() {
    for (other, left) in [(true, true), (false, false)] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        let tid = run.call(nr::__NR_clone, &[THREAD, DATA + 0x800]).unwrap();
        let mut thread = node.started.borrow_mut().pop().unwrap();
        thread.set_rseq(Some(Registration {
            addr: AREA,
            len: 32,
            signature: 0x5305_3053,
        }));
        thread.shared.attended();
        run.enter_section();
        let tid = u32::try_from(tid).unwrap();
        let last = if other { 99 } else { tid };
        node.kernel.cores.begin_turn(thread.core(), last);
        let exit = SystemCall {
            number: nr::__NR_exit.into(),
            args: [0; 6],
        };
        thread.cpu.script = vec![(Trap::Syscall, exit)];
        node.block_on(thread.run());
        assert_eq!(run.get(AREA + 8, 8) == [0; 8], left);
        run.end();
    }
}

#[test]
fn a_handler_returns_to_the_abort_handler() {
    const SIGUSR1: u64 = 10;
    const HANDLER: u64 = 0x40_0200;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, &words(&[HANDLER, 0x0400_0000, 0x40_0300, 0]));
    run.call(nr::__NR_rt_sigaction, &[SIGUSR1, DATA, 0, 8])
        .unwrap();
    run.register().unwrap();
    run.turn();
    run.enter_section();
    run.call(nr::__NR_tkill, &[1, SIGUSR1]).unwrap();
    run.turn();
    assert_eq!(run.thread.cpu.ip(), HANDLER);
    // The registers begin 48 bytes into the frame; the 17th is the instruction pointer.
    let returns = run.get(run.thread.cpu.sp() + 48 + 16 * 8, 8);
    assert_eq!(returns, ABORT.to_le_bytes());
}

#[test]
fn a_child_keeps_the_area_and_a_thread_does_not() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.register().unwrap();
    run.call(nr::__NR_fork, &[]).unwrap();
    run.call(nr::__NR_clone, &[THREAD, DATA + 0x800]).unwrap();
    let thread = node.started.borrow_mut().pop().unwrap();
    let child = node.started.borrow_mut().pop().unwrap();
    assert_eq!((thread.rseq, child.rseq), (None, run.thread.rseq));
    node.block_on(thread.run());
    node.block_on(child.run());
    run.end();
}

#[test]
fn broken_areas_and_sections_end_in_sigsegv() {
    let sections = [
        // The abort handler is inside; no signature before it; an unknown version.
        [0, START, LEN, START + 4],
        [0, START, LEN, ABORT + 4],
        [1, START, LEN, ABORT],
    ];
    for section in sections {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        run.register().unwrap();
        run.enter_section();
        run.put(SECTION, &words(&section));
        assert_eq!(run.go(), Ok(Exit::Signal(11)), "{section:x?}");
    }
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(4096).unwrap();
    assert_eq!(run.call(nr::__NR_rseq, &[at, ALIGN, 0, 1]), Ok(0));
    run.call(nr::__NR_munmap, &[at, 4096]).unwrap();
    assert_eq!(run.go(), Ok(Exit::Signal(11)));
}

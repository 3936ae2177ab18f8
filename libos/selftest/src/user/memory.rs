//! Address spaces: isolation, what the page tables report, and other cores' cached translations.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use libos::{AddressSpace, PAGE_SIZE, Rights, Trap, UserContext};

use super::code;
use super::{CODE, DATA, NOWHERE, Program, data_word, frame};

const READ_WRITE: Rights = Rights::READ.union(Rights::WRITE);

pub(super) async fn run() {
    spaces_are_apart().await;
    use_is_reported().await;
    cleared_marks_come_back().await;
    hostile_addresses_are_errors();
    unmapped_page_is_out_of_reach_at_once().await;
    rights_change_in_place().await;
    tables_are_given_back().await;
    refreshed_code_is_the_same_code().await;
    if libos::cores() > 1 {
        other_cores_lose_an_unmapped_page().await;
        other_cores_lose_a_right().await;
        other_cores_mark_again().await;
    } else {
        log::warn!("one core only: no test of other cores' translations");
    }
}

async fn spaces_are_apart() {
    let mut one = Program::in_frames(code::STORE, 0);
    let mut two = Program::in_frames(code::LOAD, 3);
    one.thread.registers.rdi = DATA;
    one.thread.registers.rax = 0xaaaa;
    two.thread.registers.rdi = DATA;
    two.data.write(0, &0xbbbb_u64.to_le_bytes());
    one.expect_syscall().await;
    two.expect_syscall().await;
    assert_eq!(two.thread.registers.rax, 0xbbbb);
    assert_eq!(data_word(one.data, 0), 0xaaaa);
}

async fn use_is_reported() {
    for (code, dirty) in [(code::LOAD, false), (code::STORE, true)] {
        let mut program = Program::with(code, DATA);
        let before = program.space.query(DATA).expect("mapped");
        assert!(!before.dirty && !before.accessed);
        program.expect_syscall().await;
        let code = program.space.query(CODE).expect("mapped");
        assert!(code.accessed && !code.dirty);
        let mapping = program.space.unmap(DATA).expect("mapped");
        assert_eq!(mapping.frame, program.data.phys());
        assert_eq!(mapping.rights, READ_WRITE);
        assert!(mapping.accessed);
        assert_eq!(mapping.dirty, dirty);
        assert_eq!(program.space.unmap(DATA), None);
    }
}

async fn cleared_marks_come_back() {
    let mut program = Program::with(code::STORE, DATA);
    for _ in 0..3 {
        program.thread.registers.rip = CODE;
        program.expect_syscall().await;
        let was = program.space.clear_accessed(DATA).expect("mapped");
        assert!(was.accessed && was.dirty);
        let was = program.space.clear_dirty(DATA).expect("mapped");
        assert!(!was.accessed && was.dirty);
        let now = program.space.query(DATA).expect("mapped");
        assert!(!now.accessed && !now.dirty);
    }
}

fn hostile_addresses_are_errors() {
    let space = AddressSpace::new().expect("memory");
    for address in [
        1,
        0x1001,
        libos::USER_END,
        1 << 47,
        1 << 63,
        0xffff_8000_0000_0000,
        !0xfff,
        u64::MAX,
    ] {
        assert!(
            space.map(address, frame(0), Rights::READ).is_err(),
            "{address:#x}"
        );
        assert_eq!(space.unmap(address), None);
        assert_eq!(space.protect(address, Rights::READ), None);
        assert_eq!(space.query(address), None);
    }
    space.map(NOWHERE, frame(0), Rights::READ).expect("free");
    assert!(space.map(NOWHERE, frame(1), Rights::READ).is_err());
    assert_eq!(space.query(NOWHERE).expect("mapped").frame, frame(0).phys());
}

async fn unmapped_page_is_out_of_reach_at_once() {
    let mut program = Program::with(code::LOAD, DATA);
    program.expect_syscall().await;
    program.space.unmap(DATA).expect("mapped");
    program.thread.registers.rip = CODE;
    let missing = Trap::PageFault {
        addr: DATA,
        write: false,
        execute: false,
        present: false,
    };
    assert_eq!(program.next().await, missing);
    // Another frame in its place is what the program sees.
    frame(3).write(0, &0xcccc_u64.to_le_bytes());
    program
        .space
        .map(DATA, frame(3), Rights::READ)
        .expect("free");
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rax, 0xcccc);
}

async fn rights_change_in_place() {
    let mut program = Program::with(code::STORE, DATA);
    program.expect_syscall().await;
    let fault = Trap::PageFault {
        addr: DATA,
        write: true,
        execute: false,
        present: true,
    };
    // Mapped again to the same frame, by less and by more; the mark of the first store stays.
    program
        .space
        .map(DATA, program.data, Rights::READ)
        .expect("the same frame");
    program.thread.registers.rip = CODE;
    assert_eq!(program.next().await, fault);
    program
        .space
        .map(DATA, program.data, READ_WRITE)
        .expect("the same frame");
    program.expect_syscall().await;
    program
        .space
        .protect(DATA, Rights::empty())
        .expect("mapped");
    program.thread.registers.rip = CODE;
    assert_eq!(program.next().await, fault);
    let was = program.space.unmap(DATA).expect("mapped");
    assert!(was.dirty && was.rights.is_empty());
    // Without a right not even a load gets there.
    let mut program = Program::with(code::LOAD, DATA);
    program
        .space
        .protect(DATA, Rights::empty())
        .expect("mapped");
    assert_eq!(
        program.next().await,
        Trap::PageFault {
            addr: DATA,
            write: false,
            execute: false,
            present: true
        }
    );
}

async fn tables_are_given_back() {
    // The core keeps the last space that it ran until it runs another.
    let mut last = Program::new(code::SYSCALL);
    last.expect_syscall().await;
    let in_use = libos::frames::tables().in_use;
    for _ in 0..20 {
        let mut program = Program::in_frames(code::SYSCALL, 3);
        for n in 0..8 {
            program
                .space
                .map(NOWHERE + (n << 32), frame(6), Rights::READ)
                .expect("free");
        }
        program.expect_syscall().await;
    }
    last.expect_syscall().await;
    assert_eq!(libos::frames::tables().in_use, in_use);
}

async fn refreshed_code_is_the_same_code() {
    let mut program = Program::new(code::SYSCALL);
    let mut before = [0; PAGE_SIZE];
    program.code.read(0, &mut before);
    program.expect_syscall().await;
    libos::quirks::refresh_code(program.code);
    let mut after = [1; PAGE_SIZE];
    program.code.read(0, &mut after);
    assert!(before == after);
    program.expect_syscall().await;
}

/// Runs `thread` on another core until its first trap of its own, or until `stop`.
fn on_core(
    core: usize,
    mut thread: UserContext,
    space: Arc<AddressSpace>,
    stop: Arc<AtomicBool>,
) -> libos::Task<Option<Trap>> {
    libos::spawn_on(core, async move {
        while !stop.load(Ordering::Acquire) {
            match thread.run(&space) {
                Trap::Preempted => libos::yield_now().await,
                trap => return Some(trap),
            }
        }
        None
    })
}

/// A program that counts in its data page on another core.
pub(super) struct Counter {
    pub(super) space: Arc<AddressSpace>,
    data: libos::PageFrame,
    stop: Arc<AtomicBool>,
    task: libos::Task<Option<Trap>>,
}

impl Counter {
    fn start() -> Self {
        Self::start_on(1, 0)
    }

    /// Starts one in three frames from `first` on.
    pub(super) fn start_on(core: usize, first: usize) -> Self {
        let Program {
            space,
            mut thread,
            data,
            ..
        } = Program::in_frames(code::COUNT, first);
        thread.registers.rdi = DATA;
        let stop = Arc::new(AtomicBool::new(false));
        let task = on_core(core, thread, space.clone(), stop.clone());
        Self {
            space,
            data,
            stop,
            task,
        }
    }

    fn count(&self) -> u64 {
        data_word(self.data, 0)
    }

    /// Waits until it has counted on from what it has now.
    pub(super) async fn moves(&self) {
        let start = self.count();
        let end = libos::now() + hal::Duration::from_secs(10);
        while self.count() == start {
            assert!(libos::now() < end, "the other core does not count");
            libos::yield_now().await;
        }
    }

    /// Its end, by the store that it could not do.
    pub(super) async fn expect_stopped_store(self, present: bool) {
        let stopped = self.count();
        let end = libos::now() + hal::Duration::from_secs(10);
        while !self.task.is_finished() {
            assert!(libos::now() < end, "the other core goes on storing");
            libos::yield_now().await;
        }
        let trap = self.task.await;
        assert_eq!(
            trap,
            Some(Trap::PageFault {
                addr: DATA,
                write: true,
                execute: false,
                present
            })
        );
        assert_eq!(
            data_word(self.data, 0),
            stopped,
            "it stored after the change"
        );
    }
}

async fn other_cores_lose_an_unmapped_page() {
    for _ in 0..20 {
        let counter = Counter::start();
        counter.moves().await;
        assert!(counter.space.unmap(DATA).expect("mapped").dirty);
        counter.expect_stopped_store(false).await;
    }
}

async fn other_cores_lose_a_right() {
    for _ in 0..20 {
        let counter = Counter::start();
        counter.moves().await;
        counter.space.protect(DATA, Rights::READ).expect("mapped");
        assert!(counter.space.query(DATA).expect("mapped").dirty);
        counter.expect_stopped_store(true).await;
    }
}

async fn other_cores_mark_again() {
    let counter = Counter::start();
    for _ in 0..20 {
        counter.moves().await;
        counter.space.clear_dirty(DATA).expect("mapped");
        counter.moves().await;
        assert!(
            counter.space.query(DATA).expect("mapped").dirty,
            "a store after the mark was taken"
        );
    }
    counter.stop.store(true, Ordering::Release);
    assert_eq!(counter.task.await, None);
}

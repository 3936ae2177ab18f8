//! Exceptions: forbidden and faulty instructions of programs.

use libos::{Rights, Trap, USER_END};

use super::code;
use super::{CODE, DATA, NOWHERE, PAGE, Program, frame};

/// Exception numbers (Intel SDM volume 3A, table 6-1).
const DIVIDE_ERROR: u8 = 0;
const DEBUG: u8 = 1;
const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const X87_ERROR: u8 = 16;

/// The direct map of RAM: the kernel's.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

pub(super) async fn run() {
    instructions_end_in_their_exceptions().await;
    program_goes_on_after_a_breakpoint().await;
    touching_nothing_is_a_page_fault().await;
    rights_are_kept().await;
    the_kernel_is_out_of_reach().await;
    fault_is_repeated_until_the_page_is_there().await;
    a_rip_that_is_not_canonical_is_refused().await;
    syscall_at_the_end_of_the_address_space_comes_back().await;
}

// TCG does not raise SIMD floating-point errors (19), and alignment checks (17) are not turned on.
async fn instructions_end_in_their_exceptions() {
    for (code, vector, error) in [
        (code::DIVIDE, DIVIDE_ERROR, 0),
        (code::UNDEFINED, INVALID_OPCODE, 0),
        (code::BREAKPOINT, BREAKPOINT, 0),
        (code::SINGLE_STEP, DEBUG, 0),
        (code::X87_ERROR, X87_ERROR, 0),
        (code::CLI, GENERAL_PROTECTION, 0),
        (code::HLT, GENERAL_PROTECTION, 0),
        (code::PORT_IN, GENERAL_PROTECTION, 0),
        (code::PORT_OUT, GENERAL_PROTECTION, 0),
        (code::LOAD_CR3, GENERAL_PROTECTION, 0),
        (code::READ_MSR, GENERAL_PROTECTION, 0),
        (code::SWAPGS, GENERAL_PROTECTION, 0),
    ] {
        let mut program = Program::new(code);
        let trap = program.next().await;
        assert_eq!(trap, Trap::Exception { vector, error }, "{code:02x?}");
    }
    for code in [code::INT80, code::INT_TIMER] {
        // The error code names the gate; TCG has it wrong, by 16 a gate for 8.
        let trap = Program::new(code).next().await;
        let refused =
            matches!(trap, Trap::Exception { vector: GENERAL_PROTECTION, error } if error != 0);
        assert!(refused, "{trap:?} for {code:02x?}");
    }
    let mut program = Program::with(code::LOAD, NOT_CANONICAL);
    program.expect_exception(GENERAL_PROTECTION, 0).await;
    let mut program = Program::with(code::STACK_FAULT, NOT_CANONICAL);
    // TCG raises a general protection fault.
    let trap = program.next().await;
    let refused = matches!(
        trap,
        Trap::Exception {
            vector: STACK_FAULT | GENERAL_PROTECTION,
            error: 0
        }
    );
    assert!(refused, "{trap:?}");
}

async fn program_goes_on_after_a_breakpoint() {
    let mut program = Program::new(&[0xcc, 0x0f, 0x05]); // int3; syscall
    program.expect_exception(BREAKPOINT, 0).await;
    assert_eq!(program.thread.registers.rip, CODE + 1);
    program.expect_syscall().await;
}

async fn expect_fault(code: &[u8], addr: u64, write: bool, execute: bool, present: bool) {
    let mut program = Program::with(code, addr);
    program
        .space
        .map(NOWHERE + PAGE, frame(3), Rights::READ)
        .expect("a page to read");
    let trap = program.next().await;
    assert_eq!(
        trap,
        Trap::PageFault {
            addr,
            write,
            execute,
            present
        }
    );
    let at = if execute { addr } else { CODE };
    assert_eq!(
        program.thread.registers.rip, at,
        "the access is to be repeated"
    );
}

async fn touching_nothing_is_a_page_fault() {
    for addr in [0, 8, NOWHERE + 0x123, USER_END - 8] {
        expect_fault(code::LOAD, addr, false, false, false).await;
        expect_fault(code::STORE, addr, true, false, false).await;
        expect_fault(code::JUMP, addr, false, true, false).await;
    }
}

async fn rights_are_kept() {
    let read_only = NOWHERE + PAGE + 0x10;
    expect_fault(code::STORE, read_only, true, false, true).await;
    expect_fault(code::STORE, CODE, true, false, true).await;
    expect_fault(code::JUMP, read_only, false, true, true).await;
    expect_fault(code::JUMP, DATA, false, true, true).await;
    let mut program = Program::with(code::LOAD, read_only);
    program
        .space
        .map(NOWHERE + PAGE, frame(3), Rights::READ)
        .expect("a page to read");
    frame(3).write(0x10, &0x1122_3344_5566_7788_u64.to_le_bytes());
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rax, 0x1122_3344_5566_7788);
}

async fn the_kernel_is_out_of_reach() {
    let text = run as *const () as u64;
    for addr in [KERNEL + 0x100_0000, text] {
        expect_fault(code::LOAD, addr, false, false, true).await;
        expect_fault(code::STORE, addr, true, false, true).await;
    }
    // The jump itself succeeds; what ends the program is the address it would go on at.
    let mut program = Program::with(code::JUMP, text);
    let trap = program.next().await;
    assert_eq!(
        trap,
        Trap::PageFault {
            addr: text,
            write: false,
            execute: true,
            present: true
        }
    );
    // There it can't be sent by the kernel either.
    assert!(matches!(
        program.next().await,
        Trap::Exception { .. } | Trap::PageFault { .. }
    ));
}

async fn fault_is_repeated_until_the_page_is_there() {
    let mut program = Program::with(code::STORE, NOWHERE);
    program.thread.registers.rax = 0x55aa;
    let missing = Trap::PageFault {
        addr: NOWHERE,
        write: true,
        execute: false,
        present: false,
    };
    assert_eq!(program.next().await, missing);
    assert_eq!(program.next().await, missing);
    program
        .space
        .map(NOWHERE, frame(3), Rights::READ)
        .expect("read only");
    let forbidden = Trap::PageFault {
        addr: NOWHERE,
        write: true,
        execute: false,
        present: true,
    };
    assert_eq!(program.next().await, forbidden);
    program
        .space
        .protect(NOWHERE, Rights::READ | Rights::WRITE)
        .expect("it is mapped");
    program.expect_syscall().await;
    assert_eq!(super::data_word(frame(3), 0), 0x55aa);
}

async fn a_rip_that_is_not_canonical_is_refused() {
    for rip in [NOT_CANONICAL, 1 << 63, 0xffff_7fff_ffff_ffff] {
        let mut program = Program::new(code::SYSCALL);
        program.thread.registers.rip = rip;
        program.expect_exception(GENERAL_PROTECTION, 0).await;
        // Also where SYSRET would be used.
        let mut program = Program::new(code::SYSCALL);
        program.expect_syscall().await;
        program.thread.registers.rip = rip;
        program.thread.registers.rcx = rip;
        program.expect_exception(GENERAL_PROTECTION, 0).await;
    }
    let mut program = Program::with(code::JUMP, NOT_CANONICAL);
    program.expect_exception(GENERAL_PROTECTION, 0).await;
}

async fn syscall_at_the_end_of_the_address_space_comes_back() {
    let mut program = Program::new(code::SYSCALL);
    program
        .space
        .map(USER_END - PAGE, frame(3), Rights::READ | Rights::EXECUTE)
        .expect("the last page");
    frame(3).write(libos::PAGE_SIZE - 2, &[0x0f, 0x05]);
    libos::quirks::refresh_code(frame(3));
    program.thread.registers.rip = USER_END - 2;
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rip, USER_END);
    assert!(matches!(
        program.next().await,
        Trap::Exception { .. } | Trap::PageFault { .. }
    ));
}

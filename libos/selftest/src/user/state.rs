//! The state of a thread that must survive other threads, and that it may not change.

use alloc::vec;
use alloc::vec::Vec;

use libos::{Registers, Trap, UserContext};

use super::code;
use super::{CODE, DATA, Program, STACK_END};

const CARRY: u64 = 1;
const INTERRUPTS: u64 = 1 << 9;
const DIRECTION: u64 = 1 << 10;
const IO_PRIVILEGE: u64 = 3 << 12;
const NESTED_TASK: u64 = 1 << 14;
const ALIGNMENT_CHECK: u64 = 1 << 18;
const ALWAYS_SET: u64 = 1 << 1;

pub(super) async fn run() {
    a_thread_starts_clear().await;
    registers_survive_system_calls().await;
    all_registers_survive_an_exception().await;
    endless_loop_is_preempted().await;
    flags_are_the_programs_where_they_may_be().await;
    the_kernels_flags_are_refused().await;
    the_direction_flag_stays_outside().await;
    fpu_starts_as_linux_has_it().await;
    fpu_state_is_each_threads_own().await;
    a_copy_takes_the_fpu_state_along().await;
    a_thread_moves_to_another_core_with_its_state().await;
    a_fpu_state_that_the_cpu_refuses_is_refused().await;
    segment_bases_are_each_threads_own().await;
    selectors_do_not_reach_other_threads_bases().await;
}

/// Every general register with a value of its own, but for `rip` and `rsp`.
fn patterns() -> Registers {
    let pattern = |n: u64| 0x0101_0101_0101_0101 * n;
    let mut registers = UserContext::new(CODE, STACK_END).registers;
    let Registers {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        ..
    } = &mut registers;
    let all = [
        rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15,
    ];
    for (register, n) in all.into_iter().zip(0xe1..) {
        *register = pattern(n);
    }
    registers
}

/// The registers that a program sees, in the SDM's order.
fn values(registers: &Registers) -> [u64; 17] {
    let r = registers;
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15, r.rip,
    ]
}

async fn a_thread_starts_clear() {
    // Something else ran before and left its registers full.
    let mut other = Program::new(code::SYSCALL);
    other.thread.registers = patterns();
    other.expect_syscall().await;
    let mut program = Program::new(code::SYSCALL);
    program.expect_syscall().await;
    let mut expected = [0; 17];
    let rip = CODE + 2;
    (expected[1], expected[4], expected[11], expected[16]) =
        (rip, STACK_END, INTERRUPTS | ALWAYS_SET, rip);
    assert_eq!(values(&program.thread.registers), expected);
}

async fn registers_survive_system_calls() {
    let mut program = Program::new(code::SYSCALL);
    program.thread.registers = patterns();
    let mut expected = patterns();
    // The first time by IRET, the second by SYSRET.
    for _ in 0..2 {
        program.expect_syscall().await;
        expected.rip += 2;
        (expected.rcx, expected.r11) = (expected.rip, INTERRUPTS | ALWAYS_SET);
        assert_eq!(values(&program.thread.registers), values(&expected));
        // A result.
        program.thread.registers.rax += 1;
        expected.rax += 1;
    }
    program.expect_exception(6, 0).await;
    assert_eq!(values(&program.thread.registers), values(&expected));
}

async fn all_registers_survive_an_exception() {
    let mut program = Program::new(code::UNDEFINED);
    for _ in 0..2 {
        program.thread.registers = patterns();
        program.expect_exception(6, 0).await;
        assert_eq!(values(&program.thread.registers), values(&patterns()));
    }
    // After a system call too, when the kernel sends the thread elsewhere, as for a signal.
    let mut program = Program::new(code::SYSCALL);
    program.expect_syscall().await;
    program.thread.registers = patterns();
    program.thread.registers.rip = CODE + 4;
    program.expect_exception(6, 0).await;
    assert_eq!(program.thread.registers.rcx, patterns().rcx);
    assert_eq!(program.thread.registers.r11, patterns().r11);
}

async fn endless_loop_is_preempted() {
    let mut program = Program::new(code::LOOP);
    program.thread.registers = patterns();
    for _ in 0..3 {
        assert_eq!(program.thread.run(&program.space), Trap::Preempted);
        assert_eq!(values(&program.thread.registers), values(&patterns()));
        libos::yield_now().await;
    }
}

async fn flags_are_the_programs_where_they_may_be() {
    let own = CARRY | DIRECTION | ALIGNMENT_CHECK | INTERRUPTS | ALWAYS_SET;
    let mut program = Program::with(code::FLAGS, own);
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rflags, own);
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rax, own);
}

async fn the_kernels_flags_are_refused() {
    let mut program = Program::new(code::GET_FLAGS);
    // Privileged, dangerous and reserved bits, and interrupts off.
    program.thread.registers.rflags = !(INTERRUPTS | 1 << 8);
    program.expect_syscall().await;
    let flags = program.thread.registers.rax;
    assert_eq!(flags & (IO_PRIVILEGE | NESTED_TASK), 0, "{flags:#x}");
    assert_eq!(
        flags & (INTERRUPTS | ALWAYS_SET),
        INTERRUPTS | ALWAYS_SET,
        "{flags:#x}"
    );
    // A program that sets the nested-task flag itself.
    let mut program = Program::with(code::FLAGS, NESTED_TASK | IO_PRIVILEGE);
    program.expect_syscall().await;
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rax & IO_PRIVILEGE, 0);
}

async fn the_direction_flag_stays_outside() {
    let mut program = Program::new(code::DIRECTION);
    let from: Vec<u8> = (0..=u8::MAX).cycle().take(3000).collect();
    let mut to = vec![0; from.len()];
    program.expect_exception(6, 0).await;
    assert_ne!(program.thread.registers.rflags & DIRECTION, 0);
    // With the flag set this would copy downwards.
    to.copy_from_slice(core::hint::black_box(&from));
    assert!(from == to);
}

async fn fpu_starts_as_linux_has_it() {
    // Another thread's state is in the registers.
    let mut other = Program::with(code::XMM, u64::MAX);
    other.expect_syscall().await;
    let mut program = Program::new(code::FPU_START);
    program.expect_syscall().await;
    let rbx = program.thread.registers.rbx;
    assert_eq!(rbx & 0xffff_ffff, 0x1f80, "MXCSR");
    assert_eq!(rbx >> 32 & 0xffff, 0x37f, "x87 control word");
    assert_eq!(program.thread.registers.rax, 0, "xmm7");
}

async fn fpu_state_is_each_threads_own() {
    let avx = core::arch::x86_64::__cpuid(1).ecx & 1 << 28 != 0;
    let codes: &[&[u8]] = if avx {
        &[code::XMM, code::YMM]
    } else {
        &[code::XMM]
    };
    for code in codes {
        let mut one = Program::in_frames(code, 0);
        let mut two = Program::in_frames(code, 3);
        (one.thread.registers.rdi, two.thread.registers.rdi) = (0x1111, 0x2222);
        one.expect_syscall().await;
        two.expect_syscall().await;
        for _ in 0..3 {
            one.expect_syscall().await;
            assert_eq!(one.thread.registers.rax, 0x1111);
            two.expect_syscall().await;
            two.expect_syscall().await;
            assert_eq!(two.thread.registers.rax, 0x2222);
        }
    }
}

async fn a_copy_takes_the_fpu_state_along() {
    let mut program = Program::with(code::XMM, 0x3333);
    program.expect_syscall().await;
    let mut copy = program.thread.duplicate();
    let mut other = Program::in_frames(code::XMM, 3);
    other.expect_syscall().await;
    core::mem::swap(&mut program.thread, &mut copy);
    for _ in 0..2 {
        program.expect_syscall().await;
        assert_eq!(program.thread.registers.rax, 0x3333);
        core::mem::swap(&mut program.thread, &mut copy);
    }
    // A dropped thread's state is forgotten, not saved to where it was.
    drop(copy);
    drop(program);
    let mut last = Program::new(code::FPU_START);
    last.expect_syscall().await;
    assert_eq!(last.thread.registers.rax, 0);
}

async fn a_thread_moves_to_another_core_with_its_state() {
    let mut program = Program::with(code::XMM, 0x4444);
    program
        .thread
        .set_fs_base(DATA)
        .expect("a program's address");
    program.expect_syscall().await;
    for core in (0..libos::cores()).rev() {
        program.thread.unload();
        program = libos::spawn_on(core, async move {
            // Something else has been in this core's registers.
            let mut other = Program::in_frames(code::XMM, 3);
            other.expect_syscall().await;
            program.expect_syscall().await;
            assert_eq!(program.thread.registers.rax, 0x4444, "on core {core}");
            program.thread.unload();
            program
        })
        .await;
    }
}

async fn a_fpu_state_that_the_cpu_refuses_is_refused() {
    let mut program = Program::with(code::XMM, 0x5555);
    program.expect_syscall().await;
    let good = program.thread.fpu_state();
    let mut bad = good.clone();
    bad[27] = 0x80; // a reserved bit of MXCSR
    assert!(!program.thread.set_fpu_state(&bad));
    assert!(!program.thread.set_fpu_state(&good[1..]));
    if good.len() > 512 {
        for (at, what) in [
            (519, "a component that no CPU has"),
            (527, "the compacted form"),
            (575, "a reserved byte"),
        ] {
            let mut bad = good.clone();
            bad[at] = 0x80;
            assert!(!program.thread.set_fpu_state(&bad), "{what}");
        }
    }
    program.expect_syscall().await;
    assert_eq!(program.thread.registers.rax, 0x5555);
    // What was given back is taken.
    let mut other = Program::in_frames(code::XMM, 3);
    other.expect_syscall().await;
    assert!(other.thread.set_fpu_state(&good));
    other.expect_syscall().await;
    assert_eq!(other.thread.registers.rax, 0x5555);
}

async fn segment_bases_are_each_threads_own() {
    let mut one = Program::in_frames(code::SEGMENTS, 0);
    let mut two = Program::in_frames(code::SEGMENTS, 3);
    for (program, value) in [(&mut one, 0x10_u64), (&mut two, 0x20)] {
        program.data.write(0x100, &value.to_le_bytes());
        program.data.write(0x208, &(value + 1).to_le_bytes());
        program
            .thread
            .set_fs_base(DATA + 0x100)
            .expect("a program's address");
        program
            .thread
            .set_gs_base(DATA + 0x200)
            .expect("a program's address");
    }
    two.data.write(0x300, &0x77_u64.to_le_bytes());
    for (program, value) in [(&mut one, 0x10), (&mut two, 0x20)] {
        program.expect_syscall().await;
        assert_eq!(program.thread.registers.rax, value);
        assert_eq!(program.thread.registers.rbx, value + 1);
    }
    two.thread
        .set_fs_base(DATA + 0x300)
        .expect("a program's address");
    two.thread.registers.rip = CODE;
    two.expect_syscall().await;
    assert_eq!(two.thread.registers.rax, 0x77);
    assert_eq!(two.thread.fs_base(), DATA + 0x300);
    for hostile in [1 << 47, 1 << 63, u64::MAX] {
        assert!(two.thread.set_fs_base(hostile).is_err());
        assert!(two.thread.set_gs_base(hostile).is_err());
    }
}

async fn selectors_do_not_reach_other_threads_bases() {
    // Loading a null selector clears the base behind the kernel's back.
    let mut one = Program::in_frames(code::SELECTORS, 0);
    let mut two = Program::in_frames(code::SEGMENTS, 3);
    two.data.write(0, &0x88_u64.to_le_bytes());
    two.data.write(8, &0x99_u64.to_le_bytes());
    for program in [&mut one, &mut two] {
        program
            .thread
            .set_fs_base(DATA)
            .expect("a program's address");
        program
            .thread
            .set_gs_base(DATA)
            .expect("a program's address");
        program.expect_syscall().await;
    }
    assert_eq!(two.thread.registers.rax, 0x88);
    assert_eq!(two.thread.registers.rbx, 0x99);
}

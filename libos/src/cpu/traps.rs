//! Traps taken in the kernel: interrupts are served, everything else is a bug and ends the node.
//!
//! The kernel runs with interrupts off; they are let in while a core sleeps, between two tasks, and
//! in user mode. So no handler ever interrupts a holder of a lock.
// UNSAFETY: assembles the entries.
#![expect(unsafe_code, reason = "trap entries")]

use core::mem::offset_of;

use crate::cpu::core_local::CoreLocal;
use crate::cpu::interrupts;
use crate::cpu::segments::{USER_CODE, USER_DATA};
use crate::cpu::user::{Registers, SYSCALL_VECTOR};
use crate::panic;

core::arch::global_asm!(include_str!("stubs.s"), options(att_syntax));
core::arch::global_asm!(
    include_str!("trap.s"),
    kernel_trap = sym kernel_trap,
    pc_kernel_rsp = const offset_of!(CoreLocal, kernel_rsp),
    pc_context = const offset_of!(CoreLocal, context),
    pc_scratch = const offset_of!(CoreLocal, scratch),
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    syscall_vector = const SYSCALL_VECTOR,
    r_rax = const offset_of!(Registers, rax),
    r_rcx = const offset_of!(Registers, rcx),
    r_rdx = const offset_of!(Registers, rdx),
    r_rbx = const offset_of!(Registers, rbx),
    r_rbp = const offset_of!(Registers, rbp),
    r_rsi = const offset_of!(Registers, rsi),
    r_rdi = const offset_of!(Registers, rdi),
    r_r8 = const offset_of!(Registers, r8),
    r_r9 = const offset_of!(Registers, r9),
    r_r10 = const offset_of!(Registers, r10),
    r_r11 = const offset_of!(Registers, r11),
    r_r12 = const offset_of!(Registers, r12),
    r_r13 = const offset_of!(Registers, r13),
    r_r14 = const offset_of!(Registers, r14),
    r_r15 = const offset_of!(Registers, r15),
    r_rip = const offset_of!(Registers, rip),
    r_rsp = const offset_of!(Registers, rsp),
    r_rflags = const offset_of!(Registers, rflags),
    r_vector = const offset_of!(Registers, vector),
    r_error = const offset_of!(Registers, error),
);

unsafe extern "C" {
    /// Runs the program whose registers these are until its next trap, which it leaves in `vector`
    /// and `error`.
    pub(crate) fn enter_user(registers: *mut Registers, by_sysret: u32);
    pub(crate) fn syscall_entry();
}

/// The first vector that is no exception.
pub(crate) const FIRST_INTERRUPT: u64 = 32;

/// A trap taken in the kernel, as `trap.s` and the CPU push it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct TrapFrame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

extern "C" fn kernel_trap(frame: &TrapFrame) {
    if frame.vector >= FIRST_INTERRUPT {
        interrupts::serve(frame.vector);
    } else {
        panic::exception(frame);
    }
}

//! A program's thread on this machine.

use alloc::vec::Vec;

use libos::UserContext;
use pcache::Access;
use processor::{Cpu, Registers, SystemCall, Trap};

use super::hardware::Tables;

/// A thread's registers.
pub(crate) struct Context(UserContext);

impl Cpu<Tables> for Context {
    fn new(ip: u64, sp: u64) -> Self {
        Self(UserContext::new(ip, sp))
    }

    fn duplicate(&mut self) -> Self {
        Self(self.0.duplicate())
    }

    fn leave_core(&mut self) {
        self.0.unload();
    }

    fn run(&mut self, tables: &Tables) -> Trap {
        match self.0.run(tables.space()) {
            libos::Trap::Syscall => Trap::Syscall,
            libos::Trap::PageFault {
                addr,
                write,
                execute,
                ..
            } => {
                let access = match (execute, write) {
                    (true, _) => Access::Execute,
                    (false, true) => Access::Write,
                    (false, false) => Access::Read,
                };
                Trap::PageFault { addr, access }
            }
            libos::Trap::Exception { vector, error } => Trap::Exception { vector, error },
            libos::Trap::Preempted => Trap::Preempted,
        }
    }

    fn system_call(&self) -> SystemCall {
        let r = &self.0.registers;
        SystemCall {
            number: r.rax,
            args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
        }
    }

    fn set_result(&mut self, result: u64) {
        self.0.registers.rax = result;
    }

    fn ip(&self) -> u64 {
        self.0.registers.rip
    }

    fn set_sp(&mut self, sp: u64) {
        self.0.registers.rsp = sp;
    }

    fn registers(&self) -> Registers {
        let r = &self.0.registers;
        [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx,
            r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.rflags,
        ]
    }

    fn set_registers(&mut self, registers: &Registers) {
        let r = &mut self.0.registers;
        [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx,
            r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.rflags,
        ] = *registers;
    }

    fn vectors(&mut self) -> Vec<u8> {
        self.0.fpu_state()
    }

    fn set_vectors(&mut self, state: &[u8]) -> bool {
        self.0.set_fpu_state(state)
    }

    fn fs_base(&self) -> u64 {
        self.0.fs_base()
    }

    fn set_fs_base(&mut self, base: u64) -> bool {
        self.0.set_fs_base(base).is_ok()
    }

    fn gs_base(&self) -> u64 {
        self.0.gs_base()
    }

    fn set_gs_base(&mut self, base: u64) -> bool {
        self.0.set_gs_base(base).is_ok()
    }
}

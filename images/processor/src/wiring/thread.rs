//! A program's thread on this machine.

use alloc::sync::Arc;

use libos::{AddressSpace, UserContext};
use pcache::Access;
use processor::{Cpu, SystemCall, Trap};

/// A thread and the page tables it runs in.
pub(crate) struct Thread {
    context: UserContext,
    space: Option<Arc<AddressSpace>>,
}

impl Thread {
    /// A thread without a program.
    pub(crate) fn new() -> Self {
        Self {
            context: UserContext::new(0, 0),
            space: None,
        }
    }

    /// Sets the page tables that it runs in.
    pub(crate) fn enter(&mut self, space: Arc<AddressSpace>) {
        self.space = Some(space);
    }

    /// Lets go of the page tables, of a thread that runs no more.
    pub(crate) fn leave(&mut self) {
        self.space = None;
    }
}

impl Cpu for Thread {
    async fn run(&mut self) -> Trap {
        let space = self.space.as_ref().expect("a thread runs in an address space");
        match self.context.run(space) {
            libos::Trap::Syscall => Trap::Syscall,
            libos::Trap::PageFault {
                addr, write, execute, ..
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

    fn start(&mut self, ip: u64, sp: u64) {
        self.context = UserContext::new(ip, sp);
    }

    fn system_call(&self) -> SystemCall {
        let r = &self.context.registers;
        SystemCall {
            number: r.rax,
            args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
        }
    }

    fn set_result(&mut self, result: u64) {
        self.context.registers.rax = result;
    }

    fn ip(&self) -> u64 {
        self.context.registers.rip
    }

    fn fs_base(&self) -> u64 {
        self.context.fs_base()
    }

    fn set_fs_base(&mut self, base: u64) -> bool {
        self.context.set_fs_base(base).is_ok()
    }

    fn gs_base(&self) -> u64 {
        self.context.gs_base()
    }

    fn set_gs_base(&mut self, base: u64) -> bool {
        self.context.set_gs_base(base).is_ok()
    }
}

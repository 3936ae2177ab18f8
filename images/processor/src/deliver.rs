//! Signals on their way to a program: faults that raise them, handlers that run, and the way back.
//!
//! The frame on the program's stack is Linux's `struct rt_sigframe`
//! (`arch/x86/include/asm/sigframe.h`):
//!
//! ```text
//!   0  the restorer's address, to which the handler returns
//!   8  ucontext: flags, link, stack_t (24), sigcontext (256), mask (8)
//! 312  siginfo (128)
//! 440  up to the vector state: padding to 64 bytes
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

use pcache::Access;

use crate::error::{Error, Exit, Result, errno};
use crate::mm::fault::Refused;
use crate::platform::{Cpu, REGISTERS, SystemCall};
use crate::process::Node;
use crate::signals::{
    Action, BUS_ADRERR, Effect, SA_NODEFER, SA_ONSTACK, SA_RESTART, SA_RESTORER, SEGV_ACCERR,
    SEGV_MAPERR, SI_KERNEL, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SignalInfo, bit, blockable,
};
use crate::thread::Thread;

/// The places of registers in [`REGISTERS`] words, in the order of `struct sigcontext_64`.
pub(crate) const RDI: usize = 8;
pub(crate) const RSI: usize = 9;
const RDX: usize = 12;
pub(crate) const RAX: usize = 13;
pub(crate) const RSP: usize = 15;
pub(crate) const RIP: usize = 16;
const RFLAGS: usize = 17;

const CONTEXT: u64 = 8;
const STACK: u64 = CONTEXT + 16;
const MACHINE: u64 = STACK + 24;
/// Bytes of the registers in `struct sigcontext_64`; segment selectors follow.
const REGISTERS_LEN: u64 = REGISTERS as u64 * 8;
const FPSTATE: u64 = MACHINE + 184;
const MASK: u64 = MACHINE + 256;
const INFO: u64 = MASK + 8;
const FRAME: usize = 440;

/// Bytes below the stack pointer that a leaf function may use (System V ABI, section 3.2.2).
const RED_ZONE: u64 = 128;
/// `ucontext.uc_flags`: `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`.
const FLAGS: u64 = 1 | 2 | 4;
/// Selectors of user code and data on Linux.
const SELECTORS: u64 = 0x33 | 0x2b << 48;
/// The software's bytes in an FXSAVE area, and what they hold (`struct _fpx_sw_bytes`).
const SOFTWARE: usize = 464;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
/// Flags that a handler starts without: direction, trap, resume.
const CLEARED_FLAGS: u64 = 0x400 | 0x100 | 0x1_0000;
const SS_ONSTACK: u64 = 1;
const SS_DISABLE: u64 = 2;
const SS_AUTODISARM: u64 = 1 << 31;
/// SYSCALL is two bytes long.
const SYSCALL_LEN: u64 = 2;

/// Returns the signal and code that Linux sends for an exception (Intel SDM volume 3A, table 6-1;
/// Linux `arch/x86/kernel/traps.c`).
fn signal_of(vector: u8) -> (u8, i32) {
    match vector {
        // FPE_INTDIV; the x87 and SSE causes are not told apart.
        0 => (SIGFPE, 1),
        16 | 19 => (SIGFPE, 3),
        // TRAP_TRACE; int3 is the kernel's word.
        1 => (SIGTRAP, 2),
        3 => (SIGTRAP, SI_KERNEL),
        // ILL_ILLOPN.
        6 => (SIGILL, 2),
        11 | 12 => (SIGBUS, SI_KERNEL),
        // BUS_ADRALN.
        17 => (SIGBUS, 1),
        _ => (SIGSEGV, SI_KERNEL),
    }
}

/// The frame's parts that are not on the stack yet.
struct Frame {
    at: u64,
    bytes: Vec<u8>,
    vectors_at: u64,
    vectors: Vec<u8>,
}

impl<N: Node> Thread<N> {
    /// Raises the signal of an exception.
    pub(crate) fn exception(&mut self, vector: u8, error: u64) -> Result<()> {
        let (signal, code) = signal_of(vector);
        let addr = if signal == SIGSEGV { 0 } else { self.cpu.ip() };
        self.raise(SignalInfo::fault(signal, code, addr), || {
            log::warn!("exception {vector} with error {error:#x}");
        })
    }

    /// Brings and maps the page that the program needs, or raises a signal.
    pub(crate) async fn fault(&mut self, addr: u64, access: Access, first: bool) -> Result<()> {
        let Err(mut refused) = self.memory.fault_later(addr, access, false, first).await? else {
            return Ok(());
        };
        if self.memory.is_changing() {
            // Another thread may be replacing the mapping: its place is empty for a moment.
            drop(self.memory.change().await);
            match self.memory.fault(addr, access, false).await? {
                Ok(()) => return Ok(()),
                Err(again) => refused = again,
            }
        }
        if access == Access::Execute && self.vsyscall(addr).await? {
            return Ok(());
        }
        let (name, signal, code) = match refused {
            Refused::BeyondEnd => ("bus error", SIGBUS, BUS_ADRERR),
            Refused::Unmapped => ("segmentation fault", SIGSEGV, SEGV_MAPERR),
            Refused::Forbidden => ("segmentation fault", SIGSEGV, SEGV_ACCERR),
        };
        let what = match access {
            Access::Execute => "execute",
            Access::Write => "write",
            Access::Read => "read",
        };
        self.raise(SignalInfo::fault(signal, code, addr), || {
            log::warn!("{name}: cannot {what} {addr:#x}");
        })
    }

    /// Sends the thread a signal that it can't put off: blocked or ignored, it ends the program.
    fn raise(&mut self, info: SignalInfo, tell: impl FnOnce()) -> Result<()> {
        let handled = !self.shared.masks(info.signal) && {
            let actions = self.actions.lock();
            actions.handles(info.signal)
        };
        if !handled {
            if self.pid == crate::kernel::FIRST {
                self.node.kernel().note_fatal(info.fields[0], self.cpu.ip());
            }
            tell();
            log::warn!(
                "process {} ends by signal {} at ip {:#x}",
                self.pid,
                info.signal,
                self.cpu.ip()
            );
            return Err(Error::Ended(Exit::Signal(info.signal)));
        }
        self.shared.pending.lock().add(info);
        self.shared.attend();
        Ok(())
    }

    /// Takes the signals that are due, before the program goes on.
    pub(crate) async fn take_signals(&mut self) -> Result<()> {
        self.shared.attended();
        // Before a handler's frame keeps the place to which the program returns.
        self.restart_sequence().await?;
        self.thaw().await;
        if self.process.must_end(self.tid()) {
            let exit = self.process.ends().unwrap_or(Exit::Code(0));
            return Err(Error::ThreadEnded(exit));
        }
        while let Some(info) = self.take_signal(!self.shared.mask()) {
            self.trace_signal(&info).await;
            let effect = self.actions.lock().effect(info.signal);
            match effect {
                Effect::Ignore => {}
                Effect::Stop => {
                    self.process.stop(info.signal);
                    self.thaw().await;
                }
                Effect::End => return Err(Error::Ended(Exit::Signal(info.signal))),
                Effect::Handle(action) => {
                    self.handle(&info, &action).await?;
                    // More may be due, and interrupt the handler at once.
                    self.shared.attend();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes the first signal of a set that waits for this thread or its process.
    pub(crate) fn take_signal(&self, set: u64) -> Option<SignalInfo> {
        let own = self.shared.pending.lock().take(set);
        let taken = own.or_else(|| self.process.pending.lock().take(set));
        taken.inspect(|info| self.process.note_overrun(info))
    }

    /// Makes the program run a handler next.
    async fn handle(&mut self, info: &SignalInfo, action: &Action) -> Result<()> {
        let mask = self.saved_mask.take().unwrap_or(self.shared.mask());
        let frame = self.frame(info, action, mask);
        let put = match self.memory.write(frame.vectors_at, &frame.vectors).await {
            Ok(()) => self.memory.write(frame.at, &frame.bytes).await,
            failed => failed,
        };
        match put {
            Ok(()) => {}
            Err(Error::Errno(_)) => {
                log::warn!("no stack at {:#x} for a signal's handler", frame.at);
                return Err(Error::Ended(Exit::Signal(SIGSEGV)));
            }
            Err(error) => return Err(error),
        }
        let own = if action.flags & SA_NODEFER == 0 {
            bit(info.signal)
        } else {
            0
        };
        self.shared.set_mask(self.shared.mask() | action.mask | own);
        if self.alternate[1] & SS_AUTODISARM != 0 {
            self.alternate = [0, SS_DISABLE, 0];
        }
        let mut registers = self.cpu.registers();
        registers[RDI] = info.signal.into();
        registers[RSI] = frame.at + INFO;
        registers[RDX] = frame.at + CONTEXT;
        registers[RAX] = 0;
        registers[RSP] = frame.at;
        registers[RIP] = action.handler;
        registers[RFLAGS] &= !CLEARED_FLAGS;
        self.cpu.set_registers(&registers);
        Ok(())
    }

    /// Builds the frame of a handler, for its place on the stack.
    fn frame(&mut self, info: &SignalInfo, action: &Action, mask: u64) -> Frame {
        let registers = self.cpu.registers();
        let mut vectors = self.cpu.vectors();
        mark_vectors(&mut vectors);
        let [base, flags, size] = self.alternate;
        let sp = registers[RSP];
        let on_alternate = on_stack(self.alternate, sp);
        let top = if action.flags & SA_ONSTACK != 0 && flags & SS_DISABLE == 0 && !on_alternate {
            base.wrapping_add(size)
        } else {
            sp.wrapping_sub(RED_ZONE)
        };
        let vectors_at = top.wrapping_sub(vectors.len() as u64) / 64 * 64;
        // As after a call: the stack is aligned to 16 bytes before the return address.
        let at = (vectors_at.wrapping_sub(FRAME as u64) / 16 * 16).wrapping_sub(8);

        let mut bytes = alloc::vec![0; FRAME];
        let mut put = |place: u64, words: &[u64]| {
            let place = usize::try_from(place).expect("within a frame");
            for (place, word) in bytes[place..].chunks_exact_mut(8).zip(words) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        };
        put(
            0,
            &[if action.flags & SA_RESTORER != 0 {
                action.restorer
            } else {
                0
            }],
        );
        put(CONTEXT, &[FLAGS, 0]);
        put(
            STACK,
            &[
                base,
                flags | if on_alternate { SS_ONSTACK } else { 0 },
                size,
            ],
        );
        put(MACHINE, &registers);
        put(MACHINE + REGISTERS_LEN, &[SELECTORS]);
        put(FPSTATE, &[vectors_at]);
        put(MASK, &[mask]);
        bytes[usize::try_from(INFO).expect("small")..].copy_from_slice(&info.encode());
        Frame {
            at,
            bytes,
            vectors_at,
            vectors,
        }
    }

    /// Goes back to what a handler interrupted (`rt_sigreturn`).
    pub(crate) async fn sys_sigreturn(&mut self) -> Result<()> {
        let bad = Error::Ended(Exit::Signal(SIGSEGV));
        // The handler's return took the restorer's address off the stack.
        let at = self.cpu.registers()[RSP].wrapping_sub(8);
        let mut bytes = alloc::vec![0; FRAME];
        match self.memory.read(at, &mut bytes).await {
            Err(Error::Errno(_)) => return Err(bad),
            read => read?,
        }
        let word = |place: u64| {
            let place = usize::try_from(place).expect("within a frame");
            u64::from_le_bytes(bytes[place..place + 8].try_into().expect("eight bytes"))
        };
        let mut registers = [0; REGISTERS];
        for (index, register) in registers.iter_mut().enumerate() {
            *register = word(MACHINE + index as u64 * 8);
        }
        let vectors_at = word(FPSTATE);
        if vectors_at != 0 {
            let mut vectors = alloc::vec![0; self.cpu.vectors().len()];
            match self.memory.read(vectors_at, &mut vectors).await {
                Err(Error::Errno(_)) => return Err(bad),
                read => read?,
            }
            if !self.cpu.set_vectors(&vectors) {
                return Err(bad);
            }
        }
        self.alternate = [
            word(STACK),
            word(STACK + 8) & (SS_DISABLE | SS_AUTODISARM),
            word(STACK + 16),
        ];
        self.shared.set_mask(word(MASK));
        self.cpu.set_registers(&registers);
        Ok(())
    }

    /// Serves the system call that the thread made.
    pub(crate) async fn serve(&mut self) -> Result<()> {
        let call = self.cpu.system_call();
        // A trace's state would make each call's future larger: 120 instructions a call.
        let outcome = if self.traces() {
            Box::pin(self.traced_call(call)).await
        } else {
            self.system_call(call).await
        };
        let kernel = self.node.kernel();
        if kernel.closing.any() {
            kernel.close_files(self.node).await?;
        }
        kernel.send_terminals_signals();
        let result = match outcome {
            Ok(Outcome::Value(value)) => value,
            Ok(Outcome::Registers) => return Ok(()),
            Err(Error::Errno(
                how @ (errno::ERESTARTSYS | errno::ERESTARTNOINTR | errno::ERESTARTNOHAND),
            )) => return self.interrupted(call, how).await,
            Err(Error::Errno(errno)) => i64::from(-errno.0).cast_unsigned(),
            Err(other) => return Err(other),
        };
        self.cpu.set_result(result);
        Ok(())
    }

    /// Ends a call that a signal interrupted: it gives EINTR, or is made again after the signal.
    async fn interrupted(&mut self, call: SystemCall, how: messages::Errno) -> Result<()> {
        let mask = self.saved_mask;
        // The first signal that is due decides; it is looked at, not taken.
        let handled = self.first_handler();
        let restarts = match handled {
            Some(flags) if how == errno::ERESTARTSYS => flags & SA_RESTART != 0,
            Some(_) => how == errno::ERESTARTNOINTR,
            None => true,
        };
        if restarts && mask.is_none() {
            let mut registers = self.cpu.registers();
            registers[RAX] = call.number;
            registers[RIP] = registers[RIP].wrapping_sub(SYSCALL_LEN);
            self.cpu.set_registers(&registers);
        } else {
            self.cpu
                .set_result(i64::from(-errno::EINTR.0).cast_unsigned());
        }
        self.take_signals().await?;
        if let Some(mask) = self.saved_mask.take() {
            self.shared.set_mask(mask);
        }
        Ok(())
    }

    /// Returns the flags of the handler that runs next, if one does.
    fn first_handler(&self) -> Option<u64> {
        let due = self.due();
        let actions = self.actions.lock();
        (1..=64)
            .filter(|&signal| due & bit(signal) != 0)
            .find_map(|signal| actions.handler_flags(signal))
    }

    /// Waits with another mask until a handler has run (`rt_sigsuspend` and what is like it).
    pub(crate) fn mask_for_wait(&mut self, mask: u64) {
        self.saved_mask = Some(self.shared.mask());
        self.shared.set_mask(blockable(mask));
    }
}

/// The result of a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The program gets a value.
    Value(u64),
    /// The registers are as they are to be: another program's, or those of before a handler.
    Registers,
}

/// Returns whether a stack pointer lies in an alternate stack.
pub(crate) fn on_stack([base, flags, size]: [u64; 3], sp: u64) -> bool {
    flags & (SS_DISABLE | SS_AUTODISARM) == 0 && sp > base && sp - base <= size
}

/// Writes what tells programs how much vector state follows.
fn mark_vectors(vectors: &mut Vec<u8>) {
    let len = vectors.len();
    if len <= 512 {
        return;
    }
    let len = u32::try_from(len).expect("a few kilobytes");
    // The state components that there is room for: x87, SSE, AVX, and those behind.
    let features: u64 = if len <= 576 { 3 } else { 7 };
    let software = &mut vectors[SOFTWARE..SOFTWARE + 20];
    software[0..4].copy_from_slice(&MAGIC_1.to_le_bytes());
    software[4..8].copy_from_slice(&(len + 4).to_le_bytes());
    software[8..16].copy_from_slice(&features.to_le_bytes());
    software[16..20].copy_from_slice(&len.to_le_bytes());
    vectors.extend_from_slice(&MAGIC_2.to_le_bytes());
}

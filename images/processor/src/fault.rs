//! Page faults and exceptions of a program.

use pcache::Access;

use crate::error::{Error, Exit, Result};
use crate::mm::fault::{Now, Refused};
use crate::platform::{Cpu, Platform, Trap};
use crate::process::{Node, Process};

const SIGILL: u8 = 4;
const SIGTRAP: u8 = 5;
const SIGBUS: u8 = 7;
const SIGFPE: u8 = 8;
const SIGSEGV: u8 = 11;

/// The signal that Linux sends for an exception (Intel SDM volume 3A, table 6-1; Linux `arch/x86/kernel/traps.c`).
fn signal_of(vector: u8) -> u8 {
    match vector {
        0 | 16 | 19 => SIGFPE,
        1 | 3 => SIGTRAP,
        6 => SIGILL,
        11 | 12 | 17 => SIGBUS,
        _ => SIGSEGV,
    }
}

impl<N: Node> Process<'_, N> {
    /// Runs the program to its end.
    ///
    /// # Errors
    ///
    /// What the node cannot go on from: a page that cannot be had, a peer lost.
    pub async fn run(&mut self, cpu: &mut impl Cpu) -> Result<Exit> {
        self.started = self.now();
        loop {
            let outcome = match cpu.run().await {
                Trap::Syscall if self.serve_now(cpu) => continue,
                Trap::Syscall => self.serve(cpu).await,
                Trap::PageFault { addr, access } => match self.memory.fault_now(addr, access) {
                    Ok(Now::Done) => continue,
                    Ok(Now::Later { first }) => self.fault(cpu.ip(), (addr, access), first).await,
                    Err(error) => Err(error),
                },
                Trap::Exception { vector, error } => {
                    log::warn!("exception {vector} with error {error:#x} at ip {:#x}", cpu.ip());
                    Err(Error::Ended(Exit::Signal(signal_of(vector))))
                }
                Trap::Preempted => {
                    self.node.platform().yield_now().await;
                    Ok(())
                }
            };
            match outcome {
                Ok(()) => {}
                Err(Error::Ended(exit)) => return Ok(exit),
                Err(error) => return Err(error),
            }
        }
    }

    /// Brings and maps the page that the program needs, or ends it.
    async fn fault(&mut self, ip: u64, (addr, access): (u64, Access), first: bool) -> Result<()> {
        let outcome = self.memory.fault_later(addr, access, false, first).await?;
        let Err(refused) = outcome else {
            return Ok(());
        };
        let what = match access {
            Access::Execute => "execute",
            Access::Write => "write",
            Access::Read => "read",
        };
        let (name, signal) = match refused {
            Refused::BeyondEnd => ("bus error", SIGBUS),
            Refused::Unmapped | Refused::Forbidden => ("segmentation fault", SIGSEGV),
        };
        log::warn!("{name}: cannot {what} {addr:#x} at ip {ip:#x}");
        Err(Error::Ended(Exit::Signal(signal)))
    }

    /// Serves the system call that the thread made, if it has its answer at once.
    fn serve_now(&self, cpu: &mut impl Cpu) -> bool {
        let value = self.call_now(cpu.system_call().number).filter(|_| !self.strace);
        value.inspect(|&value| cpu.set_result(value)).is_some()
    }

    /// Serves the system call that the thread made.
    async fn serve(&mut self, cpu: &mut impl Cpu) -> Result<()> {
        let call = cpu.system_call();
        let outcome = self.system_call(cpu, call).await;
        if self.strace {
            let name = crate::system_call_name(call.number).unwrap_or("?");
            let [a, b, c, d, ..] = call.args;
            log::info!("strace {name}({a:#x}, {b:#x}, {c:#x}, {d:#x}) = {outcome:x?}");
        }
        let result = match outcome {
            Ok(value) => value,
            Err(Error::Errno(errno)) => i64::from(-errno.0).cast_unsigned(),
            Err(other) => return Err(other),
        };
        cpu.set_result(result);
        Ok(())
    }
}

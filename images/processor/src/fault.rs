//! Page faults and exceptions of a program.

use messages::memory::Prot;

use crate::error::{Error, Exit, Result};
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

/// Whether `prot` allows the access; on x86-64 what may be written or executed may be read.
fn allowed(prot: Prot, write: bool, execute: bool) -> bool {
    if execute {
        prot.contains(Prot::EXEC)
    } else if write {
        prot.contains(Prot::WRITE)
    } else {
        !prot.is_empty()
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
                Trap::Syscall => self.serve(cpu).await,
                Trap::PageFault { addr, write, execute } => self.fault(cpu.ip(), addr, write, execute).await,
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
    async fn fault(&mut self, ip: u64, addr: u64, write: bool, execute: bool) -> Result<()> {
        let Some(prot) = self
            .layout
            .rights(addr)
            .filter(|&prot| allowed(prot, write, execute))
        else {
            let what = if execute {
                "execute"
            } else if write {
                "write"
            } else {
                "read"
            };
            log::warn!("segmentation fault: cannot {what} {addr:#x} at ip {ip:#x}");
            return Err(Error::Ended(Exit::Signal(SIGSEGV)));
        };
        self.page(addr).await?.map(prot)?;
        Ok(())
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

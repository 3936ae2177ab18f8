//! The vsyscall page: three calls at fixed addresses, for programs older than the vDSO.
//!
//! Nothing is mapped there. A jump to one of the three is a page fault, and the kernel makes the
//! call and returns to the caller (Linux `arch/x86/entry/vsyscall/vsyscall_64.c`, its way
//! `vsyscall=xonly`).

use linux_raw_sys::general as nr;

use crate::deliver::{Outcome, RAX, RDI, RIP, RSI, RSP};
use crate::error::{Error, Result, errno};
use crate::platform::{Cpu, SystemCall};
use crate::process::Node;
use crate::thread::Thread;

/// The address of the page.
const PAGE: u64 = 0xffff_ffff_ff60_0000;

impl<N: Node> Thread<N> {
    /// Makes the call whose entry the program jumped to; false if `addr` is none, or if the call's
    /// pointers are bad: both are SIGSEGV.
    pub(crate) async fn vsyscall(&mut self, addr: u64) -> Result<bool> {
        let number = match addr.wrapping_sub(PAGE) {
            0 => nr::__NR_gettimeofday,
            0x400 => nr::__NR_time,
            0x800 => nr::__NR_getcpu,
            _ => return Ok(false),
        };
        let mut registers = self.cpu.registers();
        let caller = match self.memory.read_u64(registers[RSP]).await {
            Err(Error::Errno(_)) => return Ok(false),
            read => read?,
        };
        let call = SystemCall {
            number: number.into(),
            args: [registers[RDI], registers[RSI], 0, 0, 0, 0],
        };
        registers[RAX] = match self.system_call(call).await {
            Ok(Outcome::Value(value)) => value,
            Ok(Outcome::Registers) | Err(Error::Errno(errno::EFAULT)) => return Ok(false),
            Err(Error::Errno(errno)) => i64::from(-errno.0).cast_unsigned(),
            Err(error) => return Err(error),
        };
        registers[RIP] = caller;
        registers[RSP] = registers[RSP].wrapping_add(8);
        self.cpu.set_registers(&registers);
        Ok(true)
    }
}

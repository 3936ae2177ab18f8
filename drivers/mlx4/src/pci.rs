//! Taking the card over and giving it up: memory space, bus mastering, ownership, reset.
//!
//! Source: Linux `reset.c`, `main.c` (`mlx4_get_ownership`), and [`mlx4_hw::regs`].

use hal::{ConfigSpace, Duration, Platform, Registers};
use mlx4_hw::regs;

use crate::Error;
use crate::error::{Awaited, Step};

/// Config space offset of vendor and device.
const ID: u16 = 0x00;
/// Config space offset of command and status.
const COMMAND: u16 = 0x04;
/// Command: memory space, no INTx.
const COMMAND_ENABLE: u32 = 1 << 1 | 1 << 10;
/// Command: the card may reach memory.
const COMMAND_MASTER: u32 = 1 << 2;
/// The status half of the dword is cleared by ones: it is written as zero.
const COMMAND_MASK: u32 = 0xffff;
/// Dwords of the header.
const HEADER_DWORDS: u16 = 16;
const CAPABILITIES: u16 = 0x34;
const CAPABILITY_PCIE: u8 = 0x10;
/// Device control and link control within the PCI Express capability.
const PCIE_CONTROLS: [u16; 2] = [0x08, 0x10];

/// The card takes this long until its config space answers again (Linux `reset.c`).
const RESET_SETTLE: Duration = Duration::from_millis(1000);
const RESET_DEADLINE: Duration = Duration::from_secs(2);
const SEMAPHORE_DEADLINE: Duration = Duration::from_secs(10);

/// The part of configuration space that a reset loses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saved {
    id: u32,
    header: [u32; HEADER_DWORDS as usize],
    /// Offsets and values of the PCI Express controls.
    controls: Option<[(u16, u32); 2]>,
}

impl Saved {
    /// Reads it, before the reset.
    pub(crate) fn of<C: ConfigSpace>(config: &C) -> Self {
        let mut header = [0; HEADER_DWORDS as usize];
        for (dword, value) in (0..HEADER_DWORDS).zip(header.iter_mut()) {
            *value = config.read_u32(dword * 4);
        }
        let pcie = find_capability(config, CAPABILITY_PCIE);
        Self {
            id: header[0],
            header,
            controls: pcie
                .map(|at| PCIE_CONTROLS.map(|offset| (at + offset, config.read_u32(at + offset)))),
        }
    }

    /// Writes it back, and enables bus mastering: after the reset the card has no addresses of
    /// memory. The command register comes last, as in Linux `mlx4/reset.c`.
    fn restore<C: ConfigSpace>(&self, config: &C) {
        for (offset, value) in self.controls.into_iter().flatten() {
            // The upper half is status, cleared by ones.
            config.write_u32(offset, value & COMMAND_MASK);
        }
        for (dword, value) in (0..HEADER_DWORDS).zip(self.header) {
            if dword * 4 != COMMAND {
                config.write_u32(dword * 4, value);
            }
        }
        let command = self.header[usize::from(COMMAND / 4)] & COMMAND_MASK;
        // Addresses before the command that enables them, or the card would answer at those of
        // after the reset.
        config.write_u32(COMMAND, command | COMMAND_MASTER);
    }
}

/// Turns the function's memory space on. Nothing else is changed, for the card may be another
/// driver's.
pub(crate) fn enable<P: Platform>(platform: &P) -> Result<(), Error> {
    let config = platform.config();
    if config.read_u32(ID) == regs::GONE {
        return Err(Error::Gone {
            during: Step::PciId,
        });
    }
    let command = config.read_u32(COMMAND) & COMMAND_MASK;
    config.write_u32(COMMAND, command | COMMAND_ENABLE);
    Ok(())
}

/// Takes ownership of the card: the register reads as 0 for its first reader, which then owns it
/// (Linux `mlx4/main.c`, `mlx4_get_ownership`).
pub(crate) fn claim<R: Registers>(registers: &R) -> Result<(), Error> {
    match registers.read_u32(regs::OWNERSHIP) {
        0 => Ok(()),
        regs::GONE => Err(Error::Gone {
            during: Step::Ownership,
        }),
        other => Err(Error::Owned(regs::swap(other))),
    }
}

/// Gives the card up.
pub(crate) fn release<R: Registers>(registers: &R) {
    registers.write_u32(regs::OWNERSHIP, 0);
}

/// Disables bus mastering: when this returns the card reaches no memory. Configuration space stays
/// intact, so that the next driver can reset the card. A reset here would take a second and leave
/// the card without addresses.
pub(crate) fn disable_bus_mastering<P: Platform>(platform: &P) {
    let config = platform.config();
    let command = config.read_u32(COMMAND) & COMMAND_MASK;
    config.write_u32(COMMAND, command & !COMMAND_MASTER);
    // Writes are posted; the read completes only behind the write.
    let _ = config.read_u32(ID);
}

/// Resets the card, waits until it answers, and restores its configuration space.
///
/// The semaphore locks out updates of the flash. The card must not be accessed for one second, then
/// answers configuration reads within two more, and has lost its header and PCI Express controls
/// (Linux `mlx4/reset.c`, `mlx4_reset`).
pub(crate) async fn reset<P: Platform>(
    platform: &P,
    registers: &P::Bar,
    saved: &Saved,
) -> Result<(), Error> {
    let config = platform.config();
    take_semaphore(platform, registers).await?;
    registers.write_u32(regs::RESET, regs::swap(regs::RESET_VALUE));
    // A read is answered behind the write.
    let _ = config.read_u32(ID);
    // "Docs say to wait one second before accessing device" (Linux `reset.c`): not even the
    // semaphore, which the reset frees, is looked at before.
    platform.sleep(RESET_SETTLE).await;
    let deadline = platform.now() + RESET_DEADLINE;
    while config.read_u32(ID) != saved.id {
        if platform.now() >= deadline {
            return Err(Error::Timeout {
                event: Awaited::Reset,
                waited: RESET_SETTLE + RESET_DEADLINE,
            });
        }
        platform.sleep(Duration::from_millis(1)).await;
    }

    saved.restore(&config);
    Ok(())
}

async fn take_semaphore<P: Platform>(platform: &P, registers: &P::Bar) -> Result<(), Error> {
    let deadline = platform.now() + SEMAPHORE_DEADLINE;
    loop {
        match registers.read_u32(regs::SEMAPHORE) {
            0 => return Ok(()),
            regs::GONE => {
                return Err(Error::Gone {
                    during: Step::Semaphore,
                });
            }
            _ if platform.now() >= deadline => {
                return Err(Error::Timeout {
                    event: Awaited::Semaphore,
                    waited: SEMAPHORE_DEADLINE,
                });
            }
            _ => platform.sleep(Duration::from_millis(1)).await,
        }
    }
}

/// The offset of a capability. The list is the card's: it may be anything, so it is followed for a
/// bounded time.
fn find_capability<C: ConfigSpace>(config: &C, id: u8) -> Option<u16> {
    let byte = |dword: u32, index: usize| dword.to_le_bytes()[index];
    let mut at = u16::from(byte(config.read_u32(CAPABILITIES), 0) & !3);
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        let dword = config.read_u32(at);
        if byte(dword, 0) == id {
            return (at <= 0xec).then_some(at);
        }
        at = u16::from(byte(dword, 1) & !3);
    }
    None
}

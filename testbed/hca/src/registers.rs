//! BAR 0: the command register, ownership, reset, semaphore and clock.

use mlx4_hw::command::{Doorbell, hcr};
use mlx4_hw::regs;

use crate::Device;

/// Address of the clear-interrupt register, as QUERY_FW reports it. This and the cells below are
/// free in BAR 0.
pub(crate) const CLEAR_INTERRUPT: u64 = 0x3_e000;
pub(crate) const CATASTROPHIC: u64 = 0x3_f000;
pub(crate) const CATASTROPHIC_DWORDS: u32 = 0x10;
const CATASTROPHIC_END: u64 = CATASTROPHIC + CATASTROPHIC_DWORDS as u64 * 4;
pub(crate) const CLOCK: u64 = 0x3_d000;
/// The clock's frequency in MHz, as real boards answer it.
pub(crate) const CLOCK_MHZ: u16 = 427;

/// Returns the clock's count at a time.
pub(crate) fn cycles(now: hal::Instant) -> u64 {
    let count = u128::from(now.nanos) * u128::from(CLOCK_MHZ) / 1000;
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// First dwords of the error buffer after the firmware has died. The vendor's numbers are not
/// published.
const DEATH: [u32; 4] = [0x0000_0001, 0x1234_5678, 0, 0xdead_0000];

/// The cells of BAR 0 that have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    /// A dword of the command register, by its offset in the block.
    Command(usize),
    Ownership,
    /// Number and revision of the device, which the vendor's tools read first.
    DeviceId,
    Reset,
    Semaphore,
    ClockHigh,
    ClockLow,
    /// A dword of the clear-interrupt register: the pins that it is for, from the lowest on.
    ClearInterrupt(u8),
    /// A dword of the catastrophic error buffer.
    Catastrophic(usize),
    /// Anything else: reads as 0, writes have no effect.
    Other,
}

impl Register {
    /// Returns the register at `offset`, a multiple of 4.
    pub(crate) fn at(offset: u64) -> Self {
        let Ok(place) = usize::try_from(offset) else {
            return Self::Other;
        };
        match place {
            regs::OWNERSHIP => Self::Ownership,
            regs::RESET => Self::Reset,
            regs::DEVICE_ID => Self::DeviceId,
            regs::SEMAPHORE => Self::Semaphore,
            _ if (regs::HCR..regs::HCR + hcr::LEN).contains(&place) => {
                Self::Command(place - regs::HCR)
            }
            _ if offset == CLOCK => Self::ClockHigh,
            _ if offset == CLOCK + 4 => Self::ClockLow,
            _ if (CATASTROPHIC..CATASTROPHIC_END).contains(&offset) => {
                Self::Catastrophic(usize::try_from(offset - CATASTROPHIC).unwrap_or(0) / 4)
            }
            _ if offset == CLEAR_INTERRUPT => Self::ClearInterrupt(32),
            _ if offset == CLEAR_INTERRUPT + 4 => Self::ClearInterrupt(0),
            _ => Self::Other,
        }
    }
}

/// The command register and the two locks.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) command: [u32; hcr::LEN / 4],
    /// Toggle of the last command that was taken; clear after a reset.
    pub(crate) toggle: bool,
    /// The ownership register reads as 1: somebody has it.
    owned: bool,
    /// The semaphore reads as 1.
    locked: bool,
    /// The firmware is dead: it writes what happened into its buffer, and takes no command.
    pub(crate) dead: bool,
    /// Value of the device's own number.
    device_id: u32,
}

impl Registers {
    /// Creates the registers of a card after power-on.
    pub(crate) fn new(device: Device) -> Self {
        // The number within the chip's family, and revision 1 (mstflint `tools_dev_types.c`).
        let number = match device {
            Device::ConnectX3 => 0x1f5,
            Device::ConnectX3Pro => 0x1f7,
        };
        Self {
            device_id: 1 << 16 | number,
            ..Self::default()
        }
    }

    /// Resets the registers as software's reset does: the owner stays, the semaphore becomes free.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            owned: self.owned,
            device_id: self.device_id,
            ..Self::default()
        };
    }

    pub(crate) fn read(&mut self, register: Register, nanos: u64) -> u32 {
        let clock = || u128::from(nanos) * u128::from(CLOCK_MHZ) / 1000;
        match register {
            Register::Command(offset) => self.command[offset / 4],
            // Reading takes the lock, so that two drivers can't both find it free (Linux `main.c`,
            // `mlx4_get_ownership`).
            Register::Ownership => u32::from(core::mem::replace(&mut self.owned, true)),
            Register::Semaphore => u32::from(core::mem::replace(&mut self.locked, true)),
            Register::DeviceId => self.device_id,
            Register::ClockHigh => dword(clock(), 1),
            Register::ClockLow => dword(clock(), 0),
            Register::Catastrophic(index) if self.dead => DEATH.get(index).copied().unwrap_or(0),
            Register::Catastrophic(_)
            | Register::Reset
            | Register::ClearInterrupt(_)
            | Register::Other => 0,
        }
    }

    /// Stores a dword. Says whether it starts a command.
    pub(crate) fn write(&mut self, register: Register, value: u32) -> bool {
        match register {
            Register::Command(offset) => {
                self.command[offset / 4] = value;
                offset == hcr::DOORBELL && Doorbell::from(value).go() && !self.dead
            }
            Register::Ownership => {
                self.owned = value != 0;
                false
            }
            Register::Semaphore => {
                self.locked = value != 0;
                false
            }
            _ => false,
        }
    }
}

/// Returns dword number `index`, from the low end.
fn dword(value: u128, index: usize) -> u32 {
    let bytes = value.to_le_bytes();
    let at = index * 4;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reader_owns_the_card_until_it_is_released() {
        let mut registers = Registers::default();
        assert_eq!(registers.read(Register::Ownership, 0), 0);
        assert_ne!(registers.read(Register::Ownership, 0), 0);
        registers.reset();
        assert_ne!(
            registers.read(Register::Ownership, 0),
            0,
            "a reset keeps the owner"
        );
        registers.write(Register::Ownership, 0);
        assert_eq!(registers.read(Register::Ownership, 0), 0);
    }

    #[test]
    fn the_device_names_itself_where_the_vendors_tools_look() {
        let mut registers = Registers::new(Device::ConnectX3Pro);
        registers.reset();
        assert_eq!(registers.read(Register::at(0xf_0014), 0), 0x1_01f7);
    }

    #[test]
    fn a_reset_frees_the_semaphore() {
        let mut registers = Registers::default();
        assert_eq!(registers.read(Register::Semaphore, 0), 0);
        assert_ne!(registers.read(Register::Semaphore, 0), 0);
        registers.reset();
        assert_eq!(registers.read(Register::Semaphore, 0), 0);
    }

    #[test]
    fn the_clock_counts_microseconds_by_its_frequency() {
        let mut registers = Registers::default();
        assert_eq!(registers.read(Register::at(CLOCK + 4), 1000), 427);
        assert_eq!(registers.read(Register::at(CLOCK), 1 << 40), 109);
    }
}

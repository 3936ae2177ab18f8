//! The function's PCI configuration space.
//!
//! Identity, BARs and the capability chain as `lspci` shows them on real boards:
//!
//! ```text
//! 0x34 ──► 0x40 PM ──► 0x48 VPD ──► 0x9c MSI-X ──► 0x60 PCI Express ──► end
//! ```
//!
//! A virtual machine monitor usually answers BAR and MSI-X accesses itself; they are kept here all
//! the same, so that a plain reader sees a whole function.

use crate::{Board, Device};

/// Bytes of configuration space of a PCI Express function.
const SIZE: usize = 4096;
/// Size of BAR 0: the device's registers.
pub(crate) const BAR0_SIZE: u64 = 1 << 20;
/// Size of BAR 2: the UAR pages.
pub(crate) const BAR2_SIZE: u64 = 8 << 20;
/// MSI-X messages at most.
const MOST_VECTORS: u16 = 128;

const COMMAND: usize = 0x04;
/// Memory space bit in the command register's lower byte.
const MEMORY_SPACE: u8 = 0x02;
/// Bus master bit beside it.
const BUS_MASTER: u8 = 0x04;
/// INTx disable bit in the command register's upper byte.
const INTX_DISABLE: u8 = 0x04;
const STATUS: usize = 0x06;
const INTERRUPT_STATUS: u8 = 0x08;
/// MSI-X enable bit in the upper byte of MSI-X's control.
const MSIX_ENABLE: u8 = 0x80;
const PM: usize = 0x40;
const VPD: usize = 0x48;
const PCIE: usize = 0x60;
const MSIX: usize = 0x9c;
const DEVICE_CONTROL: usize = PCIE + 8;
const INITIATE_RESET: u8 = 0x80;

/// Effect of a configuration space write on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfigEffect {
    /// The write has no effect beyond the stored bits.
    None,
    /// A function-level reset.
    Reset,
}

/// Bytes and which of their bits software may change.
pub(crate) struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    /// Vital product data.
    vpd: Vec<u8>,
    has_msix: bool,
}

impl ConfigSpace {
    /// Creates the space in its state after power-on. `ports` selects the subsystem ID.
    pub(crate) fn new(ports: u8, board: &Board) -> Self {
        let mut space = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            vpd: product_data(board.device),
            has_msix: board.vectors > 0,
        };
        space.header(ports, board.device);
        space.capabilities(board.vectors.min(MOST_VECTORS));
        space
    }

    fn header(&mut self, ports: u8, device: Device) {
        self.set(0x00, &[0xb3, 0x15]);
        self.set(0x02, &device.id().to_le_bytes());
        self.allow(COMMAND, &[0x46, 0x05]); // memory, bus master, parity, SERR, INTx disable
        self.set(STATUS, &[0x10, 0x00]); // capability list
        self.set(0x09, &[0x00, 0x07, 0x02]); // class 0x020700: InfiniBand
        self.allow(0x0c, &[0xff]); // cache line size
        self.set(0x10, &[0x04, 0, 0, 0]); // BAR 0: 64-bit memory
        self.allow(0x10, &(!(BAR0_SIZE - 1)).to_le_bytes());
        self.set(0x18, &[0x0c, 0, 0, 0]); // BAR 2: 64-bit prefetchable memory
        self.allow(0x18, &(!(BAR2_SIZE - 1)).to_le_bytes());
        self.set(
            0x2c,
            &[0xb3, 0x15, if ports == 2 { 0x50 } else { 0x51 }, 0x00],
        );
        self.set(0x34, &[0x40]);
        self.allow(0x3c, &[0xff]);
        self.set(0x3d, &[0x01]); // INTA
    }

    fn capabilities(&mut self, vectors: u16) {
        // Power management 3, soft reset keeps the configuration.
        self.set(PM, &[0x01, 0x48, 0x03, 0x00, 0x08]);
        self.allow(PM + 4, &[0x03]);
        // Vital product data: address with its completion flag, and data.
        let next = if self.has_msix { MSIX } else { PCIE };
        self.set(VPD, &[0x03, next.to_le_bytes()[0]]);
        self.allow(VPD + 2, &[0xfc, 0xff]);
        if self.has_msix {
            // MSI-X: table at BAR 0 + 0x7c000, pending bits at BAR 0 + 0x7d000.
            self.set(MSIX, &[0x11, 0x60]);
            self.set(MSIX + 2, &vectors.saturating_sub(1).to_le_bytes());
            self.allow(MSIX + 3, &[0xc0]);
            self.set(MSIX + 4, &0x7c000_u32.to_le_bytes());
            self.set(MSIX + 8, &0x7d000_u32.to_le_bytes());
        }
        // PCI Express 2 endpoint: payload up to 512 bytes, function-level reset, 8 lanes at 8 GT/s.
        self.set(PCIE, &[0x10, 0x00, 0x02, 0x00]);
        self.set(PCIE + 4, &0x1000_8002_u32.to_le_bytes());
        self.set(DEVICE_CONTROL, &[0x10, 0x20]);
        self.allow(DEVICE_CONTROL, &[0xff, 0x7f]);
        self.set(PCIE + 0x0c, &0x0000_0083_u32.to_le_bytes());
        self.allow(PCIE + 0x10, &[0xff, 0x0f]);
        self.set(PCIE + 0x12, &0x1083_u16.to_le_bytes());
        self.allow(PCIE + 0x28, &[0xff, 0xff]);
        // 2.5, 5 and 8 GT/s: without it Linux does not know 8 GT/s (`pci.c`, `pcie_get_speed_cap`).
        self.set(PCIE + 0x2c, &0x0000_000e_u32.to_le_bytes());
        self.set(PCIE + 0x30, &[0x03]);
    }

    /// Copies bytes out; those behind the space read as ones. `interrupt` is the status of the
    /// interrupt pin.
    pub(crate) fn read(&self, offset: u16, into: &mut [u8], interrupt: bool) {
        for (at, byte) in (usize::from(offset)..).zip(into) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
            if at == STATUS && interrupt {
                *byte |= INTERRUPT_STATUS;
            }
        }
    }

    /// Returns whether the card may reach memory.
    pub(crate) fn masters_bus(&self) -> bool {
        self.bytes[COMMAND] & BUS_MASTER != 0
    }

    /// Returns whether a BAR, 0 or 2, has an address and is decoded.
    pub(crate) fn is_mapped(&self, bar: u8) -> bool {
        let at = 0x10 + 4 * usize::from(bar);
        let addressed = self
            .bytes
            .get(at + 1..at + 8)
            .is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0));
        addressed && self.bytes[COMMAND] & MEMORY_SPACE != 0
    }

    /// Returns whether MSI-X is enabled.
    pub(crate) fn has_messages(&self) -> bool {
        self.bytes[MSIX + 3] & MSIX_ENABLE != 0
    }

    /// Returns whether the command register's INTx disable bit is set.
    pub(crate) fn pin_is_disabled(&self) -> bool {
        self.bytes[COMMAND + 1] & INTX_DISABLE != 0
    }

    /// Stores the bits that software may change.
    pub(crate) fn write(&mut self, offset: u16, from: &[u8]) -> ConfigEffect {
        let mut effect = ConfigEffect::None;
        for (at, &value) in (usize::from(offset)..).zip(from) {
            let Some(mask) = self.writable.get(at).copied() else {
                break;
            };
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
            if at == DEVICE_CONTROL + 1 && value & INITIATE_RESET != 0 {
                effect = ConfigEffect::Reset;
            }
            if at == VPD + 3 {
                self.access_vpd();
            }
        }
        effect
    }

    /// Reads four bytes of the vital product data, whose address was written, or passes a write to
    /// them over. The flag tells the end by inverting: a read (0) is answered by 1 at once, a write
    /// (1) by 0 (PCI 3.0, appendix I).
    fn access_vpd(&mut self) {
        let address = u16::from_le_bytes([self.bytes[VPD + 2], self.bytes[VPD + 3] & 0x7f]);
        if self.bytes[VPD + 3] & 0x80 == 0 {
            let from = usize::from(address);
            for (place, at) in (VPD + 4..VPD + 8).zip(from..) {
                self.bytes[place] = self.vpd.get(at).copied().unwrap_or(0);
            }
        }
        self.bytes[VPD + 3] ^= 0x80;
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }
}

/// Builds vital product data: the product's name, then the read-only fields up to the checksum over
/// all before it (PCI 3.0, appendix I).
fn product_data(device: Device) -> Vec<u8> {
    const NAME: u8 = 0x82;
    const READ_ONLY: u8 = 0x90;
    const END: u8 = 0x78;
    let (name, part) = match device {
        Device::ConnectX3 => ("ConnectX-3 VPI, modelled", "MCX354A-FCBT"),
        Device::ConnectX3Pro => ("ConnectX-3 Pro VPI, modelled", "MCX354A-FCCT"),
    };
    let item = |tag: u8, bytes: &[u8]| {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        [&[tag], &len.to_le_bytes()[..], bytes].concat()
    };
    let field = |keyword: &str, bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        [keyword.as_bytes(), &[len], bytes].concat()
    };
    let mut fields = field("PN", part.as_bytes());
    fields.extend(field("EC", b"A1"));
    fields.extend(field("SN", b"MODEL0000001"));
    fields.extend(field("RV", &[0]));
    let mut data = item(NAME, name.as_bytes());
    data.extend(item(READ_ONLY, &fields));
    let sum = data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(last) = data.last_mut() {
        *last = sum.wrapping_neg();
    }
    data.push(END);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dword(space: &ConfigSpace, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes, false);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn capability_chain_is_that_of_real_boards() {
        let space = ConfigSpace::new(2, &Board::default());
        let mut byte = [0];
        space.read(0x34, &mut byte, false);
        let mut found = Vec::new();
        let mut at = byte[0];
        while at != 0 {
            let mut cap = [0; 2];
            space.read(u16::from(at), &mut cap, false);
            found.push((at, cap[0]));
            at = cap[1];
        }
        assert_eq!(found, [(0x40, 1), (0x48, 3), (0x9c, 0x11), (0x60, 0x10)]);
        assert_eq!(dword(&space, 0), 0x1003_15b3);
    }

    #[test]
    fn product_data_is_read_by_address_and_sums_up_to_zero() {
        let mut space = ConfigSpace::new(1, &Board::default());
        let mut data = Vec::new();
        for address in (0_u16..96).step_by(4) {
            space.write(0x4a, &address.to_le_bytes());
            let mut answer = [0; 6];
            space.read(0x4a, &mut answer, false);
            assert_eq!(answer[1] & 0x80, 0x80, "the read has ended");
            data.extend_from_slice(&answer[2..]);
        }
        assert_eq!(data[0], 0x82);
        let name = usize::from(data[1]);
        assert_eq!(data[3..3 + 10], *b"ConnectX-3");
        let fields = 3 + name;
        assert_eq!(data[fields], 0x90);
        let end = fields + 3 + usize::from(data[fields + 1]);
        assert_eq!(data[end], 0x78);
        let sum = data[..end]
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
    }

    #[test]
    fn a_card_may_have_few_vectors_or_none_and_another_name() {
        let board = Board {
            vectors: 3,
            device: Device::ConnectX3Pro,
            ..Board::default()
        };
        let space = ConfigSpace::new(1, &board);
        assert_eq!(
            (dword(&space, 0), dword(&space, 0x9c) >> 16),
            (0x1007_15b3, 2)
        );
        let space = ConfigSpace::new(
            1,
            &Board {
                vectors: 0,
                ..board
            },
        );
        assert_eq!(dword(&space, 0x48) >> 8 & 0xff, 0x60);
        assert!(!space.has_messages());
    }

    #[test]
    fn the_link_names_each_speed_up_to_its_highest() {
        // Linux pci.c, pcie_get_speed_cap: beyond 5 GT/s it believes the second register of link
        // abilities alone.
        let space = ConfigSpace::new(1, &Board::default());
        assert_eq!(dword(&space, 0x60 + 0x0c) & 0xf, 3);
        assert_eq!(dword(&space, 0x60 + 0x2c), 0b1110);
    }

    #[test]
    fn bars_answer_sizing() {
        let mut space = ConfigSpace::new(1, &Board::default());
        for (at, low) in [(0x10, 0xfff0_0004), (0x18, 0xff80_000c)] {
            assert_eq!(space.write(at, &[0xff; 8]), ConfigEffect::None);
            assert_eq!(
                (dword(&space, at), dword(&space, at + 4)),
                (low, 0xffff_ffff)
            );
        }
    }

    #[test]
    fn initiating_a_function_level_reset_is_seen_and_not_stored() {
        let mut space = ConfigSpace::new(1, &Board::default());
        assert_eq!(space.write(0x68, &[0x10, 0xa0]), ConfigEffect::Reset);
        assert_eq!(dword(&space, 0x68) & 0x8000, 0);
    }

    #[test]
    fn accesses_past_the_end_are_harmless() {
        let mut space = ConfigSpace::new(1, &Board::default());
        let mut bytes = [0; 8];
        space.read(4092, &mut bytes, false);
        assert_eq!(bytes[4..], [0xff; 4]);
        assert_eq!(space.write(u16::MAX, &[1, 2, 3, 4]), ConfigEffect::None);
    }
}

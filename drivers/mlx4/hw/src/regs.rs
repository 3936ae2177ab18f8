//! Registers: where they are in the BARs, and the values that doorbells take.
//!
//! Sources: Linux `cmd.c` (`MLX4_HCR_BASE`), `reset.c`, `main.c` (`MLX4_OWNER_BASE`), `eq.c`
//! (`mlx4_get_eq_uar`), `include/linux/mlx4/cq.h` (`mlx4_cq_arm`), `include/linux/mlx4/doorbell.h`.
//!
//! Registers are big-endian, while the accessors of `hal` give a little-endian load: [`swap`] goes
//! between the two.
//!
//! # Shape
//!
//! ```text
//!  BAR 0, 1 MB                          BAR 2, 8 MB: UAR pages of 4 KB
//!    07c000  MSI-X table                  page n   014  send doorbell: QPN << 8
//!    080680  command register (HCR)                020  CQ doorbell: two dwords, one 64-bit store
//!    08069c  ownership                             800  EQ doorbells 4n .. 4n + 3, 8 bytes apart,
//!    0f0010  reset                                      below page 128
//!    0f03fc  semaphore                    upper half: BlueFlame, where offered
//! ```
//!
//! A store to a UAR page carries the whole message, so cores may share a page without a lock. A CQ
//! doorbell that comes in two stores can be torn by another core's between them: hence the one
//! store of 64 bits (Linux `doorbell.h`, `mlx4_write64`, takes a lock where there is none).

use bitfield_struct::bitfield;

/// Vendor and device ids of the cards that have these: ConnectX-3 and ConnectX-3 Pro (Linux
/// `main.c`, `mlx4_pci_table`).
pub const PCI_IDS: [(u16, u16); 2] = [(0x15b3, 0x1003), (0x15b3, 0x1007)];

/// The BAR of the device configuration space (command register, reset, MSI-X table).
pub const CONFIG_BAR: u8 = 0;
/// Its size.
pub const CONFIG_BAR_LEN: usize = 1 << 20;
/// The BAR of the user access regions (UARs): doorbell pages.
pub const UAR_BAR: u8 = 2;
/// Its usual size.
pub const UAR_BAR_LEN: usize = 8 << 20;

/// The command register's block; see [`command::hcr`](crate::command::hcr).
pub const HCR: usize = 0x8_0680;
/// Reads 0 to the one reader that thereby becomes the owner; 0 is written to give it up.
pub const OWNERSHIP: usize = 0x8_069c;
/// Writing [`RESET_VALUE`] resets the device.
pub const RESET: usize = 0xf_0010;
/// Value to write there.
pub const RESET_VALUE: u32 = 1;
/// Number of the chip in the low half, its revision in the upper one (mstflint
/// `tools_dev_types.c`, `DEVID_ADDR`).
pub const DEVICE_ID: usize = 0xf_0014;
/// The hardware semaphore: reading 0 takes it; a reset releases it.
pub const SEMAPHORE: usize = 0xf_03fc;
/// The MSI-X table (published `lspci` output of ConnectX-2 and ConnectX-3 boards).
pub const MSIX_TABLE: usize = 0x7_c000;
/// The MSI-X pending bits.
pub const MSIX_PBA: usize = 0x7_d000;

/// The config dwords that a save and restore around reset leaves alone: an address and data gateway
/// whose reading has effects (Linux `reset.c`: "pci_config dwords 22 and 23").
pub const CONFIG_GATEWAY_DWORDS: [u16; 2] = [22, 23];

/// Value of a load when the device no longer answers.
pub const GONE: u32 = u32::MAX;

/// Turns a big-endian register's number into what a little-endian store takes, or back.
#[must_use]
pub const fn swap(value: u32) -> u32 {
    value.swap_bytes()
}

/// Swaps the bytes of two dwords, as [`swap`] does of one.
#[must_use]
pub const fn swap_long(value: u64) -> u64 {
    value.swap_bytes()
}

/// Bytes of a UAR page.
pub const UAR_PAGE_LEN: usize = 4096;
/// The first UAR page whose QP and CQ doorbells work in the older numbering of EQs: those before it
/// serve EQs only (illumos `hermon`; Linux `pd.c` reserves 128). With EQs of the system Linux has
/// queues on all pages but firmware's own.
pub const FIRST_QUEUE_UAR: u32 = 128;
/// The send doorbell in a UAR page: big-endian [`SendDoorbell`].
pub const SEND_DOORBELL: usize = 0x14;
/// The CQ doorbell in a UAR page: two big-endian dwords, [`CqArm`] and then the consumer index.
pub const CQ_DOORBELL: usize = 0x20;

/// Returns the offset of the doorbell of EQ `eqn` in the UAR BAR: big-endian [`EqDoorbell`].
#[must_use]
pub const fn eq_doorbell(eqn: u32) -> usize {
    (eqn as usize / 4) * UAR_PAGE_LEN + 0x800 + 8 * (eqn as usize % 4)
}

/// The EQ whose doorbell is at `offset` of the UAR BAR, if one is there.
#[must_use]
pub const fn eq_of_doorbell(offset: usize) -> Option<u32> {
    let (page, within) = (offset / UAR_PAGE_LEN, offset % UAR_PAGE_LEN);
    // Pages from FIRST_QUEUE_UAR on have no EQ doorbells; that bounds the number.
    if page < FIRST_QUEUE_UAR as usize && within >= 0x800 && within < 0x820 && within % 8 == 0 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below 4 × FIRST_QUEUE_UAR as just checked"
        )]
        return Some((page * 4 + (within - 0x800) / 8) as u32);
    }
    None
}

/// The EQ doorbell's value.
#[bitfield(u32, order = Msb)]
#[derive(PartialEq, Eq)]
pub struct EqDoorbell {
    /// Ask for an interrupt at the next event.
    pub arm: bool,
    #[bits(7)]
    __: u8,
    /// Consumer index.
    #[bits(24)]
    pub consumer: u32,
}

/// The send doorbell's value: everything posted on this QP may be fetched.
#[bitfield(u32, order = Msb)]
#[derive(PartialEq, Eq)]
pub struct SendDoorbell {
    /// The QP.
    #[bits(24)]
    pub qpn: u32,
    __: u8,
}

/// Arms a CQ for solicited completions.
pub const ARM_SOLICITED: u8 = 1;
/// Arm for the next completion of any kind.
pub const ARM_NEXT: u8 = 2;

/// The first dword of the CQ doorbell.
#[bitfield(u32, order = Msb)]
#[derive(PartialEq, Eq)]
pub struct CqArm {
    #[bits(2)]
    __: u8,
    /// Completion events taken, modulo 4.
    #[bits(2)]
    pub sequence: u8,
    #[bits(1)]
    __: u8,
    /// [`ARM_SOLICITED`] or [`ARM_NEXT`].
    #[bits(3)]
    pub command: u8,
    /// The CQ.
    #[bits(24)]
    pub cqn: u32,
}

/// The second dword of a CQ's doorbell record, written before the doorbell.
#[bitfield(u32, order = Msb)]
#[derive(PartialEq, Eq)]
pub struct CqArmRecord {
    #[bits(2)]
    __: u8,
    /// Completion events taken, modulo 4.
    #[bits(2)]
    pub sequence: u8,
    #[bits(1)]
    __: u8,
    /// [`ARM_SOLICITED`] or [`ARM_NEXT`].
    #[bits(3)]
    pub command: u8,
    /// Consumer index.
    #[bits(24)]
    pub consumer: u32,
}

/// The CQ doorbell as the one 64-bit little-endian store that writes both dwords.
#[must_use]
pub fn cq_doorbell(arm: CqArm, consumer: u32) -> u64 {
    let number = u64::from(u32::from(arm)) << 32 | u64::from(consumer & crate::bits::Low24::MAX);
    number.swap_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eq_doorbells_round_trip() {
        // Linux eq.c: index = eqn / 4; uar_map + 0x800 + 8 * (eqn % 4).
        assert_eq!(eq_doorbell(5), 0x1000 + 0x808);
        for eqn in 0..512 {
            assert_eq!(eq_of_doorbell(eq_doorbell(eqn)), Some(eqn));
        }
        assert_eq!(eq_of_doorbell(eq_doorbell(512)), None);
        assert_eq!(eq_of_doorbell(SEND_DOORBELL), None);
    }

    #[test]
    fn doorbell_values() {
        // Linux eq.c: cpu_to_be32((cons_index & 0xffffff) | req_not << 31).
        let eq = EqDoorbell::new().with_arm(true).with_consumer(0x12);
        assert_eq!(u32::from(eq), 0x8000_0012);
        // rdma-core mlx4 qp.c: doorbell_qpn = htobe32(qpn << 8).
        assert_eq!(u32::from(SendDoorbell::new().with_qpn(0x208)), 0x2_0800);
        // Linux cq.h: doorbell[0] = sn << 28 | cmd | cqn with cmd 2 << 24; doorbell[1] = ci.
        let arm = CqArm::new()
            .with_sequence(1)
            .with_command(ARM_NEXT)
            .with_cqn(0x81);
        assert_eq!(u32::from(arm), 0x1200_0081);
        assert_eq!(
            cq_doorbell(arm, 0x100_0003).to_le_bytes(),
            [0x12, 0, 0, 0x81, 0, 0, 0, 3]
        );
        let record = CqArmRecord::new()
            .with_sequence(1)
            .with_command(ARM_SOLICITED)
            .with_consumer(3);
        assert_eq!(u32::from(record), 0x1100_0003);
    }

    #[test]
    fn swap_is_between_the_two_orders() {
        assert_eq!(swap(RESET_VALUE), 0x0100_0000);
    }
}

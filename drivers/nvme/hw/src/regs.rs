//! Controller registers (section 3.1) and doorbells.

use bitfield_struct::bitfield;

/// Controller capabilities, 64 bits.
pub const CAP: usize = 0x00;
/// Version.
pub const VS: usize = 0x08;
/// Controller configuration.
pub const CC: usize = 0x14;
/// Controller status.
pub const CSTS: usize = 0x1c;
/// Admin queue attributes.
pub const AQA: usize = 0x24;
/// Base address of the admin submission queue, 64 bits.
pub const ASQ: usize = 0x28;
/// Base address of the admin completion queue, 64 bits.
pub const ACQ: usize = 0x30;
/// The first doorbell.
pub const DOORBELLS: usize = 0x1000;

/// Value of a load when the device no longer answers.
pub const GONE: u32 = u32::MAX;

/// Milliseconds of a unit of [`Cap::timeout`].
pub const TIMEOUT_UNIT_MS: u64 = 500;
/// The page size whose exponent is 0 in [`Cap`] and [`ControllerConfig`].
pub const MIN_PAGE_SHIFT: u32 = 12;

/// Controller capabilities (section 3.1.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Entries that an I/O queue may have, less one.
    pub max_queue_entries: u16,
    /// I/O queues must be contiguous.
    pub contiguous: bool,
    /// Arbitration mechanisms beside round robin.
    #[bits(2)]
    pub arbitration: u8,
    #[bits(5)]
    __: u8,
    /// The longest wait for [`ControllerStatus::ready`], in units of 500 ms.
    pub timeout: u8,
    /// Doorbells lie `4 << stride` bytes apart.
    #[bits(4)]
    pub stride: u8,
    /// Subsystem reset is there.
    pub subsystem_reset: bool,
    /// Bit 0: the NVM command set.
    pub command_sets: u8,
    /// Boot partitions are there.
    pub boot_partitions: bool,
    #[bits(2)]
    __: u8,
    /// The smallest page: 2 to the power of 12 and this.
    #[bits(4)]
    pub min_page: u8,
    /// The largest page.
    #[bits(4)]
    pub max_page: u8,
    __: u8,
}

/// Controller configuration (section 3.1.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ControllerConfig {
    /// The controller works; clearing it resets the controller.
    pub enable: bool,
    #[bits(3)]
    __: u8,
    /// Command set: 0 for NVM.
    #[bits(3)]
    pub command_set: u8,
    /// Page size: 2 to the power of 12 and this.
    #[bits(4)]
    pub page: u8,
    /// Arbitration: 0 for round robin.
    #[bits(3)]
    pub arbitration: u8,
    /// Shutdown notification.
    #[bits(2)]
    pub shutdown: u8,
    /// Size of a submission queue's entry, as a power of 2.
    #[bits(4)]
    pub submission_entry: u8,
    /// Size of a completion queue's entry, as a power of 2.
    #[bits(4)]
    pub completion_entry: u8,
    __: u8,
}

/// Controller status (section 3.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ControllerStatus {
    /// The controller takes commands.
    pub ready: bool,
    /// The controller has failed; only a reset helps.
    pub fatal: bool,
    /// Progress of a shutdown.
    #[bits(2)]
    pub shutdown: u8,
    #[bits(28)]
    __: u32,
}

/// Admin queue attributes (section 3.1.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AdminQueueAttributes {
    /// Entries of the submission queue, less one.
    #[bits(12)]
    pub submission: u16,
    #[bits(4)]
    __: u8,
    /// Entries of the completion queue, less one.
    #[bits(12)]
    pub completion: u16,
    #[bits(4)]
    __: u8,
}

/// Returns the offset of a submission queue's tail doorbell (section 3.1.16).
#[must_use]
pub const fn submission_doorbell(queue: u16, stride: u8) -> usize {
    DOORBELLS + 2 * queue as usize * (4 << stride)
}

/// Returns the offset of a completion queue's head doorbell (section 3.1.17).
#[must_use]
pub const fn completion_doorbell(queue: u16, stride: u8) -> usize {
    DOORBELLS + (2 * queue as usize + 1) * (4 << stride)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that QEMU 10.1's `hw/nvme/ctrl.c` sets up (`nvme_init_ctrl`) and Linux 6.12's
    /// `include/linux/nvme.h` takes apart (`NVME_CAP_…`, `NVME_CC_…`).
    #[test]
    fn registers_are_as_qemu_and_linux_have_them() {
        let cap = Cap::from(0x0040_0028_0f01_07ff | 4 << 52);
        assert_eq!((cap.max_queue_entries(), cap.contiguous()), (0x7ff, true));
        assert_eq!((cap.timeout(), cap.stride()), (0xf, 8));
        assert_eq!(cap.command_sets() & 1, 1);
        assert_eq!((cap.min_page(), cap.max_page()), (0, 4));
        let config = ControllerConfig::new()
            .with_enable(true)
            .with_submission_entry(6)
            .with_completion_entry(4);
        assert_eq!(u32::from(config), 0x0046_0001);
        assert_eq!(u32::from(config.with_page(1).with_shutdown(1)), 0x0046_4081);
        assert!(ControllerStatus::from(2).fatal());
        let queues = AdminQueueAttributes::new()
            .with_submission(31)
            .with_completion(15);
        assert_eq!(u32::from(queues), 0x000f_001f);
        assert_eq!(submission_doorbell(3, 0), 0x1018);
        assert_eq!(completion_doorbell(3, 1), 0x1038);
    }
}

//! The watchdog of Intel's chipsets, the TCO timer, where ACPI's WDAT describes none.
//!
//! It counts from reset on, unless firmware stops it; where it ends a second time the machine is
//! reset.
//!
//! Layouts: Intel ICH9 data sheet, sections 13.1.14 and 13.1.15 (its ports up to the 9-series:
//! power management's, at 0x60), 13.9.6 (TCO1_CNT); for the 100-series and later Linux
//! `drivers/i2c/busses/i2c-i801.c`, `i801_add_tco_spt`, and `drivers/watchdog/iTCO_wdt.c`.

use virtio_drivers::transport::pci::bus::DeviceFunction;

use crate::dev::pci_scan::{ConfigAccess, Place};

const INTEL: u32 = 0x8086;
/// Classes, without the programming interface: a bridge to ISA (LPC), an SMBus.
const ISA_BRIDGE: u32 = 0x0601;
const SMBUS: u32 = 0x0c05;
/// Power management's ports and their enable bit, in the LPC bridge.
const PM_BASE: u16 = 0x40;
const PM_CONTROL: u16 = 0x44;
const PM_ENABLE: u32 = 1 << 7;
/// Offsets from these ports: the control register PM1a, the watchdog.
const PM1A_CONTROL: u16 = 4;
const TCO: u16 = 0x60;
/// The watchdog's own ports and their enable bit, in the SMBus controller.
const TCO_BASE: u16 = 0x50;
const TCO_CONTROL: u16 = 0x54;
const TCO_ENABLE: u32 = 1 << 8;
/// Offset of TCO1_CNT, and its bit that stops the count.
const CONTROL: u16 = 8;
const HALTED: u16 = 1 << 11;

/// Outcome of a look at TCO1_CNT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// No register is there.
    Absent,
    /// The timer stands.
    Halted,
    /// The value that stops it.
    Write(u16),
}

/// Returns the port of TCO1_CNT; `None` for chipsets that are not known to have one.
///
/// An older chipset is believed only if ACPI's tables name the same ports (`pm1a`, the control
/// register), which spares a list of device ids.
pub(crate) fn control_port(config: &impl ConfigAccess, pm1a: Option<u16>) -> Option<u16> {
    let read = |function, offset| {
        let at = DeviceFunction {
            bus: 0,
            device: 0x1f,
            function,
        };
        config.read(Place { segment: 0, at }, offset)
    };
    let is =
        |function, class| read(function, 0) & 0xffff == INTEL && read(function, 8) >> 16 == class;
    let low = |value: u32, mask: u16| {
        let [low, high, ..] = value.to_le_bytes();
        u16::from_le_bytes([low, high]) & mask
    };
    let base = if is(4, SMBUS) && read(4, TCO_CONTROL) & TCO_ENABLE != 0 {
        low(read(4, TCO_BASE), 0xffe0)
    } else if is(0, ISA_BRIDGE) && read(0, PM_CONTROL) & PM_ENABLE != 0 {
        let power = low(read(0, PM_BASE), 0xff80);
        if pm1a != power.checked_add(PM1A_CONTROL) {
            return None;
        }
        power.checked_add(TCO)?
    } else {
        return None;
    };
    (base != 0).then(|| base.checked_add(CONTROL)).flatten()
}

/// Returns what TCO1_CNT says, and how the timer is stopped.
pub(crate) fn halt(control: u16) -> Halt {
    match control {
        u16::MAX => Halt::Absent,
        _ if control & HALTED != 0 => Halt::Halted,
        _ => Halt::Write(control | HALTED),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Dwords of device 0x1f's functions, by function and offset.
    struct Chipset(BTreeMap<(u8, u16), u32>);

    impl ConfigAccess for Chipset {
        fn read(&self, place: Place, offset: u16) -> u32 {
            assert_eq!((place.segment, place.at.bus, place.at.device), (0, 0, 0x1f));
            let found = self.0.get(&(place.at.function, offset));
            found.copied().unwrap_or(u32::MAX)
        }

        fn has_any(&self, _: u16, _: u8) -> bool {
            true
        }
    }

    fn chipset(dwords: &[((u8, u16), u32)]) -> Chipset {
        Chipset(dwords.iter().copied().collect())
    }

    /// QEMU's q35, and the C600 of a PowerEdge R820.
    fn older(base: u32, control: u32) -> Chipset {
        chipset(&[
            ((0, 0), 0x2918_8086),
            ((0, 8), 0x0601_0002),
            ((0, PM_BASE), base | 1),
            ((0, PM_CONTROL), control),
        ])
    }

    #[test]
    fn older_chipsets_are_known_by_their_power_management() {
        let port = |chipset: &Chipset, pm1a| control_port(chipset, Some(pm1a));
        assert_eq!(port(&older(0x600, 0x80), 0x604), Some(0x668));
        assert_eq!(port(&older(0x800, 0x80), 0x804), Some(0x868));
        assert_eq!(port(&older(0x600, 0x80), 0x804), None, "other ports");
        assert_eq!(port(&older(0x600, 0), 0x604), None, "not decoded");
        assert_eq!(control_port(&older(0x600, 0x80), None), None);
        let mut amd = older(0x600, 0x80);
        amd.0.insert((0, 0), 0x780e_1022);
        assert_eq!(port(&amd, 0x604), None, "another maker's");
        assert_eq!(port(&chipset(&[]), 0x604), None);
    }

    #[test]
    fn newer_chipsets_name_its_ports_in_the_smbus_controller() {
        let newer = |control| {
            chipset(&[
                ((4, 0), 0xa1a3_8086),
                ((4, 8), 0x0c05_0009),
                ((4, TCO_BASE), 0x401),
                ((4, TCO_CONTROL), control),
            ])
        };
        assert_eq!(control_port(&newer(0x100), None), Some(0x408));
        assert_eq!(control_port(&newer(0), None), None);
    }

    #[test]
    fn a_timer_is_stopped_once() {
        assert_eq!(halt(u16::MAX), Halt::Absent);
        assert_eq!(
            halt(0x1000),
            Halt::Write(0x1800),
            "the lock does not matter"
        );
        assert_eq!(halt(0x1800), Halt::Halted);
    }
}

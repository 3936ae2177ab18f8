//! The functions that a machine has: a walk over buses and bridges, as firmware has numbered them.
//!
//! Pure over [`ConfigAccess`], so that machines of any shape are tried on the host.
//!
//! Layouts: PCI Local Bus specification 3.0, chapter 6; PCI-to-PCI Bridge Architecture
//! specification 1.2, section 3.2.

use alloc::vec::Vec;
use core::fmt;

use virtio_drivers::transport::pci::bus::DeviceFunction;

use crate::boot::mcfg::Ecam;

const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0c;
const BUS_NUMBERS: u16 = 0x18;
/// Vendor ids of what is not there: ones, or zeros as some machines answer (Linux
/// `drivers/pci/probe.c`, `pci_bus_generic_read_dev_vendor_id`).
pub(crate) const NO_VENDOR: [u16; 2] = [0xffff, 0];

/// A function's place: its segment, and bus, device and function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u16,
    pub(crate) at: DeviceFunction,
}

impl fmt::Display for Place {
    /// Writes the segment only where it isn't 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceFunction {
            bus,
            device,
            function,
        } = self.at;
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "{bus:02x}:{device:02x}.{function}")
    }
}

/// One PCI function. Copies mean the same function.
#[cfg_attr(
    test,
    expect(
        unreachable_pub,
        reason = "`pci`, which exports it, is not on the host"
    )
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    pub(crate) place: Place,
    /// The vendor id.
    pub vendor: u16,
    /// The device id.
    pub device: u16,
    /// Class, subclass and programming interface, the class in bits 16 to 23.
    pub class: u32,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{self} {:04x}:{:04x} class {:06x}",
            self.vendor, self.device, self.class
        )
    }
}

/// Configuration space, as far as the walk needs it.
pub(crate) trait ConfigAccess {
    /// Loads a dword; all ones where nothing is.
    fn read(&self, place: Place, offset: u16) -> u32;

    /// Returns whether a bus has any device, at least cost.
    fn has_any(&self, segment: u16, bus: u8) -> bool;
}

/// Buses that were looked at or are to be, of one segment after the other.
pub(crate) type Buses = Vec<(u16, u8)>;

/// Returns the functions on a bus and on those behind its bridges, which are added to `buses`.
pub(crate) fn behind(
    config: &impl ConfigAccess,
    segment: u16,
    bus: u8,
    buses: &mut Buses,
) -> Vec<Function> {
    let mut found = Vec::new();
    let mut next = buses.len();
    buses.push((segment, bus));
    while let Some(&(_, bus)) = buses.get(next) {
        next += 1;
        for device in 0..32 {
            let place = |function| Place {
                segment,
                at: DeviceFunction {
                    bus,
                    device,
                    function,
                },
            };
            // A device has a function 0.
            let first = probe(config, place(0));
            let many = first.is_some() && config.read(place(0), HEADER_TYPE) >> 16 & 0x80 != 0;
            let others = (1..if many { 8 } else { 1 }).map(|other| probe(config, place(other)));
            for function in core::iter::once(first).chain(others).flatten() {
                found.push(function);
                let behind = secondary_bus(config, function.place).map(|bus| (segment, bus));
                buses.extend(behind.filter(|behind| !buses.contains(behind)));
            }
        }
    }
    found
}

/// Returns the functions that `wanted` is true for, until there is one if `only_one`: those behind
/// bus 0 of segment 0, then those behind other root bridges, on each bus that a range covers.
pub(crate) fn search(
    config: &impl ConfigAccess,
    ranges: &[Ecam],
    wanted: &dyn Fn(&Function) -> bool,
    only_one: bool,
) -> Vec<Function> {
    /// Segment 0 where no table describes it: ports reach it all.
    const BY_PORTS: Ecam = Ecam {
        base: 0,
        segment: 0,
        first_bus: 0,
        last_bus: u8::MAX,
    };
    let mut buses = Buses::new();
    let mut found = behind(config, 0, 0, &mut buses);
    found.retain(wanted);
    let undescribed = ranges.iter().all(|range| range.segment != 0);
    for range in undescribed.then_some(&BY_PORTS).into_iter().chain(ranges) {
        for bus in range.first_bus..=range.last_bus {
            if only_one && !found.is_empty() {
                return found;
            }
            let segment = range.segment;
            if buses.contains(&(segment, bus)) || !config.has_any(segment, bus) {
                continue;
            }
            let behind = behind(config, segment, bus, &mut buses).into_iter();
            found.extend(behind.filter(wanted));
        }
    }
    found
}

fn probe(config: &impl ConfigAccess, place: Place) -> Option<Function> {
    let [a, b, c, d] = config.read(place, 0).to_le_bytes();
    let (vendor, device) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    (!NO_VENDOR.contains(&vendor)).then(|| Function {
        place,
        vendor,
        device,
        class: config.read(place, CLASS) >> 8,
    })
}

fn secondary_bus(config: &impl ConfigAccess, place: Place) -> Option<u8> {
    let bridge = config.read(place, HEADER_TYPE) >> 16 & 0x7f == 1;
    let [_, secondary, ..] = config.read(place, BUS_NUMBERS).to_le_bytes();
    (bridge && secondary != 0).then_some(secondary)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Segment, bus, device and function.
    type Key = (u16, u8, u8, u8);
    /// Id, and the bus behind a bridge.
    type Kind = (u32, Option<u8>);

    struct Machine {
        functions: BTreeMap<Key, Kind>,
        looks: Cell<usize>,
    }

    impl Machine {
        fn with(functions: &[(Key, Kind)]) -> Self {
            Self {
                functions: functions.iter().copied().collect(),
                looks: Cell::new(0),
            }
        }
    }

    impl ConfigAccess for Machine {
        fn read(&self, place: Place, offset: u16) -> u32 {
            self.looks.set(self.looks.get() + 1);
            let DeviceFunction {
                bus,
                device,
                function,
            } = place.at;
            let found = self.functions.get(&(place.segment, bus, device, function));
            let Some(&(id, behind)) = found else {
                return u32::MAX;
            };
            match (offset, behind) {
                (0, _) => id,
                (HEADER_TYPE, Some(_)) => 0x81 << 16,
                (HEADER_TYPE, None) => 0x80 << 16,
                (BUS_NUMBERS, Some(bus)) => u32::from(bus) << 8,
                _ => 0,
            }
        }

        fn has_any(&self, segment: u16, bus: u8) -> bool {
            let mut places = self.functions.keys();
            places.any(|place| (place.0, place.1) == (segment, bus))
        }
    }

    const CARD: u32 = 0x1003_15b3;
    const BRIDGE: u32 = 0x0001_8086;

    fn ecam(segment: u16, first_bus: u8, last_bus: u8) -> Ecam {
        Ecam {
            base: 0x8000_0000,
            segment,
            first_bus,
            last_bus,
        }
    }

    fn cards(machine: &Machine, ranges: &[Ecam], only_one: bool) -> Vec<String> {
        let is_card = |function: &Function| function.device == 0x1003;
        let found = search(machine, ranges, &is_card, only_one);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn cards_of_all_segments_and_root_bridges_are_found() {
        let machine = Machine::with(&[
            ((0, 0, 1, 0), (BRIDGE, Some(3))),
            ((0, 3, 0, 0), (CARD, None)),
            ((0, 0x80, 0, 0), (CARD, None)),
            ((1, 0, 2, 0), (BRIDGE, Some(3))),
            ((1, 3, 0, 1), (CARD, None)),
            ((1, 3, 0, 0), (BRIDGE, None)),
            ((2, 0x40, 0x1f, 7), (CARD, None)),
            ((2, 0x40, 0x1f, 0), (BRIDGE, None)),
        ]);
        let ranges = [ecam(0, 0, 0xff), ecam(1, 0, 0xff), ecam(2, 0x40, 0x7f)];
        let all = ["03:00.0", "80:00.0", "0001:03:00.1", "0002:40:1f.7"];
        assert_eq!(cards(&machine, &ranges, false), all);
        assert_eq!(cards(&machine, &ranges, true), all[..1]);
        // A bus that no range covers can't be reached, but ports reach all of segment 0.
        let ranges = [ecam(2, 0, 0x3f), ecam(1, 0, 2)];
        assert_eq!(cards(&machine, &ranges, false), all[..3]);
        assert_eq!(cards(&machine, &[], false), all[..2]);
    }

    #[test]
    fn bridges_that_loop_end() {
        let machine = Machine::with(&[
            ((0, 0, 0, 0), (BRIDGE, Some(1))),
            ((0, 1, 0, 0), (BRIDGE, Some(2))),
            ((0, 2, 0, 0), (BRIDGE, Some(1))),
            ((0, 2, 1, 0), (BRIDGE, Some(2))),
            ((0, 2, 2, 0), (CARD, None)),
        ]);
        assert_eq!(cards(&machine, &[ecam(0, 0, 0xff)], false), ["02:02.0"]);
    }

    proptest! {
        /// Each function once at most, whatever bridges say.
        #[test]
        fn any_machine_is_walked_once(
            functions in prop::collection::btree_map(
                (0_u16..3, 0_u8..6, 0_u8..3, 0_u8..2),
                (prop_oneof![Just(CARD), Just(BRIDGE)], prop::option::of(0_u8..8)),
                0..40,
            ),
        ) {
            let machine = Machine { functions, looks: Cell::new(0) };
            let ranges = [ecam(0, 0, 0xff), ecam(1, 0, 0xff), ecam(1, 0, 7), ecam(2, 0, 0xff)];
            let mut found = cards(&machine, &ranges, false);
            let count = found.len();
            found.sort();
            found.dedup();
            prop_assert_eq!(found.len(), count);
            let wanted = machine.functions.iter().filter(|(place, (id, _))| {
                let first = (place.0, place.1, place.2, 0);
                *id == CARD && machine.functions.contains_key(&first)
            });
            prop_assert_eq!(wanted.count(), count);
            prop_assert!(machine.looks.get() < 4 * 256 * 32 * 10);
        }
    }
}

//! PCI's configuration space: by memory where ACPI's MCFG describes it, else, for segment 0, by
//! ports.
//!
//! Layouts: PCI Local Bus specification 3.0, section 3.2.2.3.2; PCI Express Base specification 3.0,
//! section 7.2.2.
// UNSAFETY: drives configuration ports, opens windows on mapped configuration space.
#![expect(unsafe_code, reason = "device registers")]

use alloc::boxed::Box;
use alloc::vec::Vec;

use hal::PhysAddr;
use spin::{Mutex, Once};
use virtio_drivers::transport::pci::bus::DeviceFunction;
use x86_64::instructions::port::Port;

use crate::boot::mcfg::Ecam;
use crate::dev::pci_scan::{self, ConfigAccess, Function, NO_VENDOR, Place};
use crate::mem::paging;
use crate::mem::window::Window;

const BUS_BYTES: u64 = 1 << 20;
const FUNCTION_BYTES: usize = 1 << 12;
const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// The memory-mapped ranges.
static RANGES: Once<Ranges> = Once::new();
/// Held for the two accesses of one dword by ports. No lock is taken under it.
static PORTS: Mutex<()> = Mutex::new(());

/// Buses of one range, each mapped when it is first used.
type Buses = Box<[Once<Option<Window>>]>;

struct Ranges {
    ranges: Vec<Ecam>,
    buses: Vec<Buses>,
}

/// Learns where configuration space is.
pub(crate) fn init(ranges: Vec<Ecam>) {
    let buses = |range: &Ecam| {
        let buses = range.first_bus..=range.last_bus;
        buses.map(|_| Once::new()).collect()
    };
    RANGES.call_once(|| Ranges {
        buses: ranges.iter().map(buses).collect(),
        ranges,
    });
}

/// Loads a dword; all ones where nothing is.
pub(crate) fn read(place: Place, offset: u16) -> u32 {
    if let Some((window, base)) = memory_mapped(place) {
        return window.load(base + usize::from(offset & 0xffc));
    }
    if offset >= 0x100 || place.segment != 0 {
        return u32::MAX;
    }
    read_by_ports(place.at, offset)
}

fn read_by_ports(at: DeviceFunction, offset: u16) -> u32 {
    // The address port holds one address for all cores.
    let _ports = PORTS.lock();
    select(at, offset);
    // SAFETY: the configuration data port, after its address.
    unsafe { Port::new(DATA_PORT).read() }
}

/// Stores a dword.
///
/// In mapped space the store may be posted: whoever needs its effect before the next step reads
/// back (PCI Express Base specification 3.0, section 7.2.2).
pub(crate) fn write(place: Place, offset: u16, value: u32) {
    if let Some((window, base)) = memory_mapped(place) {
        return window.store(base + usize::from(offset & 0xffc), value);
    }
    if offset < 0x100 && place.segment == 0 {
        let _ports = PORTS.lock();
        select(place.at, offset);
        // SAFETY: the configuration data port, after its address.
        unsafe { Port::new(DATA_PORT).write(value) };
    }
}

/// Returns the window of a place's bus, and the place's offset in it.
fn memory_mapped(place: Place) -> Option<(Window, usize)> {
    let Place { segment, at } = place;
    let all = RANGES.get()?;
    let covers = |range: &Ecam| range.covers(segment, at.bus);
    let index = all.ranges.iter().position(covers)?;
    let (range, buses) = (all.ranges.get(index)?, all.buses.get(index)?);
    let bus = buses.get(usize::from(at.bus - range.first_bus))?;
    let window = *bus.call_once(|| {
        let start = range.base.checked_add(u64::from(at.bus) * BUS_BYTES)?;
        let page = paging::map_device(PhysAddr(start), BUS_BYTES)?;
        // SAFETY: mapped for good, and only this module has it.
        Some(unsafe { Window::new(page, 256 * FUNCTION_BYTES) })
    });
    let function = usize::from(at.device) << 3 | usize::from(at.function);
    Some((window?, function * FUNCTION_BYTES))
}

fn select(at: DeviceFunction, offset: u16) {
    let address = 1 << 31
        | u32::from(at.bus) << 16
        | u32::from(at.device) << 11
        | u32::from(at.function) << 8
        | u32::from(offset & 0xfc);
    // SAFETY: the configuration address port.
    unsafe { Port::new(ADDRESS_PORT).write(address) };
}

/// This machine's configuration space.
pub(crate) struct Machine;

impl ConfigAccess for Machine {
    fn read(&self, place: Place, offset: u16) -> u32 {
        read(place, offset)
    }

    fn has_any(&self, segment: u16, bus: u8) -> bool {
        (0..32).any(|device| {
            let at = DeviceFunction {
                bus,
                device,
                function: 0,
            };
            let id = match segment {
                // By ports, as most buses have nothing, and mapping one takes page tables.
                0 => read_by_ports(at, 0),
                _ => read(Place { segment, at }, 0),
            };
            let [low, high, ..] = id.to_le_bytes();
            !NO_VENDOR.contains(&u16::from_le_bytes([low, high]))
        })
    }
}

/// Looks behind each root bridge of each segment, until a function is found if `only_one`.
pub(crate) fn search(wanted: &dyn Fn(&Function) -> bool, only_one: bool) -> Vec<Function> {
    let ranges = RANGES.get().map_or(&[][..], |all| &all.ranges);
    pci_scan::search(&Machine, ranges, wanted, only_one)
}

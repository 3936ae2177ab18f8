//! PCI: configuration space, what functions there are, and [`hal::Platform`] for a driver of one.
//!
//! Layouts: PCI Local Bus specification 3.0, chapter 6.
// UNSAFETY: drives configuration ports, opens windows on mapped BARs.
#![expect(unsafe_code, reason = "device registers")]

use alloc::vec::Vec;
use core::fmt;

use hal::{Duration, Instant, PhysAddr};
use spin::{Mutex, Once};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};
use x86_64::instructions::port::Port;

use crate::boot::acpi::Ecam;
use crate::cpu::apic;
use crate::cpu::interrupts::Vector;
use crate::mem::dma::Buffer;
use crate::mem::paging;
use crate::mem::window::Window;
use crate::task::{executor, time, timer};

const BUS_BYTES: u64 = 1 << 20;
const FUNCTION_BYTES: usize = 1 << 12;
const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const HEADER_TYPE: u16 = 0x0c;
const BUS_NUMBERS: u16 = 0x18;
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;
const MSIX_ENTRY: usize = 16;
/// Address to which interrupt messages are written (Intel SDM volume 3A, section 11.11.1).
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

static ECAM: Once<Option<Ecam>> = Once::new();
/// Each bus's part of memory-mapped configuration space, mapped when first used.
static BUSES: [Once<Option<Window>>; 256] = [const { Once::new() }; 256];
/// Held for the two accesses of one dword by ports. No lock is taken under it.
static PORTS: Mutex<()> = Mutex::new(());

/// Learns where configuration space is.
pub(crate) fn init(ecam: Option<Ecam>) {
    ECAM.call_once(|| ecam);
}

/// Loads a dword of configuration space; all ones where nothing is.
fn read(at: DeviceFunction, offset: u16) -> u32 {
    if let Some((window, base)) = memory_mapped(at) {
        return window.load(base + usize::from(offset & 0xffc));
    }
    if offset >= 0x100 {
        return u32::MAX;
    }
    read_by_ports(at, offset)
}

fn read_by_ports(at: DeviceFunction, offset: u16) -> u32 {
    let _ports = PORTS.lock();
    select(at, offset);
    // SAFETY: the configuration data port, after its address.
    unsafe { Port::new(DATA_PORT).read() }
}

/// Stores a dword of configuration space.
fn write(at: DeviceFunction, offset: u16, value: u32) {
    if let Some((window, base)) = memory_mapped(at) {
        return window.store(base + usize::from(offset & 0xffc), value);
    }
    if offset < 0x100 {
        let _ports = PORTS.lock();
        select(at, offset);
        // SAFETY: the configuration data port, after its address.
        unsafe { Port::new(DATA_PORT).write(value) };
    }
}

fn memory_mapped(at: DeviceFunction) -> Option<(Window, usize)> {
    let ecam = ECAM
        .get()?
        .filter(|ecam| (ecam.first_bus..=ecam.last_bus).contains(&at.bus))?;
    let window = *BUSES[usize::from(at.bus)].call_once(|| {
        let start = ecam.base.checked_add(u64::from(at.bus) * BUS_BYTES)?;
        let page = paging::map_device(PhysAddr(start), BUS_BYTES)?;
        // SAFETY: mapped for good, and only this module has it.
        Some(unsafe { Window::new(page, 256 * FUNCTION_BYTES) })
    });
    Some((
        window?,
        (usize::from(at.device) << 3 | usize::from(at.function)) * FUNCTION_BYTES,
    ))
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

/// Configuration space for virtio-drivers' helpers.
pub(crate) struct Config;

impl ConfigurationAccess for Config {
    fn read_word(&self, at: DeviceFunction, offset: u8) -> u32 {
        read(at, offset.into())
    }

    fn write_word(&mut self, at: DeviceFunction, offset: u8, value: u32) {
        write(at, offset.into(), value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// One PCI function. Copies mean the same function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    pub(crate) at: DeviceFunction,
    /// The vendor id.
    pub vendor: u16,
    /// The device id.
    pub device: u16,
    /// Class, subclass and programming interface, the class in bits 16 to 23.
    pub class: u32,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceFunction {
            bus,
            device,
            function,
        } = self.at;
        write!(f, "{bus:02x}:{device:02x}.{function}")
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

/// All functions, bus by bus, behind bridges too (as firmware numbered them), beginning with bus 0.
#[must_use]
pub fn functions() -> Vec<Function> {
    functions_from(0, &mut Vec::new())
}

/// The functions on a bus and on those behind its bridges, which are added to the `buses` that were
/// looked at.
fn functions_from(bus: u8, buses: &mut Vec<u8>) -> Vec<Function> {
    let mut found = Vec::new();
    let mut next = buses.len();
    buses.push(bus);
    while let Some(&bus) = buses.get(next) {
        next += 1;
        for device in 0..32 {
            let first = DeviceFunction {
                bus,
                device,
                function: 0,
            };
            let many = read(first, HEADER_TYPE) >> 16 & 0x80 != 0;
            for function in 0..if many { 8 } else { 1 } {
                let at = DeviceFunction {
                    bus,
                    device,
                    function,
                };
                let Some(function) = probe(at) else { continue };
                found.push(function);
                let behind = secondary_bus(at).filter(|behind| !buses.contains(behind));
                buses.extend(behind);
            }
        }
    }
    found
}

/// The first function with these ids.
#[must_use]
pub fn find(vendor: u16, device: u16) -> Option<Function> {
    find_any(&[(vendor, device)])
}

/// The first function with one of these pairs of vendor and device id. It may be behind another
/// root bridge than bus 0's, as the cards of a second processor are: then each bus that ACPI's MCFG
/// covers is looked at.
#[must_use]
pub fn find_any(ids: &[(u16, u16)]) -> Option<Function> {
    search(
        &|function: &Function| ids.contains(&(function.vendor, function.device)),
        true,
    )
    .into_iter()
    .next()
}

/// All functions that `wanted` is true for: those that [`functions`] lists, then those behind other
/// root bridges.
#[must_use]
pub fn functions_where(wanted: impl Fn(&Function) -> bool) -> Vec<Function> {
    search(&wanted, false)
}

/// Looks behind each root bridge, until there is one if `only_one`.
fn search(wanted: &dyn Fn(&Function) -> bool, only_one: bool) -> Vec<Function> {
    let mut buses = Vec::new();
    let mut found = functions_from(0, &mut buses);
    found.retain(|function| wanted(function));
    let (first, last) = ECAM
        .get()
        .copied()
        .flatten()
        .map_or((0, u8::MAX), |ecam| (ecam.first_bus, ecam.last_bus));
    for bus in first..=last {
        if only_one && !found.is_empty() {
            break;
        }
        // By ports, as most have nothing, and mapping one takes page tables.
        if buses.contains(&bus) || !has_any_by_ports(bus) {
            continue;
        }
        let behind = functions_from(bus, &mut buses).into_iter();
        found.extend(behind.filter(|function| wanted(function)));
    }
    found
}

/// Returns whether a bus has any device.
fn has_any_by_ports(bus: u8) -> bool {
    (0..32).any(|device| {
        read_by_ports(
            DeviceFunction {
                bus,
                device,
                function: 0,
            },
            0,
        ) & 0xffff
            != 0xffff
    })
}

fn probe(at: DeviceFunction) -> Option<Function> {
    let [a, b, c, d] = read(at, 0).to_le_bytes();
    let (vendor, device) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    (vendor != 0xffff).then(|| Function {
        at,
        vendor,
        device,
        class: read(at, 8) >> 8,
    })
}

fn secondary_bus(at: DeviceFunction) -> Option<u8> {
    let bridge = read(at, HEADER_TYPE) >> 16 & 0x7f == 1;
    let [_, secondary, ..] = read(at, BUS_NUMBERS).to_le_bytes();
    (bridge && secondary != 0).then_some(secondary)
}

impl Function {
    /// Lets the function answer to memory accesses and master the bus, and keeps its pin interrupt
    /// quiet.
    pub(crate) fn enable(self) {
        self.command(Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE);
    }

    fn command(self, wanted: Command) {
        let mut root = PciRoot::new(Config);
        let (_, command) = root.get_status_command(self.at);
        root.set_command(self.at, command | wanted);
    }

    fn capability(self, id: u8) -> Option<u16> {
        let root = PciRoot::new(Config);
        // A list that loops must end.
        let found = root
            .capabilities(self.at)
            .take(64)
            .find(|capability| capability.id == id);
        found.map(|capability| capability.offset.into())
    }

    fn bar(self, index: u8) -> Option<Window> {
        if index >= 6 {
            return None;
        }
        let info = PciRoot::new(Config).bar_info(self.at, index).ok()??;
        let BarInfo::Memory { address, size, .. } = info else {
            return None;
        };
        if address == 0 {
            return None;
        }
        let page = paging::map_device(PhysAddr(address), size)?;
        // SAFETY: mapped for good; device registers have no references.
        Some(unsafe { Window::new(page, usize::try_from(size).ok()?) })
    }

    /// The MSI-X table and the number of its entries.
    fn msix_table(self) -> Option<(u16, Window, usize, u16)> {
        let capability = self.capability(MSIX)?;
        let entries = u16::try_from(read(self.at, capability) >> 16 & 0x7ff).ok()? + 1;
        let table = read(self.at, capability + 4);
        let window = self.bar(u8::try_from(table & 7).ok()?)?;
        let offset = usize::try_from(table & !7).ok()?;
        let fits = offset
            .checked_add(usize::from(entries) * MSIX_ENTRY)
            .is_some_and(|end| end <= window.len());
        fits.then_some((capability, window, offset, entries))
    }
}

/// A mapped BAR.
#[derive(Debug)]
pub struct Bar(Window);

impl hal::Registers for Bar {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.0.load(offset)
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.0.store(offset, value);
    }

    fn write_u64(&self, offset: usize, value: u64) {
        self.0.store(offset, value);
    }
}

/// A function's configuration space.
#[derive(Debug)]
pub struct FunctionConfig(Function);

impl hal::ConfigSpace for FunctionConfig {
    fn read_u32(&self, offset: u16) -> u32 {
        read(self.0.at, offset)
    }

    fn write_u32(&self, offset: u16, value: u32) {
        write(self.0.at, offset, value);
    }
}

impl hal::Platform for Function {
    type Bar = Bar;
    type Config = FunctionConfig;
    type Buffer = Buffer;
    type Vector = Vector;

    fn map_bar(&self, index: u8) -> Result<Bar, hal::Error> {
        let bar = self.bar(index).ok_or(hal::Error::NoBar { index })?;
        // The bus is the driver's to give: the function may still have work for memory that is
        // another's now.
        self.command(Command::MEMORY_SPACE | Command::INTERRUPT_DISABLE);
        Ok(Bar(bar))
    }

    fn config(&self) -> FunctionConfig {
        FunctionConfig(*self)
    }

    fn alloc(&self, len: usize, align: usize) -> Result<Buffer, hal::Error> {
        Buffer::allocate(len, align).ok_or(hal::Error::NoDmaMemory { len })
    }

    /// The vectors interrupt the core that this is called on.
    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Vector> + use<>, hal::Error> {
        let few = |have| hal::Error::TooFewVectors {
            wanted: count,
            have,
        };
        let (capability, table, offset, have) = self.msix_table().ok_or_else(|| few(0))?;
        if have < count {
            return Err(few(have));
        }
        self.enable();
        let control = read(self.at, capability);
        write(self.at, capability, control | MSIX_ENABLE | MSIX_MASK_ALL);
        let mut vectors = Vec::new();
        for index in 0..count {
            let vector = Vector::allocate().ok_or_else(|| few(index))?;
            let entry = offset + usize::from(index) * MSIX_ENTRY;
            table.store(entry, MESSAGE_ADDRESS | (apic::id() & 0xff) << 12);
            table.store(entry + 4, 0_u32);
            table.store(entry + 8, u32::from(vector.number()));
            table.store(entry + 12, 0_u32); // unmasked
            vectors.push(vector);
        }
        write(
            self.at,
            capability,
            (control | MSIX_ENABLE) & !MSIX_MASK_ALL,
        );
        Ok(vectors)
    }

    fn now(&self) -> Instant {
        time::now()
    }

    async fn sleep(&self, span: Duration) {
        if span.is_zero() {
            executor::yield_now().await;
        } else {
            timer::sleep(span).await;
        }
    }
}

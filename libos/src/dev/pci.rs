//! PCI: configuration space, what functions there are, and [`hal::Platform`] for a driver of one.
//!
//! Layouts: PCI Local Bus specification 3.0, chapter 6.
// UNSAFETY: opens windows on mapped BARs.
#![expect(unsafe_code, reason = "device registers")]

use alloc::vec::Vec;

use hal::{Duration, Instant, PhysAddr};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};

use crate::cpu::apic;
use crate::cpu::interrupts::Vector;
use crate::dev::config_space::{self, Machine, read, write};
use crate::dev::pci_scan::{self, Place};
use crate::mem::dma::Buffer;
use crate::mem::paging;
use crate::mem::window::Window;
use crate::task::{executor, time, timer};

pub use crate::dev::pci_scan::Function;

const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;
const MSIX_ENTRY: usize = 16;
/// Address to which interrupt messages are written (Intel SDM volume 3A, section 11.11.1).
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

/// A segment's configuration space for virtio-drivers' helpers.
pub(crate) struct OfSegment(pub(crate) u16);

impl ConfigurationAccess for OfSegment {
    fn read_word(&self, at: DeviceFunction, offset: u8) -> u32 {
        let segment = self.0;
        read(Place { segment, at }, offset.into())
    }

    fn write_word(&mut self, at: DeviceFunction, offset: u8, value: u32) {
        let segment = self.0;
        write(Place { segment, at }, offset.into(), value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(self.0)
    }
}

/// All functions of segment 0, bus by bus, behind bridges too (as firmware numbered them),
/// beginning with bus 0.
#[must_use]
pub fn functions() -> Vec<Function> {
    pci_scan::behind(&Machine, 0, 0, &mut Vec::new())
}

/// The first function with these ids.
#[must_use]
pub fn find(vendor: u16, device: u16) -> Option<Function> {
    find_any(&[(vendor, device)])
}

/// The first function with one of these pairs of vendor and device id. It may be behind another
/// root bridge than bus 0's, as the cards of a second processor are: then each bus that ACPI's MCFG
/// covers is looked at, in all segments.
#[must_use]
pub fn find_any(ids: &[(u16, u16)]) -> Option<Function> {
    config_space::search(
        &|function: &Function| ids.contains(&(function.vendor, function.device)),
        true,
    )
    .into_iter()
    .next()
}

/// All functions that `wanted` is true for: those that [`functions`] lists, then those behind other
/// root bridges and of other segments.
#[must_use]
pub fn functions_where(wanted: impl Fn(&Function) -> bool) -> Vec<Function> {
    config_space::search(&wanted, false)
}

impl Function {
    /// Lets the function answer to memory accesses and master the bus, and keeps its pin interrupt
    /// quiet.
    pub(crate) fn enable(self) {
        self.command(Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE);
    }

    fn command(self, wanted: Command) {
        let mut root = PciRoot::new(OfSegment(self.place.segment));
        let (_, command) = root.get_status_command(self.place.at);
        root.set_command(self.place.at, command | wanted);
    }

    fn capability(self, id: u8) -> Option<u16> {
        let root = PciRoot::new(OfSegment(self.place.segment));
        // A list that loops must end.
        let found = root
            .capabilities(self.place.at)
            .take(64)
            .find(|capability| capability.id == id);
        found.map(|capability| capability.offset.into())
    }

    /// Returns a BAR, mapped, and its bus address.
    fn bar(self, index: u8) -> Option<(Window, u64)> {
        if index >= 6 {
            return None;
        }
        let info = PciRoot::new(OfSegment(self.place.segment))
            .bar_info(self.place.at, index)
            .ok()??;
        let BarInfo::Memory { address, size, .. } = info else {
            return None;
        };
        if address == 0 {
            return None;
        }
        let page = paging::map_device(PhysAddr(address), size)?;
        // SAFETY: mapped for good; device registers have no references.
        let window = unsafe { Window::new(page, usize::try_from(size).ok()?) };
        Some((window, address))
    }

    /// The MSI-X table and the number of its entries.
    fn msix_table(self) -> Option<(u16, Window, usize, u16)> {
        let capability = self.capability(MSIX)?;
        let entries = u16::try_from(read(self.place, capability) >> 16 & 0x7ff).ok()? + 1;
        let table = read(self.place, capability + 4);
        let (window, _) = self.bar(u8::try_from(table & 7).ok()?)?;
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
        read(self.0.place, offset)
    }

    fn write_u32(&self, offset: u16, value: u32) {
        write(self.0.place, offset, value);
    }
}

impl hal::Platform for Function {
    type Bar = Bar;
    type Config = FunctionConfig;
    type Buffer = Buffer;
    type Vector = Vector;

    fn map_bar(&self, index: u8) -> Result<Bar, hal::Error> {
        let (bar, address) = self.bar(index).ok_or(hal::Error::NoBar { index })?;
        let size = bar.len() >> 10;
        log::info!("{self}: BAR {index} at {address:#x}, {size} KiB");
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
        let control = read(self.place, capability);
        write(
            self.place,
            capability,
            control | MSIX_ENABLE | MSIX_MASK_ALL,
        );
        // With all vectors masked: a function that fires while an entry is half written would send
        // its message to some other address (PCI Local Bus specification 3.0, section 6.8.2).
        let mut vectors = Vec::new();
        for index in 0..count {
            let vector = Vector::allocate().ok_or_else(|| few(index))?;
            let entry = offset + usize::from(index) * MSIX_ENTRY;
            // Physical destination mode, one core: bits 19 to 12 are its APIC id. Edge-triggered,
            // fixed delivery: the data is the vector alone (Intel SDM volume 3A, "Message Data
            // Register Format").
            table.store(entry, MESSAGE_ADDRESS | (apic::id() & 0xff) << 12);
            table.store(entry + 4, 0_u32);
            table.store(entry + 8, u32::from(vector.number()));
            table.store(entry + 12, 0_u32); // unmasked
            vectors.push(vector);
        }
        write(
            self.place,
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

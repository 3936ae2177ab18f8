//! Virtio devices: the disk and the consoles of a virtual machine, by the virtio-drivers crate.
// UNSAFETY: gives the crate memory to share with devices.
#![expect(unsafe_code, reason = "DMA")]

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ptr::NonNull;

use hal::PhysAddr;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::PciRoot;
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError};
use virtio_drivers::{BufferDirection, Hal};

use crate::Error;
use crate::dev::pci::{self, Function, OfSegment};
use crate::mem::frame_bitmap::PAGE_SIZE;
use crate::mem::frames::Frames;
use crate::mem::layout::direct;
use crate::mem::paging;

pub use crate::dev::virtio_console::{Console, Reader, Writer};
pub use crate::dev::virtio_disk::{Disk, DiskError, MAX_TRANSFER, SECTOR};

/// The machine, for virtio-drivers.
#[derive(Debug)]
pub struct VirtioHal;

// SAFETY: DMA memory is whole frames of our own, MMIO is mapped for good, and physical addresses
// are the page tables'.
unsafe impl Hal for VirtioHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        // The crate takes address 0 as failure.
        let address = Frames::zeroed(pages, PAGE_SIZE).map_or(0, |frames| frames.into_raw().0);
        (
            address,
            NonNull::new(direct(PhysAddr(address))).unwrap_or(NonNull::dangling()),
        )
    }

    unsafe fn dma_dealloc(address: u64, _: NonNull<u8>, pages: usize) -> i32 {
        drop(Frames::from_raw(PhysAddr(address), pages));
        0
    }

    unsafe fn mmio_phys_to_virt(address: u64, size: usize) -> NonNull<u8> {
        let mapped = paging::map_device(PhysAddr(address), size as u64);
        mapped
            .and_then(NonNull::new)
            .expect("a virtio BAR that is RAM or nowhere")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> u64 {
        // Image, heap and stacks are physically contiguous, so the first byte's address does for
        // all.
        paging::kernel_phys(buffer.cast::<u8>().as_ptr().addr() as u64)
            .expect("the buffer is mapped")
            .0
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn transport(function: Function) -> Result<PciTransport, Error> {
    function.enable();
    PciTransport::new::<VirtioHal, _>(
        &mut PciRoot::new(OfSegment(function.place.segment)),
        function.place.at,
    )
    .map_err(|cause: VirtioPciError| failed(function, &cause))
}

pub(crate) fn failed(function: Function, cause: &dyn core::fmt::Display) -> Error {
    Error::Virtio {
        device: function.to_string(),
        cause: format!("{cause}"),
    }
}

fn is(function: &Function, kind: DeviceType) -> bool {
    // Vendor and device ids: virtio 1.2, section 4.1.2. Transitional devices tell their kind after
    // the transport is up.
    let id = match function.device {
        0x1001 => DeviceType::Block as u16,
        0x1003 => DeviceType::Console as u16,
        device => device.saturating_sub(0x1040),
    };
    function.vendor == 0x1af4 && (0x1000..0x1080).contains(&function.device) && id == kind as u16
}

/// Returns whether a function is a disk, for [`disk`].
#[must_use]
pub fn is_disk(function: &Function) -> bool {
    is(function, DeviceType::Block)
}

/// Sets up the disk that a function is.
///
/// # Errors
///
/// [`Error::Virtio`] when it can't be set up.
pub fn disk(function: Function) -> Result<Disk, Error> {
    Disk::new(function, transport(function)?)
}

fn devices(kind: DeviceType) -> impl Iterator<Item = Result<(Function, PciTransport), Error>> {
    pci::functions()
        .into_iter()
        .filter(move |function| is(function, kind))
        .map(|function| transport(function).map(|transport| (function, transport)))
}

/// The disks, by their place on the bus.
///
/// # Errors
///
/// [`Error::Virtio`] when one can't be set up.
pub fn disks() -> Result<Vec<Disk>, Error> {
    devices(DeviceType::Block)
        .map(|found| {
            let (function, transport) = found?;
            Disk::new(function, transport)
        })
        .collect()
}

/// The consoles, by their place on the bus.
///
/// # Errors
///
/// [`Error::Virtio`] when one can't be set up.
pub fn consoles() -> Result<Vec<Console>, Error> {
    devices(DeviceType::Console)
        .map(|found| {
            let (function, transport) = found?;
            Console::new(function, transport)
        })
        .collect()
}

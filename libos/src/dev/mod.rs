//! Devices: PCI, virtio, the serial port and the console.

// Modules that exist on the machine only, not on the host.
#[cfg(target_os = "none")]
mod backoff;
#[cfg(target_os = "none")]
pub(crate) mod config_space;
#[cfg(target_os = "none")]
pub(crate) mod console;
#[cfg(target_os = "none")]
pub(crate) mod left_by_firmware;
#[cfg(target_os = "none")]
pub mod pci;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod pci_scan;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod screen;
#[cfg(target_os = "none")]
pub(crate) mod serial;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod tco;
#[cfg(target_os = "none")]
pub mod uart;
#[cfg(target_os = "none")]
pub mod virtio;
#[cfg(target_os = "none")]
pub(crate) mod virtio_console;
#[cfg(target_os = "none")]
pub(crate) mod virtio_disk;

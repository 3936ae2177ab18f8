//! The start: what the loader tells, the memory map, the tables of ACPI, and the way to the main
//! task.

pub mod acpi;
pub mod boot_info;
pub(crate) mod command_line;
pub mod fixed;
pub mod iommu;
pub(crate) mod mcfg;
pub mod memory_map;
mod multiboot;
pub mod watchdog;

// Modules that exist on the machine only, not on the host.
#[cfg(target_os = "none")]
pub(crate) mod start;
#[cfg(test)]
mod test_memory;

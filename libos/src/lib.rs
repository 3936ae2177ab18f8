//! The kernel library that every component links: boot, paging, cores, tasks, time, PCI, console,
//! user mode.
//!
//! `docs/libos.md` tells how to write an image, draws the memory map and lists what is left out.
//! Here is who does what:
//!
//! * the start: [`boot_info`] (what the loader tells, of PVH or UEFI), `boot` (from there to the
//!   main task), [`memory_map`], [`acpi`], `smp`, `segments`;
//! * memory: [`frame_bitmap`] and `frames`, `heap`, `page_entry`, `page_table` and `paging` (the
//!   kernel's), `dma` (what devices share);
//! * time and tasks: `time`, `timer`, `executor` and `run_queue`, `interrupts` and
//!   `interrupt_slot`, `apic`, `core_local`;
//! * programs: `user_tables`, `table_pool` and `address_space`, `user`, `fpu`, `traps` and
//!   `trap.s`, `quirks`, `vdso`;
//! * devices: `pci` (which implements [`hal::Platform`]), `virtio`, `virtio_console`,
//!   `virtio_disk`, `serial`;
//! * the end: `console`, `panic`, `exit`.
//!
//! Only the pure parts exist on the host, where they are tested; the rest is tested on the machine
//! by `libos/selftest`.
//!
//! Unsafe code is confined to modules that say why in their first lines. Locks: those that another
//! is taken under say so where they are declared.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
#[cfg(any(test, target_os = "none"))]
mod asid;
pub mod boot_info;
mod command_line;
mod error;
pub mod frame_bitmap;
#[cfg(any(test, target_os = "none"))]
mod interrupt_slot;
pub mod memory_map;
pub mod page_entry;
#[cfg(any(test, target_os = "none"))]
mod run_queue;
#[cfg(any(test, target_os = "none"))]
mod shortest;
#[cfg(any(test, target_os = "none"))]
mod sync;
#[cfg(any(test, target_os = "none"))]
mod table_pool;
#[cfg(any(test, target_os = "none"))]
mod user_tables;

#[cfg(any(test, target_os = "none"))]
pub use asid::Asid;
pub use command_line::CommandLine;
pub use error::Error;
pub use frame_bitmap::PAGE_SIZE;
pub use page_entry::USER_END;
#[cfg(any(test, target_os = "none"))]
pub use table_pool::TableFrames;
#[cfg(any(test, target_os = "none"))]
pub use user_tables::{Mapping, Rights};

// Modules that exist on the machine only, not on the host.
#[cfg(target_os = "none")]
mod address_space;
#[cfg(target_os = "none")]
mod apic;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod core_local;
#[cfg(target_os = "none")]
pub mod dma;
#[cfg(target_os = "none")]
mod executor;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod fpu;
#[cfg(target_os = "none")]
pub mod frames;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod layout;
#[cfg(target_os = "none")]
mod page_table;
#[cfg(target_os = "none")]
mod paging;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
pub mod pci;
#[cfg(target_os = "none")]
pub mod quirks;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod segments;
#[cfg(target_os = "none")]
mod serial;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod time;
#[cfg(target_os = "none")]
mod timer;
#[cfg(target_os = "none")]
mod traps;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
pub mod vdso;
#[cfg(target_os = "none")]
pub mod virtio;
#[cfg(target_os = "none")]
mod virtio_console;
#[cfg(target_os = "none")]
mod virtio_disk;
#[cfg(target_os = "none")]
mod window;

#[cfg(target_os = "none")]
pub use machine::*;

#[cfg(target_os = "none")]
mod machine {
    pub use crate::address_space::{AddressSpace, Entries, Entry, flush_cores};
    pub use crate::boot::{Boot, MainTask, main_task};
    pub use crate::console::{line, report, set_level};
    pub use crate::core_local::{count as cores, current as current_core};
    pub use crate::dma::{FrameArray, PageFrame};
    pub use crate::executor::{Task, YieldNow, spawn, spawn_on, yield_now};
    pub use crate::exit::{Exit, power_off};
    pub use crate::random::random_bytes;
    pub use crate::time::{now, tsc_hz};
    pub use crate::timer::{Sleep, sleep, sleep_until};
    pub use crate::user::{Registers, Trap, UserContext};
}

/// Names the image's main task, `async fn(Boot) -> Exit`, which runs on the first core; its end
/// powers the node off. On the host it makes an empty program.
///
/// ```ignore
/// #![cfg_attr(target_os = "none", no_std, no_main)]
/// libos::entry!(run);
///
/// #[cfg(target_os = "none")]
/// async fn run(boot: libos::Boot) -> libos::Exit {
///     libos::Exit::Success
/// }
/// ```
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        fn libos_image_main(boot: $crate::Boot) -> $crate::MainTask {
            $crate::main_task($main(boot))
        }
    };
}

/// Names the image's main task; on the host it makes an empty program.
#[cfg(not(target_os = "none"))]
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        fn main() {}
    };
}

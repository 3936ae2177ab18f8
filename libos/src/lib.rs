//! The kernel library that every component links: boot, paging, cores, tasks, time, PCI, console,
//! user mode.
//!
//! `docs/libos.md` tells how to write an image, draws the memory map and lists what is left out.
//!
//! * `boot`: what the loader tells (PVH or UEFI), the memory map, ACPI, the way to the main task;
//! * `mem`: frames, heap, the kernel's page tables and the programs', memory that devices share;
//! * `cpu`: cores, interrupts, traps, user mode, the vDSO;
//! * `task`: executor, run queue, timers, clock;
//! * `dev`: PCI (which implements [`hal::Platform`]), virtio, serial port, console;
//! * `panic` and `exit`: the end.
//!
//! Only the pure parts exist on the host, where they are tested; the rest is tested on the machine
//! by `libos/selftest`.
//!
//! Unsafe code is confined to modules that say why in their first lines. Locks: those that another
//! is taken under say so where they are declared.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod boot;
mod cpu;
mod dev;
mod error;
#[cfg(target_os = "none")]
mod exit;
mod mem;
#[cfg(target_os = "none")]
mod panic;
#[cfg(any(test, target_os = "none"))]
mod sync;
mod task;

pub use boot::command_line::CommandLine;
pub use boot::{acpi, boot_info, fixed, iommu, memory_map, watchdog};
pub use error::Error;
#[cfg(any(test, target_os = "none"))]
pub use mem::asid::Asid;
pub use mem::frame_bitmap::PAGE_SIZE;
pub use mem::page_entry::USER_END;
#[cfg(any(test, target_os = "none"))]
pub use mem::table_pool::TableFrames;
#[cfg(any(test, target_os = "none"))]
pub use mem::user_tables::{Mapping, Rights};
pub use mem::{frame_bitmap, page_entry};

#[cfg(target_os = "none")]
pub use machine::*;

#[cfg(target_os = "none")]
mod machine {
    pub use crate::boot::start::{Boot, MainTask, main_task};
    pub use crate::cpu::core_local::{count as cores, current as current_core};
    pub use crate::cpu::random::random_bytes;
    pub use crate::cpu::user::{Registers, Trap, UserContext};
    pub use crate::cpu::{quirks, vdso};
    pub use crate::dev::console::{line, report, set_level};
    pub use crate::dev::{pci, uart, virtio};
    pub use crate::exit::{Exit, power_off};
    pub use crate::mem::address_space::{AddressSpace, Entries, Entry, flush_cores};
    pub use crate::mem::dma::{FrameArray, PageFrame};
    pub use crate::mem::{dma, frames};
    pub use crate::task::executor::{Task, YieldNow, spawn, spawn_on, yield_now};
    pub use crate::task::time::{now, tsc_hz};
    pub use crate::task::timer::{Sleep, sleep, sleep_until};
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

//! From the boot loader's hand-over to the image's main task.
// UNSAFETY: assembles the entry and reads what the boot loader left in memory.
#![expect(unsafe_code, reason = "machine entry")]

use alloc::boxed::Box;
use core::pin::Pin;

use hal::PhysAddr;

use spin::Mutex;

use crate::Error;
use crate::boot::acpi::{ReadPhys, Tables};
use crate::boot::boot_info::{BootInfo, PVH_MAPPED, Piece};
use crate::boot::command_line::CommandLine;
use crate::cpu::{apic, core_local, identify, smp, user, vdso};
use crate::dev::{config_space, console, left_by_firmware};
use crate::exit::{self, Exit, power_off};
use crate::mem::layout::{Image, direct};
use crate::mem::{frames, paging};
use crate::task::{executor, time};

const BOOT_STACK_SIZE: usize = 64 << 10;
/// Number by which `start.s` names the PVH entry.
const BY_PVH: u32 = 0;
const BY_HANDOVER: u32 = 1;
const BY_MULTIBOOT2: u32 = 2;

#[repr(C, align(16))]
struct BootStack([u8; BOOT_STACK_SIZE]);
static mut BOOT_STACK: BootStack = BootStack([0; BOOT_STACK_SIZE]);

core::arch::global_asm!(
    include_str!("start.s"),
    boot_stack = sym BOOT_STACK,
    boot_stack_size = const BOOT_STACK_SIZE,
    start = sym start,
    pvh = const BY_PVH,
    handover = const BY_HANDOVER,
    multiboot2 = const BY_MULTIBOOT2,
    ap_root = sym paging::KERNEL_ROOT,
    ap_stack = sym smp::AP_STACK,
    ap_start = sym smp::ap_start,
);
core::arch::global_asm!(include_str!("trampoline.s"), options(att_syntax),);

/// Argument of an image's main task.
#[derive(Debug)]
#[non_exhaustive]
pub struct Boot {
    /// The kernel command line.
    pub command_line: CommandLine,
}

unsafe extern "Rust" {
    /// The image's main task, defined by [`crate::entry`].
    safe fn libos_image_main(boot: Boot) -> MainTask;
}

/// An image's main task, boxed.
pub type MainTask = Pin<Box<dyn Future<Output = Exit> + Send>>;

/// Boxes an image's main task, for [`crate::entry`].
#[doc(hidden)]
pub fn main_task(task: impl Future<Output = Exit> + Send + 'static) -> MainTask {
    Box::pin(task)
}

/// Physical memory that the loader mapped.
struct Mapped(u64);

impl ReadPhys for Mapped {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let in_reach = address != 0
            && address
                .checked_add(into.len() as u64)
                .is_some_and(|end| end <= self.0);
        if in_reach {
            // SAFETY: mapped by the loader's page tables, and nothing writes there now.
            unsafe {
                direct(PhysAddr(address)).copy_to_nonoverlapping(into.as_mut_ptr(), into.len())
            };
        }
        in_reach
    }
}

extern "C" fn start(record: u64, entry: u32) -> ! {
    console::init();
    let info = match entry {
        BY_HANDOVER => BootInfo::from_handover(&Mapped(handover::MAPPED), record),
        BY_MULTIBOOT2 => BootInfo::from_multiboot2(&Mapped(PVH_MAPPED), record),
        _ => BootInfo::from_pvh(&Mapped(PVH_MAPPED), record),
    };
    let info = info.unwrap_or_else(|error| panic!("{error}"));
    Image::place(info.image);
    frames::init(&info);
    let line = read_command_line(&info);
    paging::init(&info.map);
    console::add_screen(info.framebuffer);
    apic::silence_legacy();
    apic::init();
    let tables = Tables::read(&Firmware, info.rsdp);
    if let Some(serial) = tables.serial {
        console::move_to(serial);
    }
    let command_line = CommandLine::parse(&line);
    time::init(&tables, reference(command_line.as_ref()));
    let core = core_local::prepare(0, apic::id());
    user::init_core();
    core_local::adopt(core);
    vdso::init_core();
    log::info!("started by {}", info.loader);
    if info.map.lost() > 0 {
        log::warn!(
            "{} MiB of RAM lie in too many pieces to be used",
            info.map.lost() >> 20
        );
    }
    set_up_command_line(command_line, tables);
    // The boot stack has no guard below it and is left for good.
    // SAFETY: a fresh stack; nothing on the old one is used again.
    unsafe {
        core::arch::asm!(
            "mov rsp, {stack}", "xor ebp, ebp", "push 0", "jmp {next}",
            stack = in(reg) paging::new_stack(smp::STACK), next = sym on_own_stack, options(noreturn),
        )
    }
}

/// Handed from the boot stack to the first core's own.
static HANDED_OVER: Mutex<Option<(CommandLine, Tables)>> = Mutex::new(None);

/// Returns what the command line wants the clock to be measured against; a mistake in it is told
/// later.
fn reference(command_line: Result<&CommandLine, &Error>) -> Option<time::Reference> {
    command_line.ok()?.parsed("timer").ok()?
}

fn set_up_command_line(command_line: Result<CommandLine, Error>, tables: Tables) {
    let command_line = match command_line {
        Ok(command_line) => command_line,
        Err(error) => {
            log::error!("command line: {error}");
            power_off(Exit::Failure)
        }
    };
    match command_line.parsed("log") {
        Ok(level) => console::set_level(level.unwrap_or(log::LevelFilter::Info)),
        Err(error) => {
            log::error!("{error}");
            power_off(Exit::Failure)
        }
    }
    if let Err(error) = command_line.parsed::<time::Reference>("timer") {
        log::error!("{error}");
        power_off(Exit::Failure)
    }
    match command_line.parsed("failure") {
        Ok(after_failure) => exit::init(&tables, after_failure.unwrap_or_default()),
        Err(error) => {
            log::error!("{error}");
            power_off(Exit::Failure)
        }
    }
    *HANDED_OVER.lock() = Some((command_line, tables));
}

extern "C" fn on_own_stack() -> ! {
    let (command_line, tables) = HANDED_OVER.lock().take().expect("handed over by `start`");
    for near in &tables.memory {
        let (start, mib) = (near.start, near.len >> 20);
        log::debug!("memory at {start:#x}, {mib} MiB, is of node {}", near.node);
    }
    identify::tell_errata();
    config_space::init(tables.ecam.clone());
    left_by_firmware::stop_watchdogs(&tables);
    left_by_firmware::tell_iommus(tables.iommus.as_ref());
    smp::start_others(&tables.cores);
    log::info!(
        "{} cores, {} MiB free",
        core_local::count(),
        frames::free() >> 8
    );
    let main = libos_image_main(Boot { command_line });
    executor::spawn(async move { power_off(main.await) }).detach();
    executor::run()
}

/// Firmware's memory, for its tables.
struct Firmware;

impl ReadPhys for Firmware {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(from) = paging::map_firmware(PhysAddr(address), into.len() as u64) else {
            return false;
        };
        // SAFETY: mapped just now; firmware's tables don't change.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        true
    }
}

fn read_command_line(info: &BootInfo) -> alloc::vec::Vec<u8> {
    let Piece { start, len } = info.command_line;
    let mut line = alloc::vec![0; usize::try_from(len).unwrap_or_default()];
    if !line.is_empty() && !Mapped(info.mapped).read(start, &mut line) {
        log::error!("no command line at {start:#x}");
        line.clear();
    }
    line
}

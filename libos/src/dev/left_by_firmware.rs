//! Parts of the machine that are looked at once and left as firmware has set them, or stopped: the
//! IOMMUs, and the watchdogs of the board and of the chipset.
// UNSAFETY: opens windows on registers, drives I/O ports.
#![expect(unsafe_code, reason = "device registers")]

use alloc::vec::Vec;

use hal::PhysAddr;
use x86_64::instructions::port::Port;

use crate::boot::acpi::Tables;
use crate::boot::iommu::{Iommus, State};
use crate::dev::config_space::Machine;
use crate::dev::tco::{self, Halt};
use crate::exit;
use crate::mem::paging;
use crate::mem::window::Window;

/// Bytes of an IOMMU's registers that are looked at.
const REGISTERS: usize = 0x1000;

/// Logs in one line which IOMMUs there are and whether they are on.
pub(crate) fn tell_iommus(iommus: Option<&Iommus>) {
    let Some(iommus) = iommus.filter(|iommus| !iommus.registers.is_empty()) else {
        log::debug!("no IOMMU in ACPI's tables");
        return;
    };
    let state = |&address| {
        let page = paging::map_device(PhysAddr(address), REGISTERS as u64);
        page.map_or(State::Silent, |page| {
            // SAFETY: mapped for good; device registers have no references.
            let registers = unsafe { Window::new(page, REGISTERS) };
            iommus.state(registers.load(iommus.status_offset()))
        })
    };
    let states: Vec<State> = iommus.registers.iter().map(state).collect();
    let count = |wanted| states.iter().filter(|&&state| state == wanted).count();
    let (all, on, silent) = (states.len(), count(State::On), count(State::Silent));
    if on > 0 {
        log::warn!(
            "IOMMU: {iommus}, {on} of {all} on, left so: the card's DMA and interrupts may be \
             refused; turn DMA protection off in the firmware's setup"
        );
    } else if silent > 0 {
        log::warn!("IOMMU: {iommus}, {silent} of {all} do not answer, the others are off");
    } else {
        log::info!("IOMMU: {iommus}, {all} of {all} off, left so");
    }
}

/// Stops the watchdogs of the board and of the chipset, which firmware or who ran before may have
/// left armed.
pub(crate) fn stop_watchdogs(tables: &Tables) {
    for write in &tables.stop_watchdog {
        log::info!("stopping the watchdog by port {:#x}", write.port);
        exit::write_register(*write);
    }
    let pm1a = tables.fixed.power.map(|power| power.pm1a);
    let Some(port) = tco::control_port(&Machine, pm1a) else {
        return;
    };
    let mut control = Port::<u16>::new(port);
    // SAFETY: the control register of the chipset's watchdog, which nothing else drives.
    let old = unsafe { control.read() };
    match tco::halt(old) {
        Halt::Absent | Halt::Halted => return,
        // SAFETY: as above; the bit stops the count and changes nothing else.
        Halt::Write(new) => unsafe { control.write(new) },
    }
    // SAFETY: as above.
    let now = unsafe { control.read() };
    match tco::halt(now) {
        Halt::Halted => log::info!("stopped the chipset's watchdog by port {port:#x}"),
        _ => log::warn!("the chipset's watchdog (port {port:#x}) does not stop: {now:#x}"),
    }
}

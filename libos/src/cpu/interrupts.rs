//! Interrupt vectors and the tasks that wait for them.

use core::future::poll_fn;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::interrupt_slot::Slot;
use crate::cpu::{apic, core_local};
use crate::task::timer;

/// The first vector given to devices.
const FIRST_DEVICE: u8 = 0x30;
/// One past the last.
const END_DEVICE: u8 = apic::TIMER_VECTOR;
const DEVICE_VECTORS: usize = (END_DEVICE - FIRST_DEVICE) as usize;

static SLOTS: [Slot; DEVICE_VECTORS] = [const { Slot::new() }; DEVICE_VECTORS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// One interrupt vector, given to one device for good.
#[derive(Debug)]
pub struct Vector {
    slot: usize,
}

impl Vector {
    /// Takes a vector; `None` when all are given away.
    pub(crate) fn allocate() -> Option<Self> {
        let slot = NEXT.fetch_add(1, Ordering::Relaxed);
        (slot < DEVICE_VECTORS).then_some(Self { slot })
    }

    /// The number that the CPU is interrupted by.
    pub(crate) fn number(&self) -> u8 {
        FIRST_DEVICE + u8::try_from(self.slot).unwrap_or(0)
    }
}

impl hal::InterruptVector for Vector {
    /// One task at a time waits for a vector: a second one's wait replaces the first one's.
    async fn wait(&self) {
        let slot = &SLOTS[self.slot];
        poll_fn(|context| slot.poll(context.waker())).await;
    }
}

/// Serves an interrupt, whether it was taken in the kernel or in a program.
pub(crate) fn serve(vector: u64) {
    let Ok(vector) = u8::try_from(vector) else {
        return;
    };
    match vector {
        apic::TIMER_VECTOR => timer::interrupt(core_local::this()),
        // The call's purpose is to be noticed: leaving sleep or user mode is all it takes.
        apic::CALL_VECTOR => {}
        FIRST_DEVICE..END_DEVICE => {
            SLOTS[usize::from(vector - FIRST_DEVICE)].fire();
        }
        // Spurious interrupts, of the 8259s or the APIC, are not acknowledged.
        _ => return,
    }
    // After the slot has fired: the task that it wakes runs later, on the core's own loop. MSI-X
    // interrupts are single writes, so a device does not repeat one that is not yet acknowledged.
    apic::end_of_interrupt();
}

//! Differences of a machine from its specification.

use raw_cpuid::CpuId;
use spin::Once;

use crate::mem::dma::PageFrame;
use crate::mem::frame_bitmap::PAGE_SIZE;

/// Returns whether the CPU is QEMU's own emulation, by the signature in CPUID leaf 0x4000_0000.
#[must_use]
pub fn is_tcg() -> bool {
    static TCG: Once<bool> = Once::new();
    *TCG.call_once(|| {
        CpuId::new()
            .get_hypervisor_info()
            .is_some_and(|info| matches!(info.identify(), raw_cpuid::Hypervisor::QEMU))
    })
}

/// Makes code that a device wrote into `frame` the code that is executed.
///
/// An emulator's quirk: x86 keeps instruction fetch coherent with DMA, but QEMU's TCG goes on
/// executing what it translated earlier when another process wrote the guest's memory. A store by
/// the CPU makes it look again, so every word is stored over itself. To be called after a fill and
/// before the page is mapped executable; does nothing elsewhere.
pub fn refresh_code(frame: PageFrame) {
    if !is_tcg() {
        return;
    }
    let (window, base) = frame.window();
    // QEMU counts 512 instructions, where a loop of loads and stores took 2,900.
    window.store_again(base, PAGE_SIZE);
}

//! From the firmware's world into the image.

use core::arch::asm;

/// CR4.LA57: page tables have five levels.
const FIVE_LEVELS: u64 = 1 << 12;
/// CR4.PGE and CR4.CET: the first keeps translations of the firmware's tables, the second needs a
/// shadow stack.
const CR4_OFF: u64 = 1 << 7 | 1 << 23;
/// CR0.WP.
const WRITE_PROTECT: u64 = 1 << 16;
/// EFER.NXE.
const NO_EXECUTE: u32 = 1 << 11;

/// Returns whether the firmware runs with page tables of five levels, which can't be left in 64-bit
/// mode.
pub(crate) fn has_five_levels() -> bool {
    let cr4: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    cr4 & FIVE_LEVELS != 0
}

/// Loads the page tables and enters the image.
///
/// # Safety
///
/// The firmware's boot services have been left; the tables at `root` map this code where it is, and
/// what an image expects; `entry` is the image's entry, and `record` a record for it.
pub(crate) unsafe fn enter(root: u64, entry: u64, record: u64) -> ! {
    // SAFETY: by the caller's promise. Nothing is read from the stack once the tables are loaded.
    unsafe {
        asm!(
            "cli",
            "mov rax, cr4",
            "and rax, r9",
            "mov cr4, rax",
            "mov ecx, 0xc0000080",
            "rdmsr",
            "or eax, {nxe}",
            "wrmsr",
            "mov cr3, rsi",
            "mov rax, cr0",
            "or rax, {wp}",
            "mov cr0, rax",
            "jmp r8",
            nxe = const NO_EXECUTE,
            wp = const WRITE_PROTECT,
            in("rsi") root,
            in("rdi") record,
            in("r8") entry,
            // Named, as the code above overwrites registers that a free choice could fall on.
            in("r9") !CR4_OFF,
            options(noreturn),
        )
    }
}

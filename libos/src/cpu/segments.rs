//! Segments, the task state segment with its stacks, and the interrupt table.
// UNSAFETY: loads descriptor tables.
#![expect(unsafe_code, reason = "descriptor tables")]

use core::cell::UnsafeCell;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use crate::mem::paging::new_stack;

/// Selectors, in the order that SYSRET wants: user data, then user code.
pub(crate) const KERNEL_CODE: u16 = 0x08;
pub(crate) const USER_DATA: u16 = 0x18 | 3;
pub(crate) const USER_CODE: u16 = 0x20 | 3;
const TSS: u16 = 0x28;

/// Traps that must not trust the stack they interrupt: double fault, NMI, machine check.
const IST_VECTORS: [(usize, u16); 3] = [(8, 0), (2, 1), (18, 2)];
const IST_STACK: usize = 16 << 10;
/// Bytes of the stack onto which a trap from user mode pushes its seven words.
const ENTRY_STACK: usize = 4 << 10;
const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    static trap_stubs: u8;
}

/// One core's tables.
pub(crate) struct Segments {
    gdt: UnsafeCell<GlobalDescriptorTable>,
    tss: TaskStateSegment,
}

impl Segments {
    pub(crate) fn new() -> Self {
        let mut tss = TaskStateSegment::new();
        // Traps from user mode begin here (RSP0). `trap.s` takes the seven words off it at once and
        // goes on on the kernel's own stack, so it is never nested.
        tss.privilege_stack_table[0] = VirtAddr::new(new_stack(ENTRY_STACK));
        for (_, ist) in IST_VECTORS {
            tss.interrupt_stack_table[usize::from(ist)] = VirtAddr::new(new_stack(IST_STACK));
        }
        Self {
            gdt: UnsafeCell::new(GlobalDescriptorTable::new()),
            tss,
        }
    }

    /// Fills the table, once this has its final place.
    pub(crate) fn link(&mut self) {
        // SAFETY: the core's data is leaked, so the segment never moves or goes away.
        let tss = unsafe { Descriptor::tss_segment_unchecked(&raw const self.tss) };
        let gdt = self.gdt.get_mut();
        for descriptor in [
            Descriptor::kernel_code_segment(),
            Descriptor::kernel_data_segment(),
            Descriptor::user_data_segment(),
            Descriptor::user_code_segment(),
            tss,
        ] {
            gdt.append(descriptor);
        }
    }

    /// Loads the tables on this core.
    pub(crate) fn load(&'static self) {
        // SAFETY: filled by `link`; only the CPU writes it from here on (the TSS's busy bit).
        let gdt = unsafe { &*self.gdt.get() };
        // SAFETY: it lives as long as the kernel.
        unsafe { gdt.load_unsafe() };
        // SAFETY: the kernel's code segment.
        unsafe { CS::set_reg(SegmentSelector(KERNEL_CODE)) };
        // SAFETY: null selectors are right for data in 64-bit mode.
        unsafe { SS::set_reg(SegmentSelector(0)) };
        // SAFETY: as above.
        unsafe { DS::set_reg(SegmentSelector(0)) };
        // SAFETY: as above.
        unsafe { ES::set_reg(SegmentSelector(0)) };
        // SAFETY: the descriptor is this core's own TSS, not loaded before.
        unsafe { load_tss(SegmentSelector(TSS)) };
        idt().load();
    }
}

/// The interrupt table, the same for all cores.
fn idt() -> &'static InterruptDescriptorTable {
    static IDT: Once<InterruptDescriptorTable> = Once::new();
    IDT.call_once(|| {
        let mut idt = InterruptDescriptorTable::new();
        let stub = |vector: u64| VirtAddr::new((&raw const trap_stubs).addr() as u64 + vector * STUB_BYTES);
        macro_rules! set {
            ($($entry:ident: $vector:literal),* $(,)?) => {$(
                // SAFETY: the stub of this vector follows the CPU's frame layout.
                unsafe { idt.$entry.set_handler_addr(stub($vector)) };
            )*};
        }
        set!(
            divide_error: 0, debug: 1, breakpoint: 3, overflow: 4, bound_range_exceeded: 5, invalid_opcode: 6,
            device_not_available: 7, invalid_tss: 10, segment_not_present: 11, stack_segment_fault: 12,
            general_protection_fault: 13, page_fault: 14, x87_floating_point: 16, alignment_check: 17,
            simd_floating_point: 19, virtualization: 20, cp_protection_exception: 21,
        );
        // SAFETY: the stub follows the CPU's frame layout.
        let options = unsafe { idt.double_fault.set_handler_addr(stub(8)) };
        // SAFETY: every core's TSS has this stack.
        unsafe { options.set_stack_index(IST_VECTORS[0].1) };
        // SAFETY: the stub follows the CPU's frame layout.
        let options = unsafe { idt.non_maskable_interrupt.set_handler_addr(stub(2)) };
        // SAFETY: every core's TSS has this stack.
        unsafe { options.set_stack_index(IST_VECTORS[1].1) };
        // SAFETY: the stub follows the CPU's frame layout.
        let options = unsafe { idt.machine_check.set_handler_addr(stub(18)) };
        // SAFETY: every core's TSS has this stack.
        unsafe { options.set_stack_index(IST_VECTORS[2].1) };
        // Programs may raise breakpoint and overflow themselves.
        for entry in [&mut idt.breakpoint, &mut idt.overflow] {
            // SAFETY: the handler address stays.
            let options = unsafe { entry.set_handler_addr(entry.handler_addr()) };
            options.set_privilege_level(x86_64::PrivilegeLevel::Ring3);
        }
        for vector in 32..=255_u8 {
            // SAFETY: the stub of this vector follows the CPU's frame layout.
            unsafe { idt[vector].set_handler_addr(stub(vector.into())) };
        }
        idt
    })
}

//! The floating-point and vector state of programs. The kernel itself uses none of it (the target
//! is soft-float), so a core keeps a program's state in its registers until another program runs
//! there.
//!
//! Layout: Intel SDM volume 1, section 13.4 (XSAVE area, standard form).
// UNSAFETY: saves and loads the state, enables it in control registers.
#![expect(unsafe_code, reason = "FPU instructions")]

use alloc::vec;
use alloc::vec::Vec;
use core::arch::x86_64::{_fxrstor64, _fxsave64, _xgetbv};

use raw_cpuid::CpuId;
use spin::Once;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::xcontrol::XCr0;

const LEGACY_LEN: usize = 512;
const HEADER_END: usize = 576;
const CONTROL_WORD: core::ops::Range<usize> = 0..2;
const MXCSR: core::ops::Range<usize> = 24..28;
const MXCSR_MASK: core::ops::Range<usize> = 28..32;
const STATE_BITS: core::ops::Range<usize> = 512..520;
const AVX512: u64 = 0xe0;
const X87_SSE: u64 = 3;
const AVX: u64 = 4;

/// Format of the state that the CPU saves.
#[derive(Debug, Clone, Copy)]
struct Format {
    /// The enabled state components; none where the CPU has FXSAVE only.
    components: Option<u64>,
    len: usize,
}

static FORMAT: Once<Format> = Once::new();

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Block([u8; 64]);

/// One program's state in memory.
#[derive(Debug, Clone)]
pub(crate) struct Area {
    blocks: Vec<Block>,
}

/// Enables FPU, SSE and what else of AVX the CPU has, on this core.
pub(crate) fn init() {
    let xsave = CpuId::new()
        .get_feature_info()
        .is_some_and(|info| info.has_xsave());
    // SAFETY: programs may use the FPU; the kernel does not.
    unsafe {
        Cr0::update(|flags| {
            flags.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            flags.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR);
        });
    }
    let mut wanted = Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    wanted.set(Cr4Flags::OSXSAVE, xsave);
    // SAFETY: as above.
    unsafe { Cr4::update(|flags| flags.insert(wanted)) };
    if xsave {
        let supported = core::arch::x86_64::__cpuid_count(0xd, 0);
        let supported = u64::from(supported.edx) << 32 | u64::from(supported.eax);
        let mut components = supported & (X87_SSE | AVX);
        if components & AVX != 0 && supported & AVX512 == AVX512 {
            components |= AVX512;
        }
        // SAFETY: components that the CPU has, in a legal combination.
        unsafe { XCr0::write_raw(components) };
    }
    FORMAT.call_once(|| {
        if !xsave {
            return Format {
                components: None,
                len: LEGACY_LEN,
            };
        }
        // SAFETY: XSAVE is enabled.
        let components = unsafe { _xgetbv(0) };
        let len = core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize;
        Format {
            components: Some(components),
            len: len.max(HEADER_END),
        }
    });
}

fn format() -> Format {
    *FORMAT.get().expect("the FPU is set up before programs run")
}

impl Area {
    /// The state after reset.
    pub(crate) fn new() -> Self {
        let mut area = Self {
            blocks: vec![Block([0; 64]); format().len.div_ceil(64)],
        };
        area.blocks[0].0[CONTROL_WORD].copy_from_slice(&0x37f_u16.to_le_bytes());
        area.blocks[0].0[MXCSR].copy_from_slice(&0x1f80_u32.to_le_bytes());
        area
    }

    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.blocks.as_mut_ptr().cast()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.blocks.iter().flat_map(|block| block.0).collect();
        bytes.truncate(format().len);
        bytes
    }

    /// Takes a state from elsewhere, such as a signal frame, if the CPU would load it.
    pub(crate) fn set(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != format().len || !self.is_loadable(bytes) {
            return false;
        }
        for (block, bytes) in self.blocks.iter_mut().zip(bytes.chunks(64)) {
            block.0[..bytes.len()].copy_from_slice(bytes);
        }
        true
    }

    /// Returns whether a load would not fault: no reserved bit of MXCSR or of the header is set.
    fn is_loadable(&self, bytes: &[u8]) -> bool {
        let word = |range: core::ops::Range<usize>| {
            bytes[range]
                .iter()
                .rev()
                .fold(0_u64, |word, &byte| word << 8 | u64::from(byte))
        };
        // What the CPU wrote here when it last saved; 0 means the mask of the first SSE CPUs.
        let own = &self.blocks[0].0[MXCSR_MASK];
        let mask = match u32::from_le_bytes(own.try_into().unwrap_or_default()) {
            0 => 0xffbf,
            mask => mask,
        };
        let header_fine = format().components.is_none_or(|components| {
            word(STATE_BITS) & !components == 0
                && bytes[STATE_BITS.end..HEADER_END]
                    .iter()
                    .all(|&byte| byte == 0)
        });
        word(MXCSR) & !u64::from(mask) == 0 && header_fine
    }
}

/// Saves this core's state.
///
/// # Safety
///
/// `area` is an [`Area`]'s pointer, and the area lives.
pub(crate) unsafe fn save(area: *mut u8) {
    match format().components {
        // SAFETY: the area is long enough and aligned.
        Some(_) => unsafe {
            core::arch::asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        },
        // SAFETY: the area is long enough and aligned.
        None => unsafe { _fxsave64(area) },
    }
}

/// Loads a state into this core.
///
/// # Safety
///
/// As for [`save`].
pub(crate) unsafe fn load(area: *const u8) {
    match format().components {
        // SAFETY: the area holds what `save` or `set` left there, which the CPU accepts.
        Some(_) => unsafe {
            core::arch::asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        },
        // SAFETY: as above.
        None => unsafe { _fxrstor64(area) },
    }
}

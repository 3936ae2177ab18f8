//! This CPU: its maker, model and microcode, and the errata that it has.
// UNSAFETY: reads model-specific registers.
#![expect(unsafe_code, reason = "model-specific registers")]

use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

use super::errata::{self, Cpu, Vendor};

/// Names this CPU's errata in one line of the log.
pub(crate) fn tell_errata() {
    let Some(cpu) = this() else { return };
    // SAFETY: each is a register of this CPU's family, as `of` says.
    let found = errata::of(&cpu, |register| unsafe { Msr::new(register).read() });
    let Cpu {
        family,
        model,
        stepping,
        revision,
        ..
    } = cpu;
    if found.is_empty() {
        log::debug!("no errata known: family {family:#x} model {model:#x} microcode {revision:#x}");
        return;
    }
    log::warn!(
        "this CPU (family {family:#x}, model {model:#x}, stepping {stepping}, microcode \
         {revision:#x}) has {}",
        found.join(", ")
    );
}

/// Returns this CPU; `None` in a virtual machine, or if it is another maker's.
fn this() -> Option<Cpu> {
    /// Intel SDM volume 3A, section 10.11.7.1; on AMD's the revision is in the low half (Linux
    /// `arch/x86/kernel/cpu/microcode/amd.c`).
    const MICROCODE: u32 = 0x8b;
    let id = CpuId::new();
    let vendor = match id.get_vendor_info()?.as_str() {
        "GenuineIntel" => Vendor::Intel,
        "AuthenticAMD" => Vendor::Amd,
        _ => return None,
    };
    let features = id
        .get_feature_info()
        .filter(|info| !info.has_hypervisor())?;
    let mut register = Msr::new(MICROCODE);
    if vendor == Vendor::Intel {
        // The CPU writes the revision there when it is asked for its features.
        // SAFETY: only microcode is told by it.
        unsafe { register.write(0) };
        let _ = core::arch::x86_64::__cpuid(1);
    }
    // SAFETY: every 64-bit CPU of both makers has it.
    let value = unsafe { register.read() };
    let revision = match vendor {
        Vendor::Intel => value >> 32,
        Vendor::Amd => value & 0xffff_ffff,
    };
    // Intel SDM volume 2A, CPUID, leaf 7: the register of flaws.
    let has_leaf = core::arch::x86_64::__cpuid(0).eax >= 7;
    let tells_flaws = has_leaf && core::arch::x86_64::__cpuid_count(7, 0).edx & 1 << 29 != 0;
    Some(Cpu {
        vendor,
        family: features.family_id(),
        model: features.model_id(),
        stepping: features.stepping_id(),
        revision: u32::try_from(revision).unwrap_or(0),
        tells_flaws,
    })
}

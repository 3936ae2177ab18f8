//! Errata of CPUs that touch what is used here, named in the log if this CPU has them and neither
//! its microcode nor firmware's settings avoid them.
//!
//! `identify` asks the CPU. Nothing is worked around, as no such CPU was at hand to try it on;
//! newer firmware is the remedy. In a virtual machine nothing is looked for: the host answers for
//! its CPUs. Left out is what touches features that are not used: the APIC's TSC deadline, PCIDs
//! and INVPCID, XSAVES, MWAIT, RDSEED, large pages of programs.

use alloc::vec::Vec;

/// Makers of CPUs that have errata here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vendor {
    Intel,
    Amd,
}

/// A CPU and its microcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) vendor: Vendor,
    pub(super) family: u8,
    pub(super) model: u8,
    pub(super) stepping: u8,
    /// The microcode's.
    pub(super) revision: u32,
    /// It has the register that tells which flaws of speculation it lacks.
    pub(super) tells_flaws: bool,
}

/// Bits of a register that show that an erratum is avoided if they are set, or, for `wanted` 0,
/// clear.
struct Mitigation {
    register: u32,
    bits: u64,
    wanted: u64,
}

/// An erratum.
struct Erratum {
    /// Its name, and its effect.
    text: &'static str,
    /// Whether a CPU with its microcode has it.
    is_of: fn(&Cpu) -> bool,
    /// The register that shows that firmware's settings avoid it, on the CPUs that have one.
    avoided: Option<Mitigation>,
}

/// AMD's configuration of the decoder.
const DECODER: u32 = 0xc001_1029;

const ERRATA: [Erratum; 6] = [
    // Linux `arch/x86/kernel/cpu/amd.c` and `process.c`, X86_BUG_AMD_E400; AMD 41322.
    Erratum {
        text: "erratum 400 (in C1E the APIC's timer stops: sleeping cores wake late; turn C1E off)",
        is_of: |cpu| cpu.is_amd(0x0f, 0x41..=0xff) || cpu.is_amd(0x10, 0x02..=0xff),
        avoided: Some(Mitigation {
            register: 0xc001_0055,
            bits: 0x1800_0000,
            wanted: 0,
        }),
    },
    // FreeBSD `sys/amd64/amd64/initcpu.c`, init_amd; AMD 41322 and 44739, erratum 721.
    Erratum {
        text: "erratum 721 (a stack pointer may become wrong)",
        is_of: |cpu| cpu.is_amd(0x10, 0..=0xff) || cpu.is_amd(0x12, 0..=0xff),
        avoided: Some(Mitigation {
            register: DECODER,
            bits: 1,
            wanted: 1,
        }),
    },
    // Linux `arch/x86/kernel/cpu/amd.c`, cpu_has_zenbleed_microcode, zen2_zenbleed_check.
    Erratum {
        text: "Zenbleed (a program reads vector registers of others)",
        is_of: has_zenbleed,
        avoided: Some(Mitigation {
            register: DECODER,
            bits: 1 << 9,
            wanted: 1 << 9,
        }),
    },
    // Linux `arch/x86/kernel/cpu/amd.c`, init_amd_zen4, MSR_ZEN4_BP_CFG; AMD 57095.
    Erratum {
        text: "erratum 1485 (with SMT an instruction may be taken for an invalid one)",
        is_of: |cpu| cpu.is_amd(0x19, 0x10..=0x1f) || cpu.is_amd(0x19, 0x60..=0xaf),
        avoided: Some(Mitigation {
            register: 0xc001_102e,
            bits: 1 << 5,
            wanted: 1 << 5,
        }),
    },
    // Intel SKL150, KBL095, SKX150; revisions by Debian's changelog of intel-microcode,
    // 3.20170511.1 and 3.20170707.1.
    Erratum {
        text: "SKL150 (with hyper-threading registers may become wrong in short loops)",
        is_of: has_skl150,
        avoided: None,
    },
    // Intel "Speculative Execution Side Channel Mitigations", IA32_ARCH_CAPABILITIES.RDCL_NO.
    Erratum {
        text: "Meltdown and L1TF (a program can read all memory of this node)",
        is_of: |cpu| cpu.vendor == Vendor::Intel && cpu.family == 6,
        avoided: Some(Mitigation {
            register: 0x10a,
            bits: 1,
            wanted: 1,
        }),
    },
];

impl Cpu {
    fn is_amd(&self, family: u8, models: core::ops::RangeInclusive<u8>) -> bool {
        self.vendor == Vendor::Amd && self.family == family && models.contains(&self.model)
    }
}

fn has_zenbleed(cpu: &Cpu) -> bool {
    let fixed = match cpu.model {
        0x30..=0x3f => 0x0830_107b,
        0x60..=0x67 => 0x0860_010c,
        0x68..=0x6f => 0x0860_8107,
        0x70..=0x7f => 0x0870_1033,
        // Without any fixed revision known (Xen's commit "extend Zenbleed check to models \"good\"
        // ucode isn't known for").
        0x90..=0x91 => u32::MAX,
        0xa0..=0xaf => 0x08a0_0009,
        _ => return false,
    };
    cpu.is_amd(0x17, 0..=0xff) && cpu.revision < fixed
}

fn has_skl150(cpu: &Cpu) -> bool {
    let fixed = match (cpu.model, cpu.stepping) {
        (0x4e, 3) => 0xb9,
        (0x5e, 3) => 0xba,
        (0x55, 4) => 0x0200_0022,
        (0x8e, 9) => 0x62,
        (0x8e, 10) => 0x66,
        (0x9e, 9) => 0x5e,
        _ => return false,
    };
    cpu.vendor == Vendor::Intel && cpu.family == 6 && cpu.revision < fixed
}

/// Returns the errata that a CPU has, which `register` tells more about.
pub(super) fn of(cpu: &Cpu, register: impl Fn(u32) -> u64) -> Vec<&'static str> {
    let avoided = |erratum: &Erratum| {
        erratum.avoided.as_ref().is_some_and(|avoided| {
            // Intel's register is there only if CPUID says so.
            let is_there = cpu.vendor == Vendor::Amd || cpu.tells_flaws;
            is_there && register(avoided.register) & avoided.bits == avoided.wanted
        })
    };
    let found = ERRATA.iter().filter(|erratum| (erratum.is_of)(cpu));
    found
        .filter(|erratum| !avoided(erratum))
        .map(|erratum| erratum.text)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MELTDOWN: usize = 5;

    fn intel(model: u8, stepping: u8, revision: u32) -> Cpu {
        Cpu {
            vendor: Vendor::Intel,
            family: 6,
            model,
            stepping,
            revision,
            tells_flaws: false,
        }
    }

    fn amd(family: u8, model: u8, revision: u32) -> Cpu {
        Cpu {
            vendor: Vendor::Amd,
            family,
            ..intel(model, 0, revision)
        }
    }

    /// Returns the indices of the errata that a CPU has, whose registers hold `value`.
    fn indices(cpu: Cpu, value: u64) -> Vec<usize> {
        let found = of(&cpu, |_| value);
        let index = |text| ERRATA.iter().position(|erratum| erratum.text == text);
        found.into_iter().filter_map(index).collect()
    }

    #[test]
    fn errata_are_known_by_model_and_microcode() {
        assert_eq!(indices(amd(0x17, 0x31, 0x0830_107a), 0), [2]);
        assert_eq!(indices(amd(0x17, 0x31, 0x0830_107b), 0), []);
        assert_eq!(indices(amd(0x17, 0x01, 0), 0), [], "Zen 1");
        assert_eq!(indices(amd(0x19, 0x11, 0), 0), [3]);
        assert_eq!(indices(amd(0x19, 0x01, 0), 0), [], "Zen 3");
        assert_eq!(indices(intel(0x5e, 3, 0xb9), 0), [4, MELTDOWN]);
        assert_eq!(indices(intel(0x5e, 3, 0xba), 0), [MELTDOWN]);
        assert_eq!(indices(intel(0x3f, 2, 0x49), 0), [MELTDOWN], "Haswell-EP");
    }

    #[test]
    fn settings_of_firmware_that_avoid_an_erratum_count() {
        // An Opteron 6100: C1E is on, and 721 isn't avoided; the reverse.
        assert_eq!(indices(amd(0x10, 9, 0), 0x1000_0000), [0, 1]);
        assert_eq!(indices(amd(0x10, 9, 0), 0x0000_0001), []);
        assert_eq!(indices(amd(0x17, 0x71, 0), 1 << 9), []);
        assert_eq!(indices(amd(0x19, 0x61, 0), 1 << 5), []);
    }

    #[test]
    fn a_register_that_is_not_there_is_not_read() {
        let mut cpu = intel(0x55, 7, 0x0500_0000);
        let found = of(&cpu, |register| panic!("read of {register:#x}"));
        assert_eq!(found.len(), 1);
        cpu.tells_flaws = true;
        assert_eq!(indices(cpu, 1), [], "Cascade Lake");
        assert_eq!(indices(cpu, 0), [MELTDOWN]);
    }
}

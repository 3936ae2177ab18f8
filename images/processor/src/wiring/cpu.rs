//! Facts about the CPU for programs, from CPUID.

use alloc::string::{String, ToString};

use processor::CpuFacts;
use raw_cpuid::{CpuId, cpuid};

/// Features of CPUID leaf 1, `edx`, by bit, as Linux calls them
/// (`arch/x86/include/asm/cpufeatures.h`). An empty name is left out.
const EDX: [&str; 32] = [
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep", "mtrr", "pge",
    "mca", "cmov", "pat", "pse36", "pn", "clflush", "", "dts", "acpi", "mmx", "fxsr", "sse",
    "sse2", "ss", "ht", "tm", "ia64", "pbe",
];
/// Features of leaf 1, `ecx`.
const ECX: [&str; 32] = [
    "pni",
    "pclmulqdq",
    "dtes64",
    "monitor",
    "ds_cpl",
    "vmx",
    "smx",
    "est",
    "tm2",
    "ssse3",
    "cid",
    "sdbg",
    "fma",
    "cx16",
    "xtpr",
    "pdcm",
    "",
    "pcid",
    "dca",
    "sse4_1",
    "sse4_2",
    "x2apic",
    "movbe",
    "popcnt",
    "tsc_deadline_timer",
    "aes",
    "xsave",
    "",
    "avx",
    "f16c",
    "rdrand",
    "hypervisor",
];
/// Features of leaf 7, `ebx`.
const EBX_7: [&str; 32] = [
    "fsgsbase",
    "",
    "",
    "bmi1",
    "hle",
    "avx2",
    "",
    "smep",
    "bmi2",
    "erms",
    "invpcid",
    "rtm",
    "",
    "",
    "",
    "",
    "avx512f",
    "avx512dq",
    "rdseed",
    "adx",
    "smap",
    "avx512ifma",
    "",
    "clflushopt",
    "clwb",
    "",
    "",
    "",
    "avx512cd",
    "sha_ni",
    "avx512bw",
    "avx512vl",
];

/// Reads CPUID.
pub(super) fn facts() -> CpuFacts {
    let id = CpuId::new();
    let features = id.get_feature_info();
    let vendor = id
        .get_vendor_info()
        .map(|vendor| vendor.as_str().to_string());
    let brand = id.get_processor_brand_string();
    let mut flags = String::new();
    let one = cpuid!(1);
    let mut sets = alloc::vec![(one.edx, EDX), (one.ecx, ECX)];
    if id.get_extended_feature_info().is_some() {
        sets.push((cpuid!(7, 0).ebx, EBX_7));
    }
    for (bits, names) in sets {
        for (bit, name) in names.iter().enumerate() {
            if bits >> bit & 1 != 0 && !name.is_empty() {
                flags.push_str(name);
                flags.push(' ');
            }
        }
    }
    // 64-bit mode, SYSCALL and no-execute: the kernel does not run without them.
    flags.push_str("syscall nx lm");
    CpuFacts {
        vendor: vendor.unwrap_or_default(),
        name: brand.map_or_else(String::new, |brand| brand.as_str().trim().to_string()),
        family: features.as_ref().map_or(0, |one| one.family_id().into()),
        model: features.as_ref().map_or(0, |one| one.model_id().into()),
        stepping: features.as_ref().map_or(0, |one| one.stepping_id().into()),
        megahertz: libos::tsc_hz() / 1_000_000,
        flags,
    }
}

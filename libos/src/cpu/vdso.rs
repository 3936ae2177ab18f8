//! The time without the kernel: code that programs run, and the words that it reads.
//!
//! `vdso.s` is the code; whoever maps it puts [`data`] into the page before it, as `vdso.s` says.
//! Its core's number a program reads by RDTSCP, from the register that `init_core` sets.
// UNSAFETY: reads the code's bytes between two labels, and writes a model-specific register.
#![expect(
    unsafe_code,
    reason = "the code's bytes, and a model-specific register"
)]

use core::slice;
use core::time::Duration;

use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

use crate::cpu::core_local;
use crate::task::time;

core::arch::global_asm!(include_str!("vdso.s"), options(att_syntax));

/// `IA32_TSC_AUX`, which RDTSCP gives (Intel SDM volume 4, table 2-2).
const TSC_AUX: u32 = 0xc000_0103;
/// The number of bytes from the beginning of its page at which the code lies.
pub const CODE_OFFSET: usize = 0xc00;

unsafe extern "C" {
    static vdso_code: u8;
    static vdso_code_end: u8;
    static vdso_clock_gettime: u8;
    static vdso_gettimeofday: u8;
    static vdso_time: u8;
    static vdso_getcpu: u8;
    static vdso_clock_getres: u8;
}

/// Returns the code.
#[must_use]
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const vdso_code, &raw const vdso_code_end);
    // SAFETY: the labels bound initialized bytes that nothing writes.
    unsafe { slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Returns the functions: their names, and their places in the code.
#[must_use]
pub fn functions() -> [(&'static str, usize); 5] {
    let start = (&raw const vdso_code).addr();
    [
        (
            "clock_getres",
            (&raw const vdso_clock_getres).addr() - start,
        ),
        (
            "clock_gettime",
            (&raw const vdso_clock_gettime).addr() - start,
        ),
        ("getcpu", (&raw const vdso_getcpu).addr() - start),
        (
            "gettimeofday",
            (&raw const vdso_gettimeofday).addr() - start,
        ),
        ("time", (&raw const vdso_time).addr() - start),
    ]
}

/// Returns the words that the code reads; `epoch` is the time from 1970 to the clock's beginning.
#[must_use]
pub fn data(epoch: Duration) -> [u64; 4] {
    let [start, scale] = time::clock();
    let epoch = u64::try_from(epoch.as_nanos()).unwrap_or(0);
    [start, scale, epoch, has_rdtscp().into()]
}

fn has_rdtscp() -> bool {
    let id = CpuId::new();
    id.get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_rdtscp())
}

/// Sets `TSC_AUX`, by which RDTSCP gives programs their core's number.
pub(crate) fn init_core() {
    if has_rdtscp() {
        // SAFETY: the register is there with RDTSCP, and nothing but programs reads it.
        unsafe { Msr::new(TSC_AUX).write(core_local::current() as u64) };
    }
}

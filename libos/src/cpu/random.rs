//! Random bytes, for what programs are handed at their start; not for keys where the CPU has no
//! generator of its own.
// UNSAFETY: uses an instruction that not every CPU has.
#![expect(unsafe_code, reason = "CPU instructions")]

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use spin::Once;

/// Intel's advice: a generator that fails so often in a row is broken.
const ATTEMPTS: usize = 10;

/// Fills `bytes` by RDRAND, or from the time stamp counter where the CPU has no RDRAND.
pub fn random_bytes(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(size_of::<u64>()) {
        let word = hardware().unwrap_or_else(from_time).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn hardware() -> Option<u64> {
    static PRESENT: Once<bool> = Once::new();
    let present = *PRESENT.call_once(|| {
        let features = CpuId::new().get_feature_info();
        features.is_some_and(|info| info.has_rdrand()) && varies()
    });
    present.then(step).flatten()
}

/// Returns whether the generator gives different words: AMD's of family 17h gave ones only, under
/// early microcode (Linux `arch/x86/kernel/cpu/rdrand.c`).
fn varies() -> bool {
    const LOOKS: usize = 8;
    let first = step();
    let varies = (0..LOOKS).any(|_| step() != first);
    if !varies {
        log::warn!("RDRAND gives {first:x?} only: it is not used");
    }
    varies
}

/// Takes a word of the generator, which the CPU has.
fn step() -> Option<u64> {
    let mut word = 0;
    // SAFETY: the CPU has the instruction.
    (0..ATTEMPTS)
        .any(|_| unsafe { core::arch::x86_64::_rdrand64_step(&mut word) } == 1)
        .then_some(word)
}

/// SplitMix64 over the counter (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014).
fn from_time() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    // SAFETY: every 64-bit CPU has the counter.
    let ticks = unsafe { core::arch::x86_64::_rdtsc() };
    let mut word = STATE
        .fetch_add(ticks | 1, Ordering::Relaxed)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

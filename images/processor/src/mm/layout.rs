//! The places of an address space's parts, and the random numbers that move them.
//!
//! Linux randomizes pages (`arch/x86/mm/mmap.c`, `fs/binfmt_elf.c`). Here all but the heap move by
//! chunks of 2 MB, so that a program takes the same chunks and leaf tables wherever it lies. The
//! ranges are Linux's, which sanitizers rely on (LLVM `compiler-rt`, `tsan_platform.h`).
//!
//! | what moves | bits | range | Linux's bits |
//! |---|---|---|---|
//! | position-independent programs | 19 | 1 TB | 28 |
//! | mappings, the interpreter's too | 19 | 1 TB | 28 |
//! | stack and vDSO | 13 | 16 GB | 22 |
//! | first contents of the stack | 9 | 8 KB | 9 |
//! | heap behind the program | 8 | 1 MB | 18 |

use core::fmt;
use core::str::FromStr;
use core::sync::atomic::{AtomicU64, Ordering};

use messages::{CHUNK_SIZE, PAGE_SIZE};

use super::{MMAP_TOP, STACK_TOP};

/// The address of position-independent programs, if it is fixed.
const PROGRAM: u64 = 0x5555_5540_0000;
const PROGRAM_BITS: u32 = 19;
const MAPPINGS_BITS: u32 = 19;
const STACK_BITS: u32 = 13;
const SKIP_BITS: u32 = 9;
const HEAP_BITS: u32 = 8;

/// The places of one address space's parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// The address of a position-independent program.
    pub(crate) program: u64,
    /// Bytes between the program's end and the heap, a multiple of the page size.
    pub(crate) heap_gap: u64,
    /// One past the highest address that a mapping without a wish gets.
    pub(crate) mmap_top: u64,
    /// One past the highest address of the first thread's stack; the vDSO is there.
    pub(crate) stack_top: u64,
    /// Bytes between the stack's top and its first contents, a multiple of 16.
    pub(crate) stack_skip: u64,
}

impl Layout {
    /// The places of a program that asked for no random ones.
    pub(crate) const FIXED: Self = Self {
        program: PROGRAM,
        heap_gap: 0,
        mmap_top: MMAP_TOP,
        stack_top: STACK_TOP,
        stack_skip: 0,
    };

    /// Returns the places that 128 random bits lead to.
    fn random(mut bits: u128) -> Self {
        let mut take = |count: u32| {
            let taken = bits & ((1 << count) - 1);
            bits >>= count;
            u64::try_from(taken).expect("at most 19 bits")
        };
        let below = MMAP_TOP - (CHUNK_SIZE << STACK_BITS);
        Self {
            program: PROGRAM + take(PROGRAM_BITS) * CHUNK_SIZE,
            heap_gap: take(HEAP_BITS) * PAGE_SIZE,
            mmap_top: below - take(MAPPINGS_BITS) * CHUNK_SIZE,
            stack_top: STACK_TOP - take(STACK_BITS) * CHUNK_SIZE,
            stack_skip: take(SKIP_BITS) * 16,
        }
    }
}

/// The layout of address spaces: the boot option `aslr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Randomize {
    /// By the machine's random numbers.
    #[default]
    On,
    /// Not at all.
    Off,
    /// By this seed: the first program, the second and so on lie in the same places in each run.
    Seed(u64),
}

impl FromStr for Randomize {
    type Err = WrongRandomize;
    fn from_str(text: &str) -> Result<Self, WrongRandomize> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            seed => seed.parse().map(Self::Seed).map_err(|_| WrongRandomize),
        }
    }
}

/// A value of the option `aslr` that means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongRandomize;

impl fmt::Display for WrongRandomize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is neither on nor off nor a number, the seed")
    }
}

/// The layouts of a node's address spaces.
#[derive(Debug, Default)]
pub(crate) struct Layouts {
    randomize: Randomize,
    /// Layouts made from the seed.
    made: AtomicU64,
}

impl Layouts {
    pub(crate) fn new(randomize: Randomize) -> Self {
        Self {
            randomize,
            made: AtomicU64::new(0),
        }
    }

    /// Returns whether address spaces differ.
    pub(crate) fn are_random(&self) -> bool {
        self.randomize != Randomize::Off
    }

    /// Returns the next program's layout; `random` fills in the machine's random numbers.
    pub(crate) fn next(&self, random: impl FnOnce(&mut [u8])) -> Layout {
        match self.randomize {
            Randomize::Off => Layout::FIXED,
            Randomize::On => {
                let mut bytes = [0; 16];
                random(&mut bytes);
                Layout::random(u128::from_le_bytes(bytes))
            }
            Randomize::Seed(seed) => {
                let nth = self.made.fetch_add(2, Ordering::Relaxed);
                let half = |nth| u128::from(split_mix(seed, nth));
                Layout::random(half(nth) << 64 | half(nth + 1))
            }
        }
    }
}

/// Returns number `nth` of the sequence `SplitMix64` of a seed (Steele, Lea and Flood, "Fast
/// splittable pseudorandom number generators", 2014).
fn split_mix(seed: u64, nth: u64) -> u64 {
    let step = nth.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut z = seed.wrapping_add(step);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use messages::USER_END;
    use proptest::prelude::*;

    use super::*;

    fn check(layout: Layout) {
        let Layout {
            program,
            heap_gap,
            mmap_top,
            stack_top,
            stack_skip,
        } = layout;
        // 32 TB at least for what is mapped, and the stack's 128 MB above it.
        assert!(program + (32 << 40) <= mmap_top, "{layout:x?}");
        assert!(mmap_top + (128 << 20) < stack_top, "{layout:x?}");
        assert!(stack_top + 2 * PAGE_SIZE <= USER_END, "{layout:x?}");
        assert!(stack_skip < 2 * PAGE_SIZE && stack_skip.is_multiple_of(16));
        assert!(heap_gap < 1 << 20 && heap_gap.is_multiple_of(PAGE_SIZE));
        // The same places in chunks as without random numbers.
        for (place, fixed) in [
            (program, Layout::FIXED.program),
            (mmap_top, Layout::FIXED.mmap_top),
            (stack_top, Layout::FIXED.stack_top),
        ] {
            assert_eq!(place % CHUNK_SIZE, fixed % CHUNK_SIZE, "{layout:x?}");
        }
    }

    #[test]
    fn extremes_leave_room_for_all_parts() {
        check(Layout::FIXED);
        check(Layout::random(0));
        check(Layout::random(u128::MAX));
    }

    proptest! {
        #[test]
        fn any_layout_leaves_room_for_all_parts(bits: u128) {
            check(Layout::random(bits));
        }
    }

    #[test]
    fn each_bit_moves_something() {
        let bits = PROGRAM_BITS + MAPPINGS_BITS + STACK_BITS + SKIP_BITS + HEAP_BITS;
        let mut seen = std::collections::BTreeSet::new();
        for bit in 0..bits {
            let layout = Layout::random(1 << bit);
            assert_ne!(layout, Layout::random(0), "bit {bit}");
            assert!(seen.insert(std::format!("{layout:?}")), "bit {bit}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_layouts_in_each_run() {
        let of = |seed| {
            let layouts = Layouts::new(Randomize::Seed(seed));
            [(); 3].map(|()| layouts.next(|_| unreachable!("no random numbers but the seed's")))
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let [first, second, third] = of(7);
        assert!(first != second && second != third);
        // The first numbers of seed 0 (the generator's published test values).
        assert_eq!(split_mix(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(split_mix(0, 1), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_option_is_on_off_or_a_seed() {
        assert_eq!("on".parse(), Ok(Randomize::On));
        assert_eq!("off".parse(), Ok(Randomize::Off));
        assert_eq!("42".parse(), Ok(Randomize::Seed(42)));
        for wrong in ["", "yes", "-1", "0x1", "18446744073709551616"] {
            assert_eq!(wrong.parse::<Randomize>(), Err(WrongRandomize), "{wrong}");
        }
    }
}

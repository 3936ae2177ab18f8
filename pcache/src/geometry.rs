//! The shape of a cache: how many sets of how many ways, and which set a slot falls into.

use crate::divisor::Divisor;
use crate::{Error, LineId, Slot};

/// Bytes in a line: one page.
pub const LINE_SIZE: usize = 4096;

/// The fewest ways a cache may have.
///
/// One instruction may need several pages at once (its own, its operands', the stack's). If they
/// all fall into one set of fewer ways, each fault evicts what the last one brought and the program
/// never gets on.
pub const MIN_WAYS: u32 = 4;

/// The most ways: a set keeps a bit for each in a word.
pub const MAX_WAYS: u32 = 64;

/// The shape of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    sets: Divisor,
    ways: Divisor,
}

impl Geometry {
    /// Returns the largest cache of `ways` ways that fits into `bytes` bytes; the number of sets
    /// need not be a power of two.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewWays`], [`Error::TooSmall`] or [`Error::TooLarge`].
    pub fn new(bytes: u64, ways: u32) -> Result<Self, Error> {
        if ways < MIN_WAYS {
            return Err(Error::TooFewWays(ways));
        }
        if ways > MAX_WAYS {
            return Err(Error::TooManyWays(ways));
        }
        let sets = bytes / LINE_SIZE as u64 / u64::from(ways);
        if sets == 0 {
            return Err(Error::TooSmall { bytes, ways });
        }
        // A line's number is 32 bits wide.
        match u32::try_from(sets) {
            Ok(sets) if sets.checked_mul(ways).is_some() => Ok(Self {
                sets: Divisor::new(sets),
                ways: Divisor::new(ways),
            }),
            _ => Err(Error::TooLarge(bytes)),
        }
    }

    /// Returns the number of sets.
    #[must_use]
    pub const fn sets(self) -> u32 {
        self.sets.get()
    }

    /// Returns the lines in each set.
    #[must_use]
    pub const fn ways(self) -> u32 {
        self.ways.get()
    }

    /// Returns the number of lines.
    #[must_use]
    pub const fn lines(self) -> u32 {
        self.sets() * self.ways()
    }

    /// Returns the bytes that the lines take: the part of the memory given that is used.
    #[must_use]
    pub const fn usable_bytes(self) -> u64 {
        self.lines() as u64 * LINE_SIZE as u64
    }

    /// Returns the set of `slot`.
    ///
    /// As many neighbouring slots as there are sets fall into different sets: within such a run the
    /// slot's number is only rotated. The rotation depends on the run, so that chunks which
    /// programs use at the same offsets do not meet in the same few sets.
    #[must_use]
    #[inline]
    pub fn set_of(self, slot: Slot) -> u32 {
        let sets = self.sets();
        let (run, within) = self.sets.divide(slot.raw());
        let turned = (((mix(run) >> 32) * u64::from(sets)) >> 32) as u32;
        let left = sets - within;
        if turned < left {
            within + turned
        } else {
            turned - left
        }
    }

    /// Returns the line that is way `way` of set `set`.
    pub(crate) fn line(self, set: u32, way: usize) -> LineId {
        let way = u32::try_from(way).expect("ways are counted in 32 bits");
        LineId(set * self.ways() + way)
    }

    /// Returns the set and way of `line`; `None` if the cache has no such line.
    pub(crate) fn place(self, line: LineId) -> Option<(u32, usize)> {
        let (set, way) = self.ways.divide(line.0.into());
        let set = u32::try_from(set).ok()?;
        (set < self.sets()).then_some((set, way as usize))
    }
}

/// Spreads every bit of `x` over all bits of the result (the finaliser of SplitMix64, Steele et
/// al., OOPSLA'14).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_uses_all_whole_sets() {
        let g = Geometry::new(8 << 20, 8).unwrap();
        assert_eq!((g.sets(), g.ways(), g.usable_bytes()), (256, 8, 8 << 20));
        let g = Geometry::new((3 << 20) + 4097, 8).unwrap();
        assert_eq!((g.sets(), g.usable_bytes()), (96, 3 << 20));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert_eq!(Geometry::new(1 << 20, 3), Err(Error::TooFewWays(3)));
        assert_eq!(Geometry::new(1 << 20, 65), Err(Error::TooManyWays(65)));
        assert_eq!(
            Geometry::new(0, 4),
            Err(Error::TooSmall { bytes: 0, ways: 4 })
        );
        assert_eq!(Geometry::new(u64::MAX, 4), Err(Error::TooLarge(u64::MAX)));
    }

    #[test]
    fn neighbouring_slots_fall_into_different_sets() {
        let g = Geometry::new(100 * 4 * 4096, 4).unwrap();
        let mut seen = vec![0; 100];
        for raw in 1_000..1_100 {
            seen[g.set_of(Slot::from_raw(raw)) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n == 1), "{seen:?}");
    }

    #[test]
    fn chunks_do_not_collide() {
        let g = Geometry::new(1024 * 4 * 4096, 4).unwrap();
        let mut sets: Vec<_> = (0..32)
            .map(|chunk| g.set_of(Slot::new(crate::ChunkId(chunk), 5)))
            .collect();
        sets.sort_unstable();
        sets.dedup();
        assert!(
            sets.len() > 24,
            "32 chunks' pages use only {} sets",
            sets.len()
        );
    }
}

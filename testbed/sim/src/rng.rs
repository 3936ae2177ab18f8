//! The RNG, from which all random choices come.

/// A generator of numbers that follow from a seed (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

/// A rate in parts per million.
pub type Ppm = u32;

impl Rng {
    /// Creates the generator of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Self(seed);
        rng.number();
        rng
    }

    /// Creates a generator for one purpose, independent of the others.
    pub(crate) fn of(seed: u64, purpose: u64) -> Self {
        Self::new(mix(seed ^ mix(purpose.wrapping_add(0x5eed))))
    }

    /// Draws any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Draws a number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.number().checked_rem(bound).unwrap_or(0)
    }

    /// Draws a number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Draws an index below `len`.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    /// Returns true with probability `rate`.
    pub(crate) fn chance(&mut self, rate: Ppm) -> bool {
        rate > 0 && self.below(1_000_000) < u64::from(rate)
    }

    /// Draws one of `of`.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }
}

/// Mixes 64 bits, so that each depends on all.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns a hash of 64 bits.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word)).wrapping_add(hash.rotate_left(7));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_others() {
        let numbers = |seed| {
            let mut rng = Rng::new(seed);
            [(); 8].map(|()| rng.number())
        };
        assert_eq!(numbers(3), numbers(3));
        assert_ne!(numbers(3), numbers(4));
    }

    #[test]
    fn chances_come_about_as_often_as_they_should() {
        let mut rng = Rng::new(1);
        let hits = (0..100_000).filter(|_| rng.chance(250_000)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        assert!(!(0..1000).any(|_| rng.chance(0)));
    }
}

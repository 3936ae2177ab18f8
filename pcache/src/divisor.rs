//! Division by a number that never changes, by a multiplication: a 64-bit division takes a CPU of
//! the ConnectX-3's time up to 90 cycles, and a miss asks several times for a set.

/// A divisor and its reciprocal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Divisor {
    by: u32,
    /// 2^64 / `by`, rounded down.
    reciprocal: u64,
}

impl Divisor {
    /// Returns the divisor `by`, which is not zero.
    pub(crate) const fn new(by: u32) -> Self {
        // 2^64 - 1 in the place of 2^64: the quotient is at most one too small all the same.
        let reciprocal = u64::MAX / by as u64;
        Self { by, reciprocal }
    }

    pub(crate) const fn get(self) -> u32 {
        self.by
    }

    /// Returns `x` divided by this, and the remainder.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a remainder of a 32-bit number, a high half"
    )]
    pub(crate) const fn divide(self, x: u64) -> (u64, u32) {
        let by = self.by as u64;
        let quotient = ((x as u128 * self.reciprocal as u128) >> 64) as u64;
        let rest = x - quotient * by;
        if rest >= by {
            (quotient + 1, (rest - by) as u32)
        } else {
            (quotient, rest as u32)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_divides(x: u64, by in 1..=u32::MAX) {
            let (quotient, rest) = Divisor::new(by).divide(x);
            prop_assert_eq!((quotient, u64::from(rest)), (x / u64::from(by), x % u64::from(by)));
        }
    }

    #[test]
    fn it_divides_at_the_ends() {
        for by in [1, 2, 3, u32::MAX] {
            for x in [
                0,
                1,
                2,
                u64::from(by) - 1,
                by.into(),
                u64::MAX - 1,
                u64::MAX,
            ] {
                let (quotient, rest) = Divisor::new(by).divide(x);
                assert_eq!(
                    (quotient, u64::from(rest)),
                    (x / u64::from(by), x % u64::from(by))
                );
            }
        }
    }
}

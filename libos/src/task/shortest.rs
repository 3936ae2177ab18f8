//! Minimum over several measurements of a span in which others may run.

/// The shortest of several measurements of one span: a delay can only lengthen one.
#[derive(Default)]
pub(crate) struct Shortest {
    count: Option<u64>,
}

impl Shortest {
    /// Adds a measurement; says whether it agrees with the shortest so far to one percent.
    pub(crate) fn add(&mut self, count: u64) -> bool {
        let before = self
            .count
            .replace(self.count.map_or(count, |shortest| shortest.min(count)));
        before.is_some_and(|before| before.abs_diff(count) <= before / 100)
    }

    /// The shortest.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_counts_once_another_agrees() {
        let mut shortest = Shortest::default();
        let agreed = [900, 500, 700, 502].map(|count| shortest.add(count));
        assert_eq!(agreed, [false, false, false, true]);
        assert_eq!(shortest.count(), Some(500));
    }
}

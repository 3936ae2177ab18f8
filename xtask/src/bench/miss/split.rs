//! Instructions an operation, told apart by why they are executed: its own work, waiting, and what
//! P does as time passes.
//!
//! The number of looks for a completion before it comes depends on the speed of the machine, and so
//! does the number of timers that run out meanwhile. So the same work is counted at three paces: as
//! it is, and with P held after each doorbell until the transfer is done, which leaves hardly a
//! look that finds nothing, for a short and for a long time. Each instruction's count is `own +
//! look · looks + background · time`; a least-squares fit over all runs gives the three.

use std::collections::{BTreeMap, BTreeSet};

/// Executions an operation, by address.
pub(super) type PerOperation = BTreeMap<u64, f64>;

/// The least variance of looks that tells what a look costs, and that of microseconds that tells
/// what time costs.
const ENOUGH: f64 = 0.1;
/// See [`ENOUGH`].
const ENOUGH_US: f64 = 50.0 * 50.0;
/// The part of both variances that looks and time must not share.
const INDEPENDENT: f64 = 0.01;

/// An operation in a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Executions by address.
    pub(super) counts: PerOperation,
    /// Looks for completions.
    pub(super) looks: f64,
    /// Microseconds by P's clock.
    pub(super) time_us: f64,
    /// Instructions in the stages of excursions.
    pub(super) stages: [f64; 3],
}

impl Sample {
    /// Returns the executions at an address.
    pub(super) fn count(&self, address: u64) -> f64 {
        self.counts.get(&address).copied().unwrap_or(0.0)
    }
}

/// Weights of the samples, by which sums of their counts give a coefficient.
struct Fit {
    look: Vec<f64>,
    time: Vec<f64>,
    own: Vec<f64>,
    has_looks: bool,
}

impl Fit {
    /// Solves the normal equations for samples with so many looks and so much time. Of two
    /// explanations that the samples can't tell apart, looks are preferred.
    fn of(samples: &[Sample]) -> Self {
        let count = samples.len() as f64;
        let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
        let (mean_looks, mean_time) = (mean(|sample| sample.looks), mean(|sample| sample.time_us));
        let looks: Vec<f64> = samples
            .iter()
            .map(|sample| sample.looks - mean_looks)
            .collect();
        let times: Vec<f64> = samples
            .iter()
            .map(|sample| sample.time_us - mean_time)
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (of_looks, of_both, of_time) = (
            dot(&looks, &looks),
            dot(&looks, &times),
            dot(&times, &times),
        );
        let has_looks = of_looks >= ENOUGH * count;
        let has_time = of_time >= ENOUGH_US * count;
        let determinant = of_looks * of_time - of_both * of_both;
        let is_both = has_looks && has_time && determinant > INDEPENDENT * of_looks * of_time;
        let weight = |index: usize| match (is_both, has_looks, has_time) {
            (true, ..) => (
                (looks[index] * of_time - times[index] * of_both) / determinant,
                (times[index] * of_looks - looks[index] * of_both) / determinant,
            ),
            (false, true, _) => (looks[index] / of_looks, 0.0),
            (false, false, true) => (0.0, times[index] / of_time),
            (false, false, false) => (0.0, 0.0),
        };
        let (look, time): (Vec<f64>, Vec<f64>) = (0..samples.len()).map(weight).unzip();
        let own = look
            .iter()
            .zip(&time)
            .map(|(look, time)| 1.0 / count - look * mean_looks - time * mean_time);
        Self {
            own: own.collect(),
            look,
            time,
            has_looks,
        }
    }

    fn sum(weights: &[f64], values: impl Iterator<Item = f64>) -> f64 {
        weights
            .iter()
            .zip(values)
            .map(|(weight, value)| weight * value)
            .sum()
    }
}

/// Instructions of an operation by the reason for their execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Split {
    /// Instructions of the operation itself, by address: with the looks that find what it waits
    /// for.
    pub(super) work: PerOperation,
    /// The same by the stages of excursions.
    pub(super) stages: [f64; 3],
    /// Instructions of a look that finds nothing; `None` if too few were seen.
    pub(super) a_look: Option<f64>,
    /// Instructions that P executes in a millisecond whatever the program does.
    pub(super) background: f64,
}

impl Split {
    /// Splits samples of different paces. `finds` is how many looks of an operation find what it
    /// waits for.
    pub(super) fn of(samples: &[Sample], finds: f64) -> Self {
        let fit = Fit::of(samples);
        let (mut split, mut a_look, mut a_us) = (Self::default(), 0.0, 0.0);
        let addresses: BTreeSet<u64> = samples
            .iter()
            .flat_map(|sample| sample.counts.keys().copied())
            .collect();
        for address in addresses {
            let values = || samples.iter().map(|sample| sample.count(address));
            let look = Fit::sum(&fit.look, values());
            split
                .work
                .insert(address, Fit::sum(&fit.own, values()) + look * finds);
            a_look += look;
            a_us += Fit::sum(&fit.time, values());
        }
        split.stages = [0, 1, 2].map(|at| {
            let values = || samples.iter().map(|sample| sample.stages[at]);
            Fit::sum(&fit.own, values()) + Fit::sum(&fit.look, values()) * finds
        });
        split.a_look = fit.has_looks.then_some(a_look);
        split.background = a_us * 1000.0;
        split
    }

    /// Returns the instructions of the operation itself.
    pub(super) fn total(&self) -> f64 {
        self.work.values().sum()
    }
}

/// Returns the largest difference of values from their mean, as a share of it.
pub(super) fn spread(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let off = values
        .iter()
        .map(|value| (value - mean).abs())
        .fold(0.0, f64::max);
    if mean > 0.0 { off / mean } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At 1 a look begins; 2 runs once a look, 3 thrice; 4 is work, 5 the end of a look that finds;
    /// 6 runs at each millisecond.
    fn sample(looks: f64, time_us: f64) -> Sample {
        let counts = [
            (1, looks),
            (2, looks),
            (3, 3.0 * looks),
            (4, 100.0),
            (5, 1.0),
            (6, time_us / 1000.0),
        ]
        .into();
        Sample {
            counts,
            looks,
            time_us,
            stages: [40.0, 5.0 * looks + time_us / 1000.0, 61.0],
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn waiting_and_background_are_told_from_work() {
        let split = Split::of(
            &[sample(8.0, 50.0), sample(1.5, 200.0), sample(1.2, 700.0)],
            1.0,
        );
        assert!(near(split.total(), 100.0 + 1.0 + 5.0), "{split:?}");
        assert!(
            near(split.a_look.unwrap(), 5.0) && near(split.background, 1.0),
            "{split:?}"
        );
        assert!(
            near(split.stages[0], 40.0)
                && near(split.stages[1], 5.0)
                && near(split.stages[2], 61.0),
            "{split:?}"
        );
    }

    #[test]
    fn a_held_run_may_look_more_often_than_another() {
        let samples = [
            sample(8.0, 50.0),
            sample(12.0, 250.0),
            sample(1.2, 700.0),
            sample(7.0, 40.0),
            sample(1.1, 210.0),
        ];
        let split = Split::of(&samples, 1.0);
        assert!(near(split.total(), 106.0), "{split:?}");
    }

    #[test]
    fn without_looks_all_but_the_background_is_work() {
        let split = Split::of(&[sample(0.0, 50.0), sample(0.0, 350.0)], 0.0);
        assert!(
            near(split.total(), 101.0) && near(split.background, 1.0),
            "{split:?}"
        );
        assert_eq!(split.a_look, None);
        let split = Split::of(&[sample(0.0, 50.0), sample(0.0, 51.0)], 0.0);
        assert!(
            near(split.total(), 101.0505),
            "without a difference of time there is no background"
        );
    }

    #[test]
    fn what_looks_and_time_explain_alike_is_put_down_to_looks() {
        let split = Split::of(
            &[sample(1.0, 100.0), sample(2.0, 200.0), sample(3.0, 300.0)],
            1.0,
        );
        assert_eq!(split.background, 0.0);
        assert!(near(split.a_look.unwrap(), 5.1), "{split:?}");
    }

    #[test]
    fn spread_is_a_share_of_the_mean() {
        assert!(near(spread(&[99.0, 101.0]), 0.01) && near(spread(&[0.0]), 0.0));
    }
}

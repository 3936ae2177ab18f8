//! Shrinking: takes away the parts of a failing run that it does not need to fail.

use crate::cluster::run;
use crate::plan::{Plan, rate_names};
use crate::rule::Rule;
use crate::trace::Detail;

/// Parts taken away from a seed's plan, to be given to a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removals {
    /// Faults, by their place in the plan.
    pub faults: Vec<usize>,
    /// Rates, by name.
    pub rates: Vec<String>,
    /// Operations of a node with a peer.
    pub operations: Option<u32>,
    /// No skew of clocks.
    pub no_skew: bool,
}

impl Removals {
    /// Returns the plan without the cut parts.
    #[must_use]
    pub fn apply(&self, plan: &Plan) -> Plan {
        let mut plan = plan.clone();
        let mut index = 0;
        plan.faults.retain(|_| {
            index += 1;
            !self.faults.contains(&(index - 1))
        });
        for name in &self.rates {
            plan.rates.without(name);
        }
        if let Some(operations) = self.operations {
            plan.operations = operations;
        }
        if self.no_skew {
            plan.skew = 0;
        }
        plan
    }
}

/// Cuts as much from `plan` as possible so that `rule` is still broken; calls `tell` after each
/// success.
pub fn shrink(
    plan: &Plan,
    rule: Rule,
    mut cuts: Removals,
    mut tell: impl FnMut(&Removals),
) -> Removals {
    let fails = |cuts: &Removals| {
        let outcome = run(&cuts.apply(plan), Detail::None);
        outcome
            .violation
            .is_some_and(|violation| violation.rule == rule)
    };
    loop {
        let before = cuts.clone();
        let mut attempt = |change: &dyn Fn(&mut Removals)| {
            let mut fewer = cuts.clone();
            change(&mut fewer);
            if fewer != cuts && fails(&fewer) {
                cuts = fewer;
                tell(&cuts);
            }
        };
        for fault in 0..plan.faults.len() {
            attempt(&|cuts| {
                if !cuts.faults.contains(&fault) {
                    cuts.faults.push(fault);
                }
            });
        }
        for name in rate_names() {
            let mut rates = plan.rates;
            if rates.without(name) {
                attempt(&|cuts| {
                    if cuts.rates.iter().all(|known| known != name) {
                        cuts.rates.push(name.to_owned());
                    }
                });
            }
        }
        attempt(&|cuts| cuts.operations = Some(cuts.operations.unwrap_or(plan.operations) / 2));
        attempt(&|cuts| cuts.no_skew = plan.skew > 0 || cuts.no_skew);
        if cuts == before {
            return cuts;
        }
    }
}

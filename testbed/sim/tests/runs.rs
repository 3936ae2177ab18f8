//! Runs repeat, hold, and find what is broken on purpose.

use sim::{Cuts, Detail, Plan, Rule, Sabotage, run, shrink};

fn small(seed: u64) -> Plan {
    Plan {
        operations: 30,
        ..Plan::new(seed, Some(3))
    }
}

#[test]
fn a_seed_runs_the_same_each_time_and_another_seed_does_not() {
    let outcome = |seed, detail| {
        let outcome = run(&small(seed), detail);
        (outcome.hash, outcome.events, outcome.time)
    };
    assert_eq!(outcome(7, Detail::None), outcome(7, Detail::All));
    assert_ne!(outcome(7, Detail::None).0, outcome(8, Detail::None).0);
}

#[test]
fn seeds_with_their_faults_hold() {
    for seed in 1..=6 {
        let outcome = run(&small(seed), Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert!(outcome.stats.ended > 0, "seed {seed} did nothing");
    }
}

/// The rules that a deliberate bug breaks within a few seeds.
fn broken_by(sabotage: Sabotage) -> Vec<Rule> {
    let outcomes = (1..=6).map(|seed| {
        let plan = Plan {
            sabotage: Some(sabotage),
            calls: 4,
            one_sided: 4,
            timeout_ms: 1000,
            ..small(seed)
        };
        run(&plan, Detail::None)
    });
    outcomes
        .filter_map(|outcome| outcome.violation)
        .map(|violation| violation.rule)
        .collect()
}

#[test]
fn deliberate_bugs_are_found() {
    let cases = [
        (Sabotage::DoubleDelivery, vec![Rule::SeenOnce]),
        (Sabotage::LateRead, vec![Rule::OwnedMemory]),
        (Sabotage::LostWrite, vec![Rule::Acknowledged, Rule::Content]),
        (Sabotage::LostReceive, vec![Rule::ReceiveQueueDry]),
        (Sabotage::ShortCompletionQueue, vec![Rule::CompletionQueue]),
        (Sabotage::StandingClock, vec![Rule::Ends]),
        (Sabotage::SilentAdministrator, vec![Rule::Convergence]),
    ];
    for (sabotage, rules) in cases {
        let found = broken_by(sabotage);
        for rule in rules {
            assert!(
                found.contains(&rule),
                "{sabotage:?} broke {found:?}, not {rule:?}"
            );
        }
    }
}

#[test]
fn what_is_left_after_shrinking_still_fails_and_nothing_more_can_go() {
    let plan = Plan {
        sabotage: Some(Sabotage::SilentAdministrator),
        ..small(2)
    };
    let cuts = shrink(&plan, Rule::Convergence, Cuts::default(), |_| {});
    let least = cuts.apply(&plan);
    let outcome = run(&least, Detail::None);
    assert_eq!(
        outcome.violation.map(|violation| violation.rule),
        Some(Rule::Convergence)
    );
    assert!(least.faults.is_empty(), "{:?}", least.faults);
    assert_eq!(least.operations, 0);
}

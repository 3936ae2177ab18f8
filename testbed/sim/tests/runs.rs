//! Tests of runs: they repeat, they keep the rules, and they find each deliberate bug.

use std::collections::BTreeMap;

use sim::{Detail, Fault, Impostor, Kind, Plan, Rates, Removals, Rule, Sabotage, run, shrink};

const SECOND: u64 = 1_000_000_000;
/// Operations that some seeds together must have carried out.
const KINDS: [&str; 8] = [
    "a WRITE",
    "a READ",
    "a WRITE of a batch",
    "a READ of a batch",
    "a call",
    "a one-way message",
    "a call of a burst",
    "a call for memory",
];

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
    let mut kinds = BTreeMap::new();
    for seed in 1..=6 {
        let outcome = run(&small(seed), Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert!(outcome.stats.ended > 0, "seed {seed} did nothing");
        for (kind, count) in outcome.stats.kinds {
            *kinds.entry(kind).or_insert(0) += count;
        }
    }
    for kind in KINDS {
        let count = kinds.get(kind).copied().unwrap_or(0);
        assert!(count >= 20, "{kind}: {count} ended well");
    }
}

#[test]
fn a_cluster_whose_nodes_are_told_their_neighbours_holds() {
    let plan = Plan {
        discover: false,
        ..small(3)
    };
    let outcome = run(&plan, Detail::None);
    assert_eq!(outcome.violation, None);
    assert!(outcome.stats.ended > 0);
}

#[test]
fn a_node_and_its_twin_keep_nobody_apart_once_the_twin_is_gone() {
    for seed in 25..35 {
        let mut plan = small(seed);
        // The twin's role is another, so that the two have different names; both are connected to
        // again and again, and by seed 30 at the same moment.
        let twin = Kind::Stranger(plan.nodes, Impostor::Twin(1));
        only(&mut plan, SECOND, 9 * SECOND, twin);
        plan.rates = Rates {
            error_completion: 10_000,
            datagram_loss: 300_000,
            datagram_late: 500_000,
            ..Rates::default()
        };
        plan.operations = 300;
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn a_node_whose_queue_pair_of_the_group_fails_still_finds_who_comes_later() {
    for seed in 1..=4 {
        let mut plan = small(seed);
        only(&mut plan, 3 * SECOND, 4 * SECOND, Kind::Crash(1));
        let deafened = Fault {
            from: 2 * SECOND,
            until: 2 * SECOND + 1,
            kind: Kind::Deafened(0),
        };
        plan.faults.insert(0, deafened);
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

/// Asks that a deliberate bug is found within a few seeds, and as a break of this rule.
fn finds(sabotage: Sabotage, rule: Rule) {
    finds_with(sabotage, rule, |_| {});
}

/// Checks that a deliberate bug is found as a break of `rule`, in plans that `change` prepares for
/// it.
fn finds_with(sabotage: Sabotage, rule: Rule, change: impl Fn(&mut Plan)) {
    let mut found = Vec::new();
    for seed in 1..=6 {
        let mut plan = Plan {
            sabotage: Some(sabotage),
            calls: 4,
            one_sided: 4,
            timeout_ms: 1000,
            ..small(seed)
        };
        change(&mut plan);
        let violation = run(&plan, Detail::None).violation;
        found.extend(violation.map(|violation| violation.rule));
        if found.last() == Some(&rule) {
            return;
        }
    }
    panic!("{sabotage:?} broke {found:?}, not {rule:?}");
}

/// Leaves a plan this fault and no other.
fn only(plan: &mut Plan, from: u64, until: u64, kind: Kind) {
    plan.faults = vec![Fault { from, until, kind }];
    plan.calm = until + SECOND;
    plan.discover = true;
}

#[test]
fn messages_that_are_delivered_twice_are_found() {
    finds(Sabotage::DoubleDelivery, Rule::SeenOnce);
}

#[test]
fn bytes_that_land_late_are_found() {
    finds(Sabotage::LateRead, Rule::OwnedMemory);
}

#[test]
fn writes_that_are_not_done_are_found() {
    finds(Sabotage::LostWrite, Rule::Acknowledged);
    finds(Sabotage::LostWrite, Rule::Content);
}

#[test]
fn receives_that_are_forgotten_are_found_before_and_after_the_queue_runs_dry() {
    // A queue has receives for more than what is usually under way: it takes some traffic to miss
    // one.
    finds_with(Sabotage::LostReceive, Rule::ReceiveQueueDry, |plan| {
        plan.operations = 2000;
    });
    finds(Sabotage::LeakedReceive, Rule::Credits);
}

#[test]
fn queues_that_are_too_short_are_found() {
    finds(Sabotage::ShortCompletionQueue, Rule::CompletionQueue);
    finds(Sabotage::ShortSendQueue, Rule::QueueDepth);
}

#[test]
fn posts_to_a_queue_pair_that_is_not_ready_are_found() {
    finds(Sabotage::StuckQueuePair, Rule::Post);
}

#[test]
fn receives_that_are_posted_twice_are_found() {
    finds(Sabotage::KeptReceive, Rule::ReceiveBuffer);
}

#[test]
fn a_clock_that_stands_and_an_administrator_that_is_silent_are_found() {
    finds(Sabotage::StandingClock, Rule::Ends);
    finds(Sabotage::SilentAdministrator, Rule::Views);
}

#[test]
fn buffers_that_change_while_they_are_lent_or_are_freed_are_found() {
    finds(Sabotage::ScribbledWrite, Rule::SendBuffer);
    finds(Sabotage::FreedBuffer, Rule::FreedMemory);
}

#[test]
fn an_end_that_comes_twice_is_found() {
    finds(Sabotage::DoubleEnd, Rule::EndsOnce);
}

#[test]
fn a_table_that_grows_is_found() {
    finds(Sabotage::RestlessCaller, Rule::Growth);
}

#[test]
fn a_panic_and_a_task_that_spins_are_found() {
    finds(Sabotage::PanickingHandler, Rule::Panic);
    finds(Sabotage::SpinningTask, Rule::Progress);
}

#[test]
fn a_node_that_nobody_hears_is_found() {
    finds_with(Sabotage::DeafNode, Rule::Views, |plan| plan.discover = true);
}

#[test]
fn a_node_that_answers_nobody_is_found() {
    finds_with(Sabotage::MuteNode, Rule::Convergence, |plan| {
        plan.operations = 0;
    });
}

#[test]
fn two_incarnations_at_once_are_found() {
    finds_with(Sabotage::StaleList, Rule::OneLife, |plan| {
        only(plan, 3 * SECOND, 4 * SECOND, Kind::Crash(1));
    });
}

#[test]
fn a_loss_that_no_handler_is_told_of_is_found() {
    finds_with(Sabotage::UntoldLoss, Rule::JoinedAndLost, |plan| {
        only(plan, 3 * SECOND, 4 * SECOND, Kind::Crash(1));
    });
}

#[test]
fn an_operation_that_fails_in_the_calm_is_found() {
    finds(Sabotage::LateError, Rule::Calm);
}

#[test]
fn a_silent_peer_that_is_not_lost_is_found() {
    finds_with(Sabotage::NoKeepAlive, Rule::LostInTime, |plan| {
        only(plan, 3 * SECOND, 13 * SECOND, Kind::Stop(1));
        plan.operations = 0;
    });
}

#[test]
fn a_stranger_who_is_a_member_is_found() {
    finds_with(Sabotage::LeakedKey, Rule::Stranger, |plan| {
        let stranger = Kind::Stranger(plan.nodes, Impostor::OtherKey);
        only(plan, SECOND, 5 * SECOND, stranger);
    });
}

#[test]
fn a_waiter_who_is_not_told_that_its_peer_is_lost_is_found() {
    finds_with(Sabotage::LostWake, Rule::Told, |plan| {
        only(plan, SECOND, 4 * SECOND, Kind::Crash(1));
        (plan.operations, plan.timeout_ms, plan.keepalive_ms) = (400, 6000, 500);
    });
}

#[test]
fn what_is_left_after_shrinking_still_fails_and_nothing_more_can_go() {
    let plan = Plan {
        sabotage: Some(Sabotage::ShortCompletionQueue),
        ..small(5)
    };
    assert!(!plan.faults.is_empty(), "there is something to take away");
    let cuts = shrink(&plan, Rule::CompletionQueue, Removals::default(), |_| {});
    let least = cuts.apply(&plan);
    let outcome = run(&least, Detail::None);
    assert_eq!(
        outcome.violation.map(|violation| violation.rule),
        Some(Rule::CompletionQueue)
    );
    assert!(least.faults.is_empty(), "{:?}", least.faults);
    assert_eq!(least.operations, 0);
}

/// A plan in which much goes wrong with connections of nodes with several cores.
fn restless(seed: u64) -> Plan {
    let mut plan = small(seed);
    plan.faults = (0..6)
        .map(|round| {
            let from = SECOND + round * SECOND;
            let until = from + 40_000_000 + 60_000_000 * round;
            let kind = Kind::Crash(usize::try_from(round % 3).expect("small"));
            Fault { from, until, kind }
        })
        .collect();
    plan.calm = 8 * SECOND;
    plan.discover = true;
    (plan.cores, plan.own_domains) = (3, true);
    (plan.calls, plan.one_sided, plan.operations) = (4, 8, 400);
    plan.rates = Rates {
        error_completion: 3000,
        datagram_late: 100_000,
        slow_command: 200_000,
        ..Rates::default()
    };
    plan
}

#[test]
fn nodes_of_several_cores_that_come_back_with_others_are_one_life_each_and_get_their_memory_back_in_time()
 {
    for seed in [1, 2, 5, 9] {
        let outcome = run(&restless(seed), Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert!(outcome.stats.ended > 0, "seed {seed} did nothing");
    }
}

#[test]
fn lent_memory_stays_lent_until_a_slow_reset_is_done() {
    for seed in 1..=6 {
        let mut plan = restless(seed);
        // Short cuts, after which READs that are past their deadline still get through.
        plan.faults = (0..8)
            .map(|round| Fault {
                from: 2 * SECOND + round * SECOND,
                until: 2 * SECOND + round * SECOND + 290_000_000 + round * 10_000_000,
                kind: Kind::Partition {
                    nodes: 1,
                    manager: false,
                },
            })
            .collect();
        plan.calm = 11 * SECOND;
        (plan.cores, plan.operations, plan.timeout_ms) = (1, 2000, 300);
        plan.rates.slow_command = 800_000;
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn a_node_whose_queue_pairs_can_not_be_reset_ends_and_gives_nothing_back() {
    for seed in 1..=4 {
        let mut plan = small(seed);
        let broken = Kind::Broken(1, 3 * SECOND);
        only(&mut plan, 3 * SECOND, 7 * SECOND, broken);
        (plan.own_domains, plan.operations) = (true, 400);
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert_eq!(outcome.stats.faults.get("broken HCA"), Some(&1));
    }
}

#[test]
fn a_flood_of_datagrams_keeps_the_control_task_from_nothing() {
    let mut plan = small(1);
    only(&mut plan, 100_000_000, 9 * SECOND, Kind::Flood(1));
    plan.operations = 100;
    let outcome = run(&plan, Detail::None);
    assert_eq!(outcome.violation, None);
    assert!(outcome.stats.ended > 0);
}

/// A plan in which nothing goes wrong but what `kind` does.
fn peaceful(seed: u64, kind: Kind) -> Plan {
    let mut plan = small(seed);
    only(&mut plan, SECOND, 6 * SECOND, kind);
    plan.rates = Rates::default();
    plan.own_domains = true;
    plan.timeout_ms = 3000;
    (plan.keepalive_ms, plan.operations) = (2000, 300);
    plan
}

#[test]
fn a_member_that_breaks_the_protocol_harms_nobody_but_itself() {
    let mut kinds = BTreeMap::new();
    for seed in 1..=8 {
        let plan = peaceful(seed, Kind::Stranger(3, Impostor::Rogue));
        let outcome = run(&plan, Detail::Events);
        let lines = || outcome.lines.join("\n");
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert_eq!(outcome.stats.errors, 0, "seed {seed}: {}", lines());
        for (kind, count) in outcome.stats.faults {
            *kinds.entry(kind).or_insert(0) += count;
        }
    }
    for kind in [
        "rogue: another header",
        "rogue: another length",
        "rogue: other descriptors",
        "rogue: not sent",
        "rogue: sent again",
        "rogue: an old message",
        "rogue: with immediate data",
        "rogue: reaches for memory",
    ] {
        let count = kinds.get(kind).copied().unwrap_or(0);
        assert!(count >= 10, "{kind}: {count}");
    }
}

#[test]
fn a_subnet_manager_that_took_over_without_a_word_is_found() {
    for seed in 1..=3 {
        let (knows, told) = (false, false);
        let mut plan = peaceful(seed, Kind::Handover { knows, told });
        let crash = Fault {
            from: 3 * SECOND,
            until: 4 * SECOND,
            kind: Kind::Crash(1),
        };
        plan.faults.push(crash);
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn a_port_that_gets_another_lid_and_one_that_flaps_come_back() {
    for seed in 1..=3 {
        let mut plan = peaceful(seed, Kind::Moved(1));
        plan.faults.extend((0..8).map(|round| Fault {
            from: 3 * SECOND + round * 60_000_000,
            until: 3 * SECOND + round * 60_000_000 + 5_000_000 * (1 + round),
            kind: Kind::Port(2),
        }));
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn handlers_that_compute_and_commands_that_are_refused_cost_no_connection_for_good() {
    let mut counts = BTreeMap::new();
    for seed in 1..=4 {
        let mut plan = peaceful(seed, Kind::Crash(1));
        plan.rates.failed_command = 100_000;
        plan.rates.busy_handler = 20_000;
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        for (kind, count) in outcome.stats.faults {
            *counts.entry(kind).or_insert(0) += count;
        }
    }
    for kind in ["command refused", "handler that computes"] {
        assert!(
            counts.get(kind).is_some_and(|count| *count > 5),
            "{counts:?}"
        );
    }
}

#[test]
fn handlers_that_compute_lose_no_peer() {
    for seed in 1..=4 {
        let mut plan = peaceful(seed, Kind::Link(0, 1));
        plan.rates.busy_handler = 20_000;
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert_eq!(outcome.stats.errors, 0, "seed {seed}");
    }
}

#[test]
fn answers_that_a_stranger_gives_for_the_administrator_lead_nobody_astray() {
    let mut forged = 0;
    for seed in 1..=4 {
        let mut plan = peaceful(seed, Kind::Silence);
        plan.faults.push(Fault {
            from: 2 * SECOND,
            until: 3 * SECOND,
            kind: Kind::Crash(1),
        });
        plan.rates.hostile = 900_000;
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        let counts = outcome.stats.faults;
        forged += counts
            .get("hostile: answer of the administrator")
            .unwrap_or(&0);
    }
    assert!(forged > 50, "{forged} answers");
}

#[test]
fn what_a_stranger_forges_with_the_right_names_ends_nothing() {
    let mut forged = 0;
    for seed in 1..=6 {
        let mut plan = peaceful(seed, Kind::Stranger(3, Impostor::OtherKey));
        plan.rates.hostile = 900_000;
        let outcome = run(&plan, Detail::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert_eq!(outcome.stats.errors, 0, "seed {seed}");
        let counts = outcome.stats.faults;
        forged += counts
            .get("hostile: forged with the right names")
            .unwrap_or(&0);
    }
    assert!(forged > 20, "{forged} messages");
}

//! Deliberate faults, and the completions and events that Linux then gets.

use testbed_tests::linux::group::{Check, Group};

pub(crate) fn groups() -> Vec<Group> {
    vec![connections(), lost_peer()]
}

/// The cases of `faults.py`, which says what must come of each and why.
const CASES: [&str; 13] = [
    "destroyed_peer",
    "no_receive",
    "wrong_key_write",
    "wrong_key_read",
    "out_of_bounds_write",
    "out_of_bounds_read",
    "read_only_memory",
    "wrong_local_key",
    "wrong_receive_key",
    "short_receive",
    "flush",
    "overrun",
    "shared_limit",
];

fn connections() -> Group {
    let check = |case: &str| Check::new(&case.replace('_', " "), &[&format!("faults.py {case}")]);
    Group::new("connections", &["--packages", "python3-pyverbs"])
        // So it reports the queue that one of them overruns.
        .allow("CQ overrun on CQN")
        .checks(CASES.map(check))
}

/// Ends a machine in the middle of a transfer: its peer's retries are exhausted.
fn lost_peer() -> Group {
    let survivor = "await node1 18515
        if ib_write_bw -D 20 node1 >/tmp/out 2>&1; then exit 1; fi
        cat /tmp/out
        grep 'transport retry counter exceeded\\|status 12' /tmp/out
        mkdir -p /tmp/gone; touch /tmp/gone/node1";
    let victim = "ib_write_bw -D 20 & sleep 3; gone";
    let after = "ibstat mlx4_0 1 | grep 'State: Active'; ibv_devinfo | grep PORT_ACTIVE
        [ $(saquery | grep -c NodeDescription) = 2 ]";
    Group::new("lost peer", &[])
        .check(Check::new(
            "a machine ends in the middle of a transfer",
            &[survivor, victim],
        ))
        .check(Check::new("the fabric goes on without it", &[after, ""]))
}

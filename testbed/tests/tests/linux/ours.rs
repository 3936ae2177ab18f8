//! Our driver against Linux's on one fabric: ours runs in this process on a card of its own, Linux in a guest.
//!
//! The guest's scripts ask for our part by `ours WHAT`, which ends when our part has, with its result.

mod companion;
mod driver;
mod tcp;

use testbed_tests::linux::group::{Check, Group};

use self::companion::Companion;

pub(crate) fn groups() -> Vec<Group> {
    vec![by_our_driver()]
}

fn by_our_driver() -> Group {
    // Where a tool listens is not always told; our side tries again, as `again` does.
    let beside = |name: &str, ours: &str, linux: &str| {
        let script = format!(
            ". /data/ours/ports
            $ours {ours} >/tmp/ours & {linux}
            wait; cat /tmp/ours"
        );
        Check::new(name, &[&script]).expect("node0: ours: ok")
    };
    let neighbour = "ip=/usr/bin/ip; $ip neigh replace $address lladdr $hardware dev ib0 nud permanent";
    Group::new("one process", &[])
        .beside(|| Companion::start().map(|companion| (companion.options(), Box::new(companion) as _)))
        .check(beside(
            "ibv_rc_pingpong answers us",
            "rc-client",
            "ibv_rc_pingpong -n 100",
        ))
        .check(beside(
            "ibv_rc_pingpong calls us",
            "rc-server",
            "again ibv_rc_pingpong -n 100 -p $pingpong 10.0.2.2",
        ))
        .check(beside(
            "ibv_ud_pingpong answers us",
            "ud-client",
            "ibv_ud_pingpong -n 100 -s 1024",
        ))
        .check(beside(
            "ibv_ud_pingpong calls us",
            "ud-server",
            "again ibv_ud_pingpong -n 100 -s 1024 -p $pingpong 10.0.2.2",
        ))
        .check(beside(
            "rping reads and writes our memory",
            "rping-client",
            "rping -s -V -C 10 -a 10.0.1.1",
        ))
        .check(beside(
            "we read and write rping's memory",
            "rping-server",
            &format!("{neighbour}; again rping -c -V -C 10 -a $address"),
        ))
        .check(beside(
            "what each driver commands differs only as explained",
            "compare",
            "true",
        ))
}

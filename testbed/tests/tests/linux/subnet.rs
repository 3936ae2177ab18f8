//! Ports, the subnet and what the fabric answers.

use testbed_tests::linux::group::{Check, Group};

/// Waits until both ports are up.
const BOTH_ACTIVE: &str = "
    for port in 1 2; do
        for try in $(seq 100); do
            grep -q ACTIVE /sys/class/infiniband/mlx4_0/ports/$port/state && break
            sleep 0.1
        done
    done
    ibstat; ibv_devinfo -v >/tmp/devinfo
    [ $(ibstat | grep -c 'State: Active') = 2 ]
    ibstat | grep 'CA type: MT4099'
    [ $(grep -c 'PORT_ACTIVE (4)' /tmp/devinfo) = 2 ]\n";

pub(crate) fn groups() -> Vec<Group> {
    vec![both_ports(), queries()]
}

fn both_ports() -> Group {
    let reload = format!(
        "ip link set ib0 down
        rmmod ib_ipoib; rmmod mlx4_ib; rmmod mlx4_core
        if grep ^mlx4 /proc/modules; then exit 1; fi
        modprobe mlx4_core; modprobe mlx4_ib; modprobe ib_ipoib
        {BOTH_ACTIVE}"
    );
    Group::new("both ports", &["--ports", "2"])
        .check(Check::new("active", &[BOTH_ACTIVE]))
        .check(Check::new(
            "active after the modules were loaded again",
            &[&reload],
        ))
        .check(Check::new(
            "active after they were loaded a third time",
            &[&reload],
        ))
}

fn queries() -> Group {
    let records = Check::new(
        "saquery: nodes, paths, groups",
        &["", "saquery; saquery -p; saquery -g"],
    )
    .expect("NodeDescription.........node0")
    .expect("NodeDescription.........node1");
    let ibping = Check::new(
        "ibping",
        &[
            // It runs until it is told to end, which node 1 does when it has its answers.
            "ibping -S & nc -l -p 7000",
            "sleep 1
            ibping -c 3 $(($(cat /sys/class/infiniband/mlx4_0/ports/1/lid) ^ 1))
            await node0 7000; nc node0 7000 </dev/null",
        ],
    )
    .expect("node1: 3 packets transmitted, 3 received, 0% packet loss");
    Group::new("fabric", &[]).check(records).check(ibping)
}

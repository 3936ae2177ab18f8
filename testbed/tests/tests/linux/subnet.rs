//! Ports, the subnet, and the fabric's answers.

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
    vec![
        both_ports(),
        queries(),
        switch(),
        standby(),
        opensm(),
        succession(),
        cables(),
    ]
}

/// Queries the fabric's switch, and what is found through it.
fn switch() -> Group {
    let alone = |name: &str, script: &str| Check::new(name, &[script, ""]);
    Group::new("switch", &[])
        .check(
            alone("ibnetdiscover", "ibnetdiscover")
                .expect("# \"switch\" enhanced port 0 lid 1")
                .expect("# \"node0\" lid")
                .expect("# \"node1\" lid"),
        )
        .check(
            alone(
                "ibswitches, ibhosts",
                "ibswitches; ibhosts; [ $(ibhosts | wc -l) = 2 ]",
            )
            .expect("Switch\t: 0x"),
        )
        .check(alone(
            "iblinkinfo",
            "[ $(iblinkinfo | grep 'LinkUp.*\"node' | wc -l) = 2 ]",
        ))
        .check(
            alone("sminfo", "sminfo")
                .expect("sm lid 1 sm guid 0x2c90200000001")
                .expect("SMINFO_MASTER"),
        )
        .check(
            alone(
                "smpquery by LID, by directed route and by both",
                "smpquery nodeinfo 1; smpquery -D nodeinfo 0,1,2; smpquery -c nodeinfo 1 0,2
                smpquery portinfo 1 1; smpquery switchinfo 1; smpquery pkeys 1 1; smpquery sl2vl 1 1",
            )
            .expect("NodeType:........................Switch")
            .expect("PortGuid:........................0x0002c90300000201"),
        )
        .check(
            alone("ibroute, ibtracert", "ibroute 1; ibroute -M 1; ibtracert 2 3")
                .expect("-> ca port {0x0002c9030000"),
        )
        .check(
            alone(
                "saquery: managers, members",
                "[ $(saquery -s | grep -c 'EndPortLid.*1$') = 1 ]; saquery --smkey 1 -m",
            )
            .expect("NodeDescription.........node0"),
        )
        .check(counters())
        .check(disabled())
        .check(multicast())
}

/// Counters of the adapters and of the switch, read and cleared; nothing is counted as an error.
fn counters() -> Check {
    let script = "
    field() { grep \"^$1:\" | tr -s . ' ' | cut -d' ' -f2; }
    perfquery 1 1; perfquery -x 1 1; perfquery -a 1
    perfquery -R 1 1
    few=$(perfquery 1 1 | field PortXmitPkts)
    ping -c 20 -i 0.05 ib1
    many=$(perfquery 1 1 | field PortXmitPkts)
    [ $((many - few)) -ge 20 ]
    [ $(perfquery -x | field PortUnicastXmitPkts) -gt 0 ]
    [ $(perfquery -x | field PortMulticastXmitPkts) -gt 0 ]
    ibqueryerrors >/tmp/errors || { cat /tmp/errors; exit 1; }
    cat /tmp/errors; ! grep -i timeout /tmp/errors
    ls /sys/class/infiniband/mlx4_0/ports/1/counters
    [ $(cat /sys/class/infiniband/mlx4_0/ports/1/counters/port_xmit_packets) -gt 0 ]";
    Check::new("perfquery, ibqueryerrors", &[script, ""]).expect("## Summary: 3 nodes checked")
}

/// Takes node 0's link down at the switch, whose port 1 it is at, and lets it come back.
fn disabled() -> Check {
    let wait = "
    state() { for try in $(seq 300); do grep -q $1 /sys/class/infiniband/mlx4_0/ports/1/state && return; sleep 0.1; done; ibstat; exit 1; }";
    let theirs = format!(
        "{wait}
        nc -l -p 7000 </dev/null; state DOWN; ibstat | grep 'Physical state: Polling'
        nc -l -p 7000 </dev/null; state ACTIVE"
    );
    let mine = "ibportstate 1 1 disable; await node0 7000; nc node0 7000 </dev/null
        await node0 7000; ibportstate 1 1 query | grep 'PhysLinkState:.*Disabled'
        ibportstate 1 1 enable; nc node0 7000 </dev/null
        for try in $(seq 50); do ping -c 1 -W 1 ib0 && break; done
        ibportstate 1 1 reset
        for try in $(seq 50); do ping -c 1 -W 1 ib0 && break; done
        ping -c 3 ib0";
    Check::new(
        "a link is disabled and enabled at the switch",
        &[&theirs, mine],
    )
}

/// Groups come with their first member and go with the last; a sender that is a member hears
/// itself.
fn multicast() -> Check {
    Check::new(
        "a multicast group is joined, used and left",
        &[
            "before=$(saquery -g | grep -c MGID)
            mckey -m 239.1.2.3 -b ib0 &
            receiver=$!
            until saquery -g | grep -q f01:203; do sleep 0.2; done
            echo joined >/tmp/joined
            nc -l -p 7000 </tmp/joined
            wait $receiver
            await node1 7001; nc node1 7001
            [ $(saquery -g | grep -c MGID) = $before ]",
            "await node0 7000; nc node0 7000 </dev/null
            mckey -m 239.1.2.3 -b ib1 -s
            echo left | nc -l -p 7001",
        ],
    )
    .expect("node0: data transfers complete")
    .expect("node1: test complete")
}

/// Script that fails if OpenSM's log reports a bad datagram.
const OPENSM_CONTENT: &str = "if grep -E 'ERR|rror' /tmp/opensm.log; then exit 1; fi";

/// Checks that OpenSM finds the fabric's own manager, and leaves the subnet to it.
fn standby() -> Group {
    let begin = format!(
        "opensm --daemon --log_file /tmp/opensm.log
        for try in $(seq 100); do grep -q 'Entering STANDBY' /tmp/opensm.log && break; sleep 0.2; done
        cat /tmp/opensm.log; {OPENSM_CONTENT}
        sminfo; ping -c 3 ib1"
    );
    let check = Check::new("OpenSM stands by", &[&begin, ""])
        .expect("Entering STANDBY state")
        .expect("sm lid 1 sm guid 0x2c90200000001");
    Group::new("two managers", &[]).check(check)
}

/// Runs a fabric without a manager of its own; OpenSM runs on node 0.
fn opensm() -> Group {
    Group::new("opensm", &["--ports", "2", "--sm", "guest"])
        .check(Check::new("all ports active", &[BOTH_ACTIVE, BOTH_ACTIVE]))
        .check(
            Check::new("sminfo, ibnetdiscover", &["sminfo; ibnetdiscover", ""])
                .expect("SMINFO_MASTER")
                .expect("# \"node1\" lid"),
        )
        .check(
            Check::new("paths, IPoIB", &["", "saquery -t 20000 -p; ping -c 3 ib0"])
                .expect("3 packets transmitted, 3 packets received"),
        )
        .check(Check::pair("ibv_rc_pingpong -c", 18515).expect("iters in"))
        .check(Check::pair("ibv_ud_pingpong -i 2 -c", 18515).expect("iters in"))
        .check(multicast())
        .check(Check::new(
            "a link that was pulled and plugged in again",
            &["", PULL],
        ))
        .check(Check::new("OpenSM's log clean", &[OPENSM_CONTENT, ""]))
}

/// Starts OpenSM on a node. As a standby it asks the master every second, and takes over when four
/// answers are missing.
const START_OPENSM: &str = "
    mkdir -p /var/cache/opensm
    opensm --create-config /tmp/opensm.conf >/dev/null
    sed -i 's/^sminfo_polling_timeout .*/sminfo_polling_timeout 1000/' /tmp/opensm.conf
    opensm --config /tmp/opensm.conf --daemon --log_file /tmp/opensm.log >/tmp/opensm.out
    entered() { for try in $(seq 200); do grep -q \"Entering $1\" /tmp/opensm.log && return; sleep 0.2; done; cat /tmp/opensm.log; exit 1; }\n";

/// Two OpenSM: the second stands by, takes over when the first is killed, and hands over to it when
/// it is back. A connection lives through all of it.
fn succession() -> Group {
    const SUBNET: &str = "
        node=$(hostname | tr -d a-z)
        manager() { for try in $(seq 150); do sminfo 2>&1 | grep \"sm guid 0x2c90300000$(($1 + 1))01.*SMINFO_MASTER\" && return; sleep 0.2; done; sminfo; exit 1; }
        lid() { cat /sys/class/infiniband/mlx4_0/ports/1/lid; }
        packets() { cat /sys/class/infiniband/mlx4_0/ports/1/counters/port_xmit_packets; }
        goes_on() {
            before=$(packets)
            for try in $(seq 100); do sleep 0.1; [ $(($(packets) - before)) -lt 2000 ] || break; done
            kill -0 $pingpong; echo \"$before packets, then $(packets)\"; [ $(($(packets) - before)) -ge 2000 ]
        }\n";
    // The administrator is asked for the groups and the path anew.
    const NEW_PATHS: &str = "
        saquery -p | grep -c dgid
        ip link set ib0 down; ip link set ib0 up
        for try in $(seq 100); do ping -c 1 -W 1 ib$((1 - node)) && break; done
        ping -c 3 ib$((1 - node))\n";
    let standby = format!("{SUBNET}{START_OPENSM}entered STANDBY; manager 0");
    let killed = format!(
        "{SUBNET}
        ibv_rc_pingpong -n 100000000 &
        nc -l -p 7000 </dev/null
        before=$(lid); kill -KILL $(pidof opensm)
        manager 1
        [ $(lid) = $before ]
        {NEW_PATHS}
        await node1 7001; nc node1 7001 </dev/null"
    );
    let successor = format!(
        "{SUBNET}
        await node0 18515
        ibv_rc_pingpong -n 100000000 node0 &
        pingpong=$!
        sleep 2; await node0 7000; nc node0 7000 </dev/null
        for try in $(seq 200); do grep -q 'Entering MASTER' /tmp/opensm.log && break; sleep 0.2; done
        cat /tmp/opensm.log; wc -l </tmp/opensm.log >/tmp/heard; manager 1
        goes_on; {NEW_PATHS}goes_on
        nc -l -p 7001 </dev/null"
    );
    let back =
        format!("{SUBNET}rm /tmp/opensm.log{START_OPENSM}entered MASTER; manager 0{NEW_PATHS}");
    let steps_back = format!(
        "{SUBNET}manager 0; tail -n +$(cat /tmp/heard) /tmp/opensm.log | grep 'Entering STANDBY'{NEW_PATHS}"
    );
    Group::new("two OpenSM", &["--sm", "guest"])
        .check(Check::new("one is MASTER, one STANDBY", &["", &standby]).expect("SMINFO_MASTER"))
        .check(
            Check::new("the master is killed", &[&killed, &successor])
                .limit(120)
                .expect("Entering MASTER state"),
        )
        .check(
            Check::new(
                "the first is back, and is handed the subnet",
                &[&back, &steps_back],
            )
            .limit(120),
        )
}

/// Pulls the cable of port 1 and plugs it in again. Whoever manages the subnet must bring the port
/// up anew.
const PULL: &str = "
    state() {
        for try in $(seq 150); do
            grep -q $1 /sys/class/infiniband/mlx4_0/ports/1/state && break
            sleep 0.2
        done
        ibstat mlx4_0 1
        ibstat mlx4_0 1 | grep \"State: $2\"
    }
    cable 1 out; state DOWN Down
    [ $(cat /sys/class/net/ib0/carrier) = 0 ]
    cable 1 in; state ACTIVE Active
    for try in $(seq 50); do ping -c 1 -W 1 ib0 && break; done
    ping -c 3 ib0";

/// Links that go and come back, and the card's second port.
fn cables() -> Group {
    let second =
        "ip link set ib1 up; ip address add 10.0.2.$((1 + node))/24 dev ib1 2>/dev/null || true";
    let address = format!("node=$(hostname | tr -d a-z); {second}");
    let ping = format!(
        "{address}; for try in $(seq 50); do ping -c 1 -W 1 10.0.2.1 && break; done; ping -c 3 10.0.2.1"
    );
    Group::new("cables", &["--ports", "2"])
        .check(Check::pair("ibv_rc_pingpong -i 2 -c", 18515).expect("iters in"))
        .check(Check::pair("ib_write_bw -i 2 -n 200", 18515))
        .check(
            Check::new("IPoIB by port 2", &[&address, &ping])
                .expect("3 packets transmitted, 3 packets received"),
        )
        .check(Check::new(
            "a link that was pulled and plugged in again",
            &["", PULL],
        ))
        .check(Check::pair("ibv_rc_pingpong -c", 18515).expect("iters in"))
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

//! rdma-core's examples and perftest between two nodes.

use testbed_tests::linux::group::{Check, Group};

/// The port that each of these tools listens on for its first words.
const PORT: u16 = 18515;

pub(crate) fn groups() -> Vec<Group> {
    vec![
        pingpongs(),
        extended(),
        pyverbs(),
        perftest(),
        sizes(),
        options(),
        rdma_cm(),
        qperf(),
        loopback(),
    ]
}

/// Runs the pingpongs: both sides print their iterations and, by `-c`, check what they receive.
/// Their messages of 4 KB are two packets.
fn pingpongs() -> Group {
    let bounded = [
        "ibv_rc_pingpong",
        "ibv_rc_pingpong -e -c",
        "ibv_rc_pingpong -g 0 -c",
        "ibv_rc_pingpong -c -s 1000000 -n 20",
        "ibv_rc_pingpong -c -m 256",
        "ibv_uc_pingpong -c",
        "ibv_uc_pingpong -e",
        "ibv_ud_pingpong -c",
        "ibv_ud_pingpong -e",
        "ibv_srq_pingpong -c",
        "ibv_srq_pingpong -e",
    ];
    let full = [
        "ibv_rc_pingpong -c -m 512 -s 5000",
        "ibv_rc_pingpong -c -m 1024 -s 1",
        "ibv_rc_pingpong -c -m 2048 -s 2049",
        "ibv_rc_pingpong -c -r 1 -n 100",
        "ibv_rc_pingpong -e -g 0 -s 100000 -n 100",
        "ibv_uc_pingpong -c -e -m 256 -s 65537 -n 100",
        "ibv_uc_pingpong -c -g 0",
        "ibv_ud_pingpong -c -e -s 1",
        "ibv_ud_pingpong -c -g 0",
        "ibv_srq_pingpong -c -q 1 -m 256 -s 30000 -n 100",
        "ibv_srq_pingpong -c -e -q 32",
        "ibv_srq_pingpong -c -g 0",
    ];
    let check = |tool| Check::pair(tool, PORT).expect("iters in");
    Group::new("pingpong", &[])
        .checks(bounded.map(check))
        .checks(full.map(|tool| check(tool).full()))
}

/// Checks extended reliable connections: a queue pair that sends to any shared receive queue of
/// the other side.
fn extended() -> Group {
    let pair = |options: &str| {
        let tool = format!("ibv_xsrq_pingpong {options}");
        Check::pair(tool.trim(), PORT)
    };
    let measured_here = [
        "ib_send_lat -c XRC -n 200",
        "ib_send_bw -c XRC -q 4 -s 10000 -n 100",
        "ib_write_bw -c XRC -s 65536 -n 100",
        "ib_write_lat -c XRC -n 200",
        "ib_read_bw -c XRC -q 4 -s 65536 -n 50",
        "ib_atomic_lat -c XRC -n 200",
    ];
    let client = format!("await node0 {PORT}; ibv_xsrq_pingpong -n 50 node0");
    Group::new("XRC", &[])
        .check(pair("-n 100"))
        .check(pair("-e -n 100"))
        .check(pair("-s 100000 -m 256 -n 20"))
        .check(pair("-g 0 -n 20"))
        .checks(measured_here.map(measured))
        .check(Check::new(
            "two clients of a server",
            &["ibv_xsrq_pingpong -c 2 -n 50", &client, &client],
        ))
}

/// Runs pyverbs' own tests of what adapters got wrong, or this one did not have. Each has both
/// sides in one process on one adapter.
fn pyverbs() -> Group {
    let bounded = [
        "test_xrc_atomic",
        "test_xrc_traffic_cq_ex",
        "test_ro_xrc_traffic",
        "test_mr_rereg",
        "test_resize_cq",
    ];
    let full = [
        "test_atomic.",
        "test_cq.",
        "test_cq_events.",
        "test_cqex.",
        "test_pd.",
        "test_rdmacm.",
    ];
    let check = |test: &str| Check::new(test, &[&format!("pyverbs {test}")]);
    Group::new("pyverbs", &["--packages", "python3-pyverbs"])
        .checks(bounded.map(check))
        .checks(full.map(|test| check(test).full()))
}

/// Its first words go by TCP.
fn measured(command: &str) -> Check {
    let script = format!("measured {PORT} {command}");
    Check::new(command, &[&script, &script])
}

fn perftest() -> Group {
    let bounded = [
        "ib_write_lat -s 1 -n 200",
        "ib_write_bw -s 65536 -n 100",
        "ib_read_lat -s 1 -n 200",
        "ib_read_bw -s 65536 -n 100",
        "ib_send_lat -s 1 -n 200",
        "ib_send_bw -s 65536 -n 100",
        "ib_write_bw -q 8 -s 1048576 -n 10",
        "ib_send_bw -e -n 200",
        "ib_write_lat -I 220 -s 200 -n 200",
        "ib_send_lat -I 0 -n 200",
        "ib_atomic_lat -n 200",
        "ib_atomic_bw -q 8 -n 100",
        "ib_send_lat -c UC -s 10000 -n 100",
        "ib_send_bw -c UD -s 2048 -n 200",
    ];
    Group::new("perftest", &[]).checks(bounded.map(measured))
}

/// Runs all sizes from 2 bytes to 8 MB by `-a`; of UD up to the MTU.
///
/// `ib_send_lat -e` is not among them: in Debian 12's perftest it takes the events of both its
/// completion queues from one channel, for whichever it waits, and then looks at a completion that
/// it may not have got.
fn sizes() -> Group {
    let commands = [
        "ib_write_lat -a -n 20",
        "ib_write_bw -a -n 20",
        "ib_write_bw -b -a -n 20",
        "ib_write_lat -c UC -a -n 20",
        "ib_write_bw -c UC -a -n 20",
        "ib_read_lat -a -n 20",
        "ib_read_bw -a -n 20",
        "ib_read_bw -b -a -n 20",
        "ib_read_bw -e -a -n 20",
        "ib_send_lat -a -n 20",
        "ib_send_bw -a -n 20",
        "ib_send_bw -e -a -n 20",
        "ib_send_bw -b -a -n 20",
        "ib_send_lat -c UC -a -n 20",
        "ib_send_bw -c UC -a -n 20",
        "ib_send_lat -c UD -a -n 100",
        "ib_send_bw -c UD -a -n 100",
    ];
    Group::new("perftest, all sizes", &[])
        .checks(commands.map(|command| measured(command).limit(600)))
        .full()
}

fn options() -> Group {
    let mut commands = Vec::new();
    for tool in [
        "ib_write_lat",
        "ib_write_bw",
        "ib_read_lat",
        "ib_read_bw",
        "ib_send_lat",
        "ib_send_bw",
    ] {
        commands.push(format!("{tool} -s 1 -n 200"));
        commands.push(format!("{tool} -m 256 -s 65536 -n 20"));
        commands.push(format!("{tool} -x 0 -s 5000 -n 100"));
    }
    let more = [
        "ib_write_bw -q 8 -s 65536 -n 100",
        "ib_write_bw -q 64 -s 4096 -n 20",
        "ib_read_bw -q 8 -s 65536 -n 100",
        "ib_send_bw -q 8 -s 65536 -n 100",
        "ib_send_bw -q 8 -b -s 4096 -n 100",
        "ib_write_lat -I 0 -n 200",
        "ib_write_lat -I 220 -s 220 -n 200",
        "ib_send_lat -I 220 -s 200 -n 200",
        "ib_write_bw -I 220 -s 128 -n 200",
        "ib_send_bw -I 220 -s 128 -n 200",
        "ib_atomic_lat -A FETCH_AND_ADD -n 200",
        "ib_atomic_lat -A CMP_AND_SWAP -n 200",
        "ib_atomic_bw -A FETCH_AND_ADD -n 200",
        "ib_atomic_bw -A CMP_AND_SWAP -q 8 -n 200",
        "ib_read_bw -o 1 -n 200",
        "ib_read_bw -o 16 -n 200",
        "ib_write_bw -l 8 -n 200",
        "ib_write_bw -t 1 -n 200",
        "ib_write_bw -Q 1 -n 200",
        "ib_send_bw -r 16 -s 4096 -n 200",
        "ib_send_bw --use-srq -q 4 -n 200",
        "ib_send_bw -c UD -q 8 -s 1024 -n 100",
        "ib_send_bw -c UD -e -s 1024 -n 100",
        "ib_send_bw -c UD -x 0 -n 200",
        "ib_send_bw -c UD -g -n 100",
        "ib_send_bw -c UC -e -q 4 -n 100",
        "ib_send_bw -D 3",
        "ib_write_bw -D 3 -q 4",
    ];
    commands.extend(more.map(str::to_owned));
    Group::new("perftest, options", &[])
        .checks(commands.iter().map(|command| measured(command)))
        .full()
}

/// Checks perftest with the RDMA connection manager: over IPoIB's addresses and without TCP, so
/// that no list of sockets shows the server.
fn rdma_cm() -> Group {
    let bounded = ["ib_write_bw -R -n 200", "ib_send_lat -R -n 200"];
    let full = [
        "ib_read_lat -R -n 200",
        "ib_send_bw -R -n 200",
        "ib_send_lat -R -c UD -n 200",
        "ib_atomic_bw -R -n 200",
        "ib_write_bw -R -q 4 -n 200",
        "ib_write_bw -z -n 200",
    ];
    let check = |command| {
        let script = format!("measured cm {command}");
        Check::new(command, &[&script, &script])
    };
    Group::new("perftest by rdma_cm", &[])
        .checks(bounded.map(check))
        .checks(full.map(|tool| check(tool).full()))
}

/// Checks qperf, which verifies the results of its atomics. Its server runs until it is told to
/// end.
fn qperf() -> Group {
    let tests = [
        "rc_bi_bw",
        "rc_bw",
        "rc_lat",
        "rc_rdma_read_bw",
        "rc_rdma_read_lat",
        "rc_rdma_write_bw",
        "rc_rdma_write_lat",
        "rc_rdma_write_poll_lat",
        "rc_compare_swap_mr",
        "rc_fetch_add_mr",
        "ver_rc_compare_swap",
        "ver_rc_fetch_add",
        "uc_bi_bw",
        "uc_bw",
        "uc_lat",
        "uc_rdma_write_bw",
        "uc_rdma_write_lat",
        "uc_rdma_write_poll_lat",
        "ud_bi_bw",
        "ud_bw",
        "ud_lat",
    ];
    let check = |test: &str| {
        let client = format!("await node0 19765; qperf -t 1 node0 {test}; note done");
        Check::new(
            test,
            &["qperf & until noted node1; do sleep 0.2; done", &client],
        )
    };
    Group::new("qperf", &["--packages", "qperf"])
        .checks(tests.map(check))
        .full()
}

/// Runs both sides on one adapter, by events: two that poll would wait for each other's share of
/// the only core.
fn loopback() -> Group {
    let alone = |tool: &str| {
        let script =
            format!("{tool} & server=$!\nawait localhost {PORT}; {tool} localhost; wait $server");
        Check::new(tool, &[&script])
    };
    let tools = [
        "ibv_rc_pingpong -c -e",
        "ibv_rc_pingpong -c -e -s 100000 -n 100",
        "ibv_uc_pingpong -c -e",
        "ibv_ud_pingpong -c -e",
        "ibv_srq_pingpong -c -e",
        "ibv_rc_pingpong -c -e -g 0",
    ];
    let rping = "rping -s -V -C 10 & server=$!
        await_cm localhost rping; rping -c -V -C 10 -a ib0; wait $server";
    Group::new("loopback", &[])
        .checks(tools.map(alone))
        .check(Check::new("rping", &[rping]))
        .full()
}

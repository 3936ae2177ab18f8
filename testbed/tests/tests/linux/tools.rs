//! rdma-core's examples and perftest between two nodes.

use testbed_tests::linux::group::{Check, Group};

/// The port that each of these tools listens on for its first words.
const PORT: u16 = 18515;

pub(crate) fn groups() -> Vec<Group> {
    vec![pingpongs(), perftest()]
}

/// Both sides tell their iterations and, by `-c`, check what they receive.
fn pingpongs() -> Group {
    let tools = [
        "ibv_rc_pingpong",
        "ibv_rc_pingpong -e -c",
        "ibv_rc_pingpong -g 0 -c",
        "ibv_uc_pingpong -c",
        "ibv_uc_pingpong -e",
        "ibv_ud_pingpong -c",
        "ibv_ud_pingpong -e",
        "ibv_srq_pingpong -c",
        "ibv_srq_pingpong -e",
    ];
    let check = |tool| Check::pair(tool, PORT).expect("iters in");
    Group::new("pingpong", &[]).checks(tools.map(check))
}

fn perftest() -> Group {
    let tools = [
        "ib_write_bw -n 200",
        "ib_read_bw -n 200",
        "ib_send_bw -n 200",
        "ib_write_lat -n 200",
        "ib_atomic_lat -n 200",
        "ib_send_bw -c UD -n 200",
    ];
    Group::new("perftest", &[]).checks(tools.map(|tool| Check::pair(tool, PORT)))
}

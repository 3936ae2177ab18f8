//! Debian's unmodified drivers and tools on the modelled adapters: a client that was written for real cards.

use std::process::Command;

use testbed_tests::xtask;

/// Starts a guest a command, and gives what they said when all have ended well.
fn linux(options: &[&str], commands: &[&str]) -> String {
    let mut xtask: Command = xtask();
    xtask.args(["linux", "--timeout", "300"]).args(options).arg("--");
    let output = xtask.args(commands).output().expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    said
}

/// Ends a guest's command with an error if its kernel has complained of an adapter or of itself, and shows what it said.
const KERNEL_IS_CONTENT: &str = "
    if dmesg | grep -E 'Call Trace|BUG:|WARNING:|(mlx4|infiniband|ib_|ib0|rdma).*([Ff]ail|[Ee]rr|[Ww]arn|[Uu]nable|[Cc]ould not|[Tt]imed? ?out|[Ii]nvalid|catas|stuck)'
    then exit 90; fi";

/// Each tool on node 0, its client on node 1; both check what they receive.
fn pairs(server: &[&str], port: u16) -> (String, String) {
    let begin = "set -e; export MALLOC_ARENA_MAX=1\n".to_owned();
    let mut first = begin.clone();
    let mut second = begin;
    for tool in server {
        first += &format!("echo '== {tool}'; timeout 60 {tool}\n");
        second += &format!("await node0 {port}; echo '== {tool}'; timeout 60 {tool} node0\n");
    }
    (first + KERNEL_IS_CONTENT, second + KERNEL_IS_CONTENT)
}

#[test]
fn both_ports_come_up_and_the_modules_load_again() {
    let script = "set -e
        for round in 1 2 3; do
            for port in 1 2; do
                for try in $(seq 100); do
                    grep -q ACTIVE /sys/class/infiniband/mlx4_0/ports/$port/state && break
                    sleep 0.1
                done
            done
            ibstat; ibv_devinfo -v >/tmp/devinfo
            grep -c 'PORT_ACTIVE (4)' /tmp/devinfo | grep -qx 2
            ip link set ib0 down
            rmmod ib_ipoib; rmmod mlx4_ib; rmmod mlx4_core
            if grep ^mlx4 /proc/modules; then exit 91; fi
            modprobe mlx4_core; modprobe mlx4_ib; modprobe ib_ipoib
        done";
    let said = linux(&["--ports", "2"], &[&format!("{script}\n{KERNEL_IS_CONTENT}")]);
    assert_eq!(said.matches("State: Active").count(), 6, "{said}");
    assert_eq!(said.matches("CA type: MT4099").count(), 3, "{said}");
}

#[test]
fn pingpongs_of_every_service_pass_checked_data() {
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
    let (first, second) = pairs(&tools, 18515);
    let said = linux(&[], &[&first, &second]);
    // Of each tool both sides, and of srq_pingpong as well one line, tell the iterations.
    assert_eq!(said.matches(" iters in ").count(), 2 * tools.len(), "{said}");
}

#[test]
fn perftest_reads_writes_and_sends() {
    let tools = [
        "ib_write_bw -n 200",
        "ib_read_bw -n 200",
        "ib_send_bw -n 200",
        "ib_write_lat -n 200",
        "ib_atomic_lat -n 200",
        "ib_send_bw -c UD -n 200",
    ];
    let (first, second) = pairs(&tools, 18515);
    let said = linux(&[], &[&first, &second]);
    for tool in tools {
        assert!(said.contains(&format!("node1: == {tool}")), "{tool} of\n{said}");
    }
}

#[test]
fn the_fabric_answers_linux_tools_and_carries_ip() {
    let first = format!(
        "set -e; ibping -S &
        timeout 60 rping -s -V -C 10; timeout 60 ucmatose; timeout 60 udaddy\n{KERNEL_IS_CONTENT}"
    );
    // Who listens by the RDMA connection manager is not told by the kernel's list of sockets.
    let second = format!(
        "set -e
        again() {{
            tries=0
            until timeout 20 \"$@\"; do
                tries=$((tries + 1))
                [ $tries -lt 20 ]
                sleep 0.5
            done
        }}
        other=$(($(cat /sys/class/infiniband/mlx4_0/ports/1/lid) ^ 1))
        ibping -c 3 $other
        ping -c 3 ib0
        saquery; saquery -p; saquery -g
        again rping -c -V -C 10 -a ib0
        again ucmatose -s ib0
        again udaddy -s ib0\n{KERNEL_IS_CONTENT}"
    );
    let said = linux(&[], &[&first, &second]);
    for part in [
        "node1: 3 packets transmitted, 3 received, 0% packet loss",
        "node1: 3 packets transmitted, 3 packets received, 0% packet loss",
        "NodeDescription.........node0",
        "NodeDescription.........node1",
        "node1: receiving data transfers",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
}

//! Other kinds of adapters, and links that have a rate, a latency and losses.

use testbed_tests::linux::group::{Check, Group};

/// TCP port that a pingpong listens on.
const PORT: u16 = 18515;

pub(crate) fn groups() -> Vec<Group> {
    vec![
        kind(
            "ConnectX-3 Pro",
            &["--adapter", "pro"],
            "ibstat | grep 'CA type: MT4103'",
        ),
        kind("older firmware", &["--adapter", "plain"], "ibstat"),
        kind(
            "two vectors",
            &["--adapter", "vectors=2"],
            "grep mlx4 /proc/interrupts",
        ),
        kind(
            "the interrupt pin only",
            &["--adapter", "vectors=0"],
            "grep mlx4 /proc/interrupts | grep IO-APIC",
        )
        // It says that MSI-X can't be had.
        .allow("MSI-X"),
        blueflame(),
        kernel(),
        facts(),
        links(),
    ]
}

/// The main job of an adapter of some kind, and a script that looks for what is special of it.
fn kind(name: &str, options: &[&str], look: &str) -> Group {
    Group::new(name, options)
        .check(Check::new("what it says", &[look, look]))
        .check(Check::pair("ibv_rc_pingpong -e -c", PORT).expect("iters in"))
        .check(Check::pair("ibv_ud_pingpong -c", PORT).expect("iters in"))
}

/// Requests that rdma-core writes to the card at once, which it does with those that are inline.
fn blueflame() -> Group {
    Group::new("BlueFlame", &["--adapter", "blueflame"])
        .check(Check::pair("ib_write_lat -I 200 -s 150 -n 200", PORT))
        .check(Check::pair("ib_send_lat -I 200 -s 64 -n 200", PORT))
        .check(Check::pair("ibv_ud_pingpong -c", PORT).expect("iters in"))
}

/// Debian 13's kernel, whose drivers are two years younger.
fn kernel() -> Group {
    let options = ["--kernel", "trixie/amd64"];
    kind(
        "Linux 6.12",
        &options,
        "uname -r | grep '^6.12'; ibstat | grep 'State: Active'",
    )
    .check(Check::new("IPoIB", &["", "ping -c 3 ib0"]).expect("0% packet loss"))
}

/// Facts that tools learn of a card beside its ports.
fn facts() -> Group {
    let vpd = "cat /sys/bus/pci/devices/*/vpd | grep -a -o 'MCX354A-FCBT'";
    let vendor = "vendstat -N $(cat /sys/class/infiniband/mlx4_0/ports/1/lid)";
    let renamed = "echo another name >/sys/class/infiniband/mlx4_0/node_desc
        for try in $(seq 50); do saquery | grep -q 'another name' && break; sleep 0.1; done
        saquery | grep 'another name'";
    let records = "saquery --smkey 1 LR; saquery --smkey 1 PKTR";
    let devinfo = "ibv_devinfo -v | grep -A1 'completion timestamp_mask\\|hca_core_clock'";
    // The other node's link, as the answer would be lost with the own one.
    let width = "ibportstate 1 2 width 1; ibportstate 1 2 reset
        for try in $(seq 50); do ibportstate 1 2 query >/tmp/port 2>&1; grep -q 'LinkWidthActive:.*1X' /tmp/port && break; sleep 0.2; done
        cat /tmp/port; grep 'LinkWidthActive:.*1X' /tmp/port
        for try in $(seq 100); do ping -c 1 -W 1 ib1 && break; done
        ping -c 2 ib1";
    Group::new("facts", &[])
        .check(Check::new("vital product data", &[vpd, ""]).expect("MCX354A-FCBT"))
        .check(Check::new("vendstat -N", &[vendor, ""]).expect("hw_dev_id"))
        .check(Check::new("a new node description", &[renamed, ""]))
        .check(
            Check::new("saquery: links, partition tables", &[records, ""])
                .expect("FromLID")
                .expect("PKeyTableRecord"),
        )
        .check(Check::new("time stamps", &[devinfo, ""]).expect("hca_core_clock"))
        .check(Check::new("a link of one lane", &[width, ""]))
}

/// Links on which packets take time, and some get lost.
fn links() -> Group {
    let options = ["--rate", "fdr", "--latency", "20", "--loss", "2"];
    Group::new("links", &options)
        .check(Check::pair("ibv_rc_pingpong -c", PORT).expect("iters in"))
        .check(Check::pair("ib_write_bw -n 200", PORT))
}

//! Our driver against Linux's on one fabric: ours runs in this process or in a unikernel, Linux in
//! a guest. And iPXE's driver.
//!
//! The guest's scripts ask for our part by `ours WHAT`, which ends when our part has, with its
//! result.

mod companion;
mod driver;
mod image;
mod ipxe;
mod tcp;

use fabric::Manager;
use testbed_tests::linux::group::{Check, Group};

use self::companion::Companion;

pub(crate) fn groups() -> Vec<Group> {
    vec![in_one_process(), in_a_unikernel(), under_opensm()]
}

/// Creates a check in which our side runs beside Linux's.
fn beside(name: &str, ours: &str, linux: &str) -> Check {
    // Where a tool listens is not always told; our side tries again, as `again` does.
    let script = format!(
        ". /data/ours/ports
        $ours '{ours}' >/tmp/ours & {linux}
        wait; cat /tmp/ours"
    );
    Check::new(name, &[&script])
        .limit(150)
        .expect("node0: ours: ok")
}

/// Returns the script of Linux's `rping` as client of a peer without IPoIB: Linux is given the
/// place of its address.
fn rping_to(who: &str) -> String {
    format!(
        "/usr/bin/ip neigh replace ${who}_address lladdr ${who}_hardware dev ib0 nud permanent
        again rping -c -V -C 10 -a ${who}_address"
    )
}

fn group(name: &str) -> Group {
    Group::new(name, &[]).beside(|| start(Manager::Own))
}

fn start(manager: Manager) -> std::io::Result<(Vec<String>, Box<dyn std::any::Any>)> {
    let companion = Companion::start(manager)?;
    Ok((companion.options(), Box::new(companion)))
}

/// Runs with the guest's subnet manager as the only one.
fn under_opensm() -> Group {
    Group::new("opensm", &["--sm", "guest"])
        .beside(|| start(Manager::Foreign))
        .check(beside("our port becomes active", "active", "true"))
        .check(beside(
            "ibv_rc_pingpong answers us",
            "rc-client",
            "ibv_rc_pingpong -n 100",
        ))
        .check(beside(
            "a unikernel's port becomes active, and ibv_rc_pingpong answers it",
            "image rc-client",
            "ibv_rc_pingpong -n 100",
        ))
        .check(beside(
            "rping reads and writes our memory",
            "rping-client",
            "for try in $(seq 100); do grep -qx 1 /sys/class/net/ib0/carrier && break; sleep 0.2; done
            rping -s -V -C 10 -a 10.0.1.1",
        ))
        .check(Check::new(
            "its log names no failed datagram",
            &["if grep -E 'ERR|rror' /tmp/opensm.log; then exit 1; fi"],
        ))
}

fn in_a_unikernel() -> Group {
    group("a unikernel and iPXE")
        .check(beside(
            "ibv_rc_pingpong answers it",
            "image rc-client",
            "ibv_rc_pingpong -n 100",
        ))
        .check(beside(
            "ibv_ud_pingpong calls it",
            "image ud-server",
            "again ibv_ud_pingpong -n 100 -s 1024 -p $pingpong 10.0.2.2",
        ))
        .check(beside(
            "rping reads and writes its memory",
            "image rping-client",
            "rping -s -V -C 10 -a 10.0.1.1",
        ))
        .check(beside(
            "it reads and writes rping's memory",
            "image rping-server",
            &rping_to("image"),
        ))
        .check(beside(
            "iPXE's driver brings the link of the same card up",
            "image ipxe",
            "true",
        ))
        .check(
            beside(
                "ibv_rc_pingpong calls it",
                "image rc-server",
                "again ibv_rc_pingpong -n 100 -p $pingpong 10.0.2.2",
            )
            .full(),
        )
        .check(
            beside(
                "ibv_ud_pingpong answers it",
                "image ud-client",
                "ibv_ud_pingpong -n 100 -s 1024",
            )
            .full(),
        )
}

fn in_one_process() -> Group {
    group("one process")
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
            &rping_to("our"),
        ))
        .check(beside(
            "what each driver commands differs only as explained",
            "compare",
            "true",
        ))
}

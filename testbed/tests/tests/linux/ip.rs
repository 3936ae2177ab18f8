//! IPoIB, and what connects by its addresses.

use testbed_tests::linux::group::{Check, Group};

pub(crate) fn groups() -> Vec<Group> {
    vec![connection_manager()]
}

fn connection_manager() -> Group {
    let rping = Check::new("rping", &["rping -s -V -C 10", "again rping -c -V -C 10 -a ib0"]);
    let ucmatose = Check::new("ucmatose", &["ucmatose", "again ucmatose -s ib0"]);
    let udaddy =
        Check::new("udaddy", &["udaddy", "again udaddy -s ib0"]).expect("node1: receiving data transfers");
    Group::new("connection manager", &[])
        .check(Check::new("ping by IPoIB", &["", "ping -c 3 ib0"]))
        .checks([rping, ucmatose, udaddy])
}

//! The guests themselves: what `xtask linux` gives them beside Debian's packages.

use testbed_tests::linux::group::{Check, Group};

pub(crate) fn groups() -> Vec<Group> {
    let own = Group::new("tools", &["--modules", "rds_rdma"])
        .check(
            Check::new(
                "a command on another guest, and its status",
                &[
                    "on node1 'hostname; echo two; exit 3' && exit 1
                    status=0; on node1 'exit 3' || status=$?; [ $status = 3 ]
                    on node1 hostname",
                    "",
                ],
            )
            .expect("node0: node1\nnode0: two"),
        )
        .check(
            Check::new("iproute2's programs, users and groups", &["ip -V; id", ""])
                .expect("iproute2")
                .expect("uid=0(root) gid=0(root)"),
        )
        .check(Check::new(
            "modules that were asked for",
            &["grep rds_rdma /proc/modules", ""],
        ));
    vec![own]
}

//! NVMe over RDMA between two guests: memory registered by work requests, keys invalidated by the
//! peer's SENDs.

use testbed_tests::linux::group::{Check, Group};

pub(crate) fn groups() -> Vec<Group> {
    let discover = "modprobe nvme-rdma
        nvme discover -t rdma -a 10.0.1.1 -s 4420";
    let contents = "nvme connect -t rdma -n test -a 10.0.1.1 -s 4420
        until [ -e /dev/nvme0n1 ]; do sleep 0.1; done
        dd if=/dev/urandom of=/tmp/contents bs=1M count=64
        dd if=/tmp/contents of=/dev/nvme0n1 bs=1M oflag=direct
        echo 3 >/proc/sys/vm/drop_caches
        cmp /tmp/contents /dev/nvme0n1
        sha256sum </tmp/contents >/tmp/sum; sha256sum </dev/nvme0n1 | cmp - /tmp/sum
        nc -l -p 7000 </tmp/sum; rm /tmp/contents";
    let theirs = "await node1 7000; nc node1 7000 </dev/null >/tmp/sum
        sha256sum </dev/ram0 | cmp - /tmp/sum";
    let swap = "mkswap /dev/nvme0n1; swapon /dev/nvme0n1; swapping 16; swapoff /dev/nvme0n1";
    let group = Group::new("nvme", &["--packages", "nvme-cli"])
        .check(Check::new("a target is offered", &["nvme-target 10.0.1.1"]))
        .check(Check::new("it is discovered", &["", discover]).expect("subnqn:  test"))
        .check(
            Check::new(
                "64 MB written, read back, and the same at the target",
                &[theirs, contents],
            )
            .limit(180),
        )
        .check(
            Check::new("a program swaps through it", &["", swap])
                .limit(300)
                .expect("sum 11249925000"),
        )
        .check(Check::new(
            "disconnected, and connected again",
            &["", RECONNECT],
        ));
    vec![group]
}

const RECONNECT: &str = "
    nvme disconnect -n test
    until [ ! -e /dev/nvme0n1 ]; do sleep 0.1; done
    nvme connect -t rdma -n test -a 10.0.1.1 -s 4420
    until [ -e /dev/nvme0n1 ]; do sleep 0.1; done
    dd if=/dev/nvme0n1 of=/dev/null bs=1M count=4 iflag=direct
    nvme disconnect -n test";

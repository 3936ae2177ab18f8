//! Adapters that drivers release and take again: modules, machines, functions.

use testbed_tests::linux::group::{Check, Group};

/// TCP port that a pingpong listens on.
const PORT: u16 = 18515;

/// Waits until the port is up again.
const ACTIVE: &str = "
    for try in $(seq 150); do
        grep -qs ACTIVE /sys/class/infiniband/mlx4_0/ports/1/state && break
        sleep 0.2
    done
    ibstat mlx4_0 1 | grep 'State: Active'\n";

pub(crate) fn groups() -> Vec<Group> {
    vec![modules(), pin(), function(), reset_in_use(), reboot()]
}

fn traffic() -> Check {
    Check::pair("ibv_rc_pingpong -c", PORT).expect("iters in")
}

/// Unloads and loads the modules, while the peer's connections and interface stay up.
fn modules() -> Group {
    let reload = format!(
        "ip link set ib0 down
        rmmod ib_ipoib; rmmod mlx4_ib; rmmod mlx4_core
        if grep ^mlx4 /proc/modules; then exit 1; fi
        modprobe mlx4_core; modprobe mlx4_ib; modprobe ib_ipoib
        {ACTIVE}
        ip link set ib0 up; ip address add 10.0.1.2/24 dev ib0
        for try in $(seq 50); do ping -c 1 -W 1 ib0 && break; done
        ping -c 2 ib0"
    );
    let mut group = Group::new("modules", &[]);
    for round in 1..=5 {
        let name = format!("loaded again, time {round}");
        let (check, traffic) = (Check::new(&name, &["", &reload]), traffic());
        // Three times are enough to meet what the second time leaves behind.
        group = if round > 3 {
            group.check(check.full()).check(traffic.full())
        } else {
            group.check(check).check(traffic)
        };
    }
    group
}

/// Runs the driver without MSI-X, with the interrupt pin.
fn pin() -> Group {
    let reload = format!(
        "ip link set ib0 down
        rmmod ib_ipoib; rmmod mlx4_ib; rmmod mlx4_core
        modprobe mlx4_core msi_x=0; modprobe mlx4_ib; modprobe ib_ipoib
        {ACTIVE}
        grep mlx4 /proc/interrupts"
    );
    Group::new("interrupt pin", &[])
        .check(
            Check::new("mlx4_core msi_x=0", &["", &reload])
                .limit(120)
                .expect("IO-APIC"),
        )
        .check(traffic())
        .check(Check::pair("ibv_rc_pingpong -e -c", PORT).expect("iters in"))
}

/// Resets the function while no driver has it, as for another machine, and by the driver's own
/// means.
fn function() -> Group {
    let reset = format!(
        "cd /sys/bus/pci/devices/*/infiniband/mlx4_0/device; function=$(basename $(pwd -P))
        echo $function >/sys/bus/pci/drivers/mlx4_core/unbind
        [ ! -e /sys/class/infiniband/mlx4_0 ]
        cat /sys/bus/pci/devices/$function/reset_method
        echo 1 >/sys/bus/pci/devices/$function/reset
        echo $function >/sys/bus/pci/drivers/mlx4_core/bind
        {ACTIVE}"
    );
    let reload = format!("devlink dev reload $(devlink dev | head -1)\n{ACTIVE}");
    Group::new("function", &[])
        .check(Check::new("reset from sysfs", &["", &reset]).expect("node1: flr"))
        .check(traffic())
        .check(Check::new("devlink reload", &["", &reload]))
        .check(traffic())
}

/// Resets the function under its driver, which finds the device dead and restarts it.
fn reset_in_use() -> Group {
    let reset = format!(
        "cd /sys/bus/pci/devices/*/infiniband/mlx4_0/device; function=$(basename $(pwd -P)); cd /
        echo 1 >/sys/bus/pci/devices/$function/reset
        # The driver notices with its next command.
        for try in $(seq 300); do
            ibv_devinfo >/dev/null || true
            dmesg | grep -q 'mlx4_restart_one was ended, ret=0' && break
            sleep 0.2
        done
        dmesg | tail -20
        {ACTIVE}"
    );
    Group::new("reset in use", &[])
        .allow("mlx4|ib0|infiniband")
        .check(Check::new("reset from sysfs under the driver", &["", &reset]).limit(120))
        .check(traffic())
        .full()
}

fn reboot() -> Group {
    let script = format!(
        "if [ $BOOT = 1 ]; then sync; reboot -f; fi
        {ACTIVE}
        for try in $(seq 50); do ping -c 1 -W 1 ib0 && break; done
        ping -c 2 ib0; echo booted $BOOT times"
    );
    Group::new("reboot", &["--reboots"])
        .check(
            Check::new("a guest reboots", &["", &script])
                .limit(180)
                .expect("node1: booted 2 times"),
        )
        .check(traffic())
}

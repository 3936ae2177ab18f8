//! Machines of many kinds, each with a node of FIT: `xtask machines` has the list and the checks.

use std::process::Stdio;

use testbed_tests::xtask;

/// Boots machines, of which `least` must have been tried.
fn boot(options: &[&str], least: usize) {
    let output = xtask()
        .arg("machines")
        .args(options)
        .stderr(Stdio::inherit())
        .output()
        .expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let passed = said.matches("\tpassed\t").count();
    assert!(passed >= least, "{said}");
}

/// The largest memory, gaps between APIC ids, the oldest CPU, no adapter, an adapter behind a
/// switch and behind PCI bridges, S with an NVMe disk and with two disks.
#[test]
fn nodes_work_on_few_kinds_of_machines() {
    boot(&[], 8);
}

#[test]
#[ignore = "takes three minutes"]
fn nodes_work_on_all_kinds_of_machines() {
    boot(&["--all"], 36);
}

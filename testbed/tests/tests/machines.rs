//! Machines of many kinds, each with a node of FIT: `xtask machines` has the list and the checks.

use std::process::Stdio;

use testbed_tests::{Run, program, xtask};

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
    boot(&[], 9);
}

#[test]
#[ignore = "takes three minutes"]
fn nodes_work_on_all_kinds_of_machines() {
    boot(&["--all"], 37);
}

/// P, M and S whole, each with its adapter where servers with two processors and much memory have
/// theirs.
#[test]
fn a_program_runs_with_adapters_in_other_places() {
    for place in ["second-root", "high"] {
        let run = Run::new(&["--pcache", "4M", "--adapter-place", place]);
        let ran = run
            .add(program("work"), "/bin/work")
            .run(&["/bin/work", "exit", "42"]);
        assert_eq!(ran.code, Some(42), "{place}: {}", ran.stderr);
    }
}

//! Random system calls and random code end nothing but the programs that make them.
//!
//! The program is `programs/wild.c`: root and a user, three threads a process, numbers and pointers
//! of all kinds.

use testbed_tests::{Run, program};

/// The first seed, unless `WILD_SEED` names another.
const SEED: &str = "1";

fn only_programs_die(cpus: &str, seconds: &str, timeout: &str) {
    let seed = std::env::var("WILD_SEED").unwrap_or_else(|_| SEED.to_owned());
    let options = ["--cpus", cpus, "--pcache", "16M", "--timeout", timeout];
    let ran =
        Run::new(&options)
            .add(program("wild"), "/bin/wild")
            .run(&["/bin/wild", &seed, seconds]);
    let said = String::from_utf8_lossy(&ran.stdout);
    let end: Vec<&str> = said.lines().rev().take(3).collect();
    assert_eq!(ran.code, Some(0), "{end:?}: {}", ran.stderr);
    assert_eq!(end.first(), Some(&"all is well"), "{end:?}: {}", ran.stderr);
}

#[test]
fn random_calls_and_code_end_only_their_programs() {
    only_programs_die("2", "15", "200");
}

#[test]
#[ignore = "takes an hour, on four cores; WILD_SECONDS names another time"]
fn random_calls_and_code_end_only_their_programs_for_an_hour() {
    let seconds = std::env::var("WILD_SECONDS").unwrap_or_else(|_| "3600".to_owned());
    let timeout = seconds.parse::<u64>().expect("a number") * 2 + 300;
    only_programs_die("4", &seconds, &timeout.to_string());
}

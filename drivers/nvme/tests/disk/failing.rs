//! Controllers that fail now and then, and say so or fall silent.

use std::sync::Arc;

use hal::Duration;
use nvme::{Config, Disk, Error};
use nvme_model::{Bench, ControllerFacts, Faults};

use crate::{assert_no_violations, many_tasks, start, started};

/// Commands of a start: those that no fault shall hit.
const START: u64 = 20;

fn with(faults: Faults) -> ControllerFacts {
    let faults = Faults {
        after: START,
        ..faults
    };
    ControllerFacts {
        faults,
        ..ControllerFacts::default()
    }
}

fn seeds(faults: &Faults, mut check: impl FnMut(&mut Bench, &Disk<harness::Machine>)) {
    for seed in 0..20 {
        let facts = ControllerFacts {
            seed,
            ..with(faults.clone())
        };
        let (mut bench, disk) = started(facts);
        check(&mut bench, &disk);
        assert_no_violations(&bench);
    }
}

#[test]
fn a_medium_error_fails_its_request_only() {
    let faults = Faults {
        media_error: 100,
        ..Faults::default()
    };
    let mut failed = 0;
    seeds(&faults, |bench, disk| {
        let errors = many_tasks(bench, disk, 8, 8);
        failed += errors.len();
        let named = |error: &Error| error.to_string().contains("(type 2, code 0x8");
        assert!(errors.iter().all(named), "{errors:?}");
    });
    assert!(failed > 50, "{failed}");
}

#[test]
fn a_failure_that_passes_is_not_seen() {
    let faults = Faults {
        passing_error: 30,
        lost_interrupt: 100,
        ..Faults::default()
    };
    let mut failed = 0;
    for seed in 0..20 {
        let facts = ControllerFacts {
            seed,
            ..with(faults.clone())
        };
        let mut bench = Bench::new(facts);
        let disk = Arc::new(start(&mut bench, 2).expect("it starts"));
        let served = Arc::clone(&disk);
        bench.spawn(async move { served.serve().await });
        failed += many_tasks(&mut bench, &disk, 8, 8).len();
        assert_no_violations(&bench);
    }
    // Three times in a row, in 20 times 144 commands: 0.08 are expected.
    assert!(failed <= 2, "{failed}");
}

#[test]
fn a_late_command_is_aborted_and_sent_again() {
    let faults = Faults {
        late: 20,
        ..Faults::default()
    };
    let (mut failed, mut starts) = (0, 0);
    seeds(&faults, |bench, disk| {
        failed += many_tasks(bench, disk, 8, 8).len();
        starts += bench.with_controller(|controller| controller.starts());
    });
    assert!(failed <= 2, "{failed}");
    assert_eq!(starts, 20, "no reset");
}

#[test]
fn a_stuck_command_costs_a_reset_and_fails_alone() {
    let faults = Faults {
        late: 10,
        deaf: true,
        ..Faults::default()
    };
    let (mut late, mut starts) = (0, 0);
    seeds(&faults, |bench, disk| {
        for error in many_tasks(bench, disk, 8, 8) {
            assert!(matches!(error, Error::Late { .. }), "{error}");
            late += 1;
        }
        starts += bench.with_controller(|controller| controller.starts());
    });
    assert!(late > 5 && starts > 25, "{late} late, {starts} starts");
}

#[test]
fn a_fatal_status_costs_a_reset_and_no_request() {
    let faults = Faults {
        fatal: 5,
        ..Faults::default()
    };
    let mut starts = 0;
    seeds(&faults, |bench, disk| {
        for error in many_tasks(bench, disk, 8, 8) {
            // It may fail again while it starts, and is given up then.
            assert!(
                matches!(error, Error::Fatal | Error::Lost { .. }),
                "{error}"
            );
        }
        starts += bench.with_controller(|controller| controller.starts());
    });
    assert!(starts > 25, "{starts}");
}

/// A controller that is pulled, or dies, at each of its first commands.
#[test]
fn a_controller_that_ends_at_any_command_fails_what_waits() {
    for after in 0..30 {
        for unplugged in [true, false] {
            let faults = Faults {
                after,
                unplug: if unplugged { 1000 } else { 0 },
                dead: if unplugged { 0 } else { 1000 },
                ..Faults::default()
            };
            let mut bench = Bench::new(ControllerFacts {
                faults,
                ..ControllerFacts::default()
            });
            let machine = bench.machine();
            let ended = |error: &Error| match error {
                Error::Gone { .. } => unplugged,
                Error::Timeout { .. } => !unplugged,
                _ => false,
            };
            let disk = match bench.block_on(Disk::start(machine, Config { queues: 2 })) {
                Ok(disk) => disk,
                Err(error) => {
                    assert!(ended(&error), "{after}: {error}");
                    continue;
                }
            };
            let before = bench.now();
            let errors = many_tasks(&mut bench, &disk, 8, 3);
            assert!(
                errors.len() >= 8 && errors.iter().all(ended),
                "{after}: {errors:?}"
            );
            let waited = bench.now().since(before);
            assert!(waited < Duration::from_secs(60), "{after}: {waited:?}");
            let again = bench.block_on(disk.flush());
            assert!(again.is_err_and(|error| ended(&error)), "{after}");
            assert_no_violations(&bench);
        }
    }
}

#[test]
fn a_controller_that_never_gets_ready_is_given_up() {
    let facts = ControllerFacts {
        start: Duration::from_secs(1000),
        timeout: 2,
        ..ControllerFacts::default()
    };
    let mut bench = Bench::new(facts);
    let error = start(&mut bench, 1).expect_err("it never starts");
    let text = error.to_string();
    assert!(
        text.starts_with("starting the controller took longer than 1.5"),
        "{text}"
    );
    assert!(bench.now().since(hal::Instant::default()) < Duration::from_secs(3));
}

#[test]
fn a_controller_without_vectors_is_polled() {
    let facts = ControllerFacts {
        msix: false,
        ..ControllerFacts::default()
    };
    let (mut bench, disk) = started(facts);
    assert_eq!(many_tasks(&mut bench, &disk, 8, 4), []);
    // There is nothing to serve.
    bench.block_on(disk.serve());
    assert_no_violations(&bench);
}

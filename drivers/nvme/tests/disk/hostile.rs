//! Controllers that say what is not so. Nothing panics, every wait ends, and the device gets at no
//! memory but what was lent to it.

use nvme_model::{Bench, ControllerFacts, Faults};

use crate::{many_tasks, start};

/// Whether a device did what its driver was to keep it from.
fn reached_foreign_memory(bench: &Bench) -> bool {
    let violations = bench.violations();
    violations
        .iter()
        .any(|what| what.contains("memory") || what.contains("DMA"))
}

#[test]
fn wrong_completions_end_in_resets_or_errors() {
    let (mut resets, mut errors) = (0, 0);
    for seed in 0..150 {
        let rate = |bit: u64| if seed >> bit & 1 == 1 { 15 } else { 0 };
        let faults = Faults {
            wrong_id: rate(0),
            wrong_queue: rate(1),
            twice: rate(2),
            late: rate(3),
            deaf: seed % 3 == 0,
            fatal: rate(4) / 5,
            unplug: rate(5) / 5,
            dead: rate(6) / 5,
            lost_interrupt: rate(1) * 10,
            after: 9,
            ..Faults::default()
        };
        let facts = ControllerFacts {
            seed,
            faults,
            max_queue_entries: if seed % 2 == 0 { 3 } else { 1023 },
            ..ControllerFacts::default()
        };
        let mut bench = Bench::new(facts);
        let Ok(disk) = start(&mut bench, 3) else {
            errors += 1;
            continue;
        };
        errors += many_tasks(&mut bench, &disk, 6, 6).len();
        resets += bench.with_controller(|controller| controller.starts()) - 1;
        drop(disk);
        assert!(
            !reached_foreign_memory(&bench),
            "seed {seed}: {:?}",
            bench.violations()
        );
        assert_eq!(bench.machine().allocated(), 0, "seed {seed}");
    }
    assert!(
        resets > 100 && errors > 100,
        "{resets} resets, {errors} errors"
    );
}

#[test]
fn spoiled_identify_data_is_refused_or_lived_with() {
    let (mut started, mut refused) = (0, 0);
    for seed in 0..400 {
        let facts = ControllerFacts {
            seed,
            block_shift: if seed % 2 == 0 { 9 } else { 12 },
            faults: Faults {
                spoiled_bytes: 1 + u16::try_from(seed % 5).expect("small"),
                ..Faults::default()
            },
            ..ControllerFacts::default()
        };
        let mut bench = Bench::new(facts);
        match start(&mut bench, 1) {
            Err(_) => refused += 1,
            Ok(disk) => {
                started += 1;
                let size = disk.size();
                let block = disk.block_size();
                let mut bytes = vec![0; 3 * block];
                // What the data says, the device may refuse.
                let _ = bench.block_on(disk.read(0, &mut bytes));
                let _ = bench.block_on(disk.write(size - block as u64, &bytes[..block]));
                let _ = bench.block_on(disk.flush());
            }
        }
        assert!(
            !reached_foreign_memory(&bench),
            "seed {seed}: {:?}",
            bench.violations()
        );
    }
    assert!(
        started > 50 && refused > 50,
        "{started} started, {refused} refused"
    );
}

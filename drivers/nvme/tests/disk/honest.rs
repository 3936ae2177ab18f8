//! Controllers that work.

use std::sync::Arc;

use hal::Duration;
use nvme::{Error, MAX_TRANSFER};
use nvme_model::{Bench, ControllerFacts};
use proptest::prelude::*;

use crate::{assert_no_violations, many_tasks, pattern, start, started};

#[test]
fn a_disk_is_what_its_controller_says() {
    let (bench, disk) = started(ControllerFacts::default());
    assert_eq!((disk.size(), disk.block_size()), (4096 * 512, 512));
    assert_eq!(
        (disk.model().as_str(), disk.serial().as_str()),
        ("Model NVMe", "MODEL-1")
    );
    assert!(disk.has_write_cache() && !disk.read_only());
    assert_eq!((disk.queue_pairs(), disk.max_transfer()), (2, MAX_TRANSFER));
    assert_no_violations(&bench);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the controller's limits, what was written is read.
    #[test]
    fn what_was_written_is_read(
        seed: u64,
        block_shift in 9_u8..=12,
        max_transfer in prop_oneof![Just(0_u8), 4_u8..12, Just(20)],
        stride in 0_u8..4,
        max_queue_entries in prop_oneof![1_u16..20, Just(u16::MAX)],
        queues in 1_u16..5,
        msix: bool,
        served: bool,
    ) {
        let blocks = (4 << 20) >> block_shift;
        let facts = ControllerFacts {
            seed, block_shift, max_transfer, stride, max_queue_entries, queues, msix, blocks,
            ..ControllerFacts::default()
        };
        let mut bench = Bench::new(facts);
        let disk = Arc::new(start(&mut bench, 3).expect("it starts"));
        if served {
            let disk = Arc::clone(&disk);
            bench.spawn(async move { disk.serve().await });
        }
        let errors = many_tasks(&mut bench, &disk, 24, 4);
        prop_assert_eq!(errors, vec![]);
        prop_assert_eq!(bench.violations(), Vec::<String>::new());
        bench.end_tasks();
        drop(disk);
        prop_assert_eq!(bench.machine().allocated(), 0);
    }
}

#[test]
fn the_longest_and_the_smallest_requests_are_made() {
    for (shift, max_transfer) in [(9, 0), (9, 3), (12, 5)] {
        let facts = ControllerFacts {
            block_shift: shift,
            max_transfer,
            blocks: (1 << 20) >> shift,
            ..ControllerFacts::default()
        };
        let (mut bench, disk) = started(facts);
        let longest = disk.max_transfer();
        assert_eq!(
            longest,
            if max_transfer == 3 {
                32 << 10
            } else {
                128 << 10
            }
        );
        let bytes = pattern(7, longest);
        let place = disk.size() - longest as u64;
        bench.block_on(disk.write(place, &bytes)).expect("written");
        let mut read = vec![0; longest];
        bench.block_on(disk.read(place, &mut read)).expect("read");
        assert!(read == bytes);
        // Reads need not be whole blocks.
        let mut some = [0; 1024];
        bench
            .block_on(disk.read(place + 512, &mut some))
            .expect("read");
        assert!(some == bytes[512..1536]);
        assert_no_violations(&bench);
    }
}

#[test]
fn impossible_requests_are_refused() {
    let facts = ControllerFacts {
        block_shift: 12,
        blocks: 64,
        ..ControllerFacts::default()
    };
    let (mut bench, disk) = started(facts);
    let refused = |result| matches!(result, Err(Error::Impossible { .. }));
    for (place, len) in [
        (disk.size(), 4096),
        (u64::MAX - 511, 512),
        (u64::MAX, 4096),
        (1, 4096),
        (0, 100),
        (0, 0),
        (0, MAX_TRANSFER + 4096),
    ] {
        let mut bytes = vec![0; len];
        assert!(
            refused(bench.block_on(disk.read(place, &mut bytes))),
            "{place} {len}"
        );
        assert!(
            refused(bench.block_on(disk.write(place, &bytes))),
            "{place} {len}"
        );
    }
    assert!(
        refused(bench.block_on(disk.write(512, &[0; 512]))),
        "half a block"
    );
    let facts = ControllerFacts {
        read_only: true,
        ..ControllerFacts::default()
    };
    let (mut bench, disk) = started(facts);
    assert!(disk.read_only());
    assert!(refused(bench.block_on(disk.write(0, &[0; 512]))));
    assert_no_violations(&bench);
}

#[test]
fn writes_are_durable_after_a_flush() {
    let (mut bench, disk) = started(ControllerFacts::default());
    let durable = |bench: &Bench, at: usize| {
        bench.with_controller(|controller| controller.medium().after_power_loss()[at])
    };
    bench.block_on(disk.write(0, &[1; 512])).expect("written");
    assert_eq!(durable(&bench, 0), 0, "it is in the cache only");
    bench.block_on(disk.flush()).expect("flushed");
    assert_eq!(durable(&bench, 0), 1);
    let facts = ControllerFacts {
        write_cache: false,
        ..ControllerFacts::default()
    };
    let (mut bench, disk) = started(facts);
    let commands = |bench: &Bench| bench.with_controller(|controller| controller.commands());
    let before = commands(&bench);
    bench.block_on(disk.flush()).expect("nothing to flush");
    assert_eq!(
        commands(&bench),
        before,
        "a disk without a cache is not asked"
    );
    assert_no_violations(&bench);
}

#[test]
fn a_controller_that_is_at_work_is_taken_over() {
    let (mut bench, first) = started(ControllerFacts::default());
    bench.block_on(first.write(0, &[1; 512])).expect("written");
    // Whoever had it is gone, without a word to it.
    std::mem::forget(first);
    let second = start(&mut bench, 1).expect("it starts");
    let mut read = [0; 512];
    bench.block_on(second.read(0, &mut read)).expect("read");
    assert_eq!(read, [1; 512]);
    assert_no_violations(&bench);
}

#[test]
fn a_request_that_is_given_up_leaves_no_buffer_to_others() {
    let facts = ControllerFacts {
        latency: Duration::from_millis(50),
        ..ControllerFacts::default()
    };
    let (mut bench, disk) = started(facts);
    for round in 0..100 {
        let mut bytes = [0; 512];
        let machine = bench.machine();
        let patience = async {
            use hal::Platform;
            machine.sleep(Duration::from_micros(1)).await;
        };
        // Dropped when the sleep ends first.
        let read = std::pin::pin!(disk.read(0, &mut bytes));
        let end = std::pin::pin!(patience);
        bench.block_on(async {
            futures_util::future::select(read, end).await;
        });
        let written = pattern(round, 4096);
        bench.block_on(disk.write(8192, &written)).expect("written");
        let mut read = [0; 4096];
        bench.block_on(disk.read(8192, &mut read)).expect("read");
        assert!(read[..] == written, "round {round}");
    }
    let starts = bench.with_controller(|controller| controller.starts());
    assert_eq!(starts, 1, "no reset");
    assert_no_violations(&bench);
}

#[test]
fn a_dropped_disk_reaches_no_memory() {
    let facts = ControllerFacts {
        latency: Duration::from_millis(50),
        ..ControllerFacts::default()
    };
    let (mut bench, disk) = started(facts);
    let machine = bench.machine();
    let mut bytes = [0; 512];
    {
        let read = std::pin::pin!(disk.read(0, &mut bytes));
        let end = std::pin::pin!(async {
            use hal::Platform;
            machine.sleep(Duration::from_micros(1)).await;
        });
        bench.block_on(async {
            futures_util::future::select(read, end).await;
        });
    }
    drop(disk);
    assert_eq!(bench.machine().allocated(), 0);
    let machine = bench.machine();
    bench.block_on(async {
        use hal::Platform;
        machine.sleep(Duration::from_secs(1)).await;
    });
    assert_no_violations(&bench);
}

//! NVMe: identify data of any bytes, and the driver with a controller whose faults the input
//! chooses.
//!
//! Bring-up, reads, writes and a flush must each end, well or not; the controller reaches no memory
//! that was not lent to it, and the disk's memory is given back.

use hal::Duration;
use nvme::{Config, Disk};
use nvme_hw::identify::{Controller, LEN, Namespace, first_namespace, text};
use nvme_model::{Bench, ControllerFacts, Faults};

use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.bool() {
        identify(&mut input);
    } else {
        drive(&mut input);
    }
}

/// Changes good identify data at places of the input.
fn identify(input: &mut Input<'_>) {
    let mut data = [0; LEN];
    (data[0], data[130], data[512], data[513]) = (1, 9, 0x66, 0x44);
    while !input.is_empty() {
        let at = usize::from(input.u16()) % LEN;
        data[at] = input.u8();
    }
    if let Ok(controller) = Controller::parse(&data) {
        let serial: String = text(&controller.serial).collect();
        assert!(serial.len() <= 20 && serial.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
    if let Ok(namespace) = Namespace::parse(&data) {
        let size = namespace.blocks << namespace.block_shift;
        assert!(size >> namespace.block_shift == namespace.blocks && size > 0);
    }
    assert_ne!(first_namespace(&data), Some(0));
}

fn drive(input: &mut Input<'_>) {
    let mut rate = || u16::from(input.u8() % 64);
    let faults = Faults {
        media_error: rate(),
        passing_error: rate(),
        late: rate() / 4,
        deaf: rate() & 1 == 1,
        wrong_id: rate(),
        wrong_queue: rate(),
        twice: rate(),
        fatal: rate() / 4,
        unplug: rate() / 4,
        dead: rate() / 4,
        lost_interrupt: rate(),
        spoiled_bytes: rate() / 16,
        after: rate().into(),
    };
    let facts = ControllerFacts {
        block_shift: 9 + input.u8() % 4,
        max_transfer: input.u8() % 16,
        stride: input.u8() % 4,
        max_queue_entries: input.u16().max(1),
        queues: 1 + u16::from(input.u8() % 4),
        write_cache: input.bool(),
        msix: input.bool(),
        blocks: 512,
        start: Duration::from_micros(10),
        latency: Duration::from_micros(5),
        seed: input.u64(),
        faults,
        ..ControllerFacts::default()
    };
    let mut bench = Bench::new(facts);
    let machine = bench.machine();
    let started = bench.block_on(Disk::start(machine, Config { queues: 2 }));
    if let Ok(disk) = started {
        let block = disk.block_size();
        for round in 0..6 {
            let bytes = vec![round; 3 * block];
            let place = u64::from(round) * block as u64;
            let mut read = vec![0; 3 * block];
            // What fails, fails.
            let _ = bench.block_on(disk.write(place, &bytes));
            let _ = bench.block_on(disk.read(place, &mut read));
        }
        let _ = bench.block_on(disk.flush());
        drop(disk);
    }
    let violations = bench.violations();
    let reached = |what: &String| what.contains("memory") || what.contains("DMA");
    assert!(!violations.iter().any(reached), "{violations:?}");
    assert_eq!(bench.machine().allocated(), 0);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let quiet = vec![0; 32];
    let noisy: Vec<u8> = (0..32).map(|at| if at == 0 { 0 } else { at * 7 }).collect();
    let format = vec![1, 26, 0, 1, 134, 0, 12, 111, 0, 1];
    // Identify data that tells smaller blocks than there are.
    let smaller = [
        42, 49, 56, 0, 1, 63, 63, 4, 4, 1, 134, 0, 186, 186, 186, 186, 186,
    ]
    .into_iter()
    .chain([186, 201, 186, 186, 186, 186, 27])
    .chain([0; 8])
    .collect();
    vec![quiet, noisy, format, smaller]
}

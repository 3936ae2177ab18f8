//! The driver over the model: honest controllers, failing ones, hostile ones.

mod failing;
mod honest;
mod hostile;

use futures_util::future::join_all;
use harness::Machine;
use nvme::{Config, Disk, Error};
use nvme_model::{Bench, ControllerFacts};

/// A disk on a bench.
type TestDisk = Disk<Machine>;

fn start(bench: &mut Bench, queues: u16) -> Result<TestDisk, Error> {
    let machine = bench.machine();
    bench.block_on(Disk::start(machine, Config { queues }))
}

fn started(facts: ControllerFacts) -> (Bench, TestDisk) {
    let mut bench = Bench::new(facts);
    let disk = start(&mut bench, 2).expect("it starts");
    (bench, disk)
}

/// Returns bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| {
        let mixed = (seed << 20 ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_be_bytes()[0]
    };
    (0..len as u64).map(byte).collect()
}

/// Has some tasks write and read ranges of their own, `rounds` times; checks what is read against
/// what was acknowledged. Returns the errors.
fn many_tasks(bench: &mut Bench, disk: &TestDisk, tasks: u64, rounds: u64) -> Vec<Error> {
    const RANGE: u64 = 64 << 10;
    let task = async |task: u64| {
        let mut errors = Vec::new();
        let place = task * RANGE;
        let mut known: Option<Vec<u8>> = Some(vec![0; usize::try_from(RANGE).expect("small")]);
        for round in 0..rounds {
            let pieces = pattern(task * 1000 + round, 2);
            let len = 4096 * (1 + usize::from(pieces[0] % 8));
            let at = 4096 * u64::from(pieces[1] % 8);
            let bytes = pattern(task * 1000 + round, len);
            let from = usize::try_from(at).expect("small");
            match disk.write(place + at, &bytes).await {
                Ok(()) => {
                    if let Some(known) = &mut known {
                        known[from..from + len].copy_from_slice(&bytes);
                    }
                }
                Err(error) => {
                    // It may have been carried out, wholly or in part.
                    errors.push(error);
                    known = None;
                }
            }
            let mut read = vec![0; usize::try_from(RANGE).expect("small")];
            match disk.read(place, &mut read).await {
                Ok(()) => {
                    if let Some(known) = &known {
                        assert!(read == *known, "task {task}, round {round}");
                    }
                    known = Some(read);
                }
                Err(error) => errors.push(error),
            }
            if round % 4 == 3 {
                errors.extend(disk.flush().await.err());
            }
        }
        errors
    };
    let all = bench.block_on(join_all((0..tasks).map(task)));
    all.into_iter().flatten().collect()
}

fn assert_no_violations(bench: &Bench) {
    assert_eq!(bench.violations(), Vec::<String>::new());
}

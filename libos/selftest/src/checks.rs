//! Tests of the kernel's own services.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hal::{DmaBuffer, Duration, InterruptVector, Platform, Registers};
use libos::{FrameArray, PAGE_SIZE, frames::Frames, pci, virtio};

pub(crate) type Outcome = Result<(), String>;

/// Fails the test with the condition's text and what else is given.
macro_rules! check {
    ($condition:expr) => {
        $crate::checks::check!($condition, "")
    };
    ($condition:expr, $($more:tt)+) => {
        if !$condition {
            return Err(alloc::format!("{} {}", stringify!($condition), alloc::format!($($more)+)));
        }
    };
}
pub(crate) use check;

pub(crate) fn frames() -> Outcome {
    let before = libos::frames::free();
    let run = Frames::zeroed(300, 1 << 21).ok_or("no memory")?;
    check!(run.start().0.is_multiple_of(1 << 21));
    check!(libos::frames::free() == before - 300);
    drop(run);
    check!(libos::frames::free() == before);
    let array = FrameArray::allocate(3).ok_or("no memory")?;
    array.frame(1).write(PAGE_SIZE - 2, b"ab");
    let mut back = [0; 2];
    array.buffer().read(2 * PAGE_SIZE - 2, &mut back);
    check!(&back == b"ab");
    check!(array.frame(2).bus_addr() == array.buffer().bus_addr().offset(2 * PAGE_SIZE));
    Ok(())
}

pub(crate) fn random_bytes_differ() -> Outcome {
    let (mut one, mut other) = ([0; 19], [0; 19]);
    libos::random_bytes(&mut one);
    libos::random_bytes(&mut other);
    check!(one != other && one[..8] != one[8..16] && one[16..] != [0; 3]);
    Ok(())
}

pub(crate) async fn sleep_lasts() -> Outcome {
    for micros in [1, 300, 20_000] {
        let start = libos::now();
        libos::sleep(Duration::from_micros(micros)).await;
        let took = libos::now().since(start);
        check!(took >= Duration::from_micros(micros), "took {took:?}");
    }
    Ok(())
}

pub(crate) async fn yielding_lets_others_run() -> Outcome {
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    libos::spawn(async move { seen.store(true, Ordering::Relaxed) }).detach();
    for _ in 0..3 {
        libos::yield_now().await;
    }
    check!(done.load(Ordering::Relaxed));
    Ok(())
}

pub(crate) async fn tasks_run_on_their_core() -> Outcome {
    for core in 0..libos::cores() {
        let ran_on = libos::spawn_on(core, async { libos::current_core() }).await;
        check!(ran_on == core, "{ran_on} for {core}");
        let slept_on = libos::spawn_on(core, async {
            libos::sleep(Duration::from_millis(1)).await;
            libos::current_core()
        });
        check!(slept_on.await == core);
    }
    Ok(())
}

/// Each round spawns onto another core, which is about to sleep, and waits, asleep, for its answer.
pub(crate) async fn no_wakeup_is_lost() -> Outcome {
    let rounds = Arc::new(AtomicUsize::new(0));
    for round in 0..2000 {
        let counter = rounds.clone();
        let task = async move { counter.fetch_add(1, Ordering::Relaxed) };
        let before = libos::spawn_on(round % libos::cores(), task).await;
        check!(before == round);
    }
    Ok(())
}

/// The runner makes up a device in another segment, of which there is configuration space only.
pub(crate) fn other_segments_are_searched() -> Outcome {
    const MADE_UP: (u16, u16) = (0x1b36, 0x7e57);
    let is_it = |function: &pci::Function| (function.vendor, function.device) == MADE_UP;
    for function in pci::functions_where(is_it) {
        log::info!("a made-up device at {function:?}");
        check!(function.map_bar(0).is_err(), "it has no BAR");
        check!(pci::find(MADE_UP.0, MADE_UP.1) == Some(function));
    }
    Ok(())
}

/// Intel's 82574 raises any interrupt by a write to its ICS register (its data sheet, section
/// 10.2.4).
pub(crate) async fn a_device_interrupts() -> Outcome {
    const ICS: usize = 0xc8;
    const IMS: usize = 0xd0;
    const IVAR: usize = 0xe4;
    const OTHER: u32 = 1 << 24;
    const IVAR_OTHER_VECTOR_1: u32 = 1 << 19 | 1 << 16;
    let Some(card) = pci::find(0x8086, 0x10d3) else {
        return Ok(());
    };
    log::info!("an 82574 at {card}");
    let bar = card.map_bar(0).map_err(|error| format!("{error}"))?;
    check!(card.map_bar(5).is_err());
    check!(card.enable_vectors(100).is_err());
    let vectors: Vec<_> = card
        .enable_vectors(2)
        .map_err(|error| format!("{error}"))?
        .into_iter()
        .collect();
    let [_, vector] = <[_; 2]>::try_from(vectors).map_err(|_| "two vectors were asked for")?;
    let fired = Arc::new(AtomicBool::new(false));
    let flag = fired.clone();
    let waiter = libos::spawn(async move {
        vector.wait().await;
        flag.store(true, Ordering::Relaxed);
    });
    libos::sleep(Duration::from_millis(2)).await;
    check!(!fired.load(Ordering::Relaxed));
    bar.write_u32(IVAR, IVAR_OTHER_VECTOR_1);
    bar.write_u32(IMS, OTHER);
    bar.write_u32(ICS, OTHER);
    waiter.await;
    Ok(())
}

/// The runner fills the disk by a rule. More reads are made at a time than the driver has buffers
/// for.
pub(crate) async fn a_disk_works() -> Outcome {
    let disks = virtio::disks().map_err(|error| format!("{error}"))?;
    let Some(disk) = disks.into_iter().next() else {
        return Ok(());
    };
    let disk = &*alloc::boxed::Box::leak(alloc::boxed::Box::new(disk));
    let reads: Vec<_> = (0..40)
        .map(|_| libos::spawn(read_two_sectors(disk)))
        .collect();
    for read in reads {
        read.await?;
    }
    // A read that is given up leaves the disk as it was.
    drop(libos::spawn(read_two_sectors(disk)));
    read_two_sectors(disk).await?;
    let beyond = disk.read(disk.sectors(), &mut [0; 512]).await;
    check!(
        matches!(beyond, Err(virtio::DiskError::Refused { .. })),
        "{beyond:?}"
    );
    a_disk_is_written(disk).await
}

async fn read_two_sectors(disk: &virtio::Disk) -> Outcome {
    let mut sectors = [0; 1024];
    disk.read(1, &mut sectors)
        .await
        .map_err(|error| format!("{error}"))?;
    for (at, byte) in sectors.iter().enumerate() {
        let expected = (at + 512) / 7 % 251;
        check!(usize::from(*byte) == expected, "at {at}");
    }
    Ok(())
}

/// Checks that many tasks at a time read back what they wrote and flushed; the sectors lie behind
/// those of the rule.
async fn a_disk_is_written(disk: &'static virtio::Disk) -> Outcome {
    let tasks: Vec<_> = (0..24)
        .map(|task| libos::spawn(write_and_read(disk, task)))
        .collect();
    for task in tasks {
        task.await?;
    }
    disk.flush().await.map_err(|error| format!("{error}"))
}

async fn write_and_read(disk: &virtio::Disk, task: u8) -> Outcome {
    let failed = |error: virtio::DiskError| format!("{error}");
    let sector = 64 + 16 * u64::from(task);
    for round in 0..20_u8 {
        let written = [task ^ round; 8192];
        disk.write(sector, &written).await.map_err(failed)?;
        let mut read = [0; 8192];
        disk.read(sector, &mut read).await.map_err(failed)?;
        check!(read == written, "task {task}, round {round}");
    }
    Ok(())
}

/// Sends back what comes until a line ends, and then a mebibyte.
pub(crate) async fn a_console_echoes() -> Outcome {
    let consoles = virtio::consoles().map_err(|error| format!("{error}"))?;
    let Some(console) = consoles.into_iter().next() else {
        return Ok(());
    };
    let virtio::Console {
        mut reader,
        mut writer,
    } = console;
    let mut buffer = [0; 100];
    loop {
        let count = reader
            .read(&mut buffer)
            .await
            .map_err(|error| format!("{error}"))?;
        writer
            .write(&buffer[..count])
            .await
            .map_err(|error| format!("{error}"))?;
        if buffer[..count].ends_with(b"\n") {
            break;
        }
    }
    let much = alloc::vec![b'x'; 1 << 20];
    writer
        .write(&much)
        .await
        .map_err(|error| format!("{error}"))
}

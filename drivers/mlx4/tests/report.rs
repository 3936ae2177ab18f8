//! The driver's log at the level `debug`, from which those who lack the card learn of it.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use harness::Testbed;
use log::{Log, Metadata, Record};
use mlx4::{Config, Mlx4};
use verbs::Guid;

/// The lines that were logged.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn the_log_has_the_cards_mailboxes_and_each_command() {
    log::set_logger(&LINES).expect("the only logger of this process");
    log::set_max_level(log::LevelFilter::Debug);
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", Guid(0x0002_c903_0000_1000));
    let device = bed
        .block_on(Mlx4::start(machine, Config::default()))
        .expect("the card starts");
    bed.block_on(device.stop()).expect("the card stops");
    let lines = LINES.0.lock().unwrap_or_else(PoisonError::into_inner);
    let has = |start: &str| lines.iter().any(|line| line.starts_with(start));
    for name in ["QUERY_FW", "QUERY_DEV_CAP", "QUERY_PORT", "INIT_HCA"] {
        assert!(has(&format!("card\tmailbox\t{name}\t0x000\t")), "{name}");
    }
    for command in [
        "QUERY_FW",
        "RUN_FW",
        "INIT_HCA",
        "SW2HW_EQ",
        "NOP",
        "CLOSE_HCA",
    ] {
        let line = lines
            .iter()
            .find(|line| line.starts_with(&format!("card\tcommand\t{command}\t")))
            .expect(command);
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!((fields.len(), fields[5]), (7, "OK"), "{line}");
        assert!(fields[6].parse::<u64>().is_ok(), "{line}");
    }
}

//! Stages of a node's start, from what the plugin recorded and the node's log.

use anyhow::{Context, Result, bail, ensure};

/// Stages that are no lines of the log.
const ADAPTER: &str = "first access to the adapter";
pub(super) const COMMAND: &str = "first command to the adapter";
pub(super) const PROGRAM: &str = "first instruction of a program";

/// Lines of the log that end a stage, by a part of each; the first line that has it counts.
const LINES: [(&str, &str); 6] = [
    (" started by ", "first line of the log"),
    (" MiB free", "cores and devices found"),
    (" is up, port ", "adapter up"),
    (" is active", "port active"),
    ("joined the multicast group", "in the cluster"),
    ("connected to ", "connected to the first peer"),
];

/// Addresses of the places that the plugin records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    /// The kernel's first Rust.
    pub(super) start: u64,
    /// The function that writes a line of the log.
    pub(super) log: u64,
    /// The code that enters a program.
    pub(super) enter: u64,
}

/// A moment by the host's clock, and the instructions executed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    nanos: u64,
    instructions: u64,
}

/// Recorded moments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    places: Vec<(u64, Moment)>,
    adapter: Option<Moment>,
    command: Option<Moment>,
}

impl Events {
    /// Reads the plugin's file.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default();
        ensure!(head == "tessera-stages 1 0", "it begins with {head:?}");
        let mut events = Self::default();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let moment = |nanos: &str, instructions: &str| {
                Ok::<_, anyhow::Error>(Moment {
                    nanos: nanos.parse()?,
                    instructions: instructions.parse()?,
                })
            };
            match words[..] {
                ["at", address, a, b] => {
                    let address = u64::from_str_radix(address, 16)?;
                    events.places.push((address, moment(a, b)?));
                }
                ["adapter", a, b] => events.adapter = Some(moment(a, b)?),
                ["command", a, b] => events.command = Some(moment(a, b)?),
                ["end"] => return Ok(events),
                _ => bail!("the line {line:?}"),
            }
        }
        bail!("it has no end")
    }
}

/// A stage's end, counted from the kernel's first instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) nanos: u64,
    pub(super) instructions: u64,
}

/// Returns the stages in the order in which they ended.
///
/// # Errors
/// If the kernel never began, or not every line of the log was recorded.
pub(super) fn of(events: &Events, at: &Addresses, log: &str) -> Result<Vec<Stage>> {
    let times = |address| {
        let fits = move |event: &&(u64, Moment)| event.0 == address;
        events.places.iter().filter(fits).map(|event| event.1)
    };
    let begin = times(at.start).next().context("its kernel never began")?;
    let lines: Vec<&str> = log.lines().filter(|line| is_record(line)).collect();
    let moments: Vec<Moment> = times(at.log).collect();
    // The last may be recorded and not written, as the machine ends.
    ensure!(
        moments.len() >= lines.len(),
        "{} lines of the log, of which {} were recorded",
        lines.len(),
        moments.len()
    );
    let line = |part: &str| {
        let found = lines.iter().position(|line| line.contains(part))?;
        moments.get(found).copied()
    };
    let mut found: Vec<(&str, Moment)> = LINES
        .into_iter()
        .filter_map(|(part, name)| Some((name, line(part)?)))
        .collect();
    let own = [
        (ADAPTER, events.adapter),
        (COMMAND, events.command),
        (PROGRAM, times(at.enter).next()),
    ];
    found.extend(own.into_iter().filter_map(|(name, at)| Some((name, at?))));
    found.sort_by_key(|(_, moment)| moment.nanos);
    let stage = |(name, moment): (&str, Moment)| Stage {
        name: name.into(),
        nanos: moment.nanos.saturating_sub(begin.nanos),
        instructions: moment.instructions.saturating_sub(begin.instructions),
    };
    Ok(found.into_iter().map(stage).collect())
}

/// Returns whether a line of a log is a record: it begins with `[`, a time and `]`.
fn is_record(line: &str) -> bool {
    line.strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .is_some_and(|(time, _)| time.trim().parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Addresses = Addresses {
        start: 0x10,
        log: 0x20,
        enter: 0x30,
    };
    const RECORDED: &str = "tessera-stages 1 0\nat 10 1000 500\nat 20 3000 700\nat 20 4000 900\n\
                            at 20 9000 2000\nat 30 9500 2100\nadapter 3500 800\nend\n";
    const LOG: &str = "SeaBIOS\n[    0.000001] INFO  libos::boot::start: started by PVH\n\
                       [1] or so\nreport\tready\t1\n[    0.000002] INFO  x: 1 cores, 5 MiB free\n";

    #[test]
    fn a_log_and_what_was_recorded_are_joined() {
        let events = Events::parse(RECORDED).expect("a file");
        // "[1] or so" is a record by its form, and has the second moment.
        let stages = of(&events, &AT, LOG).expect("stages");
        let told: Vec<_> = stages
            .iter()
            .map(|stage| (stage.name.as_str(), stage.nanos, stage.instructions))
            .collect();
        assert_eq!(
            told,
            [
                ("first line of the log", 2000, 200),
                (ADAPTER, 2500, 300),
                ("cores and devices found", 8000, 1500),
                (PROGRAM, 8500, 1600),
            ]
        );
    }

    #[test]
    fn half_of_a_record_is_an_error() {
        let events = |from: &str, to: &str| Events::parse(&RECORDED.replace(from, to));
        for (from, to) in [
            ("end\n", ""),
            (" 1 0", " 1 3"),
            ("adapter", "x"),
            ("9500", "y"),
        ] {
            events(from, to).expect_err(from);
        }
        let few = events("at 20 9000 2000\n", "").expect("a file");
        of(&few, &AT, LOG).expect_err("a line is missing");
        let none = events("at 10 1000 500\n", "").expect("a file");
        of(&none, &AT, LOG).expect_err("no beginning");
    }
}

//! Trace of a run, in order: always as a hash, and as text on request.

use std::fmt;

use crate::rng::mix;

/// Amount of a run's trace that is kept as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Only the hash.
    #[default]
    None,
    /// All but the turns of tasks and timers.
    Events,
    /// All events, with the turns of tasks and timers.
    All,
}

/// The trace of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    detail: Detail,
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn new(detail: Detail) -> Self {
        Self {
            detail,
            ..Self::default()
        }
    }

    /// Notes an event that the hash covers.
    pub(crate) fn event(&mut self, now: u64, kind: u8, what: [u64; 3]) {
        self.events += 1;
        let mut hash = self.hash ^ now.rotate_left(17) ^ u64::from(kind);
        for word in what {
            hash = mix(hash ^ word);
        }
        self.hash = hash;
    }

    /// Tells of it in words, if someone listens.
    pub(crate) fn say(&mut self, now: u64, what: fmt::Arguments<'_>) {
        if self.detail != Detail::None {
            self.lines.push(format!("{} {what}", Time(now)));
        }
    }

    /// Tells of what is there in great number.
    pub(crate) fn whisper(&mut self, now: u64, what: fmt::Arguments<'_>) {
        if self.detail == Detail::All {
            self.say(now, what);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

/// A point in virtual time, in nanoseconds, shown in seconds.
pub(crate) struct Time(pub(crate) u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>4}.{:09}",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

//! Trap 128: the switch reports a link's change to the master subnet manager until that
//! acknowledges it.

use hal::{Duration, Instant};
use mad::smp::{NodeType, Notice, NoticeType, Smp, TRAP_LINK_STATE, data_of};
use mad::{Attribute, Method};
use verbs::Lid;
use zerocopy::big_endian::U16;

/// Interval between two traps.
const PAUSE: Duration = Duration::from_secs(1);
/// Traps before the switch gives up: a manager that misses all of them still sweeps the switch.
const TRIES: u32 = 10;

/// Report of a link's change, sent until the manager acknowledges it.
#[derive(Default)]
pub(crate) struct LinkTrap {
    due: Option<Instant>,
    tries: u32,
    transaction: u64,
}

impl LinkTrap {
    /// Starts to report that a link has changed.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.tries = TRIES;
        self.due = Some(now);
    }

    /// Stops reporting: the manager has acknowledged.
    pub(crate) fn end(&mut self) {
        self.due = None;
    }

    /// Returns the time of the next report.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Returns the report that is due, from the switch with this LID.
    pub(crate) fn poll(&mut self, now: Instant, lid: Lid) -> Option<Smp> {
        self.due.filter(|&due| due <= now)?;
        self.tries = self.tries.saturating_sub(1);
        self.due = (self.tries > 0).then(|| now + PAUSE);
        self.transaction += 1;
        let mut details = [0; 54];
        details[..2].copy_from_slice(&lid.0.to_be_bytes());
        let notice = Notice {
            kind: NoticeType::URGENT,
            producer: [0, 0, NodeType::SWITCH.0],
            trap: U16::new(TRAP_LINK_STATE),
            issuer: U16::new(lid.0),
            toggle_count: U16::ZERO,
            details,
        };
        Some(Smp {
            data: data_of(&notice),
            ..Smp::request(Method::TRAP, Attribute::NOTICE, 0, self.transaction)
        })
    }
}

//! Tallies of the two sides of a series of calls, and their comparison.

use core::ops::Sub;

/// Bytes of a callee's tally on the wire.
pub const SERVED_LEN: usize = 9 * 8;

/// Callee's tally of one caller, from the connection's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CalleeTally {
    /// Requests that the handler saw.
    pub requests: u64,
    /// Requests among them whose bytes were wrong.
    pub wrong: u64,
    /// Bytes of the requests.
    pub request_bytes: u64,
    /// Bytes of the replies.
    pub reply_bytes: u64,
    /// Requests answered, as FIT counts them.
    pub answered: u64,
    /// Messages that FIT dropped.
    pub stray: u64,
    /// Operations of FIT past their deadline.
    pub late: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Times that the core waited for an interrupt, whoever was served.
    pub waits: u64,
}

impl CalleeTally {
    fn fields(self) -> [u64; SERVED_LEN / 8] {
        [
            self.requests,
            self.wrong,
            self.request_bytes,
            self.reply_bytes,
            self.answered,
            self.stray,
            self.late,
            self.doorbells,
            self.waits,
        ]
    }

    fn of(fields: [u64; SERVED_LEN / 8]) -> Self {
        let [
            requests,
            wrong,
            request_bytes,
            reply_bytes,
            answered,
            stray,
            late,
            doorbells,
            waits,
        ] = fields;
        Self {
            requests,
            wrong,
            request_bytes,
            reply_bytes,
            answered,
            stray,
            late,
            doorbells,
            waits,
        }
    }

    /// Encodes the tally as a reply: little-endian, in the order of the fields.
    #[must_use]
    pub fn encode(self) -> [u8; SERVED_LEN] {
        let mut bytes = [0; SERVED_LEN];
        for (place, field) in bytes.chunks_exact_mut(8).zip(self.fields()) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Reads a reply; nothing if its length is another.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SERVED_LEN] = bytes.try_into().ok()?;
        let mut fields = [0; SERVED_LEN / 8];
        for (field, place) in fields.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *field = u64::from_le_bytes(*place);
        }
        Some(Self::of(fields))
    }
}

/// Subtracts an earlier tally. Counters only grow; one that shrank, of a hostile peer, gives 0.
impl Sub for CalleeTally {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let mut fields = self.fields();
        for (field, earlier) in fields.iter_mut().zip(earlier.fields()) {
            *field = field.saturating_sub(earlier);
        }
        Self::of(fields)
    }
}

/// Caller's tally of a series of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallerTally {
    /// Calls made.
    pub calls: u64,
    /// Replies that came and were checked.
    pub checked: u64,
    /// Calls made, as FIT counts them.
    pub started: u64,
    /// Bytes of a request.
    pub request: u64,
    /// Bytes of a reply.
    pub reply: u64,
    /// Messages that FIT dropped.
    pub stray: u64,
    /// Operations of FIT past their deadline.
    pub late: u64,
}

/// A counter that is not what the others say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{calls} calls of {request}/{reply} bytes, and {what}: {found}, not {wanted}")]
pub struct CounterMismatch {
    /// Calls made.
    pub calls: u64,
    /// Bytes of a request.
    pub request: u64,
    /// Bytes of a reply.
    pub reply: u64,
    /// The counter.
    pub what: Counter,
    /// Value found.
    pub found: u64,
    /// Value expected.
    pub wanted: u64,
}

/// Counter that [`compare`] checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// [`CallerTally::checked`].
    Checked,
    /// [`CallerTally::started`].
    Started,
    /// [`CalleeTally::requests`].
    Requests,
    /// [`CalleeTally::answered`].
    Answered,
    /// [`CalleeTally::wrong`].
    Wrong,
    /// [`CalleeTally::request_bytes`].
    RequestBytes,
    /// [`CalleeTally::reply_bytes`].
    ReplyBytes,
    /// Messages dropped on either side.
    Stray,
    /// Operations past their deadline on either side.
    Late,
}

impl core::fmt::Display for Counter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Checked => "replies checked",
            Self::Started => "calls by FIT's count",
            Self::Requests => "requests seen by the callee",
            Self::Answered => "requests answered by the callee's FIT",
            Self::Wrong => "requests damaged",
            Self::RequestBytes => "bytes of requests seen by the callee",
            Self::ReplyBytes => "bytes of replies sent by the callee",
            Self::Stray => "messages dropped",
            Self::Late => "operations past their deadline",
        })
    }
}

/// Compares what both sides counted of the same calls.
///
/// # Errors
///
/// The first counter that does not agree.
pub fn compare(made: &CallerTally, served: &CalleeTally) -> Result<(), CounterMismatch> {
    let calls = made.calls;
    let pairs = [
        (Counter::Checked, made.checked, calls),
        (Counter::Started, made.started, calls),
        (Counter::Requests, served.requests, calls),
        (Counter::Answered, served.answered, calls),
        (Counter::Wrong, served.wrong, 0),
        (
            Counter::RequestBytes,
            served.request_bytes,
            calls * made.request,
        ),
        (Counter::ReplyBytes, served.reply_bytes, calls * made.reply),
        (Counter::Stray, made.stray + served.stray, 0),
        (Counter::Late, made.late + served.late, 0),
    ];
    match pairs.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((what, found, wanted)) => Err(CounterMismatch {
            calls,
            request: made.request,
            reply: made.reply,
            what,
            found,
            wanted,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both() -> (CallerTally, CalleeTally) {
        let made = CallerTally {
            calls: 5,
            checked: 5,
            started: 5,
            request: 32,
            reply: 4,
            ..CallerTally::default()
        };
        let served = CalleeTally {
            requests: 5,
            answered: 5,
            request_bytes: 160,
            reply_bytes: 20,
            doorbells: 9,
            ..CalleeTally::default()
        };
        (made, served)
    }

    #[test]
    fn counters_that_agree_pass() {
        let (made, served) = both();
        assert_eq!(compare(&made, &served), Ok(()));
    }

    #[test]
    fn each_counter_that_does_not_agree_is_named() {
        type Spoil = fn(&mut CallerTally, &mut CalleeTally);
        let spoilt: [(Counter, Spoil); 9] = [
            (Counter::Checked, |made, _| made.checked -= 1),
            (Counter::Started, |made, _| made.started += 1),
            (Counter::Requests, |_, served| served.requests += 1),
            (Counter::Answered, |_, served| served.answered -= 1),
            (Counter::Wrong, |_, served| served.wrong = 1),
            (Counter::RequestBytes, |_, served| {
                served.request_bytes -= 32
            }),
            (Counter::ReplyBytes, |_, served| served.reply_bytes = 0),
            (Counter::Stray, |_, served| served.stray = 1),
            (Counter::Late, |made, _| made.late = 1),
        ];
        for (what, spoil) in spoilt {
            let (mut made, mut served) = both();
            spoil(&mut made, &mut served);
            assert_eq!(compare(&made, &served).expect_err("it differs").what, what);
        }
    }

    proptest! {
        #[test]
        fn a_tally_reads_back_and_no_other_length_does(fields: [u64; 9], len in 0_usize..100) {
            let served = CalleeTally::of(fields);
            prop_assert_eq!(CalleeTally::decode(&served.encode()), Some(served));
            prop_assert_eq!(CalleeTally::decode(&vec![0; len]).is_some(), len == SERVED_LEN);
        }

        #[test]
        fn a_peers_counters_that_shrink_are_nothing_worse(now: [u64; 9], earlier: [u64; 9]) {
            let between = CalleeTally::of(now) - CalleeTally::of(earlier);
            prop_assert_eq!(between.requests, now[0].saturating_sub(earlier[0]));
        }
    }
}

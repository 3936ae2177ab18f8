//! Profile points: where the time of calls goes, by LegoOS's names where it has them.
//!
//! They are measured by the asynchronous face, which has a clock, when
//! [`Config::profile`](crate::Config::profile) says so. Off, each is a test of one flag, and the
//! clock is not read.

use hal::{Duration, Instant};
use metrics::{Histogram, Summary};

/// A stretch of work that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfilePoint {
    /// Posting a request (LegoOS `ibapi_send_reply`, its first part).
    PostCall,
    /// Posting a one-way message (LegoOS `ibapi_send`).
    PostOneWay,
    /// A look at the completion queue that found something, with all that follows from it.
    Poll,
    /// From a message's arrival until a handler takes it (LegoOS's queuing time of `thpool`).
    Queue,
    /// A handler's run (LegoOS `thpool_worker_handler`).
    Handler,
    /// Posting a reply (LegoOS `thpool_worker_fit_ack_reply`).
    PostReply,
}

impl ProfilePoint {
    /// All of them, in the order of a call.
    pub const ALL: [Self; 6] = [
        Self::PostCall,
        Self::PostOneWay,
        Self::Poll,
        Self::Queue,
        Self::Handler,
        Self::PostReply,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PostCall => "ibapi_send_reply",
            Self::PostOneWay => "ibapi_send",
            Self::Poll => "fit_poll_cq",
            Self::Queue => "thpool_queue",
            Self::Handler => "thpool_worker_handler",
            Self::PostReply => "thpool_worker_fit_ack_reply",
        }
    }
}

/// Times that were measured on a core.
#[derive(Debug, Default)]
pub struct Profile {
    on: bool,
    points: [Histogram; ProfilePoint::ALL.len()],
}

impl Profile {
    pub(crate) fn new(on: bool) -> Self {
        Self {
            on,
            points: Default::default(),
        }
    }

    /// The time, if anything is measured.
    #[inline]
    pub(crate) fn begin(&self, clock: impl FnOnce() -> Instant) -> Option<Instant> {
        self.on.then(clock)
    }

    /// Notes what was begun.
    #[inline]
    pub(crate) fn end(
        &self,
        point: ProfilePoint,
        began: Option<Instant>,
        clock: impl FnOnce() -> Instant,
    ) {
        if let Some(began) = began {
            self.note(point, clock().since(began));
        }
    }

    pub(crate) fn note(&self, point: ProfilePoint, time: Duration) {
        if self.on {
            self.points[point as usize].record(time);
        }
    }

    /// The points at which something was measured, with what.
    pub fn measured(&self) -> impl Iterator<Item = (ProfilePoint, Summary)> {
        let all = ProfilePoint::ALL
            .into_iter()
            .map(|point| (point, self.summary(point)));
        all.filter(|(_, time)| time.count > 0)
    }

    /// Returns the times measured at a point; all zero if there are none.
    #[must_use]
    pub fn summary(&self, point: ProfilePoint) -> Summary {
        self.points[point as usize].summary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_measured_and_no_clock_is_read_when_it_is_off() {
        let off = Profile::new(false);
        let began = off.begin(|| panic!("the clock"));
        off.end(ProfilePoint::Poll, began, || panic!("the clock"));
        off.note(ProfilePoint::Queue, Duration::from_secs(1));
        assert!(
            ProfilePoint::ALL
                .iter()
                .all(|&point| off.summary(point) == Summary::default())
        );
    }

    #[test]
    fn each_point_has_its_own_times() {
        let on = Profile::new(true);
        for (place, point) in (1..).zip(ProfilePoint::ALL) {
            let began = on.begin(|| Instant::from_nanos(10));
            on.end(point, began, || Instant::from_nanos(10 + place));
        }
        let measured: Vec<_> = on
            .measured()
            .map(|(point, time)| (point, time.count, time.avg_ns))
            .collect();
        let expected: Vec<_> = (1..)
            .zip(ProfilePoint::ALL)
            .map(|(place, point)| (point, 1, place))
            .collect();
        assert_eq!(measured, expected);
    }
}

//! Queue pairs and completion queues as the simulated hardware keeps them.

use std::collections::VecDeque;
use std::task::Waker;

use verbs::{
    Access, Completion, Domain, Gid, PathToPeer, Psn, QpConfig, QpKind, QpSlot, QpState, Qpn,
    RcParameters, RemoteAddr, Sge, UdAddress,
};

/// The bytes of a posted send request.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Inline(Vec<u8>),
    Gather(Vec<Sge>),
}

/// Operation of a posted send request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Send { imm: Option<u32> },
    Write { to: RemoteAddr, imm: Option<u32> },
    Read { from: RemoteAddr },
}

/// A posted send request.
#[derive(Debug, Clone)]
pub(crate) struct Wqe {
    /// The user's name for it.
    pub(crate) id: u64,
    /// Its place in the order of posts.
    pub(crate) index: u64,
    pub(crate) op: Op,
    pub(crate) source: Source,
    pub(crate) signalled: bool,
    pub(crate) solicited: bool,
    pub(crate) fence: bool,
    pub(crate) to: Option<UdAddress>,
    /// The digest of its bytes when it was posted.
    pub(crate) digest: u64,
    pub(crate) psn: Psn,
}

impl Wqe {
    /// Bytes that it moves.
    pub(crate) fn len(&self) -> u32 {
        match &self.source {
            Source::Inline(bytes) => u32::try_from(bytes.len()).expect("inline bytes are few"),
            Source::Gather(pieces) => pieces.iter().map(|piece| piece.len).sum(),
        }
    }
}

/// A posted receive request.
#[derive(Debug, Clone)]
pub(crate) struct Receive {
    pub(crate) id: u64,
    pub(crate) into: Vec<Sge>,
}

/// A queue pair.
pub(crate) struct Qp {
    pub(crate) qpn: Qpn,
    pub(crate) slot: QpSlot,
    pub(crate) cqn: u32,
    pub(crate) kind: QpKind,
    pub(crate) domain: Domain,
    pub(crate) state: QpState,
    pub(crate) send_depth: u32,
    pub(crate) receive_depth: u32,
    pub(crate) inline: u32,
    pub(crate) send_sge: u8,
    pub(crate) receive_sge: u8,
    pub(crate) remote_access: Access,
    pub(crate) path: Option<PathToPeer>,
    pub(crate) parameters: Option<RcParameters>,
    /// Groups that it takes datagrams of.
    pub(crate) groups: Vec<Gid>,
    // The user's side of the send queue: places taken and given back, counted on and on.
    pub(crate) posted: u64,
    pub(crate) freed: u64,
    /// Receives posted whose completion was not polled.
    pub(crate) receives_taken: u32,
    /// Posted and not finished.
    pub(crate) sends: VecDeque<Wqe>,
    /// Number of them that a doorbell has shown to the device.
    pub(crate) shown: usize,
    /// Number of them in flight.
    pub(crate) sent: usize,
    pub(crate) receives: VecDeque<Receive>,
    pub(crate) next_psn: Psn,
    pub(crate) expected: Psn,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    /// Names the running acknowledgement timer; older ones mean nothing.
    pub(crate) timer: u64,
    /// Waiting out a receiver that was not ready.
    pub(crate) rnr_waiting: bool,
    /// The READ that was sent again because what came for later requests showed that its bytes are
    /// lost.
    pub(crate) read_again: Option<Psn>,
    /// Counts its resets: what was begun before one is not carried on after it.
    pub(crate) resets: u64,
    /// The time of its failure.
    pub(crate) failed_at: u64,
}

impl Qp {
    pub(crate) fn new(qpn: Qpn, slot: QpSlot, cqn: u32, config: &QpConfig) -> Self {
        Self {
            qpn,
            slot,
            cqn,
            kind: config.kind,
            domain: config.domain,
            state: QpState::Init,
            send_depth: config.send_depth,
            receive_depth: config.receive_depth,
            inline: config.inline,
            send_sge: config.send_sge,
            receive_sge: config.receive_sge,
            remote_access: config.remote_access,
            path: None,
            parameters: None,
            groups: Vec::new(),
            posted: 0,
            freed: 0,
            receives_taken: 0,
            sends: VecDeque::new(),
            shown: 0,
            sent: 0,
            receives: VecDeque::new(),
            next_psn: Psn(0),
            expected: Psn(0),
            retries: 0,
            rnr_retries: 0,
            timer: 0,
            rnr_waiting: false,
            read_again: None,
            resets: 0,
            failed_at: 0,
        }
    }

    /// Returns the destination of the oldest READ in flight. Its bytes may still arrive when the
    /// queue pair has failed: only RESET stops a transfer that has begun.
    pub(crate) fn begun(&self) -> Option<Vec<Sge>> {
        let mut sent = self.sends.iter().take(self.sent);
        sent.find_map(|wqe| match (&wqe.op, &wqe.source) {
            (Op::Read { .. }, Source::Gather(pieces)) => Some(pieces.clone()),
            _ => None,
        })
    }

    /// Returns the queue pair to RESET: nothing posted, nothing in flight.
    pub(crate) fn reset(&mut self) {
        self.state = QpState::Reset;
        self.sends.clear();
        self.receives.clear();
        (self.shown, self.sent) = (0, 0);
        (self.path, self.parameters) = (None, None);
        self.retries = 0;
        self.rnr_retries = 0;
        self.rnr_waiting = false;
        self.read_again = None;
        self.timer += 1;
        self.resets += 1;
    }

    /// READs under way.
    pub(crate) fn reads_out(&self) -> usize {
        let sent = self.sends.iter().take(self.sent);
        sent.filter(|wqe| matches!(wqe.op, Op::Read { .. })).count()
    }

    /// Handles a packet for a request behind the READ at the front, whose bytes have not come. The
    /// first such packet has all requests in flight sent again; the result is then true. Later ones
    /// may answer earlier attempts, so the timer decides.
    pub(crate) fn starts_again(&mut self) -> bool {
        let read = self.sends.front().map(|wqe| wqe.psn);
        let first = self.read_again != read;
        if first {
            self.read_again = read;
            self.sent = 0;
        }
        first
    }

    /// Returns the place in the send queue of the request with this number, if it is in flight.
    pub(crate) fn under_way(&self, psn: Psn) -> Option<usize> {
        self.sends
            .iter()
            .take(self.sent)
            .position(|wqe| wqe.psn == psn)
    }
}

/// Returns how many sequence numbers `a` is ahead of `b`, in 24 bits: negative if behind.
pub(crate) fn ahead(a: Psn, b: Psn) -> i64 {
    let distance = i64::from(a.0.wrapping_sub(b.0) & 0xff_ffff);
    if distance < 0x80_0000 {
        distance
    } else {
        distance - 0x100_0000
    }
}

/// A finished request on its way to the user.
pub(crate) struct Entry {
    pub(crate) ready: u64,
    pub(crate) completion: Completion,
    pub(crate) solicited: bool,
    /// For a send: the number of sends finished with it.
    pub(crate) frees: Option<u64>,
}

/// Armed state: the completions that raise an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Armed {
    No,
    Any,
    Solicited,
}

/// A completion queue.
pub(crate) struct Cq {
    pub(crate) depth: u32,
    pub(crate) vector: u16,
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) last_ready: u64,
    pub(crate) armed: Armed,
    /// The queue pairs by their place.
    pub(crate) slots: Vec<Option<Qpn>>,
    pub(crate) failed: bool,
}

/// An interrupt vector.
#[derive(Default)]
pub(crate) struct Vector {
    pub(crate) pending: bool,
    pub(crate) waiter: Option<Waker>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_around_the_wrap() {
        assert_eq!(ahead(Psn(5), Psn(3)), 2);
        assert_eq!(ahead(Psn(1), Psn(0xff_ffff)), 2);
        assert_eq!(ahead(Psn(0xff_ffff), Psn(1)), -2);
    }

    /// Creates a queue pair that has sent READs with these numbers.
    fn reading(numbers: [u32; 2]) -> Qp {
        let config = QpConfig {
            kind: QpKind::ReliableConnection,
            domain: Domain::default(),
            port: 1,
            send_depth: 4,
            receive_depth: 4,
            send_sge: 1,
            receive_sge: 1,
            inline: 0,
            remote_access: Access::default(),
        };
        let mut qp = Qp::new(Qpn(0x40), QpSlot(0), 1, &config);
        qp.sends.extend(numbers.map(|number| Wqe {
            id: 0,
            index: 0,
            op: Op::Read {
                from: RemoteAddr::default(),
            },
            source: Source::Gather(Vec::new()),
            signalled: true,
            solicited: false,
            fence: false,
            to: None,
            digest: 0,
            psn: Psn(number),
        }));
        qp.sent = 2;
        qp
    }

    #[test]
    fn a_read_starts_again_at_the_first_sign_that_its_bytes_are_lost_and_no_later_one() {
        let mut qp = reading([7, 8]);
        assert!(qp.starts_again());
        assert_eq!(qp.sent, 0);
        qp.sent = 2;
        assert!(!qp.starts_again(), "or each answer would bring two");
        assert_eq!(qp.sent, 2);
        qp.sends.pop_front();
        qp.sent = 1;
        assert!(qp.starts_again(), "the next READ's bytes");
    }
}

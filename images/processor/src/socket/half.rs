//! One direction of a socket: what was sent and has not been received.
//!
//! Pure logic: `R` is what travels beside the bytes (open files), time and waiting are the
//! caller's.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use messages::Errno;

use super::address::Address;
use super::packet::Packet;
use crate::error::{Result, errno};

/// Bytes that a message counts for beside its own, so that empty ones are bounded too.
pub(super) const OVERHEAD: usize = 256;
/// Bytes up to which writes to a stream are put together.
const SEGMENT: usize = 64 << 10;

/// The process that sent something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Something sent: a datagram, or a piece of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Message<R> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rights: Vec<R>,
    pub(crate) credentials: Credentials,
    pub(crate) from: Address,
    pub(crate) packet: Packet,
}

/// Something received.
#[derive(Debug)]
pub(crate) struct Taken<R> {
    pub(crate) bytes: Vec<u8>,
    /// The length of the whole datagram, which may be more than was asked for.
    pub(crate) whole: usize,
    pub(crate) rights: Vec<R>,
    pub(crate) credentials: Credentials,
    pub(crate) from: Address,
    pub(crate) packet: Packet,
}

impl<R> Taken<R> {
    /// Returns what is received at the end of a stream.
    pub(crate) fn end() -> Self {
        Self {
            bytes: Vec::new(),
            whole: 0,
            rights: Vec::new(),
            credentials: Credentials::default(),
            from: Address::Unnamed,
            packet: Packet::default(),
        }
    }
}

/// Options of a receive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiveOptions {
    /// Bytes at most.
    pub(crate) most: usize,
    /// Leave everything where it is (`MSG_PEEK`).
    pub(crate) peek: bool,
    /// Do not put together what different processes sent (`SO_PASSCRED`).
    pub(crate) by_sender: bool,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Half<R> {
    queue: VecDeque<Message<R>>,
    /// Bytes of the first message that were received.
    start: usize,
    bytes: usize,
    with_rights: usize,
    /// Bytes that may wait, overhead included.
    pub(super) limit: usize,
    /// Nothing more comes, and sending fails.
    pub(super) ended: bool,
    /// The reader reads no more, but the sender may send (`SHUT_RD` of TCP).
    pub(super) deaf: bool,
    /// The reader is gone.
    pub(super) gone: bool,
    /// The error that the reader's next call gives.
    pub(super) error: Option<Errno>,
}

impl<R: Clone> Half<R> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            start: 0,
            bytes: 0,
            with_rights: 0,
            limit,
            ended: false,
            deaf: false,
            gone: false,
            error: None,
        }
    }

    /// Returns how much waits, overhead included.
    pub(super) fn charge(&self) -> usize {
        self.bytes + self.queue.len() * OVERHEAD
    }

    /// Returns whether `poll` says that there is room: as Linux, when at most a quarter is used.
    pub(super) fn roomy(&self) -> bool {
        self.charge().saturating_mul(4) <= self.limit
    }

    /// Returns the bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes of the first message that wait.
    pub(super) fn first_len(&self) -> usize {
        self.queue
            .front()
            .map_or(0, |first| first.bytes.len() - self.start)
    }

    /// Returns how many messages wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether nothing waits; an empty datagram is something.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns whether any message carries rights.
    pub(super) fn has_rights(&self) -> bool {
        self.with_rights > 0
    }

    /// Appends bytes of a stream as far as there is room, and what comes with the first of them;
    /// returns how many.
    ///
    /// # Errors
    ///
    /// EPIPE at the end, EAGAIN without room.
    pub(super) fn push_stream(&mut self, message: &mut Message<R>) -> Result<usize> {
        if self.ended {
            return Err(errno::EPIPE.into());
        }
        if message.bytes.is_empty() {
            return Ok(0);
        }
        let room = self.limit.saturating_sub(self.charge());
        let joins = self.queue.back().is_some_and(|last| {
            message.rights.is_empty()
                && last.rights.is_empty()
                && last.bytes.len() < SEGMENT
                && last.credentials == message.credentials
                && last.from == message.from
        });
        let room = if joins {
            room
        } else {
            room.saturating_sub(OVERHEAD)
        };
        let count = room.min(message.bytes.len());
        if count == 0 {
            return Err(errno::EAGAIN.into());
        }
        self.bytes += count;
        match self.queue.back_mut() {
            Some(last) if joins => last.bytes.extend_from_slice(&message.bytes[..count]),
            _ => {
                let rights = core::mem::take(&mut message.rights);
                self.with_rights += usize::from(!rights.is_empty());
                self.queue.push_back(Message {
                    bytes: message.bytes[..count].to_vec(),
                    rights,
                    credentials: message.credentials,
                    from: message.from.clone(),
                    packet: message.packet,
                });
            }
        }
        Ok(count)
    }

    /// Appends a datagram.
    ///
    /// # Errors
    ///
    /// EPIPE at the end, EAGAIN without room, or with `most` datagrams there.
    pub(super) fn push_message(&mut self, message: &mut Message<R>, most: usize) -> Result<usize> {
        if self.ended {
            return Err(errno::EPIPE.into());
        }
        let len = message.bytes.len();
        let fits = self.charge() + OVERHEAD + len <= self.limit;
        // One always fits: it may be as long as the sender's buffer.
        if self.queue.len() >= most || !fits && !self.queue.is_empty() {
            return Err(errno::EAGAIN.into());
        }
        self.bytes += len;
        self.with_rights += usize::from(!message.rights.is_empty());
        self.queue.push_back(Message {
            bytes: core::mem::take(&mut message.bytes),
            rights: core::mem::take(&mut message.rights),
            credentials: message.credentials,
            from: message.from.clone(),
            packet: message.packet,
        });
        Ok(len)
    }

    /// Receives bytes of a stream: up to what came with rights, or from another sender.
    pub(super) fn take_stream(&mut self, how: ReceiveOptions) -> Option<Taken<R>> {
        let first = self.queue.front()?;
        let mut taken = Taken {
            credentials: first.credentials,
            from: first.from.clone(),
            ..Taken::end()
        };
        let (mut at, mut start) = (0, self.start);
        while let Some(message) = self.queue.get_mut(at) {
            if how.by_sender && message.credentials != taken.credentials {
                break;
            }
            let count = (message.bytes.len() - start).min(how.most - taken.bytes.len());
            if count == 0 {
                break;
            }
            taken
                .bytes
                .extend_from_slice(&message.bytes[start..start + count]);
            start += count;
            let had_rights = !message.rights.is_empty();
            if had_rights && how.peek {
                taken.rights.clone_from(&message.rights);
            } else if had_rights {
                taken.rights = core::mem::take(&mut message.rights);
                self.with_rights -= 1;
            }
            if start < message.bytes.len() {
                break;
            }
            (at, start) = (at + 1, 0);
            if had_rights {
                break;
            }
        }
        taken.whole = taken.bytes.len();
        if !how.peek {
            self.queue.drain(..at);
            (self.start, self.bytes) = (start, self.bytes - taken.whole);
        }
        Some(taken)
    }

    /// Receives the first datagram; what is beyond `most` is lost.
    pub(super) fn take_message(&mut self, how: ReceiveOptions) -> Option<Taken<R>> {
        let mut message = if how.peek {
            self.queue.front()?.clone()
        } else {
            let message = self.queue.pop_front()?;
            self.bytes -= message.bytes.len();
            self.with_rights -= usize::from(!message.rights.is_empty());
            message
        };
        let whole = message.bytes.len();
        message.bytes.truncate(how.most);
        Some(Taken {
            bytes: message.bytes,
            whole,
            rights: message.rights,
            credentials: message.credentials,
            from: message.from,
            packet: message.packet,
        })
    }

    /// Visits the rights that are on their way.
    pub(super) fn each_right(&self, visit: impl FnMut(&R)) {
        self.queue
            .iter()
            .flat_map(|message| &message.rights)
            .for_each(visit);
    }

    /// Takes out all rights; the bytes stay.
    pub(super) fn strip_rights(&mut self) -> Vec<R> {
        self.with_rights = 0;
        let rights = self
            .queue
            .iter_mut()
            .map(|message| core::mem::take(&mut message.rights));
        rights.flatten().collect()
    }

    /// Forgets what waits; returns the rights that came with it.
    pub(super) fn clear(&mut self) -> Vec<R> {
        let rights = self.strip_rights();
        self.queue.clear();
        (self.start, self.bytes) = (0, 0);
        rights
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(bytes: &[u8], rights: &[u32], pid: u32) -> Message<u32> {
        Message {
            bytes: bytes.to_vec(),
            rights: rights.to_vec(),
            credentials: Credentials {
                pid,
                ..Credentials::default()
            },
            from: Address::Unnamed,
            packet: Packet::default(),
        }
    }

    const ALL: ReceiveOptions = ReceiveOptions {
        most: usize::MAX,
        peek: false,
        by_sender: false,
    };

    #[test]
    fn a_stream_stops_behind_rights_and_between_senders() {
        let mut half = Half::new(1 << 20);
        for (bytes, rights, pid) in [
            (&b"ab"[..], &[][..], 1),
            (b"cd", &[7, 8], 1),
            (b"ef", &[], 1),
            (b"gh", &[], 2),
        ] {
            assert_eq!(half.push_stream(&mut message(bytes, rights, pid)), Ok(2));
        }
        let peeked = half
            .take_stream(ReceiveOptions { peek: true, ..ALL })
            .unwrap();
        assert_eq!(
            (&peeked.bytes[..], &peeked.rights[..]),
            (&b"abcd"[..], &[7, 8][..])
        );
        let part = half.take_stream(ReceiveOptions { most: 3, ..ALL }).unwrap();
        assert_eq!(
            (&part.bytes[..], &part.rights[..]),
            (&b"abc"[..], &[7, 8][..])
        );
        assert!(!half.has_rights());
        let how = ReceiveOptions {
            by_sender: true,
            ..ALL
        };
        assert_eq!(half.take_stream(how).unwrap().bytes, b"def");
        let last = half.take_stream(how).unwrap();
        assert_eq!((&last.bytes[..], last.credentials.pid), (&b"gh"[..], 2));
        assert!(half.take_stream(how).is_none() && half.charge() == 0);
    }

    #[test]
    fn datagrams_keep_their_bounds_and_lose_what_is_not_asked_for() {
        let mut half = Half::new(1000);
        assert_eq!(half.push_message(&mut message(b"12345", &[1], 1), 3), Ok(5));
        assert_eq!(half.push_message(&mut message(b"", &[], 1), 3), Ok(0));
        let peeked = half
            .take_message(ReceiveOptions { peek: true, ..ALL })
            .unwrap();
        assert_eq!((peeked.whole, peeked.rights), (5, vec![1]));
        let cut = half
            .take_message(ReceiveOptions { most: 2, ..ALL })
            .unwrap();
        assert_eq!((&cut.bytes[..], cut.whole), (&b"12"[..], 5));
        assert_eq!(half.take_message(ALL).unwrap().whole, 0);
        assert!(half.take_message(ALL).is_none());
        // One that is longer than the buffer goes alone.
        assert_eq!(
            half.push_message(&mut message(&[0; 5000], &[], 1), 3),
            Ok(5000)
        );
        assert_eq!(
            half.push_message(&mut message(b"x", &[], 1), 3),
            Err(errno::EAGAIN.into())
        );
    }

    /// Model of a stream: bytes, each with the rights that came with it.
    type Model = VecDeque<(u8, Vec<u32>)>;

    fn model_take(model: &mut Model, most: usize, peek: bool) -> (Vec<u8>, Vec<u32>) {
        let (mut bytes, mut rights) = (Vec::new(), Vec::new());
        let mut seen = 0;
        for (byte, with) in model.iter() {
            // Rights end a read at the end of what they came with: here one byte, see the strategy.
            if bytes.len() == most {
                break;
            }
            bytes.push(*byte);
            seen += 1;
            if !with.is_empty() {
                rights.clone_from(with);
                break;
            }
        }
        if !peek {
            model.drain(..seen);
        }
        (bytes, rights)
    }

    proptest! {
        #[test]
        fn a_stream_is_its_bytes_in_order(
            steps in proptest::collection::vec((0..4u8, 1..600_usize, any::<u8>()), 1..200),
            limit in 1000..5000_usize,
        ) {
            let mut half: Half<u32> = Half::new(limit);
            let mut model = Model::new();
            for (kind, len, byte) in steps {
                match kind {
                    0 => {
                        let bytes = vec![byte; len];
                        match half.push_stream(&mut message(&bytes, &[], 1)) {
                            Ok(count) => model.extend(bytes[..count].iter().map(|&b| (b, Vec::new()))),
                            Err(error) => prop_assert_eq!(error, errno::EAGAIN.into()),
                        }
                    }
                    1 => {
                        let rights = vec![u32::from(byte)];
                        if half.push_stream(&mut message(&[byte], &rights, 1)) == Ok(1) {
                            model.push_back((byte, rights));
                        }
                    }
                    _ => {
                        let how = ReceiveOptions { most: len, peek: kind == 2, by_sender: false };
                        let taken = half.take_stream(how).map(|taken| (taken.bytes, taken.rights));
                        let expected = model_take(&mut model, len, kind == 2);
                        prop_assert_eq!(taken.unwrap_or_default(), expected);
                    }
                }
                prop_assert_eq!(half.bytes(), model.len());
                prop_assert!(half.charge() <= limit);
                prop_assert_eq!(half.has_rights(), model.iter().any(|(_, with)| !with.is_empty()));
            }
        }
    }
}

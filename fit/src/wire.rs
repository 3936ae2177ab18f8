//! FIT's own header, in front of each message, and the descriptors behind it.
//!
//! ```text
//!  0      1         2          3          4      6      8            12            16     20         24
//!  | type | gathers | scatters | reserved | kind | slot | generation | body length | bulk | returned |
//!
//!  request:  header | gathers + scatters descriptors | body | bulk, if there is some and no gathers
//!  others:   header | body
//!  descriptor (16 bytes):  | address (8) | rkey (4) | length (4) |
//! ```
//!
//! Little-endian. `gathers` are the pieces of the caller's memory that hold the bulk of the
//! request, `scatters` those that the bulk of the reply fills. `bulk` is the number of bytes that a
//! request's bulk has, or that were written for a reply's. `returned` counts the one-way messages
//! whose receives the sender has posted again since the connection stands. Both sides agreed on
//! [`VERSION`] when they connected.

use verbs::{RemoteAddr, Rkey};

/// The protocol's version; stated in the connection's private data.
pub const VERSION: u8 = 3;

/// Bytes of the header.
pub const HEADER_LEN: usize = 24;

/// The same, as lengths of messages are counted.
pub(crate) const HEADER_BYTES: u32 = 24;
const _: () = assert!(HEADER_BYTES as usize == HEADER_LEN);

/// Pieces of memory that a call may gather from, and as many that its reply may be scattered to.
pub const MAX_PIECES: usize = 8;

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_LEN: usize = 16;

/// Bytes of all descriptors that a message can have.
pub(crate) const MAX_DESCRIPTORS_LEN: usize = 2 * MAX_PIECES * DESCRIPTOR_LEN;

/// The numbers of the two frequent types.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Type of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageType {
    Request,
    Reply,
    /// Wants no answer.
    OneWay,
    /// Says by its header only how many one-way messages were taken.
    Credit,
    /// Asks whether the receiver is alive.
    Ping,
    /// Says so.
    Pong,
}

/// The header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) message: MessageType,
    pub(crate) gathers: u8,
    pub(crate) scatters: u8,
    pub(crate) kind: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
    pub(crate) body: u32,
    pub(crate) bulk: u32,
    pub(crate) returned: u32,
}

/// A message without bulk that is a request or a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    Request(Brief),
    Reply(Brief),
}

/// Header of a request or a reply, without its bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) kind: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
    pub(crate) body: u32,
    pub(crate) returned: u32,
}

/// A piece of the caller's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Descriptor {
    pub(crate) at: RemoteAddr,
    pub(crate) len: u32,
}

impl Descriptor {
    pub(crate) fn encode(&self) -> [u8; DESCRIPTOR_LEN] {
        let mut bytes = [0; DESCRIPTOR_LEN];
        bytes[..8].copy_from_slice(&self.at.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.at.rkey.0.to_le_bytes());
        bytes[12..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; DESCRIPTOR_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Self {
            at: RemoteAddr {
                addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                rkey: Rkey(u32::from_le_bytes([i, j, k, l])),
            },
            len: u32::from_le_bytes([m, n, o, p]),
        }
    }
}

impl Header {
    /// A message with nothing but its header.
    pub(crate) fn bare(message: MessageType, returned: u32) -> Self {
        Self {
            message,
            gathers: 0,
            scatters: 0,
            kind: 0,
            slot: 0,
            generation: 0,
            body: 0,
            bulk: 0,
            returned,
        }
    }

    /// Writes three words: half the instructions of writing each field by itself.
    #[inline(always)]
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let kind = match self.message {
            MessageType::Request => REQUEST,
            MessageType::Reply => REPLY,
            MessageType::OneWay => 3,
            MessageType::Credit => 4,
            MessageType::Ping => 8,
            MessageType::Pong => 9_u8,
        };
        let first = u64::from(kind)
            | u64::from(self.gathers) << 8
            | u64::from(self.scatters) << 16
            | u64::from(self.kind) << 32
            | u64::from(self.slot) << 48;
        let second = u64::from(self.generation) | u64::from(self.body) << 32;
        let third = u64::from(self.bulk) | u64::from(self.returned) << 32;
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..16].copy_from_slice(&second.to_le_bytes());
        bytes[16..].copy_from_slice(&third.to_le_bytes());
        bytes
    }

    /// Returns the header without its bulk.
    pub(crate) fn brief(&self) -> Brief {
        Brief {
            kind: self.kind,
            slot: self.slot,
            generation: self.generation,
            body: self.body,
            returned: self.returned,
        }
    }

    /// Bytes of the descriptors behind it.
    pub(crate) fn descriptors_len(&self) -> usize {
        (usize::from(self.gathers) + usize::from(self.scatters)) * DESCRIPTOR_LEN
    }

    /// Bytes in front of the body.
    pub(crate) fn head_len(&self) -> usize {
        HEADER_LEN + self.descriptors_len()
    }

    /// Bytes of bulk that stand in the message itself.
    pub(crate) fn carried(&self) -> u32 {
        match self.message {
            MessageType::Request if self.gathers == 0 => self.bulk,
            _ => 0,
        }
    }

    /// Reads the header of a message of `len` bytes in all; nothing if it is none.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], len: u32) -> Option<Self> {
        let [first, second, third] = words(bytes);
        let [
            kind,
            gathers,
            scatters,
            reserved,
            kind_low,
            kind_high,
            slot_low,
            slot_high,
        ] = first.to_le_bytes();
        let message = match kind {
            REQUEST => MessageType::Request,
            REPLY => MessageType::Reply,
            3 => MessageType::OneWay,
            4 => MessageType::Credit,
            8 => MessageType::Ping,
            9 => MessageType::Pong,
            _ => return None,
        };
        let header = Self {
            message,
            gathers,
            scatters,
            kind: u16::from_le_bytes([kind_low, kind_high]),
            slot: u16::from_le_bytes([slot_low, slot_high]),
            generation: low(second),
            body: low(second >> 32),
            bulk: low(third),
            returned: low(third >> 32),
        };
        (reserved == 0 && header.is_exact(len) && header.makes_sense()).then_some(header)
    }

    /// Reads the header of a request or reply without bulk; nothing if it is something else, or
    /// nothing that makes sense.
    ///
    /// These are most messages by far, and a third of the work of [`decode`](Self::decode) does for
    /// them.
    #[inline(always)]
    pub(crate) fn decode_plain(bytes: &[u8; HEADER_LEN], len: u32) -> Option<Plain> {
        let [first, second, third] = words(bytes);
        let body = low(second >> 32);
        if low(third) != 0 || u64::from(body) + HEADER_LEN as u64 != u64::from(len) {
            return None;
        }
        let [.., kind_low, kind_high, slot_low, slot_high] = first.to_le_bytes();
        let brief = Brief {
            kind: u16::from_le_bytes([kind_low, kind_high]),
            slot: u16::from_le_bytes([slot_low, slot_high]),
            generation: low(second),
            body,
            returned: low(third >> 32),
        };
        // Type, pieces and the reserved byte in one look.
        match low(first) {
            only if only == REQUEST.into() => Some(Plain::Request(brief)),
            only if only == REPLY.into() => Some(Plain::Reply(brief)),
            _ => None,
        }
    }

    /// Returns whether the parts that it names make up a message of `len` bytes.
    fn is_exact(&self, len: u32) -> bool {
        let whole = self.head_len() as u64 + u64::from(self.body) + u64::from(self.carried());
        whole == u64::from(len)
    }

    /// Returns whether it has only what its type has.
    fn makes_sense(&self) -> bool {
        let pieces = usize::from(self.gathers.max(self.scatters));
        match self.message {
            MessageType::Request => pieces <= MAX_PIECES && (self.gathers == 0 || self.bulk > 0),
            MessageType::Reply => pieces == 0,
            MessageType::OneWay => {
                let Self {
                    kind,
                    body,
                    returned,
                    ..
                } = *self;
                *self
                    == Self {
                        kind,
                        body,
                        ..Self::bare(self.message, returned)
                    }
            }
            MessageType::Credit | MessageType::Ping | MessageType::Pong => {
                *self == Self::bare(self.message, self.returned)
            }
        }
    }
}

/// The header's three words.
#[inline(always)]
fn words(bytes: &[u8; HEADER_LEN]) -> [u64; 3] {
    [0, 8, 16].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")))
}

/// The low half of a word.
#[expect(clippy::cast_possible_truncation, reason = "it is what is asked for")]
fn low(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_decodes_to_what_was_encoded(
            kind: u16, slot: u16, generation: u32, body in 0u32..1 << 20, bulk in 1u32..1 << 20, returned: u32,
            gathers in 0u8..=8, scatters in 0u8..=8,
        ) {
            let request = Header {
                message: MessageType::Request, gathers, scatters, kind, slot, generation, body, bulk, returned,
            };
            let reply = Header { message: MessageType::Reply, gathers: 0, scatters: 0, ..request };
            let one_way = Header { kind, body, ..Header::bare(MessageType::OneWay, returned) };
            for (header, carried) in [(request, if gathers == 0 { bulk } else { 0 }), (reply, 0), (one_way, 0)] {
                let len = u32::try_from(header.head_len()).unwrap() + body + carried;
                prop_assert_eq!(Header::decode(&header.encode(), len), Some(header));
                prop_assert_eq!(Header::decode(&header.encode(), len - 1), None);
            }
        }

        #[test]
        fn arbitrary_bytes_decode_to_themselves_or_nothing(mut bytes: [u8; HEADER_LEN], kind in 0u8..12, len: u32) {
            bytes[0] = kind;
            if let Some(header) = Header::decode(&bytes, len) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn a_plain_message_is_read_alike_in_both_ways(
            mut bytes: [u8; HEADER_LEN], kind in 1u8..4, pieces in 0u8..2, bulk in 0u8..2, body in 0u8..8, off in 0u32..2,
        ) {
            let len = u32::try_from(HEADER_LEN).unwrap() + u32::from(body) + off;
            bytes[..4].copy_from_slice(&[kind, pieces, 0, 0]);
            bytes[12..20].copy_from_slice(&[body, 0, 0, 0, bulk, 0, 0, 0]);
            let whole = Header::decode(&bytes, len).filter(|header| {
                let answered = matches!(header.message, MessageType::Request | MessageType::Reply);
                answered && header.gathers == 0 && header.scatters == 0 && header.bulk == 0
            });
            let same = whole.map(|header| match header.message {
                MessageType::Reply => Plain::Reply(header.brief()),
                _ => Plain::Request(header.brief()),
            });
            prop_assert_eq!(Header::decode_plain(&bytes, len), same);
        }

        #[test]
        fn a_descriptor_round_trips(addr: u64, rkey: u32, len: u32) {
            let descriptor = Descriptor { at: RemoteAddr { addr, rkey: Rkey(rkey) }, len };
            prop_assert_eq!(Descriptor::decode(&descriptor.encode()), descriptor);
        }
    }

    #[test]
    fn more_pieces_than_there_may_be_and_bare_messages_with_more_are_none() {
        let request = Header {
            kind: 1,
            bulk: 5,
            ..Header::bare(MessageType::Request, 0)
        };
        let many = Header {
            gathers: 9,
            ..request
        };
        assert_eq!(
            Header::decode(&many.encode(), u32::try_from(many.head_len()).unwrap()),
            None
        );
        let nothing_gathered = Header {
            gathers: 1,
            bulk: 0,
            ..request
        };
        assert_eq!(Header::decode(&nothing_gathered.encode(), 40), None);
        let len = u32::try_from(HEADER_LEN).unwrap();
        for message in [MessageType::Credit, MessageType::Ping, MessageType::Pong] {
            let bare = Header::bare(message, 7);
            assert_eq!(Header::decode(&bare.encode(), len), Some(bare));
            for more in [
                Header { slot: 1, ..bare },
                Header { kind: 1, ..bare },
                Header { bulk: 1, ..bare },
            ] {
                assert_eq!(Header::decode(&more.encode(), len), None);
            }
        }
    }
}

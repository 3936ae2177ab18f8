//! FIT's own header, in front of each message.
//!
//! ```text
//!  0      1       2        4        6          8           12           16        24      28       32
//!  | type | flags | kind   | slot   | reserved | generation | body length | address | rkey | length |
//! ```
//!
//! Little-endian. The last three are the caller's buffer for a bulk reply (a request), or zero, zero and the bytes
//! written there (a reply). Both sides agreed on [`VERSION`] when they connected.

use verbs::{RemoteAddr, Rkey};

/// The protocol's version; stated in the connection's private data.
pub const VERSION: u8 = 1;

/// Bytes of the header.
pub const HEADER_LEN: usize = 32;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageType {
    Request,
    Reply,
    /// Asks whether the receiver is alive.
    Ping,
    /// Says so.
    Pong,
}

/// The header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) message: MessageType,
    pub(crate) kind: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
    pub(crate) body: u32,
    pub(crate) bulk: RemoteAddr,
    pub(crate) bulk_len: u32,
}

fn at<const N: usize>(bytes: &[u8; HEADER_LEN], offset: usize) -> [u8; N] {
    bytes[offset..offset + N]
        .try_into()
        .expect("a field of the header")
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = match self.message {
            MessageType::Request => 1,
            MessageType::Reply => 2,
            MessageType::Ping => 8,
            MessageType::Pong => 9,
        };
        bytes[2..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.slot.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.generation.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.bulk.addr.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.bulk.rkey.0.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.bulk_len.to_le_bytes());
        bytes
    }

    /// Reads the header of a message of `len` bytes in all; nothing if it is none.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], len: u32) -> Option<Self> {
        let message = match bytes[0] {
            1 => MessageType::Request,
            2 => MessageType::Reply,
            8 => MessageType::Ping,
            9 => MessageType::Pong,
            _ => return None,
        };
        let body = u32::from_le_bytes(at(bytes, 12));
        let exact = body.checked_add(u32::try_from(HEADER_LEN).ok()?) == Some(len);
        let reserved = bytes[1] == 0 && bytes[6] == 0 && bytes[7] == 0;
        (exact && reserved).then(|| Self {
            message,
            kind: u16::from_le_bytes(at(bytes, 2)),
            slot: u16::from_le_bytes(at(bytes, 4)),
            generation: u32::from_le_bytes(at(bytes, 8)),
            body,
            bulk: RemoteAddr {
                addr: u64::from_le_bytes(at(bytes, 16)),
                rkey: Rkey(u32::from_le_bytes(at(bytes, 24))),
            },
            bulk_len: u32::from_le_bytes(at(bytes, 28)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_decodes_to_what_was_encoded(
            request: bool, kind: u16, slot: u16, generation: u32, body in 0u32..1 << 20,
            addr: u64, rkey: u32, bulk_len: u32,
        ) {
            let message = if request { MessageType::Request } else { MessageType::Reply };
            let bulk = RemoteAddr { addr, rkey: Rkey(rkey) };
            let header = Header { message, kind, slot, generation, body, bulk, bulk_len };
            prop_assert_eq!(Header::decode(&header.encode(), body + 32), Some(header));
            prop_assert_eq!(Header::decode(&header.encode(), body + 31), None);
        }

        #[test]
        fn arbitrary_bytes_decode_to_themselves_or_nothing(bytes: [u8; HEADER_LEN], len: u32) {
            if let Some(header) = Header::decode(&bytes, len) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}

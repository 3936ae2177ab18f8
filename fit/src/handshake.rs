//! What two sides tell each other when they connect, and what follows from it.
//!
//! It stands at the head of the private data of CM REQ and REP:
//!
//! ```text
//!  0         1      2      4                 6        8              12
//!  | version | role | core | message version | serves | message size |
//! ```

use hal::Duration;
use verbs::{DeviceLimits, RcParameters};

use crate::{Config, Role, Target, VERSION};

/// The service that FIT nodes call each other by: an OS-administered id (IBA 1.3, annex A3: first byte 2), `TESS`, 1.
pub(crate) const SERVICE_ID: u64 = 0x0200_5445_5353_0001;

/// Bytes of a [`Hello`].
pub(crate) const HELLO_LEN: usize = 12;

/// The private data of a connection request or its acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) role: Role,
    pub(crate) core: u16,
    pub(crate) message_version: u16,
    pub(crate) serves: u16,
    pub(crate) message_size: u32,
}

/// Why a hello is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHello {
    Version(u8),
    MessageVersion(u16),
    Role(u8),
    Depths,
}

impl Hello {
    pub(crate) fn of(config: &Config, role: Role, core: u16) -> Self {
        Self {
            role,
            core,
            message_version: config.message_version,
            serves: config.serves,
            message_size: config.message_size,
        }
    }

    /// Puts it at the head of private data, the rest of which is zero.
    pub(crate) fn encode<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes[0] = VERSION;
        bytes[1] = self.role.number();
        bytes[2..4].copy_from_slice(&self.core.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.message_version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.serves.to_le_bytes());
        bytes[8..HELLO_LEN].copy_from_slice(&self.message_size.to_le_bytes());
        bytes
    }

    /// Reads private data, and checks that this side can talk to the peer.
    pub(crate) fn decode(bytes: &[u8], config: &Config) -> Result<Self, BadHello> {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes.len() < HELLO_LEN || bytes[0] != VERSION {
            return Err(BadHello::Version(bytes.first().copied().unwrap_or(0)));
        }
        if word(4) != config.message_version {
            return Err(BadHello::MessageVersion(word(4)));
        }
        let hello = Self {
            role: Role::from_number(bytes[1]).ok_or(BadHello::Role(bytes[1]))?,
            core: word(2),
            message_version: word(4),
            serves: word(6),
            message_size: u32::from(word(8)) | u32::from(word(10)) << 16,
        };
        let usable = hello.serves > 0 && hello.message_size as usize >= 2 * crate::HEADER_LEN;
        usable.then_some(hello).ok_or(BadHello::Depths)
    }

    /// What the connection may use of the peer, given the READs that it answers at once.
    pub(crate) fn target(&self, limits: &DeviceLimits, reads_answered: u8) -> Target {
        Target {
            serves: self.serves,
            message_size: self.message_size,
            reads: limits.max_reads.min(reads_answered),
        }
    }
}

/// How persistent a connection is. The transport gives up after some 8 × 67 ms to 4 times that (vendors stretch the
/// timeout), before any of FIT's own deadlines.
pub(crate) fn persistence(reads_as_requester: u8, reads_as_responder: u8) -> RcParameters {
    RcParameters {
        ack_timeout: 14,
        retry_count: 7,
        rnr_retry: 6,
        min_rnr_timer: 12,
        reads_as_requester,
        reads_as_responder,
    }
}

/// The wait before the next try: doubling from 20 ms to one second.
pub(crate) fn back_off(tries: u32) -> Duration {
    Duration::from_millis((20 << tries.min(6)).min(1000))
}

/// The bytes of an MTU code, 1 (256) to 5 (4096); nothing for another.
pub(crate) fn mtu_bytes(code: u8) -> Option<u16> {
    (1..=5).contains(&code).then(|| 128 << code)
}

/// The code of an MTU, rounded down to one that has a code.
pub(crate) fn mtu_code(bytes: u16) -> u8 {
    (1..=5).rev().find(|&code| 128_u16 << code <= bytes).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_hello_round_trips(core: u16, serves in 1u16.., message_size in 64u32..) {
            let hello = Hello { role: Role::Storage, core, message_version: 3, serves, message_size };
            let config = Config { message_version: 3, ..Config::default() };
            prop_assert_eq!(Hello::decode(&hello.encode::<92>(), &config), Ok(hello));
        }

        #[test]
        fn arbitrary_private_data_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Hello::decode(&bytes, &Config::default());
        }
    }

    #[test]
    fn other_versions_and_depths_of_zero_are_refused() {
        let config = Config::default();
        let good: [u8; 92] = Hello::of(&config, Role::Memory, 0).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Hello::decode(&bytes, &config)
        };
        assert_eq!(with(0, 9), Err(BadHello::Version(9)));
        assert_eq!(with(4, 1), Err(BadHello::MessageVersion(1)));
        assert_eq!(with(1, 7), Err(BadHello::Role(7)));
        assert_eq!(with(6, 0), Err(BadHello::Depths));
    }

    #[test]
    fn mtu_codes_round_trip() {
        for (code, bytes) in [(1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096)] {
            assert_eq!(mtu_bytes(code), Some(bytes));
            assert_eq!(mtu_code(bytes), code);
        }
        assert_eq!((mtu_bytes(0), mtu_bytes(6), mtu_code(1500)), (None, None, 3));
    }

    #[test]
    fn back_off_ends_at_a_second() {
        assert_eq!(back_off(0), Duration::from_millis(20));
        assert_eq!(back_off(40), Duration::from_secs(1));
    }
}

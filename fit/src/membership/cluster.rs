//! Name and key of a cluster.

use core::fmt;
use core::str::FromStr;

use sha2::{Digest, Sha256};
use verbs::{Gid, QKey};

/// The key of a cluster: who holds it is a member. It is never sent and never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub(crate) [u8; Self::LEN]);

/// Error of an option `key=` that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct BadKey;

impl Key {
    /// Bytes of a key.
    pub const LEN: usize = 32;

    /// A key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Reads 64 hexadecimal digits.
impl FromStr for Key {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let text = text.as_bytes();
        if text.len() != 2 * Self::LEN {
            return Err(BadKey);
        }
        let mut key = [0; Self::LEN];
        for (byte, pair) in key.iter_mut().zip(text.chunks(2)) {
            let (high, low) = (digit(pair[0]).ok_or(BadKey)?, digit(pair[1]).ok_or(BadKey)?);
            *byte = high << 4 | low;
        }
        Ok(Self(key))
    }
}

/// A cluster as its members know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Its name, hashed: tells the announcements of clusters apart that share a fabric.
    pub(crate) tag: [u8; 8],
    pub(crate) mgid: Gid,
    pub(crate) key: Key,
}

impl Cluster {
    /// The Q_Key of announcements. Its top bit is clear, so that any queue pair may use it (IBA
    /// 1.3, 10.2.5).
    pub(crate) const QKEY: QKey = QKey(0x5445_5353);

    /// The cluster of this name, whose members hold `key`.
    #[must_use]
    pub fn new(name: &str, key: Key) -> Self {
        let hash: [u8; 32] = Sha256::new()
            .chain_update(b"tessera cluster\0")
            .chain_update(name.as_bytes())
            .finalize()
            .into();
        let mut tag = [0; 8];
        tag.copy_from_slice(&hash[..8]);
        // Multicast, transient, of link-local scope (IBA 1.3, 4.1.1); "TS"; then from the name.
        let mut mgid = [0; 16];
        mgid[..4].copy_from_slice(&[0xff, 0x12, b'T', b'S']);
        mgid[4..].copy_from_slice(&hash[8..20]);
        Self {
            tag,
            mgid: Gid(mgid),
            key,
        }
    }

    /// The multicast group that its members announce themselves in.
    #[must_use]
    pub fn mgid(&self) -> Gid {
        self.mgid
    }
}

/// The cluster `tessera` with a key of zeroes, which keeps nobody out.
impl Default for Cluster {
    fn default() -> Self {
        Self::new("tessera", Key([0; Key::LEN]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_reads_as_its_digits_say(bytes: [u8; 32], upper: bool) {
            let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            if upper {
                text = text.to_uppercase();
            }
            prop_assert_eq!(text.parse(), Ok(Key(bytes)));
            prop_assert_eq!(text[1..].parse::<Key>(), Err(BadKey));
        }

        #[test]
        fn any_text_is_a_key_or_refused(text in "\\PC{0,70}|[0-9a-g]{64}") {
            let _ = text.parse::<Key>();
        }
    }

    #[test]
    fn clusters_of_other_names_have_other_groups() {
        let key = Key([7; 32]);
        let (a, b) = (Cluster::new("a", key), Cluster::new("b", key));
        assert_ne!((a.tag, a.mgid), (b.tag, b.mgid));
        assert_eq!(a.mgid().0[..4], [0xff, 0x12, 0x54, 0x53]);
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = Key([0xab; 32]);
        assert!(!format!("{:?}", Cluster::new("a", key)).contains("ab, "));
        assert!(!format!("{:?}", Cluster::new("a", key)).contains("171"));
    }
}

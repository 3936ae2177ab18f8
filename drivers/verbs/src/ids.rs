//! Numbers that name things on the fabric, each its own type.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {:#x}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

number!(/// A queue pair's number: 24 bits.
    Qpn(u32), "QPN");
number!(/// A completion queue's number: 24 bits.
    Cqn(u32), "CQN");
number!(/// A local key: lets this node's HCA reach a memory region.
    Lkey(u32), "lkey");
number!(/// A remote key: lets a peer's request reach a memory region.
    Rkey(u32), "rkey");
number!(/// A port's address within its subnet, given by the subnet manager; 0 means none yet.
    Lid(u16), "LID");
number!(/// A packet sequence number: 24 bits, wrapping.
    Psn(u32), "PSN");
number!(/// The key a datagram must carry to be accepted by a UD queue pair.
    QKey(u32), "Q_Key");
number!(/// A partition key; the top bit means full membership.
    PKey(u16), "P_Key");
number!(/// A globally unique 64-bit identifier of a node or port.
    Guid(u64), "GUID");
number!(/// A protection domain, by the user's own number from 0 on: a queue pair, its peer included, reaches only regions of
    /// the queue pair's own domain (InfiniBand Architecture 1.3, section 10.2.3).
    Domain(u32), "domain");
number!(/// A queue pair's place in its [`QueueSet`](crate::QueueSet), for posting without a search.
    QpSlot(u16), "QP slot");

impl Qpn {
    /// The destination of every datagram to a multicast group (InfiniBand Architecture 1.3, section
    /// 10.5.2).
    pub const MULTICAST: Self = Self(0xff_ffff);
}

impl QKey {
    /// The well-known Q_Key of QP1 (InfiniBand Architecture 1.3, section 3.5.3; Linux
    /// `IB_QP1_QKEY`).
    pub const GSI: Self = Self(0x8001_0000);
}

impl PKey {
    /// The default partition, full member.
    pub const DEFAULT: Self = Self(0xffff);
    /// Full member of the partition; a limited one without it.
    const FULL: u16 = 1 << 15;

    /// Returns whether two ends with these keys may exchange packets: the partition is the same and
    /// a valid one, and one of them is a full member (InfiniBand Architecture 1.3, section 10.9.3).
    #[must_use]
    pub const fn admits(self, other: Self) -> bool {
        let (own, theirs) = (self.0 & !Self::FULL, other.0 & !Self::FULL);
        own == theirs && own != 0 && (self.0 | other.0) & Self::FULL != 0
    }
}

impl Psn {
    /// The number `n` packets later, modulo 2^24.
    #[must_use]
    pub fn advance(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n) & 0xff_ffff)
    }
}

/// The address of a port or a multicast group on its link layer, by which datagrams and connections
/// reach it. Users keep and compare it; only what speaks InfiniBand itself looks inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Address(Lid);

impl Address {
    /// Returns the address of a port on InfiniBand.
    #[must_use]
    pub const fn of_lid(lid: Lid) -> Self {
        Self(lid)
    }

    /// Returns the LID that the address is on InfiniBand.
    #[must_use]
    pub fn lid(self) -> Lid {
        self.0
    }

    /// Returns whether it is one: the LID 0 is none.
    #[must_use]
    pub fn is_set(self) -> bool {
        self.0 != Lid(0)
    }
}

impl From<Lid> for Address {
    fn from(lid: Lid) -> Self {
        Self::of_lid(lid)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A port's global identifier: subnet prefix and port GUID, in network order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The link-local subnet prefix that an unconfigured subnet uses.
    pub const DEFAULT_PREFIX: u64 = 0xfe80_0000_0000_0000;

    /// Puts a GID together.
    #[must_use]
    pub fn new(prefix: u64, guid: Guid) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&prefix.to_be_bytes());
        bytes[8..].copy_from_slice(&guid.0.to_be_bytes());
        Self(bytes)
    }

    /// The subnet prefix.
    #[must_use]
    pub fn prefix(self) -> u64 {
        u64::from_be_bytes(self.0[..8].try_into().expect("eight bytes"))
    }

    /// The port GUID.
    #[must_use]
    pub fn guid(self) -> Guid {
        Guid(u64::from_be_bytes(
            self.0[8..].try_into().expect("eight bytes"),
        ))
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&core::net::Ipv6Addr::from(self.0), f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GID {self}")
    }
}

/// Reads a GID as an IPv6 address is written: `fe80::2:c903:0:1`.
impl core::str::FromStr for Gid {
    type Err = core::net::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse::<core::net::Ipv6Addr>()?.octets()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gid_text_round_trips() {
        let gid = Gid::new(Gid::DEFAULT_PREFIX, Guid(0x0002_c903_0000_0001));
        assert_eq!(gid.to_string(), "fe80::2:c903:0:1");
        assert_eq!(gid.to_string().parse::<Gid>(), Ok(gid));
        assert_eq!(gid.guid(), Guid(0x0002_c903_0000_0001));
    }

    #[test]
    fn a_partition_admits_its_members_of_which_one_is_full() {
        let admits = |own, theirs| PKey(own).admits(PKey(theirs));
        assert!(admits(0xffff, 0x7fff) && admits(0x7fff, 0xffff) && admits(0x8001, 0x8001));
        assert!(!admits(0x7fff, 0x7fff), "two limited members");
        assert!(!admits(0x8001, 0x8002));
        assert!(!admits(0x8000, 0x8000), "no partition");
        assert!(!admits(0, 0));
    }

    #[test]
    fn psn_wraps_at_24_bits() {
        assert_eq!(Psn(0xff_ffff).advance(2), Psn(1));
    }
}

//! Peers: role, address, and place in this node's tables.

use core::fmt;
use core::str::FromStr;

use verbs::Gid;

/// Role of a node. The numbers travel in the connection's private data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs programs.
    Processor,
    /// Lends memory.
    Memory,
    /// Keeps files.
    Storage,
}

impl Role {
    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Processor => 1,
            Self::Memory => 2,
            Self::Storage => 3,
        }
    }

    /// The role of a number on the wire.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Processor),
            2 => Some(Self::Memory),
            3 => Some(Self::Storage),
            _ => None,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Memory => "memory",
            Self::Storage => "storage",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Error of a `peer=` option that names no peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not ROLE@GID with role processor, memory or storage and a GID written as an IPv6 address")]
pub struct BadPeerSpec;

/// A component to connect to, as the option `peer=ROLE@GID` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerSpec {
    /// Its role.
    pub role: Role,
    /// Its port's GID.
    pub gid: Gid,
}

/// The same two facts name a peer in errors and logs.
pub type PeerName = PeerSpec;

impl fmt::Display for PeerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.role, self.gid)
    }
}

/// Reads `memory@fe80::2:c903:0:1`.
impl FromStr for PeerSpec {
    type Err = BadPeerSpec;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (role, gid) = text.split_once('@').ok_or(BadPeerSpec)?;
        let roles = [Role::Processor, Role::Memory, Role::Storage];
        let role = roles
            .into_iter()
            .find(|known| known.name() == role)
            .ok_or(BadPeerSpec)?;
        Ok(Self {
            role,
            gid: gid.parse().map_err(|_| BadPeerSpec)?,
        })
    }
}

/// A peer's place in this node's tables; the same on each core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u16);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_peer_option_reads_back(number in 0_usize..3, gid: [u8; 16]) {
            let role = [Role::Processor, Role::Memory, Role::Storage][number];
            let spec = PeerSpec { role, gid: Gid(gid) };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn any_text_is_a_peer_or_refused(role in "(processor|memory|storage|[a-z]{0,3})", rest in "[@:.0-9a-f%é]{0,24}") {
            let text = format!("{role}@{rest}");
            if let Ok(spec) = text.parse::<PeerSpec>() {
                prop_assert_eq!(spec.role.name(), role);
                prop_assert_eq!(Ok(spec.gid), rest.parse());
            }
        }
    }

    #[test]
    fn a_peer_option_reads_and_prints_the_same() {
        let spec: PeerSpec = "memory@fe80::2:c903:0:1".parse().unwrap();
        assert_eq!(spec.role, Role::Memory);
        assert_eq!(spec.to_string(), "memory@fe80::2:c903:0:1");
        for bad in [
            "",
            "memory",
            "monitor@fe80::1",
            "memory@",
            "memory@x",
            "@fe80::1",
        ] {
            assert_eq!(bad.parse::<PeerSpec>(), Err(BadPeerSpec), "{bad}");
        }
    }

    #[test]
    fn role_numbers_round_trip() {
        for number in 0..=u8::MAX {
            if let Some(role) = Role::from_number(number) {
                assert_eq!(role.number(), number);
            }
        }
    }
}

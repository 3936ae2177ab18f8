//! Announcement of a node to all others, as a datagram to the cluster's multicast group.
//!
//! ```text
//!  0         1      2       3          4                 6      8      12         16     24    40            48
//!  | version | role | leaves | reserved | message version | LID | members | capacity | tag | GID | incarnation |
//!  48         56       64      96
//!  | sequence | digest | proof |
//! ```
//!
//! Little-endian. The proof covers all that stands before it.

use verbs::{Address, Gid};

use super::proof::{PROOF_LEN, Purpose, holds, prove};
use super::{Cluster, Incarnation, Member};
use crate::{PeerName, Role};

/// The version of announcements.
const VERSION: u8 = 1;
const BODY_LEN: usize = 64;

/// Bytes of an announcement.
pub(crate) const ANNOUNCEMENT_LEN: usize = BODY_LEN + PROOF_LEN;

/// An announcement, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) member: Member,
    /// The sender's port.
    pub(crate) address: Address,
    /// The version of the messages that its calls carry.
    pub(crate) message_version: u16,
    /// It is about to go.
    pub(crate) leaves: bool,
    /// Grows with each announcement of an incarnation, so that none can be played again.
    pub(crate) sequence: u64,
    /// Members that the sender sees, itself included.
    pub(crate) members: u32,
    /// Hash of the members.
    pub(crate) digest: u64,
}

/// Reasons why an announcement is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It is none, or of another cluster of this fabric: no reason to worry.
    Foreign,
    /// Its proof does not hold.
    Proof,
    /// It is well proven, but for another version or role than there is.
    Version,
}

fn field<const N: usize>(bytes: &[u8; ANNOUNCEMENT_LEN], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("a field of an announcement")
}

impl Announcement {
    pub(crate) fn encode(&self, cluster: &Cluster) -> [u8; ANNOUNCEMENT_LEN] {
        let mut bytes = [0; ANNOUNCEMENT_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.member.name.role.number();
        bytes[2] = u8::from(self.leaves);
        bytes[4..6].copy_from_slice(&self.message_version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.address.lid().0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.members.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.member.capacity.to_le_bytes());
        bytes[16..24].copy_from_slice(&cluster.tag);
        bytes[24..40].copy_from_slice(&self.member.name.gid.0);
        bytes[40..48].copy_from_slice(&self.member.incarnation.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.digest.to_le_bytes());
        let proof = prove(&cluster.key, Purpose::Announce, &[&bytes[..BODY_LEN]]);
        bytes[BODY_LEN..].copy_from_slice(&proof);
        bytes
    }

    /// Reads a datagram's payload. The proof is looked at before any field but the tag.
    pub(crate) fn decode(bytes: &[u8], cluster: &Cluster) -> Result<Self, Bad> {
        let bytes: &[u8; ANNOUNCEMENT_LEN] = bytes.try_into().map_err(|_| Bad::Foreign)?;
        if bytes[16..24] != cluster.tag {
            return Err(Bad::Foreign);
        }
        let (body, proof) = bytes.split_at(BODY_LEN);
        if !holds(&cluster.key, Purpose::Announce, &[body], proof) {
            return Err(Bad::Proof);
        }
        let role = Role::from_number(bytes[1]).filter(|_| bytes[0] == VERSION);
        Ok(Self {
            member: Member {
                name: PeerName {
                    role: role.ok_or(Bad::Version)?,
                    gid: Gid(field(bytes, 24)),
                },
                incarnation: Incarnation(u64::from_le_bytes(field(bytes, 40))),
                capacity: u32::from_le_bytes(field(bytes, 12)),
            },
            address: verbs::Lid(u16::from_le_bytes(field(bytes, 6))).into(),
            message_version: u16::from_le_bytes(field(bytes, 4)),
            leaves: bytes[2] != 0,
            sequence: u64::from_le_bytes(field(bytes, 48)),
            members: u32::from_le_bytes(field(bytes, 8)),
            digest: u64::from_le_bytes(field(bytes, 56)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Key;

    fn announcement(number: u8, lid: u16, sequence: u64, leaves: bool) -> Announcement {
        Announcement {
            member: Member {
                name: PeerName {
                    role: Role::Storage,
                    gid: Gid([number; 16]),
                },
                incarnation: Incarnation(sequence ^ 0x55),
                capacity: 77,
            },
            address: verbs::Lid(lid).into(),
            message_version: 3,
            leaves,
            sequence,
            members: 2,
            digest: !sequence,
        }
    }

    proptest! {
        #[test]
        fn an_announcement_reads_back_in_its_cluster_and_in_no_other(
            number: u8, lid: u16, sequence: u64, leaves: bool,
        ) {
            let cluster = Cluster::new("a", Key::new([3; 32]));
            let announcement = announcement(number, lid, sequence, leaves);
            let bytes = announcement.encode(&cluster);
            prop_assert_eq!(Announcement::decode(&bytes, &cluster), Ok(announcement));
            let other_key = Cluster::new("a", Key::new([4; 32]));
            prop_assert_eq!(Announcement::decode(&bytes, &other_key), Err(Bad::Proof));
            let other_name = Cluster::new("b", Key::new([3; 32]));
            prop_assert_eq!(Announcement::decode(&bytes, &other_name), Err(Bad::Foreign));
        }

        #[test]
        fn no_changed_bit_goes_unnoticed(bit in 0..ANNOUNCEMENT_LEN * 8) {
            let cluster = Cluster::default();
            let mut bytes = announcement(1, 2, 3, false).encode(&cluster);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Announcement::decode(&bytes, &cluster).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(Announcement::decode(&bytes, &Cluster::default()).is_err());
        }
    }
}

//! Finding the way to a port of which the GID is known.
//!
//! A [`Resolver`] makes the question and reads the answer; the control task sends, repeats and
//! gives up. InfiniBand's is the subnet administrator (InfiniBand Architecture 1.3, section
//! 15.2.5.16).

use mad::sa::{PathRecord, SaMad, path_record_mask};
use mad::{Attribute, Mad, Method, Status};
use verbs::{Address, Gid, PortInfo};

use crate::handshake::mtu_bytes;

/// The way to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// The transaction of the question.
    pub(crate) transaction: u64,
    /// The port.
    pub(crate) to: Gid,
    pub(crate) address: Address,
    /// Packet payload in bytes that the whole path takes, this node's port included.
    pub(crate) mtu: u16,
    /// Service level.
    pub(crate) sl: u8,
}

/// A service that knows the addresses of GIDs.
pub(crate) trait Resolver {
    /// Makes the question for the way from this node's port to another, and says whom to ask.
    fn question(&self, from: &PortInfo, to: Gid, transaction: u64) -> (Address, Mad);

    /// Reads an answer; nothing if it names no way.
    fn answer(&self, from: &PortInfo, answer: &SaMad) -> Option<Path>;
}

/// The subnet administrator.
pub(crate) struct SubnetAdministrator;

impl Resolver for SubnetAdministrator {
    fn question(&self, from: &PortInfo, to: Gid, transaction: u64) -> (Address, Mad) {
        let record = PathRecord {
            dgid: to.0,
            sgid: from.gid.0,
            reversible_paths: 0x80 | 1,
            ..PathRecord::default()
        };
        let mask = path_record_mask::DGID | path_record_mask::SGID | path_record_mask::NUMB_PATH;
        let attribute = Attribute::PATH_RECORD;
        let query = SaMad::request(Method::GET, attribute, mask, &record, transaction);
        (from.manager, query.to_mad())
    }

    fn answer(&self, from: &PortInfo, answer: &SaMad) -> Option<Path> {
        let path = answer
            .record::<PathRecord>()
            .filter(|_| answer.header.status() == Status::OK)?;
        let address = Address::from(verbs::Lid(path.dlid.get()));
        let path = Path {
            // Upper halves of transactions belong to whoever carries the datagrams.
            transaction: answer.header.transaction.get() & u64::from(u32::MAX),
            to: Gid(path.dgid),
            address,
            mtu: mtu_bytes(path.mtu.value()).unwrap_or(256).min(from.mtu),
            sl: u8::try_from(path.qos_sl.get() & 0xf).expect("four bits"),
        };
        address.is_set().then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use verbs::{Guid, Lid, PortState};

    use super::*;

    fn port() -> PortInfo {
        PortInfo {
            state: PortState::Active,
            address: Lid(7).into(),
            manager: Lid(1).into(),
            guid: Guid(5),
            gid: Gid([1; 16]),
            mtu: 2048,
        }
    }

    /// An answer about the GID 2…, by this LID, with this service level and MTU code.
    fn answer(dlid: u16, sl: u16, mtu: u8, transaction: u64) -> SaMad {
        let mut record = PathRecord {
            dgid: [2; 16],
            ..PathRecord::default()
        };
        record.dlid.set(dlid);
        record.qos_sl.set(sl);
        record.mtu = record.mtu.with_value(mtu);
        let attribute = Attribute::PATH_RECORD;
        SaMad::request(Method::GET_RESP, attribute, 0, &record, transaction)
    }

    #[test]
    fn the_administrator_is_asked_at_the_managers_address_for_both_gids() {
        let (to, mad) = SubnetAdministrator.question(&port(), Gid([2; 16]), 9);
        assert_eq!(to, Lid(1).into());
        let query = SaMad::parse(&mad).unwrap();
        let record = query.record::<PathRecord>().unwrap();
        assert_eq!((record.sgid, record.dgid), ([1; 16], [2; 16]));
        assert_eq!(query.header.transaction.get(), 9);
    }

    #[test]
    fn an_answer_names_address_service_level_and_the_smaller_mtu() {
        let told = SubnetAdministrator.answer(&port(), &answer(3, 0xff5, 5, 7 << 32 | 9));
        let path = Path {
            transaction: 9,
            to: Gid([2; 16]),
            address: Lid(3).into(),
            mtu: 2048,
            sl: 5,
        };
        assert_eq!(told, Some(path));
        let told = SubnetAdministrator.answer(&port(), &answer(0, 0, 5, 9));
        assert_eq!(told, None, "no LID");
    }
}

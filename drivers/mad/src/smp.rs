//! Subnet management packets: LID-routed and directed-route (IBA 1.3, 14.2.1; Linux `struct
//! ib_smp`).

mod attributes;
mod switch;

pub use attributes::{
    GuidInfo, LinkWidth, MtuAndSl, Nibbles, NodeDescription, NodeInfo, NodeType, PKeyTable,
    PortCapabilities, PortInfo, PortPhys, PortStateBits, SlToVl, SpeedState,
};

pub use switch::{
    LINEAR_BLOCK, LifeState, LinearForwarding, MULTICAST_BLOCK, MulticastForwarding, Notice,
    NoticeType, Priority, SmInfo, SmState, SwitchFlags, SwitchInfo, TRAP_LINK_STATE,
    TRAP_LOCAL_CHANGES,
};

use zerocopy::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::layout;
use crate::{Attribute, Error, Header, MAD_LEN, Mad, Method, MgmtClass, Status};

/// The most hops of a directed route.
pub const MAX_HOPS: u8 = 63;
/// The LID that a directed route has at an end without LID routing.
pub const PERMISSIVE_LID: u16 = 0xffff;
const DIRECTION: u16 = 0x8000;

/// An SMP. The fields from `dr_slid` on mean something on directed routes only.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Smp {
    /// The common header.
    pub header: Header,
    /// The key that protects the node's management.
    pub m_key: U64,
    /// LID where the directed route begins.
    pub dr_slid: U16,
    /// LID where the directed route ends.
    pub dr_dlid: U16,
    /// Reserved.
    pub reserved: [u8; 28],
    /// The attribute.
    pub data: [u8; 64],
    /// The ports to leave by, from entry 1 on.
    pub initial_path: [u8; 64],
    /// The ports that the packet came in by.
    pub return_path: [u8; 64],
}
layout!(Smp: 256, m_key @ 24, dr_slid @ 32, data @ 64, initial_path @ 128, return_path @ 192);

impl Smp {
    /// A LID-routed request with empty data.
    #[must_use]
    pub fn request(method: Method, attribute: Attribute, modifier: u32, transaction: u64) -> Self {
        Self {
            header: Header::request(
                MgmtClass::SUBN_LID,
                method,
                attribute,
                modifier,
                transaction,
            ),
            m_key: U64::ZERO,
            dr_slid: U16::ZERO,
            dr_dlid: U16::ZERO,
            reserved: [0; 28],
            data: [0; 64],
            initial_path: [0; 64],
            return_path: [0; 64],
        }
    }

    /// Turns it into a directed-route request over the ports in `path`, permissive at both ends.
    ///
    /// # Errors
    ///
    /// When the path has more hops than a route can have.
    pub fn directed(mut self, path: &[u8]) -> Result<Self, Error> {
        let count = u8::try_from(path.len()).unwrap_or(u8::MAX);
        if count > MAX_HOPS {
            return Err(Error::Route { count, pointer: 0 });
        }
        self.header.class = MgmtClass::SUBN_DIRECTED;
        self.dr_slid = U16::new(PERMISSIVE_LID);
        self.dr_dlid = U16::new(PERMISSIVE_LID);
        self.initial_path[1..=path.len()].copy_from_slice(path);
        self.set_hops(0, count);
        Ok(self)
    }

    /// Takes an SMP of either class apart.
    ///
    /// # Errors
    ///
    /// When the bytes are no datagram, of another class or version, or the directed route is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let header = Header::parse(bytes)?;
        if !matches!(header.class, MgmtClass::SUBN_LID | MgmtClass::SUBN_DIRECTED) {
            return Err(Error::Class(header.class));
        }
        if header.class_version != 1 {
            return Err(Error::ClassVersion(header.class_version));
        }
        let smp = Self::read_from_bytes(bytes).map_err(|_| Error::Length(bytes.len()))?;
        let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
        if smp.is_directed() && (count > MAX_HOPS || pointer > count + 1) {
            return Err(Error::Route { count, pointer });
        }
        Ok(smp)
    }

    /// The datagram's bytes.
    #[must_use]
    pub fn to_mad(&self) -> Mad {
        let mut mad = [0; MAD_LEN];
        mad.copy_from_slice(self.as_bytes());
        mad
    }

    /// Returns whether it follows a directed route.
    #[must_use]
    pub fn is_directed(&self) -> bool {
        self.header.class == MgmtClass::SUBN_DIRECTED
    }

    /// Returns whether it is on its way back on a directed route.
    #[must_use]
    pub fn is_returning(&self) -> bool {
        self.header.status.get() & DIRECTION != 0
    }

    /// Sends it forth (`false`) or back on its directed route.
    pub fn set_returning(&mut self, returning: bool) {
        let status = self.header.status.get() & !DIRECTION;
        self.header.status = U16::new(if returning {
            status | DIRECTION
        } else {
            status
        });
    }

    /// Returns the hop pointer of its route.
    #[must_use]
    pub fn hop_pointer(&self) -> u8 {
        self.header.class_specific.get().to_be_bytes()[0]
    }

    /// Returns the number of hops of its route.
    #[must_use]
    pub fn hop_count(&self) -> u8 {
        self.header.class_specific.get().to_be_bytes()[1]
    }

    /// Places it on its route.
    pub fn set_hops(&mut self, pointer: u8, count: u8) {
        self.header.class_specific = U16::new(u16::from_be_bytes([pointer, count]));
    }

    /// Turns a request into its response: the same transaction, and on a directed route the way
    /// back.
    #[must_use]
    pub fn into_response(mut self, status: Status) -> Self {
        self.header.method = Method::GET_RESP;
        let direction = if self.is_directed() { DIRECTION } else { 0 };
        self.header.status = U16::new(status.0 | direction);
        self
    }
}

/// Reads an attribute out of an SMP's 64 data bytes.
#[must_use]
pub fn attribute<T: FromBytes + KnownLayout + Immutable>(data: &[u8; 64]) -> Option<T> {
    T::read_from_prefix(data).ok().map(|(value, _)| value)
}

/// Puts an attribute into an SMP's 64 data bytes; what it leaves free is zero.
#[must_use]
pub fn data_of<T: IntoBytes + Immutable>(value: &T) -> [u8; 64] {
    let mut data = [0; 64];
    let bytes = value.as_bytes();
    let len = bytes.len().min(data.len());
    data[..len].copy_from_slice(&bytes[..len]);
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Smp::parse(&bytes);
        }

        #[test]
        fn what_parses_is_a_route_and_keeps_its_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 256)) {
            bytes[..3].copy_from_slice(&[1, 0x81, 1]);
            if let Ok(smp) = Smp::parse(&bytes) {
                prop_assert!(smp.hop_count() <= MAX_HOPS && smp.hop_pointer() <= smp.hop_count() + 1);
                prop_assert_eq!(&smp.to_mad()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn directed_request_is_as_linux_lays_it_out() {
        // Linux ib_smi.h, struct ib_smp: status' top bit is the direction, then hop_ptr, hop_cnt.
        let smp = Smp::request(Method::GET, Attribute::NODE_INFO, 0, 5)
            .directed(&[3])
            .unwrap();
        let bytes = smp.to_mad();
        assert_eq!(bytes[..8], [1, 0x81, 1, 1, 0, 0, 0, 1]);
        assert_eq!(bytes[32..36], [0xff; 4]);
        assert_eq!(bytes[128..130], [0, 3]);
        let back = smp.into_response(Status::OK).to_mad();
        assert_eq!((back[3], &back[4..6]), (0x81, &[0x80, 0][..]));
    }

    #[test]
    fn routes_that_are_too_long_are_refused() {
        let smp = Smp::request(Method::GET, Attribute::NODE_INFO, 0, 5);
        assert!(smp.directed(&[1; 64]).is_err());
        let mut far = smp.directed(&[1; 63]).unwrap();
        assert!(Smp::parse(&far.to_mad()).is_ok());
        far.set_hops(0, 64);
        assert_eq!(
            Smp::parse(&far.to_mad()),
            Err(Error::Route {
                count: 64,
                pointer: 0
            })
        );
    }
}

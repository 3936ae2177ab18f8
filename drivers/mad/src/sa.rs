//! Subnet administration: asking for paths, nodes and ports, and joining multicast groups (IBA 1.3,
//! 15.2).

mod records;

pub use records::{
    ClassPortInfo, JoinState, LinkRecord, McMemberRecord, NodeRecord, PKeyTableRecord, PathRecord,
    PortInfoRecord, Selector, link_record_mask, mc_member_mask, node_record_mask, path_record_mask,
    pkey_record_mask, port_info_record_mask,
};

use zerocopy::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::number::layout;
use crate::{Attribute, Error, Header, MAD_LEN, Mad, Method, MgmtClass, Status};

/// The header of reliable multi-packet transfer, which stands in every SA datagram (13.6.2; Linux
/// `ib_rmpp_hdr`).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Rmpp {
    /// 1 when in use.
    pub version: u8,
    /// 1 data, 2 ACK, 3 stop, 4 abort.
    pub kind: u8,
    /// Response time (5 bits), last, first, active.
    pub flags: u8,
    /// Reason for a stop or abort.
    pub status: u8,
    /// Segment number.
    pub segment: [u8; 4],
    /// Payload length of the last segment, with the first also of the whole.
    pub payload_len: [u8; 4],
}
layout!(Rmpp: 12);

impl Rmpp {
    /// [`kind`](Self::kind) of an acknowledgement.
    pub const ACK: u8 = 2;
    const ACTIVE: u8 = 0x01;
    const FIRST: u8 = 0x02;
    const LAST: u8 = 0x04;

    /// The header of a segment, counted from 1. `payload_len` counts the 20 bytes of each segment's
    /// SA header as well: in the first segment for the whole table, in the last for itself.
    #[must_use]
    pub fn data(segment: u32, last: bool, payload_len: u32) -> Self {
        let first = if segment == 1 { Self::FIRST } else { 0 };
        let last = if last { Self::LAST } else { 0 };
        Self {
            version: 1,
            kind: 1,
            flags: Self::ACTIVE | first | last,
            status: 0,
            segment: segment.to_be_bytes(),
            payload_len: payload_len.to_be_bytes(),
        }
    }

    /// Returns whether the datagram speaks of a transfer and carries nothing itself: acknowledges,
    /// stops or aborts it.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.flags & Self::ACTIVE != 0 && self.kind != 1
    }
}

/// An SA datagram (15.2.1.1; Linux `struct ib_sa_mad`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SaMad {
    /// The common header.
    pub header: Header,
    /// Multi-packet transfer.
    pub rmpp: Rmpp,
    /// The key that makes the request trusted.
    pub sm_key: U64,
    /// Bytes from record to record in a table, in units of 8.
    pub attribute_offset: U16,
    /// Reserved.
    pub reserved: U16,
    /// Fields of the record that are valid.
    pub component_mask: U64,
    /// The record.
    pub data: [u8; 200],
}
layout!(SaMad: 256, rmpp @ 24, sm_key @ 36, attribute_offset @ 44, component_mask @ 48, data @ 56);

impl SaMad {
    /// A request with the record `record`, of which the fields in `mask` count.
    #[must_use]
    pub fn request<T: IntoBytes + Immutable>(
        method: Method,
        attribute: Attribute,
        mask: u64,
        record: &T,
        transaction: u64,
    ) -> Self {
        let mut mad = Self {
            header: Header::request(MgmtClass::SUBN_ADM, method, attribute, 0, transaction),
            rmpp: Rmpp::default(),
            sm_key: U64::ZERO,
            attribute_offset: U16::ZERO,
            reserved: U16::ZERO,
            component_mask: U64::new(mask),
            data: [0; 200],
        };
        mad.set_record(record);
        mad
    }

    /// Takes an SA datagram apart.
    ///
    /// # Errors
    ///
    /// When the bytes are no datagram, or of another class or version.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let header = Header::parse(bytes)?;
        if header.class != MgmtClass::SUBN_ADM {
            return Err(Error::Class(header.class));
        }
        if header.class_version != 2 {
            return Err(Error::ClassVersion(header.class_version));
        }
        Self::read_from_bytes(bytes).map_err(|_| Error::Length(bytes.len()))
    }

    /// The datagram's bytes.
    #[must_use]
    pub fn to_mad(&self) -> Mad {
        let mut mad = [0; MAD_LEN];
        mad.copy_from_slice(self.as_bytes());
        mad
    }

    /// The record, read as `T`.
    #[must_use]
    pub fn record<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        T::read_from_prefix(&self.data)
            .ok()
            .map(|(record, _)| record)
    }

    /// Puts `record` at the head of the data.
    pub fn set_record<T: IntoBytes + Immutable + ?Sized>(&mut self, record: &T) {
        self.data = [0; 200];
        let bytes = record.as_bytes();
        let len = bytes.len().min(self.data.len());
        self.data[..len].copy_from_slice(&bytes[..len]);
    }

    /// Turns a request into its response.
    #[must_use]
    pub fn into_response(mut self, status: Status) -> Self {
        self.header.method = Method(self.header.method.0 | 0x80);
        if matches!(self.header.method, Method(0x82)) {
            self.header.method = Method::GET_RESP; // a Set is answered like a Get
        }
        self.header.status = U16::new(status.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_takes_any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), sa in any::<bool>()) {
            if sa && bytes.len() > 3 {
                bytes[..3].copy_from_slice(&[1, 3, 2]);
            }
            if let Ok(mad) = SaMad::parse(&bytes) {
                prop_assert_eq!(&mad.to_mad()[..], &bytes[..]);
                let _ = (mad.record::<PathRecord>(), mad.record::<McMemberRecord>(), mad.record::<NodeRecord>());
            }
        }
    }

    #[test]
    fn request_is_as_linux_lays_it_out() {
        // Linux ib_mad.h: ib_sa_hdr follows the RMPP header at 36; data begins at IB_MGMT_SA_HDR =
        // 56.
        let mad =
            SaMad::request(Method::GET, Attribute::PATH_RECORD, 0x4, &[0xaa_u8; 4], 9).to_mad();
        assert_eq!(mad[..4], [1, 3, 2, 1]);
        assert_eq!(mad[16..18], [0, 0x35]);
        assert_eq!(
            mad[48..60],
            [0, 0, 0, 0, 0, 0, 0, 4, 0xaa, 0xaa, 0xaa, 0xaa]
        );
    }

    #[test]
    fn responses_carry_the_answering_method() {
        let mad = |method| SaMad::request(method, Attribute::PATH_RECORD, 0, &[0_u8; 4], 1);
        for (method, answer) in [
            (Method::GET, 0x81),
            (Method::SET, 0x81),
            (Method::GET_TABLE, 0x92),
            (Method::DELETE, 0x95),
        ] {
            assert_eq!(
                mad(method).into_response(Status::OK).header.method.0,
                answer
            );
        }
    }
}

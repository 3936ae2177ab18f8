//! The header that every datagram begins with (IBA 1.3, 13.4.3; Linux `struct ib_mad_hdr`).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Error;
use crate::number::{layout, open_enum};

/// Bytes of a datagram.
pub const MAD_LEN: usize = 256;

/// A whole datagram.
pub type Mad = [u8; MAD_LEN];

open_enum! {
    /// Management class of a datagram.
    #[derive(Unaligned)]
    pub struct MgmtClass(u8) {
        /// Subnet management, routed by LID.
        SUBN_LID = 0x01,
        /// Subnet administration.
        SUBN_ADM = 0x03,
        /// Performance counters.
        PERF = 0x04,
        /// Communication management.
        CM = 0x07,
        /// The first of the makers' classes without an OUI (Linux `mlx4_ib.h`,
        /// `MLX4_IB_VENDOR_CLASS1`).
        VENDOR_1 = 0x09,
        /// The second.
        VENDOR_2 = 0x0a,
        /// Congestion control.
        CONGESTION = 0x21,
        /// Subnet management, routed by a list of ports.
        SUBN_DIRECTED = 0x81,
    }
}

open_enum! {
    /// Method of a datagram. The top bit marks a response.
    #[derive(Unaligned)]
    pub struct Method(u8) {
        /// Asks for an attribute.
        GET = 0x01,
        /// Changes an attribute.
        SET = 0x02,
        /// A message that asks for nothing (CM).
        SEND = 0x03,
        /// Reports an event to the subnet manager.
        TRAP = 0x05,
        /// Takes a trap back.
        TRAP_REPRESS = 0x07,
        /// Asks for a table (SA).
        GET_TABLE = 0x12,
        /// Removes an attribute (SA).
        DELETE = 0x15,
        /// Answers a GET or SET.
        GET_RESP = 0x81,
        /// Answers a GET_TABLE (SA).
        GET_TABLE_RESP = 0x92,
        /// Answers a DELETE (SA).
        DELETE_RESP = 0x95,
    }
}

impl Method {
    /// Returns whether it answers another datagram.
    #[must_use]
    pub const fn is_response(self) -> bool {
        self.0 & 0x80 != 0
    }
}

open_enum! {
    /// Attribute of a datagram; numbers mean different things from class to class.
    pub struct Attribute(u16) {
        /// The class's abilities (all classes but subnet management).
        CLASS_PORT_INFO = 0x0001,
        /// A report of something that happened.
        NOTICE = 0x0002,
        /// SMP: a node's text.
        NODE_DESCRIPTION = 0x0010,
        /// SMP: what a node is.
        NODE_INFO = 0x0011,
        /// SMP: a switch's parameters. PMA: the port counters.
        SWITCH_INFO = 0x0012,
        /// SMP: a port's GUIDs.
        GUID_INFO = 0x0014,
        /// SMP: a port's parameters.
        PORT_INFO = 0x0015,
        /// SMP: a port's partition keys.
        PKEY_TABLE = 0x0016,
        /// SMP: virtual lanes by service level.
        SL_TO_VL = 0x0017,
        /// SMP: arbitration between virtual lanes.
        VL_ARBITRATION = 0x0018,
        /// SMP: a switch's ports by LID.
        LINEAR_FORWARDING = 0x0019,
        /// SMP: a switch's ports by multicast LID.
        MULTICAST_FORWARDING = 0x001b,
        /// PMA: the 64-bit port counters.
        PORT_COUNTERS_EXT = 0x001d,
        /// SMP: which subnet manager is master.
        SM_INFO = 0x0020,
        /// SA: a block of a port's partition table.
        PKEY_TABLE_RECORD = 0x0033,
        /// SA: a path between two ports.
        PATH_RECORD = 0x0035,
        /// SA: membership of a multicast group.
        MC_MEMBER_RECORD = 0x0038,
    }
}

impl Attribute {
    /// SA: a node. (The number is NodeInfo's; it is an attribute of its own.)
    pub const NODE_RECORD: Self = Self::NODE_INFO;
    /// SA: a port. (The number means something else to SMPs.)
    pub const PORT_INFO_RECORD: Self = Self::SWITCH_INFO;
    /// SA: a link. (The number is SMInfo's.)
    pub const LINK_RECORD: Self = Self::SM_INFO;
    /// PMA: the port counters.
    pub const PORT_COUNTERS: Self = Self::SWITCH_INFO;
}

open_enum! {
    /// Status of a response. The upper byte belongs to the class.
    pub struct Status(u16) {
        /// Done.
        OK = 0x0000,
        /// The class or its version is not known.
        BAD_VERSION = 0x0004,
        /// The method is not known.
        BAD_METHOD = 0x0008,
        /// The method does not go with the attribute, or the attribute is not known.
        BAD_ATTRIBUTE = 0x000c,
        /// A field has a value that it must not have.
        BAD_FIELD = 0x001c,
        /// SA: the request can't be fulfilled.
        SA_REQUEST_INVALID = 0x0200,
        /// SA: no record matches.
        SA_NO_RECORDS = 0x0300,
        /// SA: more than one record matches a GET.
        SA_TOO_MANY_RECORDS = 0x0400,
        /// SA: a GID is not known.
        SA_INVALID_GID = 0x0500,
        /// SA: a component is missing.
        SA_INSUFFICIENT_COMPONENTS = 0x0600,
        /// SA: the request is denied.
        SA_DENIED = 0x0700,
    }
}

/// The header.
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
pub struct Header {
    /// 1.
    pub base_version: u8,
    /// The class.
    pub class: MgmtClass,
    /// The class's version: 1, and 2 for SA and CM.
    pub class_version: u8,
    /// The method.
    pub method: Method,
    /// A [`Status`]; in directed-route SMPs the top bit is the direction.
    pub status: U16,
    /// Hop pointer and count in directed-route SMPs.
    pub class_specific: U16,
    /// Names the transaction; the response repeats it.
    pub transaction: U64,
    /// An [`Attribute`].
    pub attribute: U16,
    /// Reserved.
    pub reserved: U16,
    /// Says more about the attribute: a port, a block.
    pub modifier: U32,
}
layout!(Header: 24, status @ 4, transaction @ 8, attribute @ 16, modifier @ 20);

impl Header {
    /// A request.
    #[must_use]
    pub fn request(
        class: MgmtClass,
        method: Method,
        attribute: Attribute,
        modifier: u32,
        transaction: u64,
    ) -> Self {
        let version = match class {
            MgmtClass::SUBN_ADM | MgmtClass::CM => 2,
            _ => 1,
        };
        Self {
            base_version: 1,
            class,
            class_version: version,
            method,
            status: U16::ZERO,
            class_specific: U16::ZERO,
            transaction: U64::new(transaction),
            attribute: U16::new(attribute.0),
            reserved: U16::ZERO,
            modifier: U32::new(modifier),
        }
    }

    /// Takes the header of a datagram of whatever class.
    ///
    /// # Errors
    ///
    /// When there are not 256 bytes, or the base version is not known.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() != MAD_LEN {
            return Err(Error::Length(bytes.len()));
        }
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| Error::Length(bytes.len()))?;
        match header.base_version {
            1 => Ok(header),
            other => Err(Error::BaseVersion(other)),
        }
    }

    /// The attribute.
    #[must_use]
    pub fn attribute(&self) -> Attribute {
        Attribute(self.attribute.get())
    }

    /// The status, without the direction bit of a directed route.
    #[must_use]
    pub fn status(&self) -> Status {
        Status(self.status.get() & 0x7fff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn header_is_as_linux_lays_it_out() {
        // Linux ib_mad.h, struct ib_mad_hdr: a Get(NodeInfo) as ib_umad users send it.
        let header = Header::request(
            MgmtClass::SUBN_LID,
            Method::GET,
            Attribute::NODE_INFO,
            7,
            0x0102_0304_0506_0708,
        );
        assert_eq!(
            header.as_bytes(),
            [
                1, 1, 1, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0x11, 0, 0, 0, 0, 0, 7
            ]
        );
    }

    proptest! {
        #[test]
        fn a_header_is_the_first_bytes_of_a_datagram(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300), whole: bool,
        ) {
            if whole {
                bytes.resize(MAD_LEN, 0);
                bytes[0] %= 3;
            }
            let version = bytes.first().copied();
            match Header::parse(&bytes) {
                Ok(header) => {
                    prop_assert_eq!((bytes.len(), version), (MAD_LEN, Some(1)));
                    prop_assert_eq!(header.as_bytes(), &bytes[..24]);
                }
                Err(Error::Length(len)) => prop_assert_ne!(len, MAD_LEN),
                Err(error) => prop_assert_eq!(Some(error), version.map(Error::BaseVersion)),
            }
        }
    }

    #[test]
    fn foreign_lengths_and_versions_are_refused() {
        assert_eq!(Header::parse(&[1; 255]), Err(Error::Length(255)));
        assert_eq!(Header::parse(&[2; 256]), Err(Error::BaseVersion(2)));
    }
}

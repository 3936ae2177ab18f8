//! Private data of a connection request of Linux's RDMA CM: the addresses and the port that are
//! meant.
//!
//! IBA annex A11 (RDMA IP CM service); Linux `drivers/infiniband/core/cma.c`, `struct cma_hdr`:
//!
//! ```text
//!  0         1               2        4               20                   36
//!  | version | IP version<<4 | port   | source address | destination address |   IPv4: in the last four bytes of each
//! ```

use core::net::Ipv4Addr;

use crate::Error;

/// Service ids of the port space TCP (Linux `RDMA_PS_TCP` << 16); the port is added.
const TCP_SERVICES: u64 = 0x0000_0000_0106_0000;
const IPV4: u8 = 4 << 4;
const HEADER_LEN: usize = 36;

/// Returns the service ID of a port.
#[must_use]
pub(crate) fn service_id(port: u16) -> u64 {
    TCP_SERVICES | u64::from(port)
}

/// Addresses and port of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source_port: u16,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
}

impl Header {
    /// Encodes the header at the head of private data; the rest is zero.
    pub(crate) fn to_private<const N: usize>(self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes[1] = IPV4;
        bytes[2..4].copy_from_slice(&self.source_port.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.source.octets());
        bytes[32..36].copy_from_slice(&self.destination.octets());
        bytes
    }

    /// Reads it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Error::BadExchange)?;
        if bytes[0] != 0 || bytes[1] & 0xf0 != IPV4 {
            return Err(Error::BadExchange);
        }
        let address =
            |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Ok(Self {
            source_port: u16::from_be_bytes([bytes[2], bytes[3]]),
            source: address(16),
            destination: address(32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden() {
        // Linux cma.c: cma_version 0; ip_version 4 << 4; port be16; union cma_ip_addr { in6; { be32
        // pad[3]; be32 addr } }.
        let header = Header {
            source_port: 0x1c06,
            source: Ipv4Addr::new(10, 0, 1, 9),
            destination: Ipv4Addr::new(10, 0, 1, 1),
        };
        let bytes: [u8; 92] = header.to_private();
        assert_eq!(bytes[..4], [0, 0x40, 0x1c, 6]);
        assert_eq!(
            bytes[4..20],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 1, 9]
        );
        assert_eq!(bytes[32..36], [10, 0, 1, 1]);
        assert_eq!(Header::parse(&bytes), Ok(header));
        // rdma_cma.h: RDMA_PS_TCP 0x0106; cma.c, rdma_get_service_id: ((u64) ps << 16) + port.
        assert_eq!(service_id(7174), 0x0106_1c06);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..92)) {
            let _ = Header::parse(&bytes);
        }
    }
}

//! Addresses of sockets, and their bytes (`struct sockaddr_un`, `sockaddr_in`, `sockaddr_in6`).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink::{self, AF_NETLINK};
use crate::error::{Result, errno};

pub(crate) const AF_UNSPEC: u16 = 0;
pub(crate) const AF_UNIX: u16 = 1;
pub(crate) const AF_INET: u16 = 2;
pub(crate) const AF_INET6: u16 = 10;
/// Bytes of the longest `struct sockaddr_un`.
const UNIX_MAX: usize = 110;
/// Bytes of `struct sockaddr_in`, of `sockaddr_in6`, and of the latter without its scope.
const IN_LEN: usize = 16;
const IN6_LEN: usize = 28;
const IN6_LEAST: usize = 24;

/// An address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) enum Address {
    #[default]
    Unnamed,
    /// A path as the program gave it.
    Path(Vec<u8>),
    /// A name outside the file system.
    Abstract(Vec<u8>),
    /// An address and port; an IPv4 address mapped into IPv6 is an IPv4 address.
    Ip(SocketAddr),
    /// The port of a netlink socket; 0 is the kernel's.
    Netlink(u32),
}

/// Returns the family that an address's bytes begin with.
pub(crate) fn family(bytes: &[u8]) -> Result<u16> {
    let first = bytes.first_chunk().ok_or(errno::EINVAL)?;
    Ok(u16::from_le_bytes(*first))
}

impl Address {
    /// Reads the address of a local socket; `Unnamed` asks for a name to be chosen.
    pub(crate) fn parse_unix(bytes: &[u8]) -> Result<Self> {
        if family(bytes)? != AF_UNIX || bytes.len() > UNIX_MAX {
            return Err(errno::EINVAL.into());
        }
        Ok(match &bytes[2..] {
            [] => Self::Unnamed,
            [0, name @ ..] => Self::Abstract(name.to_vec()),
            path => {
                let end = path.iter().position(|&b| b == 0).unwrap_or(path.len());
                Self::Path(path[..end].to_vec())
            }
        })
    }

    /// Reads an Internet address for a socket of a family.
    pub(crate) fn parse_ip(own: u16, bytes: &[u8]) -> Result<SocketAddr> {
        let least = if own == AF_INET { IN_LEN } else { IN6_LEAST };
        if bytes.len() < least {
            return Err(errno::EINVAL.into());
        }
        if family(bytes)? != own {
            return Err(errno::EAFNOSUPPORT.into());
        }
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        let ip = if own == AF_INET {
            IpAddr::V4(Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]))
        } else {
            let octets: [u8; 16] = bytes[8..24].try_into().map_err(|_| errno::EINVAL)?;
            Ipv6Addr::from(octets).to_canonical()
        };
        Ok(SocketAddr::new(ip, port))
    }

    /// Returns the bytes of an address as a socket of a family shows it.
    pub(crate) fn encode(&self, own: u16) -> Vec<u8> {
        let mut bytes = own.to_le_bytes().to_vec();
        match self {
            Self::Path(path) => {
                bytes.extend_from_slice(path);
                bytes.push(0);
            }
            Self::Abstract(name) => {
                bytes.push(0);
                bytes.extend_from_slice(name);
            }
            Self::Ip(addr) => encode_ip(&mut bytes, own, *addr),
            Self::Netlink(port) => encode_netlink(&mut bytes, *port),
            Self::Unnamed if own == AF_NETLINK => encode_netlink(&mut bytes, 0),
            Self::Unnamed if own == AF_UNIX => {}
            Self::Unnamed => encode_ip(&mut bytes, own, unspecified(own)),
        }
        bytes
    }
}

fn encode_netlink(bytes: &mut Vec<u8>, port: u32) {
    bytes.resize(4, 0);
    bytes.extend_from_slice(&port.to_le_bytes());
    bytes.resize(netlink::ADDRESS_LEN, 0);
}

fn encode_ip(bytes: &mut Vec<u8>, own: u16, addr: SocketAddr) {
    bytes.extend_from_slice(&addr.port().to_be_bytes());
    match (own, addr.ip()) {
        (AF_INET, IpAddr::V4(ip)) => {
            bytes.extend_from_slice(&ip.octets());
            bytes.resize(IN_LEN, 0);
        }
        (_, ip) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&ip.octets());
            bytes.resize(IN6_LEN, 0);
        }
    }
}

/// Returns the address that stands for all of a family's, with port 0.
pub(crate) fn unspecified(own: u16) -> SocketAddr {
    let ip = if own == AF_INET {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    SocketAddr::new(ip, 0)
}

/// Returns whether an address is this node's own: a loopback address, or the one that stands for
/// all.
pub(super) fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// Returns where a connection to an address leads: that for all leads to the loopback address.
pub(super) fn target(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    }
}

/// Returns the address that packets to `to` come from.
pub(super) fn source(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_read_and_written_as_linux_does() {
        let parse = |bytes: &[u8]| Address::parse_unix(bytes);
        assert_eq!(parse(b"\x01\0"), Ok(Address::Unnamed));
        assert_eq!(
            parse(b"\x01\0/tmp/s\0junk"),
            Ok(Address::Path(b"/tmp/s".to_vec()))
        );
        assert_eq!(
            parse(b"\x01\0\0a\0b"),
            Ok(Address::Abstract(b"a\0b".to_vec()))
        );
        for bad in [&b""[..], b"\x01", b"\x02\0/x", &[1; 111]] {
            assert_eq!(parse(bad), Err(errno::EINVAL.into()), "{bad:?}");
        }
        // getsockname counts the zero behind a path, and has none behind an abstract name.
        assert_eq!(Address::Path(b"s".to_vec()).encode(AF_UNIX), b"\x01\0s\0");
        assert_eq!(
            Address::Abstract(b"s".to_vec()).encode(AF_UNIX),
            b"\x01\0\0s"
        );
        assert_eq!(Address::Unnamed.encode(AF_UNIX), b"\x01\0");
    }

    #[test]
    fn mapped_addresses_are_those_of_ipv4() {
        let v4 = b"\x02\0\x1f\x90\x7f\0\0\x01\0\0\0\0\0\0\0\0";
        let addr: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(Address::parse_ip(AF_INET, v4), Ok(addr));
        assert_eq!(Address::Ip(addr).encode(AF_INET), v4);
        let mapped = Address::Ip(addr).encode(AF_INET6);
        assert_eq!(
            (mapped.len(), &mapped[18..24]),
            (28, &[0xff, 0xff, 127, 0, 0, 1][..])
        );
        assert_eq!(Address::parse_ip(AF_INET6, &mapped), Ok(addr));
        assert_eq!(
            Address::parse_ip(AF_INET6, &mapped[..20]),
            Err(errno::EINVAL.into())
        );
        assert_eq!(
            Address::parse_ip(AF_INET, &[10; 16]),
            Err(errno::EAFNOSUPPORT.into())
        );
        assert_eq!(
            Address::Unnamed.encode(AF_INET),
            [&[2][..], &[0; 15]].concat()
        );
    }
}

//! Options of IP and UDP. There are no packets here: options that say how packets look are kept and
//! told, and those that ask for what packets would bring are refused unless they are turned off.

use alloc::vec::Vec;

use super::option::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP};
use crate::error::{Result, errno};
use crate::socket::Socket;

/// An option that is kept: its level and number, its first value, the least and the greatest (Linux
/// `include/uapi/linux/in.h`, `in6.h`, `net/ipv4/ip_sockglue.c`, `net/ipv6/ipv6_sockglue.c`).
type Kept = (u32, u32, i32, i32, i32);

/// `IP_TOS`, `IP_TTL`, `IP_MTU_DISCOVER`, `IP_FREEBIND`, `IP_MINTTL`, `IP_BIND_ADDRESS_NO_PORT`,
/// `IP_MULTICAST_TTL`, `IP_MULTICAST_LOOP`; `IPV6_UNICAST_HOPS`, `IPV6_MULTICAST_HOPS`,
/// `IPV6_MULTICAST_LOOP`, `IPV6_MTU_DISCOVER`, `IPV6_DONTFRAG`, `IPV6_TCLASS`; the checksums of UDP
/// over IPv6. Also `IP_RECVERR` and `IPV6_RECVERR`, without which glibc's resolver gives up
/// (`resolv/res_enable_icmp.c`): the queue of errors stays empty, as calls tell of all errors here.
const KEPT: [Kept; 18] = [
    (IPPROTO_IP, 11, 0, 0, 1),
    (IPPROTO_IPV6, 25, 0, 0, 1),
    (IPPROTO_IP, 1, 0, 0, 255),
    (IPPROTO_IP, 2, 64, 1, 255),
    (IPPROTO_IP, 10, 1, 0, 5),
    (IPPROTO_IP, 15, 0, 0, 1),
    (IPPROTO_IP, 21, 0, 0, 255),
    (IPPROTO_IP, 24, 0, 0, 1),
    (IPPROTO_IP, 33, 1, 0, 255),
    (IPPROTO_IP, 34, 1, 0, 1),
    (IPPROTO_IPV6, 16, 64, 0, 255),
    (IPPROTO_IPV6, 18, 1, 0, 255),
    (IPPROTO_IPV6, 19, 1, 0, 1),
    (IPPROTO_IPV6, 23, 1, 0, 5),
    (IPPROTO_IPV6, 62, 0, 0, 1),
    (IPPROTO_IPV6, 67, 0, 0, 255),
    (IPPROTO_UDP, 101, 0, 0, 1),
    (IPPROTO_UDP, 102, 0, 0, 1),
];

/// Options that ask for what never comes: `IP_RECVOPTS`, `IP_PKTINFO`, `IP_RECVTTL`, `IP_RECVTOS`,
/// `IP_RECVORIGDSTADDR`; `IPV6_RECVPKTINFO`, `IPV6_RECVHOPLIMIT`, `IPV6_RECVTCLASS`; `UDP_CORK`,
/// `UDP_SEGMENT`, `UDP_GRO`.
const ABSENT: [(u32, u32); 11] = [
    (IPPROTO_IP, 6),
    (IPPROTO_IP, 8),
    (IPPROTO_IP, 12),
    (IPPROTO_IP, 13),
    (IPPROTO_IP, 20),
    (IPPROTO_IPV6, 49),
    (IPPROTO_IPV6, 51),
    (IPPROTO_IPV6, 66),
    (IPPROTO_UDP, 1),
    (IPPROTO_UDP, 103),
    (IPPROTO_UDP, 104),
];

fn known(socket: &Socket, level: u32, name: u32) -> Option<&'static Kept> {
    let fits = level != IPPROTO_UDP || !socket.is_stream();
    KEPT.iter()
        .find(|kept| fits && (kept.0, kept.1) == (level, name))
}

fn is_absent(socket: &Socket, level: u32, name: u32) -> bool {
    (level != IPPROTO_UDP || !socket.is_stream()) && ABSENT.contains(&(level, name))
}

/// Sets an option.
///
/// # Errors
///
/// EINVAL for a value that it can't have, ENOPROTOOPT for an option that is not known or that this
/// node can't keep.
pub(super) fn set(socket: &Socket, level: u32, name: u32, bytes: &[u8]) -> Result<()> {
    // A number, or a byte.
    let value = match (bytes.first_chunk(), bytes.first()) {
        (Some(word), _) => i32::from_le_bytes(*word),
        (None, Some(&byte)) => byte.into(),
        (None, None) => return Err(errno::EINVAL.into()),
    };
    if is_absent(socket, level, name) && value == 0 {
        return Ok(());
    }
    let &(_, _, first, least, most) = known(socket, level, name).ok_or(errno::ENOPROTOOPT)?;
    let value = match value {
        -1 if most == 255 => first,
        value if most == 1 => i32::from(value != 0),
        value => value,
    };
    if !(least..=most).contains(&value) {
        return Err(errno::EINVAL.into());
    }
    let mut options = socket.options.lock();
    options.packets.insert((level, name), value);
    Ok(())
}

/// Returns an option's value.
///
/// # Errors
///
/// ENOPROTOOPT for an option that is not known.
pub(super) fn get(socket: &Socket, level: u32, name: u32) -> Result<Vec<u8>> {
    let value = match known(socket, level, name) {
        Some(&(_, _, first, ..)) => {
            let options = socket.options.lock();
            options
                .packets
                .get(&(level, name))
                .copied()
                .unwrap_or(first)
        }
        None if is_absent(socket, level, name) => 0,
        None => return Err(errno::ENOPROTOOPT.into()),
    };
    Ok(value.to_le_bytes().to_vec())
}

//! Options of IP and UDP, and control messages that come with datagrams.
//!
//! There are no packets here. Options that say how packets look are kept and told; the fields that
//! programs choose travel with each datagram, and whoever asks for them receives them.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::control::{Chosen, Control, Given};
use super::interface::LOOPBACK;
use super::option::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, IPPROTO_UDPLITE, SOL_SOCKET};
use crate::error::{Result, errno};
use crate::socket::{
    AF_INET, AF_INET6, Address, Fields, Options, Packet, Proto, Socket, Timestamps,
};

/// Options and control messages (Linux `include/uapi/linux/in.h`, `in6.h`, `udp.h`).
pub(super) const IP_TOS: u32 = 1;
pub(super) const IP_TTL: u32 = 2;
const IP_PKTINFO: u32 = 8;
const IP_RECVTTL: u32 = 12;
const IP_RECVTOS: u32 = 13;
const IP_ORIGDSTADDR: u32 = 20;
const IPV6_UNICAST_HOPS: u32 = 16;
const IPV6_RECVPKTINFO: u32 = 49;
const IPV6_PKTINFO: u32 = 50;
const IPV6_RECVHOPLIMIT: u32 = 51;
pub(super) const IPV6_HOPLIMIT: u32 = 52;
const IPV6_RECVTCLASS: u32 = 66;
pub(super) const IPV6_TCLASS: u32 = 67;
const IPV6_ORIGDSTADDR: u32 = 74;
pub(super) const UDP_SEGMENT: u32 = 103;
/// Control messages of the socket's level: `struct timeval`, `struct timespec`.
const SCM_TIMESTAMP: u32 = 29;
const SCM_TIMESTAMPNS: u32 = 35;

/// An option that is kept: its level and number, its first value, the least and the greatest (Linux
/// `include/uapi/linux/in.h`, `in6.h`, `net/ipv4/ip_sockglue.c`, `net/ipv6/ipv6_sockglue.c`).
type Kept = (u32, u32, i32, i32, i32);

/// Options that are kept.
///
/// * Of IP: `IP_TOS`, `IP_TTL`, `IP_MTU_DISCOVER`, `IP_FREEBIND`, `IP_MINTTL`,
///   `IP_BIND_ADDRESS_NO_PORT`, `IP_MULTICAST_TTL`, `IP_MULTICAST_LOOP`; what a receiver asks for:
///   `IP_RECVOPTS` (no packet has any), `IP_PKTINFO`, `IP_RECVTTL`, `IP_RECVTOS`,
///   `IP_RECVORIGDSTADDR`.
/// * Of IPv6: `IPV6_UNICAST_HOPS`, `IPV6_MULTICAST_HOPS`, `IPV6_MULTICAST_LOOP`,
///   `IPV6_MTU_DISCOVER`, `IPV6_DONTFRAG`, `IPV6_TCLASS`; of a receiver `IPV6_RECVPKTINFO`,
///   `IPV6_RECVHOPLIMIT`, `IPV6_RECVHOPOPTS`, `IPV6_RECVRTHDR` and `IPV6_RECVDSTOPTS` (no packet
///   has any), `IPV6_RECVTCLASS`, `IPV6_RECVORIGDSTADDR`.
/// * Of UDP: its checksums over IPv6, `UDP_SEGMENT`, and `UDP_GRO`, as datagrams need not be put
///   together. Of UDP-Lite: `UDPLITE_SEND_CSCOV`, `UDPLITE_RECV_CSCOV`.
/// * `IP_RECVERR` and `IPV6_RECVERR`, without which glibc's resolver gives up
///   (`resolv/res_enable_icmp.c`): the queue of errors stays empty, as calls tell of all errors.
const KEPT: [Kept; 34] = [
    (IPPROTO_IP, 11, 0, 0, 1),
    (IPPROTO_IPV6, 25, 0, 0, 1),
    (IPPROTO_IP, IP_TOS, 0, 0, 255),
    (IPPROTO_IP, IP_TTL, 64, 1, 255),
    (IPPROTO_IP, 10, 1, 0, 5),
    (IPPROTO_IP, 15, 0, 0, 1),
    (IPPROTO_IP, 21, 0, 0, 255),
    (IPPROTO_IP, 24, 0, 0, 1),
    (IPPROTO_IP, 33, 1, 0, 255),
    (IPPROTO_IP, 34, 1, 0, 1),
    (IPPROTO_IPV6, IPV6_UNICAST_HOPS, 64, 0, 255),
    (IPPROTO_IPV6, 18, 1, 0, 255),
    (IPPROTO_IPV6, 19, 1, 0, 1),
    (IPPROTO_IPV6, 23, 1, 0, 5),
    (IPPROTO_IPV6, 62, 0, 0, 1),
    (IPPROTO_IPV6, IPV6_TCLASS, 0, 0, 255),
    (IPPROTO_IP, 6, 0, 0, 1),
    (IPPROTO_IP, IP_PKTINFO, 0, 0, 1),
    (IPPROTO_IP, IP_RECVTTL, 0, 0, 1),
    (IPPROTO_IP, IP_RECVTOS, 0, 0, 1),
    (IPPROTO_IP, IP_ORIGDSTADDR, 0, 0, 1),
    (IPPROTO_IPV6, IPV6_RECVPKTINFO, 0, 0, 1),
    (IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 0, 0, 1),
    (IPPROTO_IPV6, 53, 0, 0, 1),
    (IPPROTO_IPV6, 56, 0, 0, 1),
    (IPPROTO_IPV6, 58, 0, 0, 1),
    (IPPROTO_IPV6, IPV6_RECVTCLASS, 0, 0, 1),
    (IPPROTO_IPV6, IPV6_ORIGDSTADDR, 0, 0, 1),
    (IPPROTO_UDP, UDP_SEGMENT, 0, 0, 65_535),
    (IPPROTO_UDP, 104, 0, 0, 1),
    (IPPROTO_UDP, 101, 0, 0, 1),
    (IPPROTO_UDP, 102, 0, 0, 1),
    (IPPROTO_UDPLITE, 10, 0, 0, 65_535),
    (IPPROTO_UDPLITE, 11, 0, 0, 65_535),
];

/// The option that asks for what is not there: `UDP_CORK`.
const ABSENT: (u32, u32) = (IPPROTO_UDP, 1);

fn known(socket: &Socket, level: u32, name: u32) -> Option<&'static Kept> {
    let fits = match level {
        IPPROTO_UDP => !socket.is_stream(),
        IPPROTO_UDPLITE => socket.proto == Proto::UdpLite,
        _ => true,
    };
    KEPT.iter()
        .find(|kept| fits && (kept.0, kept.1) == (level, name))
}

fn is_absent(socket: &Socket, level: u32, name: u32) -> bool {
    (level != IPPROTO_UDP || !socket.is_stream()) && ABSENT == (level, name)
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

/// Returns an option's value among those that a socket has.
fn value(options: &Options, level: u32, name: u32) -> i32 {
    let set = options.packets.get(&(level, name)).copied();
    set.unwrap_or_else(|| {
        let kept = KEPT.iter().find(|kept| (kept.0, kept.1) == (level, name));
        kept.map_or(0, |kept| kept.2)
    })
}

fn byte(value: i32) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

/// Returns what the header of a message would say that is sent at `sent`.
pub(super) fn header(socket: &Socket, control: &Control, sent: Duration) -> Packet {
    if socket.is_local() {
        return Packet {
            sent,
            ..Packet::default()
        };
    }
    let options = socket.options.lock();
    let fields = |chosen: Chosen, level, hops, class| Fields {
        hops: chosen
            .hops
            .unwrap_or_else(|| byte(value(&options, level, hops))),
        class: chosen
            .class
            .unwrap_or_else(|| byte(value(&options, level, class))),
    };
    Packet {
        sent,
        v4: fields(control.v4, IPPROTO_IP, IP_TTL, IP_TOS),
        v6: fields(control.v6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, IPV6_TCLASS),
        to: None,
    }
}

/// Returns the bytes of each datagram that a long one is cut into.
pub(super) fn segment(socket: &Socket, control: &Control) -> Option<usize> {
    if socket.is_local() {
        return None;
    }
    let own = || {
        let options = socket.options.lock();
        u16::try_from(value(&options, IPPROTO_UDP, UDP_SEGMENT)).unwrap_or(0)
    };
    let segment = control.segment.unwrap_or_else(own);
    (segment > 0).then_some(segment.into())
}

/// Adds the control messages that a receiver asked for, in Linux's order (`net/ipv4/udp.c`,
/// `udp_recvmsg`; `net/ipv6/udp.c`, `udpv6_recvmsg`).
pub(super) fn tell(socket: &Socket, packet: &Packet, given: &mut Given) {
    let options = socket.options.lock();
    let (seconds, nanos) = (packet.sent.as_secs(), packet.sent.subsec_nanos());
    let time = |part: u32| [seconds.to_le_bytes(), u64::from(part).to_le_bytes()].concat();
    match options.timestamps {
        Timestamps::Off => {}
        Timestamps::Micros => given.put(SOL_SOCKET, SCM_TIMESTAMP, &time(nanos / 1000)),
        Timestamps::Nanos => given.put(SOL_SOCKET, SCM_TIMESTAMPNS, &time(nanos)),
    }
    let Some(to) = packet.to else { return };
    if options.packets.is_empty() {
        return;
    }
    let wants = |level, name| value(&options, level, name) != 0;
    if socket.family == AF_INET6 && wants(IPPROTO_IPV6, IPV6_RECVPKTINFO) {
        let to = match to.ip() {
            IpAddr::V4(to) => to.to_ipv6_mapped(),
            IpAddr::V6(to) => to,
        };
        let info = [&to.octets()[..], &LOOPBACK.to_le_bytes()].concat();
        given.put(IPPROTO_IPV6, IPV6_PKTINFO, &info);
    }
    match to.ip() {
        IpAddr::V4(_) => tell_v4(&wants, packet.v4, to, given),
        IpAddr::V6(_) => tell_v6(&wants, packet.v6, to, given),
    }
}

fn tell_v4(wants: &dyn Fn(u32, u32) -> bool, fields: Fields, to: SocketAddr, given: &mut Given) {
    let IpAddr::V4(ip) = to.ip() else { return };
    if wants(IPPROTO_IP, IP_PKTINFO) {
        let info = [&LOOPBACK.to_le_bytes()[..], &ip.octets(), &ip.octets()].concat();
        given.put(IPPROTO_IP, IP_PKTINFO, &info);
    }
    if wants(IPPROTO_IP, IP_RECVTTL) {
        given.put(IPPROTO_IP, IP_TTL, &u32::from(fields.hops).to_le_bytes());
    }
    if wants(IPPROTO_IP, IP_RECVTOS) {
        given.put(IPPROTO_IP, IP_TOS, &[fields.class]);
    }
    if wants(IPPROTO_IP, IP_ORIGDSTADDR) {
        let to = Address::Ip(to).encode(AF_INET);
        given.put(IPPROTO_IP, IP_ORIGDSTADDR, &to);
    }
}

fn tell_v6(wants: &dyn Fn(u32, u32) -> bool, fields: Fields, to: SocketAddr, given: &mut Given) {
    let number = |field: u8| u32::from(field).to_le_bytes();
    if wants(IPPROTO_IPV6, IPV6_RECVHOPLIMIT) {
        given.put(IPPROTO_IPV6, IPV6_HOPLIMIT, &number(fields.hops));
    }
    if wants(IPPROTO_IPV6, IPV6_RECVTCLASS) {
        given.put(IPPROTO_IPV6, IPV6_TCLASS, &number(fields.class));
    }
    if wants(IPPROTO_IPV6, IPV6_ORIGDSTADDR) {
        let to = Address::Ip(to).encode(AF_INET6);
        given.put(IPPROTO_IPV6, IPV6_ORIGDSTADDR, &to);
    }
}

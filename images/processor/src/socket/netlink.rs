//! Netlink sockets of the protocol `NETLINK_ROUTE`: the kernel's answers about network interfaces,
//! of which there is the loopback interface alone.
//!
//! C libraries list interfaces and addresses so (`getifaddrs`, `if_nameindex`). A request for a
//! list is answered by a datagram with its messages and one with the end of the list; of routes,
//! rules and neighbours there are none. Linux: `net/netlink/af_netlink.c`, `net/core/rtnetlink.c`,
//! `include/uapi/linux/netlink.h`, `rtnetlink.h`, `if_link.h`, `if_addr.h`.
//!
//! ```text
//!   0 length, header included   4 type   6 flags   8 sequence number   12 port of the asker   16 …
//! ```

use alloc::vec::Vec;

use super::{Address, Credentials, Message, Packet, Right, Socket};
use crate::error::{Result, errno};

pub(crate) const AF_NETLINK: u16 = 16;
/// Bytes of `struct sockaddr_nl`.
pub(super) const ADDRESS_LEN: usize = 12;
/// Bytes of `struct nlmsghdr`; lengths are rounded up to `ALIGN`.
const HEADER: usize = 16;
const ALIGN: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Types below are the protocol's own.
const FIRST_TYPE: u16 = 16;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
/// `NLM_F_ROOT` and `NLM_F_MATCH`: either asks for a list.
const NLM_F_DUMP: u16 = 0x300;

/// The loopback interface: its number, name, `ARPHRD_LOOPBACK`, MTU, queue, and flags: `IFF_UP`,
/// `IFF_LOOPBACK`, `IFF_RUNNING`, `IFF_LOWER_UP`.
const INDEX: u32 = 1;
const NAME: &[u8] = b"lo\0";
const KIND: u16 = 772;
const MTU: u32 = 65_536;
const QUEUE: u32 = 1000;
const FLAGS: u32 = 0x1_0049;
/// `IFA_F_PERMANENT` and `RT_SCOPE_HOST`.
const PERMANENT: u8 = 0x80;
const HOST: u8 = 254;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A request, its header taken apart.
struct Request<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    whole: &'a [u8],
}

impl<'a> Request<'a> {
    /// Takes the first request of a datagram; `None` at its end, or before one that is cut.
    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let header = rest.first_chunk::<HEADER>()?;
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let len = usize::try_from(word(0)).ok()?;
        if len < HEADER {
            return None;
        }
        let request = Self {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            whole: rest.get(..len)?,
        };
        *rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(request)
    }

    /// Returns a byte behind the header; 0 for what is not there.
    fn byte(&self, at: usize) -> u8 {
        self.whole.get(HEADER + at).copied().unwrap_or(0)
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|offset| self.byte(at + offset)))
    }
}

/// A datagram under construction, for the socket of a port.
struct Reply {
    bytes: Vec<u8>,
    sequence: u32,
    port: u32,
}

impl Reply {
    /// Appends a message.
    fn message(&mut self, kind: u16, flags: u16, body: &[u8]) {
        let len = u32::try_from(HEADER + body.len()).expect("a short body");
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_le_bytes());
        self.bytes.extend_from_slice(&self.port.to_le_bytes());
        self.bytes.extend_from_slice(body);
        let len = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(len, 0);
    }
}

/// Appends an attribute: length, type, value, padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).expect("a short value");
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(&kind.to_le_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(ALIGN), 0);
}

/// Returns `struct ifinfomsg` of the interface, and its attributes: name, queue, state and mode of
/// the link, MTU, discipline, addresses of the link.
fn link() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&KIND.to_le_bytes());
    for word in [INDEX, FLAGS, 0] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    attribute(&mut body, 3, NAME);
    attribute(&mut body, 13, &QUEUE.to_le_bytes());
    attribute(&mut body, 16, &[0]);
    attribute(&mut body, 17, &[0]);
    attribute(&mut body, 4, &MTU.to_le_bytes());
    attribute(&mut body, 6, b"noqueue\0");
    attribute(&mut body, 1, &[0; 6]);
    attribute(&mut body, 2, &[0; 6]);
    body
}

/// Returns `struct ifaddrmsg` of an address, and its attributes.
fn address(family: u8) -> Vec<u8> {
    let flags = u32::from(PERMANENT).to_le_bytes();
    let v4 = family == AF_INET;
    let mut body = Vec::from([family, if v4 { 8 } else { 128 }, PERMANENT, HOST]);
    body.extend_from_slice(&INDEX.to_le_bytes());
    if v4 {
        attribute(&mut body, 1, &[127, 0, 0, 1]);
        attribute(&mut body, 2, &[127, 0, 0, 1]);
        attribute(&mut body, 3, NAME);
    } else {
        attribute(&mut body, 1, &core::net::Ipv6Addr::LOCALHOST.octets());
    }
    attribute(&mut body, 8, &flags);
    body
}

/// Returns the datagrams that answer a request.
fn answer(request: &Request<'_>, port: u32) -> Vec<Vec<u8>> {
    let reply = || Reply {
        bytes: Vec::new(),
        sequence: request.sequence,
        port,
    };
    let error = |number: i32| {
        let mut error = reply();
        let mut body = number.to_le_bytes().to_vec();
        // Of a request that failed all comes back, of another one its header.
        let len = if number == 0 {
            HEADER
        } else {
            request.whole.len()
        };
        body.extend_from_slice(&request.whole[..len]);
        error.message(NLMSG_ERROR, 0, &body);
        Vec::from([error.bytes])
    };
    if request.flags & NLM_F_REQUEST == 0 || request.kind < FIRST_TYPE {
        return if request.flags & NLM_F_ACK == 0 {
            Vec::new()
        } else {
            error(0)
        };
    }
    // Of four types one asks, the third.
    let asks = request.kind & 3 == 2;
    if asks && request.flags & NLM_F_DUMP != 0 {
        return list(request.kind, request.byte(0), reply);
    }
    let named = request.word(4);
    match request.kind {
        RTM_GETLINK if named == INDEX => {
            let mut one = reply();
            one.message(RTM_NEWLINK, 0, &link());
            Vec::from([one.bytes])
        }
        RTM_GETLINK => error(-errno::ENODEV.0),
        _ => error(-errno::EOPNOTSUPP.0),
    }
}

/// Returns the datagrams of a list: its messages, if there are any, and its end.
fn list(kind: u16, family: u8, reply: impl Fn() -> Reply) -> Vec<Vec<u8>> {
    let mut all = reply();
    match kind {
        RTM_GETLINK => all.message(RTM_NEWLINK, NLM_F_MULTI, &link()),
        RTM_GETADDR => {
            for each in [AF_INET, AF_INET6] {
                if family == 0 || family == each {
                    all.message(RTM_NEWADDR, NLM_F_MULTI, &address(each));
                }
            }
        }
        _ => {}
    }
    let mut end = reply();
    end.message(NLMSG_DONE, NLM_F_MULTI, &[0; 4]);
    let datagrams = [all.bytes, end.bytes];
    datagrams
        .into_iter()
        .filter(|bytes| !bytes.is_empty())
        .collect()
}

impl Address {
    /// Reads the address of a netlink socket: its port; 0 is the kernel's, and asks for one where a
    /// socket is bound. Groups are not looked at, as nothing is ever told to one.
    pub(crate) fn parse_netlink(bytes: &[u8]) -> Result<u32> {
        let bytes = bytes.first_chunk::<ADDRESS_LEN>().ok_or(errno::EINVAL)?;
        if u16::from_le_bytes([bytes[0], bytes[1]]) != AF_NETLINK {
            return Err(errno::EINVAL.into());
        }
        Ok(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))
    }
}

impl Socket {
    /// Gives a netlink socket a port; 0 is any.
    ///
    /// # Errors
    ///
    /// EINVAL if it has another one.
    pub(crate) fn bind_netlink(&self, port: u32) -> Result<u32> {
        let mut state = self.state.lock();
        match state.local {
            Address::Netlink(own) if port == 0 || port == own => Ok(own),
            Address::Netlink(_) => Err(errno::EINVAL.into()),
            _ => {
                let port = if port == 0 {
                    self.net.new_netlink_port()
                } else {
                    port
                };
                state.local = Address::Netlink(port);
                Ok(port)
            }
        }
    }

    /// Asks the kernel. Answers that find no room are lost, as Linux's are.
    pub(super) fn ask_kernel(&self, message: &mut Message<Right>) -> Result<usize> {
        let port = self.bind_netlink(0)?;
        let mut rest = &message.bytes[..];
        while let Some(request) = Request::take(&mut rest) {
            for bytes in answer(&request, port) {
                let mut told = Message {
                    bytes,
                    rights: Vec::new(),
                    credentials: Credentials::default(),
                    from: Address::Netlink(0),
                    packet: Packet::default(),
                };
                let mut half = self.receive.half.lock();
                let before = half.charge();
                let _lost = half.push_message(&mut told, usize::MAX);
                self.net.count_queued(before, half.charge());
            }
        }
        self.receive.data.wake();
        Ok(message.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut made = Reply {
            bytes: Vec::new(),
            sequence: 7,
            port: 0,
        };
        made.message(kind, flags, body);
        made.bytes
    }

    /// Returns types and bodies of the messages of the datagrams that answer.
    fn told(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut rest = bytes;
        let request = Request::take(&mut rest).unwrap();
        let mut all = Vec::new();
        for datagram in answer(&request, 99) {
            let mut rest = &datagram[..];
            while let Some(reply) = Request::take(&mut rest) {
                assert_eq!(reply.sequence, 7);
                assert_eq!(reply.whole[12..16], 99_u32.to_le_bytes());
                all.push((reply.kind, reply.whole[HEADER..].to_vec()));
            }
            assert!(rest.is_empty());
        }
        all
    }

    fn kinds(bytes: &[u8]) -> Vec<u16> {
        told(bytes).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn lists_end_with_a_message_that_says_so() {
        let list = |kind, family| kinds(&request(kind, 0x301, &[family, 0, 0, 0]));
        assert_eq!(list(RTM_GETLINK, 0), [RTM_NEWLINK, NLMSG_DONE]);
        let two = [RTM_NEWADDR, RTM_NEWADDR, NLMSG_DONE];
        assert_eq!(list(RTM_GETADDR, 0), two);
        assert_eq!(list(RTM_GETADDR, AF_INET6), [RTM_NEWADDR, NLMSG_DONE]);
        assert_eq!(list(RTM_GETADDR, 77), [NLMSG_DONE]);
        assert_eq!(list(26, 0), [NLMSG_DONE], "no routes");
    }

    #[test]
    fn other_requests_are_answered_by_one_message() {
        let index = |index: u32| [&[0; 4][..], &index.to_le_bytes(), &[0; 8]].concat();
        let one = request(RTM_GETLINK, 1, &index(1));
        assert_eq!(kinds(&one), [RTM_NEWLINK]);
        let none = told(&request(RTM_GETLINK, 1, &index(2)));
        assert_eq!(none[0].0, NLMSG_ERROR);
        assert_eq!(none[0].1[..4], (-errno::ENODEV.0).to_le_bytes());
        let new = told(&request(RTM_NEWADDR, 5, &[0; 8]));
        assert_eq!(new[0].1[..4], (-errno::EOPNOTSUPP.0).to_le_bytes());
        assert!(kinds(&request(RTM_GETLINK, 0x300, &[0])).is_empty());
        assert_eq!(kinds(&request(1, NLM_F_ACK | 1, &[])), [NLMSG_ERROR]);
    }

    proptest! {
        #[test]
        fn no_datagram_panics_or_is_answered_without_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut rest = &bytes[..];
            let mut count = 0;
            while let Some(request) = Request::take(&mut rest) {
                count += 1;
                for datagram in answer(&request, 1) {
                    prop_assert!(datagram.len() <= 400);
                }
            }
            prop_assert!(count <= bytes.len() / HEADER);
        }
    }
}

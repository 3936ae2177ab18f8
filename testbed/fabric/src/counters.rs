//! Port counters and the performance management agent that shows them (IBA 1.3, 16.1).
//!
//! A port keeps every counter twice, once for each attribute: PortCounters has few bits, at which a
//! counter stops, and a Set of one attribute leaves the other's counters alone.

use mad::pma::{self, PortCounters, PortCountersExt};
use mad::sa::ClassPortInfo;
use mad::{Attribute, Header, Mad, Method, MgmtClass, Status};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Packet;

/// ClassPortInfo: port 255 stands for all ports; there are 64-bit counters.
const ALL_PORTS: u16 = 0x0100;
const EXTENDED: u16 = 0x0200;
/// All ports of a node, as a port.
const EVERY_PORT: u8 = 0xff;

/// Performance counter of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Units of four bytes sent.
    XmitData,
    /// Units of four bytes received.
    RcvData,
    /// Packets sent.
    XmitPackets,
    /// Packets received.
    RcvPackets,
    /// Packets sent to one port.
    UnicastXmit,
    /// Packets received that were for one port.
    UnicastRcv,
    /// Packets sent to a group.
    MulticastXmit,
    /// Packets received that were for a group.
    MulticastRcv,
    /// Times that the link went down.
    LinkDowned,
    /// Packets received that no route leads on from.
    RelayErrors,
    /// Packets not sent because the port is down.
    Discards,
    /// Packets not sent because their partition is not the port's.
    XmitConstraint,
    /// Packets received and dropped because their partition is not the port's.
    RcvConstraint,
    /// Nanoseconds that packets waited for the link.
    XmitWait,
}

/// Number of counters, and of those that have 64 bits.
const COUNTERS: usize = 14;
const EXTENDED_COUNTERS: usize = 8;

/// The counters of PortCounters in the order of its select bits: bit, counter, largest value.
const SMALL: [(u32, Counter, u64); 10] = [
    (2, Counter::LinkDowned, u8::MAX as u64),
    (5, Counter::RelayErrors, u16::MAX as u64),
    (6, Counter::Discards, u16::MAX as u64),
    (7, Counter::XmitConstraint, u8::MAX as u64),
    (8, Counter::RcvConstraint, u8::MAX as u64),
    (12, Counter::XmitData, u32::MAX as u64),
    (13, Counter::RcvData, u32::MAX as u64),
    (14, Counter::XmitPackets, u32::MAX as u64),
    (15, Counter::RcvPackets, u32::MAX as u64),
    // The first bit of the second field of select bits.
    (16, Counter::XmitWait, u32::MAX as u64),
];

/// A port's counters.
#[derive(Debug, Clone, Default)]
pub struct PortCounts {
    small: [u64; COUNTERS],
    extended: [u64; EXTENDED_COUNTERS],
}

impl PortCounts {
    /// Counts a packet that leaves by the port.
    pub fn sent(&mut self, packet: &Packet) {
        let kind = if packet.is_multicast() {
            Counter::MulticastXmit
        } else {
            Counter::UnicastXmit
        };
        self.add(Counter::XmitData, packet.wire_len().div_ceil(4));
        self.add(Counter::XmitPackets, 1);
        self.add(kind, 1);
    }

    /// Counts a packet that arrives at the port.
    pub fn received(&mut self, packet: &Packet) {
        let kind = if packet.is_multicast() {
            Counter::MulticastRcv
        } else {
            Counter::UnicastRcv
        };
        self.add(Counter::RcvData, packet.wire_len().div_ceil(4));
        self.add(Counter::RcvPackets, 1);
        self.add(kind, 1);
    }

    /// Counts one of something.
    pub fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts time for which a packet waited.
    pub fn waited(&mut self, time: hal::Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.add(Counter::XmitWait, nanos);
    }

    fn add(&mut self, counter: Counter, by: u64) {
        let index = counter as usize;
        self.small[index] = self.small[index].saturating_add(by);
        if let Some(place) = self.extended.get_mut(index) {
            *place = place.wrapping_add(by);
        }
    }

    /// Adds another port's counters.
    fn merge(&mut self, other: &Self) {
        for (sum, value) in self.small.iter_mut().zip(other.small) {
            *sum = sum.saturating_add(value);
        }
        for (sum, value) in self.extended.iter_mut().zip(other.extended) {
            *sum = sum.wrapping_add(value);
        }
    }

    fn small(&self, counter: Counter) -> u64 {
        let most = SMALL.iter().find(|(_, of, _)| *of == counter);
        self.small[counter as usize].min(most.map_or(u64::MAX, |(_, _, most)| *most))
    }

    fn show(&self, port: u8) -> PortCounters {
        let dword = |counter| U32::new(u32::try_from(self.small(counter)).unwrap_or(u32::MAX));
        let word = |counter| U16::new(u16::try_from(self.small(counter)).unwrap_or(u16::MAX));
        let byte = |counter| u8::try_from(self.small(counter)).unwrap_or(u8::MAX);
        PortCounters {
            port,
            link_downed: byte(Counter::LinkDowned),
            rcv_relay_errors: word(Counter::RelayErrors),
            xmit_discards: word(Counter::Discards),
            xmit_constraint_errors: byte(Counter::XmitConstraint),
            rcv_constraint_errors: byte(Counter::RcvConstraint),
            xmit_data: dword(Counter::XmitData),
            rcv_data: dword(Counter::RcvData),
            xmit_packets: dword(Counter::XmitPackets),
            rcv_packets: dword(Counter::RcvPackets),
            xmit_wait: dword(Counter::XmitWait),
            ..PortCounters::default()
        }
    }

    fn show_extended(&self, port: u8) -> PortCountersExt {
        let [xmit_data, rcv_data, xmit_packets, rcv_packets, by_kind @ ..] =
            self.extended.map(U64::new);
        PortCountersExt {
            port,
            xmit_data,
            rcv_data,
            xmit_packets,
            rcv_packets,
            by_kind,
            ..PortCountersExt::default()
        }
    }

    /// Sets the counters that are selected to what a Set says, which is 0 for all who clear them.
    fn set(&mut self, wanted: &PortCounters) {
        let select = u32::from(wanted.select.get()) | u32::from(wanted.select2) << 16;
        let values = [
            u64::from(wanted.link_downed),
            wanted.rcv_relay_errors.get().into(),
            wanted.xmit_discards.get().into(),
            wanted.xmit_constraint_errors.into(),
            wanted.rcv_constraint_errors.into(),
            wanted.xmit_data.get().into(),
            wanted.rcv_data.get().into(),
            wanted.xmit_packets.get().into(),
            wanted.rcv_packets.get().into(),
            wanted.xmit_wait.get().into(),
        ];
        for ((bit, counter, _), value) in SMALL.into_iter().zip(values) {
            if select >> bit & 1 == 1 {
                self.small[counter as usize] = value;
            }
        }
    }

    fn set_extended(&mut self, wanted: &PortCountersExt) {
        let first = [
            wanted.xmit_data,
            wanted.rcv_data,
            wanted.xmit_packets,
            wanted.rcv_packets,
        ];
        let values = first.into_iter().chain(wanted.by_kind);
        for (bit, (place, value)) in self.extended.iter_mut().zip(values).enumerate() {
            if wanted.select.get() >> bit & 1 == 1 {
                *place = value.get();
            }
        }
    }
}

/// The counters of a node's ports, as its agent reaches them.
pub trait CountedPorts {
    /// Returns the numbers of the ports that have counters.
    fn numbers(&self) -> std::ops::RangeInclusive<u8>;

    /// Returns a port's counters.
    fn counts(&mut self, port: u8) -> Option<&mut PortCounts>;
}

/// Answers a performance management datagram from the counters of a node's ports. `None` for what
/// is no request.
pub fn answer(ports: &mut dyn CountedPorts, mad: &Mad) -> Option<Mad> {
    let header = Header::parse(mad).ok()?;
    if header.class != MgmtClass::PERF || header.method.is_response() {
        return None;
    }
    let mut out = *mad;
    let status = respond(ports, header, &mut out[pma::DATA..])
        .err()
        .unwrap_or(Status::OK);
    let mut response = header;
    response.method = Method::GET_RESP;
    response.status = U16::new(status.0);
    out[..size_of::<Header>()].copy_from_slice(response.as_bytes());
    Some(out)
}

fn respond(ports: &mut dyn CountedPorts, header: Header, data: &mut [u8]) -> Result<(), Status> {
    let set = match header.method {
        Method::GET => false,
        Method::SET => true,
        _ => return Err(Status::BAD_METHOD),
    };
    match header.attribute() {
        Attribute::CLASS_PORT_INFO if !set => put(
            data,
            &ClassPortInfo {
                base_version: 1,
                class_version: 1,
                capabilities: U16::new(ALL_PORTS | EXTENDED),
                capabilities2_resp_time: U32::new(16),
                targets: [0; 64],
            },
        ),
        Attribute::PORT_COUNTERS => {
            let wanted: PortCounters = get(data)?;
            if set {
                for_each(ports, wanted.port, |counts| counts.set(&wanted))?;
            }
            put(data, &sum(ports, wanted.port)?.show(wanted.port))
        }
        Attribute::PORT_COUNTERS_EXT => {
            let wanted: PortCountersExt = get(data)?;
            if set {
                for_each(ports, wanted.port, |counts| counts.set_extended(&wanted))?;
            }
            put(data, &sum(ports, wanted.port)?.show_extended(wanted.port))
        }
        _ => return Err(Status::BAD_ATTRIBUTE),
    }
    Ok(())
}

fn for_each(
    ports: &mut dyn CountedPorts,
    port: u8,
    mut action: impl FnMut(&mut PortCounts),
) -> Result<(), Status> {
    if port == EVERY_PORT {
        for number in ports.numbers() {
            ports.counts(number).into_iter().for_each(&mut action);
        }
        return Ok(());
    }
    ports.counts(port).map(action).ok_or(Status::BAD_FIELD)
}

fn sum(ports: &mut dyn CountedPorts, port: u8) -> Result<PortCounts, Status> {
    let mut sum = PortCounts::default();
    for_each(ports, port, |counts| sum.merge(counts))?;
    Ok(sum)
}

fn get<T: FromBytes + KnownLayout + Immutable>(data: &[u8]) -> Result<T, Status> {
    T::read_from_prefix(data)
        .map(|(value, _)| value)
        .map_err(|_| Status::BAD_FIELD)
}

fn put(data: &mut [u8], value: &(impl IntoBytes + Immutable)) {
    let bytes = value.as_bytes();
    data[..bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ports([PortCounts; 2]);

    impl CountedPorts for Ports {
        fn numbers(&self) -> std::ops::RangeInclusive<u8> {
            1..=2
        }

        fn counts(&mut self, port: u8) -> Option<&mut PortCounts> {
            self.0.get_mut(usize::from(port).checked_sub(1)?)
        }
    }

    fn ask<T>(ports: &mut Ports, method: Method, attribute: Attribute, value: &T) -> (Status, T)
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout,
    {
        let mut mad = [0; 256];
        let header = Header {
            class: MgmtClass::PERF,
            method,
            attribute: U16::new(attribute.0),
            ..Header::parse(&mad_of(MgmtClass::PERF)).unwrap()
        };
        mad[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        put(&mut mad[pma::DATA..], value);
        let answer = answer(ports, &mad).expect("an answer");
        let status = Header::parse(&answer).unwrap().status();
        (status, get(&answer[pma::DATA..]).unwrap())
    }

    fn mad_of(class: MgmtClass) -> Mad {
        let mut mad = [0; 256];
        mad[..4].copy_from_slice(&[1, class.0, 1, Method::GET.0]);
        mad
    }

    #[test]
    fn counters_stop_at_their_largest_value_and_are_cleared_one_by_one() {
        let mut ports = Ports(Default::default());
        for _ in 0..300 {
            ports.0[1].count(Counter::LinkDowned);
            ports.0[1].count(Counter::XmitPackets);
        }
        let mut of = PortCounters {
            port: 2,
            ..PortCounters::default()
        };
        let (status, got) = ask(&mut ports, Method::GET, Attribute::PORT_COUNTERS, &of);
        assert_eq!(status, Status::OK);
        assert_eq!((got.link_downed, got.xmit_packets.get()), (255, 300));
        // libibmad, performance_reset_via: the counters selected, and zeros.
        of.select = U16::new(1 << 2);
        let (_, got) = ask(&mut ports, Method::SET, Attribute::PORT_COUNTERS, &of);
        assert_eq!((got.link_downed, got.xmit_packets.get()), (0, 300));
        let of = PortCountersExt {
            port: EVERY_PORT,
            ..PortCountersExt::default()
        };
        let (_, got) = ask(&mut ports, Method::GET, Attribute::PORT_COUNTERS_EXT, &of);
        assert_eq!(got.xmit_packets.get(), 300);
    }

    #[test]
    fn a_port_or_counter_that_is_not_there_is_refused() {
        let mut ports = Ports(Default::default());
        let of = PortCounters {
            port: 3,
            ..PortCounters::default()
        };
        let (status, _) = ask(&mut ports, Method::GET, Attribute::PORT_COUNTERS, &of);
        assert_eq!(status, Status::BAD_FIELD);
        let (status, _) = ask(&mut ports, Method::GET, Attribute::SM_INFO, &of);
        assert_eq!(status, Status::BAD_ATTRIBUTE);
        assert_eq!(answer(&mut ports, &mad_of(MgmtClass::SUBN_LID)), None);
    }
}

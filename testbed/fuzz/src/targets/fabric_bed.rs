//! A fabric whose ports are cards that answer subnet management with the input's bytes, for the
//! targets on it.

use fabric::{Fabric, FabricConfig, Operation, Packet, PortIndex, Service};
use hal::{Duration, Instant};
use mad::smp::{NodeInfo, NodeType, PERMISSIVE_LID, PortInfo, Smp, data_of};
use mad::{Attribute, Mad, Method, Status};
use verbs::{Lid, PKey, Psn, QKey, Qpn};

/// Packets that one thing which happens may bring forth: far more than any honest exchange.
const MOST: usize = 20_000;

pub(super) struct Bed {
    pub(super) fabric: Fabric,
    pub(super) now: Instant,
    ports: usize,
    /// Datagrams that came to the ports, other than subnet management.
    pub(super) came: Vec<(PortIndex, Packet)>,
}

/// A datagram as a card sends it.
pub(super) fn datagram(to: Lid, qpn: u32, payload: &[u8]) -> Packet {
    Packet {
        slid: Lid(PERMISSIVE_LID),
        dlid: to,
        sl: 0,
        vl15: qpn == 0,
        grh: None,
        pkey: PKey::DEFAULT,
        dqpn: Qpn(qpn),
        psn: Psn(0),
        solicited: false,
        ack_request: false,
        service: Service::Ud,
        operation: Operation::Datagram {
            qkey: QKey(if qpn == 0 { 0 } else { 0x8001_0000 }),
            source: Qpn(qpn),
            imm: None,
        },
        payload: payload.to_vec(),
    }
}

/// Returns the answer of the agent of the card at `port`.
fn answer(port: PortIndex, smp: &Smp) -> Mad {
    let mut smp = *smp;
    let guid = 0x0002_c903_0000_0001 + port.0 as u64;
    if smp.header.attribute() == Attribute::NODE_INFO {
        smp.data = data_of(&NodeInfo {
            node_type: NodeType::CHANNEL_ADAPTER,
            ports: 1,
            node_guid: guid.into(),
            port_guid: guid.into(),
            local_port: 1,
            ..NodeInfo::default()
        });
    } else if smp.header.attribute() == Attribute::PORT_INFO && smp.header.method == Method::GET {
        let mut info = PortInfo::default();
        info.mtu_cap.set_low(5);
        smp.data = data_of(&info);
    }
    smp.into_response(Status::OK).to_mad()
}

impl Bed {
    pub(super) fn new(config: FabricConfig, ports: usize) -> Self {
        let mut bed = Self {
            fabric: Fabric::new(config),
            now: Instant::from_nanos(1),
            ports,
            came: Vec::new(),
        };
        for _ in 0..ports {
            let port = bed.fabric.add_port();
            bed.fabric.set_link(bed.now, port, true);
        }
        bed.settle();
        bed
    }

    pub(super) fn port(&self, number: u8) -> PortIndex {
        PortIndex(usize::from(number) % self.ports)
    }

    pub(super) fn wait(&mut self, span: Duration) {
        self.now = self.now + span;
        self.settle();
    }

    /// Lets everything happen that is due, the cards' answers included.
    pub(super) fn settle(&mut self) {
        let mut packets = 0;
        self.fabric.poll(self.now);
        while let Some((port, packet)) = self.fabric.next(self.now) {
            packets += 1;
            assert!(packets < MOST, "a packet storm");
            match Smp::parse(&packet.payload) {
                Ok(smp) if packet.dqpn == Qpn(0) && !smp.header.method.is_response() => {
                    let payload = answer(port, &smp).to_vec();
                    self.fabric
                        .send(self.now, port, Packet { payload, ..packet });
                }
                _ => self.came.push((port, packet)),
            }
            self.fabric.poll(self.now);
        }
    }
}

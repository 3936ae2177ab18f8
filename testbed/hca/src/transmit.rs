//! Packets from a queue pair to its peer.

use fabric::{AckCode, Operation, Packet, Service as Wire};
use mlx4_hw::qp::Service;
use verbs::{Lid, PKey, Psn, Qpn};

use crate::core::Core;
use crate::qp::QueuePair;

/// Marks of a packet in its transport headers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Marks {
    pub(crate) solicited: bool,
    pub(crate) ack_request: bool,
    /// The peer's SRQ, in a request of an XRC queue pair.
    pub(crate) srqn: Option<u32>,
}

impl QueuePair {
    /// Sends a packet to the peer.
    pub(crate) fn transmit(
        &self,
        core: &mut Core,
        psn: u32,
        operation: Operation,
        payload: Vec<u8>,
        marks: Marks,
    ) {
        let Some(mut packet) = self.header(core, marks) else {
            return;
        };
        packet.psn = Psn(psn);
        packet.operation = operation;
        packet.payload = payload;
        core.send(self.port(), packet);
    }

    /// Returns the headers of a packet to the peer.
    fn header(&self, core: &Core, marks: Marks) -> Option<Packet> {
        let path = &self.context.primary_path;
        let port = core.port(self.port())?;
        Some(Packet {
            slid: port.lid(),
            dlid: Lid(path.remote_lid.get()),
            sl: path.schedule.sl(),
            vl15: false,
            grh: path.grh.grh().then(|| {
                port.grh(
                    path.gid_index,
                    path.traffic,
                    path.hop_limit,
                    path.remote_gid,
                )
            }),
            pkey: port.pkey(path.pkey_index).unwrap_or(PKey(0)),
            dqpn: Qpn(self.context.remote_qpn.get()),
            psn: Psn(0),
            solicited: marks.solicited,
            ack_request: marks.ack_request,
            service: match self.service() {
                Service::UC => Wire::Uc,
                Service::XRC => Wire::Xrc { srqn: marks.srqn },
                _ => Wire::Rc,
            },
            operation: Operation::Ack {
                code: AckCode::Ack,
                msn: 0,
            },
            payload: Vec::new(),
        })
    }
}

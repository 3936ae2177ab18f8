//! Datagram queue pairs: sent once, perhaps received.

use verbs::{Completion, CompletionKind, DatagramSource, Lid, PKey, QpKind, QpState, Qpn, Status};

use crate::network::{Body, FIRST_MLID, Packet};
use crate::sabotage::Sabotage;
use crate::world::{NodeIndex, World};

/// Bytes of the global routing header, which stand before each datagram's own.
const GRH: usize = 40;
/// The largest payload of a packet.
const MTU: usize = 4096;

impl World {
    /// Sends everything that was shown on a datagram queue pair.
    pub(crate) fn pump_datagrams(&mut self, node: NodeIndex, qpn: Qpn) {
        loop {
            let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
                return;
            };
            if qp.state != QpState::ReadyToSend || qp.shown == 0 {
                return;
            }
            let Some(wqe) = qp.sends.pop_front() else {
                return;
            };
            qp.shown -= 1;
            let data = match self.gather(node, qpn, &wqe.source) {
                Ok(data) if data.len() <= MTU => data,
                Ok(_) => return self.complete_send(node, qpn, &wqe, Status::LocalLength, 0),
                Err(status) => return self.complete_send(node, qpn, &wqe, status, 0),
            };
            if let Some(to) = wqe.to {
                let body = Body::Datagram {
                    source: qpn,
                    qkey: to.qkey,
                    group: to.gid,
                    data,
                };
                self.spread(node, to.address.lid(), to.qpn, &body);
            }
            self.complete_well(node, qpn, &wqe, 0);
        }
    }

    /// Sends a datagram to one port, or to each member of a group.
    fn spread(&mut self, node: NodeIndex, dlid: Lid, to: Qpn, body: &Body) {
        let slid = self.nodes[node].lid;
        let members = if dlid.0 >= FIRST_MLID {
            self.sa
                .members(dlid)
                .map_or_else(Vec::new, |(_, members)| members)
        } else {
            self.by_lid(dlid).into_iter().collect()
        };
        // The deliberate bug.
        let deaf = self.has(Sabotage::DeafNode) && dlid.0 >= FIRST_MLID;
        for member in members {
            if deaf && (node == 0) != (member == 0) {
                continue;
            }
            let dlid = self.nodes[member].lid;
            let body = body.clone();
            self.send_datagram(Packet {
                slid,
                dlid,
                to,
                body,
            });
        }
    }

    pub(crate) fn receive_datagram(&mut self, node: NodeIndex, packet: Packet) {
        let Body::Datagram {
            source,
            qkey,
            group,
            data,
        } = packet.body
        else {
            return;
        };
        let wanted: Vec<Qpn> = self.nodes[node]
            .qps
            .values()
            .filter(|qp| match packet.to {
                Qpn::MULTICAST => group.is_some_and(|group| qp.groups.contains(&group)),
                to => qp.qpn == to,
            })
            .filter(|qp| qp.kind == QpKind::Datagram { qkey } && qp.state == QpState::ReadyToSend)
            // A group's datagrams do not come back to the queue pair that sent them.
            .filter(|qp| packet.slid != self.nodes[node].lid || qp.qpn != source)
            .map(|qp| qp.qpn)
            .collect();
        let mut bytes = vec![0; GRH];
        bytes[24..].copy_from_slice(&group.unwrap_or_default().0);
        bytes.extend_from_slice(&data);
        for qpn in wanted {
            let Some(qp) = self.nodes[node].qps.get_mut(&qpn.0) else {
                continue;
            };
            // An unreliable datagram without a receive is lost, and nobody is told.
            let Some(receive) = qp.receives.pop_front() else {
                continue;
            };
            let (slot, cqn) = (qp.slot, qp.cqn);
            let landed = self.land(node, qpn, &receive, &bytes);
            let completion = Completion {
                id: receive.id,
                qp: slot,
                status: if landed {
                    Status::Success
                } else {
                    Status::LocalLength
                },
                kind: CompletionKind::Receive,
                bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                imm: None,
                source: Some(DatagramSource {
                    address: packet.slid.into(),
                    qpn: source,
                    sl: 0,
                    grh: group.is_some(),
                    pkey: PKey::DEFAULT,
                }),
            };
            self.push(node, cqn, completion, false, None);
            if !landed {
                // One that does not fit ends more than itself, as in the model of the adapter.
                self.fail_pair(node, qpn, true);
            }
        }
    }
}

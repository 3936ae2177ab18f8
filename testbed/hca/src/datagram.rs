//! Datagrams: sending them from ordinary and special queue pairs, and receiving them.

use fabric::{Grh, Operation, Packet, Service as Wire};
use mad::wire::{
    BaseTransport, DatagramTransport, GlobalRoute, GlobalRouteFirst, ICRC_LEN, LocalRoute,
    NEXT_GRH, UD_SEND_ONLY, UD_SEND_ONLY_WITH_IMMEDIATE,
};
use mlx4_hw::bits::{High, Low24};
use mlx4_hw::cq::{Cqe, CqeOwner, CqeRemote, ReceiveOpcode, Syndrome};
use mlx4_hw::wqe::{DatagramSegment, MlxControlSegment};
use verbs::{Gid, Lid, PKey, Psn, QKey, Qpn};
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::core::Core;
use crate::qp::QueuePair;
use crate::wqe::{Task, Work, capacity, gather, scatter};

/// Bytes that a receive keeps for the global route header.
const GRH_LEN: u32 = 40;
/// Bytes that software-built headers and the room for the CRC take at most.
const LONGEST_HEADERS: u32 = 80;
/// Next header of a GRH: a base transport header (IBA 1.3, 8.3.3).
const GRH_NEXT_TRANSPORT: u8 = 0x1b;
/// Bits of a LID that may tell paths to one port apart: the largest LMC is 7.
const PATH_BITS: u16 = 0x7f;

impl QueuePair {
    /// Sends a datagram.
    pub(crate) fn datagram(&mut self, core: &mut Core, work: &Work) -> Result<(), Syndrome> {
        let longest = core
            .port(self.port())
            .map_or(0, crate::port::Port::mtu)
            .saturating_add(LONGEST_HEADERS);
        if work.len > longest {
            return Err(Syndrome::LOCAL_LENGTH_ERR);
        }
        let bytes =
            gather(&core.memory, self.accessor(), &work.pieces, 0, work.len).map_err(|error| {
                log::debug!("QP {:#x}: datagram: {error}", self.qpn);
                Syndrome::LOCAL_PROT_ERR
            })?;
        let packet = match &work.task {
            Task::Datagram { to, imm } => self.ordinary(core, to, *imm, bytes)?,
            Task::Mlx { control } => self
                .software_built(core, control, &bytes)
                .ok_or(Syndrome::LOCAL_QP_OP_ERR)?,
            _ => return Err(Syndrome::LOCAL_QP_OP_ERR),
        };
        let packet = Packet {
            solicited: packet.solicited || work.solicited,
            ..packet
        };
        core.send(self.port(), packet);
        Ok(())
    }

    fn ordinary(
        &self,
        core: &Core,
        to: &DatagramSegment,
        imm: Option<u32>,
        payload: Vec<u8>,
    ) -> Result<Packet, Syndrome> {
        let port = core.port(self.port()).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
        let vector = &to.vector;
        if payload.len() > port.mtu() as usize {
            return Err(Syndrome::LOCAL_LENGTH_ERR);
        }
        if vector.port_pd.pd() != self.pd() {
            return Err(Syndrome::LOCAL_QP_OP_ERR);
        }
        let given = to.qkey.get();
        let own_qkey = given.leading_zeros() == 0;
        Ok(Packet {
            slid: port.lid(),
            dlid: Lid(vector.dlid.get()),
            sl: vector.traffic.sl(),
            vl15: false,
            grh: vector.grh.grh().then(|| {
                port.grh(
                    vector.gid_index,
                    vector.traffic,
                    vector.hop_limit,
                    vector.dgid,
                )
            }),
            pkey: port
                .pkey(self.context.primary_path.pkey_index)
                .ok_or(Syndrome::LOCAL_QP_OP_ERR)?,
            dqpn: Qpn(to.qpn.get()),
            psn: Psn(0),
            solicited: false,
            ack_request: false,
            service: Wire::Ud,
            operation: Operation::Datagram {
                qkey: QKey(if own_qkey {
                    self.context.qkey.get()
                } else {
                    given
                }),
                source: Qpn(self.qpn),
                imm,
            },
            payload,
        })
    }

    /// Takes apart what software built: headers, payload, and room for the CRC.
    fn software_built(
        &self,
        core: &Core,
        control: &MlxControlSegment,
        bytes: &[u8],
    ) -> Option<Packet> {
        let port = core.port(self.port())?;
        let (route, rest) = LocalRoute::read_from_prefix(bytes).ok()?;
        let (grh, rest) = if route.first.next() == NEXT_GRH {
            let (grh, rest) = GlobalRoute::read_from_prefix(rest).ok()?;
            (Some(grh), rest)
        } else {
            (None, rest)
        };
        let (transport, rest) = BaseTransport::read_from_prefix(rest).ok()?;
        let (datagram, rest) = DatagramTransport::read_from_prefix(rest).ok()?;
        let (imm, rest) = match transport.opcode {
            UD_SEND_ONLY => (None, rest),
            UD_SEND_ONLY_WITH_IMMEDIATE => {
                let (imm, rest) = U32::read_from_prefix(rest).ok()?;
                (Some(imm.get()), rest)
            }
            _ => return None,
        };
        let payload = rest.get(..rest.len().checked_sub(ICRC_LEN)?)?.to_vec();
        let slid = if control.flags.slid_from_header() {
            Lid(route.slid.get())
        } else {
            // The lower bits of the given one are path bits (Linux `hw/mlx4/qp.c`,
            // `build_mlx_header`).
            Lid(port.lid().0 | route.slid.get() & PATH_BITS)
        };
        Some(Packet {
            slid,
            dlid: Lid(control.remote_lid.get()),
            sl: control.flags.sl(),
            vl15: control.flags.vl15(),
            grh: grh.map(|grh| Grh {
                traffic_class: grh.first.class(),
                flow_label: grh.first.flow_label(),
                hop_limit: grh.hop_limit,
                sgid: Gid(grh.sgid),
                dgid: Gid(grh.dgid),
            }),
            pkey: PKey(transport.pkey.get()),
            dqpn: Qpn(transport.destination.number()),
            psn: Psn(transport.psn.number()),
            solicited: transport.flags.solicited(),
            ack_request: false,
            service: Wire::Ud,
            operation: Operation::Datagram {
                qkey: QKey(datagram.qkey.get()),
                source: Qpn(datagram.source.number()),
                imm,
            },
            payload,
        })
    }

    /// Takes a datagram that came in; without a receive, or with the wrong key, it is dropped.
    pub(crate) fn receive_datagram(&mut self, core: &mut Core, packet: &Packet, check_qkey: bool) {
        let Operation::Datagram { qkey, source, imm } = packet.operation else {
            return;
        };
        if !self.receives() {
            log::debug!("QP {:#x}: a datagram in state {}", self.qpn, self.state);
            return;
        }
        if check_qkey && qkey.0 != self.context.qkey.get() {
            log::debug!("QP {:#x}: a datagram with {qkey}", self.qpn);
            return;
        }
        let Some(receive) = self.take_receive(core) else {
            log::debug!("QP {:#x}: a datagram without a receive", self.qpn);
            return;
        };
        let len = GRH_LEN.saturating_add(u32::try_from(packet.payload.len()).unwrap_or(u32::MAX));
        let written = if u64::from(len) > capacity(&receive.pieces) {
            Err(Syndrome::LOCAL_LENGTH_ERR)
        } else {
            let head = packet
                .grh
                .as_ref()
                .map_or([0; GRH_LEN as usize], |grh| grh_bytes(grh, packet));
            scatter(&core.memory, receive.who, &receive.pieces, 0, &head)
                .and_then(|()| {
                    scatter(
                        &core.memory,
                        receive.who,
                        &receive.pieces,
                        GRH_LEN,
                        &packet.payload,
                    )
                })
                .map_err(|_| Syndrome::LOCAL_PROT_ERR)
        };
        if let Err(syndrome) = written {
            self.complete_error(core, false, receive.counter, syndrome);
            return self.fail(core);
        }
        let mut cqe = Cqe::new_zeroed();
        cqe.qpn = Low24::new(self.qpn);
        let pkey_index = core
            .port(self.port())
            .and_then(|port| port.pkey_index(packet.pkey));
        cqe.immediate_or_pkey = imm
            .unwrap_or_else(|| u32::from(pkey_index.unwrap_or(0)))
            .into();
        cqe.remote = CqeRemote::new()
            .with_grh(packet.grh.is_some())
            .with_qpn(source.0);
        cqe.sl = High::new(packet.sl);
        cqe.slid = packet.slid.0.into();
        cqe.byte_count = len.into();
        cqe.wqe_counter = receive.counter.into();
        let opcode = if imm.is_some() {
            ReceiveOpcode::SEND_IMM
        } else {
            ReceiveOpcode::SEND
        };
        cqe.owner = CqeOwner::new().with_opcode(opcode);
        core.complete(self.context.receive_cqn.get(), cqe, packet.solicited);
    }
}

fn grh_bytes(grh: &Grh, packet: &Packet) -> [u8; GRH_LEN as usize] {
    let behind = size_of::<BaseTransport>()
        + size_of::<DatagramTransport>()
        + packet.payload.len()
        + ICRC_LEN;
    let header = GlobalRoute {
        first: GlobalRouteFirst::new()
            .with_version(6)
            .with_class(grh.traffic_class)
            .with_flow_label(grh.flow_label),
        len: U16::new(u16::try_from(behind).unwrap_or(u16::MAX)),
        next: GRH_NEXT_TRANSPORT,
        hop_limit: grh.hop_limit,
        sgid: grh.sgid.0,
        dgid: grh.dgid.0,
    };
    let mut bytes = [0; GRH_LEN as usize];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

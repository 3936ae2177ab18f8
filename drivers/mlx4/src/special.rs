//! QP0 and QP1: management datagrams.
//!
//! The card leaves both queue pairs to software. What a subnet manager sends to QP0 is answered by
//! the firmware's own agent, which is reached by the MAD_IFC command: this file carries requests
//! there and answers back, so that the subnet manager can bring the port to ACTIVE. What arrives at
//! QP1 is the user's.
//!
//! Packets of these queue pairs have their headers built here (Linux `mlx4_ib/qp.c`,
//! `build_mlx_header`).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{DmaBuffer, Platform};
use mad::smp::{PERMISSIVE_LID, Smp};
use mad::wire::{
    BaseTransport, BaseTransportFlags, DatagramTransport, ICRC_LEN, LocalRoute, LocalRouteFirst,
    NEXT_BTH, Number, UD_SEND_ONLY, UdHeaders,
};
use mad::{Attribute, MAD_LEN, Mad};
use mlx4_hw::bits::Low24;
use mlx4_hw::command::Opcode;
use mlx4_hw::icm::PAGE;
use mlx4_hw::mad_ifc::GRH_LEN;
use mlx4_hw::path::ScheduleQueue;
use mlx4_hw::qp::Service;
use mlx4_hw::query_dev_cap::QueryDevCap;
use mlx4_hw::wqe::{
    COMPLETION_WANTED, ControlSegment, MlxControlFlags, MlxControlSegment, SEGMENT_UNIT, WqeOpcode,
};
use spin::Mutex;
use verbs::{
    Access, Address, Completion, CompletionKind, DatagramSource, Domain, Lid, PKey, Parameter,
    QKey, QpKind, QpSlot, QueueSet, Region, Resource, Sge, Status,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::Error;
use crate::command::Command;
use crate::control::QpPlan;
use crate::directed_route::{arrived, leaving};
use crate::hca::Hca;
use crate::queues::{QueuePair, Queues, Transport};
use crate::work_queue::Geometry;

/// QPs that CONF_SPECIAL_QP takes: QP0 and QP1 of both ports, and four that are not used.
pub(crate) const BLOCK: u32 = 8;
/// Receives of each queue pair, and sends of both.
const LOG_SLOTS: u8 = 5;
const SLOTS: usize = 1 << LOG_SLOTS;
/// Bytes of a receive: place for a GRH, then the datagram.
const RECEIVE_LEN: u32 = 296;
const _: () = assert!(RECEIVE_LEN as usize == GRH_LEN + MAD_LEN);
/// Bytes of a send.
const MAD_PIECE_LEN: u32 = 256;
const RECEIVE_STRIDE: usize = 320;
const SENDS_OFFSET: usize = 2 * SLOTS * RECEIVE_STRIDE;
const MEMORY_LEN: usize = SENDS_OFFSET + SLOTS * MAD_LEN;
/// Descriptor of a send: control, inline headers, the datagram, inline checksum.
const SEND_LEN: usize = 5 * SEGMENT_UNIT;
/// Datagrams kept for the user, and requests kept for the agent.
const KEPT: usize = 64;

/// The first QPN of the block.
pub(crate) fn first_qpn(cap: &QueryDevCap) -> u32 {
    (1_u32 << cap.log_reserved_qps.get()).next_multiple_of(BLOCK)
}

/// Destination and options of a datagram.
struct Envelope {
    slot: QpSlot,
    lid: Lid,
    sl: u8,
    pkey: PKey,
}

struct Inner<P: Platform> {
    queues: Queues<P>,
    /// QP0.
    smi: QpSlot,
    /// QP1.
    gsi: QpSlot,
    free_sends: Vec<usize>,
    psn: u32,
    requests: VecDeque<(DatagramSource, Mad)>,
    mads: VecDeque<(Address, Mad)>,
}

/// Both management queue pairs.
pub(crate) struct Management<P: Platform> {
    hca: Arc<Hca<P>>,
    memory: Arc<P::Buffer>,
    region: Region,
    inner: Mutex<Inner<P>>,
}

impl<P: Platform> Management<P> {
    /// Makes the queue pairs and brings the port's link up.
    pub(crate) async fn start(hca: &Arc<Hca<P>>) -> Result<Self, Error> {
        let base = first_qpn(&hca.cap);
        let command = Command::new(Opcode::CONF_SPECIAL_QP).modifier(base);
        hca.commands.run(command).await?;
        let memory = hca.claim.alloc(MEMORY_LEN, PAGE)?;
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let region = hca
            .register(
                Domain::default(),
                memory.bus_addr().0,
                MEMORY_LEN as u64,
                access,
            )
            .await?;
        let eqn = hca.events.eqn(0).ok_or(Error::Failed)?;
        // Receives of both queue pairs, and the sends.
        let cq = hca.create_cq(LOG_SLOTS + 2, eqn).await?;
        let mut queues = Queues::new(Arc::clone(hca), cq);
        let port = u32::from(hca.port - 1);
        let smi = special_pair(
            hca,
            &queues,
            base + port,
            QKey(0),
            ScheduleQueue::of_qp0(hca.port),
        )
        .await?;
        let smi = queues.insert(smi)?;
        let schedule = ScheduleQueue::of(hca.port, 0);
        let gsi = special_pair(hca, &queues, base + 2 + port, QKey::GSI, schedule).await?;
        let gsi = queues.insert(gsi)?;
        let management = Self {
            hca: Arc::clone(hca),
            memory,
            region,
            inner: Mutex::new(Inner {
                queues,
                smi,
                gsi,
                free_sends: (0..SLOTS).collect(),
                psn: 0,
                requests: VecDeque::new(),
                mads: VecDeque::new(),
            }),
        };
        management.post_all();
        hca.set_port().await?;
        let command = Command::new(Opcode::INIT_PORT).modifier(hca.port.into());
        hca.commands.run(command).await?;
        Ok(management)
    }

    fn post_all(&self) {
        let mut inner = self.inner.lock();
        for index in 0..2 * SLOTS {
            let slot = if index < SLOTS { inner.smi } else { inner.gsi };
            self.post_receive(&mut inner, slot, index);
        }
        inner.queues.arm(false);
    }

    fn post_receive(&self, inner: &mut Inner<P>, slot: QpSlot, index: usize) {
        let into = [Sge {
            addr: self.region.addr + (index * RECEIVE_STRIDE) as u64,
            len: RECEIVE_LEN,
            lkey: self.region.lkey,
        }];
        if let Some(pair) = inner.queues.pair_mut(slot)
            && !pair.receive.is_full()
        {
            pair.receive.post(index as u64, &into);
        }
    }

    /// Takes what has arrived and what was sent.
    fn pump(&self) {
        let mut inner = self.inner.lock();
        // Bounded by what can be outstanding.
        for taken in 0..4 * SLOTS {
            let mut completion = [Completion::EMPTY];
            match inner.queues.poll(&mut completion) {
                // One that had nothing is still armed.
                Ok(0) if taken == 0 => return,
                Ok(0) => break,
                Ok(_) => self.finished(&mut inner, &completion[0]),
                Err(error) => {
                    log::error!("management datagrams: {error}");
                    break;
                }
            }
        }
        inner.queues.arm(false);
    }

    fn finished(&self, inner: &mut Inner<P>, completion: &Completion) {
        let Ok(index) = usize::try_from(completion.id) else {
            return;
        };
        if completion.status != Status::Success {
            log::warn!("a management datagram failed: {:?}", completion.status);
        }
        if completion.kind == CompletionKind::Send {
            inner.free_sends.push(index);
            return;
        }
        if completion.status == Status::Flushed {
            return;
        }
        let source = completion
            .source
            .filter(|_| completion.status == Status::Success && completion.bytes >= RECEIVE_LEN);
        if let Some(source) = source {
            let mut mad = [0; MAD_LEN];
            self.memory.read(index * RECEIVE_STRIDE + GRH_LEN, &mut mad);
            if completion.qp == inner.smi {
                keep(&mut inner.requests, (source, mad));
            } else {
                keep(&mut inner.mads, (source.address, mad));
            }
        }
        self.post_receive(inner, completion.qp, index);
    }

    /// Does all that is due: events, datagrams that arrived, and answers to the subnet manager.
    pub(crate) async fn service_once(&self) -> Result<(), Error> {
        if self.hca.commands.has_failed() {
            return Err(Error::Failed);
        }
        self.hca
            .commands
            .check_health()
            .inspect_err(|_| self.hca.events.fail())?;
        self.hca.events.drain(0);
        self.pump();
        loop {
            let request = self.inner.lock().requests.pop_front();
            let Some((source, mad)) = request else { break };
            self.answer(source, &mad).await?;
        }
        if self.hca.events.device_failed() {
            self.hca.commands.fail();
            return Err(Error::Failed);
        }
        Ok(())
    }

    /// Carries a subnet manager's request to the firmware's agent, and its answer back.
    async fn answer(&self, source: DatagramSource, mad: &Mad) -> Result<(), Error> {
        let port = self.hca.port;
        let request = match Smp::parse(mad) {
            Ok(request) => request,
            Err(error) => {
                log::debug!("dropped a datagram at QP0: {error}");
                return Ok(());
            }
        };
        let Some(request) = arrived(request, port) else {
            return Ok(());
        };
        let answer = match self.hca.mad_ifc(&request.to_mad(), Some(source)).await {
            Ok(answer) => answer,
            Err(Error::Refused { status, .. }) => {
                log::warn!(
                    "the agent refused {}: {status}",
                    Attribute(request.header.attribute.get())
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(answer) = Smp::parse(&answer)
            .ok()
            .and_then(|answer| leaving(answer, port))
        else {
            return Ok(());
        };
        let envelope = Envelope {
            slot: self.inner.lock().smi,
            lid: source.address.lid(),
            sl: source.sl,
            pkey: PKey::DEFAULT,
        };
        match self.send(&envelope, &answer.to_mad()) {
            // The subnet manager asks again.
            Err(Error::Exhausted { .. }) => {
                log::warn!("an answer to the subnet manager was dropped: too many are under way");
                Ok(())
            }
            result => result,
        }
    }

    fn send(&self, envelope: &Envelope, mad: &Mad) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        let index = inner.free_sends.pop().ok_or(Error::Exhausted {
            resource: Resource::Datagram,
            limit: SLOTS as u64,
        })?;
        let offset = SENDS_OFFSET + index * MAD_LEN;
        // The WQE's fences order it too: it is written before the owner bit.
        self.memory.write(offset, mad);
        // The card fills no PSN in here, as all headers are software's (Linux `hw/mlx4/qp.c`,
        // `build_mlx_header`: `send_psn`).
        inner.psn = inner.psn.wrapping_add(1) & Low24::MAX;
        let psn = inner.psn;
        let smi = envelope.slot == inner.smi;
        let piece = [Sge {
            addr: self.region.addr + offset as u64,
            len: MAD_PIECE_LEN,
            lkey: self.region.lkey,
        }];
        if let Some(pair) = inner.queues.pair_mut(envelope.slot) {
            let mut descriptor = pair.send.begin();
            descriptor.put_inline([headers(envelope, smi, psn).as_bytes(), &[]]);
            descriptor.put_pieces(&piece);
            // Room for the ICRC, which the card computes unless it is told to keep this (Linux
            // `hw/mlx4/qp.c`, `set_mlx_icrc_seg`).
            descriptor.put_inline([&[0; ICRC_LEN], &[]]);
            let len = descriptor.seal();
            let control = control(envelope, smi);
            pair.send
                .finish(index as u64, WqeOpcode::SEND, len, control);
        }
        inner.queues.ring(envelope.slot);
        Ok(())
    }

    pub(crate) fn send_mad(
        &self,
        port: u8,
        to: Address,
        pkey: PKey,
        mad: &Mad,
    ) -> Result<(), Error> {
        if port != self.hca.port {
            return Err(Error::OutOfRange {
                parameter: Parameter::Port,
                value: port.into(),
            });
        }
        if self.hca.commands.has_failed() {
            return Err(Error::Failed);
        }
        self.pump();
        let envelope = Envelope {
            slot: self.inner.lock().gsi,
            lid: to.lid(),
            sl: 0,
            pkey,
        };
        self.send(&envelope, mad)
    }

    pub(crate) fn take_mad(&self, port: u8) -> Option<(Address, Mad)> {
        if port != self.hca.port {
            return None;
        }
        if !self.hca.commands.has_failed() {
            self.pump();
        }
        self.inner.lock().mads.pop_front()
    }
}

fn keep<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == KEPT {
        log::warn!("management datagrams come faster than they are taken: one was dropped");
        queue.pop_front();
    }
    queue.push_back(item);
}

async fn special_pair<P: Platform>(
    hca: &Hca<P>,
    queues: &Queues<P>,
    qpn: u32,
    qkey: QKey,
    schedule: ScheduleQueue,
) -> Result<QueuePair<P>, Error> {
    let plan = QpPlan {
        qpn,
        kind: QpKind::Datagram { qkey },
        domain: Domain::default(),
        transport: Transport::Special,
        service: Service::MLX,
        port: hca.port,
        schedule,
        geometry: Geometry::new(1 << LOG_SLOTS, SEND_LEN, 1 << LOG_SLOTS, SEGMENT_UNIT),
        remote_access: Access::default(),
    };
    let pair = hca.create_pair(&queues.cq, &plan).await?;
    hca.start_datagrams(verbs::Qpn(qpn)).await?;
    Ok(pair)
}

fn headers(envelope: &Envelope, smi: bool, psn: u32) -> UdHeaders {
    let number = Number::new().with_number(if smi { 0 } else { 1 });
    let dwords = (size_of::<UdHeaders>() + MAD_LEN + ICRC_LEN) / 4;
    UdHeaders {
        route: LocalRoute {
            first: LocalRouteFirst::new()
                .with_lane(if smi { 15 } else { 0 })
                .with_sl(envelope.sl & 0xf)
                .with_next(NEXT_BTH),
            dlid: envelope.lid.0.into(),
            len: u16::try_from(dwords).unwrap_or(0).into(),
            // Taken whole when the destination is permissive. Otherwise the card fills the port's
            // LID in, and takes only the path bits from here (Linux `hw/mlx4/qp.c`,
            // `build_mlx_header`).
            slid: if envelope.lid.0 == PERMISSIVE_LID {
                PERMISSIVE_LID
            } else {
                0
            }
            .into(),
        },
        transport: BaseTransport {
            opcode: UD_SEND_ONLY,
            flags: BaseTransportFlags::new(),
            pkey: envelope.pkey.0.into(),
            destination: number,
            psn: Number::new().with_number(psn & Low24::MAX),
        },
        datagram: DatagramTransport {
            qkey: if smi { QKey(0) } else { QKey::GSI }.0.into(),
            source: number,
        },
    }
}

/// The control segment, whose size and owner lie where any send's do.
fn control(envelope: &Envelope, smi: bool) -> ControlSegment {
    let mut control = MlxControlSegment::new_zeroed();
    control.flags = MlxControlFlags::new()
        .with_vl15(smi)
        .with_slid_from_header(envelope.lid.0 == PERMISSIVE_LID)
        .with_sl(envelope.sl & 0xf)
        .with_completion(COMPLETION_WANTED);
    control.remote_lid = envelope.lid.0.into();
    zerocopy::transmute!(control)
}

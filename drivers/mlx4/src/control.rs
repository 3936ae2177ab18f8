//! The control path: [`verbs::Device`] for the card.

use alloc::sync::Arc;
use core::future::Future;

use hal::{DmaBuffer, InterruptVector, Platform};
use mlx4_hw::bits::Low24;
use mlx4_hw::command::{Opcode, op_modifier};
use mlx4_hw::icm::PAGE;
use mlx4_hw::path::{AckTimeout, Path, ScheduleQueue};
use mlx4_hw::qp::{
    MtuMessage, OptionalParameters, PATH_MIGRATED, QpContext, QpFlags, QpMailbox, QpState,
    QueueSize, RequesterParameters, ResponderParameters, RnrReceivePsn, Service,
};
use mlx4_hw::wqe::{BASIC_BLOCK_LEN, SEGMENT_UNIT};
use verbs::{
    Access, Address, Device, DeviceEvent, DeviceLimits, Domain, Gid, PKey, PagesConfig, Parameter,
    PathToPeer, PortInfo, QpConfig, QpKind, QpSlot, Qpn, RcParameters, Region,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::command::Command;
use crate::completion::{CompletionQueue, TELL_EVERY};
use crate::hca::{Hca, QpRecord, UAR_PAGE};
use crate::pages::Pages;
use crate::queues::{QueuePair, Queues, Transport};
use crate::resources::Range;
use crate::work_queue::{self, Geometry};
use crate::{Error, Mlx4, POLL_INTERVAL, icm};

/// Longest datagram, and longest on QP0 and QP1, headers included (Linux `mlx4_ib/qp.c`,
/// `__mlx4_ib_modify_qp`).
const LOG_MAX_DATAGRAM: u8 = 13;
const LOG_MAX_MANAGEMENT: u8 = 11;
/// The counter set of a queue pair that has none (Linux `mlx4_ib`, `MLX4_SINK_COUNTER_INDEX`).
const NO_COUNTER: u8 = 0xff;
/// An acknowledgement is asked for at least every 2^8 packets (Linux `mlx4_ib`,
/// `MLX4_IB_ACK_REQ_FREQ`).
const LOG_ACK_REQUEST: u8 = 8;
/// The largest slot that a queue pair's context can state.
const MAX_LOG_STRIDE: u8 = 11;
const MAX_LOG_SLOTS: u8 = 14;

/// Parameters of a queue pair, for users' and the driver's own.
pub(crate) struct QpPlan {
    pub(crate) qpn: u32,
    pub(crate) kind: QpKind,
    pub(crate) domain: Domain,
    pub(crate) transport: Transport,
    pub(crate) service: Service,
    pub(crate) port: u8,
    pub(crate) schedule: ScheduleQueue,
    pub(crate) geometry: Geometry,
    pub(crate) remote_access: Access,
}

fn exponent(value: u8) -> u8 {
    value
        .checked_next_power_of_two()
        .map_or(7, |power| u8::try_from(power.ilog2()).unwrap_or(7))
}

fn mtu_code(mtu: u16) -> Result<u8, Error> {
    match mtu {
        256 => Ok(1),
        512 => Ok(2),
        1024 => Ok(3),
        2048 => Ok(4),
        4096 => Ok(5),
        _ => Err(Error::OutOfRange {
            parameter: Parameter::PathMtu,
            value: mtu.into(),
        }),
    }
}

fn check(parameter: Parameter, value: u64, max: u64) -> Result<(), Error> {
    if value > max {
        return Err(Error::OutOfRange { parameter, value });
    }
    Ok(())
}

impl<P: Platform> Hca<P> {
    /// Carries a transition out; the record keeps the context for the next.
    pub(crate) async fn transition(
        &self,
        opcode: Opcode,
        qpn: u32,
        context: QpContext,
        optional: OptionalParameters,
    ) -> Result<(), Error> {
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.optional = optional;
        mailbox.context = context;
        // The state that it comes to, as Linux tells (`qp.c`, `__mlx4_qp_modify`).
        mailbox.context.flags.set_state(match opcode {
            Opcode::RST2INIT_QP => QpState::INIT,
            Opcode::INIT2RTR_QP => QpState::RTR,
            _ => QpState::RTS,
        });
        let command = Command::new(opcode)
            .modifier(qpn)
            .mailbox(mailbox.as_bytes());
        self.commands.run(command).await?;
        if let Some(record) = self.tables.lock().qps.get_mut(&qpn) {
            record.context = context;
        }
        Ok(())
    }

    /// The context of a queue pair as it was last set.
    fn context(&self, qpn: Qpn) -> Result<(QpContext, QpKind, u8), Error> {
        let tables = self.tables.lock();
        let record = tables.qps.get(&qpn.0).ok_or(Error::OutOfRange {
            parameter: Parameter::Qpn,
            value: qpn.0.into(),
        })?;
        Ok((record.context, record.kind, record.port))
    }

    /// Memory for a queue pair, and its translation.
    fn queue_memory(&self, len: usize) -> Result<(Arc<P::Buffer>, Range), Error> {
        let memory = Arc::new(self.platform.alloc(len, PAGE)?);
        let translation = self.translate(&memory)?;
        Ok((memory, translation))
    }

    /// Makes a queue pair and moves it to INIT.
    pub(crate) async fn create_pair(
        &self,
        cq: &CompletionQueue<P>,
        plan: &QpPlan,
    ) -> Result<QueuePair<P>, Error> {
        let (memory, pd) = self.make_pair(cq, plan).await?;
        let QpPlan {
            qpn,
            transport,
            port,
            ..
        } = *plan;
        Ok(QueuePair::new(
            qpn,
            transport,
            port,
            pd,
            &memory,
            plan.geometry,
        ))
    }

    /// Makes the card's side of a queue pair and moves it to INIT; gives its memory, zeroed, and
    /// the number of its domain.
    async fn make_pair(
        &self,
        cq: &CompletionQueue<P>,
        plan: &QpPlan,
    ) -> Result<(Arc<P::Buffer>, u32), Error> {
        let geometry = plan.geometry;
        let pd = self
            .pd(plan.domain)
            .inspect_err(|_| self.tables.lock().qpns.give_back(plan.qpn))?;
        let (memory, translation) = self
            .queue_memory(geometry.memory_len())
            .inspect_err(|_| self.tables.lock().qpns.give_back(plan.qpn))?;
        let mut context = QpContext::new_zeroed();
        context.flags = QpFlags::new()
            .with_service(plan.service)
            .with_path_migration(PATH_MIGRATED);
        context.pd = Low24::new(pd);
        context.receive_queue =
            QueueSize::of(geometry.log_receive_slots, geometry.log_receive_stride);
        context.send_queue = QueueSize::of(geometry.log_send_slots, geometry.log_send_stride);
        context.uar = Low24::new(UAR_PAGE);
        context.local_qpn = Low24::new(plan.qpn);
        context.primary_path.schedule = plan.schedule;
        context.send_cqn = Low24::new(cq.cqn);
        context.receive_cqn = Low24::new(cq.cqn);
        context.responder = ResponderParameters::new()
            .with_remote_read(plan.remote_access.remote_read)
            .with_remote_write(plan.remote_access.remote_write);
        let record = memory.bus_addr().offset(geometry.record_offset());
        // In memory that was zeroed: no receive is there before the first post (Linux
        // `hw/mlx4/qp.c`, `create_qp_common`, writes `*qp->db.db = 0`).
        context.doorbell_record = record.0.into();
        if let QpKind::Datagram { qkey } = plan.kind {
            context.qkey = qkey.0.into();
        }
        context.buffer = Self::queue_buffer(translation);
        let record = QpRecord {
            kind: plan.kind,
            port: plan.port,
            context,
            fresh: context,
            translation,
            _memory: Arc::clone(&memory),
        };
        // Before the command: if its answer is lost, the card may have the queue pair, and the
        // record keeps the memory from being freed.
        self.tables.lock().qps.insert(plan.qpn, record);
        let connected = plan.service == Service::RC;
        let optional = OptionalParameters::new()
            .with_pkey_index(true)
            .with_remote_read(connected)
            .with_remote_write(connected)
            .with_qkey(!connected);
        if let Err(error) = self
            .transition(Opcode::RST2INIT_QP, plan.qpn, context, optional)
            .await
        {
            if matches!(error, Error::Refused { .. }) {
                self.forget_qp(plan.qpn);
            }
            return Err(error);
        }
        Ok((memory, pd))
    }

    /// Moves a datagram queue pair (or QP0, QP1) from INIT to RTS.
    pub(crate) async fn start_datagrams(&self, qpn: Qpn) -> Result<(), Error> {
        let (mut context, _, _) = self.context(qpn)?;
        let management = context.flags.service() == Service::MLX;
        let log_message = if management {
            LOG_MAX_MANAGEMENT
        } else {
            LOG_MAX_DATAGRAM
        };
        context.primary_path.counter_index = NO_COUNTER;
        // A datagram is one packet: the largest there is.
        context.mtu = MtuMessage::new()
            .with_mtu_code(5)
            .with_log_message(log_message);
        let qkey = OptionalParameters::new().with_qkey(!management);
        let both = qkey.with_pkey_index(!management);
        self.transition(Opcode::INIT2RTR_QP, qpn.0, context, both)
            .await?;
        self.transition(Opcode::RTR2RTS_QP, qpn.0, context, qkey)
            .await
    }

    /// Resets a queue pair.
    async fn reset_pair(&self, qpn: u32) -> Result<(), Error> {
        let command = Command::new(Opcode::QP_2RST)
            .op(op_modifier::QP_2RST_NO_FLUSH)
            .modifier(qpn);
        self.commands.run(command).await.map(drop)
    }

    /// Moves a queue pair that was reset to INIT, with the context that it was made with but for
    /// its domain.
    async fn init_again(&self, qpn: Qpn, domain: Domain) -> Result<(), Error> {
        let unknown = Error::OutOfRange {
            parameter: Parameter::Qpn,
            value: qpn.0.into(),
        };
        // The queue pair's number keeps its memory and translation, so the context that it was made
        // with fits still; what a connection had put in must not stay.
        let fresh = self
            .tables
            .lock()
            .qps
            .get(&qpn.0)
            .map(|record| record.fresh);
        let mut context = fresh.ok_or(unknown)?;
        context.pd = Low24::new(self.pd(domain)?);
        let optional = OptionalParameters::new();
        self.transition(Opcode::RST2INIT_QP, qpn.0, context, optional)
            .await
    }

    /// Resets a queue pair and takes its number and memory back.
    pub(crate) async fn destroy_pair(&self, qpn: u32) -> Result<(), Error> {
        // Numbers and memory go back only behind this: until then the card may write there.
        self.reset_pair(qpn).await?;
        self.forget_qp(qpn);
        Ok(())
    }

    fn forget_qp(&self, qpn: u32) {
        let mut tables = self.tables.lock();
        if let Some(record) = tables.qps.remove(&qpn) {
            tables.mtts.give_back(record.translation);
            tables.qpns.give_back(qpn);
        }
    }

    async fn connect(&self, qpn: Qpn, path: &PathToPeer, rc: &RcParameters) -> Result<(), Error> {
        let (mut context, _, port) = self.context(qpn)?;
        check(
            Parameter::ResponderReads,
            rc.reads_as_responder.into(),
            1 << icm::LOG_RDMARC,
        )?;
        check(Parameter::RnrTimer, rc.min_rnr_timer.into(), 31)?;
        context.mtu = MtuMessage::new()
            .with_mtu_code(mtu_code(path.mtu)?)
            .with_log_message(self.cap.log_max_message.get());
        context.remote_qpn = Low24::new(path.qpn.0);
        let mut way = Path::new_zeroed();
        way.counter_index = NO_COUNTER;
        way.remote_lid = path.address.lid().0.into();
        way.schedule = ScheduleQueue::of(port, path.sl);
        way.ack_timeout = AckTimeout::new().with_exponent(rc.ack_timeout & 31);
        context.primary_path = way;
        context.responder = context
            .responder
            .with_log_reads(exponent(rc.reads_as_responder));
        context.receive_psn = RnrReceivePsn::new()
            .with_next_psn(path.their_psn.0 & Low24::MAX)
            .with_min_rnr_timer(rc.min_rnr_timer);
        let optional = OptionalParameters::new()
            .with_primary_path(true)
            .with_schedule(true)
            .with_reads_as_responder(true)
            .with_rnr_timer(true)
            .with_remote_read(true)
            .with_remote_write(true);
        self.transition(Opcode::INIT2RTR_QP, qpn.0, context, optional)
            .await
    }

    async fn to_ready_to_send(
        &self,
        qpn: Qpn,
        path: Option<&PathToPeer>,
        rc: &RcParameters,
    ) -> Result<(), Error> {
        let (mut context, kind, _) = self.context(qpn)?;
        if matches!(kind, QpKind::Datagram { .. }) {
            return self.start_datagrams(qpn).await;
        }
        let path = path.ok_or(Error::OutOfRange {
            parameter: Parameter::NoPath,
            value: qpn.0.into(),
        })?;
        check(Parameter::Retries, rc.retry_count.into(), 7)?;
        check(Parameter::RnrRetries, rc.rnr_retry.into(), 6)?;
        check(Parameter::AckTimeout, rc.ack_timeout.into(), 31)?;
        // RTR2RTS starts the requester. A PSN that differs from what the peer expects would be
        // answered by sequence NAKs (InfiniBand Architecture 1.3, section 9.7.4.1), so both sides
        // agree on it before.
        context.next_send_psn = Low24::new(path.our_psn.0);
        context.primary_path.ack_timeout = AckTimeout::new().with_exponent(rc.ack_timeout);
        context.requester = RequesterParameters::new()
            .with_log_ack_request(LOG_ACK_REQUEST)
            // Rounded down, for the card holds back what is more than the peer answers at once.
            .with_log_reads(
                u8::try_from(rc.reads_as_requester.checked_ilog2().unwrap_or(0)).unwrap_or(0),
            )
            .with_retry_count(rc.retry_count)
            .with_rnr_retry(rc.rnr_retry);
        let optional = OptionalParameters::new()
            .with_reads_as_requester(true)
            .with_retry_count(true)
            .with_rnr_retry(true)
            .with_ack_timeout(true);
        self.transition(Opcode::RTR2RTS_QP, qpn.0, context, optional)
            .await
    }

    async fn create_user_pair(
        &self,
        cq: &CompletionQueue<P>,
        config: &QpConfig,
    ) -> Result<QueuePair<P>, Error> {
        if config.port != self.port {
            return Err(Error::OutOfRange {
                parameter: Parameter::Port,
                value: config.port.into(),
            });
        }
        let limits = self.limits();
        check(
            Parameter::SendQueueDepth,
            config.send_depth.into(),
            limits.max_queue_depth.into(),
        )?;
        check(
            Parameter::ReceiveQueueDepth,
            config.receive_depth.into(),
            limits.max_queue_depth.into(),
        )?;
        check(
            Parameter::SendPieces,
            config.send_sge.into(),
            limits.max_sge.into(),
        )?;
        check(
            Parameter::ReceivePieces,
            config.receive_sge.into(),
            limits.max_sge.into(),
        )?;
        check(
            Parameter::InlineBytes,
            config.inline.into(),
            limits.max_inline.into(),
        )?;
        let datagram = matches!(config.kind, QpKind::Datagram { .. });
        let geometry = Geometry::new(
            config.send_depth,
            work_queue::send_descriptor_len(datagram, config.send_sge, config.inline),
            config.receive_depth,
            usize::from(config.receive_sge) * SEGMENT_UNIT,
        );
        check(
            Parameter::SendSlots,
            geometry.log_send_slots.into(),
            MAX_LOG_SLOTS.into(),
        )?;
        check(
            Parameter::SendDescriptor,
            geometry.log_send_stride.into(),
            MAX_LOG_STRIDE.into(),
        )?;
        let qpn = self.tables.lock().qpns.take()?;
        let plan = QpPlan {
            qpn,
            kind: config.kind,
            domain: config.domain,
            transport: if datagram {
                Transport::Datagram
            } else {
                Transport::Connected
            },
            service: if datagram { Service::UD } else { Service::RC },
            port: config.port,
            schedule: ScheduleQueue::of(config.port, 0),
            geometry,
            remote_access: if datagram {
                Access::default()
            } else {
                config.remote_access
            },
        };
        self.create_pair(cq, &plan).await
    }

    /// Makes a queue pair for pages, with its completion queue.
    async fn make_pages(&self, config: &PagesConfig) -> Result<(Pages<P>, Qpn), Error> {
        if config.port != self.port {
            return Err(Error::OutOfRange {
                parameter: Parameter::Port,
                value: config.port.into(),
            });
        }
        let depth = config.depth;
        check(
            Parameter::SendQueueDepth,
            depth.into(),
            self.limits().max_queue_depth.into(),
        )?;
        // It receives nothing, but a queue pair has a ring for that.
        let geometry = Geometry::new(depth, BASIC_BLOCK_LEN, 1, SEGMENT_UNIT);
        let cq = self
            .queue_for(geometry.send_depth + TELL_EVERY, config.vector)
            .await?;
        let qpn = self.tables.lock().qpns.take()?;
        let plan = QpPlan {
            qpn,
            kind: QpKind::ReliableConnection,
            domain: config.domain,
            transport: Transport::Connected,
            service: Service::RC,
            port: config.port,
            schedule: ScheduleQueue::of(config.port, 0),
            geometry,
            remote_access: Access::default(),
        };
        let cqn = cq.cqn;
        match self.make_pair(&cq, &plan).await {
            Ok((memory, _)) => {
                let uar = Arc::clone(&self.uar);
                let pages = Pages::new(qpn, cq, memory, uar, geometry, config.lkey);
                Ok((pages, Qpn(qpn)))
            }
            Err(error) => {
                // What fails here too is the card's whole use, which the first error tells.
                let _ = self.destroy_cq(cqn).await;
                Err(error)
            }
        }
    }

    /// Makes a completion queue of at least `depth` entries for the users' interrupt vector
    /// `vector`.
    async fn queue_for(&self, depth: u32, vector: u16) -> Result<CompletionQueue<P>, Error> {
        check(
            Parameter::CqDepth,
            depth.into(),
            self.limits().max_cq_depth.into(),
        )?;
        let eqn = self
            .events
            .eqn(usize::from(vector) + 1)
            .ok_or(Error::OutOfRange {
                parameter: Parameter::CompletionVector,
                value: vector.into(),
            })?;
        let log_entries = u8::try_from(depth.max(2).next_power_of_two().ilog2()).unwrap_or(u8::MAX);
        self.create_cq(log_entries, eqn).await
    }

    fn limits(&self) -> DeviceLimits {
        let cap = &self.cap;
        let reads = |log: u8| 1_u8 << log.min(icm::LOG_RDMARC);
        let log_depth = cap.log_max_qp_wqes.min(MAX_LOG_SLOTS);
        // Room for the headroom of the smallest slots.
        let headroom = (mlx4_hw::wqe::SEND_HEADROOM_LEN >> mlx4_hw::wqe::LOG_BASIC_BLOCK_LEN) + 1;
        DeviceLimits {
            max_reads: reads(cap.log_max_reads_as_requester.get()),
            max_reads_as_responder: reads(cap.log_max_reads_as_responder.get()),
            max_queue_depth: (1_u32 << log_depth).saturating_sub(headroom),
            max_sge: cap.max_send_pieces.min(cap.max_receive_pieces).min(30),
            max_inline: u32::from(cap.max_send_descriptor.get())
                .saturating_sub(256)
                .min(512),
            max_cq_depth: 1 << cap.log_max_cqes.min(MAX_LOG_SLOTS + 2),
            ports: cap.ports.get(),
            max_domains: self.max_domains(),
        }
    }
}

impl<P: Platform> Device for Mlx4<P> {
    type Queues = Queues<P>;
    type Pages = Pages<P>;

    fn limits(&self) -> DeviceLimits {
        self.hca.limits()
    }

    async fn create_queues(&self, depth: u32, vector: u16) -> Result<Queues<P>, verbs::Error> {
        let cq = self.hca.queue_for(depth, vector).await?;
        Ok(Queues::new(Arc::clone(&self.hca), cq))
    }

    async fn destroy_queues(&self, mut queues: Queues<P>) -> Result<(), verbs::Error> {
        for slot in queues.slots() {
            self.destroy_qp(&mut queues, slot).await?;
        }
        Ok(self.hca.destroy_cq(queues.cq.cqn).await?)
    }

    async fn create_qp(
        &self,
        queues: &mut Queues<P>,
        config: &QpConfig,
    ) -> Result<(QpSlot, Qpn), verbs::Error> {
        let pair = self.hca.create_user_pair(&queues.cq, config).await?;
        let qpn = Qpn(pair.qpn);
        Ok((queues.insert(pair)?, qpn))
    }

    async fn ready_to_receive(
        &self,
        qpn: Qpn,
        path: &PathToPeer,
        parameters: &RcParameters,
    ) -> Result<(), verbs::Error> {
        Ok(self.hca.connect(qpn, path, parameters).await?)
    }

    async fn ready_to_send(
        &self,
        qpn: Qpn,
        path: Option<&PathToPeer>,
        parameters: &RcParameters,
    ) -> Result<(), verbs::Error> {
        Ok(self.hca.to_ready_to_send(qpn, path, parameters).await?)
    }

    async fn fail_qp(&self, qpn: Qpn) -> Result<(), verbs::Error> {
        let command = Command::new(Opcode::QP_2ERR).modifier(qpn.0);
        Ok(self.hca.commands.run(command).await.map(drop)?)
    }

    async fn reset_qp(&self, qpn: Qpn) -> Result<(), verbs::Error> {
        Ok(self.hca.reset_pair(qpn.0).await?)
    }

    async fn init_qp(&self, qpn: Qpn, domain: Domain) -> Result<(), verbs::Error> {
        Ok(self.hca.init_again(qpn, domain).await?)
    }

    async fn attach_multicast(&self, qpn: Qpn, mgid: Gid) -> Result<(), verbs::Error> {
        Ok(self.hca.attach(qpn.0, mgid.0).await?)
    }

    async fn detach_multicast(&self, qpn: Qpn, mgid: Gid) -> Result<(), verbs::Error> {
        Ok(self.hca.detach(qpn.0, mgid.0).await?)
    }

    async fn destroy_qp(&self, queues: &mut Queues<P>, qp: QpSlot) -> Result<(), verbs::Error> {
        let qpn = queues.qpn(qp).ok_or(Error::OutOfRange {
            parameter: Parameter::Slot,
            value: qp.0.into(),
        })?;
        self.hca.destroy_pair(qpn.0).await?;
        queues.remove(qp);
        Ok(())
    }

    async fn create_pages(&self, config: &PagesConfig) -> Result<(Pages<P>, Qpn), verbs::Error> {
        Ok(self.hca.make_pages(config).await?)
    }

    async fn destroy_pages(&self, pages: Pages<P>) -> Result<(), verbs::Error> {
        self.hca.destroy_pair(pages.qpn()).await?;
        Ok(self.hca.destroy_cq(pages.cqn()).await?)
    }

    async fn register(
        &self,
        domain: Domain,
        bus_addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Region, verbs::Error> {
        Ok(self.hca.register(domain, bus_addr, len, access).await?)
    }

    async fn deregister(&self, region: &Region) -> Result<(), verbs::Error> {
        Ok(self.hca.deregister(region).await?)
    }

    async fn port(&self, port: u8) -> Result<PortInfo, verbs::Error> {
        Ok(self.hca.port_info(port).await?)
    }

    async fn send_mad(
        &self,
        port: u8,
        to: Address,
        pkey: PKey,
        mad: &[u8; 256],
    ) -> Result<(), verbs::Error> {
        Ok(self.management.send_mad(port, to, pkey, mad)?)
    }

    fn take_mad(&self, port: u8) -> Option<(Address, [u8; 256])> {
        self.management.take_mad(port)
    }

    fn take_event(&self) -> Option<DeviceEvent> {
        self.hca.events.take_event()
    }

    fn wait_completion(
        &self,
        vector: u16,
    ) -> impl Future<Output = Result<(), verbs::Error>> + Send {
        let index = usize::from(vector) + 1;
        async move {
            let events = &self.hca.events;
            events.eqn(index).ok_or(Error::OutOfRange {
                parameter: Parameter::CompletionVector,
                value: vector.into(),
            })?;
            let interrupt = events.vector(index).filter(|_| !events.is_polled());
            let Some(interrupt) = interrupt else {
                while events.drain(index) == 0 {
                    self.hca.platform.sleep(POLL_INTERVAL).await;
                }
                return Ok(());
            };
            // An event whose interrupt was lost would keep the queue silent for ever.
            if events.drain(index) == 0 {
                interrupt.wait().await;
                events.drain(index);
            }
            Ok(())
        }
    }
}

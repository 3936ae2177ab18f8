//! One card: its registers, doorbells and packets.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use fabric::{Packet, Service as Wire, is_multicast};
use hal::Instant;
use mad::smp::NodeDescription;
use mlx4_hw::qp::{QpState, Service};
use mlx4_hw::regs::{self, CqArm, EqDoorbell, SendDoorbell};
use verbs::{Guid, Qpn};

use crate::agents::Identity;
use crate::core::{Core, Diagnostics};
use crate::cq::CompletionQueues;
use crate::eq::EventQueues;
use crate::firmware::Firmware;
use crate::memory::Memory;
use crate::pci::{BAR0_SIZE, ConfigEffect, ConfigSpace};
use crate::pin::PIN;
use crate::port::Port;
use crate::qp::QueuePair;
use crate::registers::{Register, Registers};
use crate::rng::Rng;
use crate::srq::SharedQueues;
use crate::trace::{Doorbell, Event, Recorder, Tracer};
use crate::{Board, Counters, Host, NodeConfig, agents};

/// Packets that one doorbell or turn sends before others have theirs.
const TURN: u32 = 64;
/// Queue pairs that are read ahead at any time: those rung last.
const RUNG: usize = 8;
/// UAR pages: the area is 4 MB.
const UAR_PAGES: u64 = 1024;

/// One card.
pub(crate) struct Hca {
    pub(crate) pci: ConfigSpace,
    pub(crate) registers: Registers,
    pub(crate) firmware: Firmware,
    pub(crate) identity: Identity,
    pub(crate) core: Core,
    pub(crate) qps: HashMap<u32, QueuePair>,
    /// The queue pairs whose send doorbell was rung last.
    rung: VecDeque<u32>,
    /// The upper half of a CQ doorbell that comes in two stores, with its UAR page. 32-bit software
    /// has no store of 64 bits (Linux `mlx4/doorbell.h`, `mlx4_write64`).
    half_doorbell: Option<(u32, u32)>,
    /// Whether configuration space counts, as on a bus; a virtual machine monitor answers for it
    /// itself.
    on_bus: bool,
    /// Until when the card answers nothing after a reset (Linux `reset.c` waits for a second before
    /// it looks).
    gone_until: Instant,
    pub(crate) board: Board,
}

impl Hca {
    pub(crate) fn new(
        config: &NodeConfig,
        host: Option<Arc<dyn Host>>,
        recorder: Option<Arc<dyn Recorder>>,
        seed: u64,
    ) -> Self {
        let ports = config.ports.clamp(1, 2);
        Self {
            pci: ConfigSpace::new(ports, &config.board),
            registers: Registers::new(config.board.device),
            firmware: Firmware::default(),
            identity: Identity {
                guid: config.guid,
                description: NodeDescription::new(&config.name),
                device: config.board.device.id(),
            },
            core: Core {
                now: Instant::default(),
                memory: Memory::new(host, Tracer::new(recorder, &config.name)),
                events: EventQueues::default(),
                completions: CompletionQueues::default(),
                diagnostics: Diagnostics::default(),
                shared: SharedQueues::default(),
                ports: (1..=ports)
                    .map(|number| {
                        Port::new(number, Guid(config.guid.0.wrapping_add(u64::from(number))))
                    })
                    .collect(),
                outgoing: VecDeque::new(),
                timers: BTreeSet::new(),
                ready: VecDeque::new(),
                counters: Counters::default(),
                rng: Rng::new(seed),
            },
            qps: HashMap::new(),
            rung: VecDeque::new(),
            half_doorbell: None,
            on_bus: false,
            gone_until: Instant::default(),
            board: config.board.clone(),
        }
    }

    /// Puts the card on a bus: from now on configuration space counts, and a reset loses it.
    pub(crate) fn put_on_bus(&mut self) {
        self.on_bus = true;
        self.core.completions.checks_sequence = true;
        self.follow_config();
    }

    /// Resets as the reset register does on hardware: configuration space and ownership are lost as
    /// well, and nothing answers for a while (Linux `reset.c`, `mlx4_reset`, saves the header
    /// before and restores it after).
    fn reset_on_bus(&mut self) {
        let away = self.core.now + self.board.away;
        self.hard_reset();
        self.gone_until = away;
    }

    /// Returns whether loads and stores to this BAR reach the card.
    pub(crate) fn answers(&self, bar: u8) -> bool {
        !self.on_bus || self.core.now >= self.gone_until && self.pci.is_mapped(bar)
    }

    /// Forgets everything but configuration space, owner and cables.
    pub(crate) fn soft_reset(&mut self) {
        self.core.memory.tracer.record(|| Event::Reset);
        self.registers.reset();
        self.firmware = Firmware::default();
        self.close();
        self.core.memory.reset();
        self.half_doorbell = None;
    }

    /// Resets as a reset of the machine does.
    pub(crate) fn hard_reset(&mut self) {
        self.soft_reset();
        self.registers = Registers::new(self.board.device);
        let ports = u8::try_from(self.core.ports.len()).unwrap_or(1);
        self.pci = ConfigSpace::new(ports, &self.board);
        self.follow_config();
    }

    /// Ends all queues and takes the ports down (CLOSE_HCA and every reset).
    pub(crate) fn close(&mut self) {
        self.qps.clear();
        self.rung.clear();
        self.core.events.reset();
        self.core.completions.reset();
        self.core.shared = SharedQueues::default();
        self.core.ports.iter_mut().for_each(Port::reset);
        self.core.outgoing.clear();
        self.core.timers.clear();
        self.core.ready.clear();
    }

    pub(crate) fn counters(&self) -> Counters {
        let (dma_reads, dma_writes) = self.core.memory.accesses();
        Counters {
            dma_reads,
            dma_writes,
            interrupts: self.core.events.interrupts,
            ..self.core.counters
        }
    }

    /// Reads BAR 0: every dword of it answers something.
    pub(crate) fn read_registers(&mut self, offset: u64, into: &mut [u8]) {
        self.end_commands();
        let mut at = offset;
        let end = offset.saturating_add(into.len() as u64);
        let mut out = into.iter_mut();
        while at < end {
            let base = at - at % 4;
            let value = if base < BAR0_SIZE {
                self.registers.read(Register::at(base), self.core.now.nanos)
            } else {
                u32::MAX
            };
            for byte in value
                .to_be_bytes()
                .into_iter()
                .skip(usize::try_from(at % 4).unwrap_or(0))
            {
                if let Some(place) = out.next() {
                    *place = byte;
                }
            }
            at = base + 4;
        }
    }

    /// Writes BAR 0. Only whole dwords have an effect, as registers have no byte lanes.
    pub(crate) fn write_registers(&mut self, offset: u64, from: &[u8]) {
        self.end_commands();
        if !offset.is_multiple_of(4) {
            return;
        }
        for (at, chunk) in (offset..).step_by(4).zip(from.chunks_exact(4)) {
            let value = u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            let register = Register::at(at);
            if register == Register::Reset && value == regs::RESET_VALUE {
                if self.on_bus {
                    self.reset_on_bus();
                    break;
                }
                self.soft_reset();
            } else if let Register::ClearInterrupt(first) = register {
                self.clear_interrupt(first, value);
            } else if self.registers.write(register, value) {
                self.run_command();
            }
        }
        self.fail_with_queues();
    }

    /// Takes a write to the clear-interrupt register: the pins by their bits, from `first` on.
    fn clear_interrupt(&self, first: u8, value: u32) {
        let mask = PIN
            .checked_sub(first)
            .and_then(|bit| 1_u32.checked_shl(bit.into()));
        if mask.is_some_and(|mask| value & mask != 0) {
            let memory = &self.core.memory;
            memory.set_pin(memory.pin.set_pending(false));
        }
    }

    /// Writes configuration space, and follows what it says of interrupts.
    pub(crate) fn write_config(&mut self, offset: u16, from: &[u8]) -> ConfigEffect {
        if self.on_bus && self.core.now < self.gone_until {
            return ConfigEffect::None;
        }
        let effect = self.pci.write(offset, from);
        self.follow_config();
        effect
    }

    /// Reads configuration space at a time.
    pub(crate) fn read_config_at(&self, now: Instant, offset: u16, into: &mut [u8]) {
        if self.on_bus && now < self.gone_until {
            into.fill(0xff);
        } else {
            self.read_config(offset, into);
        }
    }

    /// Reads configuration space.
    pub(crate) fn read_config(&self, offset: u16, into: &mut [u8]) {
        self.pci
            .read(offset, into, self.core.memory.pin.is_pending());
    }

    fn follow_config(&self) {
        let memory = &self.core.memory;
        memory
            .masters_bus
            .set(!self.on_bus || self.pci.masters_bus());
        let (messages, disabled) = (self.pci.has_messages(), self.pci.pin_is_disabled());
        memory.set_pin(memory.pin.configure(messages, disabled));
    }

    /// Takes a write to BAR 2.
    pub(crate) fn ring(&mut self, offset: u64, from: &[u8]) {
        let page = offset / regs::UAR_PAGE_LEN as u64;
        let Ok(place) = usize::try_from(offset) else {
            return;
        };
        // No queue exists before INIT_HCA, so no doorbell means anything.
        if self.firmware.init.is_none() {
            return;
        }
        if page >= UAR_PAGES {
            return self.write_blueflame(page - UAR_PAGES, offset, from);
        }
        self.core.counters.doorbells += 1;
        let words: Vec<u32> = from
            .chunks_exact(4)
            .map(|chunk| u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
            .collect();
        let uar = u32::try_from(page).unwrap_or(0);
        if let (Some(eqn), [value]) = (regs::eq_of_doorbell(place), words.as_slice()) {
            let value = EqDoorbell::from(*value);
            self.tell(Doorbell::Events { eqn, value });
            self.core.events.ring(&self.core.memory, eqn, value);
        } else if self.serves_queues(uar) {
            self.ring_queue(uar, place % regs::UAR_PAGE_LEN, &words);
        }
        self.fail_with_queues();
    }

    /// Takes a write to a BlueFlame page: a request as it lies in the send queue, 64 bytes at a
    /// time in order, or a part of them. Its first two dwords say of which queue pair it is, so
    /// they are its doorbell (rdma-core `providers/mlx4/qp.c`, `mlx4_post_send`: `bf_qpn`,
    /// `mlx4_bf_copy`).
    fn write_blueflame(&mut self, page: u64, offset: u64, from: &[u8]) {
        const REGISTER: u64 = 256;
        let begins = offset.is_multiple_of(REGISTER) && from.len() >= 8;
        let uar = u32::try_from(page).unwrap_or(u32::MAX);
        if !self.board.blueflame || !begins || !self.serves_queues(uar) {
            return;
        }
        self.core.counters.doorbells += 1;
        let word = u32::from_be_bytes([from[4], from[5], from[6], from[7]]);
        self.ring_send(uar, SendDoorbell::from(word).qpn());
        self.fail_with_queues();
    }

    fn ring_queue(&mut self, uar: u32, within: usize, words: &[u32]) {
        const CQ_LOW: usize = regs::CQ_DOORBELL + 4;
        match (within, words) {
            (regs::SEND_DOORBELL, [value]) => self.ring_send(uar, SendDoorbell::from(*value).qpn()),
            (regs::CQ_DOORBELL, [arm, consumer]) => self.ring_cq(uar, *arm, *consumer),
            (regs::CQ_DOORBELL, [arm]) => self.half_doorbell = Some((uar, *arm)),
            (CQ_LOW, [consumer]) => {
                if let Some((page, arm)) =
                    self.half_doorbell.take().filter(|(page, _)| *page == uar)
                {
                    self.ring_cq(page, arm, *consumer);
                }
            }
            _ => {}
        }
    }

    fn tell(&self, doorbell: Doorbell) {
        self.core.memory.tracer.record(|| Event::Doorbell(doorbell));
    }

    fn ring_cq(&mut self, uar: u32, arm: u32, consumer: u32) {
        let consumer = mlx4_hw::bits::Low24::new(consumer).get();
        let arm = CqArm::from(arm);
        self.tell(Doorbell::Arm { uar, arm, consumer });
        let (memory, events) = (&self.core.memory, &mut self.core.events);
        self.core
            .completions
            .ring(memory, events, uar, arm, consumer);
    }

    fn ring_send(&mut self, uar: u32, qpn: u32) {
        self.tell(Doorbell::Send { uar, qpn });
        let Some(qp) = self.qps.get_mut(&qpn) else {
            log::debug!("doorbell for QP {qpn:#x}, which is not there");
            return;
        };
        // As for completion queues: pages are how processes are kept apart.
        if qp.context.uar.get() != uar {
            log::debug!("QP {qpn:#x} is not rung from UAR page {uar}");
            return;
        }
        qp.requester.ring();
        if !self.rung.contains(&qpn) {
            self.rung.truncate(RUNG - 1);
            self.rung.push_front(qpn);
        }
        if qp.pump(&mut self.core, TURN) {
            self.core.ready.push_back(qpn);
        }
    }

    /// Fails the queue pairs whose completion queue failed.
    ///
    /// A completion that was lost would leave its request outstanding for ever: so the queue pairs
    /// end too, and software learns of it (Linux `include/linux/mlx4/device.h`,
    /// `MLX4_EVENT_TYPE_WQ_CATAS_ERROR`).
    pub(crate) fn fail_with_queues(&mut self) {
        while let Some(cqn) = self.core.completions.newly_failed.pop() {
            for qp in self.qps.values_mut() {
                let uses = qp.context.send_cqn.get() == cqn || qp.context.receive_cqn.get() == cqn;
                if uses && !matches!(qp.state, QpState::ERR | QpState::RST) {
                    qp.fail_by_peer(&mut self.core, mlx4_hw::eq::EventType::WQ_CATASTROPHIC);
                }
            }
        }
    }

    /// Runs one ready queue pair for a turn; false if none is ready.
    pub(crate) fn take_turn(&mut self) -> bool {
        let Some(qpn) = self.core.ready.pop_front() else {
            return false;
        };
        if let Some(qp) = self.qps.get_mut(&qpn)
            && qp.pump(&mut self.core, TURN)
        {
            self.core.ready.push_back(qpn);
        }
        self.fail_with_queues();
        true
    }

    /// Reads the sends of the queue pairs that were rung last ahead of their doorbells, once in
    /// `one_in` calls.
    pub(crate) fn may_read_ahead(&mut self, one_in: u64) {
        if !self.core.rng.one_in(one_in) {
            return;
        }
        for qpn in &self.rung {
            if let Some(qp) = self.qps.get_mut(qpn) {
                qp.read_ahead(&self.core);
            }
        }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self) {
        self.end_commands();
        agents::send_traps(&mut self.core);
        while let Some(&(due, qpn)) = self.core.timers.first() {
            if due > self.core.now {
                break;
            }
            self.core.timers.pop_first();
            if let Some(qp) = self.qps.get_mut(&qpn) {
                qp.tick(&mut self.core);
            }
        }
        let core = &mut self.core;
        core.completions
            .tick(core.now, &core.memory, &mut core.events);
        self.fail_with_queues();
    }

    /// Returns the time at which the card has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let pairs = self.core.timers.first().map(|(due, _)| *due);
        let traps = self.core.ports.iter().filter_map(Port::trap_due);
        pairs
            .into_iter()
            .chain(self.core.completions.deadline())
            .chain(self.command_deadline())
            .chain(traps)
            .min()
    }

    /// Takes a packet that arrived at a port.
    pub(crate) fn receive(&mut self, number: u8, packet: Packet) {
        let Some(port) = self.core.port_mut(number) else {
            return;
        };
        port.counts.received(&packet);
        let active = port.is_active();
        // QP1 is in all partitions of the port (IBA 1.3, 10.9.9).
        let foreign = packet.dqpn == Qpn(1) && !port.admits_to_any(packet.pkey);
        self.core.counters.packets_received += 1;
        self.core.counters.bytes_received += packet.payload.len() as u64;
        match packet.dqpn {
            Qpn(0) => self.receive_special(number, 0, &packet),
            // QP0 above all others: its packets configure the port, so they come while it is not
            // active.
            _ if !active => log::debug!("port {number} is not active: a packet is dropped"),
            _ if foreign => log::debug!("port {number}: a packet of {} for QP1", packet.pkey),
            Qpn(1) => self.receive_special(number, 1, &packet),
            _ if is_multicast(packet.dlid) => self.receive_multicast(number, &packet, None),
            Qpn(qpn) => self.receive_at(qpn, packet),
        }
        self.fail_with_queues();
    }

    fn receive_at(&mut self, qpn: u32, packet: Packet) {
        let Some(qp) = self.qps.get_mut(&qpn) else {
            log::debug!("a packet for QP {qpn:#x}, which is not there");
            return;
        };
        if !qp.admits(&mut self.core, &packet) {
            log::debug!("QP {qpn:#x}: a packet of {}", packet.pkey);
            return;
        }
        match (qp.service(), packet.service) {
            (Service::UD, Wire::Ud) => qp.receive_datagram(&mut self.core, &packet, true),
            (Service::RC, Wire::Rc)
            | (Service::UC, Wire::Uc)
            | (Service::XRC, Wire::Xrc { .. })
                if qp.is_peer(&packet) =>
            {
                if packet.operation.is_response() {
                    qp.receive_response(&mut self.core, packet);
                } else {
                    qp.receive_request(&mut self.core, packet);
                }
            }
            _ => log::debug!("QP {qpn:#x}: a packet of another transport or peer"),
        }
    }

    /// Delivers a packet for QP0 or QP1: to the firmware's agent if it kept the queue pair, else to
    /// software's.
    fn receive_special(&mut self, number: u8, special: u8, packet: &Packet) {
        if self.firmware.agent_keeps(special) {
            let answer =
                packet.payload.as_slice().try_into().ok().and_then(|mad| {
                    agents::answer(&mut self.core, &self.identity, number, true, mad)
                });
            if let Some(answer) = answer {
                self.core
                    .send(number, agent_reply(packet, self.core.port(number), &answer));
            }
            return;
        }
        let Some(qpn) = self.firmware.special_qp(special, number) else {
            log::debug!("port {number}: nobody listens on QP{special}");
            return;
        };
        if let Some(qp) = self.qps.get_mut(&qpn) {
            // QP0 takes everything on its lane; QP1's key is the well-known one.
            qp.receive_datagram(&mut self.core, packet, special == 1);
        }
    }

    /// Gives a multicast packet that leaves by a port to the card's own members of the group, its
    /// sender among them, unless that was attached so that it does not hear itself (Linux `mcg.c`,
    /// `MGM_BLCK_LB_BIT`).
    pub(crate) fn loop_back(&mut self, number: u8, packet: &Packet) {
        if let fabric::Operation::Datagram { source, .. } = packet.operation
            && is_multicast(packet.dlid)
        {
            self.receive_multicast(number, packet, Some(source));
        }
    }

    fn receive_multicast(&mut self, number: u8, packet: &Packet, sender: Option<Qpn>) {
        let Some(grh) = packet.grh else { return };
        for member in self.group_members(grh.dgid.0) {
            let qpn = member.qpn();
            if member.block_loopback() && sender == Some(Qpn(qpn)) {
                continue;
            }
            if let Some(qp) = self.qps.get_mut(&qpn)
                && qp.service() == Service::UD
                && qp.port() == number
                && qp.admits(&mut self.core, packet)
            {
                qp.receive_datagram(&mut self.core, packet, true);
            }
        }
    }
}

impl QueuePair {
    /// Returns whether a packet comes from the peer that the queue pair is connected to.
    fn is_peer(&self, packet: &Packet) -> bool {
        packet.slid.0 == self.context.primary_path.remote_lid.get()
    }

    /// Returns whether a packet is of the queue pair's partition.
    fn admits(&self, core: &mut Core, packet: &Packet) -> bool {
        const DISABLES_CHECK: u8 = 1 << 6;
        let path = &self.context.primary_path;
        path.disable_pkey_check & DISABLES_CHECK != 0
            || core
                .port_mut(self.port())
                .is_some_and(|port| port.admits(path.pkey_index, packet.pkey))
    }
}

/// Builds the packet with the agent's answer.
fn agent_reply(request: &Packet, port: Option<&Port>, answer: &mad::Mad) -> Packet {
    let (to, qkey) = match request.operation {
        fabric::Operation::Datagram { source, qkey, .. } => (source, qkey),
        _ => (Qpn(0), verbs::QKey(0)),
    };
    let directed = request.dlid.0 == mad::smp::PERMISSIVE_LID;
    Packet {
        slid: if directed {
            request.dlid
        } else {
            port.map_or(verbs::Lid(0), Port::lid)
        },
        dlid: request.slid,
        dqpn: to,
        grh: None,
        operation: fabric::Operation::Datagram {
            qkey,
            source: request.dqpn,
            imm: None,
        },
        payload: answer.to_vec(),
        ..request.clone()
    }
}

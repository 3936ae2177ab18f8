//! The subnet manager: brings each port with a link to ACTIVE.
//!
//! One SMP at a time and port, each a step of [`Step`]; an SMP without answer is sent again, ever
//! more slowly, as long as the link is up (the node's driver may not listen yet).

use std::collections::{BTreeMap, VecDeque};

use hal::{Duration, Instant};
use mad::smp::{
    LinkWidth, MtuAndSl, Nibbles, NodeDescription, NodeInfo, PERMISSIVE_LID, PKeyTable, PortInfo,
    PortStateBits, Priority, SmInfo, SmState, Smp, attribute, data_of,
};
use mad::{Attribute, Method, Status};
use verbs::{Gid, Guid, Lid, PKey, Psn, QKey, Qpn};
use zerocopy::big_endian::{U16, U32, U64};

use crate::sa::Administrator;
use crate::switch::{self, Switch};
use crate::{Operation, Packet, PortIndex, Service};

/// The subnet manager's LID.
pub const SM_LID: Lid = Lid(1);
/// Default management key in OpenSM's manual. Managers with different keys ignore each other.
pub(crate) const KEY: u64 = 1;
/// The highest there is.
const PRIORITY: u8 = 15;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const SLOWEST_RETRY: Duration = Duration::from_millis(640);

/// State of a port's bring-up: the SMP that is sent next or waits for its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    NodeInfo,
    NodeDescription,
    PortInfo,
    PKeys,
    Configure,
    Arm,
    Activate,
    Done,
}

impl Step {
    fn next(self) -> Self {
        match self {
            Self::NodeInfo => Self::NodeDescription,
            Self::NodeDescription => Self::PortInfo,
            Self::PortInfo => Self::PKeys,
            Self::PKeys => Self::Configure,
            Self::Configure => Self::Arm,
            Self::Arm => Self::Activate,
            Self::Activate | Self::Done => Self::Done,
        }
    }
}

/// Manager's record of a switch port.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    step: Option<Step>,
    retry_at: Option<Instant>,
    retry_after: Duration,
    transaction: u64,
    /// The node's answers.
    pub(crate) node: NodeInfo,
    pub(crate) description: NodeDescription,
    pub(crate) info: PortInfo,
    pub(crate) lid: Lid,
}

impl Port {
    /// Returns whether the port was brought to ACTIVE.
    pub(crate) fn is_active(&self) -> bool {
        self.step == Some(Step::Done)
    }

    /// Returns the port's first GID.
    pub(crate) fn gid(&self) -> Gid {
        Gid::new(Gid::DEFAULT_PREFIX, Guid(self.node.port_guid.get()))
    }
}

/// The subnet manager.
#[derive(Default)]
pub(crate) struct SubnetManager {
    ports: Vec<Port>,
    lids: BTreeMap<Guid, Lid>,
    transaction: u64,
    administrator: Administrator,
    outgoing: VecDeque<(PortIndex, Packet)>,
    /// Counts on with each look at the manager, which thereby is seen to live.
    activity: u32,
}

impl SubnetManager {
    pub(crate) fn add_port(&mut self) {
        self.ports.push(Port {
            step: None,
            retry_at: None,
            retry_after: FIRST_RETRY,
            transaction: 0,
            node: NodeInfo::default(),
            description: NodeDescription([0; 64]),
            info: PortInfo::default(),
            lid: Lid(0),
        });
    }

    pub(crate) fn link_changed(
        &mut self,
        now: Instant,
        port: PortIndex,
        up: bool,
        switch: &mut Switch,
    ) {
        switch.forget_port(port.number());
        self.administrator.forget(port, switch);
        let state = &mut self.ports[port.0];
        state.retry_at = None;
        state.retry_after = FIRST_RETRY;
        state.step = up.then_some(Step::NodeInfo);
        if up {
            self.ask(now, port, switch);
        }
    }

    /// Takes a datagram for the subnet administrator.
    pub(crate) fn administer(
        &mut self,
        now: Instant,
        from: PortIndex,
        packet: &Packet,
        switch: &mut Switch,
    ) {
        let answers = self
            .administrator
            .answer(now, &self.ports, from, packet, switch);
        let answers = answers.into_iter().map(|answer| (from, answer));
        self.outgoing.extend(answers);
    }

    pub(crate) fn take_packet(&mut self) -> Option<(PortIndex, Packet)> {
        self.outgoing.pop_front()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let asked = self.ports.iter().filter_map(|port| port.retry_at);
        asked.chain(self.administrator.deadline()).min()
    }

    pub(crate) fn poll(&mut self, now: Instant, switch: &mut Switch) {
        for index in 0..self.ports.len() {
            if self.ports[index].retry_at.is_some_and(|at| at <= now) {
                self.ask(now, PortIndex(index), switch);
            }
        }
        self.outgoing.extend(self.administrator.poll(now));
    }

    /// Answers what is asked of the manager itself.
    pub(crate) fn answer(&mut self, mut smp: Smp) -> Option<Smp> {
        let status = match smp.header.method {
            Method::GET => {
                self.activity = self.activity.wrapping_add(1);
                smp.data = data_of(&SmInfo {
                    guid: U64::new(switch::GUID.0),
                    key: U64::new(KEY),
                    activity: U32::new(self.activity),
                    priority: Priority::new()
                        .with_priority(PRIORITY)
                        .with_state(SmState::MASTER),
                });
                Status::OK
            }
            // It neither stands by nor hands over.
            Method::SET => Status::BAD_FIELD,
            _ => return None,
        };
        Some(smp.into_response(status))
    }

    /// Takes a trap that came by a port: asks the node for its text again, and ends the trap.
    pub(crate) fn hear_trap(&mut self, from: PortIndex, smp: Smp) -> Option<Smp> {
        let port = self.ports.get_mut(from.0).filter(|port| port.is_active())?;
        self.transaction += 1;
        port.transaction = self.transaction;
        let ask = Smp::request(
            Method::GET,
            Attribute::NODE_DESCRIPTION,
            0,
            self.transaction,
        );
        if let Ok(mut ask) = ask.directed(&[from.number()]) {
            ask.set_hops(1, 1);
            self.outgoing.push_back((from, smp_packet(&ask)));
        }
        let mut end = smp;
        end.header.method = Method::TRAP_REPRESS;
        Some(end)
    }

    /// Takes an answer that came by a port.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        from: PortIndex,
        smp: &Smp,
        switch: &mut Switch,
    ) {
        let port = &mut self.ports[from.0];
        let renamed = port.is_active()
            && smp.header.attribute() == Attribute::NODE_DESCRIPTION
            && smp.header.transaction.get() == port.transaction;
        if renamed {
            port.description = NodeDescription(smp.data);
            return;
        }
        let awaited = smp.header.method == Method::GET_RESP
            && port.retry_at.is_some()
            && smp.header.transaction.get() == port.transaction;
        let Some(step) = port.step.filter(|_| awaited) else {
            log::debug!(
                "subnet manager: unexpected {} from port {}",
                smp.header.method,
                from.0
            );
            return;
        };
        if smp.header.status() != Status::OK {
            // Asked again by the retry timer.
            log::warn!(
                "subnet manager: port {} answers {step:?} by {}",
                from.0,
                smp.header.status()
            );
            return;
        }
        self.take_answer(from, step, smp, switch);
        let port = &mut self.ports[from.0];
        port.step = Some(step.next());
        port.retry_after = FIRST_RETRY;
        self.ask(now, from, switch);
    }

    fn take_answer(&mut self, from: PortIndex, step: Step, smp: &Smp, switch: &mut Switch) {
        let port = &mut self.ports[from.0];
        match step {
            Step::NodeInfo => {
                port.node = attribute(&smp.data).unwrap_or_default();
                let next = u16::try_from(self.lids.len())
                    .unwrap_or(u16::MAX)
                    .saturating_add(SM_LID.0 + 1);
                port.lid = *self
                    .lids
                    .entry(Guid(port.node.port_guid.get()))
                    .or_insert(Lid(next));
            }
            Step::NodeDescription => port.description = NodeDescription(smp.data),
            Step::PortInfo | Step::Configure | Step::Arm => {
                port.info = attribute(&smp.data).unwrap_or_default();
            }
            Step::Activate => {
                port.info = attribute(&smp.data).unwrap_or_default();
                switch.set_route(port.lid, Some(from.number()));
                log::info!(
                    "subnet manager: {} is {} at switch port {}",
                    port.gid(),
                    port.lid,
                    from.0
                );
            }
            Step::PKeys | Step::Done => {}
        }
    }

    /// Sends the SMP of the port's step, and sets its retry.
    fn ask(&mut self, now: Instant, index: PortIndex, switch: &mut Switch) {
        let port = &mut self.ports[index.0];
        let Some(step) = port.step else { return };
        // The switch's side of the link first, so that it is open when the other side begins to
        // send.
        match step {
            Step::Arm => switch.set_state(index.number(), PortStateBits::ARMED),
            Step::Activate => switch.set_state(index.number(), PortStateBits::ACTIVE),
            _ => {}
        }
        self.transaction += 1;
        let Some(smp) = request(port, step, self.transaction) else {
            port.retry_at = None;
            return;
        };
        port.transaction = self.transaction;
        port.retry_at = Some(now + port.retry_after);
        port.retry_after = (port.retry_after * 2).min(SLOWEST_RETRY);
        if let Ok(mut smp) = smp.directed(&[index.number()]) {
            smp.set_hops(1, 1);
            self.outgoing.push_back((index, smp_packet(&smp)));
        }
    }
}

/// Returns the request of a step, before it gets a route.
fn request(port: &Port, step: Step, transaction: u64) -> Option<Smp> {
    let smp = |method, attribute| Smp::request(method, attribute, 0, transaction);
    let set = |info: &PortInfo| Smp {
        data: data_of(info),
        ..smp(Method::SET, Attribute::PORT_INFO)
    };
    Some(match step {
        Step::NodeInfo => smp(Method::GET, Attribute::NODE_INFO),
        Step::NodeDescription => smp(Method::GET, Attribute::NODE_DESCRIPTION),
        Step::PortInfo => smp(Method::GET, Attribute::PORT_INFO),
        Step::PKeys => Smp {
            data: data_of(&partitions()),
            ..smp(Method::SET, Attribute::PKEY_TABLE)
        },
        Step::Configure => set(&configuration(port)),
        Step::Arm => set(&with_state(&configuration(port), PortStateBits::ARMED)),
        Step::Activate => set(&with_state(&configuration(port), PortStateBits::ACTIVE)),
        Step::Done => return None,
    })
}

/// Returns the partition table of every port: the default partition.
pub(crate) fn partitions() -> PKeyTable {
    let mut table = PKeyTable::default();
    table.0[0] = U16::new(PKey::DEFAULT.0);
    table
}

/// Returns the PortInfo to set: the port's own, with the addresses and limits of this subnet.
fn configuration(port: &Port) -> PortInfo {
    let mut info = port.info;
    info.m_key = U64::ZERO;
    info.gid_prefix = U64::new(Gid::DEFAULT_PREFIX);
    info.lid = U16::new(port.lid.0);
    info.sm_lid = U16::new(SM_LID.0);
    info.width_enabled = LinkWidth::X1 | LinkWidth::X4;
    info.mtu_sm_sl = MtuAndSl::new().with_mtu(info.mtu_cap.low());
    info.operational_vls = Nibbles::new().with_high(info.vl_cap.high());
    info.subnet_timeout = info
        .subnet_timeout
        .with_timeout(18)
        .with_client_reregister(false);
    with_state(&info, PortStateBits::NO_CHANGE)
}

fn with_state(info: &PortInfo, state: u8) -> PortInfo {
    let mut info = *info;
    info.speed_state = info.speed_state.with_state(state);
    info.phys = info.phys.with_state(0).with_down_default(0);
    info
}

fn smp_packet(smp: &Smp) -> Packet {
    management_packet(Lid(PERMISSIVE_LID), Lid(PERMISSIVE_LID), smp)
}

/// Builds a packet with an SMP between two QP0s.
#[must_use]
pub fn management_packet(slid: Lid, dlid: Lid, smp: &Smp) -> Packet {
    Packet {
        slid,
        dlid,
        sl: 0,
        vl15: true,
        grh: None,
        pkey: PKey::DEFAULT,
        dqpn: Qpn(0),
        psn: Psn(0),
        solicited: true,
        ack_request: false,
        service: Service::Ud,
        operation: Operation::Datagram {
            qkey: QKey(0),
            source: Qpn(0),
            imm: None,
        },
        payload: smp.to_mad().to_vec(),
    }
}

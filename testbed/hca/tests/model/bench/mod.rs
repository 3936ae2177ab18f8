//! A bare test bench: drives cards as software would, register by register.

pub(crate) mod queues;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use fabric::FabricConfig;
use hal::{Duration, Instant};
use hca_model::{Board, Cluster, ClusterConfig, DmaError, Host, NodeConfig, NodeIndex};
use mlx4_hw::bits::{Low, QueueBuffer, TableBase};
use mlx4_hw::command::{CmdStatus, Doorbell, Opcode, hcr, in_modifier::MapEq};
use mlx4_hw::eq::{EQ_STATE_ARMED, EqContext, QueueFlags};
use mlx4_hw::icm::MapEntry;
use mlx4_hw::init_hca::{InitHca, VERSION};
use mlx4_hw::mpt::Mpt;
use mlx4_hw::mtt::MttEntry;
use mlx4_hw::regs;
use verbs::{Guid, Lid};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub(crate) const RAM_LEN: usize = 24 << 20;
pub(crate) const UAR: u32 = 128;
pub(crate) const PD: u32 = 5;
pub(crate) const EQN: u32 = 4;
pub(crate) const SPECIAL_BASE: u32 = 0x40;
const ICM_BUS: u64 = 0x20_0000;
const ICM_LEN: u64 = 0x20_0000;
const QPC: u64 = 0;
const CQC: u64 = 0x4_0000;
const EQC: u64 = 0x6_0000;
const SRQC: u64 = 0x7_0000;
pub(crate) const DMPT: u64 = 0x8_0000;
pub(crate) const MTT: u64 = 0x10_0000;
const GROUPS: u64 = 0x18_0000;
const ALTC: u64 = 0xc_0000;
const AUXC: u64 = 0xd_0000;
const CMPT: u64 = 0x1_0000_0000;
/// The cMPT's windows for QPs, SRQs, CQs and EQs: ICM address, place in memory, log2 of the pages.
const CMPT_WINDOWS: [(u64, u64, u8); 4] = [
    (CMPT, 0x1b_0000, 4),
    (CMPT + 0x4000_0000, 0x1d_0000, 2),
    (CMPT + 0x8000_0000, 0x1c_0000, 4),
    (CMPT + 0xc000_0000, 0x1d_8000, 1),
];
const IN_MAILBOX: u64 = 0x1_0000;
const OUT_MAILBOX: u64 = 0x1_1000;
const HEAP: u64 = 0x40_0000;

/// A node's memory.
pub(crate) struct Ram {
    bytes: Mutex<Vec<u8>>,
    pub(crate) interrupts: AtomicU32,
    /// The interrupt pin is asserted.
    pub(crate) pin: AtomicBool,
}

impl Ram {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; RAM_LEN]),
            interrupts: AtomicU32::new(0),
            pin: AtomicBool::new(false),
        })
    }

    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, addr: u64) -> T {
        let mut value = T::new_zeroed();
        self.dma_read(addr, value.as_mut_bytes()).unwrap();
        value
    }

    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        self.dma_write(addr, bytes).unwrap();
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma_read(addr, &mut bytes).unwrap();
        bytes
    }
}

impl Host for Ram {
    fn dma_read(&self, addr: u64, into: &mut [u8]) -> Result<(), DmaError> {
        let error = DmaError {
            addr,
            len: into.len(),
        };
        let start = usize::try_from(addr).map_err(|_| error)?;
        let end = start.checked_add(into.len()).ok_or(error)?;
        into.copy_from_slice(self.bytes.lock().unwrap().get(start..end).ok_or(error)?);
        Ok(())
    }

    fn dma_write(&self, addr: u64, from: &[u8]) -> Result<(), DmaError> {
        let error = DmaError {
            addr,
            len: from.len(),
        };
        let start = usize::try_from(addr).map_err(|_| error)?;
        let end = start.checked_add(from.len()).ok_or(error)?;
        self.bytes
            .lock()
            .unwrap()
            .get_mut(start..end)
            .ok_or(error)?
            .copy_from_slice(from);
        Ok(())
    }

    fn raise(&self, _vector: u16) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    fn set_pin(&self, asserted: bool) {
        self.pin.store(asserted, Ordering::Relaxed);
    }
}

/// State of one node's software.
pub(crate) struct Node {
    pub(crate) index: NodeIndex,
    pub(crate) ram: Arc<Ram>,
    toggle: bool,
    heap: u64,
    pub(crate) next_mtt: u64,
    pub(crate) next_qpn: u32,
    pub(crate) next_cqn: u32,
    pub(crate) next_mpt: u32,
    pub(crate) eq: u64,
    pub(crate) eq_consumer: u32,
    pub(crate) lid: Lid,
}

/// A cluster with its software.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) nodes: Vec<Node>,
    pub(crate) now: Instant,
    /// Commands take time.
    pub(crate) patient: bool,
}

impl Bench {
    /// Nodes whose port 1 is active.
    pub(crate) fn new(count: usize, fabric: FabricConfig) -> Self {
        let mut bench = Self::cold(count, fabric);
        for node in 0..count {
            bench.bring_up(node);
        }
        for node in 0..count {
            bench.wait_active(node);
        }
        bench
    }

    /// Nodes as after power-on.
    pub(crate) fn cold(count: usize, fabric: FabricConfig) -> Self {
        Self::with_boards(count, fabric, &Board::default())
    }

    /// Nodes as after power-on, with a card of this kind each.
    pub(crate) fn with_boards(count: usize, fabric: FabricConfig, board: &Board) -> Self {
        let mut cluster = Cluster::new(ClusterConfig { fabric });
        let nodes = (0..count)
            .map(|number| {
                let ram = Ram::new();
                let guid = Guid(0x0002_c903_0000_0000 + 0x10 * (number as u64 + 1));
                let config = NodeConfig {
                    board: board.clone(),
                    ..NodeConfig::new(format!("node{number}"), guid, 1)
                };
                Node {
                    index: cluster.add_node(config, ram.clone()),
                    ram,
                    toggle: true,
                    heap: HEAP,
                    next_mtt: 0,
                    next_qpn: 0x48,
                    next_cqn: 0x80,
                    next_mpt: 0x100,
                    eq: 0,
                    eq_consumer: 0,
                    lid: Lid(0),
                }
            })
            .collect();
        Self {
            cluster,
            nodes,
            now: Instant::from_nanos(1),
            patient: false,
        }
    }

    /// Returns the toggle of a node's next command.
    pub(crate) fn next_toggle(&mut self, node: usize) -> bool {
        let toggle = self.nodes[node].toggle;
        self.nodes[node].toggle = !toggle;
        toggle
    }

    pub(crate) fn read(&mut self, node: usize, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.cluster.bar_read(
            self.nodes[node].index,
            self.now,
            0,
            offset as u64,
            &mut bytes,
        );
        u32::from_be_bytes(bytes)
    }

    pub(crate) fn write(&mut self, node: usize, offset: usize, value: u32) {
        let index = self.nodes[node].index;
        self.cluster
            .bar_write(index, self.now, 0, offset as u64, &value.to_be_bytes());
    }

    /// Rings a doorbell.
    pub(crate) fn ring(&mut self, node: usize, offset: usize, bytes: &[u8]) {
        let index = self.nodes[node].index;
        self.cluster
            .bar_write(index, self.now, 2, offset as u64, bytes);
    }

    /// Pieces of a node's memory, page-aligned.
    pub(crate) fn alloc(&mut self, node: usize, len: u64) -> u64 {
        let node = &mut self.nodes[node];
        let at = node.heap;
        node.heap += len.next_multiple_of(4096);
        assert!(
            usize::try_from(node.heap).unwrap() <= RAM_LEN,
            "out of test memory"
        );
        at
    }

    /// Maps memory by MTT entries, written straight into the table: their byte offset.
    pub(crate) fn map(&mut self, node: usize, addr: u64, len: u64) -> u64 {
        let first = self.nodes[node].next_mtt;
        let pages = len.div_ceil(4096);
        for page in 0..pages {
            self.write_mtt(node, (first + page) * 8, addr + page * 4096);
        }
        self.nodes[node].next_mtt += pages;
        first * 8
    }

    pub(crate) fn write_mtt(&self, node: usize, offset: u64, addr: u64) {
        self.nodes[node]
            .ram
            .put(ICM_BUS + MTT + offset, MttEntry::new(addr).as_bytes());
    }

    /// Writes the beginning of a memory key's entry in ICM.
    pub(crate) fn put_mpt(&self, node: usize, index: u32, bytes: &[u8]) {
        let entry = u64::from(index) * size_of::<Mpt>() as u64;
        self.nodes[node].ram.put(ICM_BUS + DMPT + entry, bytes);
    }

    /// Issues a command with a mailbox or immediate input. Returns the immediate output.
    pub(crate) fn command_raw(
        &mut self,
        node: usize,
        op: Opcode,
        op_mod: u8,
        in_mod: u32,
        param: u64,
    ) -> Result<u64, CmdStatus> {
        let toggle = self.next_toggle(node);
        let high = u32::try_from(param >> 32).unwrap();
        let low = u32::try_from(param & 0xffff_ffff).unwrap();
        self.write(node, regs::HCR + hcr::IN_PARAM_HIGH, high);
        self.write(node, regs::HCR + hcr::IN_PARAM_LOW, low);
        self.write(node, regs::HCR + hcr::IN_MODIFIER, in_mod);
        self.write(node, regs::HCR + hcr::OUT_PARAM_HIGH, 0);
        self.write(
            node,
            regs::HCR + hcr::OUT_PARAM_LOW,
            u32::try_from(OUT_MAILBOX).unwrap(),
        );
        self.write(node, regs::HCR + hcr::TOKEN, hcr::token(0xffff));
        let doorbell = Doorbell::new()
            .with_go(true)
            .with_toggle(toggle)
            .with_op_modifier(op_mod)
            .with_opcode(op);
        self.write(node, regs::HCR + hcr::DOORBELL, doorbell.into());
        if self.patient {
            self.now = self.now + Duration::from_millis(1);
        }
        let done = Doorbell::from(self.read(node, regs::HCR + hcr::DOORBELL));
        assert!(!done.go() && done.toggle() == toggle, "{op} did not end");
        if done.status() != CmdStatus::OK {
            return Err(done.status());
        }
        let high = self.read(node, regs::HCR + hcr::OUT_PARAM_HIGH);
        let low = self.read(node, regs::HCR + hcr::OUT_PARAM_LOW);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Issues a NOP that ends by an event.
    pub(crate) fn nop_by_event(&mut self, node: usize) {
        let toggle = self.nodes[node].toggle;
        self.nodes[node].toggle = !toggle;
        self.write(node, regs::HCR + hcr::TOKEN, hcr::token(0x1234));
        let doorbell = Doorbell::new()
            .with_go(true)
            .with_event(true)
            .with_toggle(toggle)
            .with_opcode(Opcode::NOP);
        self.write(node, regs::HCR + hcr::DOORBELL, doorbell.into());
        let done = Doorbell::from(self.read(node, regs::HCR + hcr::DOORBELL));
        assert!(!done.go() && done.toggle() == toggle);
    }

    /// Arms the event queue at what was taken of it.
    pub(crate) fn arm_eq(&mut self, node: usize) {
        let consumer = self.nodes[node].eq_consumer;
        let arm = u32::from(
            regs::EqDoorbell::new()
                .with_arm(true)
                .with_consumer(consumer),
        );
        self.ring(node, regs::eq_doorbell(EQN), &arm.to_be_bytes());
    }

    /// Issues a command with a structure in its input mailbox.
    pub(crate) fn command(
        &mut self,
        node: usize,
        op: Opcode,
        op_mod: u8,
        in_mod: u32,
        input: &[u8],
    ) -> Result<u64, CmdStatus> {
        self.nodes[node].ram.put(IN_MAILBOX, input);
        self.command_raw(node, op, op_mod, in_mod, IN_MAILBOX)
    }

    /// Returns the output mailbox.
    pub(crate) fn output<T: FromBytes + IntoBytes>(&self, node: usize) -> T {
        self.nodes[node].ram.get(OUT_MAILBOX)
    }

    /// Turns MSI-X on or off.
    pub(crate) fn enable_messages(&mut self, node: usize, on: bool) {
        const MSIX_CONTROL_HIGH: u16 = 0x9f;
        let (index, now) = (self.nodes[node].index, self.now);
        self.cluster
            .config_write(index, now, MSIX_CONTROL_HIGH, &[if on { 0x80 } else { 0 }]);
    }

    /// Brings a node up from reset to a started port; the firmware's agents keep QP0.
    pub(crate) fn bring_up(&mut self, node: usize) {
        self.write(node, regs::RESET, regs::RESET_VALUE);
        self.nodes[node].toggle = true;
        self.enable_messages(node, true);
        self.command_raw(node, Opcode::QUERY_FW, 0, 0, 0).unwrap();
        self.command(
            node,
            Opcode::MAP_FA,
            0,
            1,
            MapEntry::new(0, HEAP, 9).as_bytes(),
        )
        .unwrap();
        self.command_raw(node, Opcode::RUN_FW, 0, 0, 0).unwrap();
        self.command_raw(node, Opcode::QUERY_DEV_CAP, 0, 0, 0)
            .unwrap();
        assert!(
            self.command_raw(node, Opcode::SET_ICM_SIZE, 0, 0, ICM_LEN)
                .unwrap()
                >= 1
        );
        self.command(
            node,
            Opcode::MAP_ICM,
            0,
            1,
            MapEntry::new(0, ICM_BUS, 9).as_bytes(),
        )
        .unwrap();
        for (icm, at, log_pages) in CMPT_WINDOWS {
            let entry = MapEntry::new(icm, ICM_BUS + at, log_pages);
            self.command(node, Opcode::MAP_ICM, 0, 1, entry.as_bytes())
                .unwrap();
        }
        self.command(node, Opcode::INIT_HCA, 0, 0, profile().as_bytes())
            .unwrap();
        self.make_eq(node);
        self.command_raw(node, Opcode::CONF_SPECIAL_QP, 3, SPECIAL_BASE, 0)
            .unwrap();
        self.command_raw(node, Opcode::INIT_PORT, 0, 1, 0).unwrap();
    }

    fn make_eq(&mut self, node: usize) {
        let buffer = self.alloc(node, 4096);
        let mut eq = EqContext::new_zeroed();
        eq.flags = QueueFlags::new().with_state(EQ_STATE_ARMED);
        eq.log_size = Low::new(7);
        eq.vector = 1.into();
        eq.buffer = QueueBuffer::new(self.map(node, buffer, 4096), 12);
        self.command(node, Opcode::SW2HW_EQ, 0, EQN, eq.as_bytes())
            .unwrap();
        let mapping = MapEq::new().with_eqn(EQN).into();
        self.command_raw(node, Opcode::MAP_EQ, 0, mapping, u64::MAX)
            .unwrap();
        self.nodes[node].eq = buffer;
    }

    pub(crate) fn wait_active(&mut self, node: usize) {
        for _ in 0..200 {
            let info = self.port_info(node);
            if info.speed_state.state() == mad::smp::PortStateBits::ACTIVE {
                self.nodes[node].lid = Lid(info.lid.get());
                return;
            }
            self.step();
        }
        panic!("node {node} does not become active");
    }

    pub(crate) fn port_info(&mut self, node: usize) -> mad::smp::PortInfo {
        let smp = mad::smp::Smp::request(mad::Method::GET, mad::Attribute::PORT_INFO, 0, 1);
        self.command(node, Opcode::MAD_IFC, 1, 1, &smp.to_mad())
            .unwrap();
        let answer = mad::smp::Smp::parse(&self.output::<[u8; 256]>(node)).unwrap();
        mad::smp::attribute(&answer.data).unwrap()
    }

    /// Lets the cluster do what is due, and moves time to what it waits for. False when it waits
    /// for nothing.
    pub(crate) fn step(&mut self) -> bool {
        match self.cluster.poll(self.now) {
            Some(due) => {
                self.now = self.now.max(due);
                true
            }
            None => false,
        }
    }

    /// Runs until nothing waits any more, or for a simulated time.
    pub(crate) fn run(&mut self, most: Duration) {
        let end = self.now + most;
        while self.now < end && self.step() {}
    }
}

/// A profile that all rules are kept in.
pub(crate) fn profile() -> InitHca {
    let mut init = InitHca::new_zeroed();
    init.version = VERSION;
    init.qpc = TableBase::new(QPC, 10);
    init.cqc = TableBase::new(CQC, 10);
    init.eqc = TableBase::new(EQC, 7);
    init.srqc = TableBase::new(SRQC, 8);
    init.altc = ALTC.into();
    init.auxc = AUXC.into();
    init.cmpt = CMPT.into();
    init.dmpt = DMPT.into();
    init.log_mpts = Low::new(12);
    init.mtt = MTT.into();
    init.groups = GROUPS.into();
    init.log_group_entry = Low::new(10);
    init.log_group_hash = Low::new(6);
    init.log_groups = Low::new(7);
    init.log_uars = Low::new(10);
    init
}

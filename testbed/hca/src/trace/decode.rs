//! Mailboxes and queue entries as fields, by the layouts that driver and model share.

use core::fmt::Debug;

use mlx4_hw::bits::Low24;
use mlx4_hw::command::{Opcode, op_modifier};
use mlx4_hw::cq::{CQE_LEN, CqContext, Cqe};
use mlx4_hw::eq::{EQE_LEN, EqContext, Eqe, EventType, PortEvent};
use mlx4_hw::icm::MapEntry;
use mlx4_hw::init_hca::InitHca;
use mlx4_hw::mgm::GroupEntry;
use mlx4_hw::mpt::Mpt;
use mlx4_hw::qp::QpMailbox;
use mlx4_hw::query_adapter::{ModStatCfg, PortGuidCfg, QueryAdapter, QueryFunc};
use mlx4_hw::query_dev_cap::QueryDevCap;
use mlx4_hw::query_fw::QueryFw;
use mlx4_hw::query_port::QueryPort;
use mlx4_hw::set_port::SetPortIb;
use mlx4_hw::srq::SrqContext;
use mlx4_hw::wqe::{ControlSegment, DataSegment, RemoteAddressSegment, WqeOpcode};
use zerocopy::{FromBytes, IntoBytes};

use super::{Command, Purpose, fields};

type Fields = Vec<(String, String)>;

/// Entries of a list that are shown; bring-up maps thousands of pages.
const SHOWN: usize = 4;

/// Parses a layout at the head of the bytes; missing bytes read as zero.
fn parse<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    let mut value = T::new_zeroed();
    let into = value.as_mut_bytes();
    let len = into.len().min(bytes.len());
    into[..len].copy_from_slice(&bytes[..len]);
    value
}

fn of<T: FromBytes + IntoBytes + Debug>(bytes: &[u8]) -> Fields {
    fields(&parse::<T>(bytes))
}

/// Decodes a list of structures, of which it shows the first few.
fn list<T: FromBytes + IntoBytes + Debug>(name: &str, bytes: &[u8]) -> Fields {
    let mut out = Vec::new();
    for (index, entry) in bytes.chunks_exact(size_of::<T>()).take(SHOWN).enumerate() {
        for (field, value) in of::<T>(entry) {
            let dot = if field.is_empty() { "" } else { "." };
            out.push((format!("{name}[{index}]{dot}{field}"), value));
        }
    }
    out
}

/// Decodes the header of the MAD in a mailbox.
fn mad(bytes: &[u8]) -> Fields {
    of::<mad::Header>(bytes)
}

/// Decodes a command's input mailbox.
pub(super) fn input(command: &Command, bytes: &[u8]) -> Fields {
    if bytes.is_empty() {
        return Vec::new();
    }
    match command.opcode {
        Opcode::MAP_FA | Opcode::MAP_ICM | Opcode::MAP_ICM_AUX => list::<MapEntry>("block", bytes),
        Opcode::INIT_HCA => of::<InitHca>(bytes),
        Opcode::MOD_STAT_CFG => of::<ModStatCfg>(bytes),
        Opcode::SW2HW_MPT => of::<Mpt>(bytes),
        Opcode::WRITE_MTT => list::<zerocopy::big_endian::U64>("word", bytes),
        Opcode::SW2HW_EQ => of::<EqContext>(bytes),
        Opcode::SW2HW_CQ | Opcode::MODIFY_CQ => of::<CqContext>(bytes),
        Opcode::SW2HW_SRQ => of::<SrqContext>(bytes),
        Opcode::WRITE_MCG => of::<GroupEntry>(bytes),
        Opcode::MAD_IFC => mad(bytes),
        Opcode::SET_PORT if command.op_modifier == op_modifier::SET_PORT_IB => {
            of::<SetPortIb>(bytes)
        }
        opcode if crate::qp::transition(opcode).is_some() => of::<QpMailbox>(bytes),
        _ => raw(bytes),
    }
}

/// Decodes a command's output mailbox.
pub(super) fn output(command: &Command, bytes: &[u8]) -> Fields {
    if bytes.is_empty() {
        return Vec::new();
    }
    match command.opcode {
        Opcode::QUERY_FW => of::<QueryFw>(bytes),
        Opcode::QUERY_DEV_CAP => of::<QueryDevCap>(bytes),
        Opcode::QUERY_ADAPTER => of::<QueryAdapter>(bytes),
        Opcode::QUERY_FUNC => of::<QueryFunc>(bytes),
        Opcode::QUERY_PORT => of::<QueryPort>(bytes),
        Opcode::QUERY_HCA => of::<InitHca>(bytes),
        Opcode::MOD_STAT_CFG => of::<PortGuidCfg>(bytes),
        Opcode::QUERY_QP => of::<QpMailbox>(bytes),
        Opcode::QUERY_MPT | Opcode::HW2SW_MPT => of::<Mpt>(bytes),
        Opcode::QUERY_EQ | Opcode::HW2SW_EQ => of::<EqContext>(bytes),
        Opcode::QUERY_CQ | Opcode::HW2SW_CQ => of::<CqContext>(bytes),
        Opcode::QUERY_SRQ | Opcode::HW2SW_SRQ => of::<SrqContext>(bytes),
        Opcode::READ_MCG => of::<GroupEntry>(bytes),
        Opcode::MAD_IFC => mad(bytes),
        _ => raw(bytes),
    }
}

/// Bytes that no layout is known for, as far as they are not zero.
fn raw(bytes: &[u8]) -> Fields {
    let len = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    fields(&Raw {
        bytes: &bytes[..len],
    })
}

#[derive(Debug)]
#[expect(dead_code, reason = "it is read by its Debug form")]
struct Raw<'a> {
    bytes: &'a [u8],
}

/// Decodes the bytes of a DMA by its purpose.
pub(super) fn dma(purpose: Purpose, bytes: &[u8]) -> Fields {
    match purpose {
        Purpose::Mpt => of::<Mpt>(bytes),
        Purpose::Mtt => list::<zerocopy::big_endian::U64>("entry", bytes),
        Purpose::Mcg => of::<GroupEntry>(bytes),
        Purpose::SendWqe => send(bytes),
        Purpose::ReceiveWqe => list::<DataSegment>("piece", bytes),
        Purpose::Cqe => cqe(bytes),
        Purpose::Eqe => eqe(bytes),
        Purpose::DoorbellRecord => vec![(
            "counter".into(),
            format!("{:#x}", parse::<Low24>(bytes).get()),
        )],
        Purpose::Mailbox | Purpose::Payload | Purpose::PageList | Purpose::ReadAhead => Vec::new(),
    }
}

/// Decodes a send request: its control segment, and the address in the peer's memory.
fn send(bytes: &[u8]) -> Fields {
    let control: ControlSegment = parse(bytes);
    let mut out = fields(&control);
    let remote = matches!(
        control.owner.opcode(),
        WqeOpcode::RDMA_READ
            | WqeOpcode::RDMA_WRITE
            | WqeOpcode::RDMA_WRITE_IMM
            | WqeOpcode::ATOMIC_CS
            | WqeOpcode::ATOMIC_FA
    );
    if let Some(rest) = bytes.get(size_of::<ControlSegment>()..).filter(|_| remote) {
        out.extend(of::<RemoteAddressSegment>(rest));
    }
    out
}

/// Decodes a completion. Its last dwords, with the owner bit, are written separately.
fn cqe(bytes: &[u8]) -> Fields {
    match bytes.len() {
        CQE_LEN => of::<Cqe>(bytes),
        len if len < CQE_LEN => {
            let mut whole = [0; CQE_LEN];
            let at = if len == 8 { CQE_LEN - len } else { 0 };
            whole[at..at + len].copy_from_slice(bytes);
            of::<Cqe>(&whole)
        }
        _ => Vec::new(),
    }
}

/// Decodes an event without its owner bit, which is written separately.
fn eqe(bytes: &[u8]) -> Fields {
    if bytes.len() <= 8 || bytes.len() > EQE_LEN {
        return Vec::new();
    }
    let event: Eqe = parse(bytes);
    let mut out = vec![("event".into(), event.event.to_string())];
    if event.subtype != 0 {
        out.push(("subtype".into(), format!("{:#x}", event.subtype)));
    }
    match event.event {
        EventType::COMMAND => out.extend(fields(&event.command())),
        EventType::PORT_CHANGE => out.extend(of::<PortEvent>(&event.data)),
        _ => out.push(("number".into(), format!("{:#x}", event.number()))),
    }
    out
}

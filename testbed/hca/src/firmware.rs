//! The firmware: takes commands from the command register and carries them out.

mod bringup;
mod pending;
mod ports;
mod queue_pairs;
mod resources;
mod rules;

use std::collections::BTreeSet;

use mlx4_hw::command::{CmdStatus, Doorbell, MAILBOX_LEN, Opcode, hcr};
use mlx4_hw::eq::{CommandEvent, EventType};
use mlx4_hw::init_hca::InitHca;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::hca::Hca;
use crate::trace::{self, Event, Purpose};
use pending::{Pending, Posted};

/// Firmware's state between commands.
#[derive(Default)]
pub(crate) struct Firmware {
    /// Pages of the firmware area that MAP_FA gave.
    area_pages: u64,
    running: bool,
    pub(crate) init: Option<InitHca>,
    special: Option<Special>,
    /// Memory keys' entries that software has given to the device since INIT_HCA. Whose an entry is
    /// now, its status in ICM tells.
    given_mpts: BTreeSet<u32>,
    /// Commands that it works at.
    pending: Vec<Pending>,
    /// Answers of QUERY_DEV_CAP so far.
    limits_told: u32,
}

/// Version of the firmware.
pub(crate) const FIRMWARE: [u32; 3] = [2, 42, 5000];

/// The block of special queue pairs.
#[derive(Debug, Clone, Copy)]
struct Special {
    base: u32,
    /// The firmware's own agents keep QP0, QP1.
    kept: [bool; 2],
}

/// Special queue pairs come in a block of eight: QP0 of both ports, QP1 of both ports, four unused.
const SPECIAL_BLOCK: u32 = 8;

impl Firmware {
    pub(crate) fn agent_keeps(&self, special: u8) -> bool {
        self.special
            .is_some_and(|block| block.kept[usize::from(special & 1)])
    }

    /// Returns the queue pair that serves as QP0 or QP1 of a port.
    pub(crate) fn special_qp(&self, special: u8, port: u8) -> Option<u32> {
        let block = self.special?;
        Some(block.base + u32::from(special) * 2 + u32::from(port) - 1)
    }
}

/// One command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    opcode: Opcode,
    op_modifier: u8,
    in_modifier: u32,
    /// A mailbox's bus address, or the value itself.
    in_param: u64,
    out_param: u64,
}

/// Outcome of a command: an immediate result or an error.
type Outcome = Result<u64, CmdStatus>;

impl Hca {
    /// Returns the command in the register.
    fn posted_command(&self, doorbell: Doorbell) -> Posted {
        let dword = |offset: usize| self.registers.command[offset / 4];
        let command = Command {
            opcode: doorbell.opcode(),
            op_modifier: doorbell.op_modifier(),
            in_modifier: dword(hcr::IN_MODIFIER),
            in_param: join(dword(hcr::IN_PARAM_HIGH), dword(hcr::IN_PARAM_LOW)),
            out_param: join(dword(hcr::OUT_PARAM_HIGH), dword(hcr::OUT_PARAM_LOW)),
        };
        Posted {
            command,
            doorbell,
            token: hcr::token_of(dword(hcr::TOKEN)),
        }
    }

    /// Executes a command and reports its end.
    fn carry_out(&mut self, posted: &Posted) {
        let Posted {
            command,
            doorbell,
            token,
        } = *posted;
        self.core.counters.commands += 1;
        let outcome = self.execute(&command);
        match outcome {
            Ok(_) => log::trace!("{} {:#x}", command.opcode, command.in_modifier),
            Err(status) => log::debug!("{} {:#x}: {status}", command.opcode, command.in_modifier),
        }
        let status = outcome.err().unwrap_or(CmdStatus::OK);
        let result = outcome.unwrap_or(command.out_param);
        self.core.memory.tracer.record(|| {
            Event::Command(trace::Command {
                opcode: command.opcode,
                op_modifier: command.op_modifier,
                in_modifier: command.in_modifier,
                in_param: command.in_param,
                out_param: command.out_param,
                token,
                by_event: doorbell.event(),
                status,
                result,
            })
        });
        if !doorbell.event() {
            // Status and output are there in the same step as `go` clears: no load of software's
            // comes between.
            self.free_register(doorbell, status);
            let (high, low) = split(result);
            self.registers.command[hcr::OUT_PARAM_HIGH / 4] = high;
            self.registers.command[hcr::OUT_PARAM_LOW / 4] = low;
        } else {
            let mut event = CommandEvent::new_zeroed();
            event.token = token.into();
            event.status = status;
            event.out_param = result.into();
            let data = zerocopy::transmute!(event);
            self.core
                .events
                .report(&self.core.memory, EventType::COMMAND, 0, data);
        }
    }

    fn execute(&mut self, command: &Command) -> Outcome {
        self.check_stage(command.opcode)?;
        if let Some((from, to)) = crate::qp::transition(command.opcode) {
            return self.change_qp(command, from, to);
        }
        match command.opcode {
            Opcode::QUERY_FW => self.query_fw(command),
            Opcode::MAP_FA => self.map_area(command),
            Opcode::RUN_FW => self.run_firmware(),
            Opcode::UNMAP_FA => self.unmap_area(),
            Opcode::MOD_STAT_CFG => self.static_configuration(command),
            Opcode::QUERY_DEV_CAP => self.query_capabilities(command),
            Opcode::QUERY_ADAPTER => self.query_adapter(command),
            Opcode::QUERY_FUNC => self.query_function(command),
            Opcode::SET_ICM_SIZE => Ok(bringup::auxiliary_pages(command.in_param)),
            // The firmware area and the auxiliary area are never used: what they hold is in the
            // model.
            Opcode::MAP_ICM_AUX => self.check_map(command).map(|_| 0),
            Opcode::UNMAP_ICM_AUX | Opcode::SYNC_TPT | Opcode::NOP => Ok(0),
            Opcode::MAP_ICM => self.map_icm(command),
            Opcode::UNMAP_ICM => self.unmap_icm(command),
            Opcode::INIT_HCA => self.init_hca(command),
            Opcode::QUERY_HCA => self.query_hca(command),
            Opcode::CLOSE_HCA => self.close_hca(),
            Opcode::QP_2RST => self.reset_qp(command),
            Opcode::QUERY_QP => self.query_qp(command),
            Opcode::CONF_SPECIAL_QP => self.configure_special(command),
            opcode => self.execute_resource(opcode, command),
        }
    }

    fn execute_resource(&mut self, opcode: Opcode, command: &Command) -> Outcome {
        match opcode {
            Opcode::SW2HW_MPT => self.take_mpt(command),
            Opcode::HW2SW_MPT => self.give_mpt(command),
            Opcode::QUERY_MPT => self.query_mpt(command),
            Opcode::WRITE_MTT => self.write_mtt(command),
            Opcode::MAP_EQ => self.map_eq(command),
            Opcode::SW2HW_EQ => self.take_eq(command),
            Opcode::HW2SW_EQ => self.give_eq(command),
            Opcode::QUERY_EQ => self.query_eq(command),
            Opcode::SW2HW_CQ => self.take_cq(command),
            Opcode::HW2SW_CQ => self.give_cq(command),
            Opcode::QUERY_CQ => self.query_cq(command),
            Opcode::MODIFY_CQ => self.modify_cq(command),
            Opcode::SW2HW_SRQ => self.take_srq(command),
            Opcode::HW2SW_SRQ => self.give_srq(command),
            Opcode::QUERY_SRQ => self.query_srq(command),
            Opcode::ARM_SRQ => self.arm_srq(command),
            Opcode::READ_MCG => self.read_group(command),
            Opcode::WRITE_MCG => self.write_group(command),
            Opcode::MGID_HASH => self.hash_group(command),
            Opcode::INIT_PORT => self.init_port(command, true),
            Opcode::CLOSE_PORT => self.init_port(command, false),
            Opcode::SET_PORT => self.set_port(command),
            Opcode::QUERY_PORT => self.query_port(command),
            Opcode::SENSE_PORT => Ok(ports::SENSED_INFINIBAND),
            Opcode::MAD_IFC => self.give_mad(command),
            Opcode::SET_NODE => self.set_node(command),
            Opcode::DIAG_RPRT => self.write_bytes(command, &self.core.diagnostics.report()),
            Opcode::MAD_DEMUX if self.board.mad_demux => self.demultiplex(command),
            opcode => {
                log::info!("command {opcode} is not known");
                Err(CmdStatus::BAD_OP)
            }
        }
    }

    /// Checks that bring-up has come far enough for a command.
    fn check_stage(&self, opcode: Opcode) -> Result<(), CmdStatus> {
        let always = matches!(
            opcode,
            Opcode::QUERY_FW | Opcode::MAP_FA | Opcode::RUN_FW | Opcode::UNMAP_FA
        );
        let before_init = matches!(
            opcode,
            Opcode::MOD_STAT_CFG
                | Opcode::QUERY_DEV_CAP
                | Opcode::QUERY_PORT
                | Opcode::SENSE_PORT
                | Opcode::QUERY_ADAPTER
                | Opcode::QUERY_FUNC
                | Opcode::QUERY_HCA
                | Opcode::SET_ICM_SIZE
                | Opcode::MAP_ICM_AUX
                | Opcode::UNMAP_ICM_AUX
                | Opcode::MAP_ICM
                | Opcode::UNMAP_ICM
                | Opcode::INIT_HCA
                | Opcode::CLOSE_HCA
                | Opcode::NOP
        );
        let ready =
            always || (self.firmware.running && (before_init || self.firmware.init.is_some()));
        if ready || opcode.name().is_none() {
            Ok(())
        } else {
            Err(CmdStatus::BAD_SYS_STATE)
        }
    }

    /// Reads the input mailbox.
    fn read_input<T: FromBytes + IntoBytes>(&self, command: &Command) -> Result<T, CmdStatus> {
        check_mailbox(command.in_param)?;
        self.core
            .memory
            .read_as(Purpose::Mailbox, command.in_param)
            .map_err(|_| CmdStatus::BAD_PARAM)
    }

    /// Writes a structure into the output mailbox.
    fn write_output<T: IntoBytes + Immutable>(&self, command: &Command, value: &T) -> Outcome {
        self.write_bytes(command, value.as_bytes())
    }

    /// Writes bytes into the output mailbox.
    fn write_bytes(&self, command: &Command, bytes: &[u8]) -> Outcome {
        check_mailbox(command.out_param)?;
        self.core
            .memory
            .write(Purpose::Mailbox, command.out_param, bytes)
            .map_err(|_| CmdStatus::BAD_PARAM)?;
        Ok(command.out_param)
    }

    /// Returns INIT_HCA's profile.
    fn profile(&self) -> Result<&InitHca, CmdStatus> {
        self.firmware.init.as_ref().ok_or(CmdStatus::BAD_SYS_STATE)
    }
}

/// Checks a mailbox's alignment. A mailbox is a page, but iPXE uses quarter pages.
fn check_mailbox(addr: u64) -> Result<(), CmdStatus> {
    const SMALLEST: u64 = 1024;
    let fits = addr.is_multiple_of(SMALLEST) && addr.checked_add(MAILBOX_LEN as u64).is_some();
    if fits {
        Ok(())
    } else {
        Err(CmdStatus::BAD_PARAM)
    }
}

fn join(high: u32, low: u32) -> u64 {
    let [a, b, c, d] = high.to_be_bytes();
    let [e, f, g, h] = low.to_be_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    )
}

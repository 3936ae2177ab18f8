//! Bring-up commands: the device's capabilities, its memory, and its profile.

use mlx4_hw::bits::{High, Low};
use mlx4_hw::command::{CmdStatus, op_modifier};
use mlx4_hw::icm::{ENTRIES_PER_MAILBOX, MapEntry, PAGE_LEN};
use mlx4_hw::init_hca::InitHca;
use mlx4_hw::query_adapter::{ModStatCfg, PortGuidCfg, QueryAdapter, QueryFunc};
use mlx4_hw::query_dev_cap::{Capabilities, QueryDevCap};
use mlx4_hw::query_fw::QueryFw;
use zerocopy::{FromZeros, IntoBytes};

use super::{Command, Firmware, Outcome, rules};
use crate::hca::Hca;
use crate::memory::{RESERVED_LKEY, Tables};
use crate::registers::{CATASTROPHIC, CATASTROPHIC_DWORDS, CLEAR_INTERRUPT, CLOCK, CLOCK_MHZ};
use crate::trace::Purpose;

/// Pages that the firmware wants for itself.
const AREA_PAGES: u16 = 0x200;
/// log2 of the numbers that belong to firmware, from 0 on.
pub(super) const LOG_RESERVED_QPS: u8 = 6;
pub(super) const LOG_RESERVED_SRQS: u8 = 6;
pub(super) const LOG_RESERVED_CQS: u8 = 7;
pub(super) const LOG_RESERVED_MPTS: u8 = 8;
pub(super) const LOG_RESERVED_EQS: u8 = 2;
/// EQs of the system, those of them that firmware keeps, and one more than the last that software
/// may use: as firmware 2.42.5000 of a Dell R730's card answers.
pub(super) const SYSTEM_EQS: u16 = 1024;
pub(super) const RESERVED_SYSTEM_EQS: u16 = 28;
const MOST_SYSTEM_EQS: u16 = 156;
/// log2 of a BlueFlame register's bytes, half of which a request may take, and of the registers of
/// a page.
const LOG_BLUEFLAME: u8 = 9;
const LOG_BLUEFLAME_REGISTERS: u8 = 3;
/// UAR pages of firmware.
pub(super) const RESERVED_UARS: u8 = 1;
/// log2 of the largest queues.
pub(super) const LOG_MAX_EQES: u8 = 22;
pub(super) const LOG_MAX_CQES: u8 = 22;
/// Local invalidate, remote invalidate, reserved L_Key, fast register (Linux `MLX4_BMME_FLAG_*`).
const MEMORY_EXTENSIONS: u32 = 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11;

/// Returns the auxiliary pages that a device with so much ICM requests.
pub(super) fn auxiliary_pages(icm_len: u64) -> u64 {
    const ICM_PER_PAGE: u64 = 2 << 20;
    (icm_len / ICM_PER_PAGE).clamp(1, 4096)
}

impl Hca {
    pub(super) fn query_fw(&mut self, command: &Command) -> Outcome {
        let mut fw = QueryFw::new_zeroed();
        fw.pages = AREA_PAGES.into();
        let [major, minor, subminor] =
            super::FIRMWARE.map(|number| u16::try_from(number).unwrap_or(u16::MAX).into());
        (fw.major, fw.minor, fw.subminor) = (major, minor, subminor);
        fw.command_revision = 3.into();
        fw.log_max_commands = 4;
        fw.clear_interrupt.offset = CLEAR_INTERRUPT.into();
        fw.catastrophic_offset = CATASTROPHIC.into();
        fw.catastrophic_len = CATASTROPHIC_DWORDS.into();
        fw.clock.offset = CLOCK.into();
        self.write_output(command, &fw)
    }

    /// Returns the checked blocks of a mapping command's mailbox.
    pub(super) fn check_map(&self, command: &Command) -> Result<Vec<MapEntry>, CmdStatus> {
        let count = usize::try_from(command.in_modifier).unwrap_or(usize::MAX);
        if !(1..=ENTRIES_PER_MAILBOX).contains(&count) {
            return Err(CmdStatus::BAD_PARAM);
        }
        super::check_mailbox(command.in_param)?;
        let mut entries = vec![MapEntry::new(0, 0, 0); count];
        let bytes = entries.as_mut_slice().as_mut_bytes();
        self.core
            .memory
            .read(Purpose::Mailbox, command.in_param, bytes)
            .map_err(|_| CmdStatus::BAD_PARAM)?;
        let aligned = |entry: &MapEntry| entry.addr().is_multiple_of(block_len(entry));
        if !entries.iter().all(aligned) {
            return Err(CmdStatus::BAD_PARAM);
        }
        Ok(entries)
    }

    pub(super) fn map_area(&mut self, command: &Command) -> Outcome {
        let pages: u64 = self
            .check_map(command)?
            .iter()
            .map(|entry| block_len(entry) / PAGE_LEN)
            .sum();
        self.firmware.area_pages = self.firmware.area_pages.saturating_add(pages);
        Ok(0)
    }

    pub(super) fn unmap_area(&mut self) -> Outcome {
        self.close();
        self.core.memory.reset();
        self.firmware = Firmware::default();
        Ok(0)
    }

    pub(super) fn run_firmware(&mut self) -> Outcome {
        // Firmware would run into memory that nobody gave it.
        if self.firmware.area_pages < u64::from(AREA_PAGES) {
            return Err(CmdStatus::BAD_SYS_STATE);
        }
        self.firmware.running = true;
        Ok(0)
    }

    pub(super) fn static_configuration(&self, command: &Command) -> Outcome {
        if command.op_modifier != op_modifier::MOD_STAT_CFG_QUERY {
            // The pages of ICM are of 4 KB whatever it says.
            self.read_input::<ModStatCfg>(command)?;
            return Ok(0);
        }
        let [_, _, number, _] = command.in_modifier.to_be_bytes();
        let port = self.core.port(number).ok_or(CmdStatus::BAD_PARAM)?;
        let mut answer = PortGuidCfg::new_zeroed();
        let (high, low) = super::split(port.guid().0);
        answer.high = high.into();
        answer.low = low.into();
        self.write_output(command, &answer)
    }

    pub(super) fn query_capabilities(&mut self, command: &Command) -> Outcome {
        let mut caps = QueryDevCap::new_zeroed();
        limits(&mut caps);
        entry_lengths(&mut caps);
        caps.ports = Low::new(u8::try_from(self.core.ports.len()).unwrap_or(1));
        caps.capabilities = Capabilities::new()
            .with_rc(true)
            .with_uc(true)
            .with_ud(true)
            .with_xrc(true)
            .with_srq(true)
            .with_atomics(true)
            .with_ud_multicast(true)
            .with_unicast_steering(true)
            .with_multicast_steering(true)
            .with_eqe_64(self.board.wide_entries)
            .with_cqe_64(self.board.wide_entries)
            .with_port_management_events(true);
        if self.board.system_eqs {
            caps.system_eqs = SYSTEM_EQS.into();
        }
        caps.timestamps = High::new(1);
        caps.memory_extensions = MEMORY_EXTENSIONS.into();
        caps.reserved_lkey = RESERVED_LKEY.into();
        caps.set_mad_demux(self.board.mad_demux);
        if self.board.blueflame {
            caps.blueflame = High::new(1);
            caps.log_blueflame_len = Low::new(LOG_BLUEFLAME);
            caps.log_blueflame_registers = Low::new(LOG_BLUEFLAME_REGISTERS);
        }
        // A card has been seen to answer 0 now and then.
        let told = self.firmware.limits_told;
        self.firmware.limits_told += 1;
        if told >= self.board.empty_limits {
            caps.max_icm = (1 << 40).into();
        }
        self.write_output(command, &caps)
    }

    pub(super) fn query_adapter(&self, command: &Command) -> Outcome {
        let mut adapter = QueryAdapter::new_zeroed();
        adapter.interrupt_pin = crate::pin::PIN;
        self.write_output(command, &adapter)
    }

    pub(super) fn query_function(&self, command: &Command) -> Outcome {
        let mut function = QueryFunc::new_zeroed();
        function.reserved_eqs = RESERVED_SYSTEM_EQS.into();
        function.max_eqs = MOST_SYSTEM_EQS.into();
        self.write_output(command, &function)
    }

    pub(super) fn map_icm(&mut self, command: &Command) -> Outcome {
        for entry in self.check_map(command)? {
            if !self
                .core
                .memory
                .icm
                .map(entry.icm_addr.get(), entry.addr(), block_len(&entry))
            {
                return Err(CmdStatus::BAD_PARAM);
            }
        }
        Ok(0)
    }

    pub(super) fn unmap_icm(&mut self, command: &Command) -> Outcome {
        let len = u64::from(command.in_modifier).saturating_mul(PAGE_LEN);
        self.core.memory.icm.unmap(command.in_param, len);
        Ok(0)
    }

    pub(super) fn init_hca(&mut self, command: &Command) -> Outcome {
        if self.firmware.init.is_some() {
            return Err(CmdStatus::BAD_SYS_STATE);
        }
        let init: InitHca = self.read_input(command)?;
        rules::check_profile(&init, &self.board)?;
        // Before any queue exists: entries of one size for all (Linux `fw.c`, `mlx4_INIT_HCA`,
        // `INIT_HCA_EQE_CQE_OFFSETS`).
        self.core.events.wide = init.entry_len.eqe_64();
        self.core.completions.wide = init.entry_len.cqe_64();
        self.core.memory.tables = Tables {
            mtt: init.mtt.get(),
            mpt: init.dmpt.get(),
            log_mpts: init.log_mpts.get(),
        };
        self.firmware.init = Some(init);
        Ok(0)
    }

    pub(super) fn query_hca(&self, command: &Command) -> Outcome {
        let mut answer = self.firmware.init.unwrap_or_else(InitHca::new_zeroed);
        answer.clock_mhz = CLOCK_MHZ.into();
        self.write_output(command, &answer)
    }

    /// ICM stays mapped, as software unmaps it behind this (Linux `main.c`, `mlx4_close_hca`,
    /// `mlx4_free_icms`).
    pub(super) fn close_hca(&mut self) -> Outcome {
        self.close();
        self.firmware.init = None;
        self.firmware.special = None;
        self.firmware.given_mpts.clear();
        Ok(0)
    }
}

fn block_len(entry: &MapEntry) -> u64 {
    PAGE_LEN << entry.log_pages()
}

/// Sets the limits on each kind of resource: the values of real boards where they are published.
fn limits(caps: &mut QueryDevCap) {
    caps.log_max_srq_wqes = 14;
    caps.log_max_qp_wqes = 14;
    caps.log_reserved_qps = Low::new(LOG_RESERVED_QPS);
    caps.log_max_qps = Low::new(24);
    caps.log_reserved_srqs = High::new(LOG_RESERVED_SRQS);
    caps.log_max_srqs = Low::new(24);
    caps.log_max_cqes = LOG_MAX_CQES;
    caps.log_reserved_cqs = Low::new(LOG_RESERVED_CQS);
    caps.log_max_cqs = Low::new(24);
    caps.log_max_eqes = LOG_MAX_EQES;
    caps.log_max_mpts = Low::new(24);
    caps.log_reserved_eqs = Low::new(LOG_RESERVED_EQS);
    caps.log_max_eqs = Low::new(10);
    caps.log_reserved_mtts = High::new(6);
    caps.log_max_region = 40;
    caps.log_reserved_mpts = Low::new(LOG_RESERVED_MPTS);
    caps.log_max_mtts = 28;
    caps.log_max_reads_as_requester = Low::new(7);
    caps.log_max_reads_as_responder = Low::new(7);
    caps.log_max_reads = Low::new(22);
    caps.ack_delay = Low::new(15);
    caps.log_max_message = Low::new(30);
    caps.log_max_gids = Low::new(crate::port::LOG_TABLE_LEN);
    caps.log_max_pkeys = Low::new(crate::port::LOG_TABLE_LEN);
    caps.reserved_uars = High::new(RESERVED_UARS);
    caps.log_uar_megabytes = Low::new(2);
    caps.log_min_page = 9;
    caps.max_send_pieces = 62;
    caps.max_send_descriptor = 0x3f0.into();
    caps.max_receive_pieces = 32;
    caps.max_receive_descriptor = 0x200.into();
    caps.log_max_group_qps = 8;
    caps.log_max_groups = 17;
    caps.reserved_pds = High::new(4);
    caps.log_max_pds = Low::new(15);
    caps.log_max_xrcds = Low::new(16);
}

fn entry_lengths(caps: &mut QueryDevCap) {
    caps.rdmarc_entry_len = rules::RDMARC_ENTRY.into();
    caps.qpc_entry_len = super::queue_pairs::QPC_ENTRY.into();
    caps.auxc_entry_len = rules::AUXC_ENTRY.into();
    caps.altc_entry_len = rules::ALTC_ENTRY.into();
    caps.eqc_entry_len = super::resources::EQC_ENTRY.into();
    caps.cqc_entry_len = super::resources::CQC_ENTRY.into();
    caps.srqc_entry_len = super::resources::SRQC_ENTRY.into();
    caps.cmpt_entry_len = rules::CMPT_ENTRY.into();
    caps.mtt_entry_len = 8.into();
    caps.dmpt_entry_len = rules::DMPT_ENTRY.into();
}

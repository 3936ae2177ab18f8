//! Commands on memory regions, event queues, completion queues, shared receive queues and multicast
//! groups.

use mlx4_hw::bits::TableBase;
use mlx4_hw::command::{CmdStatus, in_modifier::MapEq, op_modifier};
use mlx4_hw::cq::{CQE_LEN, CqContext};
use mlx4_hw::eq::{EQE_LEN, EqContext};
use mlx4_hw::icm::CmptKind;
use mlx4_hw::mgm::{GroupEntry, GroupQp};
use mlx4_hw::mpt::{MPT_STATUS_FREE, MPT_STATUS_SOFTWARE, Mpt};
use mlx4_hw::mtt::ENTRY_LEN;
use mlx4_hw::srq::SrqContext;
use zerocopy::big_endian::U64;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::bringup::{
    LOG_MAX_CQES, LOG_MAX_EQES, LOG_RESERVED_CQS, LOG_RESERVED_MPTS, LOG_RESERVED_SRQS,
};
use super::{Command, Outcome};
use crate::hca::Hca;
use crate::memory::AccessError;
use crate::trace::Purpose;

/// Bytes that a context takes in ICM.
pub(super) const EQC_ENTRY: u16 = 0x80;
pub(super) const CQC_ENTRY: u16 = 0x80;
pub(super) const SRQC_ENTRY: u16 = 0x80;
/// A status that is neither software's nor free.
const MPT_STATUS_VALID: u8 = 0;
/// MTT entries that one WRITE_MTT holds.
const MTTS_PER_MAILBOX: usize = (mlx4_hw::command::MAILBOX_LEN - 16) / 8;

/// Returns the command status for an error in reading the device's own tables.
fn table_error(error: AccessError) -> CmdStatus {
    match error {
        AccessError::Page(_) => CmdStatus::ICM_ERROR,
        _ => CmdStatus::BAD_PARAM,
    }
}

impl Hca {
    /// Checks a number against its table and the firmware's own numbers, and that ICM backs its
    /// context.
    pub(super) fn check_number(
        &self,
        number: u32,
        table: TableBase,
        log_reserved: u8,
        entry: u16,
        kind: CmptKind,
    ) -> Result<(), CmdStatus> {
        if u64::from(number) >= 1 << table.log_entries() {
            return Err(CmdStatus::BAD_INDEX);
        }
        if number < 1 << log_reserved {
            return Err(CmdStatus::BAD_RESOURCE);
        }
        let len = u64::from(entry);
        let place = table.base().saturating_add(u64::from(number) * len);
        if !self.core.memory.icm_is_mapped(place, len) {
            return Err(CmdStatus::ICM_ERROR);
        }
        self.check_extras(kind, number)
    }

    fn read_mpt(&self, index: u32) -> Result<(u64, Mpt), CmdStatus> {
        let profile = self.profile()?;
        if u64::from(index) >= 1 << profile.log_mpts.get().min(32) {
            return Err(CmdStatus::BAD_INDEX);
        }
        if index < 1 << LOG_RESERVED_MPTS {
            return Err(CmdStatus::BAD_RESOURCE);
        }
        let place = self.core.memory.mpt_place(index);
        let mut mpt = Mpt::new_zeroed();
        self.core
            .memory
            .icm_read(Purpose::Mpt, place, mpt.as_mut_bytes())
            .map_err(table_error)?;
        Ok((place, mpt))
    }

    /// Returns whether the key in an entry belongs to `index`.
    fn is_entry(&self, mpt: &Mpt, index: u32) -> Result<bool, CmdStatus> {
        let log_mpts = self.profile()?.log_mpts.get().min(24);
        Ok(u64::from(mpt.key.index()) & ((1 << log_mpts) - 1) == u64::from(index))
    }

    /// Returns whether the device owns an entry: by its status in ICM, where software may change it
    /// too (Linux `mr.c`, `mlx4_mr_hw_write_mpt`).
    fn is_devices(&self, mpt: &Mpt, index: u32) -> Result<bool, CmdStatus> {
        Ok(mpt.flags.status() != MPT_STATUS_SOFTWARE && self.is_entry(mpt, index)?)
    }

    /// Gives a region to the device.
    pub(super) fn take_mpt(&mut self, command: &Command) -> Outcome {
        let (place, before) = self.read_mpt(command.in_modifier)?;
        let mut mpt: Mpt = self.read_input(command)?;
        if !self.is_entry(&mpt, command.in_modifier)? {
            return Err(CmdStatus::BAD_PARAM);
        }
        // The memory may hold what an earlier owner of the adapter left there.
        let given = self.firmware.given_mpts.contains(&command.in_modifier);
        if given && self.is_devices(&before, command.in_modifier)? {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        self.check_region(&mpt)?;
        if mpt.flags.status() != MPT_STATUS_FREE {
            mpt.flags.set_status(MPT_STATUS_VALID);
        }
        self.core
            .memory
            .icm_write(Purpose::Mpt, place, mpt.as_bytes())
            .map_err(table_error)?;
        self.firmware.given_mpts.insert(command.in_modifier);
        Ok(0)
    }

    pub(super) fn give_mpt(&mut self, command: &Command) -> Outcome {
        let (place, mut mpt) = self.read_mpt(command.in_modifier)?;
        if !self.is_devices(&mpt, command.in_modifier)? {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        if command.op_modifier != op_modifier::HW2SW_NO_OUTPUT {
            self.write_output(command, &mpt)?;
        }
        mpt.flags.set_status(MPT_STATUS_SOFTWARE);
        self.core
            .memory
            .icm_write(Purpose::Mpt, place, mpt.as_bytes())
            .map_err(table_error)?;
        Ok(0)
    }

    pub(super) fn query_mpt(&self, command: &Command) -> Outcome {
        let (_, mpt) = self.read_mpt(command.in_modifier)?;
        self.write_output(command, &mpt)
    }

    /// Writes MTT entries: the start is a byte offset in the table, as iPXE gives it to real
    /// firmware.
    pub(super) fn write_mtt(&self, command: &Command) -> Outcome {
        let count = usize::try_from(command.in_modifier).unwrap_or(usize::MAX);
        if !(1..=MTTS_PER_MAILBOX).contains(&count) {
            return Err(CmdStatus::BAD_PARAM);
        }
        let mut words = vec![U64::ZERO; 2 + count];
        let bytes = words.as_mut_slice().as_mut_bytes();
        self.core
            .memory
            .read(Purpose::Mailbox, command.in_param, bytes)
            .map_err(|_| CmdStatus::BAD_PARAM)?;
        let start = words[0].get();
        if !start.is_multiple_of(ENTRY_LEN) {
            return Err(CmdStatus::BAD_PARAM);
        }
        let place = self.core.memory.tables.mtt.saturating_add(start);
        self.core
            .memory
            .icm_write(Purpose::Mtt, place, words[2..].as_bytes())
            .map_err(table_error)?;
        Ok(0)
    }

    pub(super) fn map_eq(&mut self, command: &Command) -> Outcome {
        let modifier = MapEq::from(command.in_modifier);
        if !modifier.unmap() && !self.core.events.contains(modifier.eqn()) {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        self.core
            .events
            .map(modifier.eqn(), command.in_param, modifier.unmap());
        Ok(0)
    }

    pub(super) fn take_eq(&mut self, command: &Command) -> Outcome {
        self.check_eqn(command.in_modifier)?;
        let context: EqContext = self.read_input(command)?;
        if self.core.events.contains(command.in_modifier) {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        if context.log_size.get() > LOG_MAX_EQES {
            return Err(CmdStatus::EXCEED_LIM);
        }
        let entry = if self.core.events.wide { 2 } else { 1 } * EQE_LEN as u64;
        let buffer = (context.buffer, entry << context.log_size.get());
        self.check_queue(None, None, buffer)?;
        self.core
            .events
            .create(&self.core.memory, command.in_modifier, context)
            .map_err(table_error)?;
        Ok(0)
    }

    pub(super) fn give_eq(&mut self, command: &Command) -> Outcome {
        let context = self
            .core
            .events
            .destroy(command.in_modifier)
            .ok_or(CmdStatus::BAD_RES_STATE)?;
        self.give_back(command, &context)
    }

    pub(super) fn query_eq(&self, command: &Command) -> Outcome {
        let context = self
            .core
            .events
            .query(command.in_modifier)
            .ok_or(CmdStatus::BAD_RES_STATE)?;
        self.write_output(command, &context)
    }

    pub(super) fn take_cq(&mut self, command: &Command) -> Outcome {
        let profile = self.profile()?;
        self.check_number(
            command.in_modifier,
            profile.cqc,
            LOG_RESERVED_CQS,
            CQC_ENTRY,
            CmptKind::Cq,
        )?;
        let context: CqContext = self.read_input(command)?;
        if self.core.completions.contains(command.in_modifier) {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        if context.size.log_size() > LOG_MAX_CQES {
            return Err(CmdStatus::EXCEED_LIM);
        }
        if !self.core.events.contains(u32::from(context.eqn.get())) {
            return Err(CmdStatus::BAD_PARAM);
        }
        let entry = if self.core.completions.wide { 2 } else { 1 } * CQE_LEN as u64;
        self.check_queue(
            Some(context.size.uar()),
            Some((context.doorbell_record.get(), 8)),
            (context.buffer, entry << context.size.log_size()),
        )?;
        let initialise = command.op_modifier == op_modifier::SW2HW_CQ_HW_INIT;
        self.core
            .completions
            .create(&self.core.memory, command.in_modifier, context, initialise)
            .map_err(table_error)?;
        Ok(0)
    }

    pub(super) fn give_cq(&mut self, command: &Command) -> Outcome {
        let cqn = command.in_modifier;
        // An entry written later would land in memory that software frees now.
        if self.qps.values().any(|qp| qp.uses_cq(cqn)) || self.core.shared.uses_cq(cqn) {
            return Err(CmdStatus::RESOURCE_BUSY);
        }
        let context = self
            .core
            .completions
            .destroy(cqn)
            .ok_or(CmdStatus::BAD_RES_STATE)?;
        self.give_back(command, &context)
    }

    pub(super) fn query_cq(&self, command: &Command) -> Outcome {
        let context = self
            .core
            .completions
            .query(command.in_modifier)
            .ok_or(CmdStatus::BAD_RES_STATE)?;
        self.write_output(command, &context)
    }

    pub(super) fn modify_cq(&mut self, command: &Command) -> Outcome {
        let wanted: CqContext = self.read_input(command)?;
        let cqn = command.in_modifier;
        if !self.core.completions.contains(cqn) {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        match command.op_modifier {
            op_modifier::MODIFY_CQ_MODERATION => {
                self.core.completions.moderate(cqn, &wanted);
                Ok(0)
            }
            op_modifier::MODIFY_CQ_RESIZE if wanted.size.log_size() <= LOG_MAX_CQES => {
                // Before anything changes: the old buffer serves on if the new one is refused.
                let entry = if self.core.completions.wide { 2 } else { 1 } * CQE_LEN as u64;
                let len = entry << wanted.size.log_size();
                self.check_queue(None, None, (wanted.buffer, len))?;
                let fits = self
                    .core
                    .completions
                    .resize(&self.core.memory, cqn, &wanted)
                    .map_err(table_error)?;
                if fits {
                    Ok(0)
                } else {
                    Err(CmdStatus::BAD_SIZE)
                }
            }
            _ => Err(CmdStatus::BAD_PARAM),
        }
    }

    pub(super) fn take_srq(&mut self, command: &Command) -> Outcome {
        let profile = self.profile()?;
        self.check_number(
            command.in_modifier,
            profile.srqc,
            LOG_RESERVED_SRQS,
            SRQC_ENTRY,
            CmptKind::Srq,
        )?;
        let context: SrqContext = self.read_input(command)?;
        if self.core.shared.contains(command.in_modifier) {
            return Err(CmdStatus::BAD_RES_STATE);
        }
        let cqn = context.offset_cqn.cqn();
        if context.xrcd.get() != 0 && !self.core.completions.contains(cqn) {
            return Err(CmdStatus::BAD_PARAM);
        }
        let log_len = context.size.log_size() + context.log_stride_less_4.get() + 4;
        self.check_queue(
            None,
            Some((context.doorbell_record.get(), 4)),
            (context.buffer, 1 << log_len),
        )?;
        self.core.shared.create(command.in_modifier, context);
        Ok(0)
    }

    pub(super) fn give_srq(&mut self, command: &Command) -> Outcome {
        let srqn = command.in_modifier;
        if self.qps.values().any(|qp| qp.uses_srq(srqn)) {
            return Err(CmdStatus::RESOURCE_BUSY);
        }
        let context = self
            .core
            .shared
            .destroy(srqn)
            .ok_or(CmdStatus::BAD_RES_STATE)?;
        self.give_back(command, &context)
    }

    pub(super) fn query_srq(&self, command: &Command) -> Outcome {
        let context = self
            .core
            .shared
            .query(command.in_modifier)
            .ok_or(CmdStatus::BAD_RES_STATE)?;
        self.write_output(command, &context)
    }

    pub(super) fn arm_srq(&mut self, command: &Command) -> Outcome {
        let limit = u16::try_from(command.in_param).map_err(|_| CmdStatus::BAD_PARAM)?;
        if self.core.shared.arm(command.in_modifier, limit) {
            Ok(0)
        } else {
            Err(CmdStatus::BAD_RES_STATE)
        }
    }

    /// Writes a context that software takes back, if it wants it.
    fn give_back<T: IntoBytes + Immutable>(&self, command: &Command, context: &T) -> Outcome {
        if command.op_modifier == op_modifier::HW2SW_NO_OUTPUT {
            return Ok(0);
        }
        self.write_output(command, context)
    }

    /// Returns the ICM address of a multicast group entry.
    fn group_place(&self, index: u32) -> Result<u64, CmdStatus> {
        let profile = self.profile()?;
        if u64::from(index) >= 1 << profile.log_groups.get() {
            return Err(CmdStatus::BAD_INDEX);
        }
        let entry = u64::from(index) << profile.log_group_entry.get();
        Ok(profile.groups.get().saturating_add(entry))
    }

    fn group(&self, index: u32) -> Result<GroupEntry, CmdStatus> {
        let mut entry = GroupEntry::new_zeroed();
        self.core
            .memory
            .icm_read(Purpose::Mcg, self.group_place(index)?, entry.as_mut_bytes())
            .map_err(table_error)?;
        Ok(entry)
    }

    pub(super) fn read_group(&self, command: &Command) -> Outcome {
        let entry = self.group(command.in_modifier)?;
        self.write_output(command, &entry)
    }

    pub(super) fn write_group(&self, command: &Command) -> Outcome {
        let entry: GroupEntry = self.read_input(command)?;
        let place = self.group_place(command.in_modifier)?;
        self.core
            .memory
            .icm_write(Purpose::Mcg, place, entry.as_bytes())
            .map_err(table_error)?;
        Ok(0)
    }

    pub(super) fn hash_group(&self, command: &Command) -> Outcome {
        /// Bits of the result above the 16-bit hash, which software must ignore (Linux `mcg.c`,
        /// `mlx4_GID_HASH`).
        const ABOVE: u64 = 0x0123_4567_89ab_0000;
        let gid: [u8; 16] = self.read_input(command)?;
        Ok(ABOVE | u64::from(self.hash(gid)?))
    }

    /// Returns the hash chain of a group. Any hash will do, as software queries it.
    fn hash(&self, gid: [u8; 16]) -> Result<u32, CmdStatus> {
        let buckets = 1_u32 << self.profile()?.log_group_hash.get().min(15);
        let sum = gid.iter().fold(0_u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(*byte))
        });
        Ok(sum % buckets)
    }

    /// Returns the queue pairs that are attached to a group.
    pub(crate) fn group_members(&self, gid: [u8; 16]) -> Vec<GroupQp> {
        const LONGEST_CHAIN: usize = 1024;
        let Ok(mut index) = self.hash(gid) else {
            return Vec::new();
        };
        for _ in 0..LONGEST_CHAIN {
            let Ok(entry) = self.group(index) else { break };
            if entry.gid == gid {
                let count = usize::try_from(entry.members.count()).unwrap_or(0);
                return entry.qps.iter().take(count).copied().collect();
            }
            index = entry.next.index();
            if index == 0 {
                break;
            }
        }
        Vec::new()
    }
}

//! Rules that INIT_HCA's profile and the contexts of queues must keep.
//!
//! They are no stricter than iPXE's `hermon.c`, which real firmware takes: tables on pages of
//! 4 KB in any order, translations right behind the event queues, no RDMARC without READs, as many
//! hashed groups as groups.

use mlx4_hw::bits::{Low24, QueueBuffer, TableBase};
use mlx4_hw::command::CmdStatus;
use mlx4_hw::icm::{CmptKind, PAGE_LEN};
use mlx4_hw::init_hca::{InitHca, LOG_EQS_SYSTEM, VERSION};
use mlx4_hw::mpt::{MPT_STATUS_FREE, Mpt};
use mlx4_hw::mtt::ENTRY_LEN;
use mlx4_hw::qp::QpContext;
use mlx4_hw::regs;

use super::bringup::{
    LOG_RESERVED_CQS, LOG_RESERVED_EQS, LOG_RESERVED_MPTS, LOG_RESERVED_QPS, LOG_RESERVED_SRQS,
    RESERVED_SYSTEM_EQS, RESERVED_UARS, SYSTEM_EQS,
};
use super::queue_pairs::QPC_ENTRY;
use super::resources::{CQC_ENTRY, EQC_ENTRY, SRQC_ENTRY};
use crate::Board;
use crate::hca::Hca;

/// Bytes of the entries that QUERY_DEV_CAP tells beside those of contexts.
pub(super) const CMPT_ENTRY: u16 = 0x40;
pub(super) const DMPT_ENTRY: u16 = 0x40;
pub(super) const ALTC_ENTRY: u16 = 0x40;
pub(super) const AUXC_ENTRY: u16 = 1;
pub(super) const RDMARC_ENTRY: u16 = 0x20;
/// log2 of the largest tables.
const LOG_MOST: u8 = 24;
const LOG_MOST_EQS: u8 = 10;
/// log2 of the UAR pages of BAR 2, and of the smallest group entry.
const LOG_MOST_UARS: u8 = 13;
const LOG_SMALLEST_GROUP: u8 = 6;
/// The MTT begins at a multiple of this: iPXE has it right behind 16 event queues.
const MTT_ALIGN: u64 = 64;
/// log2 of the pages that an MTT entry may name.
const LOG_PAGES: core::ops::RangeInclusive<u32> = 12..=31;

/// Number of event queues of a profile, and of the first that is software's.
fn event_queues(init: &InitHca) -> (u64, u64) {
    if init.eqc.log_entries() == LOG_EQS_SYSTEM {
        (init.system_eqs.get().into(), RESERVED_SYSTEM_EQS.into())
    } else {
        (1 << init.eqc.log_entries(), 1 << LOG_RESERVED_EQS)
    }
}

/// Checks a profile. A number of entries that is out of range exceeds a limit; a table that is
/// not on a page or overlaps another one is a bad parameter.
pub(super) fn check_profile(init: &InitHca, board: &Board) -> Result<(), CmdStatus> {
    let entries = init.entry_len;
    let unknown_size = (entries.cqe_64() || entries.eqe_64()) && !board.wide_entries;
    if init.version != VERSION || init.flags.big_endian_host() || unknown_size {
        return Err(CmdStatus::BAD_PARAM);
    }
    let system = init.eqc.log_entries() == LOG_EQS_SYSTEM;
    let eqs_fit = if system {
        let asked = init.system_eqs.get();
        board.system_eqs && (RESERVED_SYSTEM_EQS + 1..=SYSTEM_EQS).contains(&asked)
    } else {
        (LOG_RESERVED_EQS..=LOG_MOST_EQS).contains(&init.eqc.log_entries())
    };
    let fits = eqs_fit
        && (LOG_RESERVED_QPS..=LOG_MOST).contains(&init.qpc.log_entries())
        && (LOG_RESERVED_SRQS..=LOG_MOST).contains(&init.srqc.log_entries())
        && (LOG_RESERVED_CQS..=LOG_MOST).contains(&init.cqc.log_entries())
        && (LOG_RESERVED_MPTS..=LOG_MOST).contains(&init.log_mpts.get())
        && init.log_group_entry.get() >= LOG_SMALLEST_GROUP
        && init.log_group_hash.get() <= init.log_groups.get()
        && init.log_uars.get() <= LOG_MOST_UARS;
    if !fits {
        return Err(CmdStatus::EXCEED_LIM);
    }
    check_places(tables(init), init.mtt.get())
}

/// Returns base and length of each table but the MTT, whose length is not told.
fn tables(init: &InitHca) -> Vec<(u64, u64)> {
    let qps = 1_u64 << init.qpc.log_entries();
    let (eqs, _) = event_queues(init);
    let of = |base: u64, entries: u64, entry: u16| (base, entries * u64::from(entry));
    let contexts = |table: TableBase, entry| of(table.base(), 1 << table.log_entries(), entry);
    let mut tables = vec![
        contexts(init.qpc, QPC_ENTRY),
        contexts(init.srqc, SRQC_ENTRY),
        contexts(init.cqc, CQC_ENTRY),
        of(init.eqc.base(), eqs, EQC_ENTRY),
        of(init.altc.get(), qps, ALTC_ENTRY),
        of(init.auxc.get(), qps, AUXC_ENTRY),
        of(init.dmpt.get(), 1 << init.log_mpts.get(), DMPT_ENTRY),
        (
            init.groups.get(),
            1 << (u32::from(init.log_groups.get()) + u32::from(init.log_group_entry.get())),
        ),
    ];
    if has_rdmarc(init) {
        let per_qp = qps << init.rdmarc.log_entries();
        tables.push(of(init.rdmarc.base(), per_qp, RDMARC_ENTRY));
    }
    let numbers = [
        (CmptKind::Qp, qps),
        (CmptKind::Srq, 1 << init.srqc.log_entries()),
        (CmptKind::Cq, 1 << init.cqc.log_entries()),
        (CmptKind::Eq, eqs),
    ];
    for (kind, count) in numbers {
        tables.push((cmpt_place(init, kind, 0), count * u64::from(CMPT_ENTRY)));
    }
    tables
}

/// Returns whether a profile has a table for the READs that queue pairs answer.
fn has_rdmarc(init: &InitHca) -> bool {
    init.rdmarc.base() != 0 || init.rdmarc.log_entries() != 0
}

/// Checks that a queue pair answers no more READs and atomics at once than the RDMARC has entries
/// for each (Linux `mlx4/main.c`, `rdmarc_entry_sz`, with `rdmarc_shift` entries a queue pair).
pub(super) fn check_reads(init: &InitHca, context: &QpContext) -> Result<(), CmdStatus> {
    if has_rdmarc(init) && context.responder.log_reads() > init.rdmarc.log_entries() {
        return Err(CmdStatus::BAD_PARAM);
    }
    Ok(())
}

/// Returns the place of a number's entry in the cMPT.
fn cmpt_place(init: &InitHca, kind: CmptKind, number: u32) -> u64 {
    let entry = (kind.first() + u64::from(number)) * u64::from(CMPT_ENTRY);
    init.cmpt.get().saturating_add(entry)
}

/// Checks that tables lie on pages and none on another, nor the MTT's first entry in one.
fn check_places(mut tables: Vec<(u64, u64)>, mtt: u64) -> Result<(), CmdStatus> {
    let aligned = tables.iter().all(|(base, _)| base.is_multiple_of(PAGE_LEN));
    let aligned = aligned && mtt.is_multiple_of(MTT_ALIGN);
    tables.push((mtt, ENTRY_LEN));
    tables.sort_unstable();
    let apart = tables.windows(2).all(|pair| {
        let (base, len) = pair[0];
        base.checked_add(len).is_some_and(|end| end <= pair[1].0)
    });
    if aligned && apart {
        Ok(())
    } else {
        Err(CmdStatus::BAD_PARAM)
    }
}

impl Hca {
    /// Checks that ICM backs everything that a number of this kind needs beside its context.
    pub(super) fn check_extras(&self, kind: CmptKind, number: u32) -> Result<(), CmdStatus> {
        let init = self.profile()?;
        let mut places = vec![(cmpt_place(init, kind, number), u64::from(CMPT_ENTRY))];
        if matches!(kind, CmptKind::Qp) {
            let of =
                |base: u64, entry: u64| (base.saturating_add(u64::from(number) * entry), entry);
            places.push(of(init.altc.get(), ALTC_ENTRY.into()));
            places.push(of(init.auxc.get(), AUXC_ENTRY.into()));
            if has_rdmarc(init) {
                let entry = u64::from(RDMARC_ENTRY) << init.rdmarc.log_entries();
                places.push(of(init.rdmarc.base(), entry));
            }
        }
        let memory = &self.core.memory;
        let backed = |(place, len): &(u64, u64)| memory.icm_is_mapped(*place, *len);
        if places.iter().all(backed) {
            Ok(())
        } else {
            Err(CmdStatus::ICM_ERROR)
        }
    }

    /// Checks an event queue's number: those of firmware are not software's.
    pub(super) fn check_eqn(&self, eqn: u32) -> Result<(), CmdStatus> {
        let init = self.profile()?;
        let (count, first) = event_queues(init);
        if u64::from(eqn) >= count {
            return Err(CmdStatus::BAD_INDEX);
        }
        if u64::from(eqn) < first {
            return Err(CmdStatus::BAD_RESOURCE);
        }
        let place = init.eqc.base() + u64::from(eqn) * u64::from(EQC_ENTRY);
        if !self.core.memory.icm_is_mapped(place, EQC_ENTRY.into()) {
            return Err(CmdStatus::ICM_ERROR);
        }
        self.check_extras(CmptKind::Eq, eqn)
    }

    /// Checks that a queue's doorbells are where queues have them, its doorbell record on a
    /// multiple of `align`, and that the table has entries for its buffer.
    pub(super) fn check_queue(
        &self,
        uar: Option<u32>,
        record: Option<(u64, u64)>,
        (buffer, len): (QueueBuffer, u64),
    ) -> Result<(), CmdStatus> {
        let uar_fits = uar.is_none_or(|uar| self.serves_queues(Low24::new(uar).get()));
        let aligned = record.is_none_or(|(record, align)| record.is_multiple_of(align));
        if !uar_fits || !aligned {
            return Err(CmdStatus::BAD_PARAM);
        }
        let log_page = u32::from(buffer.log_page());
        if !LOG_PAGES.contains(&log_page) {
            return Err(CmdStatus::BAD_PARAM);
        }
        self.check_translation(buffer.mtt_offset(), len.div_ceil(1 << log_page))
    }

    /// Returns whether queues may have their doorbells in a UAR page: behind those of EQs, or with
    /// EQs of the system behind firmware's own page, as Linux has them there; and within what
    /// INIT_HCA says, where that is more (iPXE says 2 and rings page 128).
    pub(crate) fn serves_queues(&self, uar: u32) -> bool {
        /// Pages that firmware serves whatever is configured.
        const LEAST: u32 = 2 * regs::FIRST_QUEUE_UAR;
        let Some(init) = &self.firmware.init else {
            return false;
        };
        let pages = (1_u32 << init.log_uars.get()).max(LEAST);
        let first = if init.eqc.log_entries() == LOG_EQS_SYSTEM {
            RESERVED_UARS.into()
        } else {
            regs::FIRST_QUEUE_UAR
        };
        (first..pages).contains(&uar)
    }

    fn check_translation(&self, offset: u64, entries: u64) -> Result<(), CmdStatus> {
        let place = self.core.memory.tables.mtt.saturating_add(offset);
        let len = entries.saturating_mul(ENTRY_LEN);
        if self.core.memory.icm_is_mapped(place, len) {
            Ok(())
        } else {
            Err(CmdStatus::ICM_ERROR)
        }
    }

    /// Checks a region's bounds, page size and translation.
    pub(super) fn check_region(&self, mpt: &Mpt) -> Result<(), CmdStatus> {
        if !mpt.flags.region() || mpt.flags.physical() {
            return Ok(());
        }
        let (start, len, log_page) = (mpt.start.get(), mpt.len.get(), mpt.log_page.get());
        // One that waits for its registration has no pages yet.
        if mpt.flags.status() == MPT_STATUS_FREE {
            return Ok(());
        }
        let bounded = start.checked_add(len).is_some() || mpt.mtt_flags.len_64();
        if !bounded || !LOG_PAGES.contains(&log_page) {
            return Err(CmdStatus::BAD_PARAM);
        }
        if len == 0 {
            return Ok(());
        }
        let page = 1_u64 << log_page;
        let first = if mpt.mtt_flags.first_byte_enable() {
            u64::from(mpt.first_byte_offset.get())
        } else {
            start % page
        };
        let entries = first.saturating_add(len).div_ceil(page);
        self.check_translation(mpt.mtt_offset.get(), entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn a_queue_pair_answers_no_more_reads_than_it_has_entries_for() {
        let mut init = InitHca::new_zeroed();
        let mut context = QpContext::new_zeroed();
        context.responder.set_log_reads(5);
        assert_eq!(check_reads(&init, &context), Ok(()), "no table, as iPXE's");
        init.rdmarc = TableBase::new(0x1000, 4);
        assert_eq!(check_reads(&init, &context), Err(CmdStatus::BAD_PARAM));
        context.responder.set_log_reads(4);
        assert_eq!(check_reads(&init, &context), Ok(()));
    }

    #[test]
    fn tables_lie_on_pages_and_apart() {
        let check = |tables: &[(u64, u64)]| check_places(tables.to_vec(), 0x10_0800);
        assert_eq!(check(&[(0x2000, 0x800), (0, 0x2000)]), Ok(()));
        assert_eq!(
            check(&[(0, 0x2001), (0x2000, 1)]),
            Err(CmdStatus::BAD_PARAM)
        );
        assert_eq!(check(&[(0x800, 1)]), Err(CmdStatus::BAD_PARAM));
        assert_eq!(
            check(&[(0x10_0000, 0x800)]),
            Ok(()),
            "event queues before the MTT"
        );
        assert_eq!(check(&[(0x10_0000, 0x801)]), Err(CmdStatus::BAD_PARAM));
        assert_eq!(check_places(vec![], 0x10_0820), Err(CmdStatus::BAD_PARAM));
        let beyond = [(0xffff_ffff_ffff_f000, 0x1000), (0, 1)];
        assert_eq!(check(&beyond), Ok(()), "the last page");
        assert_eq!(
            check(&[(0x1000, u64::MAX), (0x2000, 1)]),
            Err(CmdStatus::BAD_PARAM)
        );
    }
}

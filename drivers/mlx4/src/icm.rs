//! The card's context memory: which tables there are, where, and the host memory behind them.
//!
//! Tables are small ([`Profile`]) and mapped whole when the card starts, but for the cMPT, of which
//! four windows of a few entries each are mapped in 4 GB of addresses. The card resolves virtual
//! ICM addresses through what MAP_ICM gave it; the driver itself writes only MTT entries, straight
//! into the memory behind that table.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{DmaBuffer, Platform};
use mlx4_hw::bits::{Low, TableBase};
use mlx4_hw::command::Opcode;
use mlx4_hw::icm::{CmptKind, ENTRIES_PER_MAILBOX, MapEntry, PAGE, PAGE_LEN};
use mlx4_hw::init_hca::{CacheLine, InitFlags, InitHca, LOG_EQS_SYSTEM, Steering, VERSION};
use mlx4_hw::mtt::MttEntry;
use mlx4_hw::query_dev_cap::QueryDevCap;
use zerocopy::{FromZeros, IntoBytes};

use crate::Error;
use crate::bring_up::Claim;
use crate::command::{Command, Commands};
use crate::error::CardNumber;

/// Memory is allocated in pieces of at most this.
const PIECE_LEN: usize = 256 << 10;

const LOG_QPS: u8 = 10;
const LOG_CQS: u8 = 9;
const LOG_MPTS: u8 = 12;
const LOG_MTTS: u8 = 15;
/// log2 of the multicast entries: half of them are found by hash, the other half are for chains.
pub(crate) const LOG_GROUPS: u8 = 8;
const LOG_GROUP_ENTRY: u8 = 10;
/// log2 of the READs a QP can have in flight as responder.
pub(crate) const LOG_RDMARC: u8 = 4;
/// UAR pages: EQ doorbells have the first 128, then one page serves all QPs and CQs.
pub(crate) const LOG_UARS: u8 = 8;
/// EQs in the older numbering.
const LOG_EQS: u8 = 8;

/// Memory lent to the card in pieces.
pub(crate) struct Pieces<P: Platform> {
    pieces: Vec<Arc<P::Buffer>>,
    /// Address in ICM to which they were mapped.
    icm_addr: u64,
}

impl<P: Platform> Pieces<P> {
    /// At least `len` bytes of zeroed memory; all pieces but the last have [`PIECE_LEN`] bytes.
    pub(crate) fn new(claim: &Claim<P>, len: u64) -> Result<Self, Error> {
        let mut pieces = Vec::new();
        let mut left =
            usize::try_from(len).map_err(|_| hal::Error::NoDmaMemory { len: usize::MAX })?;
        while left > 0 {
            let piece = left.min(PIECE_LEN).next_multiple_of(PAGE);
            // Aligned to its size it needs one entry to map; if that can't be had any page will do.
            let buffer = claim
                .alloc(piece, piece.next_power_of_two())
                .or_else(|_| claim.alloc(piece, PAGE))?;
            pieces.push(buffer);
            left = left.saturating_sub(piece);
        }
        Ok(Self {
            pieces,
            icm_addr: 0,
        })
    }

    /// Bytes of all pieces.
    fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// Writes `bytes`, which do not cross a piece, at `offset`.
    fn write(&self, offset: usize, bytes: &[u8]) {
        self.pieces[offset / PIECE_LEN].write(offset % PIECE_LEN, bytes);
    }

    /// Maps all pieces one after the other from `icm_addr` on.
    pub(crate) async fn map(
        &mut self,
        commands: &Commands<P>,
        opcode: Opcode,
        icm_addr: u64,
    ) -> Result<(), Error> {
        let mut entries = Vec::with_capacity(ENTRIES_PER_MAILBOX);
        self.icm_addr = icm_addr;
        let mut icm = icm_addr;
        for piece in &self.pieces {
            let mut bus = piece.bus_addr().0;
            let end = bus + piece.len() as u64;
            while bus < end {
                let log_pages = block_log_pages(icm, bus, end);
                entries.push(MapEntry::new(icm, bus, log_pages));
                if entries.len() == ENTRIES_PER_MAILBOX {
                    map_entries(commands, opcode, &entries).await?;
                    entries.clear();
                }
                icm += PAGE_LEN << log_pages;
                bus += PAGE_LEN << log_pages;
            }
        }
        map_entries(commands, opcode, &entries).await
    }
}

/// The largest naturally aligned block at both addresses that ends by `end`, as log2 of its pages.
fn block_log_pages(icm: u64, bus: u64, end: u64) -> u8 {
    let page = |addr: u64| addr / PAGE_LEN;
    let aligned = (page(icm) | page(bus)).trailing_zeros();
    let fits = page(end - bus).ilog2();
    u8::try_from(aligned.min(fits)).unwrap_or(0)
}

async fn map_entries<P: Platform>(
    commands: &Commands<P>,
    opcode: Opcode,
    entries: &[MapEntry],
) -> Result<(), Error> {
    let Ok(count @ 1..) = u32::try_from(entries.len()) else {
        return Ok(());
    };
    let command = Command::new(opcode)
        .modifier(count)
        .mailbox(entries.as_bytes());
    commands.run(command).await.map(drop)
}

/// A table and where it lies.
#[derive(Debug, Clone, Copy, Default)]
struct Table {
    base: u64,
    len: u64,
}

/// Numbers of all objects, and the places of their tables in ICM.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) log_qps: u8,
    pub(crate) log_cqs: u8,
    pub(crate) log_mpts: u8,
    pub(crate) log_mtts: u8,
    log_srqs: u8,
    /// Unicast is steered by the group table too.
    unicast_steering: bool,
    log_eqs: u8,
    /// Event queues that there are contexts for.
    eqs: u64,
    system_eqs: u16,
    cmpt_entry_len: u64,
    mtt_entry_len: u64,
    qpc: Table,
    altc: Table,
    auxc: Table,
    rdmarc: Table,
    srqc: Table,
    cqc: Table,
    eqc: Table,
    dmpt: Table,
    mtt: Table,
    groups: Table,
    /// Of all objects: places are 2^24 entries apart by kind, of which few are mapped.
    cmpt: Table,
    /// Bytes of ICM addresses used.
    pub(crate) total: u64,
}

impl Profile {
    /// Chooses sizes within the card's limits and places the tables.
    pub(crate) fn new(cap: &QueryDevCap) -> Result<Self, Error> {
        let log_srqs = (cap.log_reserved_srqs.get() + 1).min(cap.log_max_srqs.get());
        let system_eqs = cap.system_eqs.get() & 0xfff;
        let log_eqs = LOG_EQS.min(cap.log_max_eqs.get());
        let eqs = if system_eqs == 0 {
            1 << log_eqs
        } else {
            u64::from(system_eqs)
        };
        let log_qps = LOG_QPS
            .max(cap.log_reserved_qps.get() + 1)
            .min(cap.log_max_qps.get());
        let log_cqs = LOG_CQS
            .max(cap.log_reserved_cqs.get() + 1)
            .min(cap.log_max_cqs.get());
        let log_mpts = LOG_MPTS
            .max(cap.log_reserved_mpts.get() + 1)
            .min(cap.log_max_mpts.get());
        let table = |entry_len: u16, entries: u64| Table {
            base: 0,
            len: (u64::from(entry_len) * entries)
                .next_power_of_two()
                .max(PAGE_LEN),
        };
        let mut profile = Self {
            log_qps,
            log_cqs,
            log_mpts,
            log_mtts: LOG_MTTS,
            log_srqs,
            unicast_steering: cap.capabilities.unicast_steering()
                && cap.capabilities.multicast_steering(),
            log_eqs,
            eqs,
            system_eqs,
            cmpt_entry_len: u64::from(cap.cmpt_entry_len.get()),
            mtt_entry_len: u64::from(cap.mtt_entry_len.get()),
            qpc: table(cap.qpc_entry_len.get(), 1 << log_qps),
            altc: table(cap.altc_entry_len.get(), 1 << log_qps),
            auxc: table(cap.auxc_entry_len.get(), 1 << log_qps),
            rdmarc: table(cap.rdmarc_entry_len.get(), 1 << (log_qps + LOG_RDMARC)),
            srqc: table(cap.srqc_entry_len.get(), 1 << log_srqs),
            cqc: table(cap.cqc_entry_len.get(), 1 << log_cqs),
            eqc: table(cap.eqc_entry_len.get(), eqs),
            dmpt: table(cap.dmpt_entry_len.get(), 1 << log_mpts),
            mtt: table(cap.mtt_entry_len.get(), 1 << LOG_MTTS),
            groups: table(1 << LOG_GROUP_ENTRY, 1 << LOG_GROUPS),
            cmpt: table(cap.cmpt_entry_len.get(), 4 << CmptKind::LOG_ENTRIES),
            total: 0,
        };
        if profile.mtt_entry_len != mlx4_hw::mtt::ENTRY_LEN {
            return Err(Error::Unsupported {
                what: CardNumber::MttEntryLen,
                value: profile.mtt_entry_len,
            });
        }
        profile.place();
        if profile.total > cap.max_icm.get() {
            return Err(Error::Unsupported {
                what: CardNumber::MaxIcm,
                value: cap.max_icm.get(),
            });
        }
        Ok(profile)
    }

    /// Largest first from 0 on, so that each table is aligned to its size.
    fn place(&mut self) {
        let mut tables = [
            &mut self.qpc,
            &mut self.altc,
            &mut self.auxc,
            &mut self.rdmarc,
            &mut self.srqc,
            &mut self.cqc,
            &mut self.eqc,
            &mut self.dmpt,
            &mut self.mtt,
            &mut self.groups,
            &mut self.cmpt,
        ];
        // Linux sorts them alike (`profile.c`, `mlx4_make_profile`): a power of two behind larger
        // ones needs no gap.
        tables.sort_by_key(|table| core::cmp::Reverse(table.len));
        let mut at = 0;
        for table in tables {
            table.base = at;
            at += table.len;
        }
        self.total = at;
    }

    /// The parts of the cMPT that are used, a protection entry for each number of a kind.
    fn cmpt_windows(&self) -> [Table; 4] {
        [
            (CmptKind::Qp, 1 << self.log_qps),
            (CmptKind::Srq, 1 << self.log_srqs),
            (CmptKind::Cq, 1 << self.log_cqs),
            (CmptKind::Eq, self.eqs),
        ]
        .map(|(kind, entries)| Table {
            base: self.cmpt.base + kind.first() * self.cmpt_entry_len,
            len: (self.cmpt_entry_len * entries).next_multiple_of(PAGE_LEN),
        })
    }

    /// The mailbox that tells the card of it.
    pub(crate) fn init_hca(&self) -> InitHca {
        let mut init = InitHca::new_zeroed();
        init.version = VERSION;
        // Lines of 64 bytes (Linux `fw.c`, `mlx4_INIT_HCA`, `INIT_HCA_CACHELINE_SZ_OFFSET`).
        init.cache_line = CacheLine::new().with_log_less_4(2).with_valid(true);
        // Linux has it checked as well: an address of another port's is refused rather than sent
        // through the wrong one.
        init.flags = InitFlags::new().with_ud_port_check(true);
        init.qpc = TableBase::new(self.qpc.base, self.log_qps);
        init.srqc = TableBase::new(self.srqc.base, self.log_srqs);
        init.cqc = TableBase::new(self.cqc.base, self.log_cqs);
        init.altc = self.altc.base.into();
        init.auxc = self.auxc.base.into();
        let log_eqs = if self.system_eqs == 0 {
            self.log_eqs
        } else {
            LOG_EQS_SYSTEM
        };
        init.eqc = TableBase::new(self.eqc.base, log_eqs);
        init.system_eqs = self.system_eqs.into();
        init.rdmarc = TableBase::new(self.rdmarc.base, LOG_RDMARC);
        init.groups = self.groups.base.into();
        init.log_group_entry = Low::new(LOG_GROUP_ENTRY);
        init.log_group_hash = Low::new(LOG_GROUPS - 1);
        init.log_groups = Low::new(LOG_GROUPS);
        init.steering = Steering::new().with_unicast(self.unicast_steering);
        init.dmpt = self.dmpt.base.into();
        init.log_mpts = Low::new(self.log_mpts);
        init.mtt = self.mtt.base.into();
        init.cmpt = self.cmpt.base.into();
        init.log_uars = Low::new(LOG_UARS);
        init
    }
}

/// The memory behind the tables.
pub(crate) struct Icm<P: Platform> {
    mtt: Pieces<P>,
    others: Vec<Pieces<P>>,
    auxiliary: Pieces<P>,
}

impl<P: Platform> Icm<P> {
    /// Sizes, allocates and maps everything.
    pub(crate) async fn map(
        claim: &Claim<P>,
        commands: &Commands<P>,
        profile: &Profile,
    ) -> Result<Self, Error> {
        // The card answers how many pages of its own it needs for so much context memory. They must
        // be mapped before the tables are (Linux `main.c`, `mlx4_init_icm`: SET_ICM_SIZE,
        // MAP_ICM_AUX, then the tables).
        let pages = commands
            .run(Command::new(Opcode::SET_ICM_SIZE).immediate(profile.total))
            .await?;
        // The count is the card's word: more than the context memory itself makes no sense.
        if pages > (64 << 20) / PAGE_LEN {
            return Err(Error::Unsupported {
                what: CardNumber::AuxPages,
                value: pages,
            });
        }
        let mut auxiliary = Pieces::new(claim, pages * PAGE_LEN)?;
        auxiliary.map(commands, Opcode::MAP_ICM_AUX, 0).await?;

        let mut mtt = Pieces::new(claim, profile.mtt.len)?;
        mtt.map(commands, Opcode::MAP_ICM, profile.mtt.base).await?;
        let whole = [
            profile.qpc,
            profile.altc,
            profile.auxc,
            profile.rdmarc,
            profile.srqc,
            profile.cqc,
            profile.eqc,
            profile.dmpt,
            profile.groups,
        ];
        let mut others = Vec::new();
        for table in whole.iter().chain(&profile.cmpt_windows()) {
            let mut pieces = Pieces::new(claim, table.len)?;
            pieces.map(commands, Opcode::MAP_ICM, table.base).await?;
            others.push(pieces);
        }
        Ok(Self {
            mtt,
            others,
            auxiliary,
        })
    }

    /// Writes the MTT entry `index`: the card reads the table when it needs an entry.
    ///
    /// The store is not ordered here. What makes the entry known to the card is always a command,
    /// and that has the fence: the card keeps no entry of a number that no object names (Linux
    /// `mr.c`, `mlx4_write_mtt_chunk`, has `dma_sync_single_for_device` there, which is nothing on
    /// x86).
    pub(crate) fn write_mtt(&self, index: u32, addr: u64) {
        let entry = MttEntry::new(addr);
        self.mtt
            .write(index as usize * size_of::<MttEntry>(), entry.as_bytes());
    }

    /// Takes all of it back from a card that was closed.
    pub(crate) async fn unmap(&self, commands: &Commands<P>) -> Result<(), Error> {
        // After CLOSE_HCA, when the card walks no table any more; the auxiliary pages go last, as
        // they came first (Linux `main.c`, `mlx4_free_icms`).
        for pieces in self.others.iter().chain([&self.mtt]) {
            let pages = u32::try_from(pieces.len() / PAGE).unwrap_or(u32::MAX);
            let command = Command::new(Opcode::UNMAP_ICM)
                .modifier(pages)
                .immediate(pieces.icm_addr);
            commands.run(command).await?;
        }
        commands
            .run(Command::new(Opcode::UNMAP_ICM_AUX))
            .await
            .map(drop)
    }

    /// Returns the bytes of memory that the card was given.
    pub(crate) fn len(&self) -> usize {
        self.mtt.len() + self.auxiliary.len() + self.others.iter().map(Pieces::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_naturally_aligned_and_end_in_time(
            icm in 0..1_u64 << 30, bus in 0..1_u64 << 30, pages in 1..5000_u64,
        ) {
            let (icm, bus) = (icm * PAGE_LEN, bus * PAGE_LEN);
            let log_pages = block_log_pages(icm, bus, bus + pages * PAGE_LEN);
            let len = PAGE_LEN << log_pages;
            prop_assert!(icm.is_multiple_of(len) && bus.is_multiple_of(len));
            prop_assert!(len <= pages * PAGE_LEN);
        }

        #[test]
        fn tables_are_aligned_and_do_not_meet(lens in prop::array::uniform7(0..12_u32)) {
            let entry = |log: u32| (16_u16 << (log % 5)).into();
            let mut cap = QueryDevCap::new_zeroed();
            cap.log_max_qps = Low::new(24);
            cap.log_max_cqs = Low::new(24);
            cap.log_max_srqs = Low::new(24);
            cap.log_max_mpts = Low::new(24);
            cap.log_max_eqs = Low::new(10);
            cap.log_reserved_qps = Low::new(u8::try_from(lens[0]).unwrap());
            cap.qpc_entry_len = entry(lens[1]);
            cap.cqc_entry_len = entry(lens[2]);
            cap.rdmarc_entry_len = entry(lens[3]);
            cap.dmpt_entry_len = entry(lens[4]);
            cap.cmpt_entry_len = entry(lens[5]);
            cap.eqc_entry_len = entry(lens[6]);
            cap.mtt_entry_len = 8.into();
            cap.max_icm = (1 << 40).into();
            let profile = Profile::new(&cap).unwrap();
            let mut tables = [
                profile.qpc, profile.altc, profile.auxc, profile.rdmarc, profile.srqc, profile.cqc, profile.eqc,
                profile.dmpt, profile.mtt, profile.groups, profile.cmpt,
            ];
            tables.sort_by_key(|table| table.base);
            for pair in tables.windows(2) {
                prop_assert!(pair[0].base + pair[0].len <= pair[1].base);
            }
            for table in tables {
                prop_assert!(table.base.is_multiple_of(table.len) && table.base + table.len <= profile.total);
            }
            // What INIT_HCA says is what is mapped.
            let init = profile.init_hca();
            prop_assert_eq!((init.qpc.base(), init.qpc.log_entries()), (profile.qpc.base, profile.log_qps));
        }
    }

    /// A context of an event queue may have other than 128 bytes.
    #[test]
    fn each_event_queue_has_a_protection_entry_whatever_the_size_of_its_context() {
        for eqc_entry_len in [0x20, 0x40, 0x80, 0x100] {
            let mut cap = QueryDevCap::new_zeroed();
            cap.mtt_entry_len = 8.into();
            cap.cmpt_entry_len = 0x40.into();
            cap.max_icm = (1 << 40).into();
            cap.system_eqs = 1024.into();
            cap.eqc_entry_len = eqc_entry_len.into();
            let [.., eqs] = Profile::new(&cap).unwrap().cmpt_windows();
            assert_eq!(eqs.len, 1024 * 0x40, "contexts of {eqc_entry_len:#x} bytes");
        }
    }

    #[test]
    fn a_card_with_too_little_context_memory_is_refused() {
        let mut cap = QueryDevCap::new_zeroed();
        cap.mtt_entry_len = 8.into();
        cap.max_icm = (1 << 16).into();
        let error = Profile::new(&cap).err();
        assert!(matches!(
            error,
            Some(Error::Unsupported {
                value: 0x1_0000,
                ..
            })
        ));
    }
}

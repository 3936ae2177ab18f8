//! The card as all parts of the driver share it: registers, commands, events and what was handed
//! out.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::{DmaBuffer, Platform};
use mlx4_hw::bits::{Low24, QueueBuffer};
use mlx4_hw::command::{Opcode, op_modifier};
use mlx4_hw::cq::{CqContext, CqSize};
use mlx4_hw::icm::{PAGE, PAGE_LEN};
use mlx4_hw::mpt::{HwKey, MPT_STATUS_SOFTWARE, Mpt, MptFlags, MptPd};
use mlx4_hw::qp::QpContext;
use mlx4_hw::query_dev_cap::QueryDevCap;
use mlx4_hw::regs;
use mutants::Mutant;
use spin::Mutex;
use verbs::{Access, Domain, Lkey, Parameter, QpKind, Region, Resource, Rkey};
use zerocopy::{FromZeros, IntoBytes};

use crate::Error;
use crate::bring_up::Claim;
use crate::command::{Command, Commands};
use crate::completion::{self, CompletionQueue};
use crate::event::{CqState, Events};
use crate::icm::Icm;
use crate::keys::{Keys, SECRET_LEN};
use crate::multicast::Groups;
use crate::resources::{Numbers, Range, Ranges};

/// The UAR page whose doorbells all QPs and CQs use: its registers are written in single stores, so
/// cores share it without a lock.
pub(crate) const UAR_PAGE: u32 = regs::FIRST_QUEUE_UAR;
/// MTT entries of a region at most, unless it is so large that its pages can't be: they grow with
/// the region, because few large translations are what the card is quick at.
const REGION_ENTRIES: u64 = 16;
/// log2 of the largest page (Linux `mlx4_ib/mr.c`, `MLX4_MAX_MTT_SHIFT`).
const LOG_MAX_PAGE: u32 = 31;
const LOG_PAGE: u32 = PAGE_LEN.ilog2();
/// Of the 24 bits of a domain the upper seven are for virtual functions (Linux `mlx4/pd.c`,
/// `NOT_MASKED_PD_BITS`).
const LOG_MAX_PDS: u8 = 17;

/// A queue pair as the control path knows it.
pub(crate) struct QpRecord<P: Platform> {
    pub(crate) kind: QpKind,
    pub(crate) port: u8,
    pub(crate) context: QpContext,
    /// The context that the queue pair was made with, to begin anew.
    pub(crate) fresh: QpContext,
    pub(crate) translation: Range,
    /// Kept until the card is done with it, whatever happens to the user's side.
    pub(crate) _memory: Arc<P::Buffer>,
}

/// A completion queue as the control path knows it.
struct CqRecord<P: Platform> {
    translation: Range,
    _memory: Arc<P::Buffer>,
}

/// Objects that were handed out.
pub(crate) struct Tables<P: Platform> {
    pub(crate) qpns: Numbers,
    cqns: Numbers,
    mpts: Numbers,
    keys: Keys,
    pub(crate) mtts: Ranges,
    pub(crate) qps: BTreeMap<u32, QpRecord<P>>,
    cqs: BTreeMap<u32, CqRecord<P>>,
    /// MTT entries of regions, by MPT entry.
    regions: BTreeMap<u32, Range>,
}

impl<P: Platform> Tables<P> {
    pub(crate) fn new(
        first_qpn: usize,
        profile: &crate::icm::Profile,
        cap: &QueryDevCap,
        secret: [u8; SECRET_LEN],
    ) -> Self {
        let mpts = 1 << profile.log_mpts;
        let reserved_mtts = 1_u32 << cap.log_reserved_mtts.get();
        Self {
            qpns: Numbers::new(Resource::QueuePair, first_qpn, 1 << profile.log_qps),
            cqns: Numbers::new(
                Resource::CompletionQueue,
                1 << cap.log_reserved_cqs.get(),
                1 << profile.log_cqs,
            ),
            mpts: Numbers::new(Resource::Region, 1 << cap.log_reserved_mpts.get(), mpts),
            keys: Keys::new(secret, mpts),
            mtts: Ranges::new(
                Resource::TranslationEntry,
                reserved_mtts,
                1 << profile.log_mtts,
            ),
            qps: BTreeMap::new(),
            cqs: BTreeMap::new(),
            regions: BTreeMap::new(),
        }
    }
}

/// The card.
pub(crate) struct Hca<P: Platform> {
    /// First, because it is dropped first: it resets a card that still runs, before any memory
    /// below is freed.
    pub(crate) claim: Claim<P>,
    pub(crate) platform: P,
    pub(crate) uar: Arc<P::Bar>,
    pub(crate) commands: Commands<P>,
    pub(crate) events: Arc<Events<P>>,
    pub(crate) icm: Icm<P>,
    pub(crate) cap: QueryDevCap,
    pub(crate) port: u8,
    pub(crate) tables: Mutex<Tables<P>>,
    pub(crate) groups: Groups,
}

impl<P: Platform> Hca<P> {
    /// MTT entries for a queue's memory, in pages of 4 KB.
    pub(crate) fn translate(&self, memory: &P::Buffer) -> Result<Range, Error> {
        let mut tables = self.tables.lock();
        translate::<P>(&mut tables, &self.icm, memory)
    }

    /// The field of a context that names these entries.
    pub(crate) fn queue_buffer(range: Range) -> QueueBuffer {
        QueueBuffer::new(range.mtt_offset(), 12)
    }

    /// Makes a completion queue of 2^`log_entries` entries whose events go to `eqn`.
    pub(crate) async fn create_cq(
        &self,
        log_entries: u8,
        eqn: u32,
    ) -> Result<CompletionQueue<P>, Error> {
        let len = completion::memory_len(log_entries);
        let memory = Arc::new(self.platform.alloc(len, PAGE)?);
        let translation = self.translate(&memory)?;
        let cqn = self.tables.lock().cqns.take().inspect_err(|_| {
            self.tables.lock().mtts.give_back(translation);
        })?;
        let state = Arc::new(CqState::default());
        let queue = CompletionQueue::new(
            cqn,
            log_entries,
            Arc::clone(&memory),
            Arc::clone(&self.uar),
            Arc::clone(&state),
        );
        let mut context = CqContext::new_zeroed();
        context.size = CqSize::new().with_log_size(log_entries).with_uar(UAR_PAGE);
        context.eqn = u16::try_from(eqn).unwrap_or(u16::MAX).into();
        context.buffer = Self::queue_buffer(translation);
        let record = memory
            .bus_addr()
            .offset(completion::record_offset(log_entries));
        context.doorbell_record = record.0.into();
        let record = CqRecord {
            translation,
            _memory: memory,
        };
        self.tables.lock().cqs.insert(cqn, record);
        // Before the card has the queue: its first event may come before the command's own end.
        self.events.add_cq(cqn, state);
        let command = Command::new(Opcode::SW2HW_CQ)
            .op(op_modifier::SW2HW_CQ_HW_INIT)
            .modifier(cqn)
            .mailbox(context.as_bytes());
        if let Err(error) = self.commands.run(command).await {
            self.forget_cq(cqn, error);
            return Err(error);
        }
        Ok(queue)
    }

    /// Takes a completion queue back. Its queue pairs must be gone.
    pub(crate) async fn destroy_cq(&self, cqn: u32) -> Result<(), Error> {
        // The card must have no queue pair left that completes here: an entry written after this
        // command would land in memory that was freed (Linux `cq.c`, `mlx4_cq_free`, waits for the
        // interrupt handler as well; here events look the number up).
        let command = Command::new(Opcode::HW2SW_CQ)
            .op(op_modifier::HW2SW_NO_OUTPUT)
            .modifier(cqn);
        self.commands.run(command).await?;
        self.events.remove_cq(cqn);
        let mut tables = self.tables.lock();
        if let Some(record) = tables.cqs.remove(&cqn) {
            tables.mtts.give_back(record.translation);
            tables.cqns.give_back(cqn);
        }
        Ok(())
    }

    /// Takes back what a refused SW2HW_CQ was prepared with. After anything but a refusal the card
    /// may have it.
    fn forget_cq(&self, cqn: u32, error: Error) {
        if !matches!(error, Error::Refused { .. }) {
            return;
        }
        self.events.remove_cq(cqn);
        let mut tables = self.tables.lock();
        if let Some(record) = tables.cqs.remove(&cqn) {
            tables.mtts.give_back(record.translation);
            tables.cqns.give_back(cqn);
        }
    }

    /// The card's number of a user's protection domain. [`Domain::default`] is also the driver's
    /// own.
    ///
    /// Linux asks for none by command either: a domain is there when something is in it
    /// (`mlx4/pd.c`).
    pub(crate) fn pd(&self, domain: Domain) -> Result<u32, Error> {
        if domain.0 >= self.max_domains() {
            return Err(Error::OutOfRange {
                parameter: Parameter::Domain,
                value: domain.0.into(),
            });
        }
        Ok(u32::from(self.cap.reserved_pds.get()) + 1 + domain.0)
    }

    /// Protection domains that users may have.
    pub(crate) fn max_domains(&self) -> u32 {
        let all = 1_u32 << self.cap.log_max_pds.get().min(LOG_MAX_PDS);
        all.saturating_sub(u32::from(self.cap.reserved_pds.get()) + 1)
    }

    /// Registers `len` bytes from bus address `addr` on.
    pub(crate) async fn register(
        &self,
        domain: Domain,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Region, Error> {
        let pd = self.pd(domain)?;
        let most = 1_u64.checked_shl(self.cap.log_max_region.into());
        let fits = len > 0 && most.is_none_or(|most| len <= most);
        let end = addr.checked_add(len).filter(|_| fits);
        let end = end.ok_or(Error::OutOfRange {
            parameter: Parameter::RegionLen,
            value: len,
        })?;
        let log_page = region_log_page(addr, end);
        let pages = (addr >> log_page)..=((end - 1) >> log_page);
        let count = u32::try_from(pages.end() - pages.start() + 1).unwrap_or(u32::MAX);
        let (translation, index, tag) = {
            let mut tables = self.tables.lock();
            let translation = tables.mtts.take(count)?;
            if let Some(place) = tables.keys.place() {
                tables.mpts.search_from(place);
            }
            let index = match tables.mpts.take() {
                Ok(index) => index,
                Err(error) => {
                    tables.mtts.give_back(translation);
                    return Err(error);
                }
            };
            let tag = tables.keys.next_tag(index);
            tables.regions.insert(index, translation);
            (translation, index, tag)
        };
        for (entry, page) in (translation.first..).zip(pages) {
            // Before SW2HW_MPT, from which on the card may read them: the command's fence orders
            // these stores (Linux `mr.c`, `mlx4_mr_enable` after `mlx4_write_mtt`).
            self.icm.write_mtt(entry, page << log_page);
        }
        let key = HwKey::new(index, tag);
        let mpt = region_mpt(pd, key, addr, len, access, translation, log_page);
        let command = Command::new(Opcode::SW2HW_MPT)
            .modifier(index)
            .mailbox(mpt.as_bytes());
        if let Err(error) = self.commands.run(command).await {
            if matches!(error, Error::Refused { .. }) {
                self.forget_region(index);
            }
            return Err(error);
        }
        Ok(Region {
            addr,
            len,
            lkey: Lkey(key.to_key()),
            rkey: Rkey(key.to_key()),
        })
    }

    /// Takes a region back.
    pub(crate) async fn deregister(&self, region: &Region) -> Result<(), Error> {
        let index = HwKey::from_key(region.lkey.0).index();
        let known = {
            let tables = self.tables.lock();
            let tag = HwKey::from_key(region.lkey.0).tag();
            tables.regions.contains_key(&index) && tables.keys.is_last(index, tag)
        };
        if !known {
            return Err(Error::OutOfRange {
                parameter: Parameter::RegionKey,
                value: region.lkey.0.into(),
            });
        }
        // When it has ended no access under the key is under way, so the memory may go (Linux
        // `mr.c`, `mlx4_mr_free_reserved`, frees its MTT entries only then, too).
        let command = Command::new(Opcode::HW2SW_MPT)
            .op(op_modifier::HW2SW_NO_OUTPUT)
            .modifier(index);
        self.commands.run(command).await?;
        self.forget_region(index);
        Ok(())
    }

    fn forget_region(&self, index: u32) {
        let mut tables = self.tables.lock();
        if let Some(translation) = tables.regions.remove(&index) {
            tables.mtts.give_back(translation);
            tables.mpts.give_back(index);
        }
    }

    /// All queue pairs, completion queues and regions there are, by number.
    pub(crate) fn leftovers(&self) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let tables = self.tables.lock();
        (
            tables.qps.keys().copied().collect(),
            tables.cqs.keys().copied().collect(),
            tables.regions.keys().copied().collect(),
        )
    }
}

/// Takes MTT entries for a queue's memory, in pages of 4 KB, and fills them in.
pub(crate) fn translate<P: Platform>(
    tables: &mut Tables<P>,
    icm: &Icm<P>,
    memory: &P::Buffer,
) -> Result<Range, Error> {
    let pages = u32::try_from(memory.len().div_ceil(PAGE)).unwrap_or(u32::MAX);
    let range = tables.mtts.take(pages)?;
    let addrs = (memory.bus_addr().0..).step_by(PAGE);
    for (entry, addr) in (range.first..range.first + pages).zip(addrs) {
        let off = if Mutant::TranslationOff.on() { 4096 } else { 0 };
        icm.write_mtt(entry, addr + off);
    }
    Ok(range)
}

/// The smallest page that covers the region with [`REGION_ENTRIES`], or the largest there is, of
/// which a region beyond 32 GB takes more. Virtual addresses are bus addresses, so pages may begin
/// before the region and end behind it: the entry's bounds, not its pages, say what can be reached.
fn region_log_page(addr: u64, end: u64) -> u32 {
    (LOG_PAGE..LOG_MAX_PAGE)
        .find(|log_page| ((end - 1) >> log_page) - (addr >> log_page) < REGION_ENTRIES)
        .unwrap_or(LOG_MAX_PAGE)
}

fn region_mpt(
    pd: u32,
    key: HwKey,
    addr: u64,
    len: u64,
    access: Access,
    translation: Range,
    log_page: u32,
) -> Mpt {
    let mut mpt = Mpt::new_zeroed();
    mpt.flags = MptFlags::new()
        .with_status(MPT_STATUS_SOFTWARE)
        .with_mio(true)
        .with_region(true)
        .with_local_read(true)
        .with_local_write(access.local_write)
        .with_remote_read(access.remote_read)
        .with_remote_write(access.remote_write || Mutant::EveryRegionWritable.on());
    mpt.key = key;
    mpt.pd = MptPd::new().with_pd(pd & Low24::MAX);
    mpt.start = addr.into();
    mpt.len = len.into();
    mpt.mtt_offset = translation.mtt_offset().into();
    mpt.log_page = log_page.into();
    mpt
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_region_has_few_entries_that_cover_it(addr in 0..1_u64 << 46, log_len in 0..42_u32, part in 0..1000_u64) {
            let len = (1_u64 << log_len) + (part << log_len) / 1000_u64;
            let end = addr + len;
            let log_page = region_log_page(addr, end);
            let (first, last) = (addr >> log_page, (end - 1) >> log_page);
            prop_assert!(last - first < REGION_ENTRIES || log_page == LOG_MAX_PAGE);
            prop_assert!(first << log_page <= addr && (last + 1) << log_page >= end);
        }
    }
}

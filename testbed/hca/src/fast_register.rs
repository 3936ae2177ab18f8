//! Work requests that change memory keys: register and invalidate.

use mlx4_hw::extended::FastRegisterSegment;
use mlx4_hw::mpt::{HwKey, MPT_STATUS_FREE, MPT_STATUS_SOFTWARE, Mpt};
use mlx4_hw::mtt::ENTRY_LEN;
use zerocopy::{FromZeros, IntoBytes};

use crate::memory::Memory;
use crate::trace::Purpose;

/// Pages that one registration may name (Linux `MLX4_MAX_FAST_REG_PAGES`).
const MOST_PAGES: u64 = 511;
/// A status that is neither software's nor free: the entry works.
const VALID: u8 = 0;

/// Returns a key's entry and its address, whatever the entry's state.
fn entry(memory: &Memory, key: u32) -> Option<(u64, Mpt)> {
    let place = memory.mpt_place(HwKey::from_key(key).index());
    let mut mpt = Mpt::new_zeroed();
    memory
        .icm_read(Purpose::Mpt, place, mpt.as_mut_bytes())
        .ok()?;
    (mpt.flags.status() != MPT_STATUS_SOFTWARE).then_some((place, mpt))
}

/// Takes a key back by a local work request. False if that is not possible.
pub(crate) fn invalidate(memory: &Memory, key: u32) -> bool {
    free(memory, key, |mpt| mpt.pd.invalidate_enable())
}

/// Takes a key back because the peer said so.
pub(crate) fn invalidate_remotely(memory: &Memory, key: u32, pd: u32) -> bool {
    free(memory, key, |mpt| {
        mpt.pd.remote_invalidate_enable() && mpt.pd.pd() == pd
    })
}

fn free(memory: &Memory, key: u32, allowed: impl Fn(&Mpt) -> bool) -> bool {
    let Some((place, mut mpt)) = entry(memory, key) else {
        return false;
    };
    if mpt.key != HwKey::from_key(key) || mpt.flags.status() == MPT_STATUS_FREE || !allowed(&mpt) {
        return false;
    }
    mpt.flags.set_status(MPT_STATUS_FREE);
    memory
        .icm_write(Purpose::Mpt, place, mpt.as_bytes())
        .is_ok()
}

/// Registers a region over a list of pages. False if the entry is not free or not made for it.
pub(crate) fn register(memory: &Memory, segment: &FastRegisterSegment) -> bool {
    let Some((place, mut mpt)) = entry(memory, segment.key.get()) else {
        return false;
    };
    if mpt.flags.status() != MPT_STATUS_FREE || !mpt.pd.fast_register_enable() {
        return false;
    }
    let Some(page) = 1_u64.checked_shl(segment.log_page.get()) else {
        return false;
    };
    let first = segment.start.get() % page;
    let pages = first.saturating_add(segment.len.get()).div_ceil(page);
    if pages > MOST_PAGES || pages > u64::from(mpt.mtt_len.get()) {
        return false;
    }
    let mut list = vec![0; usize::try_from(pages * ENTRY_LEN).unwrap_or(0)];
    let mtt = memory.tables.mtt.wrapping_add(mpt.mtt_offset.get());
    if memory
        .read(Purpose::PageList, segment.page_list.get(), &mut list)
        .is_err()
        || memory.icm_write(Purpose::Mtt, mtt, &list).is_err()
    {
        return false;
    }
    let flags = segment.flags;
    mpt.flags = mpt
        .flags
        .with_status(VALID)
        .with_atomic(flags.atomic())
        .with_remote_write(flags.remote_write())
        .with_remote_read(flags.remote_read())
        .with_local_write(flags.local_write())
        .with_local_read(flags.local_read());
    mpt.key = HwKey::from_key(segment.key.get());
    mpt.start = segment.start;
    mpt.len = segment.len;
    mpt.log_page = segment.log_page;
    memory
        .icm_write(Purpose::Mpt, place, mpt.as_bytes())
        .is_ok()
}

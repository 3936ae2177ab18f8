//! Allocation of blocks.

use alloc::vec::Vec;

use crate::Errno;
use crate::error::{Step, Stop, corrupt};
use crate::group::{FREE_BLOCKS, bit, clear_bit, set_bit};
use crate::op::Op;
use crate::superblock::{free_blocks, set_free_blocks};

impl Op<'_> {
    /// Returns the end of what must not be allocated at `block`, although its bit may be clear: the
    /// file system's own tables, blocks freed by a transaction that has not committed, blocks being
    /// filled with data.
    fn taken(&self, block: u64) -> Option<u64> {
        let (store, change) = (&self.store, &self.change);
        let sets = [
            self.system,
            &store.busy,
            &store.reserved,
            &change.freed,
            &change.reserved,
        ];
        sets.into_iter().find_map(|set| set.meets(block, block + 1))
    }

    /// Finds up to `want` consecutive free blocks, at `goal` or behind it if possible.
    pub(crate) fn find_free(&self, goal: u64, want: u32) -> Step<(u64, u32)> {
        let g = self.geometry;
        let goal = if goal < g.first_data_block || goal >= g.blocks {
            g.first_data_block
        } else {
            goal
        };
        let (first, bit) = g.locate(goal);
        // The goal's group comes twice: from the goal on, and from its beginning.
        for step in 0..=g.groups {
            let from = if step == 0 { bit } else { 0 };
            if let Some(found) = self.find_in_group((first + step) % g.groups, from, want)? {
                return Ok(found);
            }
        }
        // Blocks that wait for a commit may do.
        if self.store.busy.is_empty() {
            Err(Errno::ENOSPC.into())
        } else {
            Err(Stop::Commit)
        }
    }

    fn find_in_group(&self, number: u32, from: u32, want: u32) -> Step<Option<(u64, u32)>> {
        let group = self.group(number)?;
        if group.get(FREE_BLOCKS) == 0 {
            return Ok(None);
        }
        let bitmap = self.block_bitmap(&group)?;
        let (start, len) = (
            self.geometry.group_start(number),
            self.geometry.group_len(number),
        );
        let mut at = from;
        while at < len {
            if at.is_multiple_of(8) && bitmap[(at / 8) as usize] == 0xff {
                at += 8;
            } else if bit(&bitmap, at) {
                at += 1;
            } else if let Some(end) = self.taken(start + u64::from(at)) {
                at = u32::try_from(end - start).unwrap_or(u32::MAX);
            } else {
                let end = len.min(at.saturating_add(want));
                let stop = |&next: &u32| {
                    bit(&bitmap, next) || self.taken(start + u64::from(next)).is_some()
                };
                let end = (at + 1..end).find(stop).unwrap_or(end);
                return Ok(Some((start + u64::from(at), end - at)));
            }
        }
        Ok(None)
    }

    /// Allocates up to `want` consecutive blocks; returns the first and how many.
    pub(crate) fn allocate(&mut self, goal: u64, want: u32) -> Step<(u64, u32)> {
        let room = self.room()?.unwrap_or(0);
        if room == 0 {
            return Err(self.no_room());
        }
        let want = want.min(u32::try_from(room).unwrap_or(u32::MAX));
        let (start, len) = self.find_free(goal, want)?;
        self.claim(start, len)?;
        Ok((start, len))
    }

    /// Allocates a block for metadata.
    pub(crate) fn allocate_one(&mut self, goal: u64) -> Step<u64> {
        Ok(self.allocate(goal, 1)?.0)
    }

    /// Marks free blocks of one group allocated.
    pub(crate) fn claim(&mut self, start: u64, len: u32) -> Step<()> {
        self.mark(start, len, true)?;
        self.change.claimed += u64::from(len);
        self.count_free_blocks(-i64::from(len))
    }

    /// Frees blocks; they may lie in several groups.
    pub(crate) fn free(&mut self, start: u64, len: u64) -> Step<()> {
        self.check_owned(start, len)?;
        let (mut at, end) = (start, start + len);
        while at < end {
            let (number, bit) = self.geometry.locate(at);
            let room = u64::from(self.geometry.blocks_per_group - bit);
            let here = u32::try_from(room.min(end - at)).unwrap_or(u32::MAX);
            self.mark(at, here, false)?;
            self.change.freed.insert(at, here.into());
            self.count_free_blocks(here.into())?;
            at = self.geometry.group_start(number + 1);
        }
        Ok(())
    }

    /// Checks that a file may own blocks: they lie on the disk and outside the file system's own
    /// tables.
    pub(crate) fn check_owned(&self, start: u64, len: u64) -> Step<()> {
        let end = start
            .checked_add(len)
            .filter(|&end| end <= self.geometry.blocks);
        match end {
            Some(end)
                if start >= self.geometry.first_data_block
                    && self.system.meets(start, end).is_none() =>
            {
                Ok(())
            }
            _ => corrupt("block of a file", start),
        }
    }

    fn mark(&mut self, start: u64, len: u32, used: bool) -> Step<()> {
        let (number, first) = self.geometry.locate(start);
        let mut group = self.group(number)?;
        let mut bitmap: Vec<u8> = self.block_bitmap(&group)?.into_owned();
        for at in first..first + len {
            if bit(&bitmap, at) == used {
                return corrupt("block bitmap", group.block_bitmap());
            }
            if used {
                set_bit(&mut bitmap, at);
            } else {
                clear_bit(&mut bitmap, at);
            }
        }
        let free = group.get(FREE_BLOCKS);
        let free = if used {
            free.checked_sub(len)
        } else {
            free.checked_add(len)
        };
        let Some(free) = free.filter(|&free| free <= self.geometry.blocks_per_group) else {
            return corrupt("bg_free_blocks_count", number.into());
        };
        group.set(FREE_BLOCKS, free);
        self.put_block_bitmap(&mut group, bitmap);
        self.put_group(&group)
    }

    fn count_free_blocks(&mut self, delta: i64) -> Step<()> {
        let wide = self.geometry.wide;
        let free = free_blocks(self.superblock()?, wide);
        let Some(free) = free.checked_add_signed(delta) else {
            return corrupt("s_free_blocks_count", free);
        };
        self.edit_superblock(|sb| set_free_blocks(sb, wide, free))
    }
}

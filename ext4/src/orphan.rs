//! The list of orphans: inodes without names, and files being cut short, whose blocks a crash must
//! not leak.
//!
//! `s_last_orphan` of the superblock holds the first; `i_dtime` of each holds the next (Linux
//! `fs/ext4/orphan.c`).

use crate::bytes::{low32, put_u32, u32_at};
use crate::error::{Step, corrupt};
use crate::inode::{Clock, Inode};
use crate::op::Op;
use crate::superblock::LAST_ORPHAN;

/// Extents that one operation frees at most, so that it fits a transaction.
pub(crate) const BUDGET: usize = 8;

impl Op<'_> {
    /// Returns the first orphan; zero for none.
    pub(crate) fn first_orphan(&self) -> Step<u32> {
        Ok(u32_at(self.superblock()?, LAST_ORPHAN))
    }

    /// Returns whether an inode is on the list: its earlier deletion or cut may have been given up
    /// half-way.
    fn is_orphan(&self, number: u32) -> bool {
        let changed = self.change.orphans.get(&number);
        changed
            .copied()
            .unwrap_or_else(|| self.store.orphans.contains(&number))
    }

    /// Adds an inode to the list unless it is on it. The caller writes the inode.
    pub(crate) fn add_orphan(&mut self, inode: &mut Inode) -> Step<()> {
        if self.is_orphan(inode.number) {
            return Ok(());
        }
        self.change.orphans.insert(inode.number, true);
        let next = self.first_orphan()?;
        inode.set_dtime(next);
        self.edit_superblock(|sb| put_u32(sb, LAST_ORPHAN, inode.number))
    }

    /// Takes an inode off the list; one that is not on it stays as it is. The caller writes the
    /// inode.
    pub(crate) fn remove_orphan(&mut self, inode: &mut Inode) -> Step<()> {
        let next = inode.dtime();
        let mut at = self.first_orphan()?;
        if at != inode.number && !self.is_orphan(inode.number) {
            return Ok(());
        }
        self.change.orphans.insert(inode.number, false);
        if at == inode.number {
            inode.set_dtime(0);
            return self.edit_superblock(|sb| put_u32(sb, LAST_ORPHAN, next));
        }
        // A list with a loop ends at the number of inodes.
        for _ in 0..self.geometry.inodes {
            if at == 0 {
                break;
            }
            let mut before = self.inode(at)?;
            if before.dtime() == inode.number {
                before.set_dtime(next);
                inode.set_dtime(0);
                return self.put_inode(&before);
            }
            at = before.dtime();
        }
        corrupt("orphan list", inode.number.into())
    }

    /// Does a part of the work that an orphan's deletion or cut needs; returns whether it is
    /// finished and the inode is off the list.
    pub(crate) fn shrink_orphan(&mut self, number: u32) -> Step<bool> {
        if number < self.geometry.first_inode {
            return corrupt("orphan list", number.into());
        }
        let mut inode = self.inode(number)?;
        let size = self.geometry.block_size as u64;
        let gone = inode.links() == 0;
        let keep = if gone { 0 } else { inode.size().div_ceil(size) };
        let mapped = inode.flags() & crate::inode::EXTENTS_FLAG != 0;
        let metadata = inode.kind() != crate::inode::REGULAR;
        let end = u64::from(u32::MAX);
        let finished = !mapped || self.remove_extents(&mut inode, keep, end, BUDGET, metadata)?;
        if finished {
            self.remove_orphan(&mut inode)?;
            if gone {
                return self.delete(inode);
            }
        }
        self.put_inode(&inode)?;
        Ok(finished)
    }

    /// Frees a part of the blocks behind a file's size, after setting that to `size`; returns
    /// whether none are left. An unfinished file is on the list.
    pub(crate) fn cut(&mut self, number: u32, size: u64) -> Step<bool> {
        let mut inode = self.used_inode(number)?;
        let keep = size.div_ceil(self.geometry.block_size as u64);
        inode.set_size(size);
        inode.set_time(Clock::Modified, self.now);
        inode.set_time(Clock::Changed, self.now);
        let finished = self.remove_extents(&mut inode, keep, u32::MAX.into(), BUDGET, false)?;
        // A file without names is on the list anyway.
        if inode.links() > 0 && finished {
            self.remove_orphan(&mut inode)?;
        } else if inode.links() > 0 {
            self.add_orphan(&mut inode)?;
        }
        self.put_inode(&inode)?;
        Ok(finished)
    }

    /// Frees an inode without blocks.
    fn delete(&mut self, mut inode: Inode) -> Step<bool> {
        self.drop_attributes(&mut inode)?;
        self.free_inode(&inode)?;
        inode.set_size(0);
        // `i_dtime` of a deleted inode is never zero.
        inode.set_dtime(low32(self.now.seconds.cast_unsigned()).max(1));
        self.put_inode(&inode)?;
        Ok(true)
    }
}

//! `fallocate`: allocation ahead of writing, and holes.

use crate::bytes::low32;
use crate::error::Step;
use crate::extents::{Extent, Mapping};
use crate::file::changeable;
use crate::inode::Clock;
use crate::op::Op;
use crate::orphan::BUDGET;
use crate::{Disk, Errno, Error, Ext4, Time};

/// Modes of `fallocate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Allocates blocks where there are none, and grows the file.
    Extend,
    /// Allocates blocks where there are none; the size stays (`FALLOC_FL_KEEP_SIZE`).
    KeepSize,
    /// Frees the range's blocks; it reads as zeroes (`FALLOC_FL_PUNCH_HOLE`).
    PunchHole,
}

/// Longest unwritten extent.
const MAX_UNWRITTEN: u64 = 0x7fff;

impl Op<'_> {
    /// Allocates unwritten extents in holes from block `from` on; returns where to go on.
    fn reserve_range(&mut self, number: u32, from: u64, to: u64) -> Step<u64> {
        let mut inode = self.used_inode(number)?;
        changeable(&inode)?;
        let mut at = from;
        let mut goal = self.write_goal(&inode, from)?;
        for _ in 0..BUDGET {
            if at >= to {
                break;
            }
            match self.map(&inode, low32(at))? {
                Mapping::Extent(extent) => {
                    at = extent.end();
                    goal = extent.physical + u64::from(extent.len);
                }
                Mapping::Hole(len) => {
                    let want = len.min(to - at).min(MAX_UNWRITTEN);
                    let (physical, len) = self.allocate(goal, low32(want))?;
                    let logical = low32(at);
                    self.insert_extent(
                        &mut inode,
                        Extent {
                            logical,
                            len,
                            unwritten: true,
                            physical,
                        },
                    )?;
                    inode.count_blocks(self.geometry, len.into())?;
                    at += u64::from(len);
                    goal = physical + u64::from(len);
                }
            }
        }
        inode.set_time(Clock::Changed, self.now);
        self.put_inode(&inode)?;
        Ok(at)
    }

    /// Frees a part of a range; returns whether nothing is left there.
    fn punch_range(&mut self, number: u32, from: u64, to: u64) -> Step<bool> {
        let mut inode = self.used_inode(number)?;
        changeable(&inode)?;
        let finished = self.remove_extents(&mut inode, from, to, BUDGET, false)?;
        inode.set_time(Clock::Modified, self.now);
        inode.set_time(Clock::Changed, self.now);
        self.put_inode(&inode)?;
        Ok(finished)
    }
}

impl<D: Disk> Ext4<D> {
    /// Allocates or frees a range of a file.
    ///
    /// # Errors
    ///
    /// ENOSPC (part of the range may be allocated then), EFBIG, EINVAL for an empty range, EISDIR,
    /// EPERM, EROFS.
    pub async fn fallocate(
        &self,
        inode: u32,
        how: Allocation,
        offset: u64,
        len: u64,
        now: Time,
    ) -> Result<(), Error> {
        self.check_writable()?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL.into());
        }
        let _guard = self.locks.exclusive(inode).await;
        self.finish_cut(inode, now).await?;
        let max = self
            .run(now, |op| {
                changeable(&op.used_inode(inode)?)?;
                Ok(op.max_size())
            })
            .await?;
        match how {
            Allocation::PunchHole => self.punch(inode, offset, end.min(max), now).await,
            _ if end > max => Err(Errno::EFBIG.into()),
            _ => {
                self.preallocate(inode, offset, end, how == Allocation::Extend, now)
                    .await
            }
        }
    }

    async fn preallocate(
        &self,
        inode: u32,
        from: u64,
        to: u64,
        grow: bool,
        now: Time,
    ) -> Result<(), Error> {
        let size = self.geometry.block_size as u64;
        let (mut at, end) = (from / size, to.div_ceil(size));
        while at < end {
            at = self.run(now, |op| op.reserve_range(inode, at, end)).await?;
        }
        self.run(now, |op| {
            let mut inode = op.used_inode(inode)?;
            if grow && inode.size() < to {
                inode.set_size(to);
                inode.set_time(Clock::Modified, now);
            }
            op.put_inode(&inode)
        })
        .await
    }

    async fn punch(&self, inode: u32, from: u64, to: u64, now: Time) -> Result<(), Error> {
        let size = self.geometry.block_size as u64;
        let (first, last) = (from.next_multiple_of(size), to / size * size);
        if from >= to {
            return Ok(());
        }
        if first > last {
            // Within one block.
            return self.zero_within(inode, from, to, now).await;
        }
        if from < first {
            self.zero_within(inode, from, first, now).await?;
        }
        if last < to {
            self.zero_within(inode, last, to, now).await?;
        }
        while !self
            .run(now, |op| op.punch_range(inode, first / size, last / size))
            .await?
        {}
        Ok(())
    }
}

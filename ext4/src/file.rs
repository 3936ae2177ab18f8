//! Reading, writing and cutting files.
//!
//! A write goes in three steps: an operation finds the blocks (those of a hole are reserved in
//! memory only), the data is written there, and a second operation allocates and maps them. So
//! metadata never points at blocks without their data, and a write that a crash interrupts leaves
//! nothing behind.

use alloc::vec;
use alloc::vec::Vec;

use futures_util::future::try_join_all;

use crate::bytes::{index, low32};
use crate::error::{Step, Stop};
use crate::extents::{Extent, Mapping};
use crate::inode::{Clock, DIRECTORY, Inode, REGULAR};
use crate::op::Op;
use crate::promise::Terms;
use crate::{Disk, Errno, Error, Ext4, Time};

/// Bytes of one step of a read or write.
const STEP: u64 = 1 << 20;

/// Extents of one step, so that the operation fits a transaction.
const PIECES: usize = 16;

/// A part of a write.
#[derive(Debug, Clone, Copy)]
struct Piece {
    extent: Extent,
    /// The extent is reserved and still to be allocated.
    new: bool,
}

impl Piece {
    /// Returns whether the disk holds data of the file there.
    fn has_data(&self) -> bool {
        !self.new && !self.extent.unwritten
    }
}

/// Blocks reserved by a write; dropped with it whether or not it went well.
struct Reservation<'a, D: Disk> {
    fs: &'a Ext4<D>,
    pieces: Vec<Piece>,
    /// Blocks of it that no promise covers and that are not claimed.
    planned: u64,
}

impl<D: Disk> Drop for Reservation<'_, D> {
    fn drop(&mut self) {
        let mut state = self.fs.state.lock();
        for piece in self.pieces.iter().filter(|piece| piece.new) {
            state.store.reserved.remove(piece.extent.physical);
        }
        state.store.promises.given_up(self.planned);
    }
}

/// Checks that an inode is a regular file.
pub(crate) fn regular(inode: &Inode) -> Step<()> {
    match inode.kind() {
        REGULAR => Ok(()),
        DIRECTORY => Err(Errno::EISDIR.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Checks that a file may be changed.
pub(crate) fn changeable(inode: &Inode) -> Step<()> {
    regular(inode)?;
    if inode.is_restricted() {
        Err(Errno::EPERM.into())
    } else {
        Ok(())
    }
}

impl Op<'_> {
    /// Returns the largest size of a file: extents count 2^32 - 1 blocks.
    pub(crate) fn max_size(&self) -> u64 {
        u64::from(u32::MAX) * self.geometry.block_size as u64
    }

    /// Returns what blocks `from` to before `to` of a file have.
    fn map_range(&self, inode: &Inode, from: u64, to: u64) -> Step<Vec<(u64, Mapping)>> {
        let (mut mappings, mut at) = (Vec::new(), from);
        while at < to {
            let mapping = self.map(inode, low32(at))?;
            mappings.push((at, mapping));
            at += match mapping {
                Mapping::Extent(extent) => u64::from(extent.len),
                Mapping::Hole(len) => len,
            };
        }
        Ok(mappings)
    }

    /// Plans a write of blocks `from` to before `to`: reserves blocks for holes. A full disk
    /// shortens the plan.
    fn plan_write(&mut self, number: u32, from: u64, to: u64) -> Step<Vec<Piece>> {
        let inode = self.used_inode(number)?;
        changeable(&inode)?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = from;
        let mut goal = self.write_goal(&inode, from)?;
        while at < to && pieces.len() < PIECES {
            let piece = match self.map(&inode, low32(at))? {
                Mapping::Extent(extent) => Piece {
                    extent: extent.part(at, to),
                    new: false,
                },
                Mapping::Hole(len) => match self.plan_blocks(goal, len.min(to - at)) {
                    Ok((physical, len)) => {
                        self.change.reserved.insert(physical, len.into());
                        let logical = low32(at);
                        Piece {
                            extent: Extent {
                                logical,
                                len,
                                unwritten: false,
                                physical,
                            },
                            new: true,
                        }
                    }
                    Err(Stop::Fail(Error::Errno(Errno::ENOSPC))) if !pieces.is_empty() => break,
                    Err(stop) => return Err(stop),
                },
            };
            goal = piece.extent.physical + u64::from(piece.extent.len);
            at = piece.extent.end();
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Finds up to `want` consecutive free blocks that a write may take.
    fn plan_blocks(&self, goal: u64, want: u64) -> Step<(u64, u32)> {
        let room = self.room()?.unwrap_or(0);
        if room == 0 {
            return Err(self.no_room());
        }
        self.find_free(goal, low32(want.min(room)))
    }

    /// Returns the block behind the one that the file has before `from`.
    pub(crate) fn write_goal(&self, inode: &Inode, from: u64) -> Step<u64> {
        if let Some(before) = from.checked_sub(1)
            && let Mapping::Extent(extent) = self.map(inode, low32(before))?
        {
            return Ok(extent.physical + 1);
        }
        Ok(self.inode_goal(inode.number))
    }

    /// Maps what a write stored, and grows the file to `end`.
    fn finish_write(&mut self, number: u32, pieces: &[Piece], end: u64) -> Step<()> {
        let mut inode = self.used_inode(number)?;
        changeable(&inode)?;
        for &Piece { extent, new } in pieces {
            if new {
                self.claim(extent.physical, extent.len)?;
                self.insert_extent(&mut inode, extent)?;
                inode.count_blocks(self.geometry, extent.len.into())?;
            } else if extent.unwritten {
                self.mark_written(&mut inode, extent.logical, extent.len)?;
            }
        }
        if end > inode.size() {
            inode.set_size(end);
        }
        inode.set_time(Clock::Modified, self.now);
        inode.set_time(Clock::Changed, self.now);
        self.put_inode(&inode)?;
        self.check_room()
    }
}

impl<D: Disk> Ext4<D> {
    /// Reads a file's bytes from `offset` on; returns how many, fewer than asked for only at the
    /// end of the file.
    ///
    /// # Errors
    ///
    /// EISDIR, EINVAL for what is no regular file; else the disk's or the file system's failure.
    pub async fn read(&self, inode: u32, offset: u64, into: &mut [u8]) -> Result<usize, Error> {
        let _guard = self.locks.shared(inode).await;
        let mut done = 0;
        while done < into.len() {
            let at = offset.saturating_add(done as u64);
            let step = (into.len() - done).min(index(STEP));
            let read = self
                .read_step(inode, at, &mut into[done..done + step])
                .await?;
            done += read;
            if read < step {
                break;
            }
        }
        Ok(done)
    }

    async fn read_step(&self, number: u32, offset: u64, into: &mut [u8]) -> Result<usize, Error> {
        let size = self.geometry.block_size as u64;
        let first = offset / size;
        let (len, mappings) = self
            .run(Time::default(), |op| {
                let inode = op.used_inode(number)?;
                regular(&inode)?;
                let len = inode
                    .size()
                    .min(op.max_size())
                    .saturating_sub(offset)
                    .min(into.len() as u64);
                let end = if len == 0 {
                    first
                } else {
                    (offset + len).div_ceil(size)
                };
                Ok((len, op.map_range(&inode, first, end)?))
            })
            .await?;
        let end = (offset + len).div_ceil(size).max(first);
        let mut blocks = vec![0; index((end - first) * size)];
        let mut rest = blocks.as_mut_slice();
        let mut at = first;
        let mut reads = Vec::new();
        for (_, mapping) in mappings {
            let (len, physical) = match mapping {
                Mapping::Extent(extent) => (
                    extent.len.into(),
                    (!extent.unwritten).then_some(extent.physical),
                ),
                Mapping::Hole(len) => (len, None),
            };
            let len = len.min(end - at);
            let (part, behind) = rest.split_at_mut(index(len * size));
            if let Some(physical) = physical {
                reads.push(self.disk.read(self.offset(physical), part));
            }
            rest = behind;
            at += len;
        }
        try_join_all(reads).await?;
        let skip = index(offset % size);
        let len = index(len);
        into[..len].copy_from_slice(&blocks[skip..skip + len]);
        Ok(len)
    }

    /// Writes bytes at `offset`; returns how many, fewer than given only if the disk is full.
    ///
    /// # Errors
    ///
    /// ENOSPC, EFBIG, EISDIR, EINVAL, EPERM, EROFS; else the disk's or the file system's failure.
    pub async fn write(
        &self,
        inode: u32,
        offset: u64,
        bytes: &[u8],
        now: Time,
    ) -> Result<usize, Error> {
        self.check_writable()?;
        let _guard = self.locks.exclusive(inode).await;
        self.finish_cut(inode, now).await?;
        self.write_held((inode, None), offset, bytes, now).await
    }

    /// Writes bytes at `offset` into blocks that were promised to the file; returns how many. The
    /// disk is full for it only if the promise was for less.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub async fn write_promised(
        &self,
        inode: u32,
        offset: u64,
        bytes: &[u8],
        now: Time,
    ) -> Result<usize, Error> {
        self.check_writable()?;
        let _guard = self.locks.exclusive(inode).await;
        self.finish_cut(inode, now).await?;
        let of = (inode, Some(inode));
        self.write_held(of, offset, bytes, now).await
    }

    /// Writes bytes at the end of a file (`O_APPEND`); returns where they begin and how many they
    /// are.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub async fn append(&self, inode: u32, bytes: &[u8], now: Time) -> Result<(u64, usize), Error> {
        self.check_writable()?;
        let _guard = self.locks.exclusive(inode).await;
        self.finish_cut(inode, now).await?;
        let size = self.run(now, |op| Ok(op.used_inode(inode)?.size())).await?;
        let of = (inode, None);
        Ok((size, self.write_held(of, size, bytes, now).await?))
    }

    /// Writes to a file whose lock is held; a promise may pay for it.
    async fn write_held(
        &self,
        of: (u32, Option<u32>),
        offset: u64,
        bytes: &[u8],
        now: Time,
    ) -> Result<usize, Error> {
        let block = self.geometry.block_size as u64;
        let (mut done, mut most) = (0, STEP);
        while done < bytes.len() {
            let at = offset.checked_add(done as u64).ok_or(Errno::EFBIG)?;
            // Steps end where blocks do.
            let step = (most - at % most).min((bytes.len() - done) as u64);
            let part = &bytes[done..done + index(step)];
            match self.write_step(of, at, part, now).await {
                Ok(written) => done += written,
                // The last free blocks may be too few for the file's blocks and those of its tree.
                Err(error) if error.errno() == Errno::ENOSPC && most > block => {
                    most = (most / 2).min(step.next_power_of_two()).max(block);
                }
                Err(error) if done > 0 && error.errno() == Errno::ENOSPC => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    async fn write_step(
        &self,
        (number, pays): (u32, Option<u32>),
        offset: u64,
        bytes: &[u8],
        now: Time,
    ) -> Result<usize, Error> {
        let size = self.geometry.block_size as u64;
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::EFBIG)?;
        let (first, last) = (offset / size, end.div_ceil(size));
        let terms = Terms { pays, settles: 0 };
        let pieces = self
            .run_on(terms, now, |op| {
                if end > op.max_size() {
                    return Err(Errno::EFBIG.into());
                }
                op.plan_write(number, first, last)
            })
            .await?;
        let new = pieces.iter().filter(|piece| piece.new);
        let new = new.map(|piece| u64::from(piece.extent.len)).sum();
        let planned = if pays.is_some() { 0 } else { new };
        let mut reservation = Reservation {
            fs: self,
            pieces,
            planned,
        };
        let pieces = &reservation.pieces;
        let covered = pieces.last().map_or(first, |piece| piece.extent.end());
        let end = end.min(covered * size);
        let bytes = &bytes[..index(end - offset)];
        let blocks = self.whole_blocks(pieces, first, offset, bytes).await?;
        let mut writes = Vec::new();
        let mut rest = blocks.as_slice();
        for piece in pieces {
            let (part, behind) = rest.split_at(index(u64::from(piece.extent.len) * size));
            writes.push(self.disk.write(self.offset(piece.extent.physical), part));
            rest = behind;
        }
        try_join_all(writes).await?;
        self.state.lock().unflushed = true;
        let settles = planned;
        self.run_on(Terms { pays, settles }, now, |op| {
            op.finish_write(number, pieces, end)
        })
        .await?;
        reservation.planned = 0;
        Ok(bytes.len())
    }

    /// Returns the whole blocks that a write stores: its bytes, with what the file has before and
    /// behind them.
    async fn whole_blocks(
        &self,
        pieces: &[Piece],
        first: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let size = self.geometry.block_size;
        let end = offset + bytes.len() as u64;
        let covered = pieces.last().map_or(first, |piece| piece.extent.end());
        let mut blocks = vec![0; index(covered - first) * size];
        let partial = |at: u64| !at.is_multiple_of(size as u64);
        let (head, tail) = (partial(offset), partial(end));
        let edges = [
            (head, first),
            (tail && (covered > first + 1 || !head), covered - 1),
        ];
        for (_, block) in edges.into_iter().filter(|(partial, _)| *partial) {
            let holds = |piece: &&Piece| {
                (u64::from(piece.extent.logical)..piece.extent.end()).contains(&block)
            };
            if let Some(piece) = pieces.iter().find(holds).filter(|piece| piece.has_data()) {
                let physical = piece.extent.physical + (block - u64::from(piece.extent.logical));
                let at = index(block - first) * size;
                self.disk
                    .read(self.offset(physical), &mut blocks[at..at + size])
                    .await?;
            }
        }
        let skip = index(offset - first * size as u64);
        blocks[skip..skip + bytes.len()].copy_from_slice(bytes);
        Ok(blocks)
    }

    /// Overwrites part of a block with zeroes where the file has data.
    pub(crate) async fn zero_within(
        &self,
        number: u32,
        from: u64,
        to: u64,
        now: Time,
    ) -> Result<(), Error> {
        let size = self.geometry.block_size as u64;
        let mapping = self
            .run(now, |op| {
                let inode = op.used_inode(number)?;
                changeable(&inode)?;
                if from >= op.max_size() {
                    Ok(Mapping::Hole(1))
                } else {
                    op.map(&inode, low32(from / size))
                }
            })
            .await?;
        let Mapping::Extent(extent) = mapping else {
            return Ok(());
        };
        if from >= to || extent.unwritten {
            return Ok(());
        }
        let mut block = vec![0; index(size)];
        self.disk
            .read(self.offset(extent.physical), &mut block)
            .await?;
        let base = from / size * size;
        block[index(from - base)..index((to - base).min(size))].fill(0);
        self.disk
            .write(self.offset(extent.physical), &block)
            .await?;
        self.state.lock().unflushed = true;
        Ok(())
    }

    /// Finishes an earlier cut that was given up half-way: what it left behind the file's end must
    /// not come back when the file grows.
    pub(crate) async fn finish_cut(&self, number: u32, now: Time) -> Result<(), Error> {
        if !self.state.lock().store.orphans.contains(&number) {
            return Ok(());
        }
        let step = |op: &mut Op<'_>| {
            let inode = op.used_inode(number)?;
            changeable(&inode)?;
            op.cut(number, inode.size())
        };
        while !self.run(now, step).await? {}
        Ok(())
    }

    /// Sets a file's size. Bytes behind the old end read as zeroes.
    ///
    /// # Errors
    ///
    /// EFBIG, EISDIR, EINVAL, EPERM, EROFS; else the disk's or the file system's failure.
    pub async fn truncate(&self, inode: u32, to: u64, now: Time) -> Result<(), Error> {
        self.check_writable()?;
        let _guard = self.locks.exclusive(inode).await;
        self.finish_cut(inode, now).await?;
        let size = self
            .run(now, |op| {
                let inode = op.used_inode(inode)?;
                changeable(&inode)?;
                if to > op.max_size() {
                    Err(Errno::EFBIG.into())
                } else {
                    Ok(inode.size())
                }
            })
            .await?;
        let block = self.geometry.block_size as u64;
        if to < size && !to.is_multiple_of(block) {
            // Linux takes the rest of the last block for zeroes when it grows the file again.
            self.zero_within(inode, to, to.next_multiple_of(block), now)
                .await?;
        }
        while !self.run(now, |op| op.cut(inode, to)).await? {}
        Ok(())
    }

    /// Makes a file's data and attributes durable, and all other changes with them.
    ///
    /// # Errors
    ///
    /// The disk's failure, now or of an earlier commit.
    pub async fn fsync(&self, _inode: u32, now: Time) -> Result<(), Error> {
        self.sync(now).await
    }

    /// Makes all changes until now durable.
    ///
    /// # Errors
    ///
    /// As [`Self::fsync`].
    pub async fn sync(&self, now: Time) -> Result<(), Error> {
        if self.read_only {
            Ok(())
        } else {
            self.commit(now).await
        }
    }
}

//! Mounting and unmounting.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use spin::Mutex;

use crate::bytes::{low32, put_u32, u32_at};
use crate::error::{Step, corrupt};
use crate::extents::Mapping;
use crate::fs::State;
use crate::group::{self, FREE_BLOCKS};
use crate::journal::{Journal, Recovered, Run, scan};
use crate::locks::Locks;
use crate::op::Op;
use crate::ranges::Ranges;
use crate::store::{Block, Store};
use crate::superblock::{
    FEATURE_INCOMPAT, FREE_INODES, Geometry, INCOMPAT_RECOVER, OFFSET, SIZE, note_mount, seal,
    set_free_blocks, writable,
};
use crate::{Disk, Errno, Error, Ext4, Time};

/// Blocks of a log that is replayed in memory.
const MAX_REPLAYED: usize = 16_384;

/// Options of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Nothing is written: a journal that must be replayed is replayed in memory.
    pub read_only: bool,
    /// The time.
    pub now: Time,
}

/// Adds a range of the file system's own blocks, which must lie on the disk and meet no other.
fn reserve(op: &Op<'_>, system: &mut Ranges, start: u64, len: u64) -> Step<()> {
    let end = start
        .checked_add(len)
        .filter(|&end| end <= op.geometry.blocks);
    match end {
        Some(end) if start > 0 && system.meets(start, end).is_none() => {
            system.insert(start, len);
            Ok(())
        }
        _ => corrupt("group descriptor", start),
    }
}

/// Returns the blocks that no file may own: superblocks, descriptors, bitmaps, inode tables.
fn system_blocks(op: &mut Op<'_>) -> Step<Ranges> {
    let g = op.geometry;
    let mut system = Ranges::default();
    let base = 1 + g.descriptor_blocks() + u64::from(g.reserved_descriptors);
    if g.first_data_block == 0 {
        system.insert(0, base);
    } else {
        // Blocks of 1 KB: the boot block comes first.
        system.insert(0, 1 + base);
    }
    for number in 0..g.groups {
        if number > 0 && g.has_superblock(number) {
            let len = base.min(g.group_len(number).into());
            reserve(op, &mut system, g.group_start(number), len)?;
        }
        let group = op.group(number)?;
        for (start, len) in [
            (group.block_bitmap(), 1),
            (group.inode_bitmap(), 1),
            (group.inode_table(), g.table_blocks()),
        ] {
            reserve(op, &mut system, start, len)?;
        }
    }
    Ok(system)
}

/// Returns where the journal lies.
fn journal_runs(op: &mut Op<'_>) -> Step<Vec<Run>> {
    let inode = op.inode(op.geometry.journal_inode)?;
    let blocks = inode.size() / op.geometry.block_size as u64;
    let mut runs = Vec::new();
    let mut at = 0;
    while at < blocks.min(u32::MAX.into()) {
        let Mapping::Extent(extent) = op.map(&inode, low32(at))? else {
            return corrupt("journal inode", inode.number.into());
        };
        let (logical, len, physical) = (extent.logical, extent.len, extent.physical);
        runs.push(Run {
            logical,
            len,
            physical,
        });
        at = extent.end();
    }
    Ok(runs)
}

async fn read_geometry<D: Disk>(disk: &D) -> Result<(Geometry, Vec<u8>), Error> {
    let mut sb = vec![0; SIZE];
    disk.read(OFFSET, &mut sb).await?;
    Ok((Geometry::parse(&sb)?, sb))
}

impl<D: Disk> Ext4<D> {
    /// Mounts the file system on a disk: replays its journal, and finishes deletions that a crash
    /// interrupted.
    ///
    /// # Errors
    ///
    /// [`Error::NotExt4`], [`Error::Features`], [`Error::Corrupt`] or [`Error::Disk`]; EROFS for a
    /// file system without a journal that is to be written.
    pub async fn mount(disk: D, options: Options) -> Result<Self, Error> {
        let (geometry, sb) = read_geometry(&disk).await?;
        if !options.read_only {
            writable(&geometry)?;
        }
        let dirty = u32_at(&sb, FEATURE_INCOMPAT) & INCOMPAT_RECOVER != 0;
        let mut fs = Self::bare(disk, geometry, options.read_only);
        let mut runs = Vec::new();
        if fs.geometry.has_journal {
            runs = fs.open_journal(options.now, dirty).await?;
            fs.geometry = fs.geometry_now().await?;
        }
        fs.system = fs.run(options.now, system_blocks).await?;
        for run in runs {
            let (start, len) = (run.physical, run.len.into());
            if fs.system.meets(start, start + len).is_some() {
                return Err(Error::Corrupt {
                    what: "journal inode",
                    at: start,
                });
            }
            fs.system.insert(start, len);
        }
        if !options.read_only {
            // The flag first: a log that is not empty without it is ignored by Linux and an error
            // for e2fsck.
            fs.set_recover(true, options.now).await?;
            fs.restart_log().await?;
            fs.finish_orphans(options.now).await?;
        }
        Ok(fs)
    }

    fn bare(disk: D, geometry: Geometry, read_only: bool) -> Self {
        Self {
            disk,
            geometry,
            system: Ranges::default(),
            state: Mutex::new(State {
                store: Store::default(),
                journal: None,
                holds: BTreeMap::new(),
                failed: None,
                unflushed: false,
            }),
            locks: Locks::default(),
            read_only,
        }
    }

    /// Reads the journal's superblock, and replays the log if the file system was not unmounted.
    async fn open_journal(&mut self, now: Time, dirty: bool) -> Result<Vec<Run>, Error> {
        let runs = self.run(now, journal_runs).await?;
        let first = runs.first().ok_or(Error::Corrupt {
            what: "journal inode",
            at: 0,
        })?;
        let mut bytes = vec![0; self.geometry.block_size];
        self.disk
            .read(self.offset(first.physical), &mut bytes)
            .await?;
        let mut journal = Journal::parse(&bytes, self.geometry.block_size, runs.clone())?;
        // Linux discards a log of a file system that does not ask for it (`jbd2_journal_wipe`).
        let recovered = scan(&journal, &self.disk).await?;
        let mut store = Store::default();
        match (dirty, self.read_only) {
            (false, _) => {}
            (true, false) => self.replay(&journal, &recovered).await?,
            (true, true) => store.checkpoint = self.replayed(&journal, &recovered).await?,
        }
        journal.resume(recovered.sequence);
        let replayed = journal.start().is_some();
        self.state.lock().journal = Some(journal);
        if replayed && dirty && !self.read_only {
            self.stop_log().await?;
        }
        self.state.lock().store = store;
        Ok(runs)
    }

    /// Returns the log's blocks, to be read instead of those in their places.
    async fn replayed(
        &self,
        journal: &Journal,
        recovered: &Recovered,
    ) -> Result<BTreeMap<u64, Block>, Error> {
        if recovered.blocks.len() > MAX_REPLAYED {
            return Err(Errno::EROFS.into());
        }
        let mut blocks = BTreeMap::new();
        for (&block, &copy) in &recovered.blocks {
            let bytes = Recovered::read(journal, &self.disk, copy).await?;
            blocks.insert(block, Block::new(bytes));
        }
        Ok(blocks)
    }

    /// Returns the geometry that the superblock says after the replay.
    async fn geometry_now(&self) -> Result<Geometry, Error> {
        let (block, at) = self.geometry.superblock_place();
        let replayed = self.state.lock().store.checkpoint.get(&block).cloned();
        match replayed {
            Some(bytes) => Geometry::parse(&bytes[at..at + SIZE]),
            None => Ok(read_geometry(&self.disk).await?.0),
        }
    }

    /// Writes the log's blocks to their places.
    async fn replay(&self, journal: &Journal, recovered: &Recovered) -> Result<(), Error> {
        for (&block, &copy) in &recovered.blocks {
            if block >= self.geometry.blocks {
                return Err(Error::Corrupt {
                    what: "block in the journal",
                    at: block,
                });
            }
            let bytes = Recovered::read(journal, &self.disk, copy).await?;
            self.disk.write(self.offset(block), &bytes).await?;
        }
        if recovered.blocks.is_empty() {
            Ok(())
        } else {
            Ok(self.disk.flush().await?)
        }
    }

    /// Sets or clears the flag that the journal must be replayed, in place: the log holds no copy
    /// of it yet, or any more.
    async fn set_recover(&self, on: bool, now: Time) -> Result<(), Error> {
        let counted = if on {
            Some(self.count_free(now).await?)
        } else {
            None
        };
        let (block, at) = self.geometry.superblock_place();
        let mut bytes = self.run(now, |op| Ok(op.block(block)?.to_vec())).await?;
        let sb = &mut bytes[at..at + SIZE];
        let features = u32_at(sb, FEATURE_INCOMPAT) & !INCOMPAT_RECOVER;
        put_u32(
            sb,
            FEATURE_INCOMPAT,
            features | if on { INCOMPAT_RECOVER } else { 0 },
        );
        if let Some((blocks, inodes)) = counted {
            note_mount(sb, low32(now.seconds.cast_unsigned()));
            set_free_blocks(sb, self.geometry.wide, blocks);
            put_u32(sb, FREE_INODES, inodes);
        }
        seal(sb, self.geometry.metadata_csum);
        self.disk.write(self.offset(block), &bytes).await?;
        self.disk.flush().await?;
        self.state.lock().store.add_clean(block, bytes.into(), true);
        Ok(())
    }

    /// Sums the free blocks and inodes of all groups. Linux keeps the superblock's sums in memory
    /// and writes them now and then, so those of a file system that was not unmounted are old
    /// (`fs/ext4/super.c`, `ext4_count_free_clusters`). A damaged group counts as full.
    async fn count_free(&self, now: Time) -> Result<(u64, u32), Error> {
        let (mut blocks, mut inodes) = (0, 0_u32);
        for number in 0..self.geometry.groups {
            let free = |op: &mut Op<'_>| {
                let group = op.group(number)?;
                Ok((group.get(FREE_BLOCKS), group.get(group::FREE_INODES)))
            };
            let (here, numbers) = match self.run(now, free).await {
                Err(Error::Corrupt { .. }) => (0, 0),
                free => free?,
            };
            blocks += u64::from(here.min(self.geometry.blocks_per_group));
            inodes = inodes.saturating_add(numbers.min(self.geometry.inodes_per_group));
        }
        Ok((blocks, inodes))
    }

    /// Finishes the deletions and cuts that a crash interrupted.
    async fn finish_orphans(&self, now: Time) -> Result<(), Error> {
        for _ in 0..self.geometry.inodes {
            let number = self.run(now, |op| op.first_orphan()).await?;
            if number == 0 {
                return Ok(());
            }
            while !self.run(now, |op| op.shrink_orphan(number)).await? {}
        }
        Err(Error::Corrupt {
            what: "orphan list",
            at: 0,
        })
    }

    /// Makes everything durable and marks the file system as one that needs no replay. Files still
    /// held open without a name are left for the next mount to delete.
    ///
    /// # Errors
    ///
    /// The disk's failure, now or of an earlier commit.
    pub async fn unmount(self, now: Time) -> Result<D, Error> {
        if !self.read_only {
            self.checkpoint_all(now).await?;
            self.stop_log().await?;
            self.set_recover(false, now).await?;
        }
        Ok(self.disk)
    }

    /// Refuses changes of a file system that is mounted read-only.
    pub(crate) fn check_writable(&self) -> Result<(), Errno> {
        if self.read_only {
            Err(Errno::EROFS)
        } else {
            Ok(())
        }
    }
}

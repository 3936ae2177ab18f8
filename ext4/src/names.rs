//! Operations on names: creation, links, removal, renaming.

use alloc::vec::Vec;

use crate::Errno;
use crate::alloc_inodes::Fresh;
use crate::bytes::{index, put_u32};
use crate::dir::{Found, check_name, file_type};
use crate::error::{Step, Stop, corrupt};
use crate::extents::{Extent, Mapping};
use crate::inode::{
    BLOCK_DEVICE, CHARACTER, Clock, DIRECTORY, EXTENTS_FLAG, FIFO, Inode, REGULAR, ROOT, SOCKET,
    SYMLINK, TYPE_MASK,
};
use crate::op::Op;

/// Most links of an inode (`EXT4_LINK_MAX`).
const LINK_MAX: u16 = 65_000;

/// Longest chain of directories that a rename follows to the root.
const MAX_DEPTH: usize = 1 << 16;

/// Treatment of an existing target by a rename (flags of `renameat2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// The target is replaced.
    Replace,
    /// The target must not exist (`RENAME_NOREPLACE`).
    NoReplace,
    /// Both must exist and swap their names (`RENAME_EXCHANGE`).
    Exchange,
}

/// Contents of a new inode besides its mode.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Contents<'a> {
    Empty,
    Device([u32; 2]),
    Target(&'a [u8]),
}

/// A directory and a name in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) dir: u32,
    pub(crate) name: &'a [u8],
}

fn dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

impl Op<'_> {
    /// Reads a directory that is to be changed.
    fn directory(&self, number: u32) -> Step<Inode> {
        let dir = self.used_inode(number)?;
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        if dir.links() == 0 {
            return Err(Errno::ENOENT.into());
        }
        if dir.is_restricted() {
            Err(Errno::EPERM.into())
        } else {
            Ok(dir)
        }
    }

    /// Finds a name and what it names.
    fn named(&self, dir: &Inode, name: &[u8]) -> Step<(Found, Inode)> {
        let found = self.find(dir, name)?.ok_or(Errno::ENOENT)?;
        let inode = self.used_inode(found.inode)?;
        if inode.links() == 0 {
            return corrupt("inode of a name", found.inode.into());
        }
        Ok((found, inode))
    }

    fn touch(&self, dir: &mut Inode) {
        dir.set_time(Clock::Modified, self.now);
        dir.set_time(Clock::Changed, self.now);
    }

    /// Counts a directory more in its parent's links; at the limit the count becomes one and stays
    /// so (`ext4_inc_count`).
    fn add_link(&self, inode: &mut Inode) -> Step<()> {
        let links = inode.links();
        if inode.is_dir() && links == 1 {
            return Ok(());
        }
        if links < LINK_MAX {
            inode.set_links(links + 1);
        } else if inode.is_dir() && self.geometry.dir_nlink {
            inode.set_links(1);
        } else {
            return Err(Errno::EMLINK.into());
        }
        Ok(())
    }

    /// Counts a directory less in its parent's links.
    fn drop_dir_link(dir: &mut Inode) {
        let links = dir.links();
        if links > 2 {
            dir.set_links(links - 1);
        }
    }

    /// Makes a file, directory, symbolic link or node; returns its inode's number.
    pub(crate) fn create(
        &mut self,
        place: Place<'_>,
        fresh: Fresh,
        contents: Contents<'_>,
    ) -> Step<u32> {
        let mut dir = self.directory(place.dir)?;
        check_name(place.name)?;
        if dots(place.name) || self.find(&dir, place.name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let mut inode = self.new_inode(dir.number, fresh)?;
        inode.set_links(1);
        match (inode.kind(), contents) {
            (DIRECTORY, Contents::Empty) => {
                Self::start_extents(&mut inode);
                inode.set_links(2);
                self.start_dir(&mut inode, dir.number)?;
                self.add_link(&mut dir)?;
            }
            (REGULAR, Contents::Empty) => Self::start_extents(&mut inode),
            (SYMLINK, Contents::Target(target)) => self.set_target(&mut inode, target)?,
            (CHARACTER | BLOCK_DEVICE, Contents::Device(numbers)) => {
                for (at, number) in numbers.into_iter().enumerate() {
                    put_u32(inode.block_mut(), 4 * at, number);
                }
            }
            (FIFO | SOCKET, Contents::Empty) => {}
            _ => return Err(Errno::EINVAL.into()),
        }
        self.add_entry(&mut dir, place.name, inode.number, file_type(inode.mode()))?;
        self.touch(&mut dir);
        self.put_inode(&inode)?;
        self.put_inode(&dir)?;
        Ok(inode.number)
    }

    /// Makes a file without a name (`O_TMPFILE`); returns its inode's number.
    pub(crate) fn create_unnamed(&mut self, dir: u32, fresh: Fresh) -> Step<u32> {
        let dir = self.directory(dir)?;
        let mut inode = self.new_inode(dir.number, fresh)?;
        if inode.kind() != REGULAR {
            return Err(Errno::EINVAL.into());
        }
        Self::start_extents(&mut inode);
        self.add_orphan(&mut inode)?;
        self.put_inode(&inode)?;
        Ok(inode.number)
    }

    /// Stores a symbolic link's target: up to 59 bytes in the inode, a longer one in a block.
    fn set_target(&mut self, inode: &mut Inode, target: &[u8]) -> Step<()> {
        if target.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        if target.len() >= self.geometry.block_size.min(4096) {
            return Err(Errno::ENAMETOOLONG.into());
        }
        inode.set_size(target.len() as u64);
        if target.len() < inode.block().len() {
            inode.block_mut()[..target.len()].copy_from_slice(target);
            return Ok(());
        }
        Self::start_extents(inode);
        let physical = self.allocate_one(self.inode_goal(inode.number))?;
        let extent = Extent {
            logical: 0,
            len: 1,
            unwritten: false,
            physical,
        };
        self.insert_extent(inode, extent)?;
        inode.count_blocks(self.geometry, 1)?;
        let mut bytes = self.zeroes();
        bytes[..target.len()].copy_from_slice(target);
        self.put(physical, bytes);
        Ok(())
    }

    /// Returns a symbolic link's target.
    pub(crate) fn target(&self, number: u32) -> Step<Vec<u8>> {
        let inode = self.used_inode(number)?;
        if inode.kind() != SYMLINK {
            return Err(Errno::EINVAL.into());
        }
        let len = index(inode.size());
        let inside = inode.flags() & EXTENTS_FLAG == 0;
        let bytes = if inside {
            inode.block()
        } else {
            match self.map(&inode, 0)? {
                Mapping::Extent(extent) if !extent.unwritten => self.block(extent.physical)?,
                _ => return corrupt("symbolic link", number.into()),
            }
        };
        match bytes.get(..len) {
            Some(target) if (1..bytes.len()).contains(&len) => Ok(target.to_vec()),
            _ => corrupt("i_size of a symbolic link", number.into()),
        }
    }

    /// Gives a file another name.
    pub(crate) fn link(&mut self, number: u32, place: Place<'_>) -> Step<()> {
        let mut dir = self.directory(place.dir)?;
        let mut inode = self.used_inode(number)?;
        if inode.is_dir() || inode.is_restricted() {
            return Err(Errno::EPERM.into());
        }
        check_name(place.name)?;
        if dots(place.name) || self.find(&dir, place.name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        if inode.links() == 0 {
            // A file made without a name gets its first one.
            self.remove_orphan(&mut inode)?;
        }
        self.add_link(&mut inode)?;
        inode.set_time(Clock::Changed, self.now);
        self.add_entry(&mut dir, place.name, number, file_type(inode.mode()))?;
        self.touch(&mut dir);
        self.put_inode(&inode)?;
        self.put_inode(&dir)
    }

    /// Takes a name off an inode; one without names becomes an orphan. Returns whether it did.
    fn drop_name(&mut self, mut inode: Inode) -> Step<bool> {
        let left = if inode.is_dir() {
            0
        } else {
            inode.links().saturating_sub(1)
        };
        inode.set_links(left);
        inode.set_time(Clock::Changed, self.now);
        if left == 0 {
            self.add_orphan(&mut inode)?;
        }
        self.put_inode(&inode)?;
        Ok(left == 0)
    }

    /// Removes a name of a file; returns the inode and whether that was its last name.
    pub(crate) fn unlink(&mut self, place: Place<'_>) -> Step<(u32, bool)> {
        let mut dir = self.directory(place.dir)?;
        let (found, inode) = self.named(&dir, place.name)?;
        if inode.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        if inode.is_restricted() {
            return Err(Errno::EPERM.into());
        }
        self.remove_entry(&dir, found)?;
        self.touch(&mut dir);
        self.put_inode(&dir)?;
        Ok((inode.number, self.drop_name(inode)?))
    }

    /// Removes an empty directory; returns its inode.
    pub(crate) fn rmdir(&mut self, place: Place<'_>) -> Step<u32> {
        let mut dir = self.directory(place.dir)?;
        match place.name {
            b"." => return Err(Errno::EINVAL.into()),
            b".." => return Err(Errno::ENOTEMPTY.into()),
            _ => {}
        }
        let (found, inode) = self.named(&dir, place.name)?;
        self.check_replaceable_dir(&inode)?;
        self.remove_entry(&dir, found)?;
        Self::drop_dir_link(&mut dir);
        self.touch(&mut dir);
        self.put_inode(&dir)?;
        self.drop_name(inode.clone())?;
        Ok(inode.number)
    }

    fn check_replaceable_dir(&self, inode: &Inode) -> Step<()> {
        if !inode.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        if inode.number == ROOT || inode.is_restricted() {
            return Err(Errno::EPERM.into());
        }
        if self.is_empty_dir(inode)? {
            Ok(())
        } else {
            Err(Errno::ENOTEMPTY.into())
        }
    }

    /// Renames; returns an inode that lost its last name.
    pub(crate) fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        how: Rename,
    ) -> Step<Option<u32>> {
        let (old_dir, new_dir) = (self.directory(from.dir)?, self.directory(to.dir)?);
        check_name(from.name)?;
        check_name(to.name)?;
        if dots(from.name) || dots(to.name) {
            return Err(Errno::EINVAL.into());
        }
        let (_, moved) = self.named(&old_dir, from.name)?;
        let target = match self.named(&new_dir, to.name) {
            Ok((_, target)) => Some(target),
            Err(Stop::Fail(error)) if error.errno() == Errno::ENOENT => None,
            Err(stop) => return Err(stop),
        };
        self.check_no_loop(&moved, to.dir)?;
        match (how, target) {
            (Rename::NoReplace, Some(_)) => Err(Errno::EEXIST.into()),
            (Rename::Exchange, None) => Err(Errno::ENOENT.into()),
            (Rename::Exchange, Some(target)) => {
                self.check_no_loop(&target, from.dir)?;
                self.exchange(from, to, moved, target)?;
                Ok(None)
            }
            // Two names of one file: nothing happens.
            (_, Some(target)) if target.number == moved.number => Ok(None),
            (_, target) => self.move_name(from, to, moved, target),
        }
    }

    /// Checks that a directory is not moved below itself.
    fn check_no_loop(&self, moved: &Inode, into: u32) -> Step<()> {
        if !moved.is_dir() {
            return Ok(());
        }
        let mut at = into;
        for _ in 0..MAX_DEPTH {
            if at == moved.number {
                return Err(Errno::EINVAL.into());
            }
            if at == ROOT {
                return Ok(());
            }
            at = self.parent_of(&self.used_inode(at)?)?.inode;
        }
        corrupt("chain of directories", into.into())
    }

    fn exchange(&mut self, from: Place<'_>, to: Place<'_>, one: Inode, other: Inode) -> Step<()> {
        self.point(from, &other)?;
        self.point(to, &one)?;
        for (inode, old, new) in [(one, from.dir, to.dir), (other, to.dir, from.dir)] {
            self.note_moved(inode, old, new)?;
        }
        Ok(())
    }

    /// Makes an existing name name an inode.
    fn point(&mut self, place: Place<'_>, inode: &Inode) -> Step<()> {
        let mut dir = self.directory(place.dir)?;
        let found = self.find(&dir, place.name)?.ok_or(Errno::ENOENT)?;
        self.replace_entry(&dir, found, inode.number, file_type(inode.mode()))?;
        self.touch(&mut dir);
        self.put_inode(&dir)
    }

    /// Notes in an inode, and for a directory in `..` and the links of both parents, that it was
    /// moved.
    fn note_moved(&mut self, moved: Inode, old: u32, new: u32) -> Step<()> {
        let mut inode = self.inode(moved.number)?;
        inode.set_time(Clock::Changed, self.now);
        self.put_inode(&inode)?;
        if !inode.is_dir() || old == new {
            return Ok(());
        }
        let up = self.parent_of(&inode)?;
        self.replace_entry(&inode, up, new, file_type(DIRECTORY))?;
        let mut old = self.inode(old)?;
        Self::drop_dir_link(&mut old);
        self.put_inode(&old)?;
        let mut new = self.inode(new)?;
        self.add_link(&mut new)?;
        self.put_inode(&new)
    }

    fn move_name(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        moved: Inode,
        target: Option<Inode>,
    ) -> Step<Option<u32>> {
        let mut orphan = None;
        if let Some(target) = target {
            match (moved.is_dir(), target.is_dir()) {
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, _) => self.check_replaceable_dir(&target)?,
                (false, false) if target.is_restricted() => return Err(Errno::EPERM.into()),
                (false, false) => {}
            }
            self.point(to, &moved)?;
            if target.is_dir() {
                let mut dir = self.inode(to.dir)?;
                Self::drop_dir_link(&mut dir);
                self.put_inode(&dir)?;
            }
            let number = target.number;
            orphan = self.drop_name(target)?.then_some(number);
        } else {
            let mut dir = self.directory(to.dir)?;
            self.add_entry(
                &mut dir,
                to.name,
                moved.number,
                file_type(moved.mode() & TYPE_MASK),
            )?;
            self.touch(&mut dir);
            self.put_inode(&dir)?;
        }
        let mut dir = self.directory(from.dir)?;
        let found = self.find(&dir, from.name)?.ok_or(Errno::ENOENT)?;
        self.remove_entry(&dir, found)?;
        self.touch(&mut dir);
        self.put_inode(&dir)?;
        self.note_moved(moved, from.dir, to.dir)?;
        Ok(orphan)
    }
}

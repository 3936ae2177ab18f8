//! Changes of extent trees: insertion with splits, removal, and marking extents written.

use alloc::vec;
use alloc::vec::Vec;

use super::{Child, Extent, Level, MAX_DEPTH, Node, ROOT_ENTRIES, block_entries};
use crate::Errno;
use crate::error::{Step, corrupt};
use crate::inode::Inode;
use crate::op::Op;

/// Blocks of metadata that are freed at a time: each is a revoked number in the log.
const METADATA_STEP: u32 = 512;

/// Joins neighbours among the extents from `at` on, as far as they continue each other.
fn join(extents: &mut Vec<Extent>, from: usize, to: usize) {
    let mut at = from;
    let mut end = to.min(extents.len());
    while at + 1 < end {
        if let Some(joined) = extents[at].joined(&extents[at + 1]) {
            extents[at] = joined;
            extents.remove(at + 1);
            end -= 1;
        } else {
            at += 1;
        }
    }
}

/// Returns the extents of a path's leaf.
fn leaf(path: &mut [Level]) -> Step<(&mut Vec<Extent>, &mut usize)> {
    match path.last_mut() {
        Some(Level {
            node: Node::Leaf(extents),
            at,
            ..
        }) => Ok((extents, at)),
        _ => corrupt("extent path", 0),
    }
}

impl Op<'_> {
    /// Maps blocks of a file that were a hole. The caller counts them in `i_blocks`; blocks of the
    /// tree are counted here.
    pub(crate) fn insert_extent(&mut self, inode: &mut Inode, new: Extent) -> Step<()> {
        if new.len == 0 || new.end() > u64::from(u32::MAX) {
            return Err(Errno::EFBIG.into());
        }
        let mut path = self.extent_path(inode, new.logical)?;
        let (extents, at) = leaf(&mut path)?;
        let place = extents.partition_point(|extent| extent.logical <= new.logical);
        let before_meets = place > 0 && extents[place - 1].end() > u64::from(new.logical);
        let after_meets = extents
            .get(place)
            .is_some_and(|next| u64::from(next.logical) < new.end());
        if before_meets || after_meets {
            return corrupt("extents", inode.number.into());
        }
        extents.insert(place, new);
        join(extents, place.saturating_sub(1), place + 2);
        *at = place.min(extents.len() - 1);
        self.store_path(inode, path)
    }

    /// Marks part of a file written where it is allocated but unwritten.
    pub(crate) fn mark_written(&mut self, inode: &mut Inode, from: u32, len: u32) -> Step<()> {
        let mut at = u64::from(from);
        let end = at + u64::from(len);
        while at < end {
            let logical = u32::try_from(at).unwrap_or(u32::MAX);
            let mut path = self.extent_path(inode, logical)?;
            let (extents, place) = leaf(&mut path)?;
            let found = extents.get(*place).copied();
            let Some(extent) =
                found.filter(|extent| (u64::from(extent.logical)..extent.end()).contains(&at))
            else {
                return corrupt("extents", inode.number.into());
            };
            let stop = end.min(extent.end());
            if extent.unwritten {
                let whole = (extent.logical.into(), extent.end());
                let written = Extent {
                    unwritten: false,
                    ..extent.part(at, stop)
                };
                let pieces = [
                    extent.part(whole.0, at),
                    written,
                    extent.part(stop, whole.1),
                ];
                let pieces: Vec<_> = pieces.into_iter().filter(|piece| piece.len > 0).collect();
                let last = *place + pieces.len() + 1;
                extents.splice(*place..=*place, pieces);
                join(extents, place.saturating_sub(1), last);
                self.store_path(inode, path)?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Unmaps and frees up to `budget` extents of the file's blocks from `from` to before `to`,
    /// from the end. Returns whether nothing is left there.
    pub(crate) fn remove_extents(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        budget: usize,
        metadata: bool,
    ) -> Step<bool> {
        let to = to.min(u32::MAX.into());
        for _ in 0..budget {
            if from >= to || !self.remove_last_extent(inode, from, to, metadata)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what the last extent that begins before `to` has in `from..to`; returns whether
    /// there was anything.
    fn remove_last_extent(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        metadata: bool,
    ) -> Step<bool> {
        let last = u32::try_from(to - 1).unwrap_or(u32::MAX);
        let mut path = self.extent_path(inode, last)?;
        let (extents, at) = leaf(&mut path)?;
        let found = extents.get(*at).copied();
        let Some(extent) =
            found.filter(|extent| u64::from(extent.logical) < to && extent.end() > from)
        else {
            return Ok(false);
        };
        let mut cut = extent.part(from, to);
        if metadata && cut.len > METADATA_STEP {
            cut = extent.part(cut.end() - u64::from(METADATA_STEP), cut.end());
        }
        let rest = [
            extent.part(0, cut.logical.into()),
            extent.part(cut.end(), extent.end()),
        ];
        let rest = rest.into_iter().filter(|piece| piece.len > 0);
        extents.splice(*at..=*at, rest);
        *at = (*at).min(extents.len().saturating_sub(1));
        if metadata {
            for block in cut.physical..cut.physical + u64::from(cut.len) {
                self.forget(block)?;
            }
        } else {
            self.free(cut.physical, cut.len.into())?;
        }
        inode.count_blocks(self.geometry, -i64::from(cut.len))?;
        self.store_path(inode, path)?;
        self.lower_root(inode)?;
        Ok(true)
    }

    /// Writes the nodes of a path, from the leaf up: empty ones are freed, overfull ones split.
    fn store_path(&mut self, inode: &mut Inode, mut path: Vec<Level>) -> Step<()> {
        while let Some(level) = path.pop() {
            match (level.place, path.last_mut()) {
                (Some(block), Some(parent)) => self.store_node(inode, block, level, parent)?,
                (None, None) => self.store_root(inode, level.node)?,
                _ => return corrupt("extent path", inode.number.into()),
            }
        }
        Ok(())
    }

    fn store_node(
        &mut self,
        inode: &mut Inode,
        block: u64,
        mut level: Level,
        parent: &mut Level,
    ) -> Step<()> {
        let Node::Inner(_, children) = &mut parent.node else {
            return corrupt("extent path", block);
        };
        let Some(first) = level.node.key(0) else {
            self.forget(block)?;
            inode.count_blocks(self.geometry, -1)?;
            children.remove(parent.at);
            return Ok(());
        };
        children[parent.at].logical = first;
        let (len, max) = (level.node.len(), block_entries(self.geometry));
        if len > max {
            // Files are mostly written from begin to end: a full node to the left of a new one
            // stays full.
            let appended = len == max + 1 && level.at + 1 >= len;
            let right = level.node.split_off(if appended { max } else { len / 2 });
            let new = self.allocate_one(block)?;
            inode.count_blocks(self.geometry, 1)?;
            self.put_extent_node(inode, new, &right);
            let logical = right.key(0).unwrap_or(first);
            children.insert(
                parent.at + 1,
                Child {
                    logical,
                    block: new,
                },
            );
            parent.at += 1;
        }
        self.put_extent_node(inode, block, &level.node);
        Ok(())
    }

    fn store_root(&mut self, inode: &mut Inode, node: Node) -> Step<()> {
        if node.len() <= ROOT_ENTRIES {
            let node = if node.len() == 0 {
                Node::Leaf(Vec::new())
            } else {
                node
            };
            Self::put_extent_root(inode, &node);
            return Ok(());
        }
        let depth = node.depth() + 1;
        if depth > MAX_DEPTH {
            return Err(Errno::EFBIG.into());
        }
        let goal = self.inode_goal(inode.number);
        let block = self.allocate_one(goal)?;
        inode.count_blocks(self.geometry, 1)?;
        let logical = node.key(0).unwrap_or(0);
        self.put_extent_node(inode, block, &node);
        Self::put_extent_root(inode, &Node::Inner(depth, vec![Child { logical, block }]));
        Ok(())
    }

    /// Moves the entries of an only child into the root while they fit there.
    fn lower_root(&mut self, inode: &mut Inode) -> Step<()> {
        for _ in 0..MAX_DEPTH {
            let path = self.extent_path(inode, 0)?;
            let [root, child, ..] = path.as_slice() else {
                return Ok(());
            };
            let Some(block) = child
                .place
                .filter(|_| root.node.len() == 1 && child.node.len() <= ROOT_ENTRIES)
            else {
                return Ok(());
            };
            Self::put_extent_root(inode, &child.node);
            self.forget(block)?;
            inode.count_blocks(self.geometry, -1)?;
        }
        Ok(())
    }

    /// Returns where blocks of an inode are looked for first: the beginning of its group.
    pub(crate) fn inode_goal(&self, number: u32) -> u64 {
        self.geometry
            .group_start((number - 1) / self.geometry.inodes_per_group)
    }
}

//! A reference of files and directories in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4::{Errno, Rename};

/// A file of the reference, by its own number.
pub(crate) type Id = u32;

pub(crate) const ROOT: Id = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<Vec<u8>, Id>),
    Symlink(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) links: u32,
}

/// All files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<Id, Node>,
    next: Id,
}

type Done<T = ()> = Result<T, Errno>;

impl Default for Model {
    fn default() -> Self {
        let root = Node {
            kind: Kind::Dir(BTreeMap::new()),
            mode: 0o755,
            links: 2,
        };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: 1,
        }
    }
}

impl Model {
    pub(crate) fn entries(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.nodes[&dir].kind {
            Kind::Dir(entries) => entries,
            _ => panic!("not a directory"),
        }
    }

    fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.nodes.get_mut(&dir).expect("exists").kind {
            Kind::Dir(entries) => entries,
            _ => panic!("not a directory"),
        }
    }

    pub(crate) fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[&id].kind, Kind::Dir(_))
    }

    pub(crate) fn dirs(&self) -> Vec<Id> {
        self.nodes
            .keys()
            .copied()
            .filter(|&id| self.is_dir(id))
            .collect()
    }

    pub(crate) fn files(&self) -> Vec<Id> {
        let file = |id: &Id| matches!(self.nodes[id].kind, Kind::File(_));
        self.nodes.keys().copied().filter(file).collect()
    }

    /// Returns the bytes of all files.
    pub(crate) fn size(&self) -> usize {
        self.files()
            .into_iter()
            .map(|file| self.data(file).len())
            .sum()
    }

    pub(crate) fn data(&self, file: Id) -> &Arc<Vec<u8>> {
        match &self.nodes[&file].kind {
            Kind::File(data) => data,
            _ => panic!("not a file"),
        }
    }

    fn data_mut(&mut self, file: Id) -> &mut Vec<u8> {
        match &mut self.nodes.get_mut(&file).expect("exists").kind {
            Kind::File(data) => Arc::make_mut(data),
            _ => panic!("not a file"),
        }
    }

    pub(crate) fn make(&mut self, dir: Id, name: &[u8], kind: Kind, mode: u16) -> Done<Id> {
        if self.entries(dir).contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let id = self.next;
        self.next += 1;
        let links = if matches!(kind, Kind::Dir(_)) { 2 } else { 1 };
        if links == 2 {
            self.nodes.get_mut(&dir).expect("exists").links += 1;
        }
        self.nodes.insert(id, Node { kind, mode, links });
        self.entries_mut(dir).insert(name.to_vec(), id);
        Ok(id)
    }

    pub(crate) fn link(&mut self, file: Id, dir: Id, name: &[u8]) -> Done {
        if self.is_dir(file) {
            return Err(Errno::EPERM);
        }
        if self.entries(dir).contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.entries_mut(dir).insert(name.to_vec(), file);
        self.nodes.get_mut(&file).expect("exists").links += 1;
        Ok(())
    }

    fn drop_link(&mut self, id: Id) {
        let node = self.nodes.get_mut(&id).expect("exists");
        node.links -= 1;
        if node.links == 0 {
            self.nodes.remove(&id);
        }
    }

    pub(crate) fn unlink(&mut self, dir: Id, name: &[u8]) -> Done {
        let id = *self.entries(dir).get(name).ok_or(Errno::ENOENT)?;
        if self.is_dir(id) {
            return Err(Errno::EISDIR);
        }
        self.entries_mut(dir).remove(name);
        self.drop_link(id);
        Ok(())
    }

    fn remove_dir(&mut self, parent: Id, id: Id) {
        self.nodes.remove(&id);
        self.nodes.get_mut(&parent).expect("exists").links -= 1;
    }

    pub(crate) fn rmdir(&mut self, dir: Id, name: &[u8]) -> Done {
        let id = *self.entries(dir).get(name).ok_or(Errno::ENOENT)?;
        if !self.is_dir(id) {
            return Err(Errno::ENOTDIR);
        }
        if !self.entries(id).is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.entries_mut(dir).remove(name);
        self.remove_dir(dir, id);
        Ok(())
    }

    fn is_below(&self, at: Id, top: Id) -> bool {
        let below = |entries: &BTreeMap<_, Id>| {
            entries
                .values()
                .any(|&id| self.is_dir(id) && self.is_below(at, id))
        };
        at == top || below(self.entries(top))
    }

    pub(crate) fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), how: Rename) -> Done {
        let moved = *self.entries(from.0).get(from.1).ok_or(Errno::ENOENT)?;
        let target = self.entries(to.0).get(to.1).copied();
        if self.is_dir(moved) && self.is_below(to.0, moved) {
            return Err(Errno::EINVAL);
        }
        match (how, target) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (Rename::Exchange, None) => return Err(Errno::ENOENT),
            (Rename::Exchange, Some(other)) => {
                if self.is_dir(other) && self.is_below(from.0, other) {
                    return Err(Errno::EINVAL);
                }
                self.entries_mut(from.0).insert(from.1.to_vec(), other);
                self.entries_mut(to.0).insert(to.1.to_vec(), moved);
                self.moved_dir(moved, from.0, to.0);
                self.moved_dir(other, to.0, from.0);
                return Ok(());
            }
            (_, Some(other)) if other == moved => return Ok(()),
            (_, Some(other)) => match (self.is_dir(moved), self.is_dir(other)) {
                (false, true) => return Err(Errno::EISDIR),
                (true, false) => return Err(Errno::ENOTDIR),
                (true, true) if !self.entries(other).is_empty() => return Err(Errno::ENOTEMPTY),
                (true, true) => self.remove_dir(to.0, other),
                (false, false) => self.drop_link(other),
            },
            (_, None) => {}
        }
        self.entries_mut(from.0).remove(from.1);
        self.entries_mut(to.0).insert(to.1.to_vec(), moved);
        self.moved_dir(moved, from.0, to.0);
        Ok(())
    }

    fn moved_dir(&mut self, id: Id, from: Id, to: Id) {
        if self.is_dir(id) {
            self.nodes.get_mut(&from).expect("exists").links -= 1;
            self.nodes.get_mut(&to).expect("exists").links += 1;
        }
    }

    pub(crate) fn write(&mut self, file: Id, offset: usize, bytes: &[u8]) {
        let data = self.data_mut(file);
        let end = offset + bytes.len();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[offset..end].copy_from_slice(bytes);
    }

    pub(crate) fn truncate(&mut self, file: Id, size: usize) {
        self.data_mut(file).resize(size, 0);
    }

    pub(crate) fn punch(&mut self, file: Id, from: usize, to: usize) {
        let data = self.data_mut(file);
        let end = to.min(data.len());
        if from < end {
            data[from..end].fill(0);
        }
    }

    /// Returns everything by path.
    pub(crate) fn paths(&self) -> BTreeMap<Vec<u8>, Id> {
        let mut paths = BTreeMap::new();
        let mut left = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = left.pop() {
            for (name, &id) in self.entries(dir) {
                let path = [path.as_slice(), b"/", name].concat();
                if self.is_dir(id) {
                    left.push((path.clone(), id));
                }
                paths.insert(path, id);
            }
        }
        paths
    }
}

//! Shared objects: memory that several mappings, of one process or more, have in common.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use pcache::Slot;
use spin::Mutex;

/// A shared object: the slots of the pages that were touched. It owns them; entries that name them
/// are no users.
#[derive(Default, Debug)]
pub struct Object {
    slots: Mutex<BTreeMap<u64, Slot>>,
}

impl Object {
    /// Returns the slot of a page that was touched.
    #[must_use]
    pub fn slot(&self, page: u64) -> Option<Slot> {
        self.slots.lock().get(&page).copied()
    }

    /// Makes `slot` that of a page; returns the one that it has already, if another was first.
    pub fn put(&self, page: u64, slot: Slot) -> Option<Slot> {
        let mut slots = self.slots.lock();
        match slots.get(&page) {
            Some(&there) => Some(there),
            None => {
                slots.insert(page, slot);
                None
            }
        }
    }

    /// Takes a page's slot out.
    pub fn take(&self, page: u64) -> Option<Slot> {
        self.slots.lock().remove(&page)
    }

    /// Returns all slots, of an object that nothing maps any more.
    #[must_use]
    pub fn into_slots(self) -> Vec<Slot> {
        self.slots.into_inner().into_values().collect()
    }
}

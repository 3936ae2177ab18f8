//! Shared objects: memory that several mappings, of one process or more, have in common.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use pcache::Slot;
use spin::Mutex;

use crate::platform::Platform;
use crate::process::Node;

/// Pages that are freed before other tasks have their turn.
const PAGES_A_TURN: usize = 32;

/// A shared object: the slots of the pages that were touched. It owns them; entries that name them
/// are no users.
#[derive(Default, Debug)]
pub struct Object {
    slots: Mutex<BTreeMap<u64, Slot>>,
    /// Pages of a segment of System V's shared memory; 0 for all else.
    segment: u64,
    /// Pages that M has promised the object itself, not its mappings.
    promised: u64,
    /// Pages of the file whose data this is, as far as a program maps it.
    pages: AtomicU64,
}

impl Object {
    /// Returns a segment of System V's shared memory. `promised` says whether M has promised its
    /// pages.
    pub(crate) fn segment(pages: u64, promised: bool) -> Self {
        Self {
            slots: Mutex::default(),
            segment: pages,
            promised: if promised { pages } else { 0 },
            pages: AtomicU64::new(0),
        }
    }

    /// Returns the pages of a segment of System V's shared memory; `None` for all else.
    pub(crate) fn segment_pages(&self) -> Option<u64> {
        (self.segment > 0).then_some(self.segment)
    }

    /// Sets the pages of the file whose data this is.
    pub(crate) fn set_pages(&self, pages: u64) {
        self.pages.store(pages, Ordering::Release);
    }

    /// Returns the pages of the file whose data this is.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Acquire)
    }

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

    /// Returns how many pages were touched.
    pub(crate) fn touched(&self) -> u64 {
        self.slots.lock().len() as u64
    }

    /// Returns the first page of a range that was touched.
    pub fn next(&self, pages: Range<u64>) -> Option<u64> {
        let slots = self.slots.lock();
        let (&page, _) = slots.range(pages).next()?;
        Some(page)
    }

    /// Takes a page's slot out; no entry names it any more.
    pub fn take(&self, page: u64) -> Option<Slot> {
        self.slots.lock().remove(&page)
    }

    /// Returns all slots, of an object that nothing maps any more.
    #[must_use]
    pub fn into_slots(self) -> Vec<Slot> {
        self.slots.into_inner().into_values().collect()
    }
}

/// Lets go of an object: the last holder frees its pages and gives its promise back.
pub(crate) async fn let_go<N: Node>(node: &N, object: Arc<Object>) {
    let Some(object) = Arc::into_inner(object) else {
        return;
    };
    node.supply().uncommit(object.promised);
    for (freed, slot) in (1..).zip(object.into_slots()) {
        node.cache().drop_slot(slot);
        if freed % PAGES_A_TURN == 0 {
            node.platform().yield_now().await;
        }
    }
}

//! Segments of shared memory.
//!
//! A segment is a shared [`Object`] that its table holds until it is removed, and its mappings for
//! as long as they last. Each mapping holds the object once, so the object's holders are the
//! attachments.

use alloc::sync::{Arc, Weak};

use messages::PAGE_SIZE;

use crate::mm::object::{Object, let_go};
use crate::process::Node;

/// Segments at most (`SHMMNI`).
pub(crate) const MAX_SEGMENTS: usize = 4096;
/// Marks of a segment's mode: removed, and not to be swapped out.
pub(crate) const SHM_DEST: u32 = 0o1000;
pub(crate) const SHM_LOCKED: u32 = 0o2000;

/// A segment's pages, as its table holds them.
#[derive(Debug)]
enum Pages {
    Kept(Arc<Object>),
    /// The segment is removed, and lives as long as its mappings.
    Removed(Weak<Object>),
}

/// A segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pages: Pages,
    pub(crate) size: u64,
    /// Seconds since 1970 of the last attach, detach and change.
    pub(crate) attached: u64,
    pub(crate) detached: u64,
    pub(crate) changed: u64,
    pub(crate) creator: u32,
    /// The process of the last attach or detach.
    pub(crate) last: u32,
}

impl Segment {
    /// Returns a segment of `size` bytes. `promised` says whether M has promised its pages.
    pub(crate) fn new(size: u64, promised: bool, creator: u32, now: u64) -> Self {
        let pages = size.div_ceil(PAGE_SIZE);
        Self {
            pages: Pages::Kept(Arc::new(Object::segment(pages, promised))),
            size,
            attached: 0,
            detached: 0,
            changed: now,
            creator,
            last: 0,
        }
    }

    /// Returns the pages, unless the segment is removed and nothing maps it.
    pub(crate) fn object(&self) -> Option<Arc<Object>> {
        match &self.pages {
            Pages::Kept(object) => Some(object.clone()),
            Pages::Removed(object) => object.upgrade(),
        }
    }

    /// Returns whether these are its pages.
    pub(crate) fn is(&self, object: &Arc<Object>) -> bool {
        match &self.pages {
            Pages::Kept(own) => Arc::ptr_eq(own, object),
            Pages::Removed(own) => own.as_ptr() == Arc::as_ptr(object),
        }
    }

    /// Returns the number of mappings.
    pub(crate) fn attachments(&self) -> usize {
        match &self.pages {
            Pages::Kept(object) => Arc::strong_count(object) - 1,
            Pages::Removed(object) => object.strong_count(),
        }
    }

    /// Returns whether there is still something of it.
    pub(crate) fn lives(&self) -> bool {
        matches!(self.pages, Pages::Kept(_)) || self.attachments() > 0
    }

    /// Lets go of the pages: they live as long as they are mapped. Returns what the table held.
    pub(crate) fn remove(&mut self) -> Option<Arc<Object>> {
        let Pages::Kept(object) = &self.pages else {
            return None;
        };
        let weak = Arc::downgrade(object);
        match core::mem::replace(&mut self.pages, Pages::Removed(weak)) {
            Pages::Kept(object) => Some(object),
            Pages::Removed(_) => None,
        }
    }

    /// Frees the pages if nothing maps them.
    pub(crate) async fn let_go<N: Node>(mut self, node: &N) {
        if let Some(object) = self.remove() {
            let_go(node, object).await;
        }
    }
}

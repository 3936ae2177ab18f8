//! Holds on a line: for a copy or a mapping, and for loading it.

use core::mem;

use crate::set::State;
use crate::{Cache, Error, LineId, Machine, Mapper, Page};

/// A page in its line, which stays there as long as this lives.
///
/// Short-lived by contract: a set whose lines are all pinned serves no misses. Hold one at a time, and none across a wait.
pub struct Pinned<'a, M: Machine> {
    cache: &'a Cache<M>,
    index: u32,
    way: usize,
    page: Page,
}

impl<'a, M: Machine> Pinned<'a, M> {
    /// Takes over a pin that the line already counts.
    pub(crate) fn new(cache: &'a Cache<M>, index: u32, way: usize, page: Page) -> Self {
        Self {
            cache,
            index,
            way,
            page,
        }
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> Page {
        self.page
    }

    /// The line that holds it.
    #[must_use]
    pub fn line(&self) -> LineId {
        self.cache.line_id(self.index, self.way)
    }

    /// Maps the page with `rights`.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if the page was given up meanwhile, [`Error::Map`] if the page tables did not take it.
    pub fn map(&self, rights: <M as Mapper>::Rights) -> Result<(), Error> {
        let mut set = self.cache.set(self.index);
        let line = &mut set.lines[self.way];
        if line.doomed {
            return Err(Error::Gone(self.page));
        }
        let page = self.page;
        self.cache
            .machine
            .map(page, self.line(), rights)
            .map_err(|cause| Error::Map { page, cause })?;
        line.mapped = true;
        Ok(())
    }

    /// Copies bytes from `offset` of the page out.
    ///
    /// # Panics
    ///
    /// If the range leaves the page.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.cache.machine.read(self.line(), offset, into);
    }

    /// Copies bytes into the page at `offset`, and remembers that it has changed.
    ///
    /// # Panics
    ///
    /// If the range leaves the page.
    pub fn write(&self, offset: usize, from: &[u8]) {
        // Before the copy: a write-back cannot begin in between, for the line is pinned.
        self.cache.set(self.index).lines[self.way].dirty = true;
        self.cache.machine.write(self.line(), offset, from);
    }
}

impl<M: Machine> Drop for Pinned<'_, M> {
    fn drop(&mut self) {
        let mut set = self.cache.set(self.index);
        let line = &mut set.lines[self.way];
        line.pins -= 1;
        line.settle();
        drop(set);
        self.cache.wake(self.index);
    }
}

/// A line that its holder has to load with the bytes of its page. Dropped unfinished, the page is as if never asked for.
pub struct Load<'a, M: Machine> {
    cache: &'a Cache<M>,
    index: u32,
    way: usize,
    page: Page,
}

impl<'a, M: Machine> Load<'a, M> {
    pub(crate) fn new(cache: &'a Cache<M>, index: u32, way: usize, page: Page) -> Self {
        Self {
            cache,
            index,
            way,
            page,
        }
    }

    /// The page to load.
    #[must_use]
    pub fn page(&self) -> Page {
        self.page
    }

    /// Sets the whole page to zero.
    pub fn zero(&self) {
        self.cache.machine.zero(self.cache.line_id(self.index, self.way));
    }

    /// Copies bytes into the page at `offset`.
    ///
    /// # Panics
    ///
    /// If the range leaves the page.
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.cache
            .machine
            .write(self.cache.line_id(self.index, self.way), offset, from);
    }

    /// The page is complete. `dirty` says that its bytes exist nowhere else, so that it must be written back to survive
    /// eviction.
    #[must_use]
    pub fn finish(self, dirty: bool) -> Pinned<'a, M> {
        self.cache.set(self.index).lines[self.way].dirty = dirty;
        self.into_pinned()
    }

    pub(crate) fn into_pinned(self) -> Pinned<'a, M> {
        let mut set = self.cache.set(self.index);
        let line = &mut set.lines[self.way];
        line.state = State::Valid;
        line.pins += 1;
        drop(set);
        self.cache.wake(self.index);
        let pinned = Pinned::new(self.cache, self.index, self.way, self.page);
        mem::forget(self);
        pinned
    }
}

impl<M: Machine> Drop for Load<'_, M> {
    fn drop(&mut self) {
        let mut set = self.cache.set(self.index);
        let line = &mut set.lines[self.way];
        line.state = State::Valid;
        line.doomed = true;
        line.settle();
        drop(set);
        self.cache.wake(self.index);
    }
}

//! What grows: the heap that `brk` moves, and mappings that `mremap` makes longer. M is asked for whole windows: their chunks
//! are lent whole anyway, and programs grow in small steps, each of which would otherwise be a call.

use core::ops::Range;

use messages::memory::{MapFlags, Prot};
use messages::{PAGE_SIZE, USER_END, WINDOW_SIZE};

use super::Args;
use crate::error::{Error, Result};
use crate::process::{Node, Process};

const RIGHTS: Prot = Prot::READ.union(Prot::WRITE);

/// Where a program's heap lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Heap {
    start: u64,
    /// The break: one past the last byte that the program may use.
    end: u64,
    /// One past what M has mapped for the heap.
    reserved: u64,
}

impl Heap {
    /// An empty heap at a page's start.
    pub(crate) fn at(start: u64) -> Self {
        Self {
            start,
            end: start,
            reserved: start,
        }
    }

    /// What M has mapped for the heap to grow into; to the program it is not mapped.
    pub(super) fn spare(&self) -> Range<u64> {
        self.end.next_multiple_of(PAGE_SIZE)..self.reserved
    }
}

/// The mapping that last grew in place: what M has mapped behind it; to the program it is not mapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    /// Begins at the mapping's end; empty if it grew but once.
    spare: Range<u64>,
    prot: Prot,
}

impl Default for Stretch {
    fn default() -> Self {
        Self {
            spare: 0..0,
            prot: Prot::empty(),
        }
    }
}

impl<N: Node> Process<'_, N> {
    pub(super) async fn sys_brk(&mut self, [wish, ..]: Args) -> Result<u64> {
        let Heap { start, end, .. } = self.heap;
        let had = end.next_multiple_of(PAGE_SIZE);
        let Some(wants) = wish
            .checked_next_multiple_of(PAGE_SIZE)
            .filter(|&wants| wish >= start && wants <= USER_END)
        else {
            return Ok(end);
        };
        if wants > had {
            match self.reserve_heap(wants).await {
                Err(Error::Errno(_)) => return Ok(end),
                reserved => reserved?,
            }
            self.layout.insert(had..wants, RIGHTS);
        } else if wants < had {
            self.shrink_heap(wants..had).await?;
        }
        self.heap.end = wish;
        Ok(wish)
    }

    /// Sees to it that M has mapped the heap up to `wants`, a page's end.
    async fn reserve_heap(&mut self, wants: u64) -> Result<()> {
        let from = self.heap.reserved;
        if wants <= from {
            return Ok(());
        }
        let whole = wants.next_multiple_of(WINDOW_SIZE).min(USER_END);
        let other = &self.stretch.spare;
        if other.start < whole && from < other.end {
            self.drop_stretch().await?;
        }
        let mut done = self
            .reserve(from, whole - from, RIGHTS, MapFlags::FIXED_NOREPLACE)
            .await;
        self.heap.reserved = whole;
        if whole > wants && matches!(done, Err(Error::Errno(_))) {
            // Something else may lie in the window.
            done = self
                .reserve(from, wants - from, RIGHTS, MapFlags::FIXED_NOREPLACE)
                .await;
            self.heap.reserved = wants;
        }
        if done.is_err() {
            self.heap.reserved = from;
        }
        done.map(drop)
    }

    /// Gives up the heap's end `gone`, and to M what of it lies beyond the heap's last window.
    async fn shrink_heap(&mut self, gone: Range<u64>) -> Result<()> {
        // The program may have unmapped, replaced or protected pieces of its heap; then M's mapping has holes.
        let whole = self.layout.pieces(gone.clone()) == [(gone.clone(), RIGHTS)];
        let keep = if whole {
            gone.start.next_multiple_of(WINDOW_SIZE).min(self.heap.reserved)
        } else {
            gone.start
        };
        self.layout.remove(gone.clone());
        self.drop_pages(gone).await;
        if keep < self.heap.reserved {
            self.give_back(keep..self.heap.reserved).await?;
            self.heap.reserved = keep;
        }
        Ok(())
    }

    /// Gives spare memory back that is in the way of `range` or next to it.
    pub(super) async fn clear_spares(&mut self, range: &Range<u64>) -> Result<()> {
        let near =
            |spare: &Range<u64>| !spare.is_empty() && range.end >= spare.start && spare.end >= range.start;
        let heap = self.heap.spare();
        if near(&heap) {
            self.heap.reserved = heap.start;
            self.give_back(heap).await?;
        }
        if near(&self.stretch.spare) {
            self.drop_stretch().await?;
        }
        Ok(())
    }

    async fn drop_stretch(&mut self) -> Result<()> {
        let spare = core::mem::take(&mut self.stretch).spare;
        if spare.is_empty() {
            return Ok(());
        }
        self.give_back(spare).await
    }

    /// Makes a mapping longer by `gap`, the pages behind it.
    pub(super) async fn grow(&mut self, gap: Range<u64>, prot: Prot) -> Result<()> {
        let Stretch { spare, prot: had } = self.stretch.clone();
        let again = spare.start == gap.start && had == prot && !prot.is_empty();
        let mut end = spare.end;
        if !again || gap.end > end {
            self.drop_stretch().await?;
            self.clear_spares(&gap).await?;
            end = if again {
                gap.end.next_multiple_of(WINDOW_SIZE).min(USER_END)
            } else {
                gap.end
            };
            let mut done = self
                .reserve(gap.start, end - gap.start, prot, MapFlags::FIXED_NOREPLACE)
                .await;
            if end > gap.end && matches!(done, Err(Error::Errno(_))) {
                end = gap.end;
                done = self
                    .reserve(gap.start, end - gap.start, prot, MapFlags::FIXED_NOREPLACE)
                    .await;
            }
            done?;
        }
        self.stretch = Stretch {
            spare: gap.end..end,
            prot,
        };
        self.layout.insert(gap, prot);
        Ok(())
    }
}

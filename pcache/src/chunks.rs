//! The chunk table: for each chunk that M lends its place, its slots in use, and their users.
//!
//! One array, grown in blocks and read without a lock. If an M dies, its chunks' places change to
//! the replica's, and no page table does.

use alloc::boxed::Box;
use alloc::vec::Vec;

use spin::Once;

use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::{CHUNK_PAGES, ChunkId, RemoteAddr, Slot};

/// Chunks of a block of the table.
const BLOCK: usize = 256;
/// Words of a chunk's bitmap.
const WORDS: usize = (CHUNK_PAGES / 64) as usize;

/// One chunk's place, slots and users.
struct Chunk {
    addr: AtomicU64,
    key: AtomicU64,
    /// A bit for each slot in use. Set by the allocating thread, cleared under the lock of the
    /// slot's set.
    used: [AtomicU64; WORDS],
    /// Slots in use, and one more while the chunk belongs to a region of addresses.
    holds: AtomicU32,
    /// Users of each slot less one; made when a slot of the chunk is first shared. A slot's count
    /// changes under the lock of its set.
    users: Once<Box<[AtomicU32]>>,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            addr: AtomicU64::new(0),
            key: AtomicU64::new(0),
            used: core::array::from_fn(|_| AtomicU64::new(0)),
            holds: AtomicU32::new(0),
            users: Once::new(),
        }
    }
}

/// Numbers that are free for new chunks, and chunks that came to hold nothing.
#[derive(Default)]
struct Lists {
    free: Vec<ChunkId>,
    empty: Vec<ChunkId>,
    made: u32,
}

/// The chunk table.
pub struct Chunks {
    blocks: Box<[Once<Box<[Chunk]>>]>,
    /// A leaf lock: taken under a set's, takes none.
    lists: Mutex<Lists>,
    max: u32,
}

/// The table is full: it was made for so many chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the chunk table holds {0} chunks and no more")]
pub struct TableFull(pub u32);

impl Chunks {
    /// Returns a table for at most `max` chunks at a time.
    #[must_use]
    pub fn new(max: u32) -> Self {
        let max = max.min(Slot::MAX_CHUNKS);
        let blocks = (max as usize).div_ceil(BLOCK);
        Self {
            blocks: (0..blocks).map(|_| Once::new()).collect(),
            lists: Mutex::new(Lists::default()),
            max,
        }
    }

    fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        let block = self.blocks.get(id.0 as usize / BLOCK)?.get()?;
        block.get(id.0 as usize % BLOCK)
    }

    fn known(&self, id: ChunkId) -> &Chunk {
        self.chunk(id).expect("a chunk of the table")
    }

    /// Takes a chunk in that M lent at `place`; it holds nothing and belongs to no region.
    ///
    /// # Errors
    ///
    /// [`TableFull`].
    pub fn add(&self, place: RemoteAddr) -> Result<ChunkId, TableFull> {
        let mut guard = self.lists.lock();
        let lists = &mut *guard;
        let id = match lists.free.pop() {
            Some(id) => id,
            None if lists.made < self.max => {
                let id = ChunkId(lists.made);
                lists.made += 1;
                // Whatever becomes free or empty later finds room without allocating.
                let made = lists.made as usize;
                for list in [&mut lists.free, &mut lists.empty] {
                    list.reserve(made - list.len());
                }
                id
            }
            None => return Err(TableFull(self.max)),
        };
        self.blocks[id.0 as usize / BLOCK]
            .call_once(|| (0..BLOCK).map(|_| Chunk::default()).collect());
        let chunk = self.known(id);
        chunk.addr.store(place.addr, Ordering::Relaxed);
        chunk.key.store(place.key, Ordering::Release);
        Ok(id)
    }

    /// Forgets a chunk that holds nothing and was taken from the [empty](Self::take_empty) ones.
    pub fn remove(&self, id: ChunkId) {
        debug_assert_eq!(self.known(id).holds.load(Ordering::Relaxed), 0);
        self.lists.lock().free.push(id);
    }

    /// Returns where a chunk begins.
    #[must_use]
    pub fn place_of(&self, id: ChunkId) -> RemoteAddr {
        let chunk = self.known(id);
        RemoteAddr {
            addr: chunk.addr.load(Ordering::Relaxed),
            key: chunk.key.load(Ordering::Acquire),
        }
    }

    /// Returns where a slot lies.
    pub(crate) fn place(&self, slot: Slot) -> RemoteAddr {
        let chunk = self.place_of(slot.chunk());
        RemoteAddr {
            addr: chunk.addr + slot.page() * crate::LINE_SIZE as u64,
            key: chunk.key,
        }
    }

    /// Makes a chunk belong to a region of addresses, so that it stays though no slot is in use.
    pub fn attach(&self, id: ChunkId) {
        self.known(id).holds.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends [`attach`](Self::attach).
    pub fn detach(&self, id: ChunkId) {
        self.let_go(id);
    }

    /// Takes the next chunk that came to hold nothing: to be lent to a region again, or returned.
    pub fn take_empty(&self) -> Option<ChunkId> {
        self.lists.lock().empty.pop()
    }

    /// Returns how many chunks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let lists = self.lists.lock();
        lists.made as usize - lists.free.len()
    }

    /// Returns whether there is no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many slots of a chunk are in use.
    #[must_use]
    pub fn in_use(&self, id: ChunkId) -> u32 {
        self.chunk(id).map_or(0, |chunk| {
            chunk
                .used
                .iter()
                .map(|word| word.load(Ordering::Relaxed).count_ones())
                .sum()
        })
    }

    /// Allocates a slot of a chunk: page `wish` if it is free, else another.
    #[must_use]
    pub fn allocate(&self, id: ChunkId, wish: u64) -> Option<Slot> {
        let chunk = self.chunk(id)?;
        let page = wish % CHUNK_PAGES;
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        // Counted first, so that the chunk never seems empty in between.
        chunk.holds.fetch_add(1, Ordering::Relaxed);
        if chunk.used[word].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            return Some(Slot::new(id, page));
        }
        for (word, bits) in (0..).zip(&chunk.used) {
            let mut seen = bits.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = 1 << seen.trailing_ones();
                seen = bits.fetch_or(bit, Ordering::Relaxed);
                if seen & bit == 0 {
                    return Some(Slot::new(id, word * 64 + u64::from(bit.trailing_zeros())));
                }
            }
        }
        self.let_go(id);
        None
    }

    /// Allocates a slot of any chunk that holds something, for when no chunk is left to begin.
    #[must_use]
    pub fn allocate_any(&self) -> Option<Slot> {
        let made = self.lists.lock().made;
        (0..made).find_map(|index| {
            let id = ChunkId(index);
            let chunk = self.chunk(id)?;
            // A chunk that holds nothing may be on its way back to M.
            let hold = |holds: u32| (holds > 0).then(|| holds + 1);
            chunk
                .holds
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, hold)
                .ok()?;
            let slot = self.allocate(id, 0);
            self.let_go(id);
            slot
        })
    }

    /// Gives back a slot that was allocated and never used.
    pub fn cancel(&self, slot: Slot) {
        self.free(slot);
    }

    /// Frees a slot that has no user. Called under the lock of its set once it was used.
    pub(crate) fn free(&self, slot: Slot) {
        let chunk = self.known(slot.chunk());
        let page = slot.page();
        let bit = 1 << (page % 64);
        let was = chunk.used[(page / 64) as usize].fetch_and(!bit, Ordering::Relaxed);
        debug_assert!(was & bit != 0, "{slot} is freed twice");
        self.let_go(slot.chunk());
    }

    fn let_go(&self, id: ChunkId) {
        if self.known(id).holds.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.lists.lock().empty.push(id);
        }
    }

    /// Adds a user to a slot. Called under the lock of its set.
    pub(crate) fn share(&self, slot: Slot) {
        let chunk = self.known(slot.chunk());
        let users = chunk
            .users
            .call_once(|| (0..CHUNK_PAGES).map(|_| AtomicU32::new(0)).collect());
        users[index_of(slot)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many users a slot has. Called under the lock of its set.
    pub(crate) fn users(&self, slot: Slot) -> u32 {
        let others = self
            .known(slot.chunk())
            .users
            .get()
            .map_or(0, |users| users[index_of(slot)].load(Ordering::Relaxed));
        others + 1
    }

    /// Takes a user from a slot and returns whether it was the last. Called under the lock of its
    /// set.
    pub(crate) fn drop_user(&self, slot: Slot) -> bool {
        let Some(users) = self.known(slot.chunk()).users.get() else {
            return true;
        };
        let others = &users[index_of(slot)];
        let last = others.load(Ordering::Relaxed) == 0;
        if !last {
            others.fetch_sub(1, Ordering::Relaxed);
        }
        last
    }
}

/// A slot's place in its chunk's arrays.
fn index_of(slot: Slot) -> usize {
    usize::try_from(slot.page()).expect("less than 512")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(addr: u64) -> RemoteAddr {
        RemoteAddr { addr, key: 7 }
    }

    #[test]
    fn slots_have_the_place_of_their_chunk() {
        let chunks = Chunks::new(10);
        let id = chunks.add(at(0x20_0000)).unwrap();
        let slot = chunks.allocate(id, 513).unwrap();
        assert_eq!((slot.page(), chunks.place(slot)), (1, at(0x20_1000)));
    }

    #[test]
    fn a_taken_slot_gives_way_to_another_until_the_chunk_is_full() {
        let chunks = Chunks::new(10);
        let id = chunks.add(at(0)).unwrap();
        let mut pages: Vec<u64> = (0..512)
            .map(|_| chunks.allocate(id, 5).unwrap().page())
            .collect();
        assert_eq!(pages[0], 5);
        assert_eq!(chunks.allocate(id, 5), None);
        pages.sort_unstable();
        assert!(pages.iter().copied().eq(0..512));
        pages
            .iter()
            .for_each(|&page| chunks.free(Slot::new(id, page)));
        assert_eq!((chunks.take_empty(), chunks.take_empty()), (Some(id), None));
    }

    #[test]
    fn a_chunk_of_a_region_stays_though_empty() {
        let chunks = Chunks::new(10);
        let id = chunks.add(at(0)).unwrap();
        chunks.attach(id);
        let slot = chunks.allocate(id, 0).unwrap();
        chunks.free(slot);
        assert_eq!(chunks.take_empty(), None);
        chunks.detach(id);
        assert_eq!(chunks.take_empty(), Some(id));
        chunks.remove(id);
        assert!(chunks.is_empty());
        assert_eq!(chunks.add(at(0)), Ok(id), "numbers are used again");
    }

    #[test]
    fn the_last_of_several_users_is_known() {
        let chunks = Chunks::new(10);
        let id = chunks.add(at(0)).unwrap();
        let slot = chunks.allocate(id, 9).unwrap();
        assert_eq!(chunks.users(slot), 1);
        chunks.share(slot);
        chunks.share(slot);
        assert_eq!(chunks.users(slot), 3);
        assert_eq!(
            [(); 3].map(|()| chunks.drop_user(slot)),
            [false, false, true]
        );
    }

    #[test]
    fn any_slot_is_one_of_a_chunk_in_use() {
        let chunks = Chunks::new(10);
        chunks.add(at(0)).unwrap();
        let used = chunks.add(at(1 << 21)).unwrap();
        assert_eq!(chunks.allocate_any(), None, "no chunk holds anything");
        let first = chunks.allocate(used, 3).unwrap();
        let second = chunks.allocate_any().unwrap();
        assert_eq!(second.chunk(), used);
        assert_ne!(second, first);
    }

    #[test]
    fn a_full_table_says_so() {
        let chunks = Chunks::new(2);
        assert!(chunks.add(at(0)).is_ok() && chunks.add(at(1)).is_ok());
        assert_eq!(chunks.add(at(2)), Err(TableFull(2)));
    }
}

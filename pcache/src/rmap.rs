//! The reverse map: which entries map a line.
//!
//! The first mapping of a line lies in the line, so that a page of one process costs nothing more.
//! Further ones are nodes of a pool that all lines share and that is made with the cache.

use alloc::vec::Vec;

use crate::Page;
use crate::sync::Mutex;

/// One mapping of a line: the entry, and the page as TLBs know it.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<E> {
    /// The leaf entry.
    pub entry: E,
    /// The page that it maps.
    pub page: Page,
}

/// No node.
const NONE: u32 = u32::MAX;

/// A line's further mappings: the first node of its chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain(u32);

impl Chain {
    pub(crate) const EMPTY: Self = Self(NONE);

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == NONE
    }
}

struct Node<E> {
    mapping: Option<Mapping<E>>,
    next: u32,
}

/// The pool of further mappings. Its lock is a leaf lock, taken under a set's.
pub(crate) struct Pool<E>(Mutex<Nodes<E>>);

struct Nodes<E> {
    nodes: Vec<Node<E>>,
    free: u32,
}

impl<E: Copy> Pool<E> {
    /// Returns a pool of `count` nodes.
    pub(crate) fn new(count: u32) -> Self {
        let nodes = (0..count)
            .map(|index| Node {
                mapping: None,
                next: if index + 1 < count { index + 1 } else { NONE },
            })
            .collect();
        let free = if count == 0 { NONE } else { 0 };
        Self(Mutex::new(Nodes { nodes, free }))
    }

    /// Adds a mapping to a chain; false if the pool is used up.
    pub(crate) fn push(&self, chain: &mut Chain, mapping: Mapping<E>) -> bool {
        let mut pool = self.0.lock();
        let index = pool.free;
        if index == NONE {
            return false;
        }
        let node = &mut pool.nodes[index as usize];
        let next = node.next;
        (node.mapping, node.next) = (Some(mapping), chain.0);
        pool.free = next;
        chain.0 = index;
        true
    }

    /// Takes the mapping of `page` out of a chain; `None` if it is not there.
    pub(crate) fn remove(&self, chain: &mut Chain, page: Page) -> Option<Mapping<E>> {
        let mut pool = self.0.lock();
        let (mut before, mut at) = (NONE, chain.0);
        while at != NONE {
            let node = &pool.nodes[at as usize];
            let next = node.next;
            if node.mapping.is_some_and(|mapping| mapping.page == page) {
                if before == NONE {
                    chain.0 = next;
                } else {
                    pool.nodes[before as usize].next = next;
                }
                return pool.give_back(at);
            }
            (before, at) = (at, next);
        }
        None
    }

    /// Takes any mapping out of a chain.
    pub(crate) fn pop(&self, chain: &mut Chain) -> Option<Mapping<E>> {
        if chain.is_empty() {
            return None;
        }
        let mut pool = self.0.lock();
        let at = chain.0;
        chain.0 = pool.nodes[at as usize].next;
        pool.give_back(at)
    }

    /// Returns whether `is` holds for any mapping of a chain; looks at all of them.
    pub(crate) fn any(&self, chain: Chain, mut is: impl FnMut(&Mapping<E>) -> bool) -> bool {
        let pool = self.0.lock();
        let (mut at, mut any) = (chain.0, false);
        while at != NONE {
            let node = &pool.nodes[at as usize];
            any |= node.mapping.as_ref().is_some_and(&mut is);
            at = node.next;
        }
        any
    }

    /// Returns how many nodes are free.
    pub(crate) fn free(&self) -> usize {
        let pool = self.0.lock();
        let (mut at, mut count) = (pool.free, 0);
        while at != NONE {
            count += 1;
            at = pool.nodes[at as usize].next;
        }
        count
    }
}

impl<E> Nodes<E> {
    fn give_back(&mut self, at: u32) -> Option<Mapping<E>> {
        let free = self.free;
        let node = &mut self.nodes[at as usize];
        node.next = free;
        let mapping = node.mapping.take();
        self.free = at;
        mapping
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SpaceId, Vpn};

    fn mapping(vpn: u64) -> Mapping<u64> {
        let page = Page {
            space: SpaceId(1),
            vpn: Vpn(vpn),
        };
        Mapping { entry: vpn, page }
    }

    #[test]
    fn mappings_come_and_go_in_any_order() {
        let pool = Pool::new(3);
        let mut chain = Chain::EMPTY;
        for vpn in 0..3 {
            assert!(pool.push(&mut chain, mapping(vpn)));
        }
        assert!(!pool.push(&mut chain, mapping(3)), "the pool is used up");
        assert_eq!(pool.remove(&mut chain, mapping(1).page).unwrap().entry, 1);
        assert!(pool.remove(&mut chain, mapping(1).page).is_none());
        assert!(pool.any(chain, |m| m.entry == 0) && !pool.any(chain, |m| m.entry == 1));
        let rest: Vec<u64> = core::iter::from_fn(|| pool.pop(&mut chain))
            .map(|m| m.entry)
            .collect();
        assert_eq!((rest, pool.free()), (vec![2, 0], 3));
    }
}

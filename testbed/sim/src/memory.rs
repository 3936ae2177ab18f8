//! One node's memory, the regions registered in it, and the owner of each range.
//!
//! Addresses are never given out twice within a life of the node, so that a late access is seen.

use std::collections::BTreeMap;

use verbs::{Access, Domain, Lkey, Region, Rkey};

/// Right of access to a range of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Access is not checked: queues' memory and the memory that a node exports.
    Open,
    /// Its owner has it: no device may touch it.
    Owned,
    /// Lent to the device or a peer.
    Lent,
}

struct Piece {
    bytes: Vec<u8>,
    guard: Guard,
}

struct Registered {
    domain: Domain,
    addr: u64,
    len: u64,
    access: Access,
}

/// A right that an access needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    LocalRead,
    LocalWrite,
    RemoteRead,
    RemoteWrite,
}

/// Reason for which the device can't access memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The key does not cover it; hardware reports that.
    Key,
    /// Its owner has not lent it: hardware would not notice.
    Owned(u64),
    /// The memory was freed. Hardware would not notice.
    Freed(u64),
}

/// The memory of one life of a node.
pub(crate) struct Memory {
    next: u64,
    pieces: BTreeMap<u64, Piece>,
    regions: BTreeMap<u32, Registered>,
    next_key: u32,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            next: 0x10_0000,
            pieces: BTreeMap::new(),
            regions: BTreeMap::new(),
            next_key: 0x100,
        }
    }

    pub(crate) fn alloc(&mut self, len: usize, align: usize) -> u64 {
        let addr = self.next.next_multiple_of(align as u64);
        // A gap, so that an access past the end meets nothing.
        self.next = addr + len as u64 + 256;
        let piece = Piece {
            bytes: vec![0; len],
            guard: Guard::Open,
        };
        self.pieces.insert(addr, piece);
        addr
    }

    pub(crate) fn free(&mut self, addr: u64) {
        self.pieces.remove(&addr);
    }

    /// Bytes within one piece, for their owner.
    pub(crate) fn bytes(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let (start, piece) = self.pieces.range_mut(..=addr).next_back()?;
        let from = usize::try_from(addr - start).ok()?;
        piece.bytes.get_mut(from..from.checked_add(len)?)
    }

    pub(crate) fn set_guard(&mut self, addr: u64, guard: Guard) {
        if let Some(piece) = self.pieces.get_mut(&addr) {
            piece.guard = guard;
        }
    }

    pub(crate) fn register(
        &mut self,
        domain: Domain,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Region {
        let key = self.next_key;
        self.next_key += 0x100;
        let registered = Registered {
            domain,
            addr,
            len,
            access,
        };
        self.regions.insert(key, registered);
        Region {
            addr,
            len,
            lkey: Lkey(key),
            rkey: Rkey(key),
        }
    }

    /// Returns the key and the beginning of one of the regions, which `number` chooses.
    pub(crate) fn any_region(&self, number: u64) -> Option<(u32, u64)> {
        let count = u64::try_from(self.regions.len())
            .ok()
            .filter(|&count| count > 0)?;
        let place = usize::try_from(number % count).ok()?;
        self.regions
            .iter()
            .nth(place)
            .map(|(key, region)| (*key, region.addr))
    }

    /// Returns the number of registered regions.
    pub(crate) fn regions(&self) -> usize {
        self.regions.len()
    }

    pub(crate) fn deregister(&mut self, key: u32) -> bool {
        self.regions.remove(&key).is_some()
    }

    /// Bytes that a queue pair of `domain` reaches with `key`.
    pub(crate) fn device(
        &mut self,
        (domain, key): (Domain, u32),
        addr: u64,
        len: usize,
        right: Right,
    ) -> Result<&mut [u8], Denied> {
        let region = self.regions.get(&key).ok_or(Denied::Key)?;
        let allowed = match right {
            Right::LocalRead => true,
            Right::LocalWrite => region.access.local_write,
            Right::RemoteRead => region.access.remote_read,
            Right::RemoteWrite => region.access.remote_write,
        };
        let end = addr.checked_add(len as u64).ok_or(Denied::Key)?;
        if !allowed
            || domain != region.domain
            || addr < region.addr
            || end > region.addr + region.len
        {
            return Err(Denied::Key);
        }
        let found = self.pieces.range_mut(..=addr).next_back();
        let (start, piece) = found.ok_or(Denied::Freed(addr))?;
        let from = usize::try_from(addr - start).expect("a 64-bit host");
        if from + len > piece.bytes.len() {
            return Err(Denied::Freed(addr));
        }
        if piece.guard == Guard::Owned {
            return Err(Denied::Owned(addr));
        }
        Ok(&mut piece.bytes[from..from + len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: Domain = Domain(0);

    fn region() -> (Memory, u64, (Domain, u32)) {
        let mut memory = Memory::new();
        let addr = memory.alloc(100, 4096);
        let access = Access {
            local_write: true,
            remote_read: true,
            remote_write: false,
        };
        let region = memory.register(DOMAIN, addr, 100, access);
        (memory, addr, (DOMAIN, region.lkey.0))
    }

    #[test]
    fn keys_reach_what_they_cover_and_no_more() {
        let (mut memory, addr, key) = region();
        assert!(memory.device(key, addr + 90, 10, Right::RemoteRead).is_ok());
        assert_eq!(
            memory.device(key, addr + 91, 10, Right::LocalRead),
            Err(Denied::Key)
        );
        assert_eq!(
            memory.device(key, addr, 1, Right::RemoteWrite),
            Err(Denied::Key)
        );
        assert_eq!(
            memory.device((DOMAIN, key.1 + 1), addr, 1, Right::LocalRead),
            Err(Denied::Key)
        );
        assert_eq!(
            memory.device(key, u64::MAX, 2, Right::LocalRead),
            Err(Denied::Key)
        );
        let other = (Domain(1), key.1);
        assert_eq!(
            memory.device(other, addr, 1, Right::LocalRead),
            Err(Denied::Key)
        );
        assert!(memory.deregister(key.1));
        assert_eq!(
            memory.device(key, addr, 1, Right::LocalRead),
            Err(Denied::Key)
        );
    }

    #[test]
    fn owned_and_freed_memory_is_told_apart_from_what_hardware_refuses() {
        let (mut memory, addr, key) = region();
        memory.set_guard(addr, Guard::Owned);
        assert_eq!(
            memory.device(key, addr, 1, Right::LocalWrite),
            Err(Denied::Owned(addr))
        );
        memory.set_guard(addr, Guard::Lent);
        assert!(memory.device(key, addr, 1, Right::LocalWrite).is_ok());
        memory.free(addr);
        assert_eq!(
            memory.device(key, addr, 1, Right::LocalWrite),
            Err(Denied::Freed(addr))
        );
    }
}

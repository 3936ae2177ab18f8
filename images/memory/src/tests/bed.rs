//! The test bed: an HCA and memory that check each order, and calls through the wire's bytes.

use std::collections::{BTreeMap, BTreeSet};

use messages::memory::*;
use messages::{CHUNK_SIZE, Call, Errno, MAX_MESSAGE, decode_reply, encode_request};
use verbs::{RemoteAddr, Rkey};

use crate::*;

/// The address of the first chunk.
pub(super) const BASE: u64 = 0x1000_0000;
pub(super) const P: PeerKey = PeerKey(0);
pub(super) const OTHER: PeerKey = PeerKey(1);

/// The HCA's regions, and who wrote last to each piece of memory.
#[derive(Debug, Default)]
pub(super) struct Hardware {
    regions: BTreeMap<ExtentId, (PeerKey, u64, u64)>,
    /// The last writer of each piece of [`PIECE`] bytes; none of a piece that is zero.
    writers: BTreeMap<u64, PeerKey>,
    pub(super) registered: usize,
    pub(super) zeroed: usize,
}

impl Hardware {
    /// Registers an extent. The region must not show what another borrower wrote.
    pub(super) fn register(&mut self, extent: ExtentId, to: PeerKey, addr: u64, len: u64) -> Rkey {
        let foreign = self.writers.range(addr..addr + len).next();
        assert_eq!(foreign, None, "{to:?} would see bytes of another");
        for (_, other_addr, other_len) in self.regions.values() {
            assert!(addr + len <= *other_addr || other_addr + other_len <= addr);
        }
        assert_eq!(self.regions.insert(extent, (to, addr, len)), None);
        self.registered += 1;
        key(extent, to)
    }

    /// Deregisters an extent, to which its borrower writes until the last moment.
    pub(super) fn deregister(&mut self, extent: ExtentId) {
        let (to, ..) = self.regions[&extent];
        self.write_all(to);
        self.regions.remove(&extent);
    }

    /// Zeroes one piece. No region may reach it: its borrower could write again behind it.
    pub(super) fn zero(&mut self, addr: u64, len: u64) {
        assert!(len <= PIECE && addr.is_multiple_of(PIECE));
        for (_, start, region) in self.regions.values() {
            assert!(addr + len <= *start || start + region <= addr);
        }
        self.writers.remove(&addr);
        self.zeroed += 1;
    }

    /// Writes everywhere that a region lets `peer` write to, lent or not.
    pub(super) fn write_all(&mut self, peer: PeerKey) {
        for (_, addr, len) in self.regions.values().filter(|region| region.0 == peer) {
            let pieces = (*addr..addr + len).step_by(usize::try_from(PIECE).unwrap());
            self.writers.extend(pieces.map(|piece| (piece, peer)));
        }
    }

    /// Returns whether this key of `peer` reaches the whole chunk.
    pub(super) fn reaches(&self, peer: PeerKey, chunk: RemoteAddr) -> bool {
        self.regions.iter().any(|(&extent, &(to, addr, len))| {
            let inside = addr <= chunk.addr && chunk.addr + CHUNK_SIZE <= addr + len;
            inside && to == peer && chunk.rkey == key(extent, to)
        })
    }

    /// Returns how many regions there are.
    pub(super) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Returns whether all memory is zero.
    pub(super) fn is_zero(&self) -> bool {
        self.writers.is_empty()
    }

    fn carry_out(&mut self, manager: &mut Manager, action: Action) {
        match action {
            Action::Register {
                extent,
                to,
                addr,
                len,
            } => {
                let rkey = self.register(extent, to, addr, len);
                manager.registered(extent, rkey);
            }
            Action::Deregister { extent } => {
                self.deregister(extent);
                manager.deregistered(extent);
            }
            Action::Zero { extent, addr, len } => {
                self.zero(addr, len);
                manager.zeroed(extent);
            }
        }
    }
}

fn key(extent: ExtentId, to: PeerKey) -> Rkey {
    Rkey(u32::from(to.0) << 16 | u32::from(extent.0))
}

/// Encodes a request.
pub(super) fn encoded<C: Call>(request: &C::Request<'_>) -> Vec<u8> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let len = encode_request::<C>(request, &mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

/// A manager and the hardware under it.
pub(super) struct Bed {
    pub(super) manager: Manager,
    pub(super) hardware: Hardware,
}

impl Bed {
    /// Makes `chunks` chunks in extents of `size`.
    pub(super) fn new(chunks: u64, size: usize) -> Self {
        let pool = Pool::with_extents_of(size, &[(BASE, chunks * CHUNK_SIZE + 5)]);
        Self {
            manager: Manager::new(pool),
            hardware: Hardware::default(),
        }
    }

    /// Gives a request once.
    pub(super) fn step<C: Call>(
        &mut self,
        from: PeerKey,
        request: &C::Request<'_>,
    ) -> (Step, Vec<u8>) {
        let mut reply = vec![0; MAX_MESSAGE];
        let step = self
            .manager
            .handle(from, C::KIND.0, &encoded::<C>(request), &mut reply);
        if let Step::Replied(len) = step {
            reply.truncate(len);
        }
        (step, reply)
    }

    pub(super) fn carry_out(&mut self, action: Action) {
        self.hardware.carry_out(&mut self.manager, action);
    }

    /// Gives a request until it is answered, carrying out what must come first.
    pub(super) fn answer<C: Call>(&mut self, from: PeerKey, request: &C::Request<'_>) -> Vec<u8> {
        let pieces = self.manager.pool().chunks() * usize::try_from(CHUNK_SIZE / PIECE).unwrap();
        for _ in 0..=pieces + 2 * self.manager.pool().extents() {
            match self.step::<C>(from, request) {
                (Step::Replied(_), reply) => return reply,
                (Step::First(action), _) => self.carry_out(action),
                (Step::Wait, _) => panic!("no other task carries out an action"),
            }
        }
        panic!("a request orders without end");
    }

    pub(super) fn reserve(&mut self, from: PeerKey, chunks: u32) -> Result<(), Errno> {
        let reply = self.answer::<Reserve>(from, &ReserveRequest { chunks });
        decode_reply::<Reserve>(&reply).unwrap()
    }

    pub(super) fn lend(
        &mut self,
        from: PeerKey,
        pid: u32,
        count: u16,
    ) -> Result<Vec<RemoteAddr>, Errno> {
        let reply = self.answer::<Lend>(from, &LendRequest { pid, count });
        self.lent_by(from, count, &reply)
    }

    /// Reads the reply of a `Lend` and checks that the borrower can use each chunk.
    pub(super) fn lent_by(
        &self,
        from: PeerKey,
        count: u16,
        reply: &[u8],
    ) -> Result<Vec<RemoteAddr>, Errno> {
        let chunks = decode_reply::<Lend>(reply).unwrap()?;
        assert!(!chunks.is_empty() && chunks.len() <= usize::from(count));
        for &chunk in &chunks {
            assert!(
                self.hardware.reaches(from, chunk),
                "{from:?} can't reach {chunk:?}"
            );
        }
        let distinct: BTreeSet<_> = chunks.iter().map(|chunk| chunk.addr).collect();
        assert_eq!(distinct.len(), chunks.len());
        Ok(chunks.to_vec())
    }

    /// Asks for one chunk, as when an order has failed.
    pub(super) fn lend_at_once(&mut self, from: PeerKey) -> Result<Chunks, Errno> {
        let request = encoded::<Lend>(&LendRequest { pid: 1, count: 1 });
        let mut reply = vec![0; MAX_MESSAGE];
        let len = self
            .manager
            .handle_at_once(from, Lend::KIND.0, &request, &mut reply);
        decode_reply::<Lend>(&reply[..len]).unwrap()
    }

    pub(super) fn give(&mut self, from: PeerKey, addresses: &[u64]) -> Result<(), Errno> {
        let chunks = addresses.iter().copied().collect();
        let reply = self.answer::<Return>(from, &ReturnRequest { chunks });
        decode_reply::<Return>(&reply).unwrap()
    }

    /// Cleans until nothing is left to clean; returns how many orders that took.
    pub(super) fn clean(&mut self) -> usize {
        let mut orders = 0;
        while let Some(action) = self.manager.clean() {
            self.carry_out(action);
            orders += 1;
        }
        orders
    }

    pub(super) fn lent(&self) -> usize {
        self.manager.counters().nr_chunks_lent
    }
}

/// The addresses of chunks.
pub(super) fn addresses(chunks: &[RemoteAddr]) -> Vec<u64> {
    chunks.iter().map(|chunk| chunk.addr).collect()
}

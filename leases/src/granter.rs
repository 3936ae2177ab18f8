//! S's side: the leases granted, and the accesses that wait for their return.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hal::Instant;

use crate::{Kind, MARGIN, Peer, TERM};

/// The most leases at a time.
const MAX_LEASES: usize = 65_536;

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its holder.
    pub peer: Peer,
    /// Its generation.
    pub generation: u64,
    kind: Kind,
    expires: Instant,
}

impl Lease {
    /// Returns its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn conflicts(&self, peer: Peer, kind: Kind) -> bool {
        self.peer != peer && self.kind.conflicts(kind)
    }
}

/// An access that was begun: the inode, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    inode: u64,
    number: u64,
}

#[derive(Debug)]
struct Access {
    number: u64,
    peer: Peer,
    kind: Kind,
}

/// Leases of one inode, and accesses to it.
#[derive(Debug, Default)]
struct Entry {
    leases: Vec<Lease>,
    /// Accesses that wait or are carried out.
    accesses: Vec<Access>,
}

/// The leases that S has granted.
#[derive(Debug)]
pub struct Granter {
    inodes: BTreeMap<u64, Entry>,
    /// The last generation or number of an access.
    last: u64,
    leases: usize,
}

impl Granter {
    /// Returns a granter without leases, whose generations are all greater than `last`.
    #[must_use]
    pub fn new(last: u64) -> Self {
        Self {
            inodes: BTreeMap::new(),
            last,
            leases: 0,
        }
    }

    /// Returns how many leases there are, those that have expired included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases
    }

    /// Returns whether there are no leases.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases == 0
    }

    /// Grants a lease, or extends the one that the node has; returns its generation. `None` if
    /// another node has a conflicting lease or access, or if there are too many leases.
    pub fn grant(&mut self, peer: Peer, inode: u64, kind: Kind, now: Instant) -> Option<u64> {
        if self.leases >= MAX_LEASES {
            self.purge(now);
        }
        let full = self.leases >= MAX_LEASES;
        let entry = self.inodes.entry(inode).or_default();
        let busy = |access: &Access| access.peer != peer && access.kind.conflicts(kind);
        let refused = entry.accesses.iter().any(busy)
            || entry
                .leases
                .iter()
                .any(|lease| lease.conflicts(peer, kind) && lease.expires > now);
        let known = entry.leases.iter().any(|lease| lease.peer == peer);
        if refused || (full && !known) {
            self.tidy(inode);
            return None;
        }
        let expires = now + TERM + MARGIN;
        self.leases -= entry.leases.len();
        entry.leases.retain(|lease| !lease.conflicts(peer, kind));
        let generation = match entry.leases.iter_mut().find(|lease| lease.peer == peer) {
            Some(lease) => {
                lease.expires = expires;
                lease.kind = lease.kind.max(kind);
                lease.generation
            }
            None => {
                self.last += 1;
                entry.leases.push(Lease {
                    peer,
                    generation: self.last,
                    kind,
                    expires,
                });
                self.last
            }
        };
        self.leases += entry.leases.len();
        Some(generation)
    }

    /// Begins an access of a node to a file: from now on no other node gets a conflicting lease.
    /// The access may be carried out when [`waits`](Self::waits) is `None`; it ends by
    /// [`end`](Self::end).
    pub fn begin(&mut self, peer: Peer, inode: u64, kind: Kind) -> Ticket {
        self.last += 1;
        let number = self.last;
        let entry = self.inodes.entry(inode).or_default();
        entry.accesses.push(Access { number, peer, kind });
        Ticket { inode, number }
    }

    /// Returns the leases to be recalled for an access.
    #[must_use]
    pub fn recalls(&self, ticket: Ticket, now: Instant) -> Vec<Lease> {
        let Some((entry, access)) = self.access(ticket) else {
            return Vec::new();
        };
        let conflicting = entry
            .leases
            .iter()
            .filter(|lease| lease.conflicts(access.peer, access.kind) && lease.expires > now);
        conflicting.copied().collect()
    }

    /// Returns the time at which the last lease expires that an access waits for; `None` if it
    /// waits for none. Expired leases that conflict with the access are gone after this.
    pub fn waits(&mut self, ticket: Ticket, now: Instant) -> Option<Instant> {
        let last = self
            .recalls(ticket, now)
            .iter()
            .map(|lease| lease.expires)
            .max();
        let (peer, kind) = self
            .access(ticket)
            .map(|(_, access)| (access.peer, access.kind))?;
        self.drop_leases(ticket.inode, |lease| {
            lease.conflicts(peer, kind) && lease.expires <= now
        });
        last
    }

    /// Ends an access.
    pub fn end(&mut self, ticket: Ticket) {
        if let Some(entry) = self.inodes.get_mut(&ticket.inode) {
            entry
                .accesses
                .retain(|access| access.number != ticket.number);
        }
        self.tidy(ticket.inode);
    }

    /// Takes a lease back that its holder has returned. Another generation than the current one is
    /// ignored.
    pub fn returned(&mut self, peer: Peer, inode: u64, generation: u64) {
        self.drop_leases(inode, |lease| {
            lease.peer == peer && lease.generation == generation
        });
    }

    /// Returns whether a node may change a file under the write lease of this generation; if not,
    /// it was lost, and what the node has not written back before is refused.
    #[must_use]
    pub fn permits(&self, peer: Peer, inode: u64, generation: u64) -> bool {
        let leases = self.inodes.get(&inode).map_or(&[][..], |at| &at.leases);
        leases.iter().any(|lease| {
            (lease.peer, lease.generation, lease.kind) == (peer, generation, Kind::Write)
        })
    }

    /// Ends all leases of a node that has taken its leave, and so uses none any more. Those of a
    /// node that is lost expire: it may not know yet that it is.
    pub fn left(&mut self, peer: Peer) {
        let inodes: Vec<_> = self.inodes.keys().copied().collect();
        for inode in inodes {
            self.drop_leases(inode, |lease| lease.peer == peer);
        }
    }

    fn access(&self, ticket: Ticket) -> Option<(&Entry, &Access)> {
        let entry = self.inodes.get(&ticket.inode)?;
        let number = ticket.number;
        let access = entry.accesses.iter().find(|at| at.number == number)?;
        Some((entry, access))
    }

    /// Drops expired leases of all files: who asks again gets a new generation.
    fn purge(&mut self, now: Instant) {
        let inodes: Vec<_> = self.inodes.keys().copied().collect();
        for inode in inodes {
            self.drop_leases(inode, |lease| lease.expires <= now);
        }
    }

    fn drop_leases(&mut self, inode: u64, drops: impl Fn(&Lease) -> bool) {
        if let Some(entry) = self.inodes.get_mut(&inode) {
            let had = entry.leases.len();
            entry.leases.retain(|lease| !drops(lease));
            self.leases -= had - entry.leases.len();
        }
        self.tidy(inode);
    }

    /// Forgets an inode of which nothing is known.
    fn tidy(&mut self, inode: u64) {
        let idle = |entry: &Entry| entry.leases.is_empty() && entry.accesses.is_empty();
        if self.inodes.get(&inode).is_some_and(idle) {
            self.inodes.remove(&inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hal::Duration;

    const A: Peer = Peer(1);
    const B: Peer = Peer(2);
    const FILE: u64 = 12;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 * seconds)
    }

    #[test]
    fn a_change_waits_until_the_leases_of_others_are_returned() {
        let mut granter = Granter::new(0);
        let a = granter.grant(A, FILE, Kind::Read, at(0)).unwrap();
        let b = granter.grant(B, FILE, Kind::Read, at(0)).unwrap();
        assert_ne!(a, b);
        let change = granter.begin(B, FILE, Kind::Write);
        let recalled = granter.recalls(change, at(1));
        assert_eq!(
            recalled.iter().map(|l| l.peer).collect::<Vec<_>>(),
            [A],
            "who changes the file keeps its own"
        );
        assert_eq!(granter.waits(change, at(1)), Some(at(0) + TERM + MARGIN));
        granter.returned(A, FILE, a + 7);
        assert!(granter.waits(change, at(1)).is_some(), "of another lease");
        granter.returned(A, FILE, a);
        assert_eq!(granter.waits(change, at(1)), None);
        assert_eq!(granter.grant(A, FILE, Kind::Read, at(1)), None, "busy");
        granter.end(change);
        let again = granter.grant(A, FILE, Kind::Read, at(1)).unwrap();
        assert!(again > b, "generations are not given twice");
        assert_eq!(granter.grant(B, FILE, Kind::Read, at(1)), Some(b));
    }

    #[test]
    fn a_lease_that_is_not_returned_expires_and_an_extended_one_later() {
        let mut granter = Granter::new(0);
        granter.grant(A, FILE, Kind::Read, at(0)).unwrap();
        granter.grant(A, FILE, Kind::Read, at(2)).unwrap();
        let change = granter.begin(B, FILE, Kind::Write);
        let end = at(2) + TERM + MARGIN;
        assert_eq!(granter.waits(change, at(5)), Some(end));
        assert_eq!(granter.waits(change, end), None);
        granter.end(change);
        assert!(granter.is_empty() && granter.inodes.is_empty());
    }

    #[test]
    fn a_write_lease_is_one_node_s_and_its_generation_fences_the_node() {
        let mut granter = Granter::new(41);
        let write = granter.grant(A, FILE, Kind::Write, at(0)).unwrap();
        assert_eq!(granter.grant(B, FILE, Kind::Read, at(1)), None);
        assert!(granter.permits(A, FILE, write));
        let read = granter.begin(B, FILE, Kind::Read);
        assert_eq!(granter.recalls(read, at(1)).len(), 1);
        assert_eq!(granter.waits(read, at(9)), None);
        assert!(!granter.permits(A, FILE, write), "fenced");
        granter.end(read);
        assert!(granter.grant(B, FILE, Kind::Read, at(9)).is_some());
    }

    #[test]
    fn expired_leases_make_room_when_the_table_is_full() {
        let mut granter = Granter::new(0);
        for inode in 0..MAX_LEASES as u64 {
            assert!(granter.grant(A, inode, Kind::Read, at(0)).is_some());
        }
        assert_eq!(granter.grant(A, u64::MAX, Kind::Read, at(1)), None);
        assert!(granter.grant(A, 7, Kind::Read, at(1)).is_some(), "extended");
        let later = at(0) + TERM + MARGIN + Duration::from_nanos(1);
        assert!(granter.grant(A, u64::MAX, Kind::Read, later).is_some());
        assert_eq!(granter.len(), 2);
        granter.left(A);
        assert!(granter.inodes.is_empty());
    }
}

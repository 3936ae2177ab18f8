//! The bulk of requests and replies on the callee's side: buffers, READs of what callers offer,
//! WRITEs of what they take.
//!
//! ```text
//!  request with bulk ─► Waiting ──buffers are free──► Fetching ──READs are done──► Arrived ─► Serving ─► reply:
//!                          └── nothing to fetch ──────────────────────────────────────┘        WRITE each piece, then SEND
//! ```
//!
//! The buffers lie in the connection's own memory, so a peer can take none from another, and no key
//! to them is given away: a caller can't change what a handler reads. A request takes all the
//! buffers that it needs at once, so two can't wait for each other. Requests without bulk overtake
//! those that wait.

use alloc::vec::Vec;

use verbs::RemoteAddr;

use crate::wire::{DESCRIPTOR_LEN, Descriptor, Header, MAX_PIECES};

/// Bulk data of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct BulkPart {
    /// Whether there is any; without, the lengths and counts are zero.
    any: bool,
    /// Bytes that come with the request.
    pub(crate) len: u32,
    /// Bytes that may be sent with the reply.
    pub(crate) limit: u32,
    gathers: u8,
    scatters: u8,
    /// The buffers it has.
    input: Option<u16>,
    output: Option<u16>,
    /// Pieces looked at, bytes asked for, and READs that are not done yet.
    looked_at: u8,
    asked: u32,
    reads: u8,
    scatter: [Descriptor; MAX_PIECES],
}

impl BulkPart {
    /// Returns whether there is any.
    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.any
    }

    /// There is none.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.any {
            self.any = false;
            (self.len, self.limit) = (0, 0);
            (self.gathers, self.scatters) = (0, 0);
        }
    }

    /// Returns whether the request's bulk came in its message.
    pub(crate) fn is_carried(&self) -> bool {
        self.len > 0 && self.gathers == 0
    }

    /// Bytes of the descriptors in the request.
    pub(crate) fn descriptors_len(&self) -> usize {
        (usize::from(self.gathers) + usize::from(self.scatters)) * DESCRIPTOR_LEN
    }

    /// The WRITEs of a reply with so much bulk, at most.
    pub(crate) fn writes(&self, bulk: u32) -> usize {
        if bulk == 0 { 0 } else { self.scatters.into() }
    }

    /// Notes what a request says of its bulk, the descriptors of which `piece` reads by their
    /// number; whether it makes sense. Replies have at most `size` bytes of bulk.
    pub(crate) fn begin(
        &mut self,
        header: &Header,
        size: u32,
        piece: impl Fn(u8) -> Descriptor,
    ) -> bool {
        let offered: u64 = (0..header.gathers)
            .map(|index| u64::from(piece(index).len))
            .sum();
        if header.gathers > 0 && (offered != u64::from(header.bulk) || header.bulk > size) {
            return false;
        }
        let mut taken = 0;
        for index in 0..header.scatters {
            let descriptor = piece(header.gathers + index);
            self.scatter[usize::from(index)] = descriptor;
            taken += u64::from(descriptor.len);
        }
        self.any = header.bulk > 0 || header.scatters > 0;
        self.len = header.bulk;
        self.limit = u32::try_from(taken).unwrap_or(u32::MAX).min(size);
        (self.gathers, self.scatters) = (header.gathers, header.scatters);
        (self.looked_at, self.asked, self.reads) = (0, 0, 0);
        true
    }

    /// Returns whether it waits for buffers.
    pub(crate) fn wants_buffers(&self) -> bool {
        self.buffers_wanted() > 0
    }

    fn buffers_wanted(&self) -> usize {
        usize::from(self.gathers > 0) + usize::from(self.limit > 0)
    }

    /// Takes the buffers that it wants, if there are so many; nothing if there are not. Returns
    /// whether there is something to fetch.
    pub(crate) fn admit(&mut self, buffers: &mut Buffers) -> Option<bool> {
        if buffers.free.len() < self.buffers_wanted() {
            return None;
        }
        self.output = (self.limit > 0).then(|| buffers.free.pop()).flatten();
        if self.gathers > 0 {
            self.input = buffers.free.pop();
        }
        Some(self.gathers > 0)
    }

    /// Returns whether no READ is left to be posted.
    pub(crate) fn is_asked(&self) -> bool {
        self.looked_at == self.gathers
    }

    /// Returns whether all is there.
    pub(crate) fn is_fetched(&self) -> bool {
        self.is_asked() && self.reads == 0
    }

    /// The next piece to fetch: its number, the buffer, and the offset in that.
    pub(crate) fn next_piece(&self) -> (u8, u16, u32) {
        let buffer = self.input;
        let buffer = buffer.expect("a buffer was taken before the first READ");
        (self.looked_at, buffer, self.asked)
    }

    /// The next piece, of so many bytes, is about to be fetched.
    pub(crate) fn ask(&mut self, len: u32) {
        self.looked_at += 1;
        if len > 0 {
            self.asked += len;
            self.reads += 1;
        }
    }

    /// A READ has ended.
    pub(crate) fn on_read(&mut self) {
        self.reads -= 1;
    }

    /// The buffer that holds the request's bulk.
    pub(crate) fn input(&self) -> Option<u16> {
        self.input
    }

    /// The buffer for the reply's.
    pub(crate) fn output(&self) -> Option<u16> {
        self.output
    }

    /// Takes the first of these away.
    pub(crate) fn take_input(&mut self) -> Option<u16> {
        self.input.take()
    }

    /// Takes the second away.
    pub(crate) fn take_output(&mut self) -> Option<u16> {
        self.output.take()
    }

    /// The WRITEs of a reply's bulk: for each the place, the offset in the buffer and the length.
    pub(crate) fn pieces(&self, bulk: u32) -> impl Iterator<Item = (RemoteAddr, u32, u32)> + use<> {
        let mut done = 0;
        let pieces = self.scatter.into_iter().map(move |Descriptor { at, len }| {
            let (offset, len) = (done, len.min(bulk - done));
            done += len;
            (at, offset, len)
        });
        pieces.filter(|&(.., len)| len > 0)
    }
}

/// A connection's buffers for bulk.
#[derive(Debug)]
pub(crate) struct Buffers {
    count: u16,
    size: u32,
    free: Vec<u16>,
}

impl Buffers {
    /// Makes `count` buffers of `size` bytes; none if these are zero.
    pub(crate) fn new(count: u16, size: u32) -> Self {
        let count = if size > 0 { count } else { 0 };
        Self {
            count,
            size,
            free: (0..count).collect(),
        }
    }

    /// Bytes of a buffer.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// The queue pair is dead: nothing touches any of them.
    pub(crate) fn free_all(&mut self) {
        self.free.clear();
        self.free.extend(0..self.count);
    }

    pub(crate) fn give_back(&mut self, buffer: u16) {
        assert!(!self.free.contains(&buffer), "buffer {buffer} was taken");
        self.free.push(buffer);
    }

    /// Buffers that nobody has.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }
}

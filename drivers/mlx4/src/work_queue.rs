//! The two rings of a queue pair: builds WQEs, and maps completions to requests.
//!
//! Indices are the driver's own and never read back. The index in a completion is checked against
//! the outstanding requests before use.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use hal::{DmaBuffer, fence};
use mlx4_hw::path::{AddressVector, GrhPathBits, PortPd, TrafficClass};
use mlx4_hw::wqe::{
    BASIC_BLOCK_LEN, COMPLETION_WANTED, ControlFlags, ControlOwner, ControlSegment, ControlSize,
    DataSegment, DatagramSegment, INLINE_HEADER_LEN, InlineHeader, RemoteAddressSegment,
    SEGMENT_UNIT, SEND_HEADROOM_LEN, STAMP, WqeOpcode,
};
use mlx4_hw::{bits::Low24, regs};
use mutants::Mutant;
use verbs::{Payload, SendOp, SendRequest, Sge, UdAddress};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Division of a queue pair's memory: the ring with the larger stride first, then the doorbell
/// record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) log_send_slots: u8,
    pub(crate) log_send_stride: u8,
    pub(crate) log_receive_slots: u8,
    pub(crate) log_receive_stride: u8,
    /// Requests that the send ring takes: its slots less the headroom of 2 KB and one WQE that the
    /// card's prefetcher may read (Linux `hw/mlx4/qp.c`, `set_kernel_sq_size`;
    /// `MLX4_IB_SQ_HEADROOM`).
    pub(crate) send_depth: u32,
}

impl Geometry {
    /// Rings for at least so many requests of so many descriptor bytes.
    pub(crate) fn new(
        send_depth: u32,
        send_len: usize,
        receive_depth: u32,
        receive_len: usize,
    ) -> Self {
        let send_stride = send_len.max(BASIC_BLOCK_LEN).next_power_of_two();
        let headroom = (SEND_HEADROOM_LEN >> send_stride.ilog2()) + 1;
        let send_slots = (send_depth.max(1) + headroom).next_power_of_two();
        let receive_stride = receive_len.max(SEGMENT_UNIT).next_power_of_two();
        let receive_slots = receive_depth.max(4).next_power_of_two();
        let log = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        Self {
            log_send_slots: log(send_slots.ilog2()),
            log_send_stride: log(send_stride.ilog2()),
            log_receive_slots: log(receive_slots.ilog2()),
            log_receive_stride: log(receive_stride.ilog2()),
            send_depth: send_slots - headroom,
        }
    }

    fn send_len(self) -> usize {
        1 << (self.log_send_slots + self.log_send_stride)
    }

    fn receive_len(self) -> usize {
        1 << (self.log_receive_slots + self.log_receive_stride)
    }

    pub(crate) fn send_offset(self) -> usize {
        if self.log_send_stride >= self.log_receive_stride {
            0
        } else {
            self.receive_len()
        }
    }

    pub(crate) fn receive_offset(self) -> usize {
        if self.log_send_stride >= self.log_receive_stride {
            self.send_len()
        } else {
            0
        }
    }

    /// Bytes of both rings.
    pub(crate) fn rings_len(self) -> usize {
        self.send_len() + self.receive_len()
    }

    /// Returns the offset of the doorbell record.
    pub(crate) fn record_offset(self) -> usize {
        self.rings_len().next_multiple_of(64)
    }

    /// Bytes of all.
    pub(crate) fn memory_len(self) -> usize {
        self.record_offset() + 64
    }
}

/// Returns the length of a send's descriptor: control, then by kind an address, then data.
pub(crate) fn send_descriptor_len(datagram: bool, sge: u8, inline: u32) -> usize {
    let address = if datagram {
        size_of::<DatagramSegment>()
    } else {
        size_of::<RemoteAddressSegment>()
    };
    let head = size_of::<ControlSegment>() + address;
    let pieces = usize::from(sge) * size_of::<DataSegment>();
    head + pieces.max(inline_len(head, inline as usize))
}

/// Bytes that `payload` inline bytes take from descriptor offset `at` on, with a header in each
/// block.
fn inline_len(at: usize, payload: usize) -> usize {
    let mut end = at;
    let mut left = payload;
    while left > 0 {
        let room = BASIC_BLOCK_LEN - end % BASIC_BLOCK_LEN;
        let now = left.min(room - INLINE_HEADER_LEN);
        end += INLINE_HEADER_LEN + now;
        left -= now;
        end = end.next_multiple_of(SEGMENT_UNIT);
    }
    end - at
}

/// A send that is outstanding.
#[derive(Debug, Clone, Copy, Default)]
struct Posted {
    id: u64,
}

/// The send ring.
pub(crate) struct SendQueue<B: DmaBuffer> {
    memory: Arc<B>,
    offset: usize,
    log_slots: u8,
    log_stride: u8,
    depth: u32,
    head: u32,
    tail: u32,
    posted: Vec<Posted>,
}

impl<B: DmaBuffer> SendQueue<B> {
    pub(crate) fn new(memory: Arc<B>, geometry: Geometry) -> Self {
        let mut queue = Self {
            offset: geometry.send_offset(),
            log_slots: geometry.log_send_slots,
            log_stride: geometry.log_send_stride,
            depth: geometry.send_depth,
            head: 0,
            tail: 0,
            posted: vec![Posted::default(); 1 << geometry.log_send_slots],
            memory,
        };
        queue.clear();
        queue
    }

    /// Empties the ring of a queue pair that the card has in RESET.
    pub(crate) fn clear(&mut self) {
        if Mutant::SendRingNotEmptied.on() {
            return;
        }
        (self.head, self.tail) = (0, 0);
        for slot in 0..1_u32 << self.log_slots {
            // The owner bit of pass 0 is 0: a slot with 1 is not the card's yet.
            let owner = ControlOwner::new().with_pass(true);
            self.memory.write(self.at(slot), owner.as_bytes());
            self.stamp(slot);
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    pub(crate) fn room(&self) -> u32 {
        self.depth - self.head.wrapping_sub(self.tail)
    }

    /// Bytes of a slot.
    pub(crate) fn stride(&self) -> usize {
        1 << self.log_stride
    }

    /// Offset of the slot for the counter `index`.
    fn at(&self, index: u32) -> usize {
        let slot = index as usize % (1 << self.log_slots);
        self.offset + (slot << self.log_stride)
    }

    /// Marks every block behind a slot's first as invalid for the card's prefetcher (Linux
    /// `hw/mlx4/qp.c`, `stamp_send_wqe`). The first block is covered by its owner bit.
    fn stamp(&self, index: u32) {
        if Mutant::BlocksNotStamped.on() {
            return;
        }
        for block in (BASIC_BLOCK_LEN..self.stride()).step_by(BASIC_BLOCK_LEN) {
            // No fence of its own: the headroom is one WQE longer than the card reads ahead, so the
            // next WQE's fence comes before the prefetcher may reach this slot (Linux stamps the
            // last one even behind the doorbell: `_mlx4_ib_post_send`).
            self.memory.write_u32(self.at(index) + block, STAMP);
        }
    }

    /// Begins a WQE in the next slot, which must be free. Segments go behind its control segment.
    pub(crate) fn begin(&mut self) -> Descriptor<'_, B> {
        Descriptor {
            base: self.at(self.head),
            len: size_of::<ControlSegment>(),
            heads: [0; MOST_BLOCKS - 1],
            memory: &*self.memory,
        }
    }

    /// Writes the control segment of the WQE of `len` bytes begun last, its owner dword last.
    ///
    /// The card executes a WQE as soon as the owner bit is right, without a doorbell, if it is
    /// still at work on the queue (Linux `hw/mlx4/qp.c`, `mlx4_ib_post_send`).
    pub(crate) fn finish(
        &mut self,
        id: u64,
        opcode: WqeOpcode,
        len: usize,
        mut control: ControlSegment,
    ) {
        let at = self.at(self.head);
        control.size = control
            .size
            .with_units(u8::try_from(len.div_ceil(SEGMENT_UNIT)).unwrap_or(0));
        let pass = self.head >> self.log_slots & 1 == 1 && !Mutant::SendOwnerStands.on();
        control.owner = ControlOwner::new().with_pass(pass).with_opcode(opcode);
        let bytes = control.as_bytes();
        let (owner, rest) = bytes.split_at(size_of::<ControlOwner>());
        self.memory.write(at + owner.len(), rest);
        // All of the WQE before its owner bit.
        fence::publish();
        let word = u32::from_ne_bytes([owner[0], owner[1], owner[2], owner[3]]);
        self.memory.write_u32(at, word);
        let slot = self.head as usize % self.posted.len();
        self.posted[slot] = Posted { id };
        self.head = self.head.wrapping_add(1);
        let slots = 1_u32 << self.log_slots;
        // The headroom's new last slot, which the prefetcher may reach from now on.
        self.stamp(self.head.wrapping_add(slots - self.depth - 1));
    }

    /// Returns the request of the completion with this counter, and ends it and all before it.
    /// `None` if no such request is outstanding.
    pub(crate) fn complete(&mut self, counter: u16) -> Option<u64> {
        // The entry has 16 bits of the counter. No ring has that many slots, so the distance is
        // exact.
        let behind = counter.wrapping_sub(low_half(self.tail));
        if u32::from(behind) >= self.head.wrapping_sub(self.tail) {
            return None;
        }
        let index = self.tail.wrapping_add(u32::from(behind));
        self.tail = index.wrapping_add(1);
        Some(self.posted[index as usize % self.posted.len()].id)
    }
}

pub(crate) fn low_half(value: u32) -> u16 {
    let [_, _, high, low] = value.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// Blocks of the longest WQE: its size is a number of 6 bits, in units of 16 bytes.
const MOST_BLOCKS: usize = (1 << 6) * SEGMENT_UNIT / BASIC_BLOCK_LEN;

/// A WQE being built.
///
/// The card reads the send queue ahead of the doorbell. It takes every block but a WQE's first for
/// written as soon as the block's first dword is no [`STAMP`] (Linux `hw/mlx4/qp.c`,
/// `set_data_seg`; rdma-core `providers/mlx4/qp.c`). So these dwords are kept here until
/// [`seal`](Self::seal).
pub(crate) struct Descriptor<'a, B: DmaBuffer> {
    memory: &'a B,
    base: usize,
    len: usize,
    /// First dwords of the blocks behind the first: byte counts and inline headers.
    heads: [u32; MOST_BLOCKS - 1],
}

impl<B: DmaBuffer> Descriptor<'_, B> {
    pub(crate) fn put<T: IntoBytes + Immutable>(&mut self, segment: &T) {
        let (mut at, mut bytes) = (self.base + self.len, segment.as_bytes());
        if self.len.is_multiple_of(BASIC_BLOCK_LEN)
            && !Mutant::BlocksShownEarly.on()
            && let Some((head, rest)) = bytes.split_first_chunk()
        {
            self.heads[self.len / BASIC_BLOCK_LEN - 1] = u32::from_ne_bytes(*head);
            (at, bytes) = (at + head.len(), rest);
        }
        self.memory.write(at, bytes);
        self.len += size_of::<T>();
    }

    pub(crate) fn put_pieces(&mut self, pieces: &[Sge]) {
        // A byte count of 0 may mean 2^31 to the card, so such a piece is left out (rdma-core
        // `providers/mlx4/qp.c`, `set_data_seg`, writes 0x80000000 for a length of 0).
        for piece in pieces.iter().filter(|piece| piece.len > 0) {
            self.put(&DataSegment::new(piece.addr, piece.len, piece.lkey.0));
        }
    }

    /// Puts bytes into the WQE itself, with a header in each block they touch.
    pub(crate) fn put_inline(&mut self, pieces: [&[u8]; 2]) {
        let mut left = pieces[0].len() + pieces[1].len();
        // Room that is left in the current block.
        let mut open = 0;
        for mut piece in pieces {
            while !piece.is_empty() {
                if open == 0 {
                    let room = BASIC_BLOCK_LEN - self.len % BASIC_BLOCK_LEN - INLINE_HEADER_LEN;
                    open = left.min(room);
                    left -= open;
                    let bytes = u32::try_from(open).unwrap_or(0);
                    self.put(&InlineHeader::new().with_inline(true).with_bytes(bytes));
                }
                let (now, later) = piece.split_at(piece.len().min(open));
                self.memory.write(self.base + self.len, now);
                self.len += now.len();
                open -= now.len();
                if open == 0 {
                    self.len = self.len.next_multiple_of(SEGMENT_UNIT);
                }
                piece = later;
            }
        }
    }

    /// Writes the first dwords of all blocks but the WQE's first, from the last one on, and returns
    /// the WQE's length in bytes. [`SendQueue::finish`] must follow.
    pub(crate) fn seal(self) -> usize {
        if self.len > BASIC_BLOCK_LEN && !Mutant::BlocksShownEarly.on() {
            // A block's data before its first dword, or the prefetcher could pair a valid byte
            // count with stale data (Linux `hw/mlx4/qp.c`, `set_data_seg`).
            fence::publish();
            for block in (1..self.len.div_ceil(BASIC_BLOCK_LEN)).rev() {
                let at = self.base + block * BASIC_BLOCK_LEN;
                self.memory.write_u32(at, self.heads[block - 1]);
            }
        }
        self.len
    }
}

/// The descriptor bytes that a request needs.
pub(crate) fn needed_len(request: &SendRequest<'_>) -> usize {
    let head = size_of::<ControlSegment>()
        + match (request.to, request.op) {
            (Some(_), _) => size_of::<DatagramSegment>(),
            (None, SendOp::Send { .. }) => 0,
            (None, _) => size_of::<RemoteAddressSegment>(),
        };
    match request.payload {
        Payload::Gather(pieces) => {
            head + size_of_val(pieces) / size_of::<Sge>() * size_of::<DataSegment>()
        }
        Payload::Inline(first, second) => head + inline_len(head, first.len() + second.len()),
    }
}

/// Descriptor bytes that an inline SEND on a connection takes.
pub(crate) fn inline_send_len(payload: usize) -> usize {
    let head = size_of::<ControlSegment>();
    head + inline_len(head, payload)
}

/// Opcode and immediate of an operation.
pub(crate) fn opcode(op: SendOp) -> (WqeOpcode, u32) {
    match op {
        SendOp::Send { imm: None } => (WqeOpcode::SEND, 0),
        SendOp::Send { imm: Some(imm) } => (WqeOpcode::SEND_IMM, imm),
        SendOp::Write { imm: None, .. } => (WqeOpcode::RDMA_WRITE, 0),
        SendOp::Write { imm: Some(imm), .. } => (WqeOpcode::RDMA_WRITE_IMM, imm),
        SendOp::Read { .. } => (WqeOpcode::RDMA_READ, 0),
    }
}

/// The control segment of a request, but for owner and size.
pub(crate) fn control(request: &SendRequest<'_>, imm: u32) -> ControlSegment {
    let mut control = send_control(request.signalled);
    control.size = ControlSize::new().with_fence(request.fence && !Mutant::FenceFlagLost.on());
    control.flags = control.flags.with_solicited(request.solicited);
    control.immediate = imm.into();
    control
}

/// The control segment of a solicited SEND, but for owner and size.
pub(crate) fn send_control(signalled: bool) -> ControlSegment {
    let mut control = ControlSegment::new_zeroed();
    control.flags = ControlFlags::new()
        .with_completion(if signalled { COMPLETION_WANTED } else { 0 })
        .with_solicited(true);
    control
}

/// The datagram segment of a destination.
pub(crate) fn datagram(to: &UdAddress, port: u8, pd: u32) -> DatagramSegment {
    let mut vector = AddressVector::new_zeroed();
    vector.port_pd = PortPd::new().with_port(port & 3).with_pd(pd);
    vector.dlid = to.address.lid().0.into();
    vector.traffic = TrafficClass::new().with_sl(to.sl & 0xf);
    // The card adds a GRH where the vector asks for one, as multicast needs it (Linux
    // `hw/mlx4/ah.c`, `create_ib_ah`: `g_slid |= 0x80`).
    if let Some(gid) = to.gid {
        vector.grh = GrhPathBits::new().with_grh(true);
        vector.hop_limit = 0xff;
        vector.dgid = gid.0;
    }
    let mut segment = DatagramSegment::new_zeroed();
    segment.vector = vector;
    segment.qpn = Low24::new(to.qpn.0);
    segment.qkey = to.qkey.0.into();
    segment
}

/// The receive ring.
pub(crate) struct ReceiveQueue<B: DmaBuffer> {
    memory: Arc<B>,
    offset: usize,
    record: usize,
    log_slots: u8,
    log_stride: u8,
    head: u32,
    tail: u32,
    posted: Vec<Posted>,
}

impl<B: DmaBuffer> ReceiveQueue<B> {
    pub(crate) fn new(memory: Arc<B>, geometry: Geometry) -> Self {
        Self {
            offset: geometry.receive_offset(),
            record: geometry.record_offset(),
            log_slots: geometry.log_receive_slots,
            log_stride: geometry.log_receive_stride,
            head: 0,
            tail: 0,
            posted: vec![Posted::default(); 1 << geometry.log_receive_slots],
            memory,
        }
    }

    /// Empties the ring of a queue pair that the card has in RESET; the card reads the record again
    /// in INIT.
    pub(crate) fn clear(&mut self) {
        (self.head, self.tail) = (0, 0);
        if !Mutant::ReceiveRecordKept.on() {
            // The card's counter restarts at 0: an old record would hand it descriptors that nobody
            // wrote (Linux `hw/mlx4/qp.c`, `__mlx4_ib_modify_qp`, clears `*qp->db.db`).
            self.memory.write_u32(self.record, 0);
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        1 << self.log_slots
    }

    pub(crate) fn is_full(&self) -> bool {
        self.head.wrapping_sub(self.tail) >= self.depth()
    }

    /// Pieces that a request may have.
    pub(crate) fn max_pieces(&self) -> usize {
        (1 << self.log_stride) / size_of::<DataSegment>()
    }

    /// Posts a receive and shows it to the card. The ring must have room and the request fit.
    pub(crate) fn post(&mut self, id: u64, pieces: &[Sge]) {
        let slot = self.head as usize % self.posted.len();
        let at = self.offset + (slot << self.log_stride);
        for (index, piece) in pieces.iter().enumerate() {
            let segment = DataSegment::new(piece.addr, piece.len, piece.lkey.0);
            self.memory
                .write(at + index * SEGMENT_UNIT, segment.as_bytes());
        }
        // The card reads the whole slot: a list that is shorter ends with a segment of length 0
        // under a key that is never valid (Linux `hw/mlx4/qp.c`, `_mlx4_ib_post_recv`,
        // `MLX4_INVALID_LKEY`).
        if pieces.len() < self.max_pieces() {
            let end = DataSegment::end();
            self.memory
                .write(at + pieces.len() * SEGMENT_UNIT, end.as_bytes());
        }
        self.posted[slot] = Posted { id };
        self.head = self.head.wrapping_add(1);
        // Descriptors before the doorbell record, which alone hands receives over: there is no
        // register for them (Linux `hw/mlx4/qp.c`, `mlx4_ib_post_recv`).
        fence::publish();
        self.memory
            .write_u32(self.record, regs::swap(u32::from(low_half(self.head))));
    }

    /// Returns the request that the next receive completion is of, `None` when none is posted.
    /// Receives end in order; the completion's own counter means nothing in a flush (Linux
    /// `hw/mlx4/cq.c`, `mlx4_ib_poll_one`).
    pub(crate) fn complete(&mut self) -> Option<u64> {
        if self.head == self.tail {
            return None;
        }
        let slot = self.tail as usize % self.posted.len();
        self.tail = self.tail.wrapping_add(1);
        Some(self.posted[slot].id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hal::BusAddr;
    use proptest::prelude::*;
    use verbs::{RemoteAddr, Rkey};
    use zerocopy::FromBytes;

    /// Memory that nobody but the test looks at.
    struct Bytes(std::sync::Mutex<Vec<u8>>);

    impl Bytes {
        fn new(len: usize) -> Arc<Self> {
            Arc::new(Self(std::sync::Mutex::new(vec![0; len])))
        }

        fn range(&self, offset: usize, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.read(offset, &mut bytes);
            bytes
        }
    }

    impl DmaBuffer for Bytes {
        fn bus_addr(&self) -> BusAddr {
            BusAddr(0)
        }
        fn len(&self) -> usize {
            self.0.lock().unwrap().len()
        }
        fn read(&self, offset: usize, into: &mut [u8]) {
            let bytes = self.0.lock().unwrap();
            into.copy_from_slice(&bytes[offset..offset + into.len()]);
        }
        fn write(&self, offset: usize, from: &[u8]) {
            let mut bytes = self.0.lock().unwrap();
            bytes[offset..offset + from.len()].copy_from_slice(from);
        }
        fn fill(&self, offset: usize, len: usize, value: u8) {
            self.write(offset, &vec![value; len]);
        }
        fn read_u32(&self, offset: usize) -> u32 {
            let mut word = [0; 4];
            self.read(offset, &mut word);
            u32::from_le_bytes(word)
        }
        fn write_u32(&self, offset: usize, value: u32) {
            self.write(offset, &value.to_le_bytes());
        }
        fn read_u64(&self, offset: usize) -> u64 {
            let mut word = [0; 8];
            self.read(offset, &mut word);
            u64::from_le_bytes(word)
        }
        fn write_u64(&self, offset: usize, value: u64) {
            self.write(offset, &value.to_le_bytes());
        }
    }

    fn post(queue: &mut SendQueue<Bytes>, id: u64) {
        let len = queue.begin().seal();
        queue.finish(id, WqeOpcode::NOP, len, ControlSegment::new_zeroed());
    }

    proptest! {
        #[test]
        fn rings_do_not_meet_and_hold_what_was_asked(
            send_depth in 1..2000_u32, send_len in 16..900_usize,
            receive_depth in 0..2000_u32, receive_len in 0..500_usize,
        ) {
            let geometry = Geometry::new(send_depth, send_len, receive_depth, receive_len);
            prop_assert!(geometry.send_depth >= send_depth);
            prop_assert!(1 << geometry.log_receive_slots >= receive_depth);
            prop_assert!(1 << geometry.log_send_stride >= send_len);
            let (send, receive) = (geometry.send_offset(), geometry.receive_offset());
            prop_assert!(send + geometry.send_len() <= receive || receive + geometry.receive_len() <= send);
            prop_assert!(send.is_multiple_of(64) && receive.is_multiple_of(64));
            prop_assert!(geometry.rings_len() <= geometry.record_offset());
        }

        #[test]
        fn inline_data_takes_what_was_reckoned_and_crosses_no_block(
            bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0usize..400,
        ) {
            let geometry = Geometry::new(1, send_descriptor_len(false, 1, 400), 1, 16);
            let memory = Bytes::new(geometry.memory_len());
            let mut queue = SendQueue::new(Arc::clone(&memory), geometry);
            let to = RemoteAddr { addr: 1, rkey: Rkey(2) };
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let request = SendRequest {
                id: 0,
                op: SendOp::Write { to, imm: None },
                payload: Payload::Inline(first, second),
                signalled: true,
                solicited: false,
                fence: false,
                to: None,
            };
            let mut descriptor = queue.begin();
            descriptor.put(&RemoteAddressSegment::new(1, 2));
            descriptor.put_inline([first, second]);
            let len = descriptor.seal();
            prop_assert_eq!(len, needed_len(&request));
            prop_assert!(len <= queue.stride());
            // Read it back as a card does.
            let wqe = memory.range(queue.at(0), queue.stride());
            let (mut at, mut read) = (32, Vec::new());
            while read.len() < bytes.len() {
                let header = InlineHeader::read_from_bytes(&wqe[at..at + 4]).unwrap();
                prop_assert!(header.inline() && header.bytes() > 0);
                let end = at + 4 + header.bytes() as usize;
                prop_assert_eq!(at / 64, (end - 1) / 64);
                read.extend_from_slice(&wqe[at + 4..end]);
                at = end.next_multiple_of(16);
            }
            prop_assert_eq!(read, bytes);
        }

        #[test]
        fn no_counter_completes_what_is_not_outstanding(posts in 0..8_u16, counter: u16) {
            let geometry = Geometry::new(8, 64, 8, 16);
            let mut queue = SendQueue::new(Bytes::new(geometry.memory_len()), geometry);
            for id in 0..posts {
                post(&mut queue, id.into());
            }
            let expected = (counter < posts).then_some(u64::from(counter));
            prop_assert_eq!(queue.complete(counter), expected);
        }
    }

    #[test]
    fn an_emptied_ring_shows_the_card_no_receive() {
        let geometry = Geometry::new(8, 64, 8, 16);
        let memory = Bytes::new(geometry.memory_len());
        let mut receive = ReceiveQueue::new(Arc::clone(&memory), geometry);
        (0..3).for_each(|id| receive.post(id, &[]));
        receive.clear();
        assert_eq!(memory.read_u32(geometry.record_offset()), 0);
    }

    #[test]
    fn a_fence_is_told_to_the_card() {
        for fence in [false, true] {
            let request = SendRequest {
                id: 0,
                op: SendOp::Send { imm: None },
                payload: Payload::Inline(&[], &[]),
                signalled: false,
                solicited: false,
                fence,
                to: None,
            };
            assert_eq!(control(&request, 0).size.fence(), fence);
        }
    }

    #[test]
    fn counters_wrap_at_16_bits() {
        let geometry = Geometry::new(8, 64, 8, 16);
        let memory = Bytes::new(geometry.memory_len());
        let mut send = SendQueue::new(Arc::clone(&memory), geometry);
        let mut receive = ReceiveQueue::new(Arc::clone(&memory), geometry);
        for id in 0..70_000_u32 {
            post(&mut send, id.into());
            assert_eq!(send.complete(low_half(id)), Some(id.into()));
            receive.post(id.into(), &[]);
            assert_eq!(receive.complete(), Some(id.into()));
        }
        assert_eq!(send.room(), send.depth());
        assert_eq!(
            regs::swap(memory.read_u32(geometry.record_offset())),
            70_000 & 0xffff
        );
    }

    #[test]
    fn the_owner_bit_turns_at_each_pass() {
        let geometry = Geometry::new(8, 64, 8, 16);
        let memory = Bytes::new(geometry.memory_len());
        let mut queue = SendQueue::new(Arc::clone(&memory), geometry);
        let slots = 1_u32 << geometry.log_send_slots;
        let owner =
            |slot: u32| memory.range(geometry.send_offset() + slot as usize * 64, 1)[0] >> 7;
        assert!((0..slots).all(|slot| owner(slot) == 1));
        for id in 0..3 * slots {
            post(&mut queue, id.into());
            assert_eq!(u32::from(owner(id % slots)), id / slots % 2);
            assert_eq!(queue.complete(low_half(id)), Some(id.into()));
        }
    }
}

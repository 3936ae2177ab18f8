//! Shared receive queues.

use std::collections::BTreeMap;

use mlx4_hw::bits::Low24;
use mlx4_hw::eq::EventType;
use mlx4_hw::srq::{NextSegment, SrqContext};
use mlx4_hw::wqe::BASIC_BLOCK_LEN;
use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use crate::eq::EventQueues;
use crate::memory::{Memory, RingMemory};
use crate::responder::Target;
use crate::trace::Purpose;
use crate::wqe::{Piece, receive_pieces};

struct SharedQueue {
    context: SrqContext,
    /// Entries taken so far.
    taken: u16,
    /// The entry that is taken next: each names its successor.
    next: u16,
    limit: u16,
}

/// All shared receive queues of a card.
#[derive(Default)]
pub(crate) struct SharedQueues {
    queues: BTreeMap<u32, SharedQueue>,
}

impl SharedQueues {
    pub(crate) fn contains(&self, srqn: u32) -> bool {
        self.queues.contains_key(&srqn)
    }

    /// Takes a queue over. Its list begins at entry 0, where libmlx4 and Linux put the first free
    /// one.
    pub(crate) fn create(&mut self, srqn: u32, context: SrqContext) {
        let queue = SharedQueue {
            taken: context.wqe_counter.get(),
            next: 0,
            limit: 0,
            context,
        };
        self.queues.insert(srqn, queue);
    }

    pub(crate) fn destroy(&mut self, srqn: u32) -> Option<SrqContext> {
        let context = self.query(srqn);
        self.queues.remove(&srqn);
        context
    }

    pub(crate) fn query(&self, srqn: u32) -> Option<SrqContext> {
        let queue = self.queues.get(&srqn)?;
        let mut context = queue.context;
        context.limit = queue.limit.into();
        context.wqe_counter = queue.taken.into();
        Some(context)
    }

    /// Returns an SRQ of an XRC domain.
    pub(crate) fn of_domain(&self, srqn: u32, domain: u32) -> Option<Target> {
        let context = &self.queues.get(&srqn)?.context;
        (u32::from(context.xrcd.get()) == domain).then(|| Target {
            srqn,
            pd: context.pd.get(),
            cqn: context.offset_cqn.cqn(),
        })
    }

    /// Returns whether an SRQ of an XRC domain completes to a completion queue.
    pub(crate) fn uses_cq(&self, cqn: u32) -> bool {
        let uses =
            |context: &SrqContext| context.xrcd.get() != 0 && context.offset_cqn.cqn() == cqn;
        self.queues.values().any(|queue| uses(&queue.context))
    }

    /// Arms the event for fewer than `limit` entries.
    pub(crate) fn arm(&mut self, srqn: u32, limit: u16) -> bool {
        match self.queues.get_mut(&srqn) {
            Some(queue) => {
                queue.limit = limit;
                true
            }
            None => false,
        }
    }

    /// Takes the next entry: its index, its pieces, and the protection domain they are in.
    pub(crate) fn take(
        &mut self,
        memory: &Memory,
        events: &mut EventQueues,
        srqn: u32,
    ) -> Option<(u16, u32, Vec<Piece>)> {
        let queue = self.queues.get_mut(&srqn)?;
        let posted = memory
            .read_as::<U32>(Purpose::DoorbellRecord, queue.context.doorbell_record.get())
            .ok()?
            .get();
        let available = Low24::new(posted).get().to_be_bytes();
        let available = u16::from_be_bytes([available[2], available[3]]).wrapping_sub(queue.taken);
        if available == 0 {
            return None;
        }
        let stride = 16_usize << queue.context.log_stride_less_4.get();
        let entries = 1_u32 << queue.context.size.log_size();
        let index = u32::from(queue.next) & (entries - 1);
        let mut bytes = vec![0; stride];
        let ring = RingMemory {
            buffer: queue.context.buffer,
            offset: u64::from(queue.context.offset_cqn.page_offset()) * BASIC_BLOCK_LEN as u64,
        };
        memory
            .ring_read(
                Purpose::ReceiveWqe,
                ring,
                u64::from(index) * stride as u64,
                &mut bytes,
            )
            .ok()?;
        let (link, pieces) = NextSegment::read_from_prefix(&bytes).ok()?;
        // Software keeps entries in a list and frees them in any order, so the successor is in the
        // entry, not behind it (Linux `hw/mlx4/srq.c`, `mlx4_ib_free_srq_wqe`).
        queue.next = link.next.get();
        queue.taken = queue.taken.wrapping_add(1);
        if queue.limit != 0 && available - 1 < queue.limit {
            // One event an arming, as the verb has it: software arms again by ARM_SRQ (Linux
            // `hw/mlx4/srq.c`, `mlx4_ib_modify_srq`).
            queue.limit = 0;
            events.report_number(memory, EventType::SRQ_LIMIT, srqn);
        }
        let taken = u16::try_from(index).unwrap_or(0);
        Some((taken, queue.context.pd.get(), receive_pieces(pieces)))
    }
}

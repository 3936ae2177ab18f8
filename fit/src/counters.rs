//! Counters of FIT, by LegoOS's names where it has them.

use metrics::Histogram;

/// Kinds of calls that are counted one by one; higher numbers are counted together in the last.
pub const KINDS: usize = 64;

/// Counters of one connection.
#[derive(Debug, Clone)]
pub struct LinkCounters {
    /// Calls made (LegoOS `nr_ib_send_reply`).
    pub nr_ib_send_reply: u64,
    /// Messages sent without waiting for an answer: replies and one-way messages (LegoOS
    /// `nr_ib_send`).
    pub nr_ib_send: u64,
    /// One-way messages sent.
    pub nr_one_way: u64,
    /// One-way messages of the peer that a handler has taken.
    pub nr_one_way_served: u64,
    /// Bytes sent: messages with their headers, RDMA WRITEs, bulk replies (LegoOS `nr_bytes_tx`).
    pub nr_bytes_tx: u64,
    /// Bytes received: messages, RDMA READs, bulk replies as the peer states them (LegoOS
    /// `nr_bytes_rx`).
    pub nr_bytes_rx: u64,
    /// RDMA READs started.
    pub nr_rdma_read: u64,
    /// RDMA WRITEs started.
    pub nr_rdma_write: u64,
    /// Doorbells rung.
    pub nr_doorbells: u64,
    /// Calls made, by kind.
    pub calls: [u64; KINDS],
    /// Requests answered, by kind.
    pub served: [u64; KINDS],
    /// Messages dropped: replies nobody waits for, completions nothing was posted for.
    pub nr_stray: u64,
    /// Operations that ran past their deadline.
    pub nr_deadline: u64,
    /// Times a task found no free slot and had to wait.
    pub nr_back_pressure: u64,
    /// From a call to its reply.
    pub call_time: Histogram,
    /// From the start of an RDMA READ to its completion.
    pub read_time: Histogram,
    /// From the start of an RDMA WRITE to its completion.
    pub write_time: Histogram,
}

impl Default for LinkCounters {
    fn default() -> Self {
        Self {
            nr_ib_send_reply: 0,
            nr_ib_send: 0,
            nr_one_way: 0,
            nr_one_way_served: 0,
            nr_bytes_tx: 0,
            nr_bytes_rx: 0,
            nr_rdma_read: 0,
            nr_rdma_write: 0,
            nr_doorbells: 0,
            calls: [0; KINDS],
            served: [0; KINDS],
            nr_stray: 0,
            nr_deadline: 0,
            nr_back_pressure: 0,
            call_time: Histogram::default(),
            read_time: Histogram::default(),
            write_time: Histogram::default(),
        }
    }
}

/// Counts one of a kind.
#[inline]
pub(crate) fn count(kinds: &mut [u64; KINDS], kind: u16) {
    match kinds.get_mut(usize::from(kind)) {
        Some(count) => *count += 1,
        None => kinds[KINDS - 1] += 1,
    }
}

/// Counters of one core.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Completions polled (LegoOS `recvcq[i]`, and the send side's).
    pub nr_cqe: u64,
    /// Completions for queue pairs that no connection has, or that the device reported nonsense
    /// about.
    pub nr_stray_cqe: u64,
    /// Times the core waited for an interrupt.
    pub nr_interrupt_waits: u64,
}

//! The counters of M.

/// Counters and gauges, named in the manner of LegoOS's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Promises asked for.
    pub handle_p2m_reserve: u64,
    /// Answers to requests for chunks.
    pub handle_p2m_lend: u64,
    /// Answers to requests that return chunks.
    pub handle_p2m_return: u64,
    /// Questions for how much memory there is.
    pub handle_p2m_capacity: u64,
    /// Requests that could not be decoded, ask for no chunk, or return what is not lent.
    pub nr_bad_requests: u64,
    /// Requests refused for lack of memory.
    pub nr_enomem: u64,
    /// Requests that are to come again, because too many wait already.
    pub nr_eagain: u64,
    /// Extents zeroed after a borrower had them.
    pub nr_extents_zeroed: u64,
    /// Chunks in use or for use.
    pub nr_chunks: usize,
    /// Chunks lent now.
    pub nr_chunks_lent: usize,
    /// Chunks promised now.
    pub nr_chunks_promised: usize,
    /// The most chunks lent at once.
    pub max_chunks_lent: usize,
}

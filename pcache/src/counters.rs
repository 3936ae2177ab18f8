//! What the cache counts, by LegoOS's names where it has them.

/// Counters of a cache, summed over its sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Accesses to pages, hits included.
    pub nr_pgfault: u64,
    /// Accesses that found their page in a line.
    pub nr_pcache_hit: u64,
    /// Accesses that waited for a fill which another access had started.
    pub nr_pcache_fill_coalesced: u64,
    /// Pages that started as zeros, without a message.
    pub nr_pcache_fill_zerofill: u64,
    /// Pages read from remote memory.
    pub nr_pcache_fill_from_memory: u64,
    /// Pages whose bytes the caller brought (files).
    pub nr_pcache_fill_from_file: u64,
    /// Accesses that found their page in a line on its way out, its write-back in flight or done.
    pub nr_pcache_fill_from_victim: u64,
    /// Fills that failed.
    pub nr_pcache_fill_failed: u64,
    /// Lines that had to be taken from another page.
    pub nr_pcache_eviction_triggered: u64,
    /// Lines taken from another page.
    pub nr_pcache_eviction_succeed: u64,
    /// Of those, lines that never had to be written back.
    pub nr_pcache_eviction_clean: u64,
    /// Of those, lines that had to be written back first.
    pub nr_pcache_eviction_dirty: u64,
    /// Times that no line of a set could be taken at once, all being in flight or pinned.
    pub nr_pcache_eviction_eagain_concurrent: u64,
    /// Write-backs finished.
    pub nr_clflush: u64,
    /// Victims that needed no write-back.
    pub nr_clflush_clean_skipped: u64,
    /// Write-backs failed.
    pub nr_clflush_fail: u64,
}

impl Counters {
    /// The counters with their names, in a fixed order.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("nr_pgfault", self.nr_pgfault),
            ("nr_pcache_hit", self.nr_pcache_hit),
            ("nr_pcache_fill_coalesced", self.nr_pcache_fill_coalesced),
            ("nr_pcache_fill_zerofill", self.nr_pcache_fill_zerofill),
            ("nr_pcache_fill_from_memory", self.nr_pcache_fill_from_memory),
            ("nr_pcache_fill_from_file", self.nr_pcache_fill_from_file),
            ("nr_pcache_fill_from_victim", self.nr_pcache_fill_from_victim),
            ("nr_pcache_fill_failed", self.nr_pcache_fill_failed),
            ("nr_pcache_eviction_triggered", self.nr_pcache_eviction_triggered),
            ("nr_pcache_eviction_succeed", self.nr_pcache_eviction_succeed),
            ("nr_pcache_eviction_clean", self.nr_pcache_eviction_clean),
            ("nr_pcache_eviction_dirty", self.nr_pcache_eviction_dirty),
            (
                "nr_pcache_eviction_eagain_concurrent",
                self.nr_pcache_eviction_eagain_concurrent,
            ),
            ("nr_clflush", self.nr_clflush),
            ("nr_clflush_clean_skipped", self.nr_clflush_clean_skipped),
            ("nr_clflush_fail", self.nr_clflush_fail),
        ]
    }

    /// Adds `other` to `self`.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            nr_pgfault,
            nr_pcache_hit,
            nr_pcache_fill_coalesced,
            nr_pcache_fill_zerofill,
            nr_pcache_fill_from_memory,
            nr_pcache_fill_from_file,
            nr_pcache_fill_from_victim,
            nr_pcache_fill_failed,
            nr_pcache_eviction_triggered,
            nr_pcache_eviction_succeed,
            nr_pcache_eviction_clean,
            nr_pcache_eviction_dirty,
            nr_pcache_eviction_eagain_concurrent,
            nr_clflush,
            nr_clflush_clean_skipped,
            nr_clflush_fail,
        } = self;
        *nr_pgfault += other.nr_pgfault;
        *nr_pcache_hit += other.nr_pcache_hit;
        *nr_pcache_fill_coalesced += other.nr_pcache_fill_coalesced;
        *nr_pcache_fill_zerofill += other.nr_pcache_fill_zerofill;
        *nr_pcache_fill_from_memory += other.nr_pcache_fill_from_memory;
        *nr_pcache_fill_from_file += other.nr_pcache_fill_from_file;
        *nr_pcache_fill_from_victim += other.nr_pcache_fill_from_victim;
        *nr_pcache_fill_failed += other.nr_pcache_fill_failed;
        *nr_pcache_eviction_triggered += other.nr_pcache_eviction_triggered;
        *nr_pcache_eviction_succeed += other.nr_pcache_eviction_succeed;
        *nr_pcache_eviction_clean += other.nr_pcache_eviction_clean;
        *nr_pcache_eviction_dirty += other.nr_pcache_eviction_dirty;
        *nr_pcache_eviction_eagain_concurrent += other.nr_pcache_eviction_eagain_concurrent;
        *nr_clflush += other.nr_clflush;
        *nr_clflush_clean_skipped += other.nr_clflush_clean_skipped;
        *nr_clflush_fail += other.nr_clflush_fail;
    }
}

//! Counters of the cache, by LegoOS's names where it has them.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a cache, summed over its sets.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Returns the counters with their names, in a fixed order.
            #[must_use]
            pub fn named(&self) -> impl IntoIterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*]
            }

            /// Adds `other` to `self`.
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Faults that started the READ of their page at the first look.
    nr_pcache_miss,
    /// READs started for faults that had waited before.
    nr_pcache_miss_again,
    /// Faults that waited for a READ which something else had started.
    nr_pcache_fill_coalesced,
    /// Faults that found their page in a line that no entry mapped, often one on its way out.
    nr_pcache_fill_from_victim,
    /// Faults that found their page in a line that other entries mapped.
    nr_pcache_fill_shared,
    /// Pages that started as zeros, without a message.
    nr_pcache_fill_zerofill,
    /// Pages that started with bytes of a file.
    nr_pcache_fill_from_file,
    /// Pages copied before they were written (copy-on-write).
    nr_pcache_cow_copy,
    /// Copy-on-write pages that had no other user any more.
    nr_pcache_cow_reuse,
    /// READs that ended.
    nr_pcache_fill_from_memory,
    /// READs that failed.
    nr_pcache_fill_failed,
    /// READs started ahead of a fault.
    nr_pcache_prefetch,
    /// Pages read ahead that were used.
    nr_pcache_prefetch_hit,
    /// Pages read ahead that left unused.
    nr_pcache_prefetch_wasted,
    /// Victims chosen.
    nr_pcache_eviction_triggered,
    /// Lines that went from one slot to another.
    nr_pcache_eviction_succeed,
    /// Of those, lines that were never written back.
    nr_pcache_eviction_clean,
    /// Of those, lines that were written back first.
    nr_pcache_eviction_dirty,
    /// Times that no line of a set could be chosen, all being in flight or leaving.
    nr_pcache_eviction_eagain_concurrent,
    /// Victims copied into the victim cache.
    nr_victim_finish_insert,
    /// Faults that found their page in the victim cache.
    nr_victim_hit,
    /// Victims for which the victim cache had no room.
    nr_victim_eviction_eagain,
    /// Write-backs that ended.
    nr_clflush,
    /// Victims that needed no write-back.
    nr_clflush_clean_skipped,
    /// Write-backs that failed.
    nr_clflush_fail,
}

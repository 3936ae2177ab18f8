//! The table that maps code of P to parts of a miss. **Edit this file when code moves**; nothing
//! else knows names of P's code.
//!
//! Each counted instruction lies in a chain of frames: the function that the compiler inlined last,
//! that which it was inlined into, and so on to the function that has a symbol. A frame is written
//! `FILE FUNCTION`: the file by its path in the source tree (`rust:…` in the standard library,
//! `CRATE-VERSION/…` in another crate, `??` if unknown), then the function, of our code by its bare
//! name.
//! An instruction belongs to the group of the first rule that its innermost frame matches, else of
//! the first that the next frame matches, and so on. What no rule matches is printed by symbol.
//!
//! `cargo xtask bench miss --frames` prints the frames with their instructions and groups.

/// A part of a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// Trap and entry into the kernel.
    Trap,
    /// From the address to the decision: mappings, rights, slots, the cache's sets.
    Lookup,
    /// FIT: requests, connections, credits, membership.
    Fit,
    /// The adapter's driver: descriptors, rings, doorbells.
    Driver,
    /// From a completion queue's entry to the waiting fault.
    Completion,
    /// The page table's entry, and the way back into the program.
    Map,
    /// The victim: its choice, its unmapping, its write-back.
    Eviction,
    /// Tasks, wakers and run queues, and interrupts that are not the program's.
    Tasks,
    /// System calls but for what they do to memory.
    Calls,
    /// Copying and allocation, whoever asked for it.
    Library,
    /// Instructions that no rule matches.
    Unassigned,
}

impl Group {
    /// All groups, in the order in which they are shown.
    pub(super) const ALL: [Self; 11] = [
        Self::Trap,
        Self::Lookup,
        Self::Fit,
        Self::Driver,
        Self::Completion,
        Self::Map,
        Self::Eviction,
        Self::Tasks,
        Self::Calls,
        Self::Library,
        Self::Unassigned,
    ];

    /// Returns the group's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap and entry",
            Self::Lookup => "walk and lookup",
            Self::Fit => "FIT",
            Self::Driver => "driver",
            Self::Completion => "completion",
            Self::Map => "map and return",
            Self::Eviction => "eviction",
            Self::Tasks => "tasks",
            Self::Calls => "system calls",
            Self::Library => "library",
            Self::Unassigned => "unassigned",
        }
    }
}

/// Frames of the function that looks for completions once: its entries tell how often P looked. If
/// none is met, the instruction that waiting repeats most often stands for it.
pub(super) const LOOK: &[&str] = &["images/processor/src/wiring/hardware.rs look"];

/// Frames of functions that run once a one-sided request's completion has been found. They part
/// what is hidden behind the transfer from what follows it.
pub(super) const SEEN: &[&str] = &["pcache/src/cache.rs complete"];

/// The rules: a part of a frame, and the group. The first that matches counts.
const RULES: &[(&str, Group)] = &[
    // The way back into the program.
    ("enter_user", Group::Map),
    ("libos/src/cpu/user.rs enter", Group::Map),
    // Traps. What assembly has no line information for goes by its symbol.
    ("trap_from_user", Group::Trap),
    ("trap_common", Group::Trap),
    ("trap_stubs", Group::Trap),
    ("leave_user", Group::Trap),
    ("syscall_entry", Group::Trap),
    ("libos/src/cpu/traps.rs", Group::Trap),
    ("libos/src/cpu/user.rs", Group::Trap),
    ("libos/src/cpu/fpu.rs", Group::Trap),
    // Eviction.
    ("pcache/src/evict.rs", Group::Eviction),
    ("pcache/src/batch.rs", Group::Eviction),
    ("pcache/src/queue.rs", Group::Eviction),
    ("pcache/src/set.rs victim", Group::Eviction),
    ("pcache/src/set.rs clock", Group::Eviction),
    ("pcache/src/set.rs turn", Group::Eviction),
    ("pcache/src/set.rs may_leave", Group::Eviction),
    ("pcache/src/set.rs evictable", Group::Eviction),
    ("pcache/src/set.rs has_reserve", Group::Eviction),
    ("pcache/src/set.rs leaves", Group::Eviction),
    ("libos/src/mem/address_space.rs announce", Group::Eviction),
    ("libos/src/mem/address_space.rs changed", Group::Eviction),
    (
        "libos/src/mem/address_space.rs flush_cores",
        Group::Eviction,
    ),
    ("libos/src/mem/address_space.rs flush_own", Group::Eviction),
    ("libos/src/mem/asid.rs", Group::Eviction),
    (
        "images/processor/src/wiring/hardware.rs flush",
        Group::Eviction,
    ),
    // Mapping.
    ("pcache/src/rmap.rs", Group::Map),
    ("pcache/src/cache.rs read_ended", Group::Map),
    ("libos/src/mem/user_tables.rs", Group::Map),
    ("libos/src/mem/page_entry.rs", Group::Map),
    ("libos/src/mem/address_space.rs", Group::Map),
    // Completions, from the queue's entry up.
    (
        "images/processor/src/wiring/hardware.rs look",
        Group::Completion,
    ),
    ("fit/src/pages/mod.rs look", Group::Completion),
    ("fit/src/pages/mod.rs take", Group::Completion),
    ("drivers/mlx4/src/pages.rs take", Group::Completion),
    ("drivers/mlx4/src/pages.rs complete", Group::Completion),
    ("drivers/mlx4/src/pages.rs is_ready", Group::Completion),
    ("drivers/mlx4/src/completion.rs", Group::Completion),
    ("drivers/mlx4/src/queues.rs poll", Group::Completion),
    ("drivers/mlx4/src/queues.rs decode", Group::Completion),
    ("drivers/mlx4/src/work_queue.rs complete", Group::Completion),
    ("drivers/mlx4/hw/src/cq.rs", Group::Completion),
    ("fit/src/link/arriving.rs", Group::Completion),
    ("fit/src/node.rs poll_core", Group::Completion),
    ("fit/src/ring.rs complete", Group::Completion),
    ("end_op", Group::Completion),
    ("pcache/src/cache.rs complete", Group::Completion),
    ("fit/src/engine.rs poll", Group::Completion),
    // Driver and FIT.
    ("drivers/", Group::Driver),
    ("libos/src/mem/window.rs", Group::Driver),
    ("libos/src/mem/dma.rs", Group::Driver),
    ("libos/src/dev/pci.rs", Group::Driver),
    ("fit/src/", Group::Fit),
    ("images/processor/src/wiring/carrier.rs", Group::Fit),
    ("images/processor/src/remote.rs", Group::Fit),
    ("messages/src/", Group::Fit),
    // Tasks.
    ("async-task-", Group::Tasks),
    ("async_task::", Group::Tasks),
    ("libos/src/task/executor.rs", Group::Tasks),
    ("libos/src/task/run_queue.rs", Group::Tasks),
    ("libos/src/task/timer.rs", Group::Tasks),
    ("libos/src/task/time.rs", Group::Tasks),
    ("libos/src/cpu/interrupt", Group::Tasks),
    ("libos/src/cpu/apic.rs", Group::Tasks),
    ("core::future::poll_fn", Group::Tasks),
    ("images/processor/src/wiring/mod.rs main", Group::Tasks),
    // The rest of the fault: where the page is.
    ("images/processor/src/syscall", Group::Calls),
    ("images/processor/src/names.rs", Group::Calls),
    ("images/processor/src/", Group::Lookup),
    ("pcache/src/", Group::Lookup),
    ("metrics/src/", Group::Lookup),
    // Copying and allocation.
    ("memcpy", Group::Library),
    ("memmove", Group::Library),
    ("memset", Group::Library),
    ("libos/src/mem/heap.rs", Group::Library),
    ("talc", Group::Library),
    ("__rust_", Group::Library),
];

/// Rules for functions with a symbol that no rule above knows by any frame: generic code that the
/// compiler did not inline, so that its caller is unknown.
const ORPHANS: &[(&str, Group)] = &[
    ("alloc::collections::btree::", Group::Lookup),
    ("sha2::", Group::Fit),
    ("fit::", Group::Fit),
    ("processor::syscall", Group::Calls),
    ("processor::", Group::Lookup),
    ("rust:", Group::Library),
];

/// Returns the group of an instruction by its frames, the innermost first, and the frame that
/// decided it: for an unassigned one that of its symbol.
pub(super) fn group_of(chain: &[String]) -> (Group, &str) {
    let decides = |rules: &[(&str, Group)], frame: &str| {
        let rule = rules.iter().find(|(part, _)| frame.contains(part));
        rule.map(|&(_, group)| group)
    };
    let decided = chain
        .iter()
        .find_map(|frame| Some((decides(RULES, frame)?, &frame[..])));
    decided.unwrap_or_else(|| {
        let symbol = chain.last().map_or("??", |frame| frame);
        (
            decides(ORPHANS, symbol).unwrap_or(Group::Unassigned),
            symbol,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(frames: &[&str]) -> Vec<String> {
        frames.iter().map(|&frame| frame.to_owned()).collect()
    }

    #[test]
    fn the_innermost_frame_that_a_rule_knows_counts() {
        let inlined = [
            "rust:core/src/ptr/mod.rs write",
            "pcache/src/evict.rs start",
            "pcache/src/cache.rs attempt",
        ];
        assert_eq!(group_of(&chain(&inlined)), (Group::Eviction, inlined[1]));
        assert_eq!(group_of(&chain(&inlined[2..])).0, Group::Lookup);
        assert_eq!(group_of(&chain(&["?? trap_from_user"])).0, Group::Trap);
    }

    #[test]
    fn what_no_rule_knows_is_unassigned() {
        let frames = ["rust:core/src/fmt/mod.rs pad", "a-1.0/src/a.rs a::b"];
        assert_eq!(group_of(&chain(&frames)), (Group::Unassigned, frames[1]));
        assert_eq!(group_of(&[]), (Group::Unassigned, "??"));
    }

    #[test]
    fn generic_code_with_a_symbol_has_rules_of_its_own() {
        let inlined = [
            "rust:alloc/src/a.rs get",
            "rust:alloc/src/a.rs alloc::collections::btree::map::get",
        ];
        assert_eq!(group_of(&chain(&inlined)), (Group::Lookup, inlined[1]));
    }

    #[test]
    fn each_group_is_shown_once() {
        let mut all = Group::ALL.to_vec();
        all.dedup();
        assert!(all.is_sorted() && all.len() == Group::ALL.len());
    }
}

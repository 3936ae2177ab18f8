//! Tests that model-check shared state under loom and shuttle; `cargo xtask test` runs them.
//!
//! Everything is in `tests`, and exists under `cfg(interleave)` alone: there the locks of FIT and
//! `pcache` are shuttle's. It runs a test thousands of times, each in another order, and a test in
//! which everybody waits for ever fails: that is what a lost wake-up looks like. libos's own, on
//! what interrupts and cores share, are in `libos/src/task/run_queue.rs` and
//! `libos/src/cpu/interrupt_slot.rs`, with loom, which tries all orders.
//!
//! `docs/testing.md` tells how to run them and how to do a failing one again.
#![forbid(unsafe_code)]

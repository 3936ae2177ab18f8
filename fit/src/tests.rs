//! Two engines over a strict fake of verbs, with faults by seed.

mod cost;
mod fake;
mod faults;
mod journal;
mod limits;
#[expect(
    clippy::cast_possible_truncation,
    reason = "words of the test's own queues"
)]
mod page_cost;
mod pages;
mod returns;
mod rules;

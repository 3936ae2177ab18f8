//! Two engines over a strict fake of verbs, with faults by seed.

#[expect(
    clippy::cast_possible_truncation,
    reason = "the card's sizes are the tests' own, and small"
)]
mod cost;
#[expect(
    clippy::cast_possible_truncation,
    reason = "the fake's sizes are the tests' own, and small"
)]
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

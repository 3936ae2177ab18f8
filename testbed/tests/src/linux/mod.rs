//! Tests by Linux guests: groups of checks, a group in one set of guests, a line a check.
//!
//! * [`bring_up`]: two drivers compared by what they command. * [`group`]: what is to be checked. *
//!   [`judge`]: what the guests said of it. * [`run`]: starts the guests and prints.
//!
//! Programs that run inside the guests lie in `testbed/tests/guest`, which is `/data/guest` there
//! and in their `PATH`: `checks.sh` keeps the guests in step; the others are for scripts, as is
//! `await` of `cargo xtask linux`.

pub mod bring_up;
pub mod group;
pub mod judge;
pub mod run;

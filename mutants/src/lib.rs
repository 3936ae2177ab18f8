//! Breaks of the product, to see that a test finds each of them.
//!
//! A *mutant* is a small mistake that was made on purpose: a check left out, a step skipped. Each
//! stands in the product as one condition, [`Mutant::on`], which is the constant `false` unless
//! this crate is built with its feature `on`; so the product's code is as if the condition were
//! not there. With the feature, the environment variable [`VARIABLE`] chooses one mutant for the
//! whole process.
//!
//! `table` lists all of them: what each breaks, and the test that must find it. `cargo xtask
//! mutants` runs these tests, first with no mutant, then each with its own.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "on")]
extern crate std;

#[cfg(feature = "on")]
mod chosen;
mod table;

pub use table::{ALL, Mutant};

/// Environment variable that chooses a mutant by its name.
pub const VARIABLE: &str = "TESSERA_MUTANT";

/// Said on the standard error stream, before the name, when the chosen mutant takes effect for the
/// first time.
pub const REACHED: &str = "mutant reached: ";

/// A mutant with its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Switch in the product.
    pub mutant: Mutant,
    /// Name, as the switch is called.
    pub name: &'static str,
    /// The mistake, in a sentence.
    pub breaks: &'static str,
    /// Test that must find it.
    pub found_by: Test,
}

/// A test, as cargo and its test programs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    /// Package that the test is of.
    pub package: &'static str,
    /// Test program, by its file; `lib` for the tests beside the code.
    pub program: &'static str,
    /// Full name within the program.
    pub name: &'static str,
}

impl Mutant {
    /// Returns whether the mutant is chosen: never in a build without the feature `on`.
    #[cfg(not(feature = "on"))]
    #[inline(always)]
    #[must_use]
    pub const fn on(self) -> bool {
        false
    }
}

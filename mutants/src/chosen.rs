//! The choice of a mutant, in builds that have one.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{ALL, Entry, Mutant, REACHED, VARIABLE};

static CHOSEN: OnceLock<Option<&'static Entry>> = OnceLock::new();
static SAID: AtomicBool = AtomicBool::new(false);

impl Mutant {
    /// Returns whether the mutant is chosen by the environment variable [`VARIABLE`].
    ///
    /// # Panics
    ///
    /// When the variable names no mutant.
    #[must_use]
    pub fn on(self) -> bool {
        let chosen = CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            let entry = ALL.iter().find(|entry| entry.name == name);
            Some(entry.unwrap_or_else(|| panic!("{VARIABLE}={name} is no mutant")))
        });
        let Some(entry) = chosen.filter(|entry| entry.mutant == self) else {
            return false;
        };
        if !SAID.swap(true, Ordering::Relaxed) {
            // Past the capture of tests, so that whoever runs them sees it in any case.
            let _ = writeln!(std::io::stderr(), "{REACHED}{}", entry.name);
        }
        true
    }
}

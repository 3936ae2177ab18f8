//! The function's interrupt pin, for software that does not enable MSI-X.
//!
//! ```text
//!   armed EQ gets an event ──► pending ──┐
//!   clear-interrupt register ──► clears  ├──► level ──► Host::set_pin
//!   MSI-X off, INTx not disabled ────────┘
//! ```
//!
//! Source: Linux `mlx4/eq.c` (`mlx4_interrupt`, `eq_table.clr_int`, `clr_mask`), PCI 3.0, 6.2.2 and
//! 6.2.3.

use std::cell::Cell;

/// The pin as the clear-interrupt register and QUERY_ADAPTER number it.
pub(crate) const PIN: u8 = 12;

/// The pin's state.
#[derive(Debug, Default)]
pub(crate) struct Pin {
    pending: Cell<bool>,
    level: Cell<bool>,
    /// MSI-X messages take its place.
    messages: Cell<bool>,
    disabled: Cell<bool>,
}

impl Pin {
    /// Returns whether interrupts are MSI-X messages.
    pub(crate) fn has_messages(&self) -> bool {
        self.messages.get()
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.get()
    }

    /// Asks for an interrupt, or no longer. Returns the new level if it changes by that.
    pub(crate) fn set_pending(&self, pending: bool) -> Option<bool> {
        self.pending.set(pending);
        self.update()
    }

    /// Follows configuration space: MSI-X enable and INTx disable. Returns the new level if it
    /// changes by that.
    pub(crate) fn configure(&self, messages: bool, disabled: bool) -> Option<bool> {
        self.messages.set(messages);
        self.disabled.set(disabled);
        self.update()
    }

    fn update(&self) -> Option<bool> {
        let level = self.pending.get() && !self.messages.get() && !self.disabled.get();
        (self.level.replace(level) != level).then_some(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_what_is_pending_unless_it_is_turned_off() {
        let pin = Pin::default();
        assert_eq!(pin.set_pending(true), Some(true));
        assert_eq!(pin.set_pending(true), None);
        assert_eq!(pin.configure(false, true), Some(false));
        assert_eq!(pin.configure(false, false), Some(true));
        assert_eq!(pin.configure(true, false), Some(false));
        assert_eq!(pin.set_pending(false), None);
        assert!(pin.has_messages() && !pin.is_pending());
    }
}

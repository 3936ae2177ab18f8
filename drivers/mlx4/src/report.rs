//! Facts about a card, as lines of the log for those who do not have it: `card`, a kind, and
//! fields, parted by tabs. `cargo xtask card-report` collects them.
//!
//! They are written at the level `debug`: mailboxes that describe the card, each command with its
//! end and time, and each event.

use core::fmt;

use hal::Duration;
use mlx4_hw::command::{CmdStatus, Opcode};

/// Bytes of a row.
const ROW: usize = 32;

/// Writes a mailbox that describes the card, a row a line; rows of zeros are left out.
pub(crate) fn mailbox(name: &str, bytes: &[u8]) {
    for (at, row) in (0..).step_by(ROW).zip(bytes.chunks(ROW)) {
        if row.iter().any(|byte| *byte != 0) {
            log::debug!("card\tmailbox\t{name}\t{at:#05x}\t{}", Hex(row));
        }
    }
}

/// Writes a command's end.
pub(crate) fn command(
    opcode: Opcode,
    op_modifier: u8,
    in_modifier: u32,
    status: CmdStatus,
    took: Duration,
) {
    let micros = took.as_micros();
    log::debug!("card\tcommand\t{opcode}\t{op_modifier:#x}\t{in_modifier:#x}\t{status}\t{micros}");
}

/// Writes an event's entry.
pub(crate) fn event(name: impl fmt::Display, entry: &[u8]) {
    log::debug!("card\tevent\t{name}\t{}", Hex(entry));
}

/// Bytes as hexadecimal digits, with a space between dwords.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if index > 0 && index.is_multiple_of(4) {
                f.write_str(" ")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn bytes_are_parted_by_dwords() {
        assert_eq!(Hex(&[0, 1, 2, 0xff, 0x10]).to_string(), "000102ff 10");
        assert_eq!(Hex(&[]).to_string(), "");
    }
}

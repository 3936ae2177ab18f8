//! The character devices that P has of its own, beside the console.

use crate::terminal::Name;
use crate::terminal::pty::PTMX;

/// A device of `/dev`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    /// Always at its end.
    Null,
    /// Zeros without end.
    Zero,
    /// Zeros without end, and no room for what is written.
    Full,
    /// The terminal that controls the caller's session.
    Tty,
    /// The console, if it is a terminal.
    Console,
    /// Makes pseudo-terminals.
    Ptmx,
    /// A pseudo-terminal.
    Pty(u32),
    /// Bytes no one can guess: `/dev/random` and `/dev/urandom`, which do the same here.
    Random,
}

impl Device {
    /// The device that a path names.
    pub(crate) fn named(path: &[u8]) -> Option<Self> {
        match path {
            b"/dev/null" => Some(Self::Null),
            b"/dev/zero" => Some(Self::Zero),
            b"/dev/full" => Some(Self::Full),
            b"/dev/random" | b"/dev/urandom" => Some(Self::Random),
            b"/dev/tty" => Some(Self::Tty),
            b"/dev/console" => Some(Self::Console),
            b"/dev/ptmx" | b"/dev/pts/ptmx" => Some(Self::Ptmx),
            path => {
                let number = path.strip_prefix(b"/dev/pts/")?;
                let plain =
                    number == b"0" || !number.starts_with(b"0") && number.iter().all(u8::is_ascii_digit);
                let number = core::str::from_utf8(number).ok().filter(|_| plain)?;
                number.parse().ok().map(Self::Pty)
            }
        }
    }

    /// Returns whether it is a terminal, or makes one.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Tty | Self::Console | Self::Ptmx | Self::Pty(_))
    }

    /// Its number as `st_rdev` has it (Linux `Documentation/admin-guide/devices.txt`: memory devices, major 1).
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Null => 0x103,
            Self::Zero => 0x105,
            Self::Full => 0x107,
            Self::Random => 0x109,
            Self::Tty => 0x500,
            Self::Console => Name::Console.device(),
            Self::Ptmx => PTMX,
            Self::Pty(number) => Name::Pty(number).device(),
        }
    }
}

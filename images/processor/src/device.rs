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
    /// The devices, by their names in `/dev`.
    pub(crate) const ALL: [(&[u8], Self); 8] = [
        (b"null", Self::Null),
        (b"zero", Self::Zero),
        (b"full", Self::Full),
        (b"random", Self::Random),
        (b"urandom", Self::Random),
        (b"tty", Self::Tty),
        (b"console", Self::Console),
        (b"ptmx", Self::Ptmx),
    ];

    /// Returns the device of a name in `/dev`.
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|&(_, device)| device)
    }

    /// Returns the device of a number, if it is one of memory (major 1).
    pub(crate) fn of_memory(number: u64) -> Option<Self> {
        let mut all = Self::ALL.into_iter().map(|(_, device)| device);
        all.find(|device| device.number() == number && number >> 8 == 1)
    }

    /// Returns the device that a path names.
    pub(crate) fn named(path: &[u8]) -> Option<Self> {
        let name = path.strip_prefix(b"/dev/")?;
        match name.strip_prefix(b"pts/") {
            Some(b"ptmx") => Some(Self::Ptmx),
            Some(number) => {
                let plain = number == b"0"
                    || !number.starts_with(b"0") && number.iter().all(u8::is_ascii_digit);
                let number = core::str::from_utf8(number).ok().filter(|_| plain)?;
                number.parse().ok().map(Self::Pty)
            }
            None => Self::of_name(name),
        }
    }

    /// Returns whether it is a terminal, or makes one.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Tty | Self::Console | Self::Ptmx | Self::Pty(_))
    }

    /// Its number as `st_rdev` has it (Linux `Documentation/admin-guide/devices.txt`: memory
    /// devices, major 1).
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

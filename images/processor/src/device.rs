//! The character devices that P has of its own, beside the console.

/// A device of `/dev`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    /// Always at its end.
    Null,
    /// Zeros without end.
    Zero,
    /// Zeros without end, and no room for what is written.
    Full,
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
            _ => None,
        }
    }

    /// Its number as `st_rdev` has it (Linux `Documentation/admin-guide/devices.txt`: memory devices, major 1).
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Null => 0x103,
            Self::Zero => 0x105,
            Self::Full => 0x107,
            Self::Random => 0x109,
        }
    }
}

//! The character devices that P has of its own, beside the console.

/// A device of `/dev`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    /// Always at its end.
    Null,
    /// Zeros without end.
    Zero,
    /// Zeros without end; nothing can be written.
    Full,
    /// Bytes no one can guess: `/dev/random` and `/dev/urandom`, which do the same here.
    Random,
}

impl Device {
    /// The devices, by their names in `/dev`.
    pub(crate) const ALL: [(&[u8], Self); 5] = [
        (b"null", Self::Null),
        (b"zero", Self::Zero),
        (b"full", Self::Full),
        (b"random", Self::Random),
        (b"urandom", Self::Random),
    ];

    /// Returns the device of a name in `/dev`.
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|&(_, device)| device)
    }

    /// Returns the device that a path names.
    pub(crate) fn named(path: &[u8]) -> Option<Self> {
        path.strip_prefix(b"/dev/").and_then(Self::of_name)
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

//! The program in whose name P asks S, by which S judges rights.

use crate::{Reader, Wire, WireError, Writer};

/// The most supplementary groups that a request names. Linux knows 65,536; of a caller in more, S
/// hears of the lowest-numbered ones.
pub const MAX_GROUPS: usize = 64;

bitflags::bitflags! {
    /// Linux's capabilities that matter for files (capabilities(7)).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Privileges: u8 {
        /// `CAP_CHOWN`: owners may be changed.
        const CHOWN = 1;
        /// `CAP_DAC_OVERRIDE`: permissions do not bind, but for executing what nobody may execute.
        const DAC_OVERRIDE = 2;
        /// `CAP_DAC_READ_SEARCH`: permissions to read and to search do not bind.
        const DAC_READ_SEARCH = 4;
        /// `CAP_FOWNER`: counts as the owner of every file.
        const FOWNER = 8;
        /// `CAP_FSETID`: set-user-id and set-group-id survive writes, and groups need not be one's
        /// own.
        const FSETID = 16;
        /// `CAP_MKNOD`: may make device nodes.
        const MKNOD = 32;
        /// `CAP_SYS_ADMIN`: sees and sets attributes named `trusted.` and `security.`.
        const SYS_ADMIN = 64;
    }
}
crate::wire::wire_flags!(Privileges, "the privileges of a caller");

/// Supplementary groups: little-endian numbers of 32 bits, at most [`MAX_GROUPS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups<'a>(&'a [[u8; 4]]);

impl<'a> Groups<'a> {
    /// Takes numbers as they travel.
    ///
    /// # Errors
    ///
    /// [`WireError::StringTooLong`] for more than [`MAX_GROUPS`].
    pub fn new(numbers: &'a [[u8; 4]]) -> Result<Self, WireError> {
        if numbers.len() > MAX_GROUPS {
            return Err(WireError::StringTooLong {
                len: numbers.len(),
                limit: MAX_GROUPS,
            });
        }
        Ok(Self(numbers))
    }

    /// Returns whether a group is among them.
    #[must_use]
    pub fn contains(self, group: u32) -> bool {
        self.0.contains(&group.to_le_bytes())
    }
}

impl<'a> Wire<'a> for Groups<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        u8::try_from(self.0.len())
            .expect("at most MAX_GROUPS")
            .put(to)?;
        to.bytes(self.0.as_flattened())
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = usize::from(u8::take(from)?);
        if count > MAX_GROUPS {
            return Err(WireError::StringTooLong {
                len: count,
                limit: MAX_GROUPS,
            });
        }
        let (numbers, _) = from.bytes(4 * count)?.as_chunks();
        Self::new(numbers)
    }
}

/// The identity of a program that has P ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The user by whom rights are judged (`fsuid`).
    pub user: u32,
    /// The group (`fsgid`).
    pub group: u32,
    /// Its effective capabilities.
    pub privileges: Privileges,
    /// Its supplementary groups.
    pub groups: Groups<'a>,
}

impl Caller<'static> {
    /// Root with all its privileges: P itself.
    pub const ROOT: Self = Self {
        user: 0,
        group: 0,
        privileges: Privileges::all(),
        groups: Groups(&[]),
    };
}

impl Caller<'_> {
    /// Returns whether a group is the caller's own.
    #[must_use]
    pub fn in_group(&self, group: u32) -> bool {
        self.group == group || self.groups.contains(group)
    }
}

impl<'a> Wire<'a> for Caller<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.user.put(to)?;
        self.group.put(to)?;
        self.privileges.put(to)?;
        self.groups.put(to)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            user: u32::take(from)?,
            group: u32::take(from)?,
            privileges: Privileges::take(from)?,
            groups: Groups::take(from)?,
        })
    }
}

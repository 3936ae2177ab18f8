//! Failures, each with the errno value that a program gets.

/// An error number of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal: $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*

            /// Returns the number's name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* _ => "unknown errno" }
            }
        }
    };
}

errnos! {
    EPERM = 1: "Operation not permitted.";
    ENOENT = 2: "No such file or directory.";
    EIO = 5: "Input/output error.";
    EEXIST = 17: "File exists.";
    ENOTDIR = 20: "Not a directory.";
    EISDIR = 21: "Is a directory.";
    EINVAL = 22: "Invalid argument.";
    EFBIG = 27: "File too large.";
    ENOSPC = 28: "No space left on device.";
    EROFS = 30: "Read-only file system.";
    EMLINK = 31: "Too many links.";
    ERANGE = 34: "Numerical result out of range.";
    ENAMETOOLONG = 36: "File name too long.";
    ENOTEMPTY = 39: "Directory not empty.";
    ENODATA = 61: "No data available.";
    EOPNOTSUPP = 95: "Operation not supported.";
    EUCLEAN = 117: "Structure needs cleaning.";
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// A request that the disk did not carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk failed at {offset:#x}")]
pub struct DiskError {
    /// Byte offset of the request.
    pub offset: u64,
}

/// The failure of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk holds no ext4 file system.
    #[error("no ext4 file system: magic number {0:#06x}")]
    NotExt4(u16),
    /// The file system or its journal has features that are not known here.
    #[error("{set} has features {bits:#x}, which are not known here")]
    Features {
        /// The set of features, by its name in Linux.
        set: &'static str,
        /// The unknown bits.
        bits: u32,
    },
    /// Metadata makes no sense.
    #[error("{what} is wrong at {at}")]
    Corrupt {
        /// The field or structure, by its name in Linux.
        what: &'static str,
        /// Its block or inode number, or the bad value.
        at: u64,
    },
    /// The request can't be met.
    #[error("{0}")]
    Errno(Errno),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Error {
    /// Returns the number that a program gets; corrupt metadata is EUCLEAN, as on Linux.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::Disk(_) => Errno::EIO,
            Self::NotExt4(_) => Errno::EINVAL,
            Self::Features { .. } => Errno::EOPNOTSUPP,
            Self::Corrupt { .. } => Errno::EUCLEAN,
            Self::Errno(errno) => errno,
        }
    }
}

/// The early end of an attempt at an operation; the attempt's changes are dropped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A block is not in memory: the operation is tried again once it is.
    Miss(u64),
    /// The operation may succeed once the running transaction has committed.
    Commit,
    /// The operation failed.
    Fail(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Fail(error.into())
    }
}

/// Result of a part of an operation.
pub(crate) type Step<T> = Result<T, Stop>;

/// Fails with [`Error::Corrupt`].
pub(crate) fn corrupt<T>(what: &'static str, at: u64) -> Step<T> {
    Err(Stop::Fail(Error::Corrupt { what, at }))
}

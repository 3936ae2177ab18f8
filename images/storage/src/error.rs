//! Errors of S.

use messages::Errno;

/// Reasons for an error reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system, or the disk below it.
    #[error(transparent)]
    Files(ext4::Error),
    /// The request itself can't be met.
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl From<ext4::Error> for Error {
    fn from(error: ext4::Error) -> Self {
        match error {
            ext4::Error::Errno(errno) => Self::Errno(Errno(errno.0)),
            error => Self::Files(error),
        }
    }
}

impl Error {
    /// Returns the error number for the program.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) => *errno,
            Self::Files(error) => Errno(error.errno().0),
        }
    }
}

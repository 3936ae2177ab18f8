//! What S can fail with.

use messages::Errno;

use crate::DiskError;

/// Why a file system can't be used, or a request not be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk holds no ext4 file system.
    #[error("no ext4 file system: magic number {0:#06x}")]
    NotExt4(u16),
    /// The superblock has a number that it can't have.
    #[error("superblock: {field} is {value}")]
    BadSuperblock {
        /// The field, by its name in Linux `struct ext4_super_block`.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The file system needs something that is not known here.
    #[error("the file system has features {0:#x}, which are not known here")]
    Features(u32),
    /// An inode or what it points to makes no sense.
    #[error("inode {inode}: {field} is {value}")]
    Corrupt {
        /// The inode.
        inode: u32,
        /// What makes no sense.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The request itself can't be met.
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl Error {
    /// What the program is told.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) => *errno,
            _ => Errno::EIO,
        }
    }
}

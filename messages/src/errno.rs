//! Errors as Linux numbers them: what a program on P gets to see.

use core::fmt;

/// A Linux errno number, 1 to 4095 (Linux `include/uapi/asm-generic/errno-base.h` and `errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The number's name, if this crate knows it.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Not allowed.
    EPERM = 1,
    /// No such file.
    ENOENT = 2,
    /// No such process.
    ESRCH = 3,
    /// The disk or the fabric failed.
    EIO = 5,
    /// A list or value is too long.
    E2BIG = 7,
    /// No such handle.
    EBADF = 9,
    /// Not now: ask again.
    EAGAIN = 11,
    /// No memory left.
    ENOMEM = 12,
    /// Not permitted.
    EACCES = 13,
    /// It is in use.
    EBUSY = 16,
    /// It is there already.
    EEXIST = 17,
    /// On another file system.
    EXDEV = 18,
    /// A path goes through something that is no folder.
    ENOTDIR = 20,
    /// A folder where a file is wanted.
    EISDIR = 21,
    /// An argument makes no sense.
    EINVAL = 22,
    /// The table of open files is full.
    ENFILE = 23,
    /// The peer has too many open files.
    EMFILE = 24,
    /// A file would be too large.
    EFBIG = 27,
    /// The disk is full.
    ENOSPC = 28,
    /// A read-only file system.
    EROFS = 30,
    /// An inode has too many names.
    EMLINK = 31,
    /// A name is too long.
    ENAMETOOLONG = 36,
    /// No such call.
    ENOSYS = 38,
    /// A directory has entries.
    ENOTEMPTY = 39,
    /// Too many symbolic links on the way.
    ELOOP = 40,
    /// No such attribute.
    ENODATA = 61,
    /// A message that makes no sense.
    EPROTO = 71,
    /// A number does not fit its field.
    EOVERFLOW = 75,
    /// Not supported.
    EOPNOTSUPP = 95,
    /// The lease was lost.
    ESTALE = 116,
    /// The file system's metadata makes no sense.
    EUCLEAN = 117,
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

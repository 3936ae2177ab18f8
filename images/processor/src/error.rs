//! Errors that end a system call, a program or a run.

use messages::Errno;

use crate::Peer;

/// The end of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// By itself, with this status.
    Code(u8),
    /// By a signal.
    Signal(u8),
}

impl Exit {
    /// The status as a shell shows it.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.wrapping_add(128),
        }
    }
}

/// Reasons why an operation did not go on. Only the first is the program's to handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The program gets this error number.
    #[error("{0}")]
    Errno(Errno),
    /// The program is over, with all its threads.
    #[error("the program ended with {0:?}")]
    Ended(Exit),
    /// The thread is over.
    #[error("the thread ended with {0:?}")]
    ThreadEnded(Exit),
    /// A page could not be brought, kept or mapped: the node cannot go on.
    #[error(transparent)]
    Cache(pcache::Error),
    /// A peer does not answer: the node cannot go on. The cause is in the log.
    #[error("lost {0}")]
    Lost(Peer),
    /// A peer answered what makes no sense: the node cannot go on.
    #[error("{peer} answered call {kind} with nonsense")]
    Nonsense {
        /// The lost peer.
        peer: Peer,
        /// The call's number.
        kind: u16,
    },
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<pcache::Error> for Error {
    fn from(error: pcache::Error) -> Self {
        Self::Cache(error)
    }
}

/// A result with this crate's error.
pub type Result<T> = core::result::Result<T, Error>;

/// Error numbers beyond those that peers answer with.
pub(crate) mod errno {
    use linux_raw_sys::errno as raw;
    use messages::Errno;

    macro_rules! numbers {
        ($($name:ident)*) => { $(pub(crate) const $name: Errno = Errno(raw::$name.cast_signed());)* };
    }
    /// The call was interrupted: it is made again unless a handler without `SA_RESTART` runs (Linux
    /// `include/linux/errno.h`). Never seen by programs.
    pub(crate) const ERESTARTSYS: Errno = Errno(512);
    /// Interrupted: it is made again whatever handler runs.
    pub(crate) const ERESTARTNOINTR: Errno = Errno(513);
    /// Interrupted like [`ERESTARTSYS`], but any handler makes it EINTR.
    pub(crate) const ERESTARTNOHAND: Errno = Errno(514);

    numbers! {
        EADDRINUSE EADDRNOTAVAIL EDEADLK EDOM ENOLCK EOVERFLOW ENFILE ENOBUFS EAFNOSUPPORT ECONNREFUSED ECONNRESET EDESTADDRREQ EINPROGRESS EISCONN EMSGSIZE
        ENETUNREACH ENOPROTOOPT ENOTCONN ENOTSOCK EPROTONOSUPPORT EPROTOTYPE ESOCKTNOSUPPORT
        ETOOMANYREFS EIO
        E2BIG EACCES EAGAIN EBADF EBUSY ECHILD EFBIG EIDRM ENOMSG ENOSPC ENOTEMPTY EXDEV EEXIST EINTR ENOEXEC EPIPE EFAULT ENXIO ENODATA EINVAL EISDIR ELOOP EMFILE ENODEV ENOENT ENOMEM ENOSYS ENOTDIR ENOTTY
        ENAMETOOLONG EOPNOTSUPP EPERM ERANGE EROFS ESPIPE ESRCH ESTALE ETIMEDOUT ETXTBSY
    }
}

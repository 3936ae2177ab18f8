//! What P asks of S: files, read-only.
//!
//! Paths are absolute byte strings of at most [`PATH_MAX`] bytes; P puts its working folder in front. Data read goes
//! by RDMA WRITE into the buffer that FIT's call carries, so [`Read`]'s reply holds only its length.

use crate::wire::{calls, wire_flags, wire_handle, wire_struct};
use crate::{Reader, Wire, WireError, Writer};

/// The longest path in bytes: a little less than Linux allows, so that each request fits one message.
pub const PATH_MAX: usize = 3968;

/// The longest name of one folder entry in bytes (Linux `NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// A path: bytes without a zero among them, at most [`PATH_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a>(&'a [u8]);

impl<'a> Path<'a> {
    /// Takes bytes as a path.
    ///
    /// # Errors
    ///
    /// [`WireError::StringTooLong`] or, for a zero byte, [`WireError::BadValue`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > PATH_MAX {
            return Err(WireError::StringTooLong {
                len: bytes.len(),
                limit: PATH_MAX,
            });
        }
        if bytes.contains(&0) {
            return Err(WireError::BadValue {
                what: "a byte of a path",
                value: 0,
            });
        }
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Wire<'a> for Path<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        u16::try_from(self.0.len()).expect("at most PATH_MAX").put(to)?;
        to.bytes(self.0)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        let len = usize::from(u16::take(from)?);
        Self::new(from.bytes(len)?)
    }
}

/// S's handle of an open file. Only the peer that opened it can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);
wire_handle!(FileId);

bitflags::bitflags! {
    /// How a file is opened.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct OpenFlags: u8 {
        /// For writing: EROFS, as there is no writing yet.
        const WRITE = 1;
        /// ENOTDIR unless it is a folder (`O_DIRECTORY`).
        const DIRECTORY = 2;
        /// ELOOP if the last component is a symbolic link (`O_NOFOLLOW`).
        const NOFOLLOW = 4;
    }
}
wire_flags!(OpenFlags, "the flags of an open");

/// Opens a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRequest<'a> {
    /// Which.
    pub path: Path<'a>,
    /// How.
    pub flags: OpenFlags,
}

impl<'a> Wire<'a> for OpenRequest<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.path.put(to)?;
        self.flags.put(to)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            path: Path::take(from)?,
            flags: OpenFlags::take(from)?,
        })
    }
}

/// Asks for a file's status by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatRequest<'a> {
    /// Which.
    pub path: Path<'a>,
    /// Whether a symbolic link at the end is followed (`stat`) or not (`lstat`).
    pub follow: bool,
}

impl<'a> Wire<'a> for StatRequest<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.path.put(to)?;
        self.follow.put(to)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            path: Path::take(from)?,
            follow: bool::take(from)?,
        })
    }
}

wire_struct! {
    /// A point of time as files carry it.
    FileTime {
        /// Seconds since 1970.
        seconds: i64,
        /// Nanoseconds of the second.
        nanos: u32,
    }
}

wire_struct! {
    /// A file's status: what Linux's `struct stat` needs.
    Stat {
        /// The inode's number.
        inode: u64,
        /// Type and permissions, as `st_mode`.
        mode: u32,
        /// Hard links.
        links: u32,
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
        /// Bytes.
        size: u64,
        /// The best size of one read.
        block_size: u32,
        /// 512-byte blocks on the disk.
        blocks: u64,
        /// Last read.
        accessed: FileTime,
        /// Last change of the contents.
        modified: FileTime,
        /// Last change of the inode.
        changed: FileTime,
        /// The device's number, when it is a device file.
        device: u64,
    }
}

wire_struct! {
    /// An open file.
    Opened {
        /// Its handle.
        file: FileId,
        /// Its status.
        stat: Stat,
    }
}

wire_struct! {
    /// Reads from a file, into the buffer that FIT's call carries.
    ReadRequest {
        /// Which.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// How many bytes at most.
        len: u32,
    }
}

wire_struct! {
    /// Reads the entries of a folder.
    GetdentsRequest {
        /// Which.
        file: FileId,
        /// 0, or the `next` of the last entry seen.
        position: u64,
        /// The most bytes of encoded entries in the reply.
        max: u32,
    }
}

wire_struct! {
    /// Names an open file.
    FileRequest {
        /// Which.
        file: FileId,
    }
}

/// One entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The inode's number.
    pub inode: u64,
    /// Where to go on reading behind this entry (`d_off`).
    pub next: u64,
    /// Its type, as `d_type` of Linux: 4 a folder, 8 a file, 10 a symbolic link.
    pub kind: u8,
    /// Its name: 1 to [`NAME_MAX`] bytes.
    pub name: &'a [u8],
}

impl<'a> Wire<'a> for Entry<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        let too_long = WireError::StringTooLong {
            len: self.name.len(),
            limit: NAME_MAX,
        };
        let len = u8::try_from(self.name.len()).map_err(|_| too_long)?;
        if to.room() < 18 + self.name.len() {
            return Err(WireError::NoRoom {
                wanted: 18 + self.name.len(),
                len: to.len() + to.room(),
            });
        }
        self.inode.put(to)?;
        self.next.put(to)?;
        self.kind.put(to)?;
        len.put(to)?;
        to.bytes(self.name)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        let (inode, next, kind) = (u64::take(from)?, u64::take(from)?, u8::take(from)?);
        let len = usize::from(u8::take(from)?);
        if len == 0 {
            return Err(WireError::BadValue {
                what: "the length of a name",
                value: 0,
            });
        }
        Ok(Self {
            inode,
            next,
            kind,
            name: from.bytes(len)?,
        })
    }
}

/// Encoded [`Entry`]s, one behind the other; none at the folder's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entries<'a>(pub &'a [u8]);

impl<'a> Entries<'a> {
    /// The entries. After a malformed one nothing follows.
    pub fn iter(self) -> impl Iterator<Item = Result<Entry<'a>, WireError>> {
        let mut left = Reader::new(self.0);
        let mut failed = false;
        core::iter::from_fn(move || {
            if failed || left.clone().finish().is_ok() {
                return None;
            }
            let entry = Entry::take(&mut left);
            failed = entry.is_err();
            Some(entry)
        })
    }
}

impl<'a> Wire<'a> for Entries<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        to.bytes(self.0)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        let entries = Self(from.rest());
        entries.iter().try_for_each(|entry| entry.map(|_| ()))?;
        Ok(entries)
    }
}

calls! {
    /// A request to S.
    StorageRequest<'a>:
    /// Opens a file or folder.
    Open = 16, "p2s_open": OpenRequest<'a> => Opened;
    /// Reads from a file into the call's buffer; the reply is how many bytes, 0 at the end of the file.
    Read = 17, "p2s_read": ReadRequest => u32;
    /// A file's status by its path.
    StatPath = 18, "p2s_stat": StatRequest<'a> => Stat;
    /// An open file's status.
    StatFile = 19, "p2s_fstat": FileRequest => Stat;
    /// The entries of a folder.
    Getdents = 20, "p2s_getdents": GetdentsRequest => Entries<'a>;
    /// Where a symbolic link points.
    Readlink = 21, "p2s_readlink": Path<'a> => Path<'a>;
    /// Closes a file.
    Close = 22, "p2s_close": FileRequest => ();
}

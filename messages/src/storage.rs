//! Calls of P to S: files.
//!
//! Paths are absolute byte strings of at most [`PATH_MAX`] bytes; P puts its working directory in
//! front. Data read goes by RDMA WRITE into the buffer that FIT's call carries, so [`Read`]'s reply
//! holds only its length; data to be written comes the same way, as does the second path of a call
//! that has two.
//!
//! A request that names a path, or changes what an open file is, names the [`Caller`] too: S judges
//! rights by Linux's rules on each component of the path, and what is made belongs to the caller.
//! S trusts P's statement of the caller.

pub use crate::caller::{Caller, Groups, MAX_GROUPS, Privileges};
use crate::wire::{calls, wire_flags, wire_handle, wire_struct};
pub use crate::xattr::{Rest, XATTR_NAME_MAX, XattrFlags, XattrName};
use crate::{Reader, Wire, WireError, Writer};

/// The longest path in bytes (Linux `PATH_MAX` without the zero at the end).
pub const PATH_MAX: usize = 4095;

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
        u16::try_from(self.0.len())
            .expect("at most PATH_MAX")
            .put(to)?;
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

impl FileId {
    /// All names, for [`Lease`]: the lease is recalled before another peer changes a name or an
    /// attribute, or may gather writes. No open file has this handle, and no file this inode.
    pub const NAMES: Self = Self(0);
}

bitflags::bitflags! {
    /// Flags of an open.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct OpenFlags: u16 {
        /// For writing; EROFS if the file system is read-only.
        const WRITE = 1;
        /// ENOTDIR unless it is a folder (`O_DIRECTORY`).
        const DIRECTORY = 2;
        /// ELOOP if the last component is a symbolic link (`O_NOFOLLOW`).
        const NOFOLLOW = 4;
        /// A regular file is made if there is none (`O_CREAT`).
        const CREATE = 8;
        /// With `CREATE`: EEXIST if there is one (`O_EXCL`).
        const EXCLUSIVE = 16;
        /// A regular file is made empty (`O_TRUNC`), which takes the right to write.
        const TRUNCATE = 32;
        /// A file without a name is made in the directory of the path (`O_TMPFILE`).
        const UNNAMED = 64;
        /// For reading.
        const READ = 128;
        /// To be executed: the right to do so is asked for, and the file can be read.
        const EXECUTE = 256;
        /// With `WRITE`: the peer would gather writes, and takes a write lease if it can be had.
        const GATHER = 512;
    }
}
wire_flags!(OpenFlags, "the flags of an open");

bitflags::bitflags! {
    /// Flags of allocating or freeing blocks of a file (`fallocate`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct AllocateFlags: u8 {
        /// The size stays (`FALLOC_FL_KEEP_SIZE`).
        const KEEP_SIZE = 1;
        /// The range's blocks are freed; the size stays (`FALLOC_FL_PUNCH_HOLE`).
        const PUNCH_HOLE = 2;
    }
}
wire_flags!(AllocateFlags, "the flags of an allocation");

bitflags::bitflags! {
    /// Flags of a rename (`renameat2`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct RenameFlags: u8 {
        /// EEXIST if the new name exists (`RENAME_NOREPLACE`).
        const NO_REPLACE = 1;
        /// Both names swap what they name (`RENAME_EXCHANGE`).
        const EXCHANGE = 2;
    }
}
wire_flags!(RenameFlags, "the flags of a rename");

bitflags::bitflags! {
    /// The fields of [`Attributes`] that are to be changed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct AttributeFlags: u8 {
        /// `mode`.
        const MODE = 1;
        /// `uid`.
        const UID = 2;
        /// `gid`.
        const GID = 4;
        /// `accessed`.
        const ACCESSED = 8;
        /// `modified`.
        const MODIFIED = 16;
        /// `accessed` and `modified` are the present: who may write may set them.
        const PRESENT = 32;
    }
}
wire_flags!(AttributeFlags, "the attributes to change");

/// Defines a request that begins with its caller, followed by its other fields in order.
macro_rules! caller_request {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name<'a> {
            /// The program that asks.
            pub caller: Caller<'a>,
            $($(#[$fdoc])* pub $field: $ty,)*
        }
        impl<'a> Wire<'a> for $name<'a> {
            fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
                self.caller.put(to)?;
                $(self.$field.put(to)?;)*
                Ok(())
            }
            fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
                Ok(Self { caller: Caller::take(from)?, $($field: Wire::take(from)?,)* })
            }
        }
    };
}

caller_request! {
    /// Opens a file or folder.
    OpenRequest {
        /// The file's path.
        path: Path<'a>,
        /// Flags of the open.
        flags: OpenFlags,
        /// Permissions of a file that is made.
        mode: u32,
    }
}

caller_request! {
    /// Names a path.
    PathRequest {
        /// The path.
        path: Path<'a>,
    }
}

caller_request! {
    /// Asks for a file's status by its path.
    StatRequest {
        /// The path.
        path: Path<'a>,
        /// Whether to follow a symbolic link at the end (`stat`) or not (`lstat`).
        follow: bool,
    }
}

caller_request! {
    /// Makes a directory or a node.
    MakeRequest {
        /// The path.
        path: Path<'a>,
        /// Type and permissions, as `st_mode`.
        mode: u32,
        /// The device's number, if it is a device node.
        device: u64,
    }
}

caller_request! {
    /// Gives a file another name; the call's bulk is the new path.
    LinkRequest {
        /// The path.
        path: Path<'a>,
        /// Whether to follow a symbolic link at the end of the old path.
        follow: bool,
    }
}

caller_request! {
    /// Renames a file; the call's bulk is the new path.
    RenameRequest {
        /// The path.
        path: Path<'a>,
        /// Flags of the rename.
        flags: RenameFlags,
    }
}

caller_request! {
    /// Removes a name.
    RemoveRequest {
        /// The path.
        path: Path<'a>,
        /// Whether to remove a directory (`rmdir`) or anything else (`unlink`).
        directory: bool,
    }
}

caller_request! {
    /// Changes attributes of the file at a path.
    SetPathRequest {
        /// The path.
        path: Path<'a>,
        /// Whether to follow a symbolic link at the end.
        follow: bool,
        /// Attributes to change.
        set: Attributes,
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
        /// Generation of the peer's lease of the file; 0 if it gets none.
        lease: u64,
        /// Whether it is a write lease.
        writes: bool,
        /// Blocks of the file that may wait in the peer; 0 without a write lease.
        blocks: u32,
        /// Its status.
        stat: Stat,
    }
}

wire_struct! {
    /// A lease of a file.
    Leased {
        /// Its generation; 0 if the peer gets none.
        lease: u64,
        /// Blocks of the file that may wait in the peer; 0 without a write lease.
        blocks: u32,
        /// The file's status, read after the lease was granted.
        stat: Stat,
    }
}

wire_struct! {
    /// Reads from a file, into the buffer that FIT's call carries.
    ReadRequest {
        /// The open file.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// Number of bytes at most.
        len: u32,
    }
}

wire_struct! {
    /// Writes the call's bulk to a file.
    WriteRequest {
        /// The open file.
        file: FileId,
        /// From which byte on; not used with `append`.
        offset: u64,
        /// Whether the bytes go to the file's end, wherever that is then (`O_APPEND`).
        append: bool,
    }
}

wire_struct! {
    /// Brings writes that were gathered under a write lease: the call's bulk are [`Piece`]s.
    ///
    /// [`Piece`]: crate::pieces::Piece
    FlushRequest {
        /// The open file.
        file: FileId,
        /// Generation of the lease; ESTALE if the peer has lost it.
        lease: u64,
        /// Milliseconds since the program's last write of them.
        age_ms: u32,
        /// Whether the file is made durable, too.
        durable: bool,
    }
}

wire_struct! {
    /// The result of bringing writes.
    Flushed {
        /// Blocks of the file that may wait in the peer from now on, those among them that wait
        /// already.
        blocks: u32,
    }
}

wire_struct! {
    /// The result of a write.
    Written {
        /// The offset of the first byte written.
        offset: u64,
        /// Bytes written: fewer than given only if the disk is full.
        len: u32,
    }
}

wire_struct! {
    /// Sets a file's size.
    TruncateRequest {
        /// The open file.
        file: FileId,
        /// Its new size.
        size: u64,
    }
}

wire_struct! {
    /// Allocates or frees a range of a file.
    AllocateRequest {
        /// The open file.
        file: FileId,
        /// Flags of the allocation.
        flags: AllocateFlags,
        /// The range's first byte.
        offset: u64,
        /// The range's length.
        len: u64,
    }
}

wire_struct! {
    /// Attributes of a file to be changed: those that `which` names.
    Attributes {
        /// The fields that count.
        which: AttributeFlags,
        /// Permissions.
        mode: u32,
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
        /// Last read.
        accessed: FileTime,
        /// Last change of the contents.
        modified: FileTime,
    }
}

caller_request! {
    /// Asks for the names of an open file's extended attributes.
    ListXattrRequest {
        /// The open file.
        file: FileId,
    }
}

caller_request! {
    /// Names an extended attribute of an open file.
    XattrRequest {
        /// The open file.
        file: FileId,
        /// The attribute.
        name: XattrName<'a>,
    }
}

caller_request! {
    /// Sets an extended attribute of an open file; the call's bulk is its value.
    SetXattrRequest {
        /// The open file.
        file: FileId,
        /// Flags of the setting.
        flags: XattrFlags,
        /// The attribute.
        name: XattrName<'a>,
    }
}

caller_request! {
    /// Gives an open file a name; the call's bulk is the path.
    LinkFileRequest {
        /// The open file.
        file: FileId,
    }
}

caller_request! {
    /// Changes attributes of an open file.
    SetFileRequest {
        /// The open file.
        file: FileId,
        /// Attributes to change.
        set: Attributes,
    }
}

wire_struct! {
    /// Sizes of the file system.
    Statfs {
        /// Bytes of a block.
        block_size: u32,
        /// Blocks.
        blocks: u64,
        /// Free blocks.
        free: u64,
        /// Free blocks for users other than root.
        available: u64,
        /// Inodes.
        inodes: u64,
        /// Free inodes.
        free_inodes: u64,
        /// The file system's identifier.
        id: u64,
        /// Whether the file system is read-only.
        read_only: bool,
    }
}

wire_struct! {
    /// Reads the entries of a folder.
    GetdentsRequest {
        /// The open file.
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
        /// The open file.
        file: FileId,
    }
}

/// One entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The inode's number.
    pub inode: u64,
    /// Position to go on reading from behind this entry (`d_off`).
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
    /// Reads from a file into the call's buffer; the reply is how many bytes, 0 at the end of the
    /// file.
    Read = 17, "p2s_read": ReadRequest => u32;
    /// A file's status by its path.
    StatPath = 18, "p2s_stat": StatRequest<'a> => Stat;
    /// An open file's status.
    StatFile = 19, "p2s_fstat": FileRequest => Stat;
    /// The entries of a folder.
    Getdents = 20, "p2s_getdents": GetdentsRequest => Entries<'a>;
    /// Reads the target of a symbolic link.
    Readlink = 21, "p2s_readlink": PathRequest<'a> => Path<'a>;
    /// Closes a file.
    Close = 22, "p2s_close": FileRequest => ();
    /// Writes the call's bulk to a file.
    Write = 23, "p2s_write": WriteRequest => Written;
    /// Sets a file's size.
    Truncate = 24, "p2s_truncate": TruncateRequest => ();
    /// Allocates or frees a range of a file.
    Allocate = 25, "p2s_fallocate": AllocateRequest => ();
    /// Makes a file's data and attributes durable.
    Fsync = 26, "p2s_fsync": FileRequest => ();
    /// Makes everything durable.
    Sync = 27, "p2s_sync": () => ();
    /// Makes a directory or a node.
    Make = 28, "p2s_mknod": MakeRequest<'a> => ();
    /// Makes a symbolic link; the call's bulk is its target.
    Symlink = 29, "p2s_symlink": PathRequest<'a> => ();
    /// Gives a file another name.
    Link = 30, "p2s_link": LinkRequest<'a> => ();
    /// Renames a file; the reply is the inode that the new name had before, or 0.
    Rename = 31, "p2s_rename": RenameRequest<'a> => u64;
    /// Removes a name; the reply is the inode that it had.
    Remove = 32, "p2s_unlink": RemoveRequest<'a> => u64;
    /// Changes attributes of the file at a path.
    SetPath = 33, "p2s_setattr": SetPathRequest<'a> => ();
    /// Changes attributes of an open file.
    SetFile = 34, "p2s_fsetattr": SetFileRequest<'a> => ();
    /// Sizes of the file system.
    StatFs = 35, "p2s_statfs": () => Statfs;
    /// Gives an open file, which may have none, a name; the call's bulk is the path.
    LinkFile = 36, "p2s_flink": LinkFileRequest<'a> => ();
    /// The value of an extended attribute.
    GetXattr = 37, "p2s_getxattr": XattrRequest<'a> => Rest<'a>;
    /// Names of extended attributes, each with a zero behind it.
    ListXattr = 38, "p2s_listxattr": ListXattrRequest<'a> => Rest<'a>;
    /// Sets an extended attribute; the call's bulk is its value.
    SetXattr = 39, "p2s_setxattr": SetXattrRequest<'a> => ();
    /// Removes an extended attribute.
    RemoveXattr = 40, "p2s_removexattr": XattrRequest<'a> => ();
    /// Grants or extends the peer's read lease of an open file, or of all names
    /// ([`FileId::NAMES`]).
    Lease = 41, "p2s_lease": FileRequest => Leased;
    /// Grants or extends the peer's write lease of an open file; the lease is 0 if it gets none.
    WriteLease = 43, "p2s_write_lease": FileRequest => Leased;
    /// Brings writes that were gathered under a write lease. It also tells of such writes of this
    /// open file that came by a recall and could not be carried out.
    Flush = 44, "p2s_flush": FlushRequest => Flushed;
}

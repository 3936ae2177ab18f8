//! A journaled ext4, read and written, that Linux and e2fsprogs agree with.
//!
//! [`Ext4`] runs over any [`Disk`]. Its logic is pure: an operation on metadata is a plain function
//! over the blocks in memory (`op`); when one is missing the operation's changes are dropped, the
//! block is read while nothing is locked, and the operation starts again. So no task holds a lock
//! while the disk works, but for that of the file it reads or writes, and an operation that fails
//! changed nothing.
//!
//! ```text
//!  fs, file, attributes    operations for tasks: they wait for the disk
//!  names, orphan, xattr    operations on metadata
//!  dir, extents, inode     structures on the disk
//!  alloc_*, group          bitmaps and group descriptors
//!  promise                 blocks promised to writers that bring their data later
//!  op, store               changes of one operation; layers of blocks in memory
//!  commit, journal         transactions and their log (jbd2)
//! ```
//!
//! # Guarantees
//!
//! * An operation's changes of metadata are on the disk wholly or not at all; after `fsync` or
//!   `sync` they are, and so is the data written before.
//! * File data reaches the disk before the metadata that points at it (Linux `data=ordered`). Data
//!   overwritten in place is not atomic, nor is the rest of the last block that a file is cut in.
//! * Freed blocks are reused only after the transaction that freed them has committed.
//! * What is read from the disk is checked before it becomes an index, a length or a bound of a
//!   loop; corrupt metadata is an error, never a panic.
//!
//! * A task may be dropped at any time: its operation is then done, not done, or (a long write, cut
//!   or allocation) done in part. A deletion that was given up is finished by the next mount.
//!
//! # What is left out
//!
//! Files mapped by indirect blocks (ext2, ext3), inline data, encryption, case folding, quotas,
//! bigalloc, `meta_bg`, large directories of more than two levels, external journals, fast commits.
//! Access control lists and extended attributes in inodes of their own (`ea_inode`). Access rights
//! are the caller's affair. Access times are changed on request only. Blocks reserved for root are
//! not held back. Data is not cached. A loss of power must not tear a write of one block (so disks
//! of 512-byte sectors rely on what Linux relies on for the superblock and commit blocks, too).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod alloc_blocks;
mod alloc_inodes;
mod attributes;
mod bytes;
mod commit;
mod crc;
mod dir;
mod disk;
mod error;
mod extents;
mod file;
mod fs;
mod group;
mod hash;
mod inode;
mod journal;
mod locks;
mod mount;
mod names;
mod op;
mod orphan;
mod promise;
mod ranges;
mod space;
mod store;
mod superblock;
mod xattr;

pub use attributes::{Attributes, NewNode, Statfs};
pub use dir::{DirEntry, NAME_MAX};
pub use disk::Disk;
pub use error::{DiskError, Errno, Error};
pub use fs::Ext4;
pub use inode::{ROOT, Stat, Time};
pub use mount::Options;
pub use names::Rename;
pub use promise::MAX_PROMISED;
pub use space::Allocation;
pub use xattr::{Namespace, SetMode, Xattr};

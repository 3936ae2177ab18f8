//! A file system that is mounted for a test, and judged by e2fsck behind it.

use ext4::{Ext4, NewNode, Options, Time};

use super::disk::MemDisk;
use super::tools::e2fsck;
use super::{at, block_on};

pub(crate) fn options(read_only: bool) -> Options {
    Options {
        read_only,
        now: at(0),
    }
}

/// Mounts a disk to be written.
pub(crate) fn mount(disk: &MemDisk) -> Ext4<MemDisk> {
    block_on(Ext4::mount(disk.clone(), options(false))).expect("mounts")
}

/// A file or folder of root.
pub(crate) fn node(now: Time) -> NewNode {
    NewNode {
        mode: 0o644,
        uid: 0,
        gid: 0,
        now,
    }
}

/// Unmounts; e2fsck must find nothing. Returns the disk's image.
pub(crate) fn finish(fs: Ext4<MemDisk>, disk: &MemDisk) -> Vec<u8> {
    block_on(fs.unmount(at(9))).expect("unmounts");
    let image = disk.image();
    if let Err(text) = e2fsck(&image) {
        panic!("{text}");
    }
    image
}

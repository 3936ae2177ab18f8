//! Structures that programs read, as bytes. Layouts: Linux `arch/x86/include/uapi/asm/stat.h`,
//! `include/uapi/linux/stat.h`, `include/linux/dirent.h`.

use alloc::vec::Vec;

use messages::storage::{Entry, FileTime, Stat};

/// Bytes of `struct stat`.
pub(super) const STAT_SIZE: usize = 144;
/// Bytes of `struct statx`.
pub(super) const STATX_SIZE: usize = 256;
/// `STATX_BASIC_STATS`.
const STATX_BASIC: u32 = 0x7ff;
/// Returns the number of the file system that an inode is of: S's disk, this node's own files, or
/// files without data.
pub(crate) fn device_of(inode: u64) -> u64 {
    match inode {
        crate::pseudo::FIRST_INODE.. => 0x18,
        crate::tmpfs::FIRST_INODE.. => 0x17,
        _ => 0xfe00,
    }
}

/// Returns the major and the minor part of a device's number.
pub(crate) fn device_parts(device: u64) -> [u32; 2] {
    let word = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    [
        word(device >> 8 & 0xfff),
        word(device & 0xff | device >> 12 & 0xfff_ff00),
    ]
}

/// Bytes laid out field by field, little-endian.
#[derive(Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The bytes, with zeros up to `len`.
    pub(super) fn done(mut self, len: usize) -> Vec<u8> {
        self.0.resize(len, 0);
        self.0
    }
}

/// `struct stat`.
pub(super) fn stat(s: &Stat) -> Vec<u8> {
    let mut bytes = Bytes::default()
        .u64(device_of(s.inode))
        .u64(s.inode)
        .u64(u64::from(s.links))
        .u32(s.mode)
        .u32(s.uid)
        .u32(s.gid)
        .u32(0)
        .u64(s.device)
        .u64(s.size)
        .u64(u64::from(s.block_size))
        .u64(s.blocks);
    for time in [s.accessed, s.modified, s.changed] {
        bytes = bytes
            .u64(time.seconds.cast_unsigned())
            .u64(u64::from(time.nanos));
    }
    bytes.done(STAT_SIZE)
}

/// `struct statx`.
pub(super) fn statx(s: &Stat) -> Vec<u8> {
    let mode = u16::try_from(s.mode & 0xffff).unwrap_or(0);
    let mut bytes = Bytes::default()
        .u32(STATX_BASIC)
        .u32(s.block_size)
        .u64(0)
        .u32(s.links)
        .u32(s.uid)
        .u32(s.gid)
        .u16(mode)
        .u16(0)
        .u64(s.inode)
        .u64(s.size)
        .u64(s.blocks)
        .u64(0);
    let birth = FileTime {
        seconds: 0,
        nanos: 0,
    };
    // Times: access, birth (unknown), change, modification.
    for time in [s.accessed, birth, s.changed, s.modified] {
        bytes = bytes
            .u64(time.seconds.cast_unsigned())
            .u32(time.nanos)
            .u32(0);
    }
    for part in device_parts(s.device)
        .into_iter()
        .chain(device_parts(device_of(s.inode)))
    {
        bytes = bytes.u32(part);
    }
    bytes.done(STATX_SIZE)
}

/// `struct linux_dirent64`.
pub(super) fn dirent(entry: &Entry<'_>) -> Vec<u8> {
    let len = (19 + entry.name.len() + 1).next_multiple_of(8);
    let record = u16::try_from(len).expect("a name has at most 255 bytes");
    Bytes::default()
        .u64(entry.inode)
        .u64(entry.next)
        .u16(record)
        .bytes(&[entry.kind])
        .bytes(entry.name)
        .done(len)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn stat_is_as_linux_lays_it_out() {
        // The fields' offsets as <asm/stat.h> of x86-64 has them, against linux-raw-sys' own
        // structure.
        use core::mem::offset_of;
        use linux_raw_sys::general::stat as raw;
        let meta = std::fs::metadata("/").unwrap();
        let time = FileTime {
            seconds: meta.mtime(),
            nanos: u32::try_from(meta.mtime_nsec()).unwrap(),
        };
        let s = Stat {
            inode: meta.ino(),
            mode: meta.mode(),
            links: u32::try_from(meta.nlink()).unwrap(),
            uid: 3,
            gid: 4,
            size: meta.size(),
            block_size: 4096,
            blocks: meta.blocks(),
            accessed: time,
            modified: time,
            changed: time,
            device: 9,
        };
        let bytes = stat(&s);
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(bytes.len(), size_of::<raw>());
        assert_eq!(u64_at(offset_of!(raw, st_ino)), meta.ino());
        assert_eq!(
            u64_at(offset_of!(raw, st_mode)),
            u64::from(meta.mode()) | 3 << 32
        );
        assert_eq!(u64_at(offset_of!(raw, st_rdev)), 9);
        assert_eq!(u64_at(offset_of!(raw, st_size)), meta.size());
        assert_eq!(u64_at(offset_of!(raw, st_blocks)), meta.blocks());
        assert_eq!(
            u64_at(offset_of!(raw, st_mtime)),
            meta.mtime().cast_unsigned()
        );
        let x = statx(&s);
        use linux_raw_sys::general::statx as rawx;
        assert_eq!(x.len(), size_of::<rawx>());
        assert_eq!(
            x[offset_of!(rawx, stx_ino)..][..8],
            meta.ino().to_le_bytes()
        );
        assert_eq!(
            x[offset_of!(rawx, stx_mode)..][..2],
            meta.mode().to_le_bytes()[..2]
        );
        assert_eq!(
            x[offset_of!(rawx, stx_mtime)..][..8],
            meta.mtime().to_le_bytes()
        );
    }
}

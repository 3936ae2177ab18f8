//! Between the file system's terms and those of messages.

use ext4::Time;
use messages::storage::{FileTime, Stat};

pub(crate) const TYPE_MASK: u16 = 0xf000;
pub(crate) const CHARACTER: u16 = 0x2000;
pub(crate) const DIRECTORY: u16 = 0x4000;
pub(crate) const BLOCK_DEVICE: u16 = 0x6000;
pub(crate) const REGULAR: u16 = 0x8000;
pub(crate) const SYMLINK: u16 = 0xa000;

pub(crate) fn is(stat: &ext4::Stat, kind: u16) -> bool {
    stat.mode & TYPE_MASK == kind
}

pub(crate) fn time(time: Time) -> FileTime {
    FileTime {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}

/// Returns a time that a peer gave; nanoseconds are less than a second's.
pub(crate) fn file_time(time: FileTime) -> Time {
    Time {
        seconds: time.seconds,
        nanos: time.nanos.min(999_999_999),
    }
}

/// Returns what `stat` shows.
pub(crate) fn stat(stat: &ext4::Stat, block_size: u32) -> Stat {
    Stat {
        inode: stat.inode.into(),
        mode: stat.mode.into(),
        links: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        block_size,
        blocks: stat.blocks,
        accessed: time(stat.accessed),
        modified: time(stat.modified),
        changed: time(stat.changed),
        device: device(stat.device),
    }
}

/// Returns `st_rdev` of the two words of a device node: its number in the old and the new encoding.
fn device([old, new]: [u32; 2]) -> u64 {
    let (major, minor) = match old {
        0 => ((new & 0xf_ff00) >> 8, new & 0xff | new >> 12 & 0xf_ff00),
        old => (old >> 8 & 0xff, old & 0xff),
    };
    let (major, minor) = (u64::from(major), u64::from(minor));
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

/// Returns the two words for `st_rdev`: the old encoding where major and minor number fit a byte
/// each, as Linux does.
pub(crate) fn device_words(device: u64) -> Option<[u32; 2]> {
    let major = device >> 8 & 0xfff | device >> 32 & !0xfff;
    let minor = device & 0xff | device >> 12 & 0xffff_ff00;
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    if major < 256 && minor < 256 {
        Some([major << 8 | minor, 0])
    } else if major < 1 << 12 && minor < 1 << 20 {
        Some([0, minor & 0xff | major << 8 | (minor & !0xff) << 12])
    } else {
        None
    }
}

/// Returns `d_type` for a type as directories store it.
pub(crate) fn entry_type(stored: u8) -> u8 {
    const TYPES: [u8; 8] = [0, 8, 4, 2, 6, 1, 12, 10];
    TYPES.get(usize::from(stored)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_both_encodings() {
        // (major, minor) as `makedev` of glibc puts them.
        for (major, minor) in [
            (1_u64, 3_u64),
            (8, 255),
            (8, 256),
            (259, 70_000),
            (4095, 0xf_ffff),
        ] {
            let number = minor & 0xff
                | (major & 0xfff) << 8
                | (minor & !0xff) << 12
                | (major & !0xfff) << 32;
            assert_eq!(
                device(device_words(number).unwrap()),
                number,
                "{major}:{minor}"
            );
        }
        assert_eq!(device_words(1 << 50), None);
        assert_eq!(device([0, 0]), 0);
    }
}

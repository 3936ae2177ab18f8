//! S: a file system with any bytes changed. It is refused, or answers; nothing panics, and nothing reads without end.

use futures_util::FutureExt;
use storage::{Ext4, Inode};

use super::image::{self, Disk};
use crate::input::Input;

/// What an input's requests may read in all: each of some thirty looks at a few folders, none larger than the disk.
const MOST_READ: usize = 64 << 20;

const PATHS: [&str; 8] = [
    "/",
    "/a/hello",
    "/link",
    "/long",
    "/tree",
    "/a/../link",
    "//a/./hello/",
    "/no",
];

fn changed(input: &mut Input<'_>) -> Vec<u8> {
    let mut image = image::build();
    for _ in 0..input.u8() % 24 {
        // Most of what counts lies in the first blocks.
        let at = match input.u8() % 4 {
            0 => 1024 + usize::from(input.u16()) % 512,
            1 => 2048 + usize::from(input.u16()) % 64,
            2 => 3072 + usize::from(input.u16()) % 2048,
            _ => 8192 + usize::from(input.u16()) % 8192,
        };
        let bytes = input.array::<4>();
        let len = [1, 2, 4, 4][usize::from(input.u8() % 4)];
        image[at..at + len].copy_from_slice(&bytes[..len]);
    }
    image
}

fn look(files: &Ext4<Disk>, inode: &Inode, at: u64) {
    let stat = files.stat(inode);
    assert_eq!(stat.inode, u64::from(inode.number));
    if let Some(Ok(target)) = files.link_target(inode).now_or_never() {
        assert!((1..=messages::storage::PATH_MAX).contains(&target.len()));
    }
    if inode.is_dir()
        && let Some(Ok(Some((entries, next)))) = files.entries(inode, at).now_or_never()
    {
        assert!(next > at);
        assert!(
            entries
                .iter()
                .all(|entry| entry.next > at && !entry.name.is_empty())
        );
    }
    let mut into = [0xaa; 4096];
    if let Some(Ok(len)) = files.read(inode, at, &mut into).now_or_never() {
        assert!(len <= into.len() && len as u64 <= stat.size.saturating_sub(at));
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = Disk::new(changed(&mut input), MOST_READ);
    let Some(Ok(files)) = Ext4::mount(disk).now_or_never() else {
        return;
    };
    for path in PATHS {
        let follow = path.len() & 1 == 0;
        if let Some(Ok(inode)) = files.resolve(path.as_bytes(), follow).now_or_never() {
            look(&files, &inode, 0);
            look(&files, &inode, input.u64());
        }
    }
    for number in [u32::from(input.u8()), input.u32()] {
        if let Some(Ok(inode)) = files.inode(number).now_or_never() {
            look(&files, &inode, u64::from(input.u16()));
        }
    }
    let path = input.rest();
    let _ = files.resolve(path, true).now_or_never();
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let untouched = vec![0];
    let path = [&[0; 80][..], b"/a/../a/hello"].concat();
    // One change each: a size, an extent's length, a tree's depth, a record's length, the block size, a leaf's depth.
    let change = |region: u8, at: u16, bytes: [u8; 4], len: u8| {
        let [low, high] = at.to_le_bytes();
        [&[1, region, low, high][..], &bytes, &[len]].concat()
    };
    vec![
        untouched,
        path,
        change(2, 128 + 4, [0, 0, 0, 0x3f], 2),
        change(2, 128 + 0x28 + 16, [0xff, 0x7f, 0, 0], 1),
        change(2, 13 * 128 + 0x28 + 6, [4, 0, 0, 0], 1),
        change(3, 4, [4, 0, 0, 0], 1),
        change(0, 0x18, [2, 0, 0, 0], 2),
        change(3, 4 * 1024 + 4, [0, 0, 0xff, 0xff], 2),
    ]
}

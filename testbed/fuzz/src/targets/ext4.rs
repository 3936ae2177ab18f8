//! S: a file system with any bytes changed. It is refused, or answers; nothing panics, and nothing
//! reads without end.

use ext4::{Ext4, NewNode, Options, ROOT, Time};
use futures_util::FutureExt;

use super::image::{self, Disk};
use crate::input::Input;

/// Limit of the bytes that an input's requests read: each of some thirty looks at a few folders,
/// none larger than the disk.
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

fn look(files: &Ext4<Disk>, inode: u32, at: u64) {
    let Some(Ok(stat)) = files.stat(inode).now_or_never() else {
        return;
    };
    assert_eq!(stat.inode, inode);
    if let Some(Ok(target)) = files.read_link(inode).now_or_never() {
        assert!((1..=messages::storage::PATH_MAX).contains(&target.len()));
    }
    if let Some(Ok(Some((entries, next)))) = files.entries(inode, at).now_or_never() {
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

/// Follows a path's names; links are not followed.
fn find(files: &Ext4<Disk>, path: &str) -> Option<u32> {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.into_iter().try_fold(ROOT, |dir, name| {
        files.lookup(dir, name.as_bytes()).now_or_never()?.ok()
    })
}

/// Changes what an input names; only that it ends is asked for.
fn change(files: &Ext4<Disk>, input: &mut Input<'_>) {
    let now = Time::default();
    let new = NewNode {
        mode: 0o644,
        uid: 0,
        gid: 0,
        now,
    };
    for _ in 0..input.u8() % 8 {
        let (dir, inode) = (u32::from(input.u8() % 20), u32::from(input.u8() % 20));
        let name = [b'a' + input.u8() % 4];
        let offset = u64::from(input.u16());
        let _ = match input.u8() % 8 {
            0 => files.create(dir, &name, new).now_or_never().map(drop),
            1 => files.mkdir(dir, &name, new).now_or_never().map(drop),
            2 => files.unlink(dir, b"hello", now).now_or_never().map(drop),
            3 => files.rmdir(dir, &name, now).now_or_never().map(drop),
            4 => files
                .write(inode, offset, &[1; 1500], now)
                .now_or_never()
                .map(drop),
            5 => files.truncate(inode, offset, now).now_or_never().map(drop),
            6 => files.link(inode, dir, &name, now).now_or_never().map(drop),
            _ => files.sync(now).now_or_never().map(drop),
        };
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = Disk::new(changed(&mut input), MOST_READ);
    let options = Options {
        read_only: input.bool(),
        now: Time::default(),
    };
    let Some(Ok(files)) = Ext4::mount(disk, options).now_or_never() else {
        return;
    };
    for inode in PATHS.iter().filter_map(|path| find(&files, path)) {
        look(&files, inode, 0);
        look(&files, inode, input.u64());
    }
    for number in [u32::from(input.u8()), input.u32()] {
        look(&files, number, u64::from(input.u16()));
    }
    change(&files, &mut input);
    let _ = files.unmount(Time::default()).now_or_never();
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let untouched = vec![0];
    // Every change once, after looks without any damage.
    let changes: Vec<u8> = (0..7).flat_map(|what| [2, 12, what, 0, 4, what]).collect();
    let changes = [&[0; 1 + 1 + 8 * 7 + 1 + 4 + 4][..], &[7], &changes].concat();
    // One change each: a size, an extent's length, a tree's depth, a record's length, the block
    // size, a leaf's depth.
    let change = |region: u8, at: u16, bytes: [u8; 4], len: u8| {
        let [low, high] = at.to_le_bytes();
        [&[1, region, low, high][..], &bytes, &[len]].concat()
    };
    vec![
        untouched,
        changes,
        change(2, 128 + 4, [0, 0, 0, 0x3f], 2),
        change(2, 128 + 0x28 + 16, [0xff, 0x7f, 0, 0], 1),
        change(2, 13 * 128 + 0x28 + 6, [4, 0, 0, 0], 1),
        change(3, 4, [4, 0, 0, 0], 1),
        change(0, 0x18, [2, 0, 0, 0], 2),
        change(3, 4 * 1024 + 4, [0, 0, 0xff, 0xff], 2),
    ]
}

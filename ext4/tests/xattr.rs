//! Extended attributes: those that debugfs set are read, ours are what debugfs and e2fsck find.

mod common;

use std::collections::BTreeMap;

use common::disk::MemDisk;
use common::mounted::{finish, mount, node};
use common::tools::{Image, debugfs, mke2fs};
use common::{Rng, at, block_on};
use ext4::{Errno, Ext4, Namespace, ROOT, SetMode};

const USER: Namespace = Namespace::USER;

fn create(fs: &Ext4<MemDisk>, name: &[u8]) -> u32 {
    block_on(fs.create(ROOT, name, node(at(1)))).expect("made")
}

fn set(
    fs: &Ext4<MemDisk>,
    inode: u32,
    name: &str,
    value: &[u8],
    mode: SetMode,
) -> Result<(), ext4::Error> {
    block_on(fs.set_xattr(inode, (USER, name.as_bytes()), value, mode, at(2)))
}

fn remove(fs: &Ext4<MemDisk>, inode: u32, name: &str) -> Result<(), ext4::Error> {
    block_on(fs.remove_xattr(inode, (USER, name.as_bytes()), at(2)))
}

fn all(fs: &Ext4<MemDisk>, inode: u32) -> BTreeMap<String, Vec<u8>> {
    let list = block_on(fs.xattrs(inode)).expect("read");
    let named = list.into_iter().map(|xattr| {
        assert_eq!(xattr.namespace, USER);
        (String::from_utf8(xattr.name).expect("text"), xattr.value)
    });
    named.collect()
}

#[test]
fn attributes_lie_in_the_inode_and_then_in_a_block() {
    let disk = MemDisk::new(mke2fs(8 << 20, &["-b", "1024"]), 1);
    let fs = mount(&disk);
    let inode = create(&fs, b"f");
    let blocks = || block_on(fs.stat(inode)).expect("there").blocks;
    set(&fs, inode, "short", b"in the inode", SetMode::Either).unwrap();
    set(&fs, inode, "empty", b"", SetMode::Create).unwrap();
    assert_eq!(blocks(), 0, "no block of its own");
    set(&fs, inode, "long", &[7; 500], SetMode::Either).unwrap();
    set(&fs, inode, "a", &[8; 201], SetMode::Either).unwrap();
    assert_eq!(blocks(), 2);
    assert_eq!(
        set(&fs, inode, "much", &[9; 300], SetMode::Either),
        Err(Errno::ENOSPC.into())
    );
    assert_eq!(
        set(&fs, inode, "long", b"", SetMode::Create),
        Err(Errno::EEXIST.into())
    );
    assert_eq!(
        set(&fs, inode, "none", b"", SetMode::Replace),
        Err(Errno::ENODATA.into())
    );
    assert_eq!(
        set(&fs, inode, "", b"", SetMode::Either),
        Err(Errno::ERANGE.into())
    );
    assert_eq!(remove(&fs, inode, "none"), Err(Errno::ENODATA.into()));
    let image = Image::new(&finish(fs, &disk));
    let listed = debugfs(&image, &["ea_list /f"], false);
    for text in [
        "user.short (12) = \"in the inode\"",
        "user.empty (0)",
        "user.long (500)",
        "user.a (201)",
    ] {
        assert!(listed.contains(text), "{text}: {listed}");
    }
    let fs = mount(&disk);
    let expected = [
        ("short", b"in the inode".to_vec()),
        ("empty", vec![]),
        ("long", vec![7; 500]),
        ("a", vec![8; 201]),
    ];
    assert_eq!(
        all(&fs, inode),
        expected
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    );
    // The block goes with its last attribute, and the rest with the file.
    for name in ["long", "a"] {
        remove(&fs, inode, name).unwrap();
    }
    assert_eq!(block_on(fs.stat(inode)).unwrap().blocks, 0);
    set(&fs, inode, "long", &[1; 600], SetMode::Either).unwrap();
    block_on(fs.unlink(ROOT, b"f", at(3))).unwrap();
    finish(fs, &disk);
}

#[test]
fn what_debugfs_set_is_read_and_changed() {
    let image = Image::new(&mke2fs(8 << 20, &[]));
    let long = "x".repeat(700);
    let commands = [
        "write /dev/null f".to_owned(),
        "ea_set /f user.first one".to_owned(),
        format!("ea_set /f user.second {long}"),
        "ea_set /f trusted.third three".to_owned(),
    ];
    debugfs(&image, &commands.each_ref().map(String::as_str), true);
    let disk = MemDisk::new(image.bytes(), 1);
    let fs = mount(&disk);
    let inode = block_on(fs.lookup(ROOT, b"f")).unwrap();
    let list = block_on(fs.xattrs(inode)).unwrap();
    let value = |namespace, name: &[u8]| {
        let is = |x: &&ext4::Xattr| x.namespace == namespace && x.name == name;
        list.iter().find(is).map(|x| x.value.clone())
    };
    assert_eq!(list.len(), 3);
    assert_eq!(value(USER, b"first"), Some(b"one".to_vec()));
    assert_eq!(value(USER, b"second"), Some(long.into_bytes()));
    assert_eq!(value(Namespace::TRUSTED, b"third"), Some(b"three".to_vec()));
    set(&fs, inode, "second", b"short now", SetMode::Replace).unwrap();
    let image = Image::new(&finish(fs, &disk));
    let listed = debugfs(&image, &["ea_list /f"], false);
    assert!(
        listed.contains("user.second (9) = \"short now\""),
        "{listed}"
    );
    assert!(listed.contains("trusted.third (5) = \"three\""), "{listed}");
}

#[test]
fn random_changes_are_those_of_a_map() {
    for (seed, options) in [
        (1, &["-b", "1024"][..]),
        (2, &["-b", "4096"]),
        (3, &["-b", "1024", "-I", "128"]),
        (4, &["-b", "1024", "-O", "^metadata_csum"]),
    ] {
        let disk = MemDisk::new(mke2fs(8 << 20, options), seed);
        let fs = mount(&disk);
        let mut rng = Rng(seed);
        let inodes = [b"a", b"b"].map(|name| create(&fs, name));
        let mut maps = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..400 {
            let which = rng.index(2);
            let name = format!("{}{}", "n".repeat(rng.index(20)), rng.below(6));
            if rng.chance(30) {
                let removed = remove(&fs, inodes[which], &name).is_ok();
                assert_eq!(removed, maps[which].remove(&name).is_some());
                continue;
            }
            let value: Vec<u8> = (0..rng.index(260))
                .map(|_| rng.next().to_le_bytes()[0])
                .collect();
            match set(&fs, inodes[which], &name, &value, SetMode::Either) {
                Ok(()) => drop(maps[which].insert(name, value)),
                Err(error) => assert_eq!(error, Errno::ENOSPC.into()),
            }
            assert_eq!(all(&fs, inodes[which]), maps[which]);
        }
        finish(fs, &disk);
        let fs = mount(&disk);
        for (inode, map) in inodes.into_iter().zip(&maps) {
            assert_eq!(&all(&fs, inode), map);
        }
        finish(fs, &disk);
    }
}

//! Working folders, devices, and changes on a read-only disk.

use super::*;

#[test]
fn working_folder_is_followed() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"bin\0");
    assert_eq!(run.call(nr::__NR_chdir, &[DATA]), Ok(0));
    assert_eq!(run.call(nr::__NR_getcwd, &[DATA, 100]), Ok(5));
    assert_eq!(run.get(DATA, 5), b"/bin\0");
    assert_eq!(
        errno_of(run.call(nr::__NR_getcwd, &[DATA, 4])),
        Some(errno::ERANGE)
    );
    assert_eq!(run.open("program"), Ok(3));
    assert_eq!(errno_of(run.open("bin")), Some(errno::ENOENT));
}

#[test]
fn working_folder_is_where_links_lead() {
    let node = FakeNode::new(
        64,
        &[
            ("/bin/program", &program()),
            ("/link", b""),
            ("/a/b", b""),
            ("/a/b/..", b""),
            ("/loop", b""),
        ],
    );
    for (link, target) in [
        ("/link", "a/./more"),
        ("/a/more", "/x/../a/b/"),
        ("/loop", "loop"),
    ] {
        node.files.links.insert(link.into(), target.into());
    }
    let node: &FakeNode = node;
    let mut run = Run::new(node);
    for (call, path, leads) in [
        (nr::__NR_chdir, "/link", "/a/b"),
        (nr::__NR_chdir, "..", "/a"),
    ] {
        run.put(DATA, format!("{path}\0").as_bytes());
        assert_eq!(run.call(call, &[DATA]), Ok(0));
        run.call(nr::__NR_getcwd, &[DATA, 100]).unwrap();
        assert_eq!(
            run.get(DATA, leads.len() + 1),
            format!("{leads}\0").as_bytes(),
            "{path}"
        );
    }
    let folder = run.open("/link").unwrap();
    assert_eq!(run.call(nr::__NR_fchdir, &[folder]), Ok(0));
    run.call(nr::__NR_getcwd, &[DATA, 100]).unwrap();
    assert_eq!(run.get(DATA, 5), b"/a/b\0");
    assert_eq!(
        errno_of(run.call(nr::__NR_fchdir, &[1])),
        Some(errno::ENOTDIR)
    );
    run.put(DATA, b"/loop\0");
    assert_eq!(
        errno_of(run.call(nr::__NR_chdir, &[DATA])),
        Some(errno::ELOOP)
    );
}

#[test]
fn devices_give_zeros_chance_or_nothing() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(100_000).unwrap();
    for (path, got, byte) in [
        ("/dev/null", 0, 0xff),
        ("/dev/zero", 90_000, 0),
        ("/dev/urandom", 90_000, 0x5a),
    ] {
        run.put(DATA, format!("{path}\0").as_bytes());
        let fd = run.call(nr::__NR_open, &[DATA, 2]).unwrap();
        run.put(at + 89_999, &[0xff]);
        assert_eq!(
            run.call(nr::__NR_read, &[fd, at, 90_000]),
            Ok(got),
            "{path}"
        );
        assert_eq!(run.get(at + 89_999, 1), [byte], "{path}");
        assert_eq!(
            run.call(nr::__NR_write, &[fd, at, 90_000]),
            Ok(90_000),
            "{path}"
        );
        let read_only = run.open(path).unwrap();
        let refused = run.call(nr::__NR_write, &[read_only, at, 1]);
        assert_eq!(errno_of(refused), Some(errno::EBADF), "{path}");
    }
}

#[test]
fn changes_of_files_are_refused_on_a_read_only_disk() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    node.files.read_only.set(true);
    let (new, old) = (run.put(DATA, b"/new\0"), run.put(DATA + 100, b"/big\0"));
    for (number, args, errno) in [
        (nr::__NR_mkdir, [new, 0], errno::EROFS),
        (nr::__NR_mkdir, [old, 0], errno::EEXIST),
        (nr::__NR_symlink, [old, new], errno::EROFS),
        (nr::__NR_link, [old, old], errno::EEXIST),
        (nr::__NR_rename, [old, new], errno::EROFS),
        (nr::__NR_unlink, [new, 0], errno::EROFS),
        (nr::__NR_chmod, [old, 0], errno::EROFS),
        (nr::__NR_chmod, [new, 0], errno::ENOENT),
        (nr::__NR_unlink, [1, 0], errno::EFAULT),
        (nr::__NR_open, [new, 0o101], errno::EROFS),
        (nr::__NR_open, [old, 1], errno::EROFS),
        (nr::__NR_access, [old, 2], errno::EROFS),
    ] {
        assert_eq!(
            errno_of(run.call(number, &args)),
            Some(errno),
            "{number} {args:x?}"
        );
    }
}

//! Watching files. The events are those that Linux 6.18 gives for the same calls on a tmpfs.

use super::*;
use crate::error::errno;

const NONBLOCK: u64 = 0o4000;
const ALL: u64 = 0xfff;
const IN: u64 = DATA + 64;

/// An event: the watch, the mask, whether it has a cookie, the name.
type Event = (i32, u32, bool, String);

fn event(watch: i32, mask: u32, name: &str) -> Event {
    (watch, mask, mask & 0xc0 != 0, name.to_owned())
}

impl Run {
    fn watch(&mut self, queue: u64, path: &str, mask: u64) -> Result<u64, Error> {
        self.put(IN, format!("{path}\0").as_bytes());
        self.call(nr::__NR_inotify_add_watch, &[queue, IN, mask])
    }

    fn on_paths(&mut self, call: u32, one: &str, other: &str) -> u64 {
        self.put(IN, format!("{one}\0").as_bytes());
        self.put(IN + 128, format!("{other}\0").as_bytes());
        self.call(call, &[IN, IN + 128]).unwrap()
    }

    fn on_path(&mut self, call: u32, path: &str, args: &[u64]) -> u64 {
        self.put(IN, format!("{path}\0").as_bytes());
        self.call(call, &[&[IN], args].concat()).unwrap()
    }

    fn events(&mut self, queue: u64) -> Vec<Event> {
        let Ok(len) = self.call(nr::__NR_read, &[queue, DATA + 512, 2048]) else {
            return Vec::new();
        };
        let bytes = self.get(DATA + 512, usize::try_from(len).unwrap());
        let (mut found, mut rest) = (Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let end = 16 + word(12) as usize;
            let name = rest[16..end].split(|&b| b == 0).next().unwrap_or_default();
            let name = String::from_utf8(name.to_vec()).unwrap();
            found.push((word(0).cast_signed(), word(4), word(8) != 0, name));
            rest = &rest[end..];
        }
        found
    }
}

#[test]
fn what_happens_in_a_folder_is_told_as_on_linux() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.on_path(nr::__NR_mkdir, "/tmp/d", &[0o700]);
    let queue = run.call(nr::__NR_inotify_init1, &[NONBLOCK]).unwrap();
    assert_eq!(run.watch(queue, "/tmp/d", ALL), Ok(1));
    let fd = run.on_path(nr::__NR_open, "/tmp/d/a", &[0o102, 0o600]);
    assert_eq!(
        run.events(queue),
        [event(1, 0x100, "a"), event(1, 0x20, "a")]
    );
    assert_eq!(run.watch(queue, "/tmp/d/a", ALL), Ok(2));
    let both = |mask: u32| [event(1, mask, "a"), event(2, mask, "")];
    run.call(nr::__NR_write, &[fd, IN, 2]).unwrap();
    assert_eq!(run.events(queue), both(2));
    run.call(nr::__NR_pread64, &[fd, IN, 1, 0]).unwrap();
    assert_eq!(run.events(queue), both(1));
    run.call(nr::__NR_ftruncate, &[fd, 0]).unwrap();
    assert_eq!(run.events(queue), both(2));
    run.call(nr::__NR_fchmod, &[fd, 0o640]).unwrap();
    assert_eq!(run.events(queue), both(4));
    run.call(nr::__NR_close, &[fd]).unwrap();
    assert_eq!(run.events(queue), both(8));
    let fd = run.on_path(nr::__NR_open, "/tmp/d/a", &[0]);
    run.call(nr::__NR_close, &[fd]).unwrap();
    assert_eq!(run.events(queue), [both(0x20), both(0x10)].concat());
    let fd = run.on_path(nr::__NR_open, "/tmp/d/a", &[0o1001]);
    run.call(nr::__NR_close, &[fd]).unwrap();
    assert_eq!(run.events(queue), [both(0x20), both(2), both(8)].concat());
    run.on_paths(nr::__NR_rename, "/tmp/d/a", "/tmp/d/b");
    let moved = [
        event(1, 0x40, "a"),
        event(1, 0x80, "b"),
        event(2, 0x800, ""),
    ];
    assert_eq!(run.events(queue), moved);
    run.on_paths(nr::__NR_link, "/tmp/d/b", "/tmp/d/c");
    assert_eq!(run.events(queue), [event(2, 4, ""), event(1, 0x100, "c")]);
    run.on_path(nr::__NR_unlink, "/tmp/d/c", &[]);
    assert_eq!(run.events(queue), [event(2, 4, ""), event(1, 0x200, "c")]);
    run.on_path(nr::__NR_unlink, "/tmp/d/b", &[]);
    let gone = [(2, 4, ""), (2, 0x400, ""), (2, 0x8000, ""), (1, 0x200, "b")];
    assert_eq!(
        run.events(queue),
        gone.map(|(watch, mask, name)| event(watch, mask, name))
    );
    run.on_path(nr::__NR_mkdir, "/tmp/d/e", &[0o700]);
    run.on_path(nr::__NR_rmdir, "/tmp/d/e", &[]);
    let folder = [event(1, 0x4000_0100, "e"), event(1, 0x4000_0200, "e")];
    assert_eq!(run.events(queue), folder);
    run.end();
}

#[test]
fn what_is_replaced_is_told_and_watches_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.on_path(nr::__NR_mkdir, "/tmp/d", &[0o700]);
    for name in ["/tmp/d/o", "/tmp/d/n"] {
        let fd = run.on_path(nr::__NR_open, name, &[0o102, 0o600]);
        run.call(nr::__NR_close, &[fd]).unwrap();
    }
    let queue = run.call(nr::__NR_inotify_init1, &[NONBLOCK]).unwrap();
    assert_eq!(run.watch(queue, "/tmp/d/o", ALL), Ok(1));
    assert_eq!(run.watch(queue, "/tmp/d", ALL), Ok(2));
    run.on_paths(nr::__NR_rename, "/tmp/d/n", "/tmp/d/o");
    let told = [
        (2, 0x40, "n"),
        (2, 0x80, "o"),
        (1, 4, ""),
        (1, 0x400, ""),
        (1, 0x8000, ""),
    ];
    assert_eq!(
        run.events(queue),
        told.map(|(watch, mask, name)| event(watch, mask, name))
    );
    assert_eq!(run.call(nr::__NR_inotify_rm_watch, &[queue, 2]), Ok(0));
    assert_eq!(run.events(queue), [event(2, 0x8000, "")]);
    let fd = run.on_path(nr::__NR_open, "/tmp/d/o", &[0]);
    assert_eq!(run.events(queue), []);
    for (path, mask, error) in [
        ("/tmp/none", ALL, errno::ENOENT),
        ("/tmp/d", 0, errno::EINVAL),
        ("/tmp/d", 0x3000_0000, errno::EINVAL),
        ("/tmp/d/o", 0x100_0100, errno::ENOTDIR),
    ] {
        assert_eq!(
            errno_of(run.watch(queue, path, mask)),
            Some(error),
            "{path}"
        );
    }
    assert_eq!(errno_of(run.watch(fd, "/tmp/d", ALL)), Some(errno::EINVAL));
    let gone = run.call(nr::__NR_inotify_rm_watch, &[queue, 2]);
    assert_eq!(errno_of(gone), Some(errno::EINVAL));
    assert_eq!(
        run.watch(queue, "/big", ALL),
        Ok(3),
        "silent, as nothing changes it"
    );
    run.end();
}

//! `/proc`, `/sys` and `/dev`.

use super::*;

const O_DIRECTORY: u64 = 0o200_000;
const NOFOLLOW: u64 = 0o400_000;

impl Run {
    pub(super) fn shown(&mut self, path: &str) -> String {
        let fd = self
            .open(path)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let at = self.map(64 << 10).unwrap();
        let len = self.call(nr::__NR_read, &[fd, at, 64 << 10]).unwrap();
        self.call(nr::__NR_close, &[fd]).unwrap();
        String::from_utf8(self.get(at, usize::try_from(len).unwrap())).unwrap()
    }

    fn target(&mut self, path: &str) -> Result<String, Error> {
        self.put(DATA, format!("{path}\0").as_bytes());
        let len = self.call(nr::__NR_readlink, &[DATA, DATA + 512, 512])?;
        Ok(String::from_utf8(self.get(DATA + 512, usize::try_from(len).unwrap())).unwrap())
    }

    fn names(&mut self, path: &str) -> Vec<String> {
        self.put(DATA, format!("{path}\0").as_bytes());
        let fd = self.call(nr::__NR_open, &[DATA, O_DIRECTORY]).unwrap();
        let at = self.map(16 << 10).unwrap();
        let mut names = Vec::new();
        loop {
            let len = self.call(nr::__NR_getdents64, &[fd, at, 200]).unwrap();
            if len == 0 {
                self.call(nr::__NR_close, &[fd]).unwrap();
                return names;
            }
            let mut bytes = &self.get(at, usize::try_from(len).unwrap())[..];
            while let Some(len) = bytes.get(16..18) {
                let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
                let name = bytes[19..len].split(|&b| b == 0).next().unwrap();
                names.push(String::from_utf8(name.to_vec()).unwrap());
                bytes = &bytes[len..];
            }
        }
    }

    fn kind_of(&mut self, path: &str, call: u32) -> Option<u32> {
        self.put(DATA, format!("{path}\0").as_bytes());
        self.call(call, &[DATA, DATA + 512]).ok()?;
        let mode = self.get(DATA + 512 + 24, 4);
        Some(u32::from_le_bytes(mode.try_into().unwrap()) >> 12)
    }
}

#[test]
fn a_process_is_told_of_itself() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(run.target("/proc/self").as_deref(), Ok("1"));
    assert_eq!(run.target("/proc/self/exe").as_deref(), Ok("/bin/program"));
    assert_eq!(run.target("/proc/1/cwd").as_deref(), Ok("/"));
    assert_eq!(run.shown("/proc/self/cmdline"), "/bin/program\0one\0");
    assert_eq!(run.shown("/proc/1/environ"), "A=b\0");
    assert_eq!(run.shown("/proc/thread-self/comm"), "program\n");
    let stat = run.shown("/proc/self/stat");
    assert!(stat.starts_with("1 (program) "), "{stat}");
    assert_eq!(stat.split(' ').count(), 52, "{stat}");
    let status = run.shown("/proc/self/status");
    assert!(
        status.contains("\nPPid:\t0\n") && status.contains("\nThreads:\t1\n"),
        "{status}"
    );
    let limits = run.shown("/proc/self/limits");
    assert!(
        limits
            .contains("Max open files            1024                 65536                files"),
        "{limits}"
    );
}

#[test]
fn maps_say_what_is_mapped() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let at = run.map(8192).unwrap();
    let maps = run.shown("/proc/self/maps");
    let line = |start: u64| {
        maps.lines()
            .find(|line| line.starts_with(&format!("{start:x}-")))
            .unwrap()
    };
    assert!(
        line(0x40_0000).ends_with(" /bin/program") && line(0x40_0000).contains(" rwxp "),
        "{maps}"
    );
    // The buffer that the text is read into may be its neighbour.
    assert!(
        maps.contains(&format!("-{:x} rw-p 00000000 00:00 0 ", at + 8192)),
        "{maps}"
    );
    let last: Vec<&str> = maps.lines().rev().take(2).collect();
    assert!(
        last[1].ends_with(" [stack]") && last[0].ends_with(" [vdso]"),
        "{maps}"
    );
}

#[test]
fn folders_list_what_can_be_opened() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_fork, &[]).unwrap();
    for folder in [
        "/proc",
        "/proc/self",
        "/proc/2",
        "/proc/sys/kernel",
        "/sys/devices/system/cpu",
        "/dev",
    ] {
        let names = run.names(folder);
        assert!(names.len() > 4, "{folder}: {names:?}");
        for name in &names {
            let path = format!("{folder}/{name}");
            let found = run.kind_of(&path, nr::__NR_lstat);
            assert!(found.is_some() || path == "/dev/shm", "{path}");
        }
    }
    let pids = run.names("/proc");
    assert!(pids.contains(&"1".to_owned()) && pids.contains(&"2".to_owned()));
    assert_eq!(
        run.names("/proc/self/fd"),
        [".", "..", "0", "1", "2"].map(str::to_owned)
    );
    node.run_started();
    run.end();
}

#[test]
fn another_process_s_files_and_folder_are_seen_by_its_user() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let big = run.open("/big").unwrap();
    run.call(nr::__NR_fork, &[]).unwrap();
    run.call(nr::__NR_close, &[big]).unwrap();
    run.put(DATA, b"/bin\0");
    run.call(nr::__NR_chdir, &[DATA]).unwrap();
    assert_eq!(run.names("/proc/2/fd").len(), 6);
    assert_eq!(run.target("/proc/2/fd/3").as_deref(), Ok("/big"));
    assert_eq!(run.target("/proc/2/exe").as_deref(), Ok("/bin/program"));
    assert_eq!(run.target("/proc/2/cwd").as_deref(), Ok("/"));
    assert_eq!(run.target("/proc/1/cwd").as_deref(), Ok("/bin"));
    let status = run.shown("/proc/2/status");
    assert!(status.contains("\nUmask:\t0022\n"), "{status}");
    run.call(nr::__NR_setuid, &[1000]).unwrap();
    for name in ["fd/3", "exe", "cwd", "root", "fdinfo/0"] {
        let refused = run.target(&format!("/proc/2/{name}"));
        assert_eq!(errno_of(refused), Some(errno::EACCES), "{name}");
    }
    assert_eq!(run.target("/proc/1/cwd").as_deref(), Ok("/bin"));
    node.run_started();
    let gone = run.target("/proc/2/fd/3");
    assert_eq!(errno_of(gone), Some(errno::ENOENT), "it has ended");
    run.end();
}

#[test]
fn open_files_are_reached_by_their_numbers() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let big = run.open("/big").unwrap();
    assert_eq!(
        run.target(&format!("/proc/self/fd/{big}")).as_deref(),
        Ok("/big")
    );
    let again = run.open(&format!("/dev/fd/{big}")).unwrap();
    assert_ne!(big, again);
    assert_eq!(run.call(nr::__NR_lseek, &[again, 0, 1]), Ok(0));
    assert_eq!(run.call(nr::__NR_pipe, &[DATA]), Ok(0));
    let reader = run.get(DATA, 1)[0];
    assert!(
        run.target(&format!("/proc/self/fd/{reader}"))
            .unwrap()
            .starts_with("pipe:[")
    );
    assert!(run.open(&format!("/proc/self/fd/{reader}")).is_ok());
    assert_eq!(errno_of(run.open("/proc/self/fd/77")), Some(errno::ENOENT));
    assert_eq!(run.kind_of("/proc/self/exe", nr::__NR_lstat), Some(0o12));
    assert_eq!(run.kind_of("/proc/self/fd/..", nr::__NR_lstat), Some(0o4));
    assert_eq!(
        run.kind_of("/proc/self/exe", nr::__NR_stat),
        Some(0o10),
        "the program's file"
    );
    run.put(DATA, b"/proc/self/exe\0");
    let link = run.call(nr::__NR_open, &[DATA, NOFOLLOW]);
    assert_eq!(errno_of(link), Some(errno::ELOOP));
    assert_eq!(
        run.call(nr::__NR_execve, &[DATA, 0, 0]),
        Ok(0),
        "the program itself"
    );
}

#[test]
fn the_machine_is_told_of() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let info = run.shown("/proc/meminfo");
    assert!(
        info.starts_with("MemTotal:         131072 kB\n"),
        "64 chunks of 2 MB: {info}"
    );
    assert_eq!(run.shown("/sys/devices/system/cpu/online"), "0-1\n");
    assert!(run.shown("/proc/stat").contains("\ncpu1 "));
    assert_eq!(run.shown("/proc/sys/kernel/pid_max"), "32768\n");
    assert_eq!(
        run.shown("/proc/mounts").lines().next(),
        Some("/dev/root / ext4 ro,relatime 0 0")
    );
    assert_eq!(run.shown("/proc/sys/kernel/random/boot_id").len(), 37);
    for (path, error) in [
        ("/proc/77", errno::ENOENT),
        ("/proc/self/nothing", errno::ENOENT),
        ("/proc/meminfo/", errno::ENOTDIR),
        ("/dev/null/x", errno::ENOTDIR),
        ("/sys/devices/system/cpu/cpu2", errno::ENOENT),
    ] {
        assert_eq!(errno_of(run.open(path)), Some(error), "{path}");
    }
    run.put(DATA, b"/proc/meminfo\0");
    let write = run.call(nr::__NR_open, &[DATA, 1]);
    assert_eq!(errno_of(write), Some(errno::EACCES));
    let full = {
        run.put(DATA, b"/dev/full\0");
        run.call(nr::__NR_open, &[DATA, 1]).unwrap()
    };
    assert_eq!(
        errno_of(run.call(nr::__NR_write, &[full, DATA, 1])),
        Some(errno::ENOSPC)
    );
}

#[test]
fn a_process_that_ended_is_seen_until_it_was_waited_for() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.call(nr::__NR_fork, &[]).unwrap();
    node.run_started();
    assert!(run.shown("/proc/2/stat").starts_with("2 (program) Z 1 "));
    assert_eq!(run.shown("/proc/2/cmdline"), "");
    run.call(nr::__NR_wait4, &[u64::MAX, 0, 0, 0]).unwrap();
    assert_eq!(errno_of(run.open("/proc/2/stat")), Some(errno::ENOENT));
    run.end();
}

#[test]
fn open_files_are_shown_by_paths_without_links() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA + 256, b"/tmp/d\0");
    run.put(DATA + 512, b"/tmp/l\0");
    run.put(DATA + 768, b"/tmp/l/f\0");
    run.call(nr::__NR_mkdir, &[DATA + 256, 0o755]).unwrap();
    run.call(nr::__NR_symlink, &[DATA + 256, DATA + 512])
        .unwrap();
    let fd = run
        .call(nr::__NR_open, &[DATA + 768, 0o102, 0o644])
        .unwrap();
    let shown = format!("/proc/self/fd/{fd}");
    assert_eq!(run.target(&shown).unwrap(), "/tmp/d/f");
    run.put(DATA + 768, b"/tmp/d/f\0");
    run.call(nr::__NR_unlink, &[DATA + 768]).unwrap();
    assert_eq!(run.target(&shown).unwrap(), "/tmp/d/f (deleted)");
    // A link that was opened itself is shown by its own name.
    run.put(DATA + 768, b"/tmp/l\0");
    let link = run
        .call(nr::__NR_open, &[DATA + 768, 0o10_400_000])
        .unwrap();
    let shown = format!("/proc/self/fd/{link}");
    assert_eq!(run.target(&shown).unwrap(), "/tmp/l");
    let events = run.call(nr::__NR_eventfd2, &[0, 0]).unwrap();
    let shown = format!("/proc/self/fd/{events}");
    assert_eq!(run.target(&shown).unwrap(), "anon_inode:[eventfd]");
    run.end();
}

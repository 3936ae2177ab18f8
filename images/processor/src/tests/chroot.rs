//! Roots of processes, and the names that programs are told.

use super::*;

/// A path's bytes in the program's memory.
fn path(run: &Run, at: u64, path: &str) -> u64 {
    run.put(at, format!("{path}\0").as_bytes())
}

/// Makes a call with paths; `None` for success.
fn with_paths(run: &mut Run, call: u32, paths: &[&str], more: &[u64]) -> Option<messages::Errno> {
    let mut args: Vec<u64> = (0..).map(|at| PATHS + 512 * at).take(paths.len()).collect();
    for (at, text) in args.iter().zip(paths) {
        path(run, *at, text);
    }
    args.extend(more);
    match run.call(call, &args) {
        Ok(_) => None,
        Err(Error::Errno(errno)) => Some(errno),
        Err(error) => panic!("{error}"),
    }
}

const PATHS: u64 = DATA + 512;

/// Makes `/tmp/r` with a file, a folder and links in it, and one beside.
fn tree(run: &mut Run) {
    for (call, paths, more) in [
        (nr::__NR_mkdir, &["/tmp/r"][..], &[0o755][..]),
        (nr::__NR_mkdir, &["/tmp/r/d"], &[0o755]),
        (nr::__NR_mkdir, &["/tmp/out"], &[0o755]),
        (nr::__NR_symlink, &["/d", "/tmp/r/absolute"], &[]),
        (nr::__NR_symlink, &["../../../d", "/tmp/r/d/up"], &[]),
        (nr::__NR_symlink, &["/tmp/out", "/tmp/r/outside"], &[]),
        (nr::__NR_symlink, &["/new", "/tmp/r/dangling"], &[]),
    ] {
        assert_eq!(with_paths(run, call, paths, more), None, "{paths:?}");
    }
    let fd = run.make_file("/tmp/r/d/file", 0o644).unwrap();
    run.call(nr::__NR_close, &[fd]).unwrap();
}

fn enter(run: &mut Run) {
    assert_eq!(with_paths(run, nr::__NR_chroot, &["/tmp/r"], &[]), None);
    assert_eq!(with_paths(run, nr::__NR_chdir, &["/"], &[]), None);
}

fn cwd(run: &mut Run) -> String {
    let len = run.call(nr::__NR_getcwd, &[DATA, 256]).unwrap();
    let len = usize::try_from(len).unwrap() - 1;
    String::from_utf8(run.get(DATA, len)).unwrap()
}

#[test]
fn no_path_leads_out_of_a_root() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    tree(&mut run);
    enter(&mut run);
    assert_eq!(cwd(&mut run), "/");
    for (at, expected) in [
        ("/d/file", None),
        ("d/file", None),
        ("/../../d/file", None),
        ("absolute/file", None),
        ("/d/up/file", None),
        ("/d/up/../d/./file", None),
        ("/tmp/r/d/file", Some(errno::ENOENT)),
        ("/outside", Some(errno::ENOENT)),
        ("/big", Some(errno::ENOENT)),
        ("/proc/self/status", Some(errno::ENOENT)),
        ("/dev/null", Some(errno::ENOENT)),
        ("/d/file/", Some(errno::ENOTDIR)),
        ("/d/file/..", Some(errno::ENOTDIR)),
        ("/d/file/.", Some(errno::ENOTDIR)),
        ("/missing/..", Some(errno::ENOENT)),
        ("", Some(errno::ENOENT)),
    ] {
        assert_eq!(
            with_paths(&mut run, nr::__NR_open, &[at], &[0]),
            expected,
            "{at}"
        );
    }
    // What a dangling link leads to is made in the root.
    let made = with_paths(&mut run, nr::__NR_open, &["/dangling"], &[0o101, 0o600]);
    assert_eq!(made, None);
    let there = with_paths(&mut run, nr::__NR_access, &["/new"], &[0]);
    assert_eq!(there, None);
    // A folder that was opened is shown by its path in the root.
    assert_eq!(
        with_paths(&mut run, nr::__NR_chdir, &["absolute"], &[]),
        None
    );
    assert_eq!(cwd(&mut run), "/d");
    // A root in the root.
    assert_eq!(with_paths(&mut run, nr::__NR_chroot, &["."], &[]), None);
    assert_eq!(cwd(&mut run), "/");
    assert_eq!(
        with_paths(&mut run, nr::__NR_access, &["/file"], &[0]),
        None
    );
    assert_eq!(
        with_paths(&mut run, nr::__NR_access, &["../d"], &[0]),
        Some(errno::ENOENT)
    );
}

#[test]
fn calls_that_name_an_entry_do_not_follow_it_in_a_root() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    tree(&mut run);
    enter(&mut run);
    let (readlink, rmdir, unlink) = (nr::__NR_readlink, nr::__NR_rmdir, nr::__NR_unlink);
    path(&run, PATHS, "/d/up");
    assert_eq!(run.call(readlink, &[PATHS, DATA, 100]), Ok(10));
    assert_eq!(run.get(DATA, 10), b"../../../d");
    for (call, at, expected) in [
        (rmdir, "d/.", errno::EINVAL),
        (rmdir, "/d/up", errno::ENOTDIR),
        (rmdir, "/", errno::EBUSY),
        (unlink, "/d/.", errno::EISDIR),
        (unlink, "/d/..", errno::EISDIR),
    ] {
        let got = with_paths(&mut run, call, &[at], &[]);
        // On Linux a root that is not mounted has contents: ENOTEMPTY.
        let got = got.map(|errno| if at == "/" { errno::EBUSY } else { errno });
        assert_eq!(got, Some(expected), "{at}");
    }
    assert_eq!(with_paths(&mut run, unlink, &["/d/up"], &[]), None);
    let renamed = with_paths(
        &mut run,
        nr::__NR_rename,
        &["/absolute", "/d/../there"],
        &[],
    );
    assert_eq!(renamed, None);
    assert_eq!(
        with_paths(&mut run, nr::__NR_mkdir, &["/d/more/"], &[0o755]),
        None
    );
    let linked = with_paths(&mut run, nr::__NR_link, &["/d/file", "/d/more/file"], &[]);
    assert_eq!(linked, None);
    assert_eq!(
        with_paths(&mut run, nr::__NR_access, &["there/more/file"], &[0]),
        None
    );
}

#[test]
fn who_stands_outside_of_a_root_stays_there() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    tree(&mut run);
    assert_eq!(
        with_paths(&mut run, nr::__NR_chdir, &["/tmp/out"], &[]),
        None
    );
    assert_eq!(with_paths(&mut run, nr::__NR_chroot, &["../r"], &[]), None);
    assert_eq!(cwd(&mut run), "(unreachable)/tmp/out");
    assert_eq!(
        with_paths(&mut run, nr::__NR_access, &["../../big"], &[0]),
        None
    );
    let inside = with_paths(&mut run, nr::__NR_access, &["/big"], &[0]);
    assert_eq!(inside, Some(errno::ENOENT));
}

#[test]
fn a_root_is_a_folder_and_root_s_to_change() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    tree(&mut run);
    for (at, expected) in [
        ("/tmp/r/d/file", errno::ENOTDIR),
        ("/tmp/none", errno::ENOENT),
    ] {
        let got = with_paths(&mut run, nr::__NR_chroot, &[at], &[]);
        assert_eq!(got, Some(expected), "{at}");
    }
    run.call(nr::__NR_setuid, &[1000]).unwrap();
    let refused = with_paths(&mut run, nr::__NR_chroot, &["/tmp/r"], &[]);
    assert_eq!(refused, Some(errno::EPERM));
}

/// The string at an address of the program.
fn string(run: &Run, at: u64) -> String {
    let memory = run.thread.memory();
    let bytes = run.node.block_on(memory.read_string(at, 4096)).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Returns a new program's arguments and `AT_EXECFN`.
fn told(run: &Run) -> (Vec<String>, String) {
    const AT_EXECFN: u64 = 31;
    let word = |at: u64| u64::from_le_bytes(run.get(at, 8).try_into().unwrap());
    let sp = run.thread.cpu.sp();
    let count = word(sp);
    let args = (1..=count)
        .map(|nth| string(run, word(sp + 8 * nth)))
        .collect();
    let mut at = sp + 8 * (count + 2);
    while word(at) != 0 {
        at += 8;
    }
    at += 8;
    while word(at) != AT_EXECFN {
        assert_ne!(word(at), 0, "no AT_EXECFN");
        at += 16;
    }
    (args, string(run, word(at + 8)))
}

/// Runs `/tmp/r/d/script`, whose interpreter is `/d/program` in the root `/tmp/r`, by a name.
fn run_script(
    name: &str,
    call: u32,
    dir: Option<(&str, u64)>,
) -> Result<(Vec<String>, String), Error> {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    tree(&mut run);
    enter(&mut run);
    let at = run.map(4096).unwrap();
    for (file, bytes) in [
        ("/d/program", program()),
        ("/d/script", b"#! /absolute/program  x y\n".to_vec()),
    ] {
        let fd = run.make_file(file, 0o755).unwrap();
        run.put(at, &bytes);
        let len = bytes.len() as u64;
        assert_eq!(run.call(nr::__NR_write, &[fd, at, len]), Ok(len));
        run.call(nr::__NR_close, &[fd]).unwrap();
    }
    path(&run, PATHS, name);
    path(&run, PATHS + 256, "zero");
    let words: Vec<u8> = [PATHS + 256, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    run.put(DATA, &words);
    let args = match dir {
        None => vec![PATHS, DATA, 0],
        Some((dir, flags)) => {
            path(&run, PATHS + 512, dir);
            let fd = run.call(nr::__NR_open, &[PATHS + 512, flags]).unwrap();
            assert_eq!(fd, 3);
            vec![fd, PATHS, DATA, 0, if name.is_empty() { 0x1000 } else { 0 }]
        }
    };
    run.call(call, &args)?;
    assert_eq!(*run.thread.process.exec_path.lock(), b"/tmp/r/d/program");
    Ok(told(&run))
}

#[test]
fn scripts_are_told_the_name_that_was_given() {
    const CLOSES: u64 = 0o2_000_000;
    let (execve, execveat) = (nr::__NR_execve, nr::__NR_execveat);
    for (name, call, dir, told) in [
        ("/d/script", execve, None, "/d/script"),
        ("d/./script", execve, None, "d/./script"),
        ("script", execveat, Some(("/d", 0)), "/dev/fd/3/script"),
        ("", execveat, Some(("/d/script", 0)), "/dev/fd/3"),
        ("/d/script", execveat, Some(("/d", CLOSES)), "/d/script"),
    ] {
        let (args, by) = run_script(name, call, dir).unwrap();
        assert_eq!(args, ["/absolute/program", "x y", told], "{name}");
        assert_eq!(by, told);
    }
    // The interpreter could not open it.
    let closed = run_script("", execveat, Some(("/d/script", CLOSES)));
    assert_eq!(closed.err(), Some(errno::ENOENT.into()));
}

//! Users, rights, limits.

use super::*;

const O_RDWR: u64 = 2;
const O_CREAT: u64 = 0o100;
const USER: u64 = 1000;

impl Run {
    pub(super) fn make_file(&mut self, path: &str, mode: u64) -> Result<u64, Error> {
        self.put(DATA, format!("{path}\0").as_bytes());
        self.call(nr::__NR_open, &[DATA, O_RDWR | O_CREAT, mode])
    }

    fn reach(&mut self, path: &str, flags: u64) -> Result<u64, Error> {
        self.put(DATA, format!("{path}\0").as_bytes());
        self.call(nr::__NR_open, &[DATA, flags])
    }

    fn set_limit(&mut self, resource: u64, soft: u64, hard: u64) -> Result<u64, Error> {
        let words = [soft, hard].map(u64::to_le_bytes).concat();
        self.put(DATA, &words);
        self.call(nr::__NR_setrlimit, &[resource, DATA])
    }
}

#[test]
fn files_are_their_owner_s() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.make_file("/tmp/secret", 0o600).unwrap();
    run.make_file("/tmp/open", 0o644).unwrap();
    assert_eq!(run.call(nr::__NR_setuid, &[USER]), Ok(0));
    assert_eq!(run.call(nr::__NR_getuid, &[]), Ok(USER));
    let denied = [
        ("/tmp/secret", 0),
        ("/tmp/open", O_RDWR),
        ("/tmp/open", 0o1000),
    ];
    for (path, flags) in denied {
        assert_eq!(
            errno_of(run.reach(path, flags)),
            Some(errno::EACCES),
            "{path} {flags:o}"
        );
    }
    assert!(run.reach("/tmp/open", 0).is_ok());
    run.put(DATA, b"/tmp/open\0");
    let change = run.call(nr::__NR_chmod, &[DATA, 0o777]);
    assert_eq!(errno_of(change), Some(errno::EPERM));
    run.make_file("/tmp/own", 0o600).unwrap();
    run.put(DATA, b"/tmp/own\0");
    assert_eq!(run.call(nr::__NR_chmod, &[DATA, 0o640]), Ok(0));
    let given = run.call(nr::__NR_chown, &[DATA, 0, u64::MAX]);
    assert_eq!(errno_of(given), Some(errno::EPERM));
    // A folder of root's with mode 755.
    assert_eq!(
        errno_of(run.make_file("/run/x", 0o600)),
        Some(errno::EACCES)
    );
    assert_eq!(
        errno_of(run.call(nr::__NR_setuid, &[0])),
        Some(errno::EPERM)
    );
    run.end();
}

#[test]
fn a_user_s_signals_reach_the_user_s_processes_only() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    let other = run.call(nr::__NR_fork, &[]).unwrap();
    let theirs = node.started.borrow_mut().pop().unwrap();
    let own = node.started.borrow_mut().pop().unwrap();
    own.shared
        .change_creds(|creds| creds.set_uid(1000))
        .unwrap();
    run.call(nr::__NR_setuid, &[USER]).unwrap();
    assert_eq!(run.call(nr::__NR_kill, &[child, 0]), Ok(0));
    let denied = run.call(nr::__NR_kill, &[other, 9]);
    assert_eq!(errno_of(denied), Some(errno::EPERM));
    node.block_on(theirs.run());
    node.block_on(own.run());
    run.end();
}

#[test]
fn limits_hold() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    // RLIMIT_NOFILE.
    run.set_limit(7, 4, 4096).unwrap();
    assert_eq!(run.open("/big"), Ok(3));
    assert_eq!(errno_of(run.open("/big")), Some(errno::EMFILE));
    assert_eq!(
        errno_of(run.call(nr::__NR_dup2, &[3, 4])),
        Some(errno::EBADF)
    );
    run.set_limit(7, 4096, 4096).unwrap();
    // RLIMIT_AS.
    let size = run.thread.memory().with_vmas(crate::mm::vma::Vmas::size);
    run.set_limit(9, size + (1 << 20), u64::MAX).unwrap();
    assert_eq!(errno_of(run.map(2 << 20)), Some(errno::ENOMEM));
    assert!(run.map(1 << 20).is_ok());
    run.set_limit(9, u64::MAX, u64::MAX).unwrap();
    // RLIMIT_FSIZE.
    let fd = run.make_file("/tmp/long", 0o600).unwrap();
    run.set_limit(1, 100, u64::MAX).unwrap();
    assert_eq!(run.call(nr::__NR_write, &[fd, DATA, 100]), Ok(100));
    assert_eq!(
        errno_of(run.call(nr::__NR_write, &[fd, DATA, 1])),
        Some(errno::EFBIG)
    );
    assert_ne!(run.thread.pending() & 1 << 24, 0, "SIGXFSZ");
    assert_eq!(errno_of(run.set_limit(16, 0, 0)), Some(errno::EINVAL));
    assert_eq!(errno_of(run.set_limit(0, 2, 1)), Some(errno::EINVAL));
    assert_eq!(run.go(), Ok(Exit::Signal(25)));
}

#[test]
fn programs_of_the_node_s_own_files_run() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.make_file("/tmp/program", 0o700).unwrap();
    let at = run.map(4096).unwrap();
    run.put(at, &program());
    assert_eq!(run.call(nr::__NR_write, &[fd, at, 4096]), Ok(4096));
    assert_eq!(run.call(nr::__NR_close, &[fd]), Ok(0));
    run.put(DATA, b"/tmp/program\0");
    assert_eq!(run.call(nr::__NR_execve, &[DATA, 0, 0]), Ok(0));
    assert_eq!(run.get(0x40_0000, 4096), program());
    assert_eq!(
        run.thread.memory().rights(0x40_0000),
        Some(pcache::Rights::all())
    );
    assert_eq!(*run.thread.shared.name.lock(), b"program");
    run.end();
    assert_eq!(node.files.open.get(), 0);
}

#[test]
fn a_thread_goes_to_the_cores_that_it_may_run_on() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, &2u64.to_le_bytes());
    assert_eq!(run.call(nr::__NR_sched_setaffinity, &[0, 8, DATA]), Ok(0));
    assert_eq!(
        run.call(nr::__NR_sched_getaffinity, &[0, 8, DATA + 8]),
        Ok(8)
    );
    assert_eq!(run.get(DATA + 8, 8), 2u64.to_le_bytes());
    run.put(DATA, &4u64.to_le_bytes());
    let absent = run.call(nr::__NR_sched_setaffinity, &[0, 8, DATA]);
    assert_eq!(errno_of(absent), Some(errno::EINVAL), "there are two cores");
    assert_eq!(run.thread.core(), 0);
    // It moves at its next way into the program.
    node.block_on(run.thread.run());
    let moved = node.started.borrow_mut().pop().unwrap();
    assert_eq!(moved.core(), 1);
    node.block_on(moved.run());
    node.block_on(node.kernel.finish(node)).unwrap();
}

#[test]
fn a_thread_that_moves_takes_its_state_out_of_the_core() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let here = run.thread.core();
    run.put(DATA, &(1u64 << (1 - here)).to_le_bytes());
    let call = |number: u32, args: [u64; 6]| {
        let number = number.into();
        (Trap::Syscall, SystemCall { number, args })
    };
    run.thread.cpu.script = vec![
        call(nr::__NR_sched_setaffinity, [0, 8, DATA, 0, 0, 0]),
        call(nr::__NR_sched_yield, [0; 6]),
    ];
    node.block_on(run.thread.run());
    let moved = node
        .started
        .borrow_mut()
        .pop()
        .expect("it goes on elsewhere");
    assert_eq!((moved.core(), moved.cpu.left_cores), (1 - here, 1));
    node.block_on(moved.run());
}

#[test]
fn the_first_program_runs_as_the_user_that_is_asked_for() {
    let passwd = b"ann:x:1000:100::/home/ann:/bin/sh\n";
    let group = b"video:x:44:ann\n";
    let node: &FakeNode = FakeNode::new(
        64,
        &[
            ("/program", &program()),
            ("/etc/passwd", passwd),
            ("/etc/group", group),
        ],
    );
    let asked = |user: &str| Command {
        user: user.into(),
        env: vec![],
        ..command("/program")
    };
    let unknown = node.block_on(Thread::first(node, &asked("bob")));
    let unknown = unknown.err().unwrap();
    assert_eq!(unknown.status(), 125);
    assert!(unknown.to_string().starts_with("bob: no such user"));
    let mut thread = node.block_on(Thread::first(node, &asked("ann"))).unwrap();
    let creds = thread.shared.creds();
    assert_eq!((creds.user.real, creds.user.fs), (1000, 1000));
    assert_eq!((creds.group.effective, &creds.groups[..]), (100, &[44][..]));
    assert!(!creds.can(0), "no capability");
    let environ = thread.process.arguments.lock().1.clone();
    assert_eq!(environ, b"HOME=/home/ann\0");
    let kill = SystemCall {
        number: nr::__NR_setuid.into(),
        args: [0; 6],
    };
    let refused = node.block_on(thread.system_call(kill));
    assert_eq!(refused, Err(errno::EPERM.into()));
    Run { node, thread }.end();
    assert_eq!(node.files.open.get(), 0);
}

//! Job control, terminals and pseudo-terminals, as programs see them.

use console::{Frame, Source, Start, Window};

use super::*;

const SIGCHLD: u64 = 17;
const SIGCONT: u64 = 18;
const SIGSTOP: u64 = 19;
const SIGTSTP: u64 = 20;
const WNOHANG: u64 = 1;
const WUNTRACED: u64 = 2;
const WCONTINUED: u64 = 8;

fn u32_at(run: &Run, at: u64) -> u32 {
    u32::from_le_bytes(run.get(at, 4).try_into().unwrap())
}

/// A shell with a terminal, and a child in a group of its own.
struct Shell {
    run: Run,
    child: Thread<FakeNode>,
}

impl Shell {
    fn new() -> Self {
        let node: &FakeNode = node(64);
        let start = Start {
            sources: [Source::Terminal; 3],
            window: Window::from_words([24, 80, 0, 0]),
            ..Start::default()
        };
        node.send(&Frame::Start(start));
        let command = Command {
            streams: [Source::Terminal; 3],
            ..command("/bin/program")
        };
        let thread = node.block_on(Thread::first(node, &command)).unwrap();
        let mut run = Run { node, thread };
        // As shells do: SIGTTOU must not stop who gives the terminal away.
        run.put(DATA, &(1u64 << 21).to_le_bytes());
        assert_eq!(run.call(nr::__NR_rt_sigprocmask, &[0, DATA, 0, 8]), Ok(0));
        let pid = run.call(nr::__NR_fork, &[]).unwrap();
        let child = node.started.borrow_mut().pop().unwrap();
        assert_eq!(run.call(nr::__NR_setpgid, &[pid, 0]), Ok(0));
        child.shared.set_mask(0);
        Self { run, child }
    }

    fn pid(&self) -> u64 {
        self.child.pid().into()
    }

    fn child_call(&mut self, number: u32, args: &[u64]) -> Option<Result<u64, Error>> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let number = number.into();
        let call = SystemCall { number, args: all };
        let done = self.run.node.try_block_on(self.child.system_call(call));
        self.run.node.kernel.send_terminals_signals();
        done.map(|done| {
            done.map(|outcome| match outcome {
                Outcome::Value(value) => value,
                Outcome::Registers => 0,
            })
        })
    }

    fn kill(&mut self, signal: u64) {
        let pid = self.pid();
        assert_eq!(self.run.call(nr::__NR_kill, &[pid, signal]), Ok(0));
    }

    /// Returns what a wait without waiting gives: the child, or 0, and the status.
    fn wait(&mut self, options: u64) -> (u64, u32) {
        self.run.put(DATA, &[0; 4]);
        let got = self
            .run
            .call(nr::__NR_wait4, &[u64::MAX, DATA, options | WNOHANG, 0])
            .unwrap();
        (got, u32_at(&self.run, DATA))
    }

    fn type_keys(&self, keys: &[u8]) {
        self.run.node.send(&Frame::Input(keys.to_vec()));
        self.run.node.kernel.send_terminals_signals();
    }

    fn foreground(&mut self, group: u64) {
        self.run
            .put(DATA, &u32::try_from(group).unwrap().to_le_bytes());
        assert_eq!(self.run.call(nr::__NR_ioctl, &[0, 0x5410, DATA]), Ok(0));
    }
}

#[test]
fn a_stopped_child_does_nothing_until_it_is_told_to_go_on() {
    let mut shell = Shell::new();
    let pid = shell.pid();
    shell.kill(SIGSTOP);
    assert_eq!(shell.wait(0), (0, 0), "nobody asked for stops");
    assert_eq!(shell.wait(WUNTRACED), (pid, 0x137f));
    assert_eq!(shell.wait(WUNTRACED), (0, 0), "it is told once");
    let node = shell.run.node;
    assert!(
        node.try_block_on(shell.child.step()).is_none(),
        "its thread waits"
    );
    shell.kill(SIGCONT);
    assert_eq!(shell.wait(WCONTINUED), (pid, 0xffff));
    // It exits now.
    node.block_on(shell.child.run());
    let mut run = shell.run;
    assert_eq!(run.call(nr::__NR_wait4, &[u64::MAX, 0, 0, 0]), Ok(pid));
    run.end();
}

#[test]
fn a_stopped_child_can_be_killed() {
    let mut shell = Shell::new();
    let pid = shell.pid();
    shell.kill(SIGTSTP);
    assert_eq!(shell.wait(WUNTRACED), (pid, 0x147f));
    shell.kill(9);
    let node = shell.run.node;
    node.block_on(shell.child.run());
    let mut run = shell.run;
    run.put(DATA, &[0; 4]);
    assert_eq!(run.call(nr::__NR_wait4, &[u64::MAX, DATA, 0, 0]), Ok(pid));
    assert_eq!(u32_at(&run, DATA), 9);
}

#[test]
fn parents_hear_of_stops_unless_they_said_no() {
    for (flags, heard) in [(0, true), (1, false)] {
        let mut shell = Shell::new();
        let words = [0x40_0200u64, flags | 0x0400_0000, 0x40_0300, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        shell.run.put(DATA, &bytes);
        assert_eq!(
            shell
                .run
                .call(nr::__NR_rt_sigaction, &[SIGCHLD, DATA, 0, 8]),
            Ok(0)
        );
        shell.kill(SIGSTOP);
        let pending = shell.run.thread.due() & 1 << (SIGCHLD - 1) != 0;
        assert_eq!(pending, heard);
    }
}

#[test]
fn stops_are_told_by_waitid_with_their_code() {
    let mut shell = Shell::new();
    shell.kill(SIGSTOP);
    // P_ALL, WSTOPPED | WNOHANG.
    assert_eq!(shell.run.call(nr::__NR_waitid, &[0, 0, DATA, 3, 0]), Ok(0));
    let words = [0, 8, 16, 24].map(|at| u32_at(&shell.run, DATA + at));
    assert_eq!(words, [17, 5, u32::try_from(shell.pid()).unwrap(), 19]);
}

#[test]
fn keys_signal_the_foreground_and_the_background_waits_for_it() {
    let mut shell = Shell::new();
    let pid = shell.pid();
    // The shell has the terminal: the child is stopped when it reads.
    let read = shell.child_call(nr::__NR_read, &[0, DATA, 10]);
    assert_eq!(read, Some(Err(errno::ERESTARTSYS.into())));
    assert_eq!(shell.wait(WUNTRACED), (pid, 0x157f));
    // `fg`.
    shell.foreground(pid);
    shell.kill(SIGCONT);
    shell.type_keys(b"line\n");
    assert_eq!(shell.child_call(nr::__NR_read, &[0, DATA, 10]), Some(Ok(5)));
    shell.type_keys(b"\x1a");
    assert_eq!(shell.wait(WUNTRACED), (pid, 0x147f), "Ctrl-Z");
    shell.kill(SIGCONT);
    shell.type_keys(b"\x03");
    let node = shell.run.node;
    node.block_on(shell.child.run());
    assert_eq!(
        node.ended(u32::try_from(pid).unwrap()),
        Some(Exit::Signal(2)),
        "Ctrl-C"
    );
    let shown: Vec<u8> = node
        .platform
        .out
        .take()
        .into_iter()
        .flat_map(|(_, bytes)| bytes)
        .collect();
    node.drain();
    let rest: Vec<u8> = node
        .platform
        .out
        .take()
        .into_iter()
        .flat_map(|(_, bytes)| bytes)
        .collect();
    assert_eq!([shown, rest].concat(), b"line\r\n^Z^C");
}

/// A thread that waits in the kernel when its process stops takes nothing from the terminal.
#[test]
fn a_frozen_read_leaves_what_is_typed_to_others() {
    let mut shell = Shell::new();
    let pid = shell.pid();
    shell.foreground(pid);
    let node = shell.run.node;
    let call = SystemCall {
        number: nr::__NR_read.into(),
        args: [0, DATA, 10, 0, 0, 0],
    };
    let mut read = Box::pin(shell.child.system_call(call));
    assert!(node.try_block_on(read.as_mut()).is_none());
    assert_eq!(shell.run.call(nr::__NR_kill, &[pid, SIGSTOP]), Ok(0));
    shell.run.put(DATA, &1u32.to_le_bytes());
    assert_eq!(shell.run.call(nr::__NR_ioctl, &[0, 0x5410, DATA]), Ok(0));
    node.send(&Frame::Input(b"mine\n".to_vec()));
    assert!(node.try_block_on(read.as_mut()).is_none());
    assert_eq!(shell.run.call(nr::__NR_read, &[0, DATA, 10]), Ok(5));
}

#[test]
fn background_writers_stop_only_if_the_terminal_says_so() {
    let mut shell = Shell::new();
    assert_eq!(shell.child_call(nr::__NR_write, &[1, DATA, 1]), Some(Ok(1)));
    // TCGETS, TOSTOP, TCSETS.
    assert_eq!(shell.run.call(nr::__NR_ioctl, &[0, 0x5401, DATA]), Ok(0));
    let local = u32_at(&shell.run, DATA + 12) | 0o400;
    shell.run.put(DATA + 12, &local.to_le_bytes());
    assert_eq!(shell.run.call(nr::__NR_ioctl, &[0, 0x5402, DATA]), Ok(0));
    let wrote = shell.child_call(nr::__NR_write, &[1, DATA, 1]);
    assert_eq!(wrote, Some(Err(errno::ERESTARTSYS.into())));
    assert_eq!(shell.wait(WUNTRACED).1, 0x167f);
}

#[test]
fn orphaned_groups_are_not_stopped_by_keys_and_hear_when_they_are_left() {
    let mut shell = Shell::new();
    // The first process's group has no keeper.
    shell.type_keys(b"\x1a");
    assert!(!shell.run.thread.process.is_stopped());
    // A grandchild in a group of its own stops; its parent's end leaves it without a keeper.
    let node = shell.run.node;
    let pid = shell.child_call(nr::__NR_fork, &[]).unwrap().unwrap();
    let grandchild = node.started.borrow_mut().pop().unwrap();
    assert_eq!(
        shell.child_call(nr::__NR_setsid, &[]),
        Some(Err(errno::EPERM.into())),
        "it leads a group"
    );
    assert_eq!(shell.run.call(nr::__NR_kill, &[pid, SIGTSTP]), Ok(0));
    assert!(grandchild.process.is_stopped());
    node.block_on(shell.child.run());
    // The first process is its parent now, in another group of the session: there is a keeper.
    assert!(grandchild.process.is_stopped());
    shell.run.thread.process.end(Exit::Code(0));
    node.block_on(shell.run.thread.run());
    assert!(!grandchild.process.is_stopped(), "SIGHUP and SIGCONT");
    assert_ne!(grandchild.due() & 1, 0, "SIGHUP");
}

#[test]
fn a_group_that_was_orphaned_before_hears_of_no_member_s_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let [stopped, ending] = [(); 2].map(|()| {
        let pid = run.call(nr::__NR_fork, &[]).unwrap();
        (pid, node.started.borrow_mut().pop().unwrap())
    });
    assert_eq!(run.call(nr::__NR_kill, &[stopped.0, SIGSTOP]), Ok(0));
    ending.1.process.end(Exit::Code(0));
    node.block_on(ending.1.run());
    assert!(
        stopped.1.process.is_stopped(),
        "its group had no keeper anyway"
    );
    assert_eq!(run.thread.due() & 1, 0, "no SIGHUP");
}

#[test]
fn a_terminal_tells_its_size_and_who_has_it() {
    let mut shell = Shell::new();
    assert_eq!(shell.run.call(nr::__NR_ioctl, &[1, 0x5413, DATA]), Ok(0));
    assert_eq!(shell.run.get(DATA, 8), [24, 0, 80, 0, 0, 0, 0, 0]);
    shell
        .run
        .node
        .send(&Frame::Window(Window::from_words([25, 90, 0, 0])));
    assert_eq!(shell.run.call(nr::__NR_ioctl, &[1, 0x5413, DATA]), Ok(0));
    assert_eq!(shell.run.get(DATA, 4), [25, 0, 90, 0]);
    assert_eq!(shell.run.call(nr::__NR_ioctl, &[0, 0x540f, DATA]), Ok(0));
    assert_eq!(u32_at(&shell.run, DATA), 1);
    shell.run.put(DATA, &77u32.to_le_bytes());
    let nobody = shell.run.call(nr::__NR_ioctl, &[0, 0x5410, DATA]);
    assert_eq!(errno_of(nobody), Some(errno::ESRCH));
    shell.run.put(DATA, b"/dev/tty\0");
    let tty = shell.run.call(nr::__NR_open, &[DATA, 2]).unwrap();
    assert_eq!(shell.run.call(nr::__NR_write, &[tty, DATA, 1]), Ok(1));
    assert_eq!(
        shell.run.call(nr::__NR_ioctl, &[tty, 0x5401, 8]),
        Err(errno::EFAULT.into())
    );
}

#[test]
fn a_pseudo_terminal_is_a_session_s_and_ends_with_its_master() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA, b"/dev/ptmx\0");
    let master = run.call(nr::__NR_open, &[DATA, 2]).unwrap();
    assert_eq!(
        run.call(nr::__NR_ioctl, &[master, 0x8004_5430, DATA]),
        Ok(0),
        "TIOCGPTN"
    );
    assert_eq!(u32_at(&run, DATA), 0);
    run.put(DATA, b"/dev/pts/0\0");
    let locked = run.call(nr::__NR_open, &[DATA, 2]);
    assert_eq!(errno_of(locked), Some(errno::EIO));
    run.put(DATA, &[0; 4]);
    assert_eq!(
        run.call(nr::__NR_ioctl, &[master, 0x4004_5431, DATA]),
        Ok(0),
        "TIOCSPTLCK"
    );
    run.put(DATA, b"/dev/pts/0\0");
    let tty = run.call(nr::__NR_open, &[DATA, 2]).unwrap();
    run.put(DATA, b"hi\n");
    assert_eq!(run.call(nr::__NR_write, &[master, DATA, 3]), Ok(3));
    assert_eq!(run.call(nr::__NR_read, &[tty, DATA, 100]), Ok(3));
    assert_eq!(run.call(nr::__NR_read, &[master, DATA, 100]), Ok(4));
    assert_eq!(run.get(DATA, 4), b"hi\r\n");
    // The first process leads its session: the terminal that it opened controls it.
    assert_eq!(run.call(nr::__NR_ioctl, &[tty, 0x540f, DATA]), Ok(0));
    assert_eq!(run.call(nr::__NR_close, &[master]), Ok(0));
    assert_eq!(run.call(nr::__NR_read, &[tty, DATA, 100]), Ok(0));
    node.kernel.send_terminals_signals();
    assert_ne!(run.thread.due() & 1, 0, "SIGHUP");
    run.put(DATA, b"/dev/pts/0\0");
    let gone = run.call(nr::__NR_open, &[DATA, 2]);
    assert_eq!(errno_of(gone), Some(errno::ENOENT));
}

/// Opens a pseudo-terminal; returns its master and the program's side.
fn open_pty(run: &mut Run) -> [u64; 2] {
    run.put(DATA, b"/dev/ptmx\0");
    let master = run.call(nr::__NR_open, &[DATA, 2]).unwrap();
    run.put(DATA, &[0; 4]);
    run.call(nr::__NR_ioctl, &[master, 0x4004_5431, DATA])
        .unwrap();
    run.put(DATA, b"/dev/pts/0\0");
    [master, run.call(nr::__NR_open, &[DATA, 2]).unwrap()]
}

#[test]
fn each_side_of_a_pseudo_terminal_forgets_its_own_input() {
    const TCFLSH: u64 = 0x540b;
    const FIONREAD: u64 = 0x541b;
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let [master, tty] = open_pty(&mut run);
    let waiting = |run: &mut Run, fd: u64| {
        run.call(nr::__NR_ioctl, &[fd, FIONREAD, DATA + 64])
            .unwrap();
        u32_at(run, DATA + 64)
    };
    // A flush of one's output, then of one's input.
    for (writer, reader, text) in [
        (tty, master, b"to the master"),
        (master, tty, b"to a program\n"),
    ] {
        run.put(DATA, text);
        run.call(nr::__NR_write, &[writer, DATA, 13]).unwrap();
        let came = waiting(&mut run, reader);
        assert!(came >= 13, "{came}");
        for (fd, queue) in [(reader, 1), (writer, 1), (writer, 0)] {
            run.call(nr::__NR_ioctl, &[fd, TCFLSH, queue]).unwrap();
            assert_eq!(waiting(&mut run, reader), came, "{fd} {queue}");
        }
        run.call(nr::__NR_ioctl, &[reader, TCFLSH, 0]).unwrap();
        assert_eq!(waiting(&mut run, reader), 0);
    }
    let wrong = run.call(nr::__NR_ioctl, &[master, TCFLSH, 3]);
    assert_eq!(errno_of(wrong), Some(errno::EINVAL));
}

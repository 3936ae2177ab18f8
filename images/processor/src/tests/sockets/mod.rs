//! Sockets: local ones, and Internet sockets among the node's programs.

mod inet;

use super::*;
use crate::error::errno;

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const STREAM: u64 = 1;
const DGRAM: u64 = 2;
const SEQPACKET: u64 = 5;
const NONBLOCK: u64 = 0o4000;
const SOL_SOCKET: u64 = 1;
const SO_ERROR: u64 = 4;
const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u64 = 0x20;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_NOSIGNAL: u64 = 0x4000;
/// Places in the program's page.
const ADDR: u64 = DATA + 0x100;
const LEN: u64 = DATA + 0x180;
const HEADER: u64 = DATA + 0x200;
const PIECES: u64 = DATA + 0x280;
const CONTROL: u64 = DATA + 0x300;
const BUF: u64 = DATA + 0x800;

fn unix(path: &[u8]) -> Vec<u8> {
    [&1u16.to_le_bytes()[..], path].concat()
}

fn inet(ip: [u8; 4], port: u16) -> Vec<u8> {
    [&2u16.to_le_bytes()[..], &port.to_be_bytes(), &ip, &[0; 8]].concat()
}

fn inet6(last: u8, port: u16) -> Vec<u8> {
    let mut bytes = [&10u16.to_le_bytes()[..], &port.to_be_bytes(), &[0; 24]].concat();
    bytes[23] = last;
    bytes
}

impl Run {
    fn socket(&mut self, domain: u64, kind: u64) -> u64 {
        self.call(nr::__NR_socket, &[domain, kind, 0]).unwrap()
    }

    fn pair(&mut self, kind: u64) -> (u64, u64) {
        self.call(nr::__NR_socketpair, &[AF_UNIX, kind, 0, DATA])
            .unwrap();
        (u64::from(self.int(DATA)), u64::from(self.int(DATA + 4)))
    }

    fn int(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }

    fn with_address(&mut self, call: u32, fd: u64, address: &[u8]) -> Result<u64, Error> {
        self.put(ADDR, address);
        self.call(call, &[fd, ADDR, address.len() as u64])
    }

    fn bind(&mut self, fd: u64, address: &[u8]) -> Result<u64, Error> {
        self.with_address(nr::__NR_bind, fd, address)
    }

    fn connect(&mut self, fd: u64, address: &[u8]) -> Result<u64, Error> {
        self.with_address(nr::__NR_connect, fd, address)
    }

    /// Returns the address that a call fills in.
    fn name_of(&mut self, call: u32, fd: u64) -> Result<Vec<u8>, Error> {
        self.put(LEN, &128u32.to_le_bytes());
        self.call(call, &[fd, ADDR, LEN])?;
        let len = usize::try_from(self.int(LEN)).unwrap();
        Ok(self.get(ADDR, len))
    }

    fn write_to(&mut self, fd: u64, bytes: &[u8]) -> Result<u64, Error> {
        self.put(BUF, bytes);
        self.call(nr::__NR_write, &[fd, BUF, bytes.len() as u64])
    }

    fn read_from(&mut self, fd: u64) -> Result<Vec<u8>, Error> {
        let len = self.call(nr::__NR_read, &[fd, BUF, 0x800])?;
        Ok(self.get(BUF, usize::try_from(len).unwrap()))
    }

    fn receive(&mut self, fd: u64, len: u64, flags: u64) -> Result<u64, Error> {
        self.call(nr::__NR_recvfrom, &[fd, BUF, len, flags, 0, 0])
    }

    fn send(&mut self, fd: u64, len: u64, flags: u64) -> Result<u64, Error> {
        self.call(nr::__NR_sendto, &[fd, BUF, len, flags, 0, 0])
    }

    fn option(&mut self, fd: u64, level: u64, name: u64) -> Result<u32, Error> {
        self.put(LEN, &4u32.to_le_bytes());
        self.call(nr::__NR_getsockopt, &[fd, level, name, BUF, LEN])?;
        Ok(self.int(BUF))
    }

    fn set_option(&mut self, fd: u64, level: u64, name: u64, value: &[u8]) -> Result<u64, Error> {
        self.put(BUF, value);
        self.call(
            nr::__NR_setsockopt,
            &[fd, level, name, BUF, value.len() as u64],
        )
    }

    fn polled(&mut self, fd: u64) -> u16 {
        self.put(DATA, &[&int_bytes(fd)[..], &[0xff, 0xff, 0, 0]].concat());
        self.call(nr::__NR_poll, &[DATA, 1, 0]).unwrap();
        u16::from_le_bytes(self.get(DATA + 6, 2).try_into().unwrap())
    }

    /// Lays out a `struct msghdr` with one piece at BUF.
    fn header(&self, len: u64, control: &[u8], room: u64) {
        self.put(PIECES, &words(&[BUF, len]));
        self.put(CONTROL, control);
        let room = room.max(control.len() as u64);
        self.put(HEADER, &words(&[0, 0, PIECES, 1, CONTROL, room, 0]));
    }

    fn send_files(&mut self, fd: u64, files: &[u64]) -> Result<u64, Error> {
        let data: Vec<u8> = files.iter().flat_map(|&fd| int_bytes(fd)).collect();
        let header = [
            &words(&[16 + data.len() as u64])[..],
            &[1, 0, 0, 0, 1, 0, 0, 0],
        ]
        .concat();
        self.put(BUF, b"f");
        self.header(1, &[header, data].concat(), 0);
        self.call(nr::__NR_sendmsg, &[fd, HEADER, 0])
    }

    /// Receives; returns the files and the flags.
    fn receive_files(&mut self, fd: u64, room: u64) -> (Vec<u64>, u32) {
        self.header(16, &[], room);
        assert_eq!(self.call(nr::__NR_recvmsg, &[fd, HEADER, 0]), Ok(1));
        let len = u64::from(self.int(HEADER + 40));
        let files = (16..len)
            .step_by(4)
            .take_while(|at| at + 4 <= u64::from(self.int(CONTROL)));
        let files = files.map(|at| u64::from(self.int(CONTROL + at))).collect();
        (files, self.int(HEADER + 48))
    }

    fn close(&mut self, fd: u64) {
        assert_eq!(self.call(nr::__NR_close, &[fd]), Ok(0));
    }

    /// Ends, and looks that no socket and no byte is left.
    fn ends(self) {
        let node = self.node;
        self.end();
        assert_eq!(node.kernel.net.held(), (0, 0));
    }

    fn flying(&self) -> bool {
        self.node.kernel.net.any_flying()
    }
}

fn int_bytes(fd: u64) -> [u8; 4] {
    u32::try_from(fd).unwrap().to_le_bytes()
}

fn fails(result: Result<u64, Error>, errno: messages::Errno) {
    assert_eq!(errno_of(result), Some(errno));
}

#[test]
fn a_pair_carries_bytes_until_an_end_closes() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(STREAM | NONBLOCK);
    assert_eq!(run.polled(a), 0x304);
    assert_eq!(run.write_to(a, b"hello"), Ok(5));
    assert_eq!(run.polled(b), 0x345);
    assert_eq!(run.call(nr::__NR_ioctl, &[b, 0x541b, DATA]), Ok(0));
    assert_eq!(run.int(DATA), 5);
    assert_eq!(run.receive(b, 2, MSG_PEEK), Ok(2));
    assert_eq!(run.read_from(b).unwrap(), b"hello");
    fails(run.receive(b, 10, 0), errno::EAGAIN);
    assert_eq!(run.call(nr::__NR_fstat, &[a, DATA]), Ok(0));
    assert_eq!(run.int(DATA + 24), 0o140_777);
    // One direction ends: what was sent is read, then the end.
    assert_eq!(run.write_to(b, b"x"), Ok(1));
    assert_eq!(run.call(nr::__NR_shutdown, &[b, 1]), Ok(0));
    assert_eq!(run.polled(a), 0x2345);
    assert_eq!(
        (run.read_from(a).unwrap(), run.read_from(a).unwrap()),
        (b"x".to_vec(), vec![])
    );
    fails(run.send(b, 1, MSG_NOSIGNAL), errno::EPIPE);
    assert_eq!(run.thread.due(), 0);
    run.close(b);
    assert_eq!(run.polled(a), 0x2355);
    fails(run.send(a, 1, 0), errno::EPIPE);
    assert_eq!(run.thread.due(), 1 << 12, "SIGPIPE");
    run.ends();
}

#[test]
fn what_was_not_read_resets_the_other_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(STREAM);
    run.write_to(a, b"unread").unwrap();
    run.close(b);
    fails(run.receive(a, 1, 0), errno::ECONNRESET);
    assert_eq!(run.receive(a, 1, 0), Ok(0));
    run.ends();
}

#[test]
fn a_full_stream_blocks_and_waitall_waits() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(STREAM | NONBLOCK);
    let big = run.map(1 << 20).unwrap();
    let sent = run.call(nr::__NR_write, &[a, big, 1 << 20]).unwrap();
    assert!((150_000..=212_992).contains(&sent), "{sent}");
    fails(run.call(nr::__NR_write, &[a, big, 1]), errno::EAGAIN);
    assert_eq!(run.polled(a) & 4, 0);
    assert_eq!(run.call(nr::__NR_read, &[b, big, 1 << 20]), Ok(sent));
    assert_eq!(run.polled(a) & 4, 4);
    // Vectors, and a receive that has not all it wants.
    run.put(PIECES, &words(&[BUF, 3, BUF + 3, 4]));
    run.put(BUF, b"abcdefg");
    assert_eq!(run.call(nr::__NR_writev, &[a, PIECES, 2]), Ok(7));
    assert_eq!(
        run.receive(b, 20, MSG_WAITALL),
        Ok(7),
        "it does not wait for more"
    );
    run.call(nr::__NR_writev, &[a, PIECES, 2]).unwrap();
    run.put(BUF, &[0; 8]);
    assert_eq!(run.call(nr::__NR_readv, &[b, PIECES, 2]), Ok(7));
    assert_eq!(run.get(BUF, 7), b"abcdefg");
    // Who waits for a time gives up.
    let timeout = words(&[0, 1000]);
    assert_eq!(run.call(nr::__NR_fcntl, &[b, 4, 0]), Ok(0));
    assert_eq!(run.set_option(b, SOL_SOCKET, 20, &timeout), Ok(0));
    fails(run.receive(b, 1, 0), errno::EAGAIN);
    fails(
        run.set_option(b, SOL_SOCKET, 20, &words(&[0, 1_000_000])),
        errno::EDOM,
    );
    run.ends();
}

#[test]
fn datagrams_have_bounds_names_and_limits() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let receiver = run.socket(AF_UNIX, DGRAM | NONBLOCK);
    assert_eq!(run.bind(receiver, &unix(b"\0abc")), Ok(0));
    let sender = run.socket(AF_UNIX, DGRAM | NONBLOCK);
    fails(run.send(sender, 1, 0), errno::ENOTCONN);
    fails(run.connect(sender, &unix(b"\0none")), errno::ECONNREFUSED);
    assert_eq!(run.bind(sender, &unix(b"")), Ok(0));
    assert_eq!(
        run.name_of(nr::__NR_getsockname, sender).unwrap(),
        unix(b"\x0000001")
    );
    assert_eq!(run.connect(sender, &unix(b"\0abc")), Ok(0));
    for text in [&b"first"[..], b"", b"third"] {
        assert_eq!(run.write_to(sender, text), Ok(text.len() as u64));
    }
    run.put(LEN, &128u32.to_le_bytes());
    let got = run.call(nr::__NR_recvfrom, &[receiver, BUF, 3, MSG_TRUNC, ADDR, LEN]);
    assert_eq!((got, run.get(BUF, 3)), (Ok(5), b"fir".to_vec()));
    let len = usize::try_from(run.int(LEN)).unwrap();
    assert_eq!(run.get(ADDR, len), unix(b"\x0000001"));
    assert_eq!(run.receive(receiver, 10, 0), Ok(0));
    assert_eq!(run.receive(receiver, 10, 0), Ok(5));
    // As many wait as Linux lets wait.
    let sent = (0..20)
        .take_while(|_| run.write_to(sender, b"x").is_ok())
        .count();
    assert_eq!((sent, run.polled(sender)), (11, 0));
    run.close(receiver);
    assert_eq!(run.polled(sender), 0x304);
    fails(run.send(sender, 1, 0), errno::ECONNREFUSED);
    fails(run.send(sender, 1, 0), errno::ENOTCONN);
    let (a, b) = run.pair(SEQPACKET);
    assert_eq!(
        (run.write_to(a, b"one"), run.write_to(a, b"two")),
        (Ok(3), Ok(3))
    );
    assert_eq!(run.read_from(b).unwrap(), b"one");
    let huge = run.map(1 << 20).unwrap();
    let sending = [a, huge, 212_961, 0, 0, 0];
    fails(run.call(nr::__NR_sendto, &sending), errno::EMSGSIZE);
    run.ends();
}

#[test]
fn local_servers_listen_at_paths_and_names() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let server = run.socket(AF_UNIX, STREAM | NONBLOCK);
    fails(run.call(nr::__NR_listen, &[server, 1]), errno::EINVAL);
    node.files.read_only.set(true);
    fails(run.bind(server, &unix(b"/new")), errno::EROFS);
    node.files.read_only.set(false);
    assert_eq!(run.bind(server, &unix(b"/tmp/s")), Ok(0));
    fails(run.bind(server, &unix(b"/tmp/s")), errno::EADDRINUSE);
    fails(run.bind(server, &unix(b"/tmp/t")), errno::EINVAL);
    fails(run.open("/tmp/t"), errno::ENOENT);
    let client = run.socket(AF_UNIX, STREAM | NONBLOCK);
    fails(run.connect(client, &unix(b"/tmp/s")), errno::ECONNREFUSED);
    fails(run.connect(client, &unix(b"/tmp/none")), errno::ENOENT);
    assert_eq!(run.call(nr::__NR_listen, &[server, 1]), Ok(0));
    fails(run.call(nr::__NR_accept, &[server, 0, 0]), errno::EAGAIN);
    assert_eq!(run.connect(client, &unix(b"/tmp/s")), Ok(0));
    fails(run.connect(client, &unix(b"/tmp/s")), errno::EISCONN);
    let wrong = run.socket(AF_UNIX, DGRAM);
    fails(run.connect(wrong, &unix(b"/tmp/s")), errno::EPROTOTYPE);
    fails(run.bind(wrong, &unix(b"/tmp/s")), errno::EADDRINUSE);
    // Two may wait where one is asked for, as on Linux.
    let (second, third) = (
        run.socket(AF_UNIX, STREAM | NONBLOCK),
        run.socket(AF_UNIX, STREAM | NONBLOCK),
    );
    assert_eq!(run.connect(second, &unix(b"/tmp/s")), Ok(0));
    fails(run.connect(third, &unix(b"/tmp/s")), errno::EAGAIN);
    assert_eq!(run.polled(server), 0x41);
    run.write_to(client, b"early").unwrap();
    run.put(LEN, &128u32.to_le_bytes());
    let accepted = run
        .call(nr::__NR_accept4, &[server, ADDR, LEN, 0o2_000_000])
        .unwrap();
    assert_eq!(
        (run.int(LEN), run.call(nr::__NR_fcntl, &[accepted, 1])),
        (2, Ok(1))
    );
    assert_eq!(run.read_from(accepted).unwrap(), b"early");
    assert_eq!(
        run.name_of(nr::__NR_getpeername, client).unwrap(),
        unix(b"/tmp/s\0")
    );
    assert_eq!(
        run.option(client, SOL_SOCKET, 17),
        Ok(1),
        "SO_PEERCRED: the process"
    );
    assert_eq!(
        (
            run.option(server, SOL_SOCKET, 30),
            run.option(client, SOL_SOCKET, 30)
        ),
        (Ok(1), Ok(0))
    );
    // Closed before it was accepted, the second is reset; the name stays as a file.
    run.close(server);
    fails(run.receive(second, 1, 0), errno::ECONNRESET);
    fails(run.connect(third, &unix(b"/tmp/s")), errno::ECONNREFUSED);
    fails(run.open("/tmp/s"), errno::ENXIO);
    run.ends();
}

#[test]
fn files_travel_and_keep_what_they_are() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(STREAM);
    let file = run.open("/big").unwrap();
    assert_eq!(run.send_files(a, &[file, file]), Ok(1));
    fails(run.send_files(a, &[99]), errno::EBADF);
    run.close(file);
    assert_eq!(
        node.files.open.get(),
        2,
        "it is on its way; the other is the program's"
    );
    let (files, flags) = run.receive_files(b, 64);
    assert_eq!((files.len(), flags), (2, 0));
    assert_eq!(run.call(nr::__NR_read, &[files[1], BUF, 10]), Ok(10));
    assert_eq!(
        run.call(nr::__NR_lseek, &[files[0], 0, 1]),
        Ok(10),
        "the same open file"
    );
    // Room for one only, and none at all.
    run.send_files(a, &files).unwrap();
    let (one, flags) = run.receive_files(b, 20);
    assert_eq!((one.len(), flags), (1, 8));
    run.send_files(a, &files).unwrap();
    assert_eq!(run.receive(b, 10, 0), Ok(1));
    for fd in [files[0], files[1], one[0]] {
        run.close(fd);
    }
    assert_eq!(
        node.files.open.get(),
        2,
        "the program's, and the one whose pages are kept"
    );
    assert!(!run.flying());
    run.ends();
}

#[test]
fn credentials_are_passed_to_who_asks() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(DGRAM);
    assert_eq!(run.set_option(b, SOL_SOCKET, 16, &[1, 0, 0, 0]), Ok(0));
    run.write_to(a, b"x").unwrap();
    run.header(16, &[], 64);
    assert_eq!(run.call(nr::__NR_recvmsg, &[b, HEADER, 0]), Ok(1));
    assert_eq!(
        run.get(CONTROL, 16),
        [words(&[28]), vec![1, 0, 0, 0, 2, 0, 0, 0]].concat()
    );
    assert_eq!((run.int(CONTROL + 16), run.int(HEADER + 40)), (1, 32));
    // Another's number that nobody has.
    let control = [words(&[28]), vec![1, 0, 0, 0, 2, 0, 0, 0], vec![77; 12]].concat();
    run.header(1, &control, 0);
    fails(run.call(nr::__NR_sendmsg, &[a, HEADER, 0]), errno::ESRCH);
    run.ends();
}

#[test]
fn sockets_that_only_reach_each_other_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let file = run.open("/big").unwrap();
    for _ in 0..3 {
        // Each holds the other, and a file.
        let (a, b) = run.pair(STREAM);
        let (c, d) = run.pair(STREAM);
        run.send_files(a, &[d, file]).unwrap();
        run.send_files(c, &[b]).unwrap();
        run.close(a);
        run.close(c);
        run.close(b);
        assert!(run.flying(), "a program can still reach them");
        run.close(d);
        assert!(!run.flying());
        // One that holds itself, waiting to be accepted.
        let server = run.socket(AF_UNIX, STREAM);
        let name = unix(b"\0loop");
        run.bind(server, &name).unwrap();
        run.call(nr::__NR_listen, &[server, 5]).unwrap();
        let client = run.socket(AF_UNIX, STREAM);
        run.connect(client, &name).unwrap();
        run.send_files(client, &[server, client]).unwrap();
        run.close(client);
        assert!(run.flying());
        run.close(server);
        assert!(!run.flying());
    }
    // A chain, however long, is let go link by link.
    let (mut a, mut b) = run.pair(STREAM);
    for _ in 0..300 {
        let (c, d) = run.pair(STREAM);
        run.send_files(c, &[a, b]).unwrap();
        run.close(a);
        run.close(b);
        (a, b) = (c, d);
    }
    assert!(run.flying());
    run.close(a);
    run.close(b);
    assert!(!run.flying());
    run.close(file);
    assert_eq!(node.files.open.get(), 1);
    run.ends();
}

#[test]
fn a_socket_that_someone_can_receive_lives() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(STREAM);
    let (c, d) = run.pair(STREAM);
    let (e, f) = run.pair(STREAM);
    // f is on its way to d, which is on its way to b, which is open.
    run.write_to(e, b"kept").unwrap();
    run.send_files(c, &[f]).unwrap();
    run.send_files(a, &[d]).unwrap();
    for fd in [a, c, d, e, f] {
        run.close(fd);
    }
    let (got, _) = run.receive_files(b, 64);
    let (inner, _) = run.receive_files(got[0], 64);
    assert_eq!(run.read_from(inner[0]).unwrap(), b"kept");
    run.ends();
}

#[test]
fn options_say_what_linux_says() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (local, tcp) = (run.socket(AF_UNIX, STREAM), run.socket(AF_INET, STREAM));
    let udp = run.socket(AF_INET6, DGRAM);
    for (fd, name, value) in [
        (local, 3, 1),
        (udp, 3, 2),
        (local, 39, 1),
        (udp, 39, 10),
        (local, 38, 0),
        (tcp, 38, 6),
        (udp, 38, 17),
        (local, 7, 212_992),
        (tcp, 7, 16_384),
        (tcp, 8, 131_072),
        (tcp, 18, 1),
        (tcp, SO_ERROR, 0),
    ] {
        assert_eq!(run.option(fd, SOL_SOCKET, name), Ok(value), "{name}");
    }
    assert_eq!(
        run.set_option(tcp, SOL_SOCKET, 7, &1u32.to_le_bytes()),
        Ok(0)
    );
    assert_eq!(run.option(tcp, SOL_SOCKET, 7), Ok(4608));
    assert_eq!(
        run.set_option(tcp, SOL_SOCKET, 8, &5000u32.to_le_bytes()),
        Ok(0)
    );
    assert_eq!(run.option(tcp, SOL_SOCKET, 8), Ok(10_000));
    assert_eq!(run.set_option(tcp, 6, 1, &1u32.to_le_bytes()), Ok(0));
    assert_eq!(run.option(tcp, 6, 1), Ok(1));
    for (fd, level, name, errno) in [
        (tcp, SOL_SOCKET, 999, errno::ENOPROTOOPT),
        (tcp, 77, 1, errno::EOPNOTSUPP),
        (local, 6, 1, errno::EOPNOTSUPP),
        (tcp, SOL_SOCKET, 16, errno::EOPNOTSUPP),
        (0, SOL_SOCKET, 3, errno::ENOTSOCK),
        (99, SOL_SOCKET, 3, errno::EBADF),
    ] {
        assert_eq!(errno_of(run.option(fd, level, name)), Some(errno));
    }
    for (domain, kind, protocol, errno) in [
        (1, 1, 5, errno::EPROTONOSUPPORT),
        (1, 4, 0, errno::ESOCKTNOSUPPORT),
        (1, 11, 0, errno::EINVAL),
        (2, 1, 17, errno::EPROTONOSUPPORT),
        (2, 5, 0, errno::ESOCKTNOSUPPORT),
        (77, 1, 0, errno::EAFNOSUPPORT),
    ] {
        fails(run.call(nr::__NR_socket, &[domain, kind, protocol]), errno);
    }
    fails(
        run.call(nr::__NR_socketpair, &[AF_INET, STREAM, 0, DATA]),
        errno::EOPNOTSUPP,
    );
    run.ends();
}

#[test]
fn a_call_that_waits_goes_on_when_something_comes() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (a, b) = run.pair(STREAM);
    let call = |number: u32, args: &[u64]| {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        SystemCall {
            number: number.into(),
            args: all,
        }
    };
    let child = run.call(nr::__NR_fork, &[]).unwrap();
    assert!(child > 1);
    let mut child = node.started.borrow_mut().pop().unwrap();
    let reading = child.system_call(call(nr::__NR_read, &[b, BUF, 10]));
    assert!(node.try_block_on(reading).is_none(), "there is nothing yet");
    run.write_to(a, b"late").unwrap();
    let read = node.block_on(child.system_call(call(nr::__NR_read, &[b, BUF, 10])));
    assert!(matches!(read, Ok(Outcome::Value(4))));
    node.block_on(child.run());
    run.ends();
}

#[test]
fn what_all_sockets_hold_is_bounded() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let big = run.map(1 << 20).unwrap();
    let mut pairs = Vec::new();
    let refused = loop {
        let Ok((a, b)) = run
            .call(nr::__NR_socketpair, &[AF_UNIX, STREAM | NONBLOCK, 0, DATA])
            .map(|_| (u64::from(run.int(DATA)), u64::from(run.int(DATA + 4))))
        else {
            panic!("numbers of files end before memory does");
        };
        pairs.push((a, b));
        let sent = run.call(nr::__NR_write, &[a, big, 1 << 20]);
        if sent.is_err() {
            break sent;
        }
    };
    fails(refused, errno::ENOBUFS);
    assert!(node.kernel.net.held().1 < 33 << 20);
    // What is received makes room again.
    let (_, first) = pairs[0];
    assert!(run.call(nr::__NR_read, &[first, big, 1 << 20]).unwrap() > 100_000);
    let (refused, _) = pairs[pairs.len() - 1];
    assert_eq!(run.call(nr::__NR_write, &[refused, big, 10]), Ok(10));
    run.ends();
}

#[test]
fn names_on_s_s_disk_lead_to_sockets_and_pipes() {
    let node: &FakeNode = node(32);
    let mut run = Run::new(node);
    let listener = run.socket(AF_UNIX, STREAM);
    assert_eq!(run.bind(listener, &unix(b"/sock\0")), Ok(0));
    assert_eq!(run.status("/sock").unwrap().1, 0o140_755);
    let other = run.socket(AF_UNIX, STREAM);
    let taken = run.bind(other, &unix(b"/sock\0"));
    assert_eq!(errno_of(taken), Some(errno::EADDRINUSE));
    let client = run.socket(AF_UNIX, STREAM);
    let refused = Some(errno::ECONNREFUSED);
    assert_eq!(errno_of(run.connect(client, &unix(b"/sock\0"))), refused);
    run.call(nr::__NR_listen, &[listener, 1]).unwrap();
    assert_eq!(run.connect(client, &unix(b"/sock\0")), Ok(0));
    assert_eq!(
        run.name_of(nr::__NR_getpeername, client),
        Ok(unix(b"/sock\0"))
    );
    assert_eq!(errno_of(run.connect(other, &unix(b"/big\0"))), refused);
    assert_eq!(errno_of(run.open("/sock")), Some(errno::ENXIO));
    // The name goes; another socket may have it then.
    let name = run.put(DATA, b"/sock\0");
    run.call(nr::__NR_unlink, &[name]).unwrap();
    let missing = run.connect(other, &unix(b"/sock\0"));
    assert_eq!(errno_of(missing), Some(errno::ENOENT));
    assert_eq!(run.bind(other, &unix(b"/sock\0")), Ok(0));
    // A named pipe.
    let name = run.put(DATA, b"/pipe\0");
    run.call(nr::__NR_mknod, &[name, 0o010_644, 0]).unwrap();
    let alone = run.call(nr::__NR_open, &[name, 1 | NONBLOCK]);
    assert_eq!(errno_of(alone), Some(errno::ENXIO));
    let reader = run.call(nr::__NR_open, &[name, NONBLOCK]).unwrap();
    let writer = run.call(nr::__NR_open, &[name, 1]).unwrap();
    assert_eq!(run.write_to(writer, b"through"), Ok(7));
    assert_eq!(run.call(nr::__NR_read, &[reader, BUF, 100]), Ok(7));
    assert_eq!(run.get(BUF, 7), b"through");
    assert_eq!(node.files.writes.get(), 0);
    // Another one may get the inode's number once the name is gone.
    let pipes = &node.kernel.named_pipes;
    let pipe = pipes.get(1 << 20);
    assert!(std::sync::Arc::ptr_eq(&pipe, &pipes.get(1 << 20)));
    crate::storage::removed(node, 1 << 20);
    assert!(!std::sync::Arc::ptr_eq(&pipe, &pipes.get(1 << 20)));
    run.end();
}

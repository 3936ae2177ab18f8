//! A vfio-user client in the test's process drives the server over a socket pair, as QEMU would.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use hca_server::irq::Vectors;
use hca_server::layout::Layout;
use hca_server::memory::{Memory, PAGE};
use hca_server::socket::Port;
use hca_server::{Error, Function};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Remembers what was done to it; each byte of a BAR reads as its offset.
#[derive(Default)]
struct Fake {
    done: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, what: String) {
        self.done.lock().expect("lock").push(what);
    }
}

impl Function for Fake {
    fn layout(&self) -> Layout {
        Layout {
            bars: [0x1000, 0, 0x2000, 0, 0, 0],
            config: 256,
            vectors: 4,
        }
    }
    fn config_read(&self, offset: u16, into: &mut [u8]) {
        into.fill(0xc0);
        self.note(format!("config read {offset:#x}+{}", into.len()));
    }
    fn config_write(&self, offset: u16, from: &[u8]) {
        self.note(format!("config write {offset:#x} {from:x?}"));
    }
    fn bar_read(&self, _bar: u8, offset: u64, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().enumerate() {
            *byte = u8::try_from((offset + index as u64) & 0xff).expect("masked");
        }
    }
    fn bar_write(&self, bar: u8, offset: u64, from: &[u8]) {
        self.note(format!("bar{bar} write {offset:#x} {from:x?}"));
    }
    fn reset(&self) {
        self.note("reset".into());
    }
    fn attach(&self) {}
    fn detach(&self) {
        self.note("detach".into());
    }
}

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_INFO: u16 = 4;
const REGION_INFO: u16 = 5;
const IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const READ: u16 = 9;
const WRITE: u16 = 10;
const RESET: u16 = 13;
const WRITE_MULTI: u16 = 15;
const NO_REPLY: u32 = 0x10;

struct Client {
    stream: UnixStream,
    id: u16,
}

impl Client {
    fn send(&mut self, command: u16, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.id += 1;
        let mut message = [self.id.to_le_bytes(), command.to_le_bytes()].concat();
        let size = u32::try_from(16 + body.len()).expect("small");
        for word in [size, flags, 0] {
            message.extend(word.to_le_bytes());
        }
        message.extend(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(
            &self.stream,
            &[IoSlice::new(&message)],
            &mut control,
            SendFlags::empty(),
        )
        .expect("sendmsg");
    }

    fn reply(&mut self) -> Result<Vec<u8>, Errno> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).expect("a reply");
        let word =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(
            header[..2],
            self.id.to_le_bytes(),
            "the reply is to another message"
        );
        let mut body = vec![0; usize::try_from(word(4)).expect("size") - 16];
        self.stream.read_exact(&mut body).expect("the reply's body");
        match word(8) {
            0x01 => Ok(body),
            0x21 => Err(Errno::from_raw_os_error(word(12).cast_signed())),
            flags => panic!("reply flags {flags:#x}"),
        }
    }

    fn ask(&mut self, command: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
        self.send(command, 0, body, &[]);
        self.reply()
    }

    fn ask_with(
        &mut self,
        command: u16,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Errno> {
        self.send(command, 0, body, fds);
        self.reply()
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [offset.to_le_bytes().to_vec(), words(&[region, count])].concat()
}

fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    [
        access(region, offset, u32::try_from(data.len()).expect("small")),
        data.to_vec(),
    ]
    .concat()
}

fn map(address: u64, size: u64) -> Vec<u8> {
    [
        words(&[32, 3]),
        [0, address, size]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
    ]
    .concat()
}

fn guest(pages: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, pages * PAGE).expect("ftruncate");
    fd
}

/// Runs a client against a served fake; gives what the fake saw and how the connection ended.
fn serve(
    memory: &Memory,
    vectors: &Vectors,
    client: impl FnOnce(&mut Client) + Send,
) -> (Vec<String>, Result<(), Error>) {
    let fake = Fake::default();
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    ours.set_read_timeout(Some(Duration::from_secs(10)))
        .expect("timeout");
    let port = Port {
        function: &fake,
        memory,
        vectors,
        spin: Duration::from_micros(5),
    };
    let end = std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let result = port.serve_one(&theirs);
            drop(theirs);
            result
        });
        client(&mut Client {
            stream: ours,
            id: 0,
        });
        server.join().expect("the server does not panic")
    });
    (fake.done.into_inner().expect("lock"), end)
}

/// Calls [`serve`] with new memory and vectors, which the test does not look at.
fn serve_plain(client: impl FnOnce(&mut Client) + Send) -> (Vec<String>, Result<(), Error>) {
    serve(&Memory::default(), &Vectors::new(4), client)
}

/// Calls [`serve`] and checks that the connection ends well.
fn serve_well(memory: &Memory, vectors: &Vectors, client: impl FnOnce(&mut Client) + Send) {
    serve(memory, vectors, client)
        .1
        .expect("the connection ends well");
}

#[test]
fn the_version_is_0_0_with_our_capabilities() {
    let (done, end) = serve_plain(|client| {
        let body = client
            .ask(VERSION, b"\0\0\0\0{\"capabilities\":{}}\0")
            .expect("version");
        assert_eq!(body[..4], [0; 4]);
        let json = std::str::from_utf8(&body[4..]).expect("text");
        assert!(
            json.contains("\"write_multiple\":true")
                && json.contains("\"max_msg_fds\":16")
                && json.ends_with('\0')
        );
        assert_eq!(client.ask(VERSION, &[1, 0, 0, 0]), Err(Errno::NOTSUP));
    });
    assert!(end.is_ok());
    assert_eq!(done, ["detach"]);
}

#[test]
fn device_regions_and_interrupts_are_described() {
    serve_well(&Memory::default(), &Vectors::new(4), |client| {
        assert_eq!(
            client.ask(GET_INFO, &words(&[16, 0, 0, 0])),
            Ok(words(&[16, 3, 9, 5]))
        );
        let mut region = |index| client.ask(REGION_INFO, &words(&[32, 0, index, 0, 0, 0, 0, 0]));
        assert_eq!(region(0), Ok(words(&[32, 3, 0, 0, 0x1000, 0, 0, 0])));
        assert_eq!(region(1), Ok(words(&[32, 0, 1, 0, 0, 0, 0, 0])));
        assert_eq!(region(7), Ok(words(&[32, 3, 7, 0, 256, 0, 0, 0])));
        assert_eq!(region(9), Err(Errno::INVAL));
        let mut irq = |index| client.ask(IRQ_INFO, &words(&[16, 0, index, 0]));
        assert_eq!(irq(2), Ok(words(&[16, 0b1001, 2, 4])));
        assert_eq!(irq(1), Ok(words(&[16, 0, 1, 0])));
        assert_eq!(irq(5), Err(Errno::INVAL));
    });
}

#[test]
fn accesses_reach_the_function_in_order_and_posted_writes_get_no_reply() {
    let (done, end) = serve_plain(|client| {
        client.send(WRITE, NO_REPLY, &write(2, 0x10, &[1, 2, 3, 4]), &[]);
        let multi = [
            2u64.to_le_bytes().to_vec(),
            write(0, 8, &[5, 0, 0, 0, 0, 0, 0, 0])[..12].to_vec(),
            words(&[1, 5, 0]),
            write(0, 16, &[6, 7, 0, 0, 0, 0, 0, 0])[..12].to_vec(),
            words(&[2, 0x0706, 0]),
        ];
        client.send(WRITE_MULTI, NO_REPLY, &multi.concat(), &[]);
        assert_eq!(client.ask(WRITE, &write(7, 4, &[9])), Ok(access(7, 4, 1)));
        let read = client.ask(READ, &access(2, 0x102, 4)).expect("read");
        assert_eq!(read, [access(2, 0x102, 4), vec![2, 3, 4, 5]].concat());
        assert_eq!(client.ask(RESET, &[]), Ok(vec![]));
    });
    assert!(end.is_ok());
    let expected = [
        "bar2 write 0x10 [1, 2, 3, 4]",
        "bar0 write 0x8 [5]",
        "bar0 write 0x10 [6, 7]",
        "config write 0x4 [9]",
        "reset",
        "detach",
    ];
    assert_eq!(done, expected);
}

#[test]
fn accesses_beyond_a_region_are_refused_and_reach_nothing() {
    let (done, _) = serve_plain(|client| {
        let refused = [
            (0, 0xffd, 4),
            (0, u64::MAX, 4),
            (1, 0, 4),
            (7, 254, 4),
            (8, 0, 1),
            (0, 0, u32::MAX),
            (99, 0, 1),
        ];
        for (region, offset, count) in refused {
            assert_eq!(
                client.ask(READ, &access(region, offset, count)),
                Err(Errno::INVAL),
                "{region} {offset:#x}"
            );
        }
        assert_eq!(
            client.ask(WRITE, &write(0, 0x1000, &[1])),
            Err(Errno::INVAL)
        );
    });
    assert_eq!(done, ["detach"]);
}

#[test]
fn lent_memory_is_reached_until_it_is_taken_back() {
    let memory = Memory::default();
    serve_well(&memory, &Vectors::new(4), |client| {
        let fd = guest(2);
        client
            .ask_with(DMA_MAP, &map(0x10_0000, 2 * PAGE), &[fd.as_fd()])
            .expect("map");
        memory.write(0x10_0ffe, b"page").expect("DMA");
        let mut bytes = [0; 4];
        rustix::io::pread(&fd, &mut bytes, 0xffe).expect("pread");
        assert_eq!(&bytes, b"page");
        // Firmware maps ROM without a descriptor.
        client.ask(DMA_MAP, &map(0xc_0000, PAGE)).expect("map");
        assert_eq!(
            client.ask_with(DMA_MAP, &map(0x10_1000, PAGE), &[fd.as_fd()]),
            Err(Errno::EXIST)
        );
        let unmap = [
            words(&[24, 0]),
            0x10_0000u64.to_le_bytes().to_vec(),
            (2 * PAGE).to_le_bytes().to_vec(),
        ]
        .concat();
        assert_eq!(client.ask(DMA_UNMAP, &unmap), Ok(unmap.clone()));
        assert!(memory.write(0x10_0ffe, b"page").is_err());
        // Nothing is there any more.
        assert_eq!(client.ask(DMA_UNMAP, &unmap), Ok(unmap.clone()));
        client
            .ask_with(DMA_MAP, &map(0, PAGE), &[fd.as_fd()])
            .expect("map");
    });
    assert!(
        memory.read(0, &mut [0; 1]).is_err(),
        "memory outlived its client"
    );
}

#[test]
fn vectors_are_connected_raised_and_disconnected() {
    let vectors = Vectors::new(4);
    serve_well(&Memory::default(), &vectors, |client| {
        let fds: Vec<_> = (0..2)
            .map(|_| eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd"))
            .collect();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let count = |fd: &OwnedFd| {
            let mut bytes = [0; 8];
            rustix::io::read(fd, &mut bytes).map(|_| u64::from_ne_bytes(bytes))
        };
        client
            .ask_with(SET_IRQS, &words(&[20, 0x24, 2, 1, 2]), &borrowed)
            .expect("connect");
        vectors.raise(0);
        vectors.raise(2);
        assert_eq!((count(&fds[0]), count(&fds[1])), (Err(Errno::AGAIN), Ok(1)));
        // Trigger without data: the client's own test of a vector.
        client
            .ask(SET_IRQS, &words(&[20, 0x21, 2, 1, 1]))
            .expect("trigger");
        assert_eq!(count(&fds[0]), Ok(1));
        // Eventfd without a descriptor disconnects.
        client
            .ask(SET_IRQS, &words(&[20, 0x24, 2, 1, 1]))
            .expect("disconnect");
        vectors.raise(1);
        vectors.raise(2);
        assert_eq!((count(&fds[0]), count(&fds[1])), (Err(Errno::AGAIN), Ok(1)));
        client
            .ask(SET_IRQS, &words(&[20, 0x21, 2, 0, 0]))
            .expect("all off");
        vectors.raise(2);
        assert_eq!(count(&fds[1]), Err(Errno::AGAIN));
        for (start, number) in [(3, 2), (4, 1), (u32::MAX, 2)] {
            let refused = client.ask(SET_IRQS, &words(&[20, 0x21, 2, start, number]));
            assert_eq!(refused, Err(Errno::INVAL), "{start}+{number}");
        }
        // The error notice is taken so that QEMU starts.
        client
            .ask_with(SET_IRQS, &words(&[20, 0x24, 3, 0, 1]), &borrowed[..1])
            .expect("error notice");
    });
}

/// Follows QEMU's use of the pin (`hw/vfio/pci.c`: `vfio_intx_enable`, `vfio_intx_enable_kvm`,
/// `vfio_intx_disable`).
#[test]
fn the_pin_is_told_to_its_client_until_it_is_unmasked() {
    let vectors = Vectors::new(4);
    serve_well(&Memory::default(), &vectors, |client| {
        let fd = |_| eventfd(0, EventfdFlags::empty()).expect("eventfd");
        let [trigger, unmask] = [0, 1].map(fd);
        let take = |fd: &OwnedFd| {
            let mut bytes = [0; 8];
            rustix::io::read(fd, &mut bytes).expect("signalled");
        };
        let mut set = |flags, count, fds: &[BorrowedFd<'_>]| {
            client.ask_with(SET_IRQS, &words(&[20, flags, 0, 0, count]), fds)
        };
        set(0x24, 1, &[trigger.as_fd()]).expect("connect");
        set(0x09, 1, &[]).expect("mask");
        vectors.pin.set(true);
        set(0x14, 1, &[unmask.as_fd()]).expect("eventfd that unmasks");
        set(0x11, 1, &[]).expect("unmask");
        for _ in 0..2 {
            take(&trigger);
            rustix::io::write(&unmask, &1_u64.to_ne_bytes()).expect("write");
        }
        take(&trigger);
        set(0x21, 0, &[]).expect("off");
        assert_eq!(set(0x22, 1, &[]), Err(Errno::INVAL), "data as bytes");
    });
}

#[test]
fn an_unknown_command_is_answered_and_its_body_skipped() {
    serve_well(&Memory::default(), &Vectors::new(4), |client| {
        assert_eq!(client.ask(16, &[0x55; 24]), Err(Errno::NOSYS));
        assert_eq!(client.ask(WRITE, &[0; 3]), Err(Errno::INVAL));
        assert!(
            client.ask(GET_INFO, &[0; 16]).is_ok(),
            "the stream is still in step"
        );
    });
}

#[test]
fn a_stream_that_cannot_be_followed_is_closed() {
    let size = |size: u32| [&[1, 0, 4, 0][..], &size.to_le_bytes(), &[0; 8]].concat();
    for bytes in [size(15), size(u32::MAX)] {
        let (done, end) = serve_plain(|client| client.stream.write_all(&bytes).expect("write"));
        assert!(matches!(end, Err(Error::MessageSize { .. })), "{end:?}");
        assert_eq!(done, ["detach"]);
    }
    let (_, end) = serve_plain(|client| client.stream.write_all(&size(32)[..7]).expect("write"));
    assert!(matches!(end, Err(Error::Truncated)), "{end:?}");
    let (_, end) = serve_plain(|client| client.send(4, 1, &[0; 16], &[]));
    assert!(
        matches!(end, Err(Error::UnexpectedReply { command: 4 })),
        "{end:?}"
    );
}

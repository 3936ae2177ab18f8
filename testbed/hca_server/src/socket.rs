//! Messages over a Unix socket, and the loop that serves one client after another.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rustix::io::{Errno, IoSliceMut, retry_on_intr};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::irq::Vectors;
use crate::memory::Memory;
use crate::session::Session;
use crate::wire::{self, HEADER_LEN, Header, MAX_FDS, Request};
use crate::{Error, Function};

/// One node's adapter: what its clients, one at a time, work on.
pub struct Port<'a> {
    /// The function served.
    pub function: &'a dyn Function,
    /// The guest's memory, as the function's model reaches it.
    pub memory: &'a Memory,
    /// The guest's vectors, as the function's model raises them.
    pub vectors: &'a Vectors,
    /// Busy-poll time for the next message before the thread sleeps. It occupies a core.
    pub spin: Duration,
}

impl Port<'_> {
    /// Serves clients for ever, one at a time; gives up only if the listening socket fails.
    ///
    /// # Errors
    /// The listening socket's error.
    pub fn serve(&self, name: &str, listener: &UnixListener) -> std::io::Error {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return error,
            };
            info!("{name}: connected");
            match self.serve_one(&stream) {
                Ok(()) => info!("{name}: disconnected"),
                Err(error) => warn!("{name}: connection ended: {error}"),
            }
        }
    }

    /// Serves one client until it hangs up. Afterwards the function is detached and nothing of the
    /// client's is held.
    ///
    /// # Errors
    /// What ended the connection, if not the client's hanging up between two messages.
    pub fn serve_one(&self, stream: &UnixStream) -> Result<(), Error> {
        self.function.attach();
        let result = self.converse(stream);
        // Before the memory goes: from here on the model reaches none.
        self.function.detach();
        self.memory.clear();
        self.vectors.clear();
        self.vectors.pin.clear();
        result
    }

    fn converse(&self, stream: &UnixStream) -> Result<(), Error> {
        let session = Session::new(self.function, self.memory, self.vectors);
        let mut inbox = Inbox::default();
        while let Some(header) = inbox.receive(stream.as_fd(), self.spin)? {
            let command = header.command();
            if header.flags.get() & wire::FLAG_TYPE != 0 {
                return Err(Error::UnexpectedReply { command: command.0 });
            }
            let fds = std::mem::take(&mut inbox.fds);
            let answer = match Request::parse(command, &inbox.body) {
                Ok(request) => session.answer(&request, fds),
                Err(error) => {
                    warn!("{error}");
                    Err(Errno::INVAL)
                }
            };
            if let Err(errno) = &answer {
                debug!("command {}: {errno}", command.0);
            }
            if header.flags.get() & wire::FLAG_NO_REPLY == 0 {
                send_all(stream.as_fd(), &reply(&header, answer))?;
            }
        }
        Ok(())
    }
}

/// Encodes a reply: a header, and the body or an errno.
fn reply(to: &Header, answer: Result<Vec<u8>, Errno>) -> Vec<u8> {
    let (body, flags, error) = match answer {
        Ok(body) => (body, wire::FLAG_REPLY, 0),
        Err(errno) => (
            Vec::new(),
            wire::FLAG_REPLY | wire::FLAG_ERROR,
            errno.raw_os_error().unsigned_abs(),
        ),
    };
    let size = u32::try_from(HEADER_LEN + body.len()).expect("replies are bounded by MAX_DATA");
    let header = Header {
        id: to.id,
        command: to.command,
        size: U32::new(size),
        flags: U32::new(flags),
        error: U32::new(error),
    };
    let mut message = header.as_bytes().to_vec();
    message.extend(body);
    message
}

/// The message being received.
///
/// Never reads beyond a message's end, so descriptors that arrive belong to it.
#[derive(Default)]
struct Inbox {
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Receives one message into `body` and `fds`; nothing if the client has hung up.
    fn receive(&mut self, socket: BorrowedFd<'_>, spin: Duration) -> Result<Option<Header>, Error> {
        let mut bytes = [0; HEADER_LEN];
        self.fds.clear();
        await_readable(socket, spin)?;
        if !self.fill(socket, &mut bytes)? {
            return Ok(None);
        }
        let header = Header::read_from_bytes(&bytes).map_err(|_| Error::Truncated)?;
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        body.resize(header.body_len()?, 0);
        if !self.fill(socket, &mut body)? {
            return Err(Error::Truncated);
        }
        self.body = body;
        Ok(Some(header))
    }

    /// Fills a buffer; gives false if the stream ends before its first byte.
    fn fill(&mut self, socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<bool, Error> {
        let mut done = 0;
        while done < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = retry_on_intr(|| {
                let mut parts = [IoSliceMut::new(&mut buffer[done..])];
                recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            })?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            match received.bytes {
                0 if done == 0 => return Ok(false),
                0 => return Err(Error::Truncated),
                bytes => done += bytes,
            }
        }
        Ok(true)
    }
}

/// Looks for input for as long as `spin` says. Without any it returns as well, and the next receive
/// sleeps.
fn await_readable(socket: BorrowedFd<'_>, spin: Duration) -> Result<(), Error> {
    if spin.is_zero() {
        return Ok(());
    }
    let end = Instant::now() + spin;
    let mut byte = [0; 1];
    while Instant::now() < end {
        match rustix::net::recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        let sent = retry_on_intr(|| send(socket, bytes, SendFlags::NOSIGNAL))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

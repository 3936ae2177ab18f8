//! Sending and receiving.

use alloc::vec;
use alloc::vec::Vec;

use super::super::{Args, int};
use super::control::{Control, Given, SCM_CREDENTIALS, SCM_RIGHTS};
use super::option::SOL_SOCKET;
use super::packets;
use crate::creds::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN};
use crate::error::{Error, Result, errno};
use crate::files::OpenFile;
use crate::platform::Platform;
use crate::process::Node;
use crate::socket::{
    self, AF_NETLINK, Address, BUFFER, Credentials, Message, Packet, ReceiveOptions, Socket, Taken,
    To, Type,
};
use crate::thread::Thread;

const MSG_OOB: u32 = 1;
const MSG_PEEK: u32 = 2;
const MSG_CTRUNC: u32 = 8;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: u32 = 0x40;
const MSG_WAITALL: u32 = 0x100;
const MSG_ERRQUEUE: u32 = 0x2000;
const MSG_NOSIGNAL: u32 = 0x4000;
const MSG_WAITFORONE: u32 = 0x1_0000;
const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;
/// Bytes of `struct msghdr`, and of `struct mmsghdr`.
const HEADER: usize = 56;
const MANY: u64 = 64;
/// Messages that one call sends or receives at most, and pieces of one (`UIO_MAXIOV`).
const MAX_MESSAGES: u64 = 1024;
/// Bytes of control messages at most (Linux's `net.core.optmem_max`).
const MAX_CONTROL: u64 = 20_480;
/// Bytes of a stream that are copied at once.
const PIECE: usize = 32 << 10;
/// Datagrams that one is cut into at most (Linux's `UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 128;
/// The most bytes of one call (`MAX_RW_COUNT`).
const MAX_COUNT: u64 = 0x7fff_f000;

/// Addresses and lengths in the program.
type Pieces = [(u64, u64)];

/// The fields of a `struct msghdr`.
struct Header {
    name: u64,
    name_len: u64,
    pieces: Vec<(u64, u64)>,
    control: u64,
    control_len: u64,
}

fn total(pieces: &Pieces) -> u64 {
    let sum = pieces
        .iter()
        .fold(0u64, |sum, &(_, len)| sum.saturating_add(len));
    sum.min(MAX_COUNT)
}

/// Splits `len` bytes over the pieces, of which `done` bytes are used already: the address of each
/// part, and the part.
fn parts(
    pieces: &Pieces,
    mut done: u64,
    len: usize,
) -> impl Iterator<Item = (u64, core::ops::Range<usize>)> {
    let mut begin = 0;
    pieces.iter().filter_map(move |&(addr, piece)| {
        let skipped = done.min(piece);
        done -= skipped;
        let left = len - begin;
        let count = usize::try_from(piece - skipped).map_or(left, |room| room.min(left));
        let part = begin..begin + count;
        begin += count;
        (count > 0).then(|| (addr + skipped, part))
    })
}

/// Destination and control messages of a send.
struct Outgoing {
    message: Message<alloc::sync::Arc<OpenFile>>,
    to: To,
    /// Bytes of each datagram that the bytes are cut into.
    segment: Option<usize>,
}

impl<N: Node> Thread<N> {
    async fn header(&self, at: u64) -> Result<Header> {
        let mut bytes = [0; HEADER];
        self.memory.read(at, &mut bytes).await?;
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if word(24) > MAX_MESSAGES {
            return Err(errno::EMSGSIZE.into());
        }
        Ok(Header {
            name: word(0),
            name_len: word(8) & 0xffff_ffff,
            pieces: self.pieces(word(16), word(24)).await?,
            control: word(32),
            control_len: word(40),
        })
    }

    /// Copies bytes into the pieces, from `done` on.
    async fn scatter(&self, pieces: &Pieces, done: u64, bytes: &[u8]) -> Result<()> {
        for (addr, part) in parts(pieces, done, bytes.len()) {
            self.memory.write(addr, &bytes[part]).await?;
        }
        Ok(())
    }

    /// Copies bytes out of the pieces, from `done` on.
    async fn gather(&self, pieces: &Pieces, done: u64, into: &mut [u8]) -> Result<()> {
        for (addr, part) in parts(pieces, done, into.len()) {
            self.memory.read(addr, &mut into[part]).await?;
        }
        Ok(())
    }

    /// Returns how much of the pieces, from their start, the program can reach.
    fn reach(&self, pieces: &Pieces, write: bool) -> Result<u64> {
        let mut reached = 0;
        for &(addr, len) in pieces.iter().filter(|(_, len)| *len > 0) {
            match self.memory.reachable(addr, len, write) {
                Ok(part) if part == len => reached += len,
                Ok(part) => return Ok((reached + part).min(MAX_COUNT)),
                Err(_) if reached > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(reached.min(MAX_COUNT))
    }

    /// Receives into the pieces. The bytes are copied; the rest is the caller's.
    async fn receive(
        &self,
        file: &OpenFile,
        socket: &Socket,
        pieces: &Pieces,
        flags: u32,
    ) -> Result<(u64, Taken<alloc::sync::Arc<OpenFile>>)> {
        if flags & MSG_OOB != 0 {
            return Err(if socket.is_local() {
                errno::EOPNOTSUPP
            } else {
                errno::EINVAL
            }
            .into());
        }
        if flags & MSG_ERRQUEUE != 0 {
            return Err(errno::EAGAIN.into());
        }
        let most = self.reach(pieces, true)?;
        let (timeout, by_sender) = {
            let options = socket.options.lock();
            (options.receive_timeout, options.pass_credentials)
        };
        let waits = flags & MSG_DONTWAIT == 0 && !file.nonblocking();
        let peek = flags & MSG_PEEK != 0;
        let mut done = 0;
        loop {
            let how = ReceiveOptions {
                most: usize::try_from(most - done).unwrap_or(usize::MAX),
                peek,
                by_sender,
            };
            let attempt = || match socket.try_receive(how) {
                // There is nothing to wait for.
                Err(Error::Errno(errno::EAGAIN)) if most == 0 && socket.is_stream() => {
                    Ok(Taken::end())
                }
                tried => tried,
            };
            let taken = match self
                .wait_at(socket, &To::Peer, waits, timeout, attempt)
                .await
            {
                Err(Error::Errno(_)) if done > 0 => Taken::end(),
                taken => taken?,
            };
            if let Err(error) = self.scatter(pieces, done, &taken.bytes).await {
                self.node.kernel().net.bury(taken.rights);
                return Err(error);
            }
            done += taken.bytes.len() as u64;
            let all = flags & MSG_WAITALL != 0 && socket.is_stream() && !peek;
            if !all || done == most || taken.bytes.is_empty() || !taken.rights.is_empty() {
                return Ok((done, taken));
            }
        }
    }

    /// Sends what the pieces hold.
    async fn send(
        &self,
        file: &OpenFile,
        socket: &Socket,
        pieces: &Pieces,
        flags: u32,
        outgoing: Outgoing,
    ) -> Result<u64> {
        if flags & MSG_OOB != 0 {
            return Err(errno::EOPNOTSUPP.into());
        }
        let Outgoing {
            mut message,
            to,
            segment,
        } = outgoing;
        let total = total(pieces);
        let reached = self.reach(pieces, false)?;
        let waits = flags & MSG_DONTWAIT == 0 && !file.nonblocking();
        let timeout = socket.options.lock().send_timeout;
        if !socket.is_stream() {
            if total > 2 * BUFFER as u64 {
                return Err(errno::EMSGSIZE.into());
            }
            message.bytes = vec![0; usize::try_from(total).unwrap_or(0)];
            self.gather(pieces, 0, &mut message.bytes).await?;
            let cut = segment.filter(|_| socket.kind == Type::Datagram && !socket.is_local());
            let Some(segment) = cut.filter(|segment| *segment < message.bytes.len()) else {
                let attempt = || socket.try_send(&mut message, &to);
                let sent = self.wait_at(socket, &to, waits, timeout, attempt).await?;
                return Ok(sent as u64);
            };
            if message.bytes.len().div_ceil(segment) > MAX_SEGMENTS {
                return Err(errno::EINVAL.into());
            }
            let bytes = core::mem::take(&mut message.bytes);
            for piece in bytes.chunks(segment) {
                message.bytes = piece.to_vec();
                let attempt = || socket.try_send(&mut message, &to);
                self.wait_at(socket, &to, waits, timeout, attempt).await?;
            }
            return Ok(total);
        }
        let mut done = 0;
        loop {
            if message.bytes.is_empty() {
                let left = usize::try_from(reached - done).unwrap_or(usize::MAX);
                message.bytes.resize(left.min(PIECE), 0);
                self.gather(pieces, done, &mut message.bytes).await?;
            }
            let attempt = || socket.try_send(&mut message, &to);
            match self.wait_at(socket, &to, waits, timeout, attempt).await {
                Ok(sent) => {
                    done += sent as u64;
                    message.bytes.drain(..sent);
                    if done >= reached {
                        return Ok(done);
                    }
                }
                Err(Error::Errno(_)) if done > 0 => return Ok(done),
                Err(Error::Errno(errno::EPIPE)) => {
                    return Err(if flags & MSG_NOSIGNAL == 0 {
                        self.broken_pipe()
                    } else {
                        errno::EPIPE.into()
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads from a socket as from any file.
    pub(crate) async fn receive_plain(
        &self,
        file: &OpenFile,
        socket: &Socket,
        pieces: &Pieces,
    ) -> Result<u64> {
        if total(pieces) == 0 {
            return Ok(0);
        }
        let (done, taken) = self.receive(file, socket, pieces, 0).await?;
        self.node.kernel().net.bury(taken.rights);
        Ok(done)
    }

    /// Writes to a socket as to any file.
    pub(crate) async fn send_plain(
        &self,
        file: &OpenFile,
        socket: &Socket,
        pieces: &Pieces,
    ) -> Result<u64> {
        let outgoing = self.outgoing(socket, Control::default(), To::Peer)?;
        self.send(file, socket, pieces, 0, outgoing).await
    }

    fn outgoing(&self, socket: &Socket, control: Control, to: To) -> Result<Outgoing> {
        let rights = if socket.is_local() {
            let files = control.files.iter().map(|&fd| self.file(fd.into()));
            files.collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        if let Some(claimed) = control.credentials {
            self.may_claim(claimed)?;
        }
        // A stream has no packets that anybody could ask for.
        let (packet, segment) = if socket.is_stream() {
            (Packet::default(), None)
        } else {
            let now = self.node.platform().wall_clock();
            (
                packets::header(socket, &control, now),
                packets::segment(socket, &control),
            )
        };
        let message = Message {
            bytes: Vec::new(),
            rights,
            credentials: control
                .credentials
                .unwrap_or_else(|| self.sender_credentials()),
            from: socket.local(),
            packet,
        };
        Ok(Outgoing {
            message,
            to,
            segment,
        })
    }

    /// Checks what a process says of itself to another.
    ///
    /// # Errors
    ///
    /// EPERM if it is not so and it may not say so; ESRCH if it names nobody.
    fn may_claim(&self, claimed: Credentials) -> Result<()> {
        let creds = self.creds();
        let allowed = (claimed.pid == self.pid || creds.can(CAP_SYS_ADMIN))
            && (creds.user.names(claimed.uid) || creds.can(CAP_SETUID))
            && (creds.group.names(claimed.gid) || creds.can(CAP_SETGID));
        if !allowed {
            return Err(errno::EPERM.into());
        }
        if claimed.pid != self.pid && self.node.kernel().process(claimed.pid).is_none() {
            return Err(errno::ESRCH.into());
        }
        Ok(())
    }

    /// Returns where a message with a name goes.
    async fn destination(&self, socket: &Socket, name: &[u8]) -> Result<To> {
        let net = &self.node.kernel().net;
        match (socket.is_local(), socket.kind) {
            (true, Type::Stream) => {
                let connected = socket.remote().is_ok();
                Err(if connected {
                    errno::EISCONN
                } else {
                    errno::EOPNOTSUPP
                }
                .into())
            }
            (true, Type::Datagram) => {
                let address = Address::parse_unix(name)?;
                let other = net.find_unix(&self.unix_name(&address).await?)?;
                net.may_send(socket, &other)?;
                Ok(To::Channel(other.channel()))
            }
            (false, _) if socket.family == AF_NETLINK => super::to_kernel(name).map(|()| To::Peer),
            (false, Type::Datagram) => Ok(To::Ip(Address::parse_ip(socket.family, name)?)),
            _ => Ok(To::Peer),
        }
    }

    pub(super) async fn sys_sendto(
        &self,
        [fd, addr, len, flags, name, name_len]: Args,
    ) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let to = if name == 0 {
            To::Peer
        } else {
            let name = self.address(name, name_len).await?;
            self.destination(socket, &name).await?
        };
        let outgoing = self.outgoing(socket, Control::default(), to)?;
        self.send(&file, socket, &[(addr, len)], int(flags), outgoing)
            .await
    }

    pub(super) async fn sys_recvfrom(
        &self,
        [fd, addr, len, flags, name, len_at]: Args,
    ) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let (done, taken) = self
            .receive(&file, socket, &[(addr, len)], int(flags))
            .await?;
        self.node.kernel().net.bury(taken.rights);
        let from = sender(socket, &taken.from);
        self.give_address(&from, name, len_at).await?;
        Ok(told_len(socket, int(flags), done, taken.whole))
    }

    async fn send_header(
        &self,
        file: &OpenFile,
        socket: &Socket,
        at: u64,
        flags: u32,
    ) -> Result<u64> {
        let header = self.header(at).await?;
        let to = if header.name == 0 || header.name_len == 0 {
            To::Peer
        } else {
            let name = self.address(header.name, header.name_len).await?;
            self.destination(socket, &name).await?
        };
        let control = if header.control == 0 || header.control_len == 0 {
            Control::default()
        } else if header.control_len > MAX_CONTROL {
            return Err(errno::ENOBUFS.into());
        } else {
            let mut bytes = vec![0; usize::try_from(header.control_len).unwrap_or(0)];
            self.memory.read(header.control, &mut bytes).await?;
            Control::parse(&bytes)?
        };
        let outgoing = self.outgoing(socket, control, to)?;
        self.send(file, socket, &header.pieces, flags, outgoing)
            .await
    }

    async fn receive_header(
        &self,
        file: &OpenFile,
        socket: &Socket,
        at: u64,
        flags: u32,
    ) -> Result<u64> {
        let header = self.header(at).await?;
        let (done, taken) = self.receive(file, socket, &header.pieces, flags).await?;
        let room = if header.control == 0 {
            0
        } else {
            header.control_len
        };
        let mut given = Given::new(usize::try_from(room.min(MAX_CONTROL)).unwrap_or(0));
        if !socket.is_stream() {
            packets::tell(socket, &taken.packet, &mut given);
        }
        if socket.options.lock().pass_credentials && !taken.bytes.is_empty() | !socket.is_stream() {
            let Credentials { pid, uid, gid } = taken.credentials;
            let words = [pid, uid, gid].map(u32::to_le_bytes).concat();
            given.put(SOL_SOCKET, SCM_CREDENTIALS, &words);
        }
        self.give_files(taken.rights, flags, &mut given);
        let from = sender(socket, &taken.from);
        let mut told = flags & MSG_CMSG_CLOEXEC;
        if !socket.is_stream() && taken.whole as u64 > done {
            told |= MSG_TRUNC;
        }
        if given.cut {
            told |= MSG_CTRUNC;
        }
        if header.name != 0 {
            let count =
                usize::try_from(header.name_len).map_or(from.len(), |room| room.min(from.len()));
            self.memory.write(header.name, &from[..count]).await?;
            let len = u32::try_from(from.len()).unwrap_or(0);
            self.memory.write(at + 8, &len.to_le_bytes()).await?;
        }
        if room > 0 {
            self.memory.write(header.control, &given.bytes).await?;
        }
        self.memory
            .write_words(at + 40, &[given.bytes.len() as u64])
            .await?;
        self.memory.write(at + 48, &told.to_le_bytes()).await?;
        Ok(told_len(socket, flags, done, taken.whole))
    }

    /// Gives received files numbers, as many as the program has room for; the others are closed.
    fn give_files(&self, rights: Vec<alloc::sync::Arc<OpenFile>>, flags: u32, given: &mut Given) {
        if rights.is_empty() {
            return;
        }
        let close = flags & MSG_CMSG_CLOEXEC != 0;
        let (mut numbers, mut over) = (Vec::new(), Vec::new());
        for file in rights {
            if numbers.len() / 4 < given.files_that_fit()
                && let Ok(fd) = self.table().add(file.clone(), 0, close)
            {
                numbers.extend_from_slice(&int(fd).to_le_bytes());
            } else {
                given.cut = true;
            }
            over.push(file);
        }
        if !numbers.is_empty() {
            given.put(SOL_SOCKET, SCM_RIGHTS, &numbers);
        }
        self.node.kernel().net.bury(over);
    }

    pub(super) async fn sys_sendmsg(&self, [fd, at, flags, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        self.send_header(&file, socket::of(&file)?, at, int(flags))
            .await
    }

    pub(super) async fn sys_recvmsg(&self, [fd, at, flags, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        self.receive_header(&file, socket::of(&file)?, at, int(flags))
            .await
    }

    pub(super) async fn sys_sendmmsg(&self, [fd, at, count, flags, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let mut done = 0;
        for index in 0..u64::from(int(count)).min(MAX_MESSAGES) {
            let at = at.checked_add(index * MANY).ok_or(errno::EFAULT)?;
            match self.send_header(&file, socket, at, int(flags)).await {
                Ok(len) => {
                    self.memory
                        .write(at + HEADER as u64, &int(len).to_le_bytes())
                        .await?;
                    done += 1;
                }
                Err(Error::Errno(_)) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    pub(super) async fn sys_recvmmsg(
        &self,
        [fd, at, count, flags, timeout, _]: Args,
    ) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let until = match timeout {
            0 => None,
            addr => Some(self.now() + self.timespec(addr).await?),
        };
        let mut flags = int(flags);
        let mut done = 0;
        for index in 0..u64::from(int(count)).min(MAX_MESSAGES) {
            let at = at.checked_add(index * MANY).ok_or(errno::EFAULT)?;
            match self
                .receive_header(&file, socket, at, flags & !MSG_WAITFORONE)
                .await
            {
                Ok(len) => {
                    self.memory
                        .write(at + HEADER as u64, &int(len).to_le_bytes())
                        .await?;
                    done += 1;
                }
                Err(Error::Errno(_)) if done > 0 => break,
                Err(error) => return Err(error),
            }
            if flags & MSG_WAITFORONE != 0 {
                flags |= MSG_DONTWAIT;
            }
            // As Linux, the time is looked at after each message only.
            if until.is_some_and(|until| self.now() >= until) {
                break;
            }
        }
        Ok(done)
    }
}

/// Returns the length that a call returns: with `MSG_TRUNC` that of the whole datagram.
fn told_len(socket: &Socket, flags: u32, done: u64, whole: usize) -> u64 {
    if flags & MSG_TRUNC != 0 && !socket.is_stream() {
        whole as u64
    } else {
        done
    }
}

/// Returns the sender's address: nothing for one without a name, or for a TCP connection.
fn sender(socket: &Socket, from: &Address) -> Vec<u8> {
    match from {
        Address::Unnamed => Vec::new(),
        from => from.encode(socket.family),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_the_bytes_behind_those_that_are_used(
            lens in prop::collection::vec(0..9_u64, 0..6), done in 0..40_u64, len in 0..40_usize,
        ) {
            let pieces: Vec<_> = (1..).zip(lens).map(|(piece, len)| (1000 * piece, len)).collect();
            let addresses = pieces.iter().flat_map(|&(addr, len)| addr..addr + len);
            let expected: Vec<u64> = addresses.skip(usize::try_from(done).unwrap()).take(len).collect();
            let (mut found, mut end) = (Vec::new(), 0);
            for (addr, part) in parts(&pieces, done, len) {
                prop_assert!(part.start == end && !part.is_empty());
                end = part.end;
                found.extend(addr..addr + part.len() as u64);
            }
            prop_assert_eq!(found, expected);
        }
    }
}

//! Sockets: making, naming, connecting.

mod control;
pub(super) mod interface;
mod message;
mod option;
mod packets;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use linux_raw_sys::general as nr;
use messages::storage::PATH_MAX;

use super::path::AT_FDCWD;
use super::{Args, int};
use crate::creds::WRITE;
use crate::error::{Error, Result, errno};
use crate::files::OpenFile;
use crate::platform::{Files, Platform};
use crate::process::Node;
use crate::socket::{
    self, AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, AF_UNSPEC, Address, Credentials, Proto, Socket,
    To, Type, UnixName,
};
use crate::thread::Thread;
use crate::tmpfs::{Found, NewInode, SOCKET, TYPE_MASK};

const SOCK_NONBLOCK: u32 = 0o4_000;
const SOCK_CLOEXEC: u32 = 0o2_000_000;
/// Types that Linux numbers end before this (`SOCK_MAX`).
const SOCK_MAX: u32 = 11;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const SOCK_SEQPACKET: u32 = 5;
const TCP: u32 = 6;
const UDP: u32 = 17;
const UDP_LITE: u32 = 136;
/// Bytes of the longest address (`struct sockaddr_storage`).
const ADDRESS_MAX: usize = 128;

/// Returns the kind of socket that a call asks for.
fn kind(domain: u32, kind: u32, protocol: u32) -> Result<(u16, Type, Proto)> {
    if kind >= SOCK_MAX {
        return Err(errno::EINVAL.into());
    }
    let family = match u16::try_from(domain) {
        Ok(family @ (AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK)) => family,
        _ => return Err(errno::EAFNOSUPPORT.into()),
    };
    let made = match (family, kind) {
        (AF_UNIX, _) if protocol > 1 => return Err(errno::EPROTONOSUPPORT.into()),
        (AF_UNIX, SOCK_DGRAM | SOCK_RAW) => (Type::Datagram, Proto::None),
        (AF_UNIX, SOCK_SEQPACKET) => (Type::SeqPacket, Proto::None),
        (AF_UNIX, SOCK_STREAM) => (Type::Stream, Proto::None),
        // `NETLINK_ROUTE` alone.
        (AF_NETLINK, SOCK_DGRAM | SOCK_RAW) if protocol == 0 => (Type::Datagram, Proto::None),
        (AF_NETLINK, SOCK_DGRAM | SOCK_RAW) => return Err(errno::EPROTONOSUPPORT.into()),
        (AF_INET | AF_INET6, SOCK_STREAM) if matches!(protocol, 0 | TCP) => {
            (Type::Stream, Proto::Tcp)
        }
        (AF_INET | AF_INET6, SOCK_DGRAM) => match protocol {
            0 | UDP => (Type::Datagram, Proto::Udp),
            UDP_LITE => (Type::Datagram, Proto::UdpLite),
            _ => return Err(errno::EPROTONOSUPPORT.into()),
        },
        (AF_INET | AF_INET6, SOCK_STREAM | SOCK_RAW) => {
            return Err(errno::EPROTONOSUPPORT.into());
        }
        _ => return Err(errno::ESOCKTNOSUPPORT.into()),
    };
    let (made, proto) = made;
    Ok((family, made, proto))
}

/// Checks that a netlink address is the kernel's: nobody else answers.
fn to_kernel(bytes: &[u8]) -> Result<()> {
    match Address::parse_netlink(bytes)? {
        0 => Ok(()),
        _ => Err(errno::ECONNREFUSED.into()),
    }
}

impl<N: Node> Thread<N> {
    pub(super) async fn socket_call(&mut self, number: u32, a: Args) -> Result<u64> {
        match number {
            nr::__NR_socket => self.sys_socket(a),
            nr::__NR_socketpair => self.sys_socketpair(a).await,
            nr::__NR_bind => self.sys_bind(a).await,
            nr::__NR_listen => self.sys_listen(a),
            nr::__NR_accept => self.sys_accept(a, 0).await,
            nr::__NR_accept4 => self.sys_accept(a, int(a[3])).await,
            nr::__NR_connect => self.sys_connect(a).await,
            nr::__NR_getsockname => self.sys_name(a, false).await,
            nr::__NR_getpeername => self.sys_name(a, true).await,
            nr::__NR_shutdown => self.sys_shutdown(a),
            nr::__NR_setsockopt => self.sys_setsockopt(a).await,
            nr::__NR_getsockopt => self.sys_getsockopt(a).await,
            nr::__NR_sendto => self.sys_sendto(a).await,
            nr::__NR_recvfrom => self.sys_recvfrom(a).await,
            nr::__NR_sendmsg => self.sys_sendmsg(a).await,
            nr::__NR_recvmsg => self.sys_recvmsg(a).await,
            nr::__NR_sendmmsg => self.sys_sendmmsg(a).await,
            nr::__NR_recvmmsg => self.sys_recvmmsg(a).await,
            _ => self.path_call(number, a).await,
        }
    }

    /// Returns what another process is told of this one.
    fn credentials(&self) -> Credentials {
        let creds = self.creds();
        Credentials {
            pid: self.pid,
            uid: creds.user.effective,
            gid: creds.group.effective,
        }
    }

    /// Returns what a message says of its sender, who did not say it itself.
    fn sender_credentials(&self) -> Credentials {
        let creds = self.creds();
        Credentials {
            pid: self.pid,
            uid: creds.user.real,
            gid: creds.group.real,
        }
    }

    fn add_socket(&self, socket: Arc<Socket>, flags: u32) -> Result<u64> {
        let status = flags & SOCK_NONBLOCK | 2;
        self.add_object(socket, status, flags & SOCK_CLOEXEC != 0)
    }

    fn sys_socket(&self, [domain, asked, protocol, ..]: Args) -> Result<u64> {
        let flags = int(asked) & (SOCK_NONBLOCK | SOCK_CLOEXEC);
        let (family, kind, proto) = kind(int(domain), int(asked) & !flags, int(protocol))?;
        let socket = self.node.kernel().net.socket(family, kind, proto)?;
        self.add_socket(socket, flags)
    }

    async fn sys_socketpair(&self, [domain, asked, protocol, into, ..]: Args) -> Result<u64> {
        let flags = int(asked) & (SOCK_NONBLOCK | SOCK_CLOEXEC);
        let (family, kind, _) = kind(int(domain), int(asked) & !flags, int(protocol))?;
        if family != AF_UNIX {
            return Err(errno::EOPNOTSUPP.into());
        }
        let [one, other] = self.node.kernel().net.pair(kind, self.credentials())?;
        let first = self.add_socket(one, flags)?;
        let second = self.add_socket(other, flags);
        self.give_pair(first, second, into).await
    }

    /// Reads an address of the program.
    async fn address(&self, addr: u64, len: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(int(len).cast_signed()).ok();
        let len = len.filter(|&len| len <= ADDRESS_MAX).ok_or(errno::EINVAL)?;
        let mut bytes = vec![0; len];
        self.memory.read(addr, &mut bytes).await?;
        Ok(bytes)
    }

    /// Gives the program an address: as much as there is room for, and its whole length.
    async fn give_address(&self, bytes: &[u8], into: u64, len_at: u64) -> Result<()> {
        if into == 0 {
            return Ok(());
        }
        let mut room = [0; 4];
        self.memory.read(len_at, &mut room).await?;
        let room = usize::try_from(i32::from_le_bytes(room)).map_err(|_| errno::EINVAL)?;
        self.memory
            .write(into, &bytes[..room.min(bytes.len())])
            .await?;
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        self.memory.write(len_at, &len.to_le_bytes()).await
    }

    /// Returns the absolute path of a local socket.
    async fn socket_path(&self, path: &[u8], follow: bool) -> Result<Vec<u8>> {
        let whole = self.whole_path(AT_FDCWD, path.to_vec(), follow).await?;
        if whole.len() > PATH_MAX {
            return Err(errno::ENAMETOOLONG.into());
        }
        Ok(whole)
    }

    async fn sys_bind(&self, [fd, addr, len, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let bytes = self.address(addr, len).await?;
        let net = &self.node.kernel().net;
        if socket.family == AF_NETLINK {
            socket.bind_netlink(Address::parse_netlink(&bytes)?)?;
            return Ok(0);
        }
        if !socket.is_local() {
            let family = socket::family(&bytes)?;
            // As Linux: no family, all addresses.
            let addr = if socket.family == AF_INET
                && family == AF_UNSPEC
                && bytes.get(4..8) == Some(&[0; 4])
            {
                let mut bytes = bytes;
                bytes[0] = AF_INET.to_le_bytes()[0];
                Address::parse_ip(AF_INET, &bytes)?
            } else {
                Address::parse_ip(socket.family, &bytes)?
            };
            net.bind_ip(socket, addr)?;
            return Ok(0);
        }
        let address = Address::parse_unix(&bytes)?;
        let inode = match &address {
            Address::Path(path) => Some(self.make_socket_inode(socket, path).await?),
            _ => None,
        };
        net.bind_unix(socket, address, inode)?;
        Ok(0)
    }

    /// Makes the inode that a path is bound as.
    async fn make_socket_inode(&self, socket: &Socket, path: &[u8]) -> Result<u64> {
        let whole = self.socket_path(path, false).await?;
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(&whole, false, &self.creds())? {
            Found::Here(_) => Err(errno::EADDRINUSE.into()),
            Found::Storage(path) => self.make_storage_socket(socket, &path).await,
            Found::Missing(_, _, true) => Err(errno::ENOENT.into()),
            Found::Missing(folder, name, false) => {
                self.node.kernel().net.nameless(socket)?;
                let mode = 0o777 & !int(self.fs.lock().umask);
                match self.make(folder, &name, mode, NewInode::Socket) {
                    Err(Error::Errno(errno::EEXIST)) => Err(errno::EADDRINUSE.into()),
                    made => made,
                }
            }
        }
    }

    /// Makes the inode on S's disk that a path is bound as.
    async fn make_storage_socket(&self, socket: &Socket, path: &[u8]) -> Result<u64> {
        let net = &self.node.kernel().net;
        net.nameless(socket)?;
        let mode = SOCKET | 0o777 & !int(self.fs.lock().umask);
        match self.make_storage(path, mode, 0, NewInode::Socket).await {
            Err(Error::Errno(errno::EEXIST)) => return Err(errno::EADDRINUSE.into()),
            made => made?,
        };
        let by = self.asker();
        let stat = self.node.files().stat(by.caller(), path, false).await?;
        // S gives a number away again once nothing has it; the socket may outlive its name.
        net.forget_inode(stat.inode);
        Ok(stat.inode)
    }

    /// Returns the name that a local address stands for.
    async fn unix_name(&self, address: &Address) -> Result<UnixName> {
        let path = match address {
            Address::Abstract(name) => return Ok(UnixName::Abstract(name.clone())),
            Address::Path(path) => path,
            _ => return Err(errno::EINVAL.into()),
        };
        let whole = self.socket_path(path, true).await?;
        let tmpfs = self.node.kernel().tmpfs();
        match tmpfs.find(&whole, true, &self.creds())? {
            Found::Here(inode) => {
                let stat = tmpfs.stat(inode)?;
                self.check_rights(&stat, WRITE)?;
                if stat.mode & TYPE_MASK != SOCKET {
                    return Err(errno::ECONNREFUSED.into());
                }
                Ok(UnixName::Inode(inode))
            }
            Found::Missing(..) => Err(errno::ENOENT.into()),
            Found::Storage(path) => {
                let by = self.asker();
                let stat = self.node.files().stat(by.caller(), &path, true).await?;
                self.check_rights(&stat, WRITE)?;
                if stat.mode & TYPE_MASK != SOCKET {
                    return Err(errno::ECONNREFUSED.into());
                }
                Ok(UnixName::Inode(stat.inode))
            }
        }
    }

    fn sys_listen(&self, [fd, backlog, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        self.node
            .kernel()
            .net
            .listen(socket, int(backlog), self.credentials())?;
        Ok(0)
    }

    async fn sys_accept(&self, [fd, addr, len_at, ..]: Args, flags: u32) -> Result<u64> {
        if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
            return Err(errno::EINVAL.into());
        }
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        if socket.kind == Type::Datagram {
            return Err(errno::EOPNOTSUPP.into());
        }
        let timeout = socket.options.lock().receive_timeout;
        let waits = !file.nonblocking();
        let accepted = self
            .wait_at(socket, &To::Peer, waits, timeout, || socket.try_accept())
            .await?;
        let peer = accepted
            .remote()
            .unwrap_or_default()
            .encode(accepted.family);
        let made = self.add_socket(accepted, flags)?;
        if let Err(error) = self.give_address(&peer, addr, len_at).await {
            let made = self.table().remove(made);
            drop(made);
            return Err(error);
        }
        Ok(made)
    }

    async fn sys_connect(&self, [fd, addr, len, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let bytes = self.address(addr, len).await?;
        if socket::family(&bytes)? == AF_UNSPEC && socket.kind == Type::Datagram {
            if socket.is_local() {
                self.node.kernel().net.connect_datagrams(socket, None)?;
            } else {
                self.node.kernel().net.connect_ip(socket, None)?;
            }
            return Ok(0);
        }
        if socket.family == AF_NETLINK {
            return to_kernel(&bytes).map(|()| 0);
        }
        if socket.is_local() {
            let address = Address::parse_unix(&bytes)?;
            self.connect_local(&file, socket, &address).await?;
        } else {
            let to = Address::parse_ip(socket.family, &bytes)?;
            if socket.kind == Type::Datagram {
                self.node.kernel().net.connect_ip(socket, Some(to))?;
            } else {
                self.connect_tcp(&file, socket, to).await?;
            }
        }
        Ok(0)
    }

    async fn connect_local(
        &self,
        file: &OpenFile,
        socket: &Socket,
        address: &Address,
    ) -> Result<()> {
        let net = &self.node.kernel().net;
        let name = self.unix_name(address).await?;
        if socket.kind == Type::Datagram {
            let other = net.find_unix(&name)?;
            return net.connect_datagrams(socket, Some(&other));
        }
        let to = To::Channel(net.find_unix(&name)?.channel());
        let timeout = socket.options.lock().send_timeout;
        let own = self.credentials();
        // A wait keeps no listener: it may be closed meanwhile.
        let attempt = || net.connect(socket, &*net.find_unix(&name)?, None, own, true);
        self.wait_at(socket, &to, !file.nonblocking(), timeout, attempt)
            .await
    }

    async fn connect_tcp(&self, file: &OpenFile, socket: &Socket, to: SocketAddr) -> Result<()> {
        let net = &self.node.kernel().net;
        if let Some(error) = socket.take_error() {
            return Err(error.into());
        }
        if socket.told() {
            return Ok(());
        }
        let waits = !file.nonblocking();
        let own = self.credentials();
        let connected = match net.find_listener(to) {
            Err(error) => socket.may_connect().and(Err(error)),
            Ok(listener) => {
                let at = To::Channel(listener.channel());
                drop(listener);
                let timeout = socket.options.lock().send_timeout;
                let attempt =
                    || net.connect(socket, &*net.find_listener(to)?, Some(to), own, waits);
                self.wait_at(socket, &at, waits, timeout, attempt).await
            }
        };
        match connected {
            // Linux has not heard back from itself when the call ends.
            Ok(()) if !waits => Err(errno::EINPROGRESS.into()),
            Err(Error::Errno(errno::ECONNREFUSED)) if !waits => {
                socket.fail_later(errno::ECONNREFUSED);
                Err(errno::EINPROGRESS.into())
            }
            Err(Error::Errno(errno::EAGAIN)) => Err(errno::EINPROGRESS.into()),
            connected => connected,
        }
    }

    async fn sys_name(&self, [fd, into, len_at, ..]: Args, peer: bool) -> Result<u64> {
        let file = self.file(fd)?;
        let socket = socket::of(&file)?;
        let address = if peer {
            socket.remote()?
        } else {
            socket.local()
        };
        if into == 0 {
            return Err(errno::EFAULT.into());
        }
        let bytes = address.encode(socket.family);
        self.give_address(&bytes, into, len_at).await?;
        Ok(0)
    }

    fn sys_shutdown(&self, [fd, how, ..]: Args) -> Result<u64> {
        let file = self.file(fd)?;
        let (read, write) = match int(how) {
            0 => (true, false),
            1 => (false, true),
            2 => (true, true),
            _ => return Err(errno::EINVAL.into()),
        };
        socket::of(&file)?.shut_down(read, write)?;
        Ok(0)
    }

    /// Tries until `attempt` says something else than EAGAIN; only once if the call does not wait.
    ///
    /// # Errors
    ///
    /// EAGAIN after `timeout`; EINTR then, ERESTARTSYS else, for a signal.
    async fn wait_at<T>(
        &self,
        socket: &Socket,
        to: &To,
        waits: bool,
        timeout: Option<Duration>,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let again = |tried: &Result<T>| matches!(tried, Err(Error::Errno(errno::EAGAIN)));
        let first = attempt();
        if !waits || !again(&first) {
            return first;
        }
        let done = poll_fn(|context| {
            socket.register_at(to, context.waker());
            let tried = attempt();
            if again(&tried) {
                return Poll::Pending;
            }
            Poll::Ready(tried)
        });
        let Some(timeout) = timeout else {
            return self.unless_called(done).await?;
        };
        let until = self.now() + timeout;
        let (mut done, mut late) = (pin!(done), pin!(self.node.platform().sleep_until(until)));
        let either = poll_fn(|context| {
            if let Poll::Ready(tried) = done.as_mut().poll(context) {
                return Poll::Ready(tried);
            }
            late.as_mut()
                .poll(context)
                .map(|()| Err(errno::EAGAIN.into()))
        });
        match self.unless_called(either).await {
            Ok(tried) => tried,
            // A call with a time limit is not made again.
            Err(_) => Err(errno::EINTR.into()),
        }
    }
}

//! Binding, listening and connecting of sockets.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use spin::{Mutex, MutexGuard};

use super::address::{is_own, source, target, unspecified};
use super::names::Names;
use super::rights::InFlightFiles;
use super::{AF_UNIX, Address, Credentials, Phase, Proto, Right, Socket, Type, UnixName};
use crate::error::{Result, errno};

/// Connections that wait to be accepted at most (Linux's `net.core.somaxconn`).
const MAX_BACKLOG: usize = 4096;
/// Sockets at most, those that wait to be accepted among them.
const MAX_SOCKETS: usize = 16_384;
/// Bytes that wait at all sockets together at most, but for what one call adds.
const MAX_QUEUED: usize = 32 << 20;

/// State that all sockets of the node share.
#[derive(Debug, Default)]
pub(crate) struct Net {
    names: Mutex<Names>,
    flight: Mutex<InFlightFiles>,
    /// Files that were on their way and are to be dropped, one at a time however deep they nest.
    graves: Mutex<Vec<Right>>,
    digging: AtomicBool,
    /// Some file may be on its way.
    any_flying: AtomicBool,
    /// Sockets that there are.
    sockets: AtomicUsize,
    /// Bytes that were sent and not received, overhead included.
    queued: AtomicUsize,
    /// Ports given to netlink sockets.
    netlink_ports: AtomicU32,
}

impl Net {
    /// Makes a socket.
    ///
    /// # Errors
    ///
    /// ENFILE if there are too many.
    pub(crate) fn socket(
        self: &Arc<Self>,
        family: u16,
        kind: Type,
        proto: Proto,
    ) -> Result<Arc<Socket>> {
        if self.sockets.load(Ordering::Relaxed) >= MAX_SOCKETS {
            return Err(errno::ENFILE.into());
        }
        Ok(Socket::make(self, family, kind, proto, false))
    }

    /// Returns a port for a netlink socket: high ones, as Linux gives to those of a process behind
    /// its first.
    pub(super) fn new_netlink_port(&self) -> u32 {
        let count = self.netlink_ports.fetch_add(1, Ordering::Relaxed);
        u32::MAX - 4096 - count % (1 << 31)
    }

    /// Counts sockets: one more, or one less.
    pub(super) fn count_socket(&self, more: bool) {
        if more {
            self.sockets.fetch_add(1, Ordering::Relaxed);
        } else {
            self.sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes that what waits at a socket has changed.
    pub(super) fn count_queued(&self, before: usize, after: usize) {
        if after >= before {
            self.queued.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.queued.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// Checks that the node has room for what is sent.
    ///
    /// # Errors
    ///
    /// ENOBUFS.
    pub(super) fn has_room(&self) -> Result<()> {
        if self.queued.load(Ordering::Relaxed) >= MAX_QUEUED {
            return Err(errno::ENOBUFS.into());
        }
        Ok(())
    }

    /// Makes two connected sockets.
    pub(crate) fn pair(self: &Arc<Self>, kind: Type, own: Credentials) -> Result<[Arc<Socket>; 2]> {
        if self.sockets.load(Ordering::Relaxed) >= MAX_SOCKETS {
            return Err(errno::ENFILE.into());
        }
        let pair = [(); 2].map(|()| Socket::make(self, AF_UNIX, kind, Proto::None, true));
        for (socket, other) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
            let mut state = socket.state.lock();
            state.phase = Phase::Connected;
            state.peer = Some(other.receive.clone());
            state.peer_credentials = Some(own);
        }
        Ok(pair)
    }

    pub(super) fn flight(&self) -> MutexGuard<'_, InFlightFiles> {
        self.flight.lock()
    }

    /// Notes files that begin their way.
    pub(super) fn fly(&self, files: &[Right]) -> Result<()> {
        self.any_flying.store(true, Ordering::Release);
        self.flight.lock().fly(files)
    }

    /// Drops files that were on their way, and ends the sockets that only they reached.
    pub(crate) fn bury(&self, files: Vec<Right>) {
        if !files.is_empty() && self.dig(files) {
            self.collect();
        }
    }

    /// Drops files, and what was on its way to them, without recursion; false if who called does
    /// already.
    fn dig(&self, files: Vec<Right>) -> bool {
        self.graves.lock().extend(files);
        let mut dug = false;
        while !self.digging.swap(true, Ordering::AcqRel) {
            dug = true;
            loop {
                let next = self.graves.lock().pop();
                let Some(file) = next else { break };
                drop(file);
            }
            self.digging.store(false, Ordering::Release);
            // Another core may have left some to this one.
            if self.graves.lock().is_empty() {
                break;
            }
        }
        dug
    }

    /// Ends the sockets that are only on their way to each other.
    pub(crate) fn collect(&self) {
        while self.any_flying.load(Ordering::Acquire) {
            let (mut dead, looked) = {
                let mut flight = self.flight.lock();
                let found = flight.garbage();
                self.any_flying.store(!flight.is_empty(), Ordering::Release);
                found
            };
            let last = dead.is_empty();
            dead.extend(looked);
            self.dig(dead);
            if last {
                break;
            }
        }
    }

    /// Notes that a number of a file was closed: if it is on its way, that may have been the last.
    pub(crate) fn closed(&self, file: Right) {
        let flying = self.any_flying.load(Ordering::Acquire) && self.flight.lock().has(&file);
        drop(file);
        if flying {
            self.collect();
        }
    }

    /// Returns the sockets that there are, and the bytes that wait at them.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        (
            self.sockets.load(Ordering::Relaxed),
            self.queued.load(Ordering::Relaxed),
        )
    }

    /// Returns whether any file is on its way.
    #[cfg(test)]
    pub(crate) fn any_flying(&self) -> bool {
        !self.flight.lock().is_empty()
    }

    /// Returns whether a socket may be given a name.
    ///
    /// # Errors
    ///
    /// EINVAL if it has one.
    pub(crate) fn nameless(&self, socket: &Socket) -> Result<()> {
        match socket.state.lock().local {
            Address::Unnamed => Ok(()),
            _ => Err(errno::EINVAL.into()),
        }
    }

    /// Takes the name of an inode from the socket that has it: the inode is another's now.
    pub(crate) fn forget_inode(&self, inode: u64) {
        self.names.lock().unname(&UnixName::Inode(inode));
    }

    /// Gives a local socket its name: an inode's if `address` is a path, a free one if it is none.
    pub(crate) fn bind_unix(
        &self,
        socket: &Socket,
        address: Address,
        inode: Option<u64>,
    ) -> Result<()> {
        let mut names = self.names.lock();
        self.nameless(socket)?;
        let address = match address {
            Address::Unnamed => Address::Abstract(names.choose_name(&socket.me)?),
            Address::Abstract(name) => {
                names.name(UnixName::Abstract(name.clone()), &socket.me)?;
                Address::Abstract(name)
            }
            address => {
                let inode = inode.ok_or(errno::EINVAL)?;
                names.name(UnixName::Inode(inode), &socket.me)?;
                address
            }
        };
        let mut state = socket.state.lock();
        (state.local, state.inode) = (address, inode);
        Ok(())
    }

    /// Binds an Internet socket.
    ///
    /// # Errors
    ///
    /// EADDRNOTAVAIL for an address that is not this node's, EADDRINUSE, EINVAL if it is bound.
    pub(crate) fn bind_ip(&self, socket: &Socket, addr: SocketAddr) -> Result<()> {
        let mut names = self.names.lock();
        self.nameless(socket)?;
        if !is_own(addr.ip()) {
            return Err(errno::EADDRNOTAVAIL.into());
        }
        let port = names.bind(socket.proto, addr, &socket.sharing, &socket.me)?;
        socket.state.lock().local = Address::Ip(SocketAddr::new(addr.ip(), port));
        Ok(())
    }

    /// Begins to listen, or changes how many may wait.
    pub(crate) fn listen(&self, socket: &Socket, backlog: u32, own: Credentials) -> Result<()> {
        if socket.kind == Type::Datagram {
            return Err(errno::EOPNOTSUPP.into());
        }
        let mut names = self.names.lock();
        let local = socket.state.lock().local.clone();
        let local = match local {
            Address::Unnamed if socket.is_local() => return Err(errno::EINVAL.into()),
            Address::Unnamed => {
                let any = unspecified(socket.family);
                let port = names.bind(Proto::Tcp, any, &socket.sharing, &socket.me)?;
                Address::Ip(SocketAddr::new(any.ip(), port))
            }
            local => local,
        };
        if let Address::Ip(addr) = local
            && !names.may_listen(addr.port(), &socket.me)
        {
            return Err(errno::EADDRINUSE.into());
        }
        let mut state = socket.state.lock();
        if !matches!(state.phase, Phase::Fresh | Phase::Listening) {
            return Err(errno::EINVAL.into());
        }
        state.local = local;
        state.phase = Phase::Listening;
        state.own_credentials = own;
        state.backlog =
            usize::try_from(backlog).map_or(MAX_BACKLOG, |backlog| backlog.min(MAX_BACKLOG));
        socket.sharing.listening.store(true, Ordering::Relaxed);
        drop(state);
        socket.receive.wake();
        Ok(())
    }

    /// Returns the local socket of a name.
    ///
    /// # Errors
    ///
    /// ECONNREFUSED if there is none.
    pub(crate) fn find_unix(&self, name: &UnixName) -> Result<Arc<Socket>> {
        let found = self.names.lock().find(name);
        found
            .and_then(|socket| socket.upgrade())
            .ok_or_else(|| errno::ECONNREFUSED.into())
    }

    /// Returns the socket that listens at an address.
    ///
    /// # Errors
    ///
    /// ENETUNREACH for an address that is not this node's, ECONNREFUSED if there is no listener.
    pub(crate) fn find_listener(&self, to: SocketAddr) -> Result<Arc<Socket>> {
        reachable(to)?;
        let found = self
            .names
            .lock()
            .listener(SocketAddr::new(target(to.ip()), to.port()));
        found
            .and_then(|socket| socket.upgrade())
            .ok_or_else(|| errno::ECONNREFUSED.into())
    }

    /// Connects a socket to one that listens.
    ///
    /// # Errors
    ///
    /// EAGAIN if too many wait there; EISCONN, EINVAL, EPROTOTYPE, ECONNREFUSED.
    pub(crate) fn connect(
        self: &Arc<Self>,
        client: &Socket,
        listener: &Socket,
        to: Option<SocketAddr>,
        own: Credentials,
        waits: bool,
    ) -> Result<()> {
        let mut names = self.names.lock();
        client.may_connect()?;
        if self.sockets.load(Ordering::Relaxed) >= MAX_SOCKETS {
            return Err(errno::ENOBUFS.into());
        }
        if listener.kind != client.kind {
            return Err(errno::EPROTOTYPE.into());
        }
        let local = client_name(&mut names, client, to)?;
        let server = Socket::make(self, listener.family, listener.kind, listener.proto, true);
        server.embryo.store(true, Ordering::Release);
        *server.options.lock() = listener.options.lock().inherited();
        let deaf = listener.receive.half.lock().ended;
        let (remote, peer_credentials) = {
            let mut at = listener.state.lock();
            let refused = at.phase != Phase::Listening || deaf;
            // Nobody would connect later the socket that does not wait: it may go beyond, if not
            // far.
            let most = if waits || to.is_none() {
                at.backlog
            } else {
                MAX_BACKLOG
            };
            let full = at.waiting.len() > most;
            if refused || full {
                drop(at);
                drop(names);
                // Only here: a socket's end takes the names' lock.
                drop(server);
                return Err(if refused {
                    errno::ECONNREFUSED
                } else {
                    errno::EAGAIN
                }
                .into());
            }
            let remote = to.map_or_else(|| at.local.clone(), Address::Ip);
            let mut state = server.state.lock();
            state.phase = Phase::Connected;
            state.local = remote.clone();
            state.remote = local.clone();
            state.peer = Some(client.receive.clone());
            state.peer_credentials = Some(own);
            drop(state);
            at.waiting.push_back(server.clone());
            (remote, at.own_credentials)
        };
        {
            let mut state = client.state.lock();
            state.phase = if waits {
                Phase::Connected
            } else {
                Phase::ToldNext
            };
            (state.local, state.remote) = (local, remote);
            state.peer = Some(server.receive.clone());
            state.peer_credentials = Some(peer_credentials);
        }
        let (there, here) = (
            client.options.lock().capacity(),
            server.options.lock().capacity(),
        );
        server.receive.half.lock().limit = there;
        client.receive.half.lock().limit = here;
        drop(names);
        listener.receive.data.wake();
        client.receive.wake();
        Ok(())
    }

    /// Connects a local datagram socket to another, or to none.
    pub(crate) fn connect_datagrams(&self, socket: &Socket, other: Option<&Socket>) -> Result<()> {
        let _names = self.names.lock();
        let Some(other) = other else {
            let mut state = socket.state.lock();
            state.phase = Phase::Fresh;
            (state.peer, state.remote) = (None, Address::Unnamed);
            return Ok(());
        };
        if other.kind != socket.kind {
            return Err(errno::EPROTOTYPE.into());
        }
        let (remote, theirs) = {
            let state = other.state.lock();
            (state.local.clone(), state.peer.clone())
        };
        // A connected socket receives from its peer only.
        if theirs.is_some_and(|theirs| !Arc::ptr_eq(&theirs, &socket.receive)) {
            return Err(errno::EPERM.into());
        }
        {
            let mut state = socket.state.lock();
            state.phase = Phase::Connected;
            state.peer = Some(other.receive.clone());
            state.remote = remote;
        }
        socket.receive.wake();
        Ok(())
    }

    /// Returns whether a local datagram socket may send to another.
    pub(crate) fn may_send(&self, socket: &Socket, other: &Socket) -> Result<()> {
        if other.kind != socket.kind {
            return Err(errno::EPROTOTYPE.into());
        }
        let theirs = other.state.lock().peer.clone();
        match theirs {
            Some(theirs) if !Arc::ptr_eq(&theirs, &socket.receive) => Err(errno::EPERM.into()),
            _ => Ok(()),
        }
    }

    /// Connects an Internet datagram socket to an address, or to none.
    pub(crate) fn connect_ip(&self, socket: &Socket, to: Option<SocketAddr>) -> Result<()> {
        let to = to.map(|to| SocketAddr::new(target(to.ip()), to.port()));
        let from = match to {
            Some(to) => {
                reachable(to)?;
                Some(self.name_for(socket, to)?)
            }
            None => None,
        };
        let mut names = self.names.lock();
        let mut state = socket.state.lock();
        if let Address::Ip(local) = state.local {
            let own = from.map_or(local.ip(), |from| from.ip());
            names.restrict((socket.proto, local.port()), &socket.me, to, own);
            state.local = Address::Ip(SocketAddr::new(own, local.port()));
        }
        state.phase = if to.is_some() {
            Phase::Connected
        } else {
            Phase::Fresh
        };
        state.remote = to.map_or(Address::Unnamed, Address::Ip);
        Ok(())
    }

    /// Returns the address that a socket's datagrams to `to` come from; gives it a port if it has
    /// none.
    pub(super) fn name_for(&self, socket: &Socket, to: SocketAddr) -> Result<SocketAddr> {
        reachable(to)?;
        let mut names = self.names.lock();
        let mut state = socket.state.lock();
        let local = match state.local {
            Address::Ip(local) => local,
            _ => {
                let any = unspecified(socket.family);
                let port = names.bind(socket.proto, any, &socket.sharing, &socket.me)?;
                let local = SocketAddr::new(any.ip(), port);
                state.local = Address::Ip(local);
                local
            }
        };
        Ok(if local.ip().is_unspecified() {
            SocketAddr::new(source(to.ip()), local.port())
        } else {
            local
        })
    }

    /// Returns the socket that a datagram reaches.
    pub(super) fn datagram_target(
        &self,
        proto: Proto,
        to: SocketAddr,
        from: SocketAddr,
    ) -> Option<Arc<Socket>> {
        let to = SocketAddr::new(target(to.ip()), to.port());
        let found = self.names.lock().receiver(proto, to, from);
        found.and_then(|socket| socket.upgrade())
    }

    /// Takes all names from a socket that ends.
    pub(super) fn forget(&self, socket: &Socket) {
        let state = socket.state.lock();
        let name = match &state.local {
            Address::Abstract(name) => Some(UnixName::Abstract(name.clone())),
            _ => state.inode.map(UnixName::Inode),
        };
        let port = match state.local {
            Address::Ip(addr) => Some((socket.proto, addr.port())),
            _ => None,
        };
        drop(state);
        if name.is_some() || port.is_some() {
            self.names.lock().forget(&socket.me, name.as_ref(), port);
        }
    }
}

impl Socket {
    /// Returns whether the socket may connect.
    pub(crate) fn may_connect(&self) -> Result<()> {
        match self.state.lock().phase {
            Phase::Fresh => Ok(()),
            Phase::Listening if self.is_local() => Err(errno::EINVAL.into()),
            _ => Err(errno::EISCONN.into()),
        }
    }

    /// Reports once that the socket has connected meanwhile.
    pub(crate) fn told(&self) -> bool {
        let mut state = self.state.lock();
        let now = state.phase == Phase::ToldNext;
        if now {
            state.phase = Phase::Connected;
        }
        now
    }

    /// Keeps an error for a later query, such as that of a non-blocking connect.
    pub(crate) fn fail_later(&self, error: messages::Errno) {
        self.receive.half.lock().error = Some(error);
        self.receive.wake();
    }
}

/// Returns whether an address leads anywhere.
fn reachable(to: SocketAddr) -> Result<()> {
    let reached = is_own(to.ip()) || matches!(to.ip(), IpAddr::V4(ip) if ip.is_loopback());
    if reached {
        Ok(())
    } else {
        Err(errno::ENETUNREACH.into())
    }
}

/// Returns the name of a socket that connects; gives it a port if it has none.
fn client_name(names: &mut Names, client: &Socket, to: Option<SocketAddr>) -> Result<Address> {
    let Some(to) = to else {
        return Ok(client.local());
    };
    let own = source(to.ip());
    let port = match client.local() {
        Address::Ip(addr) if !addr.ip().is_unspecified() => return Ok(Address::Ip(addr)),
        Address::Ip(addr) => addr.port(),
        _ => names.bind(
            Proto::Tcp,
            SocketAddr::new(own, 0),
            &client.sharing,
            &client.me,
        )?,
    };
    let local = Address::Ip(SocketAddr::new(own, port));
    client.state.lock().local = local.clone();
    Ok(local)
}

//! The names that sockets have: abstract ones, inodes, ports.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicBool, Ordering};

use super::Socket;
use crate::error::{Result, errno};

/// Ephemeral ports (Linux's `net.ipv4.ip_local_port_range`).
const EPHEMERAL: core::ops::RangeInclusive<u16> = 32_768..=60_999;

/// The name of a local socket, as it is looked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum UnixName {
    Abstract(Vec<u8>),
    /// The number of the inode that a path leads to.
    Inode(u64),
}

/// The protocols that have ports of their own, by Linux's numbers (`include/uapi/linux/in.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Proto {
    /// Local sockets' and netlink's, which have no ports of this kind.
    None = 0,
    Tcp = 6,
    Udp = 17,
    UdpLite = 136,
}

/// The facts that decide whether a port may be shared.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    pub(crate) reuse_addr: AtomicBool,
    pub(crate) reuse_port: AtomicBool,
    pub(crate) only_v6: AtomicBool,
    pub(super) listening: AtomicBool,
}

/// A socket at a port.
#[derive(Clone, Debug)]
struct Bound {
    ip: IpAddr,
    /// It stands for the addresses of both families.
    dual: bool,
    sharing: Arc<Sharing>,
    /// The only sender that it receives from.
    remote: Option<SocketAddr>,
    socket: Weak<Socket>,
}

impl Sharing {
    pub(super) fn stop_listening(&self) {
        self.listening.store(false, Ordering::Relaxed);
    }
}

impl Bound {
    fn alive(&self) -> bool {
        self.socket.strong_count() > 0
    }

    /// Returns whether what is sent to `ip` may reach this socket.
    fn covers(&self, ip: IpAddr) -> bool {
        let family = self.ip.is_ipv4() == ip.is_ipv4();
        self.ip == ip || self.ip.is_unspecified() && (family || self.dual)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.covers(other.ip) || other.covers(self.ip)
    }

    /// Returns whether both may have the same port.
    fn shares(&self, other: &Self, proto: Proto) -> bool {
        let both = |flag: fn(&Sharing) -> &AtomicBool| {
            flag(&self.sharing).load(Ordering::Relaxed)
                && flag(&other.sharing).load(Ordering::Relaxed)
        };
        let listens = |bound: &Self| bound.sharing.listening.load(Ordering::Relaxed);
        let quiet = proto != Proto::Tcp || !listens(self) && !listens(other);
        both(|sharing| &sharing.reuse_port) || both(|sharing| &sharing.reuse_addr) && quiet
    }
}

/// All names.
#[derive(Debug, Default)]
pub(super) struct Names {
    unix: BTreeMap<UnixName, Weak<Socket>>,
    ports: BTreeMap<(Proto, u16), Vec<Bound>>,
    next_port: u16,
    next_name: u32,
}

impl Names {
    /// Gives a name to a local socket.
    ///
    /// # Errors
    ///
    /// EADDRINUSE.
    pub(super) fn name(&mut self, name: UnixName, socket: &Weak<Socket>) -> Result<()> {
        if self
            .unix
            .get(&name)
            .is_some_and(|there| there.strong_count() > 0)
        {
            return Err(errno::EADDRINUSE.into());
        }
        self.unix.insert(name, socket.clone());
        Ok(())
    }

    /// Takes a name from the socket that has it.
    pub(super) fn unname(&mut self, name: &UnixName) {
        self.unix.remove(name);
    }

    /// Gives a free abstract name to a local socket: five hexadecimal digits.
    pub(super) fn choose_name(&mut self, socket: &Weak<Socket>) -> Result<Vec<u8>> {
        for _ in 0..1 << 20 {
            self.next_name = (self.next_name + 1) & 0xf_ffff;
            let name = alloc::format!("{:05x}", self.next_name).into_bytes();
            if self.name(UnixName::Abstract(name.clone()), socket).is_ok() {
                return Ok(name);
            }
        }
        Err(errno::ENOSPC.into())
    }

    /// Returns the socket of a name.
    pub(super) fn find(&self, name: &UnixName) -> Option<Weak<Socket>> {
        self.unix.get(name).cloned()
    }

    /// Binds a socket to an address; port 0 asks for a free one. Returns the port.
    ///
    /// # Errors
    ///
    /// EADDRINUSE.
    pub(super) fn bind(
        &mut self,
        proto: Proto,
        addr: SocketAddr,
        sharing: &Arc<Sharing>,
        socket: &Weak<Socket>,
    ) -> Result<u16> {
        let bound = Bound {
            ip: addr.ip(),
            dual: addr.is_ipv6() && !sharing.only_v6.load(Ordering::Relaxed),
            sharing: sharing.clone(),
            remote: None,
            socket: socket.clone(),
        };
        let port = if addr.port() == 0 {
            self.free_port(proto, &bound)?
        } else if self.permits(proto, addr.port(), &bound) {
            addr.port()
        } else {
            return Err(errno::EADDRINUSE.into());
        };
        let there = self.ports.entry((proto, port)).or_default();
        there.retain(Bound::alive);
        there.push(bound);
        Ok(port)
    }

    fn permits(&self, proto: Proto, port: u16, new: &Bound) -> bool {
        let there = self.ports.get(&(proto, port)).into_iter().flatten();
        let mut others = there.filter(|bound| bound.alive() && !bound.socket.ptr_eq(&new.socket));
        others.all(|bound| !bound.overlaps(new) || bound.shares(new, proto))
    }

    fn free_port(&mut self, proto: Proto, new: &Bound) -> Result<u16> {
        for _ in EPHEMERAL {
            let next = self.next_port.checked_add(1).unwrap_or(0);
            self.next_port = if EPHEMERAL.contains(&next) {
                next
            } else {
                *EPHEMERAL.start()
            };
            let there = self
                .ports
                .get(&(proto, self.next_port))
                .into_iter()
                .flatten();
            // An ephemeral port is never shared.
            if !there
                .clone()
                .any(|bound| bound.alive() && bound.overlaps(new))
            {
                return Ok(self.next_port);
            }
        }
        Err(errno::EADDRINUSE.into())
    }

    /// Returns whether a bound socket may begin to listen beside those that do.
    pub(super) fn may_listen(&self, port: u16, socket: &Weak<Socket>) -> bool {
        let there = self.ports.get(&(Proto::Tcp, port)).into_iter().flatten();
        let Some(own) = there.clone().find(|bound| bound.socket.ptr_eq(socket)) else {
            return false;
        };
        let listening =
            |bound: &&Bound| bound.alive() && bound.sharing.listening.load(Ordering::Relaxed);
        let shared = |bound: &Bound| {
            bound.sharing.reuse_port.load(Ordering::Relaxed)
                && own.sharing.reuse_port.load(Ordering::Relaxed)
        };
        there
            .filter(|bound| !bound.socket.ptr_eq(socket))
            .filter(listening)
            .all(|bound| !bound.overlaps(own) || shared(bound))
    }

    /// Returns the socket that listens at an address: the one that was bound to it most closely.
    pub(super) fn listener(&self, to: SocketAddr) -> Option<Weak<Socket>> {
        let there = self.ports.get(&(Proto::Tcp, to.port()))?;
        let listens = |bound: &&Bound| {
            bound.alive()
                && bound.covers(to.ip())
                && bound.sharing.listening.load(Ordering::Relaxed)
        };
        let best = there
            .iter()
            .filter(listens)
            .max_by_key(|bound| bound.ip == to.ip())?;
        Some(best.socket.clone())
    }

    /// Returns the socket that a datagram reaches.
    pub(super) fn receiver(
        &self,
        proto: Proto,
        to: SocketAddr,
        from: SocketAddr,
    ) -> Option<Weak<Socket>> {
        let there = self.ports.get(&(proto, to.port()))?;
        let takes = |bound: &&Bound| {
            bound.alive()
                && bound.covers(to.ip())
                && bound.remote.is_none_or(|remote| remote == from)
        };
        let closeness = |bound: &&Bound| (bound.remote.is_some(), bound.ip == to.ip());
        let best = there.iter().filter(takes).max_by_key(closeness)?;
        Some(best.socket.clone())
    }

    /// Restricts a bound datagram socket to one sender, or to none, and to one address of its own.
    pub(super) fn restrict(
        &mut self,
        port: (Proto, u16),
        socket: &Weak<Socket>,
        remote: Option<SocketAddr>,
        own: IpAddr,
    ) {
        let there = self.ports.get_mut(&port).into_iter().flatten();
        for bound in there.filter(|bound| bound.socket.ptr_eq(socket)) {
            (bound.remote, bound.ip) = (remote, own);
        }
    }

    /// Takes all names from a socket.
    pub(super) fn forget(
        &mut self,
        socket: &Weak<Socket>,
        name: Option<&UnixName>,
        port: Option<(Proto, u16)>,
    ) {
        if let Some(name) = name
            && self
                .unix
                .get(name)
                .is_some_and(|there| there.ptr_eq(socket))
        {
            self.unix.remove(name);
        }
        if let Some(key) = port
            && let Some(there) = self.ports.get_mut(&key)
        {
            there.retain(|bound| bound.alive() && !bound.socket.ptr_eq(socket));
            if there.is_empty() {
                self.ports.remove(&key);
            }
        }
    }
}

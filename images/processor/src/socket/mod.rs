//! Sockets of this node's own: local ones (`AF_UNIX`), and Internet sockets among the node's
//! programs.
//!
//! A [`Socket`] owns the [`Channel`] that it receives from; its senders hold the same
//! channel. A connected pair is two sockets that hold each other's channels. There are no packets:
//! Internet sockets on the loopback addresses are the same channels with other names and rules.
//!
//! # Locks
//!
//! In this order: [`Net`]'s names, its rights on their way, a socket's state, a channel. Of the
//! last two a task holds one at a time, except a socket's state while the names are locked. Files
//! and sockets are dropped with none of them held.

mod address;
mod half;
mod names;
mod net;
mod netlink;
mod object;
mod options;
mod packet;
mod rights;
mod send;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;

use spin::Mutex;

use crate::error::{Error, Result, errno};
use crate::files::OpenFile;
use crate::object::Object;
use crate::wait::WaitQueue;
pub(crate) use address::{AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, Address, family};
use half::Half;
pub(crate) use half::{Credentials, Message, ReceiveOptions, Taken};
use names::Sharing;
pub(crate) use names::{Proto, UnixName};
pub(crate) use net::Net;
pub(crate) use netlink::AF_NETLINK;
pub(crate) use options::{BUFFER, CONGESTION, Options, Timestamps};
pub(crate) use packet::{Fields, Packet};

/// An open file that travels beside the bytes (SCM_RIGHTS).
type Right = Arc<OpenFile>;

/// `S_IFSOCK` with all rights, as `fstat` gives it.
const MODE: u32 = 0o140_777;
/// Datagrams that wait at most for who is not connected to the sender (Linux's
/// `net.unix.max_dgram_qlen`, and one).
const MAX_WAITING: usize = 11;
/// The longest datagram over IP: 65,535 bytes less the headers.
const UDP_MAX: usize = 65_507;

/// The kinds of socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Type {
    Stream = 1,
    Datagram = 2,
    SeqPacket = 5,
}

/// One direction, and the waiters at its ends.
#[derive(Debug)]
pub(crate) struct Channel {
    half: Mutex<Half<Right>>,
    /// Woken when something changes for the reader.
    data: WaitQueue,
    /// Woken when something changes for senders.
    space: WaitQueue,
}

impl Channel {
    fn wake(&self) {
        self.data.wake();
        self.space.wake();
    }
}

/// Progress of a socket that connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Fresh,
    Listening,
    Connected,
    /// Connected, which the next `connect` will say.
    ToldNext,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    local: Address,
    /// The inode that a path was bound as.
    inode: Option<u64>,
    remote: Address,
    /// The channel that is sent to.
    peer: Option<Arc<Channel>>,
    /// Sends fail.
    mute: bool,
    /// Sockets that are connected and wait to be accepted, and how many may.
    waiting: VecDeque<Arc<Socket>>,
    backlog: usize,
    /// The process that listens or connected.
    own_credentials: Credentials,
    peer_credentials: Option<Credentials>,
}

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) family: u16,
    pub(crate) kind: Type,
    pub(crate) proto: Proto,
    net: Arc<Net>,
    me: Weak<Socket>,
    receive: Arc<Channel>,
    state: Mutex<State>,
    /// A pair from the start: each receives from the other alone.
    paired: bool,
    /// It waits to be accepted.
    embryo: AtomicBool,
    sharing: Arc<Sharing>,
    pub(crate) options: Mutex<Options>,
}

/// Destination of a datagram.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// The address that the socket is connected to.
    Peer,
    Channel(Arc<Channel>),
    Ip(SocketAddr),
}

impl Socket {
    fn make(net: &Arc<Net>, family: u16, kind: Type, proto: Proto, paired: bool) -> Arc<Self> {
        net.count_socket(true);
        Arc::new_cyclic(|me| Self {
            family,
            kind,
            proto,
            net: net.clone(),
            me: me.clone(),
            receive: Arc::new(Channel {
                half: Mutex::new(Half::new(BUFFER)),
                data: WaitQueue::default(),
                space: WaitQueue::default(),
            }),
            state: Mutex::new(State {
                phase: Phase::Fresh,
                local: Address::Unnamed,
                inode: None,
                remote: Address::Unnamed,
                peer: None,
                mute: false,
                waiting: VecDeque::new(),
                backlog: 0,
                own_credentials: Credentials::default(),
                peer_credentials: None,
            }),
            paired,
            embryo: AtomicBool::new(false),
            sharing: Arc::default(),
            options: Mutex::new(Options::new(family, kind)),
        })
    }

    /// Returns what the socket receives from, which does not keep it.
    pub(crate) fn channel(&self) -> Arc<Channel> {
        self.receive.clone()
    }

    /// Returns what decides whether the socket's port may be shared.
    pub(crate) fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// Returns whether the socket is a local one.
    pub(crate) fn is_local(&self) -> bool {
        self.family == AF_UNIX
    }

    /// Returns whether bytes have no bounds.
    pub(crate) fn is_stream(&self) -> bool {
        self.kind == Type::Stream
    }

    /// Returns the name that the socket has.
    pub(crate) fn local(&self) -> Address {
        self.state.lock().local.clone()
    }

    /// Returns the name that the socket is connected to.
    ///
    /// # Errors
    ///
    /// ENOTCONN.
    pub(crate) fn remote(&self) -> Result<Address> {
        let state = self.state.lock();
        let connected = matches!(state.phase, Phase::Connected | Phase::ToldNext);
        connected
            .then(|| state.remote.clone())
            .ok_or_else(|| errno::ENOTCONN.into())
    }

    /// Returns whether the socket listens.
    pub(crate) fn listens(&self) -> bool {
        self.state.lock().phase == Phase::Listening
    }

    /// Returns the process at the other end, as it was when it connected or began to listen.
    pub(crate) fn peer_credentials(&self) -> Option<Credentials> {
        self.state.lock().peer_credentials
    }

    /// Takes the pending error (`SO_ERROR`).
    pub(crate) fn take_error(&self) -> Option<messages::Errno> {
        self.receive.half.lock().error.take()
    }

    fn connected(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Connected | Phase::ToldNext)
    }

    /// Sets how much may wait on the way from this socket to where it is connected.
    pub(crate) fn bound_sending(&self, limit: usize) {
        let peer = self.state.lock().peer.clone();
        if let Some(peer) = peer.filter(|_| self.kind != Type::Datagram) {
            peer.half.lock().limit = limit;
            peer.space.wake();
        }
    }

    /// Returns the bytes that were sent and not received (`SIOCOUTQ`).
    pub(crate) fn unreceived(&self) -> usize {
        let peer = self.state.lock().peer.clone();
        peer.map_or(0, |peer| peer.half.lock().bytes())
    }

    /// Receives what there is.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is nothing yet, and what became of the connection.
    pub(crate) fn try_receive(&self, how: ReceiveOptions) -> Result<Taken<Right>> {
        let mut flight = None;
        let mut half = self.receive.half.lock();
        if half.has_rights() {
            // They leave the ways under the lock of those who look for cycles.
            drop(half);
            flight = Some(self.net.flight());
            half = self.receive.half.lock();
        }
        let stream = self.is_stream();
        let before = half.charge();
        if !stream && let Some(error) = half.error.take() {
            return Err(error.into());
        }
        let taken = if stream {
            half.take_stream(how)
        } else {
            half.take_message(how)
        };
        let Some(taken) = taken else {
            let error = half.error.take();
            let ended = half.ended || half.deaf;
            drop(half);
            return match error {
                Some(error) => Err(error.into()),
                None => self.nothing(ended),
            };
        };
        self.net.count_queued(before, half.charge());
        drop(half);
        if let Some(flight) = &mut flight
            && !how.peek
        {
            flight.land(&taken.rights);
        }
        drop(flight);
        if !how.peek {
            self.receive.space.wake();
        }
        Ok(taken)
    }

    /// Returns what receiving says when there is nothing.
    fn nothing(&self, ended: bool) -> Result<Taken<Right>> {
        let connects = self.kind != Type::Datagram;
        if connects && !self.connected() {
            let local_stream = self.is_local() && self.is_stream();
            return Err(if local_stream {
                errno::EINVAL
            } else {
                errno::ENOTCONN
            }
            .into());
        }
        if ended {
            Ok(Taken::end())
        } else {
            Err(errno::EAGAIN.into())
        }
    }

    /// Ends receiving, sending, or both.
    pub(crate) fn shut_down(&self, read: bool, write: bool) -> Result<()> {
        let (peer, phase, waiting) = {
            let mut state = self.state.lock();
            if !self.is_local() && self.is_stream() && state.phase == Phase::Fresh {
                return Err(errno::ENOTCONN.into());
            }
            let listening = state.phase == Phase::Listening;
            let mut waiting = VecDeque::new();
            if listening && read && !self.is_local() {
                // As Linux, a TCP socket that listens goes back to where it began.
                state.phase = Phase::Fresh;
                self.sharing.stop_listening();
                waiting = core::mem::take(&mut state.waiting);
            } else {
                state.mute |= write;
            }
            (state.peer.clone(), state.phase, waiting)
        };
        drop(waiting);
        let pair = self.kind != Type::Datagram;
        if read {
            let mut half = self.receive.half.lock();
            if self.is_local() || !self.is_stream() {
                half.ended = true;
            } else {
                half.deaf = true;
            }
        }
        if let Some(peer) = peer.filter(|_| pair) {
            if write {
                peer.half.lock().ended = true;
            }
            peer.wake();
        }
        self.receive.wake();
        if !self.is_local() && self.kind == Type::Datagram && phase == Phase::Fresh {
            return Err(errno::ENOTCONN.into());
        }
        Ok(())
    }

    /// Takes the next connection.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is none yet; EINVAL if the socket does not listen.
    pub(crate) fn try_accept(&self) -> Result<Arc<Self>> {
        let next = {
            let mut state = self.state.lock();
            if state.phase != Phase::Listening {
                return Err(errno::EINVAL.into());
            }
            state.waiting.pop_front()
        };
        match next {
            Some(socket) => {
                socket.embryo.store(false, Ordering::Release);
                self.receive.space.wake();
                Ok(socket)
            }
            None if self.receive.half.lock().ended => Err(errno::EINVAL.into()),
            None => Err(errno::EAGAIN.into()),
        }
    }

    /// Keeps a waker until something changes at an end that this socket waits at.
    pub(crate) fn register_at(&self, to: &To, waker: &Waker) {
        self.register(waker);
        if let To::Channel(channel) = to {
            channel.space.register(waker);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.net.forget(self);
        let state = self.state.get_mut();
        let peer = state.peer.take();
        let waiting = core::mem::take(&mut state.waiting);
        let connected = matches!(state.phase, Phase::Connected | Phase::ToldNext);
        let pair = self.kind != Type::Datagram;
        let (rights, unread) = {
            let mut flight = self.net.flight();
            let mut half = self.receive.half.lock();
            let unread = !half.is_empty() || self.embryo.load(Ordering::Acquire);
            half.gone = true;
            half.ended |= pair && (self.family == AF_UNIX || unread);
            self.net.count_queued(half.charge(), 0);
            let rights = half.clear();
            drop(half);
            flight.land(&rights);
            (rights, unread)
        };
        if let Some(peer) = peer.filter(|_| pair && connected) {
            let mut half = peer.half.lock();
            half.ended = true;
            if unread {
                half.error = Some(errno::ECONNRESET);
            }
            drop(half);
            peer.wake();
        }
        self.receive.wake();
        self.net.count_socket(false);
        drop(waiting);
        self.net.bury(rights);
    }
}

/// Returns the socket that an open file is.
///
/// # Errors
///
/// ENOTSOCK.
pub(crate) fn of(file: &OpenFile) -> Result<&Socket> {
    let socket = match &file.kind {
        crate::files::Kind::Object(object) => object.as_socket(),
        _ => None,
    };
    socket.ok_or(Error::Errno(errno::ENOTSOCK))
}

//! Sending: what becomes of bytes and datagrams at each kind of socket.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{
    AF_NETLINK, AF_UNIX, Address, MAX_WAITING, Message, Phase, Right, Socket, To, Type, UDP_MAX,
};
use crate::error::{Result, errno};

impl Socket {
    /// Sends what there is room for; a datagram whole or not at all.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is no room, and what became of the connection.
    pub(crate) fn try_send(&self, message: &mut Message<Right>, to: &To) -> Result<usize> {
        self.net.has_room()?;
        let flying: Vec<_> = message.rights.clone();
        if !flying.is_empty() {
            self.net.fly(&flying)?;
        }
        let sent = match (self.kind, self.family) {
            (Type::Stream, _) => self.send_stream(message),
            (_, AF_UNIX) => self.send_local(message, to),
            (_, AF_NETLINK) => self.ask_kernel(message),
            _ => self.send_datagram(message, to),
        };
        // What was not taken stays the caller's.
        if !flying.is_empty() && !message.rights.is_empty() {
            self.net.flight().land(&message.rights);
        }
        sent
    }

    fn send_stream(&self, message: &mut Message<Right>) -> Result<usize> {
        let (peer, mute) = {
            let state = self.state.lock();
            let unconnected = if self.is_local() {
                errno::ENOTCONN
            } else {
                errno::EPIPE
            };
            (state.peer.clone().ok_or(unconnected)?, state.mute)
        };
        if !self.is_local()
            && let Some(error) = self.take_error()
        {
            return Err(error.into());
        }
        if mute {
            return Err(errno::EPIPE.into());
        }
        let mut half = peer.half.lock();
        if half.gone && !half.ended {
            // As over TCP: the other end answers what reaches it after its close by a reset.
            half.ended = true;
            drop(half);
            self.receive.half.lock().error = Some(errno::EPIPE);
            self.receive.data.wake();
            return Ok(message.bytes.len());
        }
        let before = half.charge();
        let count = half.push_stream(message)?;
        self.net.count_queued(before, half.charge());
        drop(half);
        peer.data.wake();
        Ok(count)
    }

    fn send_local(&self, message: &mut Message<Right>, to: &To) -> Result<usize> {
        let limit = self.options.lock().send_buffer;
        let peer = {
            let state = self.state.lock();
            match to {
                To::Channel(channel) if self.kind == Type::Datagram => channel.clone(),
                _ => state.peer.clone().ok_or(errno::ENOTCONN)?,
            }
        };
        if message.bytes.len() > limit.saturating_sub(32) {
            return Err(errno::EMSGSIZE.into());
        }
        if self.state.lock().mute {
            return Err(errno::EPIPE.into());
        }
        let mut half = peer.half.lock();
        if half.gone && self.kind == Type::Datagram {
            drop(half);
            let mut state = self.state.lock();
            if state
                .peer
                .as_ref()
                .is_some_and(|own| Arc::ptr_eq(own, &peer))
            {
                state.peer = None;
                state.remote = Address::Unnamed;
                state.phase = Phase::Fresh;
            }
            return Err(errno::ECONNREFUSED.into());
        }
        let own = Arc::ptr_eq(&peer, &self.receive);
        let most = if self.paired || own || self.kind == Type::SeqPacket {
            usize::MAX
        } else {
            MAX_WAITING
        };
        let before = half.charge();
        let count = half.push_message(message, most)?;
        self.net.count_queued(before, half.charge());
        drop(half);
        peer.data.wake();
        Ok(count)
    }

    fn send_datagram(&self, message: &mut Message<Right>, to: &To) -> Result<usize> {
        if let Some(error) = self.take_error() {
            return Err(error.into());
        }
        if message.bytes.len() > UDP_MAX {
            return Err(errno::EMSGSIZE.into());
        }
        let (mute, connected, remote) = {
            let state = self.state.lock();
            (
                state.mute,
                state.phase != Phase::Fresh,
                state.remote.clone(),
            )
        };
        if mute {
            return Err(errno::EPIPE.into());
        }
        let to = match (to, remote) {
            (To::Ip(to), _) if to.port() == 0 => return Err(errno::EINVAL.into()),
            (To::Ip(to), _) => *to,
            (_, Address::Ip(to)) if connected => to,
            _ => return Err(errno::EDESTADDRREQ.into()),
        };
        let from = self.net.name_for(self, to)?;
        message.from = Address::Ip(from);
        message.packet.to = Some(to);
        let len = message.bytes.len();
        match self.net.datagram_target(self.proto, to, from) {
            Some(target) => {
                let mut half = target.receive.half.lock();
                // What finds no room is lost, as a datagram may be.
                let before = half.charge();
                let pushed = half.push_message(message, usize::MAX);
                self.net.count_queued(before, half.charge());
                drop(half);
                if pushed.is_ok() {
                    target.receive.data.wake();
                }
            }
            None if connected => {
                self.receive.half.lock().error = Some(errno::ECONNREFUSED);
                self.receive.data.wake();
            }
            None => {}
        }
        Ok(len)
    }
}

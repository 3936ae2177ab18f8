//! Sockets as files: reading, writing, readiness.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use super::{
    Channel, Credentials, MAX_WAITING, MODE, Message, Phase, ReceiveOptions, Socket, To, Type,
};
use crate::error::Result;
use crate::object::{
    Object, POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, POLL_RDHUP, POLL_RDNORM, POLL_WRBAND,
    POLL_WRNORM,
};
use crate::wait::WaitQueue;

impl Socket {
    /// Returns whether the socket would send without waiting.
    fn writable(&self, peer: Option<&Arc<Channel>>) -> bool {
        let Some(peer) = peer else {
            return true;
        };
        let half = peer.half.lock();
        let crowded = self.kind == Type::Datagram && !self.paired && half.len() >= MAX_WAITING;
        half.ended || half.gone || half.roomy() && !crowded
    }
}

impl Object for Socket {
    fn read(&self, into: &mut [u8]) -> Result<usize> {
        let how = ReceiveOptions {
            most: into.len(),
            peek: false,
            by_sender: false,
        };
        let taken = self.try_receive(how)?;
        into[..taken.bytes.len()].copy_from_slice(&taken.bytes);
        self.net.bury(taken.rights);
        Ok(taken.bytes.len())
    }

    fn write(&self, from: &[u8]) -> Result<usize> {
        let mut message = Message {
            bytes: from.to_vec(),
            rights: Vec::new(),
            credentials: Credentials::default(),
            from: self.local(),
            packet: super::Packet::default(),
        };
        self.try_send(&mut message, &To::Peer)
    }

    fn ready(&self) -> u16 {
        let (phase, peer, mute, waiting) = {
            let state = self.state.lock();
            (
                state.phase,
                state.peer.clone(),
                state.mute,
                !state.waiting.is_empty(),
            )
        };
        let (data, ended, error) = {
            let half = self.receive.half.lock();
            (
                !half.is_empty(),
                half.ended || half.deaf,
                half.error.is_some(),
            )
        };
        let pair = self.kind != Type::Datagram;
        let silent = mute || pair && peer.as_ref().is_some_and(|peer| peer.half.lock().ended);
        let connected = matches!(phase, Phase::Connected | Phase::ToldNext);
        let hung_up = ended && silent || pair && !connected && phase != Phase::Listening;
        let mut bits = 0;
        if data || waiting || ended {
            bits |= POLL_IN | POLL_RDNORM;
        }
        if ended {
            bits |= POLL_RDHUP;
        }
        if hung_up {
            bits |= POLL_HUP;
        }
        if error {
            bits |= POLL_ERR;
        }
        if phase != Phase::Listening && (silent || self.writable(peer.as_ref())) {
            bits |= POLL_OUT | POLL_WRNORM;
            if self.is_local() || !pair {
                bits |= POLL_WRBAND;
            }
        }
        bits
    }

    fn queue(&self) -> &WaitQueue {
        &self.receive.data
    }

    fn register(&self, waker: &Waker) {
        self.receive.data.register(waker);
        let peer = self.state.lock().peer.clone();
        if let Some(peer) = peer {
            peer.space.register(waker);
        }
    }

    fn changes(&self) -> u64 {
        let peer = self.state.lock().peer.clone();
        let there = peer.map_or(0, |peer| peer.space.changes());
        self.receive.data.changes().wrapping_add(there)
    }

    fn as_socket(&self) -> Option<&Socket> {
        Some(self)
    }

    fn mode(&self) -> u32 {
        MODE
    }

    fn readable(&self) -> usize {
        let half = self.receive.half.lock();
        if self.is_stream() {
            half.bytes()
        } else {
            half.first_len()
        }
    }
}

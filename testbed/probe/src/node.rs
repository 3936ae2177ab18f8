//! A card in use, its registered memory, and a queue pair.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use hal::{DmaBuffer, Duration, Instant, Platform};
use verbs::{
    Access, Completion, CompletionKind, Device, Domain, PathToPeer, Payload, PortInfo, PortState,
    QpConfig, QpKind, QpSlot, Qpn, QueueSet, RcParameters, Region, RemoteAddr, SendOp, SendRequest,
    Sge, Status, UdAddress,
};

use crate::{Error, Wait};

/// Deadline of any wait: guests without hardware virtualisation are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Poll interval for completions and datagrams.
const LOOK: Duration = Duration::from_micros(20);

/// All that a region may allow.
const ALL: Access = Access {
    local_write: true,
    remote_read: true,
    remote_write: true,
};

/// A card that is up, with its machine. Its driver's service must run beside.
pub struct Node<D: Device, P: Platform> {
    /// The card.
    pub device: Arc<D>,
    /// The machine.
    pub platform: P,
    /// The port in use, from 1.
    pub port: u8,
}

impl<D: Device, P: Platform> Clone for Node<D, P> {
    fn clone(&self) -> Self {
        Self {
            device: Arc::clone(&self.device),
            platform: self.platform.clone(),
            port: self.port,
        }
    }
}

impl<D: Device, P: Platform> Node<D, P> {
    /// Waits until the port is ACTIVE.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or the device's.
    pub async fn active(&self) -> Result<PortInfo, Error> {
        let deadline = self.deadline();
        loop {
            let info = self.device.port(self.port).await?;
            if info.state == PortState::Active {
                return Ok(info);
            }
            self.pause(deadline, Wait::Port, Duration::from_millis(5))
                .await?;
        }
    }

    /// Returns the time at which [`PATIENCE`], counted from now, ends.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.platform.now() + PATIENCE
    }

    /// Lets some time pass, unless the deadline has.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`].
    pub async fn pause(&self, deadline: Instant, wait: Wait, span: Duration) -> Result<(), Error> {
        if self.platform.now() >= deadline {
            return Err(Error::Timeout(wait));
        }
        self.platform.sleep(span).await;
        Ok(())
    }

    /// Registers memory that this side and peers may read and write.
    ///
    /// # Errors
    ///
    /// The machine's or the device's.
    pub async fn memory(&self, len: u32) -> Result<Piece<P>, Error> {
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        let buffer = self.platform.alloc(bytes, 4096)?;
        let region = self
            .device
            .register(Domain::default(), buffer.bus_addr().0, len.into(), ALL)
            .await?;
        Ok(Piece {
            buffer,
            region,
            len,
        })
    }

    /// Takes registered memory back.
    ///
    /// # Errors
    ///
    /// The device's; the memory is then lost, for the card may still reach it.
    pub async fn forget(&self, piece: Piece<P>) -> Result<(), Error> {
        let result = self.device.deregister(&piece.region).await;
        if result.is_err() {
            core::mem::forget(piece.buffer);
        }
        Ok(result?)
    }

    /// Makes a queue pair of this kind, which takes receives at once.
    ///
    /// # Errors
    ///
    /// The device's.
    pub async fn queue_pair(&self, kind: QpKind) -> Result<Pair<D, P>, Error> {
        const DEPTH: u32 = 16;
        let config = QpConfig {
            kind,
            port: self.port,
            domain: Domain::default(),
            send_depth: DEPTH,
            receive_depth: DEPTH,
            send_sge: 1,
            receive_sge: 1,
            inline: 0,
            remote_access: ALL,
        };
        // Room for what the device rounds up to.
        let mut queues = self.device.create_queues(8 * DEPTH, 0).await?;
        let (slot, qpn) = self.device.create_qp(&mut queues, &config).await?;
        Ok(Pair {
            node: self.clone(),
            queues,
            slot,
            qpn,
            early: VecDeque::new(),
        })
    }
}

/// A piece of registered memory.
pub struct Piece<P: Platform> {
    buffer: P::Buffer,
    /// Its keys.
    pub region: Region,
    len: u32,
}

impl<P: Platform> Piece<P> {
    /// Its length.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Returns whether the buffer has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset` on, for a request.
    #[must_use]
    pub fn sge(&self, offset: u32, len: u32) -> Sge {
        Sge {
            addr: self.region.addr + u64::from(offset),
            len,
            lkey: self.region.lkey,
        }
    }

    /// Its begin, for a peer.
    #[must_use]
    pub fn remote(&self) -> RemoteAddr {
        RemoteAddr {
            addr: self.region.addr,
            rkey: self.region.rkey,
        }
    }

    /// Puts bytes into it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.buffer.write(offset, bytes);
    }

    /// Copies bytes out of it.
    #[must_use]
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.buffer.read(offset, &mut bytes);
        bytes
    }
}

/// A queue pair with a completion queue of its own.
pub struct Pair<D: Device, P: Platform> {
    node: Node<D, P>,
    queues: D::Queues,
    slot: QpSlot,
    qpn: Qpn,
    /// Completions that came before a task waited for them.
    early: VecDeque<Completion>,
}

impl<D: Device, P: Platform> Pair<D, P> {
    /// Its number.
    #[must_use]
    pub fn qpn(&self) -> Qpn {
        self.qpn
    }

    /// Returns the card's node.
    #[must_use]
    pub fn node(&self) -> &Node<D, P> {
        &self.node
    }

    /// Connects it: INIT to RTS.
    ///
    /// # Errors
    ///
    /// The device's.
    pub async fn connect(&self, path: &PathToPeer, parameters: &RcParameters) -> Result<(), Error> {
        let device = &self.node.device;
        device.ready_to_receive(self.qpn, path, parameters).await?;
        device
            .ready_to_send(self.qpn, Some(path), parameters)
            .await?;
        Ok(())
    }

    /// Lets a datagram queue pair send.
    ///
    /// # Errors
    ///
    /// The device's.
    pub async fn ready(&self) -> Result<(), Error> {
        let device = &self.node.device;
        device.ready_to_send(self.qpn, None, &PERSISTENT).await?;
        Ok(())
    }

    /// Posts a receive.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn receive(&mut self, id: u64, into: Sge) -> Result<(), Error> {
        Ok(self.queues.post_receive(self.slot, id, &[into])?)
    }

    /// Posts a signalled request and rings for it.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn send(
        &mut self,
        id: u64,
        op: SendOp,
        piece: Sge,
        to: Option<UdAddress>,
    ) -> Result<(), Error> {
        let request = SendRequest {
            id,
            op,
            payload: Payload::Gather(&[piece]),
            signalled: true,
            solicited: false,
            fence: false,
            to,
        };
        self.queues.post_send(self.slot, &request)?;
        self.queues.ring(self.slot);
        Ok(())
    }

    /// Waits for the next completion of a request of this side, or of a received message.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when it failed, [`Error::Timeout`], or [`Error::Device`].
    pub async fn next(&mut self, kind: CompletionKind) -> Result<Completion, Error> {
        let deadline = self.node.deadline();
        loop {
            let mut fresh = [Completion::EMPTY; 4];
            let count = self.queues.poll(&mut fresh)?;
            self.early.extend(&fresh[..count]);
            if let Some(failed) = self.early.iter().find(|one| one.status != Status::Success) {
                let (id, status) = (failed.id, failed.status);
                return Err(Error::Request { id, status });
            }
            if let Some(at) = self.early.iter().position(|one| one.kind == kind) {
                return Ok(self.early.remove(at).unwrap_or(Completion::EMPTY));
            }
            self.node.pause(deadline, Wait::Completion, LOOK).await?;
        }
    }

    /// Posts a request and waits until it is done.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send) and [`next`](Self::next).
    pub async fn complete(&mut self, id: u64, op: SendOp, piece: Sge) -> Result<Completion, Error> {
        self.send(id, op, piece, None)?;
        self.next(CompletionKind::Send).await
    }

    /// Takes it away.
    ///
    /// # Errors
    ///
    /// The device's.
    pub async fn close(self) -> Result<(), Error> {
        let Self {
            node,
            mut queues,
            slot,
            ..
        } = self;
        node.device.destroy_qp(&mut queues, slot).await?;
        node.device.destroy_queues(queues).await?;
        Ok(())
    }
}

/// Retry and timeout parameters of a connection, as Linux's tools set them.
pub const PERSISTENT: RcParameters = RcParameters {
    ack_timeout: 14,
    retry_count: 7,
    rnr_retry: 6,
    min_rnr_timer: 12,
    reads_as_requester: 1,
    reads_as_responder: 1,
};

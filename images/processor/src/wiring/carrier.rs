//! Calls over FIT.

use core::sync::atomic::{AtomicBool, Ordering};

use fit::{Call, PeerId, Piece};
use hal::{DmaBuffer, Platform};
use libos::dma::Buffer;
use messages::Kind;
use node::{Core, Error, Node};
use processor::remote::{Carrier, MAX_DATA, NoAnswer};
use processor::wait::Gate;
use verbs::{Access, Device, Region};

/// Carries calls to one peer.
pub(crate) struct FitCarrier {
    core: Core,
    peer: PeerId,
    /// Buffer for the data that the peer writes; `None` for a peer that never does.
    data: Option<Landing>,
}

/// Memory that the peer's data lands in, and that it reads data from.
struct Landing {
    buffer: Buffer,
    region: Region,
    /// Passed by one call at a time.
    gate: Gate,
    /// Set for good when a call did not end in order: the peer may still read or write.
    lent: AtomicBool,
}

impl Landing {
    /// Notes that a call has the buffer; an error if one that did not end in order has it still.
    fn lend(&self, kind: Kind) -> Result<(), NoAnswer> {
        if self.lent.swap(true, Ordering::AcqRel) {
            let call = kind.name().unwrap_or("call");
            log::error!("{call}: the data buffer is lent to an earlier call");
            return Err(NoAnswer);
        }
        Ok(())
    }
}

impl FitCarrier {
    /// Carries to a peer whose replies are messages only.
    pub(crate) fn new(core: Core, peer: PeerId) -> Self {
        Self {
            core,
            peer,
            data: None,
        }
    }

    /// Carries to a peer that also sends data.
    ///
    /// # Errors
    ///
    /// When the machine has no memory for the data, or the HCA refuses it.
    pub(crate) async fn with_data(core: Core, peer: PeerId, node: &Node) -> Result<Self, Error> {
        let buffer = node
            .function
            .alloc(MAX_DATA, 4096)
            .map_err(|error| Error::Role(alloc::format!("{error}")))?;
        let access = Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        };
        let region = node
            .card
            .register(
                node.fit.domain(peer),
                buffer.bus_addr().0,
                MAX_DATA as u64,
                access,
            )
            .await?;
        let data = Some(Landing {
            buffer,
            region,
            gate: Gate::default(),
            lent: AtomicBool::new(false),
        });
        Ok(Self { core, peer, data })
    }

    fn failed(kind: Kind, error: &fit::Error) -> NoAnswer {
        log::error!("{}: {error}", kind.name().unwrap_or("call"));
        NoAnswer
    }
}

impl Carrier for FitCarrier {
    async fn call(&self, kind: Kind, request: &[u8], reply: &mut [u8]) -> Result<usize, NoAnswer> {
        let called = self
            .core
            .call(self.peer, Call::new(kind.0, request), reply)
            .await;
        called
            .map(|reply| reply.len)
            .map_err(|error| Self::failed(kind, &error))
    }

    async fn call_for_data(
        &self,
        kind: Kind,
        request: &[u8],
        reply: &mut [u8],
        data: &mut [u8],
    ) -> Result<usize, NoAnswer> {
        let landing = self.data.as_ref().ok_or(NoAnswer)?;
        let _pass = landing.gate.pass().await;
        landing.lend(kind)?;
        let len = u32::try_from(data.len().min(MAX_DATA)).expect("at most MAX_DATA");
        let into = [Piece::of(&landing.region, 0, len)];
        let call = Call::new(kind.0, request).scatter(&into);
        let called = self.core.call(self.peer, call, reply).await;
        let answer = called.map_err(|error| Self::failed(kind, &error))?;
        let came = (answer.bulk as usize).min(data.len());
        landing.buffer.read(0, &mut data[..came]);
        landing.lent.store(false, Ordering::Release);
        Ok(answer.len)
    }

    async fn call_with_data(
        &self,
        kind: Kind,
        request: &[u8],
        reply: &mut [u8],
        data: &[u8],
    ) -> Result<usize, NoAnswer> {
        let landing = self.data.as_ref().ok_or(NoAnswer)?;
        let _pass = landing.gate.pass().await;
        landing.lend(kind)?;
        let data = &data[..data.len().min(MAX_DATA)];
        landing.buffer.write(0, data);
        let len = u32::try_from(data.len()).expect("at most MAX_DATA");
        let from = [Piece::of(&landing.region, 0, len)];
        let call = Call::new(kind.0, request).gather(&from[..usize::from(len > 0)]);
        let called = self.core.call(self.peer, call, reply).await;
        let answer = called.map_err(|error| Self::failed(kind, &error))?;
        landing.lent.store(false, Ordering::Release);
        Ok(answer.len)
    }
}

//! Calls over FIT.

use core::sync::atomic::{AtomicBool, Ordering};

use fit::{Call, PeerId, Piece};
use hal::{DmaBuffer, Platform};
use libos::dma::Buffer;
use messages::Kind;
use node::{Core, Error, Node};
use processor::remote::{Carrier, MAX_READ, NoAnswer};
use processor::wait::Gate;
use verbs::{Access, Device, Region};

/// Carries calls to one peer.
pub(crate) struct FitCarrier {
    core: Core,
    peer: PeerId,
    /// Where the peer writes data; none for a peer that never does.
    data: Option<Landing>,
}

/// Memory that the peer's data lands in.
struct Landing {
    buffer: Buffer,
    region: Region,
    /// Passed by one call at a time.
    gate: Gate,
    /// Set for good when a call did not end in order: the peer may still write.
    lent: AtomicBool,
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
            .alloc(MAX_READ, 4096)
            .map_err(|error| Error::Role(alloc::format!("{error}")))?;
        let access = Access {
            local_write: true,
            remote_read: false,
            remote_write: true,
        };
        let region = node
            .card
            .register(
                node.fit.domain(peer),
                buffer.bus_addr().0,
                MAX_READ as u64,
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
        let called = self.core.call(self.peer, Call::new(kind.0, request), reply).await;
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
        let Some(landing) = &self.data else {
            return Err(NoAnswer);
        };
        let _pass = landing.gate.pass().await;
        if landing.lent.swap(true, Ordering::AcqRel) {
            log::error!(
                "{}: the data buffer is lent to an earlier call",
                kind.name().unwrap_or("call")
            );
            return Err(NoAnswer);
        }
        let len = u32::try_from(data.len().min(MAX_READ)).expect("at most MAX_READ");
        let into = [Piece::of(&landing.region, 0, len)];
        let call = Call::new(kind.0, request).scatter(&into);
        let called = self.core.call(self.peer, call, reply).await;
        let answer = called.map_err(|error| Self::failed(kind, &error))?;
        let came = (answer.bulk as usize).min(data.len());
        landing.buffer.read(0, &mut data[..came]);
        landing.lent.store(false, Ordering::Release);
        Ok(answer.len)
    }
}

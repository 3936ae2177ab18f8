//! Registered memory of the workload.

use std::sync::Arc;

use fit::PeerId;
use hal::{DmaBuffer, Platform};
use verbs::{Access, Device, Region, RemoteAddr, Sge};

use super::NodeLife;
use crate::machine::Buffer;
use crate::memory::Guard;

const ALL: Access = Access {
    local_write: true,
    remote_read: true,
    remote_write: true,
};

/// A buffer that is registered for a peer.
pub(super) struct Local {
    pub(super) buffer: Buffer,
    pub(super) region: Region,
}

impl Local {
    pub(super) fn sge(&self, len: usize) -> Sge {
        Sge {
            addr: self.region.addr,
            len: u32::try_from(len).expect("short"),
            lkey: self.region.lkey,
        }
    }

    /// Returns the address and key by which a peer names the memory.
    pub(super) fn remote(&self) -> RemoteAddr {
        RemoteAddr {
            addr: self.region.addr,
            rkey: self.region.rkey,
        }
    }

    pub(super) fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.buffer.read(0, &mut bytes);
        bytes
    }
}

impl NodeLife {
    /// Registers memory, again and again until the HCA does not refuse.
    pub(super) async fn surely(&self, peer: PeerId, len: u32, guard: Guard) -> Local {
        loop {
            match self.local(peer, len, guard).await {
                Some(local) => return local,
                None => self.machine.pause(1_000_000).await,
            }
        }
    }

    /// Registers memory that the connection to `peer` can access while its guard allows it.
    pub(super) async fn local(&self, peer: PeerId, len: u32, guard: Guard) -> Option<Local> {
        let buffer = self.machine.alloc(len as usize, 64).ok()?;
        let addr = buffer.bus_addr().0;
        let domain = self.fit.domain(peer);
        let region = self
            .device
            .register(domain, addr, len.into(), ALL)
            .await
            .ok()?;
        self.count_region(1);
        buffer.guard(guard);
        Some(Local { buffer, region })
    }

    /// Takes memory back: no device or peer may access it any more, even if it still has the key.
    pub(super) async fn take_back(self: &Arc<Self>, local: Local) {
        local.buffer.guard(Guard::Owned);
        self.count_region(-1);
        // Refused now and then.
        while self.device.deregister(&local.region).await.is_err() {
            self.machine.pause(1_000_000).await;
        }
    }

    fn count_region(&self, change: isize) {
        let node = self.machine.life.node;
        self.machine.living(|world| {
            let count = world.check.regions.entry(node).or_default();
            *count = count.saturating_add_signed(change);
        });
    }
}

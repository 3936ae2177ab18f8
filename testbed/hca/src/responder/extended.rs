//! Requests of extended reliable connections (XRC): each names the SRQ it is for.
//!
//! Linux creates the responder's queue pair with the domain's own protection domain, in which no
//! program has memory, and its own completion queue (`hw/mlx4/main.c`, `mlx4_ib_alloc_xrcd`;
//! `hw/mlx4/qp.c`, `get_pd`, `get_cqs`). Receives, remote accesses and completions are therefore
//! the SRQ's.

use fabric::{NakCode, Packet, Service as Wire};
use mlx4_hw::cq::CqeRemote;
use mlx4_hw::qp::Service;

use super::Refusal;
use crate::core::Core;
use crate::qp::QueuePair;

/// The SRQ of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) srqn: u32,
    pub(crate) pd: u32,
    pub(crate) cqn: u32,
}

impl QueuePair {
    /// Returns whether receives come from a queue of the queue pair's own.
    pub(crate) fn has_receive_queue(&self) -> bool {
        !self.context.srq.enable() && self.service() != Service::XRC
    }

    /// Returns the SRQ from which receives come, if any.
    pub(super) fn receives_from(&self) -> Option<u32> {
        match self.responder.target {
            Some(target) if self.service() == Service::XRC => Some(target.srqn),
            _ => self.context.srq.enable().then(|| self.context.srq.srqn()),
        }
    }

    /// Returns the completion queue of receives, and what a completion says of the other side:
    /// rdma-core finds an XRC request's SRQ by it (`providers/mlx4/cq.c`, `mlx4_parse_cqe`).
    pub(crate) fn receive_completion(&self) -> (u32, CqeRemote) {
        match self.responder.target {
            Some(target) => (target.cqn, CqeRemote::new().with_qpn(target.srqn)),
            None => {
                let remote = CqeRemote::new().with_qpn(self.context.remote_qpn.get());
                (self.context.receive_cqn.get(), remote)
            }
        }
    }

    /// Returns the protection domain of the accesses that the current request asks for.
    pub(super) fn access_pd(&self) -> u32 {
        self.responder.target.map_or(self.pd(), |target| target.pd)
    }

    /// Returns the SRQ that a request names; `None` if the queue pair is no XRC one.
    ///
    /// It must be of the queue pair's domain. Domain 0 is none: Linux gives it to queue pairs and
    /// SRQs of other kinds (`mlx4/pd.c`, `mlx4_init_xrcd_table`).
    pub(super) fn target(&self, core: &Core, packet: &Packet) -> Result<Option<Target>, Refusal> {
        if self.service() != Service::XRC {
            return Ok(None);
        }
        let Wire::Xrc { srqn: Some(srqn) } = packet.service else {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        };
        let domain = self.context.xrcd.get();
        core.shared
            .of_domain(srqn, domain)
            .filter(|_| domain != 0)
            .map(Some)
            .ok_or(Refusal::Nak(NakCode::InvalidRequest))
    }

    /// Returns the protection domain of the accesses that a request asks for; `None` if it names
    /// no SRQ that it may.
    pub(super) fn request_pd(&self, core: &Core, packet: &Packet) -> Option<u32> {
        let target = self.target(core, packet).ok()?;
        Some(target.map_or(self.pd(), |target| target.pd))
    }

    /// Makes the SRQ that a request names the current one. A message has one SRQ.
    pub(super) fn retarget(&mut self, core: &Core, packet: &Packet) -> Result<(), Refusal> {
        let target = self.target(core, packet)?;
        if self.responder.message.is_some() && target != self.responder.target {
            return Err(Refusal::Nak(NakCode::InvalidRequest));
        }
        self.responder.target = target;
        Ok(())
    }
}

//! A machine's RDMA device: queues that keep strictly to what the traits say.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

use mad::sa::{PathRecord, SaMad};
use mad::{Header, Mad, MgmtClass, Status as MadStatus};
use verbs::{
    Access, Address, Completion, Device, DeviceEvent, DeviceLimits, Domain, Gid, Guid, Lkey, PKey,
    PagesConfig, PagesOver, PathToPeer, Payload, PortInfo, PortState, QpConfig, QpSlot, Qpn,
    QueueSet, RcParameters, Region, Rkey, SendRequest, Sge,
};
use zerocopy::big_endian::U16;

use super::*;

/// A machine's completion queue.
pub(crate) struct Queues {
    machine: Machine,
    cq: usize,
}

impl Queues {
    fn with_qp<T>(&self, slot: QpSlot, action: impl FnOnce(&mut Qp) -> T) -> T {
        self.machine.bed.with(|world| {
            let node = &mut world.nodes[self.machine.node];
            let qpn = node.cqs[self.cq].slots[usize::from(slot.0)];
            action(node.qps.get_mut(&qpn).expect("a queue pair"))
        })
    }
}

impl QueueSet for Queues {
    fn post_send(&mut self, qp: QpSlot, request: &SendRequest<'_>) -> Result<(), verbs::Error> {
        let (bytes, pieces) = match request.payload {
            Payload::Inline(first, second) => ([first, second].concat(), Vec::new()),
            Payload::Gather(pieces) => (Vec::new(), pieces.to_vec()),
        };
        self.with_qp(qp, |pair| {
            if pair.failed {
                return Err(verbs::Error::NotReady { qp });
            }
            pair.posted.push_back(Work {
                id: request.id,
                op: request.op,
                bytes,
                pieces,
                signalled: request.signalled,
                life: pair.life,
            });
            Ok(())
        })
    }
    fn post_receive(&mut self, qp: QpSlot, id: u64, into: &[Sge]) -> Result<(), verbs::Error> {
        self.with_qp(qp, |pair| {
            assert!(
                pair.receives.iter().all(|&(posted, _)| posted != id),
                "a receive posted twice"
            );
            if pair.failed {
                return Err(verbs::Error::NotReady { qp });
            }
            pair.receives.push_back((id, into[0]));
            Ok(())
        })
    }
    fn ring(&mut self, qp: QpSlot) {
        self.with_qp(qp, |pair| pair.shown = pair.posted.len());
        let wire = self.machine.bed.with(|world| {
            let again = std::mem::replace(&mut world.rang, true);
            let sleeps = again && world.sabotage == Sabotage::SleepingWire;
            if sleeps { None } else { world.wire.take() }
        });
        wake(wire);
    }
    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, verbs::Error> {
        self.machine.bed.with(|world| {
            let entries = &mut world.nodes[self.machine.node].cqs[self.cq].entries;
            let count = entries.len().min(into.len());
            into.iter_mut()
                .zip(entries.drain(..count))
                .for_each(|(place, entry)| *place = entry);
            Ok(count)
        })
    }
    fn arm(&mut self, _: bool) {
        let woken = self.machine.bed.with(|world| {
            let late = world.sabotage == Sabotage::ArmsLate;
            let node = &mut world.nodes[self.machine.node];
            let cq = &mut node.cqs[self.cq];
            let vector = cq.vector;
            if late {
                node.vectors[vector].arm_late = Some(self.cq);
                return None;
            }
            cq.armed = cq.entries.is_empty();
            if cq.armed { None } else { node.fire(vector) }
        });
        wake(woken);
    }
    fn forget(&mut self, qp: QpSlot) {
        self.with_qp(qp, |pair| {
            (pair.failed, pair.shown, pair.to) = (false, 0, None);
            pair.life += 1;
            pair.posted.clear();
            pair.receives.clear();
        });
        self.machine.bed.with(|world| {
            world.nodes[self.machine.node].cqs[self.cq]
                .entries
                .retain(|entry| entry.qp != qp);
        });
    }
}

impl Device for Machine {
    type Queues = Queues;
    type Pages = PagesOver<Queues>;

    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            max_reads: 2,
            max_reads_as_responder: 2,
            max_queue_depth: 1 << 10,
            max_sge: 9,
            max_inline: 64,
            max_cq_depth: 1 << 12,
            ports: 1,
            max_domains: 1,
        }
    }
    async fn create_queues(&self, _: u32, vector: u16) -> Result<Queues, verbs::Error> {
        let vector = usize::from(vector);
        let cq = self.bed.with(|world| {
            let node = &mut world.nodes[self.node];
            node.vectors
                .resize_with(node.vectors.len().max(vector + 1), Vector::default);
            node.cqs.push(Cq {
                vector,
                ..Cq::default()
            });
            node.cqs.len() - 1
        });
        Ok(Queues {
            machine: self.clone(),
            cq,
        })
    }
    async fn destroy_queues(&self, _: Queues) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn wait_completion(&self, vector: u16) -> Result<(), verbs::Error> {
        let vector = usize::from(vector);
        let mut began = false;
        poll_fn(|context| {
            self.bed.with(|world| {
                let first = !std::mem::replace(&mut began, true);
                let forgets = world.sabotage == Sabotage::ForgetsInterrupts && first;
                let node = &mut world.nodes[self.node];
                let state = &mut node.vectors[vector];
                if let Some(cq) = state.arm_late.take() {
                    node.cqs[cq].armed = true;
                }
                if std::mem::take(&mut state.fired) && !forgets {
                    return Poll::Ready(Ok(()));
                }
                state.waiter = Some(context.waker().clone());
                Poll::Pending
            })
        })
        .await
    }
    async fn create_qp(
        &self,
        queues: &mut Queues,
        _: &QpConfig,
    ) -> Result<(QpSlot, Qpn), verbs::Error> {
        Ok(self.bed.with(|world| {
            let node = &mut world.nodes[self.node];
            let qpn = u32::try_from(node.qps.len()).expect("few") + 0x40;
            let slots = &mut node.cqs[queues.cq].slots;
            let slot = QpSlot(u16::try_from(slots.len()).expect("few"));
            slots.push(qpn);
            node.qps.insert(
                qpn,
                Qp {
                    slot,
                    cq: queues.cq,
                    to: None,
                    failed: false,
                    life: 0,
                    posted: VecDeque::new(),
                    shown: 0,
                    receives: VecDeque::new(),
                },
            );
            (slot, Qpn(qpn))
        }))
    }
    async fn create_pages(
        &self,
        config: &PagesConfig,
    ) -> Result<(PagesOver<Queues>, Qpn), verbs::Error> {
        PagesOver::create(self, config).await
    }
    async fn destroy_pages(&self, pages: PagesOver<Queues>) -> Result<(), verbs::Error> {
        self.destroy_queues(pages.into_queues()).await
    }
    async fn ready_to_receive(
        &self,
        qpn: Qpn,
        path: &PathToPeer,
        _: &RcParameters,
    ) -> Result<(), verbs::Error> {
        let to = usize::from(path.address.lid().0) - 2;
        self.bed.with(|world| {
            let qp = world.nodes[self.node]
                .qps
                .get_mut(&qpn.0)
                .expect("a queue pair");
            qp.to = Some((to, path.qpn.0));
        });
        Ok(())
    }
    async fn ready_to_send(
        &self,
        _: Qpn,
        _: Option<&PathToPeer>,
        _: &RcParameters,
    ) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn fail_qp(&self, qpn: Qpn) -> Result<(), verbs::Error> {
        let woken = self.bed.with(|world| world.flush(self.node, qpn.0));
        wake(woken);
        Ok(())
    }
    async fn reset_qp(&self, qpn: Qpn) -> Result<(), verbs::Error> {
        self.bed.with(|world| {
            let qp = world.nodes[self.node]
                .qps
                .get_mut(&qpn.0)
                .expect("a queue pair");
            qp.failed = true;
        });
        Ok(())
    }
    async fn init_qp(&self, _: Qpn, _: Domain) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn attach_multicast(&self, _: Qpn, _: Gid) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn detach_multicast(&self, _: Qpn, _: Gid) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn destroy_qp(&self, _: &mut Queues, _: QpSlot) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn register(
        &self,
        _: Domain,
        addr: u64,
        len: u64,
        _: Access,
    ) -> Result<Region, verbs::Error> {
        let (lkey, rkey) = (Lkey(1), Rkey(1));
        Ok(Region {
            addr,
            len,
            lkey,
            rkey,
        })
    }
    async fn deregister(&self, _: &Region) -> Result<(), verbs::Error> {
        Ok(())
    }
    async fn port(&self, _: u8) -> Result<PortInfo, verbs::Error> {
        Ok(PortInfo {
            state: PortState::Active,
            address: lid(self.node).into(),
            manager: SM.into(),
            guid: Guid(self.node as u64 + 1),
            gid: gid(self.node),
            mtu: 4096,
        })
    }
    async fn send_mad(
        &self,
        _: u8,
        to: Address,
        _: PKey,
        mad: &[u8; 256],
    ) -> Result<(), verbs::Error> {
        self.bed.with(|world| {
            if to == SM.into() {
                world.nodes[self.node]
                    .mads
                    .extend(path_answer(self.node, mad).map(|mad| (SM, mad)));
            } else {
                world.nodes[usize::from(to.lid().0) - 2]
                    .mads
                    .push_back((lid(self.node), *mad));
            }
        });
        Ok(())
    }
    fn take_mad(&self, _: u8) -> Option<(Address, [u8; 256])> {
        let mad = self
            .bed
            .with(|world| world.nodes[self.node].mads.pop_front());
        mad.map(|(from, mad)| (from.into(), mad))
    }
    fn take_event(&self) -> Option<DeviceEvent> {
        None
    }
}

/// Answers as the subnet administrator: every path exists.
fn path_answer(from: usize, mad: &Mad) -> Option<Mad> {
    let header = Header::parse(mad).ok()?;
    if header.class != MgmtClass::SUBN_ADM {
        return None;
    }
    let request = SaMad::parse(mad).ok()?;
    let wanted = request.record::<PathRecord>()?;
    let mut answer = request.into_response(MadStatus::OK);
    answer.set_record(&PathRecord {
        dlid: U16::new(lid(1 - from).0),
        ..wanted
    });
    Some(answer.to_mad())
}

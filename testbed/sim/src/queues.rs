//! Posting and polling: the part of the HCA that needs no command.

use verbs::{
    Completion, Payload, QpKind, QpSlot, QpState, Qpn, QueueSet, SendOp, SendRequest, Sge,
};

use crate::hca::Queues;
use crate::qp::{Armed, Op, Receive, Source, Wqe};
use crate::rng::digest;
use crate::rule::Rule;
use crate::sabotage::Sabotage;
use crate::world::World;

impl Queues {
    /// Does something with a queue pair of this set, while the machine lives.
    fn with<T>(&self, slot: QpSlot, action: impl FnOnce(&mut World, usize, Qpn) -> T) -> Option<T> {
        let node = self.hca.node();
        let found = self.hca.0.living(|world| {
            let qpn = *world.nodes[node].cqs[self.cqn as usize]
                .slots
                .get(usize::from(slot.0))?;
            Some(action(world, node, qpn?))
        });
        found.flatten()
    }
}

impl QueueSet for Queues {
    fn post_send(&mut self, slot: QpSlot, request: &SendRequest<'_>) -> Result<(), verbs::Error> {
        let request = *request;
        let posted = self.with(slot, |world, node, qpn| {
            post_send(world, node, qpn, &request)
        });
        posted.unwrap_or(Err(verbs::Error::NotReady { qp: slot }))
    }

    fn post_receive(&mut self, slot: QpSlot, id: u64, into: &[Sge]) -> Result<(), verbs::Error> {
        let posted = self.with(slot, |world, node, qpn| {
            post_receive(world, node, qpn, id, into)
        });
        posted.unwrap_or(Err(verbs::Error::NotReady { qp: slot }))
    }

    fn ring(&mut self, slot: QpSlot) {
        self.with(slot, |world, node, qpn| {
            let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("in its set");
            qp.shown = qp.sends.len();
            match (qp.state, qp.kind) {
                (QpState::Error, _) => world.flush(node, qpn),
                (_, QpKind::Datagram { .. }) => world.pump_datagrams(node, qpn),
                _ => world.pump(node, qpn),
            }
        });
    }

    fn poll(&mut self, into: &mut [Completion]) -> Result<usize, verbs::Error> {
        let (node, cqn) = (self.hca.node(), self.cqn);
        let polled = self.hca.0.living(|world| {
            let now = world.now;
            let node = &mut world.nodes[node];
            let cq = &mut node.cqs[cqn as usize];
            if cq.failed {
                return Err(verbs::Error::CqFailed);
            }
            let mut count = 0;
            while count < into.len()
                && let Some(entry) = cq.entries.pop_front_if(|entry| entry.ready <= now)
            {
                let slot = usize::from(entry.completion.qp.0);
                let qpn = cq.slots.get(slot).copied().flatten();
                if let Some(qp) = qpn.and_then(|qpn| node.qps.get_mut(&qpn.0)) {
                    match entry.frees {
                        Some(upto) => qp.freed = qp.freed.max(upto),
                        None => qp.receives_taken -= 1,
                    }
                }
                into[count] = entry.completion;
                count += 1;
            }
            Ok(count)
        });
        polled.unwrap_or(Ok(0))
    }

    fn arm(&mut self, solicited_only: bool) {
        let (node, cqn) = (self.hca.node(), self.cqn);
        self.hca.0.living(|world| {
            world.nodes[node].cqs[cqn as usize].armed = if solicited_only {
                Armed::Solicited
            } else {
                Armed::Any
            };
            world.completion_visible(node, cqn);
        });
    }

    fn forget(&mut self, slot: QpSlot) {
        let cqn = self.cqn;
        self.with(slot, |world, node, qpn| {
            let node = &mut world.nodes[node];
            node.cqs[cqn as usize]
                .entries
                .retain(|entry| entry.completion.qp != slot);
            let qp = node.qps.get_mut(&qpn.0).expect("in its set");
            qp.freed = qp.posted;
            qp.receives_taken = 0;
        });
    }
}

fn post_send(
    world: &mut World,
    node: usize,
    qpn: Qpn,
    request: &SendRequest<'_>,
) -> Result<(), verbs::Error> {
    let qp = &world.nodes[node].qps[&qpn.0];
    let (slot, depth) = (qp.slot, qp.send_depth);
    if qp.posted - qp.freed >= u64::from(depth) {
        world.violate(
            Rule::QueueDepth,
            format_args!("node {node} {qpn}: a send beyond {depth}"),
        );
        return Err(verbs::Error::QueueFull { qp: slot, depth });
    }
    let op = match request.op {
        SendOp::Send { imm } => Op::Send { imm },
        SendOp::Write { to, imm } => Op::Write { to, imm },
        SendOp::Read { from } => Op::Read { from },
    };
    let (source, fits) = match request.payload {
        Payload::Inline(first, second) => {
            let bytes = [first, second].concat();
            let fits = bytes.len() <= qp.inline as usize;
            (Source::Inline(bytes), fits)
        }
        Payload::Gather(pieces) => (
            Source::Gather(pieces.to_vec()),
            pieces.len() <= usize::from(qp.send_sge),
        ),
    };
    let read = matches!(op, Op::Read { .. });
    let datagram = matches!(qp.kind, QpKind::Datagram { .. });
    let inline_read = read && matches!(source, Source::Inline(_));
    let sensible = datagram == request.to.is_some()
        && (!datagram || matches!(op, Op::Send { .. }))
        && !inline_read;
    if !matches!(qp.state, QpState::ReadyToSend | QpState::Error) || !fits || !sensible {
        let state = qp.state;
        world.violate(
            Rule::Post,
            format_args!("node {node} {qpn} in {state:?}: {request:?} is not possible"),
        );
        return Err(verbs::Error::NotReady { qp: slot });
    }
    let bytes = if read {
        Vec::new()
    } else {
        world.gather(node, qpn, &source).unwrap_or_default()
    };
    let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("it was there");
    let wqe = Wqe {
        id: request.id,
        index: qp.posted,
        op,
        source,
        signalled: request.signalled,
        solicited: request.solicited,
        fence: request.fence,
        to: request.to,
        digest: digest(&bytes),
        psn: qp.next_psn,
    };
    qp.posted += 1;
    qp.next_psn = qp.next_psn.advance(1);
    qp.sends.push_back(wqe);
    if !datagram {
        world.corrupt(node, qpn);
    }
    Ok(())
}

fn post_receive(
    world: &mut World,
    node: usize,
    qpn: Qpn,
    id: u64,
    into: &[Sge],
) -> Result<(), verbs::Error> {
    let qp = &world.nodes[node].qps[&qpn.0];
    let (slot, depth) = (qp.slot, qp.receive_depth);
    if qp.receives_taken >= depth {
        world.violate(
            Rule::QueueDepth,
            format_args!("node {node} {qpn}: a receive beyond {depth}"),
        );
        return Err(verbs::Error::QueueFull { qp: slot, depth });
    }
    if qp.state == QpState::Reset || into.len() > usize::from(qp.receive_sge) {
        world.violate(
            Rule::Post,
            format_args!("node {node} {qpn}: receive {id} into {into:?} is not possible"),
        );
        return Err(verbs::Error::NotReady { qp: slot });
    }
    let overlaps = qp
        .receives
        .iter()
        .flat_map(|posted| &posted.into)
        .any(|old| {
            into.iter().any(|new| {
                new.addr < old.addr + u64::from(old.len) && old.addr < new.addr + u64::from(new.len)
            })
        });
    let up = qp.state == QpState::ReadyToSend;
    if overlaps {
        world.violate(
            Rule::ReceiveBuffer,
            format_args!("node {node} {qpn}: receive {id} is posted already"),
        );
    }
    let lost = up && (world.sabotaged(Sabotage::LostReceive) || world.leaks(node, qpn));
    let qp = world.nodes[node].qps.get_mut(&qpn.0).expect("it was there");
    qp.receives_taken += 1;
    if !lost {
        qp.receives.push_back(Receive {
            id,
            into: into.to_vec(),
        });
    }
    if qp.state == QpState::Error {
        world.flush(node, qpn);
    }
    Ok(())
}

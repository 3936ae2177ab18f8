//! Strangers without the key that replay requests, or refuse in others' names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fit::{Config, Role};
use hal::{Duration, Platform};
use harness::{Machine, Testbed};
use mad::Mad;
use mad::cm::{CmMessage, Rej, RejectReason, Req};
use mlx4::Mlx4;
use verbs::{Address, Device, Gid, PKey, PortState};

use super::strangers::{Requests, hostile};
use super::{Node, config, converge, machine, node, start, wait};

impl Requests {
    /// The recorded requests to a port.
    fn to(&self, gid: Gid) -> Vec<(Mad, Req)> {
        let recorded = self.0.lock().unwrap().clone();
        let parsed = recorded
            .into_iter()
            .filter_map(|mad| match CmMessage::parse(&mad) {
                Ok((_, CmMessage::Req(req))) => Some((mad, req)),
                _ => None,
            });
        parsed.filter(|(_, req)| req.remote_gid == gid).collect()
    }
}

/// A card's address, once its port is in use.
pub(super) fn address(bed: &mut Testbed, clock: &Machine, device: &Mlx4<Machine>) -> Address {
    bed.block_on(async {
        loop {
            match device.port(1).await.unwrap() {
                port if port.state == PortState::Active && port.address.is_set() => {
                    return port.address;
                }
                _ => clock.sleep(Duration::from_millis(1)).await,
            }
        }
    })
}

fn recording(bed: &mut Testbed) -> Arc<Requests> {
    let requests = Arc::new(Requests::default());
    bed.with_cluster(|cluster, _| cluster.record(Arc::clone(&requests) as _));
    requests
}

#[test]
fn a_request_to_a_former_life_is_not_taken_up() {
    let mut bed = Testbed::default();
    let requests = recording(&mut bed);
    let memory = node(&mut bed, 2, Role::Memory);
    let processor = node(&mut bed, 1, Role::Processor);
    converge(&mut bed, &[&processor, &memory]);
    let port = bed.block_on(memory.device.port(1)).unwrap();
    let played = requests.to(port.gid);
    assert!(
        !played.is_empty(),
        "the processor has the smaller GID, so it called"
    );
    processor.fit.leave();
    wait(&mut bed, "it left", &memory.machine, || {
        memory.fit.view().members.is_empty()
    });
    let here = memory.crash(&mut bed);
    let again = Config {
        entropy: [99; 32],
        ..config(2)
    };
    let memory = start(&mut bed, here, Role::Memory, again);
    let to = address(&mut bed, &memory.machine, &memory.device);
    // From the very port that sent them first.
    bed.block_on(async {
        for (mad, _) in &played {
            let sent = processor.device.send_mad(1, to, PKey::DEFAULT, mad).await;
            sent.unwrap();
            processor.machine.sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(memory.fit.peers(), [], "no queue pair was given for them");
    assert!(memory.fit.membership_counters().nr_bad_proof > 0);
}

/// A processor that is told its memory, which holds still for now; and the requests so far.
fn waiting(bed: &mut Testbed, requests: &Requests) -> (Node, Node, Vec<(Mad, Req)>) {
    let quiet = |index| Config {
        discover: false,
        ..config(index)
    };
    let [memory, processor] = [(2, Role::Memory), (1, Role::Processor)].map(|(index, role)| {
        let at = machine(bed, index, role);
        start(bed, at, role, quiet(index))
    });
    let spec = memory.spec(bed);
    memory.awake.store(false, Ordering::Relaxed);
    let (fit, gid) = (processor.fit.clone(), spec.gid);
    bed.spawn(async move {
        let _ = fit.connect(spec).await;
    });
    wait(bed, "a request", &processor.machine, || {
        !requests.to(gid).is_empty()
    });
    let asked = requests.to(gid);
    (processor, memory, asked)
}

#[test]
fn a_refusal_that_proves_nothing_ends_nothing() {
    let mut bed = Testbed::default();
    let requests = recording(&mut bed);
    let (processor, memory, _) = waiting(&mut bed, &requests);
    let (clock, stranger) = hostile(&mut bed);
    address(&mut bed, &clock, &stranger);
    let to = address(&mut bed, &clock, &processor.device);
    let spec = memory.spec(&mut bed);
    // The processor has begun anew meanwhile: the last one is that which it waits for.
    let before = requests.to(spec.gid).len();
    wait(&mut bed, "another request", &clock, || {
        requests.to(spec.gid).len() > before
    });
    let asked = requests.to(spec.gid).pop().into_iter();
    let (fit, ended) = (processor.fit.clone(), Arc::new(AtomicBool::new(false)));
    let ends = ended.clone();
    bed.spawn(async move {
        let _ = fit.connect(spec).await;
        ends.store(true, Ordering::Relaxed);
    });
    // With a challenge of its own making, and with the one that the processor knows: none.
    let other = [0x5a; 148];
    let mut known = other;
    known[..8].fill(0);
    bed.block_on(async {
        for (_, req) in asked {
            for (reason, private) in [
                (RejectReason::CONSUMER_DEFINED, known),
                (RejectReason::STALE_CONNECTION, other),
            ] {
                let rej = Rej {
                    local_comm_id: 1,
                    remote_comm_id: req.local_comm_id,
                    rejected: 0,
                    reason,
                    private,
                };
                let mad = CmMessage::Rej(rej).to_mad(req.local_comm_id.into());
                stranger.send_mad(1, to, PKey::DEFAULT, &mad).await.unwrap();
            }
        }
        clock.sleep(Duration::from_millis(100)).await;
    });
    assert!(!ended.load(Ordering::Relaxed), "it is refused");
    memory.awake.store(true, Ordering::Relaxed);
    let peer = bed.block_on(processor.fit.connect(spec)).unwrap();
    super::call(&mut bed, &processor, peer).unwrap();
}

#[test]
fn a_request_that_names_another_port_than_it_comes_from_is_refused() {
    let mut bed = Testbed::default();
    let requests = recording(&mut bed);
    let (_processor, memory, asked) = waiting(&mut bed, &requests);
    let (clock, stranger) = hostile(&mut bed);
    address(&mut bed, &clock, &stranger);
    let to = address(&mut bed, &clock, &memory.device);
    // The memory hears it from the stranger first, unchanged: its queue pair would lead there.
    let before = memory.fit.membership_counters().nr_bad_proof;
    bed.block_on(async {
        let (mad, _) = &asked[0];
        stranger.send_mad(1, to, PKey::DEFAULT, mad).await.unwrap();
        clock.sleep(Duration::from_millis(5)).await;
    });
    memory.awake.store(true, Ordering::Relaxed);
    wait(&mut bed, "it is refused", &clock, || {
        memory.fit.membership_counters().nr_bad_proof > before
    });
    wait(&mut bed, "the genuine one gets through", &clock, || {
        !memory.fit.view().members.is_empty()
    });
}

//! Forged messages of the connection management that are right in all but the proof: what somebody
//! can send who hears everything and does not hold the key.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use fit::{Config, Role};
use hal::{Duration, Instant, Platform};
use harness::trace::{Direction, Event, Purpose, Recorder};
use harness::{Machine, Testbed};
use mad::Mad;
use mad::cm::{CmMessage, Dreq, Pair, Rep, Req, Rtu};
use mlx4::Mlx4;
use verbs::{Device, Guid, PKey, Psn, Qpn};

use super::forgery::address;
use super::strangers::hostile;
use super::{Node, config, machine, start, wait};

/// Places of the role and the nonce in the private data of REQ and REP, and the length of a hello
/// (`fit/src/handshake.rs`).
const ROLE: usize = 1;
const NONCE: usize = 40;
const HELLO_LEN: usize = 56;

/// Remembers the connection messages that nodes send.
#[derive(Default)]
struct Messages(Mutex<Vec<CmMessage>>);

impl Recorder for Messages {
    fn record(&self, _: &str, _: Instant, event: &Event<'_>) {
        let Event::Dma {
            direction: Direction::Read,
            purpose: Purpose::Payload,
            bytes,
            ..
        } = *event
        else {
            return;
        };
        let Ok(mad) = Mad::try_from(bytes) else {
            return;
        };
        if let Ok((_, message)) = CmMessage::parse(&mad) {
            self.0.lock().unwrap().push(message);
        }
    }
}

impl Messages {
    /// The last message of a kind.
    fn last<T>(&self, pick: impl Fn(&CmMessage) -> Option<T>) -> Option<T> {
        self.0.lock().unwrap().iter().rev().find_map(pick)
    }

    fn request(&self) -> Option<Req> {
        self.last(|message| match message {
            CmMessage::Req(req) => Some(*req),
            _ => None,
        })
    }

    fn acceptance(&self) -> Option<Rep> {
        self.last(|message| match message {
            CmMessage::Rep(rep) => Some(*rep),
            _ => None,
        })
    }
}

/// A cluster's memory and processor that are told of each other, a stranger on their fabric, and
/// all that is said.
struct Scene {
    bed: Testbed,
    messages: Arc<Messages>,
    clock: Machine,
    stranger: Arc<Mlx4<Machine>>,
    processor: Node,
    memory: Node,
}

impl Scene {
    /// Begins with the memory held up, and waits until the processor has asked for a connection.
    fn new() -> Self {
        let mut bed = Testbed::default();
        let messages = Arc::new(Messages::default());
        bed.with_cluster(|cluster, _| cluster.record(Arc::clone(&messages) as _));
        let (clock, stranger) = hostile(&mut bed);
        address(&mut bed, &clock, &stranger);
        let [memory, processor] = [(2, Role::Memory), (1, Role::Processor)].map(|(index, role)| {
            let at = machine(&bed, index, role);
            let quiet = Config {
                discover: false,
                ..config(index)
            };
            start(&mut bed, at, role, quiet)
        });
        let spec = memory.spec(&mut bed);
        memory.awake.store(false, Ordering::Relaxed);
        let fit = processor.fit.clone();
        bed.spawn(async move {
            let _ = fit.connect(spec).await;
        });
        let clock_of = processor.machine.clone();
        wait(&mut bed, "a request", &clock_of, || {
            messages.request().is_some()
        });
        Self {
            bed,
            messages,
            clock,
            stranger,
            processor,
            memory,
        }
    }

    /// Sends a message from this port to this node, and lets some time go by.
    fn say(&mut self, from: &Arc<Mlx4<Machine>>, to: &Arc<Mlx4<Machine>>, message: CmMessage) {
        let to = address(&mut self.bed, &self.clock, to);
        self.bed.block_on(async {
            let mad = message.to_mad(77);
            from.send_mad(1, to, PKey::DEFAULT, &mad).await.unwrap();
            self.clock.sleep(Duration::from_millis(30)).await;
        });
    }

    /// Lets both go on, and waits until they are members for each other.
    fn join(&mut self) {
        let nodes = [&self.processor, &self.memory];
        for node in nodes {
            node.awake.store(true, Ordering::Relaxed);
        }
        wait(&mut self.bed, "they are members", &self.clock, || {
            nodes.iter().all(|node| node.fit.view().members.len() == 1)
        });
    }

    /// Lets one node run and holds the other up.
    fn run_only(&self, runs: &Node, held: &Node) {
        held.awake.store(false, Ordering::Relaxed);
        runs.awake.store(true, Ordering::Relaxed);
    }

    /// Lets the memory accept, while the processor is held up and so confirms nothing.
    fn accept(&mut self) -> Rep {
        let (clock, messages) = (self.clock.clone(), self.messages.clone());
        // The memory refuses, as the processor does not know its challenge; then it asks again.
        self.run_only(&self.memory, &self.processor);
        let pause = clock.sleep(Duration::from_millis(100));
        self.bed.block_on(pause);
        self.run_only(&self.processor, &self.memory);
        let first = messages.request().unwrap().local_comm_id;
        wait(&mut self.bed, "another request", &clock, || {
            messages.request().unwrap().local_comm_id != first
        });
        self.run_only(&self.memory, &self.processor);
        wait(&mut self.bed, "an acceptance", &clock, || {
            messages.acceptance().is_some()
        });
        messages.acceptance().unwrap()
    }

    fn bad_proofs(node: &Node) -> u64 {
        node.fit.membership_counters().nr_bad_proof
    }
}

#[test]
fn a_request_that_proves_nothing_is_given_nothing() {
    let mut scene = Scene::new();
    let port = scene.bed.block_on(scene.stranger.port(1)).unwrap();
    // Right in all but the proof: from its own port, with a nonce that was not heard yet.
    let mut req = scene.messages.request().unwrap();
    (req.local_gid, req.local_lid) = (port.gid, port.address.lid());
    req.private[NONCE] ^= 1;
    scene.processor.awake.store(false, Ordering::Relaxed);
    scene.memory.awake.store(true, Ordering::Relaxed);
    let (from, to) = (scene.stranger.clone(), scene.memory.device.clone());
    scene.say(&from, &to, CmMessage::Req(req));
    let known = scene.memory.fit.peers();
    assert!(
        known.iter().all(|(_, name)| name.gid != port.gid),
        "{known:?}"
    );
    assert!(Scene::bad_proofs(&scene.memory) > 0);
    scene.join();
}

#[test]
fn an_acceptance_that_proves_nothing_is_passed_over() {
    let mut scene = Scene::new();
    let req = scene.messages.request().unwrap();
    let mut private = [0; 196];
    private[..HELLO_LEN].copy_from_slice(&req.private[..HELLO_LEN]);
    private[ROLE] = Role::Memory.number();
    let rep = Rep {
        local_comm_id: 1,
        remote_comm_id: req.local_comm_id,
        qpn: Qpn(0x55),
        starting_psn: Psn(1),
        responder_resources: 4,
        initiator_depth: 4,
        rnr_retry: 6,
        ca_guid: Guid(1),
        private,
    };
    // From the port that was asked, as somebody might who can forge that.
    let (from, to) = (scene.memory.device.clone(), scene.processor.device.clone());
    scene.say(&from, &to, CmMessage::Rep(rep));
    assert_eq!(scene.processor.fit.view().members, []);
    assert!(Scene::bad_proofs(&scene.processor) > 0);
    scene.join();
}

#[test]
fn a_confirmation_that_proves_nothing_makes_no_member() {
    let mut scene = Scene::new();
    let rep = scene.accept();
    let rtu = Rtu {
        pair: Pair {
            local_comm_id: rep.remote_comm_id,
            remote_comm_id: rep.local_comm_id,
        },
        private: [0x5a; 224],
    };
    let (from, to) = (scene.stranger.clone(), scene.memory.device.clone());
    scene.say(&from, &to, CmMessage::Rtu(rtu));
    assert_eq!(scene.memory.fit.view().members, []);
    assert!(Scene::bad_proofs(&scene.memory) > 0);
    scene.join();
}

#[test]
fn a_disconnection_that_proves_nothing_ends_nothing() {
    let mut scene = Scene::new();
    scene.join();
    let rep = scene.messages.acceptance().unwrap();
    let dreq = Dreq {
        pair: Pair {
            local_comm_id: rep.remote_comm_id,
            remote_comm_id: rep.local_comm_id,
        },
        remote_qpn: rep.qpn,
        private: [0x5a; 220],
    };
    // From a stranger's port, and from the peer's own.
    for from in [scene.stranger.clone(), scene.processor.device.clone()] {
        let to = scene.memory.device.clone();
        scene.say(&from, &to, CmMessage::Dreq(dreq));
    }
    assert_eq!(scene.memory.changes().len(), 1, "it joined and stayed");
    assert_eq!(Scene::bad_proofs(&scene.memory), 2);
    scene.join();
}

//! Nodes that find each other over the real driver and the ConnectX-3 model, in one process and in
//! virtual time.

mod forgery;
mod lanes;
mod proofs;
mod strangers;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use fit::{
    Call, Change, Cluster, Config, Domains, Error, Exchange, Fit, Handler, Key, LostCause, Member,
    PeerId, PeerSpec, Role,
};
use hal::{DmaBuffer, Duration, Platform};
use harness::{ClusterConfig, FabricConfig, LinkFaults, Machine, Testbed};
use mlx4::Mlx4;
use verbs::{Access, Device, Domain, Gid, Guid, Lkey, RemoteAddr, Rkey, Sge};

const GUID: u64 = 0x0002_c903_0000_1000;
/// Time that a test's wait may take at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with nothing, and remembers who came and went.
#[derive(Default)]
struct Guests(Mutex<Vec<Change>>);

impl Handler for Guests {
    async fn handle(&self, _: PeerId, _: u16, _: &[u8], reply: &mut dyn Exchange) {
        reply.set_len(0);
    }
    fn peer_joined(&self, peer: PeerId, member: &Member) {
        self.0.lock().unwrap().push(Change::Joined(peer, *member));
    }
    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>) {
        assert!(cause.is_some(), "it is not forgotten so soon");
        let mut changes = self.0.lock().unwrap();
        let joined = changes.iter().find_map(|change| match change {
            Change::Joined(known, member) if *known == peer => Some(*member),
            _ => None,
        });
        changes.push(Change::Lost(
            peer,
            joined.expect("joined before it is lost"),
        ));
    }
}

struct Node {
    machine: Machine,
    device: Arc<Mlx4<Machine>>,
    fit: Fit<Mlx4<Machine>, Machine>,
    guests: Arc<Guests>,
    role: Role,
    /// Cleared to stop the node's tasks in the middle of whatever they do.
    runs: Arc<AtomicBool>,
    /// Cleared while the node's tasks are held up.
    awake: Arc<AtomicBool>,
}

fn config(index: u64) -> Config {
    Config {
        calls: 4,
        serves: 4,
        one_sided: 8,
        connect_timeout: Duration::from_secs(10),
        timeout: Duration::from_secs(10),
        cluster: Cluster::new("test", Key::new([7; 32])),
        discover: true,
        domains: Domains::PerPeer,
        entropy: [u8::try_from(index).unwrap(); 32],
        ..Config::default()
    }
}

fn machine(bed: &Testbed, index: u64, role: Role) -> Machine {
    let _ = env_logger::builder().is_test(true).try_init();
    bed.add_machine(role.name(), Guid(GUID + (index << 8)))
}

fn node(bed: &mut Testbed, index: u64, role: Role) -> Node {
    let machine = machine(bed, index, role);
    start(bed, machine, role, config(index))
}

fn start(bed: &mut Testbed, machine: Machine, role: Role, config: Config) -> Node {
    let cores = config.cores;
    let card = mlx4::Config {
        port: config.port,
        completion_vectors: cores,
        ..mlx4::Config::default()
    };
    let started = bed.block_on(Mlx4::start(machine.clone(), card));
    let device = Arc::new(started.unwrap());
    let fit = Fit::new(device.clone(), machine.clone(), role, config);
    let fit = bed.block_on(fit).unwrap();
    let node = Node {
        machine,
        device,
        fit,
        guests: Arc::default(),
        role,
        runs: Arc::new(AtomicBool::new(true)),
        awake: Arc::new(AtomicBool::new(true)),
    };
    let service = node.device.clone();
    node.spawn(bed, async move {
        let _ = service.service().await;
    });
    let (control, watch) = (node.fit.clone(), node.fit.clone());
    node.spawn(bed, async move { control.control().await });
    for index in 0..cores {
        let core = node.fit.clone();
        node.spawn(bed, async move {
            core.run_core(index).await.expect("the device waits")
        });
        let (serve, guests) = (node.fit.core(index), node.guests.clone());
        node.spawn(bed, async move { serve.serve(&*guests).await });
    }
    let guests = node.guests.clone();
    node.spawn(bed, async move { watch.watch(&*guests).await });
    node
}

impl Node {
    /// Runs a task as long as the node runs.
    fn spawn(&self, bed: &Testbed, task: impl Future<Output = ()> + Send + 'static) {
        let (runs, awake, machine) = (self.runs.clone(), self.awake.clone(), self.machine.clone());
        bed.spawn(async move {
            let mut task = pin!(task);
            loop {
                let step = poll_fn(|context| {
                    if !runs.load(Ordering::Relaxed) {
                        return Poll::Ready(true);
                    }
                    if !awake.load(Ordering::Relaxed) {
                        return Poll::Ready(false);
                    }
                    task.as_mut().poll(context).map(|()| true)
                });
                if step.await {
                    return;
                }
                machine.sleep(Duration::from_millis(10)).await;
            }
        });
    }

    /// The node's tasks stop at once and its card is reset; nobody is told. Its machine can start
    /// again.
    fn crash(self, bed: &mut Testbed) -> Machine {
        self.runs.store(false, Ordering::Relaxed);
        let machine = self.machine.clone();
        bed.block_on(machine.sleep(Duration::from_millis(20)));
        machine
    }

    fn spec(&self, bed: &mut Testbed) -> PeerSpec {
        let port = bed.block_on(self.device.port(1)).unwrap();
        PeerSpec {
            role: self.role,
            gid: port.gid,
        }
    }

    fn changes(&self) -> Vec<Change> {
        self.guests.0.lock().unwrap().clone()
    }
}

fn wait(bed: &mut Testbed, what: &str, clock: &Machine, mut holds: impl FnMut() -> bool) {
    let deadline = clock.now() + PATIENCE;
    bed.block_on(async {
        while !holds() {
            assert!(clock.now() < deadline, "{what}");
            clock.sleep(Duration::from_millis(5)).await;
        }
    });
}

/// Waits until these nodes see each other and nobody else, and know so of each other.
fn converge(bed: &mut Testbed, nodes: &[&Node]) {
    wait(bed, "views converge", &nodes[0].machine, || {
        let views: Vec<_> = nodes.iter().map(|node| node.fit.view()).collect();
        views.iter().all(|view| {
            let others = nodes.len() - 1;
            view.members.len() == others
                && view.agreeing == others
                && view.digest == views[0].digest
        })
    });
}

fn call(bed: &mut Testbed, from: &Node, to: PeerId) -> Result<(), Error> {
    let core = from.fit.core(0);
    bed.block_on(async { core.call(to, Call::new(1, b"hello"), &mut [0; 64]).await })
        .map(drop)
}

fn find(bed: &mut Testbed, node: &Node, role: Role) -> Result<PeerId, Error> {
    bed.block_on(node.fit.find(role))
}

#[test]
fn nodes_that_know_a_name_and_a_key_find_each_other() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    let storage = node(&mut bed, 3, Role::Storage);
    for role in [Role::Memory, Role::Storage] {
        let peer = find(&mut bed, &processor, role).unwrap();
        call(&mut bed, &processor, peer).unwrap();
    }
    converge(&mut bed, &[&processor, &memory, &storage]);
    // One that comes late is found as well, and told to those that watch.
    let late = node(&mut bed, 4, Role::Memory);
    converge(&mut bed, &[&processor, &memory, &storage, &late]);
    assert_eq!(processor.changes().len(), 3);
    let view = late.fit.view();
    for (peer, _) in view.members {
        call(&mut bed, &late, peer).unwrap();
    }
    assert_eq!(
        processor.machine.violations() + late.machine.violations(),
        0
    );
}

#[test]
fn a_node_that_leaves_is_gone_at_once() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    let before = bed.now();
    memory.fit.leave();
    wait(&mut bed, "it is lost", &processor.machine, || {
        processor.changes().len() == 2
    });
    assert!(bed.now().since(before) < Duration::from_secs(1));
    assert!(matches!(processor.changes()[1], Change::Lost(..)));
    assert!(processor.fit.view().members.is_empty());
    // And it stays away, though its tasks still run.
    bed.block_on(processor.machine.sleep(Duration::from_secs(3)));
    assert!(processor.fit.view().members.is_empty());
}

#[test]
fn a_node_that_leaves_connects_to_nobody_whoever_asks_for_it() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    let spec = processor.spec(&mut bed);
    let (asks, clock) = (memory.fit.clone(), memory.machine.clone());
    bed.spawn(async move {
        loop {
            let _ = asks.connect(spec).await;
            clock.sleep(Duration::from_millis(5)).await;
        }
    });
    memory.fit.leave();
    wait(&mut bed, "it is lost", &processor.machine, || {
        processor.changes().len() == 2
    });
    bed.block_on(processor.machine.sleep(Duration::from_secs(3)));
    assert_eq!(processor.changes().len(), 2, "{:?}", processor.changes());
    let refused = bed.block_on(memory.fit.connect(spec)).unwrap_err();
    assert!(refused.to_string().ends_with("this node left"), "{refused}");
}

#[test]
fn a_node_that_crashes_is_lost_and_comes_back_as_another_again_and_again() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let mut memory = node(&mut bed, 2, Role::Memory);
    for round in 0..5 {
        converge(&mut bed, &[&processor, &memory]);
        let here = memory.crash(&mut bed);
        memory = start(&mut bed, here, Role::Memory, config(2));
        wait(&mut bed, "it is back", &processor.machine, || {
            processor.changes().len() == 2 * round + 3
        });
    }
    let changes = processor.changes();
    let mut lives = Vec::new();
    for pair in changes.windows(2) {
        match (pair[0], pair[1]) {
            (Change::Joined(peer, member), Change::Lost(lost, _)) => {
                assert_eq!(peer, lost);
                lives.push((peer, member.incarnation));
            }
            (Change::Lost(..), Change::Joined(..)) => {}
            other => panic!("{other:?}"),
        }
    }
    lives.sort();
    lives.dedup_by_key(|(peer, _)| *peer);
    assert_eq!(lives.len(), 5, "each life has a number of its own");
    lives.dedup_by_key(|(_, incarnation)| *incarnation);
    assert_eq!(lives.len(), 5);
    // Whoever still has the old number is told that it is gone.
    assert!(matches!(
        call(&mut bed, &processor, lives[0].0),
        Err(Error::PeerLost { .. } | Error::NotConnected(_))
    ));
}

#[test]
fn a_node_without_the_key_is_no_member_and_gets_nothing() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    let other_key = Config {
        cluster: Cluster::new("test", Key::new([8; 32])),
        connect_timeout: Duration::from_secs(2),
        ..config(3)
    };
    let at = machine(&bed, 3, Role::Storage);
    let stranger = start(&mut bed, at, Role::Storage, other_key);
    converge(&mut bed, &[&processor, &memory]);
    let missing = find(&mut bed, &stranger, Role::Memory).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("no memory has joined the cluster within 2"),
        "{missing}"
    );
    // Nor by knowing whom to call.
    let memory_spec = memory.spec(&mut bed);
    let refused = bed.block_on(stranger.fit.connect(memory_spec));
    assert!(
        matches!(refused, Err(Error::Refused { reason: 28, .. })),
        "{refused:?}"
    );
    assert!(memory.fit.membership_counters().nr_bad_proof > 1);
    assert_eq!(memory.fit.view().members.len(), 1);
    assert!(stranger.fit.view().members.is_empty());
}

#[test]
fn a_node_of_another_version_is_no_member() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let other = Config {
        message_version: 9,
        connect_timeout: Duration::from_secs(1),
        ..config(2)
    };
    let at = machine(&bed, 2, Role::Memory);
    let memory = start(&mut bed, at, Role::Memory, other);
    assert!(matches!(
        find(&mut bed, &memory, Role::Processor),
        Err(Error::NoMember {
            role: Role::Processor,
            ..
        })
    ));
    assert!(processor.fit.membership_counters().nr_other_version > 0);
}

#[test]
fn a_stopped_node_whose_card_still_answers_is_lost_and_returns_when_it_runs_again() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    let peer = processor.fit.view().members[0].0;
    let before = bed.now();
    memory.awake.store(false, Ordering::Relaxed);
    let waiting = call(&mut bed, &processor, peer).unwrap_err();
    let text = waiting.to_string();
    assert!(text.contains("nothing was heard of it for 2"), "{text}");
    assert!(text.starts_with("memory@"), "{text}");
    let lost_after = bed.now().since(before);
    assert!(lost_after < Duration::from_secs(3), "{lost_after:?}");
    // The call ends at once; the node leaves the view when the card has let go of its queue pairs.
    wait(
        &mut bed,
        "the lost node leaves the view",
        &processor.machine,
        || processor.fit.view().members.is_empty(),
    );
    memory.awake.store(true, Ordering::Relaxed);
    converge(&mut bed, &[&processor, &memory]);
    assert_ne!(processor.fit.view().members[0].0, peer);
}

#[test]
fn a_peer_whose_connection_fails_is_told_at_once() {
    let mut bed = Testbed::default();
    let [processor, memory] =
        [(1, Role::Processor), (2, Role::Memory)].map(|(index, role)| node(&mut bed, index, role));
    converge(&mut bed, &[&processor, &memory]);
    let to_memory = find(&mut bed, &processor, Role::Memory).unwrap();
    let to_processor = find(&mut bed, &memory, Role::Processor).unwrap();
    // A local key that covers nothing: the fabric and the peer see nothing of it.
    let from = Sge {
        addr: 0,
        len: 8,
        lkey: Lkey(0),
    };
    let there = RemoteAddr {
        addr: 0,
        rkey: Rkey(0),
    };
    let core = processor.fit.core(0);
    let written = bed.block_on(core.write(to_memory, from, there));
    assert!(
        matches!(written, Err(Error::PeerLost { .. })),
        "{written:?}"
    );
    wait(&mut bed, "the memory knows", &memory.machine, || {
        memory.changes().len() > 1
    });
    let lost = call(&mut bed, &memory, to_processor);
    assert!(
        matches!(
            lost,
            Err(Error::PeerLost {
                cause: LostCause::PeerLeft,
                ..
            })
        ),
        "{lost:?}"
    );
}

#[test]
fn an_idle_connection_stays() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    bed.block_on(processor.machine.sleep(Duration::from_secs(7)));
    assert_eq!((processor.changes().len(), memory.changes().len()), (1, 1));
}

#[test]
fn a_peer_that_is_lost_a_hundred_times_leaves_nothing_behind() {
    let mut bed = Testbed::default();
    let quiet = |index| Config {
        discover: false,
        ..config(index)
    };
    let [a, b] = [(1, Role::Processor), (2, Role::Memory)].map(|(index, role)| {
        let at = machine(&bed, index, role);
        start(&mut bed, at, role, quiet(index))
    });
    let to = b.spec(&mut bed);
    let buffer = a.machine.alloc(4096, 4096).unwrap();
    let mut allocated = None;
    let mut last = None;
    for _ in 0..100 {
        let peer = bed.block_on(a.fit.connect(to)).unwrap();
        assert!(last < Some(peer));
        last = Some(peer);
        assert_eq!(a.fit.domain(peer), Domain(1 + u32::from(peer.0)));
        call(&mut bed, &a, peer).unwrap();
        let access = Access {
            local_write: true,
            ..Access::default()
        };
        let (device, core) = (a.device.clone(), a.fit.core(0));
        let lost = bed.block_on(async {
            let region = device
                .register(a.fit.domain(peer), buffer.bus_addr().0, 4096, access)
                .await
                .unwrap();
            let into = Sge {
                addr: region.addr,
                len: 64,
                lkey: region.lkey,
            };
            let nowhere = RemoteAddr {
                addr: 0x1000,
                rkey: Rkey(0xdead_0000),
            };
            let read = core.read(peer, nowhere, into).await;
            device.deregister(&region).await.unwrap();
            read
        });
        assert!(matches!(lost, Err(Error::PeerLost { .. })), "{lost:?}");
        let lost = |node: &Node| node.fit.view().members.is_empty();
        wait(&mut bed, "both know", &a.machine, || lost(&a) && lost(&b));
        let now = (a.machine.allocated(), b.machine.allocated());
        assert_eq!(*allocated.get_or_insert(now), now);
    }
    wait(&mut bed, "all is told", &a.machine, || {
        a.changes().len() == 200 && b.changes().len() == 200
    });
    assert_eq!(a.machine.violations() + b.machine.violations(), 0);
}

#[test]
fn memory_that_is_registered_for_one_peer_is_out_of_another_ones_reach() {
    let mut bed = Testbed::default();
    let memory = node(&mut bed, 2, Role::Memory);
    let [first, second] = [1, 3].map(|index| node(&mut bed, index, Role::Processor));
    converge(&mut bed, &[&memory, &first, &second]);
    let gid = |index: u64| Gid::new(Gid::DEFAULT_PREFIX, Guid(GUID + (index << 8) + 1));
    let view = memory.fit.view();
    let number = |index| {
        view.members
            .iter()
            .find(|(_, member)| member.name.gid == gid(index))
    };
    let (lent, access) = (
        memory.machine.alloc(4096, 4096).unwrap(),
        Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        },
    );
    let domain = memory.fit.domain(number(1).unwrap().0);
    let region = memory
        .device
        .register(domain, lent.bus_addr().0, 4096, access);
    let region = bed.block_on(region).unwrap();
    let there = RemoteAddr {
        addr: region.addr,
        rkey: region.rkey,
    };
    for (node, may) in [(&first, true), (&second, false)] {
        let peer = find(&mut bed, node, Role::Memory).unwrap();
        let here = node.machine.alloc(4096, 4096).unwrap();
        let own = node
            .device
            .register(node.fit.domain(peer), here.bus_addr().0, 4096, access);
        let own = bed.block_on(own).unwrap();
        let from = Sge {
            addr: own.addr,
            len: 8,
            lkey: own.lkey,
        };
        let core = node.fit.core(0);
        let written = bed.block_on(core.write(peer, from, there));
        assert_eq!(written.is_ok(), may, "{written:?}");
    }
}

#[test]
fn nodes_find_each_other_on_a_fabric_that_loses_and_doubles_packets() {
    let faults = LinkFaults {
        loss: 0.15,
        duplicate: 0.15,
        reorder: 0.15,
        delay: Duration::from_millis(2),
    };
    for seed in 0..3 {
        let fabric = FabricConfig {
            faults,
            seed,
            ..FabricConfig::default()
        };
        let mut bed = Testbed::new(ClusterConfig { fabric });
        let processor = node(&mut bed, 1, Role::Processor);
        let memory = node(&mut bed, 2, Role::Memory);
        let storage = node(&mut bed, 3, Role::Storage);
        converge(&mut bed, &[&processor, &memory, &storage]);
        for role in [Role::Memory, Role::Storage] {
            let peer = find(&mut bed, &processor, role).unwrap();
            call(&mut bed, &processor, peer).unwrap();
        }
        // No message that was doubled, and none that came late, has let anyone in twice.
        assert_eq!(processor.fit.membership_counters().nr_bad_proof, 0);
        assert_eq!(
            processor.machine.violations() + memory.machine.violations(),
            0
        );
    }
}

#[test]
fn either_port_of_a_card_will_do() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let at = bed.add_machine_with_ports("memory", Guid(GUID + (2 << 8)), 2);
    let second = Config {
        port: 2,
        ..config(2)
    };
    let memory = start(&mut bed, at, Role::Memory, second);
    converge(&mut bed, &[&processor, &memory]);
    let (peer, member) = processor.fit.view().members[0];
    assert_eq!(member.name.gid.guid(), Guid(GUID + (2 << 8) + 2));
    call(&mut bed, &processor, peer).unwrap();
}

//! Helpers of the whole-path tests: machines whose cards are up, and connected queue pairs.

use std::sync::Arc;

use hal::{DmaBuffer, Duration, Platform};
use harness::{Machine, Testbed};
use mlx4::{Config, Mlx4, Queues};
use verbs::{
    Access, Completion, Device, Domain, Guid, PathToPeer, Payload, PortState, Psn, QpConfig,
    QpKind, QpSlot, Qpn, QueueSet, RcParameters, Region, SendOp, SendRequest, Sge,
};

/// Time that a test's wait may take at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const RC: RcParameters = RcParameters {
    ack_timeout: 14,
    retry_count: 3,
    rnr_retry: 3,
    min_rnr_timer: 1,
    reads_as_requester: 16,
    reads_as_responder: 16,
};

pub(crate) const ALL: Access = Access {
    local_write: true,
    remote_read: true,
    remote_write: true,
};

/// A machine whose card is up.
pub(crate) struct Node<P: Platform = Machine> {
    pub(crate) platform: P,
    pub(crate) device: Arc<Mlx4<P>>,
}

pub(crate) fn log() {
    // Only the first test of a process gets to set it up.
    let _ = env_logger::builder().is_test(true).try_init();
}

pub(crate) fn guid(n: u64) -> Guid {
    Guid(0x0002_c903_0000_1000 + (n << 8))
}

/// Starts a card, lets its service run, and waits until its port is ACTIVE.
pub(crate) fn start<P: Platform>(bed: &mut Testbed, platform: P) -> Node<P> {
    start_with(bed, platform, Config::default())
}

pub(crate) fn start_with<P: Platform>(bed: &mut Testbed, platform: P, config: Config) -> Node<P> {
    start_served(bed, platform, config, Duration::from_micros(50))
}

/// Starts a card whose service looks every so often: seldom, where a test waits for long.
pub(crate) fn start_served<P: Platform>(
    bed: &mut Testbed,
    platform: P,
    config: Config,
    interval: Duration,
) -> Node<P> {
    let device = bed
        .block_on(Mlx4::start(platform.clone(), config))
        .expect("the card starts");
    let device = Arc::new(device);
    let served = Arc::downgrade(&device);
    let clock = platform.clone();
    // As `Mlx4::service` does, but without keeping the card alive.
    bed.spawn(async move {
        while let Some(device) = served.upgrade() {
            if let Err(error) = device.service_once().await {
                log::info!("the service ends: {error}");
                return;
            }
            drop(device);
            clock.sleep(interval).await;
        }
    });
    let node = Node { platform, device };
    bed.block_on(node.active(config.port));
    node
}

impl<P: Platform> Node<P> {
    pub(crate) async fn active(&self, port: u8) {
        let deadline = self.platform.now() + PATIENCE;
        loop {
            let info = self.device.port(port).await.expect("the port answers");
            if info.state == PortState::Active {
                return;
            }
            assert!(self.platform.now() < deadline, "not active: {info:?}");
            self.platform.sleep(Duration::from_millis(1)).await;
        }
    }

    /// A registered piece of memory.
    pub(crate) async fn memory(&self, len: usize, access: Access) -> Piece<P> {
        self.memory_in(Domain::default(), len, access).await
    }

    /// A registered piece of memory of a protection domain.
    pub(crate) async fn memory_in(&self, domain: Domain, len: usize, access: Access) -> Piece<P> {
        let buffer = self.platform.alloc(len, 4096).expect("memory");
        let region = self
            .device
            .register(domain, buffer.bus_addr().0, len as u64, access)
            .await
            .expect("a region");
        Piece { buffer, region }
    }
}

/// A registered piece of memory.
pub(crate) struct Piece<P: Platform = Machine> {
    pub(crate) buffer: P::Buffer,
    pub(crate) region: Region,
}

impl<P: Platform> Piece<P> {
    pub(crate) fn sge(&self, offset: u64, len: u32) -> Sge {
        Sge {
            addr: self.region.addr + offset,
            len,
            lkey: self.region.lkey,
        }
    }

    pub(crate) fn remote(&self, offset: u64) -> verbs::RemoteAddr {
        verbs::RemoteAddr {
            addr: self.region.addr + offset,
            rkey: self.region.rkey,
        }
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        self.buffer.write(0, bytes);
    }

    pub(crate) fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.buffer.read(0, &mut bytes);
        bytes
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i * 31 + seed * 17) ^ (i >> 8)).to_le_bytes()[0])
        .collect()
}

pub(crate) fn rc_config(depth: u32) -> QpConfig {
    QpConfig {
        kind: QpKind::ReliableConnection,
        domain: Domain::default(),
        port: 1,
        send_depth: depth,
        receive_depth: depth,
        send_sge: 2,
        receive_sge: 2,
        inline: 220,
        remote_access: ALL,
    }
}

/// One end of a connection.
pub(crate) struct End<P: Platform = Machine> {
    pub(crate) queues: Queues<P>,
    pub(crate) slot: QpSlot,
    pub(crate) qpn: Qpn,
}

/// Connects two nodes by a queue pair each.
pub(crate) async fn connect<P: Platform, Q: Platform>(
    a: &Node<P>,
    b: &Node<Q>,
    config: &QpConfig,
    parameters: &RcParameters,
) -> (End<P>, End<Q>) {
    let mut left = end(a, config).await;
    let mut right = end(b, config).await;
    join((a, &mut left), (b, &mut right), parameters).await;
    (left, right)
}

/// Connects two ends that are in INIT.
pub(crate) async fn join<P: Platform, Q: Platform>(
    (a, left): (&Node<P>, &mut End<P>),
    (b, right): (&Node<Q>, &mut End<Q>),
    parameters: &RcParameters,
) {
    join_pairs((a, left.qpn), (b, right.qpn), parameters).await;
}

/// Connects two queue pairs that are in INIT.
pub(crate) async fn join_pairs<P: Platform, Q: Platform>(
    (a, left): (&Node<P>, Qpn),
    (b, right): (&Node<Q>, Qpn),
    parameters: &RcParameters,
) {
    let (at_a, at_b) = (address(a).await, address(b).await);
    let path = |address, qpn, their: u32, our: u32| PathToPeer {
        address,
        qpn,
        their_psn: Psn(their),
        our_psn: Psn(our),
        mtu: 1024,
        sl: 0,
    };
    // PSNs near their end, so that every test wraps.
    let to_b = path(at_b, right, 0xff_fff0, 0xff_fffe);
    let to_a = path(at_a, left, 0xff_fffe, 0xff_fff0);
    ready(a, left, &to_b, parameters).await;
    ready(b, right, &to_a, parameters).await;
}

pub(crate) async fn address<P: Platform>(node: &Node<P>) -> verbs::Address {
    let port = node.device.port_number();
    node.device.port(port).await.expect("the port").address
}

pub(crate) async fn end<P: Platform>(node: &Node<P>, config: &QpConfig) -> End<P> {
    let depth = 2 * (config.send_depth + config.receive_depth);
    let mut queues = node.device.create_queues(depth, 0).await.expect("queues");
    let (slot, qpn) = node
        .device
        .create_qp(&mut queues, config)
        .await
        .expect("a queue pair");
    End { queues, slot, qpn }
}

async fn ready<P: Platform>(
    node: &Node<P>,
    qpn: Qpn,
    path: &PathToPeer,
    parameters: &RcParameters,
) {
    node.device
        .ready_to_receive(qpn, path, parameters)
        .await
        .expect("RTR");
    node.device
        .ready_to_send(qpn, Some(path), parameters)
        .await
        .expect("RTS");
}

impl<P: Platform> End<P> {
    pub(crate) fn send(&mut self, id: u64, op: SendOp, payload: Payload<'_>) {
        self.post(&request(id, op, payload));
        self.queues.ring(self.slot);
    }

    pub(crate) fn post(&mut self, request: &SendRequest<'_>) {
        self.queues.post_send(self.slot, request).expect("room");
    }

    pub(crate) fn receive(&mut self, id: u64, into: &[Sge]) {
        self.queues.post_receive(self.slot, id, into).expect("room");
    }

    /// The next completion.
    pub(crate) async fn next(&mut self, clock: &impl Platform) -> Completion {
        let deadline = clock.now() + PATIENCE;
        loop {
            let mut completion = [Completion::EMPTY];
            if self.queues.poll(&mut completion).expect("a working queue") == 1 {
                return completion[0];
            }
            assert!(clock.now() < deadline, "no completion");
            clock.sleep(Duration::from_micros(10)).await;
        }
    }
}

pub(crate) fn request<'a>(id: u64, op: SendOp, payload: Payload<'a>) -> SendRequest<'a> {
    SendRequest {
        id,
        op,
        payload,
        signalled: true,
        solicited: false,
        fence: false,
        to: None,
    }
}

/// Two nodes on one fabric.
pub(crate) fn two_nodes(bed: &mut Testbed) -> (Node, Node) {
    log();
    let (a, b) = (bed.add_machine("a", guid(0)), bed.add_machine("b", guid(1)));
    (start(bed, a), start(bed, b))
}

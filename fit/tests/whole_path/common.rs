//! Nodes over the real driver and the model, for the tests beside this.

use std::sync::{Arc, Mutex};

use fit::{Config, Exchange, Fit, Handler, LostCause, PeerId, PeerSpec, Role};
use hal::{DmaBuffer, Duration, Platform};
use harness::{Buffer, Machine, Testbed};
use mlx4::Mlx4;
use verbs::{Access, Device, Domain, Guid, QpConfig, QpKind, Region, RemoteAddr, Sge};

/// Answers with the request's bytes and the request's bulk; what more bulk the caller takes is
/// filled with the kind.
#[derive(Default)]
pub(super) struct Echo {
    pub(super) lost: Mutex<Vec<PeerId>>,
    /// The one-way messages that came, kind and body.
    pub(super) received: Mutex<Vec<(u16, Vec<u8>)>>,
}

impl Handler for Echo {
    async fn handle(&self, _: PeerId, kind: u16, request: &[u8], exchange: &mut dyn Exchange) {
        if kind == SILENT {
            return core::future::pending().await;
        }
        let most = if kind == SHORT { 4 } else { request.len() };
        let len = most.min(exchange.message().len());
        exchange.message()[..len].copy_from_slice(&request[..len]);
        exchange.set_len(len);
        let mut bulk = vec![kind.to_le_bytes()[0]; exchange.bulk_limit()];
        // In pieces that are nobody's: what is read and written lies anywhere.
        for (at, piece) in bulk.chunks_mut(1000).enumerate() {
            let _ = exchange.read_bulk(at * 1000, piece);
            assert_eq!(exchange.write_bulk(at * 1000, piece), piece.len());
        }
    }
    async fn receive(&self, _: PeerId, kind: u16, body: &[u8]) {
        self.received.lock().unwrap().push((kind, body.to_vec()));
    }
    fn peer_lost(&self, peer: PeerId, cause: Option<LostCause>) {
        assert!(cause.is_some(), "it is not forgotten so soon");
        self.lost.lock().unwrap().push(peer);
    }
}

/// A kind of call that never gets an answer.
pub(super) const SILENT: u16 = 60;
/// A kind of call that is answered with four bytes.
pub(super) const SHORT: u16 = 61;

pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) device: Arc<Mlx4<Machine>>,
    pub(super) fit: Fit<Mlx4<Machine>, Machine>,
    pub(super) handler: Arc<Echo>,
    pub(super) role: Role,
}

pub(super) const GUID: u64 = 0x0002_c903_0000_1000;

pub(super) fn config() -> Config {
    Config {
        bulk_size: 64 << 10,
        calls: 8,
        serves: 8,
        workers: 2,
        timeout: Duration::from_secs(5),
        ..Config::default()
    }
}

pub(super) fn node(bed: &mut Testbed, index: u64, role: Role, config: Config) -> Node {
    node_with_taken(bed, index, role, config, 0)
}

/// A node whose card has given `taken` numbers of queue pairs to others before FIT comes.
pub(super) fn node_with_taken(
    bed: &mut Testbed,
    index: u64,
    role: Role,
    config: Config,
    taken: u32,
) -> Node {
    let _ = env_logger::builder().is_test(true).try_init();
    let machine = bed.add_machine(role.name(), Guid(GUID + (index << 8)));
    let card = mlx4::Config {
        completion_vectors: config.cores,
        secret: [index.to_le_bytes()[0] | 1; 32],
        ..mlx4::Config::default()
    };
    let device = Arc::new(bed.block_on(Mlx4::start(machine.clone(), card)).unwrap());
    if taken > 0 {
        bed.block_on(take_queue_pairs(&device, taken));
    }
    let service = device.clone();
    bed.spawn(async move {
        let _ = service.service().await;
    });
    let fit = bed
        .block_on(Fit::new(device.clone(), machine.clone(), role, config))
        .unwrap();
    let handler = Arc::new(Echo::default());
    let control = fit.clone();
    bed.spawn(async move { control.control().await });
    for index in 0..config.cores {
        let (core, inline) = (fit.clone(), handler.clone());
        bed.spawn(async move {
            let ended = match config.workers {
                0 => core.run_core_serving(index, &*inline, |_, _| {}).await,
                _ => core.run_core(index).await,
            };
            // Of a machine that was switched off the card is gone.
            if let Err(error) = ended {
                log::error!("a core ended: {error}");
            }
        });
        for _ in 0..config.workers {
            let (core, handler) = (fit.core(index), handler.clone());
            bed.spawn(async move { core.serve(&*handler).await });
        }
    }
    let (watch, told) = (fit.clone(), handler.clone());
    bed.spawn(async move { watch.watch(&*told).await });
    Node {
        machine,
        device,
        fit,
        handler,
        role,
    }
}

/// Makes queue pairs that nobody uses.
async fn take_queue_pairs(device: &Mlx4<Machine>, count: u32) {
    let mut queues = device.create_queues(64, 0).await.unwrap();
    let unused = QpConfig {
        kind: QpKind::ReliableConnection,
        domain: Domain::default(),
        port: 1,
        send_depth: 1,
        receive_depth: 1,
        send_sge: 1,
        receive_sge: 1,
        inline: 0,
        remote_access: Access::default(),
    };
    for _ in 0..count {
        device.create_qp(&mut queues, &unused).await.unwrap();
    }
}

impl Node {
    pub(super) async fn spec(&self) -> PeerSpec {
        PeerSpec {
            role: self.role,
            gid: self.device.port(1).await.unwrap().gid,
        }
    }

    /// Registered memory filled with `value`.
    pub(super) async fn lent(&self, len: usize, value: u8) -> (Buffer, Region) {
        let buffer = self.machine.alloc(len, 4096).unwrap();
        buffer.fill(0, len, value);
        let access = Access {
            local_write: true,
            remote_read: true,
            remote_write: true,
        };
        let region =
            self.device
                .register(Domain::default(), buffer.bus_addr().0, len as u64, access);
        (buffer, region.await.unwrap())
    }

    /// The same, with how this side and a peer name all of it.
    pub(super) async fn memory(&self, len: usize, value: u8) -> (Buffer, Sge, RemoteAddr) {
        let (buffer, region) = self.lent(len, value).await;
        let (addr, lkey, rkey) = (region.addr, region.lkey, region.rkey);
        let len = u32::try_from(len).unwrap();
        (buffer, Sge { addr, len, lkey }, RemoteAddr { addr, rkey })
    }
}

pub(super) fn bytes(buffer: &Buffer, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    buffer.read(0, &mut bytes);
    bytes
}

/// A processor and a memory, connected by the processor.
pub(super) fn pair(bed: &mut Testbed) -> (Node, Node, PeerId) {
    pair_of(bed, config(), config())
}

/// The same with these ways to be set up, the processor's first.
pub(super) fn pair_of(bed: &mut Testbed, ours: Config, theirs: Config) -> (Node, Node, PeerId) {
    let memory = node(bed, 2, Role::Memory, theirs);
    let processor = node(bed, 1, Role::Processor, ours);
    let peer = bed
        .block_on(async { processor.fit.connect(memory.spec().await).await })
        .unwrap();
    (processor, memory, peer)
}

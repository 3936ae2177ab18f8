//! Strangers on the fabric beside the cluster, and noise in its group.

use std::sync::{Arc, Mutex};

use fit::{Change, Role};
use hal::{DmaBuffer, Duration, Instant, Platform};
use harness::trace::{Direction, Event, Purpose, Recorder};
use harness::{Machine, Testbed};
use mad::cm::CmMessage;
use mad::sa::{JoinState, McMemberRecord, SaMad, mc_member_mask};
use mad::{Attribute, Method};
use mlx4::Mlx4;
use verbs::{
    Access, Address, Completion, Device, Domain, Lid, PKey, Payload, PortState, QKey, QpConfig,
    QpKind, QpSlot, Qpn, QueueSet, RcParameters, Region, SendOp, SendRequest, Sge, Status,
    UdAddress,
};

use super::{PATIENCE, call, config, converge, machine, node, wait};

/// The key of announcements, which is no secret.
const QKEY: QKey = QKey(0x5445_5353);

/// Remembers the connection requests that nodes send.
#[derive(Default)]
pub(super) struct Requests(pub(super) Mutex<Vec<mad::Mad>>);

impl Recorder for Requests {
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
        let Ok(mad) = mad::Mad::try_from(bytes) else {
            return;
        };
        if let Ok((_, CmMessage::Req(_))) = CmMessage::parse(&mad) {
            self.0.lock().unwrap().push(mad);
        }
    }
}

/// A machine on the fabric whose software is the test's.
pub(super) fn hostile(bed: &mut Testbed) -> (Machine, Arc<Mlx4<Machine>>) {
    let machine = machine(bed, 9, Role::Storage);
    let started = bed.block_on(Mlx4::start(machine.clone(), mlx4::Config::default()));
    let device = Arc::new(started.unwrap());
    let service = device.clone();
    bed.spawn(async move {
        let _ = service.service().await;
    });
    (machine, device)
}

#[test]
fn what_strangers_send_ends_no_connection_and_makes_none() {
    let mut bed = Testbed::default();
    let requests = Arc::new(Requests::default());
    bed.with_cluster(|cluster, _| cluster.record(Arc::clone(&requests) as _));
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    let (clock, stranger) = hostile(&mut bed);
    let [to_processor, to_memory] = [&processor, &memory].map(|node| {
        let port = bed.block_on(node.device.port(1)).unwrap();
        port.address
    });
    let recorded = requests.0.lock().unwrap().clone();
    assert!(!recorded.is_empty());
    let mut random = 1_u64;
    bed.block_on(async {
        for round in 0..400_u64 {
            // A request that was played before, one that was changed, and messages of all kinds
            // with arbitrary contents.
            let mut mad = recorded[0];
            let attribute = 0x10 + u8::try_from(round % 7).unwrap();
            if round >= 4 {
                // Everything, or the queue pair's number only.
                for byte in &mut mad[if round % 2 == 0 { 24..256 } else { 56..59 }] {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *byte ^= random.to_le_bytes()[7];
                }
                mad[17] = attribute;
                // The service, so that more of it is looked at.
                mad[32..40].copy_from_slice(&recorded[0][32..40]);
            }
            for to in [to_processor, to_memory] {
                let sent = stranger.send_mad(1, to, PKey::DEFAULT, &mad).await;
                sent.unwrap();
            }
            clock.sleep(Duration::from_millis(3)).await;
        }
    });
    let peer = memory.fit.view().members[0].0;
    call(&mut bed, &memory, peer).unwrap();
    assert_eq!((processor.changes().len(), memory.changes().len()), (1, 1));
    let refused = memory.fit.membership_counters();
    assert!(
        refused.nr_bad_proof > 0 && refused.nr_other_version > 0,
        "{refused:?}"
    );
    // The request that was played again is not taken up even when its sender is gone.
    processor.fit.leave();
    wait(&mut bed, "it left", &clock, || {
        memory.fit.view().members.is_empty()
    });
    bed.block_on(async {
        for _ in 0..3 {
            let sent = processor
                .device
                .send_mad(1, to_memory, PKey::DEFAULT, &recorded[0])
                .await;
            sent.unwrap();
            clock.sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(memory.fit.view().members.is_empty());
    assert_eq!(memory.changes().len(), 2);
    assert!(memory.fit.membership_counters().nr_replayed > refused.nr_replayed);
}

/// Lets a stranger's port into the cluster's group, as any port may; the group's address.
fn join_group(bed: &mut Testbed, clock: &Machine, stranger: &Mlx4<Machine>) -> Address {
    let mask = mc_member_mask::MGID | mc_member_mask::PORT_GID | mc_member_mask::CREATE;
    bed.block_on(async {
        let port = loop {
            match stranger.port(1).await.unwrap() {
                port if port.state == PortState::Active && port.address.is_set() => break port,
                _ => clock.sleep(Duration::from_millis(1)).await,
            }
        };
        let record = McMemberRecord {
            mgid: config(9).cluster.mgid().0,
            port_gid: port.gid.0,
            qkey: QKEY.0.into(),
            pkey: PKey::DEFAULT.0.into(),
            scope_join: JoinState::new().with_scope(2).with_join(1),
            ..McMemberRecord::default()
        };
        let join = SaMad::request(Method::SET, Attribute::MC_MEMBER_RECORD, mask, &record, 77);
        stranger
            .send_mad(1, port.manager, PKey::DEFAULT, &join.to_mad())
            .await
            .unwrap();
        let answer = loop {
            clock.sleep(Duration::from_millis(1)).await;
            if let Some((_, mad)) = stranger.take_mad(1) {
                break SaMad::parse(&mad).unwrap();
            }
        };
        Lid(answer.record::<McMemberRecord>().unwrap().mlid.get()).into()
    })
}

/// A queue pair for the cluster's group, as any port may have one, and 4096 bytes for what it sends
/// and receives.
struct Ear {
    queues: mlx4::Queues<Machine>,
    qp: QpSlot,
    region: Region,
    _memory: <Machine as Platform>::Buffer,
}

async fn ear(clock: &Machine, stranger: &Mlx4<Machine>) -> Ear {
    let mut queues = stranger.create_queues(16, 0).await.unwrap();
    let qp_config = QpConfig {
        kind: QpKind::Datagram { qkey: QKEY },
        domain: Domain::default(),
        port: 1,
        send_depth: 8,
        receive_depth: 1,
        send_sge: 1,
        receive_sge: 1,
        inline: 0,
        remote_access: Access::default(),
    };
    let (qp, qpn) = stranger.create_qp(&mut queues, &qp_config).await.unwrap();
    let parameters = RcParameters {
        ack_timeout: 0,
        retry_count: 0,
        rnr_retry: 0,
        min_rnr_timer: 0,
        reads_as_requester: 0,
        reads_as_responder: 0,
    };
    stranger
        .ready_to_send(qpn, None, &parameters)
        .await
        .unwrap();
    let mgid = config(9).cluster.mgid();
    stranger.attach_multicast(qpn, mgid).await.unwrap();
    let memory = clock.alloc(4096, 4096).unwrap();
    let access = Access {
        local_write: true,
        ..Access::default()
    };
    let region = stranger.register(Domain::default(), memory.bus_addr().0, 4096, access);
    let region = region.await.unwrap();
    Ear {
        queues,
        qp,
        region,
        _memory: memory,
    }
}

impl Ear {
    fn piece(&self, len: u32) -> Sge {
        Sge {
            addr: self.region.addr,
            len,
            lkey: self.region.lkey,
        }
    }

    /// The queue pair by which a node speaks in the group.
    async fn hear(&mut self, clock: &Machine, from: Address) -> Qpn {
        let deadline = clock.now() + PATIENCE;
        let piece = self.piece(4096);
        self.queues.post_receive(self.qp, 0, &[piece]).unwrap();
        loop {
            assert!(clock.now() < deadline, "{from} announces itself");
            let mut done = [Completion::EMPTY];
            if self.queues.poll(&mut done) == Ok(0) {
                clock.sleep(Duration::from_millis(1)).await;
                continue;
            }
            let source = done[0].source.expect("a datagram has a source");
            if source.address == from {
                return source.qpn;
            }
            self.queues.post_receive(self.qp, 0, &[piece]).unwrap();
        }
    }
}

#[test]
fn a_failed_queue_pair_of_the_group_is_made_anew() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    let (clock, stranger) = hostile(&mut bed);
    join_group(&mut bed, &clock, &stranger);
    let mut ear = bed.block_on(ear(&clock, &stranger));
    let address = bed.block_on(processor.device.port(1)).unwrap().address;
    for index in 4..7 {
        bed.block_on(async {
            let spoken = ear.hear(&clock, address).await;
            processor.device.fail_qp(spoken).await.unwrap();
            ear.hear(&clock, address).await;
        });
        // Whoever comes late hears of it, and it of them.
        let late = node(&mut bed, index, Role::Storage);
        converge(&mut bed, &[&processor, &memory, &late]);
        late.crash(&mut bed);
        converge(&mut bed, &[&processor, &memory]);
    }
    // No connection was touched by it.
    let changes = processor.changes();
    let memories = changes.iter().filter(
        |change| matches!(change, Change::Joined(_, member) if member.name.role == Role::Memory),
    );
    assert_eq!(memories.count(), 1);
}

#[test]
fn a_datagram_of_any_length_silences_nobody() {
    let mut bed = Testbed::default();
    let processor = node(&mut bed, 1, Role::Processor);
    let memory = node(&mut bed, 2, Role::Memory);
    converge(&mut bed, &[&processor, &memory]);
    let (clock, stranger) = hostile(&mut bed);
    let address = join_group(&mut bed, &clock, &stranger);
    bed.block_on(async {
        let mut ear = ear(&clock, &stranger).await;
        for len in [0, 1, 96, 216, 217, 300, 2048] {
            let piece = ear.piece(len);
            let request = SendRequest {
                id: u64::from(len),
                op: SendOp::Send { imm: None },
                payload: Payload::Gather(&[piece]),
                signalled: true,
                solicited: false,
                fence: false,
                to: Some(UdAddress {
                    address,
                    qpn: Qpn::MULTICAST,
                    qkey: QKEY,
                    sl: 0,
                    gid: Some(config(9).cluster.mgid()),
                }),
            };
            ear.queues.post_send(ear.qp, &request).unwrap();
            ear.queues.ring(ear.qp);
            clock.sleep(Duration::from_millis(10)).await;
        }
        let mut done = [Completion::EMPTY; 8];
        assert_eq!(ear.queues.poll(&mut done), Ok(7));
        assert!(
            done[..7].iter().all(|done| done.status == Status::Success),
            "{done:?}"
        );
    });
    assert!(processor.fit.membership_counters().nr_foreign >= 7);
    // Whoever comes late hears of them, and they of it.
    let late = node(&mut bed, 4, Role::Memory);
    converge(&mut bed, &[&processor, &memory, &late]);
}

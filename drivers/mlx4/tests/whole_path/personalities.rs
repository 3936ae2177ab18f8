//! The main job on each kind of card: bring-up, a connection, data both ways, a completion that is
//! waited for, and an orderly end.

use hal::{Duration, Platform};
use harness::{
    CardBoard, ClusterConfig, Device as Card, FabricConfig, LinkRate, NodeConfig, Testbed,
};
use mlx4::Config;
use verbs::{Device, Payload, QueueSet, SendOp, Status};

use crate::common::{ALL, Node, RC, connect, guid, log, pattern, rc_config, start_with};

/// Kinds of cards, each with its ports and the port that is used.
fn kinds() -> Vec<(&'static str, u8, u8, CardBoard)> {
    let usual = CardBoard::default;
    let board = |change: fn(&mut CardBoard)| {
        let mut board = usual();
        change(&mut board);
        board
    };
    vec![
        ("the usual one", 1, 1, usual()),
        ("two ports, the second used", 2, 2, usual()),
        (
            "ConnectX-3 Pro",
            2,
            1,
            board(|board| board.device = Card::ConnectX3Pro),
        ),
        (
            "older firmware",
            1,
            1,
            board(|board| {
                board.wide_entries = false;
                board.system_eqs = false;
            }),
        ),
        ("two vectors", 1, 1, board(|board| board.vectors = 2)),
        ("one vector", 1, 1, board(|board| board.vectors = 1)),
        ("the pin only", 1, 1, board(|board| board.vectors = 0)),
        ("MAD_DEMUX", 1, 1, board(|board| board.mad_demux = true)),
        (
            "slow firmware",
            1,
            1,
            board(|board| board.command_time = Duration::from_millis(3)),
        ),
        (
            "empty limits, and late from its reset",
            1,
            1,
            board(|board| {
                board.empty_limits = 2;
                board.away = Duration::from_millis(2500);
            }),
        ),
    ]
}

pub(crate) async fn exchange<P: Platform>(a: &Node<P>, b: &Node<P>, port: u8) {
    let mut config = rc_config(8);
    config.port = port;
    let (mut left, mut right) = connect(a, b, &config, &RC).await;
    let (from, into) = (a.memory(8192, ALL).await, b.memory(8192, ALL).await);
    let data = pattern(5000, 3);
    from.write(&data);
    right.receive(1, &[into.sge(0, 8192)]);
    left.send(
        2,
        SendOp::Send { imm: Some(7) },
        Payload::Gather(&[from.sge(0, 5000)]),
    );
    assert_eq!(left.next(&a.platform).await.status, Status::Success);
    let got = right.next(&b.platform).await;
    assert_eq!((got.id, got.bytes), (1, 5000));
    assert_eq!(into.bytes(5000), data);
    // A completion that is waited for.
    right.queues.arm(false);
    let wait = b.device.wait_completion(0);
    right.receive(3, &[]);
    left.send(4, SendOp::Send { imm: None }, Payload::Inline(&[], &[]));
    wait.await.expect("a completion");
    assert_eq!(right.next(&b.platform).await.id, 3);
    let op = SendOp::Read {
        from: into.remote(0),
    };
    left.send(5, op, Payload::Gather(&[from.sge(4096, 64)]));
    assert_eq!(left.next(&a.platform).await.id, 4);
    assert_eq!(left.next(&a.platform).await.id, 5);
    assert_eq!(from.bytes(4160)[4096..], data[..64]);
}

#[test]
fn every_kind_of_card_does_the_main_job() {
    log();
    for (name, ports, port, board) in kinds() {
        let mut bed = Testbed::default();
        let machine = |bed: &Testbed, n| {
            bed.add(NodeConfig {
                board: board.clone(),
                ..NodeConfig::new(format!("node{n}"), guid(n), ports)
            })
        };
        let config = Config {
            port,
            ..Config::default()
        };
        let (a, b) = (machine(&bed, 0), machine(&bed, 1));
        let (a, b) = (
            start_with(&mut bed, a, config),
            start_with(&mut bed, b, config),
        );
        bed.block_on(exchange(&a, &b, port));
        for node in [&a, &b] {
            bed.block_on(node.device.stop()).expect(name);
            assert_eq!(node.platform.violations(), 0, "{name}");
        }
    }
}

/// A region of more than 32 GB, as M lends them: the largest pages, as many as it takes.
#[test]
fn a_region_may_be_as_large_as_the_card_allows() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let node = start_with(&mut bed, machine, Config::default());
    bed.block_on(async {
        for log_len in [35, 36, 40] {
            let domain = verbs::Domain::default();
            let len = 1_u64 << log_len;
            let region = node.device.register(domain, 0x1000, len, ALL).await;
            node.device
                .deregister(&region.expect("a region"))
                .await
                .expect("taken back");
        }
        let beyond = node
            .device
            .register(verbs::Domain::default(), 0, (1 << 40) + 1, ALL)
            .await;
        assert!(beyond.is_err());
    });
}

/// A transfer over links with a rate takes the time that its packets take, and no more.
#[test]
fn a_transfer_fills_the_link() {
    const LEN: u32 = 1 << 20;
    log();
    let mut bed = Testbed::new(ClusterConfig {
        fabric: FabricConfig {
            rate: Some(LinkRate::Qdr),
            ..FabricConfig::default()
        },
    });
    let (a, b) = (bed.add_machine("a", guid(0)), bed.add_machine("b", guid(1)));
    let (a, b) = (
        start_with(&mut bed, a, Config::default()),
        start_with(&mut bed, b, Config::default()),
    );
    let (mut left, into, data) = bed.block_on(async {
        let (left, right) = connect(&a, &b, &rc_config(4), &RC).await;
        let (from, into) = (
            a.memory(LEN as usize, ALL).await,
            b.memory(LEN as usize, ALL).await,
        );
        let data = pattern(LEN as usize, 1);
        from.write(&data);
        let mut left = left;
        let to = into.remote(0);
        let write = SendOp::Write { to, imm: None };
        left.send(1, write, Payload::Gather(&[from.sge(0, LEN)]));
        drop(right);
        (left, into, data)
    });
    let before = bed.now();
    let end = bed.block_on(left.next(&a.platform));
    assert_eq!(end.status, Status::Success);
    assert_eq!(into.bytes(LEN as usize), data);
    let took = bed.now().since(before);
    // 8 Gb/s of data a lane, and packets of 1024 bytes with some 30 of headers.
    let least = Duration::from_nanos(u64::from(LEN) * 8 / 32);
    assert!(took >= least && took < least * 5 / 4, "{took:?}");
}

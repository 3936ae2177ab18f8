//! Requests that the card reads while the driver writes them.
//!
//! The card reads up to 2 KB of a send queue in advance and uses what it has read (Linux
//! `hw/mlx4/qp.c`, `set_data_seg`). Here it does so after each store of the driver.

use harness::Testbed;
use verbs::{Device, Payload, QKey, QpConfig, QpKind, QueueSet, SendOp, Sge, Status, UdAddress};

use crate::common::{
    ALL, End, Node, Piece, RC, address, connect, pattern, rc_config, request, two_nodes,
};

const SEND: SendOp = SendOp::Send { imm: None };
/// Requests of a test: the ring's slots are used several times over.
const ROUNDS: usize = 200;
const PIECES: u8 = 12;

/// Waits for the message of a round, and compares its bytes from `skip` on.
async fn expect(right: &mut End, b: &Node, into: &Piece, skip: usize, data: &[u8]) {
    let got = right.next(&b.platform).await;
    assert_eq!(
        (got.status, got.bytes as usize),
        (Status::Success, skip + data.len())
    );
    assert_eq!(
        into.bytes(skip + data.len())[skip..],
        *data,
        "{} bytes",
        data.len()
    );
}

async fn sent(left: &mut End, a: &Node) {
    assert_eq!(left.next(&a.platform).await.status, Status::Success);
}

#[test]
fn inline_requests_are_sent_as_written_when_the_card_reads_ahead() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.read_ahead_always();
    bed.block_on(async {
        let (mut left, mut right) = connect(&a, &b, &rc_config(8), &RC).await;
        let into = b.memory(4096, ALL).await;
        let there = b.memory(4096, ALL).await;
        for round in 0..ROUNDS {
            let data = pattern(1 + round * 37 % 220, round);
            right.receive(1, &[into.sge(0, 4096)]);
            let (head, rest) = data.split_at(data.len() / 3);
            if round % 2 == 0 {
                left.send(1, SEND, Payload::Inline(head, rest));
            } else {
                let posted = left.queues.send_inline(left.slot, 1, true, head, rest);
                assert_eq!(posted, Ok(()));
                left.queues.ring(left.slot);
            }
            expect(&mut right, &b, &into, 0, &data).await;
            sent(&mut left, &a).await;
            let write = SendOp::Write {
                to: there.remote(0),
                imm: None,
            };
            left.send(2, write, Payload::Inline(head, rest));
            sent(&mut left, &a).await;
            assert_eq!(there.bytes(data.len()), data);
        }
    });
}

/// Cuts `data`, which lies at the beginning of `from`, into [`PIECES`] pieces of a size.
fn pieces(from: &Piece, len: usize) -> Vec<Sge> {
    let each = u32::try_from(len).unwrap() / u32::from(PIECES);
    (0..u32::from(PIECES))
        .map(|piece| from.sge(u64::from(piece * each), each))
        .collect()
}

#[test]
fn gathered_requests_are_sent_as_written_when_the_card_reads_ahead() {
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.read_ahead_always();
    bed.block_on(async {
        let config = QpConfig {
            send_sge: PIECES,
            ..rc_config(8)
        };
        let (mut left, mut right) = connect(&a, &b, &config, &RC).await;
        let from = a.memory(4096, ALL).await;
        let into = b.memory(4096, ALL).await;
        for round in 0..ROUNDS {
            let data = pattern(usize::from(PIECES) * (1 + round % 100), round);
            from.write(&data);
            right.receive(1, &[into.sge(0, 4096)]);
            left.send(1, SEND, Payload::Gather(&pieces(&from, data.len())));
            expect(&mut right, &b, &into, 0, &data).await;
            sent(&mut left, &a).await;
        }
    });
}

#[test]
fn datagrams_are_sent_as_written_when_the_card_reads_ahead() {
    const QKEY: QKey = QKey(0x1234);
    let mut bed = Testbed::default();
    let (a, b) = two_nodes(&mut bed);
    bed.read_ahead_always();
    bed.block_on(async {
        let config = QpConfig {
            kind: QpKind::Datagram { qkey: QKEY },
            send_sge: PIECES,
            ..rc_config(8)
        };
        let (mut left, mut right) = (
            datagram_end(&a, &config).await,
            datagram_end(&b, &config).await,
        );
        let to = UdAddress {
            address: address(&b).await,
            qpn: right.qpn,
            qkey: QKEY,
            sl: 0,
            gid: None,
        };
        let from = a.memory(4096, ALL).await;
        let into = b.memory(4096, ALL).await;
        for round in 0..ROUNDS {
            let data = pattern(usize::from(PIECES) * (1 + round % 80), round);
            from.write(&data);
            let gathered = pieces(&from, data.len());
            let inline = &data[..data.len().min(200)];
            let (payload, data) = if round % 2 == 0 {
                (Payload::Gather(&gathered), &data[..])
            } else {
                (Payload::Inline(inline, &[]), inline)
            };
            right.receive(1, &[into.sge(0, 4096)]);
            let mut send = request(2, SEND, payload);
            send.to = Some(to);
            left.post(&send);
            left.queues.ring(left.slot);
            expect(&mut right, &b, &into, mlx4_hw::mad_ifc::GRH_LEN, data).await;
            sent(&mut left, &a).await;
        }
    });
}

async fn datagram_end(node: &Node, config: &QpConfig) -> End {
    let mut queues = node.device.create_queues(32, 0).await.unwrap();
    let (slot, qpn) = node.device.create_qp(&mut queues, config).await.unwrap();
    node.device.ready_to_send(qpn, None, &RC).await.unwrap();
    End { queues, slot, qpn }
}

//! Sends that the card reads ahead of their doorbell.

use fabric::FabricConfig;
use mlx4_hw::qp::Service;
use mlx4_hw::wqe::{
    COMPLETION_WANTED, ControlFlags, ControlSegment, ControlSize, INLINE_HEADER_LEN, InlineHeader,
    STAMP, WqeOpcode,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::bench::Bench;
use crate::bench::queues::{Connection, Cq, Mr, Qp, all_rights};

/// Bytes inline in the first chunk, and in the second.
const FIRST: usize = 44;
const SECOND: usize = 60;

/// Builds a SEND of two chunks, all bytes of its message being `fill`.
fn inline_send(fill: u8) -> Vec<u8> {
    let mut control = ControlSegment::new_zeroed();
    control.size = ControlSize::new().with_units(8);
    control.flags = ControlFlags::new().with_completion(COMPLETION_WANTED);
    let mut bytes = control.as_bytes().to_vec();
    for len in [FIRST, SECOND] {
        let header = InlineHeader::new()
            .with_inline(true)
            .with_bytes(u32::try_from(len).unwrap());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(vec![fill; len]);
    }
    bytes
}

struct Pair {
    bench: Bench,
    a: Qp,
    _cq_a: Cq,
    b: Qp,
    cq_b: Cq,
    into: Mr,
}

impl Pair {
    /// Creates two connected queue pairs, the first of which has sent once.
    fn new() -> Self {
        let mut bench = Bench::new(2, FabricConfig::default());
        let (a, cq_a, b, cq_b) = bench.pair(Service::RC, Connection::default());
        let into = bench.make_mr(1, 4096, all_rights());
        let mut pair = Self {
            bench,
            a,
            _cq_a: cq_a,
            b,
            cq_b,
            into,
        };
        assert_eq!(pair.send(1), [1; FIRST + SECOND]);
        pair
    }

    /// Sends a message of equal bytes, and returns what arrives.
    fn send(&mut self, fill: u8) -> Vec<u8> {
        let (bench, into) = (&mut self.bench, self.into);
        bench.post_receive(&mut self.b, into.addr, 4096, into.key);
        bench.post_bytes(&mut self.a, WqeOpcode::SEND, &inline_send(fill));
        bench.ring_send(&self.a);
        let cqe = bench.poll_cq(&mut self.cq_b).expect("a message arrives");
        bench.nodes[1]
            .ram
            .bytes(into.addr, cqe.byte_count.get() as usize)
    }

    /// Writes the second chunk of the next send without its first dword, or with it.
    fn write_second(&self, fill: u8, with_header: bool) {
        let ram = &self.bench.nodes[0].ram;
        let (at, bytes) = (self.a.slot(self.a.sent) + 64, inline_send(fill));
        ram.put(
            at + INLINE_HEADER_LEN as u64,
            &bytes[64 + INLINE_HEADER_LEN..],
        );
        if with_header {
            ram.put(at, &bytes[64..64 + INLINE_HEADER_LEN]);
        } else {
            assert_eq!(ram.bytes(at, 4), STAMP.to_be_bytes());
        }
    }

    fn read_ahead(&mut self) {
        let (node, now) = (self.bench.nodes[0].index, self.bench.now);
        self.bench.cluster.read_ahead(node, now, 1);
    }
}

#[test]
fn a_chunk_read_ahead_is_used_once_its_first_dword_is_written() {
    let mut pair = Pair::new();
    pair.write_second(2, true);
    pair.read_ahead();
    let got = pair.send(3);
    assert_eq!(
        (&got[..FIRST], &got[FIRST..]),
        (&[3; FIRST][..], &[2; SECOND][..])
    );
    // It was used up.
    assert_eq!(pair.send(4), [4; FIRST + SECOND]);
}

#[test]
fn a_chunk_read_ahead_is_read_again_while_it_is_stamped() {
    let mut pair = Pair::new();
    pair.write_second(2, false);
    pair.read_ahead();
    assert_eq!(pair.send(3), [3; FIRST + SECOND]);
}

//! Partitions: who may reach whom, and what is counted of those who may not.

use fabric::FabricConfig;
use hal::Duration;
use mad::smp::{PKeyTable, Smp};
use mad::{Attribute, Method, Status};
use mlx4_hw::command::Opcode;
use mlx4_hw::cq::Syndrome;
use mlx4_hw::qp::{OptionalParameters, Service};
use mlx4_hw::wqe::WqeOpcode;
use zerocopy::big_endian::U16;

use crate::bench::Bench;
use crate::bench::queues::{Connection, Cq, Qp, Send, all_rights};

/// Sets the partition table of a port as a subnet manager does.
pub(crate) fn set_partitions(bench: &mut Bench, node: usize, keys: &[u16]) {
    let mut table = PKeyTable::default();
    for (place, key) in table.0.iter_mut().zip(keys) {
        *place = U16::new(*key);
    }
    let smp = Smp {
        data: mad::smp::data_of(&table),
        ..Smp::request(Method::SET, Attribute::PKEY_TABLE, 0, 1)
    };
    bench
        .command(node, Opcode::MAD_IFC, 1, 1, &smp.to_mad())
        .unwrap();
    let answer = Smp::parse(&bench.output::<[u8; 256]>(node)).unwrap();
    assert_eq!(answer.header.status(), Status::OK);
}

fn connection() -> Connection {
    Connection {
        retries: 1,
        ..Connection::default()
    }
}

/// A connected pair whose keys are at these places of the tables.
fn pair(bench: &mut Bench, service: Service, indices: [u8; 2]) -> (Qp, Cq, Qp, Cq) {
    let (mut a, cq_a, mut b, cq_b) = bench.pair(service, connection());
    for (qp, index) in [(&mut a, indices[0]), (&mut b, indices[1])] {
        qp.context.primary_path.pkey_index = index;
        let optional = OptionalParameters::new().with_pkey_index(true);
        bench.transition(qp, Opcode::RTS2RTS_QP, optional).unwrap();
    }
    (a, cq_a, b, cq_b)
}

/// Writes through a connection and returns how that ended.
fn write(bench: &mut Bench, indices: [u8; 2]) -> Syndrome {
    let (mut a, mut cq_a, _, _) = pair(bench, Service::RC, indices);
    let from = bench.make_mr(0, 4096, all_rights());
    let into = bench.make_mr(1, 4096, all_rights());
    let send = Send {
        opcode: WqeOpcode::RDMA_WRITE,
        remote: Some((into.addr, into.key)),
        pieces: &[(from.addr, 64, from.key)],
        imm: 0,
        signalled: true,
    };
    bench.post(&mut a, &send);
    bench.ring_send(&a);
    bench.run(Duration::from_millis(100));
    let ends = bench.drain(&mut cq_a);
    assert_eq!(ends.len(), 1);
    ends[0].2
}

fn violations(bench: &mut Bench, node: usize) -> u16 {
    bench.port_info(node).p_key_violations.get()
}

#[test]
fn a_connection_needs_keys_of_one_partition_of_which_one_is_full() {
    let mut bench = Bench::new(2, FabricConfig::default());
    set_partitions(&mut bench, 0, &[0xffff, 0x0001, 0x8002]);
    set_partitions(&mut bench, 1, &[0xffff, 0x0001, 0x8001]);
    assert_eq!(write(&mut bench, [0, 0]), Syndrome::NONE);
    assert_eq!(write(&mut bench, [1, 2]), Syndrome::NONE, "limited to full");
    assert_eq!(violations(&mut bench, 1), 0);
    let dropped = Syndrome::TRANSPORT_RETRY_EXC_ERR;
    assert_eq!(write(&mut bench, [1, 1]), dropped, "two limited members");
    assert_eq!(write(&mut bench, [2, 2]), dropped, "two partitions");
    assert_eq!(write(&mut bench, [0, 2]), dropped, "two partitions");
    assert_eq!(write(&mut bench, [7, 7]), dropped, "empty entries");
    // Two packets of each: the request and one retry.
    assert_eq!(violations(&mut bench, 1), 8);
    assert_eq!(violations(&mut bench, 0), 0);
}

#[test]
fn a_datagram_of_another_partition_is_dropped_and_counted() {
    let mut bench = Bench::new(2, FabricConfig::default());
    set_partitions(&mut bench, 0, &[0xffff, 0x8001]);
    set_partitions(&mut bench, 1, &[0xffff, 0x0001]);
    for (index, arrives) in [(0, true), (1, false)] {
        let (mut a, _, mut b, mut cq_b) = crate::datagrams::datagram_pair(&mut bench);
        a.context.primary_path.pkey_index = index;
        let optional = OptionalParameters::new().with_pkey_index(true);
        bench.transition(&a, Opcode::RTS2RTS_QP, optional).unwrap();
        let from = bench.make_mr(0, 4096, all_rights());
        let into = bench.make_mr(1, 4096, all_rights());
        bench.post_receive(&mut b, into.addr, 4096, into.key);
        crate::datagrams::post_to(&mut bench, &mut a, &b, (from.addr, 8, from.key));
        assert_eq!(bench.poll_cq(&mut cq_b).is_some(), arrives);
        assert_eq!(violations(&mut bench, 1), u16::from(!arrives));
    }
}

/// Management datagrams may come from any partition of the port (IBA 1.3, 10.9.9).
#[test]
fn the_agent_on_qp1_is_in_all_partitions_of_its_port() {
    let mut bench = Bench::new(2, FabricConfig::default());
    set_partitions(&mut bench, 0, &[0xffff, 0x8005]);
    set_partitions(&mut bench, 1, &[0x7fff, 0x0005]);
    for (index, arrives) in [(0, true), (1, true)] {
        assert_eq!(ask_counters(&mut bench, index), arrives, "{index}");
    }
    set_partitions(&mut bench, 1, &[0x7fff]);
    assert!(!ask_counters(&mut bench, 1));
    assert_eq!(violations(&mut bench, 1), 1);
}

/// Asks node 1's performance agent from a queue pair of node 0, and returns whether it answers.
fn ask_counters(bench: &mut Bench, index: u8) -> bool {
    let received = |bench: &Bench| {
        bench
            .cluster
            .counters(bench.nodes[0].index)
            .packets_received
    };
    let (mut a, _, _, _) = crate::datagrams::datagram_pair(bench);
    a.context.primary_path.pkey_index = index;
    let optional = OptionalParameters::new().with_pkey_index(true);
    bench.transition(&a, Opcode::RTS2RTS_QP, optional).unwrap();
    let from = bench.make_mr(0, 4096, all_rights());
    let mut mad = [0; 256];
    mad[..4].copy_from_slice(&[1, mad::MgmtClass::PERF.0, 1, Method::GET.0]);
    mad[17] = 1; // ClassPortInfo
    bench.nodes[0].ram.put(from.addr, &mad);
    let before = received(bench);
    crate::datagrams::post_to_agent(bench, &mut a, 1, (from.addr, 256, from.key));
    received(bench) > before
}

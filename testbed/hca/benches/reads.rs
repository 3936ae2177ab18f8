//! Benchmark of READs: how many of 4 KB, with a doorbell each, the model carries out in a second in
//! one process (`cargo bench -p hca_model`).
//!
//! Prints one line for `cargo xtask bench hca`.
#![forbid(unsafe_code)]

#[path = "../tests/model/bench/mod.rs"]
#[expect(dead_code, reason = "what the tests need beside this is not used here")]
mod bench;

use std::time::Instant;

use bench::Bench;
use bench::queues::{Connection, Send, all_rights};
use fabric::FabricConfig;
use mlx4_hw::qp::Service;
use mlx4_hw::wqe::WqeOpcode;

const READS: u32 = 200_000;

fn main() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut qp, mut cq, _peer, _) = bench.pair(Service::RC, Connection::default());
    let local = bench.make_mr(0, 4096, all_rights());
    let remote = bench.make_mr(1, 4096, all_rights());
    let pieces = [(local.addr, 4096, local.key)];
    let read = Send {
        opcode: WqeOpcode::RDMA_READ,
        remote: Some((remote.addr, remote.key)),
        pieces: &pieces,
        imm: 0,
        signalled: true,
    };
    let start = Instant::now();
    for _ in 0..READS {
        bench.post(&mut qp, &read);
        bench.ring_send(&qp);
        bench
            .poll_cq(&mut cq)
            .expect("completed within its doorbell");
    }
    let rate = f64::from(READS) / start.elapsed().as_secs_f64();
    println!("reads_per_second\t{rate:.0}");
}

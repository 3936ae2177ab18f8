//! Completions: when they are reported, and what they carry beside their end.

use std::sync::atomic::Ordering;

use fabric::FabricConfig;
use hal::Duration;
use mlx4_hw::bits::QueueBuffer;
use mlx4_hw::command::{CmdStatus, Opcode, op_modifier};
use mlx4_hw::cq::{CqContext, CqSize, Syndrome};
use mlx4_hw::eq::EventType;
use mlx4_hw::qp::Service;
use mlx4_hw::regs::{self, ARM_NEXT, CqArm};
use mlx4_hw::wqe::WqeOpcode;
use zerocopy::{FromZeros, IntoBytes};

use crate::bench::queues::{Connection, Cq, Qp, Send};
use crate::bench::{Bench, UAR};

const NOP: Send<'_> = Send {
    opcode: WqeOpcode::NOP,
    remote: None,
    pieces: &[],
    imm: 0,
    signalled: true,
};

fn arm(bench: &mut Bench, cq: &Cq) {
    let arm = CqArm::new().with_command(ARM_NEXT).with_cqn(cq.cqn);
    let words = [u32::from(arm).to_be_bytes(), cq.consumer.to_be_bytes()].concat();
    let offset = UAR as usize * regs::UAR_PAGE_LEN + regs::CQ_DOORBELL;
    bench.ring(cq.node, offset, &words);
}

fn post(bench: &mut Bench, qp: &mut Qp, count: u32) {
    for _ in 0..count {
        bench.post(qp, &NOP);
    }
    bench.ring_send(qp);
}

/// Counts the completion events since it was last asked.
fn events(bench: &mut Bench) -> usize {
    let events = bench.events(0);
    let completions = events
        .iter()
        .filter(|event| event.event == EventType::COMPLETION);
    completions.count()
}

/// MODIFY_CQ, as `ethtool -C` and `ibv_modify_cq` lead to it.
#[test]
fn a_moderated_queue_reports_so_many_completions_or_those_of_a_while() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (mut a, mut cq, _, _) = bench.pair(Service::RC, Connection::default());
    let mut wanted = CqContext::new_zeroed();
    (wanted.period, wanted.max_count) = (50.into(), 4.into());
    let op = op_modifier::MODIFY_CQ_MODERATION;
    bench
        .command(0, Opcode::MODIFY_CQ, op, cq.cqn, wanted.as_bytes())
        .unwrap();
    events(&mut bench);
    arm(&mut bench, &cq);
    post(&mut bench, &mut a, 3);
    assert_eq!(events(&mut bench), 0, "fewer than four, and no time passed");
    post(&mut bench, &mut a, 1);
    assert_eq!(events(&mut bench), 1);
    bench.drain(&mut cq);
    arm(&mut bench, &cq);
    post(&mut bench, &mut a, 1);
    let before = bench.now;
    assert_eq!(events(&mut bench), 0);
    bench.run(Duration::from_micros(50));
    bench.step();
    assert_eq!(events(&mut bench), 1);
    assert!(bench.now.since(before) >= Duration::from_micros(50));
    // One that is gone is not reported.
    bench.drain(&mut cq);
    arm(&mut bench, &cq);
    post(&mut bench, &mut a, 1);
    bench.command_raw(0, Opcode::QP_2RST, 0, a.qpn, 0).unwrap();
    let raised = bench.nodes[0].ram.interrupts.load(Ordering::Relaxed);
    bench
        .command_raw(0, Opcode::HW2SW_CQ, 1, cq.cqn, 0)
        .unwrap();
    bench.run(Duration::from_millis(1));
    assert_eq!(events(&mut bench), 0);
    assert_eq!(
        bench.nodes[0].ram.interrupts.load(Ordering::Relaxed),
        raised
    );
}

#[test]
fn completions_carry_the_clocks_time_where_the_queue_asks_for_it() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let mut times = Vec::new();
    for stamped in [true, false] {
        let mut cq = bench.make_cq_with(0, 6, |context| context.flags.set_timestamps(stamped));
        let other = bench.make_cq(1, 6);
        let mut a = bench.make_qp(0, Service::RC, &cq);
        let b = bench.make_qp(1, Service::RC, &other);
        bench.connect(&mut a, (1, b.qpn), Connection::default());
        bench.now = bench.now + Duration::from_millis(7);
        post(&mut bench, &mut a, 1);
        times.push(bench.poll_cq(&mut cq).unwrap().timestamp());
    }
    let cycles = u64::try_from(u128::from(bench.now.nanos) * 427 / 1000).unwrap();
    assert!((cycles - 7 * 427_000 - 1000..cycles).contains(&times[0]));
    assert_eq!(times[1], 0);
}

#[test]
fn a_completion_queue_that_can_not_have_its_new_buffer_keeps_the_old_one() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let mut cq = bench.make_cq(0, 2);
    let cq_b = bench.make_cq(1, 4);
    let mut a = bench.make_qp(0, Service::RC, &cq);
    let mut b = bench.make_qp(1, Service::RC, &cq_b);
    bench.connect(&mut a, (1, b.qpn), Connection::default());
    bench.connect(&mut b, (0, a.qpn), Connection::default());
    let mut wanted = CqContext::new_zeroed();
    wanted.size = CqSize::new().with_log_size(3);
    // Of a translation that nothing is mapped for.
    wanted.buffer = QueueBuffer::new(1 << 38, 12);
    let resize = op_modifier::MODIFY_CQ_RESIZE;
    let refused = bench.command(0, Opcode::MODIFY_CQ, resize, cq.cqn, wanted.as_bytes());
    assert_eq!(refused, Err(CmdStatus::ICM_ERROR));
    post(&mut bench, &mut a, 1);
    assert_eq!(bench.drain(&mut cq), [(true, 0, Syndrome::NONE)]);
}

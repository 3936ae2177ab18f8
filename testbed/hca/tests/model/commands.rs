//! Commands: event mode, refusals, states.

use mad::smp::Smp;
use mad::{Attribute, Method};
use mlx4_hw::command::{CmdStatus, Opcode};
use mlx4_hw::eq::EventType;
use mlx4_hw::qp::{OptionalParameters, QpMailbox, QpState, Service};
use mlx4_hw::query_dev_cap::QueryDevCap;
use mlx4_hw::regs;

use std::sync::atomic::Ordering;

use crate::bench::queues::{Connection, all_rights};
use crate::bench::{Bench, EQN};
use fabric::FabricConfig;

#[test]
fn a_nop_in_event_mode_frees_the_register_and_raises_an_event() {
    let mut bench = Bench::new(1, FabricConfig::default());
    bench.events(0);
    bench.arm_eq(0);
    let before = bench.cluster.counters(bench.nodes[0].index).interrupts;
    bench.nop_by_event(0);
    let events = bench.events(0);
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].event, events[0].command().token.get()),
        (EventType::COMMAND, 0x1234)
    );
    assert_eq!(
        bench.cluster.counters(bench.nodes[0].index).interrupts,
        before + 1
    );
}

#[test]
fn what_is_not_known_or_not_yet_possible_is_refused() {
    let mut bench = Bench::cold(1, FabricConfig::default());
    assert_eq!(
        bench.command_raw(0, Opcode::QUERY_DEV_CAP, 0, 0, 0),
        Err(CmdStatus::BAD_SYS_STATE)
    );
    assert_eq!(
        bench.command_raw(0, Opcode::RUN_FW, 0, 0, 0),
        Err(CmdStatus::BAD_SYS_STATE)
    );
    assert_eq!(
        bench.command_raw(0, Opcode(0x7f), 0, 0, 0),
        Err(CmdStatus::BAD_OP)
    );
    bench.bring_up(0);
    assert_eq!(
        bench.command_raw(0, Opcode(0x7f), 0, 0, 0),
        Err(CmdStatus::BAD_OP)
    );
    assert_eq!(
        bench.command_raw(0, Opcode::QUERY_CQ, 0, 0x300, 0),
        Err(CmdStatus::BAD_RES_STATE)
    );
    assert_eq!(
        bench.command_raw(0, Opcode::HW2SW_MPT, 1, 0x200, 0),
        Err(CmdStatus::BAD_RES_STATE)
    );
    assert_eq!(
        bench.command_raw(0, Opcode::HW2SW_MPT, 1, 0x10, 0),
        Err(CmdStatus::BAD_RESOURCE)
    );
    assert_eq!(
        bench.command_raw(0, Opcode::HW2SW_MPT, 1, 0x10_0000, 0),
        Err(CmdStatus::BAD_INDEX)
    );
    bench
        .command_raw(0, Opcode::QUERY_DEV_CAP, 0, 0, 0)
        .unwrap();
    let caps: QueryDevCap = bench.output(0);
    assert_eq!(
        (
            caps.ports.get(),
            caps.log_reserved_qps.get(),
            caps.qpc_entry_len.get()
        ),
        (1, 6, 0x100)
    );
    assert!(caps.capabilities.port_management_events() && !caps.capabilities.roce());
}

/// Checks every transition from every state: only the legal ones succeed.
#[test]
fn queue_pairs_change_state_only_as_they_may() {
    let transitions = [
        (Opcode::RST2INIT_QP, Some(QpState::RST), QpState::INIT),
        (Opcode::INIT2INIT_QP, Some(QpState::INIT), QpState::INIT),
        (Opcode::INIT2RTR_QP, Some(QpState::INIT), QpState::RTR),
        (Opcode::RTR2RTS_QP, Some(QpState::RTR), QpState::RTS),
        (Opcode::RTS2RTS_QP, Some(QpState::RTS), QpState::RTS),
        (Opcode::RTS2SQD_QP, Some(QpState::RTS), QpState::SQD),
        (Opcode::SQD2SQD_QP, Some(QpState::SQD), QpState::SQD),
        (Opcode::SQD2RTS_QP, Some(QpState::SQD), QpState::RTS),
        (Opcode::SQERR2RTS_QP, Some(QpState::SQER), QpState::RTS),
        (Opcode::QP_2ERR, None, QpState::ERR),
    ];
    let ways: [(&[Opcode], QpState); 6] = [
        (&[], QpState::INIT),
        (&[Opcode::QP_2RST], QpState::RST),
        (&[Opcode::INIT2RTR_QP], QpState::RTR),
        (&[Opcode::INIT2RTR_QP, Opcode::RTR2RTS_QP], QpState::RTS),
        (
            &[Opcode::INIT2RTR_QP, Opcode::RTR2RTS_QP, Opcode::RTS2SQD_QP],
            QpState::SQD,
        ),
        (&[Opcode::QP_2ERR], QpState::ERR),
    ];
    let mut bench = Bench::new(1, FabricConfig::default());
    let cq = bench.make_cq(0, 6);
    for (way, state) in ways {
        for (opcode, from, to) in transitions {
            let mut qp = bench.make_qp(0, Service::RC, &cq);
            qp.context.mtu = mlx4_hw::qp::MtuMessage::new().with_mtu_code(5);
            for step in way {
                bench
                    .transition(&qp, *step, OptionalParameters::new())
                    .unwrap();
            }
            let allowed = from.map_or(state != QpState::RST, |from| from == state);
            let outcome = bench.transition(&qp, opcode, OptionalParameters::new());
            let expected = if allowed {
                Ok(())
            } else {
                Err(CmdStatus::BAD_QP_STATE)
            };
            assert_eq!(outcome.map(drop), expected, "{opcode} in {state}");
            bench
                .command_raw(0, Opcode::QUERY_QP, 0, qp.qpn, 0)
                .unwrap();
            let found = bench.output::<QpMailbox>(0).context.flags.state();
            assert_eq!(
                found,
                if allowed { to } else { state },
                "{opcode} in {state}"
            );
        }
    }
}

#[test]
fn a_region_belongs_to_one_side_at_a_time() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let region = bench.make_mr(0, 4096, all_rights());
    bench
        .command_raw(0, Opcode::QUERY_MPT, 0, region.index, 0)
        .unwrap();
    let entry: mlx4_hw::mpt::Mpt = bench.output(0);
    assert_ne!(entry.flags.status(), mlx4_hw::mpt::MPT_STATUS_SOFTWARE);
    let again = bench.command(
        0,
        Opcode::SW2HW_MPT,
        0,
        region.index,
        zerocopy::IntoBytes::as_bytes(&entry),
    );
    assert_eq!(again, Err(CmdStatus::BAD_RES_STATE));
    bench
        .command_raw(0, Opcode::HW2SW_MPT, 1, region.index, 0)
        .unwrap();
    assert_eq!(
        bench.command_raw(0, Opcode::HW2SW_MPT, 1, region.index, 0),
        Err(CmdStatus::BAD_RES_STATE)
    );
}

/// Linux `mlx4/eq.c`, `mlx4_interrupt`, with `mlx4_core msi_x=0`: the handler clears the pin, then
/// takes the events.
#[test]
fn without_messages_an_event_asserts_the_pin_until_it_is_cleared() {
    let mut bench = Bench::new(1, FabricConfig::default());
    bench.events(0);
    bench.command_raw(0, Opcode::QUERY_FW, 0, 0, 0).unwrap();
    let clear = bench
        .output::<mlx4_hw::query_fw::QueryFw>(0)
        .clear_interrupt
        .offset
        .get();
    bench
        .command_raw(0, Opcode::QUERY_ADAPTER, 0, 0, 0)
        .unwrap();
    let pin = bench
        .output::<mlx4_hw::query_adapter::QueryAdapter>(0)
        .interrupt_pin;
    let register = usize::try_from(clear).unwrap() + if pin < 32 { 4 } else { 0 };
    bench.enable_messages(0, false);
    let asserted = |bench: &Bench| bench.nodes[0].ram.pin.load(Ordering::Relaxed);
    for _ in 0..3 {
        bench.arm_eq(0);
        assert!(!asserted(&bench));
        bench.nop_by_event(0);
        assert!(asserted(&bench), "the event asks for an interrupt");
        bench.write(0, register, 1 << ((pin + 1) % 32));
        assert!(asserted(&bench), "another pin is cleared");
        bench.write(0, register, 1 << (pin % 32));
        assert!(!asserted(&bench));
        assert_eq!(bench.events(0).len(), 1);
    }
    bench.arm_eq(0);
    bench.nop_by_event(0);
    bench.write(0, regs::RESET, regs::RESET_VALUE);
    assert!(!asserted(&bench), "a reset lets the pin go");
}

/// Checks the path of `ibv_rereg_mr` and `ibv_dereg_mr` (Linux `mr.c`: `mlx4_mr_hw_get_mpt`,
/// `mlx4_mr_hw_write_mpt`): the entry becomes the device's again by its status byte, not by
/// SW2HW_MPT.
#[test]
fn a_region_changed_in_icm_is_the_devices_again() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let region = bench.make_mr(0, 4096, all_rights());
    for _ in 0..2 {
        bench
            .command_raw(0, Opcode::HW2SW_MPT, 1, region.index, 0)
            .unwrap();
        bench.put_mpt(0, region.index, &[0]);
        bench.command_raw(0, Opcode::SYNC_TPT, 0, 0, 0).unwrap();
    }
    bench
        .command_raw(0, Opcode::HW2SW_MPT, 0, region.index, 0)
        .unwrap();
    let entry: mlx4_hw::mpt::Mpt = bench.output(0);
    bench
        .command(
            0,
            Opcode::SW2HW_MPT,
            0,
            region.index,
            zerocopy::IntoBytes::as_bytes(&entry),
        )
        .unwrap();
}

#[test]
fn a_queue_in_use_is_not_given_back() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let (a, cq, _b, _) = bench.pair(Service::RC, Connection::default());
    assert_eq!(
        bench.command_raw(0, Opcode::HW2SW_CQ, 1, cq.cqn, 0),
        Err(CmdStatus::RESOURCE_BUSY)
    );
    bench.command_raw(0, Opcode::QP_2RST, 2, a.qpn, 0).unwrap();
    bench
        .command_raw(0, Opcode::HW2SW_CQ, 1, cq.cqn, 0)
        .unwrap();
}

#[test]
fn an_event_queue_that_is_not_emptied_overflows_and_stops() {
    let mut bench = Bench::new(1, FabricConfig::default());
    bench.events(0);
    for _ in 0..200 {
        bench.nop_by_event(0);
    }
    bench.command_raw(0, Opcode::QUERY_EQ, 0, EQN, 0).unwrap();
    let context: mlx4_hw::eq::EqContext = bench.output(0);
    assert_eq!(context.flags.status(), mlx4_hw::eq::STATUS_OVERFLOW);
}

/// iPXE (`hermon.c`, `HERMON_QPN_RANDOM_MASK`) takes the bits of a number above the table's at
/// random, so that a peer's old packets do not find a new queue pair.
#[test]
fn a_queue_pairs_number_may_have_more_bits_than_its_table() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let cq = bench.make_cq(0, 6);
    bench.nodes[0].next_qpn |= 0xb1_c000;
    let high = bench.make_qp(0, Service::RC, &cq);
    let mut low = bench.make_qp(0, Service::RC, &cq);
    bench
        .command_raw(0, Opcode::QUERY_QP, 0, high.qpn, 0)
        .unwrap();
    let found = bench.output::<QpMailbox>(0).context.flags.state();
    assert_eq!(found, QpState::INIT);
    // There is one context behind both numbers.
    low.qpn = high.qpn & 0xfff;
    let shared = bench.transition(&low, Opcode::RST2INIT_QP, OptionalParameters::new());
    assert_eq!(shared, Err(CmdStatus::BAD_QP_STATE));
}

/// iPXE takes any status for an error, and Linux sets the bit itself (`hw/mlx4/mad.c`,
/// `ib_process_mad`).
#[test]
fn the_agents_answer_does_not_say_that_it_is_on_its_way_back() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let request = Smp::request(Method::GET, Attribute::NODE_INFO, 0, 7);
    let request = request.directed(&[1]).unwrap().to_mad();
    bench.command(0, Opcode::MAD_IFC, 1, 1, &request).unwrap();
    let answer: mad::Mad = bench.output(0);
    let answer = Smp::parse(&answer).unwrap();
    assert_eq!(answer.header.method, Method::GET_RESP);
    assert_eq!(answer.header.status.get(), 0);
}

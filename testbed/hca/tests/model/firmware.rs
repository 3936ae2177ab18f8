//! Firmware's own rules: the command register, INIT_HCA, what contexts may name, management keys,
//! the maker's datagrams, traps, and diagnostic counters.

use fabric::FabricConfig;
use hal::Duration;
use hca_model::Board;
use mad::smp::{PortInfo, Smp, TRAP_LOCAL_CHANGES};
use mad::{Attribute, Method, Status};
use mlx4_hw::bits::{Low, Low24, QueueBuffer, TableBase};
use mlx4_hw::command::{CmdStatus, Doorbell, Opcode, hcr, op_modifier};
use mlx4_hw::cq::{CqContext, CqSize};
use mlx4_hw::eq::EventType;
use mlx4_hw::init_hca::{InitHca, LOG_EQS_SYSTEM};
use mlx4_hw::mpt::{HwKey, Mpt, MptFlags, MptPd};
use mlx4_hw::qp::{QpMailbox, Service};
use mlx4_hw::query_dev_cap::QueryDevCap;
use mlx4_hw::regs;
use mlx4_hw::set_port::{SetPortChange, SetPortIb};
use mlx4_hw::wqe::WqeOpcode;
use zerocopy::{FromZeros, IntoBytes};

use crate::bench::queues::{Connection, Send, all_rights};
use crate::bench::{Bench, PD, UAR, profile};

fn nop(toggle: bool, by_event: bool) -> u32 {
    Doorbell::new()
        .with_go(true)
        .with_toggle(toggle)
        .with_event(by_event)
        .with_opcode(Opcode::NOP)
        .into()
}

/// Linux `mlx4/cmd.c`, `mlx4_cmd_post`: the bit is inverted with each command.
#[test]
fn a_command_whose_toggle_is_that_of_the_last_is_none() {
    let mut bench = Bench::cold(1, FabricConfig::default());
    bench.write(0, regs::RESET, regs::RESET_VALUE);
    let commands = |bench: &Bench| bench.cluster.counters(bench.nodes[0].index).commands;
    for (toggle, taken) in [(false, 0), (true, 1), (true, 1), (false, 2)] {
        bench.write(0, regs::HCR + hcr::DOORBELL, nop(toggle, false));
        assert_eq!(commands(&bench), taken);
    }
}

fn slow() -> Board {
    Board {
        command_time: Duration::from_micros(100),
        ..Board::default()
    }
}

#[test]
fn a_command_keeps_the_register_while_firmware_works_at_it() {
    let mut bench = Bench::with_boards(1, FabricConfig::default(), &slow());
    bench.write(0, regs::RESET, regs::RESET_VALUE);
    bench.write(0, regs::HCR + hcr::DOORBELL, nop(true, false));
    let busy = |bench: &mut Bench| Doorbell::from(bench.read(0, regs::HCR + hcr::DOORBELL)).go();
    assert!(busy(&mut bench));
    // Another one does not enter.
    bench.write(0, regs::HCR + hcr::DOORBELL, nop(false, false));
    bench.now = bench.now + Duration::from_micros(99);
    assert!(busy(&mut bench));
    bench.now = bench.now + Duration::from_micros(302);
    assert!(!busy(&mut bench));
    assert_eq!(bench.cluster.counters(bench.nodes[0].index).commands, 1);
    assert_eq!(bench.cluster.poll(bench.now), None);
}

#[test]
fn commands_by_event_end_in_another_order() {
    let mut bench = Bench::with_boards(1, FabricConfig::default(), &slow());
    bench.patient = true;
    bench.bring_up(0);
    bench.events(0);
    let mut order = Vec::new();
    for token in 0..8_u16 {
        let toggle = bench.next_toggle(0);
        bench.write(0, regs::HCR + hcr::TOKEN, hcr::token(token));
        bench.write(0, regs::HCR + hcr::DOORBELL, nop(toggle, true));
        bench.now = bench.now + Duration::from_micros(26);
        let register = Doorbell::from(bench.read(0, regs::HCR + hcr::DOORBELL));
        assert!(!register.go() && register.toggle() == toggle);
    }
    bench.run(Duration::from_millis(2));
    for event in bench.events(0) {
        if event.event == EventType::COMMAND {
            order.push(event.command().token.get());
        }
    }
    assert_ne!(order, (0..8).collect::<Vec<_>>());
    order.sort_unstable();
    assert_eq!(order, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_profile_is_refused_whose_tables_overlap_or_are_too_large() {
    let refused = |change: fn(&mut InitHca)| {
        let mut bench = Bench::cold(1, FabricConfig::default());
        bench.bring_up(0);
        bench.command_raw(0, Opcode::CLOSE_HCA, 0, 0, 0).unwrap();
        let mut init = profile();
        change(&mut init);
        bench.command(0, Opcode::INIT_HCA, 0, 0, init.as_bytes())
    };
    assert_eq!(refused(|_| ()), Ok(0));
    let overlaps: [fn(&mut InitHca); 6] = [
        |init| init.altc = init.auxc,
        |init| init.dmpt = (init.mtt.get() - 0x1000).into(),
        |init| init.qpc = TableBase::new(0, 11),
        |init| init.cmpt = 0.into(),
        |init| init.groups = (init.groups.get() + 0x800).into(),
        |init| init.rdmarc = TableBase::new(init.qpc.base() + 0x1000, 4),
    ];
    for change in overlaps {
        assert_eq!(refused(change), Err(CmdStatus::BAD_PARAM));
    }
    let beyond: [fn(&mut InitHca); 6] = [
        |init| init.qpc = TableBase::new(0, 5),
        |init| init.cqc = TableBase::new(init.cqc.base(), 25),
        |init| init.log_mpts = Low::new(7),
        |init| init.log_group_hash = Low::new(8),
        |init| init.eqc = TableBase::new(init.eqc.base(), 11),
        |init| {
            init.eqc = TableBase::new(init.eqc.base(), LOG_EQS_SYSTEM);
            init.system_eqs = 1025.into();
        },
    ];
    for change in beyond {
        assert_eq!(refused(change), Err(CmdStatus::EXCEED_LIM));
    }
}

#[test]
fn numbers_need_their_pages_in_all_tables() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let cq = bench.make_cq(0, 4);
    // The auxiliary contexts of queue pairs; then the protection entries of CQs.
    let take =
        |bench: &mut Bench, icm: u64| bench.command_raw(0, Opcode::UNMAP_ICM, 0, 16, icm).unwrap();
    take(&mut bench, profile().auxc.get());
    let qp = bench.try_make_qp(0, Service::RC, &cq, |_| ());
    assert_eq!(qp.map(drop), Err(CmdStatus::ICM_ERROR));
    take(&mut bench, profile().cmpt.get() + 0x8000_0000);
    assert_eq!(
        bench.try_make_cq(0, 4, |_| ()).map(drop),
        Err(CmdStatus::ICM_ERROR)
    );
}

/// A change to an input that firmware then refuses, and its status.
type Refused<T> = (fn(&mut T), CmdStatus);

#[test]
fn contexts_name_doorbells_records_and_translations_that_can_be() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let cq = bench.make_cq(0, 4);
    let cqs: [Refused<CqContext>; 4] = [
        (
            |cq| cq.size = CqSize::new().with_log_size(4).with_uar(5),
            CmdStatus::BAD_PARAM,
        ),
        (
            |cq| cq.size = CqSize::new().with_log_size(4).with_uar(1024),
            CmdStatus::BAD_PARAM,
        ),
        (
            |cq| cq.doorbell_record = (cq.doorbell_record.get() + 4).into(),
            CmdStatus::BAD_PARAM,
        ),
        (
            |cq| cq.buffer = QueueBuffer::new(0x4000_0000, 12),
            CmdStatus::ICM_ERROR,
        ),
    ];
    for (change, status) in cqs {
        assert_eq!(bench.try_make_cq(0, 4, change).map(drop), Err(status));
    }
    let qps: [Refused<QpMailbox>; 3] = [
        (|qp| qp.context.uar = Low24::new(0x7f), CmdStatus::BAD_PARAM),
        (
            |qp| qp.context.doorbell_record = (qp.context.doorbell_record.get() + 2).into(),
            CmdStatus::BAD_PARAM,
        ),
        (
            |qp| qp.context.buffer = QueueBuffer::new(0x4000_0000, 12),
            CmdStatus::ICM_ERROR,
        ),
    ];
    for (change, status) in qps {
        let qp = bench.try_make_qp(0, Service::RC, &cq, change);
        assert_eq!(qp.map(drop), Err(status));
    }
}

#[test]
fn a_region_needs_pages_that_can_be_and_their_translations() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let mut region = |log_page: u32, len: u64, offset: u64| {
        let mut mpt = Mpt::new_zeroed();
        mpt.flags = MptFlags::new().with_status(0xf).with_region(true);
        mpt.key = HwKey::new(0x180, 1);
        mpt.pd = MptPd::new().with_pd(PD);
        (mpt.start, mpt.len) = (0x1000.into(), len.into());
        (mpt.mtt_offset, mpt.log_page) = (offset.into(), log_page.into());
        let outcome = bench.command(0, Opcode::SW2HW_MPT, 0, 0x180, mpt.as_bytes());
        let _ = bench.command_raw(0, Opcode::HW2SW_MPT, 1, 0x180, 0);
        outcome.map(drop)
    };
    assert_eq!(region(12, 0x4000, 0), Ok(()));
    assert_eq!(region(11, 0x4000, 0), Err(CmdStatus::BAD_PARAM));
    assert_eq!(region(32, 0x4000, 0), Err(CmdStatus::BAD_PARAM));
    assert_eq!(region(12, u64::MAX, 0), Err(CmdStatus::BAD_PARAM));
    assert_eq!(region(12, 0x4000, 0x1000_0000), Err(CmdStatus::ICM_ERROR));
    assert_eq!(region(12, 1 << 34, 0), Err(CmdStatus::ICM_ERROR));
}

#[test]
fn a_started_port_keeps_its_lanes_and_mtu() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let mut set = SetPortIb::new_zeroed();
    set.change = SetPortChange::new().with_change_vl_cap(true).with_vl_cap(1);
    let op = op_modifier::SET_PORT_IB;
    assert_eq!(
        bench.command(0, Opcode::SET_PORT, op, 1, set.as_bytes()),
        Err(CmdStatus::BAD_SYS_STATE)
    );
}

/// Asks the agent of node 0, with a management key, and the firmware to check it or not.
fn ask(bench: &mut Bench, smp: Smp, op: u8) -> Result<Smp, CmdStatus> {
    bench.command(0, Opcode::MAD_IFC, op, 1, &smp.to_mad())?;
    Ok(Smp::parse(&bench.output::<[u8; 256]>(0)).unwrap())
}

fn request(method: Method, key: u64, data: [u8; 64]) -> Smp {
    Smp {
        m_key: key.into(),
        data,
        ..Smp::request(method, Attribute::PORT_INFO, 0, 1)
    }
}

#[test]
fn a_management_key_protects_the_port() {
    const KEY: u64 = 0x1234;
    let mut bench = Bench::new(1, FabricConfig::default());
    for (protection, reads) in [(0_u8, true), (1, true), (2, false)] {
        let mut info = bench.port_info(0);
        (info.m_key, info.mkey_lmc) = (KEY.into(), protection << 6);
        info.speed_state.set_state(0);
        let set = request(Method::SET, 0, mad::smp::data_of(&info));
        ask(&mut bench, set, op_modifier::MAD_IFC_IGNORE_MKEY).unwrap();
        let before = bench.port_info(0).m_key_violations.get();
        let wrong = request(Method::GET, KEY + 1, [0; 64]);
        let answer = ask(&mut bench, wrong, 0);
        let seen = answer.map(|answer| {
            let info: PortInfo = mad::smp::attribute(&answer.data).unwrap();
            info.m_key.get()
        });
        let expected = match protection {
            0 => Ok(KEY),
            1 => Ok(0),
            _ => Err(CmdStatus::BAD_PKT),
        };
        assert_eq!((seen, reads), (expected, expected.is_ok()));
        let wrong = request(Method::SET, KEY + 1, set.data);
        assert_eq!(ask(&mut bench, wrong, 0).map(drop), Err(CmdStatus::BAD_PKT));
        let violations = bench.port_info(0).m_key_violations.get() - before;
        assert_eq!(violations, if reads { 1 } else { 2 });
        let right = request(Method::GET, KEY, [0; 64]);
        assert_eq!(
            ask(&mut bench, right, 0).unwrap().header.status(),
            Status::OK
        );
    }
}

/// A manager that lost its key gets the port back: the protection lasts for a lease from the first
/// request without the key, unless one with it comes before.
#[test]
fn a_management_keys_protection_ends_with_its_lease() {
    const KEY: u64 = 0x1234;
    const LEASE: u16 = 15;
    let mut bench = Bench::new(1, FabricConfig::default());
    let mut info = bench.port_info(0);
    (info.m_key, info.mkey_lmc) = (KEY.into(), 2 << 6);
    info.m_key_lease = LEASE.into();
    info.speed_state.set_state(0);
    let set = request(Method::SET, 0, mad::smp::data_of(&info));
    ask(&mut bench, set, op_modifier::MAD_IFC_IGNORE_MKEY).unwrap();
    let seen = |bench: &mut Bench, key: u64| {
        let answer = ask(bench, request(Method::GET, key, [0; 64]), 0)?;
        let info: PortInfo = mad::smp::attribute(&answer.data).unwrap();
        Ok(info.m_key.get())
    };
    let refused = Err(CmdStatus::BAD_PKT);
    let wait =
        |bench: &mut Bench, seconds: u64| bench.now = bench.now + Duration::from_secs(seconds);
    // Nobody asked: nothing runs.
    wait(&mut bench, 60);
    assert_eq!(seen(&mut bench, 1), refused);
    wait(&mut bench, 10);
    // The first request counts, not this one.
    assert_eq!(seen(&mut bench, 1), refused);
    // The key's holder lives.
    assert_eq!(seen(&mut bench, KEY), Ok(KEY));
    wait(&mut bench, 10);
    assert_eq!(seen(&mut bench, 1), refused);
    wait(&mut bench, 14);
    assert_eq!(seen(&mut bench, 1), refused);
    wait(&mut bench, 2);
    assert_eq!(seen(&mut bench, 1), Ok(KEY));
    // What may be read may not be changed.
    let wrong = request(Method::SET, 1, set.data);
    assert_eq!(ask(&mut bench, wrong, 0).map(drop), refused.map(drop));
}

/// infiniband-diags `vendstat.c`, `is4_general_info_t`.
#[test]
fn the_makers_datagrams_are_answered() {
    let mut bench = Bench::new(1, FabricConfig::default());
    let mut ask = |class: u8, attribute: u8| {
        let mut mad = [0; 256];
        mad[..4].copy_from_slice(&[1, class, 1, Method::GET.0]);
        mad[17] = attribute;
        bench.command(0, Opcode::MAD_IFC, 3, 1, &mad).unwrap();
        bench.output::<[u8; 256]>(0)
    };
    let answer = ask(0x0a, 0x17);
    assert_eq!((answer[3], &answer[4..6]), (0x81, &[0, 0][..]));
    assert_eq!(answer[24 + 10..24 + 12], [0x10, 0x03]);
    assert_eq!(
        answer[24 + 76..24 + 88],
        [0, 0, 0, 2, 0, 0, 0, 42, 0, 0, 0x13, 0x88]
    );
    let answer = ask(0x0a, 1);
    assert_eq!((&answer[4..6], &answer[24..26]), (&[0, 0][..], &[1, 1][..]));
    for (class, attribute) in [(0x0a, 0x18), (0x09, 0x17), (0x21, 1)] {
        let answer = ask(class, attribute);
        assert_eq!((answer[3], &answer[4..6]), (0x81, &[0, 0x0c][..]));
    }
}

#[test]
fn a_new_node_description_is_reported_until_the_manager_has_heard() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let sent = |bench: &Bench| bench.cluster.counters(bench.nodes[0].index).packets_sent;
    // The fabric's own manager hears at once, asks for the new text, and ends the trap.
    let before = sent(&bench);
    bench
        .command(0, Opcode::SET_NODE, 0, 1, b"another name\0")
        .unwrap();
    bench.run(Duration::from_secs(5));
    assert_eq!(sent(&bench) - before, 2, "the trap and the answer");
    assert_eq!(TRAP_LOCAL_CHANGES, 144);
    // A manager that is away is told again and again, and not for ever.
    bench
        .cluster
        .set_link(bench.nodes[1].index, bench.now, 1, false);
    let mut info = bench.port_info(0);
    info.sm_lid = bench.nodes[1].lid.0.into();
    info.speed_state.set_state(0);
    let set = request(Method::SET, 0, mad::smp::data_of(&info));
    ask(&mut bench, set, op_modifier::MAD_IFC_IGNORE_MKEY).unwrap();
    let before = sent(&bench);
    bench
        .command(0, Opcode::SET_NODE, 0, 1, b"a third name\0")
        .unwrap();
    bench.run(Duration::from_secs(3));
    assert!((3..=4).contains(&(sent(&bench) - before)));
    bench.run(Duration::from_secs(60));
    assert_eq!(sent(&bench) - before, 10);
}

#[test]
fn failures_are_counted_for_diagnosis() {
    let mut bench = Bench::new(2, FabricConfig::default());
    let how = Connection {
        rnr_retries: 1,
        ..Connection::default()
    };
    let (mut a, mut cq, _, _) = bench.pair(Service::RC, how);
    let from = bench.make_mr(0, 4096, all_rights());
    let send = Send {
        opcode: WqeOpcode::SEND,
        remote: None,
        pieces: &[(from.addr, 8, from.key)],
        imm: 0,
        signalled: true,
    };
    bench.post(&mut a, &send);
    bench.post(&mut a, &send);
    bench.ring_send(&a);
    bench.run(Duration::from_millis(100));
    assert_eq!(bench.drain(&mut cq).len(), 2);
    let mut count = |node: usize, at: usize| {
        bench.command_raw(node, Opcode::DIAG_RPRT, 2, 0, 0).unwrap();
        let report = bench.output::<[u8; 0x140]>(node);
        u32::from_be_bytes(report[at..at + 4].try_into().unwrap())
    };
    // Retries of a receiver that was not ready: one send, and the one behind it flushed.
    assert_eq!((count(0, 0x64), count(0, 0x24)), (1, 1));
    assert_eq!(count(0, 0x6c), 2);
    assert_eq!(count(1, 0x68), 2);
    assert_eq!(count(1, 0x50), 0);
}

/// rdma-core `providers/mlx4/qp.c`, `mlx4_bf_copy`: the request is in the send queue as well.
#[test]
fn a_request_written_to_blueflame_is_sent_where_the_card_offers_that() {
    for offered in [true, false] {
        let board = Board {
            blueflame: offered,
            ..Board::default()
        };
        let mut bench = Bench::with_boards(2, FabricConfig::default(), &board);
        for node in 0..2 {
            bench.bring_up(node);
        }
        for node in 0..2 {
            bench.wait_active(node);
        }
        let (mut a, mut cq, _, _) = bench.pair(Service::RC, Connection::default());
        let nop = Send {
            opcode: WqeOpcode::NOP,
            remote: None,
            pieces: &[],
            imm: 0,
            signalled: true,
        };
        bench.post(&mut a, &nop);
        let mut request = [0; 64];
        request[4..8].copy_from_slice(&(a.qpn << 8 | 1).to_be_bytes());
        let page = 1024 + UAR as usize;
        for (chunk, at) in request.chunks(8).zip((page * 4096..).step_by(8)) {
            bench.ring(0, at, chunk);
        }
        assert_eq!(bench.drain(&mut cq).len(), usize::from(offered));
        bench
            .command_raw(0, Opcode::QUERY_DEV_CAP, 0, 0, 0)
            .unwrap();
        let cap = bench.output::<QueryDevCap>(0);
        assert_eq!(cap.blueflame.get(), u8::from(offered));
    }
}

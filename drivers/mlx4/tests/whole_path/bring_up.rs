//! A card from power-on to an ACTIVE port, and back; and every step of the way failing.

use hal::{ConfigSpace, Duration, Platform};
use harness::{Faults, Faulty, NodeConfig, Testbed};
use mlx4::{Config, Error, Mlx4};
use verbs::{Device, Gid, PortState};

use crate::common::{guid, log, start, start_with};

#[test]
fn the_port_becomes_active() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let node = start(&mut bed, machine);
    let info = bed.block_on(node.device.port(1)).unwrap();
    assert_eq!(info.state, PortState::Active);
    assert!(info.address.is_set());
    assert!(info.manager.is_set());
    assert_eq!(info.guid, verbs::Guid(guid(0).0 + 1));
    assert_eq!(info.gid, Gid::new(info.gid.prefix(), info.guid));
    assert_eq!(node.platform.violations(), 0);
}

#[test]
fn the_second_port_works_as_well() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine_with_ports("a", guid(0), 2);
    let config = Config {
        port: 2,
        ..Config::default()
    };
    let node = start_with(&mut bed, machine, config);
    let info = bed.block_on(node.device.port(2)).unwrap();
    assert_eq!(
        (info.state, info.guid.0),
        (PortState::Active, guid(0).0 + 2)
    );
    assert!(bed.block_on(node.device.port(1)).is_err());
}

#[test]
fn a_port_that_is_not_there_is_refused() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let config = Config {
        port: 2,
        ..Config::default()
    };
    let error = bed.block_on(Mlx4::start(machine, config)).err();
    assert_eq!(
        error,
        Some(Error::OutOfRange {
            parameter: verbs::Parameter::Port,
            value: 2
        })
    );
}

#[test]
fn a_stopped_card_holds_no_memory_and_starts_again() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    for _ in 0..2 {
        let device = bed
            .block_on(Mlx4::start(machine.clone(), Config::default()))
            .unwrap();
        assert!(machine.allocated() > 0);
        bed.block_on(device.stop()).unwrap();
        assert_eq!(bed.block_on(device.stop()), Err(Error::Failed));
        assert_eq!(bed.block_on(device.service()), Err(Error::Failed));
        assert!(bed.block_on(device.port(1)).is_err());
        drop(device);
        assert_eq!((machine.allocated(), machine.violations()), (0, 0));
    }
}

#[test]
fn a_dropped_card_is_reset_and_starts_again() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    for _ in 0..2 {
        let node = start(&mut bed, machine.clone());
        drop(node);
        bed.block_on(machine.sleep(Duration::from_millis(10)));
        assert_eq!((machine.allocated(), machine.violations()), (0, 0));
    }
}

#[test]
fn a_stop_that_fails_leaves_a_card_that_starts_again() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    for _ in 0..3 {
        let device = bed
            .block_on(Mlx4::start(machine.clone(), Config::default()))
            .unwrap();
        bed.with_cluster(|cluster, now| cluster.kill_firmware(machine.node(), now, false));
        let before = bed.now();
        assert!(bed.block_on(device.stop()).is_err());
        assert!(
            bed.now().since(before) >= Duration::from_secs(1),
            "a reset takes its time"
        );
        drop(device);
        // The card has its addresses, and no bus until it is started.
        let config = machine.config();
        assert_eq!(config.read_u32(0) & 0xffff, 0x15b3);
        assert_ne!(config.read_u32(0x10) & !0xf, 0);
        assert_eq!(config.read_u32(4) & 0b110, 0b010);
        assert_eq!((machine.allocated(), machine.violations()), (0, 0));
    }
    drop(start(&mut bed, machine));
}

#[test]
fn a_card_that_was_dropped_reaches_no_memory() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let node = start(&mut bed, machine.clone());
    let before = machine.config().read_u32(4) & 0b110;
    assert_eq!(before, 0b110, "memory space and the bus");
    drop(node);
    assert_eq!(machine.config().read_u32(4) & 0b110, 0b010);
    assert_ne!(
        machine.config().read_u32(0x10) & !0xf,
        0,
        "its addresses are kept"
    );
}

#[test]
fn a_card_with_an_owner_is_left_alone() {
    log();
    let mut bed = Testbed::default();
    let machine = bed.add_machine("a", guid(0));
    let node = start(&mut bed, machine.clone());
    let second = bed.block_on(Mlx4::start(machine, Config::default()));
    assert!(matches!(second.err(), Some(Error::Owned(_))));
    assert!(bed.block_on(node.device.port(1)).is_ok());
}

/// The commands of a bring-up without faults.
fn commands_of_bring_up() -> Vec<u16> {
    let faults = Faults::new(1);
    let mut bed = Testbed::default();
    let machine = Faulty::new(bed.add_machine("a", guid(0)), faults.clone());
    let device = bed
        .block_on(Mlx4::start(machine, Config::default()))
        .unwrap();
    let opcodes = faults.opcodes();
    drop(device);
    opcodes
}

#[test]
fn every_refused_command_is_an_error_that_names_it() {
    const MOD_STAT_CFG: u16 = 0x034;
    log();
    for (index, opcode) in commands_of_bring_up().into_iter().enumerate() {
        let faults = Faults::new(1);
        faults.refuse_command(u32::try_from(index).unwrap());
        let mut bed = Testbed::default();
        let machine = bed.add_machine("a", guid(0));
        let started = bed.block_on(Mlx4::start(
            Faulty::new(machine.clone(), faults),
            Config::default(),
        ));
        match &started {
            // Firmware may lack this one.
            Ok(_) => assert_eq!(opcode, MOD_STAT_CFG),
            Err(Error::Refused { opcode: named, .. }) => assert_eq!(named.0, opcode),
            Err(other) => panic!("command {index}, {opcode:#x}: {other}"),
        }
        drop(started);
        bed.block_on(machine.sleep(Duration::from_millis(1)));
        assert_eq!((machine.allocated(), machine.violations()), (0, 0));
    }
}

#[test]
fn every_lost_command_is_a_timeout_that_names_it() {
    log();
    for (index, opcode) in commands_of_bring_up().into_iter().enumerate() {
        let faults = Faults::new(1);
        faults.drop_command(u32::try_from(index).unwrap());
        let mut bed = Testbed::default();
        let machine = bed.add_machine("a", guid(0));
        let started = bed.block_on(Mlx4::start(
            Faulty::new(machine.clone(), faults),
            Config::default(),
        ));
        match started.err() {
            Some(Error::CommandTimeout { opcode: named, .. }) => assert_eq!(named.0, opcode),
            other => panic!("command {index}, {opcode:#x}: {other:?}"),
        }
        assert_eq!(machine.allocated(), 0);
    }
}

#[test]
fn a_card_that_vanishes_ends_commands_at_once() {
    log();
    let faults = Faults::new(1);
    let mut bed = Testbed::default();
    let machine = Faulty::new(bed.add_machine("a", guid(0)), faults.clone());
    let device = bed
        .block_on(Mlx4::start(machine, Config::default()))
        .unwrap();
    let before = bed.now();
    faults.set_gone(true);
    assert!(bed.block_on(device.port(1)).is_err());
    assert!(bed.now().since(before) < Duration::from_secs(1));
}

/// Linux `main.c`, `mlx4_setup_hca`: the interrupt is tested by a NOP, and done without if it does
/// not come.
#[test]
fn a_card_whose_interrupts_are_lost_is_looked_at_in_intervals() {
    log();
    let faults = Faults::new(1);
    faults.lose_interrupts(1000);
    let mut bed = Testbed::default();
    let machine = Faulty::new(bed.add_machine("a", guid(0)), faults);
    let node = start(&mut bed, machine);
    let before = bed.now();
    bed.block_on(async {
        // The service finds that the port changes, and a completion is found without interrupt.
        let end = crate::common::end(&node, &crate::common::rc_config(4)).await;
        drop(end);
        assert!(node.device.port(1).await.is_ok());
    });
    assert!(bed.now().since(before) < Duration::from_secs(1));
}

#[test]
fn a_card_that_says_it_can_have_no_memory_is_asked_again() {
    log();
    for (empty_limits, starts) in [(3, true), (100, false)] {
        let mut bed = Testbed::default();
        let mut config = NodeConfig::new("a", guid(0), 1);
        config.board.empty_limits = empty_limits;
        let machine = bed.add(config);
        let started = bed.block_on(Mlx4::start(machine, Config::default()));
        assert_eq!(started.is_ok(), starts, "{:?}", started.err());
    }
}

#[test]
fn firmware_that_parts_datagrams_is_told_to_keep_its_own() {
    const MAD_DEMUX: u16 = 0x203;
    log();
    for offered in [false, true] {
        let mut bed = Testbed::default();
        let mut config = NodeConfig::new("a", guid(0), 1);
        config.board.mad_demux = offered;
        let faults = Faults::new(1);
        let machine = Faulty::new(bed.add(config), faults.clone());
        let node = start(&mut bed, machine);
        let asked = faults.opcodes().into_iter().filter(|op| *op == MAD_DEMUX);
        assert_eq!(asked.count(), if offered { 2 } else { 0 });
        drop(node);
    }
}

#[test]
fn a_card_that_returns_late_from_a_reset_is_waited_for() {
    log();
    for (away, starts) in [(2900, true), (3100, false)] {
        let mut bed = Testbed::default();
        let mut config = NodeConfig::new("a", guid(0), 1);
        config.board.away = Duration::from_millis(away);
        let machine = bed.add(config);
        let started = bed.block_on(Mlx4::start(machine, Config::default()));
        assert_eq!(started.is_ok(), starts, "{away} ms: {:?}", started.err());
    }
}

//! Hostile software: whatever it does, the model neither panics nor works without end.

use mlx4_hw::command::Opcode;
use mlx4_hw::qp::Service;
use mlx4_hw::regs;
use mlx4_hw::wqe::WqeOpcode;
use proptest::prelude::*;

use crate::bench::queues::{Connection, all_rights};
use crate::bench::{Bench, EQN, UAR};
use fabric::FabricConfig;
use hal::Duration;

/// One thing that hostile software does.
#[derive(Debug, Clone)]
enum Step {
    /// Overwrites memory: in the context memory, in a queue, anywhere.
    Memory(u64, Vec<u8>),
    /// Runs a command with whatever is in its mailbox.
    Command(u16, u8, u32, Option<Vec<u8>>),
    /// Writes a doorbell page.
    Doorbell(u32, u16, Vec<u8>),
    /// Posts bytes as a send and rings.
    Send(u8, Vec<u8>),
    /// Writes a register.
    Register(u32, u32),
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes =
        || proptest::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 16..256);
    let place = prop_oneof![
        0x20_0000_u64..0x40_0000,
        0x40_0000_u64..0x48_0000,
        0_u64..24 << 20
    ];
    let opcode = prop_oneof![0_u16..0x70, 0xff0_u16..0x1000];
    let number = prop_oneof![
        Just(EQN),
        Just(0x80),
        Just(0x48),
        Just(0x49),
        Just(1),
        0_u32..0x200,
        any::<u32>()
    ];
    let within = prop_oneof![
        Just(0x14_u16),
        Just(0x20),
        Just(0x24),
        0x800_u16..0x820,
        0_u16..4096
    ];
    prop_oneof![
        3 => (place, bytes()).prop_map(|(at, bytes)| Step::Memory(at.min((24 << 20) - 256), bytes)),
        3 => (opcode, 0_u8..16, number, proptest::option::of(bytes()))
            .prop_map(|(op, modifier, number, input)| Step::Command(op, modifier, number, input)),
        2 => (0_u32..300, within, proptest::collection::vec(any::<u8>(), 1..17))
            .prop_map(|(page, within, bytes)| Step::Doorbell(page, within, bytes)),
        4 => (0_u8..32, bytes()).prop_map(|(opcode, bytes)| Step::Send(opcode, bytes)),
        1 => (0_u32..0x10_0000, any::<u32>()).prop_map(|(at, value)| Step::Register(at, value)),
        1 => Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_software_does_panics(steps in proptest::collection::vec(step(), 1..60), service in 0_u8..5) {
        let mut bench = Bench::new(2, FabricConfig::default());
        let service = [Service::RC, Service::UC, Service::UD, Service::MLX, Service::XRC][usize::from(service)];
        let (mut a, _cq_a, mut b, _cq_b) = bench.pair(service, Connection::default());
        let region = bench.make_mr(1, 4096, all_rights());
        bench.post_receive(&mut b, region.addr, 4096, region.key);
        for step in steps {
            match step {
                Step::Memory(at, bytes) => bench.nodes[0].ram.put(at, &bytes),
                Step::Command(op, modifier, number, input) => {
                    let input = input.unwrap_or_else(|| vec![0; 256]);
                    let _ = bench.command(0, Opcode(op), modifier, number, &input);
                }
                Step::Doorbell(page, within, bytes) => {
                    bench.ring(0, page as usize * regs::UAR_PAGE_LEN + usize::from(within), &bytes);
                }
                Step::Send(opcode, mut bytes) => {
                    // A size that the bytes have, most of the time.
                    bytes[7] &= 0x4f;
                    bench.post_bytes(&mut a, WqeOpcode(opcode), &bytes);
                    bench.ring_send(&a);
                }
                Step::Register(at, value) => bench.write(0, at as usize & !3, value),
                Step::Wait => bench.run(Duration::from_millis(3)),
            }
        }
        bench.run(Duration::from_millis(20));
        // The peer is none the worse for it.
        let _ = (UAR, bench.port_info(1));
    }
}

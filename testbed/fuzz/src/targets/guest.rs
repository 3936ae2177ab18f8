//! hca_model: software of a guest that writes anything anywhere: memory, commands, doorbells, work
//! requests, registers.

use fabric::FabricConfig;
use hal::Duration;
use mlx4_hw::command::{Doorbell, Opcode, hcr};
use mlx4_hw::qp::Service;
use mlx4_hw::regs;
use mlx4_hw::wqe::WqeOpcode;

use crate::input::Input;

// The bench of the model's own tests.
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../../hca/tests/model/bench/mod.rs"]
mod bench;

use bench::queues::{Connection, all_rights};
use bench::{Bench, EQN, RAM_LEN};

/// Address of a command's input; its output goes a page further.
const MAILBOX: u32 = 0x1_0000;

/// Draws an address: of queues and tables, or any.
fn place(input: &mut Input<'_>) -> u64 {
    let offset = u64::from(input.u32());
    match input.u8() % 4 {
        0 => 0x20_0000 + offset % 0x20_0000,
        1 => 0x40_0000 + offset % 0x8_0000,
        // A structure of the context tables, at its beginning.
        2 => 0x20_0000 + (offset % 0x2000) * 0x100,
        _ => offset % (RAM_LEN as u64 - 256),
    }
}

fn number(input: &mut Input<'_>) -> u32 {
    match input.u8() % 6 {
        0 => EQN,
        1 => 0x80,
        2 => 0x48,
        3 => 0x49,
        4 => u32::from(input.u8()),
        _ => input.u32(),
    }
}

/// Writes a command into the command register, which may be busy or expect the other toggle.
fn command(
    bench: &mut Bench,
    (opcode, modifier, number): (Opcode, u8, u32),
    toggle: bool,
    mailbox: &[u8],
) {
    bench.nodes[0].ram.put(MAILBOX.into(), mailbox);
    let doorbell = Doorbell::new()
        .with_go(true)
        .with_toggle(toggle)
        .with_op_modifier(modifier)
        .with_opcode(opcode);
    for (at, value) in [
        (hcr::IN_PARAM_HIGH, 0),
        (hcr::IN_PARAM_LOW, MAILBOX),
        (hcr::IN_MODIFIER, number),
        (hcr::OUT_PARAM_HIGH, 0),
        (hcr::OUT_PARAM_LOW, MAILBOX + 0x1000),
        (hcr::TOKEN, hcr::token(0xffff)),
        (hcr::DOORBELL, doorbell.into()),
    ] {
        bench.write(0, regs::HCR + at, value);
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut bench = Bench::new(2, FabricConfig::default());
    let service = [
        Service::RC,
        Service::UC,
        Service::UD,
        Service::MLX,
        Service::XRC,
    ][usize::from(input.u8() % 5)];
    let (mut a, _cq_a, mut b, _cq_b) = bench.pair(service, Connection::default());
    let region = bench.make_mr(1, 4096, all_rights());
    bench.post_receive(&mut b, region.addr, 4096, region.key);
    while !input.is_empty() {
        match input.u8() % 8 {
            0 | 1 => {
                let at = place(&mut input);
                let bytes = input.string();
                bench.nodes[0]
                    .ram
                    .put(at.min((RAM_LEN - 256) as u64), bytes);
            }
            2 | 3 => {
                let (opcode, modifier) = (Opcode(input.u16() & 0xfff), input.u8() & 0xf);
                let number = number(&mut input);
                let mut mailbox = input.string().to_vec();
                mailbox.resize(256, 0);
                command(
                    &mut bench,
                    (opcode, modifier, number),
                    input.bool(),
                    &mailbox,
                );
            }
            4 => {
                let page = usize::from(input.u16()) % 300;
                let within = usize::from(input.u16()) % 4096;
                let len = 1 + usize::from(input.u8() % 16);
                let bytes = input.array::<16>();
                bench.ring(0, page * regs::UAR_PAGE_LEN + within, &bytes[..len]);
            }
            5 | 6 => {
                let opcode = WqeOpcode(input.u8() & 31);
                let mut bytes = input.string().to_vec();
                bytes.resize(bytes.len().max(16), 0);
                // A size that the bytes have, most of the time.
                bytes[7] &= 0x4f;
                bench.post_bytes(&mut a, opcode, &bytes);
                bench.ring_send(&a);
            }
            _ => {
                let at = input.u32() % 0x10_0000;
                let value = input.u32();
                bench.write(0, at as usize & !3, value);
                bench.run(Duration::from_millis(u64::from(input.u8() % 8)));
            }
        }
    }
    bench.run(Duration::from_millis(20));
    // The peer is none the worse for it.
    bench.port_info(1);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let command = |opcode: u16, kind: u8, input: &[u8]| {
        let [low, high] = opcode.to_le_bytes();
        let len = u8::try_from(input.len()).unwrap_or(0);
        [&[2, low, high, 0, kind, len][..], input].concat()
    };
    let send = |opcode: u8| {
        let mut bytes = [0; 32];
        bytes[7] = 2;
        bytes[19] = 8;
        [&[5, opcode, 32][..], &bytes].concat()
    };
    let mut seeds: Vec<_> = (0..4)
        .map(|service| [vec![service], send(10), vec![7; 9]].concat())
        .collect();
    // QUERY_FW, QUERY_DEV_CAP, SW2HW_MPT, MAD_IFC, RST2INIT_QP, QUERY_QP.
    for opcode in [4, 3, 0xd, 0x24, 0x19, 0x22, 0x16, 0x13] {
        seeds.push([vec![0], command(opcode, 2, &[1; 64]), send(8), send(16)].concat());
    }
    seeds
}

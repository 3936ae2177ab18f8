//! The trace of calls: any call with any arguments has a line.

use super::*;
use crate::kernel::Kernel;
use crate::mm::layout::Randomize;

/// Returns one of the values that programs pass: numbers, edges, addresses that are mapped and not.
fn word(bits: u64) -> u64 {
    const EDGES: [u64; 12] = [
        0,
        1,
        2,
        4095,
        DATA,
        DATA + 0x8fc,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 47,
        1 << 63,
        u64::MAX - 99,
        u64::MAX,
    ];
    match bits % 3 {
        0 => EDGES[usize::try_from(bits / 3 % 12).unwrap()],
        1 => bits / 3 % 300,
        _ => bits,
    }
}

#[test]
fn any_call_is_shown() {
    let node: &FakeNode = {
        let node = node(64);
        node.kernel = Kernel::new(7, true, Randomize::Off);
        node
    };
    let run = Run::new(node);
    // xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in (0..480).chain([u64::MAX]) {
        for round in 0..40 {
            let structure: Vec<u64> = (0..32).map(|_| word(next())).collect();
            run.put(DATA, &words(&structure));
            let call = SystemCall {
                number,
                args: std::array::from_fn(|_| if round == 0 { 0 } else { word(next()) }),
            };
            let outcome = match next() % 4 {
                0 => Ok(Outcome::Registers),
                1 => Ok(Outcome::Value(0)),
                2 => Ok(Outcome::Value(word(next()))),
                _ => Err(errno::EINVAL.into()),
            };
            node.block_on(async {
                let begun = run.thread.trace_begin(call).await;
                run.thread.trace_end(call, begun, &outcome).await;
            });
        }
    }
    while node.pump_console() {}
    let out = node.platform.out.borrow();
    let traced = out.iter().filter(|(output, _)| *output == Output::Trace);
    let text: Vec<u8> = traced.flat_map(|(_, bytes)| bytes.clone()).collect();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count(), 481 * 40);
    let umask = text.lines().find(|line| line.starts_with("umask("));
    // Rights that no flag precedes.
    assert!(
        umask.is_some_and(|line| line.starts_with("umask(00) = ")),
        "{umask:?}"
    );
}

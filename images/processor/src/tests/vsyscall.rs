//! Calls at the fixed addresses of the vsyscall page.

use super::*;

const PAGE: u64 = 0xffff_ffff_ff60_0000;
const RDI: usize = 8;
const RAX: usize = 13;

fn jump(run: &mut Run, addr: u64, argument: u64) -> Result<(), Error> {
    let mut registers = run.thread.cpu.registers();
    registers[RDI] = argument;
    run.thread.cpu.set_registers(&registers);
    let access = Access::Execute;
    let trap = Trap::PageFault { addr, access };
    run.thread.cpu.script.push((trap, SystemCall::default()));
    run.node.block_on(run.thread.step())
}

#[test]
fn the_three_entries_are_calls_and_return() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let sp = run.thread.cpu.sp();
    let caller = run.get(sp, 8);
    jump(&mut run, PAGE + 0x400, DATA).unwrap();
    let time = run.thread.cpu.registers()[RAX];
    assert!((1_700_000_000..1_800_000_000).contains(&time), "{time}");
    assert_eq!(run.get(DATA, 8), time.to_le_bytes());
    let ip = run.thread.cpu.ip().to_le_bytes();
    assert_eq!((run.thread.cpu.sp(), &ip[..]), (sp + 8, &caller[..]));
    jump(&mut run, PAGE, DATA + 16).unwrap();
    assert_eq!(run.get(DATA + 16, 8), time.to_le_bytes());
    run.thread.shared.set_core(1);
    jump(&mut run, PAGE + 0x800, DATA).unwrap();
    assert_eq!(run.get(DATA, 4), 1u32.to_le_bytes());
    run.end();
}

#[test]
fn all_else_of_the_page_and_bad_pointers_are_sigsegv() {
    for (addr, argument) in [(PAGE + 1, 0), (PAGE + 0xc00, 0), (PAGE + 0x400, 8)] {
        let node: &FakeNode = node(64);
        let mut run = Run::new(node);
        let ended = jump(&mut run, addr, argument);
        assert_eq!(ended, Err(Error::Ended(Exit::Signal(11))), "{addr:#x}");
    }
}

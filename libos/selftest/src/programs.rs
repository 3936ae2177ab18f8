//! Tests of user mode, by programs of a few bytes.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::Duration;
use libos::{AddressSpace, FrameArray, PageFrame, Rights, Trap, UserContext};

use crate::checks::{Outcome, check};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
const STACK_TOP: u64 = 0x60_1000;

struct Program {
    space: Arc<AddressSpace>,
    data: PageFrame,
}

/// Code at [`CODE`], a page of data at [`DATA`], a page of stack.
fn load(code: &[u8], data: Rights) -> Result<Program, &'static str> {
    let frames = FrameArray::allocate(3).ok_or("no memory")?;
    let space = AddressSpace::new().ok_or("no memory")?;
    frames.frame(0).write(0, code);
    let pages = [
        (CODE, Rights::READ | Rights::EXECUTE),
        (DATA, data),
        (STACK_TOP - 0x1000, Rights::READ | Rights::WRITE),
    ];
    for (index, (address, rights)) in pages.into_iter().enumerate() {
        space
            .map(address, frames.frame(index), rights)
            .map_err(|_| "not mapped")?;
    }
    Ok(Program {
        space,
        data: frames.frame(1),
    })
}

fn thread() -> UserContext {
    UserContext::new(CODE, STACK_TOP)
}

/// Runs on through preemptions, which a slow machine makes at any time.
fn run(context: &mut UserContext, space: &Arc<AddressSpace>) -> Trap {
    loop {
        let trap = context.run(space);
        if trap != Trap::Preempted {
            return trap;
        }
    }
}

pub(crate) fn a_system_call_and_its_result() -> Outcome {
    // mov eax, 39; syscall; mov rdi, rax; mov eax, 60; syscall
    let code = [
        0xb8, 39, 0, 0, 0, 0x0f, 5, 0x48, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 5,
    ];
    let program = load(&code, Rights::READ)?;
    let mut context = thread();
    context.registers.r15 = 0x1234_5678_9abc_def0;
    check!(run(&mut context, &program.space) == Trap::Syscall);
    check!(context.registers.rax == 39);
    check!(
        context.registers.rip == CODE + 7,
        "{:#x}",
        context.registers.rip
    );
    check!(context.registers.rsp == STACK_TOP);
    context.registers.rax = 0xffff_ffff_ffff_ffda;
    check!(run(&mut context, &program.space) == Trap::Syscall);
    check!((context.registers.rax, context.registers.rdi) == (60, 0xffff_ffff_ffff_ffda));
    check!(context.registers.r15 == 0x1234_5678_9abc_def0);
    // A fork's child goes on by itself, redirected as a signal would be.
    let mut child = context.duplicate();
    child.registers.rip = CODE;
    check!(run(&mut child, &program.space) == Trap::Syscall);
    check!(child.registers.rax == 39);
    Ok(())
}

pub(crate) fn faults_say_what_was_touched() -> Outcome {
    const STORE: &[u8] = &[0x48, 0x89, 0x37]; // mov [rdi], rsi
    const LOAD: &[u8] = &[0x48, 0x8b, 0x07]; // mov rax, [rdi]
    const JUMP: &[u8] = &[0xff, 0xe7]; // jmp rdi
    const KERNEL: u64 = 0xffff_ffff_8020_0000;
    let fault = |addr, write, execute, present| Trap::PageFault {
        addr,
        write,
        execute,
        present,
    };
    let cases: [(&[u8], u64, Trap); 7] = [
        (STORE, DATA + 8, fault(DATA + 8, true, false, true)),
        (STORE, CODE, fault(CODE, true, false, true)),
        (STORE, 0x7000_0000, fault(0x7000_0000, true, false, false)),
        (LOAD, 0, fault(0, false, false, false)),
        (JUMP, DATA, fault(DATA, false, true, true)),
        (JUMP, 0x1000, fault(0x1000, false, true, false)),
        (
            LOAD,
            KERNEL + 0x1_0000,
            fault(KERNEL + 0x1_0000, false, false, true),
        ),
    ];
    for (code, address, expected) in cases {
        let program = load(code, Rights::READ)?;
        let mut context = thread();
        context.registers.rdi = address;
        let trap = run(&mut context, &program.space);
        check!(trap == expected, "{trap:x?} for {expected:x?}");
    }
    // Repeated after the page is there, the access goes through.
    let program = load(STORE, Rights::READ)?;
    let mut context = thread();
    (context.registers.rdi, context.registers.rsi) = (DATA, 77);
    check!(matches!(
        run(&mut context, &program.space),
        Trap::PageFault { .. }
    ));
    check!(
        program
            .space
            .protect(DATA, Rights::READ | Rights::WRITE)
            .is_some()
    );
    let trap = run(&mut context, &program.space);
    // What follows the store are zeroes: `add [rax], al`.
    check!(matches!(trap, Trap::PageFault { addr: 0, .. }), "{trap:?}");
    let mut word = [0; 8];
    program.data.read(0, &mut word);
    check!(u64::from_le_bytes(word) == 77);
    Ok(())
}

pub(crate) fn exceptions_come_back() -> Outcome {
    let cases: [(&[u8], u8); 6] = [
        (&[0x31, 0xc9, 0xf7, 0xf1], 0), // xor ecx, ecx; div ecx
        (&[0xcc], 3),                   // int3
        (&[0x0f, 0x0b], 6),             // ud2
        (&[0xf4], 13),                  // hlt
        (&[0xcd, 0x80], 13),            // int 0x80
        (&[0xfa], 13),                  // cli
    ];
    for (code, expected) in cases {
        let program = load(code, Rights::READ)?;
        let trap = run(&mut thread(), &program.space);
        check!(
            matches!(trap, Trap::Exception { vector, .. } if vector == expected),
            "{trap:?} for {expected}"
        );
    }
    Ok(())
}

pub(crate) fn a_wild_return_address_is_an_exception() -> Outcome {
    let program = load(&[0x0f, 5], Rights::READ)?;
    for rip in [
        0x8000_0000_0000,
        0x7fff_ffff_f000,
        0xffff_8000_0000_0000,
        u64::MAX,
    ] {
        let mut context = thread();
        check!(run(&mut context, &program.space) == Trap::Syscall);
        // By SYSRET and by IRET.
        context.registers.rip = rip;
        let trap = run(&mut context, &program.space);
        check!(
            matches!(trap, Trap::Exception { vector: 13, .. }),
            "{trap:?}"
        );
        context.registers.rcx = rip;
        check!(matches!(
            run(&mut context, &program.space),
            Trap::Exception { vector: 13, .. }
        ));
    }
    check!(thread().set_fs_base(0xffff_8000_0000_0000).is_err());
    check!(
        program
            .space
            .map(0x7fff_ffff_f000, program.data, Rights::READ)
            .is_err()
    );
    check!(
        program
            .space
            .map(0xffff_8000_0000_0000, program.data, Rights::READ)
            .is_err()
    );
    check!(program.space.map(CODE, program.data, Rights::READ).is_err());
    Ok(())
}

pub(crate) fn dirty_and_accessed_marks() -> Outcome {
    // mov rax, [rdi]; syscall; mov [rdi], rsi; syscall; jmp back to the store
    let code = [
        0x48, 0x8b, 0x07, 0x0f, 5, 0x48, 0x89, 0x37, 0x0f, 5, 0xeb, 0xf9,
    ];
    let program = load(&code, Rights::READ | Rights::WRITE)?;
    let marks = || {
        program
            .space
            .query(DATA)
            .map(|mapping| (mapping.accessed, mapping.dirty))
    };
    let mut context = thread();
    context.registers.rdi = DATA;
    check!(marks() == Some((false, false)));
    check!(run(&mut context, &program.space) == Trap::Syscall);
    check!(marks() == Some((true, false)));
    check!(run(&mut context, &program.space) == Trap::Syscall);
    check!(marks() == Some((true, true)));
    check!(
        program
            .space
            .clear_dirty(DATA)
            .is_some_and(|mapping| mapping.dirty)
    );
    check!(marks() == Some((true, false)));
    context.registers.rip = CODE + 5;
    context.registers.rdi = DATA;
    check!(run(&mut context, &program.space) == Trap::Syscall);
    check!(
        marks() == Some((true, true)),
        "a store after the mark was taken sets it again"
    );
    let mapping = program.space.unmap(DATA).ok_or("not mapped")?;
    check!(mapping.dirty && mapping.frame == program.data.phys());
    context.registers.rip = CODE + 5;
    context.registers.rdi = DATA;
    check!(matches!(
        run(&mut context, &program.space),
        Trap::PageFault {
            addr: DATA,
            present: false,
            ..
        }
    ));
    Ok(())
}

pub(crate) fn vector_registers_are_each_programs_own() -> Outcome {
    // movq xmm0, rdi; syscall; movq rax, xmm0; syscall
    let code = [
        0x66, 0x48, 0x0f, 0x6e, 0xc7, 0x0f, 5, 0x66, 0x48, 0x0f, 0x7e, 0xc0, 0x0f, 5,
    ];
    let program = load(&code, Rights::READ)?;
    let (mut one, mut other) = (thread(), thread());
    (one.registers.rdi, other.registers.rdi) = (111, 222);
    check!(run(&mut one, &program.space) == Trap::Syscall);
    check!(run(&mut other, &program.space) == Trap::Syscall);
    let mut child = one.duplicate();
    let state = one.fpu_state();
    check!(one.set_fpu_state(&state));
    check!(!one.set_fpu_state(&state[1..]));
    let mut broken = state.clone();
    broken[24..28].fill(0xff);
    check!(
        !one.set_fpu_state(&broken),
        "reserved bits of MXCSR would fault in the kernel"
    );
    for (context, expected) in [(&mut one, 111), (&mut other, 222), (&mut child, 111)] {
        check!(run(context, &program.space) == Trap::Syscall);
        check!(
            context.registers.rax == expected,
            "{}",
            context.registers.rax
        );
    }
    // A new thread sees nothing of the others.
    let mut fresh = thread();
    fresh.registers.rip = CODE + 7;
    check!(run(&mut fresh, &program.space) == Trap::Syscall);
    check!(fresh.registers.rax == 0);
    Ok(())
}

pub(crate) fn segment_bases_are_each_programs_own() -> Outcome {
    // mov rax, fs:[0]; mov rdx, gs:[0]; syscall; jmp back
    let code = [
        0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x65, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0, 0, 0x0f,
        5, 0xeb, 0xea,
    ];
    let program = load(&code, Rights::READ)?;
    program.data.write(0, &7_u64.to_le_bytes());
    program.data.write(8, &8_u64.to_le_bytes());
    let (mut one, mut other) = (thread(), thread());
    for (context, fs, gs) in [(&mut one, DATA, DATA + 8), (&mut other, DATA + 8, DATA)] {
        context.set_fs_base(fs).map_err(|_| "refused")?;
        context.set_gs_base(gs).map_err(|_| "refused")?;
    }
    for _ in 0..2 {
        check!(run(&mut one, &program.space) == Trap::Syscall);
        check!((one.registers.rax, one.registers.rdx) == (7, 8));
        check!(run(&mut other, &program.space) == Trap::Syscall);
        check!((other.registers.rax, other.registers.rdx) == (8, 7));
    }
    Ok(())
}

pub(crate) async fn a_loop_is_preempted() -> Outcome {
    let program = load(&[0xeb, 0xfe], Rights::READ)?; // jmp to itself
    let mut context = thread();
    check!(context.run(&program.space) == Trap::Preempted);
    // A sleeping task of the same core gets its turn while the loop runs.
    let woken = Arc::new(AtomicBool::new(false));
    let flag = woken.clone();
    libos::spawn(async move {
        libos::sleep(Duration::from_millis(3)).await;
        flag.store(true, Ordering::Relaxed);
    })
    .detach();
    while !woken.load(Ordering::Relaxed) {
        check!(context.run(&program.space) == Trap::Preempted);
        libos::yield_now().await;
    }
    Ok(())
}

pub(crate) async fn an_unmapped_page_is_gone_on_every_core() -> Outcome {
    // mov rax, [rdi]; jmp back
    let program = load(&[0x48, 0x8b, 0x07, 0xeb, 0xfb], Rights::READ)?;
    let other = libos::cores() - 1;
    for _ in 0..20 {
        let started = Arc::new(AtomicBool::new(false));
        let (flag, space) = (started.clone(), program.space.clone());
        let reader = libos::spawn_on(other, async move {
            let mut context = thread();
            context.registers.rdi = DATA;
            flag.store(true, Ordering::Relaxed);
            loop {
                match context.run(&space) {
                    Trap::Preempted => libos::yield_now().await,
                    trap => return trap,
                }
            }
        });
        while !started.load(Ordering::Relaxed) {
            libos::yield_now().await;
        }
        libos::sleep(Duration::from_millis(2)).await;
        check!(program.space.unmap(DATA).is_some());
        let trap = reader.await;
        check!(
            matches!(
                trap,
                Trap::PageFault {
                    addr: DATA,
                    present: false,
                    ..
                }
            ),
            "{trap:?}"
        );
        program
            .space
            .map(DATA, program.data, Rights::READ)
            .map_err(|_| "not mapped")?;
    }
    Ok(())
}

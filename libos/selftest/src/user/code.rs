//! Programs of a few instructions, as machine code.

/// Two system calls, then an invalid instruction.
pub(crate) const SYSCALL: &[u8] = &[
    0x0f, 0x05, // syscall
    0x0f, 0x05, // syscall
    0x0f, 0x0b, // ud2
];

/// Loads from rdi.
pub(crate) const LOAD: &[u8] = &[
    0x48, 0x8b, 0x07, // mov rax,QWORD PTR [rdi]
    0x0f, 0x05, // syscall
];

/// Stores to rdi.
pub(crate) const STORE: &[u8] = &[
    0x48, 0x89, 0x07, // mov QWORD PTR [rdi],rax
    0x0f, 0x05, // syscall
];

/// Jumps to rdi.
pub(crate) const JUMP: &[u8] = &[
    0xff, 0xe7, // jmp rdi
];

/// Divides by zero.
pub(crate) const DIVIDE: &[u8] = &[
    0x31, 0xc9, // xor ecx,ecx
    0xf7, 0xf1, // div ecx
];

/// An instruction that is none.
pub(crate) const UNDEFINED: &[u8] = &[
    0x0f, 0x0b, // ud2
];

/// A breakpoint.
pub(crate) const BREAKPOINT: &[u8] = &[
    0xcc, // int3
];

/// Turns interrupts off.
pub(crate) const CLI: &[u8] = &[
    0xfa, // cli
];

/// Stops the CPU.
pub(crate) const HLT: &[u8] = &[
    0xf4, // hlt
];

/// Reads an I/O port.
pub(crate) const PORT_IN: &[u8] = &[
    0xec, // in al,dx
];

/// Writes an I/O port.
pub(crate) const PORT_OUT: &[u8] = &[
    0xee, // out dx,al
];

/// A software interrupt.
pub(crate) const INT80: &[u8] = &[
    0xcd, 0x80, // int 0x80
];

/// A software interrupt by a device's vector.
pub(crate) const INT_TIMER: &[u8] = &[
    0xcd, 0xf0, // int 0xf0
];

/// Loads page tables.
pub(crate) const LOAD_CR3: &[u8] = &[
    0x0f, 0x22, 0xd8, // mov cr3,rax
];

/// Reads a model-specific register.
pub(crate) const READ_MSR: &[u8] = &[
    0x0f, 0x32, // rdmsr
];

/// Swaps the GS bases.
pub(crate) const SWAPGS: &[u8] = &[
    0x0f, 0x01, 0xf8, // swapgs
];

/// Pops from the stack pointer in rdi.
pub(crate) const STACK_FAULT: &[u8] = &[
    0x48, 0x89, 0xfc, // mov rsp,rdi
    0x58, // pop rax
];

/// Turns single-stepping on.
pub(crate) const SINGLE_STEP: &[u8] = &[
    0x9c, // pushf
    0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, // or DWORD PTR [rsp],0x100
    0x9d, // popf
    0x90, // nop
    0x0f, 0x05, // syscall
];

/// Divides by zero in the x87 with that exception on.
pub(crate) const X87_ERROR: &[u8] = &[
    0x68, 0x7b, 0x03, 0x00, 0x00, // push 0x37b
    0xd9, 0x2c, 0x24, // fldcw WORD PTR [rsp]
    0xd9, 0xee, // fldz
    0xd9, 0xe8, // fld1
    0xde, 0xf1, // fdivrp st(1),st
    0x9b, // fwait
];

/// Loops for ever.
pub(crate) const LOOP: &[u8] = &[
    0xeb, 0xfe, // jmp 0x0
];

/// Counts in memory at rdi for ever.
pub(crate) const COUNT: &[u8] = &[
    0x48, 0xff, 0xc0, // inc rax
    0x48, 0x89, 0x07, // mov QWORD PTR [rdi],rax
    0xeb, 0xf8, // jmp 0x0
];

/// Sets the flags in rdi, system call, reads them into rax, system call.
pub(crate) const FLAGS: &[u8] = &[
    0x57, // push rdi
    0x9d, // popf
    0x0f, 0x05, // syscall
    0x9c, // pushf
    0x58, // pop rax
    0x0f, 0x05, // syscall
];

/// Reads the flags into rax.
pub(crate) const GET_FLAGS: &[u8] = &[
    0x9c, // pushf
    0x58, // pop rax
    0x0f, 0x05, // syscall
];

/// Puts rdi into xmm15 and gives it back in rax after a system call, for ever.
pub(crate) const XMM: &[u8] = &[
    0x66, 0x4c, 0x0f, 0x6e, 0xff, // movq xmm15,rdi
    0x0f, 0x05, // syscall
    0x66, 0x4c, 0x0f, 0x7e, 0xf8, // movq rax,xmm15
    0xeb, 0xf7, // jmp 0x5
];

/// Loops like the code above, by the upper half of ymm15.
pub(crate) const YMM: &[u8] = &[
    0x66, 0x48, 0x0f, 0x6e, 0xc7, // movq xmm0,rdi
    0xc4, 0x63, 0x05, 0x18, 0xf8, 0x01, // vinsertf128 ymm15,ymm15,xmm0,0x1
    0x0f, 0x05, // syscall
    0xc4, 0x63, 0x7d, 0x19, 0xf8, 0x01, // vextractf128 xmm0,ymm15,0x1
    0x66, 0x48, 0x0f, 0x7e, 0xc0, // movq rax,xmm0
    0xeb, 0xf1, // jmp 0xb
];

/// Gives what the FPU starts with: MXCSR and x87 control word on the stack's top, xmm7 in rax.
pub(crate) const FPU_START: &[u8] = &[
    0x48, 0x83, 0xec, 0x10, // sub rsp,0x10
    0x0f, 0xae, 0x1c, 0x24, // stmxcsr DWORD PTR [rsp]
    0xd9, 0x7c, 0x24, 0x04, // fnstcw WORD PTR [rsp+0x4]
    0x66, 0x48, 0x0f, 0x7e, 0xf8, // movq rax,xmm7
    0x48, 0x8b, 0x1c, 0x24, // mov rbx,QWORD PTR [rsp]
    0x0f, 0x05, // syscall
];

/// Sets the direction flag, then an invalid instruction.
pub(crate) const DIRECTION: &[u8] = &[
    0xfd, // std
    0x0f, 0x0b, // ud2
];

/// Loads null selectors into FS and GS.
pub(crate) const SELECTORS: &[u8] = &[
    0x31, 0xc0, // xor eax,eax
    0x8e, 0xe0, // mov fs,eax
    0x8e, 0xe8, // mov gs,eax
    0x0f, 0x05, // syscall
];

/// Loads through FS and GS.
pub(crate) const SEGMENTS: &[u8] = &[
    0x64, 0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00, // mov rax,QWORD PTR fs:0x0
    0x65, 0x48, 0x8b, 0x1c, 0x25, 0x08, 0x00, 0x00, 0x00, // mov rbx,QWORD PTR gs:0x8
    0x0f, 0x05, // syscall
];

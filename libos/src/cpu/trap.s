// Trap entries: what follows the vectors' stubs.
//
// From the kernel: registers are pushed on the interrupted stack. From a program: they go straight into the context
// that the core runs (gs:[{pc_context}]), and the code that entered user mode returns to its caller. Nothing is
// allocated and no lock is taken.

.text
.balign 16
.global trap_common
trap_common:
    // [rsp]: vector, error, rip, cs, rflags, rsp, ss. The lower two bits of cs are the interrupted code's privilege
    // level. They alone tell whether GS is the program's: the kernel's has no window in which it is not, as interrupts
    // stay off from every SWAPGS to the program, and what can't be held off (NMI, machine check) ends the node.
    test byte ptr [rsp + 24], 3
    jnz trap_from_user
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    // Rust expects the direction flag clear and the stack aligned to 16 bytes at a call; the gate sees to neither
    // (System V ABI for x86-64, section 3.2.2).
    cld
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    call {kernel_trap}
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

.balign 16
trap_from_user:
    // On the entry stack of the TSS, as a program's stack pointer may be anything. Each core has one program at a
    // time, so one scratch word and one context are enough.
    swapgs
    mov gs:[{pc_scratch}], rax
    mov rax, gs:[{pc_context}]
    mov [rax + {r_rcx}], rcx
    mov [rax + {r_rdx}], rdx
    mov [rax + {r_rbx}], rbx
    mov [rax + {r_rbp}], rbp
    mov [rax + {r_rsi}], rsi
    mov [rax + {r_rdi}], rdi
    mov [rax + {r_r8}], r8
    mov [rax + {r_r9}], r9
    mov [rax + {r_r10}], r10
    mov [rax + {r_r11}], r11
    mov [rax + {r_r12}], r12
    mov [rax + {r_r13}], r13
    mov [rax + {r_r14}], r14
    mov [rax + {r_r15}], r15
    mov rcx, gs:[{pc_scratch}]
    mov [rax + {r_rax}], rcx
    pop rcx
    mov [rax + {r_vector}], rcx
    pop rcx
    mov [rax + {r_error}], rcx
    pop rcx
    mov [rax + {r_rip}], rcx
    pop rcx                         // cs
    pop rcx
    mov [rax + {r_rflags}], rcx
    pop rcx
    mov [rax + {r_rsp}], rcx
    jmp leave_user

.balign 16
.global syscall_entry
syscall_entry:
    // SYSCALL leaves rip in rcx, rflags in r11, and the program's stack in rsp (Intel SDM volume 2B, SYSCALL). Nothing
    // may be pushed before that is put away; SFMASK has turned interrupts off.
    swapgs
    mov gs:[{pc_scratch}], rax
    mov rax, gs:[{pc_context}]
    mov [rax + {r_rcx}], rcx
    mov [rax + {r_rip}], rcx
    mov [rax + {r_rdx}], rdx
    mov [rax + {r_rbx}], rbx
    mov [rax + {r_rbp}], rbp
    mov [rax + {r_rsi}], rsi
    mov [rax + {r_rdi}], rdi
    mov [rax + {r_r8}], r8
    mov [rax + {r_r9}], r9
    mov [rax + {r_r10}], r10
    mov [rax + {r_r11}], r11
    mov [rax + {r_rflags}], r11
    mov [rax + {r_r12}], r12
    mov [rax + {r_r13}], r13
    mov [rax + {r_r14}], r14
    mov [rax + {r_r15}], r15
    mov [rax + {r_rsp}], rsp
    mov rcx, gs:[{pc_scratch}]
    mov [rax + {r_rax}], rcx
    mov qword ptr [rax + {r_vector}], {syscall_vector}

leave_user:
    mov rsp, gs:[{pc_kernel_rsp}]
    // All flags clear: the direction flag, as Rust has it, and the alignment-check flag, which would open the
    // program's pages to the kernel. A gate leaves both as the program had them.
    push 2
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

// enter_user(registers, by_sysret): runs the program until its next trap. Interrupts are off.
.balign 16
.global enter_user
enter_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov gs:[{pc_context}], rdi
    mov gs:[{pc_kernel_rsp}], rsp
    mov rax, rdi
    test esi, esi
    jnz 1f
    push {user_data}
    push [rax + {r_rsp}]
    push [rax + {r_rflags}]
    push {user_code}
    push [rax + {r_rip}]
1:
    mov rdx, [rax + {r_rdx}]
    mov rbx, [rax + {r_rbx}]
    mov rbp, [rax + {r_rbp}]
    mov rdi, [rax + {r_rdi}]
    mov r8, [rax + {r_r8}]
    mov r9, [rax + {r_r9}]
    mov r10, [rax + {r_r10}]
    mov r12, [rax + {r_r12}]
    mov r13, [rax + {r_r13}]
    mov r14, [rax + {r_r14}]
    mov r15, [rax + {r_r15}]
    mov r11, [rax + {r_r11}]
    mov rcx, [rax + {r_rcx}]
    test esi, esi
    mov rsi, [rax + {r_rsi}]
    jnz 2f
    mov rax, [rax + {r_rax}]
    swapgs
    iretq
2:
    // rcx and r11 hold rip and rflags: the caller made sure of it, and that rip is canonical. On Intel's CPUs SYSRET
    // to any other address faults in ring 0 with the program's stack (Linux `entry_64.S`, `entry_SYSCALL_64`;
    // CVE-2012-0217).
    mov rsp, [rax + {r_rsp}]
    mov rax, [rax + {r_rax}]
    swapgs
    sysretq

# The code of the vDSO: what a program calls to learn the time and its core without the kernel.
#
# It runs in user mode, at an address that is not known here: the code lies 0xc00 bytes into its first
# page, and the page before that one holds, written once by `vdso::data`:
#
#    0  the time stamp counter when the clock began
#    8  nanoseconds a tick, in units of 2^-32
#   16  nanoseconds from 1970 to the clock's beginning
#   24  1 if RDTSCP is there and gives the core's number
#
# As in `time::now`: (ticks - beginning) * scale >> 32.

    .section .rodata.vdso, "a"
    .balign 16
    .globl vdso_code, vdso_code_end
    .globl vdso_clock_gettime, vdso_gettimeofday, vdso_time, vdso_getcpu, vdso_clock_getres
vdso_code:
    .set vdso_data, vdso_code - 0x1c00
    # Clocks that are read here: 0, 1, 4, 5, 6, 7 and 11; those of the wall are 0, 5 and 11.
    .set CLOCKS, 0x8f3
    .set WALL_CLOCKS, 0x821
    .set SYS_GETTIMEOFDAY, 96
    .set SYS_CLOCK_GETTIME, 228
    .set SYS_CLOCK_GETRES, 229
    .set SYS_GETCPU, 309

# Nanoseconds since the clock's beginning into rax. Changes rdx.
vdso_nanoseconds:
    # RDTSC does not wait for earlier loads by itself.
    lfence
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    subq vdso_data(%rip), %rax
    mulq vdso_data + 8(%rip)
    shrdq $32, %rdx, %rax
    ret

# int clock_gettime(clock %edi, struct timespec *%rsi)
vdso_clock_gettime:
    cmpl $11, %edi
    ja 2f
    movl $CLOCKS, %eax
    btl %edi, %eax
    jnc 2f
    call vdso_nanoseconds
    movl $WALL_CLOCKS, %ecx
    btl %edi, %ecx
    jnc 1f
    addq vdso_data + 16(%rip), %rax
1:  xorl %edx, %edx
    movl $1000000000, %ecx
    divq %rcx
    movq %rax, (%rsi)
    movq %rdx, 8(%rsi)
    xorl %eax, %eax
    ret
2:  movl $SYS_CLOCK_GETTIME, %eax
    syscall
    ret

# int gettimeofday(struct timeval *%rdi, struct timezone *%rsi)
vdso_gettimeofday:
    testq %rdi, %rdi
    jz 1f
    call vdso_nanoseconds
    addq vdso_data + 16(%rip), %rax
    xorl %edx, %edx
    movl $1000000000, %ecx
    divq %rcx
    movq %rax, (%rdi)
    movl %edx, %eax
    xorl %edx, %edx
    movl $1000, %ecx
    divl %ecx
    movq %rax, 8(%rdi)
1:  testq %rsi, %rsi
    jz 2f
    movq $0, (%rsi)
2:  xorl %eax, %eax
    ret

# time_t time(time_t *%rdi)
vdso_time:
    call vdso_nanoseconds
    addq vdso_data + 16(%rip), %rax
    xorl %edx, %edx
    movl $1000000000, %ecx
    divq %rcx
    testq %rdi, %rdi
    jz 1f
    movq %rax, (%rdi)
1:  ret

# int getcpu(unsigned *%rdi, unsigned *%rsi, void *%rdx)
vdso_getcpu:
    cmpq $0, vdso_data + 24(%rip)
    je 3f
    rdtscp
    testq %rdi, %rdi
    jz 1f
    movl %ecx, (%rdi)
1:  testq %rsi, %rsi
    jz 2f
    movl $0, (%rsi)
2:  xorl %eax, %eax
    ret
3:  movl $SYS_GETCPU, %eax
    syscall
    ret

# int clock_getres(clock %edi, struct timespec *%rsi)
vdso_clock_getres:
    cmpl $11, %edi
    ja 2f
    movl $CLOCKS, %eax
    btl %edi, %eax
    jnc 2f
    testq %rsi, %rsi
    jz 1f
    movq $0, (%rsi)
    movq $1, 8(%rsi)
1:  xorl %eax, %eax
    ret
2:  movl $SYS_CLOCK_GETRES, %eax
    syscall
    ret
vdso_code_end:
    .text

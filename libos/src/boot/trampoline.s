// Where the other cores begin.
.section .rodata
// Copied to a page below 1 MiB, with the numbers at its end filled in; a started core enters it in real mode with
// cs = page / 16. It goes to 64-bit mode at once (AMD APM volume 2, section 14.6.2: PE and PG may be set together).
.code16
.global ap_trampoline
ap_trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl %cr4, %eax
    orl $0x20, %eax                 // PAE
    movl %eax, %cr4
    movl ap_tables - ap_trampoline, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          // EFER
    rdmsr
    orl $0x900, %eax                // LME, NXE
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax          // CD and NW are set after INIT
    orl $0x80010001, %eax           // PG, WP, PE
    movl %eax, %cr0
    ljmpl *(ap_far - ap_trampoline)
.code64
ap_trampoline_long:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movabsq $ap_high, %rax
    jmpq *%rax
.balign 8
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        // 64-bit code
// What the starter fills in: see `smp.rs`.
.global ap_gdt_pointer
ap_gdt_pointer:
    .word ap_gdt_pointer - ap_gdt - 1
    .long ap_gdt - ap_trampoline    // and the page's address
.balign 4
.global ap_far
ap_far:
    .long ap_trampoline_long - ap_trampoline    // and the page's address
    .long 0x08
.global ap_tables
ap_tables:
    .long 0
.global ap_trampoline_end
ap_trampoline_end:
.text

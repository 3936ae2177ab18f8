// Where the other cores begin.
.section .rodata
// Copied to a page below 1 MiB; a started core enters it in real mode with cs = page / 16.
.code16
.global ap_trampoline
ap_trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl {trampoline} + ap_gdt_pointer - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x10, $ap_start32
.balign 4
ap_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
.global ap_trampoline_end
ap_trampoline_end:
.code64
.text

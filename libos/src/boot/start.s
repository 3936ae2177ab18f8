// From the loader to 64-bit Rust.
//
// The boot protocol (Xen's "PVH direct boot", docs/misc/pvh.pandoc) enters in flat 32-bit protected mode without paging,
// ebx holding the physical address of hvm_start_info. QEMU finds the entry by the ELF note of type 18 and reads its
// value as 8 bytes.

.section .note.pvh, "a", @note
.balign 4
    .long 4                         // length of the name
    .long 8                         // length of the value
    .long 18                        // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

// The entry for a loader of ours (see the crate `handover`).
.balign 4
    .long 8
    .long 8
    .long 1
    .asciz "Tessera"
    .quad handover_start

// The header of Multiboot2 (specification 2.0, section 3.1), in the first 32 KiB of the file. A loader enters in the
// same mode as above, ebx holding the address of its record; it must leave the screen in text mode or as it is.
.section .multiboot2, "a", @progbits
.balign 8
multiboot2_header:
    .long 0xe85250d6                // magic
    .long 0                         // i386, protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    .short 3                        // the entry's address
    .short 0
    .long 12
    .long multiboot2_start
    .balign 8
    .short 0                        // the end
    .short 0
    .long 8
multiboot2_header_end:

.section .boot, "awx", @progbits
.code32
multiboot2_start:
    mov ebp, {multiboot2}
    jmp boot_start
.global pvh_start
pvh_start:
    mov ebp, {pvh}
boot_start:
    cli
    cld
    mov esi, ebx
    mov esp, offset boot_small_stack
    // Turns on paging with the boot page tables.
    mov eax, cr4
    or eax, 0x20                    // PAE
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080             // EFER
    rdmsr
    or eax, 0x900                   // LME, NXE
    wrmsr
    mov eax, cr0
    or eax, 0x80010001              // PG, WP, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    // Still 32-bit code, now in compatibility mode: a far return enters the 64-bit segment.
    mov eax, offset boot_long
    push 0x08
    push eax
    retf

.code64
boot_long:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    movabs rsp, offset {boot_stack} + {boot_stack_size}
    mov edi, esi
    mov esi, ebp
    xor ebp, ebp
    movabs rax, offset {start}
    push 0                          // the end of the frame-pointer chain
    jmp rax

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        // 64-bit code
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

.balign 16
    .skip 64
boot_small_stack:

// The first GiB, at three places: where it is, in the direct map and at the kernel's link address.
.balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .skip 255 * 8
    .quad boot_pdpt + 3
    .skip 254 * 8
    .quad boot_pdpt_high + 3
boot_pdpt:
    .quad boot_pd + 3
    .skip 511 * 8
boot_pdpt_high:
    .skip 510 * 8
    .quad boot_pd + 3
    .skip 8
boot_pd:
    .set page, 0
    .rept 512
    .quad (page << 21) | 0x83
    .set page, page + 1
    .endr
.text
// Where a loader of ours enters: see the crate `handover`. The image may lie anywhere.
.global handover_start
handover_start:
    cli
    cld
    lea rsp, [rip + {boot_stack} + {boot_stack_size}]
    mov esi, {handover}
    xor ebp, ebp
    push 0                          // the end of the frame-pointer chain
    jmp {start}

// The other cores, at the link address: the stack is only mapped by the kernel's own tables, which don't map the trampoline.
.global ap_high
ap_high:
    mov rax, [rip + {ap_root}]
    mov cr3, rax
    mov rsp, [rip + {ap_stack}]
    xor ebp, ebp
    push 0
    jmp {ap_start}

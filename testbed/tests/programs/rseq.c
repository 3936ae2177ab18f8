// Counts in each core's own counter by restartable sequences, from more threads than cores: no
// count is lost, for a thread that was preempted between load and store starts over.
// Prints the sum.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 4
#define ROUNDS 20000
#define SIGNATURE 0x53053053

struct area {
    uint32_t cpu_id_start, cpu_id;
    uint64_t section;
    uint32_t flags, node_id, mm_cid;
} __attribute__((aligned(32)));

static _Thread_local struct area own;
static long counters[256 * 16];

// The C library, musl, registers no area of its own.
static struct area *area(void) {
    if (syscall(SYS_rseq, &own, sizeof own, 0, SIGNATURE) != 0) {
        perror("rseq");
        exit(1);
    }
    return &own;
}

static void count(struct area *area) {
    for (;;) {
        uint32_t core = *(volatile uint32_t *)&area->cpu_id_start;
        long *counter = &counters[core % 256 * 16];
        // Between load and store some hundred instructions, so that preemption hits there.
        __asm__ goto(
            ".pushsection sections, \"aw\"\n"
            ".balign 32\n"
            "3: .long 0, 0\n"
            ".quad 1f, 2f - 1f, 4f\n"
            ".popsection\n"
            "leaq 3b(%%rip), %%rax\n"
            "movq %%rax, %[section]\n"
            "1: cmpl %[core], %[now]\n"
            "jne 4f\n"
            "movq (%[counter]), %%rax\n"
            "movl $400, %%ecx\n"
            "5: decl %%ecx\n"
            "jnz 5b\n"
            "incq %%rax\n"
            "movq %%rax, (%[counter])\n"
            "2:\n"
            ".pushsection aborts, \"ax\"\n"
            // An invalid instruction that holds the signature.
            ".byte 0x0f, 0xb9, 0x3d\n"
            ".long 0x53053053\n"
            "4: jmp %l[again]\n"
            ".popsection\n"
            :
            : [section] "m"(area->section), [now] "m"(area->cpu_id), [core] "r"(core),
              [counter] "r"(counter)
            : "rax", "rcx", "cc", "memory"
            : again);
        return;
    again:;
    }
}

static void *work(void *unused) {
    struct area *mine = area();
    for (int round = 0; round < ROUNDS; round++)
        count(mine);
    return unused;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++)
        pthread_create(&threads[n], NULL, work, NULL);
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    long sum = 0;
    for (int core = 0; core < 256; core++)
        sum += counters[core * 16];
    printf("%ld of %d\n", sum, THREADS * ROUNDS);
    return sum != THREADS * ROUNDS;
}

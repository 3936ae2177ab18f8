/*
 * Counts the instructions that a guest's kernel executes, by address, in phases that a program in
 * the guest marks.
 *
 *   -plugin counts.so,out=FILE[,hold=MICROSECONDS][,seen=ADDRESS]...
 *
 * A program begins phase N (0 to 255) by executing `nopl 0x7e424dNN(%rax)`. Phase 0 lasts from
 * reset to the first mark. In phases 1 to 127 a vCPU that stores to the adapter stops for `hold`
 * microseconds: with a hold that outlasts the adapter's work, the completion is there at the first
 * look, and polling all but disappears from the counts.
 *
 * Kernel instructions are those in the upper half of the address space. Each has a counter of its
 * own in each vCPU, which QEMU increments inline before it executes the instruction. So a block
 * that QEMU leaves early (by an exception, or to repeat a device access alone) needs no correction.
 * A REP instruction counts once an entry.
 *
 * From a kernel instruction that follows one of the program's until the next of the program's the
 * vCPU is on an excursion. Its instructions are summed in three stages: until the first store to
 * the adapter, from there until the latest execution of a `seen` address (where software has found
 * the completion), and the rest.
 *
 * When QEMU exits it writes FILE:
 *
 *   tessera-counts 1 LOST VCPUS
 *   excursion PHASE ENTRY STORES COUNT BEFORE DURING AFTER     sums; STORES is 3 for more than 3
 *   device PHASE r|w COUNT NAME                                accesses to devices by the kernel
 *   code ADDRESS BYTES
 *   count PHASE ADDRESS N
 *   end
 *
 * Numbers are decimal, but addresses and bytes, which are hexadecimal.
 */
#define _GNU_SOURCE
#include "qemu.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

EXPORTED int qemu_plugin_version = 7;

enum {
    SLOTS = 1 << 19,   /* Instructions that have a counter; a Linux kernel executes some 300,000. */
    BUCKETS = 1 << 20, /* Of the hash table over them. */
    PHASES = 256,
    FIRST_WITHOUT_HOLD = 128,
    VCPUS = 16,
    KINDS = 1 << 10,   /* Kinds of excursions, and of device accesses. */
    SEEN = 32,
    LONGEST = 15,      /* An x86 instruction. */
    ADAPTER_NAME = 64,
};

enum stage { OUTSIDE, BEFORE, DURING, AFTER, STAGES };

/* A vCPU's entry in the scoreboard. QEMU's own code adds to `executed` and `counts`. */
struct vcpu {
    uint64_t stage;
    uint64_t executed;
    uint64_t since;  /* `executed` when the stage began. */
    uint64_t entry, stores, sums[STAGES];
    uint64_t counts[SLOTS];
};

struct instruction {
    uint64_t address;
    uint8_t size, code[LONGEST];
};

struct excursion {
    int phase;
    uint64_t entry, stores, count, sums[STAGES];
};

struct access {
    int phase, is_store;
    uint64_t count;
    char device[ADAPTER_NAME];
};

static struct qemu_plugin_scoreboard *board;
static struct instruction instructions[SLOTS];
static uint32_t count_of_instructions, buckets[BUCKETS];
static uint64_t *phase_counts[PHASES], before[VCPUS][SLOTS];
static struct excursion excursions[KINDS];
static struct access accesses[KINDS];
static int count_of_excursions, count_of_accesses, phase, lost;
static uint64_t seen[SEEN], hold_us;
static int count_of_seen;
static const char *out;
/* Guards all of the above but the scoreboard. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct vcpu *vcpu_of(unsigned index)
{
    return qemu_plugin_scoreboard_find(board, index);
}

static int is_kernel(uint64_t address)
{
    return address >> 63;
}

static void enter_stage(struct vcpu *vcpu, enum stage next)
{
    vcpu->sums[vcpu->stage] += vcpu->executed - vcpu->since;
    vcpu->since = vcpu->executed;
    vcpu->stage = next;
}

/* With the lock held: attributes what was counted since the last call to the phase that ends
   now. */
static void end_phase(int next)
{
    if (!phase_counts[phase])
        phase_counts[phase] = calloc(SLOTS, sizeof *phase_counts[phase]);
    int vcpus = qemu_plugin_num_vcpus();
    for (int v = 0; v < vcpus && v < VCPUS; v++) {
        const uint64_t *counts = vcpu_of(v)->counts;
        for (uint32_t slot = 0; slot < count_of_instructions; slot++) {
            phase_counts[phase][slot] += counts[slot] - before[v][slot];
            before[v][slot] = counts[slot];
        }
    }
    phase = next;
}

static void on_mark(unsigned vcpu, void *next)
{
    (void)vcpu;
    pthread_mutex_lock(&lock);
    end_phase((int)(uintptr_t)next);
    pthread_mutex_unlock(&lock);
}

static void on_kernel_entry(unsigned index, void *address)
{
    struct vcpu *vcpu = vcpu_of(index);
    vcpu->entry = (uint64_t)(uintptr_t)address;
    vcpu->stores = 0;
    vcpu->since = vcpu->executed;
    memset(vcpu->sums, 0, sizeof vcpu->sums);
    vcpu->stage = BEFORE;
}

static void on_kernel_exit(unsigned index, void *data)
{
    (void)data;
    struct vcpu *vcpu = vcpu_of(index);
    enter_stage(vcpu, OUTSIDE);
    pthread_mutex_lock(&lock);
    int at = 0;
    struct excursion *e = excursions;
    while (at < count_of_excursions && (e->phase != phase || e->entry != vcpu->entry || e->stores != vcpu->stores))
        at++, e++;
    if (at == KINDS) {
        lost++;
    } else {
        if (at == count_of_excursions) {
            count_of_excursions++;
            *e = (struct excursion){.phase = phase, .entry = vcpu->entry, .stores = vcpu->stores};
        }
        e->count++;
        for (int stage = BEFORE; stage < STAGES; stage++)
            e->sums[stage] += vcpu->sums[stage];
    }
    pthread_mutex_unlock(&lock);
}

/* A task may find completions of others several times before its own: the latest counts. */
static void on_seen(unsigned index, void *data)
{
    (void)data;
    struct vcpu *vcpu = vcpu_of(index);
    if (vcpu->stage == DURING) {
        enter_stage(vcpu, AFTER);
    } else if (vcpu->stage == AFTER) {
        vcpu->sums[DURING] += vcpu->sums[AFTER] + vcpu->executed - vcpu->since;
        vcpu->sums[AFTER] = 0;
        vcpu->since = vcpu->executed;
    }
}

/* With the lock held. */
static void count_access(const char *device, int is_store)
{
    struct access *a = accesses;
    int at = 0;
    while (at < count_of_accesses &&
           (a->phase != phase || a->is_store != is_store || strncmp(a->device, device, ADAPTER_NAME - 1)))
        at++, a++;
    if (at == KINDS) {
        lost++;
        return;
    }
    if (at == count_of_accesses) {
        count_of_accesses++;
        *a = (struct access){.phase = phase, .is_store = is_store};
        strncpy(a->device, device, ADAPTER_NAME - 1);
    }
    a->count++;
}

/* The adapter is the only device that QEMU passes on by vfio. */
static int is_adapter(const char *device)
{
    return strcasestr(device, "vfio") != NULL;
}

static void on_access(unsigned index, qemu_plugin_meminfo_t info, uint64_t vaddr, void *data)
{
    (void)data;
    struct qemu_plugin_hwaddr *where = qemu_plugin_get_hwaddr(info, vaddr);
    if (!where || !qemu_plugin_hwaddr_is_io(where))
        return;
    const char *device = qemu_plugin_hwaddr_device_name(where);
    device = device ? device : "unnamed";
    int is_store = qemu_plugin_mem_is_store(info);
    pthread_mutex_lock(&lock);
    count_access(device, is_store);
    int holds = hold_us && phase > 0 && phase < FIRST_WITHOUT_HOLD;
    pthread_mutex_unlock(&lock);
    if (!is_store || !is_adapter(device))
        return;
    struct vcpu *vcpu = vcpu_of(index);
    if (vcpu->stores < 3)
        vcpu->stores++;
    if (vcpu->stage == BEFORE)
        enter_stage(vcpu, DURING);
    if (holds) {
        struct timespec time = {hold_us / 1000000, hold_us % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
}

/* With the lock held: the slot of an instruction, SLOTS if all are taken. */
static uint32_t slot_of(struct qemu_plugin_insn *insn)
{
    uint64_t address = qemu_plugin_insn_vaddr(insn);
    uint32_t bucket = (uint32_t)(address * 0x9e3779b97f4a7c15ull >> 44) % BUCKETS;
    for (; buckets[bucket]; bucket = (bucket + 1) % BUCKETS)
        if (instructions[buckets[bucket] - 1].address == address)
            return buckets[bucket] - 1;
    if (count_of_instructions == SLOTS) {
        lost++;
        return SLOTS;
    }
    struct instruction *new = instructions + count_of_instructions;
    new->address = address;
    new->size = qemu_plugin_insn_size(insn);
    qemu_plugin_insn_data(insn, new->code, LONGEST);
    buckets[bucket] = ++count_of_instructions;
    return count_of_instructions - 1;
}

static qemu_plugin_u64 field(size_t offset)
{
    return (qemu_plugin_u64){board, offset};
}

static void instrument_kernel(struct qemu_plugin_tb *tb, struct qemu_plugin_insn *insn)
{
    uint64_t address = qemu_plugin_insn_vaddr(insn);
    uint32_t slot = slot_of(insn);
    qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, ADD, field(offsetof(struct vcpu, executed)), 1);
    if (slot < SLOTS)
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
            insn, ADD, field(offsetof(struct vcpu, counts) + slot * sizeof(uint64_t)), 1);
    for (int i = 0; i < count_of_seen; i++)
        if (seen[i] == address)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_seen, WITHOUT_REGISTERS, NULL);
    /* QEMU repeats an access to a device alone, in a block of one instruction. Looking at those
       only costs the others nothing. */
    if (qemu_plugin_tb_n_insns(tb) == 1)
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, WITHOUT_REGISTERS, READS_AND_WRITES, NULL);
}

/* nopl disp32(%rax), the displacement's upper bytes being "MB~". */
static void instrument_program(struct qemu_plugin_insn *insn)
{
    static const uint8_t opcode[] = {0x0f, 0x1f, 0x80}, magic[] = {0x4d, 0x42, 0x7e};
    uint8_t code[LONGEST];
    if (qemu_plugin_insn_size(insn) != 7 || qemu_plugin_insn_data(insn, code, 7) != 7)
        return;
    if (!memcmp(code, opcode, sizeof opcode) && !memcmp(code + 4, magic, sizeof magic))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark, WITHOUT_REGISTERS, (void *)(uintptr_t)code[3]);
}

static void on_translation(struct qemu_plugin_tb *tb, void *data)
{
    (void)data;
    uint64_t start = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
    size_t count = qemu_plugin_tb_n_insns(tb);
    qemu_plugin_u64 stage = field(offsetof(struct vcpu, stage));
    if (is_kernel(start))
        qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, on_kernel_entry, WITHOUT_REGISTERS, IF_EQUAL, stage, OUTSIDE,
                                                  (void *)(uintptr_t)start);
    else
        qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, on_kernel_exit, WITHOUT_REGISTERS, IF_NOT, stage, OUTSIDE, NULL);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        if (is_kernel(start))
            instrument_kernel(tb, insn);
        else
            instrument_program(insn);
    }
    pthread_mutex_unlock(&lock);
}

static void write_counts(FILE *file)
{
    for (uint32_t slot = 0; slot < count_of_instructions; slot++) {
        const struct instruction *i = instructions + slot;
        int is_used = 0;
        for (int p = 1; p < PHASES; p++) {
            if (!phase_counts[p] || !phase_counts[p][slot])
                continue;
            if (!is_used++) {
                fprintf(file, "code %" PRIx64 " ", i->address);
                for (int k = 0; k < i->size; k++)
                    fprintf(file, "%02x", i->code[k]);
                fputc('\n', file);
            }
            fprintf(file, "count %d %" PRIx64 " %" PRIu64 "\n", p, i->address, phase_counts[p][slot]);
        }
    }
}

static void on_exit_of_qemu(void *data)
{
    (void)data;
    pthread_mutex_lock(&lock);
    end_phase(phase);
    FILE *file = fopen(out, "w");
    if (file) {
        fprintf(file, "tessera-counts 1 %d %d\n", lost, qemu_plugin_num_vcpus());
        for (const struct excursion *e = excursions; e < excursions + count_of_excursions; e++)
            fprintf(file, "excursion %d %" PRIx64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", e->phase,
                    e->entry, e->stores, e->count, e->sums[BEFORE], e->sums[DURING], e->sums[AFTER]);
        for (const struct access *a = accesses; a < accesses + count_of_accesses; a++)
            fprintf(file, "device %d %c %" PRIu64 " %s\n", a->phase, a->is_store ? 'w' : 'r', a->count, a->device);
        write_counts(file);
        fputs("end\n", file);
        fclose(file);
    }
    pthread_mutex_unlock(&lock);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        if (!value++)
            return -1;
        if (!strncmp(argv[i], "out=", 4))
            out = value;
        else if (!strncmp(argv[i], "hold=", 5))
            hold_us = strtoull(value, NULL, 10);
        else if (!strncmp(argv[i], "seen=", 5) && count_of_seen < SEEN)
            seen[count_of_seen++] = strtoull(value, NULL, 16);
        else
            return -1;
    }
    if (!out || !info->is_system || info->system.max_vcpus > VCPUS) {
        qemu_plugin_outs("counts: wants out=FILE and a machine of at most 16 cores\n");
        return -1;
    }
    board = qemu_plugin_scoreboard_new(sizeof(struct vcpu));
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, NULL);
    qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}

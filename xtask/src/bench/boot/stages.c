/*
 * Records when a guest reaches places: the time, and the instructions executed before, all cores
 * together.
 *
 *   -plugin stages.so,out=FILE[,at=ADDRESS]...[,first=ADDRESS]...
 *
 * A place is an instruction's address: `at` records each time it is executed, up to EVENTS, `first`
 * the first time. The first access to the adapter is recorded too, and its first command: a store to
 * the last register of the command interface, at 0x80698 of a BAR that is aligned to 1 MiB.
 *
 * When QEMU exits it writes FILE, all numbers decimal but addresses:
 *
 *   tessera-stages 1 LOST
 *   at ADDRESS NANOSECONDS INSTRUCTIONS     in the order in which they happened
 *   adapter NANOSECONDS INSTRUCTIONS
 *   command NANOSECONDS INSTRUCTIONS
 *   end
 *
 * Nanoseconds count from the plugin's start, which is QEMU's.
 */
#define _GNU_SOURCE
#include "../miss/plugin/qemu.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

EXPORTED int qemu_plugin_version = 7;

enum { PLACES = 16, EVENTS = 4096, VCPUS = 16 };

static const uint64_t COMMAND = 0x80698, BAR_MASK = 0xfffff;

struct event {
    uint64_t address, nanos, instructions;
};

struct place {
    uint64_t address;
    int only_first, seen;
};

static struct qemu_plugin_scoreboard *board; /* One counter a vCPU, which QEMU's own code adds to. */
static struct place places[PLACES];
static struct event events[EVENTS], adapter, command;
static int count_of_places, count_of_events, lost;
static struct timespec started;
static const char *out;
/* Guards the events. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct event now(uint64_t address)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    struct event event = {.address = address};
    event.nanos = (time.tv_sec - started.tv_sec) * 1000000000 + time.tv_nsec - started.tv_nsec;
    int vcpus = qemu_plugin_num_vcpus();
    for (int v = 0; v < vcpus && v < VCPUS; v++)
        event.instructions += *(uint64_t *)qemu_plugin_scoreboard_find(board, v);
    return event;
}

static void on_place(unsigned vcpu, void *data)
{
    (void)vcpu;
    struct place *place = data;
    pthread_mutex_lock(&lock);
    if (!place->only_first || !place->seen++) {
        if (count_of_events == EVENTS)
            lost++;
        else
            events[count_of_events++] = now(place->address);
    }
    pthread_mutex_unlock(&lock);
}

static void on_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *data)
{
    (void)vcpu, (void)data;
    if (command.nanos)
        return;
    struct qemu_plugin_hwaddr *where = qemu_plugin_get_hwaddr(info, vaddr);
    if (!where || !qemu_plugin_hwaddr_is_io(where))
        return;
    const char *device = qemu_plugin_hwaddr_device_name(where);
    /* The adapter is the only device that QEMU passes on by vfio. */
    if (!device || !strcasestr(device, "vfio"))
        return;
    pthread_mutex_lock(&lock);
    if (!adapter.nanos)
        adapter = now(0);
    if (!command.nanos && qemu_plugin_mem_is_store(info) && (vaddr & BAR_MASK) == COMMAND)
        command = now(0);
    pthread_mutex_unlock(&lock);
}

static void on_translation(struct qemu_plugin_tb *tb, void *data)
{
    (void)data;
    size_t count = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t address = qemu_plugin_insn_vaddr(insn);
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, ADD, (qemu_plugin_u64){board, 0}, 1);
        for (int p = 0; p < count_of_places; p++)
            if (places[p].address == address)
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_place, WITHOUT_REGISTERS, places + p);
        /* QEMU repeats an access to a device alone, in a block of one instruction. */
        if (count == 1)
            qemu_plugin_register_vcpu_mem_cb(insn, on_access, WITHOUT_REGISTERS, READS_AND_WRITES, NULL);
    }
}

static void write_event(FILE *file, struct event event)
{
    fprintf(file, " %" PRIu64 " %" PRIu64 "\n", event.nanos, event.instructions);
}

static void on_exit_of_qemu(void *data)
{
    (void)data;
    pthread_mutex_lock(&lock);
    FILE *file = fopen(out, "w");
    if (file) {
        fprintf(file, "tessera-stages 1 %d\n", lost);
        for (int i = 0; i < count_of_events; i++) {
            fprintf(file, "at %" PRIx64, events[i].address);
            write_event(file, events[i]);
        }
        if (adapter.nanos)
            fputs("adapter", file), write_event(file, adapter);
        if (command.nanos)
            fputs("command", file), write_event(file, command);
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
        int only_first = !strncmp(argv[i], "first=", 6);
        if (!strncmp(argv[i], "out=", 4))
            out = value;
        else if ((only_first || !strncmp(argv[i], "at=", 3)) && count_of_places < PLACES)
            places[count_of_places++] = (struct place){strtoull(value, NULL, 16), only_first, 0};
        else
            return -1;
    }
    if (!out || !info->is_system || info->system.max_vcpus > VCPUS) {
        qemu_plugin_outs("stages: wants out=FILE and a machine of at most 16 cores\n");
        return -1;
    }
    clock_gettime(CLOCK_MONOTONIC, &started);
    board = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, NULL);
    qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}

/*
 * Declares what our plugins use of QEMU's interface for TCG plugins.
 *
 * Debian's QEMU brings no header, and one from another version would differ silently. These
 * declarations are of version 7 of the interface (QEMU 11.1: each callback takes user data), as
 * QEMU's `include/plugins/qemu-plugin.h` and `docs/devel/tcg-plugins.rst` describe it. QEMU refuses
 * a plugin whose version it does not speak.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
struct qemu_plugin_scoreboard;

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
/* A 64-bit field of each vCPU's entry in a scoreboard. */
typedef struct {
    struct qemu_plugin_scoreboard *board;
    size_t offset;
} qemu_plugin_u64;
typedef struct {
    const char *target;
    struct {
        int min, current;
    } version;
    bool is_system;
    struct {
        int smp_vcpus, max_vcpus;
    } system;
} qemu_info_t;

enum { WITHOUT_REGISTERS = 0 };     /* enum qemu_plugin_cb_flags */
enum { READS_AND_WRITES = 3 };      /* enum qemu_plugin_mem_rw */
enum { ADD = 0, STORE = 1 };        /* enum qemu_plugin_op */
enum { IF_EQUAL = 2, IF_NOT = 3 };  /* enum qemu_plugin_cond */

typedef void vcpu_callback(unsigned vcpu, void *data);
typedef void memory_callback(unsigned vcpu, qemu_plugin_meminfo_t, uint64_t vaddr, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(struct qemu_plugin_tb *, void *), void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(void *), void *data);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *, vcpu_callback *, int flags, int condition,
                                               qemu_plugin_u64, uint64_t operand, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, vcpu_callback *, int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *, int operation, qemu_plugin_u64,
                                                         uint64_t operand);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, memory_callback *, int flags, int accesses, void *data);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *to, size_t length);

struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *);
const char *qemu_plugin_hwaddr_device_name(const struct qemu_plugin_hwaddr *);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t size_of_entry);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *, unsigned vcpu);
int qemu_plugin_num_vcpus(void);
void qemu_plugin_outs(const char *);

/*
 * Does what programs wait for most often, so that `cargo xtask bench latency` can count what each
 * costs the kernel. Built static against musl, run on one core.
 *
 *   latency COUNT    each operation COUNT times, those that make a process a hundredth of that
 *   latency end      ends at once: the program that `exec` starts
 *
 * Each operation is a phase (phases.h); at the end it prints
 *
 *   phase <tab> NUMBER <tab> NAME <tab> OPERATIONS <tab> NANOSECONDS
 *   wrong <tab> COUNT                     operations that failed
 *
 * The exit status is 1 if anything is wrong.
 */
#define _GNU_SOURCE
#include "phases.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of linux/futex.h, which musl does not bring. */
enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

/* The program's copy in memory, so that no disk is asked. */
static const char *copy = "/tmp/latency";
static size_t wrong;

static void must(int holds)
{
    wrong += !holds;
}

/* A turn that two threads pass to each other. */
static uint32_t turn;

static void pass(uint32_t mine, size_t count)
{
    while (count--) {
        uint32_t now_;
        while ((now_ = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != mine)
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now_, NULL, NULL, 0);
        __atomic_store_n(&turn, !mine, __ATOMIC_RELEASE);
        must(syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) >= 0);
    }
}

static void *second(void *count)
{
    pass(1, (size_t)(uintptr_t)count);
    return NULL;
}

static void futexes(size_t count)
{
    pthread_t thread;
    must(pthread_create(&thread, NULL, second, (void *)(uintptr_t)count) == 0);
    /* The other thread waits before the count begins. */
    usleep(10000);
    PHASE(129, "futex_handoff", 2 * count, pass(0, count); pthread_join(thread, NULL));
}

/* A byte to a process and back. */
static void pipes(size_t count)
{
    int there[2], back[2];
    char byte = 1;
    must(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    if (child == 0) {
        while (count--)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    must(child > 0);
    usleep(10000);
    PHASE(130, "pipe_round_trip", count, for (size_t i = 0; i < count; i++) {
        must(write(there[1], &byte, 1) == 1);
        must(read(back[0], &byte, 1) == 1);
    });
    int status = 1;
    must(waitpid(child, &status, 0) == child && status == 0);
    close(there[0]), close(there[1]), close(back[0]), close(back[1]);
}

static void wait_for(pid_t child)
{
    int status = 1;
    must(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void processes(size_t count)
{
    PHASE(131, "fork_wait", count, for (size_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        wait_for(child);
    });
    PHASE(132, "fork_exec_wait", count, for (size_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl(copy, copy, "end", (char *)NULL);
            _exit(127);
        }
        wait_for(child);
    });
}

static void copy_self(void)
{
    static char buffer[1 << 16];
    int from = open("/proc/self/exe", O_RDONLY), to = open(copy, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    must(from >= 0 && to >= 0);
    ssize_t got;
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        must(write(to, buffer, (size_t)got) == got);
    must(got == 0 && close(from) == 0 && close(to) == 0);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    if (strcmp(argv[1], "end") == 0)
        return 0;
    size_t count = strtoul(argv[1], NULL, 10);
    copy_self();
    PHASE(128, "getpid", count, for (size_t i = 0; i < count; i++) must(syscall(SYS_getpid) > 0));
    futexes(count);
    pipes(count);
    int event = eventfd(0, 0);
    uint64_t value = 1;
    PHASE(133, "eventfd_write_read", count, for (size_t i = 0; i < count; i++) {
        must(write(event, &value, sizeof value) == sizeof value);
        must(read(event, &value, sizeof value) == sizeof value);
    });
    processes(count / 100 + 1);
    fwrite(report, 1, reported, stdout);
    printf("wrong\t%zu\n", wrong);
    return wrong != 0;
}

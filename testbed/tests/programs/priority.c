// Locks with priority inheritance, by glibc and by the bare calls: what is printed must be what Linux prints.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif
#define THREADS 6
#define ROUNDS 2000

static void check(int holds, const char *what) {
    printf("%s: %s\n", what, holds ? "yes" : "NO");
    fflush(stdout);
}

static int call(atomic_uint *word, int op, unsigned value, const struct timespec *time, atomic_uint *other, unsigned third) {
    long got = syscall(SYS_futex, word, op, value, time, other, third);
    return got < 0 ? -errno : (int)got;
}

static void say(const char *what, int got) {
    printf("%s: %s\n", what, got < 0 ? strerrorname_np(-got) : got ? "more" : "0");
    fflush(stdout);
}

static struct timespec soon(clockid_t clock, long ms) {
    struct timespec t;
    clock_gettime(clock, &t);
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void init(pthread_mutex_t *m, int kind, int robust, int shared) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    check(pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT) == 0, "the protocol is known");
    pthread_mutexattr_settype(&a, kind);
    if (robust) pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    if (shared) pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    check(pthread_mutex_init(m, &a) == 0, "a mutex is made");
}

static pthread_mutex_t lock, robust;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long sum;
static int turn;

static void *add(void *arg) {
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        sum += 1;
        if (i % 64 == 0) sched_yield();
        pthread_mutex_unlock(&lock);
    }
    return arg;
}

static void *take_turns(void *arg) {
    for (int i = 0; i < 100; i++) {
        pthread_mutex_lock(&lock);
        while (turn % THREADS != (int)(long)arg) pthread_cond_wait(&changed, &lock);
        turn++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void *try(void *arg) {
    (void)arg;
    struct timespec end = soon(CLOCK_REALTIME, 50);
    check(pthread_mutex_trylock(&lock) == EBUSY, "a lock that is held is busy");
    check(pthread_mutex_timedlock(&lock, &end) == ETIMEDOUT, "a wait for it has an end");
    end = soon(CLOCK_MONOTONIC, 50);
    check(pthread_mutex_clocklock(&lock, CLOCK_MONOTONIC, &end) == ETIMEDOUT, "by either clock");
    check(pthread_mutex_unlock(&lock) == EPERM, "it is not another's to free");
    return NULL;
}

static void by_library(void) {
    pthread_t t[THREADS];
    init(&lock, PTHREAD_MUTEX_ERRORCHECK, 0, 0);
    for (long i = 0; i < THREADS; i++) pthread_create(&t[i], NULL, add, (void *)i);
    for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    check(sum == THREADS * ROUNDS, "it lets one in at a time");
    for (long i = 0; i < THREADS; i++) pthread_create(&t[i], NULL, take_turns, (void *)i);
    for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    check(turn == THREADS * 100, "a condition variable goes with it");
    pthread_mutex_lock(&lock);
    check(pthread_mutex_lock(&lock) == EDEADLK, "who holds it waits for itself");
    pthread_create(&t[0], NULL, try, NULL);
    pthread_join(t[0], NULL);
    pthread_mutex_unlock(&lock);
}

static atomic_int held;

static void *die(void *arg) {
    pthread_mutex_lock(&robust);
    held = 1;
    usleep((long)arg);
    return NULL;
}

static void by_dead_owners(void) {
    init(&robust, PTHREAD_MUTEX_NORMAL, 1, 0);
    for (long wait = 0; wait <= 50000; wait += 50000) {
        pthread_t t;
        held = 0;
        pthread_create(&t, NULL, die, (void *)wait);
        while (!held) usleep(1000);
        if (wait) usleep(20000);
        else pthread_join(t, NULL);
        check(pthread_mutex_lock(&robust) == EOWNERDEAD, "a lock tells that its owner died");
        check(pthread_mutex_consistent(&robust) == 0, "it is mended");
        check(pthread_mutex_unlock(&robust) == 0, "and freed");
        if (wait) pthread_join(t, NULL);
    }
}

struct both {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int value;
};

static void by_processes(void) {
    struct both *b = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&b->changed, &a);
    init(&b->lock, PTHREAD_MUTEX_NORMAL, 1, 1);
    pid_t child = fork();
    if (child == 0) {
        pthread_mutex_lock(&b->lock);
        while (b->value != 1) pthread_cond_wait(&b->changed, &b->lock);
        b->value = 2;
        pthread_cond_signal(&b->changed);
        usleep(20000);
        raise(SIGKILL);
    }
    pthread_mutex_lock(&b->lock);
    b->value = 1;
    pthread_cond_signal(&b->changed);
    int got = 0;
    while (b->value != 2 && !got) got = pthread_cond_wait(&b->changed, &b->lock);
    check(b->value == 2, "another process has the lock meanwhile");
    check(got == EOWNERDEAD, "and dies with it");
    pthread_mutex_consistent(&b->lock);
    pthread_mutex_unlock(&b->lock);
    waitpid(child, NULL, 0);
}

static atomic_uint word, other, condition;
static atomic_int tid_of, stage;

// Holds one word, waits for the other one that its waiter has.
static void *hold(void *arg) {
    (void)arg;
    tid_of = gettid();
    say("a free word is locked", call(&word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    stage = 1;
    while (stage != 2) usleep(1000);
    usleep(300000);
    say("a closed chain of waits", call(&other, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    return (void *)(long)call(&word, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);
}

static void *wait_moved(void *arg) {
    struct timespec end = soon(CLOCK_MONOTONIC, (long)arg);
    int got = call(&condition, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, &end, &other, 0);
    if (got == 0) call(&other, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    return (void *)(long)got;
}

static void *later_unlock(void *arg) {
    (void)arg;
    call(&other, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    stage = 1;
    usleep(100000);
    call(&other, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    return NULL;
}

static volatile sig_atomic_t handled;
static void note(int signal) {
    (void)signal;
    handled++;
}

static void by_calls(void) {
    pthread_t t, u;
    struct timespec end = soon(CLOCK_MONOTONIC, 50);
    word = gettid();
    say("the owner itself", call(&word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    say("the owner itself tries", call(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    word = 0x3ffffff0;
    say("an owner that does not exist", call(&word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    check(word == (0x3ffffff0 | FUTEX_WAITERS), "and is marked");
    say("somebody else's", call(&word, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    word = FUTEX_OWNER_DIED;
    say("a dead owner's", call(&word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    check(word == (FUTEX_OWNER_DIED | (unsigned)gettid()), "the mark stays");
    say("which is unlocked", call(&word, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    check(word == 0, "is free");
    say("no memory", call((atomic_uint *)8, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    say("between words", call((atomic_uint *)((char *)&word + 1), FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    say("LOCK_PI by a chosen clock", call(&word, FUTEX_LOCK_PI | FUTEX_CLOCK_REALTIME, 0, NULL, NULL, 0));

    pthread_create(&t, NULL, hold, NULL);
    while (stage != 1) usleep(1000);
    say("trying", call(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    check(word == ((unsigned)tid_of | FUTEX_WAITERS), "marks a waiter");
    say("LOCK_PI2 until soon", call(&word, FUTEX_LOCK_PI2 | FUTEX_PRIVATE_FLAG, 0, &end, NULL, 0));
    end = soon(CLOCK_REALTIME, 20);
    say("LOCK_PI until soon", call(&word, FUTEX_LOCK_PI_PRIVATE, 0, &end, NULL, 0));
    say("a plain wake of nobody", call(&word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    call(&other, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    struct sigaction action = {.sa_handler = note};
    sigaction(SIGALRM, &action, NULL);
    ualarm(100000, 0);
    stage = 2;
    say("a handler does not end a wait", call(&word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    void *got;
    pthread_join(t, &got);
    say("its owner had unlocked it", (int)(long)got);
    while (!handled) usleep(1000);
    call(&word, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    call(&other, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);

    say("a condition with another value", call(&condition, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 1, NULL, &other, 0));
    say("a condition that is the lock", call(&condition, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, NULL, &condition, 0));
    pthread_create(&t, NULL, wait_moved, (void *)30L);
    pthread_join(t, &got);
    say("it is not moved in time", (int)(long)got);
    pthread_create(&t, NULL, wait_moved, (void *)20000L);
    pthread_create(&u, NULL, wait_moved, (void *)20000L);
    usleep(100000);
    say("it is not woken", call(&condition, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    say("nor moved elsewhere", call(&condition, FUTEX_CMP_REQUEUE_PRIVATE, 0, (void *)1L, &word, 0));
    say("nor to another lock", call(&condition, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1L, &word, 0));
    say("two wake-ups", call(&condition, FUTEX_CMP_REQUEUE_PI_PRIVATE, 2, (void *)1L, &other, 0));
    say("another value", call(&condition, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1L, &other, 7));
    check(call(&condition, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)9L, &other, 0) == 2, "both are moved");
    pthread_join(t, &got);
    say("the first has the lock", (int)(long)got);
    pthread_join(u, &got);
    say("and the second", (int)(long)got);

    stage = 0;
    pthread_create(&t, NULL, later_unlock, NULL);
    while (stage != 1) usleep(1000);
    pthread_create(&u, NULL, wait_moved, (void *)20000L);
    usleep(30000);
    check(call(&condition, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)0L, &other, 0) == 1, "one is moved to a lock that is held");
    pthread_join(u, &got);
    say("and gets it", (int)(long)got);
    pthread_join(t, NULL);
    say("nobody waits any more", call(&other, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0));
}

int main(void) {
    by_library();
    by_dead_owners();
    by_processes();
    by_calls();
    return 0;
}

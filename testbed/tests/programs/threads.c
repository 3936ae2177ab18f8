// Threads, processes, signals and pipes, one behind the other: what is printed must be what Linux prints.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define THREADS 8
#define ROUNDS 2000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long sum;
static int turn;
static _Thread_local long own;

static void check(int holds, const char *what) {
    printf("%s: %s\n", what, holds ? "yes" : "NO");
    fflush(stdout);
}

static void *add(void *arg) {
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        sum += 1;
        pthread_mutex_unlock(&lock);
        own += (long)arg;
    }
    return (void *)own;
}

static void threads_add(void) {
    pthread_t t[THREADS];
    long all = 0;
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&t[i], NULL, add, (void *)(i + 1))) abort();
    for (int i = 0; i < THREADS; i++) {
        void *value;
        pthread_join(t[i], &value);
        all += (long)value;
    }
    check(sum == THREADS * ROUNDS, "a mutex lets one in at a time");
    check(all == ROUNDS * THREADS * (THREADS + 1) / 2, "each thread has variables of its own");
}

static void *take_turns(void *arg) {
    for (int i = 0; i < 200; i++) {
        pthread_mutex_lock(&lock);
        while (turn % 4 != (int)(long)arg) pthread_cond_wait(&changed, &lock);
        turn++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void threads_take_turns(void) {
    pthread_t t[4];
    for (long i = 0; i < 4; i++) pthread_create(&t[i], NULL, take_turns, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    check(turn == 800, "a condition variable wakes those that wait");
}

// Every page carries who wrote it last; all threads go through pages that do not fit into the cache.
#define PAGES 3000
static atomic_long *shared_pages;

static void *walk_pages(void *arg) {
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < PAGES; i++) {
            int page = (i * 7 + (int)(long)arg * 977) % PAGES;
            atomic_fetch_add(&shared_pages[page * 512 + (long)arg], 1);
            atomic_fetch_add(&shared_pages[page * 512 + 100], 1);
        }
    return NULL;
}

static void threads_share_pages(void) {
    pthread_t t[4];
    shared_pages = mmap(NULL, PAGES * 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (long i = 0; i < 4; i++) pthread_create(&t[i], NULL, walk_pages, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    long wrong = 0;
    for (int page = 0; page < PAGES; page++) {
        for (int i = 0; i < 4; i++) wrong += shared_pages[page * 512 + i] != 3;
        wrong += shared_pages[page * 512 + 100] != 12;
    }
    check(wrong == 0, "no store of any thread is lost");
    munmap(shared_pages, PAGES * 4096L);
}

static volatile int stop_mapping;

static void *touch(void *arg) {
    long errors = 0;
    while (!stop_mapping) {
        char *p = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 0; i < 8; i++) {
            errors += p[i * 4096] != 0;
            p[i * 4096] = (char)(long)arg;
        }
        mprotect(p, 4096, PROT_READ);
        for (int i = 0; i < 8; i++) errors += p[i * 4096] != (char)(long)arg;
        munmap(p, 8 * 4096);
    }
    return (void *)errors;
}

static void threads_map_and_unmap(void) {
    pthread_t t[3];
    for (long i = 0; i < 3; i++) pthread_create(&t[i], NULL, touch, (void *)(i + 1));
    usleep(300000);
    stop_mapping = 1;
    long errors = 0;
    for (int i = 0; i < 3; i++) {
        void *value;
        pthread_join(t[i], &value);
        errors += (long)value;
    }
    check(errors == 0, "what one thread maps no other sees");
}

static void children(void) {
    int ends[2], status, *both;
    char text[64] = "";
    both = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int mine = 1;
    pipe(ends);
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        mine = 2;
        *both = 42;
        write(ends[1], "from the child", 14);
        _exit(mine + 5);
    }
    close(ends[1]);
    ssize_t got = read(ends[0], text, sizeof text);
    check(got == 14 && !strcmp(text, "from the child"), "a child writes to its parent");
    check(read(ends[0], text, sizeof text) == 0, "the pipe ends with the child");
    check(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7, "its status is told");
    check(mine == 1 && *both == 42, "memory is its own, or shared where asked");
    close(ends[0]);
    pid = fork();
    if (pid == 0) abort();
    waitpid(pid, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "a child that aborts is told by signal");
    check(waitpid(-1, &status, 0) == -1 && errno == ECHILD, "no child is left");
    int good = 0;
    for (int i = 0; i < 20; i++) {
        pid = fork();
        if (pid == 0) _exit(i);
        waitpid(pid, &status, 0);
        good += WEXITSTATUS(status) == i;
    }
    check(good == 20, "twenty children one behind the other");
    pid = vfork();
    if (pid == 0) {
        execl("/proc/self/exe", "threads", "child", NULL);
        execl("/bin/threads", "threads", "child", NULL);
        _exit(99);
    }
    waitpid(pid, &status, 0);
    check(WEXITSTATUS(status) == 33, "a child runs another program");
}

static volatile sig_atomic_t handled, last_signal, last_code;
static void *volatile last_addr;
static sigjmp_buf back;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)context;
    handled++;
    last_signal = signal;
    last_code = info->si_code;
    last_addr = info->si_addr;
    if (signal == SIGSEGV) siglongjmp(back, 1);
}

static void set(int signal, int flags) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags};
    sigaction(signal, &action, NULL);
}

static void *interrupt_main(void *arg) {
    usleep(100000);
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return NULL;
}

static void signals(void) {
    set(SIGUSR1, 0);
    double before = 1.5, after;
    raise(SIGUSR1);
    after = before * 2;
    check(handled == 1 && last_signal == SIGUSR1 && after == 3.0, "a handler runs, and the program goes on");
    set(SIGSEGV, SA_ONSTACK);
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    char *hole = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!sigsetjmp(back, 1)) *(volatile char *)hole = 1;
    check(last_signal == SIGSEGV && last_code == SEGV_ACCERR && last_addr == hole, "a forbidden store is told by address");
    munmap(hole, 4096);
    if (!sigsetjmp(back, 1)) *(volatile char *)hole = 1;
    check(last_code == SEGV_MAPERR && last_addr == hole, "and one to nothing");
    sigset_t set_of, old;
    sigemptyset(&set_of);
    sigaddset(&set_of, SIGUSR1);
    handled = 0;
    sigprocmask(SIG_BLOCK, &set_of, &old);
    kill(getpid(), SIGUSR1);
    sigpending(&set_of);
    check(handled == 0 && sigismember(&set_of, SIGUSR1), "a blocked signal waits");
    sigprocmask(SIG_SETMASK, &old, NULL);
    check(handled == 1, "until it is not blocked");
    pthread_t self = pthread_self(), t;
    int ends[2];
    char byte;
    pipe(ends);
    pthread_create(&t, NULL, interrupt_main, &self);
    ssize_t got = read(ends[0], &byte, 1);
    check(got == -1 && errno == EINTR, "a signal interrupts a read");
    pthread_join(t, NULL);
    struct timespec time = {5, 0}, left = {0, 0};
    pthread_create(&t, NULL, interrupt_main, &self);
    check(nanosleep(&time, &left) == -1 && errno == EINTR && left.tv_sec >= 4, "and a sleep, which tells what was left");
    pthread_join(t, NULL);
    set(SIGUSR1, SA_RESTART);
    pid_t pid = fork();
    if (pid == 0) {
        usleep(200000);
        write(ends[1], "x", 1);
        _exit(0);
    }
    pthread_create(&t, NULL, interrupt_main, &self);
    check(read(ends[0], &byte, 1) == 1 && byte == 'x', "or the read goes on if that is asked for");
    pthread_join(t, NULL);
    waitpid(pid, NULL, 0);
    signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    check(write(ends[1], "x", 1) == -1 && errno == EPIPE, "nobody reads this pipe");
    set(SIGCHLD, SA_RESTART);
    handled = 0;
    pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
    check(handled == 1 && last_signal == SIGCHLD && last_code == CLD_EXITED, "a child's end is a signal");
    pid = fork();
    if (pid == 0) for (;;) pause();
    kill(pid, SIGKILL);
    int status;
    waitpid(pid, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a child that waits is killed");
    pid = fork();
    if (pid == 0) for (;;) ;
    kill(pid, SIGTERM);
    waitpid(pid, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "and one that never waits");
    set(SIGRTMIN, 0);
    union sigval value = {.sival_int = 5};
    sigset_t rt;
    sigemptyset(&rt);
    sigaddset(&rt, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &rt, NULL);
    sigqueue(getpid(), SIGRTMIN, value);
    siginfo_t info;
    check(sigwaitinfo(&rt, &info) == SIGRTMIN && info.si_value.sival_int == 5, "a queued signal brings a value");
}

static void *die_with_lock(void *arg) {
    pthread_mutex_lock(arg);
    return NULL;
}

static void locks_of_the_dead(void) {
    pthread_mutex_t robust;
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attr);
    pthread_t t;
    pthread_create(&t, NULL, die_with_lock, &robust);
    pthread_join(t, NULL);
    check(pthread_mutex_lock(&robust) == EOWNERDEAD, "a dead thread's lock is told");
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 100000000;
    if (soon.tv_nsec >= 1000000000) {
        soon.tv_nsec -= 1000000000;
        soon.tv_sec++;
    }
    pthread_mutex_lock(&lock);
    check(pthread_mutex_timedlock(&lock, &soon) == ETIMEDOUT, "a wait has an end");
    pthread_mutex_unlock(&lock);
}

static void *write_later(void *arg) {
    uint64_t one = 1;
    usleep(50000);
    write(*(int *)arg, &one, 8);
    return NULL;
}

static void waiting_for_files(void) {
    int event = eventfd(0, 0);
    struct pollfd p = {.fd = event, .events = POLLIN | POLLOUT};
    check(poll(&p, 1, 0) == 1 && p.revents == POLLOUT, "an event counter can be written");
    p.events = POLLIN;
    check(poll(&p, 1, 20) == 0, "and has nothing to read");
    pthread_t t;
    pthread_create(&t, NULL, write_later, &event);
    check(poll(&p, 1, -1) == 1 && p.revents == POLLIN, "until somebody writes");
    pthread_join(t, NULL);
    fd_set set_of;
    FD_ZERO(&set_of);
    FD_SET(event, &set_of);
    check(select(event + 1, &set_of, NULL, NULL, NULL) == 1 && FD_ISSET(event, &set_of), "select sees it too");
    uint64_t count;
    check(read(event, &count, 8) == 8 && count == 1, "it is one");
    close(event);
}

static void many_threads(void) {
    int good = 0;
    for (int i = 0; i < 200; i++) {
        pthread_t t;
        void *value = NULL;
        own = 0;
        if (pthread_create(&t, NULL, die_with_lock, &(pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER)) break;
        good += pthread_join(t, &value) == 0 && value == NULL;
    }
    check(good == 200, "two hundred threads one behind the other");
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "child")) return 33;
    threads_add();
    threads_take_turns();
    threads_share_pages();
    threads_map_and_unmap();
    children();
    signals();
    locks_of_the_dead();
    waiting_for_files();
    many_threads();
    return 0;
}

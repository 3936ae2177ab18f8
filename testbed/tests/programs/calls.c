// Small calls and their edges: each line is a check and what came out, to be compared with Linux's. Everything
// happens in /tmp and in memory, and nothing depends on the machine's speed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, long value) {
    printf("%s: %ld\n", what, value);
    fflush(stdout);
}

// Says what a call gave: the value, or the error's number as a negative one.
#define TRY(call) \
    do { \
        errno = 0; \
        long value = (long)(call); \
        say(#call, value == -1 && errno ? -errno : value); \
    } while (0)

static volatile sig_atomic_t caught;

static void handler(int signal) { caught = signal; }

static int status_of(void (*child)(void)) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        child();
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return status;
}

static void alarm_ends(void) {
    struct itimerval soon = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    for (;;) pause();
}

static void timers(void) {
    say("SIGALRM's default", status_of(alarm_ends));
    signal(SIGALRM, handler);
    sigset_t set, none;
    sigemptyset(&none);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct itimerval soon = {{0, 0}, {0, 10000}}, left;
    setitimer(ITIMER_REAL, &soon, NULL);
    // It may have come already.
    while (caught != SIGALRM) sigsuspend(&none);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    getitimer(ITIMER_REAL, &left);
    say("a timer that expired has nothing left", left.it_value.tv_sec + left.it_value.tv_usec);
    TRY(alarm(100));
    TRY(alarm(0));
    struct itimerval bad = {{0, 0}, {0, 1000000}};
    TRY(setitimer(ITIMER_REAL, &bad, NULL));
    TRY(setitimer(3, &soon, NULL));

    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    event.sigev_value.sival_int = 77;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    TRY(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec spec = {{0, 0}, {0, 5000000}};
    TRY(timer_settime(timer, 0, &spec, NULL));
    siginfo_t info;
    TRY(sigwaitinfo(&set, &info));
    say("its code", info.si_code);
    say("its value", info.si_value.sival_int);
    TRY(timer_delete(timer));
    TRY(timer_delete(timer) == -1);
    TRY(timer_create(99, &event, &timer));

    int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    uint64_t count = 0;
    TRY(read(fd, &count, 8));
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct itimerspec past = {{0, 0}, {now.tv_sec - 5, 0}};
    TRY(timerfd_settime(fd, TFD_TIMER_ABSTIME, &past, NULL));
    struct pollfd poll_it = {fd, POLLIN, 0};
    TRY(poll(&poll_it, 1, 5000));
    TRY(read(fd, &count, 8));
    say("expiries", count);
    TRY(read(fd, &count, 4));
    close(fd);

    fd = signalfd(-1, &set, SFD_NONBLOCK);
    kill(getpid(), SIGUSR1);
    struct signalfd_siginfo told;
    TRY(read(fd, &told, sizeof told));
    say("the signal that was read", told.ssi_signo);
    TRY(read(fd, &told, sizeof told));
    close(fd);
}

static void signals(void) {
    signal(SIGUSR2, handler);
    raise(SIGUSR2);
    say("a signal to oneself runs its handler", caught == SIGUSR2);
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    caught = 0;
    raise(SIGUSR2);
    sigpending(&pending);
    say("a blocked one is pending", sigismember(&pending, SIGUSR2));
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    say("and comes", caught == SIGUSR2);
    stack_t small = {.ss_sp = malloc(4096), .ss_size = 1000};
    TRY(sigaltstack(&small, NULL));
    // A wait takes a signal that is not blocked before its handler does.
    caught = 0;
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        usleep(100000);
        kill(parent, SIGUSR2);
        _exit(0);
    }
    TRY(sigwaitinfo(&set, NULL));
    say("its handler ran", caught == SIGUSR2);
    waitpid(child, NULL, 0);
    TRY(kill(0x7fffffff, 0));
    TRY(syscall(SYS_tgkill, getpid(), gettid(), 99));
}

static void memory(void) {
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    // A huge length with a small buffer gives what fits.
    TRY(syscall(SYS_getrandom, page, 1ul << 46, 0) > 0);
    int zero = open("/dev/zero", O_RDONLY);
    TRY(read(zero, page, 1ul << 46));
    TRY(read(zero, (void *)8, 1));
    struct iovec two[2] = {{page, 4096}, {page + 4096, 4096}};
    TRY(readv(zero, two, 2));
    TRY(lseek(zero, 100, SEEK_SET));
    TRY(write(zero, page, 1));
    close(zero);
    TRY(open("/dev/null", O_RDONLY | O_DIRECTORY));
    TRY(msync(page, 4096, MS_SYNC));
    TRY(msync(page + 1, 4096, MS_SYNC));
    TRY(msync(page + 4096, 4096, MS_SYNC));
    unsigned char in;
    TRY(mincore(page, 4096, &in));
    TRY(mincore(page + 4096, 4096, &in));
    TRY(mlock(page, 4096));
    TRY(munlock(page, 4096));
    TRY(mlock(page + 4096, 4096));
    TRY(munlockall());
}

static void descriptors(void) {
    int ends[2];
    TRY(pipe2(ends, O_NONBLOCK));
    struct pollfd fds[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLOUT | POLLWRNORM, 0}};
    TRY(poll(fds, 2, 0));
    say("writable", fds[1].revents == (POLLOUT | POLLWRNORM));
    if (write(ends[1], "x", 1) != 1) abort();
    struct timespec none = {0, 0};
    TRY(ppoll(fds, 2, &none, NULL));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    struct timeval short_time = {0, 0};
    TRY(select(ends[0] + 1, &set, NULL, NULL, &short_time));
    close(ends[1]);
    char two[2];
    TRY(read(ends[0], two, 2));
    fds[1].fd = -1;
    TRY(poll(fds, 2, 0));
    say("hung up", fds[0].revents == POLLHUP);
    TRY(lseek(ends[0], 0, SEEK_CUR));
    TRY(pread(ends[0], two, 1, 0));
    close(ends[0]);
    TRY(read(ends[0], two, 1));
    TRY(fcntl(99, F_GETFD));
    TRY(dup2(0, 0));
    TRY(dup3(0, 0, 0));
    TRY(dup2(0, -1));
}

static void files(void) {
    char folder[] = "/tmp/callsXXXXXX", name[64];
    if (!mkdtemp(folder) || chdir(folder)) abort();
    int fd = open("file", O_RDWR | O_CREAT | O_EXCL, 0640);
    say("opened", fd >= 0);
    TRY(open("file", O_RDWR | O_CREAT | O_EXCL, 0640));
    TRY(open(".", O_RDWR | O_CREAT, 0640));
    TRY(open(".", O_RDWR));
    TRY(open("file/", O_RDONLY));
    TRY(open("file", O_RDONLY | O_DIRECTORY));
    TRY(mkdir("no/where", 0700));
    TRY(rmdir("no/where"));
    TRY(symlink("x", "no/where"));
    TRY(link("file", "no/where"));
    TRY(rename("file", "no/where"));
    TRY(rmdir("/"));
    mkdir("sub", 0700);
    TRY(rmdir("sub/."));
    TRY(rmdir("sub"));
    TRY(unlink("."));
    TRY(mkdir((char *)8, 0700));
    TRY(open((char *)8, O_RDONLY));
    TRY(fstatat(AT_FDCWD, "file", (struct stat *)name, 0x80000));
    TRY(unlinkat(AT_FDCWD, "file", 1));
    TRY(syscall(SYS_faccessat2, AT_FDCWD, "file", R_OK, 1));
    TRY(access("file", 8));
    int path = open("file", O_PATH);
    TRY(read(path, name, 1));
    close(path);
    symlink("file", "link");
    path = open("link", O_PATH | O_NOFOLLOW);
    say("a link is opened as itself", path >= 0);
    struct stat st;
    fstat(path, &st);
    say("it is a link", S_ISLNK(st.st_mode));
    close(path);
    TRY(open("link", O_RDONLY | O_NOFOLLOW));
    if (write(fd, "hello", 5) != 5) abort();
    TRY(lseek(fd, 0, SEEK_DATA));
    TRY(lseek(fd, 0, SEEK_HOLE));
    TRY(lseek(fd, 9, SEEK_DATA));
    TRY(lseek(fd, -1, SEEK_SET));
    struct timespec omit[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
    TRY(utimensat(AT_FDCWD, "file", omit, 0));
    struct timespec late[2] = {{4102444800, 5}, {4102444800, 7}};
    TRY(futimens(fd, late));
    fstat(fd, &st);
    say("seconds of 2100", st.st_mtim.tv_sec);
    say("nanoseconds", st.st_mtim.tv_nsec);
    say("rights", st.st_mode & 07777);
    TRY(futimens(fd, NULL));
    TRY(ftruncate(fd, -1));
    TRY(fchmod(fd, 0600));
    char buffer[3];
    TRY(readlink("link", buffer, 3));
    TRY(readlink("file", buffer, 3));
    TRY(readlink("link", buffer, 0));
    TRY(getcwd(buffer, 3) != NULL);
    TRY(chdir("file"));
    TRY(stat("/dev", &st));
    say("/dev is a folder", S_ISDIR(st.st_mode));
    struct stat null, zero;
    stat("/dev/null", &null);
    stat("/dev/zero", &zero);
    say("devices differ", null.st_rdev != zero.st_rdev);
    say("files of a folder are of one device", (stat(".", &null), null.st_dev) == (fstat(fd, &zero), zero.st_dev));
    close(fd);
    unlink("file");
    unlink("link");
    if (chdir("/")) abort();
    TRY(rmdir(folder));
}

static void identity(void) {
    // Tests are run with any niceness.
    setpriority(PRIO_PROCESS, 0, 0);
    TRY(getpriority(PRIO_PROCESS, 0));
    TRY(nice(3));
    TRY(getpriority(PRIO_PROCESS, 0));
    unsigned cpu = 99, node = 99;
    TRY(syscall(SYS_getcpu, &cpu, &node, NULL));
    say("the core is one of them", cpu < 64 && node == 0);
    char name[17] = "";
    TRY(prctl(PR_SET_NAME, "a-name-that-is-too-long"));
    TRY(prctl(PR_GET_NAME, name));
    printf("%s\n", name);
    TRY(personality(0xffffffff));
    struct rlimit limit = {5, 4};
    TRY(setrlimit(RLIMIT_CPU, &limit));
    TRY(getrlimit(99, &limit));
    struct rusage usage;
    TRY(getrusage(7, &usage));
    TRY(getrusage(RUSAGE_SELF, &usage));
    say("memory was used", usage.ru_maxrss > 0);
    TRY(getpgid(0x7ffffff0));
    TRY(getsid(0x7ffffff0));
    TRY(sched_getscheduler(0));
    TRY(sched_get_priority_max(SCHED_FIFO));
    gid_t groups[3] = {7, 5, 6};
    TRY(setgroups(3, groups));
    TRY(getgroups(2, groups));
    TRY(getgroups(3, groups));
    TRY(setresgid(1000, 1001, 1002));
    TRY(setresuid(-1, 1000, 0));
    TRY(geteuid());
    TRY(setgroups(0, NULL));
    TRY(seteuid(0));
    TRY(setuid(1000));
    TRY(setuid(0));
    gid_t r, e, s;
    getresgid(&r, &e, &s);
    printf("groups %d %d %d\n", r, e, s);
}

static void clocks(void) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    clock_gettime(CLOCK_MONOTONIC, &b);
    say("time goes on", b.tv_sec > a.tv_sec || b.tv_nsec >= a.tv_nsec);
    struct timeval tv;
    gettimeofday(&tv, NULL);
    time_t t = time(NULL);
    say("two clocks agree", t - tv.tv_sec <= 1);
    TRY(clock_gettime(99, &a));
    TRY(clock_getres(CLOCK_MONOTONIC, NULL));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    say("CPU time is less than a minute", a.tv_sec < 60);
    struct timespec bad = {0, 1000000000};
    TRY(nanosleep(&bad, NULL));
    TRY(-clock_nanosleep(99, 0, &a, NULL));
    struct timespec past = {1, 0};
    TRY(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &past, NULL));
    struct utsname name;
    TRY(uname(&name));
    printf("%s %s\n", name.sysname, name.machine);
}

static sigjmp_buf back;

static void bus(int signal, siginfo_t *info, void *context) {
    (void)context;
    siglongjmp(back, signal == SIGBUS ? info->si_code : -1);
}

// Returns the code of the signal that a look at a byte raises; 0 for none.
static int look(volatile char *at) {
    int code = sigsetjmp(back, 1);
    if (code == 0) (void)*at;
    return code;
}

static void cuts(void) {
    struct sigaction action = {.sa_sigaction = bus, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    const char *paths[] = {"/tmp/cut", "/dev/shm/cut", "/var/tmp/cut"};
    mkdir("/var", 0755);
    mkdir("/var/tmp", 01777);
    for (int i = 0; i < 3; i++) {
        int fd = open(paths[i], O_RDWR | O_CREAT | O_TRUNC, 0600);
        TRY(ftruncate(fd, 3 * 4096));
        char *p = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        p[4096] = p[8192] = 1;
        int pid = fork();
        if (pid == 0) {
            usleep(300000);
            _exit(look(p + 8192) == BUS_ADRERR ? 7 : look(p + 8192));
        }
        TRY(look(p + 3 * 4096));
        TRY(ftruncate(fd, 4097));
        TRY(look(p + 8192));
        TRY(look(p + 4096));
        TRY(p[4096]);
        int status = 0;
        waitpid(pid, &status, 0);
        say("the child sees it too", WEXITSTATUS(status));
        TRY(ftruncate(fd, 4 * 4096));
        TRY(look(p + 8192));
        TRY(p[8192] + p[3 * 4096]);
        close(open(paths[i], O_WRONLY | O_TRUNC));
        TRY(look(p));
        munmap(p, 4 * 4096);
        close(fd);
        unlink(paths[i]);
    }
    signal(SIGBUS, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
}

// openat2, by its number: the C library may not have it.
static long way(int dir, const char *path, uint64_t flags, uint64_t resolve) {
    struct {
        uint64_t flags, mode, resolve;
    } how = {flags, flags & O_CREAT ? 0600 : 0, resolve};
    long fd = syscall(437, dir, path, &how, sizeof how);
    if (fd >= 0) {
        close((int)fd);
        return 0;
    }
    return fd;
}

static void ways(void) {
    enum { NO_XDEV = 1, NO_MAGICLINKS = 2, NO_SYMLINKS = 4, BENEATH = 8, IN_ROOT = 16, CACHED = 32 };
    mkdir("/tmp/ways", 0755);
    mkdir("/tmp/ways/b", 0755);
    symlink("b", "/tmp/ways/inner");
    symlink("/tmp/ways/b", "/tmp/ways/absolute");
    symlink("../..", "/tmp/ways/b/out");
    symlink("/proc", "/tmp/ways/proc");
    symlink("loop", "/tmp/ways/loop");
    int dir = open("/tmp/ways", O_RDONLY | O_DIRECTORY);
    TRY(way(dir, "inner", O_RDONLY, BENEATH));
    TRY(way(dir, "inner", O_RDONLY, NO_SYMLINKS));
    TRY(way(dir, "inner", O_RDONLY | O_NOFOLLOW, NO_SYMLINKS));
    TRY(way(dir, "inner", O_PATH | O_NOFOLLOW, NO_SYMLINKS));
    TRY(way(dir, "inner/../b", O_RDONLY, BENEATH));
    TRY(way(dir, "absolute", O_RDONLY, BENEATH));
    TRY(way(dir, "absolute", O_RDONLY, IN_ROOT));
    TRY(way(dir, "..", O_RDONLY, BENEATH));
    TRY(way(dir, "../../b", O_RDONLY, IN_ROOT));
    TRY(way(dir, "/b", O_RDONLY, IN_ROOT));
    TRY(way(dir, "/tmp", O_RDONLY, BENEATH));
    TRY(way(dir, "b/out", O_RDONLY, BENEATH));
    TRY(way(dir, "b/out", O_RDONLY, IN_ROOT));
    TRY(way(dir, "b/out/b/out", O_RDONLY, IN_ROOT));
    TRY(way(dir, "proc", O_RDONLY, NO_XDEV));
    TRY(way(dir, "proc/self/exe", O_RDONLY, NO_MAGICLINKS));
    TRY(way(dir, "proc/self/exe", O_RDONLY, BENEATH));
    TRY(way(dir, "loop", O_RDONLY, BENEATH));
    TRY(way(dir, "missing/x", O_RDONLY, BENEATH));
    TRY(way(dir, "b/", O_RDONLY, NO_SYMLINKS));
    TRY(way(dir, "b/new", O_RDWR | O_CREAT, BENEATH));
    TRY(way(dir, "b/new", O_RDWR | O_CREAT | O_EXCL, BENEATH));
    TRY(way(dir, "b/new/", O_RDONLY, NO_SYMLINKS));
    TRY(way(dir, "b/new/x", O_RDONLY, NO_SYMLINKS));
    TRY(way(AT_FDCWD, "/proc/self/fd/0", O_RDONLY, NO_MAGICLINKS));
    TRY(way(AT_FDCWD, "/proc/self/status", O_RDONLY, NO_MAGICLINKS));
    TRY(way(AT_FDCWD, "/proc/self/status", O_RDONLY, NO_SYMLINKS));
    TRY(way(dir, "b", O_RDONLY, BENEATH | IN_ROOT));
    TRY(way(dir, "b", O_RDONLY, 64));
    TRY(way(dir, "b/new", O_RDWR | O_TRUNC, CACHED));
    TRY(way(9999, "b", O_RDONLY, BENEATH));
    close(dir);
    static const char *made[] = {"inner", "absolute", "b/out", "b/new", "proc", "loop"};
    char path[64];
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        sprintf(path, "/tmp/ways/%s", made[i]);
        unlink(path);
    }
    rmdir("/tmp/ways/b");
    TRY(rmdir("/tmp/ways"));
}

static void texts(void) {
    static char bytes[1 << 16];
    int from = open("/proc/self/exe", O_RDONLY), to = open("/tmp/copy", O_RDWR | O_CREAT, 0755);
    for (ssize_t got; (got = read(from, bytes, sizeof bytes)) > 0;) write(to, bytes, got);
    close(from);
    TRY(open("/proc/self/exe", O_RDWR));
    TRY(open("/proc/self/exe", O_WRONLY));
    TRY(open("/proc/self/exe", O_RDONLY | O_TRUNC));
    char *nothing[] = {NULL};
    TRY(execve("/tmp/copy", nothing, nothing));
    close(to);
    int run = fork();
    if (run == 0) {
        char *args[] = {"/tmp/copy", "sleep", NULL};
        execve("/tmp/copy", args, nothing);
        _exit(9);
    }
    // It may not have begun yet.
    for (int i = 0; i < 5000; i++) {
        to = open("/tmp/copy", O_RDWR);
        if (to < 0) break;
        close(to);
        usleep(1000);
    }
    TRY(open("/tmp/copy", O_RDWR));
    TRY(truncate("/tmp/copy", 5));
    char path[64], target[64];
    sprintf(path, "/proc/%d/exe", run);
    memset(target, 0, sizeof target);
    TRY(readlink(path, target, sizeof target - 1));
    say(target, 0);
    kill(run, SIGKILL);
    waitpid(run, NULL, 0);
    TRY(truncate("/tmp/copy", 5));
    unlink("/tmp/copy");
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "sleep")) return pause();
    timers();
    signals();
    memory();
    descriptors();
    files();
    clocks();
    cuts();
    ways();
    texts();
    identity();
    return 0;
}

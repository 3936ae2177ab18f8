// Sockets, locks, pipes and watches, one behind the other: what is printed must be what Linux prints.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BULK (3 << 20)

static char bulk[BULK];

static void say(const char *what, long value) {
    printf("%s: %ld", what, value);
    if (value < 0) printf(" (%s)", strerror(errno));
    printf("\n");
    fflush(stdout);
}

static int ready(int fd) {
    struct pollfd one = {fd, (short)0xffff, 0};
    poll(&one, 1, 0);
    return one.revents;
}

static unsigned long sum_of(int fd) {
    static char part[50000];
    unsigned long sum = 0;
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;)
        for (ssize_t i = 0; i < n; i++) sum = sum * 31 + (unsigned char)part[i];
    return sum;
}

static void *send_bulk(void *arg) {
    int fd = (int)(long)arg;
    for (size_t done = 0; done < BULK;) {
        ssize_t n = send(fd, bulk + done, BULK - done, MSG_NOSIGNAL);
        if (n < 0) break;
        done += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    return NULL;
}

static void streams(int tcp) {
    struct sockaddr_un un = {AF_UNIX, "/tmp/stream"};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr *at = tcp ? (struct sockaddr *)&in : (struct sockaddr *)&un;
    socklen_t len = tcp ? sizeof in : sizeof un;
    int server = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
    say("bind", bind(server, at, len));
    say("bind again", bind(server, at, len));
    say("accept early", accept(server, NULL, NULL));
    say("listen", listen(server, 3));
    getsockname(server, at, &len);
    pid_t child = fork();
    if (child == 0) {
        int client = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
        if (connect(client, at, len)) _exit(1);
        pthread_t t;
        pthread_create(&t, NULL, send_bulk, (void *)(long)client);
        unsigned long back = sum_of(client);
        pthread_join(t, NULL);
        _exit((int)(back & 0x3f));
    }
    int peer = accept(server, NULL, NULL);
    unsigned long there = sum_of(peer);
    say("sum there", (long)there);
    say("echo", write(peer, &there, sizeof there));
    close(peer);
    int status;
    waitpid(child, &status, 0);
    say("child", WEXITSTATUS(status));
    int late = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
    close(server);
    say("refused", connect(late, at, len));
    if (!tcp) say("unlink", unlink("/tmp/stream"));
    say("polled", ready(late));
}

static void ends(void) {
    int p[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, p);
    say("fresh", ready(p[0]));
    say("write", write(p[1], "abc", 3));
    say("ready", ready(p[0]));
    close(p[1]);
    say("closed", ready(p[0]));
    char text[8];
    say("read", read(p[0], text, 8));
    say("end", read(p[0], text, 8));
    signal(SIGPIPE, SIG_IGN);
    say("broken", write(p[0], "x", 1));
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p);
    write(p[0], "one", 3);
    write(p[0], "three", 5);
    say("packet", recv(p[1], text, 2, MSG_TRUNC));
    say("packet", recv(p[1], text, 8, MSG_PEEK));
    say("packet", recv(p[1], text, 8, 0));
    say("none", recv(p[1], text, 8, MSG_DONTWAIT));
}

static void passed_files(void) {
    int p[2], q[2];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, p);
    pipe(q);
    int on = 1;
    setsockopt(p[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control = {0};
    char text[8] = "file";
    struct iovec piece = {text, 5};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &q[1], sizeof(int));
    say("sendmsg", sendmsg(p[0], &m, 0));
    close(q[1]);
    m.msg_controllen = sizeof control;
    memset(&control, 0, sizeof control);
    say("recvmsg", recvmsg(p[1], &m, MSG_CMSG_CLOEXEC));
    for (c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
        say("control", c->cmsg_type);
        int fd;
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
        if (c->cmsg_type == SCM_RIGHTS) say("flags", fcntl(fd, F_GETFD)), say("write", write(fd, "x", 1)), close(fd);
        if (c->cmsg_type == SCM_CREDENTIALS) say("own pid", fd == getpid());
    }
    say("read", read(q[0], text, 8));
    say("end", read(q[0], text, 8));
}

static void udp(void) {
    int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    socklen_t len = sizeof any;
    say("bind", bind(b, (struct sockaddr *)&any, sizeof any));
    getsockname(b, (struct sockaddr *)&any, &len);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = any.sin6_port, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    say("sendto", sendto(a, "hello", 5, 0, (struct sockaddr *)&to, sizeof to));
    char text[64], name[64];
    len = sizeof any;
    say("recvfrom", recvfrom(b, text, 64, 0, (struct sockaddr *)&any, &len));
    printf("from %s\n", inet_ntop(AF_INET6, &any.sin6_addr, name, sizeof name));
    close(b);
    say("connect", connect(a, (struct sockaddr *)&to, sizeof to));
    say("send", send(a, "x", 1, 0));
    say("refused", recv(a, text, 1, 0));
    int t = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, error;
    say("nodelay", setsockopt(t, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    say("connect", connect(t, (struct sockaddr *)&to, sizeof to));
    len = sizeof error;
    getsockopt(t, SOL_SOCKET, SO_ERROR, &error, &len);
    say("error", error);
}

static void locks(void) {
    int fd = open("/tmp/locked", O_RDWR | O_CREAT, 0600), other = open("/tmp/locked", O_RDWR), back[2];
    char c;
    pipe(back);
    struct flock range = {.l_type = F_WRLCK, .l_start = 10, .l_len = 10};
    say("lock", fcntl(fd, F_SETLK, &range));
    pid_t child = fork();
    if (child == 0) {
        struct flock wanted = {.l_type = F_RDLCK, .l_start = 0, .l_len = 0};
        say("refused", fcntl(fd, F_SETLK, &wanted));
        say("asked", fcntl(fd, F_GETLK, &wanted));
        printf("%d %ld %ld %d\n", wanted.l_type, (long)wanted.l_start, (long)wanted.l_len, wanted.l_pid == getppid());
        fflush(stdout);
        struct flock low = {.l_type = F_WRLCK, .l_start = 0, .l_len = 5};
        say("lock low", fcntl(fd, F_SETLK, &low));
        write(back[1], "x", 1);
        struct flock high = {.l_type = F_WRLCK, .l_start = 15, .l_len = 1};
        _exit(fcntl(fd, F_SETLKW, &high) ? errno : 0);
    }
    read(back[0], &c, 1);
    // Whoever asks last is told of the circle, and the other gets its lock.
    struct flock low = {.l_type = F_WRLCK, .l_start = 0, .l_len = 1};
    int own = fcntl(fd, F_SETLKW, &low) ? errno : 0, theirs;
    close(other);
    waitpid(child, &theirs, 0);
    say("circle", own + WEXITSTATUS(theirs) == EDEADLK);
    other = open("/tmp/locked", O_RDWR);
    say("flock", flock(fd, LOCK_EX));
    say("flock other", flock(other, LOCK_SH | LOCK_NB));
    close(fd);
    say("flock free", flock(other, LOCK_SH | LOCK_NB));
    unlink("/tmp/locked");
}

static void moves(void) {
    int m = memfd_create("m", MFD_ALLOW_SEALING), p[2];
    say("write", write(m, bulk, 100000));
    say("seal", fcntl(m, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_WRITE));
    say("seals", fcntl(m, F_GET_SEALS));
    say("sealed", pwrite(m, "x", 1, 0));
    say("mapped", (long)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m, 0));
    pipe(p);
    say("size", fcntl(p[1], F_SETPIPE_SZ, 200000));
    lseek(m, 0, SEEK_SET);
    say("sendfile", sendfile(p[1], m, NULL, 100000));
    say("tee itself", tee(p[0], p[1], 10, 0));
    close(p[1]);
    say("sum", (long)sum_of(p[0]));
    say("mkfifo", mkfifo("/tmp/fifo", 0600));
    say("no reader", open("/tmp/fifo", O_WRONLY | O_NONBLOCK));
    if (fork() == 0) {
        int w = open("/tmp/fifo", O_WRONLY);
        _exit(write(w, "through", 7) != 7);
    }
    int r = open("/tmp/fifo", O_RDONLY);
    say("fifo sum", (long)sum_of(r));
    wait(NULL);
    unlink("/tmp/fifo");
}

// A file that is longer than what a socket holds.
static void sent_files(void) {
    int s[2], status;
    socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    int f = open("/tmp/long", O_CREAT | O_RDWR, 0600);
    say("write", write(f, bulk, BULK));
    if (fork() == 0) {
        close(s[0]);
        off_t at = 0;
        _exit(sendfile(s[1], f, &at, BULK) != BULK || at != BULK);
    }
    close(s[1]);
    usleep(100000);
    say("sent sum", (long)sum_of(s[0]));
    wait(&status);
    say("sender", status);
    unlink("/tmp/long");
}

// The loopback interface, as the C library finds it among the machine's.
static void interfaces(void) {
    struct if_nameindex *names = if_nameindex();
    for (struct if_nameindex *at = names; at && at->if_index; at++)
        if (!strcmp(at->if_name, "lo")) say("lo", at->if_index);
    if_freenameindex(names);
    struct ifaddrs *all = NULL;
    say("getifaddrs", getifaddrs(&all));
    for (struct ifaddrs *at = all; at; at = at->ifa_next) {
        if (strcmp(at->ifa_name, "lo") || !at->ifa_addr || at->ifa_addr->sa_family != AF_INET) continue;
        struct sockaddr_in *in = (void *)at->ifa_addr, *mask = (void *)at->ifa_netmask;
        printf("%x/%x %x\n", ntohl(in->sin_addr.s_addr), ntohl(mask->sin_addr.s_addr), at->ifa_flags);
    }
    freeifaddrs(all);
}

static void watched(void) {
    char events[4096];
    mkdir("/tmp/watched", 0700);
    int q = inotify_init1(IN_NONBLOCK);
    say("watch", inotify_add_watch(q, "/tmp/watched", IN_ALL_EVENTS));
    int fd = open("/tmp/watched/a", O_CREAT | O_WRONLY, 0600);
    write(fd, "x", 1);
    close(fd);
    rename("/tmp/watched/a", "/tmp/watched/b");
    unlink("/tmp/watched/b");
    rmdir("/tmp/watched");
    ssize_t n = read(q, events, sizeof events);
    for (char *at = events; at < events + n;) {
        struct inotify_event *e = (void *)at;
        printf("%d %x %d %s\n", e->wd, e->mask, e->cookie != 0, e->len ? e->name : "");
        at += sizeof *e + e->len;
    }
}

int main(void) {
    for (size_t i = 0; i < BULK; i++) bulk[i] = (char)(i * 7 >> 3);
    streams(0);
    streams(1);
    ends();
    passed_files();
    udp();
    locks();
    moves();
    sent_files();
    interfaces();
    watched();
    return 0;
}

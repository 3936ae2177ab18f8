// Files on a disk: `files check DIR` prints what calls do, which must be what Linux prints; `files load DIR SEED` changes
// files for ever and says what has been promised; `files save DIR TEXT` writes a file and does not ask for more.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif
#define WORKERS 3
#define NAMES 6
#define RECORD 64

static void say(const char *what, long result) {
    printf("%s: %ld%s%s\n", what, result, result < 0 ? " " : "", result < 0 ? strerror(errno) : "");
    fflush(stdout);
}

// Prints a sum of the bytes from the beginning on, by the number `fd`.
static void show(const char *what, int fd) {
    unsigned char bytes[4096];
    uint64_t sum = 14695981039346656037u;
    long got, all = 0;
    while ((got = pread(fd, bytes, sizeof bytes, all)) > 0) {
        for (long i = 0; i < got; i++) sum = (sum ^ bytes[i]) * 1099511628211u;
        all += got;
    }
    struct stat st;
    fstat(fd, &st);
    printf("%s: %ld bytes, sum %016lx, size %ld, mode %o, links %ld\n", what, all, (long)sum, (long)st.st_size,
           st.st_mode, (long)st.st_nlink);
    fflush(stdout);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void list(const char *dir) {
    char *names[4096];
    int count = 0;
    DIR *d = opendir(dir);
    if (!d) {
        say("opendir", -1);
        return;
    }
    for (struct dirent *e; (e = readdir(d)) && count < 4096;)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) names[count++] = strdup(e->d_name);
    closedir(d);
    qsort(names, count, sizeof *names, by_name);
    printf("%d names:", count);
    for (int i = 0; i < count && i < 20; i++) printf(" %s", names[i]);
    printf("\n");
    for (int i = 0; i < count; i++) free(names[i]);
}

static void check_data(void) {
    static char big[300000];
    for (unsigned i = 0; i < sizeof big; i++) big[i] = i * 7 >> 3;
    int fd = open("data", O_RDWR | O_CREAT | O_EXCL, 0640);
    say("write", write(fd, big, sizeof big));
    say("pwrite", pwrite(fd, "hole", 4, 1000000));
    show("data", fd);
    struct iovec v[3] = {{"one ", 4}, {"", 0}, {"two", 3}};
    say("lseek", lseek(fd, 4094, SEEK_SET));
    say("writev", writev(fd, v, 3));
    show("data", fd);
    say("ftruncate", ftruncate(fd, 200001));
    say("ftruncate", ftruncate(fd, 210000));
    show("data", fd);
    say("fallocate", fallocate(fd, 0, 250000, 10000));
    say("keep size", fallocate(fd, FALLOC_FL_KEEP_SIZE, 300000, 10000));
    say("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1000, 100000));
    show("data", fd);
    int more = open("data", O_WRONLY | O_APPEND);
    say("append", write(more, "end", 3));
    say("where", lseek(more, 0, SEEK_CUR));
    say("pwrite appends", pwrite(more, "again", 5, 0));
    char byte;
    say("read", read(more, &byte, 1));
    int reader = open("data", O_RDONLY);
    say("write", write(reader, "x", 1));
    say("ftruncate", ftruncate(reader, 0));
    show("data", fd);
    say("fsync", fsync(fd));
    say("fdatasync", fdatasync(more));
    say("emptied", open("data", O_WRONLY | O_TRUNC) < 0 ? -1 : 0);
    show("data", fd);
    say("negative", pwrite(fd, "x", 1, -1));
    say("bad address", write(fd, (void *)1, 1));
}

static void check_mappings(void) {
    int fd = open("mapped", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 5000; i++) dprintf(fd, "line %d\n", i);
    struct stat st;
    fstat(fd, &st);
    char *p = mmap(NULL, 16384, PROT_READ, MAP_SHARED, fd, 0);
    char *own = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    printf("%.6s %.6s\n", p, own);
    own[0] = 'L';
    say("pwrite", pwrite(fd, "FRESH", 5, 1));
    say("pwrite", pwrite(fd, "page 2", 6, 8190));
    printf("%.7s %.7s %.6s\n", p, own, p + 8190);
    say("ftruncate", ftruncate(fd, 10));
    say("ftruncate", ftruncate(fd, 8000));
    printf("%d %d\n", p[9], p[10]);
    close(fd);
    unlink("mapped");
    printf("%.7s\n", p);
}

static void check_names(void) {
    say("mkdir", mkdir("dir", 0755));
    say("mkdir", mkdir("dir", 0755));
    say("mkdir", mkdir("none/dir", 0755));
    for (int i = 0; i < 300; i++) {
        char name[40];
        sprintf(name, "dir/a name of some length %03d", i);
        close(open(name, O_WRONLY | O_CREAT, 0644));
        if (i % 3 == 0) unlink(name);
    }
    list("dir");
    say("rmdir", rmdir("dir"));
    say("symlink", symlink("dir/target", "soft"));
    say("dangling", open("soft", O_RDONLY));
    int fd = open("soft", O_RDWR | O_CREAT, 0644);
    say("write", write(fd, "through a link", 14));
    say("exclusive", open("soft", O_RDWR | O_CREAT | O_EXCL, 0644));
    say("nofollow", open("soft", O_RDONLY | O_NOFOLLOW));
    say("link", link("dir/target", "hard"));
    show("hard", fd);
    say("rename", rename("hard", "dir/moved"));
    say("rename", rename("none", "dir/moved"));
    say("rename", rename("dir", "dir/below"));
    say("noreplace", syscall(SYS_renameat2, AT_FDCWD, "dir/moved", AT_FDCWD, "dir/target", RENAME_NOREPLACE));
    int other = open("other", O_RDWR | O_CREAT, 0644);
    say("write", write(other, "other", 5));
    say("exchange", syscall(SYS_renameat2, AT_FDCWD, "other", AT_FDCWD, "dir/moved", RENAME_EXCHANGE));
    say("replace", rename("other", "dir/moved"));
    say("unlink", unlink("dir"));
    say("unlink", unlink("soft"));
    say("unlink", unlink("dir/target"));
    say("unlink", unlink("dir/moved"));
    show("without a name", fd);
    say("write", write(fd, "still", 5));
    show("without a name", fd);
    show("replaced", other);
    int unnamed = open(".", O_RDWR | O_TMPFILE, 0600);
    say("unnamed", unnamed < 0 ? -1 : 0);
    say("write", write(unnamed, "unnamed", 7));
    say("linkat", linkat(unnamed, "", AT_FDCWD, "named", AT_EMPTY_PATH));
    show("named", unnamed);
    for (int i = 0; i < 300; i++) {
        char name[40];
        sprintf(name, "dir/a name of some length %03d", i);
        unlink(name);
    }
    say("rmdir", rmdir("dir"));
    say("rmdir", rmdir("data"));
    list(".");
}

static void check_attributes(void) {
    struct stat st;
    close(open("attributes", O_RDWR | O_CREAT, 0644));
    say("chmod", chmod("attributes", 0751));
    struct timespec times[2] = {{4102444800, 123456789}, {1, 999999999}};
    say("utimensat", utimensat(AT_FDCWD, "attributes", times, 0));
    stat("attributes", &st);
    printf("%o %ld.%09ld %ld.%09ld\n", st.st_mode, (long)st.st_atim.tv_sec, st.st_atim.tv_nsec,
           (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    times[0].tv_nsec = UTIME_OMIT;
    times[1].tv_nsec = UTIME_NOW;
    say("utimensat", utimensat(AT_FDCWD, "attributes", times, 0));
    stat("attributes", &st);
    printf("%ld %d\n", (long)st.st_atim.tv_sec, st.st_mtim.tv_sec > 1700000000);
    // Before 1970, and on either side of 32 bits.
    static const long seconds[] = {-2147483647, -1, 0, 2147483648, 4294967295, 4294967296};
    for (int i = 0; i < 6; i++) {
        times[0].tv_sec = seconds[i], times[0].tv_nsec = 1;
        times[1].tv_sec = seconds[5 - i], times[1].tv_nsec = 999999999;
        say("utimensat", utimensat(AT_FDCWD, "attributes", times, 0));
        stat("attributes", &st);
        printf("%ld.%09ld %ld.%09ld\n", (long)st.st_atim.tv_sec, st.st_atim.tv_nsec, (long)st.st_mtim.tv_sec,
               st.st_mtim.tv_nsec);
    }
    struct statfs fs;
    say("statfs", statfs(".", &fs));
    printf("%d %d\n", fs.f_bavail > 1000, fs.f_namelen == 255);
    say("access", access("attributes", W_OK));
    sync();
}

// The bytes of a file's generation.
static void fill(char *bytes, int len, int worker, int name, int generation) {
    uint32_t state = worker * 7919 + name * 104729 + generation * 31 + 1;
    for (int i = 0; i < len; i++) {
        state = state * 1664525 + 1013904223;
        bytes[i] = state >> 24;
    }
}

static int length_of(int generation) { return 1 + generation * 2654435761u % 60000; }

static void need(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    _exit(9);
}

// Replaces a file by a new generation of it: afterwards this one, or a later one, is there after any crash.
static void replace(int worker, int name, int generation) {
    static char bytes[60001 + 16];
    char text[40], path[40];
    int len = length_of(generation);
    memset(bytes, 0, 16);
    sprintf(bytes, "%d", generation);
    fill(bytes + 16, len, worker, name, generation);
    sprintf(text, "w%d/new", worker);
    sprintf(path, "w%d/f%d", worker, name);
    int fd = open(text, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    need(fd >= 0, "open");
    need(write(fd, bytes, 16 + len) == 16 + len, "write");
    need(!fsync(fd), "fsync");
    need(!close(fd) && !rename(text, path), "rename");
    sprintf(text, "w%d", worker);
    fd = open(text, O_RDONLY | O_DIRECTORY);
    need(fd >= 0 && !fsync(fd), "fsync of the directory");
    close(fd);
    char line[60];
    int count = sprintf(line, "replaced %d %d %d\n", worker, name, generation);
    need(write(1, line, count) == count, "output");
}

static void append(int worker, int fd, int base, int sequence, int promise) {
    char record[RECORD];
    fill(record, RECORD, worker, -1, base + sequence);
    need(write(fd, record, RECORD) == RECORD, "append");
    if (!promise) return;
    need(!fdatasync(fd), "fdatasync");
    char line[60];
    int count = sprintf(line, "appended %d %d\n", worker, sequence);
    need(write(1, line, count) == count, "output");
}

// Changes that nothing is promised of.
static void noise(int worker, uint32_t chance) {
    char path[60], to[60];
    sprintf(path, "w%d/noise%u", worker, chance >> 8 & 7);
    sprintf(to, "w%d/dir/noise%u", worker, chance >> 12 & 7);
    int fd;
    switch (chance & 7) {
    case 0: mkdir(path, 0755); break;
    case 1: rmdir(path); break;
    case 2: unlink(path); break;
    case 3: rename(path, to); break;
    case 4: link(path, to); break;
    case 5: unlink(to); break;
    default:
        fd = open(path, O_RDWR | O_CREAT, 0644);
        if (fd < 0) break;
        static char bytes[30000];
        pwrite(fd, bytes, chance >> 16 & 0x3fff, chance >> 10 & 0xffff);
        if (chance >> 30 == 1) ftruncate(fd, chance >> 12 & 0xffff);
        if (chance >> 30 == 2)
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, chance >> 12 & 0xffff, 5000);
        close(fd);
    }
}

static void load(int worker, int seed) {
    // Numbers that no other seed has.
    int base = seed * 1000000;
    char path[40];
    sprintf(path, "w%d", worker);
    mkdir(path, 0755);
    sprintf(path, "w%d/dir", worker);
    mkdir(path, 0755);
    sprintf(path, "w%d/log", worker);
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, 0644);
    need(log >= 0, "open of the log");
    uint32_t state = seed * 2654435761u + worker + 1;
    for (int step = 1, sequence = 0;; step++) {
        state = state * 1664525 + 1013904223;
        uint32_t chance = state ^ state >> 15;
        if (chance % 5 == 0)
            replace(worker, chance / 5 % NAMES, base + step);
        else if (chance % 5 < 3)
            append(worker, log, base, sequence++, chance / 5 % 4 == 0);
        else
            noise(worker, chance / 5);
    }
}

// Stores to files through shared mappings of two processes, larger than the cache.
static void check_stores(void) {
    enum { SIZE = 8 << 20 };
    int fd = open("stored", O_RDWR | O_CREAT, 0644), reader = open("stored", O_RDONLY);
    say("ftruncate", ftruncate(fd, SIZE - 100));
    say("read only", mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0) == MAP_FAILED ? -1 : 0);
    unsigned char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *only = mmap(NULL, 4096, PROT_READ, MAP_SHARED, reader, 0);
    say("mprotect", mprotect(only, 4096, PROT_READ | PROT_WRITE));
    if (!fork()) {
        for (int at = 0; at < SIZE - 100; at += 8192) p[at] = at >> 13;
        _exit(0);
    }
    for (int at = 4096; at < SIZE - 100; at += 8192) p[at + 7] = at >> 12;
    wait(NULL);
    int wrong = 0;
    for (int at = 0; at < SIZE - 100; at += 8192) wrong += p[at] != (at >> 13 & 255);
    say("wrong bytes of the child", wrong);
    show("read without msync", reader);
    pwrite(fd, "by a call", 9, 4090);
    printf("%.9s\n", p + 4090);
    p[5000] = 'x';
    say("msync", msync(p, SIZE, MS_SYNC));
    p[SIZE - 101] = 'y';
    say("munmap", munmap(p, SIZE));
    show("stored", reader);
    close(fd);
    close(reader);
}

// Sorts names, as their order is the file system's affair.
static void list_xattrs(const char *file) {
    char names[1024], *sorted[64];
    int count = 0;
    long len = listxattr(file, names, sizeof names);
    say("listxattr", len);
    for (char *name = names; name < names + (len > 0 ? len : 0); name += strlen(name) + 1) sorted[count++] = name;
    qsort(sorted, count, sizeof *sorted, by_name);
    for (int i = 0; i < count; i++) puts(sorted[i]);
}

static void check_xattrs(void) {
    char value[4000];
    int fd = open("marked", O_RDWR | O_CREAT, 0644);
    say("symlink", symlink("marked", "mark"));
    say("setxattr", setxattr("marked", "user.one", "first", 5, XATTR_CREATE));
    say("setxattr again", setxattr("marked", "user.one", "x", 1, XATTR_CREATE));
    say("setxattr none", setxattr("marked", "user.none", "x", 1, XATTR_REPLACE));
    say("setxattr both", setxattr("marked", "user.none", "x", 1, XATTR_REPLACE | XATTR_CREATE));
    say("setxattr flags", setxattr("marked", "user.none", "x", 1, 8));
    say("setxattr prefix", setxattr("marked", "user.", "x", 1, 0));
    say("setxattr kind", setxattr("marked", "strange.x", "x", 1, 0));
    say("setxattr name", setxattr("marked", "", "x", 1, 0));
    say("setxattr long", setxattr("marked", "user.long", value, 70000, 0));
    memset(value, 'v', sizeof value);
    say("fsetxattr", fsetxattr(fd, "user.two", value, 2000, 0));
    say("setxattr through link", setxattr("mark", "user.three", "", 0, 0));
    say("lsetxattr", lsetxattr("mark", "user.four", "x", 1, 0));
    say("lgetxattr", lgetxattr("mark", "user.four", value, sizeof value));
    say("trusted", setxattr("marked", "trusted.t", "hidden", 6, 0));
    say("missing", getxattr("missing", "user.one", value, sizeof value));
    say("getxattr size", getxattr("marked", "user.two", NULL, 0));
    say("getxattr small", getxattr("marked", "user.two", value, 10));
    say("getxattr", getxattr("marked", "user.one", value, sizeof value));
    printf("%.5s\n", value);
    say("fgetxattr empty", fgetxattr(fd, "user.three", value, sizeof value));
    say("listxattr small", listxattr("marked", value, 3));
    list_xattrs("marked");
    say("fremovexattr", fremovexattr(fd, "user.two"));
    say("removexattr again", removexattr("marked", "user.two"));
    say("mkdir", mkdir("marks", 0755));
    say("setxattr of a directory", setxattr("marks", "user.dir", "d", 1, 0));
    list_xattrs("marked");
    list_xattrs("marks");
    close(fd);
}

int main(int count, char **args) {
    if (count < 3 || chdir(args[2])) return 2;
    if (!strcmp(args[1], "check")) {
        umask(022);
        check_data();
        check_mappings();
        check_stores();
        check_names();
        check_attributes();
        check_xattrs();
        return 0;
    }
    if (!strcmp(args[1], "load")) {
        for (int worker = 0; worker < WORKERS; worker++)
            if (!fork()) load(worker, atoi(args[3]));
        int status;
        while (wait(&status) > 0)
            if (WIFEXITED(status) && WEXITSTATUS(status)) return WEXITSTATUS(status);
        return 0;
    }
    if (!strcmp(args[1], "save")) {
        int fd = open("saved", O_RDWR | O_CREAT, 0644);
        if (fd < 0) {
            say("open", fd);
            return 1;
        }
        show("before", fd);
        say("write", write(fd, args[3], strlen(args[3])));
        return 0;
    }
    return 2;
}

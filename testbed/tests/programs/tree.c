// A tree of files that another system reads afterwards.
//
//   tree make DIR SEED     makes it: names, links, holes, attributes, times, owners, large directories
//   tree change DIR SEED   changes it: renames, removals, appends, new files
//   tree list DIR          prints all that a reader can see of it, a line a name
//   tree noise DIR SEED    changes files in DIR, a folder beside it, until it is killed
//
// `list` ends with a line `end`. Times of access are those of files only: reading changes the others'. What fails and must
// not is printed, and the exit status is 1.
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
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

// Of linux/falloc.h, which musl does not bring.
#ifndef FALLOC_FL_COLLAPSE_RANGE
#define FALLOC_FL_COLLAPSE_RANGE 8
#define FALLOC_FL_ZERO_RANGE 16
#define FALLOC_FL_INSERT_RANGE 32
#endif
#define SMALL 240
#define MANY 2500
#define PIECE 4096
// A file longer than this is read in pieces: where `sparse` has its data, and at its end.
#define WHOLE (8 << 20)
// The most that ext4 takes with blocks of 4 KB, less a block.
#define SPARSE (((off_t)1 << 44) - 8192)
#define FIRST_POWER 22

static int failed;

static void must(int holds, const char *what, const char *path) {
    if (holds) return;
    printf("failed: %s %s: %s\n", what, path, strerror(errno));
    failed = 1;
}

static uint32_t state;

static uint32_t chance(uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
}

static void fill(char *bytes, int len) {
    for (int i = 0; i < len; i++) bytes[i] = chance(256);
}

// Writes `len` random bytes in pieces, from the file's position on.
static void put(int fd, int len, const char *path) {
    static char bytes[9000];
    while (len > 0) {
        int now = 1 + chance(sizeof bytes);
        if (now > len) now = len;
        fill(bytes, now);
        must(write(fd, bytes, now) == now, "write", path);
        len -= now;
    }
}

static void put_at(int fd, off_t at, int len, const char *path) {
    char bytes[PIECE];
    fill(bytes, len);
    must(pwrite(fd, bytes, len, at) == len, "pwrite", path);
}

static void file(const char *path, int len) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
    must(fd >= 0, "open", path);
    put(fd, len, path);
    must(!close(fd), "close", path);
}

static int length(void) {
    static const int edges[] = {0, 1, 4095, 4096, 4097, 8192, 65536, 65537};
    return chance(4) ? (int)chance(30000) : edges[chance(8)];
}

static void directory(const char *path) { must(!mkdir(path, 0755), "mkdir", path); }

static void make_many(void) {
    char path[300], to[300];
    directory("many");
    for (int i = 0; i < MANY; i++) {
        snprintf(path, sizeof path, "many/an entry of some length, number %d", i);
        if (i % 5 == 4) {
            snprintf(to, sizeof to, "many/an entry of some length, number %d", i - 4);
            must(!link(to, path), "link", path);
        } else if (i % 7 == 6)
            must(!symlink("an entry", path), "symlink", path);
        else
            file(path, i % 50 ? 0 : 10);
    }
    // The longest names, of which a block of a directory holds fifteen.
    for (int i = 0; i < 40; i++) {
        int len = snprintf(path, sizeof path, "many/%03d", i);
        memset(path + len, 'n', 5 + 255 - len);
        path[5 + 255] = 0;
        file(path, 1);
    }
}

static void make_links(void) {
    char path[100], target[4096];
    directory("links");
    file("links/first", 5000);
    for (int i = 0; i < 40; i++) {
        sprintf(path, "links/hard %d", i);
        must(!link("links/first", path), "link", path);
    }
    // 59 bytes lie in the inode, 60 in a block.
    static const int lengths[] = {1, 58, 59, 60, 61, 255, 1000, 4095};
    for (int i = 0; i < 8; i++) {
        memset(target, 'a' + i, lengths[i]);
        target[lengths[i]] = 0;
        sprintf(path, "links/soft %d", lengths[i]);
        must(!symlink(target, path), "symlink", path);
    }
}

static void make_holes(void) {
    directory("holes");
    int fd = open("holes/sparse", O_RDWR | O_CREAT, 0644);
    must(!ftruncate(fd, SPARSE), "ftruncate", "sparse");
    for (int power = FIRST_POWER; power < 44; power += 3) put_at(fd, (off_t)1 << power, PIECE, "sparse");
    put_at(fd, SPARSE - 100, 100, "sparse");
    close(fd);
    fd = open("holes/allocated", O_RDWR | O_CREAT, 0644);
    must(!fallocate(fd, 0, 0, 3 << 20), "fallocate", "allocated");
    must(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 3 << 20, 1 << 20), "fallocate", "allocated");
    for (int i = 0; i < 20; i++) put_at(fd, (off_t)chance(3 << 20), 1 + chance(PIECE), "allocated");
    for (int i = 0; i < 6; i++)
        must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, chance(3 << 20), 1 + chance(200000)), "punch",
             "allocated");
    close(fd);
    // More extents than an inode and a block of them hold.
    fd = open("holes/parts", O_RDWR | O_CREAT, 0644);
    for (int i = 0; i < 900; i++) put_at(fd, (off_t)8192 * (i * 7 % 900), 1 + chance(PIECE), "parts");
    close(fd);
    fd = open("holes/cut", O_RDWR | O_CREAT, 0644);
    put(fd, 200000, "cut");
    must(!ftruncate(fd, 70001) && !ftruncate(fd, 150000), "ftruncate", "cut");
    close(fd);
    fd = open("holes/mapped", O_RDWR | O_CREAT, 0644);
    must(!ftruncate(fd, 300001), "ftruncate", "mapped");
    char *p = mmap(NULL, 300001, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(p != MAP_FAILED, "mmap", "mapped");
    for (int i = 0; i < 60; i++) p[chance(300001)] = chance(256);
    must(!msync(p, 300001, MS_SYNC) && !munmap(p, 300001), "msync", "mapped");
    close(fd);
}

static void make_attributes(void) {
    char path[100], name[40], value[3000];
    directory("attributes");
    static const int modes[] = {0, 0400, 0777, 04755, 02755, 01777, 06711, 07777, 0200, 0123};
    static const unsigned owners[] = {0, 1, 1000, 65534, 65536, 70000, 4294967294u};
    for (int i = 0; i < 10; i++) {
        sprintf(path, "attributes/mode %o", modes[i]);
        file(path, 100);
        must(!chown(path, owners[i % 7], owners[(i + 3) % 7]), "chown", path);
        must(!chmod(path, modes[i]), "chmod", path);
        sprintf(path, "attributes/folder %o", modes[i]);
        directory(path);
        must(!chmod(path, modes[i]), "chmod", path);
    }
    // The first and the last second that 34 bits tell, and edges between.
    static const int64_t times[] = {-2147483648, -1, 0, 2147483647, 2147483648, 4294967296, 4102444800, 15032385535};
    for (int i = 0; i < 8; i++) {
        sprintf(path, "attributes/time %ld", (long)times[i]);
        file(path, 10);
        struct timespec both[2] = {{times[7 - i], 999999999 - i}, {times[i], 1 + i}};
        must(!utimensat(AT_FDCWD, path, both, 0), "utimensat", path);
    }
    for (int i = 0; i < 12; i++) {
        sprintf(path, "attributes/marked %d", i);
        if (i % 4 == 3)
            directory(path);
        else
            file(path, 20);
        for (int n = 0; n <= i; n++) {
            static const char *kinds[] = {"user", "trusted", "security"};
            sprintf(name, "%s.name %d", kinds[(i + n) % 3], n);
            int len = n == 5 ? 2000 : (int)chance(80);
            fill(value, len);
            must(!setxattr(path, name, value, len, 0), "setxattr", path);
        }
    }
    must(!mkfifo("attributes/fifo", 0640), "mkfifo", "fifo");
    must(!mknod("attributes/device", S_IFCHR | 0600, makedev(1, 3)), "mknod", "device");
    must(!mknod("attributes/large device", S_IFBLK | 0600, makedev(300, 70000)), "mknod", "large device");
    must(!mknod("attributes/socket", S_IFSOCK | 0600, 0), "mknod", "socket");
}

static void make_names(void) {
    directory("names");
    static const char *names[] = {" ", "-rf", "...", "a\nb", "tab\t", "back\\slash", "\xff\xfe", "\xc3\xa4\xe2\x82\xac",
                                  "\x01\x02\x7f", "*?[", "'\"`$(x)", "nul", "~", "#x#", ".hidden", "e\xcc\x81", "\xc3\xa9"};
    char path[100];
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        sprintf(path, "names/%s", names[i]);
        file(path, i);
    }
}

static void make(void) {
    char path[600];
    directory("small");
    for (int i = 0; i < SMALL; i++) {
        sprintf(path, "small/f%d", i);
        file(path, length());
    }
    make_many();
    make_links();
    make_holes();
    make_attributes();
    make_names();
    strcpy(path, "deep");
    directory(path);
    for (int i = 0; i < 60; i++) directory(strcat(path, "/d"));
    file(strcat(path, "/file"), 777);
}

// Changes one of the small files.
static void change_one(int i, uint32_t seed) {
    char path[100], other[100];
    sprintf(path, "small/f%d", i);
    sprintf(other, "small/f%d", (int)chance(SMALL));
    int fd = open(path, O_RDWR | O_APPEND * (chance(2)));
    if (fd < 0) {
        if (errno != ENOENT) must(0, "open", path);
        file(path, length());
        return;
    }
    switch (chance(14)) {
    case 0: must(!unlink(path), "unlink", path); break;
    case 1: must(!rename(path, other), "rename", path); break;
    case 2:
        sprintf(other, "many/moved %u %d", seed, i);
        must(!rename(path, other), "rename", path);
        break;
    case 3: lseek(fd, 0, SEEK_END), put(fd, length(), path); break;
    case 4: must(!ftruncate(fd, length()), "ftruncate", path); break;
    case 5: put_at(fd, chance(60000), 1 + chance(PIECE), path); break;
    case 6: must(!fchmod(fd, chance(4096)), "chmod", path); break;
    case 7: must(!fchown(fd, chance(100000), chance(100000)), "chown", path); break;
    case 8: {
        char value[700];
        int len = chance(700);
        fill(value, len);
        must(!fsetxattr(fd, "user.changed", value, len, 0), "setxattr", path);
        break;
    }
    case 9: must(!fremovexattr(fd, "user.changed") || errno == ENODATA, "removexattr", path); break;
    case 10:
        sprintf(other, "small/new");
        file(other, length());
        must(!rename(other, path), "rename", other);
        break;
    case 11: must(!link(path, other) || errno == EEXIST, "link", path); break;
    case 12: must(!fallocate(fd, 0, chance(100000), 1 + chance(100000)), "fallocate", path); break;
    default:
        must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, chance(20000), 1 + chance(20000)), "punch",
             path);
    }
    close(fd);
}

static void change(uint32_t seed) {
    char path[300], to[300];
    for (int i = 0; i < SMALL; i++) change_one(i, seed);
    for (int i = 0; i < MANY; i++) {
        snprintf(path, sizeof path, "many/an entry of some length, number %d", i);
        uint32_t what = chance(8);
        if (what == 0) must(!unlink(path) || errno == ENOENT, "unlink", path);
        if (what == 1) {
            snprintf(to, sizeof to, "many/renamed %u %d", seed, i);
            must(!rename(path, to) || errno == ENOENT, "rename", path);
        }
    }
    for (int i = 0; i < 300; i++) {
        snprintf(path, sizeof path, "many/a later entry %u, %d", seed, i);
        file(path, 0);
    }
    sprintf(path, "folder %u", seed);
    directory(path);
    sprintf(to, "deep/folder %u", seed);
    must(!rename(path, to), "rename", path);
    int fd = open("holes/sparse", O_RDWR);
    put_at(fd, ((off_t)1 << (FIRST_POWER + 3 * chance(7))) + chance(PIECE), 100, "sparse");
    must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)1 << (FIRST_POWER + 3 * chance(7)), PIECE),
         "punch", "sparse");
    close(fd);
    fd = open("holes/parts", O_RDWR);
    for (int i = 0; i < 100; i++) put_at(fd, (off_t)4096 * chance(2000), 1 + chance(PIECE), "parts");
    // Not every system has these.
    fallocate(fd, FALLOC_FL_ZERO_RANGE, 4096 * chance(1000), 40960);
    fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 4096 * chance(500), 8192);
    fallocate(fd, FALLOC_FL_INSERT_RANGE, 4096 * chance(500), 16384);
    close(fd);
    fd = open("holes/cut", O_RDWR | O_APPEND);
    put(fd, 50000, "cut");
    must(!ftruncate(fd, 100000 + chance(50000)), "ftruncate", "cut");
    close(fd);
}

static uint64_t sum_of(uint64_t sum, const unsigned char *bytes, long len) {
    for (long i = 0; i < len; i++) sum = (sum ^ bytes[i]) * 1099511628211u;
    return sum;
}

static uint64_t read_sum(const char *path, off_t size) {
    static unsigned char bytes[65536];
    int fd = open(path, O_RDONLY | O_NOATIME);
    must(fd >= 0, "open", path);
    uint64_t sum = 14695981039346656037u;
    long got;
    if (size <= WHOLE) {
        for (off_t at = 0; (got = pread(fd, bytes, sizeof bytes, at)) > 0; at += got) sum = sum_of(sum, bytes, got);
        must(!got, "read", path);
    } else {
        for (int power = FIRST_POWER; power < 44; power++) {
            got = pread(fd, bytes, 3 * PIECE, ((off_t)1 << power) - PIECE);
            must(got >= 0, "read", path);
            sum = sum_of(sum, bytes, got);
        }
        got = pread(fd, bytes, PIECE, size - PIECE);
        must(got >= 0, "read", path);
        sum = sum_of(sum, bytes, got);
    }
    close(fd);
    return sum;
}

static void escaped(const char *text) {
    for (; *text; text++)
        if (*text > ' ' && *text < 127 && *text != '\\')
            putchar(*text);
        else
            printf("\\%02x", (unsigned char)*text);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void list_attributes(const char *path) {
    static char names[8192];
    static unsigned char value[8192];
    char *sorted[200];
    int count = 0;
    long len = listxattr(path, names, sizeof names);
    must(len >= 0, "listxattr", path);
    for (char *name = names; name < names + (len > 0 ? len : 0); name += strlen(name) + 1) sorted[count++] = name;
    qsort(sorted, count, sizeof *sorted, by_name);
    for (int i = 0; i < count; i++) {
        long size = getxattr(path, sorted[i], value, sizeof value);
        must(size >= 0, "getxattr", path);
        printf(" ");
        escaped(sorted[i]);
        printf("=%ld:%016lx", size, (long)sum_of(14695981039346656037u, value, size));
    }
}

static void list(const char *path);

static void list_folder(const char *path) {
    char **names = NULL;
    int count = 0;
    DIR *d = opendir(path);
    must(d != NULL, "opendir", path);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        names = realloc(names, (count + 1) * sizeof *names);
        names[count++] = strdup(e->d_name);
    }
    if (d) closedir(d);
    if (count) qsort(names, count, sizeof *names, by_name);
    for (int i = 0; i < count; i++) {
        char *inner = malloc(strlen(path) + strlen(names[i]) + 2);
        sprintf(inner, "%s/%s", path, names[i]);
        list(inner);
        free(inner);
        free(names[i]);
    }
    free(names);
}

static void list(const char *path) {
    struct stat st;
    must(!lstat(path, &st), "lstat", path);
    struct statx more = {0};
    must(!statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BTIME, &more), "statx", path);
    escaped(path);
    printf(" %lu %o %u:%u %lu %ld/%ld m%ld.%09ld c%ld.%09ld", (long)st.st_ino, st.st_mode, st.st_uid, st.st_gid,
           (long)st.st_nlink, (long)st.st_size, (long)st.st_blocks, (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
           (long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    if (more.stx_mask & STATX_BTIME) printf(" b%ld.%09u", (long)more.stx_btime.tv_sec, more.stx_btime.tv_nsec);
    if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) printf(" %u:%u", major(st.st_rdev), minor(st.st_rdev));
    if (S_ISLNK(st.st_mode)) {
        char target[4200];
        long len = readlink(path, target, sizeof target);
        must(len >= 0, "readlink", path);
        printf(" %ld:%016lx", len, (long)sum_of(14695981039346656037u, (unsigned char *)target, len));
    }
    if (S_ISREG(st.st_mode))
        printf(" a%ld.%09ld %016lx", (long)st.st_atim.tv_sec, st.st_atim.tv_nsec, (long)read_sum(path, st.st_size));
    if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) list_attributes(path);
    printf("\n");
    if (S_ISDIR(st.st_mode)) list_folder(path);
}

static void noise(void) {
    static char bytes[40000];
    char path[60], to[60];
    // A file without a name, which the next mount must remove.
    int lost = open("lost", O_RDWR | O_CREAT | O_TRUNC, 0644);
    must(write(lost, bytes, sizeof bytes) == sizeof bytes && !unlink("lost"), "write", "lost");
    for (;;) {
        sprintf(path, "n%u", chance(30));
        sprintf(to, "n%u", chance(30));
        int fd;
        switch (chance(8)) {
        case 0: unlink(path); break;
        case 1: rename(path, to); break;
        case 2: link(path, to); break;
        case 3: mkdir(path, 0755); break;
        case 4: rmdir(path); break;
        default:
            fd = open(path, O_RDWR | O_CREAT | O_APPEND * chance(2), 0644);
            if (fd < 0) break;
            pwrite(fd, bytes, chance(sizeof bytes), chance(100000));
            if (!chance(4)) ftruncate(fd, chance(100000));
            if (!chance(6)) fsync(fd);
            close(fd);
        }
    }
}

int main(int count, char **args) {
    if (count < 3 || chdir(args[2])) return 2;
    umask(0);
    state = count > 3 ? atoi(args[3]) * 2654435761u + 1 : 1;
    if (!strcmp(args[1], "make"))
        make();
    else if (!strcmp(args[1], "change"))
        change(atoi(args[3]));
    else if (!strcmp(args[1], "list")) {
        list(".");
        printf("end\n");
    } else if (!strcmp(args[1], "noise"))
        noise();
    else
        return 2;
    fflush(stdout);
    return failed;
}

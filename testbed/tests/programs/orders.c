// Carries out calls that standard input orders, a line each, and prints one line of what each returned: `orders DIR`.
// Files are opened into numbered places. The same orders give the same lines on any Linux, whoever else is at the files.
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
#include <unistd.h>

#define PLACES 16
#define LONGEST (1 << 20)
#define NAMES 1024

static int places[PLACES];
static char bytes[LONGEST];

static const char *error_name(void) {
    static char number[16];
    sprintf(number, "%d", errno);
    return number;
}

static void tell(long result) {
    if (result < 0)
        printf("error %s\n", error_name());
    else
        printf("%ld\n", result);
}

static uint64_t sum(uint64_t sum, long len) {
    for (long i = 0; i < len; i++) sum = (sum ^ (unsigned char)bytes[i]) * 1099511628211u;
    return sum;
}

static void fill(long len, uint32_t seed) {
    for (long i = 0; i < len; i++) {
        seed = seed * 1664525 + 1013904223;
        bytes[i] = seed >> 24;
    }
}

static int flags_of(const char *text) {
    int flags = strchr(text, 'w') ? strchr(text, 'r') ? O_RDWR : O_WRONLY : O_RDONLY;
    for (; *text; text++)
        flags |= *text == 'c'   ? O_CREAT
                 : *text == 'x' ? O_EXCL
                 : *text == 't' ? O_TRUNC
                 : *text == 'a' ? O_APPEND
                 : *text == 's' ? O_SYNC
                                : 0;
    return flags;
}

// Prints size, links and mode, which no clock tells.
static void show(int result, const struct stat *st) {
    if (result < 0)
        tell(result);
    else
        printf("size %ld links %ld mode %o\n", S_ISDIR(st->st_mode) ? 0 : (long)st->st_size,
               S_ISDIR(st->st_mode) ? 0 : (long)st->st_nlink, st->st_mode);
}

// Prints the length and a sum of all that a file has.
static void whole(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        tell(fd);
        return;
    }
    uint64_t all = 14695981039346656037u;
    long got, len = 0;
    while ((got = read(fd, bytes, 8192)) > 0) {
        all = sum(all, got);
        len += got;
    }
    close(fd);
    printf("%ld bytes %016lx%s\n", len, (long)all, got < 0 ? " error" : "");
}

static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void list(const char *path) {
    char *names[NAMES];
    int count = 0;
    DIR *dir = opendir(path);
    if (!dir) {
        tell(-1);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && count < NAMES;)
        if (entry->d_name[0] != '.') names[count++] = strdup(entry->d_name);
    closedir(dir);
    qsort(names, count, sizeof *names, by_name);
    printf("%d names", count);
    for (int i = 0; i < count; i++) {
        printf(" %s", names[i]);
        free(names[i]);
    }
    printf("\n");
}

// Writes so many records one behind the other; prints how many were written.
static void burst(int fd, long count, long len, uint32_t seed) {
    long done = 0;
    for (; done < count; done++) {
        fill(len, seed + done);
        if (write(fd, bytes, len) != len) break;
    }
    printf("%ld records%s%s\n", done, done < count ? " error " : "", done < count ? error_name() : "");
}

// Stores a byte through a shared mapping; prints what msync returned.
static void store(int fd, long at, int byte) {
    long page = at & ~4095;
    unsigned char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, page);
    if (mapped == MAP_FAILED) {
        tell(-1);
        return;
    }
    mapped[at - page] = byte;
    int synced = msync(mapped, 4096, MS_SYNC);
    munmap(mapped, 4096);
    tell(synced);
}

static void carry_out(char *line) {
    char *words[6] = {"", "", "", "", "", ""};
    int count = 0;
    for (char *word = strtok(line, " \n"); word && count < 6; word = strtok(NULL, " \n")) words[count++] = word;
    const char *what = words[0];
    long n[6];
    for (int i = 0; i < 6; i++) n[i] = atol(words[i]);
    int *place = &places[n[1] & (PLACES - 1)];
    int fd = *place;
    struct stat st;
#define IS(name) !strcmp(what, name)
    if (IS("open")) {
        int opened = open(words[2], flags_of(words[3]), 0644);
        if (opened >= 0) *place = opened;
        tell(opened < 0 ? -1 : 0);
    } else if (IS("close")) {
        *place = -1;
        tell(close(fd));
    } else if (IS("write") || IS("pwrite")) {
        long len = n[2] % LONGEST;
        fill(len, n[3]);
        tell(IS("write") ? write(fd, bytes, len) : pwrite(fd, bytes, len, n[4]));
    } else if (IS("burst"))
        burst(fd, n[2], n[3] % LONGEST, n[4]);
    else if (IS("read") || IS("pread")) {
        long got = IS("read") ? read(fd, bytes, n[2] % LONGEST) : pread(fd, bytes, n[2] % LONGEST, n[3]);
        if (got < 0)
            tell(got);
        else
            printf("%ld bytes %016lx\n", got, (long)sum(14695981039346656037u, got));
    } else if (IS("seek"))
        tell(lseek(fd, n[2], n[3]));
    else if (IS("truncate"))
        tell(ftruncate(fd, n[2]));
    else if (IS("fsync"))
        tell(fsync(fd));
    else if (IS("syncfs"))
        tell(syncfs(fd));
    else if (IS("fstat"))
        show(fstat(fd, &st), &st);
    else if (IS("store"))
        store(fd, n[2], n[3]);
    else if (IS("stat"))
        show(lstat(words[1], &st), &st);
    else if (IS("sum"))
        whole(words[1]);
    else if (IS("list"))
        list(words[1]);
    else if (IS("rename"))
        tell(rename(words[1], words[2]));
    else if (IS("link"))
        tell(link(words[1], words[2]));
    else if (IS("unlink"))
        tell(unlink(words[1]));
    else if (IS("mkdir"))
        tell(mkdir(words[1], 0755));
    else if (IS("rmdir"))
        tell(rmdir(words[1]));
    else if (IS("chdir"))
        tell(chdir(words[1]));
    else if (IS("chmod"))
        tell(chmod(words[1], n[2]));
    else
        printf("unknown: %s\n", what);
}

int main(int argc, char **argv) {
    char line[256];
    if (argc != 2 || chdir(argv[1])) {
        perror("orders");
        return 2;
    }
    umask(022);
    for (int i = 0; i < PLACES; i++) places[i] = -1;
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        carry_out(line);
        fflush(stdout);
    }
    return 0;
}

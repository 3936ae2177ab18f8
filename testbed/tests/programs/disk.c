/*
 * Uses files as programs do, so that `cargo xtask bench files` can time it here and on Linux. Built static against musl.
 *
 *   disk DIR ROUND       makes files in DIR, and removes them again
 *
 * Each kind of use is a phase (phases.h); at the end it prints
 *
 *   phase <tab> NUMBER <tab> NAME <tab> OPERATIONS <tab> NANOSECONDS
 *   wrong <tab> COUNT                     operations that failed, and bytes that were read otherwise than written
 *
 * The exit status is 1 if anything is wrong.
 */
#define _GNU_SOURCE
#include "phases.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIZE = 16 << 20, LONG = 64 << 10, SHORT = 4 << 10, SYNCED = 100, RANDOM = 1000, FILES = 300 };

static size_t wrong;
static _Alignas(4096) unsigned char bytes[LONG];

static void must(int holds)
{
    wrong += !holds;
}

static uint32_t state = 1;

static off_t place(void)
{
    state = state * 1664525u + 1013904223u;
    return (off_t)(state >> 8) % (SIZE / SHORT) * SHORT;
}

/* Each block of 4 KB tells its place in its first and its last word. */
static void fill(off_t at, size_t length)
{
    for (size_t i = 0; i < length; i += SHORT) {
        uint64_t word = (uint64_t)at + i;
        memcpy(bytes + i, &word, sizeof word);
        memcpy(bytes + i + SHORT - sizeof word, &word, sizeof word);
    }
}

static void check(off_t at, size_t length)
{
    for (size_t i = 0; i < length; i += SHORT) {
        uint64_t word = (uint64_t)at + i;
        must(!memcmp(bytes + i, &word, sizeof word) && !memcmp(bytes + i + SHORT - sizeof word, &word, sizeof word));
    }
}

static void write_at(int fd, off_t at, size_t length)
{
    fill(at, length);
    must(pwrite(fd, bytes, length, at) == (ssize_t)length);
}

static void read_at(int fd, off_t at, size_t length)
{
    must(pread(fd, bytes, length, at) == (ssize_t)length);
    check(at, length);
}

static void write_all(int fd)
{
    for (off_t at = 0; at < SIZE; at += LONG) write_at(fd, at, LONG);
    must(!fsync(fd));
}

static void read_all(int fd)
{
    for (off_t at = 0; at < SIZE; at += LONG) read_at(fd, at, LONG);
}

static void write_random(int fd, int count, int each)
{
    while (count--) {
        write_at(fd, place(), SHORT);
        if (each) must(!fsync(fd));
    }
    must(!fsync(fd));
}

static void read_random(int fd)
{
    for (int i = 0; i < RANDOM; i++) read_at(fd, place(), SHORT);
}

static const char *name(int number)
{
    static char text[40];
    snprintf(text, sizeof text, "small/file %d", number);
    return text;
}

static void create(void)
{
    for (int i = 0; i < FILES; i++) {
        int fd = open(name(i), O_WRONLY | O_CREAT | O_EXCL, 0644);
        must(fd >= 0 && write(fd, bytes, 1000) == 1000 && !close(fd));
    }
}

static void status(void)
{
    struct stat st;
    for (int i = 0; i < FILES; i++) must(!stat(name(i), &st) && st.st_size == 1000);
}

static void open_read(void)
{
    for (int i = 0; i < FILES; i++) {
        int fd = open(name(i), O_RDONLY);
        must(fd >= 0 && read(fd, bytes, sizeof bytes) == 1000 && !close(fd));
    }
}

static void remove_all(void)
{
    for (int i = 0; i < FILES; i++) must(!unlink(name(i)));
}

int main(int count, char **args)
{
    if (count < 2 || chdir(args[1]) || mkdir("small", 0755)) return 2;
    int fd = open("large", O_RDWR | O_CREAT | O_TRUNC, 0644);
    int direct = open("large", O_RDONLY | O_DIRECT);
    must(fd >= 0 && direct >= 0);
    PHASE(128, "write_64k", SIZE / LONG, write_all(fd));
    PHASE(129, "rewrite_64k", SIZE / LONG, write_all(fd));
    PHASE(130, "read_64k_disk", SIZE / LONG, read_all(direct));
    /* What comes into memory by this pass is there in the next. */
    read_all(fd);
    PHASE(131, "read_64k", SIZE / LONG, read_all(fd));
    PHASE(132, "random_read_4k_disk", RANDOM, read_random(direct));
    PHASE(133, "random_read_4k", RANDOM, read_random(fd));
    PHASE(134, "random_write_4k_fsync", SYNCED, write_random(fd, SYNCED, 1));
    PHASE(135, "random_write_4k", RANDOM, write_random(fd, RANDOM, 0));
    PHASE(136, "create_1k", FILES, create());
    PHASE(137, "sync", 1, sync());
    PHASE(138, "stat", FILES, status());
    PHASE(139, "stat_again", FILES, status());
    PHASE(140, "open_read_close", FILES, open_read());
    PHASE(141, "open_again", FILES, open_read());
    PHASE(142, "unlink", FILES, remove_all());
    must(!close(fd) && !close(direct) && !unlink("large") && !rmdir("small"));
    sync();
    REPORT("wrong\t%llu\n", (unsigned long long)wrong);
    fputs(report, stdout);
    return wrong != 0;
}

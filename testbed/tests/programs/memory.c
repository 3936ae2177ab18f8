/*
 * What Linux promises of a program's memory, one line a promise. Run here and there, the output is
 * to be the same.
 *
 *   memory [PART]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MB (1UL << 20)
#define TB (1UL << 40)
#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static char *map(size_t len, int prot, int flags)
{
    return mmap(NULL, len, prot, ANON | flags, -1, 0);
}

static void say(const char *what, long value)
{
    printf("%s: %ld\n", what, value);
}

/* What a call that returns -1 or MAP_FAILED did. */
static long error(long result)
{
    return result == -1 ? -errno : 0;
}

static void kept(void)
{
    unsigned char *a = (unsigned char *)map(17 * MB, RW, 0);
    memset(a, 0x5a, 17 * MB);
    char *more = map(300 * MB, RW, 0);
    long wrong = more == MAP_FAILED;
    for (size_t at = 0; at < 17 * MB; at += PAGE)
        wrong += a[at] != 0x5a;
    say("pages lost by a larger mapping", wrong);
    munmap(more, 300 * MB);
    munmap(a, 17 * MB);
}

static void scattered(void)
{
    long failed = 0;
    for (unsigned long n = 0; n < 60000; n++) {
        char *at = (char *)(0x100000000000UL + n * 2 * MB);
        if (mmap(at, PAGE, RW, ANON | MAP_FIXED, -1, 0) != at) {
            failed++;
            continue;
        }
        failed += *at;
        *at = 1;
        munmap(at, PAGE);
    }
    say("pages in tables of their own that failed", failed);
}

static void reserved(void)
{
    char *none = map(64 * TB, PROT_NONE, MAP_NORESERVE);
    say("64 TB reserved", none == MAP_FAILED);
    say("it has no rights still", error(mprotect(none, 64 * TB, PROT_NONE)));
    say("its rights changed", error(mprotect(none, 64 * TB, PROT_READ)));
    say("discarded", error(madvise(none, 64 * TB, MADV_DONTNEED)));
    say("given back", error(munmap(none, 64 * TB)));
    char *sparse = map(16 * TB, RW, MAP_NORESERVE);
    say("16 TB reserved", sparse == MAP_FAILED);
    sparse[5 * TB] = 7;
    say("a page of it", sparse[5 * TB]);
    munmap(sparse, 16 * TB);
}

static void moved(void)
{
    char *two = map(2 * PAGE, RW, 0);
    mprotect(two + PAGE, PAGE, PROT_READ);
    say("mremap of two mappings", error((long)mremap(two, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE)));
    char *a = map(PAGE, PROT_NONE, 0);
    mmap(a + PAGE, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
    char *b = mremap(a, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
    say("mremap of memory without rights", error((long)b));
    char *c = map(8 * MB, RW, 0), *to = map(8 * MB, PROT_NONE, 0);
    memset(c, 3, 8 * MB);
    say("mremap to a place", mremap(c, 8 * MB, 8 * MB, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to);
    long wrong = 0;
    for (size_t at = 0; at < 8 * MB; at += PAGE)
        wrong += to[at] != 3;
    say("pages lost by it", wrong);
}

static void checked(void)
{
    char *a = map(3 * PAGE, RW, 0);
    say("shared and private", error((long)mmap(NULL, PAGE, RW, MAP_SHARED | ANON, -1, 0)));
    say("unknown rights", error(mprotect(a, PAGE, 0x40)));
    say("unknown advice", error(madvise(a, PAGE, 9999)));
    munmap(a + PAGE, PAGE);
    a[2 * PAGE] = 1;
    say("mprotect over a hole", error(mprotect(a, 3 * PAGE, PROT_READ)));
    say("madvise over a hole", error(madvise(a, 3 * PAGE, MADV_DONTNEED)));
    say("done beyond it", a[2 * PAGE]);
    char *low = map(PAGE, RW, MAP_32BIT);
    say("MAP_32BIT is high", (unsigned long)low >> 31 != 0);
}

static void used_and_given_back(void)
{
    long wrong = 0;
    for (int round = 0; round < 40; round++) {
        char *a = map(24 * MB, RW, 0);
        for (size_t at = 0; at < 24 * MB; at += PAGE) {
            wrong += a[at] != 0;
            a[at] = 1;
        }
        munmap(a, 24 * MB);
    }
    say("pages that did not start as zeros", wrong);
}

/* Mappings that nothing joins, until there may be no more. */
static void at_the_limit(void)
{
    enum { MANY = 70000 };
    char *all = map(3UL * MANY * PAGE, PROT_NONE, MAP_NORESERVE);
    long failed = 0, kept;
    munmap(all, 3UL * MANY * PAGE);
    for (kept = 0; kept < MANY && !failed; kept++)
        failed = mmap(all + 3 * kept * PAGE, 2 * PAGE, PROT_NONE, ANON | MAP_FIXED, -1, 0) == MAP_FAILED;
    say("mappings are few", kept < 60000);
    say("a mapping unmapped at the limit", error(munmap(all + 300 * PAGE, 2 * PAGE)));
    say("and mapped again", mmap(all + 300 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == MAP_FAILED);
    say("all unmapped at once", error(munmap(all, 3UL * MANY * PAGE)));
}

static sigjmp_buf back;

static void on_bus_error(int signal)
{
    siglongjmp(back, signal);
}

static void of_files(const char *program)
{
    struct stat stat;
    int file = open(program, O_RDONLY), zero = open("/dev/zero", O_RDWR);
    fstat(file, &stat);
    size_t size = ((size_t)stat.st_size + PAGE - 1) / PAGE * PAGE;
    volatile char *a = mmap(NULL, size + PAGE, PROT_READ, MAP_PRIVATE, file, 0);
    say("a file's first byte", a[0]);
    signal(SIGBUS, on_bus_error);
    int signal = sigsetjmp(back, 1);
    if (!signal)
        say("beyond its end", a[size]);
    say("the signal of its end", signal);
    char *zeros = mmap(NULL, PAGE, RW, MAP_PRIVATE, zero, 0);
    say("/dev/zero can't be mapped", (void *)zeros == MAP_FAILED);
    say("it is not zero", (void *)zeros == MAP_FAILED || zeros[5]);
    close(file), close(zero);
}

/* Calls that have much to do: meanwhile the node must answer its peers. */
static void long_calls(void)
{
    enum { PIECES = 1024 };
    static struct iovec pieces[PIECES];
    int zero = open("/dev/zero", O_RDONLY), random = open("/dev/urandom", O_RDONLY);
    char *a = map(MB, RW, 0);
    for (int i = 0; i < PIECES; i++)
        pieces[i] = (struct iovec){ a, MB };
    say("readv of 1,024 pieces", readv(zero, pieces, PIECES) >> 20);
    long had = 0, last = 1;
    char *b = map(32 * MB, RW, 0);
    for (int i = 0; i < 8 && last > 0; i++, had += last > 0)
        last = read(random, b, 32 * MB - 1);
    say("reads of /dev/urandom", had);
    say("getrandom", getrandom(b, 16 * MB, 0) >> 20);
    say("discarded", error(madvise(b, 32 * MB, MADV_DONTNEED)));
    close(zero), close(random);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *part = argc > 1 ? argv[1] : "";
#define PART(name, call)                                                                                     \
    if (!*part || !strcmp(part, name))                                                                       \
        call
    PART("kept", kept());
    PART("scattered", scattered());
    PART("reserved", reserved());
    PART("moved", moved());
    PART("checked", checked());
    PART("limit", at_the_limit());
    PART("files", of_files(argv[0]));
    PART("long", long_calls());
    PART("used", used_and_given_back());
    return 0;
}

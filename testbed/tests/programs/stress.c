/*
 * What a program may ask of its memory and its processor. Each check prints one line that is the same on any Linux, so
 * that a run on a cluster is compared with one on the host. Built static, against musl and against glibc.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1ul << 20)

static const char *program;
static uint32_t state = 1;

static uint32_t next(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static unsigned char *map(size_t len)
{
    unsigned char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return at;
}

static void say(const char *what, size_t wrong)
{
    printf("%s: %zu wrong\n", what, wrong);
}

/* Blocks of all sizes come and go; each is full of its own byte. Together they take more than a small cache. */
static void heap(void)
{
    enum { BLOCKS = 600 };
    static unsigned char *blocks[BLOCKS];
    static size_t sizes[BLOCKS];
    size_t wrong = 0;
    for (int round = 0; round < 6000; round++) {
        int n = next() % BLOCKS;
        for (size_t i = 0; i < sizes[n]; i += 61)
            wrong += blocks[n][i] != n % 251;
        free(blocks[n]);
        blocks[n] = NULL;
        sizes[n] = next() % 4 ? next() % 3000 : next() % 60000;
        blocks[n] = malloc(sizes[n] + 1);
        if (!blocks[n]) {
            wrong++;
            sizes[n] = 0;
            continue;
        }
        memset(blocks[n], n % 251, sizes[n] + 1);
        if (next() % 16 == 0) {
            size_t more = sizes[n] + next() % 400000;
            unsigned char *moved = realloc(blocks[n], more + 1);
            if (moved) {
                for (size_t i = 0; i <= sizes[n]; i += 61)
                    wrong += moved[i] != n % 251;
                memset(moved, n % 251, more + 1);
                blocks[n] = moved;
                sizes[n] = more;
            }
        }
    }
    for (int n = 0; n < BLOCKS; n++) {
        for (size_t i = 0; i < sizes[n]; i++)
            wrong += blocks[n][i] != n % 251;
        free(blocks[n]);
    }
    say("heap", wrong);
}

/* The system call itself: musl's brk() always fails. */
static int move_break(void *to)
{
    return syscall(SYS_brk, to) == (long)to ? 0 : -1;
}

static size_t unlike(const unsigned char *at, size_t len, int byte)
{
    size_t wrong = 0;
    for (size_t i = 0; i < len; i++)
        wrong += at[i] != (unsigned char)byte;
    return wrong;
}

/* The break goes up and down over page and larger steps; what was given up comes back as zeros. */
static void breaks(void)
{
    unsigned char *start = (void *)syscall(SYS_brk, 0);
    size_t wrong = 0;
    start += -(uintptr_t)start % PAGE;
    wrong += move_break(start) != 0;
    for (int round = 1; round < 40; round++) {
        size_t len = (next() % 1400 + 1) * PAGE, keep = (next() % 1400) * PAGE + next() % PAGE;
        if (move_break(start + len)) {
            wrong++;
            continue;
        }
        wrong += unlike(start, len, 0);
        memset(start, round, len);
        if (keep < len) {
            wrong += move_break(start + keep) != 0;
            wrong += move_break(start + len) != 0;
            size_t whole = (keep + PAGE - 1) / PAGE * PAGE;
            wrong += unlike(start, keep, round);
            wrong += unlike(start + whole, len - whole, 0);
        }
        wrong += move_break(start) != 0;
    }
    say("brk", wrong);
}

/* A mapping right above the break stops it, but never before it is reached. */
static void crowded(void)
{
    unsigned char *start = (void *)syscall(SYS_brk, 0);
    size_t wrong = 0;
    start += -(uintptr_t)start % PAGE;
    wrong += move_break(start + PAGE) != 0;
    start[0] = 1;
    unsigned char *wall = mmap(start + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    wrong += wall != start + 5 * PAGE;
    wall[0] = 7;
    /* Linux keeps a page free below what follows. */
    wrong += move_break(start + 4 * PAGE) != 0;
    memset(start, 3, 4 * PAGE);
    wrong += move_break(start + 6 * PAGE) == 0;
    wrong += wall[0] != 7;
    wrong += munmap(wall, PAGE) != 0;
    wrong += move_break(start + 6 * PAGE) != 0;
    wrong += unlike(start, 4 * PAGE, 3) + unlike(start + 4 * PAGE, 2 * PAGE, 0);
    unsigned char *hint = start + 100 * PAGE;
    unsigned char *there = mmap(hint, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    wrong += there != hint;
    wrong += munmap(there, PAGE) != 0;
    wrong += move_break(start) != 0;
    say("mappings near the break", wrong);
}

/* A mirror in plain arithmetic says what each page of an arena should hold after maps, unmaps, protections, advice. */
static void arena(void)
{
    enum { PAGES = 900 };
    static int holds[PAGES]; /* -1 unmapped, else the byte in the whole page */
    static int rights[PAGES];
    unsigned char *base = map(PAGES * PAGE);
    size_t wrong = 0;
    for (int i = 0; i < PAGES; i++)
        rights[i] = PROT_READ | PROT_WRITE;
    for (int round = 0; round < 1500; round++) {
        int first = next() % PAGES, count = next() % 40 + 1, byte = next() % 250 + 1;
        if (first + count > PAGES)
            count = PAGES - first;
        unsigned char *at = base + first * PAGE;
        int mapped = 1;
        for (int i = first; i < first + count; i++)
            mapped &= holds[i] >= 0;
        switch (next() % 6) {
        case 0:
            wrong += munmap(at, count * PAGE) != 0;
            for (int i = first; i < first + count; i++)
                holds[i] = -1;
            break;
        case 1:
            wrong += mmap(at, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at;
            for (int i = first; i < first + count; i++)
                holds[i] = 0, rights[i] = PROT_READ | PROT_WRITE;
            break;
        case 2: {
            int prot = next() % 3 == 0 ? PROT_NONE : next() % 2 ? PROT_READ : PROT_READ | PROT_WRITE;
            int done = mprotect(at, count * PAGE, prot);
            wrong += mapped ? done != 0 : done != -1 || errno != ENOMEM;
            /* Linux changes what comes before a hole; a hole is then made whole again by the next map. */
            if (mapped)
                for (int i = first; i < first + count; i++)
                    rights[i] = prot;
            else {
                wrong += mmap(at, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at;
                for (int i = first; i < first + count; i++)
                    holds[i] = 0, rights[i] = PROT_READ | PROT_WRITE;
            }
            break;
        }
        case 3:
            if (mapped) {
                wrong += madvise(at, count * PAGE, MADV_DONTNEED) != 0;
                for (int i = first; i < first + count; i++)
                    holds[i] = 0;
            }
            break;
        default:
            for (int i = first; i < first + count; i++)
                if (holds[i] >= 0 && rights[i] & PROT_WRITE)
                    memset(base + i * PAGE, holds[i] = byte, PAGE);
        }
        for (int i = first; i < first + count; i++)
            if (holds[i] >= 0 && rights[i] & PROT_READ)
                wrong += unlike(base + i * PAGE, PAGE, holds[i]);
    }
    for (int i = 0; i < PAGES; i++)
        if (holds[i] >= 0 && rights[i] & PROT_READ)
            wrong += unlike(base + i * PAGE, PAGE, holds[i]);
    wrong += munmap(base, PAGES * PAGE) != 0;
    say("arena", wrong);
}

static void remaps(void)
{
    size_t len = 3 * PAGE, wrong = 0;
    unsigned char *at = map(len);
    memset(at, 9, len);
    for (int step = 0; step < 9; step++) {
        size_t longer = len * 2 + PAGE;
        unsigned char *to = mremap(at, len, longer, MREMAP_MAYMOVE);
        if (to == MAP_FAILED) {
            wrong++;
            break;
        }
        wrong += unlike(to, len, 9 + step) + unlike(to + len, longer - len, 0);
        memset(to, 10 + step, longer);
        at = to;
        len = longer;
    }
    unsigned char *shorter = mremap(at, len, 5 * PAGE, 0);
    wrong += shorter != at || unlike(at, 5 * PAGE, 18);
    wrong += mremap(at + 7 * PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE) != MAP_FAILED || errno != EFAULT;
    say("mremap", wrong);
}

/* Wrong pointers: an error, never a crash; what lies before the hole is transferred. */
static void pointers(void)
{
    unsigned char *at = map(3 * PAGE);
    char *bad = (char *)8;
    size_t wrong = 0;
    int zero = open("/dev/null", O_RDONLY), self = open(program, O_RDONLY);
    munmap(at + 2 * PAGE, PAGE);
    mprotect(at + PAGE, PAGE, PROT_READ);
#define FAULTS(call) wrong += (errno = 0, (call) != -1 || errno != EFAULT)
    FAULTS(read(self, bad, 10));
    FAULTS(read(self, at + PAGE, 10));
    FAULTS(read(self, at + 2 * PAGE, 10));
    FAULTS(read(self, (void *)0xffff800000000000, 10));
    wrong += read(self, at + PAGE - 5, 10) != 5;
    FAULTS(write(1, bad, 10));
    FAULTS(open(bad, O_RDONLY));
    FAULTS(open((char *)-9, O_RDONLY));
    FAULTS(syscall(SYS_newfstatat, -100, "/", bad, 0));
    FAULTS(syscall(SYS_getcwd, at + PAGE, 100));
    FAULTS(syscall(SYS_uname, at + 2 * PAGE - 10));
    FAULTS(syscall(SYS_clock_gettime, 0, at + PAGE));
    FAULTS(writev(1, (struct iovec *)bad, 1));
    FAULTS(syscall(SYS_rt_sigaction, SIGUSR1, bad, NULL, 8));
    FAULTS(syscall(SYS_getrandom, bad, 10, 0));
    memset(at + PAGE - 4, 'x', 4);
    wrong += open((char *)at + 2 * PAGE - 4, O_RDONLY) != -1 || errno != ENOENT;
    wrong += read(-1, at, 1) != -1 || errno != EBADF;
    wrong += read(zero, at, 9) != 0;
    wrong += lseek(self, -1, SEEK_SET) != -1 || errno != EINVAL;
    wrong += lseek(self, 1l << 40, SEEK_SET) != 1l << 40;
    wrong += read(self, at, 9) != 0;
    wrong += pread(self, at, 4, 0) != 4 || memcmp(at, "\177ELF", 4);
    wrong += close(1234) != -1 || errno != EBADF;
    wrong += syscall(9999) != -1 || errno != ENOSYS;
    close(zero);
    close(self);
    say("pointers", wrong);
}

/* Vector registers and their modes hold over page faults and system calls. */
__attribute__((noinline)) static size_t vectors(unsigned char *memory, size_t pages)
{
    size_t wrong = 0;
    unsigned csr = _mm_getcsr();
    _mm_setcsr(csr | 0x6000);
    __m128i keep[8];
    for (int i = 0; i < 8; i++)
        keep[i] = _mm_set1_epi32((int)next());
    register __m128i a asm("xmm6") = keep[0], b asm("xmm7") = keep[1], c asm("xmm8") = keep[2], d asm("xmm15") = keep[3];
    long double x = 1.0L;
    for (size_t page = 0; page < pages; page++) {
        asm volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d));
        asm volatile("movups %%xmm6, (%0)" : : "r"(memory + page * PAGE) : "memory");
        x += 1.0L / (long double)(page + 3);
        if (page % 64 == 0) {
            long result;
            asm volatile("syscall" : "=a"(result) : "a"(SYS_getppid) : "rcx", "r11", "memory");
        }
        __m128i all = _mm_and_si128(_mm_and_si128(_mm_cmpeq_epi32(a, keep[0]), _mm_cmpeq_epi32(b, keep[1])),
                                    _mm_and_si128(_mm_cmpeq_epi32(c, keep[2]), _mm_cmpeq_epi32(d, keep[3])));
        wrong += _mm_movemask_epi8(all) != 0xffff;
    }
    wrong += (_mm_getcsr() & 0x6000) != 0x6000;
    _mm_setcsr(csr);
    printf("%.15Lf ", x);
    return wrong;
}

__attribute__((target("avx2"), noinline)) static size_t wide(unsigned char *memory, size_t pages)
{
    size_t wrong = 0;
    register __m256i a asm("ymm9") = _mm256_set1_epi64x(0x1234567890abcdef);
    for (size_t page = 0; page < pages; page++) {
        asm volatile("vmovdqu %%ymm9, (%0)" : "+r"(memory) : "x"(a) : "memory");
        asm volatile("" : "+x"(a));
        wrong += ((uint64_t *)memory)[3] != 0x1234567890abcdef;
        memory += PAGE;
    }
    return wrong;
}

static __thread uint64_t local[700] = {5};

static void floats(void)
{
    size_t pages = 2000, wrong = vectors(map(pages * PAGE), pages);
    if (__builtin_cpu_supports("avx2"))
        wrong += wide(map(pages * PAGE), pages);
    for (int i = 0; i < 700; i++)
        wrong += local[i] != (i ? 0 : 5);
    double sum = 0;
    for (int i = 1; i < 2000; i++)
        sum += sin(i) / sqrt(i);
    printf("%.12f ", sum);
    say("floats", wrong);
}

__attribute__((noinline)) static int deep(size_t bytes)
{
    volatile unsigned char frame[4000];
    frame[0] = (unsigned char)bytes;
    int below = bytes > sizeof frame ? deep(bytes - sizeof frame) : 1;
    return below + frame[0] - (unsigned char)bytes;
}

/* More than M has is refused, and the program goes on. */
static void greedy(void)
{
    size_t wrong = 0;
    void *much = malloc(1ul << 46);
    wrong += much != NULL || errno != ENOMEM;
    wrong += mmap(NULL, -1ul, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED || errno != ENOMEM;
    wrong += mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED || errno != EINVAL;
    wrong += munmap((void *)1, PAGE) != -1 || errno != EINVAL;
    char *some = malloc(3 * MIB);
    wrong += !some;
    memset(some, 1, 3 * MIB);
    say("greedy", wrong);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void sorts(size_t mib)
{
    size_t count = mib * MIB / sizeof(uint32_t), wrong = 0;
    uint32_t *numbers = malloc(count * sizeof *numbers), sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += numbers[i] = next();
    qsort(numbers, count, sizeof *numbers, by_value);
    for (size_t i = 0; i < count; i++) {
        sum -= numbers[i];
        wrong += i && numbers[i - 1] > numbers[i];
    }
    say("sort", wrong + (sum != 0));
}

static int dies(const char *how)
{
    unsigned char code[] = {0xc3};
    if (!strcmp(how, "text"))
        *(volatile char *)(uintptr_t)say = 1;
    if (!strcmp(how, "stackcode"))
        ((void (*)(void))(uintptr_t)code)();
    if (!strcmp(how, "overflow"))
        return deep(1ul << 40);
    if (!strcmp(how, "divide"))
        return 7 / *(volatile int *)&(int){0};
    if (!strcmp(how, "ud2"))
        __builtin_trap();
    if (!strcmp(how, "int3"))
        asm volatile("int3");
    if (!strcmp(how, "hlt"))
        asm volatile("hlt");
    if (!strcmp(how, "int80"))
        asm volatile("int $0x80" : : "a"(20));
    if (!strcmp(how, "sidt")) {
        unsigned char table[10];
        asm volatile("sidt %0" : "=m"(table));
    }
    if (!strcmp(how, "wild"))
        *(volatile char *)0xdead000000000000 = 1;
    if (!strcmp(how, "kernel"))
        *(volatile char *)0xffff800000001000 = 1;
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "kill"))
        raise(SIGKILL);
    if (!strcmp(how, "term"))
        raise(SIGTERM);
    return 64;
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "dies"))
        return dies(argv[2]);
    if (argc > 2 && !strcmp(argv[1], "sort")) {
        sorts(strtoul(argv[2], NULL, 10));
        return 0;
    }
    program = argv[0];
    setvbuf(stdout, NULL, _IONBF, 0);
    breaks();
    crowded();
    heap();
    arena();
    remaps();
    pointers();
    floats();
    printf("deep: %d\n", deep(7 * MIB));
    greedy();
    sorts(3);
    return 0;
}

/*
 * Touches pages and makes system calls in ways whose cost `cargo xtask bench` counts. Built static
 * against musl.
 *
 *   pages touch SMALL BIG CLEAN DIRTY
 *                                  touches SMALL pages, which fit in P's cache, and BIG, which do
 *                                  not and are read and written so many times in own phases
 *   pages again FIRST LAST ROUNDS  writes to so many pages at random: with few more than fit, many
 *                                  have just been chosen to leave
 *   pages cow PAGES                writes to pages that are shared with a child
 *   pages calls COUNT              system calls, and mappings that nobody touches
 *   pages scale THREADS MIB COUNT  COUNT reads of pages all over a part of a region in each thread
 *   pages random MIB COUNT         reads and writes words all over a region
 *   pages scan MIB ROUNDS          sums a region in order of address
 *   pages qsort MIB                sorts integers
 *   pages hash MIB COUNT           puts and finds keys of a hash table
 *
 * Each part is a phase, which a no-operation tells the counting plugin of QEMU
 * (xtask/src/bench/miss/plugin/counts.c). At the end it prints
 *
 *   phase <tab> NUMBER <tab> NAME <tab> OPERATIONS <tab> NANOSECONDS
 *   scale <tab> THREADS <tab> OPERATIONS <tab> NANOSECONDS <tab> MEDIAN <tab> 99TH PERCENTILE
 *   skip <tab> NAME <tab> REASON          the system lacks what the part needs
 *   wrong <tab> COUNT                     pages or results that are not as they must be
 *
 * Median and percentile are nanoseconds of an operation. The exit status is 1 if anything is wrong.
 *
 * Nothing is printed before all is done, for printing would be counted.
 */
#define _GNU_SOURCE
#include "phases.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES_A_MIB = 256 };

static uint8_t *map(size_t pages)
{
    uint8_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    /* A large page would hide misses on Linux. */
    madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
    return memory;
}

/* All numbers below a power of two, once each in a scattered order, which is the same each time:
   no prefetcher finds a trend. */
struct order {
    uint32_t state, mask, shift;
};
static struct order order_of(size_t pages)
{
    struct order order = {1, 1, 1};
    while ((size_t)order.mask + 1 < pages)
        order.mask = order.mask << 1 | 1;
    order.shift = (uint32_t)__builtin_popcount(order.mask) / 2;
    return order;
}
static inline uint32_t next(struct order *order)
{
    /* A generator of full period, and a bijection of its value: its low bits alone would repeat
       soon. */
    order->state = (order->state * 1664525u + 1013904223u) & order->mask;
    return order->state ^ order->state >> order->shift;
}

static volatile uint64_t sink;

/* Each page's word lies in another cache line than its neighbour's. */
static inline volatile uint64_t *word(uint8_t *memory, size_t page)
{
    return (volatile uint64_t *)(memory + page * PAGE + 64 * (page % 64));
}
static void read_all(uint8_t *memory, size_t pages)
{
    struct order order = order_of(pages);
    for (size_t n = 0; n < pages; n++)
        sink += *word(memory, next(&order));
}
static void write_all(uint8_t *memory, size_t pages, uint64_t round)
{
    struct order order = order_of(pages);
    for (size_t n = 0; n < pages; n++) {
        uint32_t page = next(&order);
        *word(memory, page) = round << 32 | page;
    }
}
static size_t wrong_in(uint8_t *memory, size_t pages, uint64_t round)
{
    size_t wrong = 0;
    for (size_t page = 0; page < pages; page++)
        wrong += *word(memory, page) != (round << 32 | page);
    return wrong;
}

static size_t touch(size_t small, size_t big, size_t clean, size_t dirty)
{
    uint8_t *few = map(small), *many = map(big);
    PHASE(1, "zero_fill", small, write_all(few, small, 1));
    PHASE(2, "hit", small, read_all(few, small));
    /* The cache fills with pages that were written, so that each further one displaces such a
       page. */
    write_all(many, big / 2, 1);
    PHASE(3, "zero_fill_dirty", big / 2, write_all(many + big / 2 * PAGE, big / 2, 1));
    read_all(many, big);
    PHASE(4, "clean", clean * big, for (size_t i = 0; i < clean; i++) read_all(many, big));
    write_all(many, big, 2);
    PHASE(5, "dirty", dirty * big, for (size_t i = 0; i < dirty; i++) write_all(many, big, 3 + i));
    /* This pass leaves the cache clean, too. */
    size_t wrong = wrong_in(many, big, 2 + dirty);
    PHASE(6, "sequential", big, for (size_t page = 0; page < big; page++) sink += *word(many, page));
    return wrong;
}

/*
 * Of few more pages than the cache holds, those that are not mapped are largely the victims of
 * late, which the cache may still hold. How many it holds beside these pages is unknown here:
 * several numbers are tried.
 */
static size_t again(size_t first, size_t last, size_t rounds)
{
    size_t wrong = 0, writes = 0;
    uint64_t state = 1;
    uint8_t *memory = map(last);
    for (size_t page = 0; page < last; page++)
        *word(memory, page) = page;
    PHASE(128, "again", writes, for (size_t pages = first; pages <= last; pages++) {
        for (size_t i = 0; i < rounds * pages; i++, writes++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            size_t page = (size_t)(state >> 33) % pages;
            *word(memory, page) = page;
        }
    });
    for (size_t page = 0; page < last; page++)
        wrong += *word(memory, page) != page;
    return wrong;
}

static size_t copy_on_write(size_t pages)
{
    uint8_t *memory = map(pages);
    int ends[2];
    char byte;
    write_all(memory, pages, 1);
    if (pipe(ends)) {
        REPORT("skip\tcopy_on_write\tpipe: %s\n", strerror(errno));
        return 0;
    }
    pid_t child = fork();
    if (child < 0) {
        REPORT("skip\tcopy_on_write\tfork: %s\n", strerror(errno));
        return 0;
    }
    if (child == 0) {
        /* Keeps the pages shared until the parent has written to all, and looks whether its own
           are as before. */
        close(ends[1]);
        ssize_t got = read(ends[0], &byte, 1);
        _exit(got != 0 || wrong_in(memory, pages, 1) != 0);
    }
    PHASE(8, "copy_on_write", pages, write_all(memory, pages, 2));
    close(ends[1]);
    int status = 0;
    waitpid(child, &status, 0);
    return wrong_in(memory, pages, 2) + (status != 0);
}

static void map_and_unmap(void)
{
    void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, PAGE);
}
static size_t calls(size_t count)
{
    struct timespec t;
    /* The first of each maps what later ones find. */
    map_and_unmap();
    clock_gettime(CLOCK_MONOTONIC, &t);
#define REPEAT(body) for (size_t i = 0; i < count; i++) body
    PHASE(16, "getppid", count, REPEAT(syscall(SYS_getppid)));
    PHASE(17, "clock_gettime", count, REPEAT(clock_gettime(CLOCK_MONOTONIC, &t)));
    PHASE(18, "mmap_munmap", count, REPEAT(map_and_unmap()));
    return 0;
}

/* Times of operations: 16 buckets for each power of two of nanoseconds. */
enum { BUCKETS = 16 * 64, MOST_THREADS = 64 };
struct toucher {
    pthread_t thread;
    uint8_t *memory;
    size_t pages, count;
    uint32_t buckets[BUCKETS];
};
static size_t bucket_of(uint64_t time)
{
    unsigned power = 63 - (unsigned)__builtin_clzll(time | 16);
    return (power - 4) * 16 + (time >> (power - 4)) % 16;
}
static uint64_t quantile(const struct toucher *all, size_t threads, uint64_t per_cent)
{
    uint64_t operations = 0, passed = 0;
    for (size_t i = 0; i < threads; i++)
        operations += all[i].count;
    for (size_t b = 0; b < BUCKETS; b++) {
        for (size_t i = 0; i < threads; i++)
            passed += all[i].buckets[b];
        if (passed * 100 >= operations * per_cent)
            return (16 + b % 16) << (b / 16);
    }
    return 0;
}
static void *touch_at_random(void *of)
{
    struct toucher *me = of;
    uint64_t state = (uint64_t)(uintptr_t)me, since = now();
    for (size_t i = 0; i < me->count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sink += *word(me->memory, (size_t)(state >> 33) % me->pages);
        uint64_t t = now();
        me->buckets[bucket_of(t - since)]++;
        since = t;
    }
    return NULL;
}
static size_t scale(size_t threads, size_t mib, size_t count)
{
    static struct toucher all[MOST_THREADS];
    size_t pages = mib * PAGES_A_MIB;
    uint8_t *memory = map(pages);
    if (threads < 1 || threads > MOST_THREADS)
        return 1;
    write_all(memory, pages, 1);
    uint64_t start = now();
    for (size_t i = 0; i < threads; i++) {
        all[i].pages = pages / threads;
        all[i].memory = memory + i * all[i].pages * PAGE;
        all[i].count = count;
        int error = i ? pthread_create(&all[i].thread, NULL, touch_at_random, all + i) : 0;
        if (error) {
            REPORT("skip\t%zu threads\tpthread_create: %s\n", threads, strerror(error));
            return 0;
        }
    }
    touch_at_random(all);
    for (size_t i = 1; i < threads; i++)
        pthread_join(all[i].thread, NULL);
    uint64_t time = now() - start;
    REPORT("scale\t%zu\t%zu\t%llu\t%llu\t%llu\n", threads, threads * count, (unsigned long long)time,
           (unsigned long long)quantile(all, threads, 50), (unsigned long long)quantile(all, threads, 99));
    return wrong_in(memory, pages, 1);
}

static size_t random_touch(size_t mib, size_t count)
{
    size_t pages = mib * PAGES_A_MIB, words = pages * PAGE / sizeof(uint64_t);
    uint64_t *memory = (uint64_t *)map(pages), state = 1, sum = 0;
    for (size_t page = 0; page < pages; page++)
        memory[page * 512] = page;
    PHASE(32, "random", count, for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        size_t at = (size_t)(state >> 33) % words;
        /* One in four is a write; a word that begins a page keeps the page's number. */
        if (state >> 62 == 0 && at % 512)
            memory[at] = state;
        else
            sum += memory[at];
    });
    sink += sum;
    size_t wrong = 0;
    for (size_t page = 0; page < pages; page++)
        wrong += memory[page * 512] != page;
    return wrong;
}

static size_t scan(size_t mib, size_t rounds)
{
    size_t words = mib * PAGES_A_MIB * PAGE / sizeof(uint64_t), wrong = 0;
    uint64_t *memory = (uint64_t *)map(mib * PAGES_A_MIB);
    for (size_t i = 0; i < words; i++)
        memory[i] = i;
    PHASE(33, "scan", rounds * mib * PAGES_A_MIB, for (size_t round = 0; round < rounds; round++) {
        uint64_t sum = 0;
        for (size_t i = 0; i < words; i++)
            sum += memory[i];
        wrong += sum != (uint64_t)words * (words - 1) / 2;
    });
    return wrong;
}

static void sort(uint32_t *a, size_t count)
{
    while (count > 12) {
        uint32_t pivot = a[count / 2];
        size_t low = 0, high = count - 1;
        for (;; low++, high--) {
            while (a[low] < pivot)
                low++;
            while (a[high] > pivot)
                high--;
            if (low >= high)
                break;
            uint32_t t = a[low];
            a[low] = a[high];
            a[high] = t;
        }
        /* The smaller part by recursion, so that the stack stays small. */
        size_t parted = high + 1;
        if (parted > count - parted) {
            sort(a + parted, count - parted);
            count = parted;
        } else {
            sort(a, parted);
            a += parted;
            count -= parted;
        }
    }
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j && a[j - 1] > a[j]; j--) {
            uint32_t t = a[j];
            a[j] = a[j - 1];
            a[j - 1] = t;
        }
}
static size_t quicksort(size_t mib)
{
    size_t count = mib * PAGES_A_MIB * PAGE / sizeof(uint32_t), wrong = 0;
    uint32_t *numbers = (uint32_t *)map(mib * PAGES_A_MIB), state = 1;
    for (size_t i = 0; i < count; i++)
        numbers[i] = state = state * 1664525u + 1013904223u;
    PHASE(34, "qsort", count, sort(numbers, count));
    for (size_t i = 1; i < count; i++)
        wrong += numbers[i - 1] > numbers[i];
    return wrong;
}

/*
 * Open addressing over a power of two of slots, three of eight of them taken. The hash is a bijection
 * of a key's low bits, so that the table can be filled in order of address. Key 0 is a free slot.
 */
static const uint64_t ODD = 0x9e3779b97f4a7c15u;
static size_t slot_of(uint64_t key, size_t slots)
{
    uint64_t low = key & (slots - 1);
    low = (low * ODD) & (slots - 1);
    /* The upper bits are the well mixed ones: the two halves change places. */
    unsigned bits = (unsigned)__builtin_ctzll(slots), half = bits / 2;
    return (size_t)((low >> half | low << (bits - half)) & (slots - 1));
}
static uint64_t key_of(size_t slot, size_t slots)
{
    unsigned bits = (unsigned)__builtin_ctzll(slots), half = bits / 2;
    uint64_t inverse = ODD, low = ((uint64_t)slot << half | (uint64_t)slot >> (bits - half)) & (slots - 1);
    /* Newton's method doubles the right bits of the inverse of an odd number. */
    for (int i = 0; i < 6; i++)
        inverse *= 2 - ODD * inverse;
    return (low * inverse) & (slots - 1);
}
static size_t hash_table(size_t mib, size_t count)
{
    size_t slots = 1, wrong = 0;
    while (slots * 2 * sizeof(uint64_t[2]) <= mib << 20)
        slots *= 2;
    uint64_t(*table)[2] = (void *)map(slots * sizeof *table / PAGE);
    for (size_t slot = 0; slot + 8 <= slots; slot += 8) {
        /* Of three keys in eight slots the second has the first one's hash. */
        uint64_t first = key_of(slot, slots) + slots;
        uint64_t keys[3] = {first, first + slots, key_of(slot + 4, slots) + slots};
        size_t places[3] = {slot, slot + 1, slot + 4};
        for (int i = 0; i < 3; i++) {
            table[places[i]][0] = keys[i];
            table[places[i]][1] = ~keys[i];
        }
    }
    uint64_t state = 1;
    PHASE(35, "hash", count, for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        size_t bucket = (size_t)(state >> 33) % (slots / 8) * 8;
        uint64_t key = key_of(bucket, slots) + slots * (1 + (state >> 32 & 1));
        size_t slot = slot_of(key, slots);
        while (table[slot][0] != key && table[slot][0])
            slot = (slot + 1) & (slots - 1);
        wrong += table[slot][0] != key || table[slot][1] != ~key;
    });
    return wrong;
}

int main(int argc, char **argv)
{
    size_t n[4] = {0, 1, 1, 1}, wrong;
    for (int i = 2; i < argc && i < 6; i++)
        n[i - 2] = strtoul(argv[i], NULL, 10);
    const char *what = argc > 2 ? argv[1] : "";
    if (!strcmp(what, "touch"))
        wrong = touch(n[0], n[1], n[2], n[3]);
    else if (!strcmp(what, "again"))
        wrong = again(n[0], n[1], n[2]);
    else if (!strcmp(what, "cow"))
        wrong = copy_on_write(n[0]);
    else if (!strcmp(what, "calls"))
        wrong = calls(n[0]);
    else if (!strcmp(what, "scale"))
        wrong = scale(n[0], n[1], n[2]);
    else if (!strcmp(what, "random"))
        wrong = random_touch(n[0], n[1]);
    else if (!strcmp(what, "scan"))
        wrong = scan(n[0], n[1]);
    else if (!strcmp(what, "qsort"))
        wrong = quicksort(n[0]);
    else if (!strcmp(what, "hash"))
        wrong = hash_table(n[0], n[1]);
    else
        return 64;
    REPORT("wrong\t%zu\n", wrong);
    fwrite(report, 1, reported, stdout);
    return wrong != 0;
}

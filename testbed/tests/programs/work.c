/* What the clusters' tests run that Debian has no program for. Built static against musl. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint32_t next(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Sorts numbers that fill so many MiB and prints a checksum that depends on their order. */
static int sort(size_t mib)
{
    size_t count = (mib << 20) / sizeof(uint32_t);
    uint32_t *numbers = malloc(count * sizeof *numbers), state = 1;
    uint64_t sum = 0;
    if (!numbers) {
        perror("malloc");
        return 2;
    }
    for (size_t i = 0; i < count; i++)
        numbers[i] = next(&state);
    qsort(numbers, count, sizeof *numbers, by_value);
    for (size_t i = 0; i < count; i++)
        sum = sum * 31 + numbers[i];
    printf("%zu numbers, %016llx\n", count, (unsigned long long)sum);
    return 0;
}

/* Writes a word in each page of so many MiB, then reads them in another order, several rounds. */
static int walk(size_t mib)
{
    size_t pages = (mib << 20) / 4096, wrong = 0;
    uint64_t *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    for (uint64_t round = 0; round < 3; round++) {
        for (size_t page = 0; page < pages; page++)
            memory[page * 512 + page % 512] = round << 32 | page;
        for (size_t n = 0; n < pages; n++) {
            size_t page = (n * 7919) % pages;
            wrong += memory[page * 512 + page % 512] != (round << 32 | page);
        }
    }
    printf("%zu pages, %zu wrong\n", pages, wrong);
    return wrong ? 3 : 0;
}

/* Writes a function that returns its page's number into each of so many pages, and calls them in turn, several rounds: pages of
   code come and go in the cache, and each must run as it is now, not as what lay in its line before. */
static int code(size_t pages)
{
    unsigned char *memory =
        mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t wrong = 0;
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    for (uint32_t page = 0; page < pages; page++) {
        unsigned char *at = memory + (size_t)page * 4096;
        at[0] = 0xb8; /* mov eax, imm32 */
        memcpy(at + 1, &page, sizeof page);
        at[5] = 0xc3; /* ret */
    }
    for (int round = 0; round < 4; round++)
        for (uint32_t page = 0; page < pages; page++)
            wrong += ((uint32_t(*)(void))(memory + (size_t)page * 4096))() != page;
    printf("%zu functions, %zu wrong\n", pages, wrong);
    return wrong ? 3 : 0;
}

/* Copies standard input to standard output, and a count to standard error. */
static int echo(void)
{
    char buffer[4096];
    size_t count, all = 0;
    while ((count = fread(buffer, 1, sizeof buffer, stdin)) > 0) {
        fwrite(buffer, 1, count, stdout);
        all += count;
    }
    fprintf(stderr, "%zu bytes\n", all);
    return 0;
}

static int huge(size_t mib)
{
    void *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        puts(errno == ENOMEM ? "ENOMEM" : "another error");
        return 4;
    }
    puts("got it");
    return 0;
}

int main(int argc, char **argv)
{
    size_t number = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if (argc < 2)
        return 64;
    if (!strcmp(argv[1], "sort"))
        return sort(number);
    if (!strcmp(argv[1], "walk"))
        return walk(number);
    if (!strcmp(argv[1], "code"))
        return code(number);
    if (!strcmp(argv[1], "echo"))
        return echo();
    if (!strcmp(argv[1], "huge"))
        return huge(number);
    if (!strcmp(argv[1], "null"))
        return *(volatile int *)NULL;
    if (!strcmp(argv[1], "exit"))
        return (int)number;
    if (!strcmp(argv[1], "args")) {
        for (int i = 2; i < argc; i++)
            printf("[%s]", argv[i]);
        printf("%s\n", getenv("TESSERA_TEST") ? getenv("TESSERA_TEST") : "");
        return 0;
    }
    if (!strcmp(argv[1], "spin"))
        for (volatile int forever = 1; forever;)
            ;
    return 64;
}

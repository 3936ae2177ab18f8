/*
 * Checks the words that it reads of memory which it maps, unmaps, moves, protects, discards, forks and
 * shares in a random order, from several threads and their children.
 *
 *   checker ACCESSES THREADS PAGES SEED
 *
 * A page is filled with words that tell its address, its address space, its version and the word's
 * place. Each thread keeps in mind what its pages must hold. All threads and children share an object:
 * each has words of its own there, and checks what the others wrote. The exit status is 1 if a word is
 * wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = 512, MOST_PAGES = 4096, MOST_THREADS = 8, SHARED = 16, MOST_CHILDREN = 2 };
/* A word: space:6, page:20, place:9, version:29. */
enum { VERSION_BITS = 29, PLACE_BITS = 9, PAGE_BITS = 20 };
#define RW (PROT_READ | PROT_WRITE)
#define UNMAPPED (-1)
/* The accesses of a child. */
#define OF_CHILD 150

struct shared {
    /* The words of writer n of each page, and the versions that are there for sure. */
    _Atomic uint64_t words[SHARED][WORDS];
    _Atomic uint32_t written[SHARED][WORDS];
    _Atomic uint32_t writers, spaces;
    _Atomic uint64_t done, wrong;
};

struct checker {
    uint64_t *arena;
    size_t pages;
    uint64_t random;
    /* What the first word of each page must be (0 if the page is zeros), and its rights. */
    uint64_t expected[MOST_PAGES];
    int rights[MOST_PAGES];
    uint32_t version, shared_version[SHARED];
    uint64_t space;
    size_t writer, todo;
    int depth, children;
    pid_t child[MOST_CHILDREN];
};

static struct shared *shared;
static struct checker checkers[MOST_THREADS];
static pthread_barrier_t all_begin;
static _Thread_local sigjmp_buf back;
static _Thread_local volatile sig_atomic_t may_fault;

static size_t below(struct checker *c, size_t end)
{
    c->random = c->random * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(c->random >> 33) % end;
}

static uint64_t word(uint64_t space, size_t page, size_t place, uint32_t version)
{
    uint64_t upper = (space & 63) << PAGE_BITS | (page & ((1u << PAGE_BITS) - 1));
    return (upper << PLACE_BITS | place) << VERSION_BITS | version;
}

static void wrong(const char *what, const void *at, uint64_t expected, uint64_t found)
{
    if (atomic_fetch_add(&shared->wrong, 1) < 20)
        fprintf(stderr, "%s at %p: %#llx in place of %#llx\n", what, at, (unsigned long long)found,
                (unsigned long long)expected);
}

static void must(int holds, const char *what)
{
    if (!holds)
        wrong(what, NULL, 0, (uint64_t)errno);
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    if (may_fault) {
        may_fault = 0;
        siglongjmp(back, 1);
    }
    wrong("an access that is allowed faults", info->si_addr, 0, (uint64_t)info->si_code);
    _exit(3);
}

/* Whether an access faults. */
static int faults(volatile uint64_t *at, int writes)
{
    if (sigsetjmp(back, 1))
        return 1;
    may_fault = 1;
    if (writes)
        *at = 0;
    else
        (void)*at;
    may_fault = 0;
    return 0;
}

static uint64_t *page_at(struct checker *c, size_t page)
{
    return c->arena + page * WORDS;
}

static void check_word(struct checker *c, size_t page, size_t place)
{
    const volatile uint64_t *at = page_at(c, page) + place;
    uint64_t first = c->expected[page];
    uint64_t expected = first ? first + ((uint64_t)place << VERSION_BITS) : 0, found = *at;
    if (found != expected)
        wrong("a word", (const void *)at, expected, found);
}

static void read_page(struct checker *c, size_t page)
{
    if (below(c, 16) == 0) {
        for (size_t place = 0; place < WORDS; place++)
            check_word(c, page, place);
        return;
    }
    check_word(c, page, 0);
    check_word(c, page, WORDS - 1);
    for (int i = 0; i < 6; i++)
        check_word(c, page, below(c, WORDS));
}

static void write_page(struct checker *c, size_t page)
{
    volatile uint64_t *at = page_at(c, page);
    c->expected[page] = word(c->space, page, 0, ++c->version);
    for (size_t place = 0; place < WORDS; place++)
        at[place] = c->expected[page] + ((uint64_t)place << VERSION_BITS);
}

static void protect(struct checker *c, size_t page, size_t count, int rights)
{
    must(mprotect(page_at(c, page), count * PAGE, rights) == 0, "mprotect");
    for (size_t i = page; i < page + count; i++)
        c->rights[i] = rights;
}

static void map(struct checker *c, size_t page, size_t count)
{
    void *at = page_at(c, page);
    must(mmap(at, count * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap");
    for (size_t i = page; i < page + count; i++)
        c->expected[i] = 0, c->rights[i] = RW;
}

static void unmap(struct checker *c, size_t page, size_t count)
{
    must(munmap(page_at(c, page), count * PAGE) == 0, "munmap");
    for (size_t i = page; i < page + count; i++)
        c->rights[i] = UNMAPPED;
}

/* An access; where it is not allowed, that it faults, or it is made allowed. */
static void access_page(struct checker *c, size_t page)
{
    int writes = below(c, 2) == 0, needs = writes ? PROT_WRITE : PROT_READ;
    int rights = c->rights[page];
    if (rights == UNMAPPED || !(rights & needs)) {
        if (below(c, 4) == 0) {
            if (!faults(page_at(c, page), writes))
                wrong("an access that is not allowed", page_at(c, page), 0, 0);
        } else if (rights == UNMAPPED) {
            map(c, page, 1);
        } else {
            protect(c, page, 1, RW);
        }
    } else if (writes) {
        write_page(c, page);
    } else {
        read_page(c, page);
    }
    c->todo -= c->todo > 0;
    atomic_fetch_add(&shared->done, 1);
}

/* A word of one's own in the shared object, then one of another's. */
static void access_shared(struct checker *c)
{
    size_t page = below(c, SHARED);
    if (c->writer < WORDS) {
        _Atomic uint64_t *own = &shared->words[page][c->writer];
        uint32_t version = c->shared_version[page];
        uint64_t expected = version ? word(c->space, page, c->writer, version) : 0;
        uint64_t found = atomic_load(own);
        if (found != expected)
            wrong("an own word of the shared object", (const void *)own, expected, found);
        c->shared_version[page] = ++version;
        atomic_store(own, word(c->space, page, c->writer, version));
        atomic_store(&shared->written[page][c->writer], version);
    }
    size_t other = below(c, atomic_load(&shared->writers)) % WORDS;
    uint32_t least = atomic_load(&shared->written[page][other]);
    uint64_t found = atomic_load(&shared->words[page][other]);
    uint32_t version = (uint32_t)(found & ((1u << VERSION_BITS) - 1));
    uint64_t expected = found ? word(found >> 58, page, other, version) : 0;
    if (found != expected || version < least)
        wrong("another's word of the shared object", (const void *)&shared->words[page][other], least, found);
    atomic_fetch_add(&shared->done, 1);
}

static size_t alike(struct checker *c, size_t page, size_t most)
{
    size_t count = 1;
    while (count < most && page + count < c->pages && c->rights[page + count] == c->rights[page])
        count++;
    return count;
}

/* Moves pages to others, of which nothing is left. Several mappings move one by one. */
static void move(struct checker *c, size_t from, size_t to, size_t count)
{
    if (c->rights[from] == UNMAPPED || (from < to + count && to < from + count))
        return;
    unmap(c, to, count);
    const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    void *target = page_at(c, to);
    if (mremap(page_at(c, from), count * PAGE, count * PAGE, flags, target) != target) {
        must(errno == EFAULT && count > 1, "mremap");
        for (size_t i = 0; i < count; i++) {
            target = page_at(c, to + i);
            must(mremap(page_at(c, from + i), PAGE, PAGE, flags, target) == target, "mremap of a page");
        }
    }
    for (size_t i = 0; i < count; i++) {
        c->expected[to + i] = c->expected[from + i];
        c->rights[to + i] = c->rights[from + i];
        c->rights[from + i] = UNMAPPED;
    }
}

static void advise(struct checker *c, size_t page, size_t count)
{
    static const int others[] = { MADV_WILLNEED, MADV_SEQUENTIAL, MADV_RANDOM, MADV_NORMAL };
    if (c->rights[page] == UNMAPPED)
        return;
    if (below(c, 2)) {
        must(madvise(page_at(c, page), count * PAGE, others[below(c, 4)]) == 0, "madvise");
        return;
    }
    must(madvise(page_at(c, page), count * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
    for (size_t i = page; i < page + count; i++)
        c->expected[i] = 0;
}

static void reap(struct checker *c)
{
    while (c->children > 0) {
        int status = 0;
        pid_t child = c->child[--c->children];
        must(waitpid(child, &status, 0) == child && status == 0, "a child");
    }
}

static void work(struct checker *c, size_t todo);

static void fork_child(struct checker *c)
{
    if (c->depth == 2)
        return;
    if (c->children == MOST_CHILDREN)
        reap(c);
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child > 0)
        c->child[c->children++] = child;
    if (child != 0)
        return;
    c->depth++;
    c->children = 0;
    c->space = atomic_fetch_add(&shared->spaces, 1);
    c->writer = atomic_fetch_add(&shared->writers, 1);
    memset(c->shared_version, 0, sizeof c->shared_version);
    c->random ^= c->space << 32;
    work(c, OF_CHILD);
    _exit(0);
}

static void step(struct checker *c)
{
    size_t page = below(c, c->pages), what = below(c, 1000);
    size_t room = c->pages - page, count = 1 + below(c, room < 12 ? room : 12);
    if (what < 800) {
        for (size_t i = 0; i < count; i++)
            access_page(c, page + i);
    } else if (what < 880) {
        access_shared(c);
    } else if (what < 905) {
        static const int all[] = { PROT_NONE, PROT_READ, RW };
        if (c->rights[page] != UNMAPPED)
            protect(c, page, alike(c, page, count), all[below(c, 3)]);
    } else if (what < 930) {
        advise(c, page, alike(c, page, count));
    } else if (what < 945) {
        unmap(c, page, count);
    } else if (what < 965) {
        map(c, page, count);
    } else if (what < 995) {
        count = alike(c, page, count);
        move(c, page, below(c, c->pages - count + 1), count);
    } else {
        fork_child(c);
    }
}

/* Works until so many pages were accessed, then checks all. */
static void work(struct checker *c, size_t todo)
{
    c->todo = todo;
    while (c->todo > 0)
        step(c);
    for (size_t page = 0; page < c->pages; page++)
        if (c->rights[page] != UNMAPPED && c->rights[page] & PROT_READ)
            read_page(c, page);
    reap(c);
}

static void *run(void *of)
{
    struct checker *c = of;
    size_t todo = c->todo;
    pthread_barrier_wait(&all_begin);
    work(c, todo);
    return NULL;
}

static void *area(size_t len, int rights, int flags)
{
    void *at = mmap(NULL, len, rights, MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return at;
}

int main(int argc, char **argv)
{
    size_t n[4] = { 0 };
    for (int i = 1; i < argc && i <= 4; i++)
        n[i - 1] = strtoul(argv[i], NULL, 10);
    size_t accesses = n[0], threads = n[1], pages = n[2];
    if (argc != 5 || threads < 1 || threads > MOST_THREADS || pages / threads < 16 || pages > MOST_PAGES)
        return 64;
    shared = area(sizeof *shared, RW, MAP_SHARED);
    struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
    sigaction(SIGSEGV, &action, NULL);
    pthread_t all[MOST_THREADS];
    pthread_barrier_init(&all_begin, NULL, (unsigned)threads);
    atomic_store(&shared->spaces, 1 + (uint32_t)threads);
    atomic_store(&shared->writers, (uint32_t)threads);
    for (size_t i = 0; i < threads; i++) {
        struct checker *c = checkers + i;
        c->pages = pages / threads;
        c->arena = area(c->pages * PAGE, RW, MAP_PRIVATE);
        for (size_t page = 0; page < c->pages; page++)
            c->rights[page] = RW;
        c->random = n[3] * MOST_THREADS + i;
        c->space = i + 1;
        c->writer = i;
        c->todo = accesses / threads;
    }
    for (size_t i = 1; i < threads; i++)
        must(pthread_create(&all[i], NULL, run, checkers + i) == 0, "pthread_create");
    run(checkers);
    for (size_t i = 1; i < threads; i++)
        pthread_join(all[i], NULL);
    uint64_t found = atomic_load(&shared->wrong);
    printf("%s accesses, %llu wrong\n", atomic_load(&shared->done) >= accesses ? "all" : "too few",
           (unsigned long long)found);
    return found != 0;
}

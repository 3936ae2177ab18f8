/*
 * Phases of a program whose cost `cargo xtask bench` counts, and the report of them.
 */
#ifndef PHASES_H
#define PHASES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

/* What lies between phases. Phases from 128 on are not held at doorbells. */
#define REST 255

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
/* nopl 0x7e424dNN(%rax) */
#define MARK(number) __asm__ volatile(".byte 0x0f, 0x1f, 0x80, " TEXT(number) ", 0x4d, 0x42, 0x7e" ::: "memory")

static char report[8192];
static size_t reported;
#define REPORT(...) (reported += (size_t)snprintf(report + reported, sizeof report - reported, __VA_ARGS__))

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Runs `body` as a phase. The clock is read outside it. */
#define PHASE(number, name, operations, body)                                                                          \
    do {                                                                                                                 \
        uint64_t start_ = now();                                                                                         \
        MARK(number);                                                                                                    \
        body;                                                                                                            \
        MARK(REST);                                                                                                      \
        REPORT("phase\t%d\t%s\t%llu\t%llu\n", number, name, (unsigned long long)(operations),                            \
               (unsigned long long)(now() - start_));                                                                    \
    } while (0)

#endif

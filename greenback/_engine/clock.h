/* time.perf_counter_ns(), at half the price where the processor allows it.

   A bridge that suspends is timed six times. On x86, the kernel takes the time from a counter of the
   processor, if that counter is steady, and a program may read the counter itself: then the kernel
   is asked for the time every 100 us only. In between, the counter is scaled by what the two have
   shown so far. So a time can be off by some tens of nanoseconds, which pass for measuring, and by 2 us
   before the counter is taken for unsteady. It never goes back. */

#ifndef GREENBACK_CLOCK_H
#define GREENBACK_CLOCK_H

#include <Python.h>
#include <stdint.h>
#include <time.h>

#include "shared.h"

#if defined(__linux__) && defined(__x86_64__) && defined(__GNUC__)
#define HAS_COUNTER 1
#include <x86intrin.h>
#else
#define HAS_COUNTER 0
#endif

/* The engine has the clock of an interpreter, and hands it on as a capsule of this name. */
#define GREENBACK_CLOCK "greenback.clock.1"

typedef struct {
    /* For `valid` ticks from `ticks` on, the time is `ns`, plus the ticks times `scale` >> 32. */
    uint64_t ticks;
    uint64_t valid;
    uint64_t scale;
    int64_t ns;
    /* The last time that was given. */
    int64_t last;
    /* The scale is measured from here. */
    uint64_t first_ticks;
    int64_t first_ns;
    /* How often in a row counter and kernel could not be read together. */
    int misses;
    /* The kernel takes the time from the counter. */
    char is_counted;
} Clock;

/* As the kernel says it. */
static inline int64_t
kernel_ns(void)
{
#if defined(__linux__)
    /* What the functions below read, without their checks for overflows in 292 years. */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#elif PY_VERSION_HEX >= 0x030D0000
    PyTime_t now;
    (void)PyTime_PerfCounterRaw(&now);
    return now;
#else
    return _PyTime_GetPerfCounter();
#endif
}

#if HAS_COUNTER

/* Ask the kernel, and make the counter valid from now on, if it is steady. */
RARELY int64_t
ask_kernel(Clock *clock)
{
    const int64_t asked_every = 100000, least = 2000000, enough = 200000000;
    const uint64_t quick = 400; /* some 100 ns: nothing has come in between */
    int is_pair = 0;
    uint64_t ticks = clock->is_counted ? __rdtsc() : 0;
    int64_t ns = kernel_ns();
    if (clock->is_counted) {
        is_pair = __rdtsc() - ticks < quick;
        clock->misses = is_pair ? 0 : clock->misses + 1;
        clock->is_counted = clock->misses < 1000; /* else it does not pay */
    }
    uint64_t scale = clock->scale;
    int64_t passed = ns - clock->ns;
    int64_t given = ns < clock->last ? clock->last : ns;
    clock->last = given;
    clock->valid = 0;
    if (is_pair) {
        double counted = (double)(ticks - clock->ticks) * (double)scale / 4294967296.0;
        double difference = counted - (double)passed;
        if (scale != 0 && (difference < 0 ? -difference : difference) > 2000 + 1e-3 * (double)passed) {
            /* Not steady: the machine has slept, or was moved to another one. */
            scale = 0;
            clock->first_ns = 0;
        }
        int64_t elapsed = ns - clock->first_ns;
        if (clock->first_ns == 0) {
            clock->first_ns = ns;
            clock->first_ticks = ticks;
        }
        else if (elapsed >= (scale == 0 ? least : enough)) {
            double counts = (double)(ticks - clock->first_ticks);
            double measured = (double)elapsed * 4294967296.0 / counts;
            /* Between 0.25 and 100 GHz. */
            scale = measured > 4e7 && measured < 1.7e10 ? (uint64_t)measured : 0;
            clock->first_ns = ns;
            clock->first_ticks = ticks;
        }
        clock->scale = scale;
        if (scale != 0) {
            clock->valid = ((uint64_t)asked_every << 32) / scale;
        }
        clock->ticks = ticks;
        clock->ns = given;
    }
    return given;
}

static inline int64_t
now_ns(Clock *clock)
{
    if (!clock->is_counted) {
        int64_t ns = kernel_ns();
        return ns < clock->last ? clock->last : ns; /* it may have been counted before */
    }
    uint64_t passed = __rdtsc() - clock->ticks;
    if (passed >= clock->valid) {
        return ask_kernel(clock);
    }
    int64_t ns = clock->ns + (int64_t)(passed * clock->scale >> 32);
    if (ns < clock->last) { /* another processor's counter is some ticks behind */
        return clock->last;
    }
    return clock->last = ns;
}

#else

static inline int64_t
now_ns(Clock *clock)
{
    return kernel_ns();
}

#endif
#endif

/* The layout of a portal, and the hooks that a listener can offer in C.

   The engine and a listener that is written in C, such as greenback_trace's, both include this file.
   What a field of a portal means is said in state.py, where the class has the same attributes. */

#ifndef GREENBACK_PORTAL_H
#define GREENBACK_PORTAL_H

#include <Python.h>
#include <stdint.h>
#include <time.h>

/* A bridge that the engine in C has under way. */
typedef struct {
    /* Borrowed from `await_`, which is on the C stack. */
    PyObject *steps;
    /* The frame that called `await_`, if what it steps has no frame of its own; else NULL. Owned. */
    PyFrameObject *caller;
} UnderWay;

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    /* From `kind` to `worker`: references, each of which can be NULL, which Python sees as None. */
    PyObject *kind;
    PyObject *args;
    PyObject *awaits;
    PyObject *coroutine;
    PyObject *current_task;
    PyObject *error;
    PyObject *function;
    PyObject *greenlet;
    PyObject *handled;
    PyObject *home;
    PyObject *inner;
    PyObject *kwds;
    PyObject *library;
    PyObject *mark;
    PyObject *note;
    PyObject *outer;
    PyObject *result;
    PyObject *resume;
    PyObject *run;
    PyObject *scopes;
    PyObject *shown;
    PyObject *task;
    PyObject *worker;
    int64_t entered;
    int64_t left;
    /* The bridges under way in C: `depth` of them. The outermost one is in `bridge`, since most
       portals have one at a time; the others are in `more`, outermost first, which has room for
       `room` of them. */
    UnderWay bridge;
    UnderWay *more;
    int depth;
    int room;
    /* The address below which the thread's C stack is as good as used up. 0: not found out yet. */
    uintptr_t stack_end;
    char abandoned;
    char closed;
    char hushed;
    char registered;
    /* The library can hold Ctrl-C back. */
    char holds_back;
} Portal;

/* The bridge number `index` that is under way in C. */
static inline UnderWay *
bridge_under_way(Portal *portal, int index)
{
    return index == 0 ? &portal->bridge : &portal->more[index - 1];
}

/* A listener offers its hooks as a capsule of this name, in an attribute `c_hooks`. The number
   changes with anything below. The hooks must be static: a bridge under way calls them after the
   listener and its capsule have gone. */
#define GREENBACK_HOOKS "greenback.c_hooks.1"

/* Room for what a listener keeps of a bridge while it is under way. */
typedef union {
    void *pointers[12];
    int64_t numbers[12];
} Bridge;

/* Each function stands for the listener's method of the same name (see _listener/listener.py), and
   does the same. Those that return an int return -1 with an exception set if a signal handler, or a
   refusal of the bridge, is to leave the caller; all are called with no exception set, and none
   may run for long or switch to another greenlet. A portal that is closed must be let go: the
   engine uses it again. */
typedef struct {
    /* Whether a portal or bridge that begins now is told to the functions below, instead of the
       listener's methods. Steps always are. Never fails. */
    int (*is_ready)(PyObject *listener);
    int (*open_portal)(PyObject *listener, Portal *portal);
    int (*enter_portal)(PyObject *listener, Portal *portal);
    int (*close_portal)(PyObject *listener, Portal *portal);
    /* Returns 0 if the listener wants to hear no more of this bridge, else 1. The frame that called
       `await_` is the current one. */
    int (*start_bridge)(PyObject *listener, Portal *portal, Bridge *bridge);
    void (*resume_bridge)(Bridge *bridge, Portal *portal, int64_t left);
    /* `error` is NULL or an exception. */
    void (*finish_bridge)(Bridge *bridge, PyObject *error, int64_t left);
    void (*finish_step)(PyObject *listener, Portal *portal);
} Hooks;

/* time.perf_counter_ns() */
static inline int64_t
now_ns(void)
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

#endif

/* The layout of a portal, and the hooks that a listener can offer in C.

   The engine and a listener that is written in C, such as greenback_trace's, both include this file.
   What a field of a portal means is said in state.py, where the class has the same attributes. */

#ifndef GREENBACK_PORTAL_H
#define GREENBACK_PORTAL_H

#include <Python.h>
#include <stdint.h>

#include "clock.h"

/* Room for what a listener keeps of a bridge while it is under way. */
typedef union {
    void *pointers[12];
    int64_t numbers[12];
} Bridge;

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
    /* A listener is told of a bridge in C, and keeps what it knows of it in `told`. Other bridges
       inside of that one have room on the C stack, which greenlet copies at each switch. */
    char is_telling;
    Bridge told;
} Portal;

/* The bridge number `index` that is under way in C. */
static inline UnderWay *
bridge_under_way(Portal *portal, int index)
{
    return index == 0 ? &portal->bridge : &portal->more[index - 1];
}

/* A listener offers its hooks as a capsule of this name, in an attribute `c_hooks`. The number
   changes with the layouts in this file, from release to release. The hooks must be static: a bridge under way calls them after the
   listener and its capsule have gone. */
#define GREENBACK_HOOKS "greenback.c_hooks.1"

typedef int (*PortalHook)(PyObject *listener, Portal *portal);

/* Each function stands for the listener's method of the same name (see _listener/listener.py), and
   does the same. Those that return an int return -1 with an exception set if a signal handler, or a
   refusal of the bridge, is to leave the caller; all are called with no exception set, and none
   may run for long or switch to another greenlet. `close_portal` must let go of the portal: the engine
   calls it when the portal is over, and uses that again. */
typedef struct {
    /* Whether a portal or bridge that begins now is told to the functions below, instead of the
       listener's methods. Steps always are. Never fails. */
    int (*is_ready)(PyObject *listener);
    PortalHook open_portal;
    PortalHook enter_portal;
    PortalHook close_portal;
    /* Returns 0 if the listener wants to hear no more of this bridge, else 1. The frame that called
       `await_` is the current one. */
    int (*start_bridge)(PyObject *listener, Portal *portal, Bridge *bridge);
    void (*resume_bridge)(Bridge *bridge, Portal *portal, int64_t left);
    /* `error` is NULL or an exception. */
    void (*finish_bridge)(Bridge *bridge, PyObject *error, int64_t left);
    void (*finish_step)(PyObject *listener, Portal *portal);
} Hooks;

#endif

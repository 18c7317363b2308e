/* Counting a bridge: for hooks.c, which the engine calls, and methods.c, which Python calls. It is in
   a header, so that no call is left of it. What is rare, portals and steps are in counting.c. */

#ifndef GREENBACK_COUNTING_H
#define GREENBACK_COUNTING_H

#include "structs.h"

/* Of bridges: what is rare. */
Node *find_root(Totals *totals, PortalTally *tally, PyFrameObject **frame);
Node *find_caller(Totals *totals, PortalTally *tally, Node *node, PyFrameObject *caller);
void finish_failed(Totals *totals, Progress *bridge, PyObject *error, int64_t spent);
void finish_late(Totals *totals, PortalTally *tally);
void measure_bridge(Totals *totals, Progress *bridge, int64_t spent);
void measure_switch(Totals *totals, Counts *counts, int64_t spent);

/* Portals and steps. */
int open_portal(Totals *totals, Portal *portal);
int enter_portal(Totals *totals, Portal *portal);
int close_portal(Totals *totals, Portal *portal, int is_over);
void finish_step(Totals *totals, Portal *portal);

/* Frames, and places in code: as in sites.py. */
PyObject *key_of(PyObject *code, int offset);

static inline int
offset_in(PyFrameObject *frame)
{
#if PY_VERSION_HEX >= 0x030B0000
    return PyFrame_GetLasti(frame);
#else
    return frame->f_lasti < 0 ? -1 : frame->f_lasti * 2;
#endif
}

/* A borrowed reference: a frame keeps its code. */
static inline PyObject *
code_of(PyFrameObject *frame)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    Py_DECREF(code);
    return (PyObject *)code;
}

int fail(Totals *totals);
int dropped(PyObject *result);
void drop_or_postpone(State *state, PyObject *result);

/* Histograms */

/* The number of bits of a number that is not 0. */
static inline int
length_of(uint64_t number)
{
#if defined(__GNUC__)
    return 64 - __builtin_clzll(number);
#else
    int length = 0;
    for (; number; number >>= 1) {
        length++;
    }
    return length;
#endif
}

static inline void
observe(State *state, PyObject *histogram, int64_t duration)
{
    int64_t *values = ((Histogram *)histogram)->values;
    Py_ssize_t last = Py_SIZE(histogram) - 1;
    const int64_t *bounds = state->bounds;
    Py_ssize_t bucket = 0;
    values[0] += duration;
    if (duration > bounds[0]) { /* unlike most bridges that do not wait */
        for (bucket = state->first_bucket[length_of((uint64_t)duration)];
             bounds[bucket] < duration && bucket < BOUNDS - 1; bucket++) {
        }
    }
    values[bucket < last ? bucket + 1 : last] += 1;
}

/* Whether the next event of this thread is left out of the sample for an SDK's histogram. */
static inline int
skips(Totals *totals, Counts *counts)
{
    if (IS_NONE(totals->_measurements)) {
        return 1;
    }
    if (counts->skip > 0) {
        counts->skip -= 1;
        return 1;
    }
    return 0;
}

/* The counts of a portal; NULL if it was opened before tracing was enabled. */
static inline PortalTally *
tally_of(Totals *totals, Portal *portal)
{
    PyObject *note = portal->note;
    if (note == NULL || Py_TYPE(note) != totals->state->portal_tally_class) {
        return NULL;
    }
    PortalTally *tally = (PortalTally *)note;
    return tally->totals == (PyObject *)totals ? tally : NULL;
}

/* Sync chains */

/* The node that counts a bridge, which `frame` begins; NULL if no Python function does. A borrowed
   reference. `*outermost`, if asked for, becomes the frame of the chain's outermost function. */
static inline Node *
find_node(Totals *totals, PortalTally *tally, PyFrameObject *frame, PyFrameObject **outermost)
{
    Node *node = (Node *)tally->root;
    Py_XINCREF(frame);
    if (frame == NULL || code_of(frame) != node->code || offset_in(frame) != node->offset) {
        node = find_root(totals, tally, &frame);
        if (node == NULL) {
            Py_XDECREF(frame);
            return NULL;
        }
        put(&tally->root, (PyObject *)node);
    }
    while (!node->ends && frame != NULL) {
        PyFrameObject *caller = PyFrame_GetBack(frame);
        if (caller == NULL) {
            break;
        }
        Node *outer;
        if (code_of(caller) == node->outer_code && offset_in(caller) == node->outer_offset) {
            outer = (Node *)node->outer;
        }
        else {
            outer = find_caller(totals, tally, node, caller);
        }
        if (outer == NULL || outer == node) { /* the caller is async, or the portal */
            Py_DECREF(caller);
            if (outer == NULL) {
                Py_DECREF(frame);
                return NULL;
            }
            break;
        }
        Py_SETREF(frame, caller);
        node = outer;
    }
    if (outermost != NULL) {
        *outermost = frame;
    }
    else {
        Py_XDECREF(frame);
    }
    return node;
}

/* Bridges */

static inline void
note_last(PortalTally *tally, Node *node)
{
    if (tally->last != (PyObject *)node) {
        put(&tally->last, (PyObject *)node);
    }
}

/* Begin a bridge. Returns 1; 0 if counting has failed, which the observer was told; or -1 with an
   exception. `bridge` gets a reference to the tally. */
static inline int
start(Totals *totals, Portal *portal, PyFrameObject *frame, Progress *bridge,
      PyFrameObject **outermost)
{
    PortalTally *tally = tally_of(totals, portal);
    Node *node = NULL;
    if (tally != NULL) {
        Py_INCREF(tally);
    }
    else {
        tally = (PortalTally *)PyObject_CallMethodOneArg(
            (PyObject *)totals, totals->state->str__new_portal, (PyObject *)portal);
    }
    if (tally != NULL) {
        node = find_node(totals, tally, frame, outermost);
    }
    if (node == NULL) {
        Py_XDECREF(tally);
        /* At the limit of recursion, the bridge is refused, as `await_` in Python would be. */
        return PyErr_ExceptionMatches(PyExc_RecursionError) ? -1 : fail(totals);
    }
    note_last(tally, node);
    bridge->tally = tally;
    bridge->node = node;
    bridge->switches = bridge->suspended_ns = bridge->slow_ns = 0;
    bridge->started = now_ns(totals->state->clock);
    return 1;
}

static inline void
resume(Totals *totals, Progress *bridge, Portal *portal, int64_t left)
{
    PortalTally *tally = bridge->tally;
    State *state = totals->state;
    int64_t now = now_ns(totals->state->clock);
    int64_t entered = portal->entered;
    bridge->suspended_ns += now - left;
    bridge->switches += 2;
    note_last(tally, bridge->node);
    if (tally->slow_ns) {
        if (bridge->slow_ns < tally->slow_ns) {
            bridge->slow_ns = tally->slow_ns;
        }
        tally->slow_ns = 0;
    }
    if (entered < left) {
        return; /* this step began while tracing was off */
    }
    int64_t spent = now - entered;
    tally->switches += 2;
    tally->switch_ns += spent;
    Counts *counts = (Counts *)tally->counts;
    observe(state, counts->to_task, spent);
    if (!skips(totals, counts)) {
        measure_switch(totals, counts, spent);
    }
}

/* End a bridge. Returns its duration. */
static inline int64_t
finish(Totals *totals, Progress *bridge, PyObject *error, int64_t left)
{
    int64_t now = now_ns(totals->state->clock);
    PortalTally *tally = bridge->tally;
    Tally *of_node = &bridge->node->tally;
    Tally *of_portal = &tally->tally;
    LibraryTally *library = (LibraryTally *)tally->library;
    State *state = totals->state;
    int64_t spent = now - bridge->started;
    of_node->time_ns += spent;
    of_portal->time_ns += spent;
    if (left) { /* killed while it waited */
        bridge->suspended_ns += now - left;
        bridge->switches += 1;
        tally->switches += 1;
    }
    if (bridge->switches) {
        of_node->suspended += 1;
        of_node->suspended_ns += bridge->suspended_ns;
        of_portal->suspended += 1;
        of_portal->suspended_ns += bridge->suspended_ns;
    }
    if (error == NULL) {
        of_node->ok += 1;
        of_portal->ok += 1;
        observe(state, bridge->switches ? library->waited : library->quick, spent);
        if (!skips(totals, (Counts *)tally->counts)) {
            measure_bridge(totals, bridge, spent);
        }
    }
    else {
        finish_failed(totals, bridge, error, spent);
    }
    if (tally->closed) {
        finish_late(totals, tally);
    }
    return spent;
}

#endif

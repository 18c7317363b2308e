/* The objects that hold counts, as C structs. layout.py has the same attributes for Python, and
   counts.py says what they mean. */

#ifndef GREENBACK_STRUCTS_H
#define GREENBACK_STRUCTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <structmember.h>

#include "../../greenback/_engine/portal.h"
#include "../../greenback/_engine/shared.h"

/* More bounds than any histogram has; the search below needs a power of two. */
#define BOUNDS 32

/* The state of the module: there is one for each interpreter. Its references are strong. */
typedef struct {
    /* From `Counts` to `watched_name`: references. */
    PyTypeObject *Counts;
    PyTypeObject *Debug;
    PyTypeObject *Histogram;
    PyTypeObject *KindTally;
    PyTypeObject *LibraryTally;
    PyTypeObject *Node;
    PyTypeObject *PortalTally;
    PyTypeObject *Running;
    PyTypeObject *Spans;
    PyTypeObject *Tally;
    PyTypeObject *Totals;
    PyTypeObject *Watchdog;
    PyObject *str__before_suspension_in_python;
    PyObject *str__count_postponed;
    PyObject *str__counts;
    PyObject *str__fail;
    PyObject *str__finish_failed;
    PyObject *str__finish_span;
    PyObject *str__finished_late;
    PyObject *str__known;
    PyObject *str__local;
    PyObject *str__log_postponed;
    PyObject *str__look_at;
    PyObject *str__new_caller;
    PyObject *str__new_portal;
    PyObject *str__new_root;
    PyObject *str__refuse;
    PyObject *str__rouse;
    PyObject *str__slow_step;
    PyObject *str_acquire;
    PyObject *str_also_called_from;
    PyObject *str_books;
    PyObject *str_bridge;
    PyObject *str_called_from;
    PyObject *str_close_portal;
    PyObject *str_close_portal_in_python;
    PyObject *str_enter_portal_in_python;
    PyObject *str_finish_step_in_python;
    PyObject *str_name;
    PyObject *str_new_running;
    PyObject *str_open_portal;
    PyObject *str_open_portal_in_python;
    PyObject *str_postponed;
    PyObject *str_release;
    PyObject *str_step;
    PyObject *str_switch;
    PyObject *str_switch_and_step;
    PyObject *str_to_task;
    PyObject *str_withs;
    /* Of misuse/listener.py, from `know`: NULL before. Namespaces, and what is in them. */
    PyObject *around_worker;
    PyObject *bridge_code;
    PyObject *claims;
    PyObject *detect;
    PyObject *getcurrent;
    PyObject *looked;
    PyObject *worker_class;
    /* Of totals.py and spans.py, from `complete` and `watch`: NULL before. */
    PyTypeObject *portal_class;
    PyTypeObject *portal_tally_class;
    PyObject *no_node;
    PyObject *is_main_thread;
    PyObject *adapters_file;
    PyObject *runtime;
    PyObject *watched;
    PyObject *watched_name;

    /* The engine's clock, and the capsule that keeps it. */
    Clock *clock;
    PyObject *clock_capsule;

    /* The upper ends of the buckets; the rest is higher than any duration. */
    int64_t bounds[BOUNDS];
    /* For each length in bits, the first bucket that a duration of that length can be in. */
    unsigned char first_bucket[65];
} State;

/* The sum, and the counts of the buckets. */
typedef struct {
    PyObject_VAR_HEAD
    int64_t values[1];
} Histogram;

typedef struct {
    PyObject_HEAD
    int64_t ok;
    int64_t errors;
    int64_t cancelled;
    int64_t suspended;
    int64_t time_ns;
    int64_t suspended_ns;
} Tally;

/* In what follows, references come first, and each of them can be NULL. */

typedef struct {
    Tally tally;
    PyObject *code;
    PyObject *inner;
    PyObject *is_known;
    PyObject *is_without;
    PyObject *others;
    PyObject *outer;
    PyObject *outer_code;
    PyObject *site;
    int offset;
    int outer_offset;
    char ends;
} Node;

typedef struct {
    Tally tally;
    PyObject *durations;
    int64_t closed;
    int64_t open;
    int64_t opened;
} KindTally;

typedef struct {
    PyObject_HEAD
    PyObject *durations;
    PyObject *quick;
    PyObject *steps;
    PyObject *waited;
} LibraryTally;

typedef struct {
    PyObject_HEAD
    PyObject *is_alive;
    PyObject *kept;
    PyObject *kinds;
    PyObject *libraries;
    PyObject *nodes;
    PyObject *roots;
    PyObject *slow;
    PyObject *to_loop;
    PyObject *to_task;
    int64_t skip;
    int64_t skipped_from;
    int64_t unmeasured;
    /* The thread, by the id of its state, which no other one ever gets; 0 if unknown. */
    uint64_t thread;
} Counts;

typedef struct {
    Tally tally;
    PyObject *counts;
    PyObject *held;
    PyObject *is_bare;
    PyObject *kind;
    PyObject *last;
    PyObject *library;
    PyObject *library_name;
    /* The counts of the kind in the same thread, and the library's own object: for C code, which
       finds both when it opens the portal. */
    PyObject *of_kind;
    PyObject *of_library;
    PyObject *postponed;
    PyObject *root;
    PyObject *running;
    PyObject *spares;
    PyObject *totals;
    int64_t began;
    int64_t opened_at;
    int64_t running_in_c;
    int64_t slow_ns;
    int64_t slow_steps;
    int64_t step_max_ns;
    int64_t switch_ns;
    int64_t switches;
    char closed;
    char is_unsampled;
} PortalTally;

/* What is counted of a bridge under way. Whoever has one owns the tally. */
typedef struct {
    PortalTally *tally;
    Node *node;
    int64_t started;
    int64_t switches;
    int64_t suspended_ns;
    int64_t slow_ns;
} Progress;

/* A bridge under way, for listeners in Python. */
typedef struct {
    PyObject_HEAD
    PyObject *awaitable;
    PyObject *opened;
    PyObject *outermost;
    PyObject *portal;
    /* Owns the node, too. */
    Progress progress;
    PyObject *weakrefs;
    char is_clear;
    char runs;
} Running;

typedef struct {
    PyObject_HEAD
    PyObject *_lock;
    PyObject *_measurements;
    PyObject *portals;
    PyObject *unset;
    /* The counts of the thread that opened the last portal. */
    PyObject *recent;
    /* A closed portal's counts, to be used again, without its totals. */
    PyObject *spare;
    int64_t quiet_until;
    int64_t slow_ns;
    char _gives_outermost;
    State *state;
} Totals;

typedef struct {
    PyObject_HEAD
    PyObject *_portals;
    PyObject *_totals;
    PyObject *_tracer;
    int64_t _slow_ns;
    char _only_portals;
    char _only_suspended;
    char _waits_for_sdk;
    State *state;
} Spans;

typedef struct {
    PyObject_HEAD
    PyObject *_start;
    PyObject *_totals;
    PyObject *_watchdog;
    PyObject *misuses;
    int64_t _long_ns;
    char _looks_at_start;
    char _looks_for_locks;
    State *state;
} Debug;

typedef struct {
    PyObject_HEAD
    PyObject *_running;
    char _idle;
    State *state;
} Watchdog;

static inline void
put(PyObject **place, PyObject *value)
{
    PyObject *old = *place;
    Py_INCREF(value);
    *place = value;
    Py_XDECREF(old);
}

/* structs.c */
int add_structs(PyObject *module, State *state);
/* A borrowed reference; NULL with an exception. */
PyObject *spares_of(PortalTally *tally);

/* methods.c and debug.c */
extern PyMethodDef totals_methods[], debug_methods[], watchdog_methods[];

/* hooks.c */
extern const Hooks totals_hooks;
extern const Hooks spans_hooks;

/* module.c */
extern struct PyModuleDef count_module;
State *state_of_type(PyTypeObject *type);

#endif

/* Counting: what the methods of `Totals` (totals.py) do.

   What seldom happens is left to the methods in Python. Both write to the same objects, so that one
   portal can be opened here and closed there, and its bridges begin in either. */

#include "counting.h"

/* As in sites.py: the key of bridges that a worker begins, which has no frame. */
#define NO_FRAME 1

/* Failures */

static int
raise_now(void *error)
{
    raise_again((PyObject *)error);
    return -1;
}

/* An exception was raised where the engine takes none. A signal handler may have raised it: then
   the program gets it a moment later, as if the signal had come at that moment. They run in the main
   thread of the main interpreter. */
void
postpone(State *state)
{
    PyObject *error = take_raised();
    PyObject *is_main = PyObject_CallNoArgs(state->is_main_thread);
    if (is_main == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(is_main);
    if (is_main == Py_True && PyInterpreterState_Get() == PyInterpreterState_Main() &&
        Py_AddPendingCall(raise_now, error) == 0) {
        return;
    }
    raise_again(error);
    PyErr_WriteUnraisable(NULL);
}

/* Counting has raised an exception: tell the observer. -1 if that raises. */
int
fail(Totals *totals)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyObject *error = take_raised();
    PyObject *done =
        PyObject_CallMethodOneArg((PyObject *)totals, totals->state->str__fail, error);
    Py_DECREF(error);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The result of a call, for a hook whose caller takes an exception. */
int
dropped(PyObject *result)
{
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

void
drop_or_postpone(State *state, PyObject *result)
{
    if (dropped(result) < 0) {
        postpone(state);
    }
}

/* Counts of this thread */

static inline uint64_t
this_thread(void)
{
    return PyThreadState_GetID(PyThreadState_Get());
}

/* A borrowed reference: the totals keep the counts of a thread that runs. */
static Counts *
counts_here(Totals *totals)
{
    Counts *counts = (Counts *)totals->recent;
    uint64_t thread = this_thread();
    if (!IS_NONE(totals->recent) && counts->thread == thread) {
        return counts;
    }
    PyObject *found =
        PyObject_CallMethodNoArgs((PyObject *)totals, totals->state->str__counts);
    if (found == NULL) {
        return NULL;
    }
    ((Counts *)found)->thread = thread;
    put(&totals->recent, found);
    Py_DECREF(found);
    return (Counts *)found;
}

/* Sync chains */

/* key_of() in sites.py */
PyObject *
key_of(PyObject *code, int offset)
{
#if PY_VERSION_HEX >= 0x030B0000
    return PyLong_FromUnsignedLongLong((uintptr_t)code + offset);
#else
    if (0 <= offset && offset < 1 << 15) {
        return PyLong_FromUnsignedLongLong((uintptr_t)code + ((uint64_t)offset << 48));
    }
    PyObject *id = PyLong_FromVoidPtr(code);
    PyObject *stride = PyLong_FromUnsignedLongLong(1ULL << 48);
    PyObject *number = PyLong_FromLong(offset);
    PyObject *product =
        stride == NULL || number == NULL ? NULL : PyNumber_Multiply(stride, number);
    PyObject *key = id == NULL || product == NULL ? NULL : PyNumber_Add(id, product);
    Py_XDECREF(id);
    Py_XDECREF(stride);
    Py_XDECREF(number);
    Py_XDECREF(product);
    return key;
#endif
}

/* The node for the call that `frame` is making; NULL without an exception if there is none. A
   borrowed reference: the counts of the thread keep their nodes. */
static Node *
node_in(PyObject *nodes, PyFrameObject *frame)
{
    PyObject *key = key_of(code_of(frame), offset_in(frame));
    if (key == NULL) {
        return NULL;
    }
    PyObject *node = PyDict_GetItemWithError(nodes, key);
    Py_DECREF(key);
    return (Node *)node;
}

/* outside_adapters() in sites.py; a new reference */
static PyFrameObject *
outside_adapters(State *state, PyFrameObject *frame)
{
    PyFrameObject *caller = frame;
    Py_INCREF(caller);
    while (caller != NULL) {
        PyObject *file = ((PyCodeObject *)code_of(caller))->co_filename;
        int differs = PyUnicode_Compare(file, state->adapters_file);
        if (differs == -1 && PyErr_Occurred()) {
            Py_DECREF(caller);
            return NULL;
        }
        if (differs) {
            Py_ssize_t is_ours = PyUnicode_Tailmatch(file, state->runtime, 0, PY_SSIZE_T_MAX, -1);
            if (is_ours == 0) {
                return caller;
            }
            Py_DECREF(caller);
            if (is_ours < 0) {
                return NULL;
            }
            break;
        }
        PyFrameObject *next = PyFrame_GetBack(caller);
        Py_DECREF(caller);
        caller = next;
    }
    Py_INCREF(frame);
    return frame;
}

/* The node of the site, where the walk begins. `*frame` becomes the site's; it is NULL if no Python
   function called `await_`. */
Node *
find_root(Totals *totals, PortalTally *tally, PyFrameObject **frame)
{
    State *state = totals->state;
    PyObject *counts = tally->counts;
    PyObject *roots = ((Counts *)counts)->roots;
    PyObject *outside = NULL;
    Node *node;
    if (*frame == NULL) {
        PyObject *key = PyLong_FromLong(NO_FRAME);
        node = key == NULL ? NULL : (Node *)PyDict_GetItemWithError(roots, key);
        Py_XDECREF(key);
    }
    else {
        node = node_in(roots, *frame);
        if (node == NULL && !PyErr_Occurred()) {
            outside = (PyObject *)outside_adapters(state, *frame);
            if (outside != NULL) {
                Py_SETREF(*frame, (PyFrameObject *)outside);
                node = node_in(roots, *frame);
            }
        }
    }
    if (node != NULL || PyErr_Occurred()) {
        return node;
    }
    PyObject *made = PyObject_CallMethodObjArgs((PyObject *)totals, state->str__new_root, counts,
                                                outside == NULL ? Py_None : outside, NULL);
    Py_XDECREF(made);
    return (Node *)made;
}

/* The node of a caller that `node` did not learn first. */
Node *
find_caller(Totals *totals, PortalTally *tally, Node *node, PyFrameObject *caller)
{
    Node *outer = node_in(node->others, caller);
    if (outer != NULL || PyErr_Occurred()) {
        return outer;
    }
    PyObject *key = key_of(code_of(caller), offset_in(caller));
    if (key == NULL) {
        return NULL;
    }
    PyObject *made = PyObject_CallMethodObjArgs((PyObject *)totals, totals->state->str__new_caller,
                                                tally->counts, node, key, caller, NULL);
    Py_DECREF(key);
    Py_XDECREF(made);
    return (Node *)made;
}

/* Bridges */

/* The rare ends of a bridge: with an error, late, slow. */

void
finish_failed(Totals *totals, Progress *bridge, PyObject *error, int64_t spent)
{
    PortalTally *tally = bridge->tally;
    PyObject *suspended = bridge->switches ? Py_True : Py_False;
    PyObject *duration = PyLong_FromLongLong(spent);
    PyObject *done = NULL;
    if (duration != NULL) {
        done = PyObject_CallMethodObjArgs((PyObject *)totals, totals->state->str__finish_failed,
                                          bridge->node, tally, error, suspended, duration, NULL);
        if (done == NULL && PyErr_ExceptionMatches(PyExc_RecursionError)) {
            /* There is no room to look at the error, and it has not been counted. The step ends
               where there is room. */
            PyErr_Clear();
            if (IS_NONE(tally->postponed)) {
                Py_XSETREF(tally->postponed, PyList_New(0));
            }
            PyObject *arguments =
                PyTuple_Pack(5, bridge->node, tally, error, suspended, duration);
            if (arguments != NULL && tally->postponed != NULL &&
                PyList_Append(tally->postponed, arguments) == 0) {
                done = Py_None;
                Py_INCREF(done);
            }
            Py_XDECREF(arguments);
        }
        Py_DECREF(duration);
    }
    drop_or_postpone(totals->state, done);
}

/* Count what `finish_failed` could not. */
void
count_postponed(Totals *totals, PortalTally *tally)
{
    State *state = totals->state;
    PyObject *done = PyObject_CallMethodOneArg((PyObject *)totals, state->str__count_postponed,
                                               (PyObject *)tally);
    drop_or_postpone(state, done);
}

void
measure_bridge(Totals *totals, Progress *bridge, int64_t spent)
{
    State *state = totals->state;
    PortalTally *tally = bridge->tally;
    PyObject *duration = PyLong_FromLongLong(spent);
    PyObject *done = NULL;
    if (duration != NULL) {
        done = PyObject_CallMethodObjArgs(totals->_measurements, state->str_bridge,
                                          tally->counts, tally->library_name, Py_None,
                                          bridge->switches ? Py_True : Py_False, duration, NULL);
        Py_DECREF(duration);
    }
    drop_or_postpone(state, done);
}

void
measure_switch(Totals *totals, Counts *counts, int64_t spent)
{
    State *state = totals->state;
    PyObject *duration = PyLong_FromLongLong(spent);
    PyObject *done = NULL;
    if (duration != NULL) {
        done = PyObject_CallMethodObjArgs(totals->_measurements, state->str_switch, counts,
                                          state->str_to_task, duration, NULL);
        Py_DECREF(duration);
    }
    drop_or_postpone(state, done);
}

/* A bridge has ended after its portal was closed. */
void
finish_late(Totals *totals, PortalTally *tally)
{
    State *state = totals->state;
    drop_or_postpone(state, PyObject_CallMethodOneArg((PyObject *)totals, state->str__finished_late,
                                                      (PyObject *)tally));
}

/* Portals */

/* Whether the observer need not be told that a portal is opened at this time. */
static int
is_quiet(Totals *totals, int64_t now)
{
    if (now >= totals->quiet_until) {
        return 0;
    }
    PyObject *unset = totals->unset;
    if (IS_NONE(unset)) {
        return 1;
    }
    if (!PyTuple_CheckExact(unset)) {
        return 0;
    }
    for (Py_ssize_t index = 0; index + 1 < PyTuple_GET_SIZE(unset); index += 2) {
        PyObject *value = PyDict_GetItemWithError(PyTuple_GET_ITEM(unset, index),
                                                  PyTuple_GET_ITEM(unset, index + 1));
        if (!IS_NONE(value)) {
            return 0;
        }
        if (value == NULL && PyErr_Occurred()) {
            PyErr_Clear();
            return 0;
        }
    }
    return 1;
}

static int
call_method(Totals *totals, PyObject *name, Portal *portal)
{
    return dropped(PyObject_CallMethodOneArg((PyObject *)totals, name, (PyObject *)portal));
}

static inline PyObject *
with_reference(void *object)
{
    Py_INCREF((PyObject *)object);
    return (PyObject *)object;
}

/* The counts of a new portal, without its totals. NULL if this thread has had no portal of the kind
   or of the library yet, or with an exception. */
static PyObject *
new_tally(Totals *totals, Counts *counts, Portal *portal)
{
    State *state = totals->state;
    PyObject *name = PyObject_GetAttr(portal->library, state->str_name);
    if (name == NULL) {
        return NULL;
    }
    PyObject *kind = PyDict_GetItemWithError(counts->kinds, portal->kind);
    PyObject *library =
        kind == NULL ? NULL : PyDict_GetItemWithError(counts->libraries, name);
    PyTypeObject *type = state->portal_tally_class;
    PortalTally *tally = library == NULL ? NULL : (PortalTally *)type->tp_alloc(type, 0);
    if (tally == NULL) {
        Py_DECREF(name);
        return NULL;
    }
    tally->counts = with_reference(counts);
    tally->kind = with_reference(portal->kind);
    tally->library = with_reference(library);
    tally->library_name = name;
    tally->of_kind = with_reference(kind);
    tally->of_library = with_reference(portal->library);
    tally->root = with_reference(state->no_node);
    return (PyObject *)tally;
}

int
open_portal(Totals *totals, Portal *portal)
{
    State *state = totals->state;
    int64_t now = now_ns(totals->state->clock);
    if (!is_quiet(totals, now)) {
        return call_method(totals, state->str_open_portal_in_python, portal);
    }
    Counts *counts = counts_here(totals);
    if (counts == NULL) {
        return fail(totals);
    }
    PortalTally *tally = (PortalTally *)totals->spare;
    if (tally != NULL && tally->counts == (PyObject *)counts && tally->kind == portal->kind &&
        tally->of_library == portal->library) {
        totals->spare = NULL;
    }
    else {
        tally = (PortalTally *)new_tally(totals, counts, portal);
        if (tally == NULL) {
            return PyErr_Occurred() ? fail(totals)
                                    : call_method(totals, state->str_open_portal_in_python, portal);
        }
    }
    tally->totals = with_reference(totals);
    tally->opened_at = now;
    KindTally *kind = (KindTally *)tally->of_kind;
    put(&portal->note, (PyObject *)tally);
    int is_kept = PyDict_SetItem(totals->portals, (PyObject *)portal, (PyObject *)tally);
    Py_DECREF(tally);
    if (is_kept < 0) {
        return fail(totals);
    }
    kind->opened += 1;
    return 0;
}

int
enter_portal(Totals *totals, Portal *portal)
{
    PortalTally *tally = tally_of(totals, portal);
    if (tally == NULL) {
        return 0;
    }
    Counts *counts = counts_here(totals);
    if (counts == NULL) {
        return fail(totals);
    }
    if (tally->counts != (PyObject *)counts) { /* another thread has opened the portal */
        PyObject *library = PyDict_GetItemWithError(counts->libraries, tally->library_name);
        if (library == NULL) {
            return PyErr_Occurred() ? fail(totals)
                                    : call_method(totals, totals->state->str_enter_portal_in_python, portal);
        }
        put(&tally->counts, (PyObject *)counts);
        put(&tally->library, library);
        Py_CLEAR(tally->of_kind);
    }
    put(&tally->root, totals->state->no_node);
    return 0;
}

/* Whether a bridge of this portal can be under way. A portal that Python has bridged in has weak
   references, to the bridges under way and to those to be used again. */
static inline int
may_be_bridging(PortalTally *tally)
{
    return tally->running_in_c || (tally->running != NULL && PySet_GET_SIZE(tally->running));
}

/* 1 if the portal was closed, 0 if Python is to do it, -1 if an exception was raised. */
static int
close_quickly(Totals *totals, PortalTally *tally, Portal *portal)
{
    State *state = totals->state;
    int64_t now = now_ns(totals->state->clock);
    int64_t spent = now - tally->opened_at;
    if (may_be_bridging(tally) || now >= totals->quiet_until) {
        return 0;
    }
    Counts *counts = counts_here(totals);
    if (counts == NULL) {
        return -1;
    }
    if (tally->counts != (PyObject *)counts ||
        (!IS_NONE(totals->_measurements) && counts->skip <= 0)) {
        return 0;
    }
    if (tally->of_kind == NULL) { /* Python has opened the portal */
        PyObject *kind = PyDict_GetItemWithError(counts->kinds, tally->kind);
        if (kind == NULL) {
            return PyErr_Occurred() ? -1 : 0;
        }
        tally->of_kind = with_reference(kind);
    }
    /* For a reader, the portal is either open or closed, and never both. */
    PyObject *lock = with_reference(totals->_lock);
    if (dropped(PyObject_CallMethodNoArgs(lock, state->str_acquire)) < 0) {
        Py_DECREF(lock);
        return -1;
    }
    /* Other code may have run meanwhile. */
    int is_ours = tally->totals == (PyObject *)totals && !tally->closed && !may_be_bridging(tally);
    if (is_ours) {
        KindTally *kind = (KindTally *)tally->of_kind;
        tally->closed = 1;
        observe(state, kind->durations, spent);
        kind->closed += 1;
        kind->tally.ok += tally->tally.ok;
        kind->tally.errors += tally->tally.errors;
        kind->tally.cancelled += tally->tally.cancelled;
        kind->tally.suspended += tally->tally.suspended;
        kind->tally.time_ns += tally->tally.time_ns;
        kind->tally.suspended_ns += tally->tally.suspended_ns;
        (void)skips(totals, counts);
        if (PyDict_DelItem(totals->portals, (PyObject *)portal) < 0) {
            PyErr_Clear();
        }
    }
    int failed = dropped(PyObject_CallMethodNoArgs(lock, state->str_release));
    Py_DECREF(lock);
    return failed < 0 ? -1 : is_ours;
}

/* Keep the counts of a closed portal for the next one, if nobody else has them. */
static void
keep(Totals *totals, PortalTally *tally)
{
    if (Py_REFCNT(tally) != 1 || tally->of_library == NULL) {
        Py_DECREF(tally);
        return;
    }
    Py_CLEAR(tally->held);
    Py_CLEAR(tally->is_bare);
    Py_CLEAR(tally->last);
    Py_CLEAR(tally->running);
    Py_CLEAR(tally->spares);
    Py_CLEAR(tally->totals);
    put(&tally->root, totals->state->no_node);
    memset(&tally->tally.ok, 0, sizeof(Tally) - offsetof(Tally, ok));
    memset(&tally->began, 0, sizeof(PortalTally) - offsetof(PortalTally, began));
    PyObject *before = totals->spare; /* of another kind or thread */
    totals->spare = (PyObject *)tally;
    Py_XDECREF(before);
}

/* If the portal `is_over`, nobody counts for it any more. Else its step goes on. */
int
close_portal(Totals *totals, Portal *portal, int is_over)
{
    PortalTally *tally = tally_of(totals, portal);
    if (tally == NULL) {
        return 0;
    }
    Py_INCREF(tally);
    if (!IS_NONE(tally->postponed)) {
        count_postponed(totals, tally);
    }
    int is_quick = tally->closed ? 0 : close_quickly(totals, tally, portal);
    int result = 0;
    if (is_quick == 0) {
        result = call_method(totals, totals->state->str_close_portal_in_python, portal);
    }
    else if (is_quick < 0) {
        result = fail(totals);
    }
    if (result >= 0 && is_over && portal->note == (PyObject *)tally) {
        Py_CLEAR(portal->note);
    }
    if (is_quick > 0) {
        keep(totals, tally);
    }
    else {
        Py_DECREF(tally);
    }
    return result;
}

/* Steps */

static void
measure_step(Totals *totals, PortalTally *tally, int64_t spent, int64_t switched)
{
    State *state = totals->state;
    Counts *counts = (Counts *)tally->counts;
    PyObject *done = NULL;
    PyObject *step = PyLong_FromLongLong(spent);
    if (step != NULL && switched < 0) {
        done = PyObject_CallMethodObjArgs(totals->_measurements, state->str_step, counts,
                                          tally->library_name, step, NULL);
    }
    else if (step != NULL) {
        PyObject *duration = PyLong_FromLongLong(switched);
        if (duration != NULL) {
            done = PyObject_CallMethodObjArgs(totals->_measurements, state->str_switch_and_step,
                                              counts, duration, tally->library_name, step, NULL);
            Py_DECREF(duration);
        }
    }
    Py_XDECREF(step);
    drop_or_postpone(state, done);
}

void
finish_step(Totals *totals, Portal *portal)
{
    int64_t now = now_ns(totals->state->clock);
    PortalTally *tally = tally_of(totals, portal);
    if (tally == NULL) {
        return;
    }
    State *state = totals->state;
    int64_t entered = portal->entered;
    int64_t left = portal->left;
    int64_t began = tally->began;
    if (began) {
        tally->began = 0;
        if (began <= left && left < entered) { /* see totals.py */
            left = portal->left = entered;
        }
    }
    if (entered < tally->opened_at) {
        return; /* the step began before tracing did, or before a fork in the parent process */
    }
    Py_INCREF(tally);
    if (!IS_NONE(tally->postponed)) {
        count_postponed(totals, tally);
    }
    Counts *counts = (Counts *)tally->counts;
    int has_switched = left >= entered; /* a bridge ended the step by suspending */
    int64_t switched = has_switched ? now - left : -1;
    if (has_switched) {
        tally->switch_ns += switched;
        observe(state, counts->to_loop, switched);
    }
    int64_t spent = now - entered;
    observe(state, ((LibraryTally *)tally->library)->steps, spent);
    if (!IS_NONE(totals->_measurements)) {
        if (counts->skip > has_switched) {
            counts->skip -= 1 + has_switched;
        }
        else {
            measure_step(totals, tally, spent, switched);
        }
    }
    if (spent > tally->step_max_ns) {
        tally->step_max_ns = spent;
    }
    if (spent > totals->slow_ns) {
        PyObject *duration = PyLong_FromLongLong(spent);
        PyObject *done = NULL;
        if (duration != NULL) {
            done = PyObject_CallMethodObjArgs((PyObject *)totals, state->str__slow_step, portal,
                                              tally, duration, has_switched ? Py_True : Py_False,
                                              NULL);
            Py_DECREF(duration);
        }
        drop_or_postpone(state, done);
    }
    Py_CLEAR(tally->last);
    Py_DECREF(tally);
}

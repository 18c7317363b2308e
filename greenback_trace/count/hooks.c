/* The hooks in C of `Totals` (totals.py), and of `Spans` (emit/spans.py) while those make no spans. */

#include "counting.h"

/* A bridge under way. Unlike a `Running` for Python, it is always finished. */
typedef struct {
    /* With a reference to the tally. The node is borrowed: the counts of the thread keep it. */
    Progress progress;
    /* Strong references: `spans` to the listener, or `totals` if it is NULL. */
    Totals *totals;
    Spans *spans;
    /* Borrowed: the engine keeps the portal of a bridge that is under way. */
    PyObject *portal;
} UnderCount;

_Static_assert(sizeof(UnderCount) <= sizeof(Bridge), "a bridge needs more room");

static int
start_bridge(Totals *totals, Spans *spans, Portal *portal, Bridge *room)
{
    PyObject *listener = spans == NULL ? (PyObject *)totals : (PyObject *)spans;
    UnderCount *bridge = (UnderCount *)room;
    Py_INCREF(listener);
    int result = start(totals, portal, PyEval_GetFrame(), &bridge->progress, NULL);
    if (result <= 0) {
        Py_DECREF(listener);
        return result;
    }
    bridge->totals = totals;
    bridge->spans = spans;
    bridge->portal = (PyObject *)portal;
    bridge->progress.tally->running_in_c += 1;
    return 1;
}

static void
resume_bridge(Bridge *room, Portal *portal, int64_t left)
{
    UnderCount *bridge = (UnderCount *)room;
    resume(bridge->totals, &bridge->progress, portal, left);
}

static int makes_no_spans(Spans *spans);

/* A bridge that failed, was slow or suspended may get a span. */
static void
finish_span(UnderCount *bridge, PyObject *error, int64_t spent)
{
    State *state = bridge->totals->state;
    Progress *progress = &bridge->progress;
    PyObject *numbers =
        Py_BuildValue("(LLLL)", (long long)progress->started, (long long)progress->switches,
                      (long long)progress->suspended_ns, (long long)progress->slow_ns);
    PyObject *finished = PyLong_FromLongLong(progress->started + spent);
    PyObject *done = NULL;
    if (numbers != NULL && finished != NULL) {
        done = PyObject_CallMethodObjArgs((PyObject *)bridge->spans, state->str__finish_span,
                                          progress->tally, progress->node, bridge->portal, numbers,
                                          error == NULL ? Py_None : error, finished, NULL);
    }
    Py_XDECREF(numbers);
    Py_XDECREF(finished);
    drop_or_postpone(state, done);
}

static void
finish_bridge(Bridge *room, PyObject *error, int64_t left)
{
    UnderCount *bridge = (UnderCount *)room;
    PortalTally *tally = bridge->progress.tally;
    Spans *spans = bridge->spans;
    tally->running_in_c -= 1;
    int64_t spent = finish(bridge->totals, &bridge->progress, error, left);
    if (spans != NULL) {
        int is_common = spent < spans->_slow_ns && error == NULL &&
                        !(spans->_only_suspended && bridge->progress.switches);
        if (!is_common && !makes_no_spans(spans)) {
            finish_span(bridge, error, spent);
        }
    }
    Py_DECREF(tally);
    Py_DECREF(spans == NULL ? (PyObject *)bridge->totals : (PyObject *)spans);
}

/* The hooks of `Totals`. Code that a hook calls can replace the listener: so each hook keeps it,
   and a bridge keeps it until it is finished. */

static int
totals_are_ready(PyObject *listener)
{
    return 1;
}

static int
totals_open(PyObject *listener, Portal *portal)
{
    Py_INCREF(listener);
    int result = open_portal((Totals *)listener, portal);
    Py_DECREF(listener);
    return result;
}

static int
totals_enter(PyObject *listener, Portal *portal)
{
    Py_INCREF(listener);
    int result = enter_portal((Totals *)listener, portal);
    Py_DECREF(listener);
    return result;
}

static int
totals_close(PyObject *listener, Portal *portal)
{
    Py_INCREF(listener);
    int result = close_portal((Totals *)listener, portal, 1);
    Py_DECREF(listener);
    return result;
}

static int
totals_start(PyObject *listener, Portal *portal, Bridge *bridge)
{
    return start_bridge((Totals *)listener, NULL, portal, bridge);
}

static void
totals_finish_step(PyObject *listener, Portal *portal)
{
    Py_INCREF(listener);
    finish_step((Totals *)listener, portal);
    Py_DECREF(listener);
}

const Hooks totals_hooks = {
    .is_ready = totals_are_ready,
    .open_portal = totals_open,
    .enter_portal = totals_enter,
    .close_portal = totals_close,
    .start_bridge = totals_start,
    .resume_bridge = resume_bridge,
    .finish_bridge = finish_bridge,
    .finish_step = totals_finish_step,
};

/* The hooks of `Spans` */

/* Whether the application has set no SDK yet: _is_idle() in spans.py. */
static inline int
is_idle(Spans *spans)
{
    State *state = spans->state;
    if (!spans->_waits_for_sdk || state->watched == NULL) {
        return 0;
    }
    PyObject *provider = PyDict_GetItemWithError(state->watched, state->watched_name);
    if (provider == NULL) {
        PyErr_Clear();
    }
    return provider == Py_None;
}

/* Whether nothing that ends now gets a span. */
static int
makes_no_spans(Spans *spans)
{
    return IS_NONE(spans->_tracer) || is_idle(spans);
}

static inline Totals *
totals_of(PyObject *listener)
{
    return (Totals *)((Spans *)listener)->_totals;
}

/* With `spans="portals"`, bridges get no spans, whether there is an SDK or not. */
static int
spans_are_ready(PyObject *listener)
{
    return ((Spans *)listener)->_only_portals || makes_no_spans((Spans *)listener);
}

static int
spans_call(PyObject *listener, PyObject *name, Portal *portal)
{
    return dropped(PyObject_CallMethodOneArg(listener, name, (PyObject *)portal));
}

static int
spans_open(PyObject *listener, Portal *portal)
{
    Spans *spans = (Spans *)listener;
    Py_INCREF(listener);
    int result = makes_no_spans(spans)
                     ? open_portal(totals_of(listener), portal)
                     : spans_call(listener, spans->state->str_open_portal, portal);
    Py_DECREF(listener);
    return result;
}

static int
spans_enter(PyObject *listener, Portal *portal)
{
    Py_INCREF(listener);
    int result = enter_portal(totals_of(listener), portal);
    Py_DECREF(listener);
    return result;
}

static int
spans_close(PyObject *listener, Portal *portal)
{
    Spans *spans = (Spans *)listener;
    Py_INCREF(listener);
    int result = 0;
    if (PyDict_GET_SIZE(spans->_portals)) { /* the portal may have a span, which ends */
        result = spans_call(listener, spans->state->str_close_portal, portal);
    }
    if (result == 0) {
        result = close_portal(totals_of(listener), portal, 1);
    }
    Py_DECREF(listener);
    return result;
}

static int
spans_start(PyObject *listener, Portal *portal, Bridge *bridge)
{
    return start_bridge(totals_of(listener), (Spans *)listener, portal, bridge);
}

static void
spans_finish_step(PyObject *listener, Portal *portal)
{
    Py_INCREF(listener);
    finish_step(totals_of(listener), portal);
    Py_DECREF(listener);
}

const Hooks spans_hooks = {
    .is_ready = spans_are_ready,
    .open_portal = spans_open,
    .enter_portal = spans_enter,
    .close_portal = spans_close,
    .start_bridge = spans_start,
    .resume_bridge = resume_bridge,
    .finish_bridge = finish_bridge,
    .finish_step = spans_finish_step,
};

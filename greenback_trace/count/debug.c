/* Debug mode's common case: what `Debug` (misuse/listener.py) and `Watchdog` (misuse/watchdog.py) do
   at a bridge of which everything is known. Anything else is handed to their methods in Python. */

#include "counting.h"

/* A borrowed reference to a value in the namespace of a module, which the module may replace. */
static PyObject *
global(PyObject *namespace, PyObject *name)
{
    PyObject *value = namespace == NULL ? NULL : PyDict_GetItemWithError(namespace, name);
    if (value == NULL && !PyErr_Occurred()) {
        PyErr_SetObject(PyExc_NameError, name);
    }
    return value;
}

/* A borrowed reference to an attribute that is in a slot of the object. */
static PyObject *
attribute(PyObject *object, PyObject *name)
{
    PyObject *value = object == NULL ? NULL : PyObject_GetAttr(object, name);
    Py_XDECREF(value);
    return value;
}

static int
is_handling(void)
{
    PyObject *error = handled_exception();
    Py_XDECREF(error);
    return error != NULL;
}

/* In what follows, 1 means yes, 0 no, and -1 that an exception is raised. */

static int
has_id(PyObject *ids, PyObject *object)
{
    PyObject *id = PyLong_FromVoidPtr(object);
    int result = id == NULL ? -1 : PySet_Contains(ids, id);
    Py_XDECREF(id);
    return result;
}

/* Whether the instruction that `outer` is at is known to call `code`. */
static int
is_known_call(State *state, PyObject *known, PyFrameObject *outer, PyObject *code)
{
    PyObject *called_from = attribute(known, state->str_called_from);
    PyObject *also_called_from = attribute(known, state->str_also_called_from);
    PyObject *place = key_of(code_of(outer), offset_in(outer));
    int result = -1;
    if (called_from != NULL && also_called_from != NULL && place != NULL) {
        PyObject *called = PyDict_GetItemWithError(called_from, place);
        if (called != NULL) {
            result = PyLong_AsVoidPtr(called) == (void *)code;
        }
        else if (!PyErr_Occurred()) {
            result = 0;
        }
        if (result == 0) {
            PyObject *also = PyDict_GetItemWithError(also_called_from, place);
            result = also == NULL ? (PyErr_Occurred() ? -1 : 0) : has_id(also, code);
        }
    }
    Py_XDECREF(place);
    return result;
}

/* Whether it is known that a code object has no ``with`` block. */
static int
is_without(State *state, PyObject *code)
{
    PyObject *id = PyLong_FromVoidPtr(code);
    PyObject *looked = id == NULL ? NULL : PyDict_GetItemWithError(state->looked, id);
    Py_XDECREF(id);
    PyObject *withs = attribute(looked, state->str_withs);
    if (withs == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    return PyDict_Check(withs) && PyDict_GET_SIZE(withs) == 0;
}

/* Whether nothing is to be reported of the frames from a sync chain's outermost one to the worker's,
   all of which must be known. */
static int
are_quiet(State *state, Debug *debug, PyObject *known, PyFrameObject *outermost)
{
    PyFrameObject *inner = (PyFrameObject *)Py_NewRef((PyObject *)outermost);
    int calls_matter = debug->_looks_at_start;
    int result = 1;
    while (result > 0) {
        PyObject *code = code_of(inner);
        if (debug->_looks_for_locks) {
            result = is_without(state, code);
        }
        if (code == state->bridge_code) {
            calls_matter = 0; /* the frames around a bridge were that bridge's misuse */
        }
        PyFrameObject *outer = result <= 0 ? NULL : PyFrame_GetBack(inner);
        if (result > 0 && calls_matter) {
            PyFrameObject *caller = outer == NULL ? (PyFrameObject *)state->around_worker : outer;
            if (!IS_NONE((PyObject *)caller)) { /* else `work` in Python */
                result = is_known_call(state, known, caller, code);
            }
        }
        Py_DECREF(inner);
        inner = outer;
        if (outer == NULL) {
            return result;
        }
    }
    Py_DECREF(inner);
    return result;
}

/* Whether a bridge that begins at `frame` is known to be no misuse, and to have no caller in the task
   with a ``with`` block. */
static int
is_harmless(State *state, Debug *debug, Running *bridge, PyObject *frame)
{
    Progress *progress = &bridge->progress;
    Node *node = progress->node;
    PortalTally *tally = progress->tally;
    if (bridge->outermost == NULL || !PyFrame_Check(frame) || state->detect == NULL ||
        (debug->_looks_at_start && (node->is_known != Py_True || is_handling())) ||
        (debug->_looks_for_locks &&
         (node->is_without != Py_True || tally->is_bare != Py_True)) ||
        ((Node *)tally->root)->code != code_of((PyFrameObject *)frame)) {
        return 0;
    }
    PyObject *here = PyObject_CallNoArgs(state->getcurrent);
    if (here == NULL) {
        return -1;
    }
    int is_worker = (PyObject *)Py_TYPE(here) == state->worker_class;
    Py_DECREF(here);
    PyObject *known = global(state->detect, state->str__known);
    if (!is_worker || known == NULL) {
        return known == NULL ? -1 : 0;
    }
    Py_INCREF(known); /* any code may replace it */
    int result = are_quiet(state, debug, known, (PyFrameObject *)bridge->outermost);
    Py_DECREF(known);
    return result;
}

/* A bridge that has begun is refused: an exception is raised. Count it as failed. */
static COLD void
refuse(Debug *debug, Running *bridge, PyObject *portal)
{
    State *state = debug->state;
    PyObject *error = take_raised();
    PyObject *done = PyObject_CallMethodObjArgs((PyObject *)debug, state->str__refuse, bridge,
                                                portal, error, NULL);
    if (done == NULL) { /* at the limit of recursion */
        PyErr_Clear();
        if (bridge->runs && PyObject_TypeCheck(debug->_totals, state->Totals)) {
            bridge->runs = 0;
            (void)finish((Totals *)debug->_totals, &bridge->progress, error, 0);
        }
    }
    Py_XDECREF(done);
    raise_again(error);
}

static PyObject *
debug_start_bridge(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Debug *debug = (Debug *)self;
    State *state = debug->state;
    PyObject *start = debug->_start;
    if (count != 3 || start == NULL) {
        PyErr_SetString(PyExc_TypeError, "start_bridge() takes a portal, an awaitable and a frame");
        return NULL;
    }
    PyObject *bridge = PyObject_Vectorcall(start, args, 3, NULL);
    if (bridge == NULL) {
        return NULL;
    }
    if (PyObject_TypeCheck(bridge, state->Running)) {
        Running *running = (Running *)bridge;
        int harmless = is_harmless(state, debug, running, args[2]);
        if (harmless < 0) { /* there was no memory */
            PyErr_Clear();
        }
        if (harmless > 0) {
            int64_t now = now_ns(state->clock);
            if (now - running->progress.started < debug->_long_ns) {
                running->progress.started = now;
                running->is_clear = debug->_looks_for_locks;
                put(&running->portal, args[0]);
                Py_CLEAR(running->outermost);
                return bridge;
            }
        }
    }
    PyObject *looked = PyObject_CallMethodObjArgs(self, state->str__look_at, bridge, args[0],
                                                  args[2], NULL);
    if (looked == NULL && PyObject_TypeCheck(bridge, state->Running)) {
        refuse(debug, (Running *)bridge, args[0]);
    }
    Py_DECREF(bridge);
    return looked;
}

/* Whether the thread may hold a lock by a call of `acquire`: `are_noted` in claims.py. */
static int
are_locks_noted(State *state)
{
    PyObject *local = global(state->claims, state->str__local);
    if (local == NULL) {
        return -1;
    }
    /* In a new thread, this calls Python. */
    Py_INCREF(local);
    PyObject *books = PyObject_GetAttr(local, state->str_books);
    Py_DECREF(local);
    int result = books == NULL ? -1 : !PyDict_Check(books) || PyDict_GET_SIZE(books) > 0;
    Py_XDECREF(books);
    return result;
}

static PyObject *
debug_suspend_bridge(PyObject *self, PyObject *bridge)
{
    State *state = ((Debug *)self)->state;
    if (PyObject_TypeCheck(bridge, state->Running)) {
        Running *running = (Running *)bridge;
        if (running->progress.switches) {
            Py_RETURN_NONE; /* no sync code of the task has run since its first suspension */
        }
        int noted = running->is_clear ? are_locks_noted(state) : 1;
        if (noted < 0) {
            return NULL;
        }
        if (noted == 0) {
            Py_RETURN_NONE;
        }
    }
    return PyObject_CallMethodOneArg(self, state->str__before_suspension_in_python, bridge);
}

/* Steps */

enum { THREAD, STARTED, SAMPLES, FIELDS };

static PyObject *
start_step(PyObject *self, PyObject *portal)
{
    Watchdog *watchdog = (Watchdog *)self;
    PyObject *step = PyList_New(FIELDS);
    PyObject *thread = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    PyObject *started = PyLong_FromLongLong(now_ns(watchdog->state->clock));
    int result = -1;
    if (step != NULL && thread != NULL && started != NULL && watchdog->_running != NULL) {
        PyList_SET_ITEM(step, THREAD, Py_NewRef(thread));
        PyList_SET_ITEM(step, STARTED, Py_NewRef(started));
        PyList_SET_ITEM(step, SAMPLES, Py_NewRef(Py_None));
        result = PyDict_SetItem(watchdog->_running, portal, step);
    }
    Py_XDECREF(step);
    Py_XDECREF(thread);
    Py_XDECREF(started);
    if (result < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_RuntimeError, "this watchdog is being freed");
        }
        return NULL;
    }
    if (watchdog->_idle) {
        return PyObject_CallMethodNoArgs(self, watchdog->state->str__rouse);
    }
    Py_RETURN_NONE;
}

/* Note that the step is over, unless the watchdog has samples of it. */
static int
end_step(Watchdog *watchdog, PyObject *portal)
{
    PyObject *running = watchdog->_running;
    PyObject *step = running == NULL ? NULL : PyDict_GetItemWithError(running, portal);
    if (step == NULL) {
        return PyErr_Occurred() ? -1 : 1;
    }
    if (!PyList_CheckExact(step) || PyList_GET_SIZE(step) != FIELDS ||
        PyList_GET_ITEM(step, SAMPLES) != Py_None) {
        return 0;
    }
    return PyDict_DelItem(running, portal) < 0 ? -1 : 1;
}

static PyObject *
debug_finish_step(PyObject *self, PyObject *portal)
{
    Debug *debug = (Debug *)self;
    State *state = debug->state;
    int is_over = 0;
    if (PyObject_TypeCheck(portal, state->portal_class) && debug->_totals != NULL &&
        debug->_watchdog != NULL && debug->misuses != NULL && PyObject_TypeCheck(debug->_totals, state->Totals) &&
        PyObject_TypeCheck(debug->_watchdog, state->Watchdog)) {
        is_over = end_step((Watchdog *)debug->_watchdog, portal);
    }
    if (is_over < 0) {
        return NULL;
    }
    if (!is_over) {
        return PyObject_CallMethodOneArg(self, state->str_finish_step_in_python, portal);
    }
    finish_step((Totals *)debug->_totals, (Portal *)portal);
    PyObject *postponed = attribute(debug->misuses, state->str_postponed);
    Py_ssize_t reports = postponed == NULL ? -1 : PyObject_Size(postponed);
    if (reports > 0) {
        return PyObject_CallMethodOneArg(self, state->str__log_postponed, portal);
    }
    if (reports < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyMethodDef debug_methods[] = {
    {"start_bridge", (PyCFunction)(void (*)(void))debug_start_bridge, METH_FASTCALL, NULL},
    {"_before_suspension", debug_suspend_bridge, METH_O, NULL},
    {"finish_step", debug_finish_step, METH_O, NULL},
    {NULL},
};

PyMethodDef watchdog_methods[] = {
    {"start_step", start_step, METH_O, NULL},
    {NULL},
};

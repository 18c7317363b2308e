/* Methods of `Totals` for listeners in Python, which count by them. */

#include "counting.h"

static int
check_count(const char *name, Py_ssize_t count, Py_ssize_t takes)
{
    if (count != takes) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, not %zd", name, takes, count);
        return -1;
    }
    return 0;
}

/* `object` as an object of `type`; NULL with an exception if it is none. */
static void *
checked(PyObject *object, PyTypeObject *type)
{
    if (!PyObject_TypeCheck(object, type)) {
        PyErr_Format(PyExc_TypeError, "%R is no %s", object, type->tp_name);
        return NULL;
    }
    return object;
}

/* An object of a finished bridge, to be used again; or a new one. */
static Running *
spare_of(State *state, PortalTally *tally)
{
    PyObject *spares = tally->spares;
    Py_ssize_t last = spares == NULL ? -1 : PyList_GET_SIZE(spares) - 1;
    PyObject *spare;
    if (last >= 0) {
        spare = Py_NewRef(PyList_GET_ITEM(spares, last));
        if (PyList_SetSlice(spares, last, last + 1, NULL) < 0) {
            Py_DECREF(spare);
            return NULL;
        }
    }
    else {
        spare = PyObject_CallMethodNoArgs((PyObject *)tally, state->str_new_running);
    }
    if (spare != NULL && checked(spare, state->Running) == NULL) {
        Py_CLEAR(spare);
    }
    return (Running *)spare;
}

/* A `Running` for a bridge that `frame` begins; NULL without an exception if counting has failed,
   which the observer was told. */
Running *
start_running(Totals *totals, Portal *portal, PyObject *frame)
{
    State *state = totals->state;
    Progress progress;
    PyFrameObject *outermost = NULL;
    PyFrameObject *begins = PyFrame_Check(frame) ? (PyFrameObject *)frame : NULL;
    int gives_outermost = totals->_gives_outermost;
    if (start(totals, portal, begins, &progress, gives_outermost ? &outermost : NULL) <= 0) {
        return NULL;
    }
    Running *bridge = spare_of(state, progress.tally);
    if (bridge == NULL) {
        Py_DECREF(progress.tally);
        Py_XDECREF(outermost);
        if (!PyErr_ExceptionMatches(PyExc_RecursionError)) {
            (void)fail(totals);
        }
        return NULL;
    }
    PyObject *tally = (PyObject *)bridge->progress.tally; /* most often the same */
    PyObject *node = (PyObject *)bridge->progress.node;
    bridge->progress = progress;
    Py_INCREF(progress.node);
    bridge->runs = 1;
    Py_XSETREF(bridge->outermost, (PyObject *)outermost);
    Py_XDECREF(tally);
    Py_XDECREF(node);
    return bridge;
}

static PyObject *
tell_of_start_bridge(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Totals *totals = (Totals *)self;
    if (check_count("start_bridge", count, 3) < 0) {
        return NULL;
    }
    Portal *portal = checked(args[0], totals->state->portal_class);
    if (portal == NULL) {
        return NULL;
    }
    PyObject *bridge = (PyObject *)start_running(totals, portal, args[2]);
    if (bridge == NULL && !PyErr_Occurred()) {
        Py_RETURN_NONE;
    }
    return bridge;
}

static PyObject *
tell_of_resume_bridge(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Totals *totals = (Totals *)self;
    State *state = totals->state;
    if (check_count("resume_bridge", count, 3) < 0) {
        return NULL;
    }
    Running *bridge = checked(args[0], state->Running);
    Portal *portal = bridge == NULL ? NULL : checked(args[1], state->portal_class);
    if (portal == NULL) {
        return NULL;
    }
    int64_t left = PyLong_AsLongLong(args[2]);
    if (left == -1 && PyErr_Occurred()) {
        return NULL;
    }
    resume(totals, &bridge->progress, portal, left);
    Py_RETURN_NONE;
}

/* A second call does nothing, and returns 0: see totals.py. */
static PyObject *
tell_of_finish_bridge(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Totals *totals = (Totals *)self;
    if (check_count("finish_bridge", count, 3) < 0) {
        return NULL;
    }
    Running *bridge = checked(args[0], totals->state->Running);
    if (bridge == NULL) {
        return NULL;
    }
    int64_t left = PyLong_AsLongLong(args[2]);
    if (left == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (!bridge->runs) {
        return PyLong_FromLong(0);
    }
    bridge->runs = 0;
    PortalTally *tally = bridge->progress.tally;
    Py_INCREF(bridge);
    Py_INCREF(tally);
    PyObject *error = args[1] == Py_None ? NULL : args[1];
    int64_t spent = finish(totals, &bridge->progress, error, left);
    /* `finish` can have called a finalizer that closed the portal. */
    int result = 0;
    if (!tally->closed) {
        PyObject *spares = spares_of(tally);
        result = spares == NULL ? -1 : PyList_Append(spares, (PyObject *)bridge);
    }
    Py_DECREF(tally);
    Py_DECREF(bridge);
    return result < 0 ? NULL : PyLong_FromLongLong(spent);
}

static PyObject *
tell_of_finish_step(PyObject *self, PyObject *portal)
{
    Totals *totals = (Totals *)self;
    if (checked(portal, totals->state->portal_class) == NULL) {
        return NULL;
    }
    finish_step(totals, (Portal *)portal);
    Py_RETURN_NONE;
}

static PyObject *
tell_of_portal(PyObject *self, PyObject *portal, int (*tell)(Totals *, Portal *))
{
    Totals *totals = (Totals *)self;
    if (checked(portal, totals->state->portal_class) == NULL || tell(totals, (Portal *)portal) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
tell_of_opening(PyObject *self, PyObject *portal)
{
    return tell_of_portal(self, portal, open_portal);
}

static PyObject *
tell_of_entering(PyObject *self, PyObject *portal)
{
    return tell_of_portal(self, portal, enter_portal);
}

static int
close_now(Totals *totals, Portal *portal)
{
    return close_portal(totals, portal, 0);
}

static PyObject *
tell_of_closing(PyObject *self, PyObject *portal)
{
    return tell_of_portal(self, portal, close_now);
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL

PyMethodDef totals_methods[] = {
    {"start_bridge", FAST(tell_of_start_bridge)},
    {"resume_bridge", FAST(tell_of_resume_bridge)},
    {"finish_bridge", FAST(tell_of_finish_bridge)},
    {"finish_step", tell_of_finish_step, METH_O, NULL},
    {"open_portal", tell_of_opening, METH_O, NULL},
    {"enter_portal", tell_of_entering, METH_O, NULL},
    {"close_portal", tell_of_closing, METH_O, NULL},
    {NULL},
};

/* The outer side of a portal: the awaitable that the event loop steps. */

#include "engine.h"

/* FIRST_ANSWER: it is put into a task that is under way, and gets the answer to the last trap of the
   task's own coroutine first. */
typedef enum { NEW, FIRST_ANSWER, WAITING, RUNNING, OVER } State;

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    Engine *engine;
    Portal *portal;
    /* The coroutine of the task in whose place this stands; else NULL. */
    PyObject *coroutine;
    PyObject *trap;
    PyObject *interruption;
    PyObject *context;
    State state;
    char is_closing;
} Drive;

/* What messages call it. */
static const char *
kind_of(Drive *self)
{
    return self->coroutine == NULL ? "generator" : "coroutine";
}

/* A coroutine cannot raise StopIteration: PEP 479. */
static void
replace_stop_iteration(const char *kind)
{
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return;
    }
    PyObject *cause = take_raised();
    PyErr_Format(PyExc_RuntimeError, "%s raised StopIteration", kind);
    PyObject *error = take_raised();
    PyException_SetCause(error, Py_NewRef(cause));
    PyException_SetContext(error, cause);
    raise_again(error);
}

static PySendResult
end(Drive *self, PyObject *value, PyObject **result)
{
    if (value == NULL) {
        replace_stop_iteration(kind_of(self));
    }
    self->state = OVER;
    *result = value;
    PyObject *error = take_raised();
    Py_CLEAR(self->portal);
    Py_CLEAR(self->context);
    if (error != NULL) {
        raise_again(error);
    }
    return value == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* Whether the task now waits at another line than its lookalike shows. */
static int
must_move(Engine *engine, Drive *self, PyObject *trap)
{
    Portal *portal = self->portal;
    if (IS_NONE(portal->shown) || trap == Py_None || self->is_closing) {
        return 0;
    }
    PyObject *moves =
        PyObject_CallMethodOneArg(portal->shown, engine->str_must_move, portal->coroutine);
    Py_XDECREF(moves);
    return moves == NULL ? -1 : moves == Py_True;
}

/* The work has ended: close the portal. */
static PySendResult
finish_drive(Engine *engine, Drive *self, PyObject **result)
{
    PyObject *value = finish(engine, self->portal);
    if (value != NULL && (self->is_closing || self->coroutine != NULL) &&
        (PyObject *)Py_TYPE(value) == engine->Raised) {
        /* An awaitable that is being closed cannot return a result, so the error is raised here.
           The coroutine of a task raises its own error. */
        PyObject *error = PyObject_GetAttr(value, engine->str_error);
        if (error == NULL) {
            Py_CLEAR(value);
        }
        else if (self->coroutine == NULL &&
                 PyErr_GivenExceptionMatches(error, PyExc_GeneratorExit)) {
            Py_DECREF(error);
        }
        else {
            Py_CLEAR(value);
            raise_again(error);
        }
    }
    return end(self, value, result);
}

/* `takes` in bridge.py. */
static int
takes(Engine *engine, Portal *portal, PyObject *error)
{
    PyObject *args[] = {(PyObject *)portal, error};
    PyObject *answer = PyObject_Vectorcall(engine->takes, args, 2, NULL);
    int taken = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return taken;
}

/* Note the context in which the portal's task runs. */
static void
note_context(Drive *self)
{
    put(&self->context, PyThreadState_Get()->context);
}

/* After a step: wait for the next answer, or end. `trap` is NULL if the step has raised. */
static PySendResult
after_step(Engine *engine, Drive *self, PyObject *trap, PyObject **result)
{
    Portal *portal = self->portal;
    for (;;) {
        if (trap != NULL) {
            if (IS_NONE(portal->resume)) {
                Py_DECREF(trap);
                return finish_drive(engine, self, result);
            }
            int moves = must_move(engine, self, trap);
            if (moves == 0) {
                self->state = WAITING;
                *result = trap;
                return PYGEN_NEXT;
            }
            if (moves > 0) {
                int failed = PyObject_SetAttr(portal->shown, engine->str_trap, trap);
                if (failed) {
                    drop(&trap);
                }
                Py_XDECREF(trap);
                return end(self, failed ? NULL : Py_NewRef(engine->MOVED), result);
            }
            drop(&trap);
        }
        /* It is thrown into the work if the work can take it. */
        PyObject *error = take_raised();
        if (takes(engine, portal, error) <= 0) {
            PyErr_Clear();
            if (!IS_NONE(portal->home)) {
                PyObject *value = finish(engine, portal);
                if (value == NULL) {
                    Py_DECREF(error);
                    error = take_raised();
                }
                Py_XDECREF(value);
            }
            raise_again(error);
            return end(self, NULL, result);
        }
        PyObject *args[] = {(PyObject *)portal, error};
        trap = PyObject_Vectorcall(engine->interrupt, args, 2, NULL);
        Py_DECREF(error);
        note_context(self);
    }
}

/* Begin: the portal's first step, if it has not been taken yet. */
static PySendResult
begin_drive(Engine *engine, Drive *self, PyObject **result)
{
    Portal *portal = self->portal;
    PyObject *trap;
    self->state = RUNNING;
    if (self->interruption != NULL) {
        PyObject *args[] = {(PyObject *)portal, self->interruption};
        trap = PyObject_Vectorcall(engine->interrupt, args, 2, NULL);
        if (trap == NULL) {
            drop(&self->interruption);
        }
        Py_CLEAR(self->interruption);
    }
    else if (IS_NONE(portal->resume)) {
        trap = first_step(engine, portal);
    }
    else {
        trap = self->trap;
        self->trap = NULL;
    }
    note_context(self);
    return after_step(engine, self, trap, result);
}

/* The next step may run in another greenlet than the last one, and in another context. */
static int
note_surroundings(Engine *engine, Drive *self)
{
    Portal *portal = self->portal;
    PyObject *me = engine->current();
    if (me == NULL) {
        return -1;
    }
    int failed = 0;
    if (me != portal->greenlet) {
        put(&portal->greenlet, me);
        failed = IS_NONE(portal->worker) ? 0 : engine->set_parent(portal->worker, me);
    }
    Py_DECREF(me);
    PyObject *context = PyThreadState_Get()->context;
    if (failed || context == self->context) {
        return failed;
    }
    /* Code outside has replaced the task's context. A context that the work has entered by
       Context.run() stays the work's. */
    PyObject *worker = portal->worker;
    PyObject *given = context == NULL ? Py_None : context;
    if (!IS_NONE(worker) && SLOT(worker, engine->worker_is_bare) == Py_True) {
        put(&SLOT(worker, engine->worker_replaces), self->context);
        put(&SLOT(worker, engine->worker_context), given);
    }
    else if (!IS_NONE(worker)) {
        PyObject *inside = engine->get_context(worker, NULL);
        if (inside == NULL) {
            PyErr_Clear(); /* the worker is in another thread: no step can be taken */
        }
        else if (inside == (self->context == NULL ? Py_None : self->context)) {
            failed = engine->set_context(worker, given, NULL);
        }
        Py_XDECREF(inside);
    }
    put(&self->context, context);
    return failed;
}

/* One step, with the answer to the last trap. */
static PySendResult
go_on(Engine *engine, Drive *self, PyObject *answer, PyObject **result)
{
    Portal *portal = self->portal;
    PyObject *trap = NULL;
    self->state = RUNNING;
    if (IS_NONE(portal->resume)) { /* its worker was killed */
        return finish_drive(engine, self, result);
    }
    if (note_surroundings(engine, self) == 0) {
        trap = step(engine, portal, portal->resume, answer);
    }
    return after_step(engine, self, trap, result);
}

static PySendResult
send(Drive *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    switch (self->state) {
    case WAITING:
        return go_on(self->engine, self, value, result);
    case FIRST_ANSWER:
        put(&self->portal->result, value);
        return begin_drive(self->engine, self, result);
    case NEW:
        if (value != Py_None) {
            PyErr_Format(PyExc_TypeError, "can't send non-None value to a just-started %s",
                         kind_of(self));
            return PYGEN_ERROR;
        }
        return begin_drive(self->engine, self, result);
    case RUNNING:
        PyErr_Format(PyExc_ValueError, "%s already executing", kind_of(self));
        return PYGEN_ERROR;
    default:
        if (self->coroutine != NULL) {
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
            return PYGEN_ERROR;
        }
        *result = Py_NewRef(Py_None); /* as a generator that is over */
        return PYGEN_RETURN;
    }
}

/* Steals `error`. */
static PySendResult
throw(Drive *self, PyObject *error, PyObject **result)
{
    Engine *engine = self->engine;
    *result = NULL;
    switch (self->state) {
    case WAITING:
        self->is_closing = PyErr_GivenExceptionMatches(error, PyExc_GeneratorExit) != 0;
        put_new(&self->portal->error, error);
        return go_on(engine, self, engine->ERROR, result);
    case FIRST_ANSWER:
        if (self->portal->registered) {
            put_new(&self->interruption, error);
            return begin_drive(engine, self, result);
        }
        /* It was not put into the task, or the task ended without it. */
        raise_again(error);
        return end(self, NULL, result);
    case NEW:
        raise_again(error);
        return end(self, NULL, result);
    case RUNNING:
        Py_DECREF(error);
        PyErr_Format(PyExc_ValueError, "%s already executing", kind_of(self));
        return PYGEN_ERROR;
    default:
        if (self->coroutine != NULL) {
            Py_DECREF(error);
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        }
        else {
            raise_again(error);
        }
        return PYGEN_ERROR;
    }
}

/* What a method returns. */
static PyObject *
returned(PySendResult sent, PyObject *result)
{
    if (sent == PYGEN_RETURN) {
        raise_stop_iteration(result);
        return NULL;
    }
    return sent == PYGEN_NEXT ? result : NULL;
}

static PySendResult
drive_am_send(Drive *self, PyObject *value, PyObject **result)
{
    Py_INCREF(self);
    PySendResult sent = send(self, value, result);
    Py_DECREF(self);
    return sent;
}

static PyObject *
drive_send(Drive *self, PyObject *value)
{
    PyObject *result;
    PySendResult sent = drive_am_send(self, value, &result);
    return returned(sent, result);
}

static PyObject *
drive_next(Drive *self)
{
    return drive_send(self, Py_None);
}

static PyObject *
drive_throw(Drive *self, PyObject *args)
{
    PyObject *type, *value = NULL, *traceback = NULL, *error;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &value, &traceback)) {
        return NULL;
    }
    if (PyExceptionInstance_Check(type)) {
        error = Py_NewRef(type);
    }
    else if (PyExceptionClass_Check(type)) {
        PyErr_Restore(Py_NewRef(type), Py_XNewRef(value), NULL); /* makes an instance, as `raise` */
        error = take_raised();
    }
    else {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        return NULL;
    }
    if (!IS_NONE(traceback) && PyException_SetTraceback(error, traceback) < 0) {
        Py_DECREF(error);
        return NULL;
    }
    PyObject *result;
    Py_INCREF(self);
    PySendResult sent = throw(self, error, &result);
    Py_DECREF(self);
    return returned(sent, result);
}

static PyObject *
drive_close(Drive *self, PyObject *Py_UNUSED(ignored))
{
    if (self->state == OVER) {
        Py_RETURN_NONE;
    }
    if (self->state == NEW || (self->state == FIRST_ANSWER && !self->portal->registered)) {
        PyObject *nothing;
        end(self, Py_None, &nothing);
        Py_RETURN_NONE;
    }
    PyObject *error = PyObject_CallNoArgs(PyExc_GeneratorExit);
    if (error == NULL) {
        return NULL;
    }
    PyObject *result;
    Py_INCREF(self);
    PySendResult sent = throw(self, error, &result);
    Py_DECREF(self);
    if (sent == PYGEN_ERROR) {
        if (PyErr_ExceptionMatches(PyExc_GeneratorExit) ||
            PyErr_ExceptionMatches(PyExc_StopIteration)) {
            PyErr_Clear();
            Py_RETURN_NONE;
        }
        return NULL;
    }
    Py_DECREF(result);
    if (sent == PYGEN_NEXT) {
        PyErr_Format(PyExc_RuntimeError, "%s ignored GeneratorExit", kind_of(self));
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
drive_traverse(Drive *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->portal);
    Py_VISIT(self->trap);
    Py_VISIT(self->interruption);
    Py_VISIT(self->context);
    Py_VISIT(self->coroutine);
    return 0;
}

static int
drive_clear(Drive *self)
{
    Py_CLEAR(self->trap);
    Py_CLEAR(self->interruption);
    return 0;
}

/* As a generator that is collected while it waits, this is closed. */
static void
drive_finalize(Drive *self)
{
    if (self->state != WAITING && self->state != FIRST_ANSWER) {
        return;
    }
    PyObject *raised = take_raised();
    PyObject *closed = drive_close(self, NULL);
    if (closed == NULL) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(closed);
    if (raised != NULL) {
        raise_again(raised);
    }
}

static void
drive_dealloc(Drive *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return; /* it lives on */
    }
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    Py_CLEAR(self->portal);
    Py_CLEAR(self->context);
    Py_CLEAR(self->coroutine);
    drive_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *drive_new(PyTypeObject *type, PyObject *args, PyObject *kwds);

/* The engine of the type, or of a class in Python that is based on it. */
static Engine *
engine_of_type(PyTypeObject *type)
{
    while (type != NULL && type->tp_new == drive_new && !(type->tp_flags & Py_TPFLAGS_HEAPTYPE &&
                                                          ((PyHeapTypeObject *)type)->ht_module)) {
        type = type->tp_base;
    }
    return type == NULL ? NULL : (Engine *)PyType_GetModuleState(type);
}

static PyObject *
drive_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"portal", "trap", "interruption", NULL};
    Engine *engine = engine_of_type(type);
    PyObject *portal, *trap = Py_None, *interruption = Py_None;
    if (engine == NULL || !PyArg_ParseTupleAndKeywords(args, kwds, "O!|OO:drive", names,
                                                       engine->portal_type, &portal, &trap,
                                                       &interruption)) {
        return NULL;
    }
    Drive *self = (Drive *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->engine = engine;
    self->portal = (Portal *)Py_NewRef(portal);
    self->trap = Py_NewRef(trap);
    self->interruption = interruption == Py_None ? NULL : Py_NewRef(interruption);
    self->state = NEW;
    return (PyObject *)self;
}

/* What drives a portal whose first step has been taken, and has yielded `trap`. */
PyObject *
drive_on(Engine *engine, Portal *portal, PyObject *trap)
{
    Drive *self = (Drive *)engine->drive_type->tp_alloc(engine->drive_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->engine = engine;
    self->portal = (Portal *)Py_NewRef((PyObject *)portal);
    self->trap = Py_NewRef(trap);
    self->state = NEW;
    return (PyObject *)self;
}

/* What stands in the place of `coroutine` in a task that is under way. */
PyObject *
drive_from_now_on(Engine *engine, Portal *portal, PyObject *coroutine)
{
    PyTypeObject *type = (PyTypeObject *)engine->task_drive;
    Drive *self = (Drive *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->engine = engine;
    self->portal = (Portal *)Py_NewRef((PyObject *)portal);
    self->coroutine = Py_NewRef(coroutine);
    self->state = FIRST_ANSWER;
    return (PyObject *)self;
}

static PyObject *
drive_portal(Drive *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->portal == NULL ? Py_None : (PyObject *)self->portal);
}

static PyObject *
drive_running(Drive *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->state == RUNNING);
}

static PyObject *
drive_suspended(Drive *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->state == WAITING);
}

/* The attribute of the task's own coroutine. */
static PyObject *
drive_name(Drive *self, void *attribute)
{
    if (self->coroutine == NULL) {
        return PyUnicode_FromString("drive");
    }
    return PyObject_GetAttrString(self->coroutine, attribute);
}

static PyMethodDef methods[] = {
    {"send", (PyCFunction)drive_send, METH_O, NULL},
    {"throw", (PyCFunction)drive_throw, METH_VARARGS, NULL},
    {"close", (PyCFunction)drive_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"portal", (getter)drive_portal, NULL, NULL, NULL},
    {"__name__", (getter)drive_name, NULL, NULL, "__name__"},
    {"__qualname__", (getter)drive_name, NULL, NULL, "__qualname__"},
    {"gi_running", (getter)drive_running, NULL, NULL, NULL},
    {"gi_suspended", (getter)drive_suspended, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef drive_members[] = {
    {"coroutine", T_OBJECT, offsetof(Drive, coroutine), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Drive, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, drive_new},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_members, drive_members},
    {Py_tp_traverse, drive_traverse},
    {Py_tp_clear, drive_clear},
    {Py_tp_finalize, drive_finalize},
    {Py_tp_dealloc, drive_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, drive_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, drive_am_send},
    {0, NULL},
};

PyType_Spec drive_spec = {
    .name = "greenback._engine.bridge.drive",
    .basicsize = sizeof(Drive),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

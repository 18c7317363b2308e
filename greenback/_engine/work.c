/* What a worker runs: the work of portals, one after another. */

#include "engine.h"

/* `is_unfinished` in work.py. Returns -1 with an exception raised if it cannot be told. */
static int
is_unfinished(Engine *engine, PyObject *coroutine)
{
    if (IS_NONE(coroutine)) {
        return 0;
    }
    PyObject *answer = PyObject_CallOneArg(engine->is_unfinished, coroutine);
    int unfinished = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return unfinished;
}

/* The coroutine that is the portal's work. A new reference. */
static PyObject *
coroutine_of(Engine *engine, Portal *portal)
{
    if (!IS_NONE(portal->coroutine)) {
        return Py_NewRef(portal->coroutine);
    }
    PyObject *kwds = IS_NONE(portal->kwds) ? NULL : portal->kwds;
    PyObject *awaitable = PyObject_Call(portal->function, portal->args, kwds);
    if (awaitable == NULL) {
        return NULL;
    }
    PyObject *steps = steps_of(engine, awaitable);
    Py_DECREF(awaitable);
    return steps;
}

/* Park the worker in C: switch to `outside` with `value`, which is stolen.

   greenlet takes a greenlet that is parked without a frame of Python's for one that runs, and lets
   nobody set its context. So the context for the next step comes in a slot of the worker. */
static PyObject *
park(Engine *engine, PyObject *worker, PyObject *outside, PyObject *value)
{
    put(&SLOT(worker, engine->worker_is_bare), Py_True);
    PyObject *answer = switch_with(engine, outside, value);
    put(&SLOT(worker, engine->worker_is_bare), Py_False);
    PyObject **given = &SLOT(worker, engine->worker_context);
    if (!IS_NONE(*given)) {
        PyThreadState *thread = PyThreadState_Get();
        PyObject **replaces = &SLOT(worker, engine->worker_replaces);
        if (IS_NONE(*replaces) || *replaces == thread->context) {
            set_context(thread, *given);
        }
        put(given, Py_None);
        put(replaces, Py_None);
    }
    return answer;
}

typedef struct {
    PyObject_HEAD
    Engine *engine;
} Server;

/* `run_coroutine` in work.py. */
static PyObject *
run_coroutine(Engine *engine, Portal *portal, PyObject *worker)
{
    PyObject *coroutine = coroutine_of(engine, portal);
    if (coroutine == NULL) {
        return NULL;
    }
    int is_task = !IS_NONE(portal->coroutine);
    PyObject *answer = portal->result == NULL ? Py_NewRef(Py_None) : portal->result;
    PyObject *handled = NULL;
    PyObject *trap;
    PySendResult sent;
    portal->result = NULL;
    for (;;) {
        if (answer == engine->ERROR) {
            PyObject *error = take(&portal->error);
            handled = handled_exception();
            sent = is_task ? throw_into_task(engine, coroutine, error, &trap)
                           : throw_into(engine, coroutine, error, &trap);
            if (sent != PYGEN_ERROR) {
                Py_CLEAR(handled);
            }
        }
        else {
            sent = PyIter_Send(coroutine, answer, &trap);
        }
        Py_DECREF(answer);
        if (sent != PYGEN_NEXT) {
            break;
        }
        put(&portal->awaits, coroutine);
        put(&portal->resume, portal->worker);
        answer = park(engine, worker, portal->greenlet, trap);
        if (answer == NULL) {
            trap = NULL;
            PyObject *error = take_raised();
            if (is_killing(engine, error)) {
                portal->abandoned = 1;
            }
            else if (is_unfinished(engine, coroutine) == 1) {
                /* A signal handler or a tracer raised it while the coroutine waits. */
                put_new(&portal->error, error);
                answer = Py_NewRef(engine->ERROR);
                continue;
            }
            raise_again(error);
            break;
        }
    }
    PyObject *error = take_raised();
    if (error != NULL) {
        Py_CLEAR(portal->awaits);
        hide_frames_of(error, engine->awaited_code);
        leave_handler(error, handled);
    }
    Py_XDECREF(handled);
    Py_DECREF(coroutine);
    if (error != NULL) {
        raise_again(error);
    }
    return trap;
}

/* Call `await_` in Python, which hands the frame that calls it to the listener. A worker has none. */
static COLD PyObject *
call_with_frame(Engine *engine, PyObject *function, PyObject *args, PyObject *kwds)
{
    PyObject *result = NULL;
    PyObject *first = PyTuple_Pack(1, function);
    PyObject *all = first == NULL ? NULL : PySequence_Concat(first, args);
    if (all != NULL) {
        result = PyObject_Call(engine->with_frame, all, kwds);
    }
    Py_XDECREF(all);
    Py_XDECREF(first);
    return result;
}

/* Run the portal's work to its end, or to its interruption. */
static PyObject *
run(Engine *engine, Portal *portal, PyObject *worker)
{
    if (IS_NONE(portal->run)) {
        PyObject *kwds = portal->kwds;
        if (IS_NONE(kwds) || PyDict_GET_SIZE(kwds) == 0) {
            kwds = NULL;
        }
        /* The work can end the portal and let them go. */
        PyObject *function = Py_NewRef(portal->function);
        PyObject *args = Py_NewRef(portal->args);
        Py_XINCREF(kwds);
        PyObject *result;
        if (function == engine->await_) {
            result = call_with_frame(engine, function, args, kwds);
        }
        else if (kwds == NULL) {
            result = PyObject_Vectorcall(function, ((PyTupleObject *)args)->ob_item,
                                         (size_t)PyTuple_GET_SIZE(args), NULL);
        }
        else {
            result = PyObject_Call(function, args, kwds);
        }
        Py_DECREF(function);
        Py_DECREF(args);
        Py_XDECREF(kwds);
        return result;
    }
    if (portal->run == engine->run_coroutine) {
        return run_coroutine(engine, portal, worker);
    }
    PyObject *runs = Py_NewRef(portal->run);
    PyObject *result = PyObject_CallOneArg(runs, (PyObject *)portal);
    Py_DECREF(runs);
    return result;
}

/* The work has raised. Returns 1 if it has not ended, and is to be run again; -1 if the worker is
   being killed, and the exception is raised; else 0. */
static COLD int
note_error(Engine *engine, Portal *portal)
{
    if (portal->abandoned) {
        return -1;
    }
    PyObject *error = take_raised();
    PyObject *traceback = PyObject_CallOneArg(engine->without_own_frames, error);
    if (traceback == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(traceback);
    /* Throwing an error into the coroutine raised this one, and would raise it again. */
    int is_again = !IS_NONE(portal->error) &&
                   (PyErr_GivenExceptionMatches(error, PyExc_RecursionError) ||
                    PyErr_GivenExceptionMatches(error, PyExc_MemoryError));
    put_new(&portal->error, error);
    if (!is_again && is_unfinished(engine, portal->coroutine) == 1) {
        put(&portal->result, engine->ERROR);
        return 1;
    }
    PyErr_Clear();
    return 0;
}

/* `work` in work.py. It takes no portal, since greenlet keeps the arguments of a greenlet alive until
   that ends.

   It is the call of an object, not a function: a function in C is called through two others, which
   would stay on the stack that greenlet copies at each switch. */
static PyObject *
serve(Server *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwds))
{
    Engine *engine = self->engine;
    PyObject *worker = engine->current();
    if (worker == NULL) {
        return NULL;
    }
    Py_DECREF(worker); /* it runs here, so it lives */
    PyObject *next = NULL;
    if (Py_TYPE(worker) == engine->worker_type) {
        next = Py_XNewRef(SLOT(worker, engine->worker_portal));
    }
    if (next == NULL || IS_NONE(((Portal *)next)->home)) {
        Py_XDECREF(next);
        PyErr_SetString(PyExc_TypeError, "only a worker that has a portal can call this");
        return NULL;
    }
    for (;;) {
        Portal *portal = (Portal *)next;
        int goes_on;
        do {
            PyObject *result = run(engine, portal, worker);
            goes_on = 0;
            if (result != NULL) {
                put_new(&portal->result, result);
            }
            else {
                goes_on = note_error(engine, portal);
                if (goes_on < 0) {
                    PyObject *error = take_raised();
                    Py_DECREF(portal);
                    raise_again(error);
                    return NULL;
                }
            }
        } while (goes_on);
        put(&portal->resume, NULL);
        if (portal->abandoned) {
            Py_DECREF(portal);
            Py_RETURN_NONE; /* the worker was killed, and the work has caught the GreenletExit */
        }
        /* While the worker is parked, nothing here may keep the portal alive, nor the worker. Two
           references to the greenlet: see `work` in work.py. */
        PyObject *outside = Py_XNewRef(portal->greenlet);
        Py_XINCREF(outside);
        Py_DECREF(portal);
        set_context(PyThreadState_Get(), NULL);
        next = park(engine, worker, outside, Py_NewRef(Py_None));
        Py_XDECREF(outside);
        Py_XDECREF(outside);
        while (next != NULL && Py_TYPE(next) != engine->portal_type) {
            if (next == (PyObject *)engine->portal_type) { /* `enter_worker`: the worker has it */
                Py_SETREF(next, Py_NewRef(SLOT(worker, engine->worker_portal)));
                continue;
            }
            /* A greenlet that earlier work had started has ended, and this worker is its parent.
               Pass its result on to this worker's own parent, as a dead greenlet would. */
            PyObject *parent = engine->get_parent(worker, NULL);
            PyObject *value = next;
            if (parent == NULL) {
                Py_DECREF(value);
                return NULL;
            }
            next = park(engine, worker, parent, value);
            Py_DECREF(parent);
        }
        if (next == NULL) {
            return NULL;
        }
    }
}

/* The collector sees the cycle of the module, which has the server, and the server's type. */
static int
server_traverse(Server *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void
server_dealloc(Server *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyType_Slot slots[] = {
    {Py_tp_call, serve},
    {Py_tp_traverse, server_traverse},
    {Py_tp_dealloc, server_dealloc},
    {0, NULL},
};

PyType_Spec server_spec = {
    .name = "greenback._engine.work.Server",
    .basicsize = sizeof(Server),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

/* What a worker runs. It lives as long as its type, and so as long as the module. */
PyObject *
new_server(Engine *engine, PyTypeObject *type)
{
    Server *self = (Server *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->engine = engine;
    }
    return (PyObject *)self;
}

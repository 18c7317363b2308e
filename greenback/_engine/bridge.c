/* Bridges: `await_`. */

#include "engine.h"

/* Close what a bridge was awaiting when its greenlet was killed. Keeps the exception that is
   raised. */
static COLD void
abandon(Engine *engine, PyObject *steps)
{
    PyObject *error = take_raised();
    if (close_steps(engine, steps) < 0) {
        PyErr_WriteUnraisable(steps);
    }
    if (error != NULL) {
        raise_again(error);
    }
}

/* Close what a refused bridge would have awaited. An exception is raised, before and after. */
static COLD void
discard(Engine *engine, PyObject *awaitable)
{
    PyObject *error = take_raised();
    PyObject *done = PyObject_CallOneArg(engine->discard, awaitable);
    if (done == NULL) {
        PyObject *raised = take_raised();
        PyException_SetContext(raised, error); /* as in an `except` block */
        error = raised;
    }
    Py_XDECREF(done);
    raise_again(error);
}

/* A bridge that suspends: switch to the event loop until the awaitable yields no more traps.

   `*trap`, which is stolen, is the first trap. Afterwards it is the value, or NULL if the awaitable
   has raised. `*left` is set if the greenlet was killed while the bridge waited. */
static INLINE PySendResult
wait_for(Engine *engine, Portal *portal, PyObject *me, PyObject *steps, PyObject **trap,
         const Hooks *hooks, Bridge *bridge, int64_t *left)
{
    PySendResult sent = PYGEN_NEXT;
    PyObject *handled = NULL;
    while (sent == PYGEN_NEXT) {
        if (hooks != NULL) {
            *left = portal->left = now_ns(engine->clock);
        }
        put(&portal->awaits, steps);
        put(&portal->resume, me);
        PyObject *answer = switch_with(engine, portal->greenlet, *trap);
        *trap = NULL;
        if (answer == NULL) {
            PyObject *error = take_raised();
            if (PyErr_GivenExceptionMatches(error, engine->greenlet_exit)) {
                if (is_killing(engine, error)) {
                    portal->abandoned = 1;
                }
                Py_CLEAR(portal->awaits);
                raise_again(error);
                abandon(engine, steps);
                return PYGEN_ERROR;
            }
            /* A signal handler or a tracer has raised the error, while the awaitable waits. An
               `await` would throw it into the awaitable, which may catch it and go on. */
            *left = 0;
            sent = throw_into(engine, steps, error, trap);
            continue;
        }
        if (hooks != NULL) {
            hooks->resume_bridge(bridge, portal, *left);
            *left = 0;
        }
        if (answer == engine->ERROR) {
            PyObject *error = take(&portal->error);
            /* For `leave_handler`, if the awaitable lets the error out. */
            handled = handled_exception();
            sent = throw_into(engine, steps, error, trap);
            if (sent != PYGEN_ERROR) {
                Py_CLEAR(handled);
            }
        }
        else {
            sent = PyIter_Send(steps, answer, trap);
        }
        Py_DECREF(answer);
    }
    if (sent == PYGEN_ERROR) {
        PyObject *error = take_raised();
        leave_handler(error, handled);
        Py_XDECREF(handled);
        raise_again(error);
    }
    if (portal->awaits == steps) {
        Py_CLEAR(portal->awaits); /* a portal keeps nothing of a bridge that is over */
    }
    return sent;
}

/* Note the bridge for code that looks at stacks, which finds no frame of it. */
static INLINE int
begin_bridge(Portal *portal, PyObject *steps)
{
    if (portal->depth > portal->room && make_room(portal) < 0) {
        return -1;
    }
    UnderWay *noted = bridge_under_way(portal, portal->depth++);
    noted->steps = steps;
    noted->caller = NULL;
    if (!PyCoro_CheckExact(steps) && !PyGen_CheckExact(steps)) {
        noted->caller = PyEval_GetFrame();
        Py_XINCREF(noted->caller);
    }
    return 0;
}

static inline void
end_bridge(Portal *portal)
{
    PyFrameObject *caller = bridge_under_way(portal, --portal->depth)->caller;
    if (caller != NULL) {
        PyObject *error = take_raised();
        Py_DECREF(caller);
        if (error != NULL) {
            raise_again(error);
        }
    }
}

/* A bridge in a portal whose task runs here. `hooks` is NULL if no listener is told. */
static INLINE PyObject *
bridge_with(Engine *engine, Portal *portal, PyObject *me, PyObject *awaitable, const Hooks *hooks,
            Bridge *bridge)
{
    int64_t left = 0;
    PyObject *value = NULL;
    PySendResult sent = PYGEN_ERROR;
    PyObject *steps = steps_of(engine, awaitable);
    if (steps != NULL && begin_bridge(portal, steps) < 0) {
        Py_CLEAR(steps);
        discard(engine, awaitable);
    }
    if (steps != NULL) {
        sent = PyIter_Send(steps, Py_None, &value);
        if (sent == PYGEN_NEXT) {
            sent = wait_for(engine, portal, me, steps, &value, hooks, bridge, &left);
        }
        end_bridge(portal);
    }
    if (sent == PYGEN_RETURN) {
        if (hooks != NULL) {
            hooks->finish_bridge(bridge, NULL, 0);
        }
        Py_DECREF(steps);
        return value;
    }
    PyObject *error = take_raised();
    hide_frames_of(error, engine->awaited_code);
    raise_again(error);
    add_frame_of_await(engine);
    if (hooks != NULL) {
        error = take_raised();
        hooks->finish_bridge(bridge, error, left);
        raise_again(error);
    }
    if (steps != NULL) {
        error = take_raised(); /* destructors are to find no exception */
        Py_DECREF(steps);
        raise_again(error);
    }
    return NULL;
}

/* The functions below are apart to keep the stack of an untold bridge small: greenlet copies it at
   every switch. For the same reason they steal `portal` and `me`, so that `await_` can end with a
   call of one, and leaves nothing on the stack. */
static NOT_INLINE PyObject *
untold_bridge(Engine *engine, Portal *portal, PyObject *me, PyObject *awaitable)
{
    PyObject *value = bridge_with(engine, portal, me, awaitable, NULL, NULL);
    Py_DECREF(portal);
    Py_DECREF(me);
    return value;
}

static INLINE PyObject *
tell_of_bridge(Engine *engine, Portal *portal, PyObject *me, PyObject *awaitable,
               const Hooks *hooks, Bridge *bridge)
{
    int wants_more = hooks->start_bridge(engine->listener, portal, bridge);
    if (wants_more < 0) {
        discard(engine, awaitable);
        add_frame_of_await(engine);
        return NULL;
    }
    return bridge_with(engine, portal, me, awaitable, wants_more ? hooks : NULL, bridge);
}

/* In another bridge that is told of. */
static NOT_INLINE PyObject *
told_inside(Engine *engine, Portal *portal, PyObject *me, PyObject *awaitable, const Hooks *hooks)
{
    Bridge bridge;
    PyObject *value = tell_of_bridge(engine, portal, me, awaitable, hooks, &bridge);
    Py_DECREF(portal);
    Py_DECREF(me);
    return value;
}

static NOT_INLINE PyObject *
told_bridge(Engine *engine, Portal *portal, PyObject *me, PyObject *awaitable, const Hooks *hooks)
{
    if (portal->is_telling) {
        return told_inside(engine, portal, me, awaitable, hooks);
    }
    portal->is_telling = 1;
    PyObject *value = tell_of_bridge(engine, portal, me, awaitable, hooks, &portal->told);
    portal->is_telling = 0;
    Py_DECREF(portal);
    Py_DECREF(me);
    return value;
}

/* A bridge that has not begun, because of the exception that is raised. Steals `portal` and `me`. */
static COLD PyObject *
refuse(Engine *engine, Portal *portal, PyObject *me, PyObject *awaitable)
{
    Py_DECREF(portal);
    Py_DECREF(me);
    discard(engine, awaitable);
    add_frame_of_await(engine);
    return NULL;
}

/* A bridge that the function in Python is to make. */
static COLD PyObject *
bridge_in_python(Engine *engine, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (PyEval_GetFrame() == NULL && names == NULL && count == 1) {
        /* A worker calls it. The function in Python hands its caller's frame to the listener. */
        PyObject *called[] = {engine->await_, args[0]};
        return PyObject_Vectorcall(engine->with_frame, called, 2, NULL);
    }
    return PyObject_Vectorcall(engine->await_, args, (size_t)count, names);
}

/* Whether the only argument is `aw`. */
static inline int
is_call(Py_ssize_t count, PyObject *names)
{
    if (names == NULL) {
        return count == 1;
    }
    return count == 0 && PyTuple_GET_SIZE(names) == 1 &&
           PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "aw") == 0;
}

/* `await_` in bridge.py. */
PyObject *
await_(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Engine *engine = engine_of_module(module);
    const Hooks *hooks = ready_hooks(engine);
    PyObject *listener = engine->listener; /* only to compare */
    if (!is_call(count, names) || (listener != NULL && hooks == NULL)) {
        return bridge_in_python(engine, args, count, names);
    }
    PyObject *me = engine->current();
    if (me == NULL) {
        return NULL;
    }
    if (Py_TYPE(me) != engine->worker_type) {
        Py_DECREF(me);
        return bridge_in_python(engine, args, count, names);
    }
    Portal *portal = (Portal *)Py_NewRef(SLOT(me, engine->worker_portal));
    int here = is_here(engine, portal);
    int is_replaced = engine->listener != listener || engine->hooks != hooks;
    if (here == 0 || (here > 0 && listener != NULL && is_replaced)) {
        Py_DECREF(portal);
        Py_DECREF(me);
        return bridge_in_python(engine, args, count, names);
    }
    if (here < 0 || !has_stack(engine, portal)) {
        return refuse(engine, portal, me, args[0]);
    }
    if (hooks == NULL || portal->hushed) {
        return untold_bridge(engine, portal, me, args[0]);
    }
    return told_bridge(engine, portal, me, args[0], hooks);
}

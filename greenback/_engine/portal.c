/* Portals: their type, the checks of where code runs, their first step and their end. */

#include "engine.h"

/* The type */

#define REFERENCE(name) {#name, T_OBJECT, offsetof(Portal, name), 0, NULL}
#define FLAG(name) {#name, T_BOOL, offsetof(Portal, name), 0, NULL}
#define TIME(name) {#name, T_LONGLONG, offsetof(Portal, name), 0, NULL}

static PyMemberDef members[] = {
    REFERENCE(args),
    REFERENCE(awaits),
    REFERENCE(coroutine),
    REFERENCE(current_task),
    REFERENCE(error),
    REFERENCE(function),
    REFERENCE(greenlet),
    REFERENCE(handled),
    REFERENCE(home),
    REFERENCE(inner),
    REFERENCE(kind),
    REFERENCE(kwds),
    REFERENCE(library),
    REFERENCE(mark),
    REFERENCE(note),
    REFERENCE(outer),
    REFERENCE(result),
    REFERENCE(resume),
    REFERENCE(run),
    REFERENCE(scopes),
    REFERENCE(shown),
    REFERENCE(task),
    REFERENCE(worker),
    TIME(entered),
    TIME(left),
    FLAG(abandoned),
    FLAG(closed),
    FLAG(hushed),
    FLAG(registered),
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Portal, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static int
portal_init(Portal *self, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"kind", "library", NULL};
    PyObject *kind, *library;
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "OO:Portal", names, &kind, &library)) {
        return -1;
    }
    Engine *engine = (Engine *)PyType_GetModuleState(Py_TYPE(self));
    PyObject *current_task = PyObject_GetAttrString(library, "current_task");
    if (current_task == NULL) {
        return -1;
    }
    put_new(&self->current_task, current_task);
    PyObject *mark = PyObject_GetAttrString(library, "mark");
    if (mark == NULL) {
        return -1;
    }
    put_new(&self->mark, mark);
    PyObject *scopes = PyTuple_New(0);
    if (scopes == NULL) {
        return -1;
    }
    put_new(&self->scopes, scopes);
    PyObject *holds_back = PyObject_GetAttr(library, engine->str_holds_back_ctrl_c);
    if (holds_back == NULL) {
        return -1;
    }
    self->holds_back = holds_back == Py_True;
    Py_DECREF(holds_back);
    put(&self->kind, kind);
    put(&self->library, library);
    return 0;
}

static int
portal_traverse(Portal *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (PyObject **each = &self->kind; each <= &self->worker; each++) {
        Py_VISIT(*each);
    }
    return 0;
}

static int
portal_clear(Portal *self)
{
    for (PyObject **each = &self->kind; each <= &self->worker; each++) {
        Py_CLEAR(*each);
    }
    return 0;
}

static void
portal_dealloc(Portal *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    portal_clear(self);
    PyMem_Free(self->more);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *
portal_repr(Portal *self)
{
    return PyUnicode_FromFormat("<Portal %S of %R>", self->kind == NULL ? Py_None : self->kind,
                                self->task == NULL ? Py_None : self->task);
}

/* The bridges under way in C, outermost first: pairs of what each steps, and its caller's frame if
   that has no frame of its own. */
static PyObject *
portal_bridges(Portal *self, void *Py_UNUSED(closure))
{
    PyObject *bridges = PyList_New(0);
    for (int i = 0; bridges != NULL && i < self->depth; i++) {
        /* To allocate memory can run the garbage collector, and with it any code: even bridges of
           this portal that begin or end. */
        UnderWay *each = bridge_under_way(self, i);
        PyObject *steps = Py_NewRef(each->steps);
        PyObject *caller = Py_XNewRef((PyObject *)each->caller);
        PyObject *pair = PyTuple_Pack(2, steps, caller == NULL ? Py_None : caller);
        if (pair == NULL || PyList_Append(bridges, pair) < 0) {
            Py_CLEAR(bridges);
        }
        Py_XDECREF(pair);
        Py_DECREF(steps);
        Py_XDECREF(caller);
    }
    return bridges;
}

static PyGetSetDef attributes[] = {
    {"bridges", (getter)portal_bridges, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_init, portal_init},         {Py_tp_new, PyType_GenericNew},
    {Py_tp_members, members},          {Py_tp_getset, attributes},
    {Py_tp_traverse, portal_traverse},
    {Py_tp_clear, portal_clear},       {Py_tp_dealloc, portal_dealloc},
    {Py_tp_repr, portal_repr},         {0, NULL},
};

PyType_Spec portal_spec = {
    .name = "greenback._engine.state.Portal",
    .basicsize = sizeof(Portal),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

/* Where code runs */

/* Whether `sniffio.thread_local.name` of this thread, which owns `home`, is `mark`. */
int
has_mark(Engine *engine, PyObject *home, PyObject *mark)
{
    PyObject *names = SLOT(home, engine->home_names);
    PyObject *name = NULL;
    if (PyDict_GET_SIZE(names) != 0) { /* while no loop of Trio's runs, it is empty */
        name = PyDict_GetItemWithError(names, engine->str_name);
        if (name == NULL && PyErr_Occurred()) {
            return -1;
        }
    }
    if (name == NULL) {
        name = Py_None;
    }
    if (mark == NULL) {
        mark = Py_None;
    }
    if (name == mark) {
        return 1;
    }
    if (name == Py_None || mark == Py_None) {
        return 0;
    }
    Py_INCREF(name);
    int is_equal = PyObject_RichCompareBool(name, mark, Py_EQ);
    Py_DECREF(name);
    return is_equal;
}

/* What the library of the portal takes for the running task, as a new reference. */
static PyObject *
running_task(Engine *engine, Portal *portal)
{
    if (portal->current_task == engine->current_task) {
        return current_task(engine);
    }
    return PyObject_Vectorcall(portal->current_task, NULL, 0, NULL);
}

/* Whether the portal's task runs here: the first half of `is_here` in state.py. */
int
is_here(Engine *engine, Portal *portal)
{
    if (IS_NONE(portal->home)) {
        return 0;
    }
    PyObject *task = running_task(engine, portal);
    if (task == NULL) {
        /* A RecursionError is one, too. */
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError) ||
            PyErr_ExceptionMatches(PyExc_RecursionError)) {
            return -1;
        }
        PyErr_Clear(); /* no loop is set as running in this thread any more */
        return 0;
    }
    Py_DECREF(task); /* the portal has it, too, or it is not compared again */
    if (task != portal->task || IS_NONE(portal->home)) {
        return 0;
    }
    return has_mark(engine, portal->home, portal->mark);
}

/* Make room for one more bridge under way. */
int
make_room(Portal *portal)
{
    int room = portal->room == 0 ? 4 : 2 * portal->room;
    UnderWay *more = PyMem_Realloc(portal->more, (size_t)room * sizeof(UnderWay));
    if (more == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    portal->more = more;
    portal->room = room;
    return 0;
}

/* The end of this thread's stack. It is asked for once per thread: for the main thread, the C library
   reads a file that has a line for each part of the memory. */
static uintptr_t
known_end_of_stack(Engine *engine)
{
    PyObject *thread = PyThreadState_GetDict();
    PyObject *known = thread == NULL ? NULL : PyDict_GetItemWithError(thread, engine->stack_key);
    if (known != NULL) {
        return (uintptr_t)PyLong_AsVoidPtr(known);
    }
    uintptr_t end = end_of_stack();
    known = thread == NULL ? NULL : PyLong_FromVoidPtr((void *)end);
    if (known != NULL) {
        PyDict_SetItem(thread, engine->stack_key, known);
        Py_DECREF(known);
    }
    PyErr_Clear(); /* without memory, it is asked for again */
    return end;
}

/* Whether the C stack has room for one more bridge. */
int
has_stack(Engine *engine, Portal *portal)
{
    char here;
    if (portal->stack_end == 0) {
        portal->stack_end = known_end_of_stack(engine);
    }
    if ((uintptr_t)&here > portal->stack_end) {
        return 1;
    }
    PyErr_SetString(PyExc_RecursionError, "maximum recursion depth exceeded: the C stack is full");
    return 0;
}

/* The Home of this thread, as a borrowed reference. The thread's own dictionary keeps it, since a
   look-up there takes a third of the time of one in a threading.local(). */
PyObject *
home_here(Engine *engine)
{
    PyObject *thread = PyThreadState_GetDict();
    if (thread == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this thread has no state");
        return NULL;
    }
    PyObject *home = PyDict_GetItemWithError(thread, engine->home_key);
    if (home != NULL || PyErr_Occurred()) {
        return home;
    }
    home = PyObject_CallNoArgs(engine->this_home);
    if (home == NULL) {
        return NULL;
    }
    int failed = PyDict_SetItem(thread, engine->home_key, home);
    Py_DECREF(home);
    return failed ? NULL : home;
}

/* Tell the listener, if there is one, of a portal: by its hook in C at `hook` in Hooks, or by its
   method `name`. Code that ran since the caller looked may have replaced the listener. */
static int
tell(Engine *engine, Portal *portal, size_t hook, PyObject *name)
{
    if (engine->listener == NULL) {
        return 0;
    }
    const Hooks *hooks = ready_hooks(engine);
    PyObject *listener = Py_NewRef(engine->listener);
    int result;
    if (hooks != NULL) {
        result = (*(PortalHook *)((const char *)hooks + hook))(listener, portal);
    }
    else {
        PyObject *done = PyObject_CallMethodOneArg(listener, name, (PyObject *)portal);
        result = done == NULL ? -1 : 0;
        Py_XDECREF(done);
    }
    Py_DECREF(listener);
    return result;
}

#define TELL(engine, portal, name)                                                                 \
    tell(engine, portal, offsetof(Hooks, name), (engine)->str_##name)

/* Steps */

/* Switch into the portal. Other threads see in `Home.stepping` whose step runs. */
static PyObject *
switch_noted(Engine *engine, Portal *portal, PyObject *target, PyObject *answer)
{
    PyObject *home = portal->home;
    if (IS_NONE(home)) {
        return switch_with(engine, target, Py_NewRef(answer));
    }
    Py_INCREF(home);
    PyObject **stepping = &SLOT(home, engine->home_stepping);
    PyObject *outer = *stepping;
    *stepping = Py_NewRef((PyObject *)portal);
    PyObject *trap = switch_with(engine, target, Py_NewRef(answer));
    put_new(stepping, outer);
    Py_DECREF(home);
    return trap;
}

/* Let the thread go on in `context`, which can be NULL, as greenlet does when it switches. */
void
set_context(PyThreadState *thread, PyObject *context)
{
    if (thread->context != context) {
        PyObject *old = thread->context;
        thread->context = Py_XNewRef(context);
        thread->context_ver++;
        Py_XDECREF(old);
    }
}

/* A step that a listener is told of: `observed_switch` in bridge.py. */
static NOT_INLINE PyObject *
told_step(Engine *engine, Portal *portal, PyObject *target, PyObject *answer)
{
    const Hooks *hooks = engine->hooks;
    if (hooks == NULL) {
        PyObject *args[] = {(PyObject *)portal, target, answer};
        return PyObject_Vectorcall(engine->observed_switch, args, 3, NULL);
    }
    PyObject *listener = Py_NewRef(engine->listener);
    portal->entered = now_ns(engine->clock);
    PyObject *trap = switch_noted(engine, portal, target, answer);
    if (trap != NULL) {
        hooks->finish_step(listener, portal);
    }
    Py_DECREF(listener);
    return trap;
}

/* One step: `observed_switch` in bridge.py, and what `drive` does without a listener. `answer` is
   borrowed. */
PyObject *
step(Engine *engine, Portal *portal, PyObject *target, PyObject *answer)
{
    if (engine->listener == NULL) {
        return switch_noted(engine, portal, target, answer);
    }
    return told_step(engine, portal, target, answer);
}

/* Whether the portal's work waits for an answer from the event loop. */
int
is_parked(Portal *portal)
{
    /* A greenlet is true while it has begun and has not ended; asking cannot fail. */
    return !IS_NONE(portal->resume) && PyObject_IsTrue(portal->resume) == 1;
}

/* The first step of a portal that has its worker, which has begun: `first_step` in bridge.py for a
   portal around which no other one takes its first step. Returns the trap. */
static PyObject *
enter_worker(Engine *engine, Portal *portal)
{
    PyObject *home = Py_NewRef(portal->home);
    PyObject *worker = Py_NewRef(portal->worker);
    PyObject *args[] = {(PyObject *)portal, home};
    PyObject *trap = NULL;
    put(&SLOT(home, engine->home_first_step), (PyObject *)portal);
    PyObject *context = PyThreadState_Get()->context;
    if (SLOT(worker, engine->worker_is_bare) == Py_True) {
        put(&SLOT(worker, engine->worker_context), context == NULL ? Py_None : context);
        trap = step(engine, portal, worker, (PyObject *)engine->portal_type);
    }
    else if (engine->set_context(worker, context == NULL ? Py_None : context, NULL) == 0) {
        /* One that has not begun finds its portal itself. */
        int has_begun = PyObject_IsTrue(worker);
        trap = step(engine, portal, worker, has_begun ? (PyObject *)portal : Py_None);
    }
    if (trap != NULL && !IS_NONE(portal->resume)) {
        PyObject *done = PyObject_Vectorcall(engine->register_once, args, 2, NULL);
        if (done == NULL) {
            drop(&trap);
        }
        Py_XDECREF(done);
    }
    if (trap == NULL) {
        PyObject *error = take_raised();
        if (is_parked(portal)) { /* a second time if the first was interrupted */
            PyObject *done = PyObject_Vectorcall(engine->register_once, args, 2, NULL);
            if (done == NULL) {
                Py_DECREF(error);
                error = take_raised();
            }
            Py_XDECREF(done);
        }
        else {
            portal->abandoned = 1;
        }
        raise_again(error);
    }
    put(&SLOT(home, engine->home_first_step), Py_None);
    Py_DECREF(worker);
    Py_DECREF(home);
    return trap;
}

/* Whether the worker on top of the pool can be taken by code in C. Returns it, borrowed, or NULL. */
static PyObject *
worker_on_top(Engine *engine, PyObject *home)
{
    PyObject *pool = SLOT(home, engine->home_pool);
    Py_ssize_t count = PyList_GET_SIZE(pool);
    if (count == 0) {
        return NULL;
    }
    PyObject *worker = PyList_GET_ITEM(pool, count - 1);
    return PyObject_IsTrue(worker) == 1 ? worker : NULL;
}

/* Whether `worker` is still there, or still none if it is NULL, after code that can open portals. */
static inline int
is_on_top(Engine *engine, PyObject *home, PyObject *worker)
{
    PyObject *pool = SLOT(home, engine->home_pool);
    Py_ssize_t count = PyList_GET_SIZE(pool);
    return (count == 0 ? NULL : PyList_GET_ITEM(pool, count - 1)) == worker;
}

/* The worker that `worker_on_top` returned, out of the pool; or a new one if that was NULL. The main
   greenlet `me` is to be its parent. Returns a new reference. */
static PyObject *
take_worker(Engine *engine, PyObject *home, PyObject *me)
{
    PyObject *pool = SLOT(home, engine->home_pool);
    Py_ssize_t count = PyList_GET_SIZE(pool);
    if (count == 0) {
        PyObject *args[] = {home, me};
        return PyObject_Vectorcall(engine->take_worker, args, 2, NULL);
    }
    PyObject *worker = PyList_GET_ITEM(pool, count - 1);
    Py_SET_SIZE(pool, count - 1); /* as list.pop(), which has no function in C */
    return worker;
}

/* `first_step` in bridge.py. */
PyObject *
first_step(Engine *engine, Portal *portal)
{
    PyObject *home = portal->home;
    if (IS_NONE(portal->worker) && !IS_NONE(home) && SLOT(home, engine->home_first_step) == Py_None) {
        /* The portal of a task that was opened before the task's first step. */
        const Hooks *hooks = ready_hooks(engine);
        PyObject *me = engine->current();
        if (me == NULL) {
            return NULL;
        }
        if ((engine->listener == NULL || hooks != NULL) && me == SLOT(home, engine->home_main) &&
            (worker_on_top(engine, home) != NULL ||
             (engine->serves == Py_True && PyList_GET_SIZE(SLOT(home, engine->home_pool)) == 0))) {
            put_new(&portal->greenlet, me);
            PyObject *worker = NULL;
            if (TELL(engine, portal, enter_portal) == 0) {
                worker = take_worker(engine, home, me);
            }
            if (worker == NULL) {
                portal->abandoned = 1;
                return NULL;
            }
            put(&SLOT(worker, engine->worker_portal), (PyObject *)portal);
            put_new(&portal->worker, worker);
            put(&portal->outer, Py_None);
            return enter_worker(engine, portal);
        }
        Py_DECREF(me);
    }
    return PyObject_CallOneArg(engine->first_step, (PyObject *)portal);
}

/* The end */

/* Put an idle worker, whose parent is the greenlet `outside`, back into its pool, if there is room. */
static int
give_back(Engine *engine, PyObject *home, PyObject *worker, PyObject *outside)
{
    long level = PyLong_AsLong(SLOT(worker, engine->worker_level));
    PyObject *pool = PyTuple_GET_ITEM(SLOT(home, engine->home_pools), level);
    if (PyList_GET_SIZE(pool) >= engine->pool_size) {
        return 0;
    }
    PyObject *main = SLOT(home, engine->home_main);
    if ((SLOT(worker, engine->worker_is_bare) != Py_True &&
         engine->set_context(worker, Py_None, NULL) < 0) ||
        (outside != main && engine->set_parent(worker, main) < 0)) {
        return -1;
    }
    return PyList_Append(pool, worker);
}

static PyObject *
finish_once(Engine *engine, Portal *portal)
{
    const Hooks *hooks = ready_hooks(engine);
    PyObject *home = portal->home;
    PyObject *worker = portal->worker;
    if ((engine->listener != NULL && hooks == NULL) || IS_NONE(home) || IS_NONE(worker) ||
        PyDict_GET_SIZE(SLOT(home, engine->home_resting)) > 0 ||
        SLOT(home, engine->home_first_step) == (PyObject *)portal) {
        return PyObject_CallOneArg(engine->finish, (PyObject *)portal);
    }
    Py_INCREF(home);
    Py_INCREF(worker);
    PyObject *result = take(&portal->result);
    PyObject *error = take(&portal->error);
    if (error != NULL) {
        PyObject *raised = PyObject_CallOneArg(engine->Raised, error);
        Py_DECREF(error);
        Py_XSETREF(result, raised);
    }
    else if (result == NULL) {
        result = Py_NewRef(Py_None);
    }
    if (portal->registered) {
        PyObject *portals = SLOT(home, engine->home_portals);
        if (PyDict_DelItem(portals, portal->task) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_KeyError)) {
                Py_CLEAR(result); /* the __hash__ of the task has raised it */
            }
            else {
                PyErr_Clear();
            }
        }
    }
    if (engine->listener != NULL) {
        PyObject *failure = take_raised();
        if (TELL(engine, portal, close_portal) < 0 && failure == NULL) {
            failure = take_raised();
            Py_CLEAR(result);
        }
        if (failure != NULL) {
            raise_again(failure);
        }
    }
    portal->registered = 0;
    int is_over = IS_NONE(portal->resume) && !portal->abandoned;
    PyObject *failure = take_raised();
    PyObject *outside = take(&portal->greenlet);
    Py_CLEAR(portal->home);
    Py_CLEAR(portal->worker);
    Py_CLEAR(portal->task);
    Py_CLEAR(portal->function);
    Py_CLEAR(portal->args);
    Py_CLEAR(portal->kwds);
    Py_CLEAR(portal->outer);
    Py_CLEAR(portal->resume);
    Py_CLEAR(portal->awaits);
    put(&SLOT(worker, engine->worker_portal), SLOT(worker, engine->worker_spare));
    if (is_over && SLOT(worker, engine->worker_poolable) == Py_True &&
        give_back(engine, home, worker, outside) < 0) {
        Py_CLEAR(result);
        Py_CLEAR(failure);
        failure = take_raised();
    }
    Py_XDECREF(outside);
    Py_DECREF(worker);
    Py_DECREF(home);
    if (failure != NULL) {
        Py_CLEAR(result);
        raise_again(failure);
    }
    return result;
}

/* A new portal of `kind`. */
static Portal *
new_portal(Engine *engine, PyObject *kind, PyObject *library)
{
    PyObject *args[] = {kind, library};
    return (Portal *)PyObject_Vectorcall((PyObject *)engine->portal_type, args, 2, NULL);
}

/* `finish` in bridge.py. Called with no exception raised. */
PyObject *
finish(Engine *engine, Portal *portal)
{
    PyObject *result = finish_once(engine, portal);
    if (result == NULL && !IS_NONE(portal->home)) {
        /* A signal handler has interrupted the function in Python. */
        PyObject *error = take_raised();
        portal->abandoned = 1;
        result = finish_once(engine, portal);
        if (result == NULL) {
            PyErr_Clear();
        }
        Py_CLEAR(result);
        raise_again(error);
    }
    return result;
}

/* Whether the loop in which a portal was last opened is the one that runs. */
static int
is_same_loop(Engine *engine, PyObject *home, PyObject *library)
{
    PyObject *loop = PyObject_CallMethodNoArgs(library, engine->str_loop);
    PyObject *last = loop == NULL ? NULL : PyObject_CallNoArgs(SLOT(home, engine->home_loop));
    Py_XDECREF(loop);
    Py_XDECREF(last);
    return loop != NULL && loop == last;
}

/* A portal for `begin`, in the common case: the library that ran last still runs, in a task without
   a portal, and handles no exception. It is the spare one of the worker on top of the pool, or a new
   one if there is no worker. `*task` is set to the task then. NULL otherwise. */
static Portal *
portal_for_begin(Engine *engine, PyObject *home, PyObject *kind, PyObject **task)
{
    PyObject *library = SLOT(home, engine->home_library);
    PyObject *portals = SLOT(home, engine->home_portals);
    PyObject *worker = worker_on_top(engine, home);
    Portal *portal;
    if (worker != NULL) {
        portal = (Portal *)Py_NewRef(SLOT(worker, engine->worker_spare));
        if (portal->library != library || !IS_NONE(portal->home)) {
            goto other;
        }
    }
    else if (engine->serves != Py_True || PyList_GET_SIZE(SLOT(home, engine->home_pool)) != 0) {
        return NULL;
    }
    else {
        portal = new_portal(engine, kind, library);
        if (portal == NULL) {
            return NULL;
        }
    }
    PyObject *handled = handled_exception();
    Py_XDECREF(handled);
    if (portal->holds_back || handled != NULL ||
        has_mark(engine, home, portal->mark) != 1) {
        goto other;
    }
    *task = running_task(engine, portal);
    if (*task == NULL) {
        if (PyErr_ExceptionMatches(PyExc_RuntimeError) &&
            !PyErr_ExceptionMatches(PyExc_RecursionError)) {
            PyErr_Clear(); /* no loop is running now */
        }
        goto other;
    }
    if (*task != Py_None &&
        (PyDict_GET_SIZE(portals) == 0 ||
         (is_same_loop(engine, home, library) &&
          PyDict_GetItemWithError(portals, *task) == NULL && !PyErr_Occurred())) &&
        is_on_top(engine, home, worker)) {
        return portal;
    }
    Py_CLEAR(*task);
other:
    Py_DECREF(portal);
    return NULL;
}

/* `begin` in bridge.py: the arguments are a kind, what runs the work or None, the function, its
   arguments and its keyword arguments. */
PyObject *
begin(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Engine *engine = engine_of_module(module);
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "begin() takes five arguments");
        return NULL;
    }
    PyObject *home = home_here(engine);
    if (home == NULL) {
        return NULL;
    }
    const Hooks *hooks = ready_hooks(engine);
    Portal *portal = NULL;
    PyObject *task = NULL;
    PyObject *me = engine->current();
    if (me == NULL) {
        return NULL;
    }
    if ((engine->listener == NULL || hooks != NULL) && me == SLOT(home, engine->home_main) &&
        SLOT(home, engine->home_first_step) == Py_None &&
        PyList_GET_SIZE(SLOT(home, engine->home_others)) == 0) {
        portal = portal_for_begin(engine, home, args[0], &task);
    }
    if (portal == NULL) {
        Py_DECREF(me);
        return PyErr_Occurred() ? NULL : PyObject_Vectorcall(engine->begin, args, count, NULL);
    }
    PyObject *worker = take_worker(engine, home, me);
    if (worker == NULL) {
        Py_DECREF(task);
        Py_DECREF(me);
        Py_DECREF(portal);
        return NULL;
    }
    if (SLOT(worker, engine->worker_spare) != (PyObject *)portal) { /* a new one */
        put(&SLOT(worker, engine->worker_portal), (PyObject *)portal);
        put(&SLOT(worker, engine->worker_spare), (PyObject *)portal);
    }
    Py_INCREF(home);
    put(&portal->home, home);
    put(&portal->kind, args[0]);
    put(&portal->run, args[1]);
    put(&portal->function, args[2]);
    put(&portal->args, args[3]);
    int needs_kwds = PyDict_GET_SIZE(args[4]) != 0 || engine->serves != Py_True;
    put(&portal->kwds, needs_kwds ? args[4] : NULL);
    put_new(&portal->task, task);
    put_new(&portal->greenlet, me);
    put_new(&portal->worker, worker);
    PyObject *result = NULL;
    PyObject *trap = NULL;
    if (TELL(engine, portal, open_portal) < 0) {
        portal->abandoned = 1;
    }
    else {
        trap = enter_worker(engine, portal);
    }
    if (trap == NULL) {
        PyObject *error = take_raised();
        if (!IS_NONE(portal->home) && !is_parked(portal)) {
            PyObject *nothing = finish(engine, portal);
            if (nothing == NULL) {
                Py_DECREF(error);
                error = take_raised();
            }
            Py_XDECREF(nothing);
        }
        raise_again(error);
    }
    else if (IS_NONE(portal->resume)) {
        result = finish(engine, portal);
    }
    else if (engine->drives == Py_True) {
        result = drive_on(engine, portal, trap);
    }
    else {
        PyObject *begun[] = {(PyObject *)portal, trap};
        result = PyObject_Vectorcall(engine->Begun, begun, 2, NULL);
    }
    Py_XDECREF(trap);
    Py_DECREF(portal);
    Py_DECREF(home);
    return result;
}

/* The common case of `ensure_portal` in asyncio: open a portal for the running task, which has none
   and whose coroutine is one of Python's.

   Returns its library; or None if it is another case, and nothing has been done. */
PyObject *
open_for_running_task(PyObject *module, PyObject *kind)
{
    Engine *engine = engine_of_module(module);
    PyObject *home = home_here(engine);
    if (home == NULL) {
        return NULL;
    }
    PyObject *library = SLOT(home, engine->home_library);
    PyObject *portals = SLOT(home, engine->home_portals);
    const Hooks *hooks = ready_hooks(engine);
    if ((engine->listener != NULL && hooks == NULL) || engine->task_coroutine == 0 ||
        IS_NONE(engine->task_drive) || SLOT(home, engine->home_first_step) != Py_None ||
        PyList_GET_SIZE(SLOT(home, engine->home_others)) != 0 ||
        PyDict_GET_SIZE(SLOT(home, engine->home_resting)) != 0) {
        Py_RETURN_NONE;
    }
    PyObject *result = NULL;
    PyObject *task = NULL, *shim = NULL;
    Portal *portal = new_portal(engine, kind, library);
    if (portal == NULL) {
        return NULL;
    }
    if (portal->current_task != engine->current_task || has_mark(engine, home, portal->mark) != 1 ||
        !is_same_loop(engine, home, library)) {
        goto otherwise;
    }
    task = current_task(engine);
    if (task == NULL) {
        goto done;
    }
    if (!PyObject_TypeCheck(task, (PyTypeObject *)engine->c_task) ||
        PyDict_GetItemWithError(portals, task) != NULL || PyErr_Occurred()) {
        goto otherwise;
    }
    PyObject **place = &SLOT(task, engine->task_coroutine);
    PyObject *coroutine = *place;
    if (coroutine == NULL || !PyCoro_CheckExact(coroutine)) {
        goto otherwise;
    }
    put(&portal->home, home);
    put(&portal->task, task);
    put(&portal->coroutine, coroutine);
    put(&portal->run, engine->run_coroutine);
    shim = drive_from_now_on(engine, portal, coroutine);
    if (shim == NULL || PyDict_SetItem(portals, task, (PyObject *)portal) < 0) {
        goto done;
    }
    if (*place != coroutine) { /* the task's own __hash__ has replaced it */
        PyDict_DelItem(portals, task);
        goto otherwise;
    }
    portal->registered = 1;
    put(place, shim); /* `portal` keeps the coroutine */
    if (TELL(engine, portal, open_portal) == 0) {
        result = Py_NewRef(library);
    }
    goto done;
otherwise:
    if (!PyErr_Occurred()) {
        result = Py_NewRef(Py_None);
    }
done:
    Py_XDECREF(shim);
    Py_XDECREF(task);
    Py_DECREF(portal);
    return result;
}

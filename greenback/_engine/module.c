/* The module `_compiled`: its state, what the engine in Python gives it, and its functions. */

#include "engine.h"

#include <stddef.h>

typedef struct {
    const char *name;
    size_t offset;
} Field;

#define FIELD(name) {#name, offsetof(Engine, name)}
#define TEXT(name) {#name, offsetof(Engine, str_##name)}

/* What `connect` takes, by keyword. */
static const Field given[] = {
    FIELD(ERROR),
    FIELD(MOVED),
    FIELD(NO_NEED),
    FIELD(Begun),
    FIELD(Raised),
    FIELD(await_),
    FIELD(await_code),
    FIELD(awaited),
    FIELD(awaited_steps),
    FIELD(begin),
    FIELD(discard),
    FIELD(finish),
    FIELD(first_step),
    FIELD(interrupt),
    FIELD(is_unfinished),
    FIELD(observed_switch),
    FIELD(register_once),
    FIELD(run_coroutine),
    FIELD(take_worker),
    FIELD(takes),
    FIELD(this_home),
    FIELD(drives),
    FIELD(serves),
    FIELD(with_frame),
    FIELD(without_own_frames),
};

static const Field texts[] = {
    TEXT(c_hooks),
    TEXT(close),
    TEXT(close_portal),
    TEXT(enter_portal),
    TEXT(error),
    TEXT(gi_code),
    TEXT(holds_back_ctrl_c),
    TEXT(loop),
    TEXT(must_move),
    TEXT(name),
    TEXT(open_portal),
    TEXT(throw),
    TEXT(trap),
};

/* The slots of classes in Python whose attributes the engine reads and writes in place. */
static const Field worker_slots[] = {
    {"context", offsetof(Engine, worker_context)},
    {"is_bare", offsetof(Engine, worker_is_bare)},
    {"level", offsetof(Engine, worker_level)},
    {"poolable", offsetof(Engine, worker_poolable)},
    {"portal", offsetof(Engine, worker_portal)},
    {"replaces", offsetof(Engine, worker_replaces)},
    {"spare", offsetof(Engine, worker_spare)},
};
static const Field home_slots[] = {
    {"first_step", offsetof(Engine, home_first_step)},
    {"library", offsetof(Engine, home_library)},
    {"loop", offsetof(Engine, home_loop)},
    {"main", offsetof(Engine, home_main)},
    {"names", offsetof(Engine, home_names)},
    {"others", offsetof(Engine, home_others)},
    {"pool", offsetof(Engine, home_pool)},
    {"pools", offsetof(Engine, home_pools)},
    {"portals", offsetof(Engine, home_portals)},
    {"resting", offsetof(Engine, home_resting)},
    {"stepping", offsetof(Engine, home_stepping)},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define PLACE(engine, field) ((PyObject **)((char *)(engine) + (field)->offset))

/* The references outside of the tables above, but for strings. */
#define OTHER_REFERENCES(engine)                                                                  \
    {                                                                                             \
        (PyObject **)&(engine)->portal_type, (PyObject **)&(engine)->drive_type,                  \
            (PyObject **)&(engine)->worker_type, &(engine)->greenlet_exit, &(engine)->listener,   \
            &(engine)->capsule, &(engine)->await_globals,                  \
            &(engine)->awaited_code, &(engine)->task_drive, &(engine)->c_task,                              \
            &(engine)->current_task, &(engine)->get_running_loop,       \
            &(engine)->current_tasks, &(engine)->none, &(engine)->next, &(engine)->home_key, &(engine)->stack_key,                                                \
    }

static int
engine_traverse(PyObject *module, visitproc visit, void *arg)
{
    Engine *engine = engine_of_module(module);
    for (size_t i = 0; i < COUNT(given); i++) {
        Py_VISIT(*PLACE(engine, &given[i]));
    }
    PyObject **others[] = OTHER_REFERENCES(engine);
    for (size_t i = 0; i < COUNT(others); i++) {
        Py_VISIT(*others[i]);
    }
    return 0;
}

/* There is no function that clears the state: a parked worker may run code of the engine once more,
   as late as when the interpreter ends. What is in a cycle with the module has its own `tp_clear`. */
static void
engine_free(void *module)
{
    Engine *engine = engine_of_module((PyObject *)module);
    for (size_t i = 0; i < COUNT(given); i++) {
        Py_CLEAR(*PLACE(engine, &given[i]));
    }
    for (size_t i = 0; i < COUNT(texts); i++) {
        Py_CLEAR(*PLACE(engine, &texts[i]));
    }
    PyObject **others[] = OTHER_REFERENCES(engine);
    for (size_t i = 0; i < COUNT(others); i++) {
        Py_CLEAR(*others[i]);
    }
    Py_CLEAR(engine->clock_capsule);
    PyMem_Free(engine->await_doc);
    engine->await_doc = NULL;
}

/* The offset of the slot `name` in instances of `type`, a class in Python. */
static int
find_slot(PyObject *type, const char *name, Py_ssize_t *offset)
{
    PyObject *descriptor = PyObject_GetAttrString(type, name);
    if (descriptor == NULL) {
        return -1;
    }
    int is_slot = Py_TYPE(descriptor) == &PyMemberDescr_Type;
    if (is_slot) {
        *offset = ((PyMemberDescrObject *)descriptor)->d_member->offset;
    }
    else {
        PyErr_Format(PyExc_TypeError, "%R has no slot %s", type, name);
    }
    Py_DECREF(descriptor);
    return is_slot ? 0 : -1;
}

static int
find_slots(Engine *engine, PyObject *type, const Field *fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (find_slot(type, fields[i].name, (Py_ssize_t *)((char *)engine + fields[i].offset))) {
            return -1;
        }
    }
    return 0;
}

/* The functions behind an attribute of a type that is written in C. */
static PyGetSetDef *
find_attribute(PyTypeObject *type, const char *name)
{
    for (PyGetSetDef *each = type->tp_getset; each != NULL && each->name != NULL; each++) {
        if (strcmp(each->name, name) == 0) {
            return each;
        }
    }
    PyErr_Format(PyExc_ImportError, "%s has no attribute %s that is written in C", type->tp_name, name);
    return NULL;
}

/* The numbers of greenlet's functions in the table that it exports. They are part of its binary
   interface, so they never change. */
enum { GREENLET_TYPE = 0, GREENLET_EXIT = 2, GREENLET_CURRENT = 4, GREENLET_SWITCH = 6, GREENLET_SET_PARENT = 7 };

static int
find_greenlet(Engine *engine)
{
    void **table = PyCapsule_Import("greenlet._C_API", 0);
    if (table == NULL) {
        return -1;
    }
    PyTypeObject *type = (PyTypeObject *)table[GREENLET_TYPE];
    engine->greenlet_exit = Py_NewRef((PyObject *)table[GREENLET_EXIT]);
    /* From a pointer to an object to one to a function, as POSIX and Windows allow. */
    memcpy(&engine->current, &table[GREENLET_CURRENT], sizeof(void *));
    memcpy(&engine->do_switch, &table[GREENLET_SWITCH], sizeof(void *));
    memcpy(&engine->set_parent, &table[GREENLET_SET_PARENT], sizeof(void *));
    PyGetSetDef *context = find_attribute(type, "gr_context");
    PyGetSetDef *parent = find_attribute(type, "parent");
    PyGetSetDef *awaits = find_attribute(&PyCoro_Type, "cr_await");
    if (context == NULL || parent == NULL || awaits == NULL) {
        return -1;
    }
    engine->get_context = context->get;
    engine->set_context = context->set;
    engine->get_parent = parent->get;
    engine->coroutine_awaits = awaits->get;
    return 0;
}

/* `await_`, with the docstring of the function in Python. */
static int
add_await(PyObject *module, Engine *engine)
{
    static const char signature[] = "await_($module, /, aw)\n--\n\n";
    PyObject *doc = PyObject_GetAttrString(engine->await_, "__doc__");
    if (doc == NULL) {
        return -1;
    }
    const char *text = doc == Py_None ? "" : PyUnicode_AsUTF8(doc); /* -OO takes it away */
    if (text != NULL) {
        engine->await_doc = PyMem_Malloc(sizeof(signature) + strlen(text));
        if (engine->await_doc == NULL) {
            PyErr_NoMemory();
        }
        else {
            strcpy(engine->await_doc, signature);
            strcat(engine->await_doc, text);
        }
    }
    Py_DECREF(doc);
    if (engine->await_doc == NULL) {
        return -1;
    }
    engine->await_definition = (PyMethodDef){
        "await_", (PyCFunction)(void (*)(void))await_, METH_FASTCALL | METH_KEYWORDS, engine->await_doc};
    /* Where it is public, so that it can be pickled. */
    PyObject *name = PyUnicode_FromString("greenback");
    if (name == NULL) {
        return -1;
    }
    PyObject *function = PyCFunction_NewEx(&engine->await_definition, module, name);
    Py_DECREF(name);
    if (function == NULL) {
        return -1;
    }
    int failed = PyModule_AddObjectRef(module, "await_", function);
    Py_DECREF(function);
    return failed;
}

static PyObject *
connect(PyObject *module, PyObject *args, PyObject *kwds)
{
    Engine *engine = engine_of_module(module);
    PyObject *worker, *home;
    if (!PyArg_ParseTuple(args, "OOn:connect", &worker, &home, &engine->pool_size)) {
        return NULL;
    }
    for (size_t i = 0; i < COUNT(given); i++) {
        PyObject *value = kwds == NULL ? NULL : PyDict_GetItemString(kwds, given[i].name);
        if (value == NULL) {
            PyErr_Format(PyExc_TypeError, "connect() needs %s", given[i].name);
            return NULL;
        }
        put(PLACE(engine, &given[i]), value);
    }
    put((PyObject **)&engine->worker_type, worker);
    put_new(&engine->await_globals, PyObject_GetAttrString(engine->await_, "__globals__"));
    put_new(&engine->awaited_code, PyObject_GetAttrString(engine->awaited, "__code__"));
    if (!PyCode_Check(engine->await_code) || engine->await_globals == NULL ||
        engine->awaited_code == NULL ||
        find_slots(engine, worker, worker_slots, COUNT(worker_slots)) < 0 ||
        find_slots(engine, home, home_slots, COUNT(home_slots)) < 0 ||
        add_await(module, engine) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
set_hooks(PyObject *module, PyObject *listener)
{
    Engine *engine = engine_of_module(module);
    const Hooks *hooks = NULL;
    PyObject *capsule = PyObject_GetAttr(listener, engine->str_c_hooks);
    if (capsule == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return NULL;
        }
        PyErr_Clear();
    }
    else if (PyCapsule_IsValid(capsule, GREENBACK_HOOKS)) {
        hooks = PyCapsule_GetPointer(capsule, GREENBACK_HOOKS);
    }
    else {
        Py_CLEAR(capsule); /* hooks for another version: the methods are called */
    }
    /* All three at once: a destructor may call this function. */
    PyObject *old_listener = engine->listener;
    PyObject *old_capsule = engine->capsule;
    engine->listener = listener == Py_None ? NULL : Py_NewRef(listener);
    engine->capsule = capsule;
    engine->hooks = hooks;
    Py_XDECREF(old_listener);
    Py_XDECREF(old_capsule);
    Py_RETURN_NONE;
}

static PyObject *
perf_counter_ns(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(now_ns(engine_of_module(module)->clock));
}

static PyObject *
is_told_in_c(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(ready_hooks(engine_of_module(module)) != NULL);
}

static PyObject *
call_drive_from_now_on(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Engine *engine = engine_of_module(module);
    if (count != 2 || Py_TYPE(args[0]) != engine->portal_type || engine->task_drive == NULL) {
        PyErr_SetString(PyExc_TypeError, "drive_from_now_on() takes a portal and a coroutine");
        return NULL;
    }
    return drive_from_now_on(engine, (Portal *)args[0], args[1]);
}

static PyObject *
set_task_drive(PyObject *module, PyObject *type)
{
    Engine *engine = engine_of_module(module);
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, engine->drive_type)) {
        PyErr_SetString(PyExc_TypeError, "set_task_drive() takes a class that is based on drive");
        return NULL;
    }
    put(&engine->task_drive, type);
    Py_RETURN_NONE;
}

static PyObject *
set_task_layout(PyObject *module, PyObject *args)
{
    Engine *engine = engine_of_module(module);
    PyObject *type;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(args, "O!n:set_task_layout", &PyType_Type, &type, &offset)) {
        return NULL;
    }
    put(&engine->c_task, type);
    engine->task_coroutine = offset;
    Py_RETURN_NONE;
}

static PyObject *
find_references(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *object, *type, *value;
    if (!PyArg_ParseTuple(args, "OO!O:find_references", &object, &PyType_Type, &type, &value)) {
        return NULL;
    }
    if (!PyObject_TypeCheck(object, (PyTypeObject *)type)) {
        PyErr_Format(PyExc_TypeError, "%R is no %R", object, type);
        return NULL;
    }
    PyObject *found = PyList_New(0);
    Py_ssize_t end = ((PyTypeObject *)type)->tp_basicsize;
    Py_ssize_t offset = 0;
    for (; found != NULL && offset + (Py_ssize_t)sizeof(PyObject *) <= end;
         offset += (Py_ssize_t)sizeof(PyObject *)) {
        if (SLOT(object, offset) == value) {
            PyObject *number = PyLong_FromSsize_t(offset);
            if (number == NULL || PyList_Append(found, number) < 0) {
                Py_CLEAR(found);
            }
            Py_XDECREF(number);
        }
    }
    return found;
}

static PyObject *
set_asyncio(PyObject *module, PyObject *args)
{
    Engine *engine = engine_of_module(module);
    PyObject *get_running_loop, *current_tasks;
    if (!PyArg_ParseTuple(args, "OO!:set_asyncio", &get_running_loop, &PyDict_Type, &current_tasks)) {
        return NULL;
    }
    put(&engine->get_running_loop, get_running_loop);
    put(&engine->current_tasks, current_tasks);
    put_new(&engine->current_task, PyObject_GetAttrString(module, "current_task"));
    if (engine->current_task == NULL) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The running task of asyncio, or None. */
PyObject *
current_task(Engine *engine)
{
    PyObject *loop = PyObject_Vectorcall(engine->get_running_loop, NULL, 0, NULL);
    if (loop == NULL) {
        return NULL;
    }
    PyObject *task = PyDict_GetItemWithError(engine->current_tasks, loop);
    if (task != NULL || !PyErr_Occurred()) {
        task = Py_NewRef(task == NULL ? Py_None : task);
    }
    Py_DECREF(loop);
    return task;
}

static PyObject *
get_current_task(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return current_task(engine_of_module(module));
}

static PyObject *
frame_of(PyObject *Py_UNUSED(module), PyObject *function)
{
    if (!PyFunction_Check(function)) {
        PyErr_SetString(PyExc_TypeError, "frame_of() takes a function in Python");
        return NULL;
    }
    return (PyObject *)PyFrame_New(PyThreadState_Get(),
                                   (PyCodeObject *)PyFunction_GetCode(function),
                                   PyFunction_GetGlobals(function), NULL);
}

static PyObject *
replace_reference(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *object, *old, *new;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(args, "OnOO:replace_reference", &object, &offset, &old, &new)) {
        return NULL;
    }
    if (offset < (Py_ssize_t)sizeof(PyObject) ||
        offset + (Py_ssize_t)sizeof(PyObject *) > Py_TYPE(object)->tp_basicsize ||
        offset % (Py_ssize_t)sizeof(PyObject *) != 0) {
        PyErr_Format(PyExc_ValueError, "no reference is at the offset %zd of %R", offset, object);
        return NULL;
    }
    if (SLOT(object, offset) != old) {
        Py_RETURN_FALSE;
    }
    put(&SLOT(object, offset), new);
    Py_RETURN_TRUE;
}

static PyMethodDef functions[] = {
    {"connect", (PyCFunction)(void (*)(void))connect, METH_VARARGS | METH_KEYWORDS,
     "connect($module, worker, home, pool_size, **parts)\n--\n\n"
     "Give the engine what it shares with the one in Python: classes, functions and markers."},
    {"perf_counter_ns", perf_counter_ns, METH_NOARGS,
     "perf_counter_ns($module)\n--\n\nThe time, as the engine takes it: that of time.perf_counter_ns."},
    {"set_hooks", set_hooks, METH_O,
     "set_hooks($module, listener)\n--\n\n"
     "Tell *listener* of portals and bridges: its hooks in C, if it offers some, or else its methods."},
    {"is_told_in_c", is_told_in_c, METH_NOARGS,
     "is_told_in_c($module)\n--\n\nWhether a listener is told by its hooks in C right now."},
    {"begin", (PyCFunction)(void (*)(void))begin, METH_FASTCALL,
     "begin($module, kind, run, function, args, kwds, /)\n--\n\nAs `bridge.begin`."},
    {"open_for_running_task", open_for_running_task, METH_O,
     "open_for_running_task($module, kind, /)\n--\n\n"
     "Open a portal for the running task of asyncio in the common case, and return its library.\n"
     "None if it is another case: nothing has been done then."},
    {"drive_from_now_on", (PyCFunction)(void (*)(void))call_drive_from_now_on, METH_FASTCALL,
     "drive_from_now_on($module, portal, coroutine, /)\n--\n\n"
     "What stands in the place of *coroutine* in a task that is under way."},
    {"set_task_drive", set_task_drive, METH_O,
     "set_task_drive($module, type, /)\n--\n\nThe class of what is put into tasks of asyncio."},
    {"set_task_layout", set_task_layout, METH_VARARGS,
     "set_task_layout($module, type, offset, /)\n--\n\n"
     "Where the tasks of a type in C keep their coroutine."},
    {"find_references", find_references, METH_VARARGS,
     "find_references($module, object, type, value, /)\n--\n\n"
     "The offsets in the part of *object* that belongs to *type* where the address of *value* is."},
    {"set_asyncio", set_asyncio, METH_VARARGS,
     "set_asyncio($module, get_running_loop, current_tasks, /)\n--\n\n"
     "Where `current_task` finds the task that runs."},
    {"current_task", get_current_task, METH_NOARGS,
     "current_task($module)\n--\n\nThe running task of asyncio, before Python 3.14."},
    {"frame_of", frame_of, METH_O,
     "frame_of($module, function, /)\n--\n\nA frame of *function*, which does not run."},
    {"replace_reference", replace_reference, METH_VARARGS,
     "replace_reference($module, object, offset, old, new, /)\n--\n\n"
     "Replace a reference that *object* owns, *offset* bytes from its beginning. Returns whether it\n"
     "was to *old*. Raises ValueError if no reference can be there."},
    {NULL, NULL, 0, NULL},
};

static int
execute(PyObject *module)
{
    Engine *engine = engine_of_module(module);
    for (size_t i = 0; i < COUNT(texts); i++) {
        PyObject *text = PyUnicode_InternFromString(texts[i].name);
        if (text == NULL) {
            return -1;
        }
        *PLACE(engine, &texts[i]) = text;
    }
    engine->clock_capsule = new_clock();
    if (engine->clock_capsule == NULL) {
        return -1;
    }
    engine->clock = PyCapsule_GetPointer(engine->clock_capsule, GREENBACK_CLOCK);
    engine->none = PyTuple_Pack(1, Py_None);
    /* The package can be imported a second time: each has its own homes. */
    engine->home_key = PyUnicode_FromFormat("greenback._engine.state.Home.%p", module);
    engine->stack_key = PyUnicode_InternFromString("greenback._engine: end of the stack");
    engine->portal_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &portal_spec, NULL);
    engine->drive_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &drive_spec, NULL);
    if (engine->portal_type != NULL) {
        engine->next = PyTuple_Pack(1, engine->portal_type);
    }
    if (engine->none == NULL || engine->next == NULL || engine->home_key == NULL ||
        engine->stack_key == NULL || engine->portal_type == NULL ||
        engine->drive_type == NULL || find_greenlet(engine) < 0 ||
        PyModule_AddObjectRef(module, "clock", engine->clock_capsule) < 0 ||
        PyModule_AddObjectRef(module, "Portal", (PyObject *)engine->portal_type) < 0 ||
        PyModule_AddObjectRef(module, "drive", (PyObject *)engine->drive_type) < 0) {
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &server_spec, NULL);
    PyObject *server = type == NULL ? NULL : new_server(engine, (PyTypeObject *)type);
    int failed = server == NULL || PyModule_AddObjectRef(module, "serve", server) < 0;
    Py_XDECREF(server);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "greenback._engine._compiled",
    .m_doc = "The engine in C: see docs/architecture.rst.",
    .m_size = sizeof(Engine),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = engine_traverse,
    .m_free = engine_free,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    return PyModuleDef_Init(&definition);
}

/* The module: its state, and what it needs to know of the Python code. */

#include "structs.h"

static const struct {
    size_t offset;
    const char *text;
} names[] = {
#define NAME(name) {offsetof(State, str_##name), #name}
    NAME(_before_suspension_in_python),
    NAME(_count_postponed),
    NAME(_counts),
    NAME(_fail),
    NAME(_finish_failed),
    NAME(_finish_span),
    NAME(_finished_late),
    NAME(_known),
    NAME(_local),
    NAME(_log_postponed),
    NAME(_look_at),
    NAME(_new_caller),
    NAME(_new_portal),
    NAME(_new_root),
    NAME(_refuse),
    NAME(_rouse),
    NAME(_slow_step),
    NAME(acquire),
    NAME(also_called_from),
    NAME(books),
    NAME(bridge),
    NAME(called_from),
    NAME(close_portal),
    NAME(close_portal_in_python),
    NAME(enter_portal_in_python),
    NAME(finish_step_in_python),
    NAME(name),
    NAME(new_running),
    NAME(open_portal),
    NAME(open_portal_in_python),
    NAME(postponed),
    NAME(release),
    NAME(step),
    NAME(switch),
    NAME(switch_and_step),
    NAME(to_task),
    NAME(withs),
#undef NAME
};

State *
state_of_type(PyTypeObject *type)
{
#if PY_VERSION_HEX >= 0x030B0000
    PyObject *module = PyType_GetModuleByDef(type, &count_module);
#else
    PyObject *module = _PyType_GetModuleByDef(type, &count_module);
#endif
    return module == NULL ? NULL : (State *)PyModule_GetState(module);
}

PyDoc_STRVAR(complete_doc,
"complete($module, /, clock, portal, portal_tally, no_node, bounds, is_main_thread,\n"
"         adapters_file, runtime)\n"
"--\n\n"
"Take over what totals.py defines. Called once, before a listener is used.");

static PyObject *
complete(PyObject *module, PyObject *args, PyObject *keywords)
{
    State *state = (State *)PyModule_GetState(module);
    static char *parameters[] = {
        "clock", "portal", "portal_tally", "no_node", "bounds", "is_main_thread", "adapters_file", "runtime", NULL,
    };
    PyObject *clock, *portal, *tally_class, *no_node, *bounds, *is_main_thread, *adapters_file, *runtime;
    if (!PyArg_ParseTupleAndKeywords(
            args, keywords, "OO!O!O!O!OUU:complete", parameters, &clock, &PyType_Type, &portal, &PyType_Type,
            &tally_class,
            state->Node, &no_node, &PyList_Type, &bounds, &is_main_thread, &adapters_file,
            &runtime)) {
        return NULL;
    }
    if (!PyType_IsSubtype((PyTypeObject *)tally_class, state->PortalTally) ||
        PyList_GET_SIZE(bounds) >= BOUNDS ||
        ((PyTypeObject *)portal)->tp_basicsize < (Py_ssize_t)sizeof(Portal) ||
        !PyCapsule_IsValid(clock, GREENBACK_CLOCK)) {
        PyErr_SetString(PyExc_ValueError, "this module was built for another version of greenback");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < BOUNDS; index++) {
        long long bound = INT64_MAX;
        if (index < PyList_GET_SIZE(bounds)) {
            bound = PyLong_AsLongLong(PyList_GET_ITEM(bounds, index));
            if (bound == -1 && PyErr_Occurred()) {
                return NULL;
            }
        }
        state->bounds[index] = bound;
    }
    for (int length = 0; length <= 64; length++) {
        int bucket = 0;
        /* The smallest duration of this length is 2 ** (length - 1). */
        while (length > 0 && bucket < BOUNDS - 1 &&
               state->bounds[bucket] < (int64_t)(((uint64_t)1 << (length - 1)) & INT64_MAX)) {
            bucket++;
        }
        state->first_bucket[length] = (unsigned char)bucket;
    }
    state->clock = PyCapsule_GetPointer(clock, GREENBACK_CLOCK);
    put(&state->clock_capsule, clock);
    put((PyObject **)&state->portal_class, portal);
    put((PyObject **)&state->portal_tally_class, tally_class);
    put(&state->no_node, no_node);
    put(&state->is_main_thread, is_main_thread);
    put(&state->adapters_file, adapters_file);
    put(&state->runtime, runtime);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(watch_doc,
"watch($module, variables, name, /)\n--\n\n"
"While this variable is None, the application has set no SDK.");

static PyObject *
watch(PyObject *module, PyObject *args)
{
    State *state = (State *)PyModule_GetState(module);
    PyObject *variables, *name;
    if (!PyArg_ParseTuple(args, "O!U:watch", &PyDict_Type, &variables, &name)) {
        return NULL;
    }
    put(&state->watched, variables);
    put(&state->watched_name, name);
    PyUnicode_InternInPlace(&state->watched_name);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(know_doc,
"know($module, /, detect, claims, looked, getcurrent, worker, bridge_code, around_worker)\n"
"--\n\n"
"Take over where debug mode notes what it knows. Called once, before it is used.");

static PyObject *
know(PyObject *module, PyObject *args, PyObject *keywords)
{
    State *state = (State *)PyModule_GetState(module);
    static char *parameters[] = {
        "detect", "claims", "looked", "getcurrent", "worker", "bridge_code", "around_worker", NULL,
    };
    PyObject *detect, *claims, *looked, *getcurrent, *worker, *bridge_code, *around_worker;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!O!OO!O!O:know", parameters, &PyDict_Type,
                                     &detect, &PyDict_Type, &claims, &PyDict_Type, &looked,
                                     &getcurrent, &PyType_Type, &worker, &PyCode_Type, &bridge_code,
                                     &around_worker)) {
        return NULL;
    }
    if (around_worker != Py_None && !PyFrame_Check(around_worker)) {
        PyErr_SetString(PyExc_TypeError, "around_worker must be a frame or None");
        return NULL;
    }
    put(&state->around_worker, around_worker);
    put(&state->bridge_code, bridge_code);
    put(&state->claims, claims);
    put(&state->detect, detect);
    put(&state->getcurrent, getcurrent);
    put(&state->looked, looked);
    put(&state->worker_class, worker);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"complete", (PyCFunction)(void (*)(void))complete, METH_VARARGS | METH_KEYWORDS, complete_doc},
    {"know", (PyCFunction)(void (*)(void))know, METH_VARARGS | METH_KEYWORDS, know_doc},
    {"watch", watch, METH_VARARGS, watch_doc},
    {NULL},
};

static int
add_capsule(PyObject *module, const char *name, const Hooks *hooks)
{
    PyObject *capsule = PyCapsule_New((void *)hooks, GREENBACK_HOOKS, NULL);
    if (capsule == NULL) {
        return -1;
    }
    int result = PyModule_AddObjectRef(module, name, capsule);
    Py_DECREF(capsule);
    return result;
}

/* A dictionary of methods of a type, which Python puts where it has methods of its own. */
static int
add_methods(PyObject *methods, PyTypeObject *type, PyMethodDef *each)
{
    PyObject *found = PyDict_New();
    int result = found == NULL ? -1 : 0;
    for (; result == 0 && each->ml_name != NULL; each++) {
        PyObject *method = PyDescr_NewMethod(type, each);
        result = method == NULL ? -1 : PyDict_SetItemString(found, each->ml_name, method);
        Py_XDECREF(method);
    }
    if (result == 0) {
        const char *name = strrchr(type->tp_name, '.') + 1;
        result = PyDict_SetItemString(methods, name, found);
    }
    Py_XDECREF(found);
    return result;
}

static int
add_all_methods(PyObject *module, State *state)
{
    PyObject *methods = PyDict_New();
    int result = -1;
    if (methods != NULL && add_methods(methods, state->Totals, totals_methods) == 0 &&
        add_methods(methods, state->Debug, debug_methods) == 0 &&
        add_methods(methods, state->Watchdog, watchdog_methods) == 0) {
        result = PyModule_AddObjectRef(module, "methods", methods);
    }
    Py_XDECREF(methods);
    return result;
}

static int
execute(PyObject *module)
{
    State *state = (State *)PyModule_GetState(module);
    for (size_t index = 0; index < Py_ARRAY_LENGTH(names); index++) {
        PyObject *name = PyUnicode_InternFromString(names[index].text);
        if (name == NULL) {
            return -1;
        }
        *(PyObject **)((char *)state + names[index].offset) = name;
    }
    if (add_structs(module, state) < 0 ||
        add_all_methods(module, state) < 0 ||
        add_capsule(module, "totals_hooks", &totals_hooks) < 0 ||
        add_capsule(module, "spans_hooks", &spans_hooks) < 0) {
        return -1;
    }
    return 0;
}

static int
traverse_module(PyObject *module, visitproc visit, void *arg)
{
    char *state = (char *)PyModule_GetState(module);
    for (size_t offset = offsetof(State, Counts); offset <= offsetof(State, watched_name);
         offset += sizeof(PyObject *)) {
        Py_VISIT(*(PyObject **)(state + offset));
    }
    return 0;
}

/* There is no function that clears the state: a worker that is killed as late as when the interpreter
   ends still counts. */
static void
free_module(void *module)
{
    char *state = (char *)PyModule_GetState((PyObject *)module);
    for (size_t offset = offsetof(State, Counts); offset <= offsetof(State, watched_name);
         offset += sizeof(PyObject *)) {
        Py_CLEAR(*(PyObject **)(state + offset));
    }
    Py_CLEAR(((State *)state)->clock_capsule);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(module_doc, "Counting in C. Where this is missing, totals.py counts.");

struct PyModuleDef count_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "greenback_trace.count._compiled",
    .m_doc = module_doc,
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse_module,
    .m_free = free_module,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    return PyModuleDef_Init(&count_module);
}

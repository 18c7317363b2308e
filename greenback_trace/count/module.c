/* The module: its state, and what it needs to know of the Python code. */

#include "structs.h"

static const struct {
    size_t offset;
    const char *text;
} names[] = {
#define NAME(name) {offsetof(State, str_##name), #name}
    NAME(_counts),
    NAME(_fail),
    NAME(_count_postponed),
    NAME(_finish_failed),
    NAME(_finish_span),
    NAME(_finished_late),
    NAME(_new_caller),
    NAME(_new_portal),
    NAME(_new_root),
    NAME(_slow_step),
    NAME(acquire),
    NAME(bridge),
    NAME(close_portal),
    NAME(enter_portal),
    NAME(name),
    NAME(open_portal),
    NAME(release),
    NAME(step),
    NAME(switch),
    NAME(switch_and_step),
    NAME(to_task),
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
"complete($module, /, portal_tally, no_node, bounds, is_main_thread, adapters_file, runtime)\n"
"--\n\n"
"Take over what totals.py defines. Called once, before a listener is used.");

static PyObject *
complete(PyObject *module, PyObject *args, PyObject *keywords)
{
    State *state = (State *)PyModule_GetState(module);
    static char *parameters[] = {
        "portal_tally", "no_node", "bounds", "is_main_thread", "adapters_file", "runtime", NULL,
    };
    PyObject *tally_class, *no_node, *bounds, *is_main_thread, *adapters_file, *runtime;
    if (!PyArg_ParseTupleAndKeywords(
            args, keywords, "O!O!O!OUU:complete", parameters, &PyType_Type, &tally_class,
            state->Node, &no_node, &PyList_Type, &bounds, &is_main_thread, &adapters_file,
            &runtime)) {
        return NULL;
    }
    if (!PyType_IsSubtype((PyTypeObject *)tally_class, state->PortalTally) ||
        PyList_GET_SIZE(bounds) >= BOUNDS) {
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

static PyMethodDef methods[] = {
    {"complete", (PyCFunction)(void (*)(void))complete, METH_VARARGS | METH_KEYWORDS, complete_doc},
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

static int
clear_module(PyObject *module)
{
    char *state = (char *)PyModule_GetState(module);
    for (size_t offset = offsetof(State, Counts); offset <= offsetof(State, watched_name);
         offset += sizeof(PyObject *)) {
        Py_CLEAR(*(PyObject **)(state + offset));
    }
    return 0;
}

static void
free_module(void *module)
{
    (void)clear_module((PyObject *)module);
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
    .m_clear = clear_module,
    .m_free = free_module,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    return PyModuleDef_Init(&count_module);
}

/* The types of structs.h, for Python to read, write and derive from. */

#include "structs.h"

/* What the types below have in common. The references of a struct follow each other: `first` and
   `last` are the offsets of the first and the last one. */

static int
traverse(PyObject *self, Py_ssize_t first, Py_ssize_t last, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t offset = first; offset <= last; offset += sizeof(PyObject *)) {
        Py_VISIT(*(PyObject **)((char *)self + offset));
    }
    return 0;
}

static int
clear(PyObject *self, Py_ssize_t first, Py_ssize_t last)
{
    for (Py_ssize_t offset = first; offset <= last; offset += sizeof(PyObject *)) {
        Py_CLEAR(*(PyObject **)((char *)self + offset));
    }
    return 0;
}

static void
deallocate(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define COLLECTED(Struct, first, last)                                                             \
    static int traverse_##Struct(PyObject *self, visitproc visit, void *arg)                       \
    {                                                                                              \
        return traverse(self, offsetof(Struct, first), offsetof(Struct, last), visit, arg);        \
    }                                                                                              \
    static int clear_##Struct(PyObject *self)                                                      \
    {                                                                                              \
        return clear(self, offsetof(Struct, first), offsetof(Struct, last));                       \
    }                                                                                              \
    static void deallocate_##Struct(PyObject *self)                                                \
    {                                                                                              \
        PyTypeObject *type = Py_TYPE(self);                                                        \
        PyObject_GC_UnTrack(self);                                                                 \
        clear_##Struct(self);                                                                      \
        type->tp_free(self);                                                                       \
        Py_DECREF(type);                                                                           \
    }

#define SLOTS(Struct)                                                                              \
    {Py_tp_traverse, traverse_##Struct}, {Py_tp_clear, clear_##Struct},                            \
        {Py_tp_dealloc, deallocate_##Struct}

#define SPEC(Struct, members, extra)                                                               \
    static PyType_Spec Struct##_spec = {                                                           \
        .name = "greenback_trace.count._compiled." #Struct,                                        \
        .basicsize = sizeof(Struct),                                                               \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | (extra),                               \
        .slots = members,                                                                          \
    }

#define NUMBER(Struct, name) {#name, T_LONGLONG, offsetof(Struct, name), 0, NULL}
#define OFFSET(Struct, name) {#name, T_INT, offsetof(Struct, name), 0, NULL}
#define BOOLEAN(Struct, name) {#name, T_BOOL, offsetof(Struct, name), 0, NULL}
/* An attribute that does not exist before it is set. */
#define OBJECT(Struct, name) {#name, T_OBJECT_EX, offsetof(Struct, name), 0, NULL}
/* An attribute that is None before it is set. */
#define OPTIONAL(Struct, name) {#name, T_OBJECT, offsetof(Struct, name), 0, NULL}

/* Histogram: acts as the list of numbers that it is in Python. */

static PyObject *
new_histogram(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Py_ssize_t length;
    static char *names[] = {"length", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n:Histogram", names, &length)) {
        return NULL;
    }
    if (length < 2 || length > BOUNDS + 1) {
        PyErr_SetString(PyExc_ValueError, "a histogram has a sum, and 1 to 32 buckets");
        return NULL;
    }
    return type->tp_alloc(type, length);
}

static Py_ssize_t
histogram_length(PyObject *self)
{
    return Py_SIZE(self);
}

static PyObject *
histogram_item(PyObject *self, Py_ssize_t index)
{
    if (index < 0 || index >= Py_SIZE(self)) {
        PyErr_SetString(PyExc_IndexError, "histogram index out of range");
        return NULL;
    }
    return PyLong_FromLongLong(((Histogram *)self)->values[index]);
}

static PyObject *
histogram_list(PyObject *self)
{
    Py_ssize_t length = Py_SIZE(self);
    PyObject *list = PyList_New(length);
    for (Py_ssize_t index = 0; list != NULL && index < length; index++) {
        PyObject *number = histogram_item(self, index);
        if (number == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, index, number);
    }
    return list;
}

static PyObject *
histogram_subscript(PyObject *self, PyObject *key)
{
    if (PyIndex_Check(key)) {
        Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
        if (index == -1 && PyErr_Occurred()) {
            return NULL;
        }
        return histogram_item(self, index < 0 ? index + Py_SIZE(self) : index);
    }
    PyObject *list = histogram_list(self);
    if (list == NULL) {
        return NULL;
    }
    PyObject *part = PyObject_GetItem(list, key);
    Py_DECREF(list);
    return part;
}

static int
histogram_set_item(PyObject *self, PyObject *key, PyObject *value)
{
    Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (index < 0) {
        index += Py_SIZE(self);
    }
    if (index < 0 || index >= Py_SIZE(self)) {
        PyErr_SetString(PyExc_IndexError, "histogram index out of range");
        return -1;
    }
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "the length of a histogram does not change");
        return -1;
    }
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    ((Histogram *)self)->values[index] = number;
    return 0;
}

static PyObject *
compare_histograms(PyObject *self, PyObject *other, int operator)
{
    PyObject *mine = histogram_list(self);
    if (mine == NULL) {
        return NULL;
    }
    PyObject *others = Py_TYPE(other) == Py_TYPE(self) ? histogram_list(other) : NULL;
    if (others == NULL && PyErr_Occurred()) {
        Py_DECREF(mine);
        return NULL;
    }
    PyObject *result = PyObject_RichCompare(mine, others == NULL ? other : others, operator);
    Py_DECREF(mine);
    Py_XDECREF(others);
    return result;
}

static PyObject *
represent_histogram(PyObject *self)
{
    PyObject *list = histogram_list(self);
    if (list == NULL) {
        return NULL;
    }
    PyObject *text = PyObject_Repr(list);
    Py_DECREF(list);
    return text;
}

static PyType_Slot histogram_slots[] = {
    {Py_tp_new, new_histogram},
    {Py_tp_dealloc, deallocate},
    {Py_tp_repr, represent_histogram},
    {Py_tp_richcompare, compare_histograms},
    {Py_tp_hash, PyObject_HashNotImplemented},
    {Py_sq_length, histogram_length},
    {Py_sq_item, histogram_item},
    {Py_mp_length, histogram_length},
    {Py_mp_subscript, histogram_subscript},
    {Py_mp_ass_subscript, histogram_set_item},
    {0, NULL},
};

static PyType_Spec Histogram_spec = {
    .name = "greenback_trace.count._compiled.Histogram",
    .basicsize = offsetof(Histogram, values),
    .itemsize = sizeof(int64_t),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = histogram_slots,
};

/* Tally */

static PyMemberDef tally_members[] = {
    NUMBER(Tally, ok),
    NUMBER(Tally, errors),
    NUMBER(Tally, cancelled),
    NUMBER(Tally, suspended),
    NUMBER(Tally, time_ns),
    NUMBER(Tally, suspended_ns),
    {NULL},
};
static PyType_Slot tally_slots[] = {
    {Py_tp_members, tally_members},
    {Py_tp_dealloc, deallocate},
    {0, NULL},
};
SPEC(Tally, tally_slots, 0);

/* Node */

COLLECTED(Node, code, site)
static PyMemberDef node_members[] = {
    OPTIONAL(Node, code),
    OPTIONAL(Node, inner),
    OPTIONAL(Node, is_known),
    OPTIONAL(Node, is_without),
    OBJECT(Node, others),
    OPTIONAL(Node, outer),
    OPTIONAL(Node, outer_code),
    OPTIONAL(Node, site),
    OFFSET(Node, offset),
    OFFSET(Node, outer_offset),
    BOOLEAN(Node, ends),
    {NULL},
};
static PyType_Slot node_slots[] = {{Py_tp_members, node_members}, SLOTS(Node), {0, NULL}};
SPEC(Node, node_slots, Py_TPFLAGS_HAVE_GC);

/* KindTally */

COLLECTED(KindTally, durations, durations)
static PyMemberDef kind_members[] = {
    OBJECT(KindTally, durations),
    NUMBER(KindTally, closed),
    NUMBER(KindTally, open),
    NUMBER(KindTally, opened),
    {NULL},
};
static PyType_Slot kind_slots[] = {{Py_tp_members, kind_members}, SLOTS(KindTally), {0, NULL}};
SPEC(KindTally, kind_slots, Py_TPFLAGS_HAVE_GC);

/* LibraryTally */

COLLECTED(LibraryTally, durations, waited)
static PyMemberDef library_members[] = {
    OBJECT(LibraryTally, durations),
    OBJECT(LibraryTally, quick),
    OBJECT(LibraryTally, steps),
    OBJECT(LibraryTally, waited),
    {NULL},
};
static PyType_Slot library_slots[] = {
    {Py_tp_members, library_members},
    SLOTS(LibraryTally),
    {0, NULL},
};
SPEC(LibraryTally, library_slots, Py_TPFLAGS_HAVE_GC);

/* Counts */

COLLECTED(Counts, is_alive, to_task)
static PyMemberDef counts_members[] = {
    OBJECT(Counts, is_alive),
    OBJECT(Counts, kept),
    OBJECT(Counts, kinds),
    OBJECT(Counts, libraries),
    OBJECT(Counts, nodes),
    OBJECT(Counts, roots),
    OBJECT(Counts, slow),
    OBJECT(Counts, to_loop),
    OBJECT(Counts, to_task),
    NUMBER(Counts, skip),
    NUMBER(Counts, skipped_from),
    NUMBER(Counts, unmeasured),
    {NULL},
};
static PyType_Slot counts_slots[] = {{Py_tp_members, counts_members}, SLOTS(Counts), {0, NULL}};
SPEC(Counts, counts_slots, Py_TPFLAGS_HAVE_GC);

/* PortalTally */

/* A portal whose bridges are all counted in C needs none of these two. */

static PyObject *
portal_running(PyObject *self, void *unused)
{
    PortalTally *tally = (PortalTally *)self;
    if (tally->running == NULL) {
        tally->running = PySet_New(NULL);
    }
    Py_XINCREF(tally->running);
    return tally->running;
}

PyObject *
spares_of(PortalTally *tally)
{
    if (tally->spares == NULL) {
        tally->spares = PyList_New(0);
    }
    return tally->spares;
}

static PyObject *
portal_spares(PyObject *self, void *unused)
{
    PyObject *spares = spares_of((PortalTally *)self);
    Py_XINCREF(spares);
    return spares;
}

COLLECTED(PortalTally, counts, totals)
static PyMemberDef portal_members[] = {
    OBJECT(PortalTally, counts),
    OPTIONAL(PortalTally, held),
    OPTIONAL(PortalTally, is_bare),
    OBJECT(PortalTally, kind),
    OPTIONAL(PortalTally, last),
    OPTIONAL(PortalTally, postponed),
    OBJECT(PortalTally, library),
    OBJECT(PortalTally, library_name),
    OBJECT(PortalTally, root),
    OPTIONAL(PortalTally, totals),
    NUMBER(PortalTally, began),
    NUMBER(PortalTally, opened_at),
    NUMBER(PortalTally, running_in_c),
    NUMBER(PortalTally, slow_ns),
    NUMBER(PortalTally, slow_steps),
    NUMBER(PortalTally, step_max_ns),
    NUMBER(PortalTally, switch_ns),
    NUMBER(PortalTally, switches),
    BOOLEAN(PortalTally, closed),
    BOOLEAN(PortalTally, is_unsampled),
    {NULL},
};
static PyGetSetDef portal_attributes[] = {
    {"running", portal_running, NULL, NULL, NULL},
    {"spares", portal_spares, NULL, NULL, NULL},
    {NULL},
};
static PyType_Slot portal_slots[] = {
    {Py_tp_members, portal_members},
    {Py_tp_getset, portal_attributes},
    SLOTS(PortalTally),
    {0, NULL},
};
SPEC(PortalTally, portal_slots, Py_TPFLAGS_HAVE_GC);

/* Running */

COLLECTED(Running, awaitable, progress.node)
static void
deallocate_running(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    if (((Running *)self)->weakrefs != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    deallocate_Running(self);
}
static PyMemberDef running_members[] = {
    OPTIONAL(Running, awaitable),
    OPTIONAL(Running, opened),
    OPTIONAL(Running, outermost),
    OPTIONAL(Running, portal),
    {"node", T_OBJECT, offsetof(Running, progress.node), 0, NULL},
    {"tally", T_OBJECT, offsetof(Running, progress.tally), 0, NULL},
    {"started", T_LONGLONG, offsetof(Running, progress.started), 0, NULL},
    {"switches", T_LONGLONG, offsetof(Running, progress.switches), 0, NULL},
    {"suspended_ns", T_LONGLONG, offsetof(Running, progress.suspended_ns), 0, NULL},
    {"slow_ns", T_LONGLONG, offsetof(Running, progress.slow_ns), 0, NULL},
    BOOLEAN(Running, is_clear),
    BOOLEAN(Running, runs),
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Running, weakrefs), READONLY, NULL},
    {NULL},
};
static PyType_Slot running_slots[] = {
    {Py_tp_members, running_members},
    {Py_tp_traverse, traverse_Running},
    {Py_tp_clear, clear_Running},
    {Py_tp_dealloc, deallocate_running},
    {0, NULL},
};
SPEC(Running, running_slots, Py_TPFLAGS_HAVE_GC);

/* What needs the module's state has it from its beginning. */

/* A new object of a type that has the module's state, at `offset`. */
static PyObject *
with_state(PyTypeObject *type, size_t offset)
{
    State *state = state_of_type(type);
    PyObject *self = state == NULL ? NULL : type->tp_alloc(type, 0);
    if (self != NULL) {
        *(State **)((char *)self + offset) = state;
    }
    return self;
}

#define WITH_STATE(Struct, members)                                                                \
    static PyObject *new_##Struct(PyTypeObject *type, PyObject *args, PyObject *keywords)          \
    {                                                                                              \
        return with_state(type, offsetof(Struct, state));                                          \
    }                                                                                              \
    static PyType_Slot members##_slots[] = {                                                       \
        {Py_tp_new, new_##Struct},                                                                 \
        {Py_tp_members, members},                                                                  \
        SLOTS(Struct),                                                                             \
        {0, NULL},                                                                                 \
    };                                                                                             \
    SPEC(Struct, members##_slots, Py_TPFLAGS_HAVE_GC)

/* Totals */

COLLECTED(Totals, _lock, spare)
static PyMemberDef totals_members[] = {
    OBJECT(Totals, _lock),
    OPTIONAL(Totals, _measurements),
    OBJECT(Totals, portals),
    OPTIONAL(Totals, recent),
    OPTIONAL(Totals, unset),
    NUMBER(Totals, quiet_until),
    NUMBER(Totals, slow_ns),
    BOOLEAN(Totals, _gives_outermost),
    {NULL},
};
WITH_STATE(Totals, totals_members);

/* Spans */

COLLECTED(Spans, _portals, _tracer)
static PyMemberDef spans_members[] = {
    OBJECT(Spans, _portals),
    OBJECT(Spans, _totals),
    OPTIONAL(Spans, _tracer),
    NUMBER(Spans, _slow_ns),
    BOOLEAN(Spans, _only_portals),
    BOOLEAN(Spans, _only_suspended),
    BOOLEAN(Spans, _waits_for_sdk),
    {NULL},
};
WITH_STATE(Spans, spans_members);

/* Debug and Watchdog */

COLLECTED(Debug, _start, misuses)
static PyMemberDef debug_members[] = {
    OBJECT(Debug, _start),
    OBJECT(Debug, _totals),
    OBJECT(Debug, _watchdog),
    OBJECT(Debug, misuses),
    NUMBER(Debug, _long_ns),
    BOOLEAN(Debug, _looks_at_start),
    BOOLEAN(Debug, _looks_for_locks),
    {NULL},
};
WITH_STATE(Debug, debug_members);

COLLECTED(Watchdog, _running, _running)
static PyMemberDef watchdog_members[] = {
    OBJECT(Watchdog, _running),
    BOOLEAN(Watchdog, _idle),
    {NULL},
};
WITH_STATE(Watchdog, watchdog_members);

static int
add(PyObject *module, PyType_Spec *spec, PyTypeObject *base, PyTypeObject **place)
{
    PyObject *bases = base == NULL ? NULL : PyTuple_Pack(1, base);
    if (base != NULL && bases == NULL) {
        return -1;
    }
    *place = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, bases);
    Py_XDECREF(bases);
    return *place == NULL ? -1 : PyModule_AddType(module, *place);
}

int
add_structs(PyObject *module, State *state)
{
    if (add(module, &Histogram_spec, NULL, &state->Histogram) < 0 ||
        add(module, &Tally_spec, NULL, &state->Tally) < 0 ||
        add(module, &Node_spec, state->Tally, &state->Node) < 0 ||
        add(module, &KindTally_spec, state->Tally, &state->KindTally) < 0 ||
        add(module, &LibraryTally_spec, NULL, &state->LibraryTally) < 0 ||
        add(module, &Counts_spec, NULL, &state->Counts) < 0 ||
        add(module, &PortalTally_spec, state->Tally, &state->PortalTally) < 0 ||
        add(module, &Running_spec, NULL, &state->Running) < 0 ||
        add(module, &Totals_spec, NULL, &state->Totals) < 0 ||
        add(module, &Spans_spec, NULL, &state->Spans) < 0 ||
        add(module, &Debug_spec, NULL, &state->Debug) < 0 ||
        add(module, &Watchdog_spec, NULL, &state->Watchdog) < 0) {
        return -1;
    }
    return 0;
}

/* What the files of the engine in C share. */

#ifndef GREENBACK_ENGINE_H
#define GREENBACK_ENGINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#include <structmember.h>

#include "portal.h"
#include "shared.h"

/* The state of the module: there is one for each interpreter, and nothing else that outlives a
   call. References are strong unless noted. */
typedef struct {
    /* Functions of greenlet's C interface, and of its types' attributes. */
    PyObject *(*current)(void);
    PyObject *(*do_switch)(PyObject *greenlet, PyObject *args, PyObject *kwds);
    int (*set_parent)(PyObject *greenlet, PyObject *parent);
    getter get_context;
    setter set_context;
    getter get_parent;
    /* `cr_await` of coroutines. */
    getter coroutine_awaits;

    PyTypeObject *portal_type;
    PyTypeObject *drive_type;
    PyTypeObject *worker_type;
    PyObject *greenlet_exit;

    /* Where an instance keeps these attributes: offsets of slots of classes in Python. */
    Py_ssize_t worker_context;
    Py_ssize_t worker_is_bare;
    Py_ssize_t worker_level;
    Py_ssize_t worker_poolable;
    Py_ssize_t worker_portal;
    Py_ssize_t worker_replaces;
    Py_ssize_t worker_spare;
    Py_ssize_t home_first_step;
    Py_ssize_t home_library;
    Py_ssize_t home_loop;
    Py_ssize_t home_main;
    Py_ssize_t home_names;
    Py_ssize_t home_others;
    Py_ssize_t home_pool;
    Py_ssize_t home_pools;
    Py_ssize_t home_portals;
    Py_ssize_t home_resting;
    Py_ssize_t home_stepping;

    /* The listener, or NULL; and its hooks in C, if it has any, and the capsule they came in. */
    PyObject *listener;
    PyObject *capsule;
    const Hooks *hooks;

    /* From `ERROR` to `without_own_frames`: given by the engine in Python. */
    PyObject *ERROR;
    PyObject *MOVED;
    PyObject *NO_NEED;
    PyObject *Begun;
    PyObject *Raised;
    PyObject *await_;
    PyObject *await_code;
    PyObject *awaited;
    PyObject *awaited_steps;
    PyObject *begin;
    PyObject *discard;
    PyObject *finish;
    PyObject *first_step;
    PyObject *interrupt;
    PyObject *is_unfinished;
    PyObject *observed_switch;
    PyObject *register_once;
    PyObject *run_coroutine;
    PyObject *take_worker;
    PyObject *takes;
    PyObject *this_home;
    /* Whether these parts are the ones in C: True or False. */
    PyObject *drives;
    PyObject *serves;
    PyObject *with_frame;
    PyObject *without_own_frames;
    /* Of the function `await_` in Python, and of `awaited`. */
    PyObject *await_globals;
    PyObject *awaited_code;
    /* A class in Python based on `drive`, which has the attributes of a coroutine. */
    PyObject *task_drive;
    /* Where tasks of the type `c_task` keep their coroutine; 0: not verified yet. */
    PyObject *c_task;
    Py_ssize_t task_coroutine;
    /* For asyncio before Python 3.14. */
    PyObject *current_task;
    PyObject *get_running_loop;
    PyObject *current_tasks;
    /* (None,) */
    PyObject *none;
    /* (Portal,): arguments of a switch to a parked worker that has its next portal. */
    PyObject *next;
    /* What the thread's own dictionary has: its Home, and the end of its stack. */
    PyObject *home_key;
    PyObject *stack_key;
    PyObject *str_c_hooks;
    PyObject *str_close;
    PyObject *str_close_portal;
    PyObject *str_enter_portal;
    PyObject *str_error;
    PyObject *str_gi_code;
    PyObject *str_holds_back_ctrl_c;
    PyObject *str_loop;
    PyObject *str_must_move;
    PyObject *str_name;
    PyObject *str_open_portal;
    PyObject *str_throw;
    PyObject *str_trap;

    Py_ssize_t pool_size;
    /* The definition of `await_`, whose docstring is that of the engine in Python. */
    PyMethodDef await_definition;
    char *await_doc;

    Clock *clock;
    PyObject *clock_capsule;
} Engine;



static inline Engine *
engine_of_module(PyObject *module)
{
    return (Engine *)PyModule_GetState(module);
}

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* Put `value` into `*place`, and let go of what was there. A destructor that runs then finds the new
   value in place. */
static inline void
put(PyObject **place, PyObject *value)
{
    PyObject *old = *place;
    Py_XINCREF(value);
    *place = value;
    Py_XDECREF(old);
}

static inline void
put_new(PyObject **place, PyObject *value)
{
    PyObject *old = *place;
    *place = value;
    Py_XDECREF(old);
}

static inline PyObject *
take(PyObject **place)
{
    PyObject *value = *place;
    *place = NULL;
    if (value == Py_None) {
        Py_DECREF(value);
        return NULL;
    }
    return value;
}

/* Switch to `greenlet` with `value`, which is stolen. */
static INLINE PyObject *
switch_with(Engine *engine, PyObject *greenlet, PyObject *value)
{
    PyObject *args;
    if (IS_NONE(greenlet)) { /* somebody has kept the worker, and switches to it */
        Py_DECREF(value);
        PyErr_SetString(PyExc_RuntimeError, "this portal was closed while its work went on");
        return NULL;
    }
    if (value == Py_None || value == (PyObject *)engine->portal_type) { /* as most are */
        args = Py_NewRef(value == Py_None ? engine->none : engine->next);
        Py_DECREF(value);
    }
    else {
        args = PyTuple_New(1);
        if (args == NULL) {
            Py_DECREF(value);
            return NULL;
        }
        PyTuple_SET_ITEM(args, 0, value);
    }
    Py_INCREF(greenlet);
    PyObject *result = engine->do_switch(greenlet, args, NULL);
    Py_DECREF(greenlet);
    Py_DECREF(args);
    return result;
}

/* Exceptions: errors.c */
void drop(PyObject **place);
int is_killing(Engine *engine, PyObject *error);
void leave_handler(PyObject *error, PyObject *handled);
void hide_frames_of(PyObject *error, PyObject *code);
void add_frame_of_await(Engine *engine);
void raise_stop_iteration(PyObject *value);

/* Awaitables: awaitables.c */
PyObject *steps_of(Engine *engine, PyObject *awaitable);
PySendResult throw_into(Engine *engine, PyObject *steps, PyObject *error, PyObject **result);
PySendResult throw_into_task(Engine *engine, PyObject *coroutine, PyObject *error,
                             PyObject **result);
int close_steps(Engine *engine, PyObject *steps);

/* Portals: portal.c */
extern PyType_Spec portal_spec;
int is_here(Engine *engine, Portal *portal);
int is_parked(Portal *portal);
int has_stack(Engine *engine, Portal *portal);
int make_room(Portal *portal);
PyObject *step(Engine *engine, Portal *portal, PyObject *target, PyObject *answer);
void set_context(PyThreadState *thread, PyObject *context);
PyObject *first_step(Engine *engine, Portal *portal);
PyObject *finish(Engine *engine, Portal *portal);
PyObject *begin(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* The hooks of the listener, if those in C are to be called now; else NULL. */
static inline const Hooks *
ready_hooks(Engine *engine)
{
    const Hooks *hooks = engine->hooks;
    return hooks != NULL && hooks->is_ready(engine->listener) ? hooks : NULL;
}

/* bridge.c, work.c, drive.c */
PyObject *await_(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names);
extern PyType_Spec server_spec;
PyObject *new_server(Engine *engine, PyTypeObject *type);
extern PyType_Spec drive_spec;
PyObject *drive_on(Engine *engine, Portal *portal, PyObject *trap);
PyObject *drive_from_now_on(Engine *engine, Portal *portal, PyObject *coroutine);
PyObject *open_for_running_task(PyObject *module, PyObject *kind);

/* clock.c */
PyObject *new_clock(void);

/* stack.c */
uintptr_t end_of_stack(void);

/* module.c */
PyObject *current_task(Engine *engine);

#endif

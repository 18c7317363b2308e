/* What a bridge steps: coroutines, and all else that can be awaited. */

#include "engine.h"

/* Whether an __await__() may return `steps`: an iterator, but no coroutine of any kind. */
static int
is_iterator(Engine *engine, PyObject *steps)
{
    if (!PyIter_Check(steps) || PyCoro_CheckExact(steps)) {
        return 0;
    }
    if (!PyGen_CheckExact(steps)) {
        return 1;
    }
    PyObject *code = PyObject_GetAttr(steps, engine->str_gi_code);
    if (code == NULL) {
        PyErr_Clear();
        return 0;
    }
    int is_coroutine = ((PyCodeObject *)code)->co_flags & CO_ITERABLE_COROUTINE;
    Py_DECREF(code);
    return !is_coroutine;
}

/* What `await` would step: `awaitable` itself, or what its __await__() returns. */
PyObject *
steps_of(Engine *engine, PyObject *awaitable)
{
    if (PyCoro_CheckExact(awaitable)) {
        PyObject *below = engine->coroutine_awaits(awaitable, NULL);
        if (below == NULL) {
            return NULL;
        }
        Py_DECREF(below);
        if (below == Py_None) {
            return Py_NewRef(awaitable);
        }
    }
    else if (!PyGen_CheckExact(awaitable)) {
        PyAsyncMethods *methods = Py_TYPE(awaitable)->tp_as_async;
        if (methods != NULL && methods->am_await != NULL) {
            PyObject *steps = methods->am_await(awaitable);
            if (steps == NULL || is_iterator(engine, steps)) {
                return steps;
            }
            /* It is an error, which the interpreter words best. */
            PyObject *args[] = {awaitable, steps};
            PyObject *to_raise = PyObject_Vectorcall(engine->awaited_steps, args, 2, NULL);
            Py_DECREF(steps);
            return to_raise;
        }
    }
    /* Rare, or an error. */
    return PyObject_CallOneArg(engine->awaited, awaitable);
}

/* The result of a method that stepped something, or the value of the StopIteration it raised. */
static PySendResult
result_of_call(PyObject **result)
{
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    PyObject *stop = take_raised();
    PyObject *value = ((PyStopIterationObject *)stop)->value;
    *result = Py_NewRef(value == NULL ? Py_None : value);
    Py_DECREF(stop);
    return PYGEN_RETURN;
}

/* Throw `error`, which is stolen, into `steps`, as `await` and `yield from` do. */
PySendResult
throw_into(Engine *engine, PyObject *steps, PyObject *error, PyObject **result)
{
    *result = NULL;
    if (PyErr_GivenExceptionMatches(error, PyExc_GeneratorExit)) {
        /* The steps are closed, and the error is raised where they are awaited. */
        if (close_steps(engine, steps) < 0) {
            Py_DECREF(error);
        }
        else {
            raise_again(error);
        }
        return PYGEN_ERROR;
    }
    PyObject *throw = PyObject_GetAttr(steps, engine->str_throw);
    if (throw == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            raise_again(error);
        }
        else {
            Py_DECREF(error);
        }
        return PYGEN_ERROR;
    }
    *result = PyObject_CallOneArg(throw, error);
    Py_DECREF(throw);
    Py_DECREF(error);
    return result_of_call(result);
}

/* Throw `error`, which is stolen, into the coroutine of a task, as an event loop does. */
PySendResult
throw_into_task(Engine *engine, PyObject *coroutine, PyObject *error, PyObject **result)
{
    *result = PyObject_CallMethodOneArg(coroutine, engine->str_throw, error);
    Py_DECREF(error);
    return result_of_call(result);
}

/* Close what a bridge steps. Returns -1 if that raised. */
int
close_steps(Engine *engine, PyObject *steps)
{
    PyObject *close = PyObject_GetAttr(steps, engine->str_close);
    if (close == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_WriteUnraisable(steps);
        }
        PyErr_Clear();
        return 0;
    }
    PyObject *closed = PyObject_CallNoArgs(close);
    Py_DECREF(close);
    Py_XDECREF(closed);
    return closed == NULL ? -1 : 0;
}

/* What both extension modules use. */

#ifndef GREENBACK_SHARED_H
#define GREENBACK_SHARED_H

#include <Python.h>

#define IS_NONE(reference) ((reference) == NULL || (reference) == Py_None)

/* For what is rare, so that it takes no room on the stack of what is not. */
#ifdef _MSC_VER
#define COLD __declspec(noinline)
#define NOT_INLINE __declspec(noinline)
#define INLINE __forceinline
#define RARELY static __declspec(noinline)
#define APART static __declspec(noinline)
#else
#define NOT_INLINE __attribute__((noinline))
#define INLINE inline __attribute__((always_inline))
#define RARELY static __attribute__((noinline, cold, unused))
#define APART static __attribute__((noinline, unused))
#define COLD __attribute__((noinline, cold))
#endif

/* The exception that is raised now, with its traceback; NULL if none is. None is raised after. */
RARELY PyObject *
take_raised(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    if (type == NULL) {
        return NULL;
    }
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(error, traceback);
    }
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return error;
#endif
}

/* The traceback of an exception, or NULL. */
RARELY PyObject *
traceback_of(PyObject *error)
{
    PyObject *traceback = PyException_GetTraceback(error);
    if (traceback == Py_None) { /* before 3.12, where Python has set it to None */
        Py_CLEAR(traceback);
    }
    return traceback;
}

/* Raise what `take_raised` took, as it was. Steals the reference. */
RARELY void
raise_again(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(error);
#else
    PyObject *type = Py_NewRef((PyObject *)Py_TYPE(error));
    PyErr_Restore(type, error, traceback_of(error));
#endif
}

/* The exception that the calling code is handling, or NULL. */
APART PyObject *
handled_exception(void)
{
    PyObject *error;
#if PY_VERSION_HEX >= 0x030B0000
    error = PyErr_GetHandledException();
#else
    PyObject *type, *traceback;
    PyErr_GetExcInfo(&type, &error, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
#endif
    if (error == Py_None) {
        Py_CLEAR(error);
    }
    return error;
}

#endif

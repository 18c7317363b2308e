/* Exceptions: their contexts and their tracebacks. */

#include "engine.h"

/* Let go of what is in `*place` while an exception is raised, which no destructor is to find. */
void
drop(PyObject **place)
{
    PyObject *error = take_raised();
    Py_CLEAR(*place);
    raise_again(error);
}

/* Whether a switch that raised `error` did so because its own greenlet is being killed. */
int
is_killing(Engine *engine, PyObject *error)
{
    if (!PyErr_GivenExceptionMatches(error, engine->greenlet_exit)) {
        return 0;
    }
    PyObject *traceback = traceback_of(error);
    Py_XDECREF(traceback);
    return traceback == NULL;
}

/* As `leave_handler` in work.py. */
void
leave_handler(PyObject *error, PyObject *handled)
{
    if (handled != NULL && handled != error) {
        PyException_SetContext(error, Py_NewRef(handled));
    }
}

/* Take the outermost frames that run `code` out of the traceback of `error`. */
void
hide_frames_of(PyObject *error, PyObject *code)
{
    PyObject *first = traceback_of(error);
    PyObject *traceback = Py_XNewRef(first);
    while (traceback != NULL) {
        PyCodeObject *its_code = PyFrame_GetCode(((PyTracebackObject *)traceback)->tb_frame);
        Py_DECREF(its_code); /* the frame keeps it */
        if ((PyObject *)its_code != code) {
            break;
        }
        put(&traceback, (PyObject *)((PyTracebackObject *)traceback)->tb_next);
    }
    if (traceback != first) {
        PyException_SetTraceback(error, traceback == NULL ? Py_None : traceback);
    }
    Py_XDECREF(first);
    Py_XDECREF(traceback);
}

/* Add a frame to the traceback of the exception that is raised now, as if `await_` were the function
   in Python that it stands for. */
void
add_frame_of_await(Engine *engine)
{
    PyObject *error = take_raised();
    PyFrameObject *frame = PyFrame_New(
        PyThreadState_Get(), (PyCodeObject *)engine->await_code, engine->await_globals, NULL);
    if (frame == NULL) {
        PyErr_Clear(); /* there is no memory for it */
    }
    raise_again(error);
    if (frame != NULL) {
        PyTraceBack_Here(frame);
        Py_DECREF(frame);
    }
}

/* Raise StopIteration with `value`, which is stolen. */
void
raise_stop_iteration(PyObject *value)
{
    if (value == Py_None) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    else {
        /* Not PyErr_SetObject() with the value, which would take a tuple apart. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
        if (stop != NULL) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
    }
    Py_DECREF(value);
}

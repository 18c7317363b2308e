/* A pair of switches through greenlet's C API: what a library in C pays. See switches.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <greenlet/greenlet.h>

static PyObject *
answer(PyObject *main, PyObject *ignored)
{
    for (;;) {
        PyObject *value = PyGreenlet_Switch((PyGreenlet *)main, NULL, NULL);
        if (value == NULL) {
            return NULL;
        }
        Py_DECREF(value);
    }
}

static PyMethodDef answer_method = {"answer", answer, METH_VARARGS, NULL};

static PyObject *
start(PyObject *module, PyObject *ignored)
{
    PyObject *other = NULL, *value = NULL, *function = NULL;
    PyObject *main = (PyObject *)PyGreenlet_GetCurrent();
    if (main != NULL) {
        function = PyCFunction_New(&answer_method, main);
    }
    if (function != NULL) {
        other = (PyObject *)PyGreenlet_New(function, NULL);
    }
    if (other != NULL) {
        value = PyGreenlet_Switch((PyGreenlet *)other, NULL, NULL);
        if (value == NULL) {
            Py_CLEAR(other);
        }
    }
    Py_XDECREF(value);
    Py_XDECREF(function);
    Py_XDECREF(main);
    return other;
}

static PyObject *
repeat(PyObject *module, PyObject *arguments)
{
    PyObject *other;
    Py_ssize_t pairs;
    if (!PyArg_ParseTuple(arguments, "On", &other, &pairs)) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < pairs; i++) {
        PyObject *value = PyGreenlet_Switch((PyGreenlet *)other, NULL, NULL);
        if (value == NULL) {
            return NULL;
        }
        Py_DECREF(value);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"start", start, METH_NOARGS, "Return a greenlet in C that answers every switch."},
    {"repeat", repeat, METH_VARARGS, "repeat(greenlet, pairs): switch to it, that many times."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "switches_c", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC
PyInit_switches_c(void)
{
    PyGreenlet_Import();
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyModule_Create(&definition);
}

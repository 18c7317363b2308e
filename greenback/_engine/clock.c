/* The clock of an interpreter. */

#include <stdio.h>
#include <string.h>

#include "engine.h"

/* Whether the kernel takes the time from the counter that `now_ns` reads. It stops to do so when it
   finds that the counter is not steady. */
static int
is_counted(void)
{
    char source[16] = "";
#if HAS_COUNTER
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
    if (file != NULL) {
        if (fgets(source, sizeof(source), file) == NULL) {
            source[0] = 0;
        }
        fclose(file);
    }
#endif
    return strcmp(source, "tsc\n") == 0;
}

static void
free_clock(PyObject *capsule)
{
    PyMem_Free(PyCapsule_GetPointer(capsule, GREENBACK_CLOCK));
}

/* A capsule. The clock lives as long as that. */
PyObject *
new_clock(void)
{
    Clock *clock = PyMem_Calloc(1, sizeof(Clock));
    if (clock == NULL) {
        return PyErr_NoMemory();
    }
    clock->is_counted = is_counted();
    PyObject *capsule = PyCapsule_New(clock, GREENBACK_CLOCK, free_clock);
    if (capsule == NULL) {
        PyMem_Free(clock);
    }
    return capsule;
}

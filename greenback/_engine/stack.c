/* How far the C stack of a thread reaches. */

#include "engine.h" /* first, since it declares pthread_getattr_np */

#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__) || defined(__linux__)
#include <pthread.h>
#endif
#if defined(__linux__) && !defined(__GLIBC__)
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* What the interpreter and libraries may need below the last bridge. */
#define RESERVE (128 * 1024)
/* Where the end cannot be found out, or the stack has none: nothing is below it. */
#define UNKNOWN 1

/* The address below which no more bridge begins in this thread. */
uintptr_t
end_of_stack(void)
{
    uintptr_t end = 0;
    size_t size = 0;
#if defined(_WIN32)
    ULONG_PTR low, high;
    GetCurrentThreadStackLimits(&low, &high);
    end = (uintptr_t)low;
    size = (size_t)(high - low);
#elif defined(__APPLE__)
    size = pthread_get_stacksize_np(pthread_self());
    end = (uintptr_t)pthread_get_stackaddr_np(pthread_self()) - size;
#elif defined(__linux__)
    pthread_attr_t attributes;
    void *address;
    size_t guard = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        if (pthread_attr_getstack(&attributes, &address, &size) == 0 &&
            pthread_attr_getguardsize(&attributes, &guard) == 0) {
            end = (uintptr_t)address + guard;
#if !defined(__GLIBC__)
            /* The main thread's stack grows up to a limit. musl tells its size so far. */
            struct rlimit limit;
            if (getpid() == (pid_t)syscall(SYS_gettid) && getrlimit(RLIMIT_STACK, &limit) == 0) {
                uintptr_t top = (uintptr_t)address + size;
                end = limit.rlim_cur < top ? top - limit.rlim_cur : 0;
                size = limit.rlim_cur;
            }
#endif
        }
        pthread_attr_destroy(&attributes);
    }
#endif
    if (end == 0) {
        return UNKNOWN;
    }
    size_t reserve = size / 4 < RESERVE ? size / 4 : RESERVE;
    return end + reserve;
}

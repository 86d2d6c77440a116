/* Clocks that jump, for one service: preloaded, it adds an offset to what CLOCK_REALTIME and CLOCK_BOOTTIME say.
 *
 * CHAOS_CLOCK names a file of two native 64-bit integers, nanoseconds of each clock, which the driver changes at any
 * time.  A jump of CLOCK_REALTIME is a clock set by hand or by NTP, one of CLOCK_BOOTTIME (forward only) a machine that
 * was suspended.  Absolute timers on CLOCK_BOOTTIME are translated back for the kernel; those armed before a jump are
 * late by it, as they would not be after a suspend.  Jobs get an environment of their own and see true clocks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { DESCRIPTORS = 65536 };
static const long long SECOND = 1000000000LL;
static volatile long long none[2];
static volatile long long *offsets = none; /* REALTIME, BOOTTIME */
static unsigned char on_boottime[DESCRIPTORS];
static int (*true_gettime)(clockid_t, struct timespec *);
static int (*true_create)(int, int);
static int (*true_settime)(int, int, const struct itimerspec *, struct itimerspec *);

__attribute__((constructor)) static void open_offsets(void) {
    true_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    true_create = dlsym(RTLD_NEXT, "timerfd_create");
    true_settime = dlsym(RTLD_NEXT, "timerfd_settime");
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) offsets = mapped;
}

static void shift(struct timespec *time, long long by) {
    long long ns = time->tv_sec * SECOND + time->tv_nsec + by;
    time->tv_sec = ns / SECOND;
    time->tv_nsec = ns % SECOND;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = true_gettime ? true_gettime(clock, time) : (int)syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME) shift(time, offsets[0]);
    if (!failed && clock == CLOCK_BOOTTIME) shift(time, offsets[1]);
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

int timerfd_create(int clock, int flags) {
    int descriptor = true_create(clock, flags);
    if (descriptor >= 0 && descriptor < DESCRIPTORS) on_boottime[descriptor] = clock == CLOCK_BOOTTIME;
    return descriptor;
}

int timerfd_settime(int descriptor, int flags, const struct itimerspec *wanted, struct itimerspec *before) {
    struct itimerspec true_time = *wanted;
    int armed = wanted->it_value.tv_sec || wanted->it_value.tv_nsec;
    int ours = descriptor >= 0 && descriptor < DESCRIPTORS && on_boottime[descriptor];
    if (ours && armed && (flags & TFD_TIMER_ABSTIME)) {
        shift(&true_time.it_value, -offsets[1]);
        if (true_time.it_value.tv_sec < 0) true_time.it_value = (struct timespec){0, 1}; /* long past: now */
    }
    return true_settime(descriptor, flags, &true_time, before);
}

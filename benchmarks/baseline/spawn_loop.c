/* What the core is measured against: the leanest correct loop in C that runs one program COUNT times, WORKERS at once.
 *
 *     cc -O2 -pthread -o spawn_loop spawn_loop.c
 *     spawn_loop METHOD THREADS WORKERS COUNT FOLDER PROGRAM
 *
 * METHOD is `spawn`, posix_spawn(3); `clone`, clone(VM|VFORK) by hand; or `watch`, the same with what a scheduler
 * cannot do without.  Every child gets what a job gets: a session of its own, no signal blocked or ignored, /dev/null as
 * stdin, stdout and stderr in files of its own in FOLDER, no other descriptor.  Each thread keeps WORKERS/THREADS children
 * running and reaps its own, with their rusage, by wait4(__WNOTHREAD): no queue, no clock.  `watch` sets the child's
 * folder and two limits, and learns of ends by a pidfd in epoll, since a thread in wait4 hears of nothing else (of a
 * timeout, a cancel, new work).  Prints the seconds, and the processor's seconds of all processes; exit 0 only if every
 * child's was.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LOG_FLAGS = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NOCTTY, LOG_MODE = 0640, STACK_BYTES = 64 * 1024 };

struct child {
    char *const *argv;
    char out[4096], err[4096];
    int pidfd;
};

typedef pid_t (*start_fn)(struct child *child, void *stack);
typedef int (*reap_fn)(int epoll);

static char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};
static const char *folder, *program;
static int children_of_thread, workers_of_thread;
static start_fn start;
static reap_fn reap;

static void give_up(const char *what) {
    perror(what);
    exit(2);
}

/* Opened close-on-exec by us, all other descriptors never reach a child; the ones it gets are the three it opens. */
static pid_t start_by_spawn(struct child *child, void *stack) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    pid_t pid;
    (void)stack;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, child->out, LOG_FLAGS, LOG_MODE);
    posix_spawn_file_actions_addopen(&files, 2, child->err, LOG_FLAGS, LOG_MODE);
    errno = posix_spawn(&pid, program, &files, &attributes, child->argv, environment);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return errno == 0 ? pid : -1;
}

static int clone_child(void *argument) {
    struct child *child = argument;
    /* Closes what it shares with nobody: without CLONE_FILES the table is a copy, here of three descriptors. */
    close(0);
    close(1);
    close(2);
    if (setsid() < 0 || open("/dev/null", O_RDONLY) != 0 || open(child->out, LOG_FLAGS, LOG_MODE) != 1 ||
        open(child->err, LOG_FLAGS, LOG_MODE) != 2)
        _exit(126);
    execve(program, child->argv, environment);
    _exit(127);
}

static pid_t start_by_clone(struct child *child, void *stack) {
    return clone(clone_child, (char *)stack + STACK_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD, child);
}

static int watch_child(void *argument) {
    const struct rlimit files = {1024, 4096}, mark = {1UL << 61, 1UL << 62};
    if (syscall(SYS_close_range, 0U, ~0U, 1U << 1 /* CLOSE_RANGE_UNSHARE */) != 0 || chdir("/") != 0 ||
        setrlimit(RLIMIT_NOFILE, &files) != 0 || setrlimit(15 /* RLIMIT_RTTIME */, &mark) != 0)
        _exit(126);
    return clone_child(argument);
}

static pid_t start_by_watch(struct child *child, void *stack) {
    return clone(watch_child, (char *)stack + STACK_BYTES,
                 CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD | SIGCHLD, child, &child->pidfd);
}

/* Both return the number of children that were reaped, and count those that failed. */
static _Thread_local long failed;

static int reap_by_wait4(int epoll) {
    struct rusage usage;
    int status;
    (void)epoll;
    if (wait4(-1, &status, __WNOTHREAD, &usage) < 0)
        give_up("wait4");
    failed += status != 0;
    return 1;
}

static int reap_by_epoll(int epoll) {
    struct epoll_event events[64];
    struct rusage usage;
    int status;
    const int ended = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < ended; ++i) {
        const pid_t pid = (pid_t)(events[i].data.u64 >> 32);
        const int pidfd = (int)(events[i].data.u64 & 0xffffffff);
        if (wait4(pid, &status, WNOHANG, &usage) != pid)
            give_up("wait4");
        failed += status != 0;
        epoll_ctl(epoll, EPOLL_CTL_DEL, pidfd, NULL);
        close(pidfd);
    }
    return ended;
}

static void *run(void *number) {
    char *const argv[] = {(char *)program, NULL};
    struct child child = {.argv = argv};
    void *stack = aligned_alloc(16, STACK_BYTES);
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    long started = 0, running = 0;
    pid_t pid;
    if (stack == NULL || epoll < 0)
        give_up("stack");
    while (started < children_of_thread || running > 0) {
        if (started < children_of_thread && running < workers_of_thread) {
            snprintf(child.out, sizeof child.out, "%s/%ld.%ld.out", folder, (long)number, started);
            snprintf(child.err, sizeof child.err, "%s/%ld.%ld.err", folder, (long)number, started);
            child.pidfd = -1;
            if ((pid = start(&child, stack)) < 0)
                give_up("start");
            if (child.pidfd >= 0) {
                struct epoll_event interest = {.events = EPOLLIN,
                                               .data.u64 = ((unsigned long)pid << 32) | (unsigned)child.pidfd};
                epoll_ctl(epoll, EPOLL_CTL_ADD, child.pidfd, &interest);
            }
            ++started;
            ++running;
        } else {
            running -= reap(epoll);
        }
    }
    close(epoll);
    free(stack);
    return (void *)failed;
}

static double processor_seconds(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    struct timespec before, after;
    pthread_t threads[64];
    long all_failed = 0;
    void *result;
    if (argc != 7 || atoi(argv[2]) < 1 || atoi(argv[2]) > 64) {
        fprintf(stderr, "usage: spawn_loop spawn|clone|watch THREADS WORKERS COUNT FOLDER PROGRAM\n");
        return 2;
    }
    const int count = atoi(argv[2]);
    const int watched = strcmp(argv[1], "watch") == 0;
    start = watched ? start_by_watch : strcmp(argv[1], "clone") == 0 ? start_by_clone : start_by_spawn;
    reap = watched ? reap_by_epoll : reap_by_wait4;
    workers_of_thread = atoi(argv[3]) / count;
    children_of_thread = atoi(argv[4]) / count;
    folder = argv[5];
    program = argv[6];
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (long i = 0; i < count; ++i)
        if ((errno = pthread_create(&threads[i], NULL, run, (void *)i)) != 0)
            give_up("pthread_create");
    for (int i = 0; i < count; ++i) {
        pthread_join(threads[i], &result);
        all_failed += (long)result;
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    printf("%.6f %.6f\n", (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9,
           processor_seconds(RUSAGE_SELF) + processor_seconds(RUSAGE_CHILDREN));
    return all_failed != 0;
}

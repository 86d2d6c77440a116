/* What the core is measured against: the leanest correct loop in C that runs one program COUNT times, WORKERS at once.
 *
 *     cc -O2 -pthread -o spawn_loop spawn_loop.c
 *     spawn_loop METHOD THREADS WORKERS COUNT FOLDER PROGRAM
 *
 * METHOD is `spawn`, posix_spawn(3), or `clone`, clone(VM|VFORK) by hand.  Every child gets what a job gets: a session
 * of its own, no signal blocked or ignored, /dev/null as stdin, stdout and stderr in files of its own in FOLDER, no
 * other descriptor.  Each thread keeps WORKERS/THREADS children running and reaps its own, with their rusage, by
 * wait4(__WNOTHREAD): no pidfd, no epoll, no queue, no clock.  Prints the seconds, and the processor's seconds of all
 * processes; exit 0 only if every child's was.
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
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LOG_FLAGS = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NOCTTY, LOG_MODE = 0640, STACK_BYTES = 64 * 1024 };

struct child {
    char *const *argv;
    char out[4096], err[4096];
};

typedef pid_t (*start_fn)(struct child *child, void *stack);

static char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};
static const char *folder, *program;
static int children_of_thread, workers_of_thread;
static start_fn start;

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

static void *run(void *number) {
    char *const argv[] = {(char *)program, NULL};
    struct child child = {.argv = argv};
    void *stack = aligned_alloc(16, STACK_BYTES);
    long failed = 0, started = 0, running = 0;
    struct rusage usage;
    int status;
    if (stack == NULL)
        give_up("stack");
    while (started < children_of_thread || running > 0) {
        if (started < children_of_thread && running < workers_of_thread) {
            snprintf(child.out, sizeof child.out, "%s/%ld.%ld.out", folder, (long)number, started);
            snprintf(child.err, sizeof child.err, "%s/%ld.%ld.err", folder, (long)number, started);
            if (start(&child, stack) < 0)
                give_up("start");
            ++started;
            ++running;
        } else {
            if (wait4(-1, &status, __WNOTHREAD, &usage) < 0)
                give_up("wait4");
            failed += status != 0;
            --running;
        }
    }
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
    long failed = 0;
    void *result;
    if (argc != 7 || atoi(argv[2]) < 1 || atoi(argv[2]) > 64) {
        fprintf(stderr, "usage: spawn_loop spawn|clone THREADS WORKERS COUNT FOLDER PROGRAM\n");
        return 2;
    }
    const int count = atoi(argv[2]);
    start = strcmp(argv[1], "clone") == 0 ? start_by_clone : start_by_spawn;
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
        failed += (long)result;
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    printf("%.6f %.6f\n", (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9,
           processor_seconds(RUSAGE_SELF) + processor_seconds(RUSAGE_CHILDREN));
    return failed != 0;
}

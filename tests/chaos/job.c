/* The job of the chaos driver: it bears witness of its own execution.
 *
 *     job LEDGER LOCKS SLEEP_MS CODE BAD_ATTEMPTS
 *
 * Appends one line when it begins and one before it ends, each by a single write to a file opened with O_APPEND, so lines
 * of jobs that run side by side never mix:
 *
 *     S TASK ATTEMPT PID ALONE NANOSECONDS          E TASK ATTEMPT PID CODE NANOSECONDS
 *
 * ALONE is 0 if another execution of the same task is alive: both hold a lock on LOCKS/TASK, which the kernel frees
 * however a process ends.  The exit code is CODE up to attempt BAD_ATTEMPTS, 0 afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { BROKEN = 99 }; /* exit code of a job that could not bear witness: the checker knows no such code */

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void append(int ledger, char kind, const char *task, const char *attempt, int value) {
    char line[256];
    int length = snprintf(line, sizeof line, "%c %s %s %d %d %lld\n", kind, task, attempt, (int)getpid(), value, now_ns());
    if (write(ledger, line, length) != length) _exit(BROKEN);
}

int main(int count, char **words) {
    const char *task = getenv("PYSCHED_TASK_ID"), *attempt = getenv("PYSCHED_ATTEMPT");
    char path[4096];
    if (count != 6 || !task || !attempt) return BROKEN;
    int ledger = open(words[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    snprintf(path, sizeof path, "%s/%s", words[2], task);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (ledger < 0 || lock < 0) return BROKEN;
    int alone = flock(lock, LOCK_EX | LOCK_NB) == 0;
    append(ledger, 'S', task, attempt, alone);

    long ms = atol(words[3]);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
    int code = atoi(attempt) <= atoi(words[5]) ? atoi(words[4]) : 0;
    append(ledger, 'E', task, attempt, code);
    return code;
}

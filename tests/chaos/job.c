/* The job of the chaos driver: it bears witness of its own execution.
 *
 *     job LEDGER LOCKS SLEEP_MS CODE BAD_ATTEMPTS GRAB_MIB
 *
 * Appends one line when it begins and one before it ends, each by a single write to a file opened with O_APPEND, so lines
 * of jobs that run side by side never mix:
 *
 *     S TASK ATTEMPT PID ALONE NANOSECONDS NODE GPUS 1          E TASK ATTEMPT PID CODE NANOSECONDS
 *
 * ALONE is 0 if another execution of the same task is alive: both hold a lock on LOCKS/TASK, which the kernel frees
 * however a process ends.  GPUS are the devices that it was given, or -; the last word is for witnesses that make several
 * calls in one process (`witness.py`).  It holds GRAB_MIB of memory, says TASK ATTEMPT on standard output, and leaves the
 * same as its result.  The exit code is CODE up to attempt BAD_ATTEMPTS, 0 afterwards.
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

static void append(int file, const char *line, int length) {
    if (write(file, line, length) != length) _exit(BROKEN);
}

static void grab(long mib) {
    char *memory = malloc(mib << 20);
    if (!memory) _exit(BROKEN);
    memset(memory, 1, mib << 20);
    __asm__ volatile("" : : "r"(memory) : "memory"); /* it is wanted, whatever the compiler thinks */
}

static void leave_result(const char *path, const char *task, const char *attempt) {
    char text[256];
    int length = snprintf(text, sizeof text, "{\"task\": \"%s\", \"attempt\": %s}", task, attempt);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) _exit(BROKEN);
    append(file, text, length);
    close(file);
}

int main(int count, char **words) {
    const char *task = getenv("PYSCHED_TASK_ID"), *attempt = getenv("PYSCHED_ATTEMPT");
    const char *node = getenv("PYSCHED_NODE"), *result = getenv("PYSCHED_RESULT"), *gpus = getenv("CUDA_VISIBLE_DEVICES");
    char path[4096], line[512];
    if (count != 7 || !task || !attempt || !node || !result) return BROKEN;
    int ledger = open(words[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    snprintf(path, sizeof path, "%s/%s", words[2], task);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (ledger < 0 || lock < 0) return BROKEN;
    int alone = flock(lock, LOCK_EX | LOCK_NB) == 0;
    append(ledger, line, snprintf(line, sizeof line, "S %s %s %d %d %lld %s %s 1\n", task, attempt, (int)getpid(), alone,
                                  now_ns(), node, gpus ? gpus : "-"));

    if (atol(words[6])) grab(atol(words[6]));
    long ms = atol(words[3]);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
    int code = atoi(attempt) <= atoi(words[5]) ? atoi(words[4]) : 0;
    append(STDOUT_FILENO, line, snprintf(line, sizeof line, "%s %s\n", task, attempt));
    leave_result(result, task, attempt);
    append(ledger, line, snprintf(line, sizeof line, "E %s %s %d %d %lld\n", task, attempt, (int)getpid(), code, now_ns()));
    return code;
}

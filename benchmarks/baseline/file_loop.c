/* What intake is measured against: scan a folder, read each file, remove it.
 *
 *     file_loop FOLDER
 *
 * Prints the seconds, and the processor's seconds; exit 0 only if every file was read and removed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void give_up(const char *what) {
    perror(what);
    exit(2);
}

int main(int argc, char **argv) {
    struct timespec before, after;
    struct rusage usage;
    struct dirent *entry;
    char **names = NULL, data[4096];
    size_t count = 0, room = 0;
    if (argc != 2) {
        fprintf(stderr, "usage: file_loop FOLDER\n");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &before);
    DIR *folder = opendir(argv[1]);
    if (folder == NULL)
        give_up("opendir");
    while ((entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        if (count == room && (names = realloc(names, (room = 2 * room + 1024) * sizeof *names)) == NULL)
            give_up("realloc");
        if ((names[count++] = strdup(entry->d_name)) == NULL)
            give_up("strdup");
    }
    for (size_t i = 0; i < count; ++i) {
        int file = openat(dirfd(folder), names[i], O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (file < 0 || read(file, data, sizeof data) <= 0 || close(file) < 0 || unlinkat(dirfd(folder), names[i], 0) < 0)
            give_up(names[i]);
        free(names[i]);
    }
    free(names);
    closedir(folder);
    clock_gettime(CLOCK_MONOTONIC, &after);
    getrusage(RUSAGE_SELF, &usage);
    printf("%.6f %.6f\n", (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    return 0;
}

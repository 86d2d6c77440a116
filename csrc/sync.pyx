# How a batch of written files gets to the disk.
#
#     few of them, another kind of file system, much else is dirty, or lately no gain ──► fsync of each, by some threads
#     else ──► syncfs, once ──► it took longer than those would have: none for fifty times as long
#                          └──► it failed: what is written anew (under other descriptors) gets an fsync each
#
# One flush of the disk in the place of many; but syncfs writes out, and waits for, all that anybody has written to that
# file system, so it is asked for only while that is little.  What fsyncs cost is measured once in a while, and always
# before the first syncfs.

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t
from libc.stdlib cimport strtoll
from libc.string cimport strchr, strstr
from libcpp.atomic cimport atomic, memory_order_relaxed
from posix.fcntl cimport O_RDONLY, open as open_path
from posix.unistd cimport close, fsync, read

from native cimport CLOCK_BOOTTIME, O_CLOEXEC, array, fstatfs, statfs, syncfs, thread, try_thread

cdef enum:
    SYNC_HELPERS = 7
    FILES_A_HELPER = 4      # for fewer a thread is not worth while
    FEWEST_TOGETHER = 64    # a syncfs is no slower from some twenty on, but what others have written waits for its turn
    SYNCED_TOGETHER = 4096
    MEASURED_EVERY = 64     # batches
    REST = 50               # times what a syncfs has cost that was no gain
    # ext2 to ext4 and XFS: their syncfs is known to write all and to tell of errors.  That of overlays and FUSE is not,
    # that of btrfs commits what an fsync needs not.
    EXT_MAGIC = 0xEF53
    XFS_MAGIC = 0x58465342

cdef int64_t QUICK_NS = 50_000              # a thread costs as much
cdef int64_t REST_AFTER_FAILURE_NS = 60_000_000_000
cdef int64_t MOST_DIRTY_KB = 64 * 1024      # a disk takes as much in half a second

ctypedef thread* ThreadPtr

cdef struct NewFile:
    const char* temporary
    const char* name
    const char* data
    size_t size
    int descriptor
    int error           # of its fsync


cdef bint reports_errors() except -1:
    """Since Linux 5.8 syncfs tells of what could not be written."""
    return tuple([int(part) for part in os.uname().release.split("-")[0].split(".")[:2]]) >= (5, 8)


cdef bint SYNCFS_REPORTS = reports_errors()


cdef cppclass Syncing:  # shared by the threads that sync a batch
    NewFile* files
    size_t count
    atomic[size_t] next


cdef cppclass Lessons:  # what this process knows of its disk; relaxed: each stands for itself
    atomic[int64_t] fsync_ns        # a file of a batch; 0: not known
    atomic[int64_t] rest_until_ns
    atomic[int64_t] not_measured    # batches since


cdef Lessons lessons


# ---- one by one ------------------------------------------------------------------------------------------------------

cdef inline void file_sync(NewFile* file) noexcept nogil:
    if fsync(file.descriptor) != 0:
        file.error = errno


cdef void files_sync_some(void* argument) noexcept nogil:
    cdef Syncing* syncing = <Syncing*> argument
    cdef size_t i
    while True:
        # relaxed: it only deals out the files; starting a thread and joining it order all else.
        i = syncing.next.fetch_add(1, memory_order_relaxed)
        if i >= syncing.count:
            return
        file_sync(&syncing.files[i])


cdef size_t files_sync_quick(NewFile* files, size_t count) noexcept nogil:
    """As long as nothing is waited for, as in memory; how many."""
    cdef size_t i
    cdef int64_t end_ns, begin_ns = now(CLOCK_BOOTTIME)
    for i in range(count):
        file_sync(&files[i])
        end_ns = now(CLOCK_BOOTTIME)
        if end_ns - begin_ns >= QUICK_NS:
            return i + 1
        begin_ns = end_ns
    return count


cdef void files_sync(NewFile* files, size_t count) noexcept nogil:
    """Wait for all that is written, by several threads if it takes time: each fsync has the disk's own cache flushed,
    and flushes that are wanted at the same time become one."""
    cdef int64_t begin_ns = now(CLOCK_BOOTTIME)
    cdef Syncing syncing
    cdef array[ThreadPtr] helpers
    cdef size_t i, _, done = files_sync_quick(files, count)
    cdef size_t wanted = min(<size_t> SYNC_HELPERS, (count - done) // FILES_A_HELPER)
    syncing.files = files
    syncing.count = count
    syncing.next.store(done, memory_order_relaxed)
    for _ in range(wanted):
        helpers.push_back(try_thread(files_sync_some, &syncing, b"pysched-fsync"))
    files_sync_some(&syncing)
    for i in range(wanted):
        if helpers[i] != NULL:
            helpers[i].join()
            del helpers[i]
    if count >= FEWEST_TOGETHER:
        fsyncs_measured((now(CLOCK_BOOTTIME) - begin_ns) // <int64_t> count)


cdef inline void fsyncs_measured(int64_t cost_ns) noexcept nogil:
    cdef int64_t before_ns = lessons.fsync_ns.load(memory_order_relaxed)
    if before_ns:
        cost_ns = before_ns + (cost_ns - before_ns) // 4
    lessons.fsync_ns.store(max(<int64_t> 1, cost_ns), memory_order_relaxed)
    lessons.not_measured.store(0, memory_order_relaxed)


# ---- together --------------------------------------------------------------------------------------------------------

cdef int64_t amount_kb(const char* text, const char* name) noexcept nogil:
    cdef const char* place = strstr(text, name)
    while place != NULL and place != text and place[-1] != 10:  # at the beginning of a line
        place = strstr(place + 1, name)
    return -1 if place == NULL else strtoll(strchr(place, 58) + 1, NULL, 10)  # :


cdef bint is_little_dirty() noexcept nogil:
    """Whether little waits in memory for disks, on the whole machine; False where that is not to be known."""
    cdef char[4096] text
    cdef int64_t dirty_kb, underway_kb
    cdef int descriptor = open_path(b"/proc/meminfo", O_RDONLY | O_CLOEXEC)
    cdef ssize_t size
    if descriptor < 0:
        return False
    size = read(descriptor, text, sizeof(text) - 1)
    close(descriptor)
    text[max(<ssize_t> 0, size)] = 0
    dirty_kb, underway_kb = amount_kb(text, b"Dirty:"), amount_kb(text, b"Writeback:")
    return dirty_kb >= 0 and underway_kb >= 0 and dirty_kb + underway_kb <= MOST_DIRTY_KB


cdef bint is_worth_a_filesystem_sync(int folder, size_t count) noexcept nogil:
    cdef statfs status
    return (
        SYNCFS_REPORTS and count >= FEWEST_TOGETHER
        and lessons.fsync_ns.load(memory_order_relaxed) > 0
        and lessons.not_measured.load(memory_order_relaxed) < MEASURED_EVERY
        and lessons.rest_until_ns.load(memory_order_relaxed) <= now(CLOCK_BOOTTIME)
        and fstatfs(folder, &status) == 0 and (status.f_type == EXT_MAGIC or status.f_type == XFS_MAGIC)
        and is_little_dirty()
    )


cdef bint filesystem_sync(int folder, int last, size_t count) noexcept nogil:
    """Whether all is on the disk that has been written since `folder` was opened; `last`: the last file of `count`."""
    cdef int64_t spent_ns, begin_ns = now(CLOCK_BOOTTIME)
    # One fsync more: without a journal the inodes are written only after syncfs has flushed the disk.
    cdef bint good = syncfs(folder) == 0 and fsync(last) == 0
    cdef int64_t end_ns = now(CLOCK_BOOTTIME)
    spent_ns = end_ns - begin_ns
    lessons.not_measured.fetch_add(1, memory_order_relaxed)
    if not good:
        lessons.rest_until_ns.store(end_ns + REST_AFTER_FAILURE_NS, memory_order_relaxed)
    elif spent_ns > <int64_t> count * lessons.fsync_ns.load(memory_order_relaxed):
        lessons.rest_until_ns.store(end_ns + REST * spent_ns, memory_order_relaxed)
    return good

# Leaves: control groups (v2) in which attempts are born, so that the kernel knows all that descends from one.
#
#     mkdir ──► an attempt's ──it exits──► used ──take: nobody is in it──► the next attempt's
#                   │                        ╰──somebody is──╮
#                   ╰──it is killed──────────────────────────┴──► left ──rmdir, once nobody is in it
#
# A node has one folder below its own cgroup and the leaves in it, named by numbers.  The child is born in its leaf
# (CLONE_INTO_CGROUP), so there is no moment in which it could fork outside.  To make and remove a leaf for each attempt
# would cost five times as much as that, so those are used again whose attempt has exited and left nobody.  A leaf that
# has seen a KILL never is: Linux ends whoever is born in one later (it compares how often that cgroup was killed with
# how often the parent's was).
#
# Attempts with a limit of memory have leaves in a folder of their own, where the memory controller is (see
# pysched/delegation.py).  At its limit the kernel ends all that is in such a leaf: its leader has ended by KILL, and it
# tells why.  Pages of files that attempts have read or written stay with their leaf, which is one more reason to use it
# again (one that is removed lives on in the kernel until they go), and never for a lower limit: to set that would take
# as long as it takes to be rid of them.
#
# All of this is a better way to end trees, and no condition for running them: whoever gets no leaf, for whatever
# reason, is started without, and found by its mark (tree.pyx).
#
# A descriptor for each leaf would double those of an attempt.  The first few leaves, which are used again and again,
# have two of their own; of the others the files are opened when they are needed.
#
# An adopted attempt is in the leaf that the kernel says its leader is in.  All others that lie in the folder when a
# Core begins are left.

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fgets, fopen, snprintf, sscanf
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, strchr, strlen, strncmp
from posix.fcntl cimport O_DIRECTORY, O_RDONLY, O_WRONLY, open as open_file
from posix.resource cimport rlimit
from posix.types cimport pid_t
from posix.unistd cimport close, pread, read, write

from native cimport (
    AT_REMOVEDIR,
    CLOCK_BOOTTIME,
    O_CLOEXEC,
    O_NOFOLLOW,
    O_PATH,
    STEP_NONE,
    SignalReset,
    Spawn,
    array,
    checked_realloc,
    mkdirat,
    openat,
    padded_mutex,
    unlinkat,
)

cdef enum:
    LEAF_PATH_BYTES = 32    # a number and a file's name
    EVENTS_BYTES = 256
    LEAVES_RESTING_MAX = 1024  # those above are removed; one takes 8 KiB of the kernel's memory
    LEAVES_HELD_MAX = 64    # the first ones, with descriptors of their own …
    FILES_PER_HELD = 32     # … as long as there are so many descriptors for each of them
    REMOVED_AT_ONCE = 2     # of those that are left, when one is made

cdef int64_t LEAVES_REST_NS = 1_000_000_000  # after the kernel has refused one

cdef cppclass Leaf:
    Leaves* leaves      # that it is one of
    uint32_t number     # its name
    int64_t limit       # of memory, bytes; 0: none
    int64_t oom_events  # that it had before its attempt
    int folder          # O_PATH; -1: none is held open, nor of `events`
    int events          # cgroup.events


ctypedef Leaf* LeafPtr


cdef cppclass Leaves:
    int folder          # -1: there is no place for leaves
    bint limits         # they have limits of memory
    char* own           # the folder's path as /proc/PID/cgroup says it; NULL: not below our own cgroup
    uint32_t held_max
    padded_mutex mutex  # held for a few memory accesses and never while anything is waited for; guards what follows
    array[LeafPtr] used     # the one that is used next is the last
    array[LeafPtr] left
    uint32_t last       # number given out
    size_t turn         # in `left`
    int64_t rests_until_ns


# ---- one leaf --------------------------------------------------------------------------------------------------------

cdef int leaf_open(const Leaves* leaves, const Leaf* leaf, const char* file, int flags) noexcept nogil:
    """A descriptor of one of its files, or with "" of itself; -1 with errno."""
    cdef char[LEAF_PATH_BYTES] path
    snprintf(path, sizeof(path), b"%u/%s", leaf.number, file)
    return openat(leaves.folder, path, flags | O_CLOEXEC | O_NOFOLLOW)


cdef inline int leaf_open_folder(const Leaves* leaves, const Leaf* leaf) noexcept nogil:
    return leaf_open(leaves, leaf, b"", O_PATH | O_DIRECTORY)


cdef inline int leaf_open_events(const Leaves* leaves, const Leaf* leaf) noexcept nogil:
    return leaf_open(leaves, leaf, b"cgroup.events", O_RDONLY)


cdef bint says(int events, const char* what) noexcept nogil:
    """Whether what stands in cgroup.events begins so."""
    cdef char[EVENTS_BYTES] text
    cdef ssize_t wanted = <ssize_t> strlen(what)
    return pread(events, text, sizeof(text), 0) >= wanted and memcmp(text, what, <size_t> wanted) == 0


cdef bint leaf_says(const Leaves* leaves, const Leaf* leaf, const char* what) noexcept nogil:
    cdef int events = leaf.events if leaf.events >= 0 else leaf_open_events(leaves, leaf)
    cdef bint said = events >= 0 and says(events, what)
    if events >= 0 and events != leaf.events:
        close(events)
    return said


cdef inline bint leaf_is_ready(const Leaves* leaves, const Leaf* leaf) noexcept nogil:
    """Nobody runs in it or below it, and nobody who comes would be held up.  Zombies do not count."""
    return leaf_says(leaves, leaf, b"populated 0\nfrozen 0\n")


cdef inline bint leaf_has_members(const Leaves* leaves, const Leaf* leaf) noexcept nogil:
    """Whether it is certain that somebody is in it."""
    return leaf_says(leaves, leaf, b"populated 1\n")


cdef void leaf_members(const Leaves* leaves, const Leaf* leaf, array[pid_t]* members) noexcept nogil:
    """Append the processes that are in it; none, if that cannot be read."""
    cdef int file = leaf_open(leaves, leaf, b"cgroup.procs", O_RDONLY)
    cdef char[4096] text
    cdef ssize_t size = 0, i
    cdef pid_t member = 0
    if file < 0:
        return
    size = read(file, text, sizeof(text))
    while size > 0:
        for i in range(size):
            if c'0' <= text[i] <= c'9':
                member = member * 10 + text[i] - c'0'
            else:
                members.push_back(member)
                member = 0
        size = read(file, text, sizeof(text))
    close(file)


cdef bint leaf_write(const Leaves* leaves, const Leaf* leaf, const char* name, const char* text) noexcept nogil:
    cdef int file = leaf_open(leaves, leaf, name, O_WRONLY)
    cdef ssize_t size = <ssize_t> strlen(text)
    cdef bint written = file >= 0 and write(file, text, <size_t> size) == size
    if file >= 0:
        close(file)
    return written


cdef bint leaf_kill(const Leaves* leaves, const Leaf* leaf) noexcept nogil:
    """KILL to all that are in it and below it, those included that are being forked; False: not so."""
    return leaf_write(leaves, leaf, b"cgroup.kill", b"1")


cdef int64_t leaf_number_in(const Leaves* leaves, const Leaf* leaf, const char* name, const char* key) noexcept nogil:
    """What stands in a file of a number, or behind `key` at the beginning of a line; -1: there is no such thing."""
    cdef int file = leaf_open(leaves, leaf, name, O_RDONLY)
    cdef char[EVENTS_BYTES] text
    cdef const char* place = text
    cdef ssize_t size = -1
    cdef long long number = -1
    if file >= 0:
        size = read(file, text, sizeof(text) - 1)
        close(file)
    if size < 0:
        return -1
    text[size] = 0
    while place != NULL and strncmp(place, key, strlen(key)) != 0:
        place = strchr(place, c'\n')
        if place != NULL:
            place += 1
    if place == NULL or sscanf(place + strlen(key), b"%lld", &number) != 1:
        return -1
    return number


cdef inline int64_t leaf_oom_events(const Leaves* leaves, const Leaf* leaf) noexcept nogil:
    """How often there was no memory to be had at its own limit."""
    return leaf_number_in(leaves, leaf, b"memory.events.local", b"oom ")


cdef bint leaf_limit(const Leaves* leaves, Leaf* leaf, int64_t memory) noexcept nogil:
    """Let all that is in it have so many bytes and no swap, and end all of it at that limit; False: not so."""
    cdef char[24] text
    if leaf.limit == 0:
        leaf_write(leaves, leaf, b"memory.swap.max", b"0")  # there is no such file where swap is not counted
        if not leaf_write(leaves, leaf, b"memory.oom.group", b"1"):
            return False
    if leaf.limit != memory:
        snprintf(text, sizeof(text), b"%lld", <long long> memory)
        if not leaf_write(leaves, leaf, b"memory.max", text):
            return False
        leaf.limit = memory
    leaf.oom_events = leaf_oom_events(leaves, leaf)
    return leaf.oom_events >= 0


cdef Leaf* leaf_new(Leaves* leaves, uint32_t number) noexcept nogil:
    cdef Leaf* leaf = new Leaf()
    leaf.leaves = leaves
    leaf.number = number
    leaf.folder = leaf.events = -1
    return leaf


cdef void leaf_hold(const Leaves* leaves, Leaf* leaf) noexcept nogil:
    """Give it descriptors, if it is one that has some."""
    if leaf.folder >= 0 or leaf.number > leaves.held_max:
        return
    leaf.folder = leaf_open_folder(leaves, leaf)
    leaf.events = leaf_open_events(leaves, leaf) if leaf.folder >= 0 else -1
    if leaf.folder >= 0 and leaf.events < 0:
        close(leaf.folder)
        leaf.folder = -1


cdef void leaf_free(Leaf* leaf) noexcept nogil:
    """The folder stays."""
    if leaf.folder >= 0:
        close(leaf.folder)
        close(leaf.events)
    del leaf


cdef bint leaf_remove(Leaves* leaves, Leaf* leaf) noexcept nogil:
    """And free it; False: somebody is in it, or has made others below."""
    cdef char[LEAF_PATH_BYTES] path
    snprintf(path, sizeof(path), b"%u", leaf.number)
    if unlinkat(leaves.folder, path, AT_REMOVEDIR) != 0:
        return False
    leaf_free(leaf)
    return True


# ---- a leaf for an attempt -------------------------------------------------------------------------------------------

cdef Leaf* leaves_take(Leaves* leaves, int64_t memory) noexcept nogil:
    """An empty one, with a limit of so many bytes if they have limits; NULL: there is none to be had."""
    cdef Leaf* leaf
    if leaves.folder < 0:
        return NULL
    leaf = leaves_find(leaves, memory)
    if leaves.limits and leaf != NULL and not leaf_limit(leaves, leaf, memory):
        leaves_give_back(leaves, leaf, True)
        leaves_rest(leaves)
        return NULL
    return leaf


cdef Leaf* leaves_find(Leaves* leaves, int64_t memory) noexcept nogil:
    cdef Leaf* leaf = leaves_pop_used(leaves, memory)
    cdef int _
    if leaf != NULL:
        if leaf_is_ready(leaves, leaf):
            return leaf
        leaves_push(leaves, &leaves.left, leaf)
    for _ in range(REMOVED_AT_ONCE):
        leaf = leaves_pop_left(leaves)
        if leaf != NULL and not leaf_remove(leaves, leaf):
            leaves_push(leaves, &leaves.left, leaf)
    return leaves_make(leaves)


cdef Leaf* leaves_pop_used(Leaves* leaves, int64_t memory) noexcept nogil:
    """The last one that has no higher limit; NULL: there is none."""
    cdef Leaf* leaf = NULL
    cdef size_t i
    leaves.mutex.lock()
    i = leaves.used.size()
    while i > 0 and leaf == NULL:
        i -= 1
        if leaves.used[i].limit <= memory or not leaves.limits:
            leaf = leaves.used[i]
            leaves.used[i] = leaves.used.back()
            leaves.used.pop_back()
    leaves.mutex.unlock()
    return leaf


cdef Leaf* leaves_pop_left(Leaves* leaves) noexcept nogil:
    """The one whose turn it is; NULL: there is none."""
    cdef Leaf* leaf = NULL
    leaves.mutex.lock()
    if not leaves.left.empty():
        leaves.turn = (leaves.turn + 1) % leaves.left.size()
        leaf = leaves.left[leaves.turn]
        leaves.left[leaves.turn] = leaves.left.back()
        leaves.left.pop_back()
    leaves.mutex.unlock()
    return leaf


cdef void leaves_push(Leaves* leaves, array[LeafPtr]* list, Leaf* leaf) noexcept nogil:
    leaves.mutex.lock()
    list.push_back(leaf)
    leaves.mutex.unlock()


cdef Leaf* leaves_make(Leaves* leaves) noexcept nogil:
    cdef char[LEAF_PATH_BYTES] path
    cdef Leaf* leaf
    leaves.mutex.lock()
    if leaves.rests_until_ns and now(CLOCK_BOOTTIME) < leaves.rests_until_ns:
        leaves.mutex.unlock()
        return NULL
    leaves.last += 1
    leaf = leaf_new(leaves, leaves.last)
    leaves.mutex.unlock()
    snprintf(path, sizeof(path), b"%u", leaf.number)
    if mkdirat(leaves.folder, path, 0o755) != 0:
        leaves_rest(leaves)
        leaf_free(leaf)
        return NULL
    leaf_hold(leaves, leaf)
    return leaf


cdef void leaves_rest(Leaves* leaves) noexcept nogil:
    """Make none for a while: the kernel has said no, be it for good."""
    leaves.mutex.lock()
    leaves.rests_until_ns = now(CLOCK_BOOTTIME) + LEAVES_REST_NS
    leaves.mutex.unlock()


cdef void leaves_give_back(Leaves* leaves, Leaf* leaf, bint was_killed) noexcept nogil:
    """The attempt is gone, or never came."""
    cdef bint many = False
    leaves.mutex.lock()
    if was_killed:
        leaves.left.push_back(leaf)
    elif leaves.used.size() < LEAVES_RESTING_MAX or leaf.folder >= 0:
        leaves.used.push_back(leaf)
    else:
        many = True
    leaves.mutex.unlock()
    if many and not leaf_remove(leaves, leaf):
        leaves_push(leaves, &leaves.left, leaf)


# ---- the attempts' side ----------------------------------------------------------------------------------------------

cdef void record_spawn_in_leaf(
    Record* record, int lane, void* stack, Leaves* leaves, Leaves* limited, const rlimit* open_files,
    const SignalReset* signals, Spawn* spawn
) noexcept nogil:
    """record_spawn, in a leaf if there is one to be had, and in one of the `limited` if it is to have a limit."""
    cdef Leaf* leaf = NULL
    cdef int folder = -1
    if record.demand[RESOURCE_MEMORY]:
        leaf = leaves_take(limited, record.demand[RESOURCE_MEMORY])
    if leaf == NULL:
        leaf = leaves_take(leaves, 0)
    else:
        leaves = limited
    if leaf != NULL:
        folder = leaf.folder if leaf.folder >= 0 else leaf_open_folder(leaves, leaf)
    spawn.leaf = folder
    record_spawn(record, lane, stack, open_files, signals, spawn)
    if leaf == NULL:
        return
    if folder >= 0 and folder != leaf.folder:
        close(folder)
    if folder >= 0 and spawn.leaf < 0:
        leaves_rest(leaves)
        if not leaf_remove(leaves, leaf):
            leaf_free(leaf)  # it is gone, or not ours any more
    elif folder < 0 or spawn.step != STEP_NONE:
        leaves_give_back(leaves, leaf, False)
    else:
        record.leaf = leaf


cdef inline void record_leave_leaf(Record* record) noexcept nogil:
    if record.leaf != NULL:
        leaves_give_back(record.leaf.leaves, record.leaf, not record.has_exited)
        record.leaf = NULL


cdef inline bint record_is_limited(const Record* record) noexcept nogil:
    """Whether the kernel ends it at its limit of memory."""
    return record.leaf != NULL and record.leaf.leaves.limits


cdef bint record_ran_out(const Record* record) noexcept nogil:
    """Whether it has ended for that, if it has ended by KILL."""
    return record_is_limited(record) and leaf_oom_events(record.leaf.leaves, record.leaf) > record.leaf.oom_events


cdef int64_t record_peak_kb(const Record* record) noexcept nogil:
    """Of one that ran out: the most that its leaf had, but for what others had there before; 0: that is not known."""
    cdef int64_t peak = leaf_number_in(record.leaf.leaves, record.leaf, b"memory.peak", b"")
    return max(0, min(peak, record.demand[RESOURCE_MEMORY]) // 1024)


cdef void record_find_leaf(Record* record, Leaves* leaves) noexcept nogil:
    """Of an attempt that is being adopted, whose leader cannot be mistaken: it is not collected yet."""
    cdef uint32_t number
    if leaves.own == NULL or record.leaf != NULL:
        return
    number = leaf_of(record.pid, leaves.own)
    if number:
        record.leaf = leaves_claim(leaves, number)


cdef Leaf* leaves_claim(Leaves* leaves, uint32_t number) noexcept nogil:
    """One that an earlier incarnation has made; NULL: there is no such leaf."""
    cdef Leaf* leaf = NULL
    cdef size_t i
    leaves.mutex.lock()
    for i in range(leaves.left.size()):
        if leaves.left[i].number == number:
            leaf = leaves.left[i]
            leaves.left[i] = leaves.left.back()
            leaves.left.pop_back()
            break
    leaves.mutex.unlock()
    return leaf


cdef uint32_t leaf_of(pid_t pid, const char* folder) noexcept nogil:
    """The number of the leaf in `folder` that the process is in, as a zombie, too; 0: in none."""
    cdef char[4096] line
    cdef char[32] path
    cdef FILE* file
    cdef size_t size = strlen(folder)
    cdef uint32_t number = 0
    snprintf(path, sizeof(path), b"/proc/%d/cgroup", pid)
    file = fopen(path, b"re")
    if file == NULL:
        return 0
    while fgets(line, sizeof(line), file) != NULL:
        if strncmp(line, b"0::", 3) == 0 and strncmp(line + 3, folder, size) == 0 and line[3 + size] == c'/':
            number = number_of_leaf(line + 4 + size)
    fclose(file)
    return number


cdef uint32_t number_of_leaf(const char* name) noexcept nogil:
    """0: it is no name of a leaf."""
    cdef uint32_t number = 0
    cdef char[LEAF_PATH_BYTES] text
    cdef size_t i = 0
    while c'0' <= name[i] <= c'9':
        number = number * 10 + <uint32_t> (name[i] - c'0')
        i += 1
    snprintf(text, sizeof(text), b"%u", number)
    # No leading zero, no overflow; and nothing follows, be it a folder that the job has made in it.
    if i != strlen(text) or strncmp(name, text, i) != 0 or (name[i] != 0 and name[i] != c'\n' and name[i] != c'/'):
        return 0
    return number


# ---- construction and end, by the thread that owns the Core ----------------------------------------------------------

cdef int leaves_open(Leaves* leaves, path, bint limits, uint64_t open_files) except -1:
    """`path`: the folder; what lies in it is ours, or what an earlier incarnation has left."""
    cdef bytes own
    cdef uint32_t number
    leaves.folder = open_file(os.fsencode(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if leaves.folder < 0:
        raise OSError(errno, os.strerror(errno), path)
    leaves.limits = limits
    leaves.held_max = <uint32_t> min(<uint64_t> LEAVES_HELD_MAX, open_files // FILES_PER_HELD)
    for name in os.listdir(path):
        number = number_of_leaf(os.fsencode(name))
        if number:
            leaves.left.push_back(leaf_new(leaves, number))
            leaves.last = max(leaves.last, number)
    own = own_cgroup()
    if own is not None:
        own = own.removesuffix(b"/pysched.self").rstrip(b"/") + b"/" + os.fsencode(os.path.basename(path))
        leaves.own = <char*> checked_realloc(NULL, len(own) + 1)
        memcpy(leaves.own, <const char*> own, len(own) + 1)
    return 0


cdef bytes own_cgroup():
    """Of v2; None: there is none."""
    with open("/proc/self/cgroup", "rb") as file:
        for line in file:
            if line.startswith(b"0::"):
                return line[3:].rstrip(b"\n")
    return None


cdef void leaves_free(Leaves* leaves) noexcept nogil:
    """Our knowledge of them; the folders stay."""
    cdef size_t i
    for i in range(leaves.used.size()):
        leaf_free(leaves.used[i])
    for i in range(leaves.left.size()):
        leaf_free(leaves.left[i])
    if leaves.folder >= 0:
        close(leaves.folder)
    free(leaves.own)

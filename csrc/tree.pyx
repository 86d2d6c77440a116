# The tree of an attempt: every process that descends from its leader, and how to find them.
#
# Parents die, sessions are left, environments are cleared; what no descendant sheds by itself is its resource limits.
# The child gets, before exec, a RLIMIT_RTTIME that no other attempt has: its *mark*, some 2**62 microseconds of
# real-time CPU, a limit that nobody reaches.  fork and exec hand it on, a process without privileges may lower it but
# never raise it back, and prlimit(2) reads it in a third of a microsecond, also of a zombie.  A process belongs to a
# tree if it
#
#   - carries the mark, or
#   - is in the leader's session, while the zombie of the leader pins the session's number, or
#   - is a child of a process that belongs to it (looked at when TERM and when KILL are due, before any ancestor is
#     gone), and from then on remembered by a pidfd, or
#   - is an orphan that this process adopted as a subreaper and has the attempt's PYSCHED_… in its environment.
#
# The latter two are for programs that set RLIMIT_RTTIME themselves.  What can still escape, if the attempt has no leaf
# (leaf.pyx): one that sets it, leaves the session, clears its environment and has lost all its ancestors when the
# attempt's end is due, or does the last of this in the very moment.  Nothing says then which attempt it came from, and
# to guess would be to kill a stranger.
#
# A nested scheduler, whose own limit is the mark of an attempt already, marks its attempts by the soft limit alone: the
# outer one still finds all of them by the hard limit.

from libc.errno cimport ECHILD, ESRCH, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fgetc, fopen, fread, snprintf, sscanf
from libc.stdlib cimport atoi
from libc.string cimport strcmp, strlen, strrchr
from posix.resource cimport RLIM_INFINITY, rlimit
from posix.stat cimport stat, struct_stat
from posix.types cimport pid_t
from posix.unistd cimport getsid

from native cimport (
    DIR,
    RLIMIT_RTTIME,
    array,
    closedir,
    dirent,
    opendir,
    peek_exit,
    pidfd_send_signal,
    prlimit,
    readdir,
)

cdef enum MarkPlace:
    MARK_NOWHERE        # somebody gave this process a limit of real-time CPU that leaves no room for marks
    MARK_HARD           # in both limits
    MARK_SOFT           # in the soft one; the hard one is ours

cdef enum TreePhase:
    TREE_NEW
    TREE_TERM           # TERM to what is outside the leader's group, once
    TREE_WATCH          # the leader has ended within the grace: say when the rest has
    TREE_KILL

cdef enum:
    IDENTITIES = 3
    ENVIRONMENT_MAX = 4 << 20  # looked at

cdef uint64_t MARK_HARD_BIT = <uint64_t> 1 << 62
cdef uint64_t MARK_SOFT_BIT = <uint64_t> 1 << 61
cdef uint64_t MARK_MASK = MARK_SOFT_BIT - 1     # the bits of a Launch.mark


cdef struct Stray:      # a member that only its descent, or its environment, gave away
    pid_t pid
    int pidfd


cdef cppclass Tree:
    # An attempt that is being ended, as the killer sees it.
    Record* record      # what never changes after the spawn, and `pidfd`; the lane keeps it until the killer is done
    int lane
    TreePhase phase
    bint fresh          # the phase has begun since the last scan
    bint by_leaf        # the kernel is to end it, see leaf_killer.pyx: not looked for
    uint32_t asked      # number of the last request seen
    int64_t killed_ns   # when the phase KILL began, or the leaf got its KILL
    int64_t gone_ns     # when the leaf was empty; 0: it is not, or somebody lived outside of it
    bint told           # the lane knows that some of it survives
    bint leader_ended   # before this scan
    uint32_t alive      # members met in this scan, without the leader
    uint32_t empty_looks  # in a row, in which nothing of it was met
    array[Stray] strays


ctypedef Tree* TreePtr

cdef struct Dying:      # a tree whose leaf has got its KILL
    Tree* tree
    int events          # of the leaf: says when nobody is left
    int64_t killed_ns

cdef struct Stranger:   # met in a scan, and of no tree by mark or session
    pid_t pid
    pid_t parent

cdef struct Member:     # met in a scan
    Tree* tree
    pid_t pid
    int pidfd           # of a stray; -1: recognised by mark or session


# ---- marks -----------------------------------------------------------------------------------------------------------

cdef MarkPlace mark_place(const rlimit* own) noexcept nogil:
    """Where the attempts of a process with these limits carry their marks."""
    if own.rlim_max == RLIM_INFINITY:
        return MARK_HARD
    if own.rlim_max & MARK_HARD_BIT:
        return MARK_SOFT
    return MARK_NOWHERE


cdef rlimit mark_limit(MarkPlace place, const rlimit* own, uint64_t mark) noexcept nogil:
    """The limit that carries `mark`."""
    cdef rlimit limit = own[0]
    if place == MARK_HARD:
        limit.rlim_cur = limit.rlim_max = MARK_HARD_BIT | (mark & MARK_MASK)
    elif place == MARK_SOFT:
        limit.rlim_cur = MARK_SOFT_BIT | (mark & MARK_MASK)
    return limit


cdef inline uint64_t mark_of_limit(MarkPlace place, const rlimit* own, const rlimit* limit) noexcept nogil:
    """What stands where a mark would stand; 0: surely none of an attempt of ours."""
    if place == MARK_HARD and limit.rlim_max != RLIM_INFINITY and limit.rlim_max & MARK_HARD_BIT:
        return limit.rlim_max
    if place == MARK_SOFT and limit.rlim_max == own.rlim_max and limit.rlim_cur & MARK_SOFT_BIT:
        return limit.rlim_cur
    return 0


cdef inline uint64_t scattered(uint64_t value) noexcept nogil:
    """A bijection without visible pattern (splitmix64's finaliser): marks for launches that bring none."""
    value = (value ^ (value >> 30)) * <uint64_t> 0xbf58476d1ce4e5b9
    value = (value ^ (value >> 27)) * <uint64_t> 0x94d049bb133111eb
    return value ^ (value >> 31)


# ---- facts about a process, by a pid that may change hands at any moment ---------------------------------------------

cdef bint mark_of_process(pid_t pid, MarkPlace place, const rlimit* own, uint64_t* mark) noexcept nogil:
    """False: there is no such process, or it is not ours to look at."""
    cdef rlimit limit
    if prlimit(pid, RLIMIT_RTTIME, NULL, &limit) != 0:
        return False
    mark[0] = mark_of_limit(place, own, &limit)
    return True


cdef bint session_pinned(const Record* record) noexcept nogil:
    """Whether nobody else can have the number of the leader, and so of its session."""
    if record.adopted:
        return pidfd_send_signal(record.pidfd, 0) == 0 or errno != ESRCH
    return peek_exit(record.pidfd) != ECHILD


cdef bint is_marked(const Record* record, pid_t pid, MarkPlace place, const rlimit* own) noexcept nogil:
    """Whether the process that has this number now belongs to the attempt, by mark or session."""
    cdef uint64_t mark = 0
    if place != MARK_NOWHERE and mark_of_process(pid, place, own, &mark) \
            and mark == mark_of_limit(place, own, &record.mark):
        return True
    return getsid(pid) == record.pid and session_pinned(record)


cdef pid_t parent_of(pid_t pid) noexcept nogil:
    """-1: there is no such process."""
    cdef char[512] text
    cdef char[32] path
    cdef char* behind
    cdef FILE* file
    cdef size_t size
    cdef int parent
    snprintf(path, sizeof(path), b"/proc/%d/stat", pid)
    file = fopen(path, b"re")
    if file == NULL:
        return -1
    size = fread(text, 1, sizeof(text) - 1, file)
    fclose(file)
    text[size] = 0
    behind = strrchr(text, c')')  # the name may contain anything
    if behind == NULL or sscanf(behind + 1, b" %*c %d", &parent) != 1:
        return -1
    return parent


cdef void children_of_thread(pid_t pid, pid_t thread, array[pid_t]* children) noexcept nogil:
    """Append the children that a thread has made or adopted; none if the kernel does not tell (PROC_CHILDREN)."""
    cdef char[64] path
    cdef FILE* file
    cdef int character
    cdef pid_t child = 0
    snprintf(path, sizeof(path), b"/proc/%d/task/%d/children", pid, thread)
    file = fopen(path, b"re")
    if file == NULL:
        return
    while True:
        character = fgetc(file)
        if c'0' <= character <= c'9':
            child = child * 10 + character - c'0'
        elif child:
            children.push_back(child)
            child = 0
        if character < 0:
            break
    fclose(file)


cdef void children_of(pid_t pid, array[pid_t]* children) noexcept nogil:
    cdef char[32] path
    cdef DIR* folder
    cdef dirent* entry
    cdef struct_stat status
    cdef pid_t thread
    snprintf(path, sizeof(path), b"/proc/%d/task", pid)
    if stat(path, &status) == 0 and status.st_nlink == 3:  # one thread: its folder, and . and ..
        children_of_thread(pid, pid, children)
        return
    folder = opendir(path)
    if folder == NULL:
        return
    entry = readdir(folder)
    while entry != NULL:
        thread = atoi(entry.d_name)
        if thread:
            children_of_thread(pid, thread, children)
        entry = readdir(folder)
    closedir(folder)


cdef bint read_environment(pid_t pid, array[char]* text) noexcept nogil:
    """The whole environment, each entry with its NUL; False: gone, or not ours to read."""
    cdef char[4096] part
    cdef char[32] path
    cdef FILE* file
    cdef size_t size, i
    text.clear()
    snprintf(path, sizeof(path), b"/proc/%d/environ", pid)
    file = fopen(path, b"re")
    if file == NULL:
        return False
    size = fread(part, 1, sizeof(part), file)
    while size and text.size() < ENVIRONMENT_MAX:
        for i in range(size):
            text.push_back(part[i])
        size = fread(part, 1, sizeof(part), file)
    fclose(file)
    text.push_back(0)
    return True


cdef bint has_entry(array[char]* environment, const char* entry) noexcept nogil:
    cdef size_t start = 0
    cdef const char* text
    while start < environment.size():
        text = environment.data() + start
        if strcmp(text, entry) == 0:
            return True
        start += strlen(text) + 1
    return False


cdef bint has_identity(array[char]* environment, const Record* record) noexcept nogil:
    """Whether all that names the attempt stands in the environment."""
    cdef int i
    for i in range(IDENTITIES):
        if record.identity[i] == NULL or not has_entry(environment, record.identity[i]):
            return False
    return True

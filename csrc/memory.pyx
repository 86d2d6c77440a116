# The watch on memory: one thread that looks at the processes of those attempts that have a limit, and at no others.
#
#     lane ── watched, with its limit ──► memory ── over it, by so much ──► lane: KILL to the tree, cause MEMORY
#          ◄── peak, at the attempt's end ──╯
#
# It sleeps while nothing is watched.  A look goes through /proc once for all trees, which are known as the killer knows
# them, by mark and session (tree.pyx), and sums up what their processes have resident.  Pages that processes share are
# counted in each of them, so a sum over the limit is not believed at once: then the kernel is asked for the share of
# each process in its pages (PSS), which it has to count first.  So a warm job pays its part of what the zygote has
# imported, and workers that a job forks pay once for what they share.
#
# Where its leaf has the limit (leaf.pyx), the kernel ends an attempt, and only its peak is looked for here: the
# kernel's own counts pages of files, too.
#
# RLIMIT_AS would refuse the allocation instead, but it counts addresses: CUDA, Go, Java and every library with a pool
# reserve many times what they use.  What a job can take between two looks is what it can touch in LOOK_LAST_NS.

from cython.operator cimport dereference, preincrement
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport FILE, fclose, fgets, fopen, snprintf, sscanf
from libc.stdlib cimport atoi
from libcpp.atomic cimport memory_order_acquire
from libcpp.unordered_map cimport unordered_map
from posix.types cimport pid_t
from posix.unistd cimport _SC_PAGESIZE, close, getsid, sysconf

from native cimport (
    CLOCK_BOOTTIME,
    DIR,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    POLLIN,
    array,
    closedir,
    dirent,
    eventfd,
    eventfd_read,
    eventfd_t,
    eventfd_write,
    opendir,
    padded_mutex,
    pollfd,
    ppoll,
    readdir,
    rewinddir,
    thread,
    timespec,
)

cdef int64_t LOOK_FIRST_NS = 50_000_000     # while somebody has more than half of his limit
cdef int64_t LOOK_LAST_NS = 250_000_000


cdef struct Watched:
    uint64_t handle
    uint64_t mark       # 0: none, it is known by its session
    pid_t pid           # of the leader, so of the session
    int lane
    int64_t limit_kb
    int64_t peak_kb
    bint told           # the lane knows that it is over its limit, or need not know
    # of this look:
    int64_t resident_kb
    bint shared         # resident_kb is the sum of its processes' shares


cdef cppclass Memory:
    Engine* engine
    thread* runner
    padded_mutex mutex
    unordered_map[uint64_t, Watched] watched    # by handle; guarded by the mutex
    int bell            # eventfd: something is watched, or it is the end
    DIR* proc
    int64_t page_kb
    array[Watched] seen     # of this look; the thread's own, as all below
    unordered_map[uint64_t, size_t] by_mark
    unordered_map[pid_t, size_t] by_session
    array[pid_t] members    # of `seen`, in turn
    array[size_t] owners


# ---- the lanes' side -------------------------------------------------------------------------------------------------

cdef void memory_watch(Lane* lane, const Record* record) noexcept nogil:
    """From its start on, if it has a limit."""
    cdef Memory* memory = lane.engine.memory
    cdef Watched watched
    cdef bint first
    if record.demand[RESOURCE_MEMORY] == 0:
        return
    memset(&watched, 0, sizeof(watched))
    watched.handle = record.handle
    watched.mark = mark_of_limit(lane.engine.mark_place, &lane.engine.own_mark, &record.mark)
    watched.pid = record.pid
    watched.lane = lane.number
    watched.limit_kb = record.demand[RESOURCE_MEMORY] // 1024
    watched.told = record_is_limited(record)  # then the kernel ends it, and we look for the peak alone
    memory.mutex.lock()
    first = memory.watched.empty()
    memory.watched[record.handle] = watched
    memory.mutex.unlock()
    if first:
        eventfd_write(memory.bell, 1)


cdef int64_t memory_unwatch(Engine* engine, const Record* record) noexcept nogil:
    """At its end; the most that its processes had at a time, as far as it was seen, KiB."""
    cdef unordered_map[uint64_t, Watched].iterator found
    cdef int64_t peak_kb = 0
    if record.demand[RESOURCE_MEMORY] == 0:
        return 0
    engine.memory.mutex.lock()
    found = engine.memory.watched.find(record.handle)
    if found != engine.memory.watched.end():
        peak_kb = dereference(found).second.peak_kb
        engine.memory.watched.erase(found)
    engine.memory.mutex.unlock()
    return peak_kb


# ---- the thread ------------------------------------------------------------------------------------------------------

cdef void memory_main(void* argument) noexcept nogil:
    cdef Memory* memory = <Memory*> argument
    cdef int64_t pause_ns = -1
    while memory.engine.stopping.load(memory_order_acquire) == 0:
        memory_wait(memory, pause_ns)
        pause_ns = memory_look(memory)


cdef void memory_wait(Memory* memory, int64_t pause_ns) noexcept nogil:
    """For so long, the bell being only for the end then; negative: until something is watched."""
    cdef int64_t deadline_ns = now(CLOCK_BOOTTIME) + pause_ns, rest_ns
    cdef pollfd watched
    cdef timespec rest
    cdef eventfd_t value
    watched.fd = memory.bell
    watched.events = POLLIN
    while memory.engine.stopping.load(memory_order_acquire) == 0:
        rest_ns = deadline_ns - now(CLOCK_BOOTTIME)
        if pause_ns >= 0 and rest_ns <= 0:
            return
        rest.tv_sec = rest_ns // NS_PER_S
        rest.tv_nsec = rest_ns % NS_PER_S
        if ppoll(&watched, 1, &rest if pause_ns >= 0 else NULL, NULL) > 0:
            eventfd_read(memory.bell, &value)
            if pause_ns < 0:
                return


cdef int64_t memory_look(Memory* memory) noexcept nogil:
    """At all that is watched; how long until the next look, negative: until somebody rings."""
    cdef size_t i
    cdef int64_t pause_ns = LOOK_LAST_NS
    if not memory_begin(memory):
        return -1
    memory_list(memory)
    memory_sum(memory)
    memory.mutex.lock()
    for i in range(memory.seen.size()):
        memory_note(memory, &memory.seen[i])
        if 2 * memory.seen[i].resident_kb > memory.seen[i].limit_kb:
            pause_ns = LOOK_FIRST_NS
    memory.mutex.unlock()
    return pause_ns


cdef bint memory_begin(Memory* memory) noexcept nogil:
    """Take down what is watched now; False: nothing."""
    cdef unordered_map[uint64_t, Watched].iterator entry
    cdef size_t i
    memory.seen.clear()
    memory.by_mark.clear()
    memory.by_session.clear()
    memory.mutex.lock()
    entry = memory.watched.begin()
    while entry != memory.watched.end():
        memory.seen.push_back(dereference(entry).second)
        preincrement(entry)
    memory.mutex.unlock()
    for i in range(memory.seen.size()):
        memory.by_session[memory.seen[i].pid] = i
        if memory.seen[i].mark:
            memory.by_mark[memory.seen[i].mark] = i
    return not memory.seen.empty()


cdef void memory_list(Memory* memory) noexcept nogil:
    """The processes of all trees that are watched."""
    cdef unordered_map[uint64_t, size_t].iterator marked
    cdef unordered_map[pid_t, size_t].iterator led
    cdef Engine* engine = memory.engine
    cdef dirent* entry
    cdef uint64_t mark
    cdef pid_t pid
    memory.members.clear()
    memory.owners.clear()
    rewinddir(memory.proc)
    entry = readdir(memory.proc)
    while entry != NULL:
        pid = atoi(entry.d_name)
        entry = readdir(memory.proc)
        if pid <= 0:
            continue
        mark = 0
        if mark_of_process(pid, engine.mark_place, &engine.own_mark, &mark) and mark:
            marked = memory.by_mark.find(mark)
            if marked != memory.by_mark.end():
                memory.members.push_back(pid)
                memory.owners.push_back(dereference(marked).second)
                continue
        led = memory.by_session.find(getsid(pid))
        if led != memory.by_session.end():
            memory.members.push_back(pid)
            memory.owners.push_back(dereference(led).second)


cdef void memory_sum(Memory* memory) noexcept nogil:
    cdef Watched* owner
    cdef size_t i
    for i in range(memory.members.size()):
        memory.seen[memory.owners[i]].resident_kb += resident_of(memory.members[i]) * memory.page_kb
    for i in range(memory.seen.size()):
        owner = &memory.seen[i]
        if owner.resident_kb > owner.limit_kb:
            owner.shared = True
            owner.resident_kb = 0
    for i in range(memory.members.size()):
        owner = &memory.seen[memory.owners[i]]
        if owner.shared:
            owner.resident_kb += share_of(memory.members[i], memory.page_kb)


cdef void memory_note(Memory* memory, const Watched* seen) noexcept nogil:
    """Under the mutex: keep the peak, and tell the lane once that it is over the limit."""
    cdef unordered_map[uint64_t, Watched].iterator found = memory.watched.find(seen.handle)
    cdef Letter letter
    if found == memory.watched.end():
        return  # it has ended meanwhile
    if seen.resident_kb > dereference(found).second.peak_kb:
        dereference(found).second.peak_kb = seen.resident_kb
    if seen.resident_kb > seen.limit_kb and not seen.told:
        dereference(found).second.told = True
        letter.kind = LETTER_KILL
        letter.handle = seen.handle
        letter.ns = 0
        letter.cause = CAUSED_BY_MEMORY
        engine_post(memory.engine, seen.lane, letter)


# ---- facts about a process, by a pid that may change hands at any moment ---------------------------------------------

cdef int64_t resident_of(pid_t pid) noexcept nogil:
    """Pages; 0: it is gone."""
    cdef char[32] path
    cdef char[128] text
    cdef long long size, resident = 0
    cdef FILE* file
    snprintf(path, sizeof(path), b"/proc/%d/statm", pid)
    file = fopen(path, b"re")
    if file == NULL:
        return 0
    if fgets(text, sizeof(text), file) == NULL or sscanf(text, b"%lld %lld", &size, &resident) != 2:
        resident = 0
    fclose(file)
    return resident


cdef int64_t share_of(pid_t pid, int64_t page_kb) noexcept nogil:
    """Of the pages that it has resident or swapped out, KiB; all of the former if the kernel does not tell us."""
    cdef char[32] path
    cdef char[128] line
    cdef long long figure, share = -1
    cdef FILE* file
    snprintf(path, sizeof(path), b"/proc/%d/smaps_rollup", pid)
    file = fopen(path, b"re")
    if file != NULL:
        while fgets(line, sizeof(line), file) != NULL:
            if sscanf(line, b"Pss: %lld", &figure) == 1 or sscanf(line, b"SwapPss: %lld", &figure) == 1:
                share = figure if share < 0 else share + figure
        fclose(file)
    return share if share >= 0 else resident_of(pid) * page_kb


# ---- construction and end, by the thread that owns the Core ----------------------------------------------------------

cdef Memory* memory_new(Engine* engine) noexcept nogil:
    """Everything but the thread; what could not be had is NULL or negative."""
    cdef Memory* memory = new Memory()
    memory.engine = engine
    memory.page_kb = sysconf(_SC_PAGESIZE) // 1024
    memory.proc = opendir(b"/proc")
    memory.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    return memory


cdef void memory_free(Memory* memory) noexcept nogil:
    """After its thread has ended."""
    if memory.proc != NULL:
        closedir(memory.proc)
    if memory.bell >= 0:
        close(memory.bell)
    del memory

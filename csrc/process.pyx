# One attempt as the lanes see it: a record in a single block of memory, its spawn, its signals, its end.
#
#     NEW ──► QUEUED ──take──► TAKEN by a lane ──► freed by that lane, at its end
#      │        │  ◄─requeue──┤ (the machine was short of something)
#      │        │  ◄─PARKED ──┘ (what it asks for is not free)
#      └────────┴─────┴► WITHDRAWN ──► freed by whoever meets its ticket: in the bucket, or on the way there
#
# Who owns a record: its ticket while it waits, or the list of the parked; the lane that took it from then on.  The
# registry (engine.pyx) only finds it: the entry is removed, under the registry's lock, before its owner frees it.

from libc.errno cimport EAGAIN, ECHILD, EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC
from libc.signal cimport SIGKILL
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strncmp
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire
from posix.resource cimport RUSAGE_SELF, getrusage, rlimit, rusage
from posix.signal cimport kill
from posix.types cimport pid_t
from posix.wait cimport WNOHANG, wait4

from native cimport (
    STEP_STDERR,
    STEP_STDOUT,
    SignalReset,
    Spawn,
    clock_gettime,
    construct,
    peek_end,
    pidfd_send_signal,
    spawn_process,
    timespec,
)

cdef enum RecordState:
    RECORD_NEW
    RECORD_QUEUED
    RECORD_WITHDRAWN
    RECORD_PARKED       # what it asks for is not free, see admission.pyx
    RECORD_TAKEN        # plus the lane's number

cdef enum Cause:
    CAUSED_BY_NOTHING
    CAUSED_BY_TIMEOUT
    CAUSED_BY_CANCEL
    CAUSED_BY_SHUTDOWN
    CAUSED_BY_LOG_LIMIT
    CAUSED_BY_MEMORY


cdef enum Share:
    SHARE_NONE
    SHARE_WANTED
    SHARE_HELD


cdef cppclass Record:
    atomic[uint32_t] state
    uint64_t handle
    Ticket ticket       # as it was pushed, for a requeue
    int home            # lane of the bucket it waits in
    int64_t timeout_ns  # 0: none
    int64_t grace_ns
    int64_t waited_ns   # before it came here
    int64_t queued_real_ns
    int64_t started_real_ns
    int64_t started_ns  # CLOCK_BOOTTIME, as all times without `real`
    Timer timer         # at most one at a time: timeout, then kill
    pid_t pid           # also its process group and session; 0: not running
    int pidfd
    uint64_t token      # of the lease; 0: none
    Row* row            # in the table of attempts; NULL: none
    bint adopted        # no child of this process: its end comes from the guard, by the row
    bint guard_gone     # … and will not come any more
    bint awaits_row     # in Lane.unrecorded
    uint32_t answered   # adopted: requests to the killer, when it said last that the tree is gone
    uint8_t cause
    bint warm           # forked by the zygote, see zygote.pyx
    uint64_t reuse      # key of the workers that may make the call, see worker.pyx; 0: none, it is a process of its own
    WorkerProcess* worker  # that makes it, or is asked to; the pidfd is its
    bint is_silent      # its log files are not there any more, since nothing was in them
    int64_t ending_grace_ns  # of a kill that came while it was starting; -1: none did
    # its tree, see tree.pyx
    rlimit mark
    uint64_t mark_number
    char* identity[3]   # PYSCHED_TASK_ID=, PYSCHED_ATTEMPT=, PYSCHED_NODE=; NULL: not in the environment
    bint ending         # it was told to: TERM or KILL has been sent
    bint killing        # KILL was among them
    bint leader_ended   # while `ending`; the zombie is kept until the tree is gone
    bint told           # its end, though some of it survives
    uint32_t asked      # requests to the killer
    Timer look          # at the sizes of its output, see output.pyx
    int64_t look_ns     # until the next one
    int64_t output_bytes
    Tree* tree          # the killer's
    Leaf* leaf          # that it was born in; NULL: none
    bint has_exited     # its leader, and nobody told it to
    int64_t kill_ns     # the killer's, as `tree`: from KILL to its end
    # what it asks for, see admission.pyx
    Admission* admission  # NULL: nothing
    int64_t[RESOURCES] demand
    Share share
    uint32_t era        # of the reservation that it was let past
    uint64_t devices    # GPUs that it was given, as bits
    ProcessorSet* processors  # that it is pinned to; NULL: none
    char** devices_entry  # of the environment; NULL: it asks for none
    # what the child needs; points into the same block
    char** words        # a spare place, argv, NULL
    char** environment  # entries, PYSCHED_LANE, NULL
    char** candidates   # paths, NULL
    char* lane_text     # the digits behind "PYSCHED_LANE="
    char* cwd
    char* output        # stdout's path
    char* errors        # stderr's path


ctypedef Record* RecordPtr
cdef cppclass Tree      # tree.pyx
cdef cppclass Leaf      # leaf.pyx
cdef cppclass Row       # attempt_table.pyx
cdef cppclass Admission  # admission.pyx
cdef struct ProcessorSet  # processors.pyx
cdef cppclass WorkerProcess  # worker.pyx

cdef enum:
    LANE_TEXT_BYTES = 17  # PYSCHED_LANE=255 and the NUL
    DEVICES_HEAD_BYTES = 22  # CUDA_VISIBLE_DEVICES= and the NUL

cdef int64_t NS_PER_S = 1_000_000_000


cdef inline int64_t now(int clock) noexcept nogil:
    cdef timespec time
    clock_gettime(clock, &time)
    return time.tv_sec * NS_PER_S + time.tv_nsec


cdef int64_t own_peak_kb() noexcept nogil:
    cdef rusage usage
    getrusage(RUSAGE_SELF, &usage)
    return usage.ru_maxrss


cdef inline void record_free(Record* record) noexcept nogil:
    if record.admission != NULL:
        admission_forget(record)
    free(record)        # trivially destructible


cdef inline bint record_change(Record* record, uint32_t before, uint32_t after) noexcept nogil:
    """Change the state; False: it was another one.

    acq_rel: the state hands fields over between threads that meet nowhere else.  kill() reads `home` after it has seen
    QUEUED, and who frees a record after it has seen WITHDRAWN does so after the withdrawer's last read of it."""
    return record.state.compare_exchange_strong(before, after, memory_order_acq_rel, memory_order_acquire)


cdef bint record_bury(uint64_t item) noexcept nogil:
    """IsDead for the sweep of a bucket: free the record if it was withdrawn."""
    cdef Record* record = <Record*> item
    if record.state.load(memory_order_acquire) != RECORD_WITHDRAWN:
        return False
    record_free(record)
    return True


cdef void record_spawn(
    Record* record, int lane, void* stack, const rlimit* open_files, const SignalReset* signals, Spawn* spawn
) noexcept nogil:
    """Start the program; `spawn` says how that went."""
    record_write_tail(record, lane)
    spawn.words = record.words
    spawn.environment = record.environment
    spawn.candidates = record.candidates
    spawn.cwd = record.cwd
    spawn.output[0] = record.output
    spawn.output[1] = record.errors
    spawn.open_files = open_files
    spawn.signals = signals
    spawn.mark = record.mark
    spawn.processors = record.processors
    spawn.pid_place = &record.row.pid if record.row != NULL else NULL
    spawn_process(spawn, stack)


cdef inline bint is_shortage(const Spawn* spawn) noexcept nogil:
    """Whether the machine was short of something that others give back: the attempt must wait, not fail."""
    if spawn.step == STEP_STDOUT or spawn.step == STEP_STDERR:
        if spawn.error == ENOSPC or spawn.error == EDQUOT:
            return True
    return spawn.error == EAGAIN or spawn.error == ENOMEM or spawn.error == EMFILE or spawn.error == ENFILE


cdef void record_signal(Record* record, int number) noexcept nogil:
    """Signal the process group.  Its number cannot have been reused while the leader is not reaped, and only the lane
    that calls this reaps it; the question to the pidfd guards against a stranger's waitpid(-1) in this process."""
    if pidfd_send_signal(record.pidfd, 0) == 0:
        kill(-record.pid, number)


cdef bint record_reap(Record* record, int* status, int* error, rusage* usage, int64_t* peak_kb) noexcept nogil:
    """Collect the ended leader; False: it runs.  What it leaves behind in its group is ended first, while the zombie
    still holds the group's number.

    At exec the kernel credits the child with the peak of the memory it leaves, which is ours (exec_mmap sets
    signal->maxrss): a peak that is not above ours says nothing, and 0 is reported.  `peak_kb` is what the caller knows
    of ours, and is looked up again only when the child's is above it.  A warm job calls no exec."""
    status[0] = -1
    if record.adopted:
        return record_read_end(record, status, error, usage)
    error[0] = peek_end(record.pidfd, status, usage)
    if error[0] == EAGAIN:
        return False
    if error[0] == 0:
        if record.row != NULL:
            row_end(record.row, ROW_HAS_ENDED, status[0], usage)
        kill(-record.pid, SIGKILL)
        if wait4(record.pid, status, WNOHANG, usage) != record.pid:
            status[0] = -1
            error[0] = ECHILD
    if record.warm:
        return True
    if usage.ru_maxrss > peak_kb[0]:
        peak_kb[0] = own_peak_kb()
    if usage.ru_maxrss <= peak_kb[0]:
        usage.ru_maxrss = 0
    return True


# ---- building a record, under the GIL --------------------------------------------------------------------------------

cdef inline char* put_text(char** cursor, bytes text) noexcept:
    cdef char* place = cursor[0]
    cdef size_t size = <size_t> len(text)
    memcpy(place, <const char*> text, size)
    place[size] = 0
    cursor[0] = place + size + 1
    return place


cdef char** put_list(char*** places, char** cursor, tuple texts) noexcept:
    """Lay out the texts of a list and the pointers to them; the terminating NULL is the caller's."""
    cdef char** first = places[0]
    cdef bytes text
    for text in texts:
        places[0][0] = put_text(cursor, text)
        places[0] += 1
    return first


cdef size_t list_bytes(tuple texts) noexcept:
    """Texts with their NULs, and pointers with the terminating one."""
    cdef size_t size = (<size_t> len(texts) + 1) * sizeof(char*)
    cdef bytes text
    for text in texts:
        size += <size_t> len(text) + 1
    return size


cdef inline size_t devices_bytes(int64_t gpus) noexcept nogil:
    """For CUDA_VISIBLE_DEVICES with so many thousandths."""
    return DEVICES_HEAD_BYTES + <size_t> (gpus // WHOLE + 1) * (DEVICE_NAME_BYTES + 1) if gpus else 0


cdef void record_find_identity(Record* record) noexcept nogil:
    cdef char** entry = record.environment
    while entry[0] != NULL:
        if strncmp(entry[0], b"PYSCHED_TASK_ID=", 16) == 0:
            record.identity[0] = entry[0]
        elif strncmp(entry[0], b"PYSCHED_ATTEMPT=", 16) == 0:
            record.identity[1] = entry[0]
        elif strncmp(entry[0], b"PYSCHED_NODE=", 13) == 0:
            record.identity[2] = entry[0]
        entry += 1


cdef Record* record_new(Launch launch) except NULL:
    """Lower a launch into one block: the record, three lists of pointers, the texts."""
    cdef size_t size = (
        sizeof(Record) + 3 * sizeof(char*)  # the spare word, PYSCHED_LANE, CUDA_VISIBLE_DEVICES
        + list_bytes(launch.argv) + list_bytes(launch.env) + list_bytes(launch.candidates)
        + LANE_TEXT_BYTES + devices_bytes(launch.gpus)
        + <size_t> (len(launch.cwd) + len(launch.stdout) + len(launch.stderr)) + 3
    )
    cdef char* block = <char*> malloc(size)
    cdef char* cursor
    cdef char** places
    cdef Record* record
    if block == NULL:
        raise MemoryError
    record = construct[Record](block)
    places = <char**> (block + sizeof(Record))
    cursor = <char*> (places + len(launch.argv) + len(launch.env) + len(launch.candidates) + 6)

    record.words = places
    places[0] = NULL
    places += 1
    put_list(&places, &cursor, launch.argv)
    places[0] = NULL
    places += 1
    record.environment = put_list(&places, &cursor, launch.env)
    places[0] = put_text(&cursor, b"PYSCHED_LANE=")
    record.lane_text = cursor - 1
    cursor = places[0] + LANE_TEXT_BYTES + devices_bytes(launch.gpus)
    if launch.gpus:
        record.devices_entry = places + 1
        places[1] = places[0]  # for now; record_write_tail knows which
        places += 1
    places[1] = NULL
    places += 2
    record.candidates = put_list(&places, &cursor, launch.candidates)
    places[0] = NULL
    record.cwd = put_text(&cursor, launch.cwd)
    record.output = put_text(&cursor, launch.stdout)
    record.errors = put_text(&cursor, launch.stderr)

    record.handle = launch.handle
    record.timeout_ns = launch.timeout_ns
    record.grace_ns = launch.grace_ns
    record.waited_ns = launch.waited_ns
    record.pidfd = -1
    record.warm = launch.warm
    record.demand[RESOURCE_CPU] = launch.cpus
    record.demand[RESOURCE_MEMORY] = launch.memory
    record.demand[RESOURCE_GPU] = launch.gpus
    record.reuse = launch.reuse if launch.warm else 0
    record.ending_grace_ns = -1
    record.token = launch.token
    record.timer.owner = record
    record.look.owner = record
    record.ticket.item = <uint64_t> record
    record.ticket.cls = launch.priority
    record.ticket.rank = launch.rank
    record.ticket.sequence = launch.sequence
    record_find_identity(record)
    return record

# The crew of a Core: the threads that work on one engine (lanes, killer, memory), from their making to their end.
#
#     crew_make ─► crew_open ─► crew_start ─► they run ─► crew_stop ─► crew_free
#          ╰────────────┴─ an error half-way ─┴───────────────╯
#
# Called by the thread that owns the Core, with the GIL; crew_stop gives it up while it waits.  What a thread has of
# its own stands in its own file, what they share in engine.pyx.

from cython.operator cimport dereference, preincrement
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libcpp.atomic cimport memory_order_seq_cst
from libcpp.unordered_map cimport unordered_map
from posix.resource cimport RLIMIT_NOFILE, getrlimit, rlimit, setrlimit
from posix.unistd cimport close, getpid

from native cimport (
    CLOCK_REALTIME,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    PR_GET_CHILD_SUBREAPER,
    PR_SET_CHILD_SUBREAPER,
    RLIMIT_RTTIME,
    array,
    checked_realloc,
    counter_array,
    eventfd,
    eventfd_write,
    prctl,
    signal_reset,
    start_thread,
    thread,
)

cdef rlimit original_open_files
cdef bint open_files_raised = False


cdef struct Crew:
    Engine* engine          # NULL: there is nothing to stop or to free
    Lane** lanes
    int lanes_running
    bint adopts             # as a subreaper
    int adopted_before


cdef rlimit raise_open_files():
    """Raise this process's soft limit of open files to the hard one, once; the limit that children get back."""
    global original_open_files, open_files_raised
    cdef rlimit raised
    if not open_files_raised:
        if getrlimit(RLIMIT_NOFILE, &original_open_files) != 0:
            raise OSError(errno, "the limit of open files cannot be read")
        raised = original_open_files
        raised.rlim_cur = raised.rlim_max
        setrlimit(RLIMIT_NOFILE, &raised)  # refused: the lanes live with the limit as it is
        open_files_raised = True
    return original_open_files


# ---- making ----------------------------------------------------------------------------------------------------------

cdef int crew_make(Crew* crew, int lanes, int workers, int64_t ageing_ns, Admission* admission) except -1:
    """The engine, which owns the admission from here on, and the lanes' memory."""
    cdef Engine* engine = new Engine()
    cdef int i
    crew.engine = engine
    engine.admission = admission
    engine.workers.store(workers)
    engine.lanes = lanes
    queue_init(&engine.queue, lanes, ageing_ns)
    engine.outbox.bell = engine.leaves.folder = engine.limited.folder = -1
    engine.mail = <Mailbox**> checked_realloc(NULL, lanes * sizeof(Mailbox*))
    engine.counters = <counter_array**> checked_realloc(NULL, (lanes + 1) * sizeof(counter_array*))
    engine.latencies = <Latencies**> checked_realloc(NULL, lanes * sizeof(Latencies*))
    crew.lanes = <Lane**> checked_realloc(NULL, lanes * sizeof(Lane*))
    for i in range(lanes):
        engine.mail[i] = new Mailbox()
        engine.mail[i].bell = -1
        engine.counters[i] = new counter_array()
        engine.latencies[i] = new Latencies()
        crew.lanes[i] = lane_new(engine, i)
    engine.counters[lanes] = new counter_array()
    engine.open_files = raise_open_files()
    engine.signals = signal_reset()
    if getrlimit(RLIMIT_RTTIME, &engine.own_mark) != 0:
        raise OSError(errno, "the limit of real-time CPU cannot be read")
    engine.mark_place = mark_place(&engine.own_mark)
    engine.salt = scattered(now(CLOCK_REALTIME) ^ <uint64_t> getpid())
    return 0


cdef int crew_open(Crew* crew, bint subreaper) except -1:
    """What the threads need of the kernel; and become a subreaper, until crew_stop."""
    cdef Engine* engine = crew.engine
    cdef int i
    engine.outbox.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    engine.killer = killer_new(engine, subreaper)
    if not killer_open_all(engine.killer):
        raise OSError(errno, "the thread that ends processes cannot be made; is /proc mounted?")
    engine.memory = memory_new(engine)
    if engine.memory.proc == NULL or engine.memory.bell < 0:
        raise OSError(errno, "the thread that watches memory cannot be made; is /proc mounted?")
    for i in range(engine.lanes):
        if engine.outbox.bell < 0 or not lane_open(crew.lanes[i]):
            raise OSError(errno, f"lane {i} cannot be made; lower `lanes` or raise the limit of open files")
    if subreaper:
        if (prctl(PR_GET_CHILD_SUBREAPER, &crew.adopted_before, 0, 0, 0) != 0
                or prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0):
            raise OSError(errno, "this process cannot become a subreaper")
        crew.adopts = True
    return 0


cdef int crew_start(Crew* crew) except -1:
    cdef Engine* engine = crew.engine
    cdef int i
    for i in range(engine.lanes):
        crew.lanes[i].runner = thread_of(f"lane-{i}", lane_main, crew.lanes[i])
        crew.lanes_running += 1
    engine.killer.runner = thread_of("killer", killer_main, engine.killer)
    engine.memory.runner = thread_of("memory", memory_main, engine.memory)
    return 0


cdef thread* thread_of(str name, void (*entry)(void*) noexcept nogil, void* argument) except NULL:
    try:
        return start_thread(entry, argument, f"pysched-{name}".encode())
    except RuntimeError as error:
        raise OSError(EAGAIN, f"the thread {name} cannot be started: {error}; lower `lanes`") from None


# ---- the end ---------------------------------------------------------------------------------------------------------

cdef void crew_stop(Crew* crew) noexcept:
    """Join the threads.  Children that run go on."""
    cdef Engine* engine = crew.engine
    cdef int i
    with nogil:
        engine.stopping.store(1, memory_order_seq_cst)
        for i in range(crew.lanes_running):
            engine_ring(engine, i)
        if engine.killer != NULL and engine.killer.runner != NULL:
            thread_end(&engine.killer.runner, engine.killer.bell)
        if engine.memory != NULL and engine.memory.runner != NULL:
            thread_end(&engine.memory.runner, engine.memory.bell)
        for i in range(crew.lanes_running):
            crew.lanes[i].runner.join()
            del crew.lanes[i].runner
        crew.lanes_running = 0
        outbox_wake(&engine.outbox, True)
    if crew.adopts:
        prctl(PR_SET_CHILD_SUBREAPER, crew.adopted_before, 0, 0, 0)
        crew.adopts = False


cdef void thread_end(thread** runner, int bell) noexcept nogil:
    """It looks at `stopping` when its bell has rung."""
    eventfd_write(bell, 1)
    runner[0].join()
    del runner[0]
    runner[0] = NULL


cdef void crew_free(Crew* crew) noexcept:
    """Free what the threads left: our knowledge of attempts, never the children themselves."""
    cdef Engine* engine = crew.engine
    cdef unordered_map[uint64_t, RecordPtr].iterator entry = engine.registry.begin()
    cdef Ticket ticket
    cdef Record* record
    cdef array[RecordPtr] parked
    cdef int i
    if engine.killer != NULL:
        killer_free(engine.killer)
    if engine.memory != NULL:
        memory_free(engine.memory)
    for i in range(engine.lanes):  # before the records: a lane's timers may still point into them
        lane_free(crew.lanes[i])
    while entry != engine.registry.end():
        record = dereference(entry).second
        if record.state.load() >= RECORD_TAKEN:  # the others have a ticket
            if record.pidfd >= 0:
                close(record.pidfd)
            if record.leaf != NULL:
                leaf_free(record.leaf)
            record_free(record)
        preincrement(entry)
    while queue_pop(&engine.queue, 0, &ticket):
        record_free(<Record*> ticket.item)
    engine_withdraw_parked(engine, &parked)
    for i in range(<int> parked.size()):
        record_free(parked[i])
    leaves_free(&engine.leaves)
    leaves_free(&engine.limited)
    del engine.admission
    for i in range(engine.lanes):
        if engine.mail[i].bell >= 0:
            close(engine.mail[i].bell)
        del engine.mail[i]
        del engine.latencies[i]
    for i in range(engine.lanes + 1):
        del engine.counters[i]
    free(crew.lanes)
    free(engine.mail)
    free(engine.counters)
    free(engine.latencies)
    queue_free(&engine.queue)
    outbox_free(&engine.outbox)
    if engine.outbox.bell >= 0:
        close(engine.outbox.bell)
    del engine

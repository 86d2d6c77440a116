# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The native core: ready queue, lanes, processes and timers, none of which ever holds the GIL.

This file is the table of contents and the two classes on top; `pysched/_core.pyi` documents the interface.  The parts
stand in the order in which they build on each other.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cython.operator cimport dereference, preincrement
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from libcpp.atomic cimport memory_order_seq_cst
from libcpp.unordered_map cimport unordered_map
from posix.resource cimport RLIMIT_NOFILE, getrlimit, rlimit, setrlimit
from posix.types cimport pid_t
from posix.unistd cimport close, getpid

from native cimport (
    CLOCK_BOOTTIME,
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
    probe_kernel,
    signal_reset,
    start_thread,
    thread,
)

include "ticket.pyx"          # the 32-byte form of a waiting attempt, and the order key
include "priority_queue.pyx"  # lanes × classes of buckets
include "counters.pyx"        # totals by lane
include "timers.pyx"          # a heap on CLOCK_BOOTTIME, one a lane
include "launch.pyx"          # Launch: what Python says about an attempt
include "histogram.pyx"       # wait and run times by lane and priority
include "process.pyx"         # Record: an attempt in the lanes' hands; spawn, signal, reap
include "output.pyx"          # the cap on what an attempt writes
include "event.pyx"           # Event, and the outbox it comes from
include "tree.pyx"            # the processes of an attempt, and what they are known by
include "attempt_table.pyx"   # running attempts in a file, for whoever comes after this process
include "engine.pyx"          # what the lanes share: registry, submission, waking
include "admission.pyx"       # processors, memory and GPUs: who may start, who waits
include "killer.pyx"          # the thread that ends trees
include "zygote.pyx"          # warm starts: jobs that a zygote forks
include "memory.pyx"          # the thread that looks at what attempts with a limit use
include "worker.pyx"          # processes that make one call after the other
include "strays.pyx"          # members of a tree that shed its mark
include "lane.pyx"            # the threads: exploit, wait
include "adoption.pyx"        # attempts of an earlier incarnation in a lane's hands
include "mail.pyx"            # what they are told to do: letters and due timers
include "files.pyx"           # batches of small files: `.done`, `.task`
include "future.pyx"          # Future: concurrent.futures.Future on C fields
include "executor.pyx"        # Executor: Python calls in Python threads, from the same buckets

__all__ = [
    "ALARM", "AttemptRow", "AttemptTable", "CAUSE_CANCEL", "CAUSE_LOG_LIMIT", "CAUSE_MEMORY", "CAUSE_NONE",
    "CAUSE_SHUTDOWN", "CAUSE_TIMEOUT", "Core", "EXITED", "Event", "Executor", "Future", "Histogram", "Launch",
    "ROW_ENDED", "ROW_LOST", "ROW_NEVER_RAN", "ROW_RUNNING", "ROW_STARTING", "ReadyQueue", "SPAWN_FAILED", "STARTED",
    "WITHDRAWN", "is_missing", "read_files", "remove_files", "write_files",
]

cdef object MAX_WORKERS = 1_000_000


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


cdef int64_t moment(str field, object given) except -1:
    """What the caller says that it is on CLOCK_BOOTTIME; None: ask the clock."""
    return now(CLOCK_BOOTTIME) if given is None else whole(field, given, 0, LONGEST_NS)


cdef tuple depths_of(Queue* queue):
    return queue_depth(queue, 0), queue_depth(queue, 1), queue_depth(queue, 2)


cdef rlimit original_open_files
cdef bint open_files_raised = False


@cython.final
cdef class Core:
    cdef Engine* engine
    cdef Lane** threads
    cdef int threads_running
    cdef pid_t owner
    cdef bint closed
    cdef bint adopts        # as a subreaper
    cdef AttemptTable table  # None: attempts die with the knowledge of them
    cdef int adopted_before

    def __cinit__(
        self, *, lanes, workers, ageing_s=0.0, subreaper=False, log_limit=0, log_limit_ends=False,
        AttemptTable table=None, guard_bell=None, cpus=None, memory=None, gpus=(),
    ):
        cdef Engine* engine
        cdef int64_t ageing_ns = to_ns("ageing_s", ageing_s)
        cdef Admission* admission
        cdef int i
        whole("lanes", lanes, 1, MAX_LANES)
        whole("workers", workers, 1, MAX_WORKERS)
        whole("log_limit", log_limit, 0, 2**62)
        if probe_kernel() != 0:
            raise OSError(errno, "the kernel has no close_range; pysched needs Linux 5.9 or newer")
        admission = admission_new(cpus, memory, gpus, ageing_ns)
        self.owner = getpid()
        engine = self.engine = new Engine()
        engine.admission = admission
        engine.open_files = raise_open_files()
        engine.signals = signal_reset()
        if getrlimit(RLIMIT_RTTIME, &engine.own_mark) != 0:
            raise OSError(errno, "the limit of real-time CPU cannot be read")
        engine.mark_place = mark_place(&engine.own_mark)
        engine.salt = scattered(now(CLOCK_REALTIME) ^ <uint64_t> self.owner)
        limit_init(&engine.output_limit, log_limit, log_limit_ends)
        engine.workers.store(workers)
        engine.lanes = lanes
        queue_init(&engine.queue, lanes, ageing_ns)
        engine.outbox.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.mail = <Mailbox**> checked_realloc(NULL, engine.lanes * sizeof(Mailbox*))
        engine.counters = <counter_array**> checked_realloc(NULL, (engine.lanes + 1) * sizeof(counter_array*))
        engine.latencies = <Latencies**> checked_realloc(NULL, engine.lanes * sizeof(Latencies*))
        self.threads = <Lane**> checked_realloc(NULL, engine.lanes * sizeof(Lane*))
        for i in range(engine.lanes):
            engine.mail[i] = new Mailbox()
            engine.mail[i].bell = -1
            engine.counters[i] = new counter_array()
            engine.latencies[i] = new Latencies()
            self.threads[i] = lane_new(engine, i)
        engine.counters[engine.lanes] = new counter_array()
        self.table = table
        engine.table = table.table if table is not None else NULL
        engine.killer = killer_new(engine, subreaper)
        if not killer_open_all(engine.killer):
            raise OSError(errno, "the thread that ends processes cannot be made; is /proc mounted?")
        engine.memory = memory_new(engine)
        if engine.memory.proc == NULL or engine.memory.bell < 0:
            raise OSError(errno, "the thread that watches memory cannot be made; is /proc mounted?")
        for i in range(engine.lanes):
            if engine.outbox.bell < 0 or not lane_open(self.threads[i]):
                raise OSError(errno, f"lane {i} cannot be made; lower `lanes` or raise the limit of open files")
        if guard_bell is not None:
            if not lane_heed_guard(self.threads[0], whole("guard_bell", guard_bell, 0, 2**31 - 1)):
                raise OSError(errno, "the guard cannot be watched")
        if subreaper:
            self.adopt_orphans()
        for i in range(engine.lanes):
            self.threads[i].runner = thread_of(f"lane-{i}", lane_main, self.threads[i])
            self.threads_running += 1
        engine.killer.runner = thread_of("killer", killer_main, engine.killer)
        engine.memory.runner = thread_of("memory", memory_main, engine.memory)

    def __dealloc__(self):
        if self.engine == NULL or self.owner != getpid():
            return  # in a forked child the lanes do not exist, and their locks may be held for ever
        self.stop()
        core_free(self.engine, self.threads)

    cdef void stop(self) noexcept:
        """Join the lanes."""
        cdef Engine* engine = self.engine
        cdef int i
        with nogil:
            engine.stopping.store(1, memory_order_seq_cst)
            for i in range(self.threads_running):
                engine_ring(engine, i)
            if engine.killer != NULL and engine.killer.runner != NULL:
                eventfd_write(engine.killer.bell, 1)
                engine.killer.runner.join()
                del engine.killer.runner
                engine.killer.runner = NULL
            if engine.memory != NULL and engine.memory.runner != NULL:
                eventfd_write(engine.memory.bell, 1)
                engine.memory.runner.join()
                del engine.memory.runner
                engine.memory.runner = NULL
            for i in range(self.threads_running):
                self.threads[i].runner.join()
                del self.threads[i].runner
            self.threads_running = 0
            outbox_wake(&engine.outbox, True)
        if self.adopts:
            prctl(PR_SET_CHILD_SUBREAPER, self.adopted_before, 0, 0, 0)
            self.adopts = False

    cdef int adopt_orphans(self) except -1:
        """Become a subreaper, until the end."""
        if (prctl(PR_GET_CHILD_SUBREAPER, &self.adopted_before, 0, 0, 0) != 0
                or prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0):
            raise OSError(errno, "this process cannot become a subreaper")
        self.adopts = True
        return 0

    cdef int check(self, bint open) except -1:
        if self.owner != getpid():
            raise RuntimeError("this Core belongs to the parent process; make a new one after os.fork()")
        if open and self.closed:
            raise RuntimeError("this Core is closed; make a new one")
        return 0

    def close(self):
        self.check(False)
        if not self.closed:
            self.closed = True
            self.stop()

    def submit(self, launches):
        cdef array[RecordPtr] records
        cdef size_t i, taken = 0
        cdef uint64_t handle
        self.check(True)
        try:
            for launch in launches:
                if type(launch) is not Launch:
                    raise TypeError(f"submit: {launch!r} is no Launch")
                records.push_back(record_new(<Launch> launch))
                engine_mark(self.engine, records.back(), (<Launch> launch).mark)
                self.ask(records.back())
            with nogil:
                taken = engine_submit(self.engine, &records)
            if taken:
                handle = records[taken - 1].handle
                raise ValueError(f"handle: {handle} belongs to an attempt that has not ended; use a new one")
        except BaseException:
            for i in range(records.size()):
                record_free(records[i])
            raise

    cdef int ask(self, Record* record) except -1:
        """Let it wait for what it asks for; ValueError: this Core never has so much."""
        cdef Admission* admission = self.engine.admission
        cdef int i
        if not asks(record):
            return 0
        for i in range(RESOURCES):
            if record.demand[i] > admission.capacity[i]:
                raise ValueError(
                    f"{RESOURCE_NAMES[i]}: {record.demand[i]} is more than this Core has, {admission.capacity[i]}")
        record.admission = admission
        return 0

    def resources(self):
        cdef Admission* admission = self.engine.admission
        cdef int64_t[RESOURCES] rest
        cdef int64_t waiting
        cdef int i
        self.check(False)
        with nogil:
            admission.mutex.lock()
            waiting = admission.waiting
            for i in range(RESOURCES):
                rest[i] = admission_rest(admission, i)
            admission.mutex.unlock()
        return rest[RESOURCE_CPU], rest[RESOURCE_MEMORY], rest[RESOURCE_GPU], waiting

    def adopt(self, Launch launch):
        cdef Record* record
        cdef bint known
        self.check(True)
        if self.table is None or self.table.find(launch.token) == NULL:
            raise ValueError(f"token: {launch.token} stands in no table of attempts of this Core")
        record = record_new(launch)
        engine_mark(self.engine, record, launch.mark)
        record.row = self.table.find(launch.token)
        if asks(record):
            record.admission = self.engine.admission
        with nogil:
            known = engine_adopt(self.engine, record)
        if not known:
            record_free(record)
        return known

    def kill(self, handle, grace_s, cause):
        cdef uint64_t wanted = whole("handle", handle, 0, UINT64_MAX)
        cdef int64_t grace_ns = to_ns("grace_s", grace_s)
        cdef uint8_t why = whole("cause", cause, 1, 255)
        cdef bint known
        self.check(False)
        if self.closed:
            return False
        with nogil:
            known = engine_kill(self.engine, wanted, grace_ns, why)
        return known

    def arm(self, delay_s, token):
        cdef Letter letter
        self.check(True)
        letter.kind = LETTER_ARM
        letter.cause = CAUSED_BY_NOTHING
        letter.handle = whole("token", token, 0, UINT64_MAX)
        letter.ns = to_ns("delay_s", delay_s) + now(CLOCK_BOOTTIME)
        with nogil:
            engine_post(self.engine, 0, letter)  # all on one lane: alarms ring in the order of their deadlines

    def poll(self, timeout_s, limit=4096):
        cdef array[Note] batch
        cdef size_t most = whole("limit", limit, 1, 2**31 - 1)
        cdef size_t i
        cdef int64_t deadline_ns = -1
        cdef Polled how = POLL_INTERRUPTED
        self.check(False)
        if timeout_s is not None:
            deadline_ns = to_ns("timeout_s", timeout_s) + now(CLOCK_BOOTTIME)
        while how == POLL_INTERRUPTED:
            with nogil:
                how = outbox_poll(
                    &self.engine.outbox, &batch, most, deadline_ns,
                    GATHER_BUSY_NS if queue_has_work(&self.engine.queue) else GATHER_NS,
                )
            if how == POLL_INTERRUPTED:
                PyErr_CheckSignals()
        return [event_of(&batch[i]) for i in range(batch.size())]

    def wake(self):
        self.check(False)
        with nogil:
            outbox_wake(&self.engine.outbox, False)

    def meet_zygote(self, sockets):
        cdef array[Letter] letters
        cdef Letter letter
        cdef size_t i
        self.check(True)
        letter.kind = LETTER_ZYGOTE
        letter.cause = CAUSED_BY_NOTHING
        letter.handle = 0
        for socket in sockets:
            letter.ns = whole("sockets", socket, 0, 2**31 - 1)
            letters.push_back(letter)
        if letters.size() != <size_t> self.engine.lanes:
            raise ValueError(f"sockets: {letters.size()} given; {self.engine.lanes} are needed, one for each lane")
        with nogil:
            for i in range(letters.size()):
                engine_post(self.engine, <int> i, letters[i])

    def awaits_zygote_s(self):
        cdef int64_t since_ns, oldest_ns = 0
        cdef int i
        self.check(False)
        if self.closed:
            return 0.0
        for i in range(self.engine.lanes):
            since_ns = self.threads[i].zygote.since_ns.load(memory_order_relaxed)
            if since_ns and (oldest_ns == 0 or since_ns < oldest_ns):
                oldest_ns = since_ns
        return (now(CLOCK_BOOTTIME) - oldest_ns) / 1e9 if oldest_ns else 0.0

    def withdraw_all(self):
        cdef size_t ended
        self.check(True)
        with nogil:
            ended = engine_withdraw_all(self.engine)
        return ended

    def set_workers(self, workers):
        cdef int i
        self.check(True)
        self.engine.workers.store(whole("workers", workers, 1, MAX_WORKERS), memory_order_seq_cst)
        with nogil:
            for i in range(self.engine.lanes):
                engine_ring(self.engine, i)

    def counters(self):
        cdef int which, i
        cdef uint64_t total
        cdef dict totals = {}
        self.check(False)
        for which in range(COUNTERS):
            total = 0
            for i in range(self.engine.lanes + 1):
                total += counted(self.engine.counters[i], which)
            totals[COUNTER_NAMES[which]] = total
        return totals

    def histograms(self):
        cdef Histogram wait, run
        cdef int cls, i
        cdef dict found = {}
        self.check(False)
        for cls in range(CLASSES):
            wait, run = Histogram(), Histogram()
            for i in range(self.engine.lanes):
                wait.add(&self.engine.latencies[i].wait[cls])
                run.add(&self.engine.latencies[i].run[cls])
            found["wait", cls] = wait
            found["run", cls] = run
        return found

    def depths(self):
        self.check(False)
        cdef int64_t[CLASSES] parked
        cdef tuple found = depths_of(&self.engine.queue)
        memset(parked, 0, sizeof(parked))
        admission_depths(self.engine.admission, parked)
        return found[0] + parked[0], found[1] + parked[1], found[2] + parked[2]

    @property
    def running(self):
        self.check(False)
        return self.engine.running.load()

    @property
    def lanes(self):
        return self.engine.lanes

    @property
    def workers(self):
        return self.engine.workers.load()


cdef thread* thread_of(str name, void (*entry)(void*) noexcept nogil, void* argument) except NULL:
    try:
        return start_thread(entry, argument, f"pysched-{name}".encode())
    except RuntimeError as error:
        raise OSError(EAGAIN, f"the thread {name} cannot be started: {error}; lower `lanes`") from None


RESOURCE_NAMES = ("cpus", "memory", "gpus")


cdef inline bint asks(const Record* record) noexcept nogil:
    """For anything but a worker."""
    return record.demand[RESOURCE_CPU] != 0 or record.demand[RESOURCE_MEMORY] != 0 or record.demand[RESOURCE_GPU] != 0


cdef Admission* admission_new(object cpus, object memory, object gpus, int64_t ageing_ns) except NULL:
    """None: more than anybody asks for."""
    cdef int64_t[RESOURCES] capacity
    cdef Admission* admission
    cdef tuple names = texts_of("gpus", gpus)
    cdef bytes name
    if len(names) > DEVICES_MAX or any(not 0 < len(name) < DEVICE_NAME_BYTES or b"," in name for name in names):
        raise ValueError(
            f"gpus: {names!r} are no names of up to {DEVICES_MAX} devices, each below {DEVICE_NAME_BYTES} bytes")
    capacity[RESOURCE_CPU] = PLENTY if cpus is None else whole("cpus", cpus, 0, 2**40)
    capacity[RESOURCE_MEMORY] = PLENTY if memory is None else whole("memory", memory, 0, 2**60)
    capacity[RESOURCE_GPU] = len(names) * WHOLE
    admission = new Admission()
    admission_init(admission, capacity, ageing_ns)
    for name in names:
        memcpy(admission.devices[admission.count].name, <const char*> name, len(name) + 1)
        admission.devices[admission.count].rest = WHOLE
        admission.count += 1
    return admission


cdef void core_free(Engine* engine, Lane** threads) noexcept:
    """Free what the lanes left.  Children that run go on; only our knowledge of them ends."""
    cdef unordered_map[uint64_t, RecordPtr].iterator entry = engine.registry.begin()
    cdef Ticket ticket
    cdef Record* record
    cdef array[RecordPtr] parked
    cdef int i
    if engine.killer != NULL:
        killer_free(engine.killer)
    if engine.memory != NULL:
        memory_free(engine.memory)
    while entry != engine.registry.end():
        record = dereference(entry).second
        if record.state.load() >= RECORD_TAKEN:  # the others have a ticket
            close(record.pidfd)
            record_free(record)
        preincrement(entry)
    while queue_pop(&engine.queue, 0, &ticket):
        record_free(<Record*> ticket.item)
    engine_withdraw_parked(engine, &parked)
    for i in range(<int> parked.size()):
        record_free(parked[i])
    del engine.admission
    for i in range(engine.lanes):
        lane_free(threads[i])
        if engine.mail[i].bell >= 0:
            close(engine.mail[i].bell)
        del engine.mail[i]
        del engine.latencies[i]
    for i in range(engine.lanes + 1):
        del engine.counters[i]
    free(threads)
    free(engine.mail)
    free(engine.counters)
    free(engine.latencies)
    queue_free(&engine.queue)
    if engine.outbox.bell >= 0:
        close(engine.outbox.bell)
    del engine


@cython.final
cdef class ReadyQueue:
    cdef Queue* queue

    def __cinit__(self, lanes, ageing_s=0.0):
        cdef int64_t ageing_ns = to_ns("ageing_s", ageing_s)
        whole("lanes", lanes, 1, MAX_LANES)
        self.queue = new Queue()
        queue_init(self.queue, lanes, ageing_ns)

    def __dealloc__(self):
        if self.queue != NULL:
            queue_free(self.queue)
            del self.queue

    def push(self, priority, rank, sequence, handle, lane=-1, now_ns=None):
        cdef Ticket ticket
        cdef int place = whole("lane", lane, -1, self.queue.lanes - 1)
        ticket.cls = whole("priority", priority, 0, CLASSES - 1)
        ticket.rank = whole("rank", rank, -2**31, 2**31 - 1)
        ticket.sequence = whole("sequence", sequence, 0, UINT64_MAX)
        ticket.item = whole("handle", handle, 0, UINT64_MAX)
        ticket.queued_ns = moment("now_ns", now_ns)
        with nogil:
            queue_push(self.queue, queue_balance(self.queue) if place < 0 else place, &ticket)

    def pop(self, lane, now_ns=None):
        cdef Ticket ticket
        cdef int place = whole("lane", lane, 0, self.queue.lanes - 1)
        cdef int64_t time_ns = moment("now_ns", now_ns)
        cdef bint found
        with nogil:
            queue_age(self.queue, time_ns)
            found = queue_pop(self.queue, place, &ticket)
        return ticket.item if found else None

    def depths(self):
        return depths_of(self.queue)

    def __len__(self):
        return sum(self.depths())

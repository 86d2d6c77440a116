# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The native core: ready queue, lanes, processes and timers, none of which ever holds the GIL.

This file is the table of contents and the class on top; `pysched/_core.pyi` documents the interface.  The parts
stand in the order in which they build on each other.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst
from posix.types cimport pid_t
from posix.unistd cimport getpid

from native cimport CLOCK_BOOTTIME, array, probe_kernel

include "ticket.pyx"          # the 32-byte form of a waiting attempt, and the order key
include "priority_queue.pyx"  # lanes × classes of buckets
include "counters.pyx"        # totals by lane
include "timers.pyx"          # a heap on CLOCK_BOOTTIME, one a lane
include "launch.pyx"          # Launch: what Python says about an attempt
include "program.pyx"         # Program: what an attempt is before that
include "histogram.pyx"       # wait and run times by lane and priority
include "process.pyx"         # Record: an attempt in the lanes' hands; spawn, signal, reap
include "leaf.pyx"            # the control groups that attempts are born in
include "output.pyx"          # the cap on what an attempt writes
include "event.pyx"           # Event, and the outbox it comes from
include "tree.pyx"            # the processes of an attempt, and what they are known by
include "attempt_table.pyx"   # running attempts in a file, for whoever comes after this process
include "engine.pyx"          # what the lanes share: registry, submission, waking
include "processors.pyx"      # affinity: which processors are whose
include "parked.pyx"          # who waits for what others hold
include "admission.pyx"       # processors, memory and GPUs: who may start, who waits
include "killer.pyx"          # the thread that ends trees
include "leaf_killer.pyx"     # those that the kernel ends for it
include "killer_wait.pyx"     # when it looks, and what it waits for
include "zygote.pyx"          # warm starts: jobs that a zygote forks
include "memory.pyx"          # the thread that looks at what attempts with a limit use
include "worker.pyx"          # processes that make one call after the other
include "holders.pyx"         # those that have GPUs, of all lanes
include "strays.pyx"          # members of a tree that shed its mark
include "lane.pyx"            # the threads: exploit, wait
include "adoption.pyx"        # attempts of an earlier incarnation in a lane's hands
include "mail.pyx"            # what they are told to do: letters and due timers
include "crew.pyx"            # all these threads: made, started, stopped, freed
include "ready_queue.pyx"     # ReadyQueue: the lanes' queue by itself
include "sync.pyx"            # how written files get to the disk
include "files.pyx"           # batches of small files: `.done`, `.task`
include "moment.pyx"          # datetimes from nanoseconds, and their text
include "text.pyx"            # buffers of text, and of PostgreSQL's arrays
include "plain.pyx"           # PlainEnds: most ends, without a Python object each
include "future.pyx"          # Future: concurrent.futures.Future on C fields
include "executor.pyx"        # Executor: Python calls in Python threads, from the same buckets

__all__ = [
    "ALARM", "AttemptRow", "AttemptTable", "CAUSE_CANCEL", "CAUSE_LOG_LIMIT", "CAUSE_MEMORY", "CAUSE_NONE",
    "CAUSE_SHUTDOWN", "CAUSE_TIMEOUT", "Core", "EXITED", "Event", "Executor", "Future", "Histogram", "Launch",
    "Pattern", "PlainEnds", "Program", "ROW_ENDED", "ROW_LOST", "ROW_NEVER_RAN", "ROW_RUNNING", "ROW_STARTING",
    "ReadyQueue", "SPAWN_FAILED", "STARTED", "WITHDRAWN", "is_missing", "moment_of", "read_files", "remove_files",
    "scan_files", "utc_text", "write_files",
]

cdef object MAX_WORKERS = 1_000_000


@cython.final
cdef class Core:
    cdef Crew crew
    cdef Engine* engine     # the crew's
    cdef pid_t owner
    cdef bint closed
    cdef AttemptTable table  # None: attempts die with the knowledge of them

    def __cinit__(
        self, *, lanes, workers, ageing_s=0.0, subreaper=False, log_limit=0, log_limit_ends=False,
        AttemptTable table=None, guard=None, cpus=None, memory=None, gpus=(), affinity=False, cgroup=None,
        limited=None,
    ):
        cdef int64_t ageing_ns = to_ns("ageing_s", ageing_s)
        cdef Admission* admission
        cdef int error
        whole("lanes", lanes, 1, MAX_LANES)
        whole("workers", workers, 1, MAX_WORKERS)
        whole("log_limit", log_limit, 0, 2**62)
        if probe_kernel() != 0:
            raise OSError(errno, "the kernel has no close_range; pysched needs Linux 5.9 or newer")
        admission = admission_new(cpus, memory, gpus, ageing_ns)
        if affinity and not processors_init(&admission.processors):
            error = errno
            del admission
            raise OSError(error, "the processors that this process may use cannot be read; go without affinity")
        self.owner = getpid()
        crew_make(&self.crew, lanes, workers, ageing_ns, admission)
        self.engine = self.crew.engine
        limit_init(&self.engine.output_limit, log_limit, log_limit_ends)
        self.table = table
        self.engine.table = table.table if table is not None else NULL
        crew_open(&self.crew, subreaper)
        if cgroup is not None and self.engine.signals.by_kernel:
            leaves_open(&self.engine.leaves, cgroup, False, self.engine.open_files.rlim_max)
        if limited is not None and self.engine.signals.by_kernel:
            leaves_open(&self.engine.limited, limited, True, self.engine.open_files.rlim_max)
        if guard is not None:
            pid, bell = guard
            self.engine.guard = whole("guard", pid, 1, 2**31 - 1)
            if not lane_heed_guard(self.crew.lanes[0], whole("guard", bell, 0, 2**31 - 1)):
                raise OSError(errno, "the guard cannot be watched")
        crew_start(&self.crew)

    def __dealloc__(self):
        if self.crew.engine == NULL or self.owner != getpid():
            return  # in a forked child the lanes do not exist, and their locks may be held for ever
        crew_stop(&self.crew)
        crew_free(&self.crew)

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
            crew_stop(&self.crew)

    def submit(self, launches):
        cdef array[RecordPtr] records
        cdef size_t i, taken = 0
        cdef uint64_t handle
        self.check(True)
        try:
            for launch in launches:
                if type(launch) is not Launch or (<Launch> launch).cwd is None:  # made, but not initialised
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
        cdef size_t i
        self.take_notes(&batch, timeout_s, limit)
        return [event_of(&batch[i]) for i in range(batch.size())]

    def poll_ends(self, timeout_s, held, texts, limit=4096):
        cdef array[Note] batch
        self.take_notes(&batch, timeout_s, limit)
        return plain_split(&batch, held, texts)

    cdef int take_notes(self, array[Note]* batch, object timeout_s, object limit) except -1:
        cdef size_t most = whole("limit", limit, 1, 2**31 - 1)
        cdef int64_t deadline_ns = -1
        cdef Polled how = POLL_INTERRUPTED
        cdef Backlog backlog
        self.check(False)
        backlog.queue = &self.engine.queue
        backlog.crowd = &self.engine.admission.crowd
        if timeout_s is not None:
            deadline_ns = to_ns("timeout_s", timeout_s) + now(CLOCK_BOOTTIME)
        while how == POLL_INTERRUPTED:
            with nogil:
                how = outbox_poll(&self.engine.outbox, batch, most, deadline_ns, &backlog)
            if how == POLL_INTERRUPTED:
                PyErr_CheckSignals()
        return 0

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
            since_ns = self.crew.lanes[i].zygote.since_ns.load(memory_order_relaxed)
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

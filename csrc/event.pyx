# What happened, on its way from the lanes to Python: the outbox, and the `Event` that Python sees.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libcpp.atomic cimport memory_order_relaxed
from posix.types cimport pid_t

from native cimport (
    CLOCK_BOOTTIME,
    POLLIN,
    array,
    eventfd_read,
    eventfd_t,
    eventfd_write,
    padded_atomic,
    padded_mutex,
    pollfd,
    ppoll,
    timespec,
)

cdef enum EventKind:
    KIND_STARTED = 1
    KIND_EXITED
    KIND_SPAWN_FAILED
    KIND_WITHDRAWN
    KIND_ALARM

cdef struct Note:       # the native form of an Event, same fields
    uint64_t handle
    uint8_t kind
    uint8_t cause
    uint8_t step
    int lane
    pid_t pid
    int status
    int error
    int64_t queued_ns
    int64_t started_ns
    int64_t ended_ns
    int64_t wait_ns
    int64_t run_ns
    int64_t cpu_ns
    int64_t max_rss_kb
    int survivors
    int64_t kill_ns
    bint left_output
    bint left_result
    uint16_t result_size
    char* result        # the event's, or whose the note is; NULL: none


cdef cppclass Outbox:
    # Notes in order, from `first` on.  Every field is guarded by the mutex, which also carries the happens-before from
    # the lane that wrote a note to the thread that reads it.
    #
    # A poller that finds nothing waits on an eventfd rather than on a condition variable: poll(2) is cut short by
    # signals, so that Python's handlers run, and later an event loop can watch the same descriptor.  `signalled` is
    # true from a write to it until the next poller has read it; no wake-up is lost because whoever finds it true
    # appended before that poller comes back to the mutex and looks.
    padded_mutex mutex
    array[Note] notes
    size_t first
    int pollers         # that wait, or are about to
    bint signalled
    bint woken          # wake() was called and no poll has returned for it yet
    bint closed
    int bell            # the eventfd
    int64_t taken_ns    # CLOCK_BOOTTIME of the last poll that took notes

# How soon a poll may follow one that took notes.  Waking a poller for each end of a short job costs as much as the
# kernel's work for a third of that job; notes that are this close together come in one batch.  While attempts wait in
# the buckets, or for what others hold, no lane needs anything of the poller, so it may take its time; and more of it
# while so many wait in the buckets that they will not be gone soon.  To look whether they are is a wake-up each time.
cdef int64_t GATHER_NS = 1_000_000
cdef int64_t GATHER_BUSY_NS = 20_000_000
cdef int64_t GATHER_DEEP_NS = 50_000_000
cdef int64_t LOOK_DEEP_NS = 10_000_000
cdef int64_t DEEP = 128


cdef enum Polled:
    POLLED              # what there was
    POLL_INTERRUPTED    # by a signal; handle it and call again


cdef void outbox_post(Outbox* outbox, array[Note]* notes) noexcept nogil:
    """Move all of `notes` behind what is there; one wake-up for all of them, none if nobody waits."""
    cdef size_t i
    cdef bint signal
    if notes.empty():
        return
    outbox.mutex.lock()
    if outbox.notes.empty():
        outbox.notes.swap(notes[0])
    else:
        for i in range(notes.size()):
            outbox.notes.push_back(notes[0][i])
    signal = outbox_needs_signal(outbox)
    outbox.mutex.unlock()
    notes.clear()
    if signal:
        eventfd_write(outbox.bell, 1)


cdef inline bint outbox_needs_signal(Outbox* outbox) noexcept nogil:
    """Under the mutex: whether the caller must write to the eventfd."""
    if outbox.pollers == 0 or outbox.signalled:
        return False
    outbox.signalled = True
    return True


cdef void outbox_wake(Outbox* outbox, bint for_good) noexcept nogil:
    cdef bint signal
    outbox.mutex.lock()
    outbox.woken = True
    outbox.closed = outbox.closed or for_good
    signal = outbox_needs_signal(outbox)
    outbox.mutex.unlock()
    if signal:
        eventfd_write(outbox.bell, 1)


cdef bint outbox_take(Outbox* outbox, array[Note]* batch, size_t limit) noexcept nogil:
    """Under the mutex: move up to `limit` notes to `batch`; whether the poll may return."""
    cdef size_t i, end = outbox.notes.size()
    if end - outbox.first > limit:
        end = outbox.first + limit
    for i in range(outbox.first, end):
        batch.push_back(outbox.notes[i])
    outbox.first = end
    if end == outbox.notes.size():
        outbox.notes.clear()
        outbox.first = 0
    if batch.empty() and not outbox.woken and not outbox.closed:
        return False
    if not batch.empty():
        outbox.taken_ns = now(CLOCK_BOOTTIME)
    outbox.woken = False
    return True


cdef struct Backlog:
    Queue* queue
    padded_atomic[uint32_t]* crowd  # how many are parked


cdef inline bint has_backlog(const Backlog* backlog) noexcept nogil:
    # relaxed: it is a guess about the next milliseconds.
    return queue_has_work(backlog.queue) or backlog.crowd.load(memory_order_relaxed) != 0


cdef inline bint is_deep(const Backlog* backlog) noexcept nogil:
    cdef int64_t waiting = 0
    cdef int i
    for i in range(backlog.queue.lanes):
        waiting += queue_waiting(backlog.queue, i)
    return waiting >= DEEP


cdef bint outbox_gather(
    Outbox* outbox, size_t limit, int64_t deadline_ns, const Backlog* backlog
) noexcept nogil:
    """Under the mutex, which is free meanwhile: let notes gather if some were taken just now; False: interrupted.

    Nobody counts as a poller here, so lanes post without a system call.  Whether attempts wait is asked each GATHER_NS
    (LOOK_DEEP_NS, if many do), by which the last of a batch, and a wake(), may be late."""
    cdef timespec rest
    cdef int64_t now_ns, until_ns, look_ns
    cdef int slept = 0
    rest.tv_sec = 0
    while slept == 0:
        if outbox.taken_ns == 0 or outbox.woken or outbox.closed or outbox.notes.size() - outbox.first >= limit:
            return True
        look_ns = GATHER_NS
        until_ns = outbox.taken_ns + GATHER_NS
        if is_deep(backlog):
            look_ns = LOOK_DEEP_NS
            until_ns = outbox.taken_ns + GATHER_DEEP_NS
        elif has_backlog(backlog):
            until_ns = outbox.taken_ns + GATHER_BUSY_NS
        if 0 <= deadline_ns < until_ns:
            until_ns = deadline_ns
        now_ns = now(CLOCK_BOOTTIME)
        if now_ns >= until_ns:
            return True
        rest.tv_nsec = min(until_ns - now_ns, look_ns)
        outbox.mutex.unlock()
        slept = ppoll(NULL, 0, &rest, NULL)
        outbox.mutex.lock()
    return False


cdef Polled outbox_poll(
    Outbox* outbox, array[Note]* batch, size_t limit, int64_t deadline_ns, const Backlog* backlog
) noexcept nogil:
    """Wait for notes until `deadline_ns` of CLOCK_BOOTTIME (-1: for ever) and take up to `limit`; more time for them to
    gather while there is a backlog."""
    cdef pollfd watched
    cdef timespec rest
    cdef int64_t rest_ns
    cdef eventfd_t value
    cdef int ready
    cdef bint done, signal
    outbox.mutex.lock()
    if not outbox_gather(outbox, limit, deadline_ns, backlog):
        outbox.mutex.unlock()
        return POLL_INTERRUPTED
    while True:
        done = outbox_take(outbox, batch, limit)
        # Others may wait for what is left behind here.
        signal = done and not outbox.notes.empty() and outbox_needs_signal(outbox)
        if done:
            break
        rest_ns = 0
        if deadline_ns >= 0:
            rest_ns = deadline_ns - now(CLOCK_BOOTTIME)
            if rest_ns <= 0:
                break
        rest.tv_sec = rest_ns // NS_PER_S
        rest.tv_nsec = rest_ns % NS_PER_S
        outbox.pollers += 1
        outbox.mutex.unlock()
        watched.fd = outbox.bell
        watched.events = POLLIN
        watched.revents = 0
        ready = ppoll(&watched, 1, &rest if deadline_ns >= 0 else NULL, NULL)
        if ready > 0:
            eventfd_read(outbox.bell, &value)  # non-blocking: another poller may have been first
        outbox.mutex.lock()
        outbox.pollers -= 1
        if ready > 0:
            outbox.signalled = False
        elif ready < 0:
            outbox.mutex.unlock()
            return POLL_INTERRUPTED
    outbox.mutex.unlock()
    if signal:
        eventfd_write(outbox.bell, 1)
    return POLLED


# ---- the Python side -------------------------------------------------------------------------------------------------

STARTED = int(KIND_STARTED)
EXITED = int(KIND_EXITED)
SPAWN_FAILED = int(KIND_SPAWN_FAILED)
WITHDRAWN = int(KIND_WITHDRAWN)
ALARM = int(KIND_ALARM)
CAUSE_NONE = int(CAUSED_BY_NOTHING)
CAUSE_TIMEOUT = int(CAUSED_BY_TIMEOUT)
CAUSE_CANCEL = int(CAUSED_BY_CANCEL)
CAUSE_SHUTDOWN = int(CAUSED_BY_SHUTDOWN)
CAUSE_LOG_LIMIT = int(CAUSED_BY_LOG_LIMIT)
CAUSE_MEMORY = int(CAUSED_BY_MEMORY)

cdef tuple KIND_NAMES = ("?", "STARTED", "EXITED", "SPAWN_FAILED", "WITHDRAWN", "ALARM")
cdef tuple STEP_NAMES = (None, "clone", "session", "stdin", "stdout", "stderr", "cwd", "limits", "exec")  # by Step


@cython.final
@cython.auto_pickle(False)
@cython.freelist(1024)
cdef class Event:
    cdef readonly int kind
    cdef readonly uint64_t handle
    cdef readonly int lane
    cdef readonly int pid
    cdef readonly int status
    cdef readonly int cause
    cdef int error       # errno: a macro in C
    cdef readonly str step
    cdef readonly int64_t queued_ns
    cdef readonly int64_t started_ns
    cdef readonly int64_t ended_ns
    cdef readonly int64_t wait_ns
    cdef readonly int64_t run_ns
    cdef readonly int64_t cpu_ns
    cdef readonly int64_t max_rss_kb
    cdef readonly int survivors
    cdef readonly int64_t kill_ns
    cdef readonly bint left_output
    cdef readonly bint left_result
    cdef readonly bytes result

    def __init__(
        self, int kind, uint64_t handle, *, int lane=0, int pid=0, int status=0, int cause=0, int errno=0,
        str step=None, int64_t queued_ns=0, int64_t started_ns=0, int64_t ended_ns=0, int64_t wait_ns=0,
        int64_t run_ns=0, int64_t cpu_ns=0, int64_t max_rss_kb=0, int survivors=0, int64_t kill_ns=0,
        bint left_output=True, bint left_result=True, bytes result=None,
    ):
        self.kind = kind
        self.handle = handle
        self.lane = lane
        self.pid = pid
        self.status = status
        self.cause = cause
        self.error = errno
        self.step = step
        self.queued_ns = queued_ns
        self.started_ns = started_ns
        self.ended_ns = ended_ns
        self.wait_ns = wait_ns
        self.run_ns = run_ns
        self.cpu_ns = cpu_ns
        self.max_rss_kb = max_rss_kb
        self.survivors = survivors
        self.kill_ns = kill_ns
        self.left_output = left_output
        self.left_result = left_result
        self.result = result

    @property
    def errno(self):
        return self.error

    def __repr__(self):
        name = KIND_NAMES[self.kind] if 0 < self.kind < len(KIND_NAMES) else str(self.kind)
        text = f"<Event {name} {self.handle} pid={self.pid} status={self.status} cause={self.cause}"
        if self.step is not None:
            text += f" step={self.step} errno={self.error}"
        return text + ">"


cdef void outbox_free(Outbox* outbox) noexcept nogil:
    """What nobody has taken; by the thread that owns the Core, after the lanes have ended."""
    cdef size_t i
    for i in range(outbox.first, outbox.notes.size()):
        free(outbox.notes[i].result)


cdef Event event_of(Note* note):
    """The note is spent."""
    cdef Event event = Event.__new__(Event)
    event.kind = note.kind
    event.handle = note.handle
    event.lane = note.lane
    event.pid = note.pid
    event.status = note.status
    event.cause = note.cause
    event.error = note.error
    event.step = STEP_NAMES[note.step]
    event.queued_ns = note.queued_ns
    event.started_ns = note.started_ns
    event.ended_ns = note.ended_ns
    event.wait_ns = note.wait_ns
    event.run_ns = note.run_ns
    event.cpu_ns = note.cpu_ns
    event.max_rss_kb = note.max_rss_kb
    event.survivors = note.survivors
    event.kill_ns = note.kill_ns
    event.left_output = note.left_output
    event.left_result = note.left_result
    event.result = note.result[:note.result_size] if note.result != NULL else None
    free(note.result)
    note.result = NULL
    return event

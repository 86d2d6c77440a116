# A lane: one native thread that starts attempts, reaps its own children and keeps their timers.
#
# Its loop is two calls, exploit and wait.  Everything below runs without the GIL and touches no Python object.

from libc.errno cimport EAGAIN
from libc.signal cimport SIGKILL
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from libcpp.atomic cimport memory_order_acquire, memory_order_seq_cst
from posix.resource cimport rusage
from posix.unistd cimport close

from native cimport (
    CLOCK_BOOTTIME,
    CLOCK_REALTIME,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLET,
    EPOLLIN,
    STEP_NONE,
    TFD_CLOEXEC,
    TFD_NONBLOCK,
    TFD_TIMER_ABSTIME,
    Spawn,
    array,
    counter_array,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    eventfd,
    itimerspec,
    map_child_stack,
    peek_exit,
    thread,
    timerfd_create,
    timerfd_settime,
    unmap_child_stack,
)

cdef enum:
    EVENTS = 64         # taken from epoll at once

cdef int64_t BACKOFF_FIRST_NS = 20_000_000
cdef int64_t BACKOFF_LAST_NS = 1_000_000_000
cdef int64_t WATCH_RETRY_NS = 50_000_000


cdef cppclass Lane:
    # The thread's own; others reach it through engine.mail only.
    Engine* engine
    thread* runner
    int number
    int epoll
    int clock           # timerfd on CLOCK_BOOTTIME: a sleep of the machine does not stretch a deadline
    int64_t clock_ns    # what it is set to; 0: not set
    int slots           # of engine.running, held for the next attempt
    int surplus         # slots given back since the last look around
    Timers timers
    Timer backoff       # armed: the lane spawns nothing
    int64_t backoff_ns
    Timer watch         # armed: `unwatched` is not empty
    array[RecordPtr] unwatched
    array[Note] notes   # what happened in this round
    array[Letter] letters
    void* stack         # of the child between clone and exec
    int64_t peak_kb     # of this process's memory, see record_reap
    Zygote zygote
    array[WorkerPtr] workers    # that make calls, or may
    array[WorkerPtr] buried     # gone, and perhaps in this round's events
    # Of lane 0 alone, which keeps adopted attempts, see adoption.pyx:
    int guard_bell      # eventfd: the guard has written ends; -1: there is no guard
    int guard           # its pidfd
    bint guard_stirred  # seen in this round
    bint guard_gone
    array[RecordPtr] unrecorded  # ended, and their rows do not say how yet


cdef struct Alarm:
    Timer timer
    uint64_t token


cdef void lane_main(void* argument) noexcept nogil:
    cdef Lane* lane = <Lane*> argument
    cdef bint busy
    while lane.engine.stopping.load(memory_order_acquire) == 0:
        busy = lane_exploit(lane)
        lane_wait(lane, busy)
    lane_free_workers(lane)
    outbox_post(&lane.engine.outbox, &lane.notes)


# ---- exploit ---------------------------------------------------------------------------------------------------------

cdef bint lane_exploit(Lane* lane) noexcept nogil:
    """Start at most one attempt, so that ends and timers never wait for more than one spawn; True: look again at
    once."""
    cdef Engine* engine = lane.engine
    cdef Ticket ticket
    cdef Record* record
    cdef bint started = False
    while lane.backoff.place == 0 and queue_has_work(&engine.queue) and lane_claim_slot(lane):
        queue_age(&engine.queue, now(CLOCK_BOOTTIME))
        if not queue_pop(&engine.queue, lane.number, &ticket):
            break
        record = <Record*> ticket.item
        if record_change(record, RECORD_QUEUED, RECORD_TAKEN + <uint32_t> lane.number):
            if record.admission != NULL and not engine_admits(engine, record):
                continue
            lane_start(lane, record)
            started = True
            break
        queue_exhume(&engine.queue, record.home, ticket.cls)
        record_free(record)
        engine_admit(engine)  # it may have held something
    if lane.slots and not queue_has_work(&engine.queue):
        lane_release_slots(lane)
    return started


cdef bint lane_claim_slot(Lane* lane) noexcept nogil:
    """Hold a slot for the next attempt: one left by an attempt that ended here, or a free one; False: all are taken."""
    cdef Engine* engine = lane.engine
    cdef int running
    while lane.slots:
        if engine.running.load(memory_order_seq_cst) <= engine.workers.load(memory_order_seq_cst):
            return True
        lane_give_back(lane, 1)  # the limit was lowered
    running = engine.running.load(memory_order_seq_cst)
    while running < engine.workers.load(memory_order_seq_cst):
        if engine.running.compare_exchange_weak(running, running + 1, memory_order_seq_cst):
            lane.slots = 1
            return True
    return False


cdef inline void lane_give_back(Lane* lane, int slots) noexcept nogil:
    """seq_cst, and followed by a look at the queue in lane_park at the latest: see "waking" in engine.pyx."""
    lane.engine.running.fetch_sub(slots, memory_order_seq_cst)
    lane.slots -= slots


cdef void lane_release_slots(Lane* lane) noexcept nogil:
    if lane.slots:
        lane_give_back(lane, lane.slots)


cdef void lane_start(Lane* lane, Record* record) noexcept nogil:
    """A record that this lane has taken; here, unless its call is for a worker of another lane."""
    cdef int host = lane_of_holder(lane, record) if record.devices else lane.number
    if host == lane.number:
        lane_start_here(lane, record)
    else:
        lane_hand_over(lane, record, host)


cdef void lane_start_here(Lane* lane, Record* record) noexcept nogil:
    """Spawn its program, or ask who has it already."""
    cdef Engine* engine = lane.engine
    cdef Spawn spawn
    # Taken before the spawn: a lane that is preempted while its child already runs must not shorten the run time.
    record.started_ns = now(CLOCK_BOOTTIME)
    record.started_real_ns = now(CLOCK_REALTIME)
    if engine.table != NULL and not record_take_row(record, engine.table):
        count(engine.counters[lane.number], COUNT_BACKED_OFF)
        lane_requeue(lane, record)
        return
    if record.warm:
        lane_start_warm(lane, record)
        return
    if record.devices:
        lane_end_holders(lane, record.devices, 0)
    record_spawn_in_leaf(
        record, lane.number, lane.stack, &engine.leaves, &engine.limited, &engine.open_files, &engine.signals, &spawn)
    if spawn.step != STEP_NONE:
        lane_not_started(lane, record, &spawn)
        return
    lane.slots -= 1  # it is the attempt's now
    record.pid = spawn.pid
    record.pidfd = spawn.pidfd
    lane_started(lane, record)


cdef void lane_not_started(Lane* lane, Record* record, const Spawn* spawn) noexcept nogil:
    """Put it back for a shortage that will pass, else tell that it cannot be started."""
    cdef counter_array* counters = lane.engine.counters[lane.number]
    cdef Note note
    record_give_row_back(record, lane.engine.table)
    if is_shortage(spawn):
        count(counters, COUNT_BACKED_OFF)
        lane_requeue(lane, record)
        return
    lane.backoff_ns = 0
    note_init(&note, record, KIND_SPAWN_FAILED, CAUSED_BY_NOTHING)
    note.step = spawn.step
    note.error = spawn.error
    note.ended_ns = record.started_real_ns
    note.lane = lane.number
    note.wait_ns = record.started_ns - record.ticket.queued_ns
    lane.notes.push_back(note)
    count(counters, COUNT_SPAWN_FAILED)
    engine_forget(lane.engine, record.handle)
    record_free(record)
    engine_admit(lane.engine)


cdef void lane_started(Lane* lane, Record* record) noexcept nogil:
    """It has a process: tell, and watch it."""
    cdef Engine* engine = lane.engine
    cdef Note note
    lane.backoff_ns = 0
    if record.row != NULL:
        row_runs(record.row, record.pid, 0 if record.warm else own_peak_kb())
    note_init(&note, record, KIND_STARTED, CAUSED_BY_NOTHING)
    lane_describe(lane, record, &note)
    lane.notes.push_back(note)
    count(engine.counters[lane.number], COUNT_STARTED)
    latency_record(&engine.latencies[lane.number].wait[record.ticket.cls], note.wait_ns)
    if record.timeout_ns:
        timers_arm(&lane.timers, &record.timer, TIMER_TIMEOUT, record.started_ns + record.timeout_ns)
    if engine.output_limit.size:
        record.look_ns = OUTPUT_FIRST_NS
        timers_arm(&lane.timers, &record.look, TIMER_OUTPUT, record.started_ns + OUTPUT_FIRST_NS)
    memory_watch(lane, record)
    if record.worker == NULL and not lane_watch(lane, record):  # the worker is watched
        lane.unwatched.push_back(record)
        timers_arm(&lane.timers, &lane.watch, TIMER_WATCH, record.started_ns + WATCH_RETRY_NS)


cdef inline void lane_describe(Lane* lane, const Record* record, Note* note) noexcept nogil:
    note.lane = lane.number
    note.pid = record.pid
    note.started_ns = record.started_real_ns
    note.wait_ns = record.started_ns - record.ticket.queued_ns


cdef void lane_requeue(Lane* lane, Record* record) noexcept nogil:
    """The machine is short of descriptors, processes or memory, or too many ends wait to be committed: the ticket keeps
    its place, this lane pauses.

    Nobody is woken for it: what another lane lacks is the same.  Ours comes back by its timer."""
    record_change(record, RECORD_TAKEN + <uint32_t> lane.number, RECORD_QUEUED)
    queue_push(&lane.engine.queue, record.home, &record.ticket)
    lane.backoff_ns = min(lane.backoff_ns * 2, BACKOFF_LAST_NS) if lane.backoff_ns else BACKOFF_FIRST_NS
    timers_arm(&lane.timers, &lane.backoff, TIMER_BACKOFF, now(CLOCK_BOOTTIME) + lane.backoff_ns)
    lane_release_slots(lane)


cdef bint lane_watch(Lane* lane, Record* record) noexcept nogil:
    """Be told of the child's end; False: the kernel has no memory for that now."""
    cdef epoll_event interest
    interest.events = EPOLLIN
    interest.data.ptr = record
    return epoll_ctl(lane.epoll, EPOLL_CTL_ADD, record.pidfd, &interest) == 0


cdef void lane_unwatch(Lane* lane, Record* record) noexcept nogil:
    cdef size_t i
    if record.pidfd < 0:  # of a worker that lives on
        return
    # Explicitly: a process that Python forks may hold a copy of the pidfd, and the interest would outlive our close.
    epoll_ctl(lane.epoll, EPOLL_CTL_DEL, record.pidfd, NULL)
    for i in range(lane.unwatched.size()):
        if lane.unwatched[i] == record:
            lane.unwatched[i] = lane.unwatched.back()
            lane.unwatched.pop_back()
            break


cdef void lane_watch_again(Lane* lane) noexcept nogil:
    while not lane.unwatched.empty():
        if not lane_watch(lane, lane.unwatched.back()):
            timers_arm(&lane.timers, &lane.watch, TIMER_WATCH, now(CLOCK_BOOTTIME) + WATCH_RETRY_NS)
            return
        lane.unwatched.pop_back()


# ---- wait ------------------------------------------------------------------------------------------------------------

cdef void lane_wait(Lane* lane, bint busy) noexcept nogil:
    """Deliver what happened, then take what comes: ends of children, letters, timers.  Sleeps for it unless `busy`."""
    cdef Engine* engine = lane.engine
    cdef Mailbox* mail = engine.mail[lane.number]
    cdef epoll_event[EVENTS] events
    cdef int i, ready, patience = 0
    outbox_post(&engine.outbox, &lane.notes)
    if not busy:
        lane_set_clock(lane)
        if lane_park(lane):
            patience = -1
    ready = epoll_wait(lane.epoll, events, EVENTS, patience)
    mail.parked.store(AWAKE, memory_order_seq_cst)
    for i in range(ready):
        if events[i].data.ptr == &lane.clock:
            lane.clock_ns = 0
        elif worker_tagged(events[i].data.ptr):
            lane_hear_worker(lane, events[i].data.ptr)
        elif events[i].data.ptr == &lane.zygote:
            lane_hear_zygote(lane)
        elif events[i].data.ptr == &lane.guard_bell or events[i].data.ptr == &lane.guard:
            lane.guard_stirred = True
        elif events[i].data.ptr != &mail.bell:
            lane_reap(lane, <Record*> events[i].data.ptr)
    lane_clear_graves(lane)
    if lane.guard_stirred:
        lane_hear_guard(lane)
    if lane.surplus:
        if queue_has_work(&engine.queue):
            engine_offer(engine, lane.number, lane.surplus)
        lane.surplus = 0
    if mail.full.load(memory_order_acquire):
        lane_read_mail(lane)
    if lane.timers.count:
        lane_run_timers(lane)


cdef bint lane_park(Lane* lane) noexcept nogil:
    """Say that this lane is going to sleep, then look once more; False: there is something to do."""
    cdef Engine* engine = lane.engine
    cdef Mailbox* mail = engine.mail[lane.number]
    cdef bint backing_off = lane.backoff.place != 0
    lane_release_slots(lane)
    mail.parked.store(UNWILLING if backing_off else WILLING, memory_order_seq_cst)
    if engine.stopping.load(memory_order_seq_cst) or mail.full.load(memory_order_seq_cst):
        return False
    if backing_off:
        return True
    return (not queue_has_work(&engine.queue)
            or engine.running.load(memory_order_seq_cst) >= engine.workers.load(memory_order_seq_cst))


cdef void lane_set_clock(Lane* lane) noexcept nogil:
    """Make the timerfd ring at the earliest deadline.  One that is set to an earlier time is left alone: a disarmed
    timer costs a wake-up now and then, resetting would cost a system call each time."""
    cdef int64_t deadline_ns = timers_next(&lane.timers)
    cdef itimerspec when
    if deadline_ns < 0 or (lane.clock_ns != 0 and lane.clock_ns <= deadline_ns):
        return
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = deadline_ns // NS_PER_S
    when.it_value.tv_nsec = deadline_ns % NS_PER_S
    timerfd_settime(lane.clock, TFD_TIMER_ABSTIME, &when, NULL)
    lane.clock_ns = deadline_ns


cdef void lane_reap(Lane* lane, Record* record) noexcept nogil:
    """The child has ended: collect it and what it left in its group, tell, and keep the slot for the next."""
    cdef rusage usage
    cdef int status, error
    if record.ending:
        lane_leader_ended(lane, record)
        return
    memset(&usage, 0, sizeof(usage))
    if record_reap(record, &status, &error, &usage, &lane.peak_kb):
        lane_tell_end(lane, record, status, error, &usage, 0)
        lane_release(lane, record)
    elif record.adopted:
        lane_await_row(lane, record)


cdef void lane_leader_ended(Lane* lane, Record* record) noexcept nogil:
    """It was told to end and did; the rest of the tree has its grace, or its KILL, until the killer says that it is
    gone.  The zombie stays meanwhile: it holds the number of the group and of the session."""
    if peek_exit(record.pidfd) == EAGAIN:  # never of an adopted one, which is no child: its pidfd says enough
        return
    lane_unwatch(lane, record)
    record.leader_ended = True
    if not record.killing:
        killer_ask(lane.engine.killer, record, lane.number, TREE_WATCH)


cdef void lane_tree_gone(Lane* lane, Record* record, uint32_t answered) noexcept nogil:
    cdef rusage usage
    cdef int status, error
    if record.asked != answered:
        return  # there will be another answer
    memset(&usage, 0, sizeof(usage))
    if not record_reap(record, &status, &error, &usage, &lane.peak_kb):
        record.answered = answered
        lane_await_row(lane, record)
        return
    if record.told:
        lane_cap_output(lane, record)
    else:
        lane_tell_end(lane, record, status, error, &usage, 0)
    lane_release(lane, record)


cdef void lane_tree_survives(Lane* lane, Record* record, int survivors) noexcept nogil:
    """Tell the end, so that nobody waits for what the kernel does not let go; the slot stays taken until it does."""
    cdef rusage usage
    cdef int status = SIGKILL
    memset(&usage, 0, sizeof(usage))
    if record.leader_ended:
        status = record_peek_status(record)
    lane_tell_end(lane, record, status, 0, &usage, survivors)
    record.told = True


cdef bint lane_cap_output(Lane* lane, Record* record) noexcept nogil:
    """Whether the attempt, which may have ended, fails for it."""
    cdef OutputLimit* limit = &lane.engine.output_limit
    if limit.size == 0 or record.is_silent or not record_cap_output(record, limit) or not limit.ends:
        return False
    if record.cause == CAUSED_BY_NOTHING:
        record.cause = CAUSED_BY_LOG_LIMIT
    return True


cdef void lane_tell_end(
    Lane* lane, Record* record, int status, int error, const rusage* usage, int survivors
) noexcept nogil:
    cdef counter_array* counters = lane.engine.counters[lane.number]
    cdef Note note
    cdef bint ran_out = False
    cdef int64_t peak_kb
    if record.cause == CAUSED_BY_NOTHING and status & 0x7f == SIGKILL:
        ran_out = record_ran_out(record)
    if ran_out:
        record.cause = CAUSED_BY_MEMORY
        count(counters, COUNT_KILLED)
    lane_cap_output(lane, record)
    note_init(&note, record, KIND_EXITED, record.cause)
    lane_describe(lane, record, &note)
    note.status = status
    note.error = error
    note.ended_ns = now(CLOCK_REALTIME)
    note.run_ns = now(CLOCK_BOOTTIME) - record.started_ns
    if record.adopted:
        record_date_end(record, &note)
    note.cpu_ns = cpu_time_ns(usage)
    if record.worker != NULL:
        note.cpu_ns -= record.worker.cpu_ns  # the others' calls
    note.max_rss_kb = max(usage.ru_maxrss, memory_unwatch(lane.engine, record))
    peak_kb = record_peak_kb(record) if ran_out else 0
    if peak_kb:  # else what was seen
        note.max_rss_kb = peak_kb
    note.survivors = survivors
    note.kill_ns = record.kill_ns
    record.has_exited = status & 0x7f == 0 and not record.ending  # by no signal; or unknown, which is -1
    note.left_output = note.left_result = True  # or may have
    lane.notes.push_back(note)
    count(counters, COUNT_EXITED)
    latency_record(&lane.engine.latencies[lane.number].run[record.ticket.cls], note.run_ns)
    if status != 0:
        count(counters, COUNT_FAILED)


cdef void lane_release(Lane* lane, Record* record) noexcept nogil:
    """Nothing is left of the attempt: forget it, and keep its slot for the next."""
    cdef WorkerProcess* worker = record.worker
    lane_unwatch(lane, record)
    if worker != NULL:  # it has ended with its call, and is collected
        worker.collected = True
        worker_bury(lane, worker)
    if record.awaits_row:
        lane_forget_unrecorded(lane, record)
    if record.pidfd >= 0:
        close(record.pidfd)
    record_leave_leaf(record)
    timers_disarm(&lane.timers, &record.timer)
    timers_disarm(&lane.timers, &record.look)
    engine_forget(lane.engine, record.handle)
    record_free(record)
    engine_admit(lane.engine)
    lane_take_back_slot(lane)


cdef void lane_take_back_slot(Lane* lane) noexcept nogil:
    lane.slots += 1
    if lane.slots > 1:  # one is enough; the others may be used in parallel
        lane_give_back(lane, 1)
        lane.surplus += 1


# ---- construction and end, by the thread that owns the Core ----------------------------------------------------------

cdef bint lane_add(Lane* lane, int fd, void* tag, uint32_t events) noexcept nogil:
    cdef epoll_event interest
    interest.events = events
    interest.data.ptr = tag
    return fd >= 0 and epoll_ctl(lane.epoll, EPOLL_CTL_ADD, fd, &interest) == 0


cdef Lane* lane_new(Engine* engine, int number) noexcept nogil:
    cdef Lane* lane = new Lane()
    lane.engine = engine
    lane.number = number
    lane.clock = lane.epoll = lane.zygote.socket = lane.guard_bell = lane.guard = -1
    return lane


cdef bint lane_open(Lane* lane) noexcept nogil:
    """Get everything but the thread; False with errno."""
    cdef Mailbox* mail = lane.engine.mail[lane.number]
    lane.stack = map_child_stack()
    if lane.stack == NULL:
        return False
    lane.epoll = epoll_create1(EPOLL_CLOEXEC)
    if lane.epoll < 0:
        return False
    mail.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if not lane_add(lane, mail.bell, &mail.bell, EPOLLIN | EPOLLET):
        return False
    lane.clock = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK)
    return lane_add(lane, lane.clock, &lane.clock, EPOLLIN | EPOLLET)


cdef void lane_free(Lane* lane) noexcept nogil:
    """After its thread has ended.  Alarms that did not ring go; records belong to the registry's sweep."""
    cdef size_t i
    for i in range(1, lane.timers.count + 1):
        if lane.timers.heap[i].kind == TIMER_ALARM:
            free(lane.timers.heap[i].owner)
    free(lane.timers.heap)
    if lane.guard >= 0:
        close(lane.guard)
    if lane.clock >= 0:
        close(lane.clock)
    if lane.epoll >= 0:
        close(lane.epoll)
    if lane.zygote.socket >= 0:
        close(lane.zygote.socket)
    unmap_child_stack(lane.stack)
    del lane

# Reused workers: processes that make many calls, one after the other, for attempts with the same key and GPUs.
#
#     forked ──reply──► busy ──CallEnd──► idle ──StartRequest──► asked ──desk: begun, or CallEnd──► busy
#       │                │  ▲               │ ▲                    │
#       │                │  ╰───────────────┼─╰──refusal───────────┤
#       ╰────────────────┴── ends, or is ended, or is let go ──────╯ ──► gone
#
# The first call of a worker is a warm job like any other, forked by the zygote, which got one end of a socket pair and
# a page of memory, the *desk*, with the request.  At the end of that call it does not exit but sends a CallEnd, and
# waits there for the next StartRequest.  So a call is an attempt with a pid, a pidfd, a row, a timeout; what ends it by
# force ends the worker, which is then gone, and what is unusual ends both: a worker that shall not be used again exits
# at the end of its call, with the call's exit code, as a job would.
#
# A call costs two datagrams, each of which wakes somebody.  All else that both must know stands on the desk:
#
#     begun   the worker writes the number of a call there before it runs any of it.  A lane that waits for the end
#             looks after LOOK_NS whether it is one that has begun: a start is told late, but with its own time, from
#             which timeouts count.  When the worker dies it says whether the call was lost with it or is another's.
#     heard   the lane writes the number of a call there once its end stands in its row.
#
# A worker refuses a call whose files or folder cannot be had, which is the attempt's failure, and one for which it
# would have to import changed modules (ESTALE), which is given to another worker.
#
# A lane owns the workers that it has asked for, and gives them records from its own hands only, of which it gets some
# from other lanes (holders.pyx).  A record that a worker has shares the worker's pidfd.
#
# kill -9 of the node: the worker reads the end of file when its call has ended, and exits with the call's code, its
# result in the file; until then it is the attempt's process, so guard and next incarnation treat it as any other.  Its
# exit code counts for the last call until that is `heard`; from then on it ends by a signal, so that a row that has its
# pid already, for a call that was not sent any more, never says success.  Of a call that was heard the row has the end,
# and the result with it (attempt_table.pyx), before the worker can know of either.
#
# The mark: the hard limit is that of the first call for ever, and what this node and its guard know the worker by; the
# soft limit carries the mark of the call, for whoever knows nothing but the attempt.

from libc.errno cimport ESTALE
from libc.signal cimport SIGKILL
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release
from posix.resource cimport rlimit, rusage
from posix.signal cimport kill
from posix.types cimport pid_t
from posix.unistd cimport close
from posix.wait cimport waitpid

from native cimport CLOCK_BOOTTIME, EPOLL_CTL_DEL, EPOLLIN, STEP_CLONE, epoll_ctl, pidfd_await, pidfd_open
from sibling cimport (
    CALL_LEFT_OUTPUT,
    CALL_LEFT_RESULT,
    WORKER_ENDED,
    WORKER_NOTHING,
    WORKER_REFUSED,
    Desk,
    Handed,
    WorkerSaid,
    WorkerWords,
    desk_unmap,
    receive_of_worker,
    worker_equip,
)

cdef int64_t IDLE_NS = 60_000_000_000       # a worker that has nothing to do lives on
cdef int64_t LOOK_NS = 10_000_000           # between two looks whether a call has begun
cdef int64_t PARTING_NS = 1_000_000_000     # for what it does at exit, when the lane ends
cdef int64_t ANSWER_NS = 120_000_000_000    # it may take to begin one: it may be looking at files of a slow disk

# What epoll says of a worker: its address and one of these.
cdef enum:
    TAG_SOCKET = 1
    TAG_PIDFD = 2
    TAGS = 3


cdef cppclass WorkerProcess:
    # The lane's own.
    uint64_t key
    uint64_t devices    # GPUs that it was born with, as bits; it makes calls for no others, see holders.pyx
    int socket          # -1: closed
    int pidfd           # -1: not forked yet
    pid_t pid
    rlimit mark         # of its first call, as the next
    uint64_t mark_number
    int64_t cpu_ns      # that was told of its calls
    Desk* desk
    uint64_t call       # the number of the last one that it was asked for
    int64_t asked_ns    # … when; CLOCK_BOOTTIME
    Record* record      # whose call it makes, or is asked to; NULL: idle, or let go
    bint collected      # its end was its record's
    bint gone           # in Lane.buried
    Timer timer         # idle: IDLE_NS; asked: LOOK_NS


ctypedef WorkerProcess* WorkerPtr


cdef bint worker_tagged(const void* tag) noexcept nogil:
    return (<size_t> tag) & TAGS != 0


cdef inline bint worker_is_idle(const WorkerProcess* worker) noexcept nogil:
    return worker.record == NULL and worker.socket >= 0


cdef inline void worker_part(Record* record) noexcept nogil:
    """The record keeps nothing of its worker."""
    if record.worker != NULL:
        record.worker.record = NULL
        record.worker = NULL
        record.pidfd = -1


# ---- a worker for a record -------------------------------------------------------------------------------------------

cdef WorkerProcess* worker_new(Lane* lane, Record* record, Handed* handed) noexcept nogil:
    """For a record that the zygote is about to be asked for, with what goes with the request; NULL with errno."""
    cdef WorkerProcess* worker
    cdef Desk* desk
    cdef int ours
    if not worker_equip(&ours, &desk, handed):
        return NULL
    worker = new WorkerProcess()
    worker.key = record.reuse
    worker.devices = record.devices
    worker.socket = ours
    worker.desk = desk
    worker.pidfd = -1
    worker.mark = record.mark
    worker.mark_number = record.mark_number
    worker.call = 1
    worker.record = record
    worker.timer.owner = worker
    record.worker = worker
    lane.workers.push_back(worker)
    return worker


cdef void worker_meet(Lane* lane, WorkerProcess* worker, pid_t pid) noexcept nogil:
    """Its first call has begun.  If it cannot be watched that call remains the only one: it finds its socket closed."""
    worker.pid = pid
    worker.pidfd = pidfd_open(pid)
    if (not lane_add(lane, worker.pidfd, <void*> (<size_t> worker | TAG_PIDFD), EPOLLIN)
            or not lane_add(lane, worker.socket, <void*> (<size_t> worker | TAG_SOCKET), EPOLLIN)):
        worker.collected = True  # by its record
        worker_bury(lane, worker)


cdef bint lane_call_worker(Lane* lane, Record* record) noexcept nogil:
    """Ask an idle worker for it; False: there is none."""
    cdef WorkerProcess* worker
    cdef Handed nothing
    cdef int64_t look_ns
    cdef size_t i = lane.workers.size()
    nothing.socket = nothing.desk = -1
    while i > 0:
        i -= 1
        worker = lane.workers[i]
        if worker_is_idle(worker) and worker.key == record.reuse and worker.devices == record.devices:
            worker_lend(lane, worker, record)
            if zygote_ask(worker.socket, record, lane.number, lane.engine, &nothing) == 0:
                look_ns = min(LOOK_NS, record.timeout_ns) if record.timeout_ns else LOOK_NS
                timers_arm(&lane.timers, &worker.timer, TIMER_WORKER, worker.asked_ns + look_ns)
                return True
            worker_take_back(lane, record)  # it has ended, or the zygote will say what is wrong with the request
    return False


cdef void worker_lend(Lane* lane, WorkerProcess* worker, Record* record) noexcept nogil:
    worker_leave_devices(lane, worker)
    worker.call += 1
    worker.asked_ns = record.started_ns
    worker.record = record
    record.worker = worker
    if lane.engine.mark_place == MARK_HARD:
        record.mark.rlim_max = worker.mark.rlim_max
        record.mark.rlim_cur = MARK_SOFT_BIT | (record.mark_number & MARK_MASK)
    if record.row != NULL:
        record.row.mark = worker.mark_number if lane.engine.mark_place == MARK_HARD else record.mark_number
        record.row.pid = worker.pid


cdef void worker_take_back(Lane* lane, Record* record) noexcept nogil:
    """The opposite, for a call that has not begun."""
    worker_part(record)
    record.mark = mark_limit(lane.engine.mark_place, &lane.engine.own_mark, record.mark_number)
    if record.row != NULL:
        record.row.mark = record.mark_number
        record.row.pid = 0


# ---- what it says ----------------------------------------------------------------------------------------------------

cdef void lane_hear_worker(Lane* lane, void* tag) noexcept nogil:
    cdef WorkerProcess* worker = <WorkerProcess*> (<size_t> tag & ~<size_t> TAGS)
    cdef bint has_ended = (<size_t> tag) & TAGS == TAG_PIDFD
    if worker.gone:
        return
    # One datagram: it says no more before it is asked for more.  If it has ended, what it said before counts.
    while worker.socket >= 0 and worker_read(lane, worker) and has_ended:
        pass
    if has_ended:
        lane_lose_worker(lane, worker)


cdef bint worker_read(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """False: there was nothing."""
    cdef WorkerWords words
    cdef WorkerSaid said = receive_of_worker(worker.socket, &words)
    cdef Record* record = worker.record
    if said == WORKER_NOTHING:
        return False
    if said == WORKER_REFUSED:
        if record != NULL and <uint64_t> record == words.refusal.token and record.pid == 0:
            worker_refused(lane, worker, words.refusal.step, words.refusal.error)
    elif said == WORKER_ENDED:
        if record != NULL and <uint64_t> record == words.end.token:
            if record.pid == 0:
                worker_began(lane, worker)
            worker_ended_call(lane, worker, &words)
    else:
        worker_hang_up(lane, worker)
    return True


cdef void worker_refused(Lane* lane, WorkerProcess* worker, uint8_t step, int error) noexcept nogil:
    cdef Record* record = worker.record
    timers_disarm(&lane.timers, &worker.timer)
    worker_take_back(lane, record)
    if step == STEP_CLONE and error == ESTALE:
        worker_hang_up(lane, worker)
        lane_want_again(lane, record)
    else:
        worker_rest(lane, worker)
        lane_fail_warm(lane, record, step, error)


cdef void lane_want_again(Lane* lane, Record* record) noexcept nogil:
    """It was asked for, and has not begun: of the zygote this time."""
    if record.ending_grace_ns >= 0:
        lane_take_back_slot(lane)
        lane_withdraw_warm(lane, record)
    else:
        lane.zygote.wanted.push_back(record)
    lane_ask_zygote(lane)


cdef inline bint worker_has_begun(const WorkerProcess* worker) noexcept nogil:
    # acquire: the times that stand beside it were written before.
    return worker.desk.begun.load(memory_order_acquire) == worker.call


cdef void worker_began(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """The call of its record, at the time that stands on the desk, on which anything may have been scribbled."""
    cdef Record* record = worker.record
    timers_disarm(&lane.timers, &worker.timer)
    record.started_ns = min(max(worker.desk.started_ns, worker.asked_ns), now(CLOCK_BOOTTIME))
    record.started_real_ns = worker.desk.started_real_ns
    record.pidfd = worker.pidfd
    lane_warm_runs(lane, record, worker.pid)


cdef void worker_ended_call(Lane* lane, WorkerProcess* worker, const WorkerWords* words) noexcept nogil:
    cdef Record* record = worker.record
    cdef rusage usage
    if record.ending:
        worker_hang_up(lane, worker)  # it is to end, and all that descends from it: its end is the attempt's
        return
    memset(&usage, 0, sizeof(usage))
    usage.ru_utime.tv_sec = words.end.cpu_ns // NS_PER_S
    usage.ru_utime.tv_usec = words.end.cpu_ns % NS_PER_S // 1000
    usage.ru_maxrss = words.end.max_rss_kb
    worker.cpu_ns += words.end.cpu_ns
    worker_part(record)
    record.is_silent = not words.end.left & CALL_LEFT_OUTPUT
    if record.row != NULL:
        row_keep_result(record.row, lane.engine.table, record.is_silent, words)
        row_end(record.row, ROW_HAS_ENDED, words.end.status, &usage)
    # release: who reads it finds the row, and what belongs to it, as it is now.
    worker.desk.heard.store(worker.call, memory_order_release)
    lane_tell_end(lane, record, words.end.status, 0, &usage, 0)
    note_keep_result(&lane.notes.back(), record.is_silent, words)
    worker_rest(lane, worker)  # first: who gets its devices next may come to it
    lane_release(lane, record)


cdef void note_keep_result(Note* note, bint is_silent, const WorkerWords* words) noexcept nogil:
    note.left_output = not is_silent
    note.left_result = words.end.left & CALL_LEFT_RESULT != 0
    if words.result_size == 0 or note.left_result:
        return
    note.result = <char*> malloc(words.result_size)
    if note.result != NULL:
        memcpy(note.result, words.result, words.result_size)
        note.result_size = words.result_size


# ---- rest and end ----------------------------------------------------------------------------------------------------

cdef void worker_rest(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """Idle; the one that has been so for the longest goes if there are more than can be busy.  Those that hold devices
    do not count: who gets these ends them."""
    cdef WorkerProcess* oldest = NULL
    cdef size_t i, idle = 0
    timers_arm(&lane.timers, &worker.timer, TIMER_WORKER, now(CLOCK_BOOTTIME) + IDLE_NS)
    if worker.devices:
        worker_hold_devices(lane, worker)
        return
    for i in range(lane.workers.size()):
        if worker_is_idle(lane.workers[i]) and lane.workers[i].devices == 0:
            idle += 1
            if oldest == NULL or lane.workers[i].timer.deadline_ns < oldest.timer.deadline_ns:
                oldest = lane.workers[i]
    # relaxed: the limit decides nothing here but how many are kept, and nothing is read by it.
    if idle > <size_t> max(1, lane.engine.workers.load(memory_order_relaxed) // lane.engine.lanes):
        worker_hang_up(lane, oldest)


cdef void lane_time_worker(Lane* lane, WorkerProcess* worker) noexcept nogil:
    cdef int64_t now_ns
    if worker.record == NULL:
        worker_hang_up(lane, worker)
        return
    if worker_has_begun(worker):
        worker_began(lane, worker)
        return
    now_ns = now(CLOCK_BOOTTIME)
    if now_ns - worker.asked_ns >= ANSWER_NS:
        kill(worker.pid, SIGKILL)  # it hangs; lane_lose_worker gives the call to another one
    else:
        timers_arm(&lane.timers, &worker.timer, TIMER_WORKER, now_ns + LOOK_NS)


cdef void worker_hang_up(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """It ends for that, as soon as it has nothing to do."""
    timers_disarm(&lane.timers, &worker.timer)
    worker_leave_devices(lane, worker)
    epoll_ctl(lane.epoll, EPOLL_CTL_DEL, worker.socket, NULL)
    close(worker.socket)
    worker.socket = -1


cdef void lane_lose_worker(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """It has ended, and all that it had said is known."""
    cdef Record* record = worker.record
    if record != NULL and record.pid == 0 and worker_has_begun(worker):
        worker_began(lane, worker)
    if record != NULL and record.pid != 0:
        lane_reap(lane, record)  # lane_release comes back here, by worker_bury
        return
    if not worker.collected:
        kill(-worker.pid, SIGKILL)  # what it left in its group, while the zombie holds the number
        waitpid(worker.pid, NULL, 0)
        worker.collected = True
    if record != NULL:
        worker_take_back(lane, record)
    worker_bury(lane, worker)
    if record != NULL:
        lane_want_again(lane, record)


cdef void worker_bury(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """Forget it; its memory stays until no event of this round can mean it."""
    cdef size_t i
    if worker.record != NULL:
        worker_part(worker.record)
    timers_disarm(&lane.timers, &worker.timer)
    if worker.socket >= 0:
        worker_hang_up(lane, worker)
    if worker.pidfd >= 0:
        epoll_ctl(lane.epoll, EPOLL_CTL_DEL, worker.pidfd, NULL)
        close(worker.pidfd)
    desk_unmap(worker.desk)
    for i in range(lane.workers.size()):
        if lane.workers[i] == worker:
            lane.workers[i] = lane.workers.back()
            lane.workers.pop_back()
            break
    worker.gone = True
    lane.buried.push_back(worker)


cdef void lane_clear_graves(Lane* lane) noexcept nogil:
    cdef WorkerProcess* worker
    while not lane.buried.empty():
        worker = lane.buried.back()
        del worker
        lane.buried.pop_back()


cdef void lane_free_workers(Lane* lane) noexcept nogil:
    """The lane ends: idle ones end now, by themselves if they do so soon, others with their calls."""
    cdef WorkerProcess* worker
    cdef Record* record
    cdef int64_t deadline_ns = now(CLOCK_BOOTTIME) + PARTING_NS
    cdef size_t i
    for i in range(lane.workers.size()):
        if worker_is_idle(lane.workers[i]):
            worker_hang_up(lane, lane.workers[i])
    while not lane.workers.empty():
        worker = lane.workers.back()
        record = worker.record
        if record == NULL and worker.pid != 0 and not worker.collected:
            pidfd_await(worker.pidfd, max(0, deadline_ns - now(CLOCK_BOOTTIME)) // 1_000_000)
            kill(-worker.pid, SIGKILL)
            waitpid(worker.pid, NULL, 0)
            worker.collected = True
        if record != NULL and record.pidfd >= 0:
            # The killer's thread may be looking at the record's; it is closed when that has ended.
            worker_part(record)
            record.pidfd = worker.pidfd
            worker.pidfd = -1
        worker_bury(lane, worker)
    lane_clear_graves(lane)

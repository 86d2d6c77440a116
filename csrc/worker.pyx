# Reused workers: processes that make many calls, one after the other, for attempts with the same key.
#
#     asked ──the zygote's job replies──► busy ──end of the call──► idle ──► asked (over its own socket), busy, …
#       │                                  │                          ╰──IDLE_NS, or too many──► let go ──► gone
#       └──────────────────────────────────┴── ends, or is ended ──► gone
#
# The first call of a worker is a warm job like any other, forked by the zygote, which got one end of a socket pair with
# the request.  At the end of that call it does not exit but sends a CallEnd, and waits there for the next StartRequest;
# to that it replies as any warm job does.  So a call is an attempt with a pid, a pidfd of its own, a row, a timeout;
# what ends it by force ends the worker, which is then gone, and what is unusual ends both: a worker that shall not be
# used again exits at the end of its call, with the call's exit code, as a job would.
#
# A lane owns the workers that it has asked for, and gives them records from its own hands only.
#
# kill -9 of the node: the worker reads the end of file when its call has ended, and exits with the call's code; until
# then it is the attempt's process, so guard and next incarnation treat it as any other.  Its exit code counts for the
# last call until the node has acknowledged the end (the row says so then); from then on it ends by a signal, so that a
# row that has its pid already, for a call that was not sent any more, never says success.
#
# The mark: the hard limit is that of the first call for ever, and what this node and its guard know the worker by; the
# soft limit carries the mark of the call, for whoever knows nothing but the attempt.

from libc.signal cimport SIGKILL
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from libcpp.atomic cimport memory_order_relaxed
from posix.resource cimport rlimit, rusage
from posix.signal cimport kill
from posix.types cimport pid_t
from posix.unistd cimport close
from posix.wait cimport waitpid

from native cimport CLOCK_BOOTTIME, EPOLL_CTL_DEL, EPOLLIN, STEP_NONE, epoll_ctl, pidfd_open
from sibling cimport (
    WORKER_ENDED,
    WORKER_NOTHING,
    WORKER_STARTED,
    CallEnd,
    StartReply,
    WorkerSaid,
    acknowledge_end,
    receive_of_worker,
    worker_sockets,
)

cdef int64_t IDLE_NS = 60_000_000_000       # a worker that has nothing to do lives on
cdef int64_t ANSWER_NS = 120_000_000_000    # it may take to begin a call: it may be importing changed modules

# What epoll says of a worker: its address and one of these.
cdef enum:
    TAG_SOCKET = 1
    TAG_PIDFD = 2
    TAGS = 3


cdef cppclass WorkerProcess:
    # The lane's own.
    uint64_t key
    int socket          # -1: closed
    int pidfd           # -1: not forked yet
    pid_t pid
    rlimit mark         # of its first call, as the next
    uint64_t mark_number
    int64_t cpu_ns      # that was told of its calls
    Record* record      # whose call it makes, or is asked to; NULL: idle, or let go
    bint collected      # its end was its record's
    bint gone           # in Lane.buried
    Timer timer         # idle: IDLE_NS; asked: ANSWER_NS


ctypedef WorkerProcess* WorkerPtr


cdef bint worker_tagged(const void* tag) noexcept nogil:
    return (<size_t> tag) & TAGS != 0


cdef inline void worker_part(Record* record) noexcept nogil:
    if record.worker != NULL:
        record.worker.record = NULL
        record.worker = NULL


# ---- a worker for a record -------------------------------------------------------------------------------------------

cdef WorkerProcess* worker_new(Lane* lane, Record* record, int* theirs) noexcept nogil:
    """For a record that the zygote is about to be asked for, with the socket that goes with the request; NULL with
    errno."""
    cdef WorkerProcess* worker
    cdef int ours
    if not worker_sockets(&ours, theirs):
        return NULL
    worker = new WorkerProcess()
    worker.key = record.reuse
    worker.socket = ours
    worker.pidfd = -1
    worker.mark = record.mark
    worker.mark_number = record.mark_number
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
    cdef size_t i = lane.workers.size()
    while i > 0:
        i -= 1
        worker = lane.workers[i]
        if worker.record == NULL and worker.key == record.reuse and worker.socket >= 0:
            worker_lend(lane, worker, record)
            if zygote_ask(worker.socket, record, lane.number, lane.engine, -1) == 0:
                timers_arm(&lane.timers, &worker.timer, TIMER_WORKER, now(CLOCK_BOOTTIME) + ANSWER_NS)
                return True
            worker_take_back(lane, record)  # it has ended, or the zygote will say what is wrong with the request
    return False


cdef void worker_lend(Lane* lane, WorkerProcess* worker, Record* record) noexcept nogil:
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
    if worker.gone:
        return
    worker_read(lane, worker)  # also if it has ended: what it said before counts
    if (<size_t> tag) & TAGS == TAG_PIDFD:
        lane_lose_worker(lane, worker)


cdef void worker_read(Lane* lane, WorkerProcess* worker) noexcept nogil:
    cdef StartReply reply
    cdef CallEnd end
    cdef WorkerSaid said
    while worker.socket >= 0:
        said = receive_of_worker(worker.socket, &reply, &end)
        if said == WORKER_NOTHING:
            return
        if said == WORKER_STARTED:
            if worker.record != NULL and <uint64_t> worker.record == reply.token and worker.record.pid == 0:
                worker_began(lane, worker, &reply)
        elif said == WORKER_ENDED:
            if worker.record != NULL and <uint64_t> worker.record == end.token and worker.record.pid != 0:
                worker_ended_call(lane, worker, &end)
        else:
            worker_hang_up(lane, worker)


cdef void worker_began(Lane* lane, WorkerProcess* worker, const StartReply* reply) noexcept nogil:
    cdef Record* record = worker.record
    timers_disarm(&lane.timers, &worker.timer)
    if reply.step != STEP_NONE:
        worker_take_back(lane, record)
        worker_rest(lane, worker)
    lane_take_reply(lane, record, reply)


cdef void worker_ended_call(Lane* lane, WorkerProcess* worker, const CallEnd* end) noexcept nogil:
    cdef Record* record = worker.record
    cdef rusage usage
    if record.ending:
        worker_hang_up(lane, worker)  # it is to end, and all that descends from it: its end is the attempt's
        return
    memset(&usage, 0, sizeof(usage))
    usage.ru_utime.tv_sec = end.cpu_ns // NS_PER_S
    usage.ru_utime.tv_usec = end.cpu_ns % NS_PER_S // 1000
    usage.ru_maxrss = end.max_rss_kb
    worker.cpu_ns += end.cpu_ns
    worker_part(record)
    if record.row != NULL:
        row_end(record.row, ROW_HAS_ENDED, end.status, &usage)
    lane_tell_end(lane, record, end.status, 0, &usage, 0)
    lane_release(lane, record)
    if acknowledge_end(worker.socket):
        worker_rest(lane, worker)
    else:
        worker_hang_up(lane, worker)


# ---- rest and end ----------------------------------------------------------------------------------------------------

cdef void worker_rest(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """Idle; the one that has been so for the longest goes if there are more than can be busy."""
    cdef WorkerProcess* oldest = NULL
    cdef size_t i, idle = 0
    timers_arm(&lane.timers, &worker.timer, TIMER_WORKER, now(CLOCK_BOOTTIME) + IDLE_NS)
    for i in range(lane.workers.size()):
        if lane.workers[i].record == NULL and lane.workers[i].socket >= 0:
            idle += 1
            if oldest == NULL or lane.workers[i].timer.deadline_ns < oldest.timer.deadline_ns:
                oldest = lane.workers[i]
    # relaxed: the limit decides nothing here but how many are kept, and nothing is read by it.
    if idle > <size_t> max(1, lane.engine.workers.load(memory_order_relaxed) // lane.engine.lanes):
        worker_hang_up(lane, oldest)


cdef void lane_time_worker(Lane* lane, WorkerProcess* worker) noexcept nogil:
    if worker.record == NULL:
        worker_hang_up(lane, worker)
    else:
        kill(worker.pid, SIGKILL)  # it hangs; lane_lose_worker gives the call to another one


cdef void worker_hang_up(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """It ends for that, as soon as it has nothing to do."""
    timers_disarm(&lane.timers, &worker.timer)
    epoll_ctl(lane.epoll, EPOLL_CTL_DEL, worker.socket, NULL)
    close(worker.socket)
    worker.socket = -1


cdef void lane_lose_worker(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """It has ended, and all that it had said is known."""
    cdef Record* record = worker.record
    if record != NULL and record.pid != 0:
        # The record has a pidfd itself, by which it is collected; lane_release comes back here.
        epoll_ctl(lane.epoll, EPOLL_CTL_DEL, worker.pidfd, NULL)
        return
    if not worker.collected:
        kill(-worker.pid, SIGKILL)  # what it left in its group, while the zombie holds the number
        waitpid(worker.pid, NULL, 0)
        worker.collected = True
    if record != NULL:
        worker_take_back(lane, record)
        if record.ending_grace_ns >= 0:
            lane_take_back_slot(lane)
            lane_withdraw_warm(lane, record)
        else:
            lane.zygote.wanted.push_back(record)
    worker_bury(lane, worker)
    lane_ask_zygote(lane)


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
    """The lane ends: idle ones end now, others with their calls."""
    cdef WorkerProcess* worker
    while not lane.workers.empty():
        worker = lane.workers.back()
        if worker.record == NULL and worker.pid != 0 and not worker.collected:
            kill(-worker.pid, SIGKILL)
            waitpid(worker.pid, NULL, 0)
            worker.collected = True
        worker_bury(lane, worker)
    lane_clear_graves(lane)

# Attempts that an earlier incarnation of this node started, in the hands of lane 0.
#
# Their processes are children of the guard.  A pidfd tells of the end as it does of a child's, but how it ended only
# the guard can ask.  It writes that into the attempt's row, collects the process, and rings:
#
#     pidfd readable ─► row ENDED ──────────────────────────► told, released
#                  ╰──► not yet ─► unrecorded ─guard rings──►
#                                            ╰─guard died───► told with status -1, errno ECHILD
#
# The guard may also have died before this process looked for it, and who is the parent then will never ring: nothing is
# adopted.
#
# No ring is lost: the row is written before the ring, and a record is laid aside by the thread that hears rings, after
# it has looked at the row.

from cython.operator cimport dereference, preincrement
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst
from libcpp.unordered_map cimport unordered_map
from posix.types cimport pid_t
from posix.unistd cimport close, getppid

from native cimport (
    CLOCK_BOOTTIME,
    EPOLL_CTL_DEL,
    EPOLLET,
    EPOLLIN,
    array,
    epoll_ctl,
    peek_status,
    pidfd_ended,
    pidfd_open,
)


# ---- rows of records, called by every lane ---------------------------------------------------------------------------

cdef bint record_take_row(Record* record, Table* table) noexcept nogil:
    """Before the spawn; False: there is none free."""
    cdef Row* row
    if record.token == 0:
        return True  # it will not be found again
    row = table_take(table, record.token, record.mark_number)
    if row == NULL:
        return False
    row.started_ns = row.since_ns = record.started_ns
    row.started_real_ns = record.started_real_ns
    row.deadline_ns = record.started_ns + record.timeout_ns if record.timeout_ns else 0
    row.devices = record.devices
    row.state.store(ROW_IS_STARTING, memory_order_release)
    record.row = row
    return True


cdef inline void record_give_row_back(Record* record, Table* table) noexcept nogil:
    """It never had a process."""
    if record.row != NULL:
        table_release(table, record.token)
        record.row = NULL


cdef inline void row_runs(Row* row, pid_t pid, int64_t floor_kb) noexcept nogil:
    row.pid = pid  # already, unless the kernel found no memory to write it
    row.floor_kb = floor_kb
    row.state.store(ROW_IS_RUNNING, memory_order_release)


cdef void record_note_ending(Record* record, int64_t kill_ns) noexcept nogil:
    """It is going to be told to end, and killed at `kill_ns`: whoever adopts it goes on with that."""
    if record.row == NULL:
        return
    if not record.row.ending.load(memory_order_relaxed) or kill_ns < record.row.deadline_ns:
        record.row.deadline_ns = kill_ns
    record.row.cause.store(record.cause, memory_order_relaxed)
    record.row.ending.store(True, memory_order_release)


cdef int record_peek_status(const Record* record) noexcept nogil:
    """The raw wait status of a leader that has ended and is not told of yet; -1: not known."""
    if not record.adopted:
        return peek_status(record.pidfd)
    return record.row.status if record.row.state.load(memory_order_acquire) == ROW_HAS_ENDED else -1


cdef void record_date_end(const Record* record, Note* note) noexcept nogil:
    """By the guard, which saw it, perhaps when no node was there."""
    if record.row.state.load(memory_order_acquire) == ROW_HAS_ENDED:
        note.ended_ns = record.row.ended_real_ns
        note.run_ns = record.row.run_ns


# ---- adopting --------------------------------------------------------------------------------------------------------

cdef bint engine_adopt(Engine* engine, Record* record) noexcept nogil:
    """Hand a record of an attempt that runs, with its row, to lane 0; False: the process is no child of the guard, or
    not any more, since that has died: nobody would say how it ends."""
    cdef array[RecordPtr] records
    cdef Row* row = record.row
    cdef Letter letter
    record.pid = row.pid
    record.pidfd = pidfd_open(record.pid) if record.pid > 0 else -1
    if record.pidfd < 0:
        return False
    if getppid() != engine.guard or parent_of(record.pid) != engine.guard:
        close(record.pidfd)
        return False
    record.adopted = True
    record.started_ns = row.started_ns
    record.started_real_ns = row.started_real_ns
    record.cause = row.cause.load(memory_order_relaxed)
    record.queued_real_ns = row.started_real_ns
    record.ticket.queued_ns = row.started_ns - record.waited_ns
    record.home = 0
    record_find_leaf(record, &engine.leaves)
    record_find_leaf(record, &engine.limited)
    record.state.store(RECORD_TAKEN, memory_order_release)  # by lane 0
    records.push_back(record)
    if engine_register(engine, &records):
        close(record.pidfd)
        record_leave_leaf(record)
        return False
    row.since_ns = now(CLOCK_BOOTTIME)
    if record.admission != NULL:
        record.devices = row.devices
        admission_hold_anyway(record)
    engine.running.fetch_add(1, memory_order_seq_cst)
    letter.kind = LETTER_ADOPT
    letter.cause = CAUSED_BY_NOTHING
    letter.handle = <uint64_t> record
    letter.ns = 0
    engine_post(engine, 0, letter)
    return True


cdef void lane_adopt(Lane* lane, Record* record) noexcept nogil:
    """Go on where the incarnation before left it: watch, timers, the end that was begun."""
    cdef int64_t now_ns = now(CLOCK_BOOTTIME), deadline_ns = record.row.deadline_ns
    cdef Note note
    note_init(&note, record, KIND_STARTED, CAUSED_BY_NOTHING)
    lane_describe(lane, record, &note)
    lane.notes.push_back(note)
    if lane.engine.output_limit.size:
        record.look_ns = OUTPUT_FIRST_NS
        timers_arm(&lane.timers, &record.look, TIMER_OUTPUT, now_ns + OUTPUT_FIRST_NS)
    if record.row.ending.load(memory_order_acquire):
        lane_end(lane, record, max(0, deadline_ns - now_ns))
    elif deadline_ns and not record.ending:
        timers_arm(&lane.timers, &record.timer, TIMER_TIMEOUT, deadline_ns)
    memory_watch(lane, record)
    record.guard_gone = lane.guard_gone
    if not lane_watch(lane, record):
        lane.unwatched.push_back(record)
        timers_arm(&lane.timers, &lane.watch, TIMER_WATCH, now_ns + WATCH_RETRY_NS)


# ---- ends that the guard has yet to write ----------------------------------------------------------------------------

cdef void lane_await_row(Lane* lane, Record* record) noexcept nogil:
    """The process has ended; its pidfd would only say so again and again."""
    lane_unwatch(lane, record)
    if not record.awaits_row:
        record.awaits_row = True
        lane.unrecorded.push_back(record)


cdef void lane_forget_unrecorded(Lane* lane, Record* record) noexcept nogil:
    cdef size_t i
    for i in range(lane.unrecorded.size()):
        if lane.unrecorded[i] == record:
            lane.unrecorded[i] = lane.unrecorded.back()
            lane.unrecorded.pop_back()
            break


cdef void lane_hear_guard(Lane* lane) noexcept nogil:
    """It has written ends, or it is gone: look again at what waits for that."""
    cdef array[RecordPtr] waiting
    cdef Record* record
    cdef size_t i
    lane.guard_stirred = False
    if not lane.guard_gone and pidfd_ended(lane.guard):
        lane.guard_gone = True
        epoll_ctl(lane.epoll, EPOLL_CTL_DEL, lane.guard, NULL)
        lane_tell_guard_gone(lane)
    waiting.swap(lane.unrecorded)
    for i in range(waiting.size()):
        record = waiting[i]
        record.awaits_row = False
        if not record.ending:
            lane_reap(lane, record)
        elif record.answered == record.asked:
            lane_tree_gone(lane, record, record.asked)
        # else the killer will say once more that the tree is gone


cdef void lane_tell_guard_gone(Lane* lane) noexcept nogil:
    """All adopted attempts: nobody will write their ends."""
    cdef unordered_map[uint64_t, RecordPtr].iterator entry
    cdef Record* record
    lane.engine.registry_mutex.lock()
    entry = lane.engine.registry.begin()
    while entry != lane.engine.registry.end():
        record = dereference(entry).second
        if record.state.load(memory_order_acquire) == RECORD_TAKEN and record.adopted:
            record.guard_gone = True
        preincrement(entry)
    lane.engine.registry_mutex.unlock()


cdef bint lane_heed_guard(Lane* lane, int bell) noexcept nogil:
    """Before the lane's thread begins; False with errno.  A guard that is our parent once its pidfd is open has lived
    all the time, so the pidfd is its; else it has died, and the number may be anybody's."""
    lane.guard_bell = bell
    lane.guard = pidfd_open(lane.engine.guard)
    if getppid() != lane.engine.guard:
        lane.guard_gone = True
        if lane.guard >= 0:
            close(lane.guard)
        lane.guard = -1
    elif not lane_add(lane, lane.guard, &lane.guard, EPOLLIN):
        return False
    return lane_add(lane, bell, &lane.guard_bell, EPOLLIN | EPOLLET)

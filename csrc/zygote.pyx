# Warm starts: attempts that a zygote forks, instead of a program that is executed.
#
#      lane                      zygote (ml/zygote.py)                 job
#       │ ── StartRequest ────────► │                                  ┊
#       │                           │ ── clone(CLONE_PARENT) ────────► │  a child of ours, not of the zygote
#       │ ◄───────────────────────── StartReply: pid, times, or why not │
#       │                           │                                  │  closes everything of the zygote's, runs
#       │ ◄──────────────────────────────────────────── pidfd: it ended │
#
# Each lane has a SOCK_SEQPACKET pair of its own with the zygote.  A record that a lane took is *starting* until the
# reply comes: it has a slot, no pid, and stands in one of two lists of its lane.
#
#     wanted ──request sent──► asked ──reply──► running
#        ▲                       │
#        └──── end of file ──────┘
#
# It is the job that replies, in its first moments, and closes the socket.  So the end of file comes when the zygote is
# gone and every child of it has either replied or can never run: what is still asked for then is asked for again of the
# next zygote, and nothing is lost or run twice.  Replies that were sent before are read before.  Which zygote there is
# is the business of `pysched.executors.zygote`; one that hangs is ended there, and all that a lane sees is the end of
# file.
#
# From the reply on nothing tells a warm job from a command.
#
# What kill -9 of the node leaves (see attempt_table.pyx): the zygote is in the node's process group, which the guard
# kills.  A job writes its pid into its attempt's row before it leaves that group: one that survives stands there, and
# what stands nowhere never ran.  The mark is what it sets last, after the reply has gone; without it it has not begun.

from libc.errno cimport E2BIG, EAGAIN, ECONNRESET, EMFILE, EMSGSIZE, EPIPE
from libc.signal cimport SIGKILL
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset, strlen
from libcpp.atomic cimport memory_order_relaxed
from posix.signal cimport kill
from posix.types cimport pid_t
from posix.unistd cimport close
from posix.wait cimport waitpid

from native cimport (
    CLOCK_BOOTTIME,
    EPOLL_CTL_DEL,
    EPOLLIN,
    STEP_CLONE,
    STEP_EXEC,
    STEP_NONE,
    Spawn,
    array,
    epoll_ctl,
    padded_atomic,
    pidfd_open,
)
from sibling cimport Handed, StartReply, StartRequest, handed_close, receive_reply, send_start


cdef cppclass Zygote:
    # A lane's view of its zygote; the lane's own but for `since_ns`.
    int socket              # -1: there is none
    array[RecordPtr] wanted
    array[RecordPtr] asked
    # CLOCK_BOOTTIME since when the oldest unanswered request may have waited: the last reply, or the first request
    # after all were answered; 0: nothing is asked for.
    padded_atomic[int64_t] since_ns


cdef inline bint is_starting(const Record* record) noexcept nogil:
    """Of a record that a lane has taken."""
    return record.warm and record.pid == 0


cdef bint take_out(array[RecordPtr]* list, Record* record) noexcept nogil:
    cdef size_t i
    for i in range(list.size()):
        if list[0][i] == record:
            list[0][i] = list.back()
            list.pop_back()
            return True
    return False


# ---- asking ----------------------------------------------------------------------------------------------------------

cdef int zygote_ask(
    int socket, Record* record, int lane, Engine* engine, const Handed* handed
) noexcept nogil:
    """0 or errno; `handed`: what goes along to a worker."""
    cdef StartRequest request
    cdef char* texts = record.words[1]  # the block's texts follow each other from here on, stderr's path is the last
    cdef char** word = record.words + 1
    cdef char** entry = record.environment
    cdef const ProcessorSet* processors = record.processors
    memset(&request, 0, sizeof(request))
    record_write_tail(record, lane)
    request.token = <uint64_t> record
    request.call = record.worker.call if record.worker != NULL else 0
    request.open_files = engine.open_files
    request.row_pid = -1
    if record.row != NULL and record.row.pid == 0:
        request.row_pid = <char*> &record.row.pid - <char*> engine.table.rows
    request.mark = record.mark
    if record.reuse:
        processors = call_processors(record, &engine.admission.processors)
    if processors != NULL:
        memcpy(request.processors, processors, sizeof(ProcessorSet))
    while word[0] != NULL:
        request.words += 1
        word += 1
    while entry[0] != NULL:
        request.entries += 1
        entry += 1
    request.cwd = <uint32_t> (record.cwd - texts)
    request.output[0] = <uint32_t> (record.output - texts)
    request.output[1] = <uint32_t> (record.errors - texts)
    return send_start(socket, &request, texts, <size_t> (record.errors - texts) + strlen(record.errors) + 1, handed)


cdef void lane_start_warm(Lane* lane, Record* record) noexcept nogil:
    """Begin to start a record that this lane has taken; the slot is the attempt's from now on."""
    cdef bint is_called
    lane.slots -= 1
    is_called = record.reuse != 0 and lane_call_worker(lane, record)
    if record.devices:
        lane_end_holders(lane, record.devices, key_that_stays(record))
    if is_called:
        return
    lane.zygote.wanted.push_back(record)
    lane_ask_zygote(lane)


cdef void lane_ask_zygote(Lane* lane) noexcept nogil:
    """Ask for what is wanted, as far as the socket takes it: when it is full, a reply will come and bring us back."""
    cdef Zygote* zygote = &lane.zygote
    cdef size_t i, sent = 0
    cdef Record* record
    cdef int error
    while zygote.socket >= 0 and sent < zygote.wanted.size():
        record = zygote.wanted[sent]
        error = lane_ask_for(lane, record)
        if error == EAGAIN or error == EPIPE or error == ECONNRESET:  # the end of file is on its way
            break
        sent += 1
        if error == 0:
            if zygote.asked.empty():
                zygote.since_ns.store(now(CLOCK_BOOTTIME), memory_order_relaxed)  # nothing else hangs on it
            zygote.asked.push_back(record)
        else:
            lane_fail_warm(lane, record, STEP_EXEC, E2BIG if error == EMSGSIZE else error)
    for i in range(sent, zygote.wanted.size()):
        zygote.wanted[i - sent] = zygote.wanted[i]
    zygote.wanted.resize(zygote.wanted.size() - sent)


cdef int lane_ask_for(Lane* lane, Record* record) noexcept nogil:
    """0 or errno."""
    cdef WorkerProcess* worker = NULL
    cdef Handed handed
    cdef int error
    handed.socket = handed.desk = -1
    if record.reuse:
        worker = worker_new(lane, record, &handed)
        if worker == NULL:
            return EMFILE
    error = zygote_ask(lane.zygote.socket, record, lane.number, lane.engine, &handed)
    if worker != NULL:
        handed_close(&handed)
        if error != 0:
            worker_bury(lane, worker)
    return error


# ---- hearing ---------------------------------------------------------------------------------------------------------

cdef void lane_hear_zygote(Lane* lane) noexcept nogil:
    cdef Zygote* zygote = &lane.zygote
    cdef StartReply reply
    cdef int error = receive_reply(zygote.socket, &reply)
    while error == 0:
        if take_out(&zygote.asked, <Record*> reply.token):
            zygote.since_ns.store(0 if zygote.asked.empty() else now(CLOCK_BOOTTIME), memory_order_relaxed)
            lane_take_reply(lane, <Record*> reply.token, &reply)
        error = receive_reply(zygote.socket, &reply)
    if error != EAGAIN:
        lane_drop_zygote(lane)
    lane_ask_zygote(lane)


cdef void lane_take_reply(Lane* lane, Record* record, const StartReply* reply) noexcept nogil:
    record.started_ns = reply.started_ns
    record.started_real_ns = reply.started_real_ns
    if record.worker != NULL:
        if reply.step != STEP_NONE:
            worker_bury(lane, record.worker)
        else:
            worker_meet(lane, record.worker, reply.pid)
    if reply.step != STEP_NONE:
        if reply.pid:
            waitpid(reply.pid, NULL, 0)  # it has nothing else to do than to end
        lane_fail_warm(lane, record, reply.step, reply.error)
        return
    if record.worker != NULL:
        record.pidfd = record.worker.pidfd
    else:
        record.pidfd = pidfd_open(reply.pid)  # a child of ours that is not collected: nobody else can have the number
    if record.pidfd < 0:
        # Out of descriptors, for a child that has hardly begun: as if it had not.
        kill(reply.pid, SIGKILL)
        waitpid(reply.pid, NULL, 0)
        lane_fail_warm(lane, record, STEP_CLONE, EMFILE)
        return
    lane_warm_runs(lane, record, reply.pid)


cdef void lane_warm_runs(Lane* lane, Record* record, pid_t pid) noexcept nogil:
    """It has a process, and may have been told to end before that was known."""
    cdef int64_t grace_ns = record.ending_grace_ns
    record.pid = pid
    if record.row != NULL:
        record.row.started_ns = record.row.since_ns = record.started_ns
        record.row.started_real_ns = record.started_real_ns
        record.row.deadline_ns = record.started_ns + record.timeout_ns if record.timeout_ns else 0
    lane_started(lane, record)
    if grace_ns >= 0:
        lane_end(lane, record, grace_ns)


cdef void lane_fail_warm(Lane* lane, Record* record, uint8_t step, int error) noexcept nogil:
    """It will not start, or not now."""
    cdef Spawn spawn
    spawn.step = step
    spawn.error = error
    lane_take_back_slot(lane)
    if record.ending_grace_ns >= 0:
        lane_withdraw_warm(lane, record)
    else:
        lane_not_started(lane, record, &spawn)


# ---- ending what is starting -----------------------------------------------------------------------------------------

cdef void lane_kill_starting(Lane* lane, Record* record, int64_t grace_ns) noexcept nogil:
    """At once if nobody was asked for it; else when the reply comes."""
    if take_out(&lane.zygote.wanted, record):
        lane_take_back_slot(lane)
        lane_withdraw_warm(lane, record)
        return
    if record.ending_grace_ns < 0 or grace_ns < record.ending_grace_ns:
        record.ending_grace_ns = grace_ns
    if record.worker != NULL and record.worker.pidfd >= 0 and worker_has_begun(record.worker):
        worker_began(lane, record.worker)


cdef void lane_withdraw_warm(Lane* lane, Record* record) noexcept nogil:
    """It never had a process."""
    cdef Note note
    record_give_row_back(record, lane.engine.table)
    note_withdrawn(&note, record, record.cause)
    lane.notes.push_back(note)
    count(lane.engine.counters[lane.number], COUNT_WITHDRAWN)
    engine_forget(lane.engine, record.handle)
    record_free(record)
    engine_admit(lane.engine)


# ---- the zygote comes and goes ---------------------------------------------------------------------------------------

cdef void lane_meet_zygote(Lane* lane, int socket) noexcept nogil:
    """The socket to a new zygote, which is ours from now on."""
    lane_drop_zygote(lane)
    if not lane_add(lane, socket, &lane.zygote, EPOLLIN):
        close(socket)  # no memory in the kernel: the zygote sees the end of file and is replaced
        return
    lane.zygote.socket = socket
    lane_ask_zygote(lane)


cdef void lane_drop_zygote(Lane* lane) noexcept nogil:
    """Nobody will answer what is asked for: it is wanted again."""
    cdef Zygote* zygote = &lane.zygote
    cdef Record* record
    cdef size_t i
    if zygote.socket < 0:
        return
    epoll_ctl(lane.epoll, EPOLL_CTL_DEL, zygote.socket, NULL)
    close(zygote.socket)
    zygote.socket = -1
    zygote.since_ns.store(0, memory_order_relaxed)
    for i in range(zygote.asked.size()):
        record = zygote.asked[i]
        if record.worker != NULL:
            worker_bury(lane, record.worker)
        if record.ending_grace_ns >= 0:
            lane_take_back_slot(lane)
            lane_withdraw_warm(lane, record)
        else:
            zygote.wanted.push_back(record)
    zygote.asked.clear()

# What the lanes share: the ready queue, the limit on running attempts, the registry of handles, the outbox.

from cython.operator cimport dereference
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.algorithm cimport sort
from libcpp.atomic cimport memory_order_acquire, memory_order_release, memory_order_seq_cst
from libcpp.unordered_map cimport unordered_map
from posix.resource cimport rlimit

from native cimport (
    CLOCK_BOOTTIME,
    CLOCK_REALTIME,
    SignalReset,
    array,
    counter_array,
    eventfd_write,
    padded_atomic,
    padded_mutex,
)

cdef enum Parked:
    AWAKE
    WILLING             # asleep; a ticket may wake it
    UNWILLING           # asleep and backing off: only mail, a child's end or its timer wakes it

cdef enum LetterKind:
    LETTER_KILL
    LETTER_ARM
    LETTER_ZYGOTE
    LETTER_GONE         # of the killer: nothing is left of the tree
    LETTER_SURVIVES     # of the killer: KILL was long ago
    LETTER_ADOPT        # of Python: an attempt that runs already
    LETTER_START        # of another lane: an attempt that it has taken, and its slot
    LETTER_LET_GO       # of another lane: idle workers have devices that it needs

cdef struct Letter:     # what Python asks of a lane, which alone touches its children and timers
    LetterKind kind
    uint8_t cause
    # Never a Record*, which may end before the letter is read.  LETTER_ARM: the token.  From the killer it is one,
    # which its lane keeps until LETTER_GONE; LETTER_ADOPT and _START make its lane the owner of one.  _LET_GO: devices.
    uint64_t handle
    # LETTER_KILL: grace; _ARM: deadline; _ZYGOTE: the socket; _GONE: number of the last request; _SURVIVES: how many;
    # _LET_GO: key of those that stay
    int64_t ns


cdef cppclass Killer    # killer.pyx
cdef cppclass Memory    # memory.pyx


cdef cppclass Mailbox:
    # One lane's door to the other threads.
    padded_mutex mutex
    array[Letter] letters           # guarded by the mutex
    padded_atomic[uint32_t] full    # whether there are any; for lane_park
    padded_atomic[uint32_t] parked  # Parked
    int bell                        # eventfd in the lane's epoll set, edge-triggered: needs no reading


cdef cppclass Engine:
    int lanes
    Mailbox** mail                  # by lane
    counter_array** counters        # by lane; the last one belongs to Python's threads
    Latencies** latencies           # by lane
    Queue queue
    Outbox outbox
    padded_atomic[int] running      # attempts with a process, and slots a lane holds for its next one
    padded_atomic[int] workers      # the limit of `running`
    padded_atomic[uint32_t] stopping
    padded_mutex registry_mutex
    unordered_map[uint64_t, RecordPtr] registry  # attempts that are queued or running, by handle
    rlimit open_files               # of the children
    SignalReset signals             # in the children
    rlimit own_mark                 # this process's RLIMIT_RTTIME
    MarkPlace mark_place
    OutputLimit output_limit
    uint64_t salt                   # of the marks of launches that bring none
    Leaves leaves
    Leaves limited                  # those with limits of memory
    Killer* killer
    Table* table                    # of attempts; NULL: none
    pid_t guard                     # 0: none; it may have died, and its number be another's
    Admission* admission
    Memory* memory


cdef inline void note_init(Note* note, const Record* record, EventKind kind, uint8_t cause) noexcept nogil:
    """Begin a note; reads only what never changes after submission."""
    memset(note, 0, sizeof(Note))
    note.kind = kind
    note.cause = cause
    note.handle = record.handle
    note.queued_ns = record.queued_real_ns


# ---- waking ----------------------------------------------------------------------------------------------------------
#
# No wake-up is lost.  A lane that wants to sleep writes `parked`, then looks for work once more (lane_park); whoever
# makes work publishes it, then looks at `parked`.  All four are seq_cst, so at least one of the two sees the other
# (Dekker's pattern).  Work is: a ticket together with a free slot, a letter, `stopping`.
#
# A ticket that came while all slots were taken wakes nobody; but whoever gives a slot back looks at the queue
# afterwards, at the latest in its own lane_park, and the ticket was there before.  set_workers wakes all.
#
# `parked` is exchanged for AWAKE by whoever rings, so one sleep costs at most one write to the bell.

cdef void engine_ring(Engine* engine, int lane) noexcept nogil:
    """Wake a lane that sleeps, for whatever reason it does."""
    cdef Mailbox* mail = engine.mail[lane]
    if mail.parked.exchange(AWAKE, memory_order_seq_cst) != AWAKE:
        eventfd_write(mail.bell, 1)


cdef void engine_offer(Engine* engine, int first, int tickets) noexcept nogil:
    """Wake up to `tickets` willing sleepers, lane `first` before the others; none while all slots are taken."""
    cdef Mailbox* mail
    cdef uint32_t expected
    cdef int _, lane = first
    for _ in range(engine.lanes):
        if tickets == 0 or engine.running.load(memory_order_seq_cst) >= engine.workers.load(memory_order_seq_cst):
            return
        mail = engine.mail[lane]
        expected = WILLING
        if (mail.parked.load(memory_order_seq_cst) == WILLING
                and mail.parked.compare_exchange_strong(expected, AWAKE, memory_order_seq_cst)):
            eventfd_write(mail.bell, 1)
            tickets -= 1
        lane = lane + 1 if lane + 1 < engine.lanes else 0


cdef void engine_post(Engine* engine, int lane, const Letter& letter) noexcept nogil:
    cdef Mailbox* mail = engine.mail[lane]
    mail.mutex.lock()
    mail.letters.push_back(letter)
    mail.full.store(1, memory_order_seq_cst)
    mail.mutex.unlock()
    engine_ring(engine, lane)


# ---- the registry, submission, withdrawal ----------------------------------------------------------------------------

cdef void engine_forget(Engine* engine, uint64_t handle) noexcept nogil:
    engine.registry_mutex.lock()
    engine.registry.erase(handle)
    engine.registry_mutex.unlock()


cdef size_t engine_register(Engine* engine, array[RecordPtr]* records) noexcept nogil:
    """Enter all handles; else none, and the result is the first one in use, by position from 1."""
    cdef size_t i, done
    engine.registry_mutex.lock()
    for i in range(records.size()):
        if engine.registry.count(records[0][i].handle):
            for done in range(i):
                engine.registry.erase(records[0][done].handle)
            engine.registry_mutex.unlock()
            return i + 1
        engine.registry[records[0][i].handle] = records[0][i]
    engine.registry_mutex.unlock()
    return 0


cdef void engine_mark(Engine* engine, Record* record, uint64_t mark) noexcept nogil:
    if mark == 0:
        mark = scattered(record.handle + engine.salt)
    record.mark_number = mark
    record.mark = mark_limit(engine.mark_place, &engine.own_mark, mark)


cdef bint record_starts_first(const RecordPtr& one, const RecordPtr& other) noexcept nogil:
    return starts_first(one.ticket, other.ticket)


cdef size_t engine_submit(Engine* engine, array[RecordPtr]* records) noexcept nogil:
    """Queue all records, whose owner is the queue then; the first to start first, so that a lane which wakes in the
    middle starts none too early.  A result other than 0 is engine_register's, and nothing was queued."""
    cdef int64_t queued_ns = now(CLOCK_BOOTTIME), queued_real_ns = now(CLOCK_REALTIME)
    cdef RecordPtr record
    cdef size_t i, taken
    cdef int lane
    for i in range(records.size()):
        records[0][i].queued_real_ns = queued_real_ns
        records[0][i].ticket.queued_ns = queued_ns - records[0][i].waited_ns
    taken = engine_register(engine, records)
    if taken:
        return taken
    sort(records.data(), records.data() + records.size(), record_starts_first)
    count(engine.counters[engine.lanes], COUNT_SUBMITTED, records.size())
    for i in range(records.size()):
        if records[0][i].admission != NULL:
            admission_want(records[0][i])
    for i in range(records.size()):
        record = records[0][i]
        lane = queue_balance(&engine.queue)
        record.home = lane
        if not record_change(record, RECORD_NEW, RECORD_QUEUED):
            record_free(record)  # kill() was faster
            continue
        queue_push(&engine.queue, lane, &record.ticket)
        # The record may have run and been freed by now.
        engine_offer(engine, lane, 1)
    return 0


cdef void note_withdrawn(Note* note, const Record* record, uint8_t cause) noexcept nogil:
    note_init(note, record, KIND_WITHDRAWN, cause)
    note.ended_ns = now(CLOCK_REALTIME)
    note.wait_ns = now(CLOCK_BOOTTIME) - record.ticket.queued_ns


cdef bint engine_kill(Engine* engine, uint64_t handle, int64_t grace_ns, uint8_t cause) noexcept nogil:
    """End an attempt: withdraw it here if it waits, else leave it to its lane; False: not known."""
    cdef unordered_map[uint64_t, RecordPtr].iterator found
    cdef array[Note] notes
    cdef Note note
    cdef Record* record
    cdef Letter letter
    cdef uint32_t state
    cdef int home
    cdef uint8_t cls
    engine.registry_mutex.lock()
    found = engine.registry.find(handle)
    if found == engine.registry.end():
        engine.registry_mutex.unlock()
        return False
    # Listed and locked, so the record is neither freed nor withdrawn by anybody else.  Once it is withdrawn here, who
    # finds its ticket may free it at any moment: whatever is needed of it is read before.
    record = dereference(found).second
    cls = record.ticket.cls
    note_withdrawn(&note, record, cause)
    while True:  # a lane may take it, or requeue it, between the look and the change
        state = record.state.load(memory_order_acquire)
        if state >= RECORD_TAKEN:
            engine.registry_mutex.unlock()
            letter.kind = LETTER_KILL
            letter.handle = handle
            letter.ns = grace_ns
            letter.cause = cause
            engine_post(engine, <int> (state - RECORD_TAKEN), letter)
            return True
        home = record.home if state == RECORD_QUEUED else -1
        if record_change(record, state, RECORD_WITHDRAWN):
            break
    engine.registry.erase(handle)
    engine.registry_mutex.unlock()
    if home >= 0:
        queue_bury(&engine.queue, home, cls, record_bury)
    elif state == RECORD_PARKED:
        engine.admission.withdrawn.store(1, memory_order_release)
    engine_admit(engine)  # it may have been parked, before others
    count(engine.counters[engine.lanes], COUNT_WITHDRAWN)
    notes.push_back(note)
    outbox_post(&engine.outbox, &notes)
    return True


cdef size_t engine_withdraw_all(Engine* engine) noexcept nogil:
    """Empty the buckets; how many attempts that ended.  One that a lane has in its hands at this moment is running."""
    cdef array[Note] notes
    cdef array[RecordPtr] found
    cdef Ticket ticket
    cdef Note note
    cdef Record* record
    cdef size_t i, ended, popped
    while queue_pop(&engine.queue, 0, &ticket):
        found.push_back(<RecordPtr> ticket.item)
    popped = found.size()
    engine_withdraw_parked(engine, &found)
    engine.registry_mutex.lock()
    for i in range(found.size()):
        record = found[i]
        if record_change(record, RECORD_QUEUED if i < popped else RECORD_PARKED, RECORD_WITHDRAWN):
            note_withdrawn(&note, record, CAUSED_BY_SHUTDOWN)
            notes.push_back(note)
            engine.registry.erase(record.handle)
        elif i < popped:
            queue_exhume(&engine.queue, record.home, record.ticket.cls)
    engine.registry_mutex.unlock()
    for i in range(found.size()):
        record_free(found[i])  # withdrawn, here or by kill(), and this was its ticket
    ended = notes.size()
    count(engine.counters[engine.lanes], COUNT_WITHDRAWN, ended)
    outbox_post(&engine.outbox, &notes)
    return ended

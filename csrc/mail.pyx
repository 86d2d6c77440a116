# What a lane is told to do: letters of other threads, and its own timers that are due.

from cython.operator cimport dereference
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed
from libcpp.unordered_map cimport unordered_map

from native cimport CLOCK_BOOTTIME, CLOCK_REALTIME, checked_realloc


cdef void lane_read_mail(Lane* lane) noexcept nogil:
    cdef Mailbox* mail = lane.engine.mail[lane.number]
    cdef size_t i
    mail.mutex.lock()
    lane.letters.swap(mail.letters)
    mail.full.store(0, memory_order_relaxed)  # under the mutex that every writer of 1 holds
    mail.mutex.unlock()
    for i in range(lane.letters.size()):
        if lane.letters[i].kind == LETTER_ARM:
            lane_arm_alarm(lane, &lane.letters[i])
        elif lane.letters[i].kind == LETTER_ZYGOTE:
            lane_meet_zygote(lane, <int> lane.letters[i].ns)
        elif lane.letters[i].kind == LETTER_ADOPT:
            lane_adopt(lane, <Record*> lane.letters[i].handle)
        elif lane.letters[i].kind == LETTER_GONE:
            lane_tree_gone(lane, <Record*> lane.letters[i].handle, <uint32_t> lane.letters[i].ns)
        elif lane.letters[i].kind == LETTER_SURVIVES:
            lane_tree_survives(lane, <Record*> lane.letters[i].handle, <int> lane.letters[i].ns)
        elif lane.letters[i].kind == LETTER_START:
            lane_take_over(lane, <Record*> lane.letters[i].handle)
        elif lane.letters[i].kind == LETTER_LET_GO:
            lane_end_holders(lane, lane.letters[i].handle, <uint64_t> lane.letters[i].ns)
        else:
            lane_kill(lane, &lane.letters[i])
    lane.letters.clear()


cdef void lane_kill(Lane* lane, const Letter* letter) noexcept nogil:
    cdef Engine* engine = lane.engine
    cdef unordered_map[uint64_t, RecordPtr].iterator found
    cdef Record* record = NULL
    engine.registry_mutex.lock()
    found = engine.registry.find(letter.handle)
    if found != engine.registry.end():
        record = dereference(found).second
        # acquire: it may have been another lane's.
        if record.state.load(memory_order_acquire) != RECORD_TAKEN + <uint32_t> lane.number:
            record = NULL
    engine.registry_mutex.unlock()
    if record == NULL:
        # It ended, or went back to the queue since the letter was written: then it is to be found there.
        engine_kill(engine, letter.handle, letter.ns, letter.cause)
        return
    # Taken by this lane, so nobody else frees it; lanes read no mail in the middle of a spawn.
    if record.cause == CAUSED_BY_NOTHING:
        record.cause = letter.cause
        count(engine.counters[lane.number], COUNT_KILLED)
    if is_starting(record):
        lane_kill_starting(lane, record, letter.ns)
        return
    lane_end(lane, record, letter.ns)


cdef void lane_end(Lane* lane, Record* record, int64_t grace_ns) noexcept nogil:
    """TERM to the tree now, KILL after the grace; a KILL that is due earlier stays."""
    cdef int64_t deadline_ns
    record.ending = True
    record_note_ending(record, now(CLOCK_BOOTTIME) + grace_ns)
    if grace_ns == 0:
        timers_disarm(&lane.timers, &record.timer)
        lane_kill_tree(lane, record)
        return
    # Else the killer was asked for more than TERM already.  Should it have answered that the tree is gone, and we not
    # have read it yet, the question would begin a tree of which TERM alone is wanted, and nobody waits for its end.
    if not record.leader_ended and not record.killing:
        killer_ask(lane.engine.killer, record, lane.number, TREE_TERM)
    deadline_ns = now(CLOCK_BOOTTIME) + grace_ns
    if record.timer.place == 0 or record.timer.kind != TIMER_KILL or deadline_ns < record.timer.deadline_ns:
        timers_arm(&lane.timers, &record.timer, TIMER_KILL, deadline_ns)


cdef void lane_kill_tree(Lane* lane, Record* record) noexcept nogil:
    record.killing = True
    killer_ask(lane.engine.killer, record, lane.number, TREE_KILL)


cdef void lane_arm_alarm(Lane* lane, const Letter* letter) noexcept nogil:
    cdef Alarm* alarm = <Alarm*> checked_realloc(NULL, sizeof(Alarm))
    alarm.timer.place = 0
    alarm.timer.owner = alarm
    alarm.token = letter.handle
    timers_arm(&lane.timers, &alarm.timer, TIMER_ALARM, letter.ns)


cdef void lane_run_timers(Lane* lane) noexcept nogil:
    cdef int64_t now_ns = now(CLOCK_BOOTTIME)
    cdef Timer* timer
    cdef Record* record
    cdef Alarm* alarm
    cdef Note note
    while True:
        timer = timers_take_due(&lane.timers, now_ns)
        if timer == NULL:
            return
        if timer.kind == TIMER_TIMEOUT:
            record = <Record*> timer.owner
            record.cause = CAUSED_BY_TIMEOUT  # a kill would have replaced this timer
            count(lane.engine.counters[lane.number], COUNT_TIMED_OUT)
            lane_end(lane, record, record.grace_ns)
        elif timer.kind == TIMER_KILL:
            lane_kill_tree(lane, <Record*> timer.owner)
        elif timer.kind == TIMER_OUTPUT:
            record = <Record*> timer.owner
            if lane_cap_output(lane, record) and not record.ending:
                lane_end(lane, record, record.grace_ns)
            timers_arm(&lane.timers, timer, TIMER_OUTPUT, now(CLOCK_BOOTTIME) + record.look_ns)
        elif timer.kind == TIMER_ALARM:
            alarm = <Alarm*> timer.owner
            memset(&note, 0, sizeof(note))
            note.kind = KIND_ALARM
            note.handle = alarm.token
            note.lane = lane.number
            note.ended_ns = now(CLOCK_REALTIME)
            lane.notes.push_back(note)
            free(alarm)
        elif timer.kind == TIMER_WORKER:
            lane_time_worker(lane, <WorkerProcess*> timer.owner)
        elif timer.kind == TIMER_WATCH:
            lane_watch_again(lane)
        # TIMER_BACKOFF: being disarmed is all there is to it

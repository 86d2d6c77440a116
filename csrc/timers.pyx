# Timers of one lane: a binary heap on CLOCK_BOOTTIME whose entries know their place.
#
# A timer is embedded in its owner (a record, a lane, an alarm) and holds its position, so that disarming really
# takes it out, in O(log n): no dead entries pile up behind long timeouts of short jobs, nothing dangles.
# Only the lane's own thread touches any of this.

from libc.stdint cimport int64_t

from native cimport checked_realloc

cdef enum TimerKind:
    TIMER_TIMEOUT       # an attempt's time is over: TERM
    TIMER_OUTPUT        # look at the sizes of an attempt's output
    TIMER_KILL          # the grace after TERM is over: KILL
    TIMER_BACKOFF       # the lane may spawn again
    TIMER_WORKER        # a reused worker was idle for long enough, or takes too long to begin a call
    TIMER_WATCH         # register again what epoll refused
    TIMER_ALARM         # Python asked for it

cdef struct Timer:
    int64_t deadline_ns
    size_t place        # in the heap, from 1; 0: not armed
    TimerKind kind
    void* owner         # Record*, Lane* or Alarm*, by kind

cdef struct Timers:
    Timer** heap        # heap[1] is due first; heap[0] is not used
    size_t capacity
    size_t count


cdef inline void timers_put(Timers* timers, size_t place, Timer* timer) noexcept nogil:
    timers.heap[place] = timer
    timer.place = place


cdef void timers_rise(Timers* timers, size_t place, Timer* timer) noexcept nogil:
    while place > 1 and timer.deadline_ns < timers.heap[place // 2].deadline_ns:
        timers_put(timers, place, timers.heap[place // 2])
        place = place // 2
    timers_put(timers, place, timer)


cdef void timers_sink(Timers* timers, size_t place, Timer* timer) noexcept nogil:
    cdef size_t child = 2 * place
    while child <= timers.count:
        if child < timers.count and timers.heap[child + 1].deadline_ns < timers.heap[child].deadline_ns:
            child += 1
        if timers.heap[child].deadline_ns >= timer.deadline_ns:
            break
        timers_put(timers, place, timers.heap[child])
        place = child
        child = 2 * place
    timers_put(timers, place, timer)


cdef void timers_disarm(Timers* timers, Timer* timer) noexcept nogil:
    """Take the timer out; nothing if it is not armed."""
    cdef size_t place = timer.place
    cdef Timer* last
    if place == 0:
        return
    timer.place = 0
    last = timers.heap[timers.count]
    timers.count -= 1
    if last == timer:
        return
    if place > 1 and last.deadline_ns < timers.heap[place // 2].deadline_ns:
        timers_rise(timers, place, last)
    else:
        timers_sink(timers, place, last)


cdef void timers_arm(Timers* timers, Timer* timer, TimerKind kind, int64_t deadline_ns) noexcept nogil:
    """Set the timer, whether it is armed or not."""
    timers_disarm(timers, timer)
    timer.kind = kind
    timer.deadline_ns = deadline_ns
    timers.count += 1
    if timers.count >= timers.capacity:
        timers.capacity = timers.capacity * 2 if timers.capacity else 64
        timers.heap = <Timer**> checked_realloc(timers.heap, timers.capacity * sizeof(Timer*))
    timers_rise(timers, timers.count, timer)


cdef Timer* timers_take_due(Timers* timers, int64_t now_ns) noexcept nogil:
    """Disarm and return the earliest timer if it is due, else NULL."""
    cdef Timer* first
    if timers.count == 0 or timers.heap[1].deadline_ns > now_ns:
        return NULL
    first = timers.heap[1]
    timers_disarm(timers, first)
    return first


cdef inline int64_t timers_next(Timers* timers) noexcept nogil:
    """The earliest deadline; -1: none."""
    return timers.heap[1].deadline_ns if timers.count else -1

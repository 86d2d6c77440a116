# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The timers of a lane without the lane: `Timers` for a test to compare with a model, and what a million of them cost."""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from native cimport checked_realloc

include "timers.pyx"


@cython.final
cdef class TimerHeap:
    """`size` timers, known by their numbers."""
    cdef Timers timers
    cdef Timer* owned
    cdef size_t size

    def __cinit__(self, size_t size):
        memset(&self.timers, 0, sizeof(Timers))
        self.owned = <Timer*> checked_realloc(NULL, size * sizeof(Timer))
        memset(self.owned, 0, size * sizeof(Timer))
        self.size = size

    def __dealloc__(self):
        free(self.timers.heap)
        free(self.owned)

    cdef Timer* timer(self, size_t number) except NULL:
        if number >= self.size:
            raise IndexError(number)
        return &self.owned[number]

    def arm(self, number, deadline_ns):
        timers_arm(&self.timers, self.timer(number), TIMER_ALARM, deadline_ns)

    def disarm(self, number):
        timers_disarm(&self.timers, self.timer(number))

    def take_due(self, int64_t now_ns):
        """The number of the earliest timer, if it is due."""
        cdef Timer* timer = timers_take_due(&self.timers, now_ns)
        return None if timer == NULL else timer - self.owned

    def next(self):
        return timers_next(&self.timers)

    def __len__(self):
        return self.timers.count

    def bytes(self):
        """All that the timers take, their own fields and the heap."""
        return self.size * sizeof(Timer) + self.timers.capacity * sizeof(Timer*)

    def measure(self):
        """Seconds to arm all, to disarm every other one, and to take the rest in order; deadlines are random."""
        cdef uint64_t state = 88172645463325252  # xorshift64
        cdef int64_t deadline_ns = 0
        cdef Timer* timer
        cdef size_t i, taken = 0
        cdef double[4] moments
        with nogil:
            moments[0] = seconds()
            for i in range(self.size):
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                timers_arm(&self.timers, &self.owned[i], TIMER_ALARM, <int64_t> (state >> 2))
            moments[1] = seconds()
            for i in range(0, self.size, 2):
                timers_disarm(&self.timers, &self.owned[i])
            moments[2] = seconds()
            timer = timers_take_due(&self.timers, LATEST_NS)
            while timer != NULL and timer.deadline_ns >= deadline_ns:
                deadline_ns = timer.deadline_ns
                taken += 1
                timer = timers_take_due(&self.timers, LATEST_NS)
            moments[3] = seconds()
        assert taken == self.size // 2, "out of order"
        return moments[1] - moments[0], moments[2] - moments[1], moments[3] - moments[2]


cdef int64_t LATEST_NS = 2**62


cdef double seconds() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <double> time.tv_sec + 1e-9 * <double> time.tv_nsec

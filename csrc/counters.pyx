# Totals, counted by each lane on lines of its own and summed when somebody asks.
#
# relaxed throughout: a counter orders nothing, and each has a total order of its own modifications.

from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_relaxed

from native cimport counter_array

cdef enum Counter:
    COUNT_SUBMITTED
    COUNT_STARTED
    COUNT_EXITED
    COUNT_FAILED
    COUNT_TIMED_OUT
    COUNT_KILLED
    COUNT_WITHDRAWN
    COUNT_SPAWN_FAILED
    COUNT_BACKED_OFF
    COUNTERS            # the size of a counter_array

COUNTER_NAMES = (
    "submitted", "started", "exited", "failed", "timed_out", "killed", "withdrawn", "spawn_failed", "backed_off",
)


cdef inline void count(counter_array* counters, Counter which, uint64_t times=1) noexcept nogil:
    counters[0][which].fetch_add(times, memory_order_relaxed)


cdef inline uint64_t counted(counter_array* counters, int which) noexcept nogil:
    return counters[0][which].load(memory_order_relaxed)

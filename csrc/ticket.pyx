# The 32-byte native form of an attempt that waits, and the order of tickets.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cdef enum:
    CLASSES = 3  # HIGH, MED, LOW
    MAX_LANES = 256

cdef struct Ticket:     # 32 bytes, see queue_init
    uint64_t sequence   # smaller first inside a rank
    int32_t rank        # larger first inside a class
    uint8_t cls         # smaller first
    uint64_t item       # what waits: a Record* in the core, a plain handle in ReadyQueue
    int64_t queued_ns   # CLOCK_BOOTTIME


cdef inline bint precedes(const Ticket* one, const Ticket* other) noexcept nogil:
    """Whether `one` starts before `other` inside a bucket: rank descending, then sequence ascending."""
    if one.rank != other.rank:
        return one.rank > other.rank
    return one.sequence < other.sequence


cdef inline bint starts_first(const Ticket& one, const Ticket& other) noexcept nogil:
    """The whole order key (class, rank, sequence); a strict weak order for std::sort."""
    if one.cls != other.cls:
        return one.cls < other.cls
    return precedes(&one, &other)

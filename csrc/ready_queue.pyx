# `ReadyQueue`: the lanes' queue by itself, for Python: what its tests and its twin (pysched/engine/twin.py) are held
# against.

cimport cython
from libc.stdint cimport UINT64_MAX, int64_t

from native cimport CLOCK_BOOTTIME


cdef int64_t moment(str field, object given) except -1:
    """What the caller says that it is on CLOCK_BOOTTIME; None: ask the clock."""
    return now(CLOCK_BOOTTIME) if given is None else whole(field, given, 0, LONGEST_NS)


cdef tuple depths_of(Queue* queue):
    return queue_depth(queue, 0), queue_depth(queue, 1), queue_depth(queue, 2)


@cython.final
cdef class ReadyQueue:
    cdef Queue* queue

    def __cinit__(self, lanes, ageing_s=0.0):
        cdef int64_t ageing_ns = to_ns("ageing_s", ageing_s)
        whole("lanes", lanes, 1, MAX_LANES)
        self.queue = new Queue()
        queue_init(self.queue, lanes, ageing_ns)

    def __dealloc__(self):
        if self.queue != NULL:
            queue_free(self.queue)
            del self.queue

    def push(self, priority, rank, sequence, handle, lane=-1, now_ns=None):
        cdef Ticket ticket
        cdef int place = whole("lane", lane, -1, self.queue.lanes - 1)
        ticket.cls = whole("priority", priority, 0, CLASSES - 1)
        ticket.rank = whole("rank", rank, -2**31, 2**31 - 1)
        ticket.sequence = whole("sequence", sequence, 0, UINT64_MAX)
        ticket.item = whole("handle", handle, 0, UINT64_MAX)
        ticket.queued_ns = moment("now_ns", now_ns)
        with nogil:
            queue_push(self.queue, queue_balance(self.queue) if place < 0 else place, &ticket)

    def pop(self, lane, now_ns=None):
        cdef Ticket ticket
        cdef int place = whole("lane", lane, 0, self.queue.lanes - 1)
        cdef int64_t time_ns = moment("now_ns", now_ns)
        cdef bint found
        with nogil:
            queue_age(self.queue, time_ns)
            found = queue_pop(self.queue, place, &ticket)
        return ticket.item if found else None

    def depths(self):
        return depths_of(self.queue)

    def __len__(self):
        return sum(self.depths())

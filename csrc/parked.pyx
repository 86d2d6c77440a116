# The attempts that wait for what others hold, see admission.pyx, whose mutex guards all of this.
#
# At each end of an attempt is asked who may start now.  Those that ask for the same are one *queue*: if its first does
# not fit, nor does any other, so a look costs as much as there are different demands, however many wait.

from libc.stdint cimport int64_t
from libcpp.atomic cimport memory_order_acquire

from native cimport CLOCK_BOOTTIME, array

cdef int64_t NEVER_NS = <int64_t> 1 << 62


cdef cppclass Alike:
    int64_t[RESOURCES] demand
    array[RecordPtr] records    # in the order in which they start, from `first` on
    size_t first
    bint blocked                # in the look that is under way: nobody of them may start


ctypedef Alike* AlikePtr


cdef cppclass ParkedList:
    array[AlikePtr] queues      # none is empty
    size_t count
    int64_t[CLASSES] depths
    int64_t ageing_ns           # as the queue's
    int64_t overdue_ns          # CLOCK_BOOTTIME before which nobody is overdue


cdef inline bint asks_alike(const int64_t* one, const int64_t* other) noexcept nogil:
    cdef int i
    for i in range(RESOURCES):
        if one[i] != other[i]:
            return False
    return True


cdef Alike* parked_queue(ParkedList* parked, const Record* record) noexcept nogil:
    """Where it belongs."""
    cdef Alike* queue
    cdef size_t i
    cdef int which
    for i in range(parked.queues.size()):
        if asks_alike(parked.queues[i].demand, record.demand):
            return parked.queues[i]
    queue = new Alike()
    for which in range(RESOURCES):
        queue.demand[which] = record.demand[which]
    parked.queues.push_back(queue)
    return queue


cdef inline int64_t due_ns(const ParkedList* parked, const Record* record) noexcept nogil:
    """When it is overdue."""
    if parked.ageing_ns == 0 or record.ticket.cls == 0:
        return NEVER_NS
    return record.ticket.queued_ns + record.ticket.cls * parked.ageing_ns


cdef Alike* parked_insert(ParkedList* parked, Record* record) noexcept nogil:
    """At its place in the order; its queue."""
    cdef Alike* queue = parked_queue(parked, record)
    cdef size_t i
    queue.records.push_back(record)
    i = queue.records.size() - 1
    while i > queue.first and starts_first(record.ticket, queue.records[i - 1].ticket):
        queue.records[i] = queue.records[i - 1]
        i -= 1
    queue.records[i] = record
    if parked.count == 0 or due_ns(parked, record) < parked.overdue_ns:
        parked.overdue_ns = due_ns(parked, record)
    parked.count += 1
    parked.depths[record.ticket.cls] += 1
    return queue


cdef inline void parked_count_out(ParkedList* parked, const Record* record) noexcept nogil:
    parked.count -= 1
    parked.depths[record.ticket.cls] -= 1


cdef Alike* parked_next(ParkedList* parked) noexcept nogil:
    """The queue whose first starts before those of all others that are not blocked; NULL: all are."""
    cdef Alike* found = NULL
    cdef Alike* queue
    cdef size_t i
    for i in range(parked.queues.size()):
        queue = parked.queues[i]
        if not queue.blocked and queue.first < queue.records.size() and (found == NULL or starts_first(
                queue.records[queue.first].ticket, found.records[found.first].ticket)):
            found = queue
    return found


cdef void parked_remove(ParkedList* parked, Alike* queue, size_t place) noexcept nogil:
    cdef size_t i
    parked_count_out(parked, queue.records[place])
    while place > queue.first:
        queue.records[place] = queue.records[place - 1]
        place -= 1
    queue.first += 1
    if queue.first > 64 and 2 * queue.first > queue.records.size():
        for i in range(queue.first, queue.records.size()):
            queue.records[i - queue.first] = queue.records[i]
        queue.records.resize(queue.records.size() - queue.first)
        queue.first = 0


cdef Record* parked_take_overdue(ParkedList* parked) noexcept nogil:
    """The one that is overdue for longest, taken out; NULL: nobody is."""
    cdef Alike* owner = NULL
    cdef Alike* queue
    cdef Record* found = NULL
    cdef int64_t next_ns = NEVER_NS, each_ns
    cdef size_t i, k, place = 0
    if parked.count == 0 or parked.overdue_ns == NEVER_NS or now(CLOCK_BOOTTIME) < parked.overdue_ns:
        return NULL
    for i in range(parked.queues.size()):
        queue = parked.queues[i]
        for k in range(queue.first, queue.records.size()):
            each_ns = due_ns(parked, queue.records[k])
            if each_ns < next_ns:
                next_ns = each_ns
                owner = queue
                place = k
    parked.overdue_ns = next_ns
    if owner != NULL and next_ns <= now(CLOCK_BOOTTIME):
        found = owner.records[place]
        parked_remove(parked, owner, place)
    return found


cdef void parked_purge(ParkedList* parked, array[RecordPtr]* dead) noexcept nogil:
    """Move those that were withdrawn to `dead`."""
    cdef Alike* queue
    cdef Record* record
    cdef size_t i, k, kept
    for i in range(parked.queues.size()):
        queue = parked.queues[i]
        kept = queue.first
        for k in range(queue.first, queue.records.size()):
            record = queue.records[k]
            if record.state.load(memory_order_acquire) == RECORD_WITHDRAWN:
                parked_count_out(parked, record)
                dead.push_back(record)
            else:
                queue.records[kept] = record
                kept += 1
        queue.records.resize(kept)


cdef void parked_tidy(ParkedList* parked) noexcept nogil:
    """No queue is empty, and none is blocked."""
    cdef Alike* queue
    cdef size_t i, kept = 0
    for i in range(parked.queues.size()):
        queue = parked.queues[i]
        if queue.first == queue.records.size():
            del queue
        else:
            queue.blocked = False
            parked.queues[kept] = queue
            kept += 1
    parked.queues.resize(kept)


cdef void parked_empty(ParkedList* parked, array[RecordPtr]* found) noexcept nogil:
    """Move all to `found`."""
    cdef Alike* queue
    cdef size_t i, k
    for i in range(parked.queues.size()):
        queue = parked.queues[i]
        for k in range(queue.first, queue.records.size()):
            parked_count_out(parked, queue.records[k])
            found.push_back(queue.records[k])
        queue.first = queue.records.size()
    parked_tidy(parked)

# The ready queue: lanes × classes of buckets in exact order, a mutex a lane, depths that are read without it.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libcpp.algorithm cimport sort
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from native cimport array, assert_32_bytes, checked_realloc, class_counts, padded_atomic, padded_mutex

# ---- ring: a sorted run of tickets, O(1) at both ends ---------------------------------------------------------------

cdef struct Ring:
    Ticket* items       # a circle of `capacity` places
    size_t capacity     # 0 or a power of two
    size_t head         # place of the first ticket; grows for ever, used modulo capacity
    size_t count


cdef enum:
    RING_MIN = 64       # places; a larger ring that runs empty gives its memory back


cdef void ring_append(Ring* ring, const Ticket* ticket) noexcept nogil:
    cdef Ticket* items
    cdef size_t i, capacity
    if ring.count == ring.capacity:
        capacity = ring.capacity * 2 if ring.capacity else RING_MIN
        items = <Ticket*> checked_realloc(NULL, capacity * sizeof(Ticket))
        for i in range(ring.count):
            items[i] = ring.items[(ring.head + i) & (ring.capacity - 1)]
        free(ring.items)
        ring.items = items
        ring.capacity = capacity
        ring.head = 0
    ring.items[(ring.head + ring.count) & (ring.capacity - 1)] = ticket[0]
    ring.count += 1


cdef inline Ticket* ring_at(Ring* ring, size_t position) noexcept nogil:
    return &ring.items[(ring.head + position) & (ring.capacity - 1)]


cdef void ring_drop_first(Ring* ring) noexcept nogil:
    ring.head += 1
    ring.count -= 1
    if ring.count == 0 and ring.capacity > RING_MIN:
        ring_free(ring)


cdef void ring_free(Ring* ring) noexcept nogil:
    free(ring.items)
    ring.items = NULL
    ring.capacity = ring.head = ring.count = 0


# ---- heap: a binary heap of the tickets that came out of order ------------------------------------------------------

cdef struct Heap:
    Ticket* items       # items[0] starts first
    size_t capacity
    size_t count


cdef void heap_push(Heap* heap, const Ticket* ticket) noexcept nogil:
    cdef size_t child, parent
    if heap.count == heap.capacity:
        heap.capacity = heap.capacity * 2 if heap.capacity else RING_MIN
        heap.items = <Ticket*> checked_realloc(heap.items, heap.capacity * sizeof(Ticket))
    child = heap.count
    heap.count += 1
    while child > 0:
        parent = (child - 1) // 2
        if not precedes(ticket, &heap.items[parent]):
            break
        heap.items[child] = heap.items[parent]
        child = parent
    heap.items[child] = ticket[0]


cdef void heap_sink(Heap* heap, size_t parent) noexcept nogil:
    """Move the ticket at `parent` down to where the heap's order holds again."""
    cdef Ticket ticket = heap.items[parent]
    cdef size_t child = 2 * parent + 1
    while child < heap.count:
        if child + 1 < heap.count and precedes(&heap.items[child + 1], &heap.items[child]):
            child += 1
        if not precedes(&heap.items[child], &ticket):
            break
        heap.items[parent] = heap.items[child]
        parent = child
        child = 2 * parent + 1
    heap.items[parent] = ticket


cdef void heap_drop_first(Heap* heap) noexcept nogil:
    heap.count -= 1
    if heap.count > 0:
        heap.items[0] = heap.items[heap.count]
        heap_sink(heap, 0)
    elif heap.capacity > RING_MIN:
        heap_free(heap)


cdef void heap_free(Heap* heap) noexcept nogil:
    free(heap.items)
    heap.items = NULL
    heap.capacity = heap.count = 0


# ---- bucket: one class of one lane ----------------------------------------------------------------------------------

cdef struct Bucket:
    Ring ring           # a run in order: arrival order keeps it the only one used, hence FIFO is O(1)
    Heap heap           # the rest: a higher rank, or a retry with an old sequence
    Ring overdue        # taken out of both by bucket_age: first found, first out


cdef void bucket_push(Bucket* bucket, const Ticket* ticket) noexcept nogil:
    cdef Ring* ring = &bucket.ring
    if ring.count == 0 or not precedes(ticket, ring_at(ring, ring.count - 1)):
        ring_append(ring, ticket)
    else:
        heap_push(&bucket.heap, ticket)


cdef bint bucket_pop(Bucket* bucket, Ticket* ticket) noexcept nogil:
    """The first ticket in order; False: empty.  Of two equal keys the one in the ring goes first."""
    cdef Ring* ring = &bucket.ring
    cdef Heap* heap = &bucket.heap
    if ring.count == 0 and heap.count == 0:
        return False
    if heap.count == 0 or (ring.count > 0 and not precedes(heap.items, ring_at(ring, 0))):
        ticket[0] = ring_at(ring, 0)[0]
        ring_drop_first(ring)
    else:
        ticket[0] = heap.items[0]
        heap_drop_first(heap)
    return True


ctypedef bint (*IsDead)(uint64_t item) noexcept nogil
# Decides whether a waiting item was withdrawn; one that answers True is never asked about again.


cdef void ring_purge(Ring* ring, IsDead is_dead) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(ring.count):
        if not is_dead(ring_at(ring, i).item):
            ring_at(ring, kept)[0] = ring_at(ring, i)[0]
            kept += 1
    ring.count = kept


cdef inline void heap_order(Heap* heap) noexcept nogil:
    """Make a heap of tickets that lie in any order, in O(n) (Floyd 1964)."""
    cdef size_t i
    for i in range(heap.count // 2, 0, -1):
        heap_sink(heap, i - 1)


cdef void heap_purge(Heap* heap, IsDead is_dead) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(heap.count):
        if not is_dead(heap.items[i].item):
            heap.items[kept] = heap.items[i]
            kept += 1
    heap.count = kept
    heap_order(heap)


cdef size_t bucket_purge(Bucket* bucket, IsDead is_dead) noexcept nogil:
    """Take out all withdrawn tickets in O(n); how many."""
    cdef size_t before = bucket.ring.count + bucket.heap.count + bucket.overdue.count
    ring_purge(&bucket.ring, is_dead)
    heap_purge(&bucket.heap, is_dead)
    ring_purge(&bucket.overdue, is_dead)
    return before - bucket.ring.count - bucket.heap.count - bucket.overdue.count


cdef size_t bucket_age(Bucket* bucket, int64_t since_ns) noexcept nogil:
    """Move what has waited since `since_ns` or longer behind the overdue ones, in order, in O(n); how many.

    Only what came out of order needs sorting: the ring is a sorted run."""
    cdef Ring* ring = &bucket.ring
    cdef Heap* heap = &bucket.heap
    cdef array[Ticket] unordered
    cdef Ticket* ticket
    cdef size_t before = bucket.overdue.count
    cdef size_t i, kept = 0, merged = 0
    for i in range(heap.count):
        if heap.items[i].queued_ns <= since_ns:
            unordered.push_back(heap.items[i])
        else:
            heap.items[kept] = heap.items[i]
            kept += 1
    heap.count = kept
    if not unordered.empty():
        heap_order(heap)
        sort(unordered.data(), unordered.data() + unordered.size(), starts_first)
    kept = 0
    for i in range(ring.count):
        ticket = ring_at(ring, i)
        if ticket.queued_ns <= since_ns:
            while merged < unordered.size() and precedes(&unordered[merged], ticket):
                ring_append(&bucket.overdue, &unordered[merged])
                merged += 1
            ring_append(&bucket.overdue, ticket)
        else:
            ring_at(ring, kept)[0] = ticket[0]
            kept += 1
    ring.count = kept
    for i in range(merged, unordered.size()):
        ring_append(&bucket.overdue, &unordered[i])
    return bucket.overdue.count - before


cdef void bucket_free(Bucket* bucket) noexcept nogil:
    ring_free(&bucket.ring)
    heap_free(&bucket.heap)
    ring_free(&bucket.overdue)


# ---- queue: N lanes of buckets --------------------------------------------------------------------------------------

cdef cppclass Shelf:
    # The buckets of one lane.  `counts` is written under the mutex only and read without it, see queue_pop; `dead`
    # counts withdrawn tickets that still lie in the bucket.  The padded mutex starts the object, so the counters that
    # other lanes poll share no line with the buckets of the neighbour.
    padded_mutex mutex
    Bucket buckets[CLASSES]
    class_counts counts
    class_counts dead
    padded_atomic[int64_t] look_ns  # when to look for overdue tickets again


cdef cppclass Queue:
    int lanes
    Shelf** shelves
    int64_t ageing_ns               # 0: nothing is ever overdue
    padded_atomic[uint32_t] turn    # of the next balanced push
    padded_atomic[int64_t] overdue  # tickets in the overdue rings
    padded_atomic[uint32_t] overdue_turn    # pops so far while there were any


cdef void queue_init(Queue* queue, int lanes, int64_t ageing_ns) noexcept nogil:
    cdef int i
    assert_32_bytes(<Ticket*> NULL)
    queue.lanes = lanes
    queue.ageing_ns = ageing_ns
    queue.shelves = <Shelf**> checked_realloc(NULL, lanes * sizeof(Shelf*))
    for i in range(lanes):
        queue.shelves[i] = new Shelf()


cdef void queue_free(Queue* queue) noexcept nogil:
    cdef int i, cls
    for i in range(queue.lanes):
        for cls in range(CLASSES):
            bucket_free(&queue.shelves[i].buckets[cls])
        del queue.shelves[i]
    free(queue.shelves)


cdef int64_t queue_waiting(Queue* queue, int lane) noexcept nogil:
    # relaxed: a hint for balance
    cdef Shelf* shelf = queue.shelves[lane]
    return (shelf.counts[0].load(memory_order_relaxed) + shelf.counts[1].load(memory_order_relaxed)
            + shelf.counts[2].load(memory_order_relaxed))


cdef int queue_balance(Queue* queue) noexcept nogil:
    """A lane for the next ticket: the one with fewer waiting of two neighbours that rotate (the power of two choices,
    Mitzenmacher 1996, without a random source).  relaxed: only the number's rotation matters, it orders nothing."""
    cdef uint32_t turn
    cdef int one, other
    if queue.lanes == 1:
        return 0
    turn = queue.turn.fetch_add(1, memory_order_relaxed)
    one = <int> (turn % <uint32_t> queue.lanes)
    other = one + 1 if one + 1 < queue.lanes else 0
    return other if queue_waiting(queue, other) < queue_waiting(queue, one) else one


cdef void queue_push(Queue* queue, int lane, const Ticket* ticket) noexcept nogil:
    cdef Shelf* shelf = queue.shelves[lane]
    shelf.mutex.lock()
    bucket_push(&shelf.buckets[ticket.cls], ticket)
    # seq_cst: one half of the pact with parking lanes, see lane_park
    shelf.counts[ticket.cls].fetch_add(1, memory_order_seq_cst)
    shelf.mutex.unlock()


cdef inline void shelf_count_down(Shelf* shelf, int cls) noexcept nogil:
    """Under the mutex, which excludes other writers: no atomic subtraction is needed, and readers may be late."""
    shelf.counts[cls].store(shelf.counts[cls].load(memory_order_relaxed) - 1, memory_order_relaxed)


cdef bint shelf_pop(Shelf* shelf, int cls, Ticket* ticket) noexcept nogil:
    cdef bint found
    # An empty bucket is passed without its lock.  Reading a stale 0 here is harmless: the caller parks through
    # lane_park, which looks again with seq_cst.  Order is decided under the mutex, so relaxed is enough.
    if shelf.counts[cls].load(memory_order_relaxed) == 0:
        return False
    shelf.mutex.lock()
    found = bucket_pop(&shelf.buckets[cls], ticket)
    if found:
        shelf_count_down(shelf, cls)
    shelf.mutex.unlock()
    return found


cdef bint queue_pop(Queue* queue, int lane, Ticket* ticket) noexcept nogil:
    """Rule 8: of each class the lane's own bucket, then the following lanes' in turn, then the next class.

    Overdue tickets come after HIGH, and of each OVERDUE_SHARE pops one takes them first.  relaxed: a pop that does not
    yet see the newest of them is one that came a moment earlier."""
    cdef bint overdue = queue.overdue.load(memory_order_relaxed) > 0
    cdef uint32_t turn = 0
    cdef int cls, _, victim
    if overdue:
        turn = queue.overdue_turn.fetch_add(1, memory_order_relaxed)
        if turn % OVERDUE_SHARE == 0 and queue_pop_overdue(queue, turn // OVERDUE_SHARE, ticket):
            return True
    for cls in range(CLASSES):
        if cls == 1 and overdue and queue_pop_overdue(queue, turn // OVERDUE_SHARE, ticket):
            return True
        victim = lane
        for _ in range(queue.lanes):
            if shelf_pop(queue.shelves[victim], cls, ticket):
                return True
            victim = victim + 1 if victim + 1 < queue.lanes else 0
    return False


cdef bint queue_has_work(Queue* queue) noexcept nogil:
    """Whether a ticket lies in any bucket; seq_cst for lane_park."""
    cdef int i, cls
    for i in range(queue.lanes):
        for cls in range(CLASSES):
            if queue.shelves[i].counts[cls].load(memory_order_seq_cst) != 0:
                return True
    return False


cdef void queue_bury(Queue* queue, int lane, int cls, IsDead is_dead) noexcept nogil:
    """Account for one withdrawn ticket; once they are half of a bucket they are swept out: amortised O(1).

    `dead` may be below zero for a moment, when a pop or a sweep meets the ticket before its withdrawer gets here.
    relaxed: a count that only decides when to sweep and what depths() shows; the tickets are under the mutex."""
    cdef Shelf* shelf = queue.shelves[lane]
    cdef Bucket* bucket = &shelf.buckets[cls]
    cdef int64_t dead = shelf.dead[cls].fetch_add(1, memory_order_relaxed) + 1
    cdef int64_t swept, overdue
    if dead < RING_MIN or dead * 2 < shelf.counts[cls].load(memory_order_relaxed):
        return
    shelf.mutex.lock()
    overdue = <int64_t> bucket.overdue.count
    swept = <int64_t> bucket_purge(bucket, is_dead)
    overdue -= <int64_t> bucket.overdue.count
    shelf.counts[cls].fetch_sub(swept, memory_order_relaxed)
    shelf.mutex.unlock()
    queue.overdue.fetch_sub(overdue, memory_order_relaxed)
    shelf.dead[cls].fetch_sub(swept, memory_order_relaxed)


cdef inline void queue_exhume(Queue* queue, int lane, int cls) noexcept nogil:
    """A pop met a withdrawn ticket."""
    queue.shelves[lane].dead[cls].fetch_sub(1, memory_order_relaxed)


cdef int64_t queue_depth(Queue* queue, int cls) noexcept nogil:
    """How many tickets of a class wait, withdrawn ones left out.  relaxed: a reading for people and policy."""
    cdef int64_t depth = 0
    cdef int i
    for i in range(queue.lanes):
        depth += queue.shelves[i].counts[cls].load(memory_order_relaxed)
        depth -= queue.shelves[i].dead[cls].load(memory_order_relaxed)
    return depth if depth > 0 else 0


# ---- ageing: the rule of pysched/policy.py, so that LOW does not wait for ever under an endless stream of HIGH -------
#
# A ticket that has waited `ageing_ns` for each class above its own is overdue.  Lanes look for such tickets now and
# then and lay them into rings of their own, so an ordinary pop pays one load for all this.  Once it lies there, a
# ticket starts within 2 × OVERDUE_SHARE × lanes × (1 + those before it in its ring) pops, whatever else comes; and
# a backlog of overdue tickets never takes more than its share from HIGH.

cdef enum:
    OVERDUE_SHARE = 4       # of so many pops one takes what is overdue first
    LOOKS = 16              # a look each 1/16 of `ageing_ns`: that much longer a wait may become


cdef void queue_age(Queue* queue, int64_t now_ns) noexcept nogil:
    """Find what has become overdue, if it is time to look.  One thread a shelf does it; relaxed: the exchange decides
    who, the tickets are under the mutex."""
    cdef Shelf* shelf
    cdef int64_t look_ns
    cdef int i
    if queue.ageing_ns == 0:
        return
    for i in range(queue.lanes):
        shelf = queue.shelves[i]
        look_ns = shelf.look_ns.load(memory_order_relaxed)
        if (now_ns >= look_ns and shelf.look_ns.compare_exchange_strong(
                look_ns, now_ns + queue.ageing_ns // LOOKS, memory_order_relaxed)):
            shelf_age(queue, shelf, now_ns)


cdef void shelf_age(Queue* queue, Shelf* shelf, int64_t now_ns) noexcept nogil:
    cdef int cls
    shelf.mutex.lock()
    for cls in range(1, CLASSES):
        queue.overdue.fetch_add(<int64_t> bucket_age(&shelf.buckets[cls], now_ns - cls * queue.ageing_ns),
                                memory_order_relaxed)
    shelf.mutex.unlock()


cdef bint queue_pop_overdue(Queue* queue, uint32_t turn, Ticket* ticket) noexcept nogil:
    """The first of an overdue ring.  Classes and lanes come first in turn: none waits behind another's backlog."""
    cdef int lane = <int> (turn // 2 % <uint32_t> queue.lanes)
    cdef int preferred = 1 + <int> (turn % 2)
    cdef Shelf* shelf
    cdef int _, cls
    for _ in range(queue.lanes):
        shelf = queue.shelves[lane]
        shelf.mutex.lock()
        cls = preferred if shelf.buckets[preferred].overdue.count > 0 else CLASSES - preferred
        if shelf.buckets[cls].overdue.count > 0:
            ticket[0] = ring_at(&shelf.buckets[cls].overdue, 0)[0]
            ring_drop_first(&shelf.buckets[cls].overdue)
            shelf_count_down(shelf, cls)
            shelf.mutex.unlock()
            queue.overdue.fetch_sub(1, memory_order_relaxed)
            return True
        shelf.mutex.unlock()
        lane = lane + 1 if lane + 1 < queue.lanes else 0
    return False

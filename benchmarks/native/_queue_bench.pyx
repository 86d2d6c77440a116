# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The ready queue of the core, and the least that a queue can cost, on native threads: seconds for so many operations."""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libcpp.atomic cimport memory_order_acquire, memory_order_release, memory_order_seq_cst
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from native cimport array, checked_realloc, padded_atomic, start_thread, thread

include "ticket.pyx"
include "priority_queue.pyx"

ctypedef thread* ThreadPtr

cdef enum Work:
    PUSH_AND_POP        # a batch into the thread's own lane, then out again
    DRAIN_ONE_LANE      # all threads pop what lies in lane 0
    RING_AND_ADD        # a ring of the thread's own, one shared counter

cdef padded_atomic[uint64_t] shared_counter


cdef cppclass Worker:
    Queue* queue
    Ring ring
    Work work
    int lane
    int64_t operations
    int64_t batch
    int64_t done
    padded_atomic[int]* gate


cdef double seconds() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <double> time.tv_sec + 1e-9 * <double> time.tv_nsec


cdef void worker_main(void* argument) noexcept nogil:
    cdef Worker* worker = <Worker*> argument
    cdef Ticket ticket
    cdef int64_t i, done = 0
    ticket.cls, ticket.rank, ticket.sequence, ticket.item, ticket.queued_ns = 0, 0, 0, 0, 0
    worker.gate.fetch_add(1, memory_order_seq_cst)
    while worker.gate.load(memory_order_acquire) > 0:
        pass
    if worker.work == DRAIN_ONE_LANE:
        while queue_pop(worker.queue, worker.lane, &ticket):
            done += 1
    while worker.work != DRAIN_ONE_LANE and done < worker.operations:
        for i in range(worker.batch):
            ticket.sequence += 1
            if worker.work == PUSH_AND_POP:
                ticket.cls = <uint8_t> (ticket.sequence % CLASSES)
                queue_push(worker.queue, worker.lane, &ticket)
            else:
                ring_append(&worker.ring, &ticket)
                shared_counter.fetch_add(1, memory_order_seq_cst)
        for i in range(worker.batch):
            if worker.work == PUSH_AND_POP:
                queue_pop(worker.queue, worker.lane, &ticket)
            else:
                ticket.item = ring_at(&worker.ring, 0).item
                ring_drop_first(&worker.ring)
                shared_counter.fetch_add(1, memory_order_seq_cst)
        done += worker.batch
    worker.done = done


cdef double run(Work work, int threads, int lanes, int64_t operations, int64_t batch, int first_lane) except -1:
    """Seconds in which `threads` have done `operations` pairs each; DRAIN_ONE_LANE: all of them together."""
    cdef Queue* queue = new Queue()
    cdef padded_atomic[int]* gate = new padded_atomic[int]()
    cdef array[ThreadPtr] running
    cdef Worker** workers = <Worker**> checked_realloc(NULL, threads * sizeof(Worker*))
    cdef Ticket ticket
    cdef double begun
    cdef int i
    cdef int64_t n, done = 0
    ticket.cls, ticket.rank, ticket.item, ticket.queued_ns = 1, 0, 0, 0
    queue_init(queue, lanes, 600_000_000_000)
    if work == DRAIN_ONE_LANE:
        for n in range(operations):
            ticket.sequence = n
            queue_push(queue, 0, &ticket)
    for i in range(threads):
        workers[i] = new Worker()
        workers[i].queue, workers[i].work, workers[i].gate = queue, work, gate
        workers[i].lane = (first_lane + i) % lanes
        workers[i].operations, workers[i].batch = operations, batch
        running.push_back(start_thread(worker_main, workers[i], b"bench"))
    with nogil:
        while gate.load(memory_order_acquire) < threads:
            pass
        begun = seconds()
        gate.store(-threads, memory_order_release)
        for i in range(threads):
            running[i].join()
        begun = seconds() - begun
    for i in range(threads):
        done += workers[i].done
        ring_free(&workers[i].ring)
        del running[i]
        del workers[i]
    free(workers)
    queue_free(queue)
    del queue
    del gate
    assert done >= operations
    return begun


def push_and_pop(threads, operations, batch):
    return run(PUSH_AND_POP, threads, threads, operations, batch, 0)


def ring_and_add(threads, operations, batch):
    return run(RING_AND_ADD, threads, threads, operations, batch, 0)


def drain_one_lane(threads, lanes, operations, first_lane):
    """All pop what lies in lane 0, thread i on behalf of lane `first_lane` + i."""
    return run(DRAIN_ONE_LANE, threads, lanes, operations, 1, first_lane)

# Executor: calls made by Python threads, from the buckets that the lanes use, as `concurrent.futures` promises.
#
# The GIL guards everything here as it does in future.pyx: push and pop happen with it held, so the buckets need no
# lock, and none is ever held while waiting for the GIL.  A worker takes the GIL once and then makes calls until the
# buckets are empty; CPython hands the GIL on when another thread has asked for it for a switch interval.  Only an idle
# worker sleeps, without the GIL, on its own bell.
#
# Waking: at most one worker is `waking`, which is rung and not yet back.  A push rings one only if none is; a worker
# that takes a call and leaves others rings the next.  So a flood of short calls costs a ring for each time the GIL
# changes hands, and calls that block reach all workers one after the other.  No call is forgotten: whenever the GIL is
# free, either nothing is queued, or nobody is idle, or one is waking.  For
#   - a push rings an idle worker unless one is waking,
#   - a worker becomes idle only after it found the buckets empty, with no call of Python in between,
#   - a waking worker that gets the GIL looks into the buckets before it gives the GIL up, and rings again if it leaves
#     calls behind,
# and the bell remembers a ring that comes between becoming idle and falling asleep.
#
# Threads start in submit() when more is queued than idle, waking and starting workers will take, up to the limit.

import itertools
import os
import threading
from concurrent.futures import BrokenExecutor
from concurrent.futures import Executor as StandardExecutor
from functools import partial

cimport cython
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from native cimport CLOCK_BOOTTIME

cdef enum:
    WORKERS = 8
    THREADS_MAX = 100_000           # of one executor
    PROCESSES_MAX = 10_000
    TURN_NS = 5_000_000             # CPython's own switch interval

cdef str INITIALIZER_FAILED = "A thread initializer failed, the executor is not usable anymore"
cdef str FORKED = "The threads of this executor stayed in the parent process; make a new one after os.fork()"

cdef object next_number = itertools.count().__next__
cdef bint interpreter_ends = False
cdef dict live_workers = {}         # of all pools: Worker → Pool, from the thread's start until after its last call


@cython.final
@cython.auto_pickle(False)
cdef class Worker:
    """A thread of a pool."""
    cdef PyThread_type_lock bell    # held; released to wake the thread
    cdef FutureState running        # None: between two calls
    cdef FutureState ended          # of the thread; its Thread may be joined then
    cdef object thread
    cdef object ident               # threading.get_ident() of it

    def __cinit__(self):
        self.ended = FutureState.__new__(FutureState)
        self.bell = PyThread_allocate_lock()
        if self.bell == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.bell, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.bell != NULL:
            PyThread_free_lock(self.bell)


@cython.final
@cython.no_gc_clear                 # an executor in the same garbage still asks its pool; cycles end in the initializer
@cython.auto_pickle(False)
cdef class Pool:
    """What an executor, its views and its threads share; without a reference to the executor, which may go first."""
    cdef Bucket buckets[CLASSES]    # of FutureState*, each counted
    cdef uint64_t sequence
    cdef Py_ssize_t queued
    cdef int limit                  # of threads
    cdef int handles                # executors and views alive
    cdef bint closed
    cdef str broken                 # why, or None
    cdef list workers               # all that were started
    cdef list idle                  # a stack: the last one to fall asleep has the warmest caches
    cdef Worker waking
    cdef int starting               # threads started that have not yet looked into the buckets
    cdef object growth              # lock: threads are started by one at a time, and none after the pool has closed
    cdef str prefix
    cdef object initializer
    cdef tuple initargs
    cdef object crew                # makes the calls, in processes (pysched/processes.py); None: the threads do

    def __dealloc__(self):
        cdef int cls
        cdef Ticket ticket
        for cls in range(CLASSES):
            while bucket_pop(&self.buckets[cls], &ticket):
                Py_DECREF(<FutureState> <PyObject*> ticket.item)
            bucket_free(&self.buckets[cls])


# ---- the buckets -----------------------------------------------------------------------------------------------------

cdef inline void pool_push(Pool pool, uint8_t cls, int32_t rank, FutureState future) noexcept:
    cdef Ticket ticket
    ticket.sequence = pool.sequence
    ticket.rank = rank
    ticket.cls = cls
    ticket.item = <uint64_t> <PyObject*> future
    ticket.queued_ns = 0  # of the lanes' statistics
    Py_INCREF(future)
    bucket_push(&pool.buckets[cls], &ticket)
    pool.sequence += 1
    pool.queued += 1


cdef inline FutureState pool_pop(Pool pool):
    """The first in the order (class, rank, sequence); None: empty."""
    cdef Ticket ticket
    cdef FutureState future
    cdef int cls
    if pool.queued == 0:
        return None
    for cls in range(CLASSES):
        if bucket_pop(&pool.buckets[cls], &ticket):
            pool.queued -= 1
            future = <FutureState> <PyObject*> ticket.item
            Py_DECREF(future)  # the buckets' reference; `future` has its own
            return future
    return None


# ---- waking and growing ----------------------------------------------------------------------------------------------

cdef inline void pool_wake(Pool pool):
    """Ring for what is queued, unless a ring is under way; see the top."""
    cdef Worker worker
    if pool.queued > 0 and pool.waking is None and len(pool.idle) > 0:
        worker = pool.idle.pop()
        pool.waking = worker
        PyThread_release_lock(worker.bell)


cdef void pool_wake_all(Pool pool):
    """Let every idle worker see that it may end."""
    cdef Worker worker
    while len(pool.idle) > 0:
        worker = pool.idle.pop()
        PyThread_release_lock(worker.bell)


cdef inline int pool_check(Pool pool) except -1:
    if pool.broken is not None:
        raise BrokenExecutor(pool.broken)
    if pool.closed:
        raise RuntimeError("cannot schedule new futures after shutdown")
    if interpreter_ends:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")
    return 0


cdef inline bint pool_is_short(Pool pool) noexcept:
    """Whether one more call would wait although a thread may still be started for it."""
    cdef Py_ssize_t coming = len(pool.idle) + pool.starting
    if pool.waking is not None:
        coming += 1
    return pool.queued >= coming and len(pool.workers) < pool.limit


cdef int pool_submit(Pool pool, uint8_t cls, int32_t rank, FutureState future) except -1:
    cdef bint short
    if pool_is_short(pool):
        with pool.growth:
            pool_check(pool)
            short = pool_is_short(pool)  # still, with the lock
            pool_push(pool, cls, rank, future)
            pool_wake(pool)
            if short:
                pool_grow(pool)
    else:
        # Nothing between the check and the push gives the GIL up, and at least one worker is there: one that decides
        # to end because the pool has closed finds the buckets empty in the same hold of the GIL.
        pool_check(pool)
        pool_push(pool, cls, rank, future)
        pool_wake(pool)
    return 0


cdef int pool_grow(Pool pool) except -1:
    """Start a thread; where the system grants none, those that run already do the work."""
    cdef Worker worker = Worker.__new__(Worker)
    worker.thread = threading.Thread(
        target=worker_main, args=(pool, worker), name=f"{pool.prefix}_{len(pool.workers)}", daemon=False)
    pool.workers.append(worker)
    pool.starting += 1
    live_workers[worker] = pool
    try:
        worker.thread.start()
    except (RuntimeError, MemoryError):  # any other exception is a signal's, and the thread runs
        pool.workers.remove(worker)
        pool.starting -= 1
        del live_workers[worker]
        if not pool.workers:
            pool_cancel_all(pool)
            raise
    return 0


cdef int pool_cancel_all(Pool pool) except -1:
    cdef FutureState future = pool_pop(pool)
    while future is not None:
        future.cancel()
        if future.stage == FUTURE_CANCELLED:
            future_claim(future)  # nobody else will tell those who wait
        future = pool_pop(pool)
    return 0


cdef int pool_break(Pool pool, str why) except -1:
    """Refuse new calls and fail those that wait."""
    cdef FutureState future
    pool.broken = why
    future = pool_pop(pool)
    while future is not None:
        if future_claim(future):
            future_end(future, FUTURE_RUNNING, FUTURE_FINISHED, None, BrokenExecutor(why))
        future = pool_pop(pool)
    pool_wake_all(pool)
    return 0


# ---- the threads -----------------------------------------------------------------------------------------------------

def worker_main(Pool pool, Worker worker):
    worker.ident = threading.get_ident()
    try:
        if pool.initializer is not None:
            try:
                pool.initializer(*pool.initargs)
            except BaseException:
                LOGGER.critical("Exception in initializer:", exc_info=True)
                pool.starting -= 1
                pool_break(pool, INITIALIZER_FAILED)
                return
        pool.starting -= 1
        worker_loop(pool, worker)
        if pool.crew is not None:
            pool.crew.dismiss()
    finally:
        live_workers.pop(worker, None)
        future_end(worker.ended, FUTURE_RUNNING, FUTURE_FINISHED, None, None)


cdef int worker_loop(Pool pool, Worker worker) except -1:
    """Exploit, wait."""
    while True:
        worker_exploit(pool, worker)
        # Found empty, and no code of anybody else has run since; see the top.
        if pool.closed or pool.handles == 0 or pool.broken is not None or interpreter_ends:
            return 0
        pool.idle.append(worker)
        with nogil:
            PyThread_acquire_lock(worker.bell, WAIT_LOCK)
        if pool.waking is worker:
            pool.waking = None


cdef int worker_exploit(Pool pool, Worker worker) except -1:
    """Make calls until the buckets are empty."""
    cdef FutureState future
    cdef int64_t now_ns, since_ns = now(CLOCK_BOOTTIME)
    while True:
        future = pool_pop(pool)
        if future is None:
            return 0
        worker.running = future
        pool_wake(pool)
        try:
            future_run(future)
        except BaseException:
            LOGGER.critical("Exception in worker", exc_info=True)
        worker.running = None
        future = None  # before the next look: the destructor of a result that nobody took may submit
        # Calls of C functions alone would never let another thread have the GIL.
        now_ns = now(CLOCK_BOOTTIME)
        if now_ns - since_ns > TURN_NS:
            with nogil:
                pass
            since_ns = now_ns


def finish_at_exit():
    """All calls are made and all threads joined before the interpreter ends."""
    global interpreter_ends
    cdef Worker worker
    interpreter_ends = True
    for pool in list(live_workers.values()):
        pool_wake_all(pool)
    for worker in list(live_workers):
        worker_join(worker)


cdef int worker_join(Worker worker) except -1:
    # A thread that has ended has been started, so join() can be asked.
    if worker.ended.stage < FUTURE_CANCELLED:
        future_wait(worker.ended, None)
    worker.thread.join()
    return 0


def break_after_fork():
    """In a child of os.fork(): no thread is there that would run or end anything, except the one that forked.

    The child has this state as it was when the parent held the GIL, so it is whole.  Locks may be held by threads that
    are no more: they are replaced.  Callbacks and watchers belong to the parent's event loops and threads."""
    cdef Worker worker
    cdef Pool pool
    me = threading.get_ident()
    for worker, pool in list(live_workers.items()):
        pool.growth = threading.RLock()
        pool.idle.clear()
        pool.waking = None
        if worker.ident == me:
            continue
        if worker.running is not None:
            future_break_after_fork(worker.running)
        worker.ended.sleepers = NULL
        future_end(worker.ended, FUTURE_RUNNING, FUTURE_FINISHED, None, None)
    for pool in set(live_workers.values()):
        pool.broken = FORKED
        while pool.queued:
            future_break_after_fork(pool_pop(pool))
    live_workers.clear()


cdef int future_break_after_fork(FutureState future) except -1:
    future.sleepers = NULL
    future.condition = None
    future.watchers = None
    future.callbacks = None
    future_end(future, FUTURE_RUNNING, FUTURE_FINISHED, None, BrokenExecutor(FORKED))
    return 0


# As concurrent.futures does: before the interpreter joins the threads that are no daemons, which would wait for ever.
threading._register_atexit(finish_at_exit)
os.register_at_fork(after_in_child=break_after_fork)


# ---- what Python sees ------------------------------------------------------------------------------------------------

@cython.no_gc_clear                 # __dealloc__ needs the pool, which refers to no executor
@cython.auto_pickle(False)
cdef class ExecutorState:
    cdef dict __dict__
    cdef object __weakref__
    cdef Pool pool
    cdef uint8_t cls
    cdef int32_t rank

    def __dealloc__(self):
        if self.pool is not None:
            self.pool.handles -= 1
            if self.pool.handles == 0:
                pool_wake_all(self.pool)

    def submit(self, fn, /, *args, **kwargs):
        cdef Future future = Future.__new__(Future)
        executor_check(self)
        if self.pool.crew is not None:
            self.pool.crew.check()
            future.fn = self.pool.crew.call
            future.args = (fn, args, kwargs)
        else:
            future.fn = fn
            future.args = args
            if kwargs:
                future.kwargs = kwargs
        pool_submit(self.pool, self.cls, self.rank, future)
        return future

    def at(self, priority, rank=0):
        """The same executor; what is submitted here has this priority, and inside it this rank (larger first)."""
        cdef Executor view = Executor.__new__(Executor)
        executor_check(self)
        view.cls = whole("priority", priority, 0, CLASSES - 1)
        view.rank = whole("rank", rank, -2**31, 2**31 - 1)
        view.pool = self.pool
        view.pool.handles += 1
        return view

    def shutdown(self, wait=True, *, cancel_futures=False):
        cdef Pool pool = self.pool
        cdef Worker worker
        executor_check(self)
        with pool.growth:
            pool.closed = True
        if cancel_futures:
            pool_cancel_all(pool)
        pool_wake_all(pool)
        if not wait:
            return
        me = threading.get_ident()
        for worker in pool.workers:
            if worker.ident == me:
                return  # a call cannot wait for its own end
        for worker in pool.workers:
            worker_join(worker)


cdef inline int executor_check(ExecutorState executor) except -1:
    if executor.pool is None:
        raise RuntimeError("Executor.__init__ was not called")
    return 0


@cython.no_gc_clear
@cython.auto_pickle(False)
cdef class Executor(ExecutorState, StandardExecutor):
    """A `concurrent.futures.Executor` of up to `workers` threads, or `processes`, that start as calls come, with
    priorities: `at()`."""

    def __init__(self, workers=None, *, processes=None, thread_name_prefix="", initializer=None, initargs=()):
        cdef Pool pool = Pool.__new__(Pool)
        if self.pool is not None:
            raise RuntimeError("this executor is initialized already")
        if processes is None:
            pool.limit = whole("workers", WORKERS if workers is None else workers, 1, THREADS_MAX)
        elif workers is None:
            pool.limit = whole("processes", processes, 1, PROCESSES_MAX)
        else:
            raise TypeError("workers and processes: give one of them; workers are threads")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        pool.prefix = thread_name_prefix or f"Executor-{next_number()}"
        pool.initargs = tuple(initargs)
        if processes is None:
            pool.initializer = initializer
        else:
            from pysched.processes import Crew  # with multiprocessing: not for those who want threads

            pool.crew = Crew(initializer, pool.initargs)
        pool.workers = []
        pool.idle = []
        pool.growth = threading.RLock()
        pool.handles = 1
        self.cls = 1  # MED
        self.pool = pool

    def map(self, fn, *iterables, chunksize=1, **keywords):
        """As the standard one; `chunksize` calls go to a process at once, threads take each call by itself."""
        executor_check(self)
        if self.pool.crew is None:
            return StandardExecutor.map(self, fn, *iterables, chunksize=chunksize, **keywords)
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return StandardExecutor.map(self, fn, *iterables, **keywords)
        from pysched.processes import map_in_chunks

        return map_in_chunks(partial(StandardExecutor.map, self, **keywords), fn, iterables, chunksize)

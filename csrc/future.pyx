# The future of one call: `concurrent.futures.Future` on C fields.
#
# The GIL guards every field.  CPython gives it up between two bytecodes, inside calls that block and inside code that
# a destructor, a collection or a comparison runs; it never does between two C statements of which neither calls
# Python.  So a check and the change that follows it are atomic here when no call stands between them, and what must be
# allocated is allocated before the check.
#
# What the standard future builds for each call is made when somebody first asks for it:
#   - result() and exception() sleep on a lock of the sleeping thread (Sleeper), so no Condition is needed;
#   - `_condition` and `_waiters` are properties: wait() and as_completed() of concurrent.futures use them.
# Once there is a condition, a stage that ends the future is entered only while holding it, because its holder may be
# between a look at `_state` and an entry in `_waiters`.  A future that ends before there is one has no watchers.

import threading
from concurrent.futures import Future as StandardFuture
from concurrent.futures import _base as standard

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_Append
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PY_LOCK_ACQUIRED,
    PY_LOCK_INTR,
    PyLockStatus,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.stdint cimport int64_t

from native cimport CLOCK_BOOTTIME, PyThread_acquire_lock_timed

cdef enum FutureStage:              # in this order: from CANCELLED on nothing more comes
    FUTURE_PENDING
    FUTURE_RUNNING
    FUTURE_CANCELLED
    FUTURE_CANCELLED_AND_NOTIFIED   # the executor has met it, watchers know
    FUTURE_FINISHED

cdef tuple STAGE_NAMES = (              # by FutureStage; the very strings of the standard library
    standard.PENDING, standard.RUNNING, standard.CANCELLED, standard.CANCELLED_AND_NOTIFIED, standard.FINISHED,
)
cdef object LOGGER = standard.LOGGER
cdef object CancelledError = standard.CancelledError
cdef object FutureTimeout = standard.TimeoutError  # a class of its own on Python 3.10
cdef object InvalidStateError = standard.InvalidStateError
cdef object new_condition = threading.Condition

cdef enum:
    SLEEP_MAX_S = 1_000_000_000         # beyond it a timeout is no timeout


cdef struct Sleeper:
    # A thread that waits for the end, on its own stack.  The lock is held from the start; whoever ends the future
    # unlinks the sleeper and releases the lock, both under the GIL, which the sleeper needs to go on: so the sleeper
    # and its lock outlive the release.
    PyThread_type_lock lock
    Sleeper* next


@cython.freelist(256)
@cython.auto_pickle(False)
cdef class FutureState:
    cdef dict __dict__                  # here, not in Future, so that both are of one size and share the free list
    cdef object __weakref__
    cdef FutureStage stage
    cdef Sleeper* sleepers
    cdef object fn                      # the call, until it runs or is cancelled
    cdef tuple args
    cdef dict kwargs                    # None: no keywords
    cdef object outcome                 # what it returned
    cdef object error                   # what it raised, or None
    cdef list callbacks                 # None: none yet
    cdef object condition               # None: nobody asked
    cdef list watchers                  # of wait() and as_completed(); None: none yet

    def cancel(self):
        if self.stage == FUTURE_RUNNING or self.stage == FUTURE_FINISHED:
            return False
        if self.stage == FUTURE_PENDING and not future_end(self, FUTURE_PENDING, FUTURE_CANCELLED, None, None):
            return self.cancelled()
        future_drop_call(self)
        return True

    def cancelled(self):
        return self.stage == FUTURE_CANCELLED or self.stage == FUTURE_CANCELLED_AND_NOTIFIED

    def running(self):
        return self.stage == FUTURE_RUNNING

    def done(self):
        return self.stage >= FUTURE_CANCELLED

    def result(self, timeout=None):
        if self.stage < FUTURE_CANCELLED:
            future_wait(self, timeout)
        if self.stage != FUTURE_FINISHED:
            raise CancelledError()
        if self.error is not None:
            raise self.error
        return self.outcome

    def exception(self, timeout=None):
        if self.stage < FUTURE_CANCELLED:
            future_wait(self, timeout)
        if self.stage != FUTURE_FINISHED:
            raise CancelledError()
        return self.error

    def add_done_callback(self, fn):
        cdef list first = [fn]
        if self.stage < FUTURE_CANCELLED:
            if self.callbacks is None:
                self.callbacks = first
            else:
                PyList_Append(self.callbacks, fn)
            return
        future_call_back(self, first)

    def set_running_or_notify_cancel(self):
        return future_claim(self)

    def set_result(self, result):
        future_finish(self, result, None)

    def set_exception(self, exception):
        future_finish(self, None, exception)

    # ---- the fields of the standard future, for the functions of concurrent.futures and for those who subclass

    @property
    def _condition(self):
        if self.condition is None:
            condition = new_condition()
            if self.condition is None:  # no other thread was faster
                self.condition = condition
        return self.condition

    @property
    def _state(self):
        return STAGE_NAMES[self.stage]

    @_state.setter
    def _state(self, name):
        self.stage = <FutureStage> STAGE_NAMES.index(name)
        if self.stage >= FUTURE_CANCELLED:
            future_rouse(self)

    @property
    def _result(self):
        return self.outcome

    @_result.setter
    def _result(self, result):
        self.outcome = result

    @property
    def _exception(self):
        return self.error

    @_exception.setter
    def _exception(self, exception):
        self.error = exception

    @property
    def _waiters(self):
        cdef list first = []
        if self.watchers is None:
            self.watchers = first
        return self.watchers

    @property
    def _done_callbacks(self):
        cdef list first = []
        if self.callbacks is None:
            self.callbacks = first
        return self.callbacks


@cython.auto_pickle(False)
cdef class Future(FutureState, StandardFuture):
    def __init__(self):
        pass  # not the standard one's, which would make all that is made late here


cdef void future_rouse(FutureState future) noexcept:
    """Let every thread go on that sleeps in result() or exception()."""
    cdef Sleeper* sleeper = future.sleepers
    cdef Sleeper* following
    future.sleepers = NULL
    while sleeper != NULL:
        following = sleeper.next
        sleeper.next = NULL
        PyThread_release_lock(sleeper.lock)
        sleeper = following


cdef int future_drop_call(FutureState future) except -1:
    # A destructor runs any code, and may come back here.  It finds its object gone: since Cython 3.3 an assignment lets
    # go of the old value after it has put the new one in place.
    future.fn = future.args = future.kwargs = None
    return 0


cdef void future_settle(FutureState future, FutureStage stage, object outcome, object error) noexcept:
    # The old values are None (somebody who set `_result` by hand has ended the future by hand): no destructor runs.
    future.outcome = outcome
    future.error = error
    future.stage = stage
    future_rouse(future)


cdef bint future_end(
    FutureState future, FutureStage latest, FutureStage stage, object outcome, object error
) except -1:
    """Enter a stage that ends the future, from `latest` or an earlier one; False: it is past that."""
    cdef list callbacks
    if future.condition is None:
        if future.stage > latest:
            return False
        future_settle(future, stage, outcome, error)
    else:
        with future.condition:
            if future.stage > latest:
                return False
            future_settle(future, stage, outcome, error)
            if stage == FUTURE_FINISHED and future.watchers is not None:
                for watcher in future.watchers:
                    if error is None:
                        watcher.add_result(future)
                    else:
                        watcher.add_exception(future)
            future.condition.notify_all()
    if future.callbacks is not None:
        callbacks = future.callbacks
        future.callbacks = None
        future_call_back(future, callbacks)
    return True


cdef int future_call_back(FutureState future, list callbacks) except -1:
    for callback in callbacks:
        try:
            callback(future)
        except Exception:
            LOGGER.exception("exception calling callback for %r", future)
    return 0


cdef bint future_claim(FutureState future) except -1:
    """The executor's first step: True: run the call; False: it was cancelled, and watchers know now."""
    if future.stage == FUTURE_PENDING:
        future.stage = FUTURE_RUNNING
        return True
    if future.stage == FUTURE_CANCELLED:
        if future.condition is None:
            future.stage = FUTURE_CANCELLED_AND_NOTIFIED
            return False
        with future.condition:
            future.stage = FUTURE_CANCELLED_AND_NOTIFIED
            if future.watchers is not None:
                for watcher in future.watchers:
                    watcher.add_cancelled(future)
        return False
    LOGGER.critical("Future %s in unexpected state: %s", id(future), STAGE_NAMES[future.stage])
    raise RuntimeError("Future in unexpected state")


cdef int future_wait(FutureState future, object timeout) except -1:
    """Sleep until the future has ended, without the GIL; raise after `timeout` seconds (None: never)."""
    cdef Sleeper sleeper
    cdef int64_t deadline_ns = -1, rest_us = -1
    cdef double timeout_s
    cdef PyLockStatus how
    if timeout is not None:
        timeout_s = timeout
        if timeout_s < SLEEP_MAX_S:
            deadline_ns = now(CLOCK_BOOTTIME) + <int64_t> (max(timeout_s, 0.0) * 1e9)
    sleeper.lock = PyThread_allocate_lock()
    if sleeper.lock == NULL:
        raise MemoryError
    PyThread_acquire_lock(sleeper.lock, NOWAIT_LOCK)
    sleeper.next = future.sleepers
    future.sleepers = &sleeper
    try:
        while future.stage < FUTURE_CANCELLED:
            if deadline_ns >= 0:
                rest_us = max((deadline_ns - now(CLOCK_BOOTTIME)) // 1000, 0)
            with nogil:
                how = PyThread_acquire_lock_timed(sleeper.lock, rest_us, 1)
            if how == PY_LOCK_INTR:
                PyErr_CheckSignals()
            elif how != PY_LOCK_ACQUIRED:
                break
    finally:
        future_forget(future, &sleeper)
        PyThread_free_lock(sleeper.lock)
    if future.stage < FUTURE_CANCELLED:
        raise FutureTimeout()
    if future.condition is not None:
        # Whoever ends a future by hand sets `_state` and `_result` one after the other while holding this.
        with future.condition:
            pass
    return 0


cdef void future_forget(FutureState future, Sleeper* sleeper) noexcept:
    """Unlink a sleeper that leaves by itself; nothing if it was roused."""
    cdef Sleeper** link = &future.sleepers
    while link[0] != NULL:
        if link[0] == sleeper:
            link[0] = sleeper.next
            return
        link = &link[0].next


cdef int future_run(FutureState future) except -1:
    """Make the call, unless it was cancelled.  Raises only what a callback, a watcher or a misused future does."""
    cdef object fn, outcome
    cdef tuple args
    cdef dict kwargs
    if not future_claim(future):
        return 0
    fn, args, kwargs = future.fn, future.args, future.kwargs
    future.fn = future.args = future.kwargs = None
    try:
        if kwargs is not None:
            outcome = fn(*args, **kwargs)
        elif args:
            outcome = fn(*args)
        else:
            outcome = fn()
    except BaseException as error:
        fn = args = kwargs = None  # what the call was made of ends before the future does
        future_finish(future, None, error)
    else:
        fn = args = kwargs = None
        future_finish(future, outcome, None)
    return 0


cdef int future_finish(FutureState future, object outcome, object error) except -1:
    if not future_end(future, FUTURE_RUNNING, FUTURE_FINISHED, outcome, error):
        raise InvalidStateError(f"{STAGE_NAMES[future.stage]}: {future!r}")
    return 0

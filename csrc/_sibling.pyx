# cython: language_level=3, boundscheck=False, wraparound=False
"""The native half of `ml/zygote.py`: wait for requests of the node, fork jobs that are the node's children."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport strlen
from posix.resource cimport RUSAGE_CHILDREN, RUSAGE_SELF, getrusage, rusage
from posix.types cimport pid_t
from posix.unistd cimport close

from native cimport POLLIN, STEP_CLONE, pollfd, ppoll
from sibling cimport (
    Inbox,
    Sibling,
    call_begin,
    call_end,
    call_leave_output,
    fork_sibling,
    job_begin,
    receive_start,
    reply_start,
    sibling_prepare,
    worker_socket,
)

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

__all__ = ["WORKER_SOCKET", "available", "end", "fork", "is_worker", "next_call", "wait"]

WORKER_SOCKET = worker_socket

cdef enum:
    SOCKETS_MAX = 256   # as many as there can be lanes

cdef Sibling own
cdef Inbox inbox
cdef bint worker = False
cdef bint acknowledged = False      # the end of the last call
cdef int64_t spent_ns = 0           # of the processor, before this call


def available():
    return sibling_prepare(&own)


def wait(sockets):
    cdef pollfd[SOCKETS_MAX] watched
    cdef int i, ready = -1, count = len(sockets)
    if count > SOCKETS_MAX:
        raise ValueError(f"sockets: {count} given; at most {SOCKETS_MAX} can be watched")
    for i in range(count):
        watched[i].fd = sockets[i]
        watched[i].events = POLLIN
        watched[i].revents = 0
    with nogil:
        ready = ppoll(watched, count, NULL, NULL)
    if ready < 0 and errno != EINTR:
        raise OSError(errno, "the sockets of the node cannot be watched")
    return [watched[i].fd for i in range(count) if ready > 0 and watched[i].revents]


cdef tuple texts_of(char** cursor, uint32_t count):
    cdef list texts = []
    cdef size_t size
    cdef uint32_t _
    for _ in range(count):
        size = strlen(cursor[0])
        texts.append(cursor[0][:size])
        cursor[0] += size + 1
    return tuple(texts)


cdef tuple job():
    cdef char* cursor = inbox.texts
    words = texts_of(&cursor, inbox.request.words)
    return words, texts_of(&cursor, inbox.request.entries)


def fork(int socket, int table):
    global worker
    cdef pid_t pid
    cdef int handed
    cdef int received = receive_start(socket, &inbox, &handed), error
    if received < 0:
        raise OSError(errno, "a request of the node cannot be read")
    if received == 0:
        raise EOFError
    PyOS_BeforeFork()
    pid = fork_sibling(&own)
    if pid == 0:
        job_begin(&inbox, socket, table, handed)
        worker = handed >= 0
        PyOS_AfterFork_Child()
        return job()
    error = errno
    PyOS_AfterFork_Parent()
    if handed >= 0:
        close(handed)
    if pid < 0 and not reply_start(socket, inbox.request.token, 0, STEP_CLONE, error):
        raise EOFError
    return None


def is_worker():
    return worker


cdef int64_t spent():
    cdef rusage own, others
    getrusage(RUSAGE_SELF, &own)
    getrusage(RUSAGE_CHILDREN, &others)
    return ((own.ru_utime.tv_sec + own.ru_stime.tv_sec + others.ru_utime.tv_sec + others.ru_stime.tv_sec)
            * <int64_t> 1_000_000_000
            + (own.ru_utime.tv_usec + own.ru_stime.tv_usec + others.ru_utime.tv_usec + others.ru_stime.tv_usec) * 1000)


def end(int code):
    global acknowledged, spent_ns
    cdef int64_t now_ns = spent()
    cdef rusage usage
    getrusage(RUSAGE_SELF, &usage)
    call_leave_output()
    acknowledged = False
    if not call_end(inbox.request.token, (code & 0xFF) << 8, now_ns - spent_ns, usage.ru_maxrss):
        return False
    spent_ns = now_ns
    return True


def next_call():
    global acknowledged, worker, spent_ns
    cdef int handed, received
    if not worker:  # an image that was executed in the place of the one before
        worker = acknowledged = True
        spent_ns = spent()
    received = receive_start(worker_socket, &inbox, &handed)
    if received <= 0:
        raise EOFError(acknowledged)
    if received == 2:
        acknowledged = True
        return None
    return job() if call_begin(&inbox) else None

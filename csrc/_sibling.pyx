# cython: language_level=3, boundscheck=False, wraparound=False
"""The native half of `ml/zygote.py`: wait for requests of the node, fork jobs that are the node's children."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport strlen
from posix.types cimport pid_t

from native cimport POLLIN, STEP_CLONE, pollfd, ppoll
from sibling cimport Inbox, Sibling, fork_sibling, job_begin, receive_start, reply_start, sibling_prepare

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

__all__ = ["available", "fork", "wait"]

cdef enum:
    SOCKETS_MAX = 256   # as many as there can be lanes

cdef Sibling own
cdef Inbox inbox


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


def fork(int socket, int table):
    cdef pid_t pid
    cdef int received = receive_start(socket, &inbox), error
    cdef char* cursor
    if received < 0:
        raise OSError(errno, "a request of the node cannot be read")
    if received == 0:
        raise EOFError
    PyOS_BeforeFork()
    pid = fork_sibling(&own)
    if pid == 0:
        job_begin(&inbox, socket, table)
        PyOS_AfterFork_Child()
        cursor = inbox.texts
        words = texts_of(&cursor, inbox.request.words)
        return words, texts_of(&cursor, inbox.request.entries)
    error = errno
    PyOS_AfterFork_Parent()
    if pid < 0 and not reply_start(socket, inbox.request.token, 0, STEP_CLONE, error):
        raise EOFError
    return None

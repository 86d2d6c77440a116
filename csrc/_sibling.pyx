# cython: language_level=3, boundscheck=False, wraparound=False
"""The native half of `ml/zygote.py`: wait for requests of the node, fork jobs that are the node's children.

A job pays for each page that it is the first to touch after the fork, by the copy of it, and Python touches pages by
counting references.  So what can be done for a job without Python objects is done here.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp, strchr, strcmp, strlen, strncmp
from posix.resource cimport RUSAGE_CHILDREN, RUSAGE_SELF, getrusage, rusage
from posix.time cimport CLOCK_MONOTONIC
from posix.stdlib cimport setenv, unsetenv
from posix.types cimport pid_t
from posix.unistd cimport close

from native cimport POLLIN, STEP_CLONE, array, pollfd, ppoll
from sibling cimport (
    Inbox,
    Sibling,
    call_begin,
    call_end,
    call_leave_output,
    clock_ns,
    fork_sibling,
    job_begin,
    random_bytes,
    receive_start,
    reply_start,
    sibling_prepare,
    worker_socket,
)

cdef extern from "unistd.h" nogil:
    char** environ

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

__all__ = [
    "WORKER_SOCKET", "available", "end", "is_drawn", "is_worker", "next_call", "own_generator", "peak_kb", "serve",
    "wait",
]

WORKER_SOCKET = worker_socket

cdef enum:
    SOCKETS_MAX = 256   # as many as there can be lanes

cdef enum:
    TWISTER_WORDS = 624

cdef struct Twister:    # numpy's mt19937_state
    uint32_t[TWISTER_WORDS] key
    int position

cdef Sibling own
cdef Inbox inbox
cdef tuple inherited = ()           # NAME=value of the zygote's environment; what the next one points into
cdef array[const char*] entries
cdef Twister* twister = NULL        # of numpy's global generator; NULL: it is not known to be ours to seed
cdef Twister seeded                 # as we left it
cdef bint worker = False
cdef bint acknowledged = False      # the end of the last call
cdef int64_t spent_ns = 0           # of the processor, before this call


def available():
    return sibling_prepare(&own)


def own_generator(capsule, bytes key, int position):
    """Whether memory is laid out as it should be is seen by what the generator says of itself."""
    global twister
    cdef Twister* found
    if len(key) != sizeof(found.key) or not PyCapsule_IsValid(capsule, b"BitGenerator"):
        return False
    found = (<Twister**> PyCapsule_GetPointer(capsule, b"BitGenerator"))[0]  # a bitgen_t begins with it
    if memcmp(found.key, <const char*> key, sizeof(found.key)) != 0 or found.position != position:
        return False
    twister = found
    return True


cdef void seed_generator() noexcept nogil:
    """Other numbers than all other jobs get."""
    global seeded
    random_bytes(twister.key, sizeof(twister.key))
    twister.key[0] |= <uint32_t> 1 << 31  # not all zero
    twister.position = TWISTER_WORDS
    seeded = twister[0]


def is_drawn():
    return twister == NULL or memcmp(twister, &seeded, sizeof(seeded)) != 0


cdef int watch(pollfd* watched, sockets) except -1:
    """How many sockets there are."""
    cdef int i, count = len(sockets)
    if count > SOCKETS_MAX:
        raise ValueError(f"sockets: {count} given; at most {SOCKETS_MAX} can be watched")
    for i in range(count):
        watched[i].fd = sockets[i]
        watched[i].events = POLLIN
        watched[i].revents = 0
    return count


cdef int await_any(pollfd* watched, int count) except -1:
    """How many have something, perhaps none."""
    cdef int ready
    with nogil:
        ready = ppoll(watched, count, NULL, NULL)
    if ready < 0 and errno != EINTR:
        raise OSError(errno, "the sockets of the node cannot be watched")
    return max(ready, 0)


def wait(sockets):
    cdef pollfd[SOCKETS_MAX] watched
    return await_any(watched, watch(watched, sockets)) > 0


cdef tuple texts_of(char** cursor, uint32_t count):
    cdef list texts = []
    cdef size_t size
    cdef uint32_t _
    for _ in range(count):
        size = strlen(cursor[0])
        texts.append(cursor[0][:size])
        cursor[0] += size + 1
    return tuple(texts)


cdef void note_environment(tuple given):
    """In the zygote: what a job finds, and need not change."""
    global inherited
    cdef bytes entry
    inherited = given
    entries.clear()
    for entry in given:
        entries.push_back(<const char*> entry)


cdef bint stands(const char* entry) noexcept nogil:
    """Whether it is there already, for Python and for libc."""
    cdef char** ours = environ
    cdef size_t i
    for i in range(entries.size()):
        if strcmp(entries[i], entry) == 0:
            while ours[0] != NULL:
                if strcmp(ours[0], entry) == 0:
                    return True
                ours += 1
    return False


cdef bint is_wanted(const char* entry, const char* texts) noexcept nogil:
    """Whether a variable of ours is among the request's, with whatever value."""
    cdef size_t size = strchr(entry, b"="[0]) - entry + 1
    cdef uint32_t _
    for _ in range(inbox.request.entries):
        if strncmp(texts, entry, size) == 0:
            return True
        texts += strlen(texts) + 1
    return False


cdef int adopt_environment(char* texts, dict mirror) except -1:
    """In the job: change ours into the request's; `mirror` is what `os.environ` keeps."""
    cdef char* value
    cdef size_t i
    cdef uint32_t _
    cdef bytes name
    for i in range(entries.size()):
        if not is_wanted(entries[i], texts):
            name = entries[i][:strchr(entries[i], b"="[0]) - entries[i]]
            unsetenv(name)
            mirror.pop(name, None)
    for _ in range(inbox.request.entries):
        value = strchr(texts, b"="[0])
        if value != NULL and not stands(texts):
            name = texts[:value - texts]
            value += 1
            setenv(name, value, 1)
            mirror[name] = <bytes> value
        texts += strlen(texts) + 1
    return 0


cdef int adopt_again(char* texts, dict mirror) except -1:
    """In a worker: the same, whatever the call before has made of it."""
    cdef set gone = set(mirror)
    cdef char* value
    cdef uint32_t _
    cdef bytes name, given
    for _ in range(inbox.request.entries):
        value = strchr(texts, b"="[0])
        if value != NULL:
            name = texts[:value - texts]
            given = <bytes> (value + 1)
            gone.discard(name)
            if mirror.get(name) != given:
                setenv(name, value + 1, 1)
                mirror[name] = given
        texts += strlen(texts) + 1
    for name in gone:
        unsetenv(name)
        del mirror[name]
    return 0


cdef bint fork(int socket, int table) except -1:
    """Take one request and fork its job; True in the job."""
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
        if twister != NULL:
            seed_generator()
        return True
    error = errno
    PyOS_AfterFork_Parent()
    if handed >= 0:
        close(handed)
    if pid < 0 and not reply_start(socket, inbox.request.token, 0, STEP_CLONE, error):
        raise EOFError
    return False


def serve(sockets, int table, int64_t until_ns, tuple environment, dict mirror):
    cdef pollfd[SOCKETS_MAX] watched
    cdef int i, count = watch(watched, sockets)
    cdef char* cursor = inbox.texts
    note_environment(environment)
    while True:
        if await_any(watched, count) == 0:
            continue
        if clock_ns(CLOCK_MONOTONIC) >= until_ns:
            return None
        for i in range(count):
            if watched[i].revents and fork(watched[i].fd, table):
                words = texts_of(&cursor, inbox.request.words)
                adopt_environment(cursor, mirror)
                return words


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


def peak_kb():
    cdef rusage usage
    getrusage(RUSAGE_SELF, &usage)
    return usage.ru_maxrss


def next_call(dict mirror):
    global acknowledged, worker, spent_ns
    cdef int handed, received
    cdef char* cursor = inbox.texts
    if not worker:  # an image that was executed in the place of the one before
        worker = acknowledged = True
        spent_ns = spent()
    received = receive_start(worker_socket, &inbox, &handed)
    if received <= 0:
        raise EOFError(acknowledged)
    if received == 2:
        acknowledged = True
        return None
    if not call_begin(&inbox):
        return None
    words = texts_of(&cursor, inbox.request.words)
    adopt_again(cursor, mirror)
    return words

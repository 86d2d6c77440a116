# cython: language_level=3, boundscheck=False, wraparound=False
"""The native half of `ml/zygote.py`: wait for requests of the node, fork jobs that are the node's children.

A job pays for each page that it is the first to touch after the fork, by the copy of it, and Python touches pages by
counting references.  So what can be done for a job without Python objects is done here.
"""

cimport cython
from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.errno cimport EINTR, ESTALE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strchr, strcmp, strlen, strncmp
from libcpp.atomic cimport memory_order_acquire
from posix.resource cimport RUSAGE_SELF, getrusage, rusage
from posix.time cimport CLOCK_MONOTONIC
from posix.stdlib cimport setenv, unsetenv
from posix.types cimport pid_t
from posix.unistd cimport F_OK, access, unlink

from native cimport POLLIN, STEP_CLONE, array, pollfd, ppoll
from sibling cimport (
    CALL_LEFT_RESULT,
    CallEnd,
    Handed,
    Inbox,
    Sibling,
    Source,
    WorkerState,
    call_begin,
    call_end,
    call_leave_output,
    call_refuse,
    call_result_max,
    children_look,
    clock_ns,
    fork_sibling,
    handed_close,
    job_begin,
    logs_remove,
    random_bytes,
    receive_start,
    reply_start,
    sibling_prepare,
    source_changed,
    source_now,
    worker_socket,
)

cdef extern from "unistd.h" nogil:
    char** environ

cdef extern from "stdlib.h" nogil:
    int putenv(char* text)

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

__all__ = [
    "RESULT_BYTES", "Files", "are_drawn", "available", "begin", "end", "is_worker", "last_is_heard", "look",
    "note_seeds", "own_generator", "own_random", "receive", "refuse", "remove_logs", "result_path", "serve",
]

RESULT_BYTES = call_result_max

cdef enum:
    SOCKETS_MAX = 256   # as many as there can be lanes

cdef enum:
    TWISTER_WORDS = 624

cdef struct NumpyTwister:   # numpy's mt19937_state
    uint32_t[TWISTER_WORDS] key
    int position

cdef struct PythonTwister:  # what CPython's RandomObject has behind its head
    int position
    uint32_t[TWISTER_WORDS] key

cdef Sibling own
cdef Inbox inbox
cdef tuple inherited = ()           # NAME=value of the zygote's environment; what the next one points into
cdef array[const char*] entries
# Generators of which it is known that they are laid out as we think; NULL: they are not ours to seed.
cdef NumpyTwister* numpy_twister = NULL     # of numpy.random's functions
cdef PythonTwister* python_twister = NULL   # of random's
cdef NumpyTwister numpy_seeded              # as we left them
cdef PythonTwister python_seeded
cdef WorkerState worker
cdef uint64_t last_call = 0         # that has begun here, by its number
cdef rusage usage                   # of this process, at the last look
cdef int64_t spent_ns = 0           # of the processor, before this call
cdef list told = []                 # Variables of the last call


cdef class Files:
    """In memory that is no Python object's, so that a look at it from a forked process touches no page."""
    cdef array[const Source*] sources
    cdef set known

    def __cinit__(self):
        self.known = set()

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.sources.size()):
            free(<void*> self.sources[i])

    def add(self, bytes path):
        cdef size_t size = len(path)
        cdef char* place
        cdef Source* source
        if path in self.known:
            return
        source = <Source*> malloc(sizeof(Source) + size + 1)
        if source == NULL:
            raise MemoryError
        place = <char*> (source + 1)
        memcpy(place, <const char*> path, size)
        place[size] = 0
        source[0] = source_now(place)
        self.sources.push_back(source)
        self.known.add(path)

    def changed(self):
        cdef size_t i
        for i in range(self.sources.size()):
            if source_changed(self.sources[i][0]):
                return True
        return False


def available():
    return sibling_prepare(&own)


def own_generator(capsule, bytes key, int position):
    """Whether memory is laid out as it should be is seen by what the generator says of itself."""
    global numpy_twister
    cdef NumpyTwister* found
    if len(key) != sizeof(found.key) or not PyCapsule_IsValid(capsule, b"BitGenerator"):
        return False
    found = (<NumpyTwister**> PyCapsule_GetPointer(capsule, b"BitGenerator"))[0]  # a bitgen_t begins with it
    if memcmp(found.key, <const char*> key, sizeof(found.key)) != 0 or found.position != position:
        return False
    numpy_twister = found
    return True


def own_random(generator, bytes key, int position):
    global python_twister
    cdef PythonTwister* found = <PythonTwister*> (<char*> <PyObject*> generator + sizeof(PyObject))
    if len(key) != sizeof(found.key) or generator.__sizeof__() < sizeof(PyObject) + sizeof(PythonTwister):
        return False
    if memcmp(found.key, <const char*> key, sizeof(found.key)) != 0 or found.position != position:
        return False
    python_twister = found
    return True


cdef inline void draw_key(uint32_t* key) noexcept nogil:
    random_bytes(key, TWISTER_WORDS * sizeof(uint32_t))
    key[0] |= <uint32_t> 1 << 31  # not all zero


cdef void seed_generators() noexcept nogil:
    """Other numbers than all other jobs get."""
    global numpy_seeded, python_seeded
    if numpy_twister != NULL:
        draw_key(numpy_twister.key)
        numpy_twister.position = TWISTER_WORDS
        numpy_seeded = numpy_twister[0]
    if python_twister != NULL:
        draw_key(python_twister.key)
        python_twister.position = TWISTER_WORDS
        python_seeded = python_twister[0]


def note_seeds():
    """In a worker: they have been seeded by themselves."""
    global numpy_seeded, python_seeded
    if numpy_twister != NULL:
        numpy_seeded = numpy_twister[0]
    if python_twister != NULL:
        python_seeded = python_twister[0]


def are_drawn():
    return (
        python_twister == NULL or memcmp(python_twister, &python_seeded, sizeof(python_seeded)) != 0,
        numpy_twister == NULL or memcmp(numpy_twister, &numpy_seeded, sizeof(numpy_seeded)) != 0,
    )


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


@cython.final
cdef class Variable:
    """Of a worker: one that it was told, in memory of its own that libc's list of variables points to, so that another
    value takes no search and no memory more."""
    cdef bytes name
    cdef bytes value    # the very object that is in the mirror, unless a call has changed that
    cdef char* text     # NAME=value
    cdef size_t size
    cdef size_t room

    def __cinit__(self, bytes name):
        self.name = name

    def __dealloc__(self):
        free(self.text)

    cdef inline bint says(self, const char* text, size_t size) noexcept:
        return self.size == size and memcmp(self.text, text, size) == 0

    cdef inline bint is_named(self, const char* text, size_t size) noexcept:
        return <size_t> len(self.name) == size and memcmp(<const char*> self.name, text, size) == 0

    cdef int take(self, const char* text, size_t size, dict mirror) except -1:
        cdef char* before = self.text
        cdef size_t head = <size_t> len(self.name) + 1
        if size >= self.room:
            self.room = 2 * size + 1
            self.text = <char*> malloc(self.room)
            if self.text == NULL:
                self.text, self.room = before, 0
                raise MemoryError
        memcpy(self.text, text, size)
        self.text[size] = 0
        self.size = size
        if (self.text != before or not is_listed(before)) and putenv(self.text) != 0:
            raise MemoryError
        if self.text != before:
            free(before)
        self.value = self.text[head:size]
        mirror[self.name] = self.value
        return 0


cdef bint is_listed(const char* text) noexcept nogil:
    """Whether libc's list has this very pointer."""
    cdef char** entry = environ
    while entry[0] != NULL:
        if entry[0] == text:
            return True
        entry += 1
    return False


cdef Variable variable_of(const char* text, size_t size, Py_ssize_t place):
    """That of the last call, mostly at the same place."""
    cdef Variable found
    if place < len(told):
        found = <Variable> told[place]
        if found.is_named(text, size):
            return found
    for found in told:
        if found.is_named(text, size):
            return found
    return Variable(text[:size])


cdef int adopt_again(char* texts, dict mirror) except -1:
    """In a worker: the same, whatever the call before has made of it.  Mostly all is as this left it but for what is
    each call's own."""
    global told
    cdef list now = []
    cdef Variable variable
    cdef const char* sign
    cdef size_t size
    cdef uint32_t _
    for _ in range(inbox.request.entries):
        size = strlen(texts)
        sign = strchr(texts, b"="[0])
        if sign != NULL:
            variable = variable_of(texts, sign - texts, len(now))
            if (not variable.says(texts, size)
                    or PyDict_GetItem(mirror, variable.name) != <PyObject*> variable.value):
                variable.take(texts, size, mirror)
            now.append(variable)
        texts += size + 1
    if len(mirror) != len(now):
        for name in set(mirror).difference([(<Variable> each).name for each in now]):
            unsetenv(<bytes> name)
            del mirror[name]
    told = now  # what is not there any more is freed, after libc has let go of it
    return 0


cdef bint fork(int socket, int table) except -1:
    """Take one request and fork its job; True in the job."""
    global last_call
    cdef pid_t pid
    cdef Handed handed
    cdef int received = receive_start(socket, &inbox, &handed), error
    if received < 0:
        if errno == EINTR:
            return False
        raise OSError(errno, "a request of the node cannot be read")
    if received == 0:
        raise EOFError
    PyOS_BeforeFork()
    pid = fork_sibling(&own)
    if pid == 0:
        job_begin(&inbox, socket, table, &handed, &worker)
        last_call = inbox.request.call
        PyOS_AfterFork_Child()
        seed_generators()
        return True
    error = errno
    PyOS_AfterFork_Parent()
    handed_close(&handed)
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


# ---- workers ---------------------------------------------------------------------------------------------------------

def is_worker():
    return worker.desk != NULL


cdef const char* variable(const char* name) noexcept nogil:
    """In the request's environment, whatever the call has made of ours; NULL: it is not there."""
    cdef const char* texts = inbox.texts
    cdef size_t size = strlen(name)
    cdef uint32_t _
    for _ in range(inbox.request.words):
        texts += strlen(texts) + 1
    for _ in range(inbox.request.entries):
        if strncmp(texts, name, size) == 0:
            return texts + size
        texts += strlen(texts) + 1
    return NULL


cdef bint is_there(const char* path) noexcept nogil:
    return path != NULL and access(path, F_OK) == 0


cdef inline int64_t time_of(const rusage* usage) noexcept nogil:
    return ((usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * <int64_t> 1_000_000_000
            + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000)


def look():
    children_look(&worker.children)
    getrusage(RUSAGE_SELF, &usage)
    return worker.children.there, usage.ru_maxrss


def result_path():
    cdef const char* path = variable(b"PYSCHED_RESULT=")
    return None if path == NULL else <bytes> path


def end(int code, bytes result):
    global spent_ns
    cdef CallEnd told
    cdef int64_t now_ns = time_of(&usage) + time_of(&worker.children.usage)
    cdef const char* path = variable(b"PYSCHED_RESULT=")
    cdef const char* progress = variable(b"PYSCHED_PROGRESS=")
    memset(&told, 0, sizeof(told))
    told.token = inbox.request.token
    told.status = (code & 0xFF) << 8
    told.cpu_ns = now_ns - spent_ns
    told.max_rss_kb = usage.ru_maxrss
    if is_there(progress):
        unlink(progress)
    if is_there(path):  # by the call itself, or because what it returned is long
        if result is None:
            told.left = CALL_LEFT_RESULT
        else:
            unlink(path)
    told.left |= call_leave_output(&worker, told.left != 0)
    if not call_end(&told, <const char*> result if result is not None else NULL, 0 if result is None else len(result)):
        return False
    spent_ns = now_ns
    return True


def receive():
    cdef Handed handed
    cdef int received
    while True:
        with nogil:
            received = receive_start(worker_socket, &inbox, &handed)
        if received > 0:
            handed_close(&handed)
            return True
        if received == 0 or errno != EINTR:
            return False
        PyErr_CheckSignals()


def last_is_heard():
    return worker.desk.heard.load(memory_order_acquire) >= last_call


def refuse():
    call_refuse(&inbox, STEP_CLONE, ESTALE)


def begin(dict mirror):
    global last_call
    cdef char* cursor = inbox.texts
    if not call_begin(&inbox, &worker):
        return None
    last_call = inbox.request.call
    words = texts_of(&cursor, inbox.request.words)
    adopt_again(cursor, mirror)
    return words


def remove_logs():
    logs_remove(&worker.logs)

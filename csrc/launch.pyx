# `Launch`: what one attempt needs to start, checked when it is made.

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memchr, strncmp

cdef enum:
    RESOURCE_CPU        # thousandths of a processor
    RESOURCE_MEMORY     # bytes
    RESOURCE_GPU        # thousandths of a device
    RESOURCES

cdef enum:
    DEVICES_MAX = 64
    DEVICE_NAME_BYTES = 64
    WHOLE = 1000        # thousandths

cdef int64_t LONGEST_NS = 4_000_000_000_000_000_000  # 126 years: a deadline that never overflows


cdef int64_t to_ns(str field, double seconds) except -1:
    """Seconds as a duration that fits; ValueError: negative or not a number."""
    if not seconds >= 0:
        raise ValueError(f"{field}: {seconds} is no duration; use seconds ≥ 0")
    if seconds >= LONGEST_NS / 1e9:
        return LONGEST_NS
    return <int64_t> (seconds * 1e9)


cdef object whole(str field, object value, object low, object high):
    """An int in low … high; bool is not taken for one."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field}: {value!r} is no int")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} is out of range; use {low} … {high}")
    return value


cdef bytes text_of(str field, object value):
    """Bytes that C can hold, not empty."""
    if type(value) is not bytes:
        raise TypeError(f"{field}: {value!r} is no bytes")
    if memchr(<const char*> value, 0, len(<bytes> value)) != NULL:
        raise ValueError(f"{field}: {value!r} contains a NUL byte; no process can receive one")
    return <bytes> value


cdef bytes path_of(str field, object value):
    if not text_of(field, value):
        raise ValueError(f"{field}: is empty; give a path")
    return <bytes> value


cdef tuple texts_of(str field, object values):
    if isinstance(values, (bytes, str)):
        raise TypeError(f"{field}: {values!r} is no list of bytes")
    return tuple([text_of(field, value) for value in values])


cdef inline bint is_entry(bytes text) noexcept:
    """NAME=value, and not of the lane's own variable."""
    cdef const char* start = text
    cdef const void* end = memchr(start, 61, len(text))  # =
    return end != NULL and end != start and (start[0] != 80 or strncmp(start, b"PYSCHED_LANE=", 13) != 0)


cdef tuple needed(str field, tuple values):
    if not values:
        raise ValueError(f"{field}: is empty; give at least one")
    return values


cdef int64_t timeout_of(object timeout_s) except -1:
    """0: none."""
    cdef int64_t timeout_ns
    if timeout_s is None:
        return 0
    timeout_ns = to_ns("timeout_s", timeout_s)
    if timeout_ns == 0:
        raise ValueError(f"timeout_s: {timeout_s} is no limit; use seconds > 0, or None")
    return timeout_ns


cdef tuple entries_of(str field, object values):
    cdef tuple entries = texts_of(field, values)
    for entry in entries:
        if not is_entry(<bytes> entry):
            raise ValueError(f"{field}: {entry!r} is no entry; use b'NAME=value' with a name other than PYSCHED_LANE")
    return entries


cdef object UINT64_MAX = 2**64 - 1


@cython.final
@cython.auto_pickle(False)
cdef class Pattern:
    cdef readonly tuple argv
    cdef readonly tuple candidates
    cdef readonly tuple env
    cdef readonly bytes cwd
    cdef readonly object timeout_s
    cdef readonly double grace_s
    cdef int64_t timeout_ns
    cdef int64_t grace_ns

    def __cinit__(self, *, argv, candidates, env, cwd, timeout_s=None, grace_s=5.0):
        self.argv = needed("argv", texts_of("argv", argv))
        self.candidates = needed("candidates", texts_of("candidates", candidates))
        for path in self.candidates:
            path_of("candidates", path)
        self.env = entries_of("env", env)
        self.cwd = path_of("cwd", cwd)
        self.timeout_s = timeout_s
        self.timeout_ns = timeout_of(timeout_s)
        self.grace_s = grace_s
        self.grace_ns = to_ns("grace_s", grace_s)

    def __repr__(self):
        return f"<Pattern {self.argv!r}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(256)
cdef class Launch:
    cdef readonly uint64_t handle
    cdef readonly uint8_t priority
    cdef readonly int32_t rank
    cdef readonly uint64_t sequence
    cdef readonly tuple argv
    cdef readonly tuple candidates
    cdef readonly tuple env
    cdef readonly bytes cwd
    cdef readonly bytes stdout
    cdef readonly bytes stderr
    cdef readonly object timeout_s
    cdef readonly double grace_s
    cdef readonly uint64_t mark
    cdef readonly uint64_t token
    cdef readonly bint warm
    cdef readonly int64_t cpus
    cdef readonly int64_t memory
    cdef readonly int64_t gpus
    cdef readonly uint64_t reuse
    cdef int64_t timeout_ns
    cdef int64_t grace_ns
    cdef readonly double waited_s
    cdef int64_t waited_ns

    def __init__(
        self, *, handle, priority, rank, sequence, argv, candidates, env, cwd, stdout, stderr, timeout_s=None,
        grace_s=5.0, waited_s=0.0, mark=0, token=0, warm=False, cpus=0, memory=0, gpus=0, reuse=0,
    ):
        self.follow(Pattern(
            argv=argv, candidates=candidates, env=env, cwd=cwd, timeout_s=timeout_s, grace_s=grace_s))
        self.handle = whole("handle", handle, 0, UINT64_MAX)
        self.priority = whole("priority", priority, 0, CLASSES - 1)
        self.rank = whole("rank", rank, -2**31, 2**31 - 1)
        self.sequence = whole("sequence", sequence, 0, UINT64_MAX)
        self.stdout = path_of("stdout", stdout)
        self.stderr = path_of("stderr", stderr)
        self.waited_s = waited_s
        self.waited_ns = to_ns("waited_s", waited_s)
        self.mark = whole("mark", mark, 0, 2**61 - 1)
        self.token = whole("token", token, 0, UINT64_MAX)
        self.warm = warm
        self.ask(cpus, memory, gpus)
        self.reuse = whole("reuse", reuse, 0, UINT64_MAX)

    cdef int ask(self, cpus, memory, gpus) except -1:
        self.cpus = whole("cpus", cpus, 0, 2**40)
        self.memory = whole("memory", memory, 0, 2**60)
        self.gpus = whole("gpus", gpus, 0, DEVICES_MAX * WHOLE)
        if self.gpus > WHOLE and self.gpus % WHOLE:
            raise ValueError(f"gpus: {gpus} is no whole number of devices; use up to 1000, or a multiple of it")
        return 0

    cdef int follow(self, Pattern pattern) except -1:
        self.argv = pattern.argv
        self.candidates = pattern.candidates
        self.env = pattern.env
        self.cwd = pattern.cwd
        self.timeout_s = pattern.timeout_s
        self.timeout_ns = pattern.timeout_ns
        self.grace_s = pattern.grace_s
        self.grace_ns = pattern.grace_ns
        return 0

    @staticmethod
    def for_attempt(
        Pattern pattern not None, env, uint64_t handle, int priority, int32_t rank, uint64_t sequence, bytes stdout,
        bytes stderr, double waited_s, uint64_t mark, uint64_t token, bint warm=False, uint64_t reuse=0, demand=None,
    ):
        cdef Launch launch = Launch.__new__(Launch)
        if not 0 <= priority < CLASSES or mark >= <uint64_t> 1 << 61:
            raise ValueError(f"priority: {priority} or mark: {mark} is out of range")
        launch.follow(pattern)
        launch.env = pattern.env + entries_of("env", env)
        launch.handle = handle
        launch.priority = <uint8_t> priority
        launch.rank = rank
        launch.sequence = sequence
        launch.stdout = path_of("stdout", stdout)
        launch.stderr = path_of("stderr", stderr)
        launch.waited_s = waited_s
        launch.waited_ns = to_ns("waited_s", waited_s)
        launch.mark = mark
        launch.token = token
        launch.warm = warm
        launch.reuse = reuse
        if demand is not None:
            cpus, memory, gpus = demand
            launch.ask(cpus, memory, gpus)
        return launch

    def __repr__(self):
        return f"<Launch {self.handle} {self.argv!r}>"

# The running attempts of a home, in a small file that outlives its node: what the next incarnation adopts by.
#
#     FREE ─take─► STARTING ─spawned─► RUNNING ─ended─► ENDED ─release, after the outcome's COMMIT─► FREE
#                   │   ╰─ended, and had reached its program─────┘
#                   ├─ended before it reached its program─► NEVER ─release─► FREE
#                   ├─(RUNNING, too) the guard died as well─► LOST ─release─► FREE
#                   └─no process could be made─► FREE
#
# Who writes a row: the lane that runs the attempt while the node lives; of an attempt whose node is gone, the guard
# writes the end and the incarnation that adopted it the rest.  A row is mapped and shared, so the kernel keeps what a
# killed process has stored last; the file serves no restart of the machine and is never synced.
#
# What kill -9 leaves at any instruction:
#   - before the child's first instruction: STARTING with pid 0.  The child is in the node's process group, and the
#     guard kills that group before it collects the node; no program ran.
#   - from then on the pid is there: the kernel writes it (CLONE_CHILD_SETTID) before the child runs.
#   - before the end is collected: the zombie becomes the guard's, which writes the end and then collects it.  A lane
#     does the same in the same order, so a collected child without ENDED does not exist while the guard lives.
#
# Results that came with the end of a call (worker.pyx) lie in a file beside the table, a slot for each row, written
# before the row says ENDED; nobody needs them once the row is free.  In a file of their own, since a table is its rows
# to nodes of other versions.
#
# That makes a pid in a row safe: while the guard lives, a process is not collected before its row says ENDED, so nobody
# else has its number.  A guard that begins makes LOST of what ran under the one before it: how that ends nobody will
# know, but that it had started is certain.  Rows of an earlier start of the machine mean nothing.

import contextlib
import os

cimport cython
from cython.operator cimport dereference
from libc.errno cimport ECHILD, EINVAL, ESRCH, errno
from libc.signal cimport SIGKILL
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from libcpp.atomic cimport atomic, memory_order_acquire, memory_order_relaxed, memory_order_release
from libcpp.unordered_map cimport unordered_map
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.resource cimport getrlimit, rlimit, rusage
from posix.signal cimport kill
from posix.stat cimport fstat, struct_stat
from posix.types cimport pid_t
from posix.unistd cimport close
from posix.wait cimport WNOHANG, waitpid

from native cimport (
    CLOCK_BOOTTIME,
    CLOCK_REALTIME,
    O_CLOEXEC,
    O_NOFOLLOW,
    RLIMIT_RTTIME,
    array,
    assert_128_bytes,
    padded_mutex,
    peek_end,
    pidfd_open,
    pidfd_send_signal,
    posix_fallocate,
)
from sibling cimport CALL_LEFT_RESULT, WorkerWords, call_result_max

cdef enum RowState:
    ROW_IS_FREE
    ROW_IS_STARTING
    ROW_IS_RUNNING
    ROW_HAS_ENDED
    ROW_HAS_NEVER_RUN
    ROW_IS_LOST

cdef enum:
    ROW_BYTES = 128
    TABLE_VERSION = 1
    GUARD_BYTES = 16
    BOOT_BYTES = 16

cdef uint64_t TABLE_MAGIC = 0x656c626174617970  # "pyatable"


cdef cppclass Row:
    atomic[uint32_t] state
    pid_t pid               # 0: not known to have been made
    uint64_t token          # of the lease: unique over all claims
    uint64_t mark
    int64_t started_ns      # CLOCK_BOOTTIME, as all times without `real`
    int64_t started_real_ns
    int64_t since_ns        # when it came into this incarnation's hands
    int64_t deadline_ns     # of its timeout; of KILL while `ending`; 0: none
    int64_t floor_kb        # see record_reap
    int64_t ended_real_ns   # from here on: once it is ENDED
    int64_t run_ns
    int64_t cpu_ns
    int64_t max_rss_kb
    int status
    # These two may change while the state does not, and be read meanwhile.
    atomic[uint8_t] cause
    atomic[uint8_t] ending  # it was told to: what survives its leader has its grace; released after `cause`
    uint16_t result_size    # of what stands in the table's results; that and `left` are of an end that a worker told
    uint64_t devices        # GPUs that it was given, as bits
    uint8_t left            # RowLeft; 0: whatever it has left is in its files
    char[15] spare


cdef enum RowLeft:
    ROW_KNOWS_RESULT = 1    # in the table's results, or there is none
    ROW_IS_SILENT = 2       # it has left no output


cdef struct TableHead:      # as long as a row
    uint64_t magic
    uint32_t version
    uint32_t row_bytes
    char[GUARD_BYTES] guard
    char[BOOT_BYTES] boot


cdef cppclass Table:
    Row* rows               # rows[0] is the head
    uint32_t count          # with the head
    char* results           # call_result_max bytes for each row; NULL: these are not mapped here
    # Guarded by the mutex, which is held for a few memory accesses and never while anything is waited for.
    padded_mutex mutex
    array[uint32_t] free
    unordered_map[uint64_t, uint32_t] by_token  # of those not free


# ---- the lanes' side -------------------------------------------------------------------------------------------------

cdef Row* table_take(Table* table, uint64_t token, uint64_t mark) noexcept nogil:
    """A row for an attempt that is about to start; NULL: all are taken."""
    cdef Row* row
    cdef uint32_t index
    table.mutex.lock()
    if table.free.empty():
        table.mutex.unlock()
        return NULL
    index = table.free.back()
    table.free.pop_back()
    table.by_token[token] = index
    table.mutex.unlock()
    row = &table.rows[index]
    memset(&row.pid, 0, ROW_BYTES - sizeof(uint32_t))
    row.token = token
    row.mark = mark
    # release, here and below: whoever reads the state in another process finds the fields that belong to it.
    row.state.store(ROW_IS_STARTING, memory_order_release)
    return row


cdef void table_release(Table* table, uint64_t token) noexcept nogil:
    """Nothing if there is no such row."""
    cdef unordered_map[uint64_t, uint32_t].iterator found
    cdef uint32_t index
    table.mutex.lock()
    found = table.by_token.find(token)
    if found != table.by_token.end():
        index = dereference(found).second
        table.by_token.erase(found)
        table.rows[index].state.store(ROW_IS_FREE, memory_order_release)
        table.free.push_back(index)
    table.mutex.unlock()


cdef inline int64_t cpu_time_ns(const rusage* usage) noexcept nogil:
    return ((usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * NS_PER_S
            + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000)


cdef void row_end(Row* row, RowState how, int status, const rusage* usage) noexcept nogil:
    """Before the process is collected."""
    row.ended_real_ns = now(CLOCK_REALTIME)
    row.run_ns = now(CLOCK_BOOTTIME) - row.started_ns
    row.cpu_ns = cpu_time_ns(usage)
    row.max_rss_kb = usage.ru_maxrss if usage.ru_maxrss > row.floor_kb else 0
    row.status = status
    row.state.store(how, memory_order_release)


cdef void row_keep_result(Row* row, Table* table, bint is_silent, const WorkerWords* words) noexcept nogil:
    """Before row_end: who finds the end finds this, too."""
    row.left = ROW_IS_SILENT if is_silent else 0
    if words.end.left & CALL_LEFT_RESULT or table.results == NULL:
        return
    memcpy(table.results + <size_t> (row - table.rows) * call_result_max, words.result, words.result_size)
    row.result_size = <uint16_t> words.result_size
    row.left |= ROW_KNOWS_RESULT


cdef bint row_has_ended(const Record* record, int* status, int* error, rusage* usage) noexcept nogil:
    cdef Row* row = record.row
    cdef uint32_t state = row.state.load(memory_order_acquire)
    if state != ROW_HAS_ENDED and state != ROW_HAS_NEVER_RUN:
        return False
    status[0] = row.status if state == ROW_HAS_ENDED else -1
    error[0] = 0 if state == ROW_HAS_ENDED else ECHILD
    usage.ru_utime.tv_sec = row.cpu_ns // NS_PER_S
    usage.ru_utime.tv_usec = row.cpu_ns % NS_PER_S // 1000
    usage.ru_maxrss = row.max_rss_kb
    return True


cdef bint record_read_end(Record* record, int* status, int* error, rusage* usage) noexcept nogil:
    """record_reap for an adopted attempt: what the guard has written; False: nothing yet, it will ring."""
    if row_has_ended(record, status, error, usage):
        return True
    if not record.guard_gone and (pidfd_send_signal(record.pidfd, 0) == 0 or errno != ESRCH):
        return False
    # Nobody will write any more, or collected it without.  Once more: the end is written before it is collected.
    if not row_has_ended(record, status, error, usage):
        status[0] = -1
        error[0] = ECHILD
    return True


# ---- the guard's side ------------------------------------------------------------------------------------------------

cdef Row* table_row_of(Table* table, pid_t pid) noexcept nogil:
    """That of a child of this process which is not collected yet; NULL: it leads no attempt."""
    cdef uint32_t i, state
    for i in range(1, table.count):
        state = table.rows[i].state.load(memory_order_acquire)
        if (state == ROW_IS_STARTING or state == ROW_IS_RUNNING) and table.rows[i].pid == pid:
            return &table.rows[i]
    return NULL


cdef bint reached_its_program(const Row* row, pid_t pid) noexcept nogil:
    """Of a zombie: the mark is what the child sets last."""
    cdef rlimit own, wanted
    cdef uint64_t mark = 0
    cdef MarkPlace place
    if row.state.load(memory_order_relaxed) == ROW_IS_RUNNING:  # acquired by table_row_of
        return True
    if getrlimit(RLIMIT_RTTIME, &own) != 0:
        return True
    place = mark_place(&own)
    if place == MARK_NOWHERE:
        return True
    wanted = mark_limit(place, &own, row.mark)
    return mark_of_process(pid, place, &own, &mark) and mark == mark_of_limit(place, &own, &wanted)


cdef bint table_collect(Table* table, pid_t pid) noexcept nogil:
    """Collect an ended child of this process, once its end stands in its row; whether it has one."""
    cdef rusage usage
    cdef Row* row = NULL
    cdef int status = 0, pidfd = pidfd_open(pid)
    if pidfd < 0:
        return False
    memset(&usage, 0, sizeof(usage))
    if peek_end(pidfd, &status, &usage) == 0:
        if table != NULL:
            row = table_row_of(table, pid)
        if row != NULL:
            row_end(row, ROW_HAS_ENDED if reached_its_program(row, pid) else ROW_HAS_NEVER_RUN, status, &usage)
            if not row.ending.load(memory_order_acquire):  # as record_reap does
                kill(-pid, SIGKILL)
        waitpid(pid, NULL, WNOHANG)
    close(pidfd)
    return row != NULL


# ---- the Python side -------------------------------------------------------------------------------------------------

ROW_STARTING = int(ROW_IS_STARTING)
ROW_RUNNING = int(ROW_IS_RUNNING)
ROW_ENDED = int(ROW_HAS_ENDED)
ROW_NEVER_RAN = int(ROW_HAS_NEVER_RUN)
ROW_LOST = int(ROW_IS_LOST)


@cython.final
@cython.auto_pickle(False)
cdef class AttemptRow:
    cdef readonly int state
    cdef readonly int pid
    cdef readonly uint64_t token
    cdef readonly uint64_t mark
    cdef readonly int64_t started_ns
    cdef readonly int64_t since_ns
    cdef readonly bint ending
    cdef int64_t started_real_ns
    cdef int64_t ended_real_ns
    cdef int64_t run_ns
    cdef int64_t cpu_ns
    cdef int64_t max_rss_kb
    cdef int status
    cdef uint8_t cause
    cdef uint8_t left
    cdef bytes result

    def end(self, uint64_t handle):
        """The event that the attempt's lane would have told."""
        cdef bint known = self.state == ROW_HAS_ENDED
        return Event(
            KIND_EXITED, handle, pid=self.pid, status=self.status if known else -1, cause=self.cause,
            errno=0 if known else ECHILD, started_ns=self.started_real_ns, ended_ns=self.ended_real_ns,
            run_ns=self.run_ns, cpu_ns=self.cpu_ns, max_rss_kb=self.max_rss_kb,
            left_output=not self.left & ROW_IS_SILENT, left_result=not self.left & ROW_KNOWS_RESULT,
            result=self.result,
        )

    def __repr__(self):
        return f"<AttemptRow state={self.state} pid={self.pid} token={self.token}>"


cdef AttemptRow row_of(const Table* table, const Row* native, uint32_t state):
    """`state` has been acquired: what belongs to it may be read, while a lane may be writing what comes next."""
    cdef AttemptRow row = AttemptRow.__new__(AttemptRow)
    cdef const char* result
    row.state = state
    row.pid = native.pid
    row.token = native.token
    row.mark = native.mark
    row.started_ns = native.started_ns
    row.since_ns = native.since_ns
    row.ending = native.ending.load(memory_order_acquire)
    row.started_real_ns = native.started_real_ns
    row.cause = native.cause.load(memory_order_relaxed)
    if state == ROW_HAS_ENDED:
        row.ended_real_ns = native.ended_real_ns
        row.run_ns = native.run_ns
        row.cpu_ns = native.cpu_ns
        row.max_rss_kb = native.max_rss_kb
        row.status = native.status
        if table.results != NULL:
            row.left = native.left
            if row.left & ROW_KNOWS_RESULT and 0 < native.result_size <= call_result_max:
                result = table.results + <size_t> (native - table.rows) * call_result_max
                row.result = result[:native.result_size]
    return row


cdef bytes boot_id():
    """Of this start of the machine: what pids, and CLOCK_BOOTTIME, belong to."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


cdef int create_table(path, bytes guard) except -1:
    cdef TableHead head
    cdef bytes boot = boot_id()
    memset(&head, 0, sizeof(head))
    head.magic = TABLE_MAGIC
    head.version = TABLE_VERSION
    head.row_bytes = ROW_BYTES
    memcpy(head.guard, <const char*> guard, GUARD_BYTES)
    memcpy(head.boot, <const char*> boot, BOOT_BYTES)
    temporary = os.fsencode(path) + b".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    file = os.open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    try:
        os.write(file, (<char*> &head)[:sizeof(head)].ljust(ROW_BYTES, b"\0"))
    finally:
        os.close(file)
    os.rename(temporary, path)
    return 0


@cython.final
cdef class AttemptTable:
    cdef Table* table

    @staticmethod
    def begin(path, bytes guard):
        cdef AttemptTable before
        if len(guard) != GUARD_BYTES:
            raise ValueError(f"guard: {len(guard)} bytes; use {GUARD_BYTES}")
        try:
            before = AttemptTable(path, None)
        except (OSError, ValueError):
            create_table(path, guard)
        else:
            before.inherit(guard)

    cdef void inherit(self, bytes guard) noexcept:
        """In place: the node of the guard before may still run, and stops by itself."""
        cdef TableHead* head = <TableHead*> self.table.rows
        cdef uint32_t i, state
        for i in range(1, self.table.count):
            state = self.table.rows[i].state.load(memory_order_acquire)
            if (state == ROW_IS_STARTING and self.table.rows[i].pid != 0) or state == ROW_IS_RUNNING:
                self.table.rows[i].state.compare_exchange_strong(state, ROW_IS_LOST)
        memcpy(head.guard, <const char*> guard, GUARD_BYTES)

    def __cinit__(self, path, bytes guard, *, rows=0):
        cdef struct_stat status
        cdef int file, error = 0
        cdef int64_t wanted = (<int64_t> whole("rows", rows, 0, 2**24) + 1) * ROW_BYTES
        self.table = new Table()
        assert_128_bytes(<Row*> NULL)
        file = os.open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC)
        try:
            if fstat(file, &status) != 0:
                raise OSError(errno, "cannot be read", path)
            if status.st_size < wanted and rows:
                # With blocks of its own: a full disk must not end the process at a write into the mapping.
                error = posix_fallocate(file, 0, wanted)
                if error:
                    raise OSError(error, os.strerror(error), path)
                status.st_size = wanted
            self.map(file, status.st_size)
        finally:
            close(file)
        self.check(path, guard)
        if rows:
            self.map_results(os.fspath(path) + ".results")
        self.take_stock()

    def __dealloc__(self):
        if self.table != NULL:
            if self.table.rows != NULL:
                munmap(self.table.rows, self.table.count * ROW_BYTES)
            if self.table.results != NULL:
                munmap(self.table.results, self.table.count * call_result_max)
            del self.table

    cdef int map(self, int file, int64_t size) except -1:
        cdef void* memory
        if size < ROW_BYTES:
            raise OSError(EINVAL, "is no table of attempts")
        memory = mmap(NULL, <size_t> (size // ROW_BYTES * ROW_BYTES), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        if memory == MAP_FAILED:
            raise OSError(errno, "cannot be mapped")
        self.table.rows = <Row*> memory
        self.table.count = <uint32_t> (size // ROW_BYTES)
        return 0

    cdef int map_results(self, path) except -1:
        cdef int64_t wanted = <int64_t> self.table.count * call_result_max
        cdef struct_stat status
        cdef void* memory
        cdef int error = 0, file = os.open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0o600)
        try:
            if fstat(file, &status) != 0:
                raise OSError(errno, "cannot be read", path)
            if status.st_size < wanted:
                error = posix_fallocate(file, 0, wanted)  # for the same reason
                if error:
                    raise OSError(error, os.strerror(error), path)
            memory = mmap(NULL, <size_t> wanted, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
            if memory == MAP_FAILED:
                raise OSError(errno, "cannot be mapped", path)
            self.table.results = <char*> memory
        finally:
            close(file)
        return 0

    cdef int check(self, path, bytes guard) except -1:
        cdef TableHead* head = <TableHead*> self.table.rows
        cdef bytes boot = boot_id()
        if head.magic != TABLE_MAGIC or head.version != TABLE_VERSION or head.row_bytes != ROW_BYTES:
            raise ValueError(f"{os.fsdecode(path)}: is no table of attempts of version {TABLE_VERSION}")
        if memcmp(head.boot, <const char*> boot, BOOT_BYTES) != 0:
            raise ValueError(f"{os.fsdecode(path)}: is of an earlier start of this machine")
        if guard is None:
            return 0
        if len(guard) != GUARD_BYTES or memcmp(head.guard, <const char*> guard, GUARD_BYTES) != 0:
            raise ValueError(f"{os.fsdecode(path)}: belongs to another guard")
        return 0

    cdef void take_stock(self) noexcept:
        cdef uint32_t i
        for i in range(self.table.count - 1, 0, -1):
            if self.table.rows[i].state.load(memory_order_acquire) == ROW_IS_FREE:
                self.table.free.push_back(i)
            else:
                self.table.by_token[self.table.rows[i].token] = i

    def rows(self):
        cdef uint32_t i, state
        cdef list found = []
        for i in range(1, self.table.count):
            state = self.table.rows[i].state.load(memory_order_acquire)
            if state != ROW_IS_FREE:
                found.append(row_of(self.table, &self.table.rows[i], state))
        return found

    def row(self, token):
        cdef uint64_t wanted = whole("token", token, 0, UINT64_MAX)
        cdef Row* native = self.find(wanted)
        if native == NULL:
            raise KeyError(token)
        return row_of(self.table, native, native.state.load(memory_order_acquire))

    cdef Row* find(self, uint64_t token) noexcept:
        cdef unordered_map[uint64_t, uint32_t].iterator found
        cdef Row* native = NULL
        self.table.mutex.lock()
        found = self.table.by_token.find(token)
        if found != self.table.by_token.end():
            native = &self.table.rows[dereference(found).second]
        self.table.mutex.unlock()
        return native

    def release(self, tokens):
        cdef uint64_t token
        for token in tokens:
            table_release(self.table, token)

    def collect(self, pid):
        cdef pid_t child = whole("pid", pid, 1, 2**31 - 1)
        with nogil:
            found = table_collect(self.table, child)
        return found

    @property
    def capacity(self):
        return self.table.count - 1

    def __len__(self):
        cdef size_t taken
        self.table.mutex.lock()
        taken = self.table.by_token.size()
        self.table.mutex.unlock()
        return taken

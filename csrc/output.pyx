# The cap on an attempt's output.
#
# Children write straight into their files (no pipe, no descriptor of ours), so the lane looks at the sizes: by a timer
# of the attempt, and once more at its end.  A file over the limit keeps its head, gets a line that says so, and loses
# the rest.  Children append (O_APPEND), so what they write next lands behind that line, and the next look cuts it off
# again; who reads along sees the head, the line and at times some of what is about to be cut.
#
# What lies on the disk is at most the limit plus what one job writes between two looks (OUTPUT_FIRST_NS while it
# writes fast, OUTPUT_LAST_NS after a quiet time).  Not seen is what a job writes into a log that it has unlinked, and
# what an orphan writes after a normal end.

from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from posix.fcntl cimport O_NONBLOCK, O_WRONLY, open as open_file
from posix.stat cimport S_ISREG, fstat, stat, struct_stat
from posix.unistd cimport close, ftruncate, pwrite

from native cimport O_CLOEXEC, O_NOFOLLOW

cdef int64_t OUTPUT_FIRST_NS = 100_000_000
cdef int64_t OUTPUT_LAST_NS = 1_000_000_000


cdef struct OutputLimit:
    int64_t size        # bytes a file; 0: none
    bint ends           # the attempt; else the file is cut
    char[96] line
    int line_size


cdef int64_t output_size(const char* path) noexcept nogil:
    """0 for what is no regular file (the job may have put anything there), or is not there."""
    cdef struct_stat status
    if stat(path, &status) != 0 or not S_ISREG(status.st_mode):
        return 0
    return status.st_size


cdef void limit_init(OutputLimit* limit, int64_t size, bint ends) noexcept nogil:
    limit.size = size
    limit.ends = ends
    limit.line_size = snprintf(
        limit.line, sizeof(limit.line), b"\n[pysched: over the limit of %lld bytes, the rest is dropped]\n",
        <long long> size,
    )


cdef inline bint is_over(const OutputLimit* limit, int64_t size) noexcept nogil:
    """A file that has been cut is as long as one may be."""
    return size > limit.size + limit.line_size


cdef void output_cut(const char* path, const OutputLimit* limit) noexcept nogil:
    """Keep the head and the line.  The line first: at no moment does the file end without it."""
    cdef struct_stat status
    cdef int file = open_file(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    if file < 0:
        return
    if fstat(file, &status) == 0 and S_ISREG(status.st_mode) and is_over(limit, status.st_size):
        pwrite(file, limit.line, limit.line_size, limit.size)
        ftruncate(file, limit.size + limit.line_size)
    close(file)


cdef bint record_cap_output(Record* record, const OutputLimit* limit) noexcept nogil:
    """Cut what is over the limit, and set how long until the next look; whether something was."""
    cdef int64_t out = output_size(record.output), errors = output_size(record.errors)
    cdef int64_t grown = out + errors - record.output_bytes
    cdef bint over = is_over(limit, out) or is_over(limit, errors)
    record.output_bytes = out + errors
    if over:
        output_cut(record.output, limit)
        output_cut(record.errors, limit)
        record.output_bytes = output_size(record.output) + output_size(record.errors)
    # Soon if it could be over the limit before long; else less and less often.
    if over or limit.size - max(out, errors) < 4 * grown:
        record.look_ns = OUTPUT_FIRST_NS
    else:
        record.look_ns = min(2 * record.look_ns, OUTPUT_LAST_NS)
    return over

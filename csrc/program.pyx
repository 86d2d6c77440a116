# `Program`: what an attempt is before it has its launch.

cimport cython
from libc.stdint cimport uint64_t

from hashlib import blake2b as _blake2b

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)
    str PyUnicode_DecodeFSDefault(const char* text)

cdef uint64_t MARKS = ((<uint64_t> 1) << 61) - 1


cdef uint64_t mark_in(bytes digest) noexcept:
    """As `pysched.model.mark_of`."""
    cdef const unsigned char* each = digest
    cdef uint64_t number = 0
    cdef int i
    for i in range(8):
        number = number << 8 | each[i]
    number %= MARKS
    return number if number else 1


@cython.final
@cython.auto_pickle(False)
@cython.freelist(256)
cdef class Program:
    cdef readonly Pattern pattern
    cdef readonly list env
    cdef readonly str stdout
    cdef readonly str stderr
    cdef readonly str result
    cdef readonly str progress
    cdef readonly uint64_t mark
    cdef readonly bint warm
    cdef readonly uint64_t reuse

    def __init__(
        self, Pattern pattern not None, str task_id not None, int attempt, str node not None, str stem not None,
        tuple names not None, list more=None, *, bint warm=False, uint64_t reuse=0,
    ):
        cdef bytes number = str(attempt).encode()
        cdef bytes own = task_id.encode()
        cdef bytes place = node.encode()
        self.pattern = pattern
        self.stdout = stem + <str> names[0]
        self.stderr = stem + <str> names[1]
        self.result = stem + <str> names[2]
        self.progress = stem + <str> names[3]
        self.env = [
            b"PYSCHED_TASK_ID=" + own,
            b"PYSCHED_ATTEMPT=" + number,
            b"PYSCHED_NODE=" + place,
            b"PYSCHED_RESULT=" + PyUnicode_EncodeFSDefault(self.result),
            b"PYSCHED_PROGRESS=" + PyUnicode_EncodeFSDefault(self.progress),
        ]
        if more is not None:
            self.env += more
        self.mark = mark_in(<bytes> _blake2b(own + b"\0" + number + b"\0" + place, digest_size=8).digest())
        self.warm = warm
        self.reuse = reuse

# Values appended to a buffer: as text, of which `.done` files are made, and in the binary form of PostgreSQL's arrays.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from native cimport array

cdef enum:
    # Types of PostgreSQL, by their fixed numbers.
    TYPE_INT8 = 20
    TYPE_INT4 = 23
    TYPE_TEXT = 25
    TYPE_TIMESTAMPTZ = 1184

cdef int64_t POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01

cdef struct Text:       # a part of some object's memory
    const char* start
    size_t size


cdef bint text_is_plain(Text text) noexcept nogil:
    """Whether it stands in JSON, in UTF-8 and in a C string as it is: printable ASCII, nothing to escape."""
    cdef size_t i
    cdef char each
    for i in range(text.size):
        each = text.start[i]
        if each < 32 or each > 126 or each == 34 or each == 92:  # " and \ (a char above 127 is below 0)
            return False
    return True


cdef inline void put_bytes(array[char]* out, const void* start, size_t size) noexcept nogil:
    cdef size_t place = out.size()
    out.resize(place + size)
    memcpy(out.data() + place, start, size)


cdef inline void put_words(array[char]* out, const char* words) noexcept nogil:
    put_bytes(out, words, strlen(words))


cdef void put_number(array[char]* out, int64_t value) noexcept nogil:
    cdef char[20] digits
    cdef uint64_t rest = <uint64_t> (-value if value < 0 else value)
    cdef int place = 20
    while True:
        place -= 1
        digits[place] = <char> (48 + rest % 10)
        rest = rest // 10
        if rest == 0:
            break
    if value < 0:
        put_bytes(out, b"-", 1)
    put_bytes(out, digits + place, <size_t> (20 - place))


cdef void put_moment(array[char]* out, int64_t epoch_us) noexcept nogil:
    """As `utc_text`; not before 1970."""
    # "chrono-Compatible Low-Level Date Algorithms", H. Hinnant: years begin in March, an era has 400, or 146,097 days.
    cdef int64_t day = epoch_us // DAY_US + 719_468
    cdef int64_t rest = epoch_us % DAY_US
    cdef int64_t of_era = day % 146_097
    cdef int64_t year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    cdef int64_t of_year = of_era - (365 * year + year // 4 - year // 100)
    cdef int64_t month = (5 * of_year + 2) // 153
    cdef char[27] text
    cdef char* cursor = text
    year += day // 146_097 * 400 + (month >= 10)
    cursor = put_digits(cursor, <int> year, 4)
    cursor[0] = b"-"
    cursor = put_digits(cursor + 1, <int> (month + 3 if month < 10 else month - 9), 2)
    cursor[0] = b"-"
    cursor = put_digits(cursor + 1, <int> (of_year - (153 * month + 2) // 5 + 1), 2)
    cursor[0] = b"T"
    cursor = put_digits(cursor + 1, <int> (rest // <int64_t> 3_600_000_000), 2)
    cursor[0] = b":"
    cursor = put_digits(cursor + 1, <int> (rest // 60_000_000 % 60), 2)
    cursor[0] = b":"
    cursor = put_digits(cursor + 1, <int> (rest // 1_000_000 % 60), 2)
    cursor[0] = b"."
    cursor = put_digits(cursor + 1, <int> (rest % 1_000_000), 6)
    cursor[0] = b"Z"
    put_bytes(out, text, 27)


# ---- arrays, as array_recv() of PostgreSQL reads them: numbers in network order, each element behind its size --------

cdef inline void put_network(array[char]* out, uint64_t value, int width) noexcept nogil:
    cdef char[8] wire
    cdef int i
    for i in range(width - 1, -1, -1):
        wire[i] = <char> (value & 255)
        value >>= 8
    put_bytes(out, wire, <size_t> width)


cdef void array_begin(array[char]* out, uint32_t element_type, size_t count) noexcept nogil:
    """Of one dimension, counted from 1; `count` elements are to follow."""
    put_network(out, 1 if count else 0, 4)
    put_network(out, 1, 4)  # it may hold NULLs
    put_network(out, element_type, 4)
    if count:
        put_network(out, count, 4)
        put_network(out, 1, 4)


cdef inline void array_put_number(array[char]* out, int64_t value, int width) noexcept nogil:
    put_network(out, <uint64_t> width, 4)
    put_network(out, <uint64_t> value, width)


cdef inline void array_put_text(array[char]* out, Text text) noexcept nogil:
    put_network(out, text.size, 4)
    put_bytes(out, text.start, text.size)


cdef inline void array_put_null(array[char]* out) noexcept nogil:
    put_network(out, <uint64_t> -1, 4)

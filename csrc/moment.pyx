# Moments: nanoseconds of the system clock as datetimes, and those as RFC 3339.  Each attempt needs a handful of both,
# and what the datetime module does for each costs as much as all else that is done for its record.

from cpython.datetime cimport (
    PyDateTime_Check,
    datetime,
    datetime_day,
    datetime_hour,
    datetime_microsecond,
    datetime_minute,
    datetime_month,
    datetime_second,
    datetime_tzinfo,
    datetime_year,
    import_datetime,
    timedelta_new,
)
from libc.stdint cimport int64_t

import_datetime()

import datetime as _datetime

cdef object UTC = _datetime.timezone.utc
cdef datetime EPOCH = _datetime.datetime(1970, 1, 1, tzinfo=UTC)
cdef int64_t DAY_US = 86_400_000_000


def moment_of(int64_t epoch_ns):
    cdef int64_t us = epoch_ns // 1000
    cdef int64_t rest = us % DAY_US
    return EPOCH + timedelta_new(<int> (us // DAY_US), <int> (rest // 1_000_000), <int> (rest % 1_000_000))


cdef int64_t epoch_us(object moment) except? -1:
    """Microseconds since 1970 of a datetime that knows its zone."""
    cdef int64_t year, month, era, of_year
    if datetime_tzinfo(moment) is not UTC:
        moment = moment.astimezone(UTC)
    # The inverse of `put_moment`.
    year = datetime_year(moment)
    month = datetime_month(moment)
    if month <= 2:
        year -= 1
        month += 12
    era = year // 400
    of_year = (153 * (month - 3) + 2) // 5 + datetime_day(moment) - 1
    year -= era * 400
    return ((era * 146_097 + year * 365 + year // 4 - year // 100 + of_year - 719_468) * DAY_US
            + datetime_hour(moment) * <int64_t> 3_600_000_000 + datetime_minute(moment) * <int64_t> 60_000_000
            + datetime_second(moment) * <int64_t> 1_000_000 + datetime_microsecond(moment))


cdef inline char* put_digits(char* place, int value, int width) noexcept nogil:
    """The decimal digits; the place behind them."""
    cdef int i
    for i in range(width - 1, -1, -1):
        place[i] = <char> (48 + value % 10)
        value = value // 10
    return place + width


def utc_text(moment):
    cdef char[32] text
    cdef char* cursor = text
    if not PyDateTime_Check(moment):
        raise TypeError(f"moment: {moment!r} is no datetime")
    if datetime_tzinfo(moment) is not UTC:
        if datetime_tzinfo(moment) is None:
            raise ValueError(f"moment: {moment!r} knows no zone; give it one")
        moment = moment.astimezone(UTC)
    cursor = put_digits(cursor, datetime_year(moment), 4)
    cursor[0] = b"-"
    cursor = put_digits(cursor + 1, datetime_month(moment), 2)
    cursor[0] = b"-"
    cursor = put_digits(cursor + 1, datetime_day(moment), 2)
    cursor[0] = b"T"
    cursor = put_digits(cursor + 1, datetime_hour(moment), 2)
    cursor[0] = b":"
    cursor = put_digits(cursor + 1, datetime_minute(moment), 2)
    cursor[0] = b":"
    cursor = put_digits(cursor + 1, datetime_second(moment), 2)
    cursor[0] = b"."
    cursor = put_digits(cursor + 1, datetime_microsecond(moment), 6)
    cursor[0] = b"Z"
    return text[:27].decode("ascii")

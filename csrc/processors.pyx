# Affinity: processors of their own for attempts that ask for processors.
#
# Only if the Core is told to.  An attempt gets as many whole processors as it asks for, rounded up; one that asks for
# less than one gets a part of one that others have parts of.  It has them from its admission to its end, as it has
# GPUs.  What cannot be had so (only parts are left, or the node offers more than there are) runs where the kernel puts
# it: affinity is about speed, and never about whether something may start.
#
# Whoever starts the process tells the kernel: the child between clone and exec, a warm job in its first moments, a
# reused worker at each call, also at one that has none of its own.

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

from native cimport read_affinity

cdef enum:
    PROCESSOR_WORDS = 16        # sched_setaffinity(2) takes so many words of bits
    PROCESSORS_MAX = 1_024


cdef struct ProcessorSet:
    uint64_t[PROCESSOR_WORDS] bits


cdef cppclass Processors:
    # Guarded by the mutex of the admission; `all` never changes.
    ProcessorSet all    # that this process may use
    int count           # 0: nobody is pinned
    int[PROCESSORS_MAX] number
    int64_t[PROCESSORS_MAX] rest    # thousandths that nobody has


cdef inline bint has_processor(const ProcessorSet* these, int number) noexcept nogil:
    return (these.bits[number // 64] >> (number % 64)) & 1


cdef bint processors_init(Processors* processors) noexcept nogil:
    """All that this process may use; False with errno."""
    cdef int number
    if not read_affinity(0, processors.all.bits, sizeof(processors.all.bits)):
        return False
    for number in range(PROCESSORS_MAX):
        if has_processor(&processors.all, number):
            processors.number[processors.count] = number
            processors.rest[processors.count] = WHOLE
            processors.count += 1
    return True


cdef bint processors_choose(Processors* processors, int64_t wanted, ProcessorSet* chosen) noexcept nogil:
    """False: they are not free.  A part of one goes where it leaves the least, so that whole ones stay whole."""
    cdef int i, best = -1
    if wanted < WHOLE:
        for i in range(processors.count):
            if processors.rest[i] >= wanted and (best < 0 or processors.rest[i] < processors.rest[best]):
                best = i
        if best >= 0:
            chosen.bits[processors.number[best] // 64] |= <uint64_t> 1 << processors.number[best] % 64
        return best >= 0
    for i in range(processors.count):
        if wanted > 0 and processors.rest[i] == WHOLE:
            chosen.bits[processors.number[i] // 64] |= <uint64_t> 1 << processors.number[i] % 64
            wanted -= WHOLE
    return wanted <= 0


cdef void processors_change(Processors* processors, const ProcessorSet* these, int64_t each) noexcept nogil:
    cdef int i
    for i in range(processors.count):
        if has_processor(these, processors.number[i]):
            processors.rest[i] += each


cdef void record_take_processors(Record* record, Processors* processors) noexcept nogil:
    """Under the mutex.  An adopted attempt has those to which its process is pinned, if it is."""
    cdef int64_t wanted = record.demand[RESOURCE_CPU]
    cdef ProcessorSet* chosen
    cdef bint found
    if processors.count == 0 or wanted == 0 or record.processors != NULL:
        return
    chosen = <ProcessorSet*> malloc(sizeof(ProcessorSet))
    if chosen == NULL:
        return
    memset(chosen, 0, sizeof(ProcessorSet))
    if record.pid != 0:
        found = read_affinity(record.pid, chosen.bits, sizeof(chosen.bits)) and (
            memcmp(chosen, &processors.all, sizeof(ProcessorSet)) != 0)
    else:
        found = processors_choose(processors, wanted, chosen)
    if found:
        record.processors = chosen
        processors_change(processors, chosen, -min(wanted, WHOLE))
    else:
        free(chosen)


cdef void record_give_processors_back(Record* record, Processors* processors) noexcept nogil:
    """Under the mutex."""
    if record.processors != NULL:
        processors_change(processors, record.processors, min(record.demand[RESOURCE_CPU], WHOLE))
        free(record.processors)
        record.processors = NULL


cdef const ProcessorSet* call_processors(const Record* record, const Processors* processors) noexcept nogil:
    """For a process that may have made another call before: its own, or all; NULL: nobody is pinned."""
    if record.processors != NULL or processors.count == 0:
        return record.processors
    return &processors.all

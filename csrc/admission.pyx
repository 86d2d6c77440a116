# What attempts ask for beside a worker (processors, memory, GPUs), and what this node has of it.
#
#     lane pops it ─► fits, nobody is parked ─────────────────────────► HELD, it starts
#           ╰──────► PARKED ─ something was given back, and it fits ─► HELD, back into its bucket ─► lane
#
# An attempt that asks for nothing never comes here.  What a share is:
#
#     WANTED   from submit on: counted, so that nobody claims more than can start before long
#     HELD     from its admission to its end: `held` exceeds `capacity` only for adopted attempts, which run already
#
# Parked attempts stand in the order in which they start (class, rank, sequence; one that is overdue first).  The first
# of them that does not fit is *reserved for*: what comes behind it may start only if it leaves that one able to start
# as soon as everything that was there before has ended, so small ones fill the gaps (backfill) and never starve a large
# one.  Run times are not known, so nothing is concluded from them.
#
# Locks: `mutex` is the innermost of all; a bucket's may be held when a withdrawn record is buried.  Admitted records
# are pushed once it is free.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_seq_cst

from native cimport array, padded_atomic, padded_mutex

cdef int64_t PLENTY = <int64_t> 1 << 60


cdef struct Device:
    int64_t rest        # thousandths that nobody holds
    char[DEVICE_NAME_BYTES] name


cdef struct Holder:     # a worker that is idle and has devices, see holders.pyx
    const void* worker  # to be told from others, and for nothing else: it is its lane's
    uint64_t key
    uint64_t devices
    int lane


cdef cppclass Admission:
    # Everything is guarded by the mutex but `devices[…].name` and `count`, which never change.
    padded_mutex mutex
    int64_t[RESOURCES] capacity
    int64_t[RESOURCES] held
    int64_t[RESOURCES] wanted
    int64_t waiting     # attempts whose share is WANTED
    int count
    Device[DEVICES_MAX] devices
    array[Holder] holders
    Processors processors
    ParkedList parked
    uint64_t reserved   # handle of the one that is reserved for
    bint reserves       # whether there is one
    int64_t[RESOURCES] reservation  # what it asks for
    uint32_t era        # changes with it
    int64_t[RESOURCES] behind   # held by attempts that were let past it
    # Without the mutex:
    padded_atomic[uint32_t] crowd       # how many are parked
    padded_atomic[uint32_t] withdrawn   # whether some of them were; written behind that, read before it is looked for


cdef void admission_init(Admission* admission, const int64_t* capacity, int64_t ageing_ns) noexcept nogil:
    cdef int i
    for i in range(RESOURCES):
        admission.capacity[i] = capacity[i]
        admission.held[i] = admission.wanted[i] = admission.behind[i] = 0
    admission.parked.ageing_ns = ageing_ns
    admission.waiting = 0
    admission.count = admission.processors.count = 0
    admission.era = 1
    admission.reserves = False


# ---- devices ---------------------------------------------------------------------------------------------------------

cdef uint64_t admission_devices(Admission* admission, int64_t wanted) noexcept nogil:
    """Which devices to give for so many thousandths, as bits; 0: they are not free.  A part of one goes where it leaves
    the least, so that whole ones stay whole."""
    cdef uint64_t found = 0
    cdef int i, best = -1
    if wanted < WHOLE:
        for i in range(admission.count):
            if admission.devices[i].rest >= wanted and (
                    best < 0 or admission.devices[i].rest < admission.devices[best].rest):
                best = i
        return <uint64_t> 1 << best if best >= 0 else 0
    for i in range(admission.count):
        if admission.devices[i].rest == WHOLE and wanted > 0:
            found |= <uint64_t> 1 << i
            wanted -= WHOLE
    return found if wanted <= 0 else 0


cdef uint64_t admission_devices_for(Admission* admission, const Record* record) noexcept nogil:
    """The same, and of several that serve equally well those of an idle worker that may make the call."""
    cdef int64_t wanted = record.demand[RESOURCE_GPU]
    cdef uint64_t found = admission_devices(admission, wanted)
    cdef size_t i
    for i in range(admission.holders.size()):
        if (admission.holders[i].key == record.reuse
                and admission_are_alike(admission, found, admission.holders[i].devices)):
            return admission.holders[i].devices
    return found


cdef bint admission_are_alike(Admission* admission, uint64_t some, uint64_t others) noexcept nogil:
    """Whether there are as many, and of each as much is free; it is equally much of all of `some`."""
    cdef int64_t rest = -1
    cdef int i, balance = 0
    for i in range(admission.count):
        if some >> i & 1:
            rest = admission.devices[i].rest
            balance += 1
    for i in range(admission.count):
        if others >> i & 1:
            if admission.devices[i].rest != rest:
                return False
            balance -= 1
    return balance == 0


cdef void admission_take_devices(Admission* admission, uint64_t devices, int64_t amount) noexcept nogil:
    """Negative: give them back."""
    cdef int64_t each = amount
    cdef int i
    if amount >= WHOLE:
        each = WHOLE
    elif amount <= -WHOLE:
        each = -WHOLE
    for i in range(admission.count):
        if devices >> i & 1:
            admission.devices[i].rest -= each


cdef void record_write_tail(Record* record, int lane) noexcept nogil:
    """The environment's last entries: PYSCHED_LANE, and for a job with GPUs CUDA_VISIBLE_DEVICES right behind it, since
    zygote_ask sends the texts as they lie there."""
    cdef char* place = record.lane_text + snprintf(record.lane_text, 4, b"%d", lane) + 1
    cdef bint first = True
    cdef int i
    if record.devices_entry == NULL:
        return
    record.devices_entry[0] = place
    place += snprintf(place, DEVICES_HEAD_BYTES, b"CUDA_VISIBLE_DEVICES=")
    for i in range(record.admission.count):
        if record.devices >> i & 1:
            place += snprintf(
                place, DEVICE_NAME_BYTES + 1, b"%s%s", b"" if first else b",", record.admission.devices[i].name)
            first = False


# ---- shares, under the mutex -----------------------------------------------------------------------------------------

cdef bint admission_fits(Admission* admission, const Record* record) noexcept nogil:
    cdef int i
    for i in range(RESOURCES):
        if record.demand[i] and admission.held[i] + record.demand[i] > admission.capacity[i]:
            return False
    return record.demand[RESOURCE_GPU] == 0 or admission_devices(admission, record.demand[RESOURCE_GPU]) != 0


cdef bint admission_may_pass(Admission* admission, const Record* record) noexcept nogil:
    """Whether the one that is reserved for can still start once all that was there before it has ended."""
    cdef int i
    for i in range(RESOURCES):
        if record.demand[i] and admission.reservation[i] and (
                admission.behind[i] + record.demand[i] + admission.reservation[i] > admission.capacity[i]):
            return False
    return True


cdef void admission_want_no_more(Admission* admission, const Record* record) noexcept nogil:
    """If it did."""
    cdef int i
    if record.share != SHARE_WANTED:
        return
    admission.waiting -= 1
    for i in range(RESOURCES):
        admission.wanted[i] -= record.demand[i]


cdef void admission_hold(Admission* admission, Record* record) noexcept nogil:
    cdef int i
    admission_want_no_more(admission, record)
    for i in range(RESOURCES):
        admission.held[i] += record.demand[i]
    record.share = SHARE_HELD
    record_take_processors(record, &admission.processors)
    if record.demand[RESOURCE_GPU]:
        if record.devices == 0:  # else an adopted attempt brings them
            record.devices = admission_devices_for(admission, record)
        admission_take_devices(admission, record.devices, record.demand[RESOURCE_GPU])


cdef void admission_give_up(Admission* admission, Record* record) noexcept nogil:
    """Whatever share it has."""
    cdef int i
    admission_want_no_more(admission, record)
    if record.share == SHARE_HELD:
        for i in range(RESOURCES):
            admission.held[i] -= record.demand[i]
            if record.era == admission.era:
                admission.behind[i] -= record.demand[i]
        record_give_processors_back(record, &admission.processors)
        if record.devices:
            admission_take_devices(admission, record.devices, -record.demand[RESOURCE_GPU])
    record.share = SHARE_NONE


cdef void admission_reserve(Admission* admission, const Record* record) noexcept nogil:
    """For this one from now on; NULL: for none."""
    cdef int i
    if record == NULL:
        if admission.reserves:
            admission.era += 1
        admission.reserves = False
        return
    if admission.reserves and admission.reserved == record.handle:
        return
    admission.reserves = True
    admission.reserved = record.handle
    admission.era += 1
    for i in range(RESOURCES):
        admission.reservation[i] = record.demand[i]
        admission.behind[i] = 0


cdef void admission_pass(Admission* admission, array[RecordPtr]* admitted, array[RecordPtr]* dead) noexcept nogil:
    """Admit what may start now of the parked, in order, the one that is overdue for longest first; `dead`: those that
    were withdrawn."""
    cdef ParkedList* parked = &admission.parked
    cdef Alike* queue
    cdef Record* record
    cdef Record* reserved = NULL
    cdef Record* overdue
    if admission.withdrawn.exchange(0, memory_order_acquire):
        parked_purge(parked, dead)
    overdue = parked_take_overdue(parked)
    while True:
        queue = NULL
        record = overdue
        if record == NULL:
            queue = parked_next(parked)
            if queue == NULL:
                break
            record = queue.records[queue.first]
        if admission_fits(admission, record) and (reserved == NULL or admission_may_pass(admission, record)):
            admission_admit(admission, record, reserved != NULL)
            if record_change(record, RECORD_PARKED, RECORD_QUEUED):
                admitted.push_back(record)
            else:
                admission_give_up(admission, record)
                dead.push_back(record)
            if queue != NULL:
                parked_remove(parked, queue, queue.first)
        else:
            if reserved == NULL:
                reserved = record
                admission_reserve(admission, record)
            if queue == NULL:
                queue = parked_insert(parked, record)
            queue.blocked = True
        overdue = NULL
    if reserved == NULL:
        admission_reserve(admission, NULL)
    parked_tidy(parked)
    admission.crowd.store(<uint32_t> parked.count, memory_order_seq_cst)


cdef inline void admission_admit(Admission* admission, Record* record, bint passes) noexcept nogil:
    """`passes`: by the one that is reserved for."""
    cdef int i
    admission_hold(admission, record)
    if passes:
        record.era = admission.era
        for i in range(RESOURCES):
            admission.behind[i] += record.demand[i]


# ---- what the engine and the lanes call ------------------------------------------------------------------------------

cdef void admission_want(Record* record) noexcept nogil:
    """It is about to be queued."""
    cdef Admission* admission = record.admission
    cdef int i
    admission.mutex.lock()
    admission.waiting += 1
    for i in range(RESOURCES):
        admission.wanted[i] += record.demand[i]
    record.share = SHARE_WANTED
    admission.mutex.unlock()


cdef void admission_hold_anyway(Record* record) noexcept nogil:
    """It runs already."""
    record.admission.mutex.lock()
    admission_hold(record.admission, record)
    record.admission.mutex.unlock()


cdef void admission_forget(Record* record) noexcept nogil:
    """The record goes; whoever can push to the queue calls engine_admit afterwards."""
    record.admission.mutex.lock()
    admission_give_up(record.admission, record)
    record.admission.mutex.unlock()


cdef bint engine_admits(Engine* engine, Record* record) noexcept nogil:
    """Whether a record that a lane has taken may start; else it is parked, and comes back by its bucket."""
    cdef Admission* admission = record.admission
    cdef bint parks = True
    if record.share == SHARE_HELD:  # it was parked, or put back for a shortage
        return True
    admission.mutex.lock()
    if admission.parked.count == 0 and admission_fits(admission, record):
        admission_hold(admission, record)
        parks = False
    else:
        # Before it can be found: from then on kill() may withdraw it.
        record.state.store(RECORD_PARKED, memory_order_release)
        parked_insert(&admission.parked, record)
        admission.crowd.store(<uint32_t> admission.parked.count, memory_order_seq_cst)
    admission.mutex.unlock()
    if parks:
        engine_admit(engine)
    return not parks


cdef void engine_admit(Engine* engine) noexcept nogil:
    """Something was given back, or somebody has come or gone: let the parked start that may.

    seq_cst on both sides: whoever parks a record looks through here afterwards, so no give-back is missed that came
    before; one that comes after finds the crowd."""
    cdef Admission* admission = engine.admission
    cdef array[RecordPtr] admitted, dead
    cdef size_t i
    if admission.crowd.load(memory_order_seq_cst) == 0:
        return
    admission.mutex.lock()
    admission_pass(admission, &admitted, &dead)
    admission.mutex.unlock()
    for i in range(dead.size()):
        record_free(dead[i])
    for i in range(admitted.size()):
        queue_push(&engine.queue, admitted[i].home, &admitted[i].ticket)
        # The record may have run and been freed by now.
        engine_offer(engine, 0, 1)


cdef void engine_withdraw_parked(Engine* engine, array[RecordPtr]* found) noexcept nogil:
    """Move all that are parked to `found`, as if they had been popped; the caller withdraws and frees them."""
    cdef Admission* admission = engine.admission
    admission.mutex.lock()
    parked_empty(&admission.parked, found)
    admission_reserve(admission, NULL)
    admission.crowd.store(0, memory_order_seq_cst)
    admission.mutex.unlock()


cdef void admission_depths(Admission* admission, int64_t* depths) noexcept nogil:
    """Add the parked of each class."""
    cdef int i
    if admission.crowd.load(memory_order_relaxed) == 0:
        return
    admission.mutex.lock()
    for i in range(CLASSES):
        depths[i] += admission.parked.depths[i]
    admission.mutex.unlock()


cdef int64_t admission_rest(Admission* admission, int which) noexcept nogil:
    """Under the mutex: what of a resource another attempt could have at once, beside all that wait; below 0: they want
    more than there is."""
    cdef int64_t rest = admission.capacity[which] - admission.held[which] - admission.wanted[which]
    cdef int64_t beside
    if admission.reserves:
        # The one that is reserved for is among those that want; what it waits for is not to be had by others.
        beside = admission.capacity[which] - admission.behind[which] - admission.wanted[which]
        rest = min(rest + admission.reservation[which], beside)
    return rest


# ---- by the thread that owns the Core --------------------------------------------------------------------------------

RESOURCE_NAMES = ("cpus", "memory", "gpus")


cdef inline bint asks(const Record* record) noexcept nogil:
    """For anything but a worker."""
    return record.demand[RESOURCE_CPU] != 0 or record.demand[RESOURCE_MEMORY] != 0 or record.demand[RESOURCE_GPU] != 0


cdef Admission* admission_new(object cpus, object memory, object gpus, int64_t ageing_ns) except NULL:
    """None: more than anybody asks for."""
    cdef int64_t[RESOURCES] capacity
    cdef Admission* admission
    cdef tuple names = texts_of("gpus", gpus)
    cdef bytes name
    if len(names) > DEVICES_MAX or any(not 0 < len(name) < DEVICE_NAME_BYTES or b"," in name for name in names):
        raise ValueError(
            f"gpus: {names!r} are no names of up to {DEVICES_MAX} devices, each below {DEVICE_NAME_BYTES} bytes")
    capacity[RESOURCE_CPU] = PLENTY if cpus is None else whole("cpus", cpus, 0, 2**40)
    capacity[RESOURCE_MEMORY] = PLENTY if memory is None else whole("memory", memory, 0, 2**60)
    capacity[RESOURCE_GPU] = len(names) * WHOLE
    admission = new Admission()
    admission_init(admission, capacity, ageing_ns)
    for name in names:
        memcpy(admission.devices[admission.count].name, <const char*> name, len(name) + 1)
        admission.devices[admission.count].rest = WHOLE
        admission.count += 1
    return admission

# Holders: reused workers that are idle and have GPUs, of all lanes.
#
#                                  ╭─ of this lane ─► it makes the call
#     lane has a record ─► a holder that may make the call ─ of another one ─ LETTER_START ─► that lane has it
#                                  ╰─ there is none ─► a new worker, or a process of its own
#
# A library keeps the devices that it has once found, and memory on them for as long as its process lives.  So a worker
# makes calls for the devices that it was born with and for no others, and when idle it stands here, where admission
# looks for devices that suit a call, and lanes for who has them: a call goes to the worker instead of the worker to the
# call, since a worker belongs to its lane.
#
# Whoever is given devices has all others end that are idle on them.  Those that could make the same call stay if it
# holds a part of a device: several such calls ran at once, and may again.  An ended one lets go of its memory when its
# process has ended, which nobody waits for.
#
# An entry may be old when it is used: a lane that has no such worker any more makes a new one.

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef void worker_hold_devices(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """It is idle."""
    cdef Admission* admission = lane.engine.admission
    cdef Holder holder
    holder.worker = worker
    holder.key = worker.key
    holder.devices = worker.devices
    holder.lane = lane.number
    admission.mutex.lock()
    admission.holders.push_back(holder)
    admission.mutex.unlock()


cdef void worker_leave_devices(Lane* lane, WorkerProcess* worker) noexcept nogil:
    """It is not, or not any more."""
    cdef Admission* admission = lane.engine.admission
    cdef size_t i
    if worker.devices == 0:
        return
    admission.mutex.lock()
    for i in range(admission.holders.size()):
        if admission.holders[i].worker == worker:
            admission.holders[i] = admission.holders.back()
            admission.holders.pop_back()
            break
    admission.mutex.unlock()


cdef inline uint64_t key_that_stays(const Record* record) noexcept nogil:
    """Of idle workers with the record's devices, besides the one that makes its call; 0: of none."""
    return record.reuse if record.demand[RESOURCE_GPU] < WHOLE else 0


cdef int lane_of_holder(Lane* lane, const Record* record) noexcept nogil:
    """Of a worker that may make the call of a record with devices, by preference this one, which it is also if there is
    no such worker; other lanes are told to end those that have to go."""
    cdef Admission* admission = lane.engine.admission
    cdef Holder holder
    cdef Letter letter
    cdef array[int] others
    cdef int host = -1
    cdef size_t i
    admission.mutex.lock()
    for i in range(admission.holders.size()):
        holder = admission.holders[i]
        if record.reuse and holder.key == record.reuse and holder.devices == record.devices:
            if host < 0 or holder.lane == lane.number:
                host = holder.lane
    if host < 0:
        host = lane.number
    for i in range(admission.holders.size()):
        holder = admission.holders[i]
        if holder.lane != host and holder_goes(holder.key, holder.devices, record.devices, key_that_stays(record)):
            others.push_back(holder.lane)
    admission.mutex.unlock()
    letter.kind = LETTER_LET_GO
    letter.handle = record.devices
    letter.ns = <int64_t> key_that_stays(record)
    for i in range(others.size()):
        engine_post(lane.engine, others[i], letter)
    return host


cdef inline bint holder_goes(uint64_t key, uint64_t held, uint64_t devices, uint64_t staying) noexcept nogil:
    return held & devices != 0 and (key != staying or held != devices)


cdef void lane_end_holders(Lane* lane, uint64_t devices, uint64_t staying) noexcept nogil:
    """Those of this lane that are idle on `devices`, but for the ones with key `staying` and just these."""
    cdef size_t i
    for i in range(lane.workers.size()):
        if worker_is_idle(lane.workers[i]) and holder_goes(
                lane.workers[i].key, lane.workers[i].devices, devices, staying):
            worker_hang_up(lane, lane.workers[i])


cdef void lane_hand_over(Lane* lane, Record* record, int host) noexcept nogil:
    """With its slot, to the lane that starts it; from the change of state on it is that lane's."""
    cdef Letter letter
    lane.slots -= 1
    letter.kind = LETTER_START
    letter.handle = <uint64_t> record
    record_change(record, RECORD_TAKEN + <uint32_t> lane.number, RECORD_TAKEN + <uint32_t> host)
    engine_post(lane.engine, host, letter)


cdef void lane_take_over(Lane* lane, Record* record) noexcept nogil:
    """A record that another lane had taken."""
    if record.ending_grace_ns >= 0:  # it was told to end on the way
        lane_take_back_slot(lane)
        lane_withdraw_warm(lane, record)
        return
    lane.slots += 1
    lane_start_here(lane, record)
    if lane.slots > 1:
        lane_give_back(lane, 1)
        lane.surplus += 1

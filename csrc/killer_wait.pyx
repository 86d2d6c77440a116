# When the killer looks, and what it waits for.

from libc.stdint cimport int64_t

from native cimport CLOCK_BOOTTIME, POLLIN, POLLPRI, eventfd_read, eventfd_t, pollfd, ppoll, timespec

cdef enum:
    IDLE_FOR_LOOK = 4   # while leaves are dying, looks take a fifth of this thread's time at most

cdef int64_t FLOOD_NS = 250_000_000     # … and nobody waits much longer for one


cdef bint killer_is_due(Killer* killer) noexcept nogil:
    """Whether to look through /proc now."""
    cdef int64_t now_ns = now(CLOCK_BOOTTIME)
    if not killer_has_to_look(killer):
        killer.urgent = False
        killer.look_due_ns = NEVER_NS
        return False
    if killer.urgent or now_ns >= killer.look_due_ns:
        return True
    return killer.stirred and now_ns >= killer_stirred_due_ns(killer)


cdef int64_t killer_stirred_due_ns(const Killer* killer) noexcept nogil:
    """When to look after those whose leaf is empty: together with others that are about to be.  A look takes as long as
    the end of many trees, and meanwhile no further ones are killed."""
    if not killer_floods(killer):
        return 0
    return max(killer.stirred_ns + FLOOD_NS, killer.looked_ns + IDLE_FOR_LOOK * killer.look_ns)


cdef int64_t killer_deadline_ns(Killer* killer) noexcept nogil:
    """When there is something to do, if nobody asks before; NEVER_NS: then only."""
    cdef int64_t deadline_ns = killer.look_due_ns
    if killer.subreaper and not killer_floods(killer):
        deadline_ns = min(deadline_ns, killer.orphans_ns)
    if killer.stirred:
        deadline_ns = min(deadline_ns, killer_stirred_due_ns(killer))
    if not killer.dying.empty():
        deadline_ns = min(deadline_ns, now(CLOCK_BOOTTIME) + killer.leaf_pause_ns)
        killer.leaf_pause_ns = min(2 * killer.leaf_pause_ns, LEAF_LOOK_LAST_NS)
    return deadline_ns


cdef int64_t killer_next_look_ns(Killer* killer) noexcept nogil:
    """When to look again, on CLOCK_BOOTTIME; NEVER_NS: when there is more to look at."""
    cdef int64_t longest_ns = -1
    cdef Tree* tree
    cdef size_t i
    for i in range(killer.trees.size()):
        tree = killer.trees[i]
        if tree.by_leaf:
            continue
        if tree.phase == TREE_KILL and not tree.told:
            longest_ns = SCAN_KILL_NS
            break
        if tree.phase >= TREE_WATCH:
            longest_ns = SCAN_WATCH_NS
    for i in range(killer.trees.size()):
        if killer.trees[i].empty_looks:
            return now(CLOCK_BOOTTIME)  # the second look follows at once
    if longest_ns < 0:
        return NEVER_NS
    # At most half of the time is spent with looking: what dies needs the processor as well.
    killer.pause_ns = max(min(killer.pause_ns, longest_ns), killer.look_ns)
    longest_ns = now(CLOCK_BOOTTIME) + killer.pause_ns
    killer.pause_ns *= 2
    return longest_ns


cdef void killer_wait(Killer* killer) noexcept nogil:
    """Until somebody asks, a leaf changes, all whose end is waited for have ended, or it is time."""
    cdef int64_t deadline_ns = killer_deadline_ns(killer), rest_ns
    cdef timespec rest
    cdef eventfd_t value
    cdef size_t i, first = killer_watch_all(killer), count = killer.watched.size()
    cdef bint hinted = count > first
    while count > first or not hinted:
        if deadline_ns != NEVER_NS:
            rest_ns = deadline_ns - now(CLOCK_BOOTTIME)
            if rest_ns <= 0:
                return
            rest.tv_sec = rest_ns // NS_PER_S
            rest.tv_nsec = rest_ns % NS_PER_S
        if ppoll(killer.watched.data(), count, &rest if deadline_ns != NEVER_NS else NULL, NULL) <= 0:
            continue
        if killer.watched[0].revents:
            eventfd_read(killer.bell, &value)
        for i in range(first):
            if killer.watched[i].revents:
                return
        for i in range(count - 1, first - 1, -1):
            if killer.watched[i].revents:
                count -= 1
                killer.watched[i] = killer.watched[count]
    killer.urgent = True


cdef size_t killer_watch_all(Killer* killer) noexcept nogil:
    """The bell, what tells of leaves, and hints from the result on."""
    cdef size_t i, first
    killer.watched.clear()
    killer_watch(killer, killer.bell, POLLIN)
    for i in range(killer.dying.size()):
        killer_watch(killer, killer.dying[i].events, POLLPRI)
    first = killer.watched.size()
    for i in range(killer.hints.size()):
        killer_watch(killer, killer.hints[i], POLLIN)
    return first


cdef void killer_watch(Killer* killer, int file, short events) noexcept nogil:
    cdef pollfd watched
    watched.fd = file
    watched.events = events
    watched.revents = 0
    killer.watched.push_back(watched)

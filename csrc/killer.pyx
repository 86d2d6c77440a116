# The killer: one thread that sees to it that nothing of an attempt that was told to end outlives its end.
#
#     lane ── TERM, WATCH, KILL ──► killer ── gone / survives ──► lane
#
# It looks through /proc, once for all trees that are being ended, and at the numbers that were given out meanwhile.
# Then it signals, first the leader's group, then every other member; and so on until nothing is left of them.  The
# first scan of a phase lists all members before it signals any, so that those without a mark are found through their
# parents (strays.pyx); the later ones kill on sight.  Whatever a member forks meanwhile carries the mark, so the next
# scan meets it.
#
# A signal goes to a pidfd, and only if the process was recognised once more after the pidfd had been opened and is
# still there after that: then what was recognised is what the pidfd holds, whoever had the number before.
#
# Trees that have a control group of their own are killed by the kernel, and looked for only after that
# (leaf_killer.pyx).
#
# In a process that is a subreaper it also collects the orphans that attempts leave.

from cython.operator cimport dereference
from libc.errno cimport EMFILE, ENFILE, ENOMEM, errno
from libc.signal cimport SIGCONT, SIGKILL, SIGTERM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport atoi
from libc.string cimport strrchr
from libcpp.atomic cimport memory_order_acquire
from libcpp.unordered_map cimport unordered_map
from posix.fcntl cimport O_RDONLY, open as open_file
from posix.resource cimport PRIO_PROCESS, setpriority
from posix.types cimport pid_t
from posix.unistd cimport close, getpid, getpgid, getsid, pread

from native cimport (
    CLOCK_BOOTTIME,
    DIR,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    O_CLOEXEC,
    array,
    closedir,
    dirent,
    eventfd,
    eventfd_write,
    opendir,
    padded_mutex,
    pidfd_ended,
    pidfd_open,
    pidfd_send_signal,
    pollfd,
    readdir,
    rewinddir,
    thread,
)

cdef enum:
    NEWCOMERS_MAX = 1 << 16             # looked at one by one at the end of a look
    HINTS = 64                          # members whose end is waited for; the others are found by the next scan
    STRAYS_MAX = 1024                   # remembered of one tree

cdef int64_t SCAN_FIRST_NS = 1_000_000
cdef int64_t SCAN_KILL_NS = 50_000_000      # longest pause between two scans while something must die
cdef int64_t SCAN_WATCH_NS = 250_000_000    # … while something has its grace, or survives
cdef int64_t ORPHANS_NS = 1_000_000_000     # between two looks for ended orphans
cdef int64_t SURVIVES_NS = 5_000_000_000    # after KILL: say so


cdef struct Request:
    Record* record
    int lane
    TreePhase phase
    uint32_t number     # of the record's requests, from 1


cdef cppclass Killer:
    Engine* engine
    thread* runner
    padded_mutex mutex
    array[Request] requests     # guarded by the mutex
    int bell                    # eventfd
    DIR* proc
    int loadavg                 # a file that tells the last number given to a process; -1: it is not to be had
    bint sure                   # the last look has missed nobody
    int spare                   # a descriptor to let go when there are no others
    pid_t own
    pid_t session
    bint subreaper
    array[TreePtr] trees
    unordered_map[uint64_t, TreePtr] by_mark
    unordered_map[pid_t, TreePtr] by_session
    array[Member] members       # met in this scan and not yet signalled: of trees whose phase is fresh, and all strays
    array[Stranger] strangers   # met in this scan, and who may be strays
    array[int] hints            # pidfds
    size_t oldest_hint          # once there are HINTS
    array[pid_t] children
    array[char] environment
    array[TreePtr] line         # trees that wait for the KILL of their leaf, from `line_first` on
    size_t line_first
    array[Dying] dying
    int64_t leaf_pause_ns       # until the next look at those
    array[pollfd] watched
    bint urgent                 # somebody asked for what takes a scan, or those whose end was waited for have ended
    bint stirred                # a leaf is empty, and what may have left it was not looked for …
    int64_t stirred_ns          # … since then
    int64_t look_due_ns         # the next scan; CLOCK_BOOTTIME
    int64_t looked_ns           # the end of the last one
    int64_t look_ns             # how long it took, without its signals
    int64_t pause_ns
    int64_t orphans_ns          # the next look


# ---- the lanes' side -------------------------------------------------------------------------------------------------

cdef void killer_ask(Killer* killer, Record* record, int lane, TreePhase phase) noexcept nogil:
    """The record must stay until the answer to this request, see lane_gone."""
    cdef Request request
    record.asked += 1
    request.record = record
    request.lane = lane
    request.phase = phase
    request.number = record.asked
    killer.mutex.lock()
    killer.requests.push_back(request)
    killer.mutex.unlock()
    eventfd_write(killer.bell, 1)


cdef void killer_answer(Killer* killer, Tree* tree, LetterKind kind, int64_t figure) noexcept nogil:
    cdef Letter letter
    letter.kind = kind
    letter.cause = CAUSED_BY_NOTHING
    letter.handle = <uint64_t> tree.record
    letter.ns = figure
    engine_post(killer.engine, tree.lane, letter)


# ---- the thread ------------------------------------------------------------------------------------------------------

cdef void killer_main(void* argument) noexcept nogil:
    cdef Killer* killer = <Killer*> argument
    setpriority(PRIO_PROCESS, 0, -20)  # this thread; refused to users.  What it has to end may keep every CPU busy
    while killer.engine.stopping.load(memory_order_acquire) == 0:
        killer_take_requests(killer)
        killer_end_leaves(killer)
        if killer_is_due(killer):
            killer_scan(killer)
            killer_settle(killer)
            killer.look_due_ns = killer_next_look_ns(killer)
            killer.urgent = killer.stirred = False
        if killer.subreaper and now(CLOCK_BOOTTIME) >= killer.orphans_ns and not killer_floods(killer):
            killer_look_after_orphans(killer)
            killer.orphans_ns = now(CLOCK_BOOTTIME) + ORPHANS_NS
        killer_wait(killer)
    if killer.subreaper:
        killer_look_after_orphans(killer)


cdef void killer_take_requests(Killer* killer) noexcept nogil:
    cdef array[Request] requests
    cdef Tree* tree
    cdef size_t i
    killer.mutex.lock()
    requests.swap(killer.requests)
    killer.mutex.unlock()
    for i in range(requests.size()):
        tree = requests[i].record.tree
        if tree == NULL:
            tree = killer_adopt(killer, &requests[i])
        tree.asked = requests[i].number  # not counted here: an earlier tree of this record may have seen some
        if requests[i].phase >= tree.phase:
            if requests[i].phase == TREE_KILL and tree.phase != TREE_KILL:
                tree.killed_ns = now(CLOCK_BOOTTIME)
            tree.phase = requests[i].phase
            tree.fresh = True
        if tree.phase == TREE_KILL and tree.record.leaf != NULL:
            killer_queue(killer, tree)
        else:
            killer.urgent = True
        killer.pause_ns = SCAN_FIRST_NS


cdef bint killer_has_to_look(Killer* killer) noexcept nogil:
    cdef size_t i
    for i in range(killer.trees.size()):
        if not killer.trees[i].by_leaf and (killer.trees[i].fresh or killer.trees[i].phase >= TREE_WATCH):
            return True
    return False


cdef Tree* killer_adopt(Killer* killer, const Request* request) noexcept nogil:
    cdef Tree* tree = new Tree()
    cdef uint64_t mark = mark_of_limit(killer.engine.mark_place, &killer.engine.own_mark, &request.record.mark)
    tree.record = request.record
    tree.lane = request.lane
    request.record.tree = tree
    killer.trees.push_back(tree)
    killer.by_session[request.record.pid] = tree
    if mark:
        killer.by_mark[mark] = tree
    return tree


# ---- one look through /proc ------------------------------------------------------------------------------------------

cdef void killer_scan(Killer* killer) noexcept nogil:
    """Count every process of every tree, and signal what its phase wants signalled."""
    cdef int64_t begun_ns
    cdef Tree* tree
    cdef size_t i
    killer.session = getsid(0)
    killer.members.clear()
    killer_drop_hints(killer)
    for i in range(killer.trees.size()):
        if killer.trees[i].by_leaf:
            continue
        killer.trees[i].alive = 0
        killer.trees[i].leader_ended = pidfd_ended(killer.trees[i].record.pidfd)  # it forks no more from here on
        killer_review_strays(killer, killer.trees[i])
    if killer.subreaper:
        if killer_looks_beyond_leaves(killer):
            killer_look_after_orphans(killer)  # before all others are listed: the fewer zombies are among them
        else:
            killer.orphans_ns = killer.looked_ns  # after this
    begun_ns = now(CLOCK_BOOTTIME)
    killer_list_members(killer)
    killer_ask_leaves(killer)
    killer_follow_descent(killer)
    killer.look_ns = now(CLOCK_BOOTTIME) - begun_ns
    # Only now, when every member is known, may ancestors die.
    for i in range(killer.trees.size()):
        tree = killer.trees[i]
        if not tree.by_leaf and (tree.fresh or tree.phase == TREE_KILL):
            killer_signal_group(tree)
    for i in range(killer.members.size()):
        killer_signal(killer, &killer.members[i])
    for i in range(killer.trees.size()):
        killer.trees[i].fresh = False
    killer.looked_ns = now(CLOCK_BOOTTIME)


cdef void killer_list_members(Killer* killer) noexcept nogil:
    """Every process that carries a tree's mark or is in its session, without leaders: noted if the tree's phase is
    fresh, else signalled at once.  And who may be a member without a mark, if any tree is looking for those."""
    cdef bint looking = killer_looks_for_strays(killer)
    cdef dirent* entry
    cdef pid_t newest = newest_pid(killer)
    rewinddir(killer.proc)
    entry = readdir(killer.proc)
    while entry != NULL:
        killer_meet(killer, atoi(entry.d_name), looking)
        entry = readdir(killer.proc)
    killer.sure = newest < 0 or killer_meet_newcomers(killer, newest, looking)


cdef bint killer_meet_newcomers(Killer* killer, pid_t last, bint looking) noexcept nogil:
    """Look at the numbers given out since `last` was the newest; False: not at all of them.

    The kernel lists many processes at once.  One that was listed may have forked and ended before it is looked at, and
    its child's number lies behind the list; a chain of such children is never met by a listing.  Numbers are given out
    in ascending order, and a process that does not show yet under its number has a parent that does until then.  So
    whatever lives when the newest number has been looked at was met itself, or its parent was."""
    cdef pid_t newest = newest_pid(killer)
    cdef int rest = NEWCOMERS_MAX
    while newest != last:
        if newest < last:
            return False  # they have begun anew
        while last < newest:
            if rest == 0:
                return False
            rest -= 1
            last += 1
            killer_meet(killer, last, looking)
        newest = newest_pid(killer)
    return True


cdef pid_t newest_pid(Killer* killer) noexcept nogil:
    """The last number given to a process or thread; -1: the kernel does not tell."""
    cdef char[128] text
    cdef const char* last
    cdef ssize_t size = pread(killer.loadavg, text, sizeof(text) - 1, 0) if killer.loadavg >= 0 else -1
    if size <= 0:
        return -1
    text[size] = 0
    last = strrchr(text, c' ')
    return atoi(last) if last != NULL else -1


cdef void killer_meet(Killer* killer, pid_t pid, bint looking) noexcept nogil:
    cdef Member member
    if pid <= 0 or pid == killer.own:
        return
    member.pid = pid
    member.pidfd = -1
    member.tree = killer_owner(killer, pid)
    if member.tree == NULL:
        if looking:
            killer_note_stranger(killer, pid)
    elif pid != member.tree.record.pid and not member.tree.by_leaf:
        if member.tree.fresh:
            killer.members.push_back(member)
        else:
            killer_signal(killer, &member)


cdef Tree* killer_owner(Killer* killer, pid_t pid) noexcept nogil:
    """The tree to which the process seems to belong, by mark or session; NULL: none."""
    cdef unordered_map[uint64_t, TreePtr].iterator marked
    cdef unordered_map[pid_t, TreePtr].iterator led
    cdef uint64_t mark = 0
    if mark_of_process(pid, killer.engine.mark_place, &killer.engine.own_mark, &mark) and mark:
        marked = killer.by_mark.find(mark)
        if marked != killer.by_mark.end():
            return dereference(marked).second
    led = killer.by_session.find(getsid(pid))
    return dereference(led).second if led != killer.by_session.end() else NULL


cdef bint killer_recognises(Killer* killer, const Member* member) noexcept nogil:
    """Whether the process that has the number of a member is that member."""
    if member.pidfd >= 0:
        return not pidfd_ended(member.pidfd)
    return is_marked(member.tree.record, member.pid, killer.engine.mark_place, &killer.engine.own_mark)


cdef void killer_signal_group(Tree* tree) noexcept nogil:
    """The leader and its group, by the number that the leader, running or not yet collected, holds."""
    if tree.phase == TREE_KILL:
        record_signal(tree.record, SIGKILL)
    elif tree.phase == TREE_TERM:
        record_signal(tree.record, SIGTERM)
        record_signal(tree.record, SIGCONT)  # a stopped process acts on TERM only when it goes on


cdef void killer_signal(Killer* killer, const Member* member) noexcept nogil:
    """Count a member that lives, and give it what its phase asks for."""
    cdef Tree* tree = member.tree
    cdef int pidfd
    if tree.fresh and tree.phase == TREE_KILL and killer.hints.size() == HINTS \
            and getpgid(member.pid) == tree.record.pid:
        tree.alive += 1  # killed with the leader's group; the next scan looks closer
        return
    pidfd = member.pidfd if member.pidfd >= 0 else killer_open(killer, member.pid)
    if pidfd < 0:
        if errno == EMFILE or errno == ENFILE or errno == ENOMEM:
            tree.alive += 1  # as far as we know
        return
    if killer_recognises(killer, member) and not pidfd_ended(pidfd):
        tree.alive += 1
        tree.gone_ns = 0
        if tree.phase == TREE_KILL:
            pidfd_send_signal(pidfd, SIGKILL)
        elif tree.phase == TREE_TERM and tree.fresh and getpgid(member.pid) != tree.record.pid:
            pidfd_send_signal(pidfd, SIGTERM)
            pidfd_send_signal(pidfd, SIGCONT)
        if member.pidfd < 0 and tree.phase >= TREE_WATCH:
            killer_hint(killer, pidfd)
            return
    if member.pidfd < 0:
        close(pidfd)


cdef void killer_hint(Killer* killer, int pidfd) noexcept nogil:
    """Wait for its end before the next scan.  The last ones to be signalled are the last to end."""
    if killer.hints.size() < HINTS:
        killer.hints.push_back(pidfd)
        return
    close(killer.hints[killer.oldest_hint])
    killer.hints[killer.oldest_hint] = pidfd
    killer.oldest_hint = (killer.oldest_hint + 1) % HINTS


cdef int killer_open(Killer* killer, pid_t pid) noexcept nogil:
    """A pidfd, be it the last descriptor there is; -1 with errno."""
    cdef int pidfd = pidfd_open(pid)
    if pidfd < 0 and (errno == EMFILE or errno == ENFILE) and killer.spare >= 0:
        close(killer.spare)
        killer.spare = -1
        pidfd = pidfd_open(pid)
    elif killer.spare < 0:
        killer.spare = eventfd(0, EFD_CLOEXEC)
    return pidfd


# ---- what follows from a look ----------------------------------------------------------------------------------------

cdef bint tree_seems_gone(const Killer* killer, const Tree* tree) noexcept nogil:
    if not tree.leader_ended or tree.alive or not killer.sure:
        return False
    return tree.record.leaf == NULL or not leaf_has_members(tree.record.leaf.leaves, tree.record.leaf)


cdef void killer_settle(Killer* killer) noexcept nogil:
    """Tell of trees that are gone, and of those that survive.

    Gone is what a look that is sure has not found; where none is to be had, what two in a row have not found."""
    cdef Tree* tree
    cdef size_t i, kept = 0
    cdef uint32_t enough = 1 if killer.loadavg >= 0 else 2
    for i in range(killer.trees.size()):
        tree = killer.trees[i]
        if tree.phase >= TREE_WATCH and not tree.by_leaf:
            tree.empty_looks = tree.empty_looks + 1 if tree_seems_gone(killer, tree) else 0
            if tree.empty_looks == enough:
                killer_dismiss(killer, tree)
                continue
            if tree.phase == TREE_KILL and not tree.told and now(CLOCK_BOOTTIME) - tree.killed_ns >= SURVIVES_NS:
                tree.told = True
                killer_answer(killer, tree, LETTER_SURVIVES, tree.alive + (not tree.leader_ended))
        killer.trees[kept] = tree
        kept += 1
    killer.trees.resize(kept)


cdef void killer_dismiss(Killer* killer, Tree* tree) noexcept nogil:
    """The tree is gone.  The lane frees the record when it has read this, unless it has asked for more meanwhile: then
    the next request begins a new tree, which is found gone at once, and the answer to that is the lane's last one."""
    cdef Record* record = tree.record
    cdef size_t i
    for i in range(tree.strays.size()):
        close(tree.strays[i].pidfd)
    killer.by_session.erase(record.pid)
    killer.by_mark.erase(mark_of_limit(killer.engine.mark_place, &killer.engine.own_mark, &record.mark))
    record.tree = NULL
    if tree.phase == TREE_KILL:
        record.kill_ns = (tree.gone_ns if tree.gone_ns else now(CLOCK_BOOTTIME)) - tree.killed_ns
    killer_answer(killer, tree, LETTER_GONE, tree.asked)
    del tree


cdef void killer_drop_hints(Killer* killer) noexcept nogil:
    cdef size_t i
    for i in range(killer.hints.size()):
        close(killer.hints[i])
    killer.hints.clear()
    killer.oldest_hint = 0


# ---- construction and end, by the thread that owns the Core ----------------------------------------------------------

cdef Killer* killer_new(Engine* engine, bint subreaper) noexcept nogil:
    cdef Killer* killer = new Killer()
    killer.engine = engine
    killer.subreaper = subreaper
    killer.own = getpid()
    killer.bell = killer.spare = killer.loadavg = -1
    killer.look_due_ns = NEVER_NS
    return killer


cdef bint killer_open_all(Killer* killer) noexcept nogil:
    """Get everything but the thread; False with errno."""
    killer.proc = opendir(b"/proc")
    killer.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    killer.spare = eventfd(0, EFD_CLOEXEC)
    killer.loadavg = open_file(b"/proc/loadavg", O_RDONLY | O_CLOEXEC)
    return killer.proc != NULL and killer.bell >= 0 and killer.spare >= 0


cdef void killer_free(Killer* killer) noexcept nogil:
    """After its thread has ended, and before the records go."""
    cdef size_t i, k
    killer_drop_hints(killer)
    for i in range(killer.dying.size()):
        close(killer.dying[i].events)
    for i in range(killer.trees.size()):
        for k in range(killer.trees[i].strays.size()):
            close(killer.trees[i].strays[k].pidfd)
        del killer.trees[i]
    if killer.proc != NULL:
        closedir(killer.proc)
    if killer.bell >= 0:
        close(killer.bell)
    if killer.spare >= 0:
        close(killer.spare)
    if killer.loadavg >= 0:
        close(killer.loadavg)
    del killer

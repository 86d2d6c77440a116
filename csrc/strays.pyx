# Strays: members of a tree that carry no mark of it, because they have set the limit themselves (tree.pyx).
#
# Two things give one away: its parent, as long as that lives, and, of an orphan that this process adopted, its
# environment.  Parents are asked when TERM and when KILL are due, before any of them is signalled.  A tree that turns
# out to have strays is stopped before KILL and looked at again: what forks and sheds its mark all the time does so no
# more.  From then on a stray is remembered by a pidfd.

from cython.operator cimport dereference
from libc.signal cimport SIGSTOP
from libcpp.unordered_map cimport unordered_map
from posix.resource cimport rlimit
from posix.types cimport pid_t
from posix.unistd cimport close, getsid
from posix.wait cimport WNOHANG, waitpid

from native cimport RLIMIT_RTTIME, pidfd_ended, pidfd_open, pidfd_send_signal, prlimit


cdef bint killer_looks_for_strays(Killer* killer) noexcept nogil:
    cdef size_t i
    killer.strangers.clear()
    for i in range(killer.trees.size()):
        if tree_looks_for_strays(killer.trees[i]):
            return True
    return False


cdef void killer_note_stranger(Killer* killer, pid_t pid) noexcept nogil:
    """Remember who may be a stray.  Nobody in our own session is: who has left it does not come back; nor who is in
    none that has a number here: a thread of the kernel."""
    cdef Stranger stranger
    cdef pid_t session = getsid(pid)
    if session > 0 and session != killer.session:
        stranger.pid = pid
        stranger.parent = -1
        killer.strangers.push_back(stranger)


cdef void killer_review_strays(Killer* killer, Tree* tree) noexcept nogil:
    """Those that live are members again; the others are forgotten."""
    cdef Member member
    cdef size_t i, kept = 0
    for i in range(tree.strays.size()):
        if pidfd_ended(tree.strays[i].pidfd):
            close(tree.strays[i].pidfd)
            continue
        member.tree = tree
        member.pid = tree.strays[i].pid
        member.pidfd = tree.strays[i].pidfd
        killer.members.push_back(member)
        tree.strays[kept] = tree.strays[i]
        kept += 1
    tree.strays.resize(kept)


# ---- descent ---------------------------------------------------------------------------------------------------------

cdef void killer_follow_descent(Killer* killer) noexcept nogil:
    """Find the children of members that carry no mark of their tree: of all members in the first scan of a phase, of
    strays in the later ones.  In the first one, all members are asked for their children, or all strangers for their
    parents: the fewer are asked."""
    cdef size_t i
    cdef bint shed = False
    if killer.strangers.empty() or killer.strangers.size() >= killer.members.size():
        killer_search_downwards(killer)
    else:
        killer_search_upwards(killer)
    for i in range(killer.trees.size()):
        shed = shed or tree_sheds(killer.trees[i])
    if shed:
        killer_stop_members(killer)
        killer_search_downwards(killer)


cdef inline bint tree_looks_for_strays(const Tree* tree) noexcept nogil:
    """Whether its phase asks for it, and has begun with this scan."""
    return tree.fresh and tree.phase != TREE_WATCH and not tree.by_leaf


cdef inline bint is_followed(const Member* member) noexcept nogil:
    return tree_looks_for_strays(member.tree) or (member.pidfd >= 0 and member.tree.phase == TREE_KILL)


cdef inline bint tree_sheds(const Tree* tree) noexcept nogil:
    return tree.fresh and tree.phase == TREE_KILL and not tree.strays.empty()


cdef void killer_search_downwards(Killer* killer) noexcept nogil:
    cdef Member member
    cdef size_t i
    for i in range(killer.trees.size()):
        if tree_looks_for_strays(killer.trees[i]):
            member = leader_of(killer.trees[i])
            killer_follow(killer, &member)
    i = 0
    while i < killer.members.size():  # it grows
        member = killer.members[i]
        if is_followed(&member):
            killer_follow(killer, &member)
        i += 1


cdef void killer_search_upwards(Killer* killer) noexcept nogil:
    cdef unordered_map[pid_t, Member] parents
    cdef unordered_map[pid_t, Member].iterator found
    cdef Stranger* stranger
    cdef size_t i, known
    for i in range(killer.trees.size()):
        if tree_looks_for_strays(killer.trees[i]):
            parents[killer.trees[i].record.pid] = leader_of(killer.trees[i])
    for i in range(killer.members.size()):
        if is_followed(&killer.members[i]):
            parents[killer.members[i].pid] = killer.members[i]
    for i in range(killer.strangers.size()):
        killer.strangers[i].parent = parent_of(killer.strangers[i].pid)
    known = killer.members.size() + 1
    while known != killer.members.size():  # the children of strays found in this round are found in the next
        known = killer.members.size()
        for i in range(killer.strangers.size()):
            stranger = &killer.strangers[i]
            found = parents.find(stranger.parent)
            if found != parents.end() and killer_try(killer, &dereference(found).second, stranger.pid):
                parents[stranger.pid] = killer.members.back()


cdef Member leader_of(Tree* tree) noexcept nogil:
    cdef Member leader
    leader.tree = tree
    leader.pid = tree.record.pid
    leader.pidfd = tree.record.pidfd
    return leader


cdef void killer_follow(Killer* killer, const Member* parent) noexcept nogil:
    cdef size_t i
    killer.children.clear()
    children_of(parent.pid, &killer.children)
    for i in range(killer.children.size()):
        if killer_owner(killer, killer.children[i]) == NULL:
            killer_try(killer, parent, killer.children[i])


cdef bint killer_try(Killer* killer, const Member* parent, pid_t child) noexcept nogil:
    """Remember a child of a member; False: it is none, or is remembered already."""
    cdef int pidfd = pidfd_open(child)
    # The child's parent has this number; and who has this number is a member, before and after.
    if pidfd >= 0 and killer_recognises(killer, parent) and parent_of(child) == parent.pid \
            and killer_recognises(killer, parent):
        return killer_remember(killer, parent.tree, child, pidfd)
    if pidfd >= 0:
        close(pidfd)
    return False


cdef bint killer_remember(Killer* killer, Tree* tree, pid_t pid, int pidfd) noexcept nogil:
    """Take over a pidfd that was opened before its process was recognised; False: it is not new."""
    cdef Member member
    cdef Stray stray
    cdef size_t i
    for i in range(tree.strays.size()):
        if tree.strays[i].pid == pid:
            close(pidfd)
            return False
    if pidfd_ended(pidfd) or tree.strays.size() == STRAYS_MAX:
        close(pidfd)
        return False
    member.tree = tree
    member.pid = stray.pid = pid
    member.pidfd = stray.pidfd = pidfd
    tree.strays.push_back(stray)
    killer.members.push_back(member)
    return True


cdef void killer_stop_members(Killer* killer) noexcept nogil:
    """The trees that are to be killed and have strays shall not fork while their descent is followed once more."""
    cdef Member* member
    cdef size_t i
    cdef int pidfd
    for i in range(killer.trees.size()):
        if tree_sheds(killer.trees[i]):
            record_signal(killer.trees[i].record, SIGSTOP)
    for i in range(killer.members.size()):
        member = &killer.members[i]
        if not tree_sheds(member.tree):
            continue
        pidfd = member.pidfd if member.pidfd >= 0 else killer_open(killer, member.pid)
        if pidfd >= 0 and killer_recognises(killer, member):
            pidfd_send_signal(pidfd, SIGSTOP)
        if pidfd >= 0 and member.pidfd < 0:
            close(pidfd)


# ---- orphans that this process adopted -------------------------------------------------------------------------------
#
# The kernel gives them to the main thread, while the leaders are children of the lanes: so they are listed by
# themselves.  Children of Python's own have this process's limit of real-time CPU, and are left alone.

cdef void killer_list_orphans(Killer* killer) noexcept nogil:
    cdef size_t i, kept = 0
    killer.children.clear()
    children_of_thread(killer.own, killer.own, &killer.children)
    for i in range(killer.children.size()):
        if getsid(killer.children[i]) != killer.session:
            killer.children[kept] = killer.children[i]
            kept += 1
    killer.children.resize(kept)


cdef void killer_look_after_orphans(Killer* killer) noexcept nogil:
    """Reap those that have ended, and recognise those that live and have no mark by their environment.

    Only the main thread's own wait could be faster, and no waiter for all (-1) is used: that would steal what others
    wait for."""
    cdef rlimit* own = &killer.engine.own_mark
    cdef rlimit limit
    cdef pid_t orphan
    cdef size_t i
    killer_list_orphans(killer)
    for i in range(killer.children.size()):
        orphan = killer.children[i]
        if prlimit(orphan, RLIMIT_RTTIME, NULL, &limit) != 0:
            continue
        if (limit.rlim_max != own.rlim_max or limit.rlim_cur != own.rlim_cur) and waitpid(orphan, NULL, WNOHANG) != 0:
            continue
        if not killer.trees.empty() and mark_of_limit(killer.engine.mark_place, own, &limit) == 0:
            killer_recognise_orphan(killer, orphan)


cdef void killer_recognise_orphan(Killer* killer, pid_t orphan) noexcept nogil:
    cdef Tree* tree = NULL
    cdef size_t i
    cdef int pidfd = pidfd_open(orphan)  # our child: only this thread reaps it, so the number stays its own
    if pidfd < 0:
        return
    if read_environment(orphan, &killer.environment):
        for i in range(killer.trees.size()):
            if has_identity(&killer.environment, killer.trees[i].record):
                tree = killer.trees[i]
                break
    if tree != NULL and parent_of(orphan) == killer.own:
        killer_remember(killer, tree, orphan, pidfd)
    else:
        close(pidfd)

# The trees of attempts that have a leaf (leaf.pyx): the kernel ends them at one word, whatever they do meanwhile.
#
#     KILL asked for ──► in line ──cgroup.kill──► dying ──nobody is left in the leaf──► looked for as any other tree
#                           │                       ╰──2 s─────────────────────────────────▲
#                           ╰──no descriptor, …────────────────────────────────────────────╯
#
# TERM goes the way of all trees, through /proc; what is in the leaf and has shed all marks is found there.  Until KILL
# a tree is gone only when its leaf is empty as well.
#
# The look at the end is for what is in the leaf no more: `systemd-run --scope` and container engines move processes
# into cgroups of their own, and whoever may write there can.  It finds them by their marks, and ends them.  It also
# tells who survives.
#
# Trees are killed AT_ONCE, in the order in which that was asked for.  The kernel ends the processes of all that are
# killed by turns, so each would last as long as all together, and this thread and the lanes would stand in line behind
# thousands.  One that does not end holds up the others for PACE_NS.

from libc.stdint cimport int64_t
from posix.types cimport pid_t
from posix.unistd cimport close

from native cimport CLOCK_BOOTTIME, pidfd_ended, pidfd_open

cdef enum:
    AT_ONCE = 32

cdef int64_t PACE_NS = 100_000_000
cdef int64_t LEAF_PATIENCE_NS = 2_000_000_000
cdef int64_t LEAF_LOOK_FIRST_NS = 1_000_000     # the kernel tells when a leaf is empty, at most every 10 ms
cdef int64_t LEAF_LOOK_LAST_NS = 50_000_000


cdef void killer_end_leaves(Killer* killer) noexcept nogil:
    killer_review_dying(killer)
    killer_kill_in_line(killer)


cdef void killer_queue(Killer* killer, Tree* tree) noexcept nogil:
    """It is to be killed, and has a leaf."""
    tree.fresh = False
    if tree.by_leaf:
        return
    tree.by_leaf = True
    killer.line.push_back(tree)


cdef void killer_review_dying(Killer* killer) noexcept nogil:
    """Let go of those of whom nobody is left in their leaf, or who take too long."""
    cdef Dying* dying
    cdef int64_t now_ns = now(CLOCK_BOOTTIME)
    cdef size_t i, kept = 0
    for i in range(killer.dying.size()):
        dying = &killer.dying[i]
        if dying_is_gone(dying):
            killer_leave_leaf(killer, dying, False)
        elif now_ns - dying.killed_ns >= LEAF_PATIENCE_NS:
            killer_leave_leaf(killer, dying, True)
        else:
            killer.dying[kept] = dying[0]
            kept += 1
    if kept != killer.dying.size():
        killer.leaf_pause_ns = LEAF_LOOK_FIRST_NS
    killer.dying.resize(kept)


cdef bint dying_is_gone(const Dying* dying) noexcept nogil:
    """The leaf is left a moment before the end of a process shows; and the leader may have left it alive."""
    if not says(dying.events, b"populated 0\n"):
        return False
    if pidfd_ended(dying.tree.record.pidfd):
        return True
    record_signal(dying.tree.record, SIGKILL)
    return False


cdef void killer_leave_leaf(Killer* killer, const Dying* dying, bint fresh) noexcept nogil:
    """From here on its tree is looked for; `fresh`: as one that has not been killed."""
    close(dying.events)
    dying.tree.by_leaf = False
    dying.tree.fresh = fresh
    dying.tree.gone_ns = 0 if fresh else now(CLOCK_BOOTTIME)
    if not killer.stirred:
        killer.stirred = True
        killer.stirred_ns = now(CLOCK_BOOTTIME)


cdef void killer_kill_in_line(Killer* killer) noexcept nogil:
    cdef size_t busy = killer_just_killed(killer)
    while busy < AT_ONCE and killer.line_first < killer.line.size():
        killer_kill_leaf(killer, killer.line[killer.line_first])
        killer.line_first += 1
        busy += 1
    if killer.line_first == killer.line.size():
        killer.line.clear()
        killer.line_first = 0


cdef void killer_kill_leaf(Killer* killer, Tree* tree) noexcept nogil:
    cdef const Leaves* leaves = tree.record.leaf.leaves
    cdef Dying dying
    dying.tree = tree
    dying.killed_ns = tree.killed_ns = now(CLOCK_BOOTTIME)
    dying.events = leaf_open_events(leaves, tree.record.leaf)
    if dying.events >= 0 and leaf_kill(leaves, tree.record.leaf):
        says(dying.events, b"")  # poll tells of changes since it was read
        killer.dying.push_back(dying)
        killer.leaf_pause_ns = LEAF_LOOK_FIRST_NS
        return
    if dying.events >= 0:
        close(dying.events)
    tree.by_leaf = False
    tree.fresh = True
    killer.urgent = True


cdef void killer_ask_leaves(Killer* killer) noexcept nogil:
    """Who is in the leaf of a tree that is to get its TERM is a member, though nothing else gives it away."""
    cdef const Leaf* leaf
    cdef Tree* tree
    cdef size_t i, k
    for i in range(killer.trees.size()):
        tree = killer.trees[i]
        leaf = tree.record.leaf
        if tree.by_leaf or not tree.fresh or leaf == NULL or leaf.leaves.own == NULL:
            continue
        killer.children.clear()
        leaf_members(leaf.leaves, leaf, &killer.children)
        for k in range(killer.children.size()):
            if killer.children[k] != tree.record.pid and killer_owner(killer, killer.children[k]) != tree:
                killer_take_in(killer, tree, killer.children[k])


cdef void killer_take_in(Killer* killer, Tree* tree, pid_t pid) noexcept nogil:
    cdef int pidfd = pidfd_open(pid)
    if pidfd >= 0 and leaf_of(pid, tree.record.leaf.leaves.own) == tree.record.leaf.number:
        killer_remember(killer, tree, pid, pidfd)
    elif pidfd >= 0:
        close(pidfd)


cdef bint killer_floods(const Killer* killer) noexcept nogil:
    """Whether there are trees to kill, or such as are just dying: it can wait that what has ended is collected, which
    costs the kernel half as much as the end did."""
    return not killer.line.empty() or killer_just_killed(killer) > 0


cdef size_t killer_just_killed(const Killer* killer) noexcept nogil:
    """How many are dying, without those that seem to be stuck."""
    cdef int64_t now_ns = now(CLOCK_BOOTTIME)
    cdef size_t i, count = 0
    for i in range(killer.dying.size()):
        count += now_ns - killer.dying[i].killed_ns < PACE_NS
    return count


cdef bint killer_looks_beyond_leaves(const Killer* killer) noexcept nogil:
    """Whether a tree is looked for that did not end with its leaf."""
    cdef size_t i
    for i in range(killer.trees.size()):
        if not killer.trees[i].by_leaf and (killer.trees[i].fresh or killer.trees[i].record.leaf == NULL):
            return True
    return False

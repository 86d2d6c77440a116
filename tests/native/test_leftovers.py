"""What a dead incarnation's attempts left is found by the marks that its core gave them."""

from __future__ import annotations

import random
from collections.abc import Callable

from pysched.engine.leftovers import Identity, end_leftovers
from pysched.model import mark_of

from .conftest import Run, alive, wait_until


def test_an_orphan_with_a_cleared_environment_is_ended_and_that_of_another_attempt_is_not(
    start: Callable[..., Run],
) -> None:
    run = start()
    node = f"node-{random.randrange(10**9)}"
    hides = "env -i setsid -f sh -c 'echo $$ > PID; exec sleep 100'; while [ ! -s PID ]; do sleep 0.01; done"
    handles = run.submit(*(run.shell(hides.replace("PID", f"pid{n}"), mark=mark_of("task", n, node)) for n in (1, 2)))
    assert [event.status for event in run.ends(handles)] == [0, 0]
    first, second = (int((run.folder / f"pid{n}").read_text()) for n in (1, 2))
    assert end_leftovers({Identity("task", 1, node)}) == 1
    wait_until(lambda: not alive(first), "the end of the leftover")
    assert alive(second)
    assert end_leftovers({Identity("task", 2, node)}) == 1
    assert end_leftovers({Identity("task", 1, node), Identity("task", 2, node)}) == 0


def test_a_mark_alone_is_enough(start: Callable[..., Run]) -> None:
    run = start()
    mark = random.randrange(1, 2**60)
    (handle,) = run.submit(run.launch("/bin/sleep", "600", mark=mark))
    run.started(handle)
    assert end_leftovers(set(), {mark}) == 1
    assert run.end(handle).status == 9

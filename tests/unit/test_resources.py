"""What tasks ask for, in words and numbers, and which of those that wait a node claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched import resources
from pysched.errors import TaskError
from pysched.intake.taskfile import parse_task_file
from pysched.model import State
from pysched.resources import NOTHING, Candidate, Demand, Room, choose
from pysched.store.explaining import Situation, verdict
from pysched.task import parse_task

GIB = 2**30
NODE = Demand(cpus=4000, memory=8 * GIB, gpus=2000)


def waiting(*demands: Demand | None, waited_s: float = 100.0) -> list[Candidate]:
    return [Candidate(id=str(i), demand=demand, waited_s=waited_s) for i, demand in enumerate(demands)]


def room(free: Demand = NODE, *, ahead: int = 0, reserve_after_s: float | None = None) -> Room:
    return Room(capacity=NODE, free=free, ahead=ahead, reserve_after_s=reserve_after_s)


@pytest.mark.parametrize(
    ("fields", "demand"),
    [
        ({}, None),
        ({"type": "ml"}, Demand(cpus=1000)),
        ({"type": "ml", "cpus": 0}, None),
        ({"cpus": 0.25}, Demand(cpus=250)),
        ({"cpus": 0.1234567}, Demand(cpus=124)),
        ({"mem": "4GiB"}, Demand(memory=4 * GIB)),
        ({"mem": "1.5 gb"}, Demand(memory=1_500_000_000)),
        ({"mem": 2**20}, Demand(memory=2**20)),
        ({"type": "ml", "gpus": 0.5}, Demand(cpus=1000, gpus=500)),
        ({"gpus": 3}, Demand(gpus=3000)),
    ],
)
def test_what_a_task_asks_for(fields: dict[str, object], demand: Demand | None) -> None:
    assert parse_task({"command": "true", **fields}).demand == demand


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cpus", -1, "greater than or equal to 0"),
        ("cpus", True, "valid number"),
        ("mem", "4G", "use bytes, or text as 512MiB or 4GB"),
        ("mem", "much", "use bytes, or text as 512MiB or 4GB"),
        ("mem", 4096, "greater than or equal to 1048576"),
        ("mem", 1.5, "valid integer"),
        ("gpus", 1.5, "use a part of one, as 0.5, or whole ones"),
        ("gpus", 65, "less than or equal to 64"),
    ],
)
def test_what_a_task_cannot_ask_for(field: str, value: object, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        parse_task({"command": "true", field: value})
    assert [problem.field for problem in error.value.problems] == [field]


def test_equal_amounts_are_equal_content_and_come_back_from_the_store() -> None:
    one, other = (parse_task({"command": "true", "cpus": 2, "mem": mem}) for mem in ("1GiB", GIB))
    assert one.spec() == other.spec()
    assert type(one).from_spec("x", one.spec()).demand == Demand(2000, GIB)


def test_lines_of_a_task_file_say_it_as_people_do() -> None:
    task = parse_task_file("x", b"command: true\ncpus: 2\nmem: 512MiB\ngpus: 0.5\n")
    assert task.demand == Demand(2000, 512 * 2**20, 500)
    assert parse_task_file("x", b"command: true\nmem: 1073741824\n").mem == GIB


def test_shown_for_people() -> None:
    assert resources.shown(Demand(1000, 3 * GIB // 2, 500)) == "1 cpu, 1.5 GiB, 0.5 gpus"
    assert resources.shown(Demand(2500)) == "2.5 cpus"
    assert resources.shown(NOTHING) == "nothing"


# ── choosing ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_fits_is_chosen_in_order_and_what_asks_for_nothing_always() -> None:
    candidates = waiting(Demand(3000), None, Demand(2000), Demand(1000), None)
    assert choose(candidates, limit=9, room=room()) == (["0", "1", "3", "4"], True)
    assert choose(candidates, limit=2, room=room()) == (["0", "1"], False)


def test_what_no_room_will_ever_do_for_is_passed_over() -> None:
    assert choose(waiting(Demand(4001), Demand(1000)), limit=9, room=room()) == (["1"], False)


def test_room_is_made_for_the_first_that_has_waited_long_enough() -> None:
    large = Demand(4000)
    busy = room(Demand(2000, NODE.memory, NODE.gpus), reserve_after_s=2.0)
    assert choose(waiting(large, large, Demand(1000), waited_s=2.0), limit=9, room=busy) == (["0"], True)
    assert choose(waiting(large, Demand(1000), waited_s=1.9), limit=9, room=busy) == (["1"], True)


def test_short_ones_are_taken_ahead() -> None:
    full = room(Demand(0, 0, 0), ahead=2)
    assert choose(waiting(*[Demand(1000)] * 4), limit=9, room=full) == (["0", "1"], True)


@given(
    demands=st.lists(
        st.one_of(st.none(), st.builds(Demand, st.integers(0, 5000), st.integers(0, 9 * GIB), st.integers(0, 2000))),
        max_size=30,
    ),
    free=st.builds(Demand, st.integers(-1000, 4000), st.integers(0, 8 * GIB), st.integers(0, 2000)),
    limit=st.integers(0, 30),
)
def test_what_is_chosen_fits_together(demands: list[Demand | None], free: Demand, limit: int) -> None:
    chosen, left = choose(waiting(*demands), limit=limit, room=room(free))
    assert len(chosen) <= limit
    assert chosen == sorted(set(chosen), key=int)
    for resource in range(3):
        asked = [demand[resource] for i in chosen if (demand := demands[int(i)]) is not None]
        assert sum(asked) == 0 or sum(asked) <= free[resource]
    if not left and len(chosen) < limit:
        for i, demand in enumerate(demands):
            assert str(i) in chosen or (demand is not None and not demand.within(NODE))


# ── explaining ────────────────────────────────────────────────────────────────────────────────────────────────


def situation(demand: Demand, *offers: tuple[Demand, Demand]) -> Situation:
    return Situation(
        state=State.QUEUED, place="sized", attempts=0, reason=None, due_at=None, node=None, waiting_for=0, needs=[],
        ahead=3, ahead_is_more=False, paused=False, nodes=len(offers), workers=8, running=8, demand=demand,
        offers=list(offers),
    )  # fmt: skip


def test_what_no_node_has_is_explained() -> None:
    why, message = verdict(situation(Demand(8000, GIB), (NODE, NOTHING), (Demand(2000, 9 * GIB), NOTHING)))
    assert why == "too_large"
    assert message == (
        "it asks for 8 cpus, 1.0 GiB, and no node has so much (4 cpus, 9.0 GiB, 2 gpus at most); "
        "it waits for a larger one"
    )


def test_what_is_not_free_is_explained() -> None:
    why, message = verdict(situation(Demand(2000), (NODE, Demand(3000, GIB, 2000)), (Demand(1000), NOTHING)))
    assert why == "resources"
    assert message == ("it asks for 2 cpus, and free are, node by node: 1 cpu, 7.0 GiB of 4 cpus, 8.0 GiB, 2 gpus")


def test_what_is_free_is_not_what_it_waits_for() -> None:
    assert verdict(situation(Demand(2000), (NODE, Demand(2000))))[0] == "behind"

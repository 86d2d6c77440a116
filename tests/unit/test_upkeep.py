"""What a node does beside its lease, without a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pysched.engine.upkeep import PRUNE_BATCH, Upkeep
from pysched.executors.files import remove_log


@dataclass
class Standing:
    draining: bool = False
    superseded: str | None = None
    abandoned: bool = True
    undelivered: bool = False


@dataclass
class Pruned:
    next: int | None
    tasks: int = 1
    logs: list[str] = field(default_factory=list)


class Told:
    """An Upkeep, and what it asked for."""

    def __init__(self, logs: Path, *batches: Pruned) -> None:
        self.standing = Standing()
        self.calls: list[object] = []
        self._batches = list(batches)
        self.upkeep = Upkeep(
            standing=lambda: self.standing,
            hand_back=lambda: self._note("hand back"),
            superseded=lambda why: self.calls.append(why),
            sweep=lambda: self._note("sweep"),
            deliver=lambda: self.calls.append("deliver"),
            prune=self._prune if batches else None,
            logs=logs,
            remove_log=remove_log,
        )

    def _note(self, what: str) -> int:
        self.calls.append(what)
        return 0

    def _prune(self, after: int, limit: int) -> Pruned:
        assert limit == PRUNE_BATCH
        self.calls.append(after)
        return self._batches.pop(0)


def test_a_node_in_good_standing_sweeps(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.upkeep.round()
    assert told.calls == ["sweep"]


@pytest.mark.parametrize(
    ("abandoned", "undelivered", "calls"),
    [(False, False, []), (True, False, ["sweep"]), (False, True, ["deliver"]), (True, True, ["deliver", "sweep"])],
)
def test_it_asks_for_nothing_that_is_not_there(
    tmp_path: Path, abandoned: bool, undelivered: bool, calls: list[str]
) -> None:
    told = Told(tmp_path)
    told.standing = Standing(abandoned=abandoned, undelivered=undelivered)
    assert told.upkeep.round() == 0
    assert told.calls == calls


def test_a_draining_one_hands_back_each_time(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.standing.draining = True
    told.upkeep.heed()
    told.upkeep.round()  # a claim may have been on its way the first time
    assert told.calls == ["hand back", "hand back", "sweep"]


def test_a_superseded_one_says_so_once_and_touches_the_store_no_more(tmp_path: Path) -> None:
    told = Told(tmp_path, Pruned(None))
    told.standing = Standing(superseded="too old", undelivered=True)
    told.upkeep.round()
    told.upkeep.round()
    assert told.calls == ["too old", "hand back", "hand back"]


def test_a_pass_goes_on_where_it_was_and_rests_at_its_end(tmp_path: Path) -> None:
    told = Told(tmp_path, Pruned(7), Pruned(None))
    for _ in range(4):
        told.upkeep.round()
    assert told.calls == ["sweep", 0, "sweep", 7, "sweep", "sweep"]


def test_only_logs_of_this_home_are_removed(tmp_path: Path) -> None:
    logs, other = tmp_path / "logs", tmp_path / "logs-of-another"
    for folder in (logs, other):
        folder.mkdir()
        for name in ("a.1.out", "a.1.result", "a.1.progress", "a.2.result", "a.2.err"):
            (folder / name).touch()
    told = Told(logs, Pruned(None, logs=[f"{logs}/a.1.out", f"{logs}/gone.1.out", f"{other}/a.1.out"]))
    told.upkeep.round()
    assert sorted(path.name for path in logs.iterdir()) == ["a.2.err", "a.2.result"]
    assert (other / "a.1.out").exists()

"""The picture that `top` draws and what keys do, without a terminal."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from pysched.cli import table
from pysched.cli.screen import Screen, render

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
STATES = ("blocked", "scheduled", "queued", "running", "succeeded", "failed", "cancelled")


def stats(paused: bool = False, **states: int) -> Any:
    counts = dict.fromkeys(STATES, 0) | states
    return {
        "states": counts,
        "priorities": {"queued": {"HIGH": counts["queued"], "MED": 0, "LOW": 0}},
        "paused": paused,
    }


def node(name: str = "aaaaaaaa", running: int = 1, draining: bool = False) -> Any:
    return {
        "incarnation": f"{name}-1", "host": "box", "running": running, "workers": 2, "lanes": 1, "draining": draining,
        "started_at": "2026-11-24T11:00:00Z",
    }  # fmt: skip


def task(task_id: str, status: str = "running", **more: Any) -> Any:
    return {
        "id": task_id, "name": f"name of {task_id}", "status": status, "priority": "MED", "attempts": 1, "node": None,
        "reason": None, "cancel_requested": False, "waiting_for": 0, "due_at": None, "failures": 0, "run_ms": None,
        "wait_ms": 5, "submitted_at": "2026-11-24T11:59:00Z", "started_at": "2026-11-24T11:59:30Z",
        "finished_at": None, **more,
    }  # fmt: skip


@pytest.fixture
def screen() -> Screen:
    screen = Screen("http://x")
    screen.take(stats(running=1, queued=12_345), [node()], [task(each) for each in "abc"], False, 10.0)
    return screen


def drawn(screen: Screen, width: int = 100, height: int = 24) -> str:
    lines = render(screen, NOW, width, height, colour=False)
    assert len(lines) == height
    assert all(table.width_of(line) <= width for line in lines)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (0.256, "26%"),
        ({"fraction": 0.5, "epochs": 3, "loss": 0.123456, "stage": "warm"}, "50% epochs 3, loss 0.1235, stage warm"),
        ("loading", "loading"),
        ({"step": 7}, '{"step": 7}'),
        ([1, 2], "[1, 2]"),
        (12, "12"),
        (True, "true"),
    ],
)
def test_a_running_task_says_how_far_it_is(screen: Screen, progress: object, shown: str) -> None:
    screen.take(stats(running=1), [node()], [task("a", progress=progress)], False, 10.0)
    (line,) = [line for line in drawn(screen, 140).splitlines() if "name of a" in line]
    assert line.rstrip().endswith(shown)


def test_everything_is_on_it(screen: Screen) -> None:
    text = drawn(screen)
    for part in (
        "http://x",
        "running 1/2",
        "HIGH 12,345",
        "█████····· 1/2",
        "1h00",
        "▶  a",
        "name of c",
        "30.0s",
        "q quit",
    ):
        assert part in text


@pytest.mark.parametrize("size", [(20, 5), (40, 10), (80, 24), (300, 80)])
@pytest.mark.parametrize("keys", [[], ["c"], ["enter"], ["tab"]])
def test_it_fits_any_terminal(screen: Screen, size: tuple[int, int], keys: list[str]) -> None:
    for key in keys:
        screen.press(key)
    screen.take(stats(True), [node(str(number)) for number in range(9)], [task(str(n)) for n in range(200)], True, 11.0)
    lines = render(screen, NOW, *size, colour=False)
    assert len(lines) <= size[1]
    assert len(lines) == size[1] or size[1] < 20


def test_before_the_first_answer() -> None:
    assert "nothing here" in drawn(Screen("http://x"))


def test_what_is_wrong_is_said() -> None:
    screen = Screen("http://x")
    screen.take(stats(paused=True), [], [], False, 0.0)
    assert "PAUSED" in drawn(screen)
    assert "no node is running" in drawn(screen)


def test_throughput_is_the_difference_of_two_looks(screen: Screen) -> None:
    screen.take(stats(succeeded=30), [], [], False, 12.0)
    assert "15/s  █" in drawn(screen)
    screen.take(stats(succeeded=31), [], [], False, 22.0)
    assert "6/min  █▁" in drawn(screen)


def test_the_cursor_moves_and_follows_its_task(screen: Screen) -> None:
    for key, place in [("down", "b"), ("j", "c"), ("j", "c"), ("home", "a"), ("end", "c"), ("pageup", "a"), ("k", "a")]:
        assert screen.press(key) == ""
        assert screen.chosen == place
    screen.press("down")
    screen.take(stats(), [], [task(each) for each in "xab"], False, 11.0)
    assert screen.chosen == "b"
    screen.take(stats(), [], [task("z")], False, 12.0)
    assert screen.chosen == "z"


def test_the_cursor_stays_in_sight(screen: Screen) -> None:
    screen.take(stats(), [], [task(str(number)) for number in range(100)], False, 11.0)
    screen.press("end")
    assert "▶  99" in drawn(screen)
    assert "100 of 100" in drawn(screen)


def test_nothing_is_done_without_a_yes(screen: Screen) -> None:
    assert screen.press("c") == ""
    assert "cancel a?" in drawn(screen)
    assert screen.press("q") == ""  # no, and no end either
    assert screen.press("r") == ""
    assert screen.press("y") == "act"
    assert (screen.action, screen.mode) == ("retry", "list")


def test_logs(screen: Screen) -> None:
    assert screen.press("enter") == "look"
    log = screen.log
    assert log is not None
    log.take(b"one\ntw", 6, 1)
    log.take(b"o\nthree\x1b[2J\n", 20, 1)
    text = drawn(screen)
    assert "stdout of a name of a, attempt 1" in text
    assert "one\ntwo\nthree·[2J" in text
    log.take(b"again\n", 6, 2)
    assert "two" not in drawn(screen)
    assert screen.press("s") == "look"
    assert screen.log is not None
    assert screen.log.stream == "stderr"
    screen.press("esc")
    assert screen.mode == "list"
    assert "▶  a" in drawn(screen)


def test_a_long_log_scrolls(screen: Screen) -> None:
    screen.press("enter")
    assert screen.log is not None
    screen.log.take("".join(f"line {n}\n" for n in range(5000)).encode(), 1, 1)
    assert "line 4999" in drawn(screen)
    for _ in range(3):
        screen.press("pageup")
    assert "line 4999" not in drawn(screen)
    screen.press("end")
    assert "line 4999" in drawn(screen)


def test_keys_without_a_task() -> None:
    screen = Screen("http://x")
    for key in ("enter", "c", "r", "e"):
        assert screen.press(key) == ""
        assert screen.message == "no task is chosen"
        assert screen.mode == "list"
    assert screen.press("p") == "pause"
    assert screen.press("tab") == "look"
    assert screen.view == "waiting"
    assert screen.press("q") == "quit"

"""The checker itself: a history that keeps every promise, and one for each way to break one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pysched.model import Reason
from tests.chaos import checker
from tests.chaos.checker import violations
from tests.chaos.history import Amount, AttemptRow, DoneFile, End, Execution, History, Submitted, TaskRow, read_ledger


def execution(task: str, attempt: int, start: int, end: int | None, code: int | None = 0) -> Execution:
    return Execution(
        task=task,
        attempt=attempt,
        pid=start,
        started_ns=start,
        ended_ns=end,
        code=None if end is None else code,
    )


def good() -> History:
    """`a` succeeded at once, `b` after an attempt that was lost and one that failed, `c` needs `a`, `d` failed."""
    history = History(
        submitted=[
            Submitted(key="a"),
            Submitted(key="b"),
            Submitted(key="c", after=("a",), batch=1),
            Submitted(key="d", max_retries=0, batch=1),
            Submitted(key="never", acknowledged=False),
            Submitted(key="named", acknowledged=False),
        ],
        executions=[
            execution("a", 1, 10, 20),
            execution("b", 1, 10, None),
            execution("b", 2, 30, 40, 3),
            execution("b", 3, 50, 60),
            execution("c", 1, 25, 30),
            execution("d", 1, 26, 31, 7),
            execution("019-id", 1, 27, 32),
        ],
        tasks=[
            TaskRow(id="a", name="a", state="succeeded", exit_code=0),
            TaskRow(id="b", name="b", state="succeeded", attempts=3, exit_code=0),
            TaskRow(id="c", name="c", state="succeeded", exit_code=0),
            TaskRow(id="d", name="d", state="failed", reason="exit 7", exit_code=7),
            TaskRow(id="019-id", name="named", state="succeeded", exit_code=0),
        ],
        attempts=[
            AttemptRow(task="a", attempt=1, state="succeeded", exit_code=0, pid=10),
            AttemptRow(task="b", attempt=1, state="failed", reason="lost"),
            AttemptRow(task="b", attempt=2, state="failed", reason="exit 3", exit_code=3, pid=30),
            AttemptRow(task="b", attempt=3, state="succeeded", exit_code=0, pid=50),
            AttemptRow(task="c", attempt=1, state="succeeded", exit_code=0, pid=25),
            AttemptRow(task="d", attempt=1, state="failed", reason="exit 7", exit_code=7, pid=26),
            AttemptRow(task="019-id", attempt=1, state="succeeded", exit_code=0, pid=27),
        ],
    )
    history.tasks = [replace(row, result=result_of(row)) for row in history.tasks]
    for row in history.tasks:
        history.ends.append(End(task=row.id, state=row.state, attempts=row.attempts))
        history.done.append(done_of(row))
    return history


def done_of(row: TaskRow, folder: str = "completed-0") -> DoneFile:
    content = {
        "id": row.id,
        "status": row.state,
        "reason": row.reason,
        "attempts": row.attempts,
        "exit_code": row.exit_code,
        "result": row.result,
    }
    return DoneFile(folder=folder, task=row.id, content=content, output=f"{row.id} {row.attempts}\n")


def result_of(row: TaskRow) -> dict[str, object] | None:
    return {"task": row.id, "attempt": row.attempts} if row.state == "succeeded" else None


def change_row(history: History, task: str, **changes: object) -> None:
    history.tasks = [replace(row, **changes) if row.id == task else row for row in history.tasks]  # type: ignore[arg-type]


def change_attempt(history: History, task: str, number: int, **changes: object) -> None:
    history.attempts = [
        replace(each, **changes) if (each.task, each.attempt) == (task, number) else each  # type: ignore[arg-type]
        for each in history.attempts
    ]


def change_execution(history: History, task: str, number: int, **changes: object) -> None:
    history.executions = [
        replace(each, **changes) if (each.task, each.attempt) == (task, number) else each  # type: ignore[arg-type]
        for each in history.executions
    ]


def without(history: History, field: str, task: str) -> None:
    rows = getattr(history, field)
    setattr(history, field, [row for row in rows if (row.id if field == "tasks" else row.task) != task])


def lose(history: History) -> None:
    for field in ("tasks", "attempts", "executions", "done", "ends"):
        without(history, field, "a")


def accept_twice(history: History) -> None:
    row = TaskRow(id="020-id", name="named", state="succeeded", exit_code=0)
    row = replace(row, result=result_of(row))
    history.tasks.append(row)
    history.attempts.append(AttemptRow(task=row.id, attempt=1, state="succeeded", exit_code=0))
    history.executions.append(execution(row.id, 1, 70, 80))
    history.ends.append(End(task=row.id, state=row.state, attempts=1))
    history.done.append(done_of(row))


def tear_batch(history: History) -> None:
    history.submitted = [replace(each, acknowledged=False) if each.batch else each for each in history.submitted]
    for field in ("tasks", "attempts", "executions", "done", "ends"):
        without(history, field, "d")


def run_again(history: History) -> None:
    """River #1302: a completed job is overwritten, and runs again."""
    change_row(history, "a", attempts=2)
    history.attempts.append(AttemptRow(task="a", attempt=2, state="succeeded", exit_code=0, pid=70))
    history.executions.append(execution("a", 2, 70, 80))
    history.done = [file for file in history.done if file.task != "a"] + [done_of(history.tasks[0])]


def overwrite(history: History) -> None:
    """The same, where the record of the first end is overwritten as well."""
    run_again(history)
    change_attempt(history, "a", 1, state="failed", reason="lost", exit_code=None)
    history.ends.append(End(task="a", state="succeeded", attempts=2))


def finish_and_fail(history: History) -> None:
    """Solid Queue #589: finished and failed."""
    history.attempts.append(AttemptRow(task="a", attempt=1, state="failed", reason="lost"))


def get_stuck(history: History) -> None:
    """Procrastinate #1518: held for ever by a worker that is gone."""
    change_row(history, "a", state="running", exit_code=None)
    for field in ("attempts", "done", "ends"):
        without(history, field, "a")


def park(history: History, lost: int = 3) -> None:
    """Task d, as one that lost its node `lost` times; it might have been tried more often."""
    history.submitted = [replace(each, max_retries=8) if each.key == "d" else each for each in history.submitted]
    parked = Reason.parked(3)
    for number in range(1, lost + 1):
        reason = parked if number == lost else "lost"
        if number == 1:
            change_attempt(history, "d", 1, reason=reason, exit_code=None)
            change_execution(history, "d", 1, ended_ns=None, code=None)
        else:
            history.attempts.append(AttemptRow(task="d", attempt=number, state="failed", reason=reason))
    change_row(history, "d", reason=parked, attempts=lost, exit_code=None)
    without(history, "done", "d")
    without(history, "ends", "d")
    (row,) = (row for row in history.tasks if row.id == "d")
    history.done.append(done_of(row))
    history.ends.append(End(task="d", state="failed", attempts=lost))


def hold(history: History, amount: Amount, *gpus: str, home: str = "home-1") -> None:
    """`c` and `d`, which run at the same time, each hold `amount` on the node of a home, in two lives of that."""
    history.offer = Amount(cpus=2, mib=100)
    history.homes = {"life-1": "home-1", "life-2": home}
    history.submitted = [replace(each, holds=amount) if each.key in {"c", "d"} else each for each in history.submitted]
    change_execution(history, "c", 1, node="life-1", gpus=gpus)
    change_execution(history, "d", 1, node="life-2", gpus=gpus)
    change_attempt(history, "c", 1, node="life-1")
    change_attempt(history, "d", 1, node="life-2")


def change_done(history: History, task: str, **changes: object) -> None:
    history.done = [replace(file, **changes) if file.task == task else file for file in history.done]  # type: ignore[arg-type]


def forget_submission(history: History) -> None:
    del history.submitted[0]


BREACHES: list[tuple[str, Callable[[History], None]]] = [
    ("lost", lose),
    ("accepted twice", accept_twice),
    ("torn batch", tear_batch),
    ("foreign", forget_submission),
    ("lost", lambda history: history.rejected.append("a.task: no")),
    ("never ended", get_stuck),
    ("ended twice", overwrite),
    ("ended twice", lambda history: without(history, "ends", "a")),
    ("unexplained execution", run_again),
    ("unexplained execution", lambda history: change_attempt(history, "b", 1, reason=None)),
    ("unexplained execution", lambda history: history.executions.append(execution("a", 1, 21, 22))),
    ("recorded twice", finish_and_fail),
    ("recorded twice", lambda history: history.done.append(done_of(history.tasks[0], "completed-1"))),
    ("no .done", lambda history: without(history, "done", "a")),
    ("no .done", lambda history: history.undelivered.append("a")),
    (".done disagrees", lambda history: change_row(history, "d", reason="exit 8")),
    (".done disagrees", lambda history: history.done.append(done_of(TaskRow(id="x", name="x", state="failed")))),
    ("not recorded", lambda history: change_row(history, "b", attempts=4)),
    ("not recorded", lambda history: history.executions.append(execution("a", 2, 90, None))),
    ("not recorded", lambda history: history.executions.append(execution("x", 1, 90, None))),
    ("wrong record", lambda history: change_execution(history, "d", 1, code=0)),
    ("wrong record", lambda history: change_execution(history, "a", 1, ended_ns=None, code=None)),
    ("wrong record", lambda history: without(history, "executions", "a")),
    ("wrong record", lambda history: change_attempt(history, "a", 1, exit_code=None)),
    ("wrong record", lambda history: change_attempt(history, "a", 1, pid=11)),
    ("wrong record", lambda history: change_row(history, "d", state="succeeded", reason=None)),
    ("wrong record", lambda history: change_execution(history, "a", 1, node="life-1")),
    ("wrong result", lambda history: change_row(history, "a", result=None)),
    ("wrong result", lambda history: change_row(history, "b", result={"task": "a", "attempt": 3})),
    (".done disagrees", lambda history: change_row(history, "a", result={"task": "a"})),
    ("wrong output", lambda history: change_done(history, "a", output="")),
    ("wrong output", lambda history: change_done(history, "a", output="a 1\nb 1\n")),
    ("shared process", lambda history: change_execution(history, "a", 1, call=2)),
    ("too much at once", lambda history: hold(history, Amount(cpus=1.5))),
    ("too much at once", lambda history: hold(history, Amount(mib=51))),
    ("too much at once", lambda history: hold(history, Amount(gpus=1), "gpu-0")),
    ("too much at once", lambda history: hold(history, Amount(gpus=0.5), "gpu-0", "gpu-1")),
    ("gave up early", lambda history: history.submitted.insert(0, Submitted(key="d", max_retries=1))),
    ("gave up early", lambda history: park(history, lost=2)),
    ("unexplained execution", lambda history: history.submitted.insert(0, Submitted(key="b", max_retries=0))),
    ("overlap", lambda history: change_execution(history, "b", 2, ended_ns=55)),
    ("overlap", lambda history: change_execution(history, "b", 3, alone=False)),
    ("out of order", lambda history: change_execution(history, "c", 1, started_ns=15)),
    ("left running", lambda history: history.leftovers.append("4711: job")),
    ("defect", lambda history: history.defects.append("node-0: Traceback")),
]


def test_a_parked_task_is_explained() -> None:
    history = good()
    park(history)
    assert violations(history) == []


def test_a_good_history_has_no_violation() -> None:
    assert violations(good()) == []


@pytest.mark.parametrize(
    ("amount", "gpus"), [(Amount(cpus=1), ()), (Amount(mib=50), ()), (Amount(gpus=0.5), ("gpu-0",))]
)
def test_what_fits_may_run_at_once(amount: Amount, gpus: tuple[str, ...]) -> None:
    history = good()
    hold(history, amount, *gpus)
    assert violations(history) == []


def test_each_node_has_what_it_has() -> None:
    history = good()
    hold(history, Amount(cpus=2, gpus=1), "gpu-0", home="home-2")
    assert violations(history) == []


def test_a_task_may_ask_for_a_used_process() -> None:
    history = good()
    history.submitted[0] = replace(history.submitted[0], reuse=True)
    change_execution(history, "a", 1, call=7)
    assert violations(history) == []


def test_an_attempt_ended_from_outside_may_have_meant_another_exit() -> None:
    history = good()
    change_execution(history, "b", 1, ended_ns=29, code=0)  # done, and its node died before it could say so
    assert violations(history) == []


@pytest.mark.parametrize(("rule", "breach"), BREACHES, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(BREACHES)])
def test_each_breach_is_found(rule: str, breach: Callable[[History], None]) -> None:
    history = good()
    breach(history)
    assert rule in {violation.rule for violation in violations(history)}


def test_every_rule_is_breached_here() -> None:
    source = Path(checker.__file__).read_text()
    assert {rule for rule, _ in BREACHES} == set(re.findall(r'Violation\(\s*"([^"]+)"', source))


def test_the_ledger_is_read_as_jobs_write_it() -> None:
    lines = ["S a 1 10 1 100 x - 1\n", "S b 1 11 0 101 y gpu-0,gpu-1 3\n", "E a 1 10 7 200\n"]
    assert read_ledger(lines) == [
        Execution(task="a", attempt=1, pid=10, started_ns=100, ended_ns=200, code=7, node="x"),
        Execution(task="b", attempt=1, pid=11, started_ns=101, alone=False, node="y", gpus=("gpu-0", "gpu-1"), call=3),
    ]


@pytest.mark.parametrize(
    "lines",
    [["E a 1 10 0 1"], ["S a 1 10 1 1"], ["S a 1 10 1 1 x - 1", "S a 1 10 1 2 x - 1"], ["X a 1 10 1 1 x - 1"]],
)
def test_a_line_that_no_job_writes_is_an_error(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="out of place"):
        read_ledger(lines)

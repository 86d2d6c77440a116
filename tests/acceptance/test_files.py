"""`.task` files in, `.done` files out, through a node started from the command line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest

from .conftest import Site, wait_until

DONE_FIELDS = [
    "id",
    "name",
    "type",
    "priority",
    "status",
    "reason",
    "exit_code",
    "signal",
    "attempts",
    "node",
    "submitted_at",
    "started_at",
    "finished_at",
    "wait_ms",
    "run_ms",
    "result",
    "stdout",
    "stderr",
]
TIME = {"type": ["string", "null"], "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$"}
DONE_SCHEMA = {
    "type": "object",
    "required": DONE_FIELDS,
    "additionalProperties": False,
    "properties": {
        **{name: TIME if name.endswith("_at") else {} for name in DONE_FIELDS},
        "wait_ms": {"type": ["integer", "null"], "minimum": 0},
        "run_ms": {"type": ["integer", "null"], "minimum": 0},
        "attempts": {"type": "integer", "minimum": 0},
        "status": {"enum": ["succeeded", "failed", "cancelled"]},
        "priority": {"enum": ["HIGH", "MED", "LOW"]},
    },
}


def test_both_formats_run_and_are_answered(site: Site) -> None:
    site.node()
    site.drop("one", {"command": ["/bin/echo", "hello"], "name": "first", "priority": "high"})
    site.drop("two", "# by hand\nid: second\ncommand: echo out; echo err >&2; exit 4\nmax_retries: 0\n")
    one, two = site.done("one"), site.done("second")
    for record in (one, two):
        assert list(record) == DONE_FIELDS
        jsonschema.validate(record, DONE_SCHEMA)
    assert (one["name"], one["priority"], one["status"], one["exit_code"], one["attempts"]) == (
        "first",
        "HIGH",
        "succeeded",
        0,
        1,
    )
    assert Path(one["stdout"]).read_text() == "hello\n"
    assert (two["status"], two["reason"], two["exit_code"]) == ("failed", "exit 4", 4)
    assert (Path(two["stdout"]).read_text(), Path(two["stderr"]).read_text()) == ("out\n", "err\n")
    wait_until(lambda: os.listdir(site.queue) == [], "an empty queue folder")


def test_a_job_gets_its_environment_and_gives_a_result(site: Site) -> None:
    site.node()
    wanted = {
        "id": "$PYSCHED_TASK_ID",
        "attempt": "$PYSCHED_ATTEMPT",
        "lane": "$PYSCHED_LANE",
        "own": "$OWN",
        "pwd": "$PWD",
    }
    words = " ".join(f'{name} "{value}"' for name, value in wanted.items())
    command = f"""printf '{{"%s":"%s","%s":"%s","%s":"%s","%s":"%s","%s":"%s"}}' {words} > "$PYSCHED_RESULT" """
    site.drop("env", {"command": command, "env": {"OWN": "é 1"}, "cwd": "/tmp"})
    record = site.done("env")
    lane = record["result"].pop("lane")
    assert int(lane) >= 0
    assert record["result"] == {"id": "env", "attempt": "1", "own": "é 1", "pwd": "/tmp"}
    site.drop("secret", {"command": "env | grep -c DATABASE || true"})
    assert Path(site.done("secret")["stdout"]).read_text() == "0\n"


def test_simulated_work_and_an_entrypoint(site: Site) -> None:
    site.node()
    site.drop("system", "id: system\ntype: system\nduration_ms: 60\n")
    site.drop("ml", 'id: ml\ntype: ml\nduration_ms: 30\nparams: {"mode": "infer"}\n')
    site.drop("call", {"type": "ml", "entrypoint": "math:pow", "params": {}, "max_retries": 0})
    site.drop("json", {"type": "ml", "entrypoint": "json:dumps", "params": {"obj": [1, 2]}})
    assert site.done("system")["run_ms"] >= 60
    assert site.done("ml")["result"]["mode"] == "infer"
    assert site.done("json")["result"] == "[1, 2]"
    assert site.done("call")["status"] == "failed"


def test_retries_timeout_and_spawn_failures(site: Site) -> None:
    site.node()
    site.drop("flaky", {"command": 'test "$PYSCHED_ATTEMPT" = 3', "retry_delay_s": 0.01})
    site.drop("never", {"command": "kill -SEGV $$", "max_retries": 1, "retry_delay_s": 0})
    site.drop("hangs", {"command": "trap '' TERM; sleep 600", "timeout_s": 2, "grace_s": 0.1, "max_retries": 0})
    site.drop("absent", {"command": ["/no/such/program"], "max_retries": 0})
    site.drop("unfound", {"command": ["no-such-program-in-path"], "max_retries": 0})
    site.drop("nowhere", {"command": "true", "cwd": "/no/such/folder", "max_retries": 0})
    got = {name: site.done(name) for name in ("flaky", "never", "hangs", "absent", "unfound", "nowhere")}
    assert (got["flaky"]["status"], got["flaky"]["attempts"]) == ("succeeded", 3)
    assert (got["never"]["status"], got["never"]["reason"], got["never"]["attempts"]) == ("failed", "signal SIGSEGV", 2)
    assert got["never"]["signal"] == "SIGSEGV"
    assert (got["hangs"]["status"], got["hangs"]["reason"], got["hangs"]["signal"]) == ("failed", "timeout", "SIGKILL")
    assert got["absent"]["reason"] == "spawn: exec /no/such/program: No such file or directory"
    assert got["unfound"]["reason"] == "spawn: exec no-such-program-in-path: No such file or directory"
    assert got["nowhere"]["reason"] == "spawn: cwd /no/such/folder: No such file or directory"
    assert site.leftovers() == []


def bad_files(site: Site) -> dict[str, str]:
    """Drops every kind of bad file; returns a word that each reason must contain."""
    bad: dict[str, tuple[Any, str]] = {
        "malformed": ("{", "line 1: is no valid JSON"),
        "line": ("command: true\nnonsense\n", "line 2: 'nonsense' has no colon"),
        "unknown": (
            '{"command": "true",\n "pritority": "LOW"}',
            "line 2: pritority: is not a field of a task; did you mean priority?",
        ),
        "mistyped": ("command: true\nmax_retries: many\n", "line 2: max_retries"),
        "empty": ("", "empty"),
        "huge": (b"#" * (2 * 1024 * 1024), "limit is 1048576"),
        "latin": (b"command: \xe9cho", "UTF-8"),
        "path": ({"id": "../../evil", "command": "true"}, "id"),
        "after": ({"command": "true", "after": ["no-such-task"]}, "after"),
    }
    for name, (content, _) in bad.items():
        site.drop(name, content)
    return {name: word for name, (_, word) in bad.items()}


def test_bad_files_are_rejected_with_a_reason_and_harm_nothing(site: Site) -> None:
    words = bad_files(site)
    target = site.root / "outside.task"
    target.write_text("command: true")
    (site.queue / "link.task").symlink_to(target)
    os.mkfifo(site.queue / "pipe.task")
    (site.queue / "folder.task").mkdir()
    site.drop("good", "command: true")
    node = site.node()
    assert site.done("good")["status"] == "succeeded"
    for name, word in {**words, "link": "regular file", "pipe": "regular file", "folder": "regular file"}.items():
        reason = site.reason(name)
        assert word in reason
        assert reason.count("\n") == 1
    assert target.exists()
    wait_until(lambda: os.listdir(site.queue) == [], "an empty queue folder")
    assert node.terminate() == 0
    assert "Traceback" not in node.messages
    assert site.done_ids() == ["good"]


def test_the_same_id_with_other_content_is_rejected_with_the_same_content_it_is_the_same_task(site: Site) -> None:
    site.node()
    counter = site.root / "runs"
    content = {"id": "once", "command": f"echo run >> {counter}"}
    site.drop("a", content)
    assert site.done("once")["status"] == "succeeded"
    site.drop("b", content)
    wait_until(lambda: os.listdir(site.queue) == [], "the second file to be taken")
    site.drop("c", {**content, "rank": 1})
    assert "other content" in site.reason("c")
    assert counter.read_text() == "run\n"


def test_files_dropped_while_the_node_is_stopped(site: Site) -> None:
    for number in range(500):
        site.drop(f"job-{number:03d}", {"command": ["/bin/true"]})
    node = site.node(workers=8)
    records = site.all_done(500)
    assert sorted(records) == [f"job-{number:03d}" for number in range(500)]
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert {record["attempts"] for record in records.values()} == {1}
    assert os.listdir(site.queue) == []
    with psycopg.connect(site.database) as connection:
        rows = connection.execute("select state, count(*) from pysched.tasks group by state").fetchall()
    assert rows == [("succeeded", 500)]
    assert node.terminate() == 0


def test_the_profile_has_a_row_a_second(site: Site) -> None:
    node = site.node()
    site.drop("x", {"command": "true"})
    site.done("x")
    profile = site.home / "profiler.csv"
    wait_until(lambda: profile.exists() and profile.read_text().count("\n") >= 3, "two rows")
    node.terminate()
    header, *rows = profile.read_text().splitlines()
    assert header == (
        "ts_ms,throughput,queued_high,queued_med,queued_low,running,submitted,succeeded,failed,retried,cancelled,"
        "wait_p50_ms,wait_p95_ms,wait_p99_ms,run_p50_ms,run_p95_ms,cpu_pct,rss_mb"
    )
    assert all(re.fullmatch(r"[\d.,]*", row) for row in rows)
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert (last["submitted"], last["succeeded"], last["failed"]) == ("1", "1", "0")


def test_a_profile_can_be_plotted(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    node = site.node()
    profile = site.home / "profiler.csv"
    wait_until(lambda: profile.exists() and profile.read_text().count("\n") >= 3, "two rows")
    node.terminate()
    plot = site.start("plot")
    assert plot.popen.wait() == 0, plot.messages
    page = profile.with_suffix(".html")
    assert str(page) in plot.messages
    assert b"<html" in page.read_bytes()


def test_a_home_in_use_is_one_line(site: Site) -> None:
    first = site.node()
    second = site.start("run", "--queue", str(site.queue))
    assert second.popen.wait() == 1
    assert second.messages.count("\n") == 1
    assert f"pid {first.popen.pid}" in second.messages


def test_what_is_recorded_is_what_is_in_the_done_file(site: Site) -> None:
    site.node()
    site.drop("x", {"command": 'echo \'{"a": [1, null, "é"]}\' > "$PYSCHED_RESULT"'})
    record = site.done("x")
    with psycopg.connect(site.database) as connection:
        row = connection.execute(
            "select result::json, state, attempts, node::text from pysched.tasks where id = 'x'"
        ).fetchone()
    assert row == (json.loads('{"a": [1, null, "é"]}'), "succeeded", 1, record["node"])
    assert record["result"] == row[0]

"""The seed's programs as users run them, from files, against a control plane and a node that does the work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysched.api.client import percentile, workload
from tests.integration.api.conftest import TOKEN, Api, Worker

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "api" / "client.py"
BENCHMARK = ROOT / "benchmarks" / "benchmark.py"


def run(program: Path, *arguments: str, home: Path, token: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    environ["PYSCHED_HOME"] = str(home)
    if token is not None:
        environ["PYSCHED_TOKEN"] = token
    return subprocess.run(
        [sys.executable, str(program), *arguments], env=environ, cwd="/", capture_output=True, text=True, timeout=60
    )


@contextmanager
def working(api: Api, *, exit_code: int = 0) -> Iterator[None]:
    """A node that ends every task at once, until the block ends."""
    worker = Worker(api.store)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):  # its poll interval
            worker.run_all(exit_code=exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home in which the token stands, as the server leaves it."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path


class TestClient:
    def test_it_submits_what_the_seed_says_and_finds_the_token(self, api: Api, home: Path) -> None:
        before = api.store.stats()
        done = run(CLIENT, "--count", "50", "--ml_ratio", "0.3", "--url", api.url, home=home)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"accepted 50 tasks in [\d.]+ s: \d+/s, p50 [\d.]+ ms, p95 [\d.]+ ms\n", done.stdout)
        after = api.store.stats()
        assert after["submitted"] - before["submitted"] == 50
        new = api.http.get("/tasks", params={"limit": 50}).json()["tasks"]
        assert sum(task["type"] == "ml" for task in new) == 15
        assert {task["priority"] for task in new} == {"HIGH", "MED", "LOW"}

    @pytest.mark.parametrize(("exit_code", "code", "text"), [(0, 0, "succeeded 9 of 9"), (1, 1, "succeeded 0 of 9")])
    def test_waiting_tells_how_it_ended(self, api: Api, home: Path, exit_code: int, code: int, text: str) -> None:
        with working(api, exit_code=exit_code):
            done = run(CLIENT, "--count", "9", "--wait", "--url", api.url, home=home)
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.splitlines()[-1] == text

    def test_waiting_is_bounded(self, api: Api, home: Path) -> None:
        done = run(CLIENT, "--count", "1", "--wait", "--timeout", "0", "--url", api.url, home=home)
        assert done.returncode == 124
        assert done.stderr.startswith("client.py: timed out: ")
        assert done.stderr.count("\n") == 1


class TestBenchmark:
    @pytest.mark.parametrize("mode", ["single", "batch"])
    def test_it_measures_from_submission_to_end(self, api: Api, home: Path, mode: str) -> None:
        with working(api):
            done = run(BENCHMARK, "--count", "30", "--mode", mode, "--url", api.url, home=home)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == "tasks       30 (30 succeeded)"
        assert re.fullmatch(
            r"throughput  \d+ tasks/min \([\d.]+ s from the first submission to the last end\)", lines[2]
        )
        for line, name in zip(lines[4:], ("submit", "wait", "total"), strict=True):
            quantiles = re.fullmatch(rf"  {name} +([\d.]+) +([\d.]+) +([\d.]+)", line)
            assert quantiles, line
            assert sorted(map(float, quantiles.groups())) == [float(each) for each in quantiles.groups()]

    def test_one_failure_is_a_failure(self, api: Api, home: Path) -> None:
        with working(api, exit_code=1):
            done = run(BENCHMARK, "--count", "2", "--url", api.url, home=home)
        assert done.returncode == 1
        assert "2 failed" in done.stdout


@pytest.mark.parametrize("program", [CLIENT, BENCHMARK], ids=lambda path: path.stem)
class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--count", "0"], "--count: 0 is out of range; use 1 to 100000"),
            (["--count", "x"], "--count: invalid whole number value: 'x'"),
            (["--ml_ratio", "1.5"], "1.5 is out of range; use 0 to 1"),
            (["--ml_ratio", "nan"], "nan is out of range"),
            (["--nonsense"], "unrecognized arguments: --nonsense"),
            (["--url", "nonsense"], "write http://HOST:PORT"),
        ],
    )
    def test_one_line_and_2(self, program: Path, home: Path, arguments: list[str], text: str) -> None:
        done = run(program, *arguments, home=home)
        assert (done.returncode, done.stdout) == (2, "")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1

    def test_nobody_there_is_4(self, program: Path, home: Path) -> None:
        done = run(program, "--count", "1", "--url", "http://127.0.0.1:1", home=home)
        assert done.returncode == 4
        assert "no server answers at http://127.0.0.1:1" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_wrong_token_is_said(self, api: Api, program: Path, home: Path) -> None:
        done = run(program, "--count", "1", "--url", api.url, home=home, token="wrong")
        assert done.returncode == 1
        assert "the token is wrong" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("ratio", "ml"), [(0.0, 0), (0.3, 15), (1.0, 50)])
def test_the_mix_is_exact_and_repeatable(ratio: float, ml: int) -> None:
    tasks = workload(50, ratio, 7)
    assert sum(task["type"] == "ml" for task in tasks) == ml
    assert tasks == workload(50, ratio, 7)


def test_percentiles_are_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, each) for each in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([7.0], 99) == 7
    assert percentile([1.0, 2.0, 3.0], 50) == 2

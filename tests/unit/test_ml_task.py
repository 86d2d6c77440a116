"""The numeric simulation, as a program and as entrypoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pysched.ml import ml_task

PROGRAM = Path(ml_task.__file__)


def run(*flags: str, module: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-m", "pysched.ml.ml_task"] if module else [str(PROGRAM)]), *flags]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    return subprocess.run(command, cwd="/", env={**env, **environment}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", [False, True], ids=["by path", "by name"])
def test_runs_as_a_program(module: bool) -> None:
    done = run("--mode", "train", "--duration_ms", "300", module=module)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert result["mode"] == "train"
    assert result["loss_last"] < result["loss_first"] / 2
    assert result["accuracy"] > 0.8
    assert result["elapsed_ms"] >= 300


def test_training_is_deterministic_for_a_seed() -> None:
    first, again, other = (
        {**ml_task.train(duration_ms=60_000, epochs=3, seed=seed), "elapsed_ms": 0} for seed in (7, 7, 8)
    )
    assert first == again
    assert first["epochs"] == 3
    assert first["loss_last"] != other["loss_last"]


def test_inference_is_deterministic_for_a_seed() -> None:
    first, again = ({**ml_task.infer(duration_ms=60_000, epochs=2, seed=3), "elapsed_ms": 0} for _ in range(2))
    assert first == again
    assert first["samples"] == 4_000
    assert sum(first["histogram"]) == 2_000  # of the first pass
    assert 0.25 < first["confidence"] < 1  # better than one in four


@pytest.mark.parametrize("work", [ml_task.train, ml_task.infer])
def test_ends_when_the_time_is_used(work: Any) -> None:
    started = time.monotonic()
    result = work(duration_ms=200)
    elapsed = time.monotonic() - started
    assert 0.2 <= elapsed < 3  # a step is microseconds; the rest is for a crowded machine
    assert result["elapsed_ms"] >= 200
    assert result["epochs"] > 1


@pytest.mark.parametrize("work", [ml_task.train, ml_task.infer])
def test_goes_through_the_data_once_without_any_time(work: Any) -> None:
    assert work(duration_ms=0)["epochs"] == 1


def test_a_step_follows_the_gradient() -> None:
    """The change of each weight by a small step, against the slope measured by central differences."""
    parameters = ml_task.Parameters(features=3, hidden=4, classes=3)
    random = np.random.default_rng(0)
    network: Any = ml_task.Network(parameters, random)
    for name in ("w1", "b1", "w2", "b2"):
        setattr(network, name, getattr(network, name).astype(np.float64))
    x, y = random.standard_normal((5, 3)), random.integers(0, 3, 5)
    slopes = {}
    for name in ("w1", "b1", "w2", "b2"):
        weights = getattr(network, name)
        slope = slopes[name] = np.zeros_like(weights)
        for at in np.ndindex(weights.shape):
            before = weights[at]
            losses = []
            for shift in (1e-5, -1e-5):
                weights[at] = before + shift
                losses.append(network.loss_and_accuracy(x, y)[0])
            weights[at] = before
            slope[at] = (losses[0] - losses[1]) / 2e-5
    old = {name: getattr(network, name).copy() for name in slopes}
    network.step(x, y, 1e-3)
    for name, slope in slopes.items():
        np.testing.assert_allclose((old[name] - getattr(network, name)) / 1e-3, slope, atol=1e-6)


def test_params_come_from_the_environment_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "result"
    params = json.dumps({"mode": "infer", "seed": 5, "epochs": 1, "duration_ms": 60_000})
    done = run("--seed", "6", PYSCHED_PARAMS=params, PYSCHED_RESULT=str(path))
    result = json.loads(done.stdout)
    assert (result["mode"], result["seed"], result["epochs"]) == ("infer", 6, 1)
    assert json.loads(path.read_text()) == result
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize(
    ("flags", "params", "says"),
    [
        (["--seed", "x"], "", "--seed"),
        (["--mode", "sleep"], "", "--mode"),
        (["--sampels", "9"], "", "--sampels"),
        (["--duration_ms", "-1"], "", "duration_ms: -1; it should be a whole number from 0"),
        ([], '{"sampels": 9}', "sampels: no such parameter; did you mean samples?"),
        ([], '{"mode": "sleep"}', "mode: 'sleep'; it should be train or infer"),
        ([], '{"epochs": true}', "epochs: True"),
        ([], '{"learning_rate": 1e999}', "learning_rate: inf"),
        ([], '{"samples": 10000000, "features": 100000}', "samples × features"),
        ([], "{", "PYSCHED_PARAMS is not JSON"),
        ([], "[]", "PYSCHED_PARAMS holds a JSON list"),
    ],
)
def test_bad_parameters_get_one_line(flags: list[str], params: str, says: str) -> None:
    done = run(*flags, PYSCHED_PARAMS=params)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_one_thread_unless_the_user_says_otherwise() -> None:
    code = "import os, pysched.ml.ml_task; print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    env["OMP_NUM_THREADS"] = "2"
    output = subprocess.check_output([sys.executable, "-c", code], cwd="/", env=env, text=True)
    assert output.split() == ["2", "1"]

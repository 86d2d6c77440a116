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


MODELS = ["mlp", "softmax", "kmeans", "pca"]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_learns_and_is_deterministic_for_a_seed(model: str) -> None:
    given = {"model": model, "epochs": 4, "duration_ms": 60_000, "k": 4, "seed": 5}
    first, again = ({**ml_task.train(**given), "elapsed_ms": 0} for _ in range(2))
    assert first == again
    assert (first["model"], first["epochs"], len(first["losses"])) == (model, 4, 4)
    assert first["loss_last"] < 0.8 * first["loss_first"]
    assert first["losses"][-1] == first["loss_last"]
    assert first["accuracy"] > (0.3 if model == "pca" else 0.9)


@pytest.mark.parametrize(("model", "least"), [("mlp", 0.93), ("softmax", 0.93), ("kmeans", 0.6), ("pca", 0.6)])
def test_the_digits_of_scikit_learn(model: str, least: float) -> None:
    result = ml_task.train(model=model, data="digits", epochs=10, duration_ms=60_000)
    assert result["accuracy"] > least
    assert ml_task.infer(data="digits", epochs=1, duration_ms=60_000)["samples"] == 1797


def test_digits_without_scikit_learn_are_an_error_of_one_line() -> None:
    hidden = "import sys; sys.modules['sklearn'] = None; "
    code = hidden + "from pysched.ml import ml_task; sys.exit(ml_task.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--data", "digits"], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ml_task: data: digits come with scikit-learn, which is not installed")


def test_the_components_are_those_of_a_decomposition() -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal((4_000, 6)) * [5, 4, 3, 1, 0.5, 0.2]).astype(np.float32)
    model = ml_task.Pca(x, 2, random)
    for _ in range(200):
        model.step(x, np.zeros(len(x), np.int64))
    _, exact = model.loss_and_accuracy(x, np.zeros(len(x), np.int64))
    variances = np.linalg.eigvalsh(np.cov(x.T))
    assert exact == pytest.approx(variances[-2:].sum() / variances.sum(), abs=1e-3)


@pytest.mark.parametrize("model", ["mlp", "softmax"])
def test_slopes_are_those_of_the_loss(model: str) -> None:
    """Against the slope measured by central differences."""
    random = np.random.default_rng(0)
    made: Any = ml_task.Network(3, 4, 3, 0.1, random) if model == "mlp" else ml_task.Softmax(3, 3, 0.1)
    made.weights = [weight.astype(np.float64) + random.standard_normal(weight.shape) for weight in made.weights]
    x, y = random.standard_normal((5, 3)), random.integers(0, 3, 5)
    for weights, slope in zip(made.weights, made.slopes(x, y), strict=True):
        for at in np.ndindex(weights.shape):
            before = weights[at]
            losses = []
            for shift in (1e-5, -1e-5):
                weights[at] = before + shift
                losses.append(made.loss_and_accuracy(x, y)[0])
            weights[at] = before
            assert slope[at] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-6)


def test_progress_is_told_in_the_file_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    done = run("--duration_ms", "1000", PYSCHED_PROGRESS=str(path))
    assert done.returncode == 0
    told = json.loads(path.read_text())
    assert 0 < told["fraction"] <= 1
    assert told["epochs"] >= 1
    assert os.listdir(tmp_path) == ["progress"]


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
        ([], '{"model": "svm"}', "model: 'svm'; it should be mlp or softmax or kmeans or pca"),
        (["--data", "cats"], "", "--data"),
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

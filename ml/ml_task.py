"""The `ml` simulation: real numeric work on made-up data, deterministic for a seed.

    python ml_task.py --mode train --duration_ms 500 --seed 0
    python -m pysched.ml.ml_task --mode infer

`train` fits a network with one hidden layer (tanh, softmax, cross entropy) by mini-batch gradient descent
to Gaussian clusters; `infer` classifies such data with a network whose weights are drawn from the seed.
Both go on until `duration_ms` is used, to within one step, but at least once through the data, and at most
`epochs` times through it.  As a program the time counts from the first line of this file (so that it
includes the import of numpy), as an entrypoint (`pysched.ml.ml_task:train`) from the call.

Parameters come from the JSON object in PYSCHED_PARAMS, then from flags of the same names, which win.  The
result is one JSON line on stdout, and goes to the path in PYSCHED_RESULT, if that is set, through `PATH.part`
and a rename.  Bad parameters: one line on stderr, exit code 2.
"""

from __future__ import annotations

import time

_LOADED = time.monotonic()

import argparse  # noqa: E402  (the clock starts first)
import dataclasses  # noqa: E402
import difflib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

# One BLAS thread: the scheduler fills the processors with processes.  numpy reads these when it is imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

VALUES_MAX = 50_000_000  # in one array: 200 MB of float32
PROBE_SAMPLES = 4096  # losses and accuracy are taken on at most so many, to stay within one step
_LIMITS = {
    "duration_ms": (0, 86_400_000),
    "seed": (0, 2**63 - 1),
    "samples": (10, 10_000_000),
    "features": (1, 100_000),
    "classes": (2, 1_000),
    "hidden": (1, 10_000),
    "batch": (1, 1_000_000),
    "epochs": (0, 1_000_000_000),
}


class ParameterError(ValueError):
    """A parameter is unknown or out of its limits."""


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What `train` and `infer` can be told; limits are in `_LIMITS`."""

    duration_ms: int = 500
    seed: int = 0
    samples: int = 2_000
    features: int = 32
    classes: int = 4
    hidden: int = 32
    batch: int = 64  # samples a step
    epochs: int = 0  # at most so many times through the data; 0: as many as the time allows
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ParameterError(f"{name}: {value!r}; it should be a whole number from {low} to {high}")
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 10:
            raise ParameterError(f"learning_rate: {rate!r}; it should be a number above 0, up to 10")
        step = max(min(self.batch, self.samples), PROBE_SAMPLES)
        for shape, values in (
            ("samples × features", self.samples * self.features),
            ("features × hidden", self.features * self.hidden),
            ("batch × hidden", step * self.hidden),
            ("batch × classes", step * self.classes),
        ):
            if values > VALUES_MAX:
                raise ParameterError(f"{shape}: {values} numbers; it should be at most {VALUES_MAX}")

    @classmethod
    def of(cls, given: dict[str, Any]) -> Parameters:
        """From names and values; raises `ParameterError` that names the first wrong one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ParameterError(f"{name}: no such parameter; {hint}")
        return cls(**given)


def train(**given: Any) -> dict[str, Any]:
    """Fit a classifier; keywords as in `Parameters`, result described at `_train`.  Raises ParameterError."""
    return _train(Parameters.of(given), started=time.monotonic())


def infer(**given: Any) -> dict[str, Any]:
    """Classify samples; keywords as in `Parameters`, result described at `_infer`.  Raises ParameterError."""
    return _infer(Parameters.of(given), started=time.monotonic())


class Network:
    """features → tanh(hidden) → softmax(classes), float32."""

    def __init__(self, p: Parameters, random: np.random.Generator) -> None:
        self.w1 = _normal(random, (p.features, p.hidden), p.features**-0.5)
        self.b1 = np.zeros(p.hidden, np.float32)
        self.w2 = _normal(random, (p.hidden, p.classes), p.hidden**-0.5)
        self.b2 = np.zeros(p.classes, np.float32)

    def forward(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """(hidden activations [n, hidden], class probabilities [n, classes]) for x [n, features]."""
        hidden: _Floats = np.tanh(x @ self.w1 + self.b1)
        logits = hidden @ self.w2 + self.b2
        logits -= logits.max(axis=1, keepdims=True)  # no overflow in exp
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return hidden, logits

    def step(self, x: _Floats, y: _Ints, rate: float) -> None:
        """One step of gradient descent on the mean cross entropy of x [n, features], y [n]."""
        hidden, slope = self.forward(x)
        slope[np.arange(len(y)), y] -= 1  # d loss / d logits, times n
        slope *= np.float32(rate / len(y))
        back = (slope @ self.w2.T) * (1 - hidden * hidden)
        self.w2 -= hidden.T @ slope
        self.b2 -= slope.sum(axis=0)
        self.w1 -= x.T @ back
        self.b1 -= back.sum(axis=0)

    def loss_and_accuracy(self, x: _Floats, y: _Ints) -> tuple[float, float]:
        _, chance = self.forward(x)
        loss = -np.log(chance[np.arange(len(y)), y] + np.float32(1e-12)).mean()
        return float(loss), float((chance.argmax(axis=1) == y).mean())


def _normal(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> _Floats:
    values: _Floats = random.standard_normal(shape, np.float32)
    values *= np.float32(scale)
    return values


def _clusters(p: Parameters, random: np.random.Generator) -> tuple[_Floats, _Ints]:
    """x [samples, features] around one centre a class, y [samples]; the clusters overlap a little."""
    centres = _normal(random, (p.classes, p.features), 2.0 * p.features**-0.5)
    y = random.integers(0, p.classes, p.samples)
    x = random.standard_normal((p.samples, p.features), np.float32)
    x *= np.float32(0.5)
    x += centres[y]
    return x, y


def _train(p: Parameters, *, started: float) -> dict[str, Any]:
    """{mode, seed, epochs (completed), steps, loss_first, loss_last, accuracy, elapsed_ms}.

    Losses are means over training samples, before the first step and after the last; the accuracy is that
    of a tenth of the samples that was kept aside.
    """
    deadline = started + p.duration_ms / 1000
    random = np.random.default_rng(p.seed)
    x, y = _clusters(p, random)
    network = Network(p, random)
    kept = min(max(1, p.samples // 10), PROBE_SAMPLES)
    test_x, test_y, x, y = x[:kept], y[:kept], x[kept:], y[kept:]
    probe_x, probe_y = x[:PROBE_SAMPLES], y[:PROBE_SAMPLES]
    loss_first, _ = network.loss_and_accuracy(probe_x, probe_y)
    epochs = steps = 0
    while (epochs == 0 or time.monotonic() < deadline) and (p.epochs == 0 or epochs < p.epochs):
        order = random.permutation(len(x))
        for begin in range(0, len(x), p.batch):
            if epochs > 0 and time.monotonic() >= deadline:
                break
            chosen = order[begin : begin + p.batch]
            network.step(x[chosen], y[chosen], p.learning_rate)
            steps += 1
        else:
            epochs += 1
    loss_last, _ = network.loss_and_accuracy(probe_x, probe_y)
    _, accuracy = network.loss_and_accuracy(test_x, test_y)
    return {
        "mode": "train",
        "seed": p.seed,
        "epochs": epochs,
        "steps": steps,
        "loss_first": round(loss_first, 6),
        "loss_last": round(loss_last, 6),
        "accuracy": round(accuracy, 4),
        "elapsed_ms": _elapsed_ms(started),
    }


def _infer(p: Parameters, *, started: float) -> dict[str, Any]:
    """{mode, seed, epochs (completed), steps, samples (classified), histogram [classes], confidence, elapsed_ms}.

    The histogram counts the predicted classes, and the confidence is the mean of the largest probability,
    both over the first pass.
    """
    deadline = started + p.duration_ms / 1000
    random = np.random.default_rng(p.seed)
    x, _ = _clusters(p, random)
    network = Network(p, random)
    histogram = np.zeros(p.classes, np.int64)
    confidence = 0.0
    epochs = steps = samples = 0
    while (epochs == 0 or time.monotonic() < deadline) and (p.epochs == 0 or epochs < p.epochs):
        for begin in range(0, len(x), p.batch):
            if epochs > 0 and time.monotonic() >= deadline:
                break
            _, chance = network.forward(x[begin : begin + p.batch])
            predicted = chance.argmax(axis=1)
            if epochs == 0:
                histogram += np.bincount(predicted, minlength=p.classes)
                confidence += float(chance.max(axis=1).sum())
            steps += 1
            samples += len(predicted)
        else:
            epochs += 1
    return {
        "mode": "infer",
        "seed": p.seed,
        "epochs": epochs,
        "steps": steps,
        "samples": samples,
        "histogram": histogram.tolist(),
        "confidence": round(confidence / len(x), 6),
        "elapsed_ms": _elapsed_ms(started),
    }


def _elapsed_ms(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as everywhere in pysched
        raise ParameterError(message)


def _arguments(arguments: list[str]) -> dict[str, Any]:
    """What PYSCHED_PARAMS and the flags give, flags first."""
    parser = _Parser(prog="ml_task", description="Numeric training or inference for a given time.", allow_abbrev=False)
    parser.add_argument("--mode", choices=["train", "infer"], help="default: train", default=argparse.SUPPRESS)
    for field in dataclasses.fields(Parameters):
        parser.add_argument(
            f"--{field.name}",
            type=float if field.name == "learning_rate" else int,
            default=argparse.SUPPRESS,
            help=f"default: {field.default}",
        )
    flags = vars(parser.parse_args(arguments))
    text = os.environ.get("PYSCHED_PARAMS")
    if not text:
        return flags
    try:
        params = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"PYSCHED_PARAMS is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise ParameterError(f"PYSCHED_PARAMS holds a JSON {type(params).__name__}; it should be an object")
    return {**params, **flags}


def main(arguments: list[str], *, started: float = _LOADED) -> int:
    """Run as a program whose time began at `started`, of the monotonic clock; the exit code."""
    try:
        given = _arguments(arguments)
        mode = given.pop("mode", "train")
        if mode not in ("train", "infer"):
            raise ParameterError(f"mode: {mode!r}; it should be train or infer")
        parameters = Parameters.of(given)
    except ParameterError as error:
        print("ml_task:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    result = (_train if mode == "train" else _infer)(parameters, started=started)
    line = json.dumps(result)
    print(line, flush=True)
    path = os.environ.get("PYSCHED_RESULT")
    if path:
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.write(line)
        os.replace(f"{path}.part", path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

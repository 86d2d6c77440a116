"""The `ml` simulation: real numeric work, deterministic for a seed.

    python ml_task.py --mode train --duration_ms 500 --seed 0
    python ml_task.py --mode train --model softmax --data digits --epochs 20 --duration_ms 60000
    python -m pysched.ml.ml_task --mode infer

`train` fits a model to data, in mini-batches:

    mlp       one hidden layer (tanh), softmax, cross entropy; Adam
    softmax   softmax regression, cross entropy; Adam
    kmeans    k-means in mini-batches (Sculley 2010) from k-means++; loss: mean squared distance, accuracy: purity
    pca       the leading components by Oja's rule in blocks; loss: share of the variance left, accuracy: the rest

`infer` classifies in batches with an mlp whose weights are drawn from the seed.  The data are Gaussian `clusters`, made
from the seed, or the handwritten `digits` that scikit-learn ships (read from its files, not imported).

Both go on until `duration_ms` is used, to within one step, but at least once through the data, and at most
`epochs` times through it.  As a program the time counts from the first line of this file (so that it
includes the import of numpy), as an entrypoint (`pysched.ml.ml_task:train`) from the call.

Parameters come from the JSON object in PYSCHED_PARAMS, then from flags of the same names, which win.  The
result is one JSON line on stdout, and goes to the path in PYSCHED_RESULT, if that is set, through `PATH.part`
and a rename.  How far it is goes to the path in PYSCHED_PROGRESS.  Bad parameters: one line on stderr, exit code 2.
"""

from __future__ import annotations

import time

_LOADED = time.monotonic()

import argparse  # noqa: E402  (the clock starts first)
import dataclasses  # noqa: E402
import difflib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

# One BLAS thread: the scheduler fills the processors with processes.  numpy reads these when it is imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
import numpy.random  # noqa: E402 - not by the first job: numpy imports it when it is used
import numpy.typing as npt  # noqa: E402

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

VALUES_MAX = 50_000_000  # in one array: 200 MB of float32
PROBE_SAMPLES = 4096  # losses and accuracy are taken on at most so many, to stay within one step
LOSSES = 20  # in the result: after the first epochs
DIGITS = (1797, 64, 10)  # samples, features, classes
_REPORT_S = 0.25  # between two reports of progress
_CHOICES = {"model": ("mlp", "softmax", "kmeans", "pca"), "data": ("clusters", "digits")}
_LIMITS = {
    "duration_ms": (0, 86_400_000),
    "seed": (0, 2**63 - 1),
    "samples": (10, 10_000_000),
    "features": (1, 100_000),
    "classes": (2, 1_000),
    "hidden": (1, 10_000),
    "k": (1, 1_000),
    "batch": (1, 1_000_000),
    "epochs": (0, 1_000_000_000),
}


class ParameterError(ValueError):
    """A parameter is unknown or out of its limits."""


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What `train` and `infer` can be told; limits are in `_LIMITS`."""

    duration_ms: int = 500
    model: str = "mlp"
    data: str = "clusters"
    seed: int = 0
    samples: int = 2_000  # of clusters, as are the next two
    features: int = 32
    classes: int = 4
    hidden: int = 32  # units of mlp
    k: int = 10  # centres of kmeans, components of pca
    batch: int = 64  # samples a step
    epochs: int = 0  # at most so many times through the data; 0: as many as the time allows
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ParameterError(f"{name}: {getattr(self, name)!r}; it should be {' or '.join(choices)}")
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
            ("features × k", self.features * self.k),
            ("batch × hidden", step * self.hidden),
            ("batch × classes", step * self.classes),
            ("batch × k", step * self.k),
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


# ---- data ------------------------------------------------------------------------------------------------------------
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


def _digits(random: np.random.Generator) -> tuple[_Floats, _Ints]:
    """x [1797, 64] in 0 … 1, y [1797], in an order drawn from the seed."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ParameterError("data: digits come with scikit-learn, which is not installed; use clusters, or install it")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.float32, delimiter=",")
    table = table[random.permutation(len(table))]
    return table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64)


def _data(p: Parameters, random: np.random.Generator) -> tuple[_Floats, _Ints]:
    return _digits(random) if p.data == "digits" else _clusters(p, random)


# ---- models ----------------------------------------------------------------------------------------------------------


class Adam:
    """Kingma and Ba 2015, on a list of arrays that it changes in place."""

    def __init__(self, weights: list[_Floats], rate: float) -> None:
        self._weights = weights
        self._rate = rate
        self._means = [np.zeros_like(weight) for weight in weights]
        self._squares = [np.zeros_like(weight) for weight in weights]
        self._steps = 0

    def step(self, slopes: list[_Floats]) -> None:
        self._steps += 1
        rate = self._rate * (1 - 0.999**self._steps) ** 0.5 / (1 - 0.9**self._steps)
        for weight, slope, mean, square in zip(self._weights, slopes, self._means, self._squares, strict=True):
            mean += np.float32(0.1) * (slope - mean)
            square += np.float32(0.001) * (slope * slope - square)
            weight -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(1e-8))


class Softmax:
    """features → softmax(classes), float32."""

    def __init__(self, features: int, classes: int, rate: float) -> None:
        self.weights = [np.zeros((features, classes), np.float32), np.zeros(classes, np.float32)]
        self._adam = Adam(self.weights, rate)

    def chances(self, x: _Floats) -> _Floats:
        """Class probabilities [n, classes]."""
        return _softmax(x @ self.weights[0] + self.weights[1])

    def slopes(self, x: _Floats, y: _Ints) -> list[_Floats]:
        """Of the mean cross entropy, by weights."""
        error = _error(self.chances(x), y)
        return [x.T @ error, error.sum(axis=0)]

    def step(self, x: _Floats, y: _Ints) -> None:
        self._adam.step(self.slopes(x, y))

    def loss_and_accuracy(self, x: _Floats, y: _Ints) -> tuple[float, float]:
        return _judge(self.chances(x), y)


class Network:
    """features → tanh(hidden) → softmax(classes), float32."""

    def __init__(self, features: int, hidden: int, classes: int, rate: float, random: np.random.Generator) -> None:
        self.weights = [
            _normal(random, (features, hidden), features**-0.5),
            np.zeros(hidden, np.float32),
            _normal(random, (hidden, classes), hidden**-0.5),
            np.zeros(classes, np.float32),
        ]
        self._adam = Adam(self.weights, rate)

    def chances(self, x: _Floats) -> _Floats:
        """Class probabilities [n, classes]."""
        return self._forward(x)[1]

    def slopes(self, x: _Floats, y: _Ints) -> list[_Floats]:
        """Of the mean cross entropy, by weights."""
        hidden, chances = self._forward(x)
        error = _error(chances, y)
        back = (error @ self.weights[2].T) * (1 - hidden * hidden)
        return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]

    def step(self, x: _Floats, y: _Ints) -> None:
        self._adam.step(self.slopes(x, y))

    def loss_and_accuracy(self, x: _Floats, y: _Ints) -> tuple[float, float]:
        return _judge(self.chances(x), y)

    def _forward(self, x: _Floats) -> tuple[_Floats, _Floats]:
        hidden: _Floats = np.tanh(x @ self.weights[0] + self.weights[1])
        return hidden, _softmax(hidden @ self.weights[2] + self.weights[3])


class KMeans:
    """Centres [k, features]; each batch moves its nearest centres by the mean of all they ever took."""

    def __init__(self, x: _Floats, k: int, random: np.random.Generator) -> None:
        self.centres = np.empty((min(k, len(x)), x.shape[1]), np.float32)
        self._taken = np.zeros(len(self.centres), np.int64)
        self.centres[0] = x[random.integers(len(x))]
        nearest = np.full(len(x), np.inf, np.float32)
        for index in range(1, len(self.centres)):  # k-means++: far ones are likelier
            nearest = np.minimum(nearest, ((x - self.centres[index - 1]) ** 2).sum(axis=1))
            total = float(nearest.sum())
            at = np.searchsorted(np.cumsum(nearest, dtype=np.float64), random.random() * total)
            self.centres[index] = x[min(int(at), len(x) - 1)]

    def step(self, x: _Floats, y: _Ints) -> None:
        nearest, _ = self._assign(x)
        for centre in np.unique(nearest):
            members = x[nearest == centre]
            self._taken[centre] += len(members)
            self.centres[centre] += (members - self.centres[centre]).sum(axis=0) / np.float32(self._taken[centre])

    def loss_and_accuracy(self, x: _Floats, y: _Ints) -> tuple[float, float]:
        nearest, distances = self._assign(x)
        table = np.zeros((len(self.centres), int(y.max()) + 1), np.int64)
        np.add.at(table, (nearest, y), 1)
        return float(distances.mean()), float(table.max(axis=1).sum() / len(y))

    def _assign(self, x: _Floats) -> tuple[_Ints, _Floats]:
        """The nearest centre of each sample, and the squared distance to it."""
        distances = (x**2).sum(axis=1)[:, None] - 2 * (x @ self.centres.T) + (self.centres**2).sum(axis=1)
        nearest = distances.argmin(axis=1)
        return nearest, np.maximum(distances[np.arange(len(x)), nearest], 0)


class Pca:
    """An orthonormal base [features, k] of the leading components."""

    def __init__(self, x: _Floats, k: int, random: np.random.Generator) -> None:
        self._mean = x.mean(axis=0)
        self.base, _ = np.linalg.qr(_normal(random, (x.shape[1], min(k, x.shape[1])), 1.0))

    def step(self, x: _Floats, y: _Ints) -> None:
        x = x - self._mean
        scale = np.float32((x * x).mean() * x.shape[1] + 1e-12)
        self.base, _ = np.linalg.qr(self.base + (x.T @ (x @ self.base)) / (np.float32(len(x)) * scale))

    def loss_and_accuracy(self, x: _Floats, y: _Ints) -> tuple[float, float]:
        x = x - self._mean
        explained = float(((x @ self.base) ** 2).sum() / ((x * x).sum() + np.float32(1e-12)))
        return 1 - explained, explained


def _softmax(logits: _Floats) -> _Floats:
    logits -= logits.max(axis=1, keepdims=True)  # no overflow in exp
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _error(chances: _Floats, y: _Ints) -> _Floats:
    """d mean cross entropy / d logits; changes `chances`."""
    chances[np.arange(len(y)), y] -= 1
    chances /= np.float32(len(y))
    return chances


def _judge(chances: _Floats, y: _Ints) -> tuple[float, float]:
    loss = -np.log(chances[np.arange(len(y)), y] + np.float32(1e-12)).mean()
    return float(loss), float((chances.argmax(axis=1) == y).mean())


def _model(p: Parameters, x: _Floats, classes: int, random: np.random.Generator) -> Softmax | Network | KMeans | Pca:
    if p.model == "softmax":
        return Softmax(x.shape[1], classes, p.learning_rate)
    if p.model == "kmeans":
        return KMeans(x, p.k, random)
    if p.model == "pca":
        return Pca(x, p.k, random)
    return Network(x.shape[1], p.hidden, classes, p.learning_rate, random)


# ---- work ------------------------------------------------------------------------------------------------------------


class Progress:
    """Says in the file that PYSCHED_PROGRESS names how far the work is, if it is set."""

    def __init__(self, p: Parameters, started: float) -> None:
        self._path = os.environ.get("PYSCHED_PROGRESS")
        self._p = p
        self._started = started
        self._next = started + _REPORT_S

    def tell(self, **values: float) -> None:
        now = time.monotonic()
        if self._path is None or now < self._next:
            return
        self._next = now + _REPORT_S
        used = (now - self._started) * 1000 / max(self._p.duration_ms, 1)
        share = max(used, values["epochs"] / self._p.epochs if self._p.epochs else 0)
        with open(f"{self._path}.part", "w", encoding="utf-8") as file:
            json.dump({"fraction": round(min(share, 1.0), 3), **values}, file)
        os.replace(f"{self._path}.part", self._path)


def _train(p: Parameters, *, started: float) -> dict[str, Any]:
    """{mode, model, data, seed, epochs (completed), steps, loss_first, loss_last, losses, accuracy, elapsed_ms}.

    Losses are means over training samples, before the first step and after the last; `losses` those after the first
    epochs.  The accuracy is that of a tenth of the samples that was kept aside.
    """
    deadline = started + p.duration_ms / 1000
    progress = Progress(p, started)
    random = np.random.default_rng(p.seed)
    x, y = _data(p, random)
    classes = DIGITS[2] if p.data == "digits" else p.classes
    kept = min(max(1, len(x) // 10), PROBE_SAMPLES)
    test_x, test_y, x, y = x[:kept], y[:kept], x[kept:], y[kept:]
    model = _model(p, x, classes, random)
    probe_x, probe_y = x[:PROBE_SAMPLES], y[:PROBE_SAMPLES]
    loss_first, _ = model.loss_and_accuracy(probe_x, probe_y)
    epochs = steps = 0
    losses: list[float] = []
    while (epochs == 0 or time.monotonic() < deadline) and (p.epochs == 0 or epochs < p.epochs):
        order = random.permutation(len(x))
        for begin in range(0, len(x), p.batch):
            if epochs > 0 and time.monotonic() >= deadline:
                break
            chosen = order[begin : begin + p.batch]
            model.step(x[chosen], y[chosen])
            steps += 1
        else:
            epochs += 1
            if len(losses) < LOSSES:
                losses.append(round(model.loss_and_accuracy(probe_x, probe_y)[0], 6))
            progress.tell(epochs=epochs, loss=losses[-1])
    loss_last, _ = model.loss_and_accuracy(probe_x, probe_y)
    _, accuracy = model.loss_and_accuracy(test_x, test_y)
    return {
        "mode": "train",
        "model": p.model,
        "data": p.data,
        "seed": p.seed,
        "epochs": epochs,
        "steps": steps,
        "loss_first": round(loss_first, 6),
        "loss_last": round(loss_last, 6),
        "losses": losses,
        "accuracy": round(accuracy, 4),
        "elapsed_ms": _elapsed_ms(started),
    }


def _infer(p: Parameters, *, started: float) -> dict[str, Any]:
    """{mode, data, seed, epochs (completed), steps, samples (classified), histogram [classes], confidence, elapsed_ms}.

    The histogram counts the predicted classes, and the confidence is the mean of the largest probability,
    both over the first pass.
    """
    deadline = started + p.duration_ms / 1000
    random = np.random.default_rng(p.seed)
    x, _ = _data(p, random)
    classes = DIGITS[2] if p.data == "digits" else p.classes
    network = Network(x.shape[1], p.hidden, classes, p.learning_rate, random)
    progress = Progress(p, started)
    histogram = np.zeros(classes, np.int64)
    confidence = 0.0
    epochs = steps = samples = 0
    while (epochs == 0 or time.monotonic() < deadline) and (p.epochs == 0 or epochs < p.epochs):
        for begin in range(0, len(x), p.batch):
            if epochs > 0 and time.monotonic() >= deadline:
                break
            chances = network.chances(x[begin : begin + p.batch])
            predicted = chances.argmax(axis=1)
            if epochs == 0:
                histogram += np.bincount(predicted, minlength=classes)
                confidence += float(chances.max(axis=1).sum())
            steps += 1
            samples += len(predicted)
        else:
            epochs += 1
            progress.tell(epochs=epochs, samples=samples)
    return {
        "mode": "infer",
        "data": p.data,
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
            type={"float": float, "int": int, "str": str}[str(field.type)],
            choices=_CHOICES.get(field.name),
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
        result = (_train if mode == "train" else _infer)(Parameters.of(given), started=started)
    except ParameterError as error:
        print("ml_task:", " ".join(str(error).split()), file=sys.stderr)
        return 2
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

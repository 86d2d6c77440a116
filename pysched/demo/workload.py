"""The demo's tasks: real work of known result, among them tasks that must fail, retry and time out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PRIORITIES = ("HIGH", "MED", "LOW")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One task and the only end of it that counts as correct."""

    task: Mapping[str, object]  # as submitted
    kind: str
    status: str = "succeeded"
    reason: str | None = None
    attempts: int = 1
    result_is_right: Callable[[object], bool] = lambda result: result is None

    def differences(self, record: Mapping[str, object]) -> list[str]:
        """How `record` (a `.done` file's fields) differs from what is expected; empty if it does not."""
        wrong = [
            f"{name} is {record.get(name)!r}, not {wanted!r}"
            for name, wanted in (("status", self.status), ("reason", self.reason), ("attempts", self.attempts))
            if record.get(name) != wanted
        ]
        if not self.result_is_right(record.get("result")):
            wrong.append(f"result {record.get('result')!r} is wrong")
        return wrong


def build(count: int, ml_ratio: float, seed: int) -> list[Expected]:
    """`count` tasks, `ml_ratio` of them ML, shuffled by `seed`; of 500, ten go wrong in known ways."""
    numbers = random.Random(seed)  # noqa: S311 - a workload that repeats, no secret
    ml_count = round(count * ml_ratio)
    odd = [*[_flaky] * 5, *[_failing] * 3, *[_hanging] * 2]
    odd = odd[: min(len(odd), count - ml_count)]
    makers = [*[_training, _inference] * (ml_count // 2 + 1)][:ml_count] + odd
    commands = (_hash, _compress, _sort, _count)
    makers += [commands[index % len(commands)] for index in range(count - len(makers))]
    numbers.shuffle(makers)
    tasks = []
    for index, maker in enumerate(makers):
        expected = maker(numbers)
        task = {
            "id": f"demo-{index:05d}-{expected.kind}",
            "name": f"{expected.kind} {index}",
            "priority": _PRIORITIES[numbers.randrange(3)],
            "tags": ["demo"],
            **expected.task,
        }
        tasks.append(
            Expected(
                task=task,
                kind=expected.kind,
                status=expected.status,
                reason=expected.reason,
                attempts=expected.attempts,
                result_is_right=expected.result_is_right,
            )
        )
    return tasks


def _lines(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, count + 1))


def _shell(kind: str, pipeline: str, answer: str) -> Expected:
    """A shell pipeline whose one word of output becomes the result, as JSON."""
    command = f"""set -e; answer=$({pipeline}); printf '"%s"' "$answer" > "$PYSCHED_RESULT"; echo "$answer" """.strip()
    return Expected(
        kind=kind, task={"command": command, "env": {"LC_ALL": "C"}}, result_is_right=lambda result: result == answer
    )


def _hash(numbers: random.Random) -> Expected:
    count = numbers.randrange(20_000, 60_000)
    return _shell("hash", f"seq {count} | sha256sum | cut -c1-64", hashlib.sha256(_lines(count)).hexdigest())


def _compress(numbers: random.Random) -> Expected:
    count = numbers.randrange(20_000, 60_000)
    answer = hashlib.sha256(_lines(count)).hexdigest()
    return _shell("compress", f"seq {count} | gzip -c | gunzip -c | sha256sum | cut -c1-64", answer)


def _sort(numbers: random.Random) -> Expected:
    count = numbers.randrange(20_000, 60_000)
    return _shell("sort", f"seq {count} | sort -r | sed -n 1p", max(map(str, range(1, count + 1))))


def _count(numbers: random.Random) -> Expected:
    count = numbers.randrange(20_000, 60_000)
    sevens = sum("7" in str(number) for number in range(1, count + 1))
    return _shell("count", f"seq {count} | grep -c 7", str(sevens))


def _training(numbers: random.Random) -> Expected:
    return _ml("train", numbers, lambda result: result["loss_last"] < result["loss_first"])


def _inference(numbers: random.Random) -> Expected:
    return _ml("infer", numbers, lambda result: result["samples"] > 0)


def _ml(mode: str, numbers: random.Random, check: Callable[[dict[str, float]], bool]) -> Expected:
    task = {
        "type": "ml",
        "duration_ms": numbers.randrange(20, 60),
        "params": {"mode": mode, "seed": numbers.randrange(1_000_000)},
    }
    return Expected(kind=mode, task=task, result_is_right=lambda result: isinstance(result, dict) and check(result))


def _flaky(_: random.Random) -> Expected:
    command = 'if [ "$PYSCHED_ATTEMPT" = 1 ]; then echo "the first attempt fails" >&2; exit 7; fi; echo fine'
    return Expected(kind="flaky", task={"command": command, "retry_delay_s": 0.2}, attempts=2)


def _failing(_: random.Random) -> Expected:
    task = {"command": 'echo "this always fails" >&2; exit 3', "max_retries": 1, "retry_delay_s": 0.2}
    return Expected(kind="failing", task=task, status="failed", reason="exit 3", attempts=2)


def _hanging(_: random.Random) -> Expected:
    task = {"command": ["sleep", "3600"], "timeout_s": 1.0, "grace_s": 0.5, "max_retries": 0}
    return Expected(kind="hanging", task=task, status="failed", reason="timeout")

"""Calls made up from the OpenAPI document, right ones and wrong ones, held against what the document promises.

    python -m tests.integration.api.fuzz --calls 20000 [--seed 1] [--processes 2]

Most of the time goes into making calls up, so several processes may share the work, each with a server and seeds of its
own.  Each operation gets its share of calls.  Half of the ids in paths are those of tasks that were accepted before, so
that calls meet tasks that there are.  Streams, which never end, are left out.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import checks as known_checks
from schemathesis.core import NotSet
from schemathesis.openapi import checks as _openapi  # noqa: F401 - registers the checks of documents

STREAMS = frozenset({"/events", "/tasks/{id}/logs/follow"})
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",  # of bodies: in a URL all is text, also `false` as a tag
)


@dataclass
class Fuzzer:
    url: str
    token: str
    calls: int  # in all, at least
    seed: int
    statuses: Counter[int] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Raises the first failure, with the call that led to it."""
        headers = {"Authorization": f"Bearer {self.token}"}
        document = httpx.get(f"{self.url}/openapi.json", headers=headers).json()
        document.pop("security")  # tokens have tests of their own
        for methods in document["paths"].values():
            for operation in methods.values():
                operation.pop("security", None)
        schemathesis.checks.load_all_checks()
        schema = schemathesis.openapi.from_dict(document)
        found: list[Any] = list(schema.get_all_operations())
        operations = [operation for result in found if (operation := result.ok()).path not in STREAMS]
        operations.sort(key=lambda operation: not operation.path.startswith("/submit"))  # tasks first
        modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
        share = max(1, min(self.calls // (len(operations) * len(modes)), 200))
        with requests.Session() as session:
            session.headers.update(headers)
            while self.statuses.total() < self.calls:  # where there is little to vary there are few calls a round
                for operation in operations:
                    for mode in modes:
                        self._fuzz(operation, mode, share, session)
                self.seed += 1

    def _fuzz(self, operation: Any, mode: Any, share: int, session: requests.Session) -> None:
        checks = [check for check in known_checks.CHECKS.get_all() if check.__name__ in CHECKS]
        assert len(checks) == len(CHECKS)
        choice = random.Random(self.seed)

        def call(case: Any) -> None:
            right = mode is schemathesis.GenerationMode.POSITIVE
            if right and "id" in (case.path_parameters or {}) and self.ids and choice.random() < 0.5:
                case.path_parameters["id"] = choice.choice(self.ids)
            if isinstance(case.query, dict) and isinstance(case.query.get("wait"), float | int):
                case.query["wait"] = min(case.query["wait"], 0.01)
            response = case.call(base_url=self.url, session=session, timeout=60)
            self.statuses[response.status_code] += 1
            if case.operation.path == "/submit" and response.status_code == 201:
                self.ids.append(response.json()["id"])
            bare = isinstance(case.body, NotSet)
            case.validate_response(
                response, checks=[each for each in checks if not bare or "negative" not in each.__name__]
            )

        try:
            strategy = operation.as_strategy(generation_mode=mode)
            _examples(call, strategy, share, self.seed)
        except hypothesis.errors.Unsatisfiable:
            assert mode is schemathesis.GenerationMode.NEGATIVE, operation.label  # nothing can be wrong about it


def _examples(call: Callable[[Any], None], strategy: Any, count: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def each(case: Any) -> None:
        call(case)

    each()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.processes > 1:
        sys.exit(_share(options.calls, options.seed, options.processes))
    from benchmarks.server import control_plane

    with control_plane() as server:
        fuzzer = Fuzzer(f"http://127.0.0.1:{server.port}", server.token, options.calls, options.seed)
        fuzzer.run()
    print(f"{fuzzer.statuses.total()} calls: {dict(sorted(fuzzer.statuses.items()))}")


def _share(calls: int, seed: int, processes: int) -> int:
    """Each process fuzzes by itself; 1 if one of them has found something."""
    command = [sys.executable, "-m", "tests.integration.api.fuzz", "--calls", str(math.ceil(calls / processes))]
    started = [subprocess.Popen([*command, "--seed", str(seed + 1000 * number)]) for number in range(processes)]
    codes = [each.wait() for each in started]
    return int(any(codes))


if __name__ == "__main__":
    main()

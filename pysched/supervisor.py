"""One process that is kept running, `scheduler NAME`, as its parent sees it: when it is started again, and when not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# By path and not by -m: that would let a folder `pysched` where the user happens to stand pass for the package.
SCHEDULER = (sys.executable, str(Path(__file__).parent / "cli" / "__main__.py"))

BACKOFF_S = (0.1, 30.0)  # the first one short: a lease of 10 s runs on
PATIENCE_S = 3.0  # longest back-off of one that ended with an error: what it lacks, a database, may be back soon
STABLE_S = 60.0  # a child that lived this long has earned the shortest back-off again
QUICK_DEATHS = 5  # in a row, each before `STABLE_S`: something is wrong that a restart does not mend


@dataclass(slots=True)
class Child:
    """Its settings are in the environment, which `ps` does not show."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # monotonic, as all times here
    restart_at: float = 0.0
    deaths: int = 0  # quick ones in a row

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def start(self, now: float, *, options: Sequence[str] = (), inherited: Sequence[int] = ()) -> None:
        """`inherited`: descriptors that it gets under the same numbers."""
        self.started = now
        # A session of its own: ^C reaches the parent alone, which passes it on once.
        self.process = subprocess.Popen(
            [*SCHEDULER, self.name, "--parent-pid", str(os.getpid()), *options],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=inherited,
        )

    def collect(self, now: float) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.process is None or self.process.poll() is None:
            return None
        code: int = self.process.returncode
        self.process = None
        self.deaths = 1 if now - self.started > STABLE_S else self.deaths + 1
        self.restart_at = now + self.backoff_s(code)
        return code

    def backoff_s(self, code: int) -> float:
        return min(BACKOFF_S[0] * 2.0 ** min(self.deaths - 1, 20), PATIENCE_S if code > 0 else BACKOFF_S[1])

    def tell(self, number: signal.Signals) -> None:
        if self.process is not None:
            # Not by Popen, which would collect it on the way.  Only `collect` does that, so the number is its own.
            os.kill(self.process.pid, number)

    def end_group(self) -> None:
        """Kill what has not yet left its session: of a node, children that had no time to become a program."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

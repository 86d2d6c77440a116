"""The thread that takes batches of events from the core and turns each ended attempt into an outcome."""

from __future__ import annotations

import os
import random
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

import structlog

from pysched import _core, policy
from pysched._core import Core, Event, PlainEnds, moment_of
from pysched.engine.attempts import Attempts, Held
from pysched.model import AttemptKey, Exit, Outcome, Reason, Started

_CAUSES = {
    _core.CAUSE_NONE: None,
    _core.CAUSE_TIMEOUT: Reason.TIMEOUT,
    _core.CAUSE_CANCEL: Reason.USER,
    _core.CAUSE_SHUTDOWN: Reason.SHUTDOWN,
    _core.CAUSE_LOG_LIMIT: Reason.LOG_LIMIT,
    _core.CAUSE_MEMORY: Reason.MEMORY,
}

ReadResult = Callable[[str], "tuple[str | None, str | None]"]  # (JSON text or None, what is wrong with it or None)
CheckResult = Callable[[bytes], "tuple[str | None, str | None]"]
ResultTexts = Callable[[bytes], "tuple[str, bytes] | None"]


class Reaper:
    """`record(started, outcomes, plain)` takes over a batch; `room` and `due` tell the dispatcher.

    `read_result` looks for what a job left in a file, `check_result` at what came without one; `result_texts` gives of
    that, if it is good, its JSON for the store and for the `.done` file.
    """

    def __init__(
        self,
        core: Core,
        attempts: Attempts,
        *,
        record: Callable[[Sequence[Started], Sequence[Outcome], PlainEnds], None],
        room: Callable[[], None],
        due: Callable[[], None],
        read_result: ReadResult,
        check_result: CheckResult,
        result_texts: ResultTexts,
    ) -> None:
        self._core = core
        self._attempts = attempts
        self._record = record
        self._room = room
        self._due = due
        self._read_result = read_result
        self._check_result = check_result
        self._result_texts = result_texts
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._log = structlog.get_logger("reaper")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take what there is, then no more; call it when nothing runs any more, or the core is closed."""
        self._stopping = True
        self._core.wake()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self.take(*self._poll(None))
        while True:  # what the lanes still told before they stopped
            events, plain = self._poll(0)
            if not events and not plain:
                return
            self.take(events, plain)

    def _poll(self, timeout_s: float | None) -> tuple[list[Event], PlainEnds]:
        return self._core.poll_ends(timeout_s, self._attempts.held, self._result_texts)

    def take(self, events: Sequence[Event], plain: PlainEnds) -> None:
        """Pass on what happened; from elsewhere than the core only before `start`."""
        starts: dict[int, Event] = {}
        outcomes: list[Outcome] = []
        ended: list[int] = []
        due = False
        for event in events:
            if event.kind == _core.ALARM:
                due = True
            elif event.kind == _core.STARTED:
                starts[event.handle] = event
            else:
                outcomes.append(self._outcome(event, self._attempts.get(event.handle)))
                ended.append(event.handle)
                starts.pop(event.handle, None)  # what has ended needs no note that it runs
        started = [self._started(event) for event in starts.values()]
        if started or outcomes or plain:
            # Recorded first, forgotten second: "nothing held" implies that every outcome is with the recorder.
            ended += plain.handles()
            self._record(started, outcomes, plain)
            self._attempts.remove(ended)
            self._room()
        if due:
            self._due()

    def _started(self, event: Event) -> Started:
        key = self._attempts.get(event.handle).claim.key
        return Started(key=key, pid=event.pid, started_at=moment_of(event.started_ns))

    def outcomes(self, plain: PlainEnds) -> list[Outcome]:
        """The same ends as outcomes; from any thread."""
        return [self._outcome(event, held) for event, held in plain.events()]

    def _outcome(self, event: Event, held: Held) -> Outcome:
        end = self._exit(event, held)
        return policy.verdict(
            held.claim.key,
            end,
            failures=held.claim.failures,
            rule=policy.RetryRule(max_retries=held.task.max_retries, retry_delay_s=held.task.retry_delay_s),
            jitter=random.random(),  # noqa: S311 - spreads retries, keeps no secret
            void=event.kind == _core.WITHDRAWN,
        )

    def _exit(self, event: Event, held: Held) -> Exit:
        finished_at = moment_of(event.ended_ns)
        if event.kind == _core.WITHDRAWN:
            return Exit(pid=None, started_at=None, finished_at=finished_at, cause=_CAUSES[event.cause])
        if event.kind == _core.SPAWN_FAILED:
            cause = Reason.spawn(_spawn_failure(event, held))
            return Exit(pid=None, started_at=finished_at, finished_at=finished_at, cause=cause)
        code = os.waitstatus_to_exitcode(event.status) if event.status >= 0 else None
        result, problem = self._result(event, held)
        if problem is not None:
            self._log.warning("a result is dropped", task=held.claim.key.id, problem=problem)
        if event.survivors:
            self._log.error(
                "processes survive KILL, their worker is withheld until they are gone",
                task=held.claim.key.id,
                attempt=held.claim.key.attempt,
                pid=event.pid,
                processes=event.survivors,
            )
        started_at = moment_of(event.started_ns)
        return Exit(
            pid=event.pid,
            started_at=started_at,
            # by the monotonic clock: an attempt never ends before it began, whatever happens to the wall clock
            finished_at=started_at + timedelta(microseconds=event.run_ns // 1000),
            exit_code=code if code is not None and code >= 0 else None,
            signal=_signal_name(-code) if code is not None and code < 0 else None,
            cause=_CAUSES[event.cause] if code is not None or event.cause else Reason.LOST,
            wait_ms=_wait_ms(held, started_at),
            cpu_ms=event.cpu_ns // 1_000_000,
            max_rss_kb=event.max_rss_kb,
            stdout=held.program.stdout if event.left_output else None,
            stderr=held.program.stderr if event.left_output else None,
            result=result,
            result_file=event.left_result,
            survivors=event.survivors,
        )

    def _result(self, event: Event, held: Held) -> tuple[str | None, str | None]:
        if event.left_result:
            return self._read_result(held.program.result)
        return (None, None) if event.result is None else self._check_result(event.result)


def unstartable(key: AttemptKey, failures: int, error: Exception) -> Outcome:
    """The outcome of a claim of which no program could be made."""
    now = datetime.now(timezone.utc)
    reason = Reason.spawn("; ".join(traceback.format_exception_only(error)).strip().replace("\n", " "))
    end = Exit(pid=None, started_at=now, finished_at=now, cause=reason)
    return policy.verdict(key, end, failures=failures, rule=policy.RetryRule(max_retries=0, retry_delay_s=0), jitter=0)


def withdrawn(key: AttemptKey) -> Outcome:
    """The outcome of a claim that never came to have a process: it is handed back and leaves no trace."""
    end = Exit(pid=None, started_at=None, finished_at=datetime.now(timezone.utc), cause=Reason.SHUTDOWN)
    rule = policy.RetryRule(max_retries=0, retry_delay_s=0)
    return policy.verdict(key, end, failures=0, rule=rule, jitter=0, void=True)


def _wait_ms(held: Held, started_at: datetime) -> float | None:
    if held.claim.key.attempt > 1:
        return None
    return max(0.0, (started_at - held.claim.submitted_at).total_seconds() * 1000)


def _spawn_failure(event: Event, held: Held) -> str:
    what = {
        "exec": held.program.pattern.argv[0],
        "cwd": held.program.pattern.cwd,
        "stdout": held.program.stdout.encode(),
        "stderr": held.program.stderr.encode(),
    }.get(event.step or "")
    place = f"{event.step} {os.fsdecode(what)}" if what is not None else f"{event.step}"
    return f"{place}: {os.strerror(event.errno)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number >= signal.SIGRTMIN else f"SIG{number}"
